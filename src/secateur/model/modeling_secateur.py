"""Loads a pruned model whose layers differ in width, with plain `transformers`.

This file travels with such a checkpoint (`auto_map` in its config.json names it), so
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` works without Secateur installed.
It builds the stock model and then gives each layer that `per_layer_config` names its own width:

- layers whose class takes the overridden values from its configuration are simply built from them;
- attention classes that derive the head size from hidden_size / heads (`secateur_narrow`: GPT-2, OPT,
  GPT-NeoX, BERT) are built whole and then narrowed;
- `secateur_widths` lists shapes and sizes of architectures that aren't in Secateur's table;
- `skip` lists sub-blocks that add nothing to the residual stream; `secateur_skip` says which modules
  they are.

No weights are computed here, and no forward pass of `transformers` is copied.
"""

import re

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


class LayerConfig:
    """What one layer sees of the configuration: the model's own, live, with its own widths in front.

    A copy would do for building, but modules read the attention implementation at every call, and it can
    be changed on the model afterwards.
    """

    def __init__(self, shared, widths):
        self.__dict__.update(shared=shared, widths=widths)

    def __getattr__(self, name):
        if name.startswith("__"):  # copy and pickle ask for these before anything is set
            raise AttributeError(name)
        widths = self.__dict__["widths"]
        return widths[name] if name in widths else getattr(self.__dict__["shared"], name)


class NoAttention(nn.Module):
    """Stands where a removed attention sub-block was: adds nothing, but counts tokens in the cache."""

    def __init__(self, layer_idx, width):
        super().__init__()
        self.layer_idx = layer_idx
        self.width = width

    def forward(self, hidden_states, *args, past_key_values=None, layer_past=None, **kwargs):
        cache = past_key_values if past_key_values is not None else layer_past
        if cache is not None:
            # A static cache has its shape already; one that grows takes the smallest that counts.
            held = cache.layers[self.layer_idx].keys if self.layer_idx < len(cache.layers) else None
            heads, size = (held.shape[1], held.shape[3]) if held is not None and held.dim() == 4 else (1, 1)
            token = hidden_states.new_zeros(hidden_states.shape[0], heads, hidden_states.shape[1], size)
            cache.update(token, token, self.layer_idx)
        return hidden_states.new_zeros(*hidden_states.shape[:-1], self.width), None


class Nothing(nn.Module):
    """Stands where a removed FFN, or one of the Linears of a removed sub-block, was: outputs zeros."""

    def __init__(self, width):
        super().__init__()
        self.width = width

    def forward(self, hidden_states, *args, **kwargs):
        return hidden_states.new_zeros(*hidden_states.shape[:-1], self.width)


def take_out(layer, block, index, paths, hidden_size):
    """Replaces the modules of a sub-block ("attention" or "ffn") by ones that have no weights.

    The last of `paths` is the one that writes to the residual stream; those before it hand it nothing.
    """
    for path in paths:
        width = hidden_size if path == paths[-1] else 0
        attention = block == "attention" and path == paths[0]
        parent, _, leaf = path.rpartition(".")
        setattr(layer.get_submodule(parent), leaf, NoAttention(index, width) if attention else Nothing(width))


def set_heads(attention, heads, kv_heads, head_dim):
    """Tells an attention module its new head counts, under whatever names its class keeps them."""
    for module in attention.modules():
        for name, value in HEAD_COUNTS.items():
            if isinstance(getattr(module, name, None), int):
                setattr(module, name, value(heads, kv_heads, head_dim))
        config = getattr(module, "config", None)
        if config is not None:  # Phi-3 reads the count from its configuration at every call
            shared = config.shared if isinstance(config, LayerConfig) else config
            module.config = LayerConfig(shared, {"num_attention_heads": heads, "num_key_value_heads": kv_heads})


def narrow_heads(attention, stock_heads, heads, head_dim, readers):
    """Gives an attention module that was built with `stock_heads` heads only `heads` of them.

    Linears whose path below the module is in `readers` consume the heads; every other one produces them.
    """
    for path, module in list(attention.named_modules()):
        if not isinstance(module, (nn.Linear, Conv1D)):
            continue
        conv = isinstance(module, Conv1D)
        outputs, inputs = (module.nf, module.nx) if conv else (module.out_features, module.in_features)
        if path in readers:
            inputs = heads * head_dim
        else:
            outputs = outputs // stock_heads * heads
        new = Conv1D(outputs, inputs) if conv else nn.Linear(inputs, outputs, module.bias is not None)
        parent, _, leaf = path.rpartition(".")
        setattr(attention.get_submodule(parent), leaf, new.to(module.weight.dtype))
    set_heads(attention, heads, heads, head_dim)


def rebuild(layer, config, index, overrides):
    """One layer at its own width. `overrides` is its entry of `per_layer_config`."""
    narrow = config.secateur_narrow
    widths = {key: value for key, value in overrides.items() if key != "skip"}
    heads = widths.pop("num_attention_heads", None) if narrow else None
    new = type(layer)(LayerConfig(config, widths), layer_idx=index)
    if heads is not None:
        attention = new.get_submodule(narrow["attention"])
        narrow_heads(attention, config.num_attention_heads, heads, narrow["head_dim"], narrow["readers"])
    for block in overrides.get("skip", ()):
        take_out(new, block, index, config.secateur_skip[block], config.hidden_size)
    return new


