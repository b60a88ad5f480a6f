"""LoRA (Hu et al. 2021, arXiv:2106.09685): y = x W + s x A B, with rsLoRA, DoRA, PiSSA and LoRA+.

Layers that are stacked in the base are stacked here: A [n, in, r], B [n, r, out] over the n layers that are adapted.
Where layers differ in rank, the smaller ones are filled up with zeros in A and in B, which get no gradient and so stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from slmjax.errors import UserError
from slmjax.models.config import ModelConfig
from slmjax.models.parameters import Params, flatten, unflatten
from slmjax.peft.config import LoraConfig
from slmjax.peft.options import Options
from slmjax.peft.targets import Array, choose, last_match, matrices_of

PISSA_ITERATIONS = 4  # q of Halko et al., who find 1 or 2 enough where singular values decay fast
PISSA_OVERSAMPLING = 8  # their p, which they advise to be 5 or 10


@dataclass(frozen=True)
class Adapted:
    """One weight (or a stack of them) that gets a low-rank term. Tuples have one entry for each adapted layer."""

    weight: Array
    indices: tuple[int, ...] = ()  # in the stack; () where there is no stack
    ranks: tuple[int, ...] = ()
    scales: tuple[float, ...] = field(default=(), compare=False)

    @property
    def lead(self) -> tuple[int, ...]:
        """The shape before that of one layer's arrays."""
        return (len(self.indices),) if self.weight.layers else ()


@dataclass(frozen=True, eq=False)
class Lora:
    """Low-rank terms of a network's weights, by the module's path; see `peft.method.Added`."""

    config: LoraConfig
    adapted: Mapping[str, Adapted]
    changes_at_start: ClassVar[bool] = False

    @property
    def options(self) -> Options:
        """How they are run."""
        return Options(dropout=self.config.dropout)

    @property
    def rate_factors(self) -> dict[str, float]:
        """LoRA+'s."""
        ratio = self.config.loraplus_lr_ratio
        return {"lora_b": ratio} if ratio != 1 else {}

    def init(self, base: Params, key: jax.Array) -> tuple[Params, Params]:
        """(trained, constants), float32: a fresh adapter that changes nothing.

        Constants are PiSSA's: the principal part that training starts from is taken off the base in every step, so the
        base itself is never changed (peft converts its residual bases to the same sum when it exports them).
        """
        flat = flatten(base)
        trained: dict[str, jax.Array] = {}
        constants: dict[str, jax.Array] = {}
        for number, (path, a) in enumerate(sorted(self.adapted.items())):
            (rows, columns), rank = a.weight.shape, max(a.ranks)
            used = jnp.arange(rank) < jnp.asarray(a.ranks).reshape(*a.lead, 1)  # [n, r], False where zeros fill up
            subkey = jax.random.fold_in(key, number)
            if self.config.init == "pissa":
                scales = jnp.asarray(a.scales).reshape(*a.lead, 1, 1)
                weight = matrix_of(flat, path)
                weight = weight[jnp.asarray(a.indices)] if a.lead else weight
                down, up = principal(weight / scales, rank, subkey)
                down, up = down * used[..., None, :], up * used[..., :, None]
                constants |= {f"{path}/lora_a": down, f"{path}/lora_b": up}
            elif path.rpartition("/")[2] in ("embedder", "position_embedder"):
                down = jnp.zeros((*a.lead, rows, rank))
                up = jax.random.normal(subkey, (*a.lead, rank, columns)) * used[..., :, None]
            else:
                shape = (*a.lead, rows, rank)
                if self.config.init == "gaussian":
                    down = jax.random.normal(subkey, shape) / rank
                else:
                    down = jax.random.uniform(subkey, shape, minval=-1.0, maxval=1.0) * rows**-0.5
                down, up = down * used[..., None, :], jnp.zeros((*a.lead, rank, columns))
            trained |= {f"{path}/lora_a": down, f"{path}/lora_b": up}
            if self.config.dora:
                norm = column_norm(matrix_of(flat, path))
                trained[f"{path}/dora_magnitude"] = norm[jnp.asarray(a.indices)] if a.lead else norm
        return unflatten(trained), unflatten(constants)

    def collection(self, trained: Params, constants: Params, base: Params) -> Params:
        """What the network sees: `lora_a`, `lora_b`, `lora_scale` (and `dora_magnitude`) for every layer of a stack.

        A layer that is not adapted has scale 0.
        """
        ours, start = flatten(trained), flatten(constants)
        seen: dict[str, jax.Array] = {}
        for path, a in self.adapted.items():
            leaves = {n: ours[f"{path}/{n}"] for n in ("lora_a", "lora_b", "dora_magnitude") if f"{path}/{n}" in ours}
            if f"{path}/lora_a" in start:
                leaves["lora_a"] = jnp.concatenate([leaves["lora_a"], start[f"{path}/lora_a"]], axis=-1)
                leaves["lora_b"] = jnp.concatenate([leaves["lora_b"], -start[f"{path}/lora_b"]], axis=-2)
            leaves["lora_scale"] = jnp.asarray(np.asarray(a.scales, np.float32).reshape(a.lead))
            if len(a.indices) < len(a.weight.layers):
                stack = len(a.weight.layers)
                filled = jnp.asarray(a.indices)
                leaves = {n: jnp.zeros((stack, *x.shape[1:])).at[filled].set(x) for n, x in leaves.items()}
            seen |= {f"{path}/{name}": leaf for name, leaf in leaves.items()}
        return unflatten(seen)


