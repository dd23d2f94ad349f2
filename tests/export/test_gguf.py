"""GGUF files: every tensor and key as llama.cpp wants them, and the tokens where llama.cpp is installed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import secateur
from secateur.errors import InputError, UnsupportedModelError, VerificationError
from secateur.export.gguf import export as writing
from secateur.export.gguf import llama_cpp
from secateur.export.gguf.export import modelfile
from secateur.export.gguf.numbers import ALLOWED, encoded, error_of, type_of
from secateur.export.gguf.tensors import in_pairs
from secateur.export.gguf.vocabulary import Vocabulary
from secateur.report.schema.export import Exported
from tests.export import cases
from tests.model import tiny

gguf = pytest.importorskip("gguf", reason="the package gguf, of the extra gguf, isn't installed")
client = pytest.mark.skipif(llama_cpp.find() is None, reason="llama.cpp isn't installed")


def made(folder: Path, out: Path, numbers: str = "f32", **more: Any) -> Exported:
    return secateur.export(folder, out, secateur.make_export({"to": "gguf", "type": numbers, **more}), quiet=True)


def opened(out: Path) -> Any:
    [file] = out.glob("*.gguf")
    return gguf.GGUFReader(str(file))


def values(reader: Any, key: str) -> Any:
    return reader.fields[key].contents()


@pytest.fixture
def no_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_cpp, "find", lambda: None)


@pytest.mark.parametrize("case", ["llama", "qwen2", "phi3-whole", "gemma2", "gpt2", "mixtral", "olmo2", "llama3"])
def test_a_file_reads_back_as_the_model(case: str, tmp_path: Path, no_client: None) -> None:
    found = made(cases.uneven(case, tmp_path / "uneven"), tmp_path / "out")
    assert found["read_back"] is not None
    assert found["read_back"]["largest_error"] == 0.0
    assert found["client"] is not None
    assert not found["client"]["ran"]
    assert "isn't installed" in str(found["client"]["why_not"])
    reader = opened(tmp_path / "out")
    assert values(reader, "general.architecture") == found["architecture"]
    assert {file["name"] for file in found["files"]} == {"uneven-f32.gguf", "Modelfile"}
    assert found["parameters_after"] == sum(int(np.prod(tensor.shape)) for tensor in reader.tensors)


def test_layers_that_differ_have_a_name_and_widths_of_their_own(tmp_path: Path, no_client: None) -> None:
    made(cases.uneven("llama", tmp_path / "uneven"), tmp_path / "out")
    reader = opened(tmp_path / "out")
    assert values(reader, "general.architecture") == "deci"
    # Attention is gone in layer 0, from which llama.cpp takes the head size, and the FFN in layer 1, whose attention
    # would go with it.
    assert values(reader, "deci.attention.head_count") == [1, 2, 2, 4]
    assert values(reader, "deci.attention.head_count_kv") == [1, 1, 2, 2]
    widths = values(reader, "deci.feed_forward_length")
    assert widths[1] == 1
    assert widths[3] == 44
    held = {tensor.name: tensor for tensor in reader.tensors}
    assert not held["blk.0.attn_q.weight"].data.any()
    assert not held["blk.1.ffn_down.weight"].data.any()


def test_quantised_rows_are_whole_blocks(tmp_path: Path, no_client: None) -> None:
    folder = cases.dense("llama", tmp_path / "dense")
    found = made(folder, tmp_path / "out", "q8_0")
    assert any("filled up with zeros to 64 channels" in warning for warning in found["warnings"])
    assert found["read_back"] is not None
    assert 0 < found["read_back"]["largest_error"] <= found["read_back"]["allowed"]
    reader = opened(tmp_path / "out")
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert types["blk.0.ffn_down.weight"] == "Q8_0"
    assert types["blk.0.attn_norm.weight"] == "F32"
    assert values(reader, "llama.feed_forward_length") == 64
    assert type_of("blk.0.ffn_down.weight", torch.zeros(4, 44), "q4_0") == "f16"


@pytest.mark.parametrize("numbers", ["q8_0", "q5_0", "q5_1", "q4_0", "q4_1"])
def test_no_block_is_further_off_than_is_allowed(numbers: str) -> None:
    """Blocks of a largest number and its opposite too, whose scale the file rounds: nothing goes beyond its end."""
    torch.manual_seed(0)
    scales = torch.rand(4000, 1) * 0.2 + 1e-3
    value = torch.randn(4000, 32) * scales
    value[:, 0], value[:, 1] = -scales[:, 0] * 5, scales[:, 0] * 5
    array, kind = encoded(value, numbers)
    assert error_of(value, gguf.quants.dequantize(array, kind), numbers) <= ALLOWED[numbers]


def test_rows_of_queries_are_neighbours() -> None:
    rows = torch.arange(12).view(12, 1)  # two heads of six: halves 0-2 and 3-5, 6-8 and 9-11
    assert in_pairs(rows, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


REFUSED = {
    "gpt2-inner": "has relu, and gpt2 there has gelu_fast or gelu_new or gelu_pytorch_tanh alone",
    "qwen3": "attention_bias is on",
    "smollm3": "leaves the rotation out in every 4th layer",
    "gemma3": "every 6th layer has no window",
    "qwen3-moe": "some layers have no experts",
    "neox": "no GGUF of GPT-NeoX is made",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_llama_cpp_computes_otherwise_is_refused(case: str, tmp_path: Path) -> None:
    folder = cases.with_tokenizer(tiny.save(case, tmp_path / "model"))
    with pytest.raises(UnsupportedModelError, match=REFUSED[case]) as refused:
        made(folder, tmp_path / "out")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    cases.build("llama").save_pretrained(tmp_path / "model")
    with pytest.raises(InputError, match="no tokenizer"):
        made(tmp_path / "model", tmp_path / "out")


def test_a_damaged_file_is_not_delivered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_client: None) -> None:
    def wrong(value: torch.Tensor, kind: str) -> tuple[Any, Any]:
        return np.ascontiguousarray((value * 1.01).numpy()), gguf.GGMLQuantizationType.F32

    monkeypatch.setattr(writing, "encoded", wrong)
    with pytest.raises(VerificationError, match="reads back"):
        made(cases.dense("llama", tmp_path / "model"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_chat_template_and_the_modelfile_come_along(tmp_path: Path, no_client: None) -> None:
    folder = cases.dense("llama", tmp_path / "model")
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    made(folder, tmp_path / "out")
    reader = opened(tmp_path / "out")
    assert values(reader, "tokenizer.chat_template") == template
    assert values(reader, "tokenizer.ggml.bos_token_id") == 1
    assert values(reader, "tokenizer.ggml.add_bos_token") is True
    modelfile = (tmp_path / "out" / "Modelfile").read_text(encoding="utf-8")
    assert modelfile == 'FROM ./model-f32.gguf\nPARAMETER stop "</s>"\n'


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """(directive, value) as ollama documents it: a word and a value a line, `#` for remarks, values in quotes or in
    three of them, nothing escaped in either."""
    found = []
    for line in text.splitlines():
        word, _, rest = line.strip().partition(" ")
        if not word or word.startswith("#"):
            continue
        assert word in {"FROM", "PARAMETER", "TEMPLATE", "SYSTEM", "ADAPTER", "LICENSE", "MESSAGE"}
        if word == "PARAMETER":
            name, _, rest = rest.partition(" ")
            word = f"PARAMETER {name}"
        for quote in ('"""', '"'):
            if rest.startswith(quote):
                assert rest.endswith(quote)
                rest = rest[len(quote) : -len(quote)]
                break
        found.append((word, rest))
    return found


