"""LoRA by peft (Hu et al. 2021, https://arxiv.org/abs/2106.09685), and what sparse weights need of it.

A plain adapter adds B A to W, and merging it would fill every zero. So where the result will be merged and W has
zeros, a Linear computes with W + mask * (scale B A), in training as after merging: what is trained is what is saved.
An adapter that stays apart is plain LoRA: W keeps its zeros because it isn't touched.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from secateur.config.training import Recovery
from secateur.errors import InputError, UnsupportedModelError, install
from secateur.model.architectures import Family
from secateur.model.linears import linears_of, submodule
from secateur.recovery.masks import attach, release


def check_installed(recovery: Recovery) -> None:
    """Raises InputError where a library of the extra isn't there."""
    for name in ("accelerate", *(["peft"] if recovery.how == "lora" else [])):
        if importlib.util.find_spec(name) is None:
            raise InputError(f"recovery needs {name}; run {install('recover')}")


def add(model: Any, family: Family, recovery: Recovery, masks: dict[str, Tensor]) -> Any:
    """The model with adapters on every Linear of its layers, experts excepted; nothing else is trained.

    Raises:
        UnsupportedModelError: no Linear that could have one.
    """
    import peft

    from secateur.recovery.masked_lora import MaskedLora

    layers = model.get_submodule(family.layers)
    targets = [
        f"{family.layers}.{index}.{linear.name}"
        for index, layer in enumerate(layers.children())
        for linear in linears_of(layer, family)
        if submodule(layer, linear.name) is not None
    ]
    if not targets:
        raise UnsupportedModelError("no Linear that an adapter could go on; use --how distill or full")
    conv = isinstance(model.get_submodule(targets[0]), Conv1D)
    scale: Any = recovery.scale  # peft takes fractions too
    config = peft.LoraConfig(
        r=recovery.rank,
        lora_alpha=scale,
        target_modules=targets,
        fan_in_fan_out=conv,
        task_type="CAUSAL_LM" if family.causal else None,  # of another kind peft would train the head too
    )
    if recovery.merge and masks:
        attach(model, masks)
        config._register_custom_module({nn.Linear: MaskedLora, Conv1D: MaskedLora})
    with _quiet():
        return peft.get_peft_model(model, config)


def merge(model: Any, masks: dict[str, Tensor]) -> Any:
    """The plain model with the adapters' products added to its weights."""
    with _quiet():
        merged = model.merge_and_unload()
    release(merged, masks)
    return merged


def save(model: Any, folder: Path, base: str) -> None:
    """adapter_model.safetensors and adapter_config.json, which plain peft loads on the model at `base`."""
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """peft warns of what is meant: tied embeddings that no adapter touches, Conv1D's transposed weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
