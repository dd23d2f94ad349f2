"""A run that is aimed at a task: what it calibrates on, and what it is judged on.

Of the task's file every second question, from the first on, is calibrated on with its answer; only answers count
where a loss is taken. The others are held out, and judge. So that the rest of the model isn't given up, a share of
the sequences stays with general text.
"""

from __future__ import annotations

from secateur.config.fields import Settings

LEARNED, HELD_OUT = "@even", "@odd"


def calibration_of_run(settings: Settings) -> str:
    """The text to calibrate on, as `shares_of` reads it."""
    if settings.for_task is None:
        return settings.calibrate
    task, general = f"task:{settings.for_task}{LEARNED}", settings.keep_general
    return task if general == 0 else f"{task}:{1 - general:g},{settings.calibrate}:{general:g}"


def tasks_of_run(settings: Settings) -> str | None:
    """The tasks that judge a run: those named, and what is held out of the one that it is aimed at."""
    if settings.for_task is None:
        return settings.tasks
    held_out = f"{settings.for_task}{HELD_OUT}"
    return held_out if settings.tasks is None else f"{held_out},{settings.tasks}"
