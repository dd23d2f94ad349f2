"""Quantises a checkpoint with one of the tools that people use, in its own process and its own environment.

    python _container_make.py MODEL OUT THEIRS --tool llmcompressor --way W4A16

OUT becomes what the tool saves; THEIRS a safetensors file of what the tool itself, or transformers with it, reads
from OUT as plain weights. The last line on stdout is JSON: the versions. Nothing of Secateur is imported here.
"""

from __future__ import annotations

import argparse
import json
import os
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

GROUP = 64  # columns of a group, where a scheme's own 128 doesn't divide the columns of a small model


def llmcompressor(model: Path, out: Path, way: str) -> Any:
    """Schemes of compressed-tensors, by their names there; `+gptq` solves with GPTQ in the order of activations."""
    from compressed_tensors.quantization import preset_name_to_scheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from torch.utils.data import DataLoader
    from transformers.utils.quantization_config import CompressedTensorsConfig

    name, _, solver = way.partition("+")
    scheme = preset_name_to_scheme(name, ["Linear"])
    scheme.weights.group_size = GROUP if scheme.weights.group_size == 128 else scheme.weights.group_size
    if scheme.weights.block_structure is not None:
        scheme.weights.block_structure = [GROUP, GROUP]
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    told: dict[str, Any] = {"config_groups": {"group_0": scheme}, "ignore": ["lm_head"]}
    needs_text = solver or (scheme.input_activations is not None and scheme.input_activations.dynamic is not True)
    rows = torch.randint(20, 4000, (8, 64), generator=torch.Generator().manual_seed(0))
    data = DataLoader([{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows])
    made = GPTQModifier(actorder="weight", **told) if solver else QuantizationModifier(**told)
    oneshot(model=whole, recipe=[made], **({"dataset": data} if needs_text else {}))
    whole.save_pretrained(out)
    plain = CompressedTensorsConfig(run_compressed=False)
    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16, quantization_config=plain)


def bitsandbytes(model: Path, out: Path, way: str) -> Any:
    """int8, nf4, fp4, and `nf4-nested`, whose scales are quantised too."""
    from transformers import BitsAndBytesConfig

    kind, _, nested = way.partition("-")
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": kind, "bnb_4bit_use_double_quant": bool(nested)}
    config = BitsAndBytesConfig(**({"load_in_8bit": True} if kind == "int8" else four))
    told = {"dtype": torch.bfloat16, "device_map": "cpu"}
    AutoModelForCausalLM.from_pretrained(model, quantization_config=config, **told).save_pretrained(out)
    return AutoModelForCausalLM.from_pretrained(out, **told).dequantize()


def gptqmodel(model: Path, out: Path, way: str) -> Any:
    """gptq-4, gptq-8, with `-order` in the order of activations; awq."""
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # the least that it starts with
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

    kind, *rest = way.split("-")
    bits = int(rest[0]) if rest else 4
    told: dict[str, Any] = {"bits": bits, "group_size": GROUP, "device": "cpu"}
    told |= {"desc_act": "order" in rest} if kind == "gptq" else {"quant_method": "awq", "format": "gemm"}
    whole = GPTQModel.load(str(model), QuantizeConfig(**told))
    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = ["The oath of the three brothers was kept to the end of their days, and nobody broke it. " * 4] * 8
    whole.quantize([dict(tokenizer(text)) for text in texts], batch_size=1)
    whole.save(str(out))
    loaded = GPTQModel.load(str(out), device="cpu", backend=BACKEND.TORCH).model
    return {
        f"{name}.weight": module.dequantize_weight().T
        for name, module in loaded.named_modules()
        if hasattr(module, "dequantize_weight")
    }


def transformers(model: Path, out: Path, way: str) -> Any:
    """fp8-blocks: DeepSeek's layout."""
    from transformers import FineGrainedFP8Config

    config = FineGrainedFP8Config(weight_block_size=(GROUP, GROUP))
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, quantization_config=config)
    whole.save_pretrained(out)
    plain = FineGrainedFP8Config(weight_block_size=(GROUP, GROUP), dequantize=True)
    return AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16, quantization_config=plain)


TOOLS = {f.__name__: f for f in (llmcompressor, bitsandbytes, gptqmodel, transformers)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("theirs", type=Path)
    parser.add_argument("--tool", choices=sorted(TOOLS), required=True)
    parser.add_argument("--way", required=True)
    told = parser.parse_args()
    torch.manual_seed(0)
    found = TOOLS[told.tool](told.model, told.out, told.way)
    weights = found if isinstance(found, dict) else found.state_dict()
    kept = {
        name: tensor.detach().to(torch.bfloat16).contiguous().clone()
        for name, tensor in weights.items()
        if name.endswith("_proj.weight")
    }
    save_file(kept, told.theirs)
    print(json.dumps({name: version(name) for name in (told.tool, "torch", "transformers")}))


if __name__ == "__main__":
    main()
