"""Which architectures can be pruned, kind by kind, each proved on a tiny random checkpoint of it.

    python benchmarks/coverage.py [--out FOLDER] [--only TYPE ...] [--again] [--report]

Every type runs in a process of its own with a time limit. For each it is tried to open it (`inspect`), to prune
single weights, channels, heads, latents and experts as `secateur prune` does it, with the round-trip check, to load
the result with plain transformers, and to compare that with an independent reading of the source: `from_pretrained`
with zeros in the inputs of the Linears that read the units, or in the weights, that went. What differs is silently
wrong.

Results lie in FOLDER/TYPE.json, so that an interrupted run goes on; `--report` writes results/coverage.json and
docs/architectures.md from them, and from what the former says already of types that FOLDER doesn't have.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
KINDS = ("weight", "channel", "query_head", "kv_group", "latent", "expert")
LIMIT = 420  # seconds for one type
TEXT = "The quick brown fox jumps over the lazy dog, and a pruned tree grows back where the wound was clean. "


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("coverage"))
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--again", action="store_true", help="also what has a result")
    parser.add_argument(
        "--more", action="store_true", help="also types that nobody has named, see _tiny_architectures"
    )
    parser.add_argument("--report", action="store_true", help="write the page and the record from what is there")
    told = parser.parse_args()
    if told.report:
        report(told.out)
        return
    from _tiny_architectures import POPULAR, WITH_VLM, others

    import secateur.analysis.inspect
    import secateur.pipeline.prune  # noqa: F401 - before the fork

    told.out.mkdir(parents=True, exist_ok=True)
    names = told.only or [*POPULAR, *WITH_VLM, *(others() if told.more else [])]
    for number, name in enumerate(names, 1):
        file = told.out / f"{name}.json"
        if not file.exists() or told.again:
            file.write_text(json.dumps(in_a_process(name, told.out), indent=1) + "\n", encoding="utf-8")
        print(f"{number:3d}/{len(names)} {line(json.loads(file.read_text()))}", flush=True)


def in_a_process(name: str, out: Path) -> dict[str, Any]:
    """What a process of its own finds out about a type; or why it found nothing. It is forked, which spares the
    imports."""
    begun = time.time()
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_worker, args=(name, out, theirs))
    process.start()
    theirs.close()
    try:
        found = ours.recv() if ours.poll(LIMIT) else {"error": f"no end after {LIMIT} s"}
    except EOFError:
        found = {"error": "the process ended without a word"}
    process.kill()
    process.join()
    return {"type": name, **found, "seconds": round(time.time() - begun, 1)}


def _worker(name: str, out: Path, answer: Any) -> None:
    log = (out / f"{name}.log").open("w")
    for stream in (1, 2):
        os.dup2(log.fileno(), stream)
    answer.send(look_at(name, out))


def look_at(name: str, out: Path) -> dict[str, Any]:
    """Builds a type and tries every kind on it."""
    import transformers
    from _tiny_architectures import build

    from secateur.data.embedded import embedded_path
    from secateur.model import round_trip

    transformers.logging.set_verbosity_error()
    os.environ.setdefault("XDG_CACHE_HOME", str(out.resolve() / "cache"))
    round_trip.run = _checked_here  # type: ignore[assignment]  # the same comparison without a fresh interpreter
    work = out / "work" / name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    found: dict[str, Any] = {"type": name}
    try:
        made = build(name, work, embedded_path())
    except Exception as error:
        return {**found, "built": False, "error": _said(error)}
    found |= {"built": True, "class": made["cls"], "note": made["note"], "vlm": _sees(work / name)}
    found |= look_into(work / name)
    shutil.rmtree(work, ignore_errors=True)
    return found


def look_into(folder: Path) -> dict[str, Any]:
    """inspect, and each kind that it offers."""
    from secateur.analysis.inspect import inspect
    from secateur.model.checkpoint import Checkpoint

    try:
        begun = time.time()
        seen = inspect(folder)
        seconds = round(time.time() - begun, 2)
        checkpoint = Checkpoint.open(folder)
    except Exception as error:
        return {"inspect": _said(error), "kinds": {}}
    kinds = {row["kind"] for row in seen["sites"]}
    text = folder.parent / "text.txt"
    text.write_text("\n\n".join(f"{TEXT} {number} {TEXT}" * 3 for number in range(40)), encoding="utf-8")
    (folder.parent / "own.txt").write_text(TEXT)
    failed = list(checkpoint.family.failed)
    found = {"inspect": True, "how": seen.get("found"), "seconds_inspect": seconds, "not_offered": failed}
    return {**found, "kinds": {k: try_kind(folder, k, text, checkpoint) for k in KINDS if k in kinds}}


def try_kind(folder: Path, kind: str, text: Path, checkpoint: Any) -> dict[str, Any]:
    """Prunes one kind; True under `ok` if it was pruned, proved, loaded and compared."""
    from secateur.config.recipe import make_recipe
    from secateur.pipeline.prune import prune

    out = folder.parent / f"out-{kind}"
    told: dict[str, Any] = {"model": str(folder), "sites": (kind,), "sparsity": 0.5, "calibrate": str(text)}
    told |= {"samples": 4, "length": 24, "evaluate": "none", "explain": False, "speed": False, "quality": "fast"}
    told |= {"allow_little_text": True, "device": "cpu", "dtype": "float32", "refit": False}
    if kind == "expert":
        told["sparsity"] = 0.25
    if kind == "weight":
        told["method"] = ("wanda",)  # which leaves the weights that stay as they are
    try:
        done = prune(make_recipe(told), out, quiet=True)
        loader = done["result"]["loader"]
        off = difference(folder, out, kind, checkpoint)
    except Exception as error:
        return {"ok": False, "why": _said(error)}
    finally:
        found = out.exists()
    right = off is None or off < 2e-3
    return {"ok": found and right, "how": loader, "difference": off, "silently_wrong": not right}


def difference(source: Path, result: Path, kind: str, checkpoint: Any) -> float | None:
    """How far a result is from its source with zeros in place of what went, of the largest logit; None where zeros
    don't say it (experts)."""
    import torch

    from secateur.model.round_trip import load_as_user

    ids = torch.randint(20, 256, (1, 20), generator=torch.Generator().manual_seed(5))
    dense, pruned = load_as_user(source)[0], load_as_user(result)[0]
    plan = json.loads((result / "plan.json").read_text())
    with torch.no_grad():
        got = pruned(input_ids=ids, use_cache=False).logits
        if kind == "weight":
            own = dict(pruned.named_parameters())
            for name, parameter in dense.named_parameters():
                if name.startswith(f"{checkpoint.family.layers}.") and parameter.dim() > 1:
                    parameter.mul_(own[name] != 0)
        elif kind == "expert":
            return None
        else:
            _silence(dense, plan, checkpoint)
        want = dense(input_ids=ids, use_cache=False).logits
    return float((got - want).abs().max() / want.abs().max())


