// Decoding speed of GGUF files in llama.cpp, one answer for each line that is read, so that others can take turns.
// node _decode_llama.mjs PACKAGE TASK.json
// TASK: {files, windows: [[token, ...]], prompt: [token, ...], new, threads}
// First a line with version and perplexities; then for "3" on stdin the tokens a second of file 3.
import fs from "fs";
import readline from "readline";
import {pathToFileURL} from "url";
import {perplexity, speed} from "./_llama_cpp.mjs";

const [place, given] = process.argv.slice(2);
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(place + "/dist/index.js").href);
const task = JSON.parse(fs.readFileSync(given));
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: task.threads});
const version = JSON.parse(fs.readFileSync(place + "/package.json")).version;

const models = [], rows = [];
for (const file of task.files) {
  const model = await llama.loadModel({modelPath: file, useMmap: false});
  models.push(model);
  rows.push({bytes: fs.statSync(file).size, ...(await perplexity(model, task))});
}
console.log("answer:" + JSON.stringify({version, rows}));
for await (const line of readline.createInterface({input: process.stdin})) {
  console.log("answer:" + JSON.stringify({rate: await speed(models[Number(line)], task)}));
}
process.exit(0);
