"""The round-trip gate: what was saved must compute what was in memory, in a process that knows nothing.

`python -m secateur.model.round_trip FOLDER PROBE` loads the folder as a user would (plain `transformers`;
with `trust_remote_code` where the checkpoint brings the bundled modelling file), compares its logits on the
probe's tokens with the expected ones (of a model without a head the hidden states), and compares generation with the
KV cache to generation without.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from secateur.errors import VerificationError
from secateur.model.checkpoint import Checkpoint
from secateur.model.classes import auto_class, model_class
from secateur.model.files import read_config
from secateur.model.heads import answer_of
from secateur.model.quiet import quiet_loading, told_loading
from secateur.model.streamed import StreamedModel
from secateur.report.schema.report import GateFindings
from secateur.report.terminal.listening import telling, telling_parent
from secateur.system.child import run
from secateur.system.malloc import keep_large_apart
from secateur.system.memory import fits_in_memory

# fp32 on both sides and the same weights: only the order of summation differs.
TOLERANCE = 1e-3
NEW_TOKENS = 12
CACHES = ("past_key_values", "cache_params", "state")  # what classes call it
SLACK = 2.0  # times what the cache changes in the source: a cut model may amplify that


def write_probe(file: Path, ids: torch.Tensor, logits: torch.Tensor) -> None:
    """Saves token ids (1, tokens) and the logits (1, tokens, vocabulary) that they must give."""
    save_file({"ids": ids.cpu().contiguous(), "logits": logits.float().cpu().contiguous()}, file)


def verify(folder: Path, probe: Path, bound: int | None = None, source: Path | None = None) -> GateFindings:
    """Runs the gate in a fresh process.

    Args:
        source: the model that was cut. Where the cache changes what that computes (a context at which its position
            embeddings switch), the result is judged by as much.
        bound: a model of more bytes (in fp32) is loaded block by block, as one that doesn't fit in memory is.

    Returns:
        how it was loaded, the largest difference of a logit (relative to the largest logit), the same for
        cached against uncached decoding, and the tolerance.

    Raises:
        VerificationError: the folder doesn't load, or computes something else.
    """
    # A module cache of its own: code of an earlier checkpoint of the same name must not be picked up.
    with tempfile.TemporaryDirectory() as modules:
        environment = {"HF_MODULES_CACHE": modules, "HF_HUB_OFFLINE": "1"}
        words = [str(folder), str(probe), "" if bound is None else str(bound), "" if source is None else str(source)]
        done = run(["-m", "secateur.model.round_trip", *words], environment)
    if done.code != 0 or not done.answer:
        reason = done.complaint or f"exit code {done.code}"
        raise VerificationError(f"the saved checkpoint doesn't load with plain transformers: {reason}")
    result: GateFindings = json.loads(done.answer)
    judged = (
        ("max_logit_difference", result["max_logit_difference"], result["tolerance"]),
        ("max_cache_difference", result["max_cache_difference"], result["cache_tolerance"]),
    )
    for what, found, allowed in judged:
        if found is not None and not found <= allowed:
            raise VerificationError(
                f"the saved checkpoint computes something else than the model in memory: {what} is "
                f"{found:.2e} of the largest logit, above {allowed:g}"
            )
    return result


def load_as_user(folder: Path) -> tuple[Any, str]:
    """The model as a user would load it, in fp32, and how."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    auto_map = config.get("auto_map") or {}
    auto = auto_class(read_config(folder))
    how_to = {"dtype": torch.float32, "local_files_only": True, "trust_remote_code": bool(auto_map)}
    with told_loading():
        model = auto.from_pretrained(folder, **how_to)
    how = f"{auto.__name__}.from_pretrained" + (" with trust_remote_code=True" if auto_map else "")
    return model.eval(), how


@torch.no_grad()
def check(folder: Path, probe: Path, bound: int | None = None, source: Path | None = None) -> GateFindings:
    """The comparison itself, in this process."""
    with safe_open(probe, framework="pt") as handle:
        ids, expected = handle.get_tensor("ids"), handle.get_tensor("logits")
    scale = float(expected.abs().max()) or 1.0
    checkpoint = Checkpoint.open(folder)
    if not fits_in_memory(checkpoint.parameters, torch.float32, bound):
        return _check_streamed(checkpoint, ids, expected, scale)
    model, how = load_as_user(folder)
    logits = answer_of(model(input_ids=ids))
    difference = float((logits - expected).abs().max()) / scale
    cached = _cache_difference(model, ids) / scale if model.can_generate() else None
    allowed = TOLERANCE
    if cached is not None and not cached <= TOLERANCE and source is not None:
        del model
        allowed = max(TOLERANCE, SLACK * _own_cache_difference(source, ids))
    return {
        "how": how,
        "max_logit_difference": difference,
        "max_cache_difference": cached,
        "cache_equals_no_cache": None if cached is None else cached <= TOLERANCE,
        "tolerance": TOLERANCE,
        "cache_tolerance": allowed,
    }


def _own_cache_difference(source: Path, ids: torch.Tensor) -> float:
    """What the cache changes in the model that was cut, of its largest logit."""
    config = read_config(source)
    with quiet_loading():
        model = model_class(config).from_pretrained(
            source, config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    scale = float(model.eval()(input_ids=ids).logits.abs().max()) or 1.0
    return _cache_difference(model, ids) / scale


def _check_streamed(checkpoint: Checkpoint, ids: torch.Tensor, expected: torch.Tensor, scale: float) -> GateFindings:
    """For a model that doesn't fit in memory: its logits, block by block from the saved files."""
    streamed = StreamedModel(checkpoint, torch.device("cpu"), torch.float32)
    hidden, calls = streamed.embed(ids)
    streamed.release()
    for index in telling("layers", range(checkpoint.layers), checkpoint.layers):
        hidden = calls[index](streamed.load(index), hidden)
    difference = float((streamed.logits(ids, hidden) - expected).abs().max()) / scale
    return {
        "how": "its layers one by one (the whole exceeds the memory)",
        "max_logit_difference": difference,
        "max_cache_difference": None,
        "cache_equals_no_cache": None,
        "tolerance": TOLERANCE,
        "cache_tolerance": TOLERANCE,
    }


def _cache_difference(model: Any, ids: torch.Tensor) -> float:
    """Largest difference between step-by-step logits with the cache and logits of the whole prefix."""
    prompt = ids[:, : max(1, ids.shape[1] // 2)]
    out = model(input_ids=prompt, use_cache=True)
    name = next((n for n in CACHES if getattr(out, n, None) is not None), None)
    if name is None:
        return 0.0  # a class that keeps none
    sequence, worst = prompt, 0.0
    steps = min(NEW_TOKENS, ids.shape[1] - prompt.shape[1])
    for _ in telling("with and without cache", range(steps), steps):
        token = out.logits[:, -1:].argmax(dim=-1)
        sequence = torch.cat([sequence, token], dim=1)
        out = model(input_ids=token, use_cache=True, **{name: getattr(out, name)})
        whole = model(input_ids=sequence, use_cache=False).logits[:, -1]
        worst = max(worst, float((out.logits[:, -1] - whole).abs().max()))
    return worst


if __name__ == "__main__":
    keep_large_apart()
    saved, expected, limit, original = sys.argv[1:]
    with telling_parent():
        found = check(
            Path(saved), Path(expected), int(limit) if limit else None, Path(original) if original else None
        )
    print(json.dumps(found))
