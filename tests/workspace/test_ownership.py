"""Files that aren't ours stay, whatever a report, a work area or a link says."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secateur.errors import InputError
from secateur.workspace.folder import Workspace
from secateur.workspace.journal import Journal
from secateur.workspace.ownership import JOURNAL, MARK, WORK, check_apart, contents, discard, names_for_report


def write(folder: Path, **texts: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text)
    return folder


def report(folder: Path, *files: Any) -> Path:
    """A finished result that says these files are its own."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).write_text(json.dumps({"secateur": "1", "files": [*files, MARK]}))
    return folder


def snapshot(folder: Path) -> dict[str, str | None]:
    return {
        path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else None
        for path in folder.rglob("*")
    }


def run(out: Path, *files: str, fails: BaseException | None = None, **how: Any) -> None:
    """A run that delivers these files and its report, or fails before."""
    with Workspace(out, **how).open() as workspace:
        if fails is not None:
            raise fails
        for name in files:
            (workspace.final / name).parent.mkdir(exist_ok=True)
            (workspace.final / name).write_text("new")
        names = names_for_report(workspace.final)
        (workspace.final / MARK).write_text(json.dumps({"secateur": "1", "files": names}))
        workspace.deliver()


def stopped(out: Path, meanwhile: Path) -> None:
    """A run that is stopped after somebody has put a file of their own somewhere."""

    def stop() -> None:
        with Workspace(out).open():
            write(meanwhile, mine="mine")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()


def test_a_stopped_run_takes_only_empty_folders_with_it(tmp_path: Path) -> None:
    stopped(tmp_path / "results" / "a" / "b", tmp_path / "results" / "other")
    assert snapshot(tmp_path) == {"results": None, "results/other": None, "results/other/mine": "mine"}


def test_what_somebody_put_into_the_output_folder_stays(tmp_path: Path) -> None:
    stopped(tmp_path / "a" / "b", tmp_path / "a" / "b")
    assert snapshot(tmp_path) == {"a": None, "a/b": None, "a/b/mine": "mine"}


NAMES: list[Any] = ["../victim", "folder", "folder/inside", "link", "loop", "", ".", "..", "../folder", WORK, 3, None]


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder whose report names what it didn't write."""
    write(tmp_path, victim="mine")
    out = report(tmp_path / "out", *NAMES, str(tmp_path / "victim"), "runs/../../victim", "runs/link/victim")
    write(out / "folder", inside="mine")
    (out / "link").symlink_to(tmp_path / "victim")
    (out / "loop").symlink_to(tmp_path)
    (out / "runs").mkdir()
    (out / "runs" / "link").symlink_to(tmp_path)
    return out


def test_a_report_cannot_name_what_is_not_a_file_of_the_folder(hostile: Path) -> None:
    before = snapshot(hostile.parent)
    with pytest.raises(InputError, match="didn't make"):
        Workspace(hostile, overwrite=True)
    assert snapshot(hostile.parent) == before


def test_a_report_that_turns_hostile_during_the_run_names_nothing_either(hostile: Path, tmp_path: Path) -> None:
    fine = tmp_path / "fine"
    report(write(fine, old="old"), "old")
    with Workspace(fine, overwrite=True).open() as workspace:
        (fine / MARK).write_text((hostile / MARK).read_text())
        write(fine / "folder", inside="mine")
        write(workspace.final, new="new")
        (workspace.final / MARK).write_text(json.dumps({"secateur": "1", "files": ["new"]}))
        workspace.deliver()
    assert (tmp_path / "victim").read_text() == "mine"
    assert (fine / "folder" / "inside").read_text() == "mine"


def test_a_delivery_that_somebody_made_up_moves_nothing_from_elsewhere(hostile: Path, tmp_path: Path) -> None:
    out = tmp_path / "resumed"
    Journal(write(out / WORK), {}).start()
    (out / WORK / "replaced").mkdir()
    report(out / WORK / "final", *json.loads((hostile / MARK).read_text())["files"])
    write(out / "folder", inside="mine")
    run(out, "new", resume=True)
    assert (tmp_path / "victim").read_text() == "mine"
    assert (out / "folder" / "inside").read_text() == "mine"


