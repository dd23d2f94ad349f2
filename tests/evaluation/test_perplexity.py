from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, T5Config

from secateur.data.corpus import Corpus, from_texts
from secateur.data.documents import load_corpus
from secateur.errors import InputError, SecateurError
from secateur.evaluation.perplexity import batches, perplexity, refuse_encoder
from secateur.evaluation.windows import Window, windows
from tests.small import byte_tokenizer, tiny_llama

TEXTS = ["the café", "a longer text, which is cut at the context of the model, as it has more bytes", "日本", "a"]


def found() -> list[Window]:
    return windows(from_texts("x", TEXTS), byte_tokenizer(), length=32, vocab_size=259)


def by_hand(model: torch.nn.Module, reference: torch.nn.Module) -> tuple[float, float, float, int]:
    """Sums of nll, KL and the reference's nll: one document, one place, one probability at a time, in fp64."""
    model, reference = model.double(), reference.double()
    tokenizer = byte_tokenizer()
    nll = kl = reference_nll = 0.0
    count = 0
    for text in TEXTS:
        ids = [258, *tokenizer(text, add_special_tokens=False)["input_ids"]][:32]
        for place in range(len(ids) - 1):
            prefix = torch.tensor([ids[: place + 1]])
            with torch.no_grad():
                own, other = (m(input_ids=prefix).logits[0, -1].softmax(-1).tolist() for m in (model, reference))
            nll -= math.log(own[ids[place + 1]])
            reference_nll -= math.log(other[ids[place + 1]])
            kl += sum(q * math.log(q / p) for p, q in zip(own, other, strict=True))
            count += 1
    return nll, kl, reference_nll, count


def test_against_loops_in_double_precision() -> None:
    score, other = perplexity(tiny_llama(0), found(), tiny_llama(1))
    nll, kl, reference_nll, count = by_hand(tiny_llama(0), tiny_llama(1))
    text_bytes = sum(len(byte_tokenizer().decode(window.ids[1:]).encode()) for window in found())
    assert score.tokens == count
    assert score.perplexity == pytest.approx(math.exp(nll / count), rel=1e-5)
    assert score.kl == pytest.approx(kl / count, rel=1e-4)
    assert score.bits_per_byte == pytest.approx(nll / math.log(2) / text_bytes, rel=1e-5)
    assert other is not None
    assert other.perplexity == pytest.approx(math.exp(reference_nll / count), rel=1e-5)
    assert other.kl is None


def test_batches_and_slices_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    together, _ = perplexity(tiny_llama(0), found(), tiny_llama(1))
    monkeypatch.setattr("secateur.evaluation.perplexity.LOGITS_BYTES", {"cpu": 1})  # one window a batch
    monkeypatch.setattr("secateur.numerics.divergence.CACHED", 3 * 259)  # three places a slice
    alone, _ = perplexity(tiny_llama(0), found(), tiny_llama(1))
    assert alone.nll == pytest.approx(together.nll, rel=1e-6)
    assert alone.kl == pytest.approx(together.kl, rel=1e-5)


@pytest.mark.parametrize("order", [[3, 1, 0, 2], [2, 3, 1, 0]])
def test_the_order_of_documents_does_not_matter(order: list[int]) -> None:
    score, _ = perplexity(tiny_llama(), found())
    again, _ = perplexity(tiny_llama(), [found()[index] for index in order])
    assert again.nll == pytest.approx(score.nll, rel=1e-6)


def test_every_window_is_scored_once() -> None:
    lengths = [5, 9, 2, 9, 31, 7]
    made = list(batches(lengths, token_bytes=4, budget=4 * 20))
    assert sorted(index for batch in made for index in batch) == list(range(6))
    assert made[0] == [4]
    assert all(max(lengths[i] for i in batch) * len(batch) <= 20 for batch in made[1:])


def test_a_model_is_at_no_distance_from_itself() -> None:
    model = tiny_llama()
    score, other = perplexity(model, found(), model)
    assert score.kl == 0.0
    assert other is not None
    assert other.perplexity == score.perplexity


