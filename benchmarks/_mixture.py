"""Mixtures of experts grown out of a small Llama and trained for a while, since no small trained one is at hand.

copies   every expert begins as the dense FFN, each with a little noise of its own and its channels in an order of
         its own (upcycling; the order changes nothing that a model computes)
fresh    every expert begins with random weights, as in a model that was a mixture from its first day
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from _protocol import calibration_ids, read_texts
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig, MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

ORIGINS = ("copies", "fresh")
NOISE = 0.3  # of the copies, relative to each matrix' root mean square
BATCH, RATE, WARM = 4, 2e-3, 50
BALANCE = 0.02


def grow(folder: Path, dense: Path, experts: int, origin: str) -> MixtralForCausalLM:
    """A mixture with the attention, norms and embeddings of a Llama checkpoint, two experts a token."""
    source = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32)
    taken = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    taken += ("num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings")
    taken += ("bos_token_id", "eos_token_id", "rope_parameters")
    given = {key: getattr(source.config, key) for key in taken}
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(**given, num_local_experts=experts, num_experts_per_tok=2))
    model.load_state_dict({k: v for k, v in source.state_dict().items() if ".mlp." not in k}, strict=False)
    with torch.no_grad():
        for own, layer in zip(model.model.layers, source.model.layers, strict=True):
            up = torch.stack([layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight])
            down = layer.mlp.down_proj.weight
            for i in range(experts if origin == "copies" else 0):
                order = torch.randperm(down.shape[1])
                own.mlp.experts.gate_up_proj[i] = _noisy(up[:, order].flatten(0, 1))
                own.mlp.experts.down_proj[i] = _noisy(down[:, order])
            if origin == "fresh":
                own.mlp.experts.gate_up_proj.normal_(std=float(up.std()))
                own.mlp.experts.down_proj.normal_(std=float(down.std()))
            own.mlp.gate.weight.normal_(std=0.02)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(dense).save_pretrained(folder)
    return model


def _noisy(weight: Tensor) -> Tensor:
    return weight + NOISE * weight.square().mean().sqrt() * torch.randn_like(weight)


def train(model: MixtralForCausalLM, dense: Path, text: Path, steps: int, length: int = 256) -> None:
    """Adam on the next token, with a load-balancing loss; the learning rate falls to nothing along a line.

    Each layer is balanced for itself: over all layers at once, as the class does it, each may still use few experts.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    batches = _batches(calibration_ids(dense, read_texts(text), sequences=steps * BATCH * length // 512 + 1), length)
    experts, chosen = model.config.num_local_experts, model.config.num_experts_per_tok
    model.train()
    for step, ids in zip(range(steps), batches, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / WARM, 1 - step / steps)
        out = model(input_ids=ids, output_router_logits=True)
        loss = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        uneven = [load_balancing_loss_func((logits,), experts, chosen) for logits in out.router_logits]
        loss = loss + BALANCE * torch.stack(uneven).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"  step {step}: loss {loss.item():.3f}", flush=True)
    model.eval()


def _batches(ids: Tensor, length: int) -> Iterator[Tensor]:
    rows = ids.view(-1, length)
    rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))]
    yield from rows.split(BATCH)


def mixture(folder: Path, dense: Path, text: Path, origin: str, experts: int = 8, steps: int = 400) -> Path:
    """The folder of a trained mixture, made if it isn't there."""
    if not (folder / "trained").is_file():
        model = grow(folder, dense, experts, origin)
        train(model, dense, text, steps)
        model.save_pretrained(folder)
        (folder / "trained").touch()
    return folder
