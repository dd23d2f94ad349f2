"""Flags made from the fields of a schema, and those that several commands have."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from secateur.config.flags import DATA, OUTPUT, WHERE, Flag
from secateur.config.suggestions import nearest
from secateur.errors import InputError
from secateur.system.names import DEVICES, DTYPES, PLACES, RUNTIMES, check_device, check_dtype, check_threads

REQUIRED = r"[red]\[required][/red]"


def flags(
    schema: type[BaseModel], without: Iterable[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the flags of a schema in the place of its parameter `given`, a dict of those that were used.

    Args:
        without: fields that have no flag here.
    """
    own = [parameter for parameter in _flags_of(schema) if parameter.name not in set(without)]
    names = {parameter.name for parameter in own}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def call(**values: Any) -> None:
            given = {name: value for name, value in values.items() if name in names and value is not None}
            command(given=given, **{name: value for name, value in values.items() if name not in names})

        signature = inspect.signature(command, eval_str=True)
        parameters: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            parameters += own if parameter.name == "given" else [parameter.replace(kind=parameter.KEYWORD_ONLY)]
        del call.__wrapped__
        call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return call

    return decorate


def _flags_of(schema: type[BaseModel]) -> Iterator[inspect.Parameter]:
    for name, field in schema.model_fields.items():
        for flag in field.metadata:
            if isinstance(flag, Flag):
                yield inspect.Parameter(
                    name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_option(name, field, flag)
                )


def _option(name: str, field: FieldInfo, flag: Flag) -> Any:
    """The type and the option of a flag. None: not given; the schema has the defaults, and a recipe may differ."""
    kinds = list(_leaves(field.annotation))
    kind = next((kind for kind in (bool, int, float) if set(kinds) <= {kind, type(None)}), str)
    listed = [word for word in kinds if isinstance(word, str)]
    words = flag.choices or listed
    said = str(field.description)
    if not all(word in said for word in listed):
        said = f"{', '.join(listed)}: {said}"
    spelled = name.replace("_", "-")
    long = f"--{spelled}/--no-{spelled}" if kind is bool else f"--{spelled}"
    option = typer.Option(
        *([f"--{flag.spelled}"] if flag.spelled else []),
        long,
        *([flag.short] if flag.short else []),
        help=f"{said}{_default(field)}{f' {REQUIRED}' if flag.required else ''}",
        rich_help_panel=flag.panel,
        show_default=False,
        autocompletion=completer(words) if words else None,
    )
    return Annotated[kind | None, option]


def _leaves(annotation: Any) -> Iterator[Any]:
    """The types of a union, and the words of a Literal."""
    if get_origin(annotation) in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _leaves(part)
    elif get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        yield annotation


def _default(field: FieldInfo) -> str:
    default = field.get_default()
    if default in (None, ()) or "default" in str(field.description):
        return ""
    if isinstance(default, bool):
        return f" (default: {'yes' if default else 'no'})"
    return f" (default: {', '.join(default) if isinstance(default, tuple) else default})"


def completer(words: Iterable[str]) -> Callable[[str], list[str]]:
    """Completes the last of several words with commas; `words` is read when the shell asks."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{word}" for word in words if word.startswith(last)]

    return complete


def check_data(*named: str | None) -> None:
    """Refuses text that isn't there, before anything is imported to read it."""
    from secateur.data.documents import check_there
    from secateur.data.sources import split_specs

    for specs in (name for name in named if name is not None):
        for spec in split_specs(specs):
            check_there(spec)


def check_mixture(spec: str | None, flag: str) -> None:
    """The same of sources with shares."""
    from secateur.data.documents import check_there
    from secateur.data.sources import shares_of

    for source, _ in shares_of(spec, flag) if spec is not None else ():
        check_there(source)


def check_tasks(named: str | None) -> None:
    """Refuses task files that aren't there, before anything is imported to read them."""
    from secateur.data.sources import split_specs
    from secateur.data.tasks import check_tasks as check

    if named is not None:
        check(split_specs(named, "--tasks"))


