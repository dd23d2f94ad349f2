"""A tokenizer and a model small enough to be built in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TRAINING_LENGTH = 32  # tokens of a sequence, where these models are trained


def byte_tokenizer(bos: bool = True, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level: one token a byte, and `th` and `é` merged. `adds_bos`: puts BOS first by itself, as Llama's."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate([*alphabet, "th", "Ã©", "<s>"])}
    backend = Tokenizer(models.BPE(vocab, [("t", "h"), ("Ã", "©")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", vocab["<s>"])]
        )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>" if bos else None, model_max_length=16)


def tiny_llama(seed: int = 0, vocab: int = 259, context: int = 32, **changes: Any) -> LlamaForCausalLM:
    """Random weights, wide enough that its predictions differ from place to place."""
    config = LlamaConfig(
        **{
            "vocab_size": vocab,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": context,
            "initializer_range": 0.5,
            "bos_token_id": 258,
            "eos_token_id": None,
            "pad_token_id": None,
            **changes,
        }
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).eval()


def save_tiny(folder: Path, seed: int = 0, tokenizer: bool = True, **changes: Any) -> Path:
    tiny_llama(seed, **changes).save_pretrained(folder)
    if tokenizer:
        byte_tokenizer().save_pretrained(folder)
    return folder
