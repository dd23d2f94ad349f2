"""What the site has beside the pages of docs/: start page, changelog, command line, and the files that pages link to.

A hook of MkDocs, see mkdocs.yml. Pages are read where they lie, too: their links out of docs/ work there as they are,
and the site gets copies of what these lead to.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)(#[^)\s]*)?\)")
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
SHOWN = {".py", ".toml", ".yaml", ".md", ".cff", ""}  # what a browser shows as text, where it's called .txt


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that aren't files of docs/, and copies of what pages link to outside of it."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=relinked(text, ROOT)))
    files.append(File.generated(config, "commands.md", content=commands()))
    copies = set()
    for page in files.documentation_pages():
        folder = ROOT if page.src_uri in PAGES.values() else ROOT / "docs"
        text = (ROOT / "README.md").read_text(encoding="utf-8") if page.src_uri == "index.md" else page.content_string
        copies |= {path for path in (folder / link for link, _ in LINK.findall(text)) if outside(path)}
    for path in sorted({path.resolve() for path in copies}):
        files.append(File.generated(config, copy_of(path), content=path.read_bytes()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turns links out of docs/ into links to the copies."""
    generated = page.file.src_uri in {*PAGES.values(), "commands.md"}
    return markdown if generated else relinked(markdown, ROOT / "docs")


def relinked(text: str, folder: Path) -> str:
    """The text of a page that lies in `folder`, with links as they are on the site."""

    def place(found: re.Match[str]) -> str:
        target = (folder / found[1]).resolve()
        name = target.relative_to(ROOT).as_posix() if target.is_relative_to(ROOT) else found[1]
        if name in PAGES:
            where = PAGES[name]
        elif outside(target):
            where = copy_of(target)
        else:
            where = posixpath.relpath(name, "docs")
        return f"]({where}{found[2] or ''})"

    return LINK.sub(place, text)


def outside(path: Path) -> bool:
    """Whether the site needs a copy of a file."""
    path = path.resolve()
    inside = path.is_relative_to(ROOT / "docs") or path.relative_to(ROOT).as_posix() in PAGES
    return path.is_file() and not inside


def copy_of(path: Path) -> str:
    name = path.relative_to(ROOT).as_posix()
    return f"source/{name}.txt" if path.suffix in SHOWN else f"source/{name}"


def commands() -> str:
    """Every command with its arguments, flags and examples, from the command line itself."""
    from secateur.cli.app import app

    group: Any = typer.main.get_command(app)
    parts = ["# Command line", "", "Made from the commands themselves; `--help` says the same.", ""]
    for name, command in group.commands.items():
        parts += [f"## secateur {name}", "", (command.help or "").strip(), ""]
        panels: dict[str, list[Any]] = {}
        for parameter in command.params:
            panels.setdefault(getattr(parameter, "rich_help_panel", None) or "Options", []).append(parameter)
        for panel, parameters in panels.items():
            rows = [f"| {_flag(each)} | {_said(each)} |" for each in parameters]
            parts += [f"**{panel}**", "", "| | |", "|---|---|", *rows, ""]
        examples = re.findall(r"^ *(secateur .*)$", command.epilog or "", flags=re.MULTILINE)
        parts += ["```sh", *examples, "```", ""] if examples else []
    return "\n".join(parts)


def _flag(parameter: Any) -> str:
    names = ", ".join(f"`{name}`" for name in parameter.opts)
    return f"`{parameter.name.upper()}`" if parameter.param_type_name == "argument" else names


def _said(parameter: Any) -> str:
    text = " ".join((getattr(parameter, "help", None) or "").split()).replace("|", "\\|")
    default = parameter.default
    shown = default is not None and not callable(default) and default not in ("", False, ())
    return f"{text} (default `{default}`)" if shown else text
