"""A checkpoint on disk, opened lazily: configuration, tensor index, one layer at a time.

Only safetensors are read. Names on disk and names in memory may differ (experts are fused on loading, old
prefixes are renamed): `transformers`' own conversion is applied, per layer, so that a block read from disk
is exactly what `from_pretrained` would have built.
"""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging as hf_logging

from secateur.errors import InputError
from secateur.model.architectures import Family
from secateur.model.classes import text_config
from secateur.model.complete import check_complete
from secateur.model.containers.folder import plain_folder
from secateur.model.detection.cache import row_of
from secateur.model.detection.copies import language_modules
from secateur.model.extras import uncounted
from secateur.model.files import read_config, read_header, read_index, read_tokenizer
from secateur.model.linears import linears_of
from secateur.model.sites import Site, sites_of
from secateur.model.skeleton import empty_model, fill_buffers
from secateur.model.tied import stored_apart, stored_twice

_TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@dataclass(frozen=True)
class Checkpoint:
    """A model folder, opened; only the headers of its files are in memory. `open` makes one.

    Args:
        files, dtypes, sizes: tensor name on disk -> the file that holds it, its dtype, its number of entries.
        family: what is known of the architecture: a row of the table, or what was detected.
        config: of the language model, and `outer` of the whole where that also sees or hears.
    """

    path: Path
    config: Any
    family: Family
    files: dict[str, Path]
    dtypes: dict[str, torch.dtype]
    sizes: dict[str, int]
    outer: Any = None

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Opens a folder and checks that it's whole; of a quantised one what it is when dequantised.

        Raises:
            InputError: no such folder, no config.json, pickled or truncated weights, missing shards.
            UnsupportedModelError: nothing of such a model can be cut, or it's quantised in a way that isn't read.
        """
        folder = plain_folder(Path(path))
        outer = read_config(folder)
        files = read_index(folder)
        family = row_of(outer)
        dtypes: dict[str, torch.dtype] = {}
        sizes: dict[str, int] = {}
        odd: dict[str, str] = {}
        for file in sorted(set(files.values())):
            for name, dtype, entries in read_header(file):
                if files.get(name) == file:
                    dtypes[name] = _TORCH_DTYPES.get(dtype, torch.float32)
                    odd |= {} if dtype in _TORCH_DTYPES else {name: dtype}
                    sizes[name] = entries
        checkpoint = cls(folder, text_config(outer), family, files, dtypes, sizes, outer)
        check_complete(checkpoint, checkpoint.towers)
        checkpoint._check_dtypes(odd)
        return checkpoint.untied() if stored_apart(checkpoint) else checkpoint

    def untied(self) -> Checkpoint:
        """The same, with a head of its own, whatever its config.json says."""
        outer = copy.deepcopy(self.whole_config)
        outer.tie_word_embeddings = text_config(outer).tie_word_embeddings = False
        untied = replace(self, config=text_config(outer), outer=outer)
        check_complete(untied, untied.towers)
        return untied

    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer.

        Raises:
            InputError: the folder has none that loads.
        """
        return read_tokenizer(self.path)

    @property
    def layers(self) -> int:
        return len(self.family.kinds) or int(self.config.num_hidden_layers)

    @property
    def whole_config(self) -> Any:
        """What the model is built from."""
        return self.config if self.outer is None else self.outer

    @property
    def head_dim(self) -> int:
        """Inputs of the attention output per query head."""
        if self.family.anatomies:  # whose units know their widths
            return 0
        explicit = getattr(self.config, "head_dim", None)
        return int(explicit or self.config.hidden_size // self.config.num_attention_heads)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that most entries of the checkpoint have."""
        count: dict[torch.dtype, int] = {}
        for name, dtype in self.dtypes.items():
            count[dtype] = count.get(dtype, 0) + self.sizes[name]
        return max(count, key=lambda d: count[d])

    @property
    def parameters(self) -> int:
        """Entries of all tensors that are used; what is stored twice, or tied, counts once."""
        return sum(size for key, size in self.sizes.items() if key not in self._uncounted)

    @cached_property
    def _uncounted(self) -> set[str]:
        return {*stored_twice(self), *uncounted(self)}

    def layer_parameters(self, index: int) -> int:
        """Entries that layer `index` stores."""
        return sum(self.sizes[key] for key in self.by_layer.get(index, []))

    @property
    def linear_parameters(self) -> int:
        """Entries of all prunable matrices: no embeddings, head, norms, routers or biases."""
        layers = self.template.get_submodule(self.family.layers)
        return sum(m * n for layer in layers.children() for m, n in (x.shape for x in linears_of(layer, self.family)))

    @cached_property
    def sites(self) -> tuple[tuple[Site, ...], ...]:
        """The sites of each layer, by shape alone."""
        layers = self.template.get_submodule(self.family.layers).children()
        return tuple(tuple(sites_of(layer, self.family, i, self.head_dim)) for i, layer in enumerate(layers))

    @property
    def bytes_on_disk(self) -> int:
        return sum(file.stat().st_size for file in set(self.files.values()))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the configuration and every weight file's name, size and first and last megabyte."""
        total = hashlib.sha256((self.path / "config.json").read_bytes())
        for file in sorted(set(self.files.values())):
            size = file.stat().st_size
            total.update(f"{file.name}:{size}".encode())
            with file.open("rb") as handle:
                total.update(handle.read(1 << 20))
                handle.seek(max(0, size - (1 << 20)))
                total.update(handle.read())
        return total.hexdigest()

    def _check_dtypes(self, odd: dict[str, str]) -> None:
        """Refuses parameters that aren't floating-point numbers; `odd`: tensor -> dtype of all that aren't."""
        parameters = dict(self.template.named_parameters(remove_duplicate=False)) if odd else {}
        for key, dtype in sorted(odd.items()):
            if self.targets[key] in parameters:
                known = ", ".join(_TORCH_DTYPES)
                raise InputError(f"{self.path}: tensor {key} is of dtype {dtype}, and weights must be {known}")

    def skeleton(self, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        """The model without weights (meta device), its computed buffers (rotary tables) filled in."""
        model = empty_model(self.path, self.whole_config, dtype)
        fill_buffers(model, whole=bool(self.family.anatomies))
        if self.family.anatomies:
            self.family.mark(model)
        return model.eval().requires_grad_(False)

    @cached_property
    def template(self) -> PreTrainedModel:
        """The model without weights, for its names and shapes."""
        return self.skeleton()

    @cached_property
    def _conversions(self) -> list[Any]:
        return get_model_conversion_mapping(self.template) or []

    @cached_property
    def targets(self) -> dict[str, str]:
        """Tensor name on disk -> (first) parameter in memory that it becomes."""
        state = self.template.state_dict()
        renamings = [c for c in self._conversions if isinstance(c, WeightRenaming)]
        converters = [c for c in self._conversions if isinstance(c, WeightConverter)]
        prefix = self.template.base_model_prefix
        out = {}
        for key in self.files:
            name, _ = rename_source_key(key, renamings, converters, prefix, state)
            if name not in state and key in state:
                name = key
            out[key] = name
        return out

    @cached_property
    def towers(self) -> tuple[str, ...]:
        """Prefixes of what sees or hears beside the language model."""
        if self.whole_config is self.config:
            return ()
        own = {id(module) for module in language_modules(self.template)}
        return tuple(f"{name}." for name, module in self.template.named_modules() if id(module) not in own)

    @cached_property
    def tower_keys(self) -> frozenset[str]:
        """Names on disk of what sees or hears beside the language model; it stays as it is stored."""
        return frozenset(key for key, name in self.targets.items() if self.towers and name.startswith(self.towers))

    @cached_property
    def by_layer(self) -> dict[int | None, list[str]]:
        """Layer index -> tensor names on disk; None -> everything outside the layers."""
        pattern = re.compile(rf"^(?:{re.escape(self.family.layers)})\.(\d+)\.")
        out: dict[int | None, list[str]] = {None: []}
        for key, name in self.targets.items():
            match = pattern.match(name)
            out.setdefault(int(match[1]) if match else None, []).append(key)
        return out

    @cached_property
    def target_dtypes(self) -> dict[str, torch.dtype]:
        """Parameter in memory -> dtype that it has on disk."""
        return {name: self.dtypes[key] for key, name in self.targets.items()}

    def stored_dtype(self, layer: int, name: str) -> torch.dtype:
        """The dtype on disk of parameter `name` of a layer; a parameter that is new gets the common one."""
        return self.target_dtypes.get(f"{self.family.layers}.{layer}.{name}", self.dtype)

    def load_into(self, model: PreTrainedModel, keys: Iterable[str]) -> None:
        """Reads the named tensors into a skeleton, converted as `from_pretrained` would."""
        by_file: dict[Path, list[str]] = {}
        for key in keys:
            by_file.setdefault(self.files[key], []).append(key)
        # The handles live only as long as this call, so the mapped pages of big files are given back.
        handles = {file: safe_open(file, framework="pt") for file in by_file}
        tensors = {key: handles[file].get_slice(key) for file, keys in by_file.items() for key in keys}
        self.put_into(model, tensors)
        for key in tensors.keys() - self.tower_keys:  # which may say by infinity that there is no bound
            module, _, leaf = self.targets[key].rpartition(".")
            with suppress(AttributeError):  # what the model doesn't use
                value = getattr(model.get_submodule(module), leaf)
                if not value.is_meta and not bool(torch.isfinite(value).all()):
                    raise InputError(f"{self.path}: tensor {key} holds NaN or infinity; fetch it again")

    def put_into(self, model: PreTrainedModel, tensors: Mapping[str, Any]) -> None:
        """Puts tensors, by their names on disk, into a skeleton, converted as `from_pretrained` would.

        Args:
            tensors: or whatever gives one for `[...]`.
        """
        found = dict(tensors)
        with _no_bar():
            info, _ = convert_and_load_state_dict_in_model(
                model, found, LoadStateDictConfig(weight_mapping=copy.deepcopy(self._conversions)), None
            )
        if info.mismatched_keys or info.conversion_errors:
            problem = next(iter(info.mismatched_keys or info.conversion_errors))
            raise InputError(f"{self.path}: tensor {problem} doesn't fit the configuration")


@contextmanager
def _no_bar() -> Iterator[None]:
    """transformers draws one progress bar per call; a run shows its own."""
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            hf_logging.enable_progress_bar()
