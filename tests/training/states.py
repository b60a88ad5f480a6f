"""States of every kind of array, checkpoints of them, and damage."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from slmjax.training.checkpoints.checkpointer import Checkpointer


class Moments(NamedTuple):
    count: jax.Array
    mu: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    step: jax.Array
    params: Any
    opt_state: Any
    ema: Any
    rng: jax.Array


def make_state(seed: int, mesh: Mesh | None = None, *axes: str) -> State:
    """All that a training state may hold: bfloat16, scalars, named tuples, None, a typed key, sharded arrays."""
    mesh = mesh or Mesh(np.array(jax.devices()[:1]), ("fsdp",))
    keys = iter(jax.random.split(jax.random.key(seed), 4))
    place = lambda x, *axes: jax.device_put(x, NamedSharding(mesh, P(*axes)))  # noqa: E731
    kernel, mu = (place(jax.random.normal(next(keys), (64, 128)), *axes) for _ in range(2))
    return State(
        step=place(jnp.int32(seed)),
        params={"segment_0": {"kernel": kernel}, "scale": place(jnp.arange(8, dtype=jnp.bfloat16))},
        opt_state=(Moments(place(jnp.int32(3)), {"kernel": mu}), (), None),
        ema=None,
        rng=place(jax.random.fold_in(jax.random.key(7), seed)),
    )


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same(a, b) -> None:
    """Bitwise, with the tree's structure and the arrays' types."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save(checkpointer: Checkpointer, *steps: int, **metrics: float) -> None:
    for step in steps:
        checkpointer.save(step, make_state(step), position={"n": step}, run_config={"lr": 0.1}, metrics=metrics)
    checkpointer.wait()


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(bytes(content))


def largest_file(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
