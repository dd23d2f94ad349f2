"""Llama-shaped checkpoints with random weights, written shard by shard: never a whole model in memory."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def make(
    folder: Path,
    layers: int,
    hidden: int = 1024,
    ffn: int = 2816,
    heads: int = 16,
    kv_heads: int = 4,
    vocabulary: int = 4096,
    context: int = 512,
    dtype: torch.dtype = torch.bfloat16,
    same: bool = False,
) -> int:
    """Writes a folder that `transformers` loads as a LlamaForCausalLM; one shard a layer.

    Args:
        same: every layer has the numbers of the first, where drawing them takes longer than what is measured.

    Returns: bytes of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)

    drawn: dict[tuple[int, int], torch.Tensor] = {}

    def matrix(rows: int, columns: int) -> torch.Tensor:
        if same and (rows, columns) in drawn:
            return drawn[rows, columns].clone()
        found = drawn[rows, columns] = draw(rows, columns)
        return found

    def draw(rows: int, columns: int) -> torch.Tensor:
        return (torch.randn(rows, columns, generator=generator) / columns**0.5).to(dtype)

    size, key_width = hidden // heads, kv_heads * (hidden // heads)
    weight_map: dict[str, str] = {}
    total = 0

    def write(name: str, tensors: dict[str, torch.Tensor]) -> None:
        nonlocal total
        save_file(tensors, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(tensors, name))
        total += sum(t.nbytes for t in tensors.values())

    ones = torch.ones(hidden, dtype=dtype)
    shards = layers + 1
    streamed = {"model.embed_tokens.weight": matrix(vocabulary, hidden), "model.norm.weight": ones}
    write(f"model-00001-of-{shards:05d}.safetensors", streamed)
    for i in range(layers):
        p = f"model.layers.{i}"
        shard = {
            f"{p}.self_attn.q_proj.weight": matrix(hidden, hidden),
            f"{p}.self_attn.k_proj.weight": matrix(key_width, hidden),
            f"{p}.self_attn.v_proj.weight": matrix(key_width, hidden),
            f"{p}.self_attn.o_proj.weight": matrix(hidden, hidden),
            f"{p}.mlp.gate_proj.weight": matrix(ffn, hidden),
            f"{p}.mlp.up_proj.weight": matrix(ffn, hidden),
            f"{p}.mlp.down_proj.weight": matrix(hidden, ffn),
            f"{p}.input_layernorm.weight": ones.clone(),
            f"{p}.post_attention_layernorm.weight": ones.clone(),
        }
        write(f"model-{i + 2:05d}-of-{shards:05d}.safetensors", shard)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": size,
        "max_position_embeddings": context,
        "tie_word_embeddings": True,
        "dtype": str(dtype).removeprefix("torch."),
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    return total


def make_tokens(file: Path, sequences: int, length: int, vocabulary: int = 4096) -> None:
    """Random token ids, one document a line: memory and time don't depend on what they say."""
    generator = torch.Generator().manual_seed(1)
    with file.open("w") as handle:
        for _ in range(sequences):
            ids = torch.randint(3, vocabulary, (length,), generator=generator)
            handle.write(json.dumps({"input_ids": ids.tolist()}) + "\n")
