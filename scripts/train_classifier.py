"""Trains a small BERT that tells what kind of text a passage is from: books, code, web pages and so on.

    python scripts/train_classifier.py --data path/to/corpus --out out/classifier

The corpus is a folder with train.jsonl.xz and valid.jsonl.xz, whose rows have `text` and `domain`. Passages of a few
words are drawn at random places, as many of each domain; tokenizer and model are trained from nothing on those of the
training part, with transformers' Trainer, in a few minutes on one core. OUT gets `model` (which loads with
AutoModelForSequenceClassification), `train.jsonl` and `test.jsonl` (rows of `text` and `label`, which `secateur eval
--tasks` takes) and `facts.json`. The same seed gives the same passages and the same model on the same machine.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import random
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = 4096
CONTEXT = 48
WORDS = 24  # of a passage
FROM_ONE = 40  # passages of a document at most, so that many documents are seen
SHAPE = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
INITIAL = 0.08  # about 1/√hidden; with BERT's 0.02, made for 768, so narrow a model hardly begins to learn

Row = dict[str, str]


def passages(file: Path, each: int, seed: int) -> list[Row]:
    """`each` passages of every domain, shuffled; fewer where a domain has no more."""
    rng, found = random.Random(seed), dict[str, list[Row]]()
    with lzma.open(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            document = json.loads(line)
            words, own = document["text"].split(" "), found.setdefault(document["domain"], [])
            count = min(FROM_ONE, len(words) // WORDS, each - len(own))
            for _ in range(count):
                start = rng.randrange(len(words) - WORDS + 1)
                text = " ".join(words[start : start + WORDS]).strip()
                own += [{"text": text, "label": document["domain"]}] if text else []
    rows = [row for own in found.values() for row in own]
    rng.shuffle(rows)
    return rows


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """WordPiece as BERT has it, with [CLS] in front and [SEP] behind."""
    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[arg-type]
    pieces.normalizer = normalizers.BertNormalizer(lowercase=False)
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=SPECIAL, show_progress=False)
    pieces.train_from_iterator(texts, trainer)
    ends = [(name, SPECIAL.index(name)) for name in ("[CLS]", "[SEP]")]
    pieces.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    named = {f"{name[1:-1].lower()}_token": name for name in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=pieces, model_max_length=CONTEXT, **named)


def make_model(tokenizer: PreTrainedTokenizerFast, labels: list[str], seed: int) -> BertForSequenceClassification:
    torch.manual_seed(seed)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=CONTEXT,
            pad_token_id=tokenizer.pad_token_id,
            id2label=dict(enumerate(labels)),
            initializer_range=INITIAL,
            label2id={label: number for number, label in enumerate(labels)},
            **SHAPE,
        )
    )


def train(arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains and saves; returns what there is to know of the run."""
    rows = passages(arguments.data / "train.jsonl.xz", arguments.passages, arguments.seed)
    test = passages(arguments.data / "valid.jsonl.xz", arguments.test_passages, arguments.seed)
    labels = sorted({row["label"] for row in rows})
    tokenizer = train_tokenizer([row["text"] for row in rows])
    model = make_model(tokenizer, labels, arguments.seed)
    encoded = tokenizer([row["text"] for row in rows], truncation=True, max_length=CONTEXT)["input_ids"]
    examples = [
        {"input_ids": ids, "labels": labels.index(row["label"])} for ids, row in zip(encoded, rows, strict=True)
    ]
    begin = time.monotonic()
    done = Trainer(
        model,
        TrainingArguments(
            output_dir=str(arguments.out / "trainer"),
            num_train_epochs=arguments.epochs,
            per_device_train_batch_size=32,
            learning_rate=5e-4,
            warmup_steps=30,
            weight_decay=0.01,
            lr_scheduler_type="linear",
            seed=arguments.seed,
            save_strategy="no",
            report_to=[],
            logging_steps=25,
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=examples,  # type: ignore[arg-type]
        data_collator=DataCollatorWithPadding(tokenizer),
    ).train()
    model.save_pretrained(arguments.out / "model")
    tokenizer.save_pretrained(arguments.out / "model")
    for name, part in (("train", rows), ("test", test)):
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (arguments.out / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    return {
        "labels": labels,
        "passages": len(rows),
        "test_passages": len(test),
        "words": WORDS,
        "epochs": arguments.epochs,
        "seed": arguments.seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "shape": SHAPE,
        "training_loss": done.training_loss,
        "seconds": time.monotonic() - begin,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl.xz and valid.jsonl.xz")
    parser.add_argument("--out", type=Path, required=True, help="folder for model, train.jsonl and test.jsonl")
    parser.add_argument("--passages", type=int, default=800, help="of each domain, for training")
    parser.add_argument("--test-passages", type=int, default=300, help="of each domain, for the test")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    facts = train(arguments)
    (arguments.out / "facts.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