@pytest.mark.parametrize("end", ["</s>", "<|im_end|>", "<end\\>", '<|"stop"|>', "a b", "<｜end▁of▁sentence｜>", "é"])
def test_a_modelfile_reads_back(end: str) -> None:
    vocabulary = Vocabulary("gpt2", "gpt-2", ["a", end], [1, 3], None, [], {"eos": 1}, {}, False, None, [])
    found = read_modelfile(modelfile("small-q8_0.gguf", vocabulary))
    assert found == [("FROM", "./small-q8_0.gguf"), ("PARAMETER stop", end)]


@pytest.mark.parametrize("end", ["\n", '"', None])
def test_an_end_that_a_modelfile_can_not_hold_is_left_to_the_gguf_file(end: str | None) -> None:
    special = {} if end is None else {"eos": 0}
    vocabulary = Vocabulary("gpt2", "gpt-2", [str(end)], [3], None, [], special, {}, False, None, [])
    assert read_modelfile(modelfile("a.gguf", vocabulary)) == [("FROM", "./a.gguf")]


def test_a_run_that_is_stopped_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_client: None
) -> None:
    """Ctrl-C: nothing new, and an earlier export whole."""
    folder, told = cases.dense("llama", tmp_path / "model"), secateur.make_export({"to": "gguf", "type": "q8_0"})
    made(folder, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        patch.setattr(writing, "encoded", stop)
        secateur.export(folder, tmp_path / "new" / "out", told, quiet=True)
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(llama_cpp, "prove", stop)
    with pytest.raises(KeyboardInterrupt):
        secateur.export(folder, tmp_path / "out", told, overwrite=True, quiet=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_what_others_put_there_is_not_overwritten(tmp_path: Path, no_client: None) -> None:
    folder = cases.dense("llama", tmp_path / "model")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine", encoding="utf-8")
    told = secateur.make_export({"to": "gguf"})
    for place, match in (("out", "notes.txt"), ("model", "is the model itself"), ("model/gguf", "lies in the model")):
        with pytest.raises(InputError, match=match):
            secateur.export(folder, tmp_path / place, told, overwrite=True, quiet=True)
    assert (tmp_path / "out" / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_an_export_is_replaced_only_if_asked(tmp_path: Path, no_client: None) -> None:
    folder = cases.dense("llama", tmp_path / "model")
    made(folder, tmp_path / "out")
    with pytest.raises(InputError, match="is not empty"):
        made(folder, tmp_path / "out")
    told = secateur.make_export({"to": "gguf", "type": "q8_0"})
    secateur.export(folder, tmp_path / "out", told, overwrite=True, quiet=True)
    names = {"model-q8_0.gguf", "Modelfile", "README.md", "report.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["export"]["type"] == "q8_0"


@client
@pytest.mark.parametrize("case", ["llama", "gemma3"])
def test_llama_cpp_writes_the_same_tokens(case: str, tmp_path: Path) -> None:
    proof = made(cases.uneven(case, tmp_path / "uneven"), tmp_path / "out")["client"]
    assert proof is not None
    assert proof["ran"]
    assert proof["tokens_alike"] == proof["new_tokens"] == 80
    assert proof["texts_alike"] == proof["texts"] == 100


@client
@pytest.mark.slow
@pytest.mark.parametrize("cut", ["dense", "uneven"])
@pytest.mark.parametrize("case", cases.CASES)
def test_llama_cpp_writes_the_same_tokens_for_every_architecture(case: str, cut: str, tmp_path: Path) -> None:
    folder = getattr(cases, cut)(case, tmp_path / "model")
    proof = made(folder, tmp_path / "out")["client"]
    assert proof is not None
    assert proof["prompts_alike"] + proof["ties"] == proof["prompts"]
    assert proof["texts_alike"] >= 99  # Qwen2's tokenizer normalises text, which llama.cpp doesn't


@client
@pytest.mark.parametrize("model", ["stories3M-fp16", "stories260K"])
def test_llama_cpp_tokenises_real_vocabularies_alike(model: str, whole: Path, tmp_path: Path) -> None:
    proof = made(whole / "models" / model, tmp_path / "out")["client"]
    assert proof is not None
    assert proof["texts_alike"] == 100
    assert proof["tokens_alike"] == proof["new_tokens"]


def test_a_real_model_whose_activation_differs_is_refused(whole: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(whole / "models" / "shakespeare-gpt2-357K", tmp_path / "model")
    with pytest.raises(UnsupportedModelError, match="has relu"):
        made(Path(folder), tmp_path / "out")
