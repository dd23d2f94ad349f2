"""Whether a folder's tensors are all that its configuration asks for."""

from __future__ import annotations

from secateur.errors import InputError
from secateur.model.stored import Stored


def check_complete(stored: Stored, towers: tuple[str, ...] = ()) -> None:
    """Every parameter that the configuration asks for must be in the files, whole (tied ones excepted).

    Entries are counted, because one parameter in memory may be many tensors on disk (experts).

    Args:
        towers: prefixes of what text never reaches, of which one stored tensor may be several parameters.
    """
    held: dict[str, int] = {}
    for key, name in stored.targets.items():
        held[name] = held.get(name, 0) + stored.sizes[key]
    tied = set(getattr(stored.template, "all_tied_weights_keys", None) or {})
    for name, parameter in sorted(stored.template.named_parameters(remove_duplicate=False)):
        if name.startswith(towers):
            continue
        if name not in held and name not in tied:
            raise InputError(f"{stored.path}: the checkpoint lacks '{name}', which its config.json asks for")
        if name in held and held[name] != parameter.numel():
            raise InputError(
                f"{stored.path}: the checkpoint has {held[name]} entries of '{name}', but its config.json asks "
                f"for {parameter.numel()}"
            )
