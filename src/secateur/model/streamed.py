"""What surrounds the decoder layers: embeddings before them, the final norm and head after them.

No forward pass of `transformers` is copied here. The layers of a model without weights are replaced by
probes; one call of the model's own forward then tells what it hands to every layer (masks, position
embeddings, per-layer types), and with a hidden state injected it turns that state into logits.
"""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from secateur.model.checkpoint import Checkpoint
from secateur.model.classes import text_config
from secateur.model.heads import SEQUENCE, answer_of, head_of
from secateur.model.surgery import set_parameter
from secateur.system.malloc import give_back


@dataclass(frozen=True)
class Call:
    """The arguments that the model hands to one layer, hidden states excepted."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    skipped: bool = False

    def __call__(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        if self.skipped:
            return hidden
        out = layer(hidden, *self.args, **self.kwargs)
        return out[0] if isinstance(out, tuple | list) else out  # a list: OpenAI's first GPT


class _Probe(nn.Module):
    """Stands in for a layer: notes what it's called with and passes the hidden state on."""

    def __init__(self, template: nn.Module, returns: int) -> None:
        super().__init__()
        self._returns = returns
        self.call: Call | None = None
        self.hidden: Tensor | None = None
        self.inject: Tensor | None = None
        self.__dict__["_template"] = template  # whose weights are none of a probe's

    def __getattr__(self, name: str) -> Any:
        """Some models read an attribute of the layer before calling it."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            template = self.__dict__.get("_template")
            if template is None or name.startswith("_"):
                raise
            return getattr(template, name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.call, self.hidden = Call(args, kwargs), hidden_states
        out = hidden_states if self.inject is None else self.inject
        return (out, *[None] * (self._returns - 1)) if self._returns else out


class StreamedModel:
    """A checkpoint whose layers are read from disk one at a time, and what surrounds them when it is asked for.

    Args:
        checkpoint: the opened folder.
        device: where layers and activations in work live.
        dtype: of the computation; the checkpoint's own dtype is restored on saving.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self.checkpoint = checkpoint
        self.device = device
        self.dtype = dtype
        self.proved: set[tuple[int, str]] = set()  # kinds of layers and of sites whose cuts were compared with zeros
        # Layers are read into a model without weights of their own, so that a thread may read one ahead.
        self._loader = checkpoint.skeleton(dtype)
        self._reading = threading.Lock()

    @cached_property
    def _model(self) -> Any:
        """The model without layers, with embeddings, final norm and head."""
        checkpoint = self.checkpoint
        model = checkpoint.skeleton(self.dtype)
        checkpoint.load_into(model, checkpoint.by_layer[None])
        model.tie_weights()
        model.requires_grad_(False)
        layers = model.get_submodule(checkpoint.family.layers)
        parent, _, leaf = checkpoint.family.layers.rpartition(".")
        setattr(
            model.get_submodule(parent),
            leaf,
            nn.ModuleList(_Probe(layer, checkpoint.family.returns) for layer in layers.children()),
        )
        return self.changed(model.to(self.device))

    @property
    def _probes(self) -> list[Any]:
        return list(self._model.get_submodule(self.checkpoint.family.layers).children())

    @property
    def eager(self) -> list[str]:
        """What of a layer runs as a row of simple operations, as its class has no kernel for it: of no matter on a
        CPU, slow elsewhere."""
        config = text_config(self._loader.config)
        parts = {"attention": "_attn_implementation", "experts": "_experts_implementation"}
        if self.checkpoint.family.experts is None:
            del parts["experts"]
        return [part for part, key in parts.items() if getattr(config, key, None) == "eager"]

    def release(self) -> None:
        """Frees the memory of embeddings and head; they are read again when they're next needed."""
        self.__dict__.pop("_model", None)
        give_back()

    def _slots(self) -> nn.ModuleList:
        layers = self._loader.get_submodule(self.checkpoint.family.layers)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def changed(self, module: nn.Module, index: int | None = None) -> nn.Module:
        """What computes instead of a layer, or of what surrounds the layers (None): here that itself, as it was read.
        A subclass may change its weights in place."""
        return module

    def template(self, index: int) -> nn.Module:
        """Makes a copy of layer `index` without weights (meta device)."""
        own = self._loader.config
        configs = (own, text_config(own))
        return copy.deepcopy(self._slots()[index], {id(config): config for config in configs})

    def load(self, index: int, plain: bool = False) -> nn.Module:
        """Reads layer `index` from disk, in the compute dtype, onto the device; plain: without `changed`."""
        give_back()  # of the layer before
        with self._reading:
            slots, empty = self._slots(), self.template(index)
            try:
                self.checkpoint.load_into(self._loader, self.checkpoint.by_layer.get(index, []))
                layer = slots[index]
                self._fill_shared(layer, index)
            finally:
                slots[index] = empty
        return layer.to(self.device) if plain else self.changed(layer.to(self.device), index)

    def _fill_shared(self, layer: nn.Module, index: int) -> None:
        """Reads what a layer has in common with one before it, under whose names it's stored."""
        checkpoint, path = self.checkpoint, self.checkpoint.family.layers
        tied = getattr(self._loader, "all_tied_weights_keys", None) or {}
        lacking = [name for name, p in layer.named_parameters() if p.is_meta and f"{path}.{index}.{name}" in tied]
        for name in lacking:
            source = tied[f"{path}.{index}.{name}"]
            keys = [key for key, target in checkpoint.targets.items() if target == source]
            owner, _, leaf = source.rpartition(".")
            module = self._loader.get_submodule(owner)
            empty = module._parameters[leaf]
            checkpoint.load_into(self._loader, keys)
            set_parameter(layer, name, module.get_parameter(leaf).data)
            module._parameters[leaf] = empty

    def surroundings(self, empty: bool = False) -> dict[str, Tensor]:
        """Reads every stored tensor outside the layers: name in memory -> tensor on the CPU, in its stored dtype.

        Args:
            empty: names, shapes and dtypes alone: tensors on the meta device.
        """
        if self.dtype != torch.float32:  # nothing is cut from them, so they aren't rounded to the computation either
            return StreamedModel(self.checkpoint, torch.device("cpu"), torch.float32).surroundings(empty)
        state = self._model.state_dict()
        names = [self.checkpoint.targets[key] for key in self.checkpoint.by_layer[None]]
        dtypes = self.checkpoint.target_dtypes
        return {n: state[n].to("meta" if empty else "cpu", dtypes[n]) for n in names if n in state}

    @torch.no_grad()
    def embed(self, ids: Tensor) -> tuple[Tensor, list[Call]]:
        """Runs embeddings and everything that precedes the layers.

        Args:
            ids: token ids (batch, tokens).

        Returns:
            The hidden state that enters layer 0, (batch, tokens, hidden), and each layer's arguments.
        """
        self._model.base_model(input_ids=ids.to(self.device), **self._uncached())
        probes = self._probes
        hidden = next(probe.hidden for probe in probes if probe.hidden is not None)
        # Layers that the model passes over without an image hand on what they get.
        calls = [probe.call or Call((), {}, skipped=True) for probe in probes]
        for probe in probes:
            probe.hidden = probe.call = None
        return hidden, calls

    @torch.no_grad()
    def logits(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """Runs final norm and head on the last layer's output (batch, tokens, hidden).

        Returns: logits of each token; of a model that classifies texts, of each text; without a head hidden states.
        """
        return self.lm_head(ids, hidden)

    def lm_head(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """Does the same as `logits`, with a gradient for the hidden state."""
        if head_of(self.checkpoint.whole_config) is SEQUENCE and len(ids) > 1:
            # Classes without a padding token don't know where each of several texts ends.
            return torch.cat([self.lm_head(ids[i : i + 1], hidden[i : i + 1]) for i in range(len(ids))])
        last = self._last
        last.inject = hidden.to(self.device, self.dtype)
        try:
            return answer_of(self._model(input_ids=ids.to(self.device), **self._uncached()))
        finally:
            last.inject = None

    @torch.no_grad()
    def normed(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """Runs the final norm on the last layer's output: what the head reads, (batch, tokens, hidden)."""
        seen: list[Tensor] = []
        handle = self._model.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            self.lm_head(ids, hidden)
        finally:
            handle.remove()
        return seen[0]

    def head(self) -> Any:
        """The module that turns what `normed` gives into logits."""
        return self._model.get_output_embeddings()

    @cached_property
    def _last_called(self) -> int:
        """The last layer that the model calls for text."""
        if not self.checkpoint.family.anatomies:
            return -1
        _, calls = self.embed(torch.zeros(1, 2, dtype=torch.int64))
        return max(index for index, call in enumerate(calls) if not call.skipped)

    @property
    def _last(self) -> Any:
        return self._probes[self._last_called]

    def _uncached(self) -> dict[str, bool]:
        known = inspect.signature(self._model.base_model.forward).parameters
        return {"use_cache": False} if self.checkpoint.family.causal or "use_cache" in known else {}
