"""Linear cross-entropy: from hidden states to the loss without ever holding the logits of all tokens.

Tokens go through the head a chunk at a time. When a gradient is wanted, the forward pass computes it in the same visit
to each chunk's logits (loss is linear in its own cotangent), so the logits are built once: three products instead of
the four of a rematerialized loss. On a mesh each device works on its own tokens with the gathered head, and the head's
gradient crosses the network once, not once a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from slmjax.models.config import ModelConfig
from slmjax.models.transformer import scale_logits
from slmjax.objectives.chunks import LOGITS_BYTES, chunk_logits, chunk_size, cut
from slmjax.sharding.activations import divides
from slmjax.sharding.mesh import BATCH, WEIGHTS

# Which gradients the forward pass computes; a frozen head needs none, nor an array of its size.
NO_GRADS, HIDDEN_GRADS, ALL_GRADS = "none", "hidden", "all"


@dataclass(frozen=True)
class HeadLoss:
    """The settings of a loss of the head, which are fixed when it is compiled."""

    config: ModelConfig
    z_loss: float = 0.0
    mesh: Mesh | None = None
    logits_bytes: int = LOGITS_BYTES

    @property
    def on_cpu(self) -> bool:
        """Whether it runs on one device, and that is a CPU."""
        mesh = self.mesh
        return mesh is not None and mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"


class LossSums(NamedTuple):
    """Sums over tokens of weight * quantity, float32 scalars."""

    loss: jax.Array  # what is minimized: nll + z_loss
    nll: jax.Array  # negative log-likelihood, nats
    correct: jax.Array  # the target is the most likely token


def _chunk(loss: HeadLoss, x_NE, kernel_EV, bias_V, targets_N, weights_N, *, vocab_axis: str | None, grads: str):
    """Loss sums of one chunk, and the gradients of their loss that `grads` names: (sums, (dx, dkernel, dbias)).

    vocab_axis: the mesh axis over which the vocabulary is split; None: it is whole.
    """
    logits_NV, pullback = jax.vjp(partial(scale_logits, loss.config), chunk_logits(x_NE, kernel_EV, bias_V))

    # With the vocabulary split over devices, maximum, normalizer and target logit are completed across them.
    V = kernel_EV.shape[1]
    local_N = targets_N
    top_N = jnp.max(logits_NV, axis=-1)
    if vocab_axis is not None:
        local_N = targets_N - jax.lax.axis_index(vocab_axis) * V
        top_N = jax.lax.pmax(top_N, vocab_axis)
    exp_NV = jnp.exp(logits_NV - top_N[:, None])
    sum_N = jnp.sum(exp_NV, axis=-1)
    mine_N = (local_N >= 0) & (local_N < V)
    target_N = jnp.take_along_axis(logits_NV, jnp.clip(local_N, 0, V - 1)[:, None], axis=-1)[:, 0]
    target_N = jnp.where(mine_N, target_N, 0.0)
    if vocab_axis is not None:
        sum_N, target_N = jax.lax.psum((sum_N, target_N), vocab_axis)
    lse_N = top_N + jnp.log(sum_N)
    nll = jnp.sum(weights_N * (lse_N - target_N))
    penalized = nll + loss.z_loss * jnp.sum(weights_N * jnp.square(lse_N))
    sums = LossSums(penalized, nll, jnp.sum(weights_N * (target_N >= top_N)))
    if grads == NO_GRADS:
        return sums, None

    # d loss / d logits = w (1 + 2 z lse) softmax - w onehot(target)
    slope_N = weights_N * (1.0 + 2.0 * loss.z_loss * lse_N) / sum_N
    onehot_NV = jnp.arange(V)[None, :] == local_N[:, None]
    dlogits_NV = exp_NV * slope_N[:, None] - jnp.where(onehot_NV, weights_N[:, None], 0.0)
    (draw_NV,) = pullback(dlogits_NV)
    wants_head = grads == ALL_GRADS
    dbias_V = jnp.sum(draw_NV, axis=0) if bias_V is not None and wants_head else None
    draw_NV = draw_NV.astype(x_NE.dtype)
    dx_NE = jnp.matmul(draw_NV, kernel_EV.T, preferred_element_type=jnp.float32)
    if vocab_axis is not None:
        dx_NE = jax.lax.psum(dx_NE, vocab_axis)
    # XLA's CPU backend takes twice as long for this product (V = 49,152) where it folds the transpose into it.
    x_EN = jax.lax.optimization_barrier(x_NE.T) if loss.on_cpu else x_NE.T
    dkernel_EV = jnp.matmul(x_EN, draw_NV, preferred_element_type=jnp.float32) if wants_head else None
    return sums, (dx_NE.astype(x_NE.dtype), dkernel_EV, dbias_V)


def _chunks(loss: HeadLoss, x_BTE, kernel_EV, bias_V, targets_BT, weights_BT, *, vocab_axis: str | None, grads: str):
    """All chunks of one device's tokens: (sums, (dx [B, T, E], dkernel [E, V], dbias [V]) or None)."""
    x_NE, targets_N, weights_N = (a.reshape(-1, *a.shape[2:]) for a in (x_BTE, targets_BT, weights_BT))
    N, E = x_NE.shape
    chunk = chunk_size(N, kernel_EV.shape[1], loss.logits_bytes)
    run = partial(_chunk, loss, vocab_axis=vocab_axis, grads=grads)
    if chunk >= N:
        sums, gradients = run(x_NE, kernel_EV, bias_V, targets_N, weights_N)
        return sums, None if gradients is None else (gradients[0].reshape(x_BTE.shape), *gradients[1:])

    def body(carry, piece):
        x, targets, weights = piece
        sums, gradients = run(x, kernel_EV, bias_V, targets, weights)
        if gradients is None:
            return jax.tree.map(jnp.add, carry, (sums, None)), None
        dx, *dweights = gradients
        return jax.tree.map(jnp.add, carry, (sums, dweights)), dx

    zeros = LossSums(*(jnp.zeros((), jnp.float32) for _ in range(3)))
    dweights: list[jax.Array | None] | None = None if grads == NO_GRADS else [None, None]
    if grads == ALL_GRADS:
        dweights = [jnp.zeros(kernel_EV.shape, jnp.float32), None if bias_V is None else jnp.zeros(bias_V.shape)]
    pieces = tuple(cut(a_N, chunk) for a_N in (x_NE, targets_N, weights_N))
    (sums, dweights), dx = jax.lax.scan(body, (zeros, dweights), pieces)
    if grads == NO_GRADS:
        return sums, None
    return sums, (dx.reshape(-1, E)[:N].reshape(x_BTE.shape), *dweights)  # type: ignore[misc]


