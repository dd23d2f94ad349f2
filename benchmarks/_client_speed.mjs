// Perplexity and decoding speed of several GGUF files in llama.cpp, in turns, as one line of JSON.
// node _client_speed.mjs PACKAGE TASK.json
// TASK: {files, windows: [[token, ...]], prompt: [token, ...], new, rounds, threads}   no rounds: no speed
import fs from "fs";
import {pathToFileURL} from "url";

const [place, given] = process.argv.slice(2);
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(place + "/dist/index.js").href);
const task = JSON.parse(fs.readFileSync(given));
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: task.threads});
const version = JSON.parse(fs.readFileSync(place + "/package.json")).version;

async function fresh(model, size) {
  return await model.createContext({contextSize: size, sequences: 1, threads: task.threads, batchSize: 512});
}

async function perplexity(model) {
  let nll = 0, count = 0;
  for (const window of task.windows) {
    const context = await fresh(model, window.length + 8);
    const asked = window.map((token) => [token, {generateNext: {probabilities: true}}]);
    const found = await context.getSequence().controlledEvaluate(asked);
    for (let place = 0; place + 1 < window.length; place++) {
      nll -= Math.log(Math.max(found[place].next.probabilities.get(window[place + 1]) ?? 0, 1e-30));
      count++;
    }
    await context.dispose();
  }
  return {perplexity: Math.exp(nll / count), tokens: count};
}

async function speed(model) {
  const context = await fresh(model, task.prompt.length + task.new + 8);
  let made = 0, begun = 0;
  const how = {temperature: 0, topK: 1, yieldEogToken: true};
  for await (const _ of context.getSequence().evaluate(task.prompt, how)) {
    if (made === 0) begun = performance.now(); // the prompt is read by now
    if (made++ >= task.new) break;
  }
  const rate = (made - 1) / ((performance.now() - begun) / 1000);
  await context.dispose();
  return rate;
}

const models = [];
for (const file of task.files) models.push(await llama.loadModel({modelPath: file, useMmap: false}));
const rows = [];
for (const [index, model] of models.entries()) {
  const row = {file: task.files[index], bytes: fs.statSync(task.files[index]).size, rates: []};
  rows.push(task.windows.length ? {...row, ...(await perplexity(model))} : row);
}
for (let round = 0; round < task.rounds; round++)
  for (const [index, model] of models.entries()) rows[index].rates.push(await speed(model));
console.log(JSON.stringify({version, rows}));
process.exit(0);