def state_widths(module, leaf, tensor):
    """Updates the sizes that a module states beside a parameter of its own."""
    if leaf != "weight":
        return
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        module.normalized_shape = tuple(tensor.shape)
    elif isinstance(module, nn.Conv1d) and module.groups == module.in_channels:
        module.in_channels = module.out_channels = module.groups = tensor.shape[0]
    elif isinstance(module, Conv1D):
        module.nx, module.nf = tensor.shape
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = tensor.shape


def narrow(layer, own):
    """Gives a layer the shapes, and its modules the sizes, that `secateur_widths` says it has."""
    for name, shape in own["shapes"].items():
        path, _, leaf = name.rpartition(".")
        module = layer.get_submodule(path)
        old = getattr(module, leaf)
        new = old.new_empty(shape)
        if leaf in module._buffers:
            module._buffers[leaf] = new
        else:
            setattr(module, leaf, nn.Parameter(new))
        state_widths(module, leaf, new)
    for path, sizes in own["sizes"].items():
        for name, value in sizes.items():
            setattr(layer.get_submodule(path), name, value)
    if own.get("heads"):
        hand_on_heads(layer, own["heads"])


def narrow_layers(model, config):
    """Layers of an architecture that Secateur has found out about by itself."""
    path = config.secateur_widths["layers"]
    if not hasattr(model, path.split(".")[0]):  # the model without its head
        path = path.removeprefix(f"{model.base_model_prefix}.")
    layers = model.get_submodule(path)
    for index, own in config.secateur_widths["own"].items():
        narrow(layers[int(index)], own)


def hand_on_heads(layer, heads):
    """From now on a layer sees only its own heads' part of what the model hands it for all of them (slopes of ALiBi).

    `heads`: {"all": how many the model counts, "kept": which of them the layer has, "arguments": [[name, axis]]}.
    """
    layer.secateur_heads = heads
    layer.register_forward_pre_hook(_own_heads, with_kwargs=True)


def _own_heads(layer, args, kwargs):
    heads = layer.secateur_heads
    for name, axis in heads["arguments"]:
        value = kwargs.get(name)
        if value is not None and len(heads["kept"]) < heads["all"]:
            kept = torch.tensor(heads["kept"], device=value.device)
            own = value.unflatten(axis, (-1, heads["all"])).index_select(axis + 1, kept)
            kwargs = {**kwargs, name: own.flatten(axis, axis + 1)}
    return args, kwargs


def per_layer(config):
    """{layer index: overrides}, from a configuration of any version of transformers."""
    spec = getattr(config, "_heterogeneity_spec", None)
    entries = config.per_layer_config if spec is None else spec.per_layer_overrides
    return {int(index): entry for index, entry in entries.items()}


def find_layers(model):
    """The list of decoder layers, wherever this class keeps it."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == model.config.num_hidden_layers:
            return module
    raise ValueError(f"{type(model).__name__} has no list of {model.config.num_hidden_layers} layers")


class Pruned:
    """Mixed into a stock class: after the stock model stands, its layers get their own widths."""

    def __init__(self, config, *args, **kwargs):
        if getattr(config, "secateur_widths", None):
            super().__init__(config, *args, **kwargs)
            narrow_layers(self, config)
            return
        config.allow_global_per_layer_attribute_access = True
        overrides = per_layer(config)
        # The stock constructors read the global widths, which transformers warns of where layers differ.
        spec = config.__dict__.pop("_heterogeneity_spec", None)
        try:
            super().__init__(config, *args, **kwargs)
            layers = find_layers(self.base_model)
            for index, own in overrides.items():
                layers[index] = rebuild(layers[index], config, index, own)
        finally:
            if spec is not None:
                config.__dict__["_heterogeneity_spec"] = spec
        # An empty tensor stands where a sub-block was, so that a stock class fails to load the checkpoint.
        gone = [
            rf"\.{index}\.{re.escape(path)}\."
            for index, own in overrides.items()
            for block in own.get("skip", ())
            for path in config.secateur_skip[block]
        ]
        self._keys_to_ignore_on_load_unexpected = {*(self._keys_to_ignore_on_load_unexpected or ()), *gone}

    # transformers tells from the file of a class what it can be set to: that of the stock class says it.
    @classmethod
    def _can_set_attn_implementation(cls):
        return _stock(cls)._can_set_attn_implementation()

    @classmethod
    def _can_set_experts_implementation(cls):
        return _stock(cls)._can_set_experts_implementation()

    @classmethod
    def is_custom_code(cls):
        # Tensors are named as in the stock class, so the stock renamings and fusions must run on loading.
        return False


def _stock(cls):
    """The stock class that `Pruned` is mixed into, also where transformers has made a class of that class."""
    order = cls.__mro__
    return order[order.index(Pruned) + 1]


def __getattr__(name):
    """`PrunedLlamaForCausalLM` and the like: the stock class of that name with `Pruned` mixed in."""
    if not name.startswith("Pruned"):
        raise AttributeError(name)
    stock = getattr(transformers, name[len("Pruned") :])
    cls = type(name, (Pruned, stock), {"__module__": __name__, "config_class": stock.config_class})
    _share_renamings(stock.__name__, name)
    globals()[name] = cls
    return cls


def _share_renamings(stock, name):
    """Some renamings of tensors go by the name of the class (GPT-NeoX's head): they hold for ours too."""
    try:
        from transformers.conversion_mapping import (
            get_checkpoint_conversion_mapping,
            register_checkpoint_conversion_mapping,
        )
    except ImportError:  # versions without renamings
        return
    renamings = get_checkpoint_conversion_mapping(stock)
    if renamings is not None:
        register_checkpoint_conversion_mapping(name, renamings, overwrite=True)
