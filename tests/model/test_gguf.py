"""A GGUF file as a model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from secateur.errors import InputError
from secateur.model.hub import local_folder


def test_what_is_no_gguf_file_and_a_missing_package_are_said_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "a.gguf"
    file.write_bytes(b"something else")
    with pytest.raises(InputError, match="no GGUF file"):
        local_folder(file)
    file.write_bytes(b"GGUF" + bytes(64))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"secateur\[gguf\]|\[gguf\]"):
        local_folder(file)


def test_a_gguf_file_becomes_a_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gguf = pytest.importorskip("gguf")
    import torch
    from transformers import AutoModelForCausalLM

    from tests.small import tiny_llama

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tiny_llama(vocab=8)
    file = tmp_path / "tiny.gguf"
    _write(gguf, file, source)
    folder = local_folder(file)
    assert (folder / "model.safetensors").is_file()
    assert local_folder(file) == folder
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([[1, 2, 3, 4]])
    # As stored in the folder: bf16.
    torch.testing.assert_close(model(ids).logits, source(ids).logits, atol=0.1, rtol=0.1)


def _write(gguf: object, file: Path, model: object) -> None:
    """A Llama as llama.cpp lays it out: q and k permuted, names of its own, a vocabulary of eight tokens."""
    c, w = model.config, gguf.GGUFWriter(str(file), "llama")  # type: ignore[attr-defined]
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_rope_freq_base(10000.0)
    w.add_vocab_size(8)
    w.add_tokenizer_model("llama")
    w.add_token_list([token.encode() for token in ("<s>", "a", "b", "ab", "c", "d", "e", "f")])
    w.add_token_scores([0.0] * 8)
    w.add_token_types([1] * 8)
    w.add_token_merges(["a b"])
    w.add_bos_token_id(0)
    w.add_eos_token_id(0)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for name, tensor in model.state_dict().items():  # type: ignore[attr-defined]
        values = tensor.detach()
        if ".layers." in name:
            index, _, rest = name.partition(".layers.")[2].partition(".")
            inner = rest.removesuffix(".weight")
            heads = {"attn_q": c.num_attention_heads, "attn_k": c.num_key_value_heads}.get(names[inner])
            if heads:
                rows, columns = values.shape
                values = values.view(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns)
            own = f"blk.{index}.{names[inner]}.weight"
        else:
            own = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}.get(
                name, "output.weight"
            )
        w.add_tensor(own, values.contiguous().numpy())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
