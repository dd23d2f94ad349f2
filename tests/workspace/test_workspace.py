"""The output folder: as it was after a failure, whole after a success, resumable where something was finished."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from secateur.errors import InputError, RanksLost, ResourceError, SecateurError
from secateur.workspace.folder import BLOCKS, EVENTS, Workspace
from secateur.workspace.ownership import JOURNAL, LOCK, MARK, OWNER, WORK


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def fill(workspace: Workspace, text: str = "new", *more: str) -> None:
    """What a run leaves in `final`."""
    files = ["model.safetensors", *more, MARK]
    for name in files:
        (workspace.final / name).write_text(text)
    (workspace.final / MARK).write_text(json.dumps({"secateur": "0", "files": files, "text": text}))


def run(out: Path, *steps: Callable[[Workspace], None] | BaseException, **how: bool) -> None:
    """Takes the steps inside the workspace; an exception is raised there."""
    with Workspace(out, **how).open() as workspace:
        for step in steps:
            if isinstance(step, BaseException):
                raise step
            step(workspace)


def finish(out: Path, text: str = "new", *more: str, **how: bool) -> None:
    run(out, lambda workspace: fill(workspace, text, *more), Workspace.deliver, **how)


def finish_a_block(workspace: Workspace) -> None:
    (workspace.blocks / "block-00000.safetensors").write_text("block")
    for name in (JOURNAL, EVENTS, "edited.bin"):
        (workspace.work / name).write_text(name)
    workspace.keep = True


def interrupt(out: Path, **how: bool) -> None:
    """A run that is stopped after its first block."""
    with pytest.raises(KeyboardInterrupt):
        run(out, finish_a_block, KeyboardInterrupt(), **how)


def test_a_success_delivers_the_files_and_nothing_else(tmp_path: Path) -> None:
    finish(tmp_path / "a" / "out")
    assert names(tmp_path / "a" / "out") == {"model.safetensors", MARK}


@pytest.mark.parametrize(
    "error", [InputError("no"), ValueError("bug"), KeyboardInterrupt(), OSError(errno.EIO, "io")]
)
def test_a_failure_before_anything_is_finished_leaves_no_trace(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        run(tmp_path / "a" / "out", lambda workspace: (workspace.blocks / "half").touch(), error)
    assert names(tmp_path) == set()


def test_a_failure_leaves_an_earlier_result_as_it_was(tmp_path: Path) -> None:
    finish(tmp_path, "old")
    with pytest.raises(ValueError):
        run(tmp_path, fill, ValueError(), overwrite=True)
    assert names(tmp_path) == {"model.safetensors", MARK}
    assert (tmp_path / "model.safetensors").read_text() == "old"


def test_what_is_finished_stays_and_the_rest_goes(tmp_path: Path) -> None:
    interrupt(tmp_path)
    with Workspace(tmp_path, resume=True).open() as workspace:
        assert workspace.resume
        assert names(workspace.work) == {BLOCKS, JOURNAL, EVENTS, LOCK, OWNER, "final"}
        assert names(workspace.blocks) == {"block-00000.safetensors"}
        assert workspace.finished_bytes == len("block")
        fill(workspace)
        workspace.deliver()
    assert names(tmp_path) == {"model.safetensors", MARK}


def test_what_is_left_takes_no_more_room_than_what_is_finished(tmp_path: Path) -> None:
    interrupt(tmp_path)
    assert names(tmp_path / WORK) == {BLOCKS, JOURNAL, EVENTS, LOCK, OWNER}


def test_two_runs_never_share_a_folder(tmp_path: Path) -> None:
    with Workspace(tmp_path).open() as workspace:
        finish_a_block(workspace)
        for how in ({"overwrite": True}, {"resume": True}):
            with pytest.raises(InputError, match="another run is at work in it"):
                run(tmp_path, **how)
        assert names(workspace.blocks) == {"block-00000.safetensors"}
        fill(workspace)
        workspace.deliver()
    finish(tmp_path, overwrite=True)


def test_starting_over_throws_the_interrupted_run_away(tmp_path: Path) -> None:
    interrupt(tmp_path)
    with Workspace(tmp_path, overwrite=True).open() as workspace:
        assert not workspace.resume
        assert names(workspace.work) == {BLOCKS, LOCK, OWNER, "final"}
        assert names(workspace.blocks) == set()


def test_the_same_command_with_resume_may_say_overwrite_too(tmp_path: Path) -> None:
    finish(tmp_path, "old")
    interrupt(tmp_path, overwrite=True)
    with Workspace(tmp_path, overwrite=True, resume=True).open() as workspace:
        assert workspace.resume
        assert names(workspace.blocks) == {"block-00000.safetensors"}
        fill(workspace)
        workspace.deliver()
    assert (tmp_path / "model.safetensors").read_text() == "new"


def test_resuming_where_nothing_is_begins(tmp_path: Path) -> None:
    for out in (tmp_path / "missing", tmp_path / "empty"):
        assert not Workspace(out, resume=True).resume
        finish(out, resume=True)
        assert names(out) == {"model.safetensors", MARK}


def test_a_failing_resumed_run_stays_resumable(tmp_path: Path) -> None:
    interrupt(tmp_path)
    for error in (InputError("the run differs"), KeyboardInterrupt()):
        with pytest.raises(type(error)), Workspace(tmp_path, resume=True).open():
            raise error
        assert names(tmp_path / WORK / BLOCKS) == {"block-00000.safetensors"}


def test_refusals_name_the_folder_and_what_would_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        Workspace(tmp_path / "file")
    with pytest.raises(InputError, match="is not empty; choose another --out"):
        Workspace(tmp_path)
    for how in ({"overwrite": True}, {"resume": True, "overwrite": True}):
        with pytest.raises(InputError, match=r"didn't make \(file\)"):
            Workspace(tmp_path, **how)
    with pytest.raises(InputError, match="is not empty"):
        Workspace(tmp_path, resume=True)
    interrupt(tmp_path / "out")
    with pytest.raises(InputError, match="--resume continues it, --overwrite starts over"):
        Workspace(tmp_path / "out", resume=False)


def test_overwriting_takes_away_what_the_earlier_run_wrote_and_nothing_else(tmp_path: Path) -> None:
    finish(tmp_path, "old", "plan.json")
    with Workspace(tmp_path, overwrite=True).open() as workspace:
        fill(workspace)
        (tmp_path / "notes.txt").write_text("mine")
        workspace.deliver()
    assert names(tmp_path) == {"model.safetensors", MARK, "notes.txt"}
    assert (tmp_path / "model.safetensors").read_text() == "new"


def test_a_file_that_appeared_meanwhile_does_not_keep_a_run_from_going_on(tmp_path: Path) -> None:
    interrupt(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    finish(tmp_path, resume=True)
    assert names(tmp_path) == {"model.safetensors", MARK, "notes.txt"}


def test_a_file_that_appears_in_the_way_is_not_overwritten(tmp_path: Path) -> None:
    def appears(workspace: Workspace) -> None:
        (workspace.out / "model.safetensors").write_text("mine")

    with pytest.raises(InputError, match=r"model\.safetensors appeared"):
        run(tmp_path, finish_a_block, fill, appears, Workspace.deliver)
    assert (tmp_path / "model.safetensors").read_text() == "mine"
    assert (tmp_path / WORK).is_dir(), "what is finished stays"


@pytest.mark.parametrize("moves", range(7))
def test_a_run_killed_while_it_delivers_can_be_resumed(
    tmp_path: Path, moves: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(tmp_path, "old", "old.json")
    interrupt(tmp_path, overwrite=True)
    rename, done = Path.rename, 0

    def dies(self: Path, target: Path) -> Path:
        nonlocal done
        if done == moves:
            raise SystemExit  # with `_discard` out of action: nothing runs after a kill
        done += 1
        return rename(self, target)

    monkeypatch.setattr(Workspace, "_discard", lambda self: None)
    monkeypatch.setattr(Path, "rename", dies)
    try:
        with Workspace(tmp_path, resume=True).open() as workspace:
            fill(workspace, "new", "more.json")
            workspace.deliver()
    except SystemExit:
        assert (tmp_path / WORK).is_dir()
    monkeypatch.undo()
    if (tmp_path / WORK).is_dir():
        finish(tmp_path, "newest", "more.json", resume=True)
        assert (tmp_path / "model.safetensors").read_text() == "newest"
    assert names(tmp_path) == {"model.safetensors", "more.json", MARK}


def test_a_full_disk_is_one_line_that_says_how_to_go_on(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ResourceError, match=r"the disk is full; .* another --out$"), Workspace(tmp_path / "a").open():
        raise full
    with pytest.raises(ResourceError, match="the same command with --resume"):
        run(tmp_path, finish_a_block, full)
    assert (tmp_path / WORK).is_dir()


def test_lost_ranks_keep_their_kind_and_say_how_to_go_on(tmp_path: Path) -> None:
    with pytest.raises(RanksLost, match=r"^gone; .* --resume goes on"):
        run(tmp_path, finish_a_block, RanksLost("gone"))


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuses)
    with pytest.raises(SecateurError, match="can't be written"), Workspace(tmp_path / "out").open():
        pass
    assert names(tmp_path) == set()
