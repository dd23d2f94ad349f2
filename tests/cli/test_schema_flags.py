"""The command line is made from the schema: every field is a flag, in its panel, with its words; examples parse."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from secateur.cli import app as cli
from secateur.cli.options import completer
from secateur.config.export import Export
from secateur.config.fields import SITE_KINDS, Settings
from secateur.config.flags import Flag
from secateur.config.training import Recovery
from secateur.methods import METHODS

GROUP: Any = typer.main.get_command(cli.app)
OTHERWISE = {"model", "recover", "export"}  # an argument, and sections of recipes


def option(command: str, name: str) -> Any:
    return next(parameter for parameter in GROUP.commands[command].params if parameter.name == name)


@pytest.mark.parametrize(("command", "schema"), [("prune", Settings), ("recover", Recovery), ("export", Export)])
def test_a_field_is_a_flag(command: str, schema: type[BaseModel]) -> None:
    for name in schema.model_fields.keys() - OTHERWISE:
        check_flag(command, schema, name)


def check_flag(command: str, schema: type[BaseModel], name: str) -> None:
    field = schema.model_fields[name]
    [flag] = [part for part in field.metadata if isinstance(part, Flag)]
    made = option(command, name)
    assert f"--{name.replace('_', '-')}" in made.opts
    assert str(field.description) in made.help
    assert made.rich_help_panel == flag.panel
    assert made.default is None  # not given: a recipe may say it
    assert flag.short is None or flag.short in made.opts


@pytest.mark.parametrize("command", list(GROUP.commands))
def test_examples_parse(command: str) -> None:
    lines = re.findall(r"^ *secateur (.*)$", GROUP.commands[command].epilog, flags=re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        name, *words = shlex.split(line)
        assert name == command
        GROUP.commands[command].make_context(command, words)


def test_required_flags_are_marked() -> None:
    for command in ("prune", "recover", "compress", "decompress"):
        assert "required" in option(command, "out").help
    assert "required" in option("recover", "data").help


COMPLETED = [
    ("prune", "sites", "", set(SITE_KINDS)),
    ("prune", "sites", "channel,q", {"channel,query_head"}),
    ("prune", "method", "spars", {"sparsegpt"}),
    ("prune", "quality", "", {"fast", "balanced", "best"}),
    ("prune", "allocate", "o", {"owl"}),
    ("prune", "schedule", "", {"cubic", "linear"}),
    ("prune", "pattern", "2", {"2:4"}),
    ("prune", "target", "", {"pruned", "dense", "residual"}),
    ("prune", "masks", "g", {"gradual"}),
    ("prune", "objective", "pre", {"predictions"}),
    ("prune", "window", "h", {"half"}),
    ("prune", "bias", "", {"own", "add", "none"}),
    ("prune", "device", "cu", {"cuda"}),
    ("recover", "how", "", {"lora", "distill", "full"}),
    ("recover", "optimizer", "", {"muon", "adamw"}),
    ("recover", "loss", "lm,h", {"lm,hidden"}),
    ("recover", "teacher_dtype", "int", {"int8"}),
    ("sensitivity", "method", "wand", {"wanda", "wanda_regional"}),
    ("eval", "dtype", "bf", {"bfloat16"}),
    ("compress", "values", "", {"keep", "int8"}),
    ("export", "to", "o", {"onnx", "openvino"}),
    ("export", "type", "q8", {"q8_0"}),
    ("inspect", "client", "v", {"vllm"}),
    ("prune", "client", "tensor", {"tensorrt-llm"}),
]


@pytest.mark.parametrize(("command", "name", "start", "words"), COMPLETED)
def test_the_shell_completes_values(command: str, name: str, start: str, words: set[str]) -> None:
    context = GROUP.commands[command].make_context(command, [], resilient_parsing=True)
    assert {item.value for item in option(command, name).shell_complete(context, start)} == words


def test_completion_asks_for_the_words_when_the_shell_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "mine", METHODS["magnitude"])
    assert completer(METHODS)("min") == ["mine"]


def test_completion_in_a_shell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {
        "_SECATEUR_COMPLETE": "complete_bash",
        "COMP_WORDS": "secateur prune embedded --allocate ow",
        "COMP_CWORD": "4",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 0
    assert capsys.readouterr().out.split() == ["owl"]
    names = {word for parameter in GROUP.params for word in parameter.opts}
    assert {"--install-completion", "--show-completion"} <= names
