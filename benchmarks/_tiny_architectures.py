"""Tiny random checkpoints of the architectures that people use, with weights that make every part count.

    python build.py OUT TOKENIZER_FOLDER [TYPE ...]     OUT/TYPE/ for each; about 1 to 5 s each

TOKENIZER_FOLDER: any folder with tokenizer.json and tokenizer_config.json for at most 2,048 tokens (the embedded
model's). Written for transformers 5.23. Types that can't be made small are said to be so and left out.
"""

import dataclasses
import shutil
import sys
from pathlib import Path

import torch
import transformers
from _tiny_exceptions import OWN, VARIANTS
from _tiny_sizes import SEE, SMALL, V
from _tiny_types import POPULAR, VLM, WITH_VLM
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as VISION

transformers.logging.set_verbosity_error()


def small(cls, own, see=False, depth=0):
    """Keyword arguments that make a configuration class small."""
    out, table = {}, SEE if see else SMALL
    fields = {f.name for f in dataclasses.fields(cls)}
    subs = getattr(cls, "sub_configs", None) or {}
    for name, value in table.items():
        if name in fields and name not in subs:
            out[name] = value
    for name, sub in subs.items():
        if not dataclasses.is_dataclass(sub):
            continue
        text = name in (
            "text_config",
            "llm_config",
            "decoder",
            "language_config",
            "attn_config",
            "ffn_config",
            "decoder_config",
            "global_config",
            "encoder_config",
            "patcher_config",
        )
        out[name] = small(sub, own if text else {}, see=not text, depth=depth + 1)
    if {"kv_lora_rank", "num_key_value_heads"} <= fields and "num_attention_heads" in out:
        out["num_key_value_heads"] = out["num_attention_heads"]  # latent attention has no fewer, or it doesn't run
    for name, value in own.items():
        if name in fields:
            out[name] = value
    return out


def configuration(mt):
    real = VARIANTS.get(mt, mt)
    cls = CONFIG_MAPPING[real]
    kw = small(cls, OWN.get(mt, {}))
    for inner, own in {
        "llava": "llama",
        "llava_next": "llama",
        "mistral3": "mistral",
        "internvl": "qwen2",
        "aya_vision": "cohere2",
        "idefics2": "mistral",
        "idefics3": "llama",
        "smolvlm": "llama",
        "llava_onevision": "qwen2",
        "cohere2_vision": "cohere2",
        "paligemma": "gemma",
        "ovis2": "qwen2",
        "lfm2_vl": "lfm2",
        "deepseek_vl": "llama",
        "kimi_k25": "deepseek_v3",
        "fast_vlm": "qwen2",
        "granite4_vision": "granite",
        "minicpmv4_6": "qwen3_5_text",
        "fuyu": "persimmon",
        "got_ocr2": "qwen2",
    }.items():
        if real == inner:
            kw["text_config"] = dict(model_type=own, **small(CONFIG_MAPPING[own], OWN.get(own, {})))
    see = {
        "llava": "clip_vision_model",
        "llava_next": "clip_vision_model",
        "mistral3": "pixtral",
        "aya_vision": "siglip_vision_model",
        "llava_onevision": "siglip_vision_model",
        "cohere2_vision": "siglip_vision_model",
        "paligemma": "siglip_vision_model",
        "gemma3": "siglip_vision_model",
        "deepseek_vl": "siglip_vision_model",
        "lfm2_vl": "siglip2_vision_model",
        "granite4_vision": "siglip_vision_model",
    }.get(real)
    if see:
        kw["vision_config"] = dict(model_type=see, **small(CONFIG_MAPPING[see], {}, see=True))
    fields = {f.name for f in dataclasses.fields(cls)}
    if "text_config" in kw or "vision_config" in kw:
        for i, name in enumerate(
            f
            for f in sorted(fields)
            if f.endswith(("_token_id", "_token_index")) and f not in ("pad_token_id", "bos_token_id", "eos_token_id")
        ):
            kw[name] = 10 + i
    return cls(**kw)


def model_class(mt, config):
    real = VARIANTS.get(mt, mt)
    name = VISION.get(real) if real in VLM or real in WITH_VLM else None
    name = name or CAUSAL.get(real)
    if isinstance(name, (tuple, list)):
        name = name[0]
    return getattr(transformers, name)


def fill(model):
    """Weights that make every part count, as the product's own tests do."""
    g = torch.Generator().manual_seed(0)
    keep = {n: p.clone() for n, p in model.named_parameters()}
    padding = [m for m in model.modules() if isinstance(m, torch.nn.Embedding) and m.padding_idx is not None]
    with torch.no_grad():
        for name, p in model.named_parameters():
            if not p.is_floating_point():
                continue
            noise = torch.randn(p.shape, generator=g)
            leaf = name.rpartition(".")[2]
            if (
                leaf in ("A_log", "D", "dt_bias", "decay_weight", "slope_rate", "e_score_correction_bias")
                or "conv1d" in name
                or "rg_lru" in name
                or "recurrent_param" in name
            ):
                continue
            if p.dim() <= 1:
                p.add_(noise, alpha=0.2)
            elif "embed" in name or "wte" in name or "wpe" in name:
                p.copy_(noise)
            else:
                p.copy_(noise / max(1, min(p.shape[-2:])) ** 0.5)
        for module in padding:  # as training leaves it, and some classes make it on loading
            module.weight[module.padding_idx] = 0
        for name, table in model.named_buffers():
            if name.endswith("tid2eid"):  # which experts a token's id goes to
                table.copy_(torch.randint(0, 4, table.shape, generator=g))
        ids = torch.randint(20, V - 20, (2, 24), generator=g)
        try:
            good = bool(torch.isfinite(model.eval()(input_ids=ids).logits).all())
            why = "" if good else "logits not finite with noise"
        except Exception as e:
            return f"forward fails: {type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}"[:200]
        if not good:
            for n, p in model.named_parameters():
                p.copy_(keep[n])
            good = bool(torch.isfinite(model(input_ids=ids).logits).all())
            why = "default init" if good else "logits not finite"
        return why


def build(mt, root, tokenizer):
    out = Path(root) / mt
    shutil.rmtree(out, ignore_errors=True)
    config = configuration(mt)
    cls = model_class(mt, config)
    with torch.device("meta"):
        n = sum(p.numel() for p in cls._from_config(config, dtype=torch.float32).parameters())
    if n > 30e6:
        big = []
        with torch.device("meta"):
            m = cls._from_config(config)
        big = sorted(((p.numel(), k, tuple(p.shape)) for k, p in m.named_parameters()), reverse=True)[:4]
        raise RuntimeError(f"too big: {n / 1e6:.0f}M {big}")
    torch.manual_seed(0)
    model = cls._from_config(config, dtype=torch.float32).eval()
    note = fill(model)
    model.save_pretrained(out)
    for f in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(Path(tokenizer) / f, out / f)
    return {"ok": True, "params": n, "cls": cls.__name__, "note": note}


def others():
    """Types of transformers beside these that write text."""
    known = {*POPULAR, *WITH_VLM}
    return sorted(t for t in {*CAUSAL, *VLM} if t not in known and t in CONFIG_MAPPING)


def main():
    root, tokenizer, *names = sys.argv[1:]
    for mt in names or POPULAR + WITH_VLM:
        try:
            made = build(mt, root, tokenizer)
            print(f"{mt:28s} {made['params']:>10,} {made['cls']} {made['note']}", flush=True)
        except Exception as error:
            print(
                f"{mt:28s} not built: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[
                    :200
                ],
                flush=True,
            )


if __name__ == "__main__":
    main()