def _silence(dense: Any, plan: dict[str, Any], checkpoint: Any) -> None:
    """Zeros where the units that went are read; and in all that they own where a norm would see them before."""
    import torch

    from secateur.model.surgery import zero

    sites = {site.name: site for own in checkpoint.sites for site in own}
    layers = dense.get_submodule(checkpoint.family.layers)
    for entry in plan["entries"]:
        site = sites[entry["site"]]
        keep = torch.zeros(site.units, dtype=torch.bool)
        keep[entry["keep"]] = True
        layer = layers[site.layer]
        if any(cut.rescale for cut in site.cuts) or site.expert is not None:
            zero(layer, site, keep)
            continue
        columns = keep.repeat_interleave(site.width)
        names = {site.consumer, *(cut.parameter[: -len(".weight")] for cut in site.cuts if _reads(layer, cut))}
        for name in names:
            module = layer.get_submodule(name)
            module.register_forward_pre_hook(lambda _m, args, c=columns: (args[0] * c, *args[1:]))


def _reads(layer: Any, cut: Any) -> bool:
    """Whether a cut is of the inputs of a Linear."""
    from torch import nn

    module = layer.get_submodule(cut.parameter.rpartition(".")[0])
    return isinstance(module, nn.Linear) and cut.parameter.endswith(".weight") and cut.axis == 1


def _checked_here(words: list[str], changes: Any = None) -> Any:
    """Stands in for `run` in the round-trip check."""
    from secateur.model.round_trip import check
    from secateur.system.child import Ended

    folder, probe, bound, source = words[words.index("secateur.model.round_trip") + 1 :]
    try:
        found = check(Path(folder), Path(probe), int(bound) if bound else None, Path(source) if source else None)
    except Exception as error:
        return Ended(1, "", _said(error))
    return Ended(0, json.dumps(found), "")


def _sees(folder: Path) -> bool:
    from secateur.model.classes import is_composite
    from secateur.model.files import read_config

    return is_composite(read_config(folder))


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:300]


def line(found: dict[str, Any]) -> str:
    if not found.get("built"):
        return f"{found['type']:24s} not built: {found.get('error', '')}"[:150]
    if found.get("inspect") is not True:
        return f"{found['type']:24s} not opened: {found.get('inspect')}"[:190]
    marks = " ".join(
        f"{kind}:{'WRONG' if k.get('silently_wrong') else 'ok' if k['ok'] else 'no'}"
        for kind, k in found["kinds"].items()
    )
    why = next((k["why"] for k in found["kinds"].values() if not k["ok"] and "why" in k), "")
    return f"{found['type']:24s} {found['seconds']:5.0f}s {marks} {why}"[:260]


def report(out: Path) -> None:
    from _coverage_page import write
    from _tiny_architectures import POPULAR, WITH_VLM, others

    files, further = (
        [file for name in sorted({*names}) if (file := out / f"{name}.json").exists()]
        for names in ([*POPULAR, *WITH_VLM], others())
    )
    write(files, further, others(), HERE / "results" / "coverage.json", ROOT / "docs" / "architectures.md")


if __name__ == "__main__":
    main()