def plan(config: LoraConfig, model: ModelConfig, base: Params) -> Lora:
    """The low-rank terms of a network. `base` may be shapes. UserError for a target that matches nothing."""
    beyond = [layer for layer in config.layers if not 0 <= layer < model.num_layers]
    if beyond:
        raise UserError(f"peft.lora.layers has {beyond[0]}, but the network's layers are 0 to {model.num_layers - 1}.")
    weights = matrices_of(model, base)
    chosen = choose(
        weights,
        config.targets,
        where="peft.lora.targets",
        exclude=config.exclude,
        layers=config.layers or None,
    )
    adapted = {}
    for path, indices in chosen.items():
        names = weights[path].names()
        names = tuple(names[index] for index in indices) if weights[path].layers else names
        ranks = tuple(last_match(config.rank_pattern, n, config.r, "peft.lora.rank_pattern") for n in names)
        alphas = [last_match(config.alpha_pattern, n, config.alpha, "peft.lora.alpha_pattern") for n in names]
        scales = tuple(a / (r**0.5 if config.rslora else r) for a, r in zip(alphas, ranks, strict=True))
        adapted[path] = Adapted(weights[path], indices, ranks, scales)
    return Lora(config, adapted)


def matrix_of(base: Mapping[str, Any], path: str) -> jax.Array:
    """The float32 matrix of a module in flat base parameters, stacked as it is there."""
    return (base[f"{path}/kernel"] if f"{path}/kernel" in base else base[f"{path}/embedding"]).astype(jnp.float32)


def principal(weight: jax.Array, rank: int, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A [..., in, r] and B [..., r, out] with A B the best approximation of rank r.

    By randomized subspace iteration (Halko, Martinsson and Tropp 2011, arXiv:0909.4061, algorithms 4.4 and 5.1).
    """
    rank = min(rank, *weight.shape[-2:])
    wide = min(rank + PISSA_OVERSAMPLING, *weight.shape[-2:])
    q = jax.random.normal(key, (*weight.shape[:-2], weight.shape[-1], wide))
    for _ in range(PISSA_ITERATIONS):
        q = jnp.linalg.qr(weight.mT @ jnp.linalg.qr(weight @ q)[0])[0]
    left, values, right = jnp.linalg.svd(weight @ q, full_matrices=False)
    root = jnp.sqrt(values[..., :rank])
    return left[..., :, :rank] * root[..., None, :], root[..., :, None] * (right @ q.mT)[..., :rank, :]


def column_norm(weight: jax.Array) -> jax.Array:
    """Euclidean norm of each output's weights, [..., out]."""
    return jnp.sqrt(jnp.sum(jnp.square(weight), axis=-2))


def change_weight(weight: jax.Array, leaves: Mapping[str, jax.Array]) -> jax.Array:
    """The weight that a dense network would have, float32 [..., in, out]: W + s A B, or DoRA's m (W + s A B) / norm."""
    product = jnp.matmul(leaves["lora_a"], leaves["lora_b"], precision="highest")
    scale = leaves["lora_scale"][..., None, None]
    changed = weight + scale * product
    if "dora_magnitude" not in leaves:
        return changed
    # The norm is detached: only the magnitude and the direction learn (arXiv:2402.09353, section 4.3).
    norm = jax.lax.stop_gradient(column_norm(changed))
    factor = jnp.where(leaves["lora_scale"][..., None] == 0.0, 1.0, leaves["dora_magnitude"] / norm)
    return factor[..., None, :] * changed
