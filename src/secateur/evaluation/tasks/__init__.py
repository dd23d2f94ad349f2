"""What a model is worth on tasks: questions with right answers, item by item."""

from secateur.evaluation.tasks.run import beside, evaluate_tasks

__all__ = ["beside", "evaluate_tasks"]
