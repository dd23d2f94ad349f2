"""Opens the JSON files of a model folder, which anybody may have written: size, depth, shape and types are checked.

What comes back is what the file says and nothing is filled in. A key that we rely on has the type and the range that
`Keys` says, or the file is refused in one line that names it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from secateur.errors import InputError

Json = dict[str, Any]  # an object in a file that others define: config.json, above all

MOST_BYTES = 2**26
MOST_LEVELS = 32

Width = Annotated[StrictInt, Field(ge=1, le=2**20)]
Heads = Annotated[StrictInt, Field(ge=1, le=2**14)]
Experts = Annotated[StrictInt, Field(ge=0, le=2**14)]  # hybrids say 0 for none
Layers = Annotated[StrictInt, Field(ge=1, le=1024)]
Positions = Annotated[StrictInt, Field(ge=1, le=2**27)]
Token = Annotated[StrictInt, Field(ge=-1, lt=2**24)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Dtype = Annotated[StrictStr, Field(pattern=r"^(torch\.)?(auto|half|float|double|b?float\d+(_\w+)?)$")]
Positive = Annotated[Number, Field(gt=0, lt=1e30)]
Small = Annotated[Number, Field(ge=0, le=1)]


class _Keys(BaseModel):
    model_config = ConfigDict(extra="allow", protected_namespaces=())


class ConfigKeys(_Keys):
    """The keys of config.json that decide about shapes and arithmetic. All may be missing, few may be null."""

    model_type: Annotated[StrictStr, Field(min_length=1, max_length=100)]
    architectures: Annotated[list[StrictStr], Field(max_length=16)] | None = None
    auto_map: Json | None = None
    quantization_config: Json | None = None
    dtype: Dtype | None = None
    torch_dtype: Dtype | None = None
    num_hidden_layers: Layers = 1
    n_layer: Layers = 1
    hidden_size: Width = 1
    n_embd: Width = 1
    word_embed_proj_dim: Width = 1
    intermediate_size: Width | Annotated[list[Width], Field(max_length=1024)] | None = None
    moe_intermediate_size: Width | Annotated[list[Width], Field(max_length=1024)] | None = None
    ffn_dim: Width = 1
    n_inner: Width | None = None
    head_dim: Width | None = None
    vocab_size: Annotated[StrictInt, Field(ge=1, le=2**24)] = 1
    num_attention_heads: Heads = 1
    n_head: Heads = 1
    num_key_value_heads: Heads | None = None
    num_local_experts: Experts | None = 1
    num_experts: Experts | None = 1
    num_experts_per_tok: Experts | list[Experts] | None = 1
    max_position_embeddings: Positions | None = None
    n_positions: Positions = 1
    n_ctx: Positions = 1
    sliding_window: Annotated[StrictInt, Field(ge=0, le=2**31)] | None = None
    layer_types: Annotated[list[StrictStr], Field(max_length=1024)] | None = None
    hidden_act: Annotated[StrictStr, Field(max_length=100)] = ""
    activation_function: Annotated[StrictStr, Field(max_length=100)] = ""
    rope_theta: Positive = 1.0
    rope_parameters: Json | None = None
    rope_scaling: Json | None = None
    partial_rotary_factor: Small | None = None
    rms_norm_eps: Small | None = None
    layer_norm_eps: Small | None = None
    layer_norm_epsilon: Small | None = None
    initializer_range: Annotated[Number, Field(ge=0, le=1e6)] | None = None
    tie_word_embeddings: StrictBool | None = None
    attention_bias: StrictBool | None = None
    mlp_bias: StrictBool | None = None
    bos_token_id: Token | None = None
    eos_token_id: Token | list[Token] | None = None
    pad_token_id: Token | None = None
    per_layer_config: Annotated[dict[str, Json], Field(max_length=1024)] | None = None


class GenerationKeys(_Keys):
    """The keys of generation_config.json that decide how much work a text is. transformers checks the others."""

    num_beams: Annotated[StrictInt, Field(ge=1, le=256)] | None = None
    num_return_sequences: Annotated[StrictInt, Field(ge=1, le=256)] | None = None
    max_length: Annotated[StrictInt, Field(ge=1, le=2**31)] | None = None
    max_new_tokens: Annotated[StrictInt, Field(ge=1, le=2**31)] | None = None
    min_length: Annotated[StrictInt, Field(ge=0, le=2**31)] | None = None
    no_repeat_ngram_size: Annotated[StrictInt, Field(ge=0, le=2**20)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=1e6)] | None = None
    top_p: Small | None = None
    top_k: Annotated[StrictInt, Field(ge=0, le=2**24)] | None = None
    repetition_penalty: Annotated[Number, Field(gt=0, le=1e6)] | None = None
    bos_token_id: Token | None = None
    eos_token_id: Token | list[Token] | None = None
    pad_token_id: Token | None = None
    cache_implementation: StrictStr | None = None


def read_object(file: Path, keys: type[BaseModel] | None = None, most_bytes: int = MOST_BYTES) -> Json:
    """The object in a JSON file.

    Args:
        keys: what some of its keys must be.

    Raises:
        InputError: no regular file, too long, not UTF-8 or JSON, nested too deeply, no object, or a key out of range.
    """
    if not file.is_file():
        raise InputError(f"{file}: is not a file")
    size = file.stat().st_size
    if size > most_bytes:
        raise InputError(f"{file}: has {size:,} bytes; such a file has {most_bytes:,} at most")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except RecursionError:
        raise InputError(f"{file}: is nested more than {MOST_LEVELS} levels deep") from None
    except ValueError as error:  # UnicodeDecodeError is one
        raise InputError(f"{file}: is not valid JSON ({short(error)})") from None
    if not isinstance(found, dict):
        raise InputError(f"{file}: is {_SPOKEN.get(type(found), 'a number')} where an object should be")
    if _deeper_than(found, MOST_LEVELS):
        raise InputError(f"{file}: is nested more than {MOST_LEVELS} levels deep")
    if keys is not None:
        check_keys(file, found, keys)
    return found


_SPOKEN: dict[type, str] = {list: "a list", str: "a text", bool: "true or false", type(None): "null"}


def check_keys(file: Path, found: Json, keys: type[BaseModel]) -> None:
    """Refuses an object of which a key isn't what `keys` says.

    Raises:
        InputError: which file, which key, what it is, what it must be.
    """
    try:
        keys.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][:1])
        if first["type"] == "missing" or (found.get(name) is None and keys.model_fields[name].is_required()):
            raise InputError(f"{file}: has no {name}") from None
        message = first["msg"].replace("Input should", "it should")
        message = f"{message[0].lower()}{message[1:]}"
        raise InputError(f"{file}: {name} is {_shown(found.get(name))}; {message}") from None


def short(error: BaseException) -> str:
    """The first line of what a library says, or the kind of error where it says nothing."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return line[:200] or type(error).__name__


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value)
    except ValueError:  # a number of more digits than Python prints
        return "a number with thousands of digits"
    return text if len(text) <= 40 else f"{text[:40]}..."


def _deeper_than(value: Any, levels: int) -> bool:
    """Whether objects and lists lie more than `levels` deep; level by level, so that depth costs no stack."""
    row = [value]
    for _ in range(levels):
        row = [part for item in row for part in _parts(item)]
        if not row:
            return False
    return any(isinstance(item, dict | list) for item in row)


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []
