"""Greedy tokens of a folder in transformers or in vLLM, in that client's own interpreter; knows nothing of Secateur.

python _client_tokens.py CLIENT FOLDER PROMPTS.json NEW     prints {version, tokens} as one line of JSON
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def by_transformers(folder: str, prompts: list[list[int]], new: int) -> dict[str, Any]:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=True, dtype=torch.float32
    ).eval()
    model.generation_config.eos_token_id = None  # as many tokens as are asked for, whatever they are
    found = []
    for prompt in prompts:
        how = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        out = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), **how
        )
        found.append(out[0, len(prompt) :].tolist())
    return {"version": transformers.__version__, "tokens": found}


def by_vllm(folder: str, prompts: list[list[int]], new: int) -> dict[str, Any]:
    import vllm

    model = vllm.LLM(folder, dtype="float32", trust_remote_code=True, enforce_eager=True, max_model_len=128)
    how = vllm.SamplingParams(temperature=0, max_tokens=new, ignore_eos=True)
    out = model.generate([{"prompt_token_ids": prompt} for prompt in prompts], how, use_tqdm=False)
    return {"version": vllm.__version__, "tokens": [list(one.outputs[0].token_ids) for one in out]}


if __name__ == "__main__":
    client, folder, file, new = sys.argv[1:]
    prompts = json.loads(Path(file).read_text(encoding="utf-8"))
    run = {"transformers": by_transformers, "vllm": by_vllm}[client]
    print(json.dumps(run(folder, prompts, int(new))))
