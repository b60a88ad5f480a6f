"""Tasks that a model is scored on."""

from slmjax.moved import names_of

__getattr__ = names_of("slmjax.evaluation.tasks.registry", only=("check_tasks", "evaluate_tasks", "write_task_records"))
