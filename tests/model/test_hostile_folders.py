"""Files of a model folder that anybody may have written: every command says in one line what is wrong with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING

from secateur.analysis.inspect import inspect
from secateur.config.recipe import make_recipe
from secateur.errors import InputError, SecateurError
from secateur.evaluation import evaluate, generate
from secateur.model.checkpoint import Checkpoint
from secateur.model.files import read_config
from secateur.model.json_files import MOST_LEVELS, ConfigKeys, read_object
from secateur.pipeline.prune import prune
from tests.small import save_tiny

CONFIG: list[tuple[str, Any]] = [
    *((key, 0) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")),
    *((key, -4) for key in ("hidden_size", "num_hidden_layers", "num_key_value_heads", "intermediate_size")),
    *((key, 10**9) for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "head_dim")),
    *((key, 10**30) for key in ("intermediate_size", "max_position_embeddings", "num_key_value_heads")),
    *((key, "16") for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")),
    *((key, None) for key in ("hidden_size", "num_hidden_layers", "vocab_size", "hidden_act", "rope_theta")),
    *((key, True) for key in ("hidden_size", "num_hidden_layers")),
    ("hidden_size", 2**20),
    ("vocab_size", 2**24),
    ("num_hidden_layers", 100_000),
    ("max_position_embeddings", 1.5),
    ("num_attention_heads", [4]),
    ("num_attention_heads", 3),
    ("hidden_act", "nothing"),
    ("hidden_act", 5),
    ("rope_theta", -1.0),
    ("rope_theta", float("inf")),
    ("rope_theta", "much"),
    ("rope_parameters", "x"),
    ("rope_parameters", {"rope_type": "x"}),
    ("rms_norm_eps", float("nan")),
    ("rms_norm_eps", None),
    ("intermediate_size", None),
    ("layer_types", ["x", "y"]),
    ("layer_types", "x"),
    ("dtype", "x"),
    ("dtype", 32),
    ("tie_word_embeddings", "no"),
    ("quantization_config", 5),
    ("quantization_config", {"a": 1}),
    ("pad_token_id", 10**9),
    ("pad_token_id", 1000),
    ("eos_token_id", "x"),
    ("model_type", 5),
    ("model_type", None),
    ("model_type", "x" * 1000),
    ("model_type", "new"),
    ("auto_map", []),
    ("architectures", "x"),
]
DEEP = '{"a":' * 200 + "1" + "}" * 200
EVERYWHERE: list[tuple[str, str]] = [
    *(("config.json", text) for text in ("", "[]", "null", "5", '"x"', "{", "{}", "[" * 100_000, DEEP)),
    ("config.json", '{"model_type": "llama", "hidden_size": ' + "9" * 5000 + "}"),
    ("generation_config.json", "[]"),
    ("generation_config.json", DEEP),
    ("generation_config.json", '{"num_beams": 1000000}'),
    ("generation_config.json", '{"eos_token_id": {}}'),
    ("adapter_config.json", '{"base_model_name_or_path": "../x"}'),
]
TOKENIZER: list[tuple[str, str]] = [
    *(("tokenizer.json", text) for text in ("", "[]", "null", '{"model": 5}', DEEP)),
    *(
        ("tokenizer_config.json", text)
        for text in ("[]", "5", '{"tokenizer_class": 5}', '{"added_tokens_decoder": 5}')
    ),
    ("tokenizer_config.json", '{"bos_token": [[]]}'),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "model"
    save_tiny(folder)
    (folder.parent / "text.txt").write_text("the cat sat on the mat. " * 20)
    return folder


@pytest.fixture
def model(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "model"))


def commands(folder: Path, text: Path, out: Path) -> dict[str, Callable[[], Any]]:
    told = {"model": str(folder), "sites": "channel", "sparsity": 0.5, "calibrate": str(text), "samples": 2}
    return {
        "inspect": lambda: inspect(folder),
        "eval": lambda: evaluate(folder, str(text), length=16, speed=False),
        "prune": lambda: prune(make_recipe({**told, "length": 8, "evaluate": "none"}), out, dry_run=True, quiet=True),
        "generate": lambda: generate(folder, "the", 2),
    }


def refuses(folder: Path, text: Path, out: Path, names: tuple[str, ...]) -> list[str]:
    said = []
    for name in names:
        with pytest.raises(SecateurError) as refusal:  # any other exception fails the test
            commands(folder, text, out)[name]()
        said.append(str(refusal.value))
        assert "\n" not in said[-1], name
        assert len(said[-1]) < 600, name
        assert not out.exists()
    return said


ALL = ("inspect", "eval", "prune", "generate")


@pytest.mark.parametrize(("key", "value"), CONFIG, ids=lambda part: str(part)[:24])
def test_a_configuration_that_cant_be_is_refused_by_every_command(
    model: Path, whole: Path, tmp_path: Path, key: str, value: Any
) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {key: value}))
    for line in refuses(model, whole.parent / "text.txt", tmp_path / "out", ALL):
        assert str(model) in line or key in line or "architecture" in line


@pytest.mark.parametrize(("name", "text"), EVERYWHERE, ids=lambda part: str(part)[:24])
def test_a_file_of_another_shape_is_named_by_every_command(
    model: Path, whole: Path, tmp_path: Path, name: str, text: str
) -> None:
    (model / name).write_text(text)
    for line in refuses(model, whole.parent / "text.txt", tmp_path / "out", ALL):
        assert name in line


@pytest.mark.parametrize(("name", "text"), TOKENIZER, ids=lambda part: str(part)[:24])
def test_a_tokenizer_that_cant_be_read_is_refused_where_it_is_needed(
    model: Path, whole: Path, tmp_path: Path, name: str, text: str
) -> None:
    (model / name).write_text(text)
    for line in refuses(model, whole.parent / "text.txt", tmp_path / "out", ("eval", "prune", "generate")):
        assert "tokenizer" in line


@pytest.mark.parametrize("key", ["bad_words_ids", "forced_eos_token_id"])
def test_a_generation_config_that_cant_be_followed_is_named(model: Path, key: str) -> None:
    (model / "generation_config.json").write_text(json.dumps({key: -5}))
    with pytest.raises(InputError, match=r"generation_config\.json"):
        generate(model, "the", 2)


def test_stop_strings_of_a_model_are_followed(model: Path) -> None:
    (model / "generation_config.json").write_text(json.dumps({"stop_strings": ["never to be seen"]}))
    assert generate(model, "the", 2)["tokens"] == 2


def test_flash_attention_that_isnt_installed_is_no_reason_to_stop(model: Path) -> None:
    plain = Checkpoint.open(model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"_attn_implementation": "flash_attention_2"}))
    assert Checkpoint.open(model).template.config._attn_implementation == plain.template.config._attn_implementation
    assert generate(model, "the", 2)["tokens"] == 2


@pytest.mark.parametrize(
    ("prefix", "way_out"),
    [("_orig_mod.", "torch.compile"), ("module.", "DataParallel"), ("base_model.model.", "peft")],
)
def test_names_of_a_wrapper_are_called_that(model: Path, prefix: str, way_out: str) -> None:
    tensors = load_file(model / "model.safetensors")
    save_file(
        {prefix + name: tensor for name, tensor in tensors.items()}, model / "model.safetensors", {"format": "pt"}
    )
    for command in (inspect, lambda folder: generate(folder, "the", 2)):
        with pytest.raises(InputError, match=way_out):
            command(model)


def test_what_is_no_model_folder_is_called_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    (tmp_path / "models--org--name/snapshots/0123").mkdir(parents=True)
    (tmp_path / "models--org--name/snapshots/0123/config.json").write_text("{}")
    for path, words in (
        (tmp_path / "a.gguf", "GGUF"),
        (tmp_path / "adapter", "merge_and_unload"),
        (tmp_path / "models--org--name", "snapshots/0123"),
        (tmp_path, "hub's cache"),
    ):
        with pytest.raises(InputError, match=words):
            read_config(path)


def test_depth_and_length_have_a_bound(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    deepest = '{"a":' * MOST_LEVELS + "1" + "}" * MOST_LEVELS
    file.write_text(deepest)
    assert read_object(file)
    file.write_text('{"a":' + deepest + "}")
    with pytest.raises(InputError, match="levels"):
        read_object(file)
    with pytest.raises(InputError, match="bytes"):
        read_object(file, most_bytes=10)


@pytest.mark.parametrize("kind", ["gpt_neo", "gemma4_text", "cohere2_moe", "deepseek_v4"])
def test_what_a_class_leaves_open_by_itself_is_taken(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(CONFIG_MAPPING[kind]().to_dict()), encoding="utf-8")
    assert read_object(file, ConfigKeys)["model_type"] == kind
