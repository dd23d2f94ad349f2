"""The licence of a model is what its card declares, or what the text beside it is."""

from __future__ import annotations

from pathlib import Path

from secateur.model.licence import header_of, licence_of


def test_the_card_comes_first(tmp_path: Path) -> None:
    assert licence_of(tmp_path) is None
    (tmp_path / "LICENSE").write_text("Apache License\nVersion 2.0", encoding="utf-8")
    assert licence_of(tmp_path) == "apache-2.0"
    (tmp_path / "README.md").write_text("---\nlicense: llama3.2\n---\n# A\n", encoding="utf-8")
    assert licence_of(tmp_path) == "llama3.2"


def test_a_hostile_card_says_nothing(tmp_path: Path) -> None:
    for text in (
        "---\na: &a [1]\nb: [*a, *a]\n---\n",
        "---\n[1, 2\n---\n",
        "---\n- 1\n---\n",
        "no header",
        "---\na: 1",
    ):
        (tmp_path / "README.md").write_text(text, encoding="utf-8")
        assert header_of(tmp_path) == {}
    for value in ("[a]", "'a b\tc'", "../../x y"):
        (tmp_path / "README.md").write_text(f"---\nlicense: {value}\n---\n", encoding="utf-8")
        assert licence_of(tmp_path) is None
    (tmp_path / "README.md").unlink()
    outside = tmp_path.parent / "secret.md"
    outside.write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    (tmp_path / "README.md").symlink_to(outside)
    assert header_of(tmp_path) == {}
