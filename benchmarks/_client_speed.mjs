// Perplexity and decoding speed of several GGUF files in llama.cpp, in turns, as one line of JSON.
// node _client_speed.mjs PACKAGE TASK.json
// TASK: {files, windows: [[token, ...]], prompt: [token, ...], new, rounds, threads}   no rounds: no speed
import fs from "fs";
import {pathToFileURL} from "url";
import {perplexity, speed} from "./_llama_cpp.mjs";

const [place, given] = process.argv.slice(2);
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(place + "/dist/index.js").href);
const task = JSON.parse(fs.readFileSync(given));
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: task.threads});
const version = JSON.parse(fs.readFileSync(place + "/package.json")).version;

const models = [];
for (const file of task.files) models.push(await llama.loadModel({modelPath: file, useMmap: false}));
const rows = [];
for (const [index, model] of models.entries()) {
  const row = {file: task.files[index], bytes: fs.statSync(task.files[index]).size, rates: []};
  rows.push(task.windows.length ? {...row, ...(await perplexity(model, task))} : row);
}
for (let round = 0; round < task.rounds; round++)
  for (const [index, model] of models.entries()) rows[index].rates.push(await speed(model, task));
console.log(JSON.stringify({version, rows}));
process.exit(0);
