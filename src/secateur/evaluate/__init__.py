"""What a model is worth: quality on held-out text, speed, memory and size."""

from secateur.evaluate.evaluation import evaluate
from secateur.evaluate.generate import generate
from secateur.evaluate.loading import load
from secateur.evaluate.perplexity import Score, refuse_encoder
from secateur.evaluate.windows import context_length, evaluation_length, windows

__all__ = [
    "Score",
    "context_length",
    "evaluate",
    "evaluation_length",
    "generate",
    "load",
    "refuse_encoder",
    "windows",
]
