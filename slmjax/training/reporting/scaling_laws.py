"""The scaling law of Chinchilla: what a run's model and tokens are, against the best split of the same FLOPs."""

from __future__ import annotations

import dataclasses

from slmjax.quantities import format_count


@dataclasses.dataclass(frozen=True)
class ScalingLaw:
    """loss(N, D) = E + A / N^alpha + B / D^beta, in nats per token of the law's own data and tokenizer."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, num_params: float, tokens: float) -> float:
        """The law's estimate of the loss after one pass over `tokens`."""
        return self.E + self.A / num_params**self.alpha + self.B / tokens**self.beta

    def optimal_params(self, flops: float) -> float:
        """The N that minimizes the loss at flops = 6 N D (Hoffmann et al., eq. 4)."""
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        return scale * (flops / 6) ** (self.beta / (self.alpha + self.beta))


BESIROGLU = ScalingLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)  # arXiv:2404.10102, a corrected fit
_SMALLEST_FITTED = 44e6  # parameters of the smallest model that the law was fitted to


@dataclasses.dataclass(frozen=True)
class ChinchillaReport:
    """The place of a run against the compute-optimal point; `str` makes the sentence."""

    num_params: int
    tokens: int
    tokens_per_param: float
    multiple_of_chinchilla: float  # of 20 tokens per parameter
    flops: float  # 6 N D
    loss: float  # the law's estimate, nats per token
    optimal_params: float  # at the same FLOPs
    optimal_tokens: float
    optimal_loss: float

    def __str__(self) -> str:
        times = f"{self.multiple_of_chinchilla:,.{0 if self.multiple_of_chinchilla >= 10 else 2}f}"
        sentence = (
            f"{format_count(self.tokens)} tokens for {format_count(self.num_params)} parameters: "
            f"{self.tokens_per_param:,.1f} tokens per parameter, {times}x Chinchilla's 20. The compute-optimal model "
            f"for the same {self.flops:.2g} FLOPs has about {format_count(self.optimal_params)} parameters and "
            f"{format_count(self.optimal_tokens)} tokens"
        )
        if self.num_params < _SMALLEST_FITTED or self.optimal_params < _SMALLEST_FITTED:
            return f"{sentence} (the law was fitted to models of 44M to 16B parameters: a guess at this size)."
        return f"{sentence} (estimated loss {self.optimal_loss:.3f}, against {self.loss:.3f} nats per token here)."


def chinchilla_report(num_params: int, tokens: int) -> ChinchillaReport:
    """Compare a run of `tokens` on a model of `num_params` with the compute-optimal one, by `BESIROGLU`.

    The estimated losses are for the law's data and tokenizer: they compare plans, and do not predict this run's loss.
    """
    flops = 6.0 * num_params * tokens
    best = BESIROGLU.optimal_params(flops)
    best_tokens = flops / (6 * best)
    per_param = tokens / num_params
    return ChinchillaReport(
        num_params=num_params,
        tokens=tokens,
        tokens_per_param=per_param,
        multiple_of_chinchilla=per_param / 20,
        flops=flops,
        loss=BESIROGLU.loss(num_params, tokens),
        optimal_params=best,
        optimal_tokens=best_tokens,
        optimal_loss=BESIROGLU.loss(best, best_tokens),
    )