def _compute(loss: HeadLoss, grads: str, x_BTE, kernel_EV, bias_V, targets_BT, weights_BT):
    """Loss sums over all tokens of all devices, with gradients in the shapes (and shardings) of the inputs."""
    kernel = kernel_EV.astype(x_BTE.dtype)  # cast before it is gathered: half the bytes
    if loss.mesh is None or loss.mesh.size == 1:
        return _chunks(loss, x_BTE, kernel, bias_V, targets_BT, weights_BT, vocab_axis=None, grads=grads)
    return _on_mesh(loss, loss.mesh, grads, x_BTE, kernel, bias_V, targets_BT, weights_BT)


def _on_mesh(loss: HeadLoss, mesh: Mesh, grads: str, x_BTE, kernel_EV, bias_V, targets_BT, weights_BT):
    """`_compute` on several devices: each has its own tokens, the gathered head and, on `tensor`, its vocabulary."""
    B, T, E = x_BTE.shape
    rows = BATCH if divides(mesh, BATCH, B) else None
    positions = "sequence" if divides(mesh, "sequence", T) else None
    vocab_axis = "tensor" if mesh.shape["tensor"] > 1 and divides(mesh, "tensor", kernel_EV.shape[1]) else None
    weight_axes = WEIGHTS if divides(mesh, WEIGHTS, E) else None
    token_axes = tuple(rows or ()) + ((positions,) if positions else ())
    kernel_spec, bias_spec = P(weight_axes, vocab_axis), P(vocab_axis)

    def device(x, kernel, bias, targets, weights):
        if weight_axes:
            kernel = jax.lax.all_gather(kernel, weight_axes, axis=0, tiled=True)
        sums, gradients = _chunks(loss, x, kernel, bias, targets, weights, vocab_axis=vocab_axis, grads=grads)
        sums = jax.lax.psum(sums, token_axes) if token_axes else sums
        if grads == NO_GRADS:
            return sums, None
        dx, dkernel, dbias = gradients
        if dkernel is None:
            return sums, (dx, None, None)
        if weight_axes and set(weight_axes) <= set(token_axes):
            dkernel = jax.lax.psum_scatter(dkernel, weight_axes, scatter_dimension=0, tiled=True)
            rest = tuple(a for a in token_axes if a not in weight_axes)
            dkernel = jax.lax.psum(dkernel, rest) if rest else dkernel
        else:
            dkernel = jax.lax.psum(dkernel, token_axes) if token_axes else dkernel
            if weight_axes:
                size = dkernel.shape[0] // (mesh.shape["fsdp"] * mesh.shape["sequence"])
                place = jax.lax.axis_index(weight_axes)
                dkernel = jax.lax.dynamic_slice_in_dim(dkernel, place * size, size, axis=0)
        if dbias is not None and token_axes:
            dbias = jax.lax.psum(dbias, token_axes)
        return sums, (dx, dkernel, dbias)

    tokens = P(rows, positions)
    in_specs = (P(rows, positions, None), kernel_spec, None if bias_V is None else bias_spec, tokens, tokens)
    head_specs = (kernel_spec, None if bias_V is None else bias_spec) if grads == ALL_GRADS else (None, None)
    grad_specs = None if grads == NO_GRADS else (P(rows, positions, None), *head_specs)
    sum_specs: Any = LossSums(P(), P(), P())  # type: ignore[arg-type]
    mapped = jax.shard_map(
        device,
        mesh=mesh,
        in_specs=in_specs,
        out_specs=(sum_specs, grad_specs),
        check_vma=False,  # type: ignore[arg-type]
    )
    return mapped(x_BTE, kernel_EV, bias_V, targets_BT, weights_BT)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loss_sums(loss: HeadLoss, x_BTE, kernel_EV, bias_V, targets_BT, weights_BT) -> LossSums:
    return _compute(loss, NO_GRADS, x_BTE, kernel_EV, bias_V, targets_BT, weights_BT)[0]


