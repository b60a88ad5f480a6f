"""Checkpoints: what a run is continued from."""

from slmjax.moved import names_of

__getattr__ = names_of("slmjax.training.checkpoints.checkpointer", only=("Checkpointer", "Restored"))
