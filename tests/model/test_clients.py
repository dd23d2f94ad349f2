"""Programs that results run in: what they refuse, and that the table agrees with what exports make."""

from __future__ import annotations

from pathlib import Path

import pytest

import secateur
from secateur.errors import InputError
from secateur.export.gguf.architectures import LIKE_LLAMA, ROWS
from secateur.model.architectures import FAMILIES
from secateur.model.clients import CLIENTS, notes_of, refusal
from tests.small import save_tiny

KNOWN = {name for family in FAMILIES for name in family.model_types}


def test_the_table_is_what_exports_make() -> None:
    client = CLIENTS["llama.cpp"]
    assert client.types == set(ROWS)
    own = {name for name, row in ROWS.items() if row.uneven is not None} | set(LIKE_LLAMA)
    assert client.uneven == client.no_attention == client.no_ffn == own
    assert client.square == {name for name, row in ROWS.items() if row.square or row.rotates is None} - set(
        LIKE_LLAMA
    )
    for one in CLIENTS.values():
        for listed in (one.types, one.uneven, one.no_attention, one.no_ffn, one.ordered, one.square):
            assert (listed or set()) <= KNOWN


REFUSED = [
    ("llama.cpp", "opt", {}, "doesn't run opt models"),
    ("onnx", "bert", {"causal": False}, "doesn't run bert models"),
    ("llama.cpp", "gemma2", {"layers": True}, "none may go"),
    ("llama.cpp", "gpt2", {"heads": True}, "with zeros again"),
    ("llama.cpp", "qwen3", {"uneven": True}, "use --allocate local"),
    ("llama.cpp", "granite", {"ffn": True}, "leave out site ffn"),
    ("vllm", "llama", {"attention": True}, "leave out site attention"),
    ("tensorrt-llm", "llama", {"uneven": True}, "use --allocate local"),
]


@pytest.mark.parametrize(("name", "model_type", "cut", "said"), REFUSED)
def test_what_a_client_refuses(name: str, model_type: str, cut: dict[str, bool], said: str) -> None:
    assert said in str(refusal(name, model_type, **cut))


def test_what_it_takes() -> None:
    cuts = {"uneven": True, "heads": True, "layers": True, "attention": True, "ffn": True}
    for name in ("transformers", "onnx", "openvino", "llama.cpp"):
        assert refusal(name, "llama", **cuts) is None
    assert refusal("vllm", "llama", **cuts | {"attention": False}) is None
    assert refusal("transformers", "bert", causal=False, **cuts) is None


def test_inspect_shows_what_a_client_takes(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny", intermediate_size=96)
    found = secateur.inspect(folder, "llama.cpp")
    rows = {row["kind"]: row for row in found["sites"]}
    assert rows["channel"]["keep"] == {"from": 32, "to": 96, "step": 32}
    assert rows["hidden"]["legal"] == "none may go: no multiple of 32 is below 16"
    assert found["client"]["how"] == "secateur export DIR --to gguf --out DIR2"
    found = secateur.inspect(folder, "tensorrt-llm")
    assert {"attention", "ffn"} <= set(found["client"]["refused"])
    assert "client" not in secateur.inspect(folder)


def forecast(folder: Path, out: Path, **asked: object) -> secateur.Plan:
    text = folder.parent / "text.jsonl"
    text.write_text(f'{{"text": "{"The moth is theirs. " * 40}"}}\n', encoding="utf-8")
    recipe = {"model": str(folder), "samples": 4, "length": 16, "evaluate": "none", "calibrate": str(text), **asked}
    report = secateur.prune(secateur.make_recipe(recipe), out, dry_run=True, quiet=True)
    assert any("for llama.cpp" in warning for warning in report["warnings"])
    return secateur.Plan.read(out / "plan.json")


def test_a_run_keeps_what_its_client_takes(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "tiny", intermediate_size=96)
    asked = {"sites": "channel", "sparsity": 0.2, "client": "llama.cpp"}
    plan = forecast(folder, tmp_path / "plan", **asked)
    assert {len(entry.keep or ()) for entry in plan.entries} == {64}
    with pytest.raises(InputError, match="runs llama models whose layers are alike only"):
        forecast(folder, tmp_path / "other", **asked | {"client": "tensorrt-llm", "allocate": "global"})
    heads = {"sites": "query_head", "sparsity": 0.3, "client": "tensorrt-llm"}
    stock = save_tiny(tmp_path / "three", hidden_size=32, num_attention_heads=8, attention_bias=True)
    with pytest.raises(InputError, match="runs stock classes alone, and none has 6 heads, 2 of keys"):
        forecast(stock, tmp_path / "heads", **heads)
    with pytest.raises(InputError, match=r"for lama is unknown; did you mean 'llama\.cpp'\?"):
        secateur.make_recipe({"model": "x", "sparsity": 0.5, "client": "lama"})


def test_heads_that_a_client_takes_on_a_gpu_alone_are_told_of() -> None:
    assert notes_of("vllm", 64) == []
    [line] = notes_of("vllm", 24)
    assert "on a CPU it takes heads of 32, 64" in line
    assert "these have 24" in line
    assert notes_of("transformers", 24) == []
