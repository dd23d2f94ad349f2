"""What a model is worth: quality on held-out text, speed, memory and size."""

from secateur.evaluation.agreement import agree, evaluate_any
from secateur.evaluation.evaluation import evaluate
from secateur.evaluation.generate import generate
from secateur.evaluation.loading import load
from secateur.evaluation.perplexity import Score, refuse_encoder
from secateur.evaluation.windows import context_length, evaluation_length, windows

__all__ = [
    "Score",
    "agree",
    "context_length",
    "evaluate",
    "evaluate_any",
    "evaluation_length",
    "generate",
    "load",
    "refuse_encoder",
    "windows",
]
