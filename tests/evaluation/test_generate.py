from __future__ import annotations

from pathlib import Path

import pytest
import torch

from secateur.errors import InputError
from secateur.evaluation import generate
from secateur.evaluation.generate import opening_of
from tests.small import byte_tokenizer, save_tiny, tiny_llama


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "m")


def test_greedy_is_the_same_every_time_and_fills_no_more_than_the_context(model: Path) -> None:
    first, again = (generate(model, "the", 100, device="cpu") for _ in range(2))
    assert first["text"] == again["text"]
    assert first["tokens"] == 32 - 3  # BOS, "th", "e"


def test_sampling_follows_the_seed(model: Path) -> None:
    first, again, other = (generate(model, "a", 20, temperature=1.5, seed=s, device="cpu") for s in (1, 1, 2))
    assert first["text"] == again["text"] != other["text"]


def test_two_models_get_the_same_prompt_and_seed(model: Path, tmp_path: Path) -> None:
    found = generate(model, "a", 9, against=model, temperature=1.0, device="cpu")
    assert found["reference"]["text"] == found["text"]
    other = generate(model, "a", 9, against=save_tiny(tmp_path / "o", seed=1), device="cpu")
    assert other["reference"]["model"].endswith("o")
    assert other["reference"]["text"] != other["text"]


def test_an_empty_prompt_starts_from_bos(model: Path, tmp_path: Path) -> None:
    assert generate(model, "", 3, device="cpu")["tokens"] == 3
    plain = tmp_path / "plain"
    tiny_llama().save_pretrained(plain)
    byte_tokenizer(bos=False).save_pretrained(plain)
    with pytest.raises(InputError, match=r"the prompt is empty and the tokenizer of .* has no BOS"):
        generate(plain, "", 3, device="cpu")


def test_bad_input_is_told_in_one_line(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--tokens 0 is too small"):
        generate(model, "a", 0)
    with pytest.raises(InputError, match="--temperature -1 is negative"):
        generate(model, "a", temperature=-1)
    with pytest.raises(InputError, match="has 33 tokens and fills the context"):
        generate(model, "a" * 32, device="cpu")
    with pytest.raises(InputError, match="not valid Unicode"):
        generate(model, "\udcff", device="cpu")
    with pytest.raises(InputError, match="has no tokenizer; text can't be generated"):
        generate(save_tiny(tmp_path / "bare", tokenizer=False), "a", device="cpu")
    with pytest.raises(InputError, match="no such folder"):
        generate(tmp_path / "nope", "a", device="cpu")


def test_a_real_model_tells_a_story(shared: Path) -> None:
    found = generate(shared / "models/stories3M-fp16", "Once upon a time", 30, device="cpu")
    assert found["text"].startswith(", there was a ")
    assert found["tokens"] == 30


@pytest.mark.parametrize(
    "text", ["So it was. " + "a long word and another one " * 5, "x" * 90, "So it was. " + "y" * 80]
)
def test_an_opening_is_short_in_tokens_too(text: str) -> None:
    """A token is a byte here, so that words alone would fill a small context."""
    tokenizer = byte_tokenizer()
    prompt = opening_of(tokenizer, torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"]))
    assert 0 < len(tokenizer(prompt, add_special_tokens=False)["input_ids"]) <= 24
    assert prompt in text
