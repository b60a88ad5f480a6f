"""The config section `forgetting`: what is measured outside the domain, and what holds the network to its base."""

from __future__ import annotations

import math
from dataclasses import dataclass

from slmjax.errors import UserError

_STRENGTHS = ("l2_sp", "ewc", "kl")


@dataclass(frozen=True)
class ForgettingConfig:
    """Measured whenever a model is fine-tuned; all that works against forgetting is off until it is asked for.

    A tenth of the general corpus is held out and measured; replay, the Fisher information and the general rows of `kl`
    are of the rest.
    """

    corpus: str = "python:stdlib?max_megabytes=1"  # general text: a path as of data.sources; "": none
    text_field: str = "text"  # where its records have fields, the one that is the text
    tokens: int = 4096  # of it are measured before training and at each evaluation, in whole rows; 0: no measuring
    tasks: tuple[str, ...] = ()  # scored too, with the settings of training.tasks
    replay: float = 0.0  # share of the training rows that are general text
    l2_sp: float = 0.0  # times half the squared distance of the base's weights from their start (arXiv:1802.01483)
    ewc: float = 0.0  # times half the squared distance, weighted by the diagonal Fisher information (arXiv:1612.00796)
    fisher_rows: int = 64  # rows of general text that it is estimated on
    kl: float = 0.0  # times the mean of KL(base || network) over tokens (arXiv:1606.09282)
    kl_on: str = "training"  # the learned tokens, or "general": the rows of replay, which then are not learned as text

    def __post_init__(self):
        for name in (*_STRENGTHS, "replay"):
            if not (math.isfinite(value := getattr(self, name)) and value >= 0):
                raise UserError(f"forgetting.{name}={value} must be 0 (off) or above.")
        if self.replay >= 1:
            raise UserError(f"forgetting.replay={self.replay} is a share of the rows: it must be below 1.")
        if self.tokens < 0 or self.fisher_rows < 1:
            raise UserError("forgetting.tokens must be 0 (off) or above, and forgetting.fisher_rows at least 1.")
        if self.kl_on not in ("training", "general"):
            raise UserError(f"forgetting.kl_on is {self.kl_on!r}; choose training or general.")
        if self.kl and self.kl_on == "general" and not self.replay:
            raise UserError(
                "forgetting.kl_on=general is on rows of general text: set forgetting.replay to their share."
            )
        if (self.replay or self.ewc) and not self.corpus:
            raise UserError("forgetting.replay and forgetting.ewc need general text: set forgetting.corpus.")

    @property
    def strengths(self) -> dict[str, float]:
        """Strengths of the terms that hold the network to its base, those that are on."""
        return {name: getattr(self, name) for name in _STRENGTHS if getattr(self, name)}

    @property
    def general_rows_are_held(self) -> bool:
        """Whether the rows of replay are held to the base's predictions instead of learned."""
        return bool(self.kl) and self.kl_on == "general"