def examples(*lines: str) -> str:
    """The end of a command's help."""
    return "\n\n".join(["Examples:", *(f"  {line}" for line in lines)])


def at_least(least: int) -> Callable[[Any, Any, int | None], int | None]:
    """A check of a number that says what would work; a flag that isn't given is fine."""

    def check(context: typer.Context, flag: typer.CallbackParam, value: int | None) -> int | None:
        if value is not None and value < least:
            raise InputError(f"{flag.opts[0]} {value} is too small; give {least} or more")
        return value

    return check


def one_of(*words: str) -> Callable[[Any, Any, str | None], str | None]:
    """A check of a word from a list that is closed; a flag that isn't given is fine."""

    def check(context: typer.Context, flag: typer.CallbackParam, value: str | None) -> str | None:
        if value is not None and value not in words:
            raise InputError(f"{flag.opts[0]} {value} is unknown{nearest(value, words)}")
        return value

    return check


text = partial(typer.Option, rich_help_panel=DATA)
where = partial(typer.Option, rich_help_panel=WHERE)
output = partial(typer.Option, rich_help_panel=OUTPUT)

Model = Annotated[str, typer.Argument(help="model folder, 'embedded', or a hub id", show_default=False)]
Revision = Annotated[
    str | None, typer.Option(help="branch, tag or commit of a hub id, as org/name@REVISION", metavar="REVISION")
]


def trust(value: bool) -> bool:
    """Allows code of model folders, for this process and those that it starts."""
    if value:
        from secateur.model.remote_code import allow

        allow()
    return value


Trust = Annotated[
    bool,
    typer.Option("--trust-remote-code", help="run Python code that comes with a model", callback=trust),
]
Json = Annotated[bool, output("--json", help="print one JSON object, no tables")]
Quiet = Annotated[bool, output("--quiet", "-q", help="no progress display")]


def out_folder(name: str) -> Path:
    """A folder's name; as a `Path`, an empty one would be the folder that the user is in."""
    if not name.strip():
        raise InputError("--out is empty; give the name of a folder")
    return Path(name)


Out = Annotated[
    Path | None,
    output("--out", "-o", help=f"output folder {REQUIRED}", parser=out_folder, metavar="PATH"),
]
Overwrite = Annotated[bool, output("--overwrite", help="replace an earlier result in --out")]
Resume = Annotated[bool, output("--resume", help="go on with the interrupted run in --out")]
Against = Annotated[str | None, typer.Option("--against", "-a", help="a second model to compare with")]
Device = Annotated[
    str,
    where(
        help="auto, cpu, cuda, mps, xpu, npu, or one of several: cuda:1",
        callback=check_device,
        autocompletion=completer(DEVICES),
    ),
]
Dtype = Annotated[
    str,
    where(
        help="of the computation: auto, float32, bfloat16, float16",
        callback=check_dtype,
        autocompletion=completer(DTYPES),
    ),
]
Runtime = Annotated[
    str,
    where(
        help="of compressed weights: auto, compressed, dense, gpu",
        callback=one_of(*RUNTIMES),
        autocompletion=completer(RUNTIMES),
    ),
]
Threads = Annotated[int | None, where(help="CPU threads", callback=check_threads)]
place = partial(where, callback=one_of(*PLACES), autocompletion=completer(PLACES))
RayAddress = Annotated[str | None, where(help="of a running cluster, or auto; default: one of this machine's cores")]


def model_given(model: str | None, revision: str | None) -> dict[str, str]:
    """The setting `model` of a command whose recipe may name the model instead; what isn't there is said at once."""
    if model is None and revision is not None:
        raise InputError(f"--revision {revision} goes with MODEL; in a recipe write model: org/name@{revision}")
    if model is None:
        return {}
    from secateur.model.hub import at_revision, local_folder

    model = at_revision(model, revision)
    local_folder(model)
    return {"model": model}


def model_path(model: str, revision: str | None = None) -> str:
    """The folder of a MODEL, fetched where it's a hub id."""
    from secateur.model.hub import at_revision, local_folder

    return str(local_folder(at_revision(model, revision)))
