"""A model whose class comes with it: refused, and pruned where the user says that its code may run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from secateur.cli.app import main
from secateur.model.remote_code import VARIABLE
from tests.small import save_tiny

CONFIGURATION = """
from transformers import LlamaConfig

class OwnConfig(LlamaConfig):
    model_type = "own_llama"
"""
MODELLING = """
from pathlib import Path

from transformers import LlamaForCausalLM

from .configuration_own import OwnConfig

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 0.5
        return out
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, "0")  # and whatever is set by a test is unset after it
    folder = save_tiny(tmp_path / "own")
    (folder / "configuration_own.py").write_text(CONFIGURATION, encoding="utf-8")
    (folder / "modeling_own.py").write_text(MODELLING, encoding="utf-8")
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {"model_type": "own_llama", "architectures": ["OwnForCausalLM"]}
    config["auto_map"] = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
    }
    file.write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "text.txt").write_text("The oath was kept to the end of their days. " * 60, encoding="utf-8")
    return folder


def ended(*words: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(words)
    return int(end.value.code or 0)


def test_code_runs_only_where_it_may(own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, text = tmp_path / "out", str(tmp_path / "text.txt")
    asked = ["prune", str(own), "--sites", "channel,weight", "-s", "0.25", "-m", "magnitude", "--calibrate", text]
    asked += ["--samples", "4", "--length", "16", "--evaluate", "none", "--out", str(out), "-q"]
    assert ended(*asked) == 2
    said = capsys.readouterr().err
    assert "is not run; --trust-remote-code runs it" in said
    assert not out.exists()
    # A class that comes along can't be given layers of different widths: said before anything is cut.
    assert ended(*asked, "--trust-remote-code", "--allocate", "global") == 2
    said = capsys.readouterr().err
    assert said.splitlines()[0].startswith("WARNING: --trust-remote-code: running code of")
    assert "configuration_own.py, modeling_own.py" in said
    assert "not with a class that comes with its checkpoint" in said
    assert ended(*asked, "--trust-remote-code") == 0
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert sorted(report["model"]["remote_code"]) == ["configuration_own.py", "modeling_own.py"]
    assert report["gate"]["how"].endswith("with trust_remote_code=True")
    assert (out / "modeling_own.py").read_text(encoding="utf-8") == MODELLING
    assert not (out / "modeling_secateur.py").exists()
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "Its class is code that came with the original" in card
    assert "secateur.load" not in card
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True).eval()
    assert type(model).__name__ == "OwnForCausalLM"
    assert model.config.intermediate_size == 18
    ids = torch.arange(4, 20)[None]
    with torch.no_grad():
        plain = model.lm_head(model.model(ids).last_hidden_state)
        torch.testing.assert_close(model(ids).logits, plain * 0.5)


def test_code_of_other_repositories_is_not_fetched(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = own / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config |= {"model_type": "other_llama", "auto_map": {"AutoConfig": "org/name--own.Config"}}
    file.write_text(json.dumps(config), encoding="utf-8")
    assert ended("inspect", str(own), "--trust-remote-code") == 2
    assert "code of other repositories is not fetched" in " ".join(capsys.readouterr().err.split())
