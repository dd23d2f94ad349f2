"""A run that is aimed at a task: what it calibrates on, and what it is judged on.

Of the task's file every second question, from the first on, is calibrated on with its answer; only answers count
where a loss is taken. The others are held out, and judge. So that the rest of the model isn't given up, a share of
the sequences stays with general text.
"""

from __future__ import annotations

from secateur.config.configuration import preset_of
from secateur.config.fields import Settings
from secateur.data.sources import shares_of

LEARNED, HELD_OUT = "@even", "@odd"


def calibration_of_run(settings: Settings) -> str:
    """The text to calibrate on, as `shares_of` reads it."""
    if settings.for_task is None:
        return settings.calibrate
    task, general = f"task:{settings.for_task}{LEARNED}", settings.keep_general
    return task if general == 0 else f"{task}:{1 - general:g},{settings.calibrate}:{general:g}"


def general_of_run(settings: Settings) -> float:
    """Sequences of general text for each one of the calibration text, where that is one text of the user's."""
    if settings.general_text is not None:
        return settings.general_text
    mixed = settings.for_task is not None or len(shares_of(settings.calibrate)) > 1
    own = settings.calibrate == "self" or settings.calibrate.startswith("stdlib")
    return 0.0 if mixed or own else preset_of(settings).general


def tasks_of_run(settings: Settings) -> str | None:
    """The tasks that judge a run: those named, and what is held out of the one that it is aimed at."""
    if settings.for_task is None:
        return settings.tasks
    held_out = f"{settings.for_task}{HELD_OUT}"
    return held_out if settings.tasks is None else f"{held_out},{settings.tasks}"