def _forward(loss: HeadLoss, x, kernel, bias, targets, weights):
    wanted = ALL_GRADS if kernel.perturbed or (bias is not None and bias.perturbed) else HIDDEN_GRADS
    values = (None if primal is None else primal.value for primal in (x, kernel, bias, targets, weights))
    sums, gradients = _compute(loss, wanted, *values)
    # The head's gradient is summed over the devices before the layers' backward pass begins: the scheduler would put
    # that off to the end, and keep the whole [E, V] in float32 alive on every device until then.
    return sums, jax.lax.optimization_barrier(gradients)


def _backward(loss: HeadLoss, gradients: Any, cotangent: LossSums):
    if isinstance(cotangent.loss, SymbolicZero):  # the loss itself is not what is differentiated
        return None, None, None, None, None
    dx, dkernel, dbias = jax.tree.map(lambda g: (g * cotangent.loss).astype(g.dtype), gradients)
    return dx, dkernel, dbias, None, None


_loss_sums.defvjp(_forward, _backward, symbolic_zeros=True)


def linear_cross_entropy(
    x_BTE: jax.Array,
    kernel_EV: jax.Array,
    bias_V: jax.Array | None,
    targets_BT: jax.Array,
    weights_BT: jax.Array,
    *,
    config: ModelConfig,
    z_loss: float = 0.0,
    mesh: Mesh | None = None,
    logits_bytes: int = LOGITS_BYTES,
) -> LossSums:
    """Sums over tokens of w * (nll + z_loss * lse^2), w * nll and w * correct.

    Logits are x @ kernel + bias in float32, then the family's divisor and soft cap. Differentiable in x, kernel and
    bias, and through `loss` alone: `nll` and `correct` are measurements.

    Args:
        x_BTE: hidden states.
        kernel_EV: the head's kernel.
        bias_V: its bias; None: it has none.
        targets_BT: int32 in [0, V).
        weights_BT: float32.
        config: the network's, for the divisor and soft cap.
        z_loss: coefficient of the squared log-normalizer, as in PaLM (arXiv:2204.02311, section 5).
        mesh: the devices; None: one.
        logits_bytes: bound on the float32 logits that a device holds at once.
    """
    loss = HeadLoss(config, z_loss, mesh, logits_bytes)
    return _loss_sums(loss, x_BTE, kernel_EV, bias_V, targets_BT, weights_BT)
