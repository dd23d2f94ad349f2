"""What plain transformers makes of a result: the model, or an error, never something else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, dynamic_module_utils

import secateur
from secateur.model.architectures import FAMILIES
from secateur.model.checkpoint import Checkpoint
from secateur.model.classes import stock_class
from secateur.model.round_trip import load_as_user
from secateur.model.save import write_state
from secateur.model.sites import sites_of
from secateur.model.surgery import drop, remove
from tests.model import tiny

# Architecture -> what is cut: one case for each of the table.
CASES = [case for case in tiny.CASES if "-" not in case or case == "qwen3-moe"]


def cut(source: Path, out: Path, dropped: dict[int, str], channels: bool = True) -> torch.Tensor:
    """Some of the channels of layer 1 and some sub-blocks go. Returns the logits of what was saved, as walked."""
    streamed = secateur.open_for_walk(source)
    family, ids, found = streamed.checkpoint.family, tiny.tokens(1), []
    with secateur.save(streamed, out) as put:
        for block in secateur.walk(streamed, ids, at_end=lambda s: found.append(streamed.logits(ids, s.states[0]))):
            sites = sites_of(block.layer, family, block.index, streamed.checkpoint.head_dim)
            narrow = [site for site in sites if site.kind == "channel" and block.index == 1 and channels]
            if narrow:
                remove(block.layer, [(site, torch.arange(site.units) < site.units // 16 * 8) for site in narrow])
            for site in sites:
                if site.kind == dropped.get(block.index):
                    drop(block.layer, site, family)
            put(block)
    return found[0]


@pytest.fixture(autouse=True)
def own_module_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))


def test_every_architecture_is_tried() -> None:
    kinds = {tiny.CASES[case]["model_type"] for case in CASES}
    assert all(kinds & set(family.model_types) for family in FAMILIES)


@pytest.mark.parametrize("case", CASES)
def test_the_bundled_file_loads_what_was_saved(case: str, tmp_path: Path) -> None:
    out = tmp_path / f"result_{case.replace('-', '_')}"
    want = cut(tiny.save(case, tmp_path / "source"), out, {0: "attention", 2: "ffn"})
    model, _ = load_as_user(out)
    torch.testing.assert_close(tiny.logits(model, tiny.tokens(1)), want, atol=1e-5, rtol=1e-5)
    again = secateur.load(out)
    assert torch.equal(tiny.logits(again, tiny.tokens(1)), tiny.logits(model, tiny.tokens(1)))


@pytest.mark.parametrize("kind", ["attention", "ffn"])
@pytest.mark.parametrize("case", ["llama", "gpt2", "opt", "mixtral", "qwen3-moe", "bert"])
def test_a_result_without_a_sub_block_fails_to_load_as_a_stock_class(case: str, kind: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cut(tiny.save(case, tmp_path / "source"), out, {2: kind}, channels=False)
    auto = AutoModelForMaskedLM if case == "bert" else AutoModelForCausalLM
    _check_refused(auto.from_pretrained, out)
    _check_refused(stock_class(Checkpoint.open(out).config).from_pretrained, out)
    # Trained, and written anew, it's the same.
    trained = tmp_path / "trained"
    trained.mkdir()
    write_state(trained, Checkpoint.open(out), secateur.load(out).state_dict())
    _check_refused(auto.from_pretrained, trained)
    ids = tiny.tokens(1)
    assert torch.equal(tiny.logits(secateur.load(trained), ids), tiny.logits(secateur.load(out), ids))


def _check_refused(load: Callable[..., object], folder: Path) -> None:
    with pytest.raises(RuntimeError, match=r"ignore_mismatched_sizes|size mismatch|mismatch"):
        load(folder)
    assert json.loads((folder / "config.json").read_text())["auto_map"]