@pytest.mark.parametrize(
    "text", ["[1]", '{"secateur": 1, "files": "abc"}', '{"secateur": 1}', "[" * 100000, "\udcff"]
)
def test_a_report_of_another_shape_names_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / MARK).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"didn't make \(report\.json\)"):
        Workspace(tmp_path, overwrite=True)


def empty_but_for_a_file(work: Path) -> None:
    write(work, mine="mine")


def another_journal(work: Path) -> None:
    write(work, **{JOURNAL: '{"other": 1}'})


def link(work: Path) -> None:
    write(work.parents[1] / "elsewhere", mine="mine", **{JOURNAL: '{"told": {}}'})
    work.symlink_to(work.parents[1] / "elsewhere")


def link_inside(work: Path) -> None:
    write(work.parents[1] / "elsewhere", mine="mine")
    write(work, **{JOURNAL: '{"told": {}}'})
    (work / "final").symlink_to(work.parents[1] / "elsewhere")


def file(work: Path) -> None:
    work.write_text("mine")


@pytest.mark.parametrize("made", [empty_but_for_a_file, another_journal, link, link_inside, file])
@pytest.mark.parametrize("how", [{"resume": True}, {"overwrite": True}, {}])
def test_a_work_area_that_is_not_ours_is_left_alone(
    tmp_path: Path, made: Callable[[Path], None], how: dict[str, bool]
) -> None:
    (tmp_path / "out").mkdir()
    made(tmp_path / "out" / WORK)
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="is no work area that secateur made"):
        run(tmp_path / "out", **how)
    assert snapshot(tmp_path) == before


def test_one_of_ours_goes_whenever_its_run_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workspace, "_discard", lambda self: None)  # nothing runs after a kill
    with pytest.raises(SystemExit):
        run(tmp_path / "out", fails=SystemExit())
    monkeypatch.undo()
    run(tmp_path / "out", "model", overwrite=True)
    assert contents(tmp_path / "out") == {"model", MARK}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "models" / "one", weights="weights")


def ways(model: Path) -> dict[str, tuple[Path, str]]:
    """Output folders that aren't apart from the model, and what is said about them."""
    parent, link, upper = model.parent, model.parents[1] / "link", model.parents[1] / "upper"
    link.symlink_to(model)
    upper.symlink_to(parent)
    return {
        "itself": (model, "is the model itself"),
        "itself by another way": (parent / ".." / "models" / "one", "is the model itself"),
        "a link to it": (link, "is the model itself"),
        "inside": (model / "a" / "b", "lies in the model's folder"),
        "inside a link": (upper / "one" / "a", "lies in the model's folder"),
        "above": (parent, "holds files of the model"),
        "a link above": (upper, "holds files of the model"),
    }


@pytest.mark.parametrize(
    "name", ["itself", "itself by another way", "a link to it", "inside", "inside a link", "above"]
)
@pytest.mark.parametrize("how", [{}, {"overwrite": True}, {"resume": True}])
def test_a_result_never_goes_where_the_model_is(tmp_path: Path, model: Path, name: str, how: dict[str, bool]) -> None:
    out, said = ways(model)[name]
    report(model, "weights")  # the model is a result itself, and so is what holds it
    report(model.parent, "one")
    before = snapshot(tmp_path)
    for given in (model, Path(os.path.relpath(model))):
        with pytest.raises(InputError, match=rf"{said}.*; choose another --out$"):
            run(out, inputs=[given], **how)
    assert snapshot(tmp_path) == before


def test_nor_where_the_files_are_that_a_model_links_to(tmp_path: Path, model: Path) -> None:
    old = report(write(tmp_path / "old", weights="weights"), "weights")
    (model / "linked").symlink_to(old / "weights")
    with pytest.raises(InputError, match="holds files of the model"):
        Workspace(old, overwrite=True, inputs=[model])


def test_folders_beside_the_model_are_fine(tmp_path: Path, model: Path) -> None:
    check_apart(model.parent / "one-pruned", [model])
    check_apart(tmp_path / "out", [model, tmp_path / "missing"])


