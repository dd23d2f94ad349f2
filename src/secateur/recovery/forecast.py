"""What a recovery will cost, said before it starts: tokens, operations, memory, and time by measured steps."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.report import numbers as fmt
from secateur.report.schema.recovery import TrainingForecast

# Operations of a training step per operation of a forward pass: one forward, and backward one for the activations and
# one for the weights; frozen weights need no gradient. Recomputed activations are one forward more.
PASSES = {"full": 3, "distill": 3, "lora": 2}


@dataclass(frozen=True)
class Forecast:
    """Of the whole training.

    Args:
        tokens: that are trained on.
        flops: multiply and add apart, attention over the context left out; the teacher's passes included.
        memory_bytes: the most that the measured steps needed.
        seconds_per_step: measured.
        seconds: what is left from here on, range test and looks included.
    """

    tokens: int
    flops: int
    memory_bytes: int
    seconds_per_step: float
    seconds: float

    def line(self) -> str:
        """For people."""
        return (
            f"forecast: {fmt.short(self.tokens)} tokens, {fmt.short(self.flops)} FLOPs, "
            f"{fmt.size(self.memory_bytes)} of memory, {fmt.seconds(self.seconds_per_step)} a step, "
            f"{fmt.seconds(self.seconds)} in all"
        )


def operations(forward: int, teacher_forward: int, tokens: int, how: str, checkpointing: bool) -> int:
    """Floating point operations of training on `tokens`.

    Args:
        forward, teacher_forward: operations of a forward pass of one token; 0 for a teacher that isn't run.
    """
    return tokens * (forward * (PASSES[how] + checkpointing) + teacher_forward)


def weights_bytes(parameters: int, trained: int, teacher: int, teacher_width: int) -> int:
    """Bytes of weights, gradients and AdamW's two moments in fp32, and of a teacher's weights."""
    return 4 * parameters + 12 * trained + teacher_width * teacher


def as_dict(forecast: Forecast) -> TrainingForecast:
    """For the report."""
    return {
        "tokens": forecast.tokens,
        "flops": forecast.flops,
        "memory_bytes": forecast.memory_bytes,
        "seconds_per_step": forecast.seconds_per_step,
        "seconds": forecast.seconds,
    }