def test_bytes_unknown() -> None:
    ids = windows(Corpus("x", "", ids=((1, 2, 3),)), None, length=32, vocab_size=259)
    assert perplexity(tiny_llama(), ids)[0].bits_per_byte is None


def test_a_token_that_the_reference_rules_out() -> None:
    reference = tiny_llama(1, tie_word_embeddings=False)
    ruled_out = torch.zeros(259)
    ruled_out[200] = -torch.inf
    reference.lm_head.register_forward_hook(lambda module, args, logits: logits + ruled_out)
    score, _ = perplexity(tiny_llama(0), found(), reference)
    assert score.kl is not None
    assert math.isfinite(score.kl)


def test_undefined_logits_are_an_error() -> None:
    model = tiny_llama()
    torch.nn.init.constant_(model.model.norm.weight, torch.nan)
    with pytest.raises(SecateurError, match="infinite or undefined logits"):
        perplexity(model, found())


def test_different_vocabularies_have_no_divergence() -> None:
    with pytest.raises(InputError, match="259 and 300 tokens; KL needs one vocabulary"):
        perplexity(tiny_llama(), found(), tiny_llama(vocab=300))


@pytest.mark.parametrize("config", [BertConfig(), T5Config()])
def test_encoders_are_refused(config: object) -> None:
    with pytest.raises(InputError, match="is not a causal language model and has no perplexity"):
        refuse_encoder(config)


def test_a_bert_that_is_a_decoder_is_not_refused() -> None:
    refuse_encoder(BertConfig(is_decoder=True))
    refuse_encoder(tiny_llama().config)


def test_the_bar_is_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown(terminal: bool, quiet: bool) -> str:
        console = Console(file=io.StringIO(), force_terminal=terminal)
        monkeypatch.setattr("secateur.system.display.Console", lambda stderr: console)
        monkeypatch.delenv("CI", raising=False)
        perplexity(tiny_llama(), found(), quiet=quiet)
        return console.file.getvalue()

    assert "evaluating" in shown(terminal=True, quiet=False)
    assert shown(terminal=True, quiet=True) == ""
    assert shown(terminal=False, quiet=False) == ""


@pytest.mark.parametrize(("name", "figure"), [("stories3M-fp16", 4.751), ("stories260K", 4.299)])
def test_the_known_figures_of_real_models(shared: Path, name: str, figure: float) -> None:
    model = AutoModelForCausalLM.from_pretrained(shared / "models" / name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / name)
    corpus = load_corpus(str(shared / "data/tinystories/eval.jsonl"), "held_out")
    score, _ = perplexity(model, windows(corpus, tokenizer, 512, model.config.vocab_size))
    assert score.perplexity == pytest.approx(figure, abs=5e-4)
    assert score.windows == 198


def test_of_conversations_only_the_answers_count(tmp_path: Path) -> None:
    rows = [{"prompt": f"{n}? ", "completion": f"the {n}!"} for n in range(5)]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model, reference, tokenizer = tiny_llama(), tiny_llama(seed=1), byte_tokenizer()
    own = windows(load_corpus(str(file)), tokenizer, length=32, vocab_size=259)
    score, other = perplexity(model, own, reference)
    nll, divergence, tokens = 0.0, 0.0, 0
    for row in rows:
        before = [258, *tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]]
        answer = tokenizer(row["completion"], add_special_tokens=False)["input_ids"]
        ids = torch.tensor([before + answer])
        with torch.no_grad():
            p, q = (m(input_ids=ids).logits[0, len(before) - 1 : -1].log_softmax(-1) for m in (model, reference))
        nll -= float(p.gather(1, torch.tensor(answer)[:, None]).sum())
        divergence += float((q.exp() * (q - p)).sum())
        tokens += len(answer)
    assert (score.tokens, score.bits_per_byte) == (tokens, None)
    assert score.nll == pytest.approx(nll, rel=1e-5)
    assert score.kl == pytest.approx(divergence / tokens, rel=1e-4)
    assert other is not None
    assert score.difference_stderr is not None
    assert score.difference_stderr > 0
