// A loaded model in llama.cpp: its perplexity on windows of tokens, and tokens a second of greedy decoding.

async function fresh(model, size, task) {
  return await model.createContext({contextSize: size, sequences: 1, threads: task.threads, batchSize: 512});
}

export async function perplexity(model, task) {
  let nll = 0, count = 0;
  for (const window of task.windows) {
    const context = await fresh(model, window.length + 8, task);
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

export async function speed(model, task) {
  const context = await fresh(model, task.prompt.length + task.new + 8, task);
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
