// Runs a GGUF file in llama.cpp, by the npm package node-llama-cpp, and prints what it did as one line of JSON.
// node run.mjs PACKAGE TASK.json     TASK: {file, prompts: [[token, ...]], new, texts: [text], threads}
import fs from "fs";
import {pathToFileURL} from "url";

const [place, given] = process.argv.slice(2);
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(place + "/dist/index.js").href);
const task = JSON.parse(fs.readFileSync(given));
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: task.threads});
const model = await llama.loadModel({modelPath: task.file, useMmap: false});
const found = {version: JSON.parse(fs.readFileSync(place + "/package.json")).version, tokens: [], texts: []};
for (const prompt of task.prompts) {
  const context = await model.createContext({
    contextSize: task.context, sequences: 1, threads: task.threads, batchSize: 64, flashAttention: false,
    experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32",
  });
  const sequence = context.getSequence();
  const own = [];
  for await (const token of sequence.evaluate(prompt, {temperature: 0, topK: 1, yieldEogToken: true})) {
    own.push(token);
    if (own.length >= task.new) break;
  }
  found.tokens.push(own);
  await context.dispose();
}
for (const text of task.texts) found.texts.push(Array.from(model.tokenize(text, true)));
console.log(JSON.stringify(found));
process.exit(0);
