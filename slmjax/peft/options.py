"""How what is added to a network is run: the numbers that no array holds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Static settings of what is added."""

    dropout: float = 0.0  # of what enters LoRA's A
    activation: str = "relu"  # of bottleneck adapters
    scale: float = 1.0  # of their output
    parallel: bool = False  # they see the sub-layer's input and not its output
    neftune: float = 0.0  # alpha of the noise on embeddings, where there is an rng


PLAIN = Options()
