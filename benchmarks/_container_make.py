"""Quantises a checkpoint with one of the tools that people use, in its own process and its own environment.

    python _container_make.py MODEL OUT THEIRS --tool llmcompressor --way W4A16

OUT becomes what the tool saves; THEIRS a safetensors file of what the tool itself, or transformers with it, reads
from OUT as plain weights. The last line on stdout is JSON: the versions. Nothing of Secateur is imported here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXT = "The oath of the three brothers was kept to the end of their days, and nobody broke it. "
BLOCK = 16  # rows and columns of a block of FP8, few enough for several in the smallest matrix
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
    """gptq-BITS, with `-order` of activations, `-v2` in the newer format, `-asym` with zero points; awq, awq-BITS.

    Its own code takes the numbers apart and puts them together, with the scales as they are stored: by itself it
    rounds those to bf16 first, as its kernels do.
    """
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # the least that it starts with
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    kind, *rest = way.split("-")
    bits = int(rest[0]) if rest else 4
    told: dict[str, Any] = {"bits": bits, "group_size": GROUP, "device": "cpu"}
    awq = {"quant_method": "awq", "format": "gemm"}
    form = "gptq_v2" if "v2" in rest else "gptq"
    told |= {"desc_act": "order" in rest, "format": form, "sym": "asym" not in rest} if kind == "gptq" else awq
    whole = GPTQModel.load(str(model), QuantizeConfig(**told))
    tokenizer = AutoTokenizer.from_pretrained(model)
    whole.quantize([dict(tokenizer(TEXT * 4))] * 8, batch_size=1)
    whole.save(str(out))
    loaded = GPTQModel.load(str(out), device="cpu", backend=BACKEND.TORCH).model
    stored, found = _stored(out), {}
    for name, module in loaded.named_modules():
        if hasattr(module, "qweight"):
            module.scales = stored[f"{name}.scales"].float()
            if kind == "gptq":
                found[f"{name}.weight"] = module.dequantize_weight().T
            else:
                parts = (module.qweight, module.qzeros, module.scales)
                found[f"{name}.weight"] = dequantize_gemm(*parts, module.bits, module.group_size).T
    return found


def autoawq(model: Path, out: Path, way: str) -> Any:
    """gemm: the scales are searched for, and all is done as its users do it; some minutes."""
    from awq import AutoAWQForCausalLM
    from awq.utils.packing_utils import dequantize_gemm

    whole = AutoAWQForCausalLM.from_pretrained(str(model), device_map="cpu")
    told = {"zero_point": True, "q_group_size": GROUP, "w_bit": 4, "version": way.upper()}
    whole.quantize(AutoTokenizer.from_pretrained(model), quant_config=told, calib_data=[TEXT * 4] * 8)
    whole.save_quantized(str(out))
    stored = _stored(out)
    names = [name.removesuffix(".qweight") for name in stored if name.endswith(".qweight")]
    each = {name: [stored[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales")] for name in names}
    return {f"{name}.weight": dequantize_gemm(q, z, s.float(), 4, GROUP).T for name, (q, z, s) in each.items()}


def transformers(model: Path, out: Path, way: str) -> Any:
    """fp8 in DeepSeek's blocks, with `-ue8m0` with scales that are powers of two; mxfp4; at the end the model's type.

    It quantises on a GPU alone, so what it stores is made by its own operation for that (fp8), or of random codes and
    exponents (mxfp4), in the folder of a small model. The reading is all its own, through `from_pretrained`.
    """
    from transformers import AutoConfig, FineGrainedFP8Config, Mxfp4Config

    kind, *rest = way.split("-")
    source = model if "llama" in rest else _tiny(rest[-1], out.parent / "plain", model)
    stored = _stored(source)
    if kind == "mxfp4":
        config: Any = Mxfp4Config(dequantize=True)
        kept, named = _mxfp4(stored)
    else:
        config = FineGrainedFP8Config(weight_block_size=(BLOCK, BLOCK), dequantize=True)
        config.scale_fmt = "ue8m0" if "ue8m0" in rest else "float"
        kept, named = _fp8(stored, config)
    out.mkdir(parents=True)
    save_file(kept, out / "model.safetensors", {"format": "pt"})
    whole = AutoConfig.from_pretrained(source)
    whole.quantization_config = {key: value for key, value in config.to_dict().items() if key != "dequantize"}
    whole.save_pretrained(out)
    loaded = AutoModelForCausalLM.from_pretrained(out, dtype=torch.bfloat16, quantization_config=config)
    plain = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)  # saved by itself it's quantised again
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(out.parent / f"{out.name}-read")
    return {name: tensor for name, tensor in _stored(out.parent / f"{out.name}-read").items() if name in named}


def _fp8(stored: dict[str, torch.Tensor], config: Any) -> tuple[dict[str, torch.Tensor], set[str]]:
    """The tensors of an FP8 folder, and the names of those that are quantised in it."""
    from types import SimpleNamespace

    from transformers.integrations.finegrained_fp8 import Fp8Quantize

    make = Fp8Quantize(SimpleNamespace(quantization_config=config))
    left = re.compile(r"(embed_tokens|lm_head|mlp\.gate)\.weight$")
    names = {name for name, tensor in stored.items() if tensor.dim() > 1 and not left.search(name)}
    kept = {name: tensor for name, tensor in stored.items() if name not in names}
    for name in names:
        kept |= {k: v.contiguous() for k, v in make.convert({name: stored[name]}).items()}
    return kept, {name for name in names if kept[name].dtype == torch.float8_e4m3fn}


def _mxfp4(stored: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], set[str]]:
    """The same of a folder as GPT-OSS has it: every code, and exponents from where bf16 ends to small weights'."""
    names = {name for name in stored if name.endswith((".gate_up_proj", ".down_proj"))}
    kept = {name: tensor for name, tensor in stored.items() if name not in names}
    for name in names:
        experts, inputs, outputs = stored[name].shape
        shape = (experts, outputs, inputs // 32)
        kept[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
        kept[f"{name}_scales"] = torch.randint(100, 124, shape, dtype=torch.uint8)
    return kept, names


def _tiny(kind: str, root: Path, tokenizer: Path) -> Path:
    """A small model of a type, in bf16."""
    from _tiny_architectures import build

    build(kind, root, tokenizer)
    loaded = AutoModelForCausalLM.from_pretrained(root / kind, dtype=torch.bfloat16)
    loaded.save_pretrained(root / kind)
    return root / kind


def _stored(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a folder as they are on disk."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


TOOLS = {f.__name__: f for f in (llmcompressor, bitsandbytes, gptqmodel, autoawq, transformers)}


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
        if isinstance(found, dict) or name.endswith("_proj.weight")
    }
    save_file(kept, told.theirs)
    print(json.dumps({name: version(name) for name in (told.tool, "torch", "transformers")}))


if __name__ == "__main__":
    main()
