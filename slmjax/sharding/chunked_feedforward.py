"""The feed-forward sub-layer for training in little memory: a chunk of tokens at a time, weights gathered once.

Its arrays of [tokens, F] are the largest of a layer. Here they never exist for more than a chunk: the forward pass
keeps only its input, and the backward pass rebuilds each chunk's products, as rematerialization would for all at once.
Gradients of the weights are summed over the chunks in float32 and cross the network once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from slmjax.models.execution import FeedForwardFn
from slmjax.sharding.mesh import BATCH, WEIGHTS
from slmjax.sharding.rules import fit_spec, rule_for

CHUNK_BYTES = 2**25  # of one [tokens, F] array on a device; not measured against other sizes


class Weights(NamedTuple):
    """The weights of one sub-layer; None where the family has none. Kernels are [in, out], float32 as they are kept."""

    up: Any  # [D, F]
    down: Any  # [F, D]
    gate: Any  # [D, F]
    up_bias: Any = None  # [F]
    down_bias: Any = None  # [D]
    gate_bias: Any = None  # [F]


TOKENS = P(BATCH, "sequence", None)
_SPECS = Weights(
    *(rule_for(f"{name}_proj/kernel") for name in ("up", "down", "gate")),
    *(rule_for(f"{name}_proj/bias") for name in ("up", "down", "gate")),
)


def chunked_feedforward(mesh: Mesh | None, chunk_bytes: int = CHUNK_BYTES) -> FeedForwardFn:
    """The `Execution.feedforward` of a mesh (None: one device)."""

    def run(activation, x_BTD, up, down, gate):
        kernels, biases = zip(up, down, gate, strict=True)
        return _feedforward(mesh, chunk_bytes, activation, x_BTD, Weights(*kernels, *biases))

    return run


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _feedforward(mesh: Mesh | None, chunk_bytes: int, activation: Callable, x_BTD: jax.Array, weights: Weights):
    def device(x, weights):
        weights = shards.gather(weights, x.dtype)
        chunks = _chunked(x, weights.up.shape[1], chunk_bytes)
        y = jax.lax.map(lambda x_ND: activation(*_products(x_ND, weights)) @ weights.down, chunks)
        return shards.complete(y.reshape(x.shape), weights.down_bias)

    shards = _Shards(mesh, weights)
    return shards.run(device, in_specs=(TOKENS, shards.specs), out_specs=TOKENS)(x_BTD, weights)


def _forward(mesh, chunk_bytes, activation, x_BTD, weights):
    return _feedforward(mesh, chunk_bytes, activation, x_BTD, weights), (x_BTD, weights)


def _backward(mesh, chunk_bytes, activation, saved, dy_BTD):
    def device(x, dy, weights):
        weights = shards.gather(weights, x.dtype)
        F = weights.up.shape[1]

        def body(dweights, piece):
            x_ND, dy_ND = piece
            dx, more = _backward_chunk(activation, x_ND, dy_ND, weights)
            return jax.tree.map(jnp.add, dweights, more), dx

        zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), weights)
        dweights, dx = jax.lax.scan(body, zeros, (_chunked(x, F, chunk_bytes), _chunked(dy, F, chunk_bytes)))
        return shards.complete(dx.reshape(x.shape)), shards.scatter(dweights, x.dtype)

    x_BTD, weights = saved
    shards = _Shards(mesh, weights)
    run = shards.run(device, in_specs=(TOKENS, TOKENS, shards.specs), out_specs=(TOKENS, shards.specs))
    dx_BTD, dweights = run(x_BTD, dy_BTD, weights)
    return dx_BTD, jax.tree.map(lambda d, w: d.astype(w.dtype), dweights, weights)


_feedforward.defvjp(_forward, _backward)


def _products(x_ND: jax.Array, w: Weights) -> tuple[jax.Array, ...]:
    """(up,) or (gate, up), [N, F] each."""
    up = x_ND @ w.up if w.up_bias is None else x_ND @ w.up + w.up_bias
    if w.gate is None:
        return (up,)
    return (x_ND @ w.gate if w.gate_bias is None else x_ND @ w.gate + w.gate_bias), up


def _backward_chunk(activation: Callable, x_ND: jax.Array, dy_ND: jax.Array, w: Weights) -> tuple[jax.Array, Weights]:
    """Gradients of one chunk: dx [N, D] in the compute dtype, the weights' in float32."""
    h_NF, pullback = jax.vjp(activation, *_products(x_ND, w))
    *dgate_NF, dup_NF = pullback(dy_ND @ w.down.T)
    dx_ND = dup_NF @ w.up.T

    def outer(a_ND, b_NE):
        return jnp.matmul(a_ND.T, b_NE, preferred_element_type=jnp.float32)

    def total(b_NE, bias):
        return None if bias is None else jnp.sum(b_NE, axis=0, dtype=jnp.float32)

    dweights = Weights(
        up=outer(x_ND, dup_NF),
        down=outer(h_NF, dy_ND),
        gate=None,
        up_bias=total(dup_NF, w.up_bias),
        down_bias=total(dy_ND, w.down_bias),
    )
    if w.gate is not None:
        dx_ND += dgate_NF[0] @ w.gate.T
        dweights = dweights._replace(gate=outer(x_ND, dgate_NF[0]), gate_bias=total(dgate_NF[0], w.gate_bias))
    return dx_ND, dweights


