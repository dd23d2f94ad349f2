"""Which tokens are learned, how examples are packed, and that none sees another."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from secateur.errors import InputError
from secateur.recovery.examples import Example, is_task_data, read_examples
from secateur.recovery.losses import IGNORED
from secateur.recovery.sequences import Draw, Rows, keeps_apart, packed, read_text
from tests.small import byte_tokenizer, tiny_llama

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }};{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def write(file: Path, *rows: object) -> str:
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(file)


def learned(example: Example) -> str:
    ids = [label for label in example.labels if label != IGNORED]
    assert all(label in (IGNORED, token) for token, label in zip(example.ids, example.labels, strict=True))
    return byte_tokenizer().decode(ids)


def test_a_completion_is_learned_and_its_prompt_is_not(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"prompt": "what is that", "completion": " a cat"})
    assert is_task_data(file)
    (example,), _ = read_examples(file, byte_tokenizer())
    assert learned(example) == " a cat"
    assert example.ids[0] == 258
    assert byte_tokenizer().decode(example.ids[1:]) == "what is that a cat"


def test_conversations_go_through_the_template(tmp_path: Path) -> None:
    turns = [("system", "be kind"), ("user", "hi"), ("assistant", "hello"), ("user", "why"), ("assistant", "so")]
    file = write(tmp_path / "a.jsonl", {"messages": [{"role": r, "content": c} for r, c in turns]})
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    (example,), _ = read_examples(file, tokenizer)
    assert learned(example) == "hello;so;"
    assert tokenizer.decode(example.ids).startswith("[system]be kind;[user]hi;[assistant]hello;")


def test_prompts_go_through_the_template_where_there_is_one(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", {"prompt": "hi", "completion": "hello"})
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    (example,), _ = read_examples(file, tokenizer)
    assert tokenizer.decode(example.ids) == "[user]hi;[assistant]hello;"
    assert learned(example) == "hello;"


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"messages": [{"role": "user", "content": "hi"}]}, "no chat template"),
        ({"prompt": "hi"}, "'prompt' and 'completion'"),
        ({"prompt": "hi", "completion": ""}, "no answer"),
    ],
)
def test_rows_that_cannot_be_learned_are_refused(row: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        read_examples(write(tmp_path / "a.jsonl", row), byte_tokenizer())


def test_a_template_that_rewrites_its_past_is_refused(tmp_path: Path) -> None:
    turns = [("user", "hi"), ("assistant", "one"), ("user", "hi"), ("assistant", "two")]
    file = write(tmp_path / "a.jsonl", {"messages": [{"role": r, "content": c} for r, c in turns]})
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ messages|length }}" + TEMPLATE
    with pytest.raises(InputError, match="writes earlier turns anew"):
        read_examples(file, tokenizer)


def test_examples_are_packed_whole_and_in_order() -> None:
    examples = [Example([1, 2, 3], [IGNORED, 2, 3]), Example([4, 5], [4, 5]), Example([6] * 9, [6] * 9)]
    rows, notes = packed(examples, 6, "data")
    assert rows.ids.tolist() == [[1, 2, 3, 4, 5, 0], [6] * 6]
    assert rows.labels.tolist() == [[IGNORED, 2, 3, IGNORED, 5, IGNORED], [IGNORED, *[6] * 5]]
    assert rows.positions is not None
    assert rows.positions.tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]]
    assert rows.documents() == [[1, 2, 3], [4, 5], [6] * 6]
    assert "1 examples are longer" in notes[0]
    assert len(packed(examples, 6, "data", pack=False)[0]) == 3


def test_packed_examples_do_not_see_each_other() -> None:
    model = tiny_llama()
    rows, _ = packed([Example([5, 9, 40], [5, 9, 40]), Example([7, 7, 80, 2], [7, 7, 80, 2])], 8, "data")
    together = model(input_ids=rows.ids, position_ids=rows.positions, use_cache=False).logits
    alone = model(input_ids=torch.tensor([[7, 7, 80, 2]]), use_cache=False).logits
    torch.testing.assert_close(together[:, 3:7], alone, rtol=1e-4, atol=1e-5)
    assert keeps_apart(model, 32)
    assert keeps_apart(GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20)).eval(), 32)


def test_text_is_split_into_three(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *({"text": f"the thing {i * 7919 % 1000} then"} for i in range(300)))
    text = read_text(file, byte_tokenizer(), 100, 16, 0, 259)
    everything = [tuple(row) for part in (text.train, text.held_out, text.reported) for row in part.ids.tolist()]
    assert len(text.train) == 100
    assert len(set(everything)) == len(everything)
    short = read_text(file, byte_tokenizer(), 10_000, 16, 0, 259)
    assert "each is seen" in short.notes[0]
    with pytest.raises(InputError, match="3 are the least"):
        read_text(write(tmp_path / "b.jsonl", {"text": "a" * 20}), byte_tokenizer(), 10, 16, 0, 259)


def test_text_of_several_sources(tmp_path: Path) -> None:
    """By their shares, in all three parts; a recipe whose calibration is a mixture trains on it too."""
    a, b = (write(tmp_path / f"{c}.jsonl", *({"text": c * 50} for _ in range(300))) for c in "ab")
    text = read_text(f"{a}:3,{b}:1", byte_tokenizer(), 100, 16, 0, 259)
    first = byte_tokenizer()("a", add_special_tokens=False)["input_ids"][0]
    for rows in (text.train, text.held_out, text.reported):
        of_a = float((rows.ids == first).any(1).float().mean())
        assert 0.6 < of_a < 0.95
    with pytest.raises(InputError, match=r"--data .* gives a share to some sources only"):
        read_text(f"{a}:3,{b}", byte_tokenizer(), 100, 16, 0, 259)


def test_a_draw_goes_through_all_sequences_before_any_comes_again() -> None:
    rows = Rows(torch.arange(5).view(5, 1), torch.arange(5).view(5, 1))
    order = [int(Draw(rows, 12, 0)[i]["input_ids"]) for i in range(12)]
    assert sorted(order[:5]) == sorted(order[5:10]) == [0, 1, 2, 3, 4]
    assert order[:5] != order[5:10]
    assert order == [int(Draw(rows, 12, 0)[i]["input_ids"]) for i in range(12)]
    assert order != [int(Draw(rows, 12, 1)[i]["input_ids"]) for i in range(12)]
