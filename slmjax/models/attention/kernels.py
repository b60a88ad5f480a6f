"""The one door to attention: which backend takes a call, splash on TPU, cuDNN on GPU, XLA everywhere.

Every backend keeps the contract of `contract.py` and passes the same test of packing isolation.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
from jax.sharding import Mesh

from slmjax.errors import UserError
from slmjax.models.attention.contract import AttentionFn, Backend, Mask, OverSequence, Scores, SequenceCall
from slmjax.models.attention.xla import xla_attention

__all__ = ["AttentionFn", "WithFallback", "attention_for", "xla_attention"]

IMPLEMENTATIONS = ("auto", "xla", "splash", "cudnn")


@dataclass(frozen=True)
class WithFallback:
    """A backend for the calls that it covers, XLA for the others: decoding steps, and what the backend leaves out."""

    backend: Backend

    def __call__(
        self, q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, mask: Mask, scores: Scores
    ) -> jax.Array:
        """Attention [B, T, H, K] (see `AttentionFn`)."""
        attend: AttentionFn = self.backend if self.backend.supports(mask, scores, q_BTHK) else xla_attention
        return attend(q_BTHK, k_BSGK, v_BSGK, mask, scores)

    def over_sequence(self, mesh: Mesh, mask: Mask, scores: Scores, q_BTHK: jax.Array) -> SequenceCall:
        """The backend's call for a part of the query positions where it has one that covers this, else XLA's."""
        covers = self.backend.supports(mask, scores, q_BTHK, mesh.shape["sequence"])
        backend = self.backend if covers and isinstance(self.backend, OverSequence) else xla_attention
        return backend.over_sequence(mesh, mask, scores, q_BTHK)


def attention_for(platform: str, implementation: str = "auto") -> AttentionFn:
    """The attention of a platform ("tpu", "gpu", "cpu") or a named one ("xla", "splash", "cudnn")."""
    if implementation == "auto":
        implementation = {"tpu": "splash", "gpu": "cudnn"}.get(platform, "xla")
    if implementation == "xla":
        return xla_attention
    if implementation == "splash":  # imported here: Pallas takes a second
        from slmjax.models.attention.splash import splash_attention

        return WithFallback(splash_attention)
    if implementation == "cudnn":
        from slmjax.models.attention.cudnn import cudnn_attention

        return WithFallback(cudnn_attention)
    raise UserError(f"training.attention={implementation!r} is not known: choose one of {', '.join(IMPLEMENTATIONS)}.")