def _chunked(x_BTD: jax.Array, ffn_dim: int, chunk_bytes: int) -> jax.Array:
    """[chunks, tokens of a chunk, D]: the fewest equal chunks whose [tokens, F] stays within the bytes."""
    x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
    N = x_ND.shape[0]
    chunks = min(N, -(-N * ffn_dim * x_ND.dtype.itemsize // chunk_bytes))
    while N % chunks:
        chunks += 1
    return x_ND.reshape(chunks, N // chunks, -1)


class _Shards:
    """How the weights lie on the mesh, and what crosses the network; without a mesh nothing does."""

    def __init__(self, mesh: Mesh | None, weights: Weights):
        self.mesh = mesh
        self.specs: Any = None
        if mesh is not None:
            self.specs = jax.tree.map(
                lambda w, spec: fit_spec(spec, w.shape, mesh),
                weights,
                Weights(*(None if w is None else spec for w, spec in zip(weights, _SPECS, strict=True))),
            )

    def run(self, device: Callable, *, in_specs: Any, out_specs: Any) -> Callable:
        if self.mesh is None:
            return device
        return jax.shard_map(device, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)

    def gather(self, weights: Weights, dtype: Any) -> Weights:
        """A device's shards in the compute dtype, whole but for the tensor axis. Cast first: half the bytes."""
        # The barrier keeps the compiler from casting all layers at once before the scan over them begins.
        weights = jax.tree.map(lambda w: w.astype(dtype), jax.lax.optimization_barrier(weights))
        if self.mesh is None:
            return weights

        def whole(w, spec):
            if WEIGHTS not in spec:
                return w
            return jax.lax.all_gather(w, WEIGHTS, axis=spec.index(WEIGHTS), tiled=True)

        return jax.tree.map(whole, weights, self.specs)

    def complete(self, y_BTD: jax.Array, bias_D: jax.Array | None = None) -> jax.Array:
        """The sum of what the devices along the tensor axis found, each with its own part of F."""
        if self.mesh is not None and "tensor" in self.specs.up:
            y_BTD = jax.lax.psum(y_BTD, "tensor")
        return y_BTD if bias_D is None else y_BTD + bias_D

    def scatter(self, dweights: Weights, dtype: Any) -> Weights:
        """Gradients summed over all tokens, each device its shard; they cross the network in the compute dtype."""
        if self.mesh is None:
            return dweights

        def own(d, spec):
            d = d.astype(dtype)
            if WEIGHTS not in spec:
                return jax.lax.psum(d, (*BATCH, "sequence"))
            d = jax.lax.psum_scatter(d, WEIGHTS, scatter_dimension=spec.index(WEIGHTS), tiled=True)
            return jax.lax.psum(d, "data")

        return jax.tree.map(own, dweights, self.specs)
