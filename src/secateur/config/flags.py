"""What the command line shows of a setting beside its type and its description, which its field says already."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

CUT, REPAIR, DATA = "What to cut", "Repair", "Data"
LEARN, TRAIN = "What it learns", "Training"
WHERE, OUTPUT, FORM = "Where it runs", "Output", "What it becomes"


class Flag(NamedTuple):
    """Marks a field, in its Annotated type, as a flag of the same name. A field without one has no flag.

    Args:
        panel: the part of the help that it stands in.
        short: one letter that stands for it, such as `-s`.
        choices: values that the shell completes, where the type doesn't list them.
        required: the command refuses to go without it.
        spelled: another name of the flag, which is shown first.
    """

    panel: str
    short: str | None = None
    choices: Iterable[str] = ()
    required: bool = False
    spelled: str | None = None
