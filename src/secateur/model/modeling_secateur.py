"""Loads a pruned model whose layers differ in width, with plain `transformers`.

This file travels with such a checkpoint (`auto_map` in its config.json names it), so
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` works without Secateur installed.
It builds the stock model and then gives each layer that `per_layer_config` names its own width:

- layers whose class takes the overridden values from its configuration are simply built from them;
- attention classes that derive the head size from hidden_size / heads (GPT-2, OPT, GPT-NeoX, BERT) are
  built whole and then narrowed;
- `skip` lists sub-blocks that add nothing to the residual stream.

No weights are computed here, and no forward pass of `transformers` is copied.
"""

import copy

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

HEAD_COUNTS = {
    "num_heads": lambda heads, kv, dim: heads,
    "num_attention_heads": lambda heads, kv, dim: heads,
    "num_key_value_heads": lambda heads, kv, dim: kv,
    "num_key_value_groups": lambda heads, kv, dim: heads // kv,
    "split_size": lambda heads, kv, dim: heads * dim,
    "all_head_size": lambda heads, kv, dim: heads * dim,
}


class NoAttention(nn.Module):
    """Stands where a removed attention sub-block was: adds nothing, but counts tokens in the cache."""

    def __init__(self, layer_idx):
        super().__init__()
        self.layer_idx = layer_idx

    def forward(self, hidden_states, past_key_values=None, layer_past=None, **kwargs):
        cache = past_key_values if past_key_values is not None else layer_past
        if cache is not None:
            token = hidden_states.new_zeros(hidden_states.shape[0], 1, hidden_states.shape[1], 1)
            cache.update(token, token, self.layer_idx)
        return torch.zeros_like(hidden_states), None


class NoFfn(nn.Module):
    """Stands where a removed FFN sub-block was."""

    def forward(self, hidden_states, *args, **kwargs):
        return torch.zeros_like(hidden_states)


def narrow_heads(attention, heads, kv_heads, head_dim, readers):
    """Gives an attention module that was built for other head counts `heads` heads of `head_dim`.

    Linears named in `readers` consume the heads; every other one produces them.
    """
    stock = None
    for module in attention.modules():
        for name in ("num_heads", "num_attention_heads"):
            stock = stock or getattr(module, name, None)
        config = getattr(module, "config", None)
        if config is not None:
            stock = stock or config.num_attention_heads
            module.config = copy.copy(config)
            module.config.num_attention_heads = heads
        for name, value in HEAD_COUNTS.items():
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, value(heads, kv_heads, head_dim))
    for path, module in list(attention.named_modules()):
        if not isinstance(module, (nn.Linear, Conv1D)):
            continue
        conv = isinstance(module, Conv1D)
        outputs, inputs = (module.nf, module.nx) if conv else (module.out_features, module.in_features)
        if path.split(".", 1)[-1] in readers or path in readers:
            inputs = heads * head_dim
        else:
            outputs = outputs * heads // stock
        new = Conv1D(outputs, inputs) if conv else nn.Linear(inputs, outputs, module.bias is not None)
        parent, _, leaf = path.rpartition(".")
        setattr(attention.get_submodule(parent), leaf, new.to(module.weight.dtype))


def find_layers(model):
    """The list of decoder layers, wherever this class keeps it."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers:
            return module
    raise ValueError(f"{type(model).__name__} has no list of {model.config.num_hidden_layers} layers")


def rebuild(layer, config, index, overrides):
    """One layer at its own width. `overrides` is its entry of `per_layer_config`."""
    own = copy.copy(config)
    own.__dict__.pop("_heterogeneity_spec", None)
    narrow = config.secateur_narrow
    for key, value in overrides.items():
        if key != "skip" and not (narrow and key in ("num_attention_heads", "num_key_value_heads")):
            setattr(own, key, value)
    new = type(layer)(own, layer_idx=index)
    if narrow and "num_attention_heads" in overrides:
        heads = overrides["num_attention_heads"]
        kv_heads = overrides.get("num_key_value_heads", heads)
        narrow_heads(new.get_submodule(narrow["attention"]), heads, kv_heads, narrow["head_dim"], narrow["readers"])
    for block in overrides.get("skip", ()):
        skip_sub_block(new, block, index, config.secateur_skip[block])
    return new


def skip_sub_block(layer, block, index, path):
    parent, _, leaf = path.rpartition(".")
    setattr(layer.get_submodule(parent), leaf, NoAttention(index) if block == "attention" else NoFfn())


class Pruned:
    """Mixed into a stock class: after the stock model stands, its layers get their own widths."""

    def __init__(self, config, *args, **kwargs):
        # The stock constructor reads the global widths; transformers guards them once per-layer ones exist.
        config.allow_global_per_layer_attribute_access = True
        super().__init__(config, *args, **kwargs)
        if not hasattr(self, "lm_head") and not hasattr(self, "cls"):
            _apply(self, config)  # AutoModel: this class is the base model itself
        elif not getattr(self.base_model, "_secateur_done", False):
            _apply(self.base_model, config)


def _apply(base, config):
    layers = find_layers(base)
    for index, overrides in per_layer(config).items():
        layers[index] = rebuild(layers[index], config, index, overrides)
    base._secateur_done = True


def per_layer(config):
    """{layer index: overrides}, from a configuration of any transformers version."""
    spec = getattr(config, "_heterogeneity_spec", None)
    if spec is not None:
        return spec.per_layer_overrides
    return {int(index): entry for index, entry in (config.per_layer_config or {}).items()}


def __getattr__(name):
    """`PrunedLlamaForCausalLM` and the like: the stock class of that name with `Pruned` mixed in."""
    if not name.startswith("Pruned"):
        raise AttributeError(name)
    stock = getattr(transformers, name[len("Pruned") :])
    cls = type(name, (Pruned, stock), {"__module__": __name__, "config_class": stock.config_class})
    globals()[name] = cls
    return cls
