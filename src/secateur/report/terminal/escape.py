"""Names, configurations and plans come from anybody; what a terminal would obey in them is shown, not sent."""

from __future__ import annotations

import re

# Control characters of both ranges, and those that turn the direction of writing: all but tab and the end of a line.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""The text with its control characters spelled out.

    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    return _CONTROL.sub(lambda found: ascii(found[0])[1:-1], text)
