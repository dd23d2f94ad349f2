"""What an export is told: mistakes in one line, that says what would work."""

from __future__ import annotations

from typing import Any

import pytest

from secateur.config.export import make_export
from secateur.errors import InputError

WRONG: list[tuple[dict[str, Any], str]] = [
    ({}, "no format given; --to is one of padded, gguf"),
    ({"to": "ggml"}, "did you mean 'gguf'?"),
    ({"to": "gguf", "typ": "f16"}, "export key 'typ' is unknown; did you mean 'type'?"),
    ({"to": "gguf", "type": "q8"}, "did you mean 'q8_0'?"),
    ({"to": "onnx", "type": "q8_0"}, "type q8_0: onnx has f32, f16"),
    ({"to": "padded", "type": "f16"}, "type f16: padded leaves numbers as they are"),
    ({"to": "onnx", "multiple": 32}, "multiple is for padded and gguf"),
    ({"to": "hub"}, "no repo given; --repo org/name says where to"),
    ({"to": "hub", "repo": "../x"}, "is no name of a repository"),
    ({"to": "gguf", "repo": "org/name"}, "repo is for hub"),
    ({"to": "gguf", "multiple": 0}, "multiple = 0"),
]


@pytest.mark.parametrize(("given", "said"), WRONG)
def test_mistakes(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refused:
        make_export(given)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_right() -> None:
    assert make_export({"to": "gguf", "type": "q4_0", "multiple": 256}).multiple == 256
    assert make_export({"to": "hub", "repo": "org/name"}).private