@pytest.mark.skipif(not Path(__file__.swapcase()).exists(), reason="letters' case matters here")
def test_another_case_of_letters_is_the_same_folder(model: Path) -> None:
    with pytest.raises(InputError, match="is the model itself"):
        check_apart(model.with_name("ONE"), [model])


@pytest.mark.parametrize("out", ["", "  "])
def test_an_empty_name_is_refused(out: str) -> None:
    with pytest.raises(InputError, match="--out is empty"):
        Workspace(out)


def test_overwriting_is_advised_only_where_it_works(tmp_path: Path) -> None:
    def said(out: Path, **how: Any) -> str:
        with pytest.raises(InputError) as caught:
            Workspace(out, **how)
        return str(caught.value)

    foreign = write(tmp_path / "foreign", mine="mine")
    assert said(foreign).endswith("is not empty; choose another --out")
    result = report(write(tmp_path / "result", model="old"), "model")
    assert "give --overwrite" in said(result)
    both = report(write(tmp_path / "both", model="old", mine="mine"), "model")
    assert "--overwrite" not in said(both)
    assert "choose another --out" in said(both, overwrite=True)
    for out in (result, both):
        Journal(write(out / WORK), {"recipe": 1}).start()
    assert said(result, resume=False).endswith("--resume continues it, --overwrite starts over")
    assert said(result).endswith("an interrupted run; --overwrite starts over"), "some commands can't resume"
    assert "--overwrite" not in said(both, resume=False)
    for out, way in ((result, "use --overwrite to start over"), (both, "choose another --out")):
        with pytest.raises(InputError, match=rf"the run differs: .*; {way}$"):
            Journal(out / WORK, {"recipe": 2}).resume()


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("moves", range(9))
def test_a_delivery_that_is_stopped_anywhere_loses_nothing(
    tmp_path: Path, moves: int, resume: bool, stop: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped by Ctrl-C, the old result is back at once; after a kill the next run brings it back."""
    run(tmp_path, "model", "old", "additional_chat_templates/rag.jinja")
    before = snapshot(tmp_path)
    for _ in range(2):  # the second time the way back is stopped too
        _stop_after(monkeypatch, moves, stop)
        with contextlib.suppress(stop):
            run(tmp_path, "model", "more", "additional_chat_templates/tool.jinja", overwrite=True)
        monkeypatch.undo()
        if stop is KeyboardInterrupt or not (tmp_path / WORK).exists():
            break
    if (tmp_path / WORK).exists():
        with pytest.raises(InputError):  # it comes back, and then something else goes wrong
            run(tmp_path, fails=InputError("no"), overwrite=not resume, resume=resume)
    after = {name: text for name, text in snapshot(tmp_path).items() if not name.startswith(WORK)}
    if moves < 8:
        assert after == before
    else:
        assert contents(tmp_path) == {"model", "more", "additional_chat_templates/tool.jinja", MARK}


def _stop_after(monkeypatch: pytest.MonkeyPatch, moves: int, stop: type[BaseException]) -> None:
    rename, done = Path.rename, 0

    def pruning_steps(self: Path, target: Path) -> Path:
        nonlocal done
        done += 1
        if done == moves + 1:
            if stop is SystemExit:  # stands for a kill: nothing runs after one
                monkeypatch.setattr(Workspace, "_discard", lambda self: None)
            raise stop
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", pruning_steps)


def test_only_what_lies_in_a_work_area_is_removed(tmp_path: Path) -> None:
    mine, work = write(tmp_path / "mine", file="mine"), write(tmp_path / "out" / WORK, file="ours")
    for path in (mine, mine / "file", tmp_path, work / ".." / "x", work / ".." / ".." / "mine"):
        with pytest.raises(ValueError, match="lies in no work area"):
            discard(path)
    (work / "link").symlink_to(mine)
    with pytest.raises(ValueError, match="lies in no work area"):
        discard(work / "link" / "file")
    discard(work / "link")
    discard(work / "missing")
    discard(work)
    assert not work.exists()
    assert (mine / "file").read_text() == "mine"
