"""Training steps on this device against the same steps in float32 on the CPU: loss, gradient norm, parameters."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import numpy as np
import subjects
from reporting import Report, Values

STEPS = 3
# Relative differences: of the losses and gradient norms of all steps, and of what the steps added to the parameters.
# Adam divides each gradient by its own size, so that rounding turns the sign of small ones: hence the wide last one.
TOLERANCES = {"float32": (1e-5, 1e-4, 2e-2), "bfloat16": (2e-3, 2e-2, 0.25)}
SECONDS = 40.0


def tested_model(*, dry_run: bool) -> subjects.ModelConfig:
    """Grouped heads, every other layer with a window."""
    size: dict[str, Any] = {"num_layers": 4, "embed_dim": 256, "num_heads": 8, "num_kv_heads": 2, "head_dim": 64}
    if dry_run:
        size |= {"num_layers": 2, "embed_dim": 64, "num_heads": 2, "num_kv_heads": 1}
    return subjects.ModelConfig(
        vocab_size=512, ffn_dim=2 * size["embed_dim"], window=48, layer_pattern=("local", "global"), **size
    )


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What some steps from the common start led to, on the host."""

    losses: np.ndarray
    norms: np.ndarray
    params: list[np.ndarray]


def take_steps(lm: subjects.ModelProgram, step: Any, start: Any, batches: list[dict[str, np.ndarray]]) -> Outcome:
    """The compiled step on each batch from `start`, a state in the host's memory, which is left as it is."""
    state = jax.device_put(start, jax.tree.map(lambda leaf: leaf.sharding, lm.program.state))
    losses, norms = [], []
    for batch in batches:
        state, metrics = step(state, subjects.to_devices(batch, lm.batch))
        losses.append(float(metrics["loss"]))
        norms.append(float(metrics["gradient_norm"]))
    return Outcome(np.array(losses), np.array(norms), [np.asarray(leaf) for leaf in jax.tree.leaves(state.params)])


def distance(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """The Euclidean norm of the difference over all arrays."""
    return float(np.sqrt(sum(np.sum(np.square(x.astype(np.float64) - y)) for x, y in zip(a, b, strict=True))))


def largest(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest relative difference."""
    return float(np.max(np.abs(got - expected) / np.abs(expected)))


def check(report: Report, *, dry_run: bool) -> None:
    """float32 (XLA's attention) and bfloat16 (the platform's kernel) against the CPU; whether a repeat is the same."""
    config = tested_model(dry_run=dry_run)
    rows, length = (2, 64) if dry_run else (4, 256)
    batches = [subjects.packed_batch(config.vocab_size, rows, length, seed=seed) for seed in range(STEPS)]
    build = partial(subjects.training_program, config, rows=rows, length=length)
    reference: dict[str, Any] = {}
    last: dict[str, Any] = {}

    def on_the_cpu() -> Values:
        lm = build(dtype="float32", device=jax.devices("cpu")[0])
        start = jax.tree.map(np.asarray, lm.program.initialize())
        step = lm.program.compile()[subjects.TRAIN]
        reference.update(start=start, outcome=take_steps(lm, step, start, batches))
        return {"loss": float(reference["outcome"].losses[-1])}

    def compare(dtype: str) -> Values:
        with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
            lm = build(dtype=dtype)
            step = lm.program.compile()[subjects.TRAIN]
        got = take_steps(lm, step, reference["start"], batches)
        last.update(lm=lm, step=step, params=got.params)
        expected, limits = reference["outcome"], TOLERANCES[dtype]
        moved = distance(expected.params, [np.asarray(leaf) for leaf in jax.tree.leaves(reference["start"].params)])
        differences = (
            largest(got.losses, expected.losses),
            largest(got.norms, expected.norms),
            distance(got.params, expected.params) / moved,
        )
        values: Values = {"passed": all(d <= limit for d, limit in zip(differences, limits, strict=True))}
        for name, difference, limit in zip(("loss", "gradient norm", "update"), differences, limits, strict=True):
            values |= {name: difference, f"{name}, tolerance": limit}
        return values

    def repeat() -> Values:
        again = take_steps(last["lm"], last["step"], reference["start"], batches)
        return {"bit for bit the same": distance(again.params, last["params"]) == 0.0}

    if report.record("training on the CPU, float32: the reference", on_the_cpu, needs=SECONDS) is None:
        return
    if not dry_run:  # there the reference itself
        report.record("training in float32", partial(compare, "float32"), needs=SECONDS)
    if report.record("training in bfloat16", partial(compare, "bfloat16"), needs=SECONDS):
        report.record("training in bfloat16, again", repeat)
