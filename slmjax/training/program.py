"""What a run compiles: the mesh, the state, and a step for each kind of batch, on these devices or described ones."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from slmjax.errors import UserError, did_you_mean
from slmjax.objectives.loss import Batch
from slmjax.training.config import TrainingConfig
from slmjax.training.memory import Footprint, explain_out_of_memory, require_host_memory
from slmjax.training.schedules import Schedule
from slmjax.training.state import Init, TrainState, abstract_state, init_state, without
from slmjax.training.step import StepKind, make_train_step

TRAIN = "train"  # the name of the step of a run that has one kind


@dataclass(frozen=True)
class Program:
    """All that a run computes; nothing here is compiled or allocated yet."""

    mesh: Mesh
    init: Init
    optimizer: optax.GradientTransformation
    schedule: Schedule
    kinds: Mapping[str, StepKind]
    steps: Mapping[str, Any]  # by kind; jitted, (state, batch) -> (state, metrics), donates its state
    state: TrainState  # shapes, dtypes and shardings
    seed: int
    rebuilt: tuple[str, ...]  # parts of `frozen` that come from the base's own files and are in no checkpoint
    footprint: Footprint

    @property
    def stored(self) -> TrainState:
        """The part of `state` that a checkpoint holds."""
        return without(self.state, self.rebuilt)

    def initialize(self, base: Any = None) -> TrainState:
        """A fresh state, created in its place on the mesh. `base`, given to `init`, is used up."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)

        def fresh(base: Any) -> TrainState:
            ema, networks = self.state.ema is not None, _networks(self.kinds)
            return init_state(self.init, self.optimizer, self.seed, ema=ema, base=base, networks=networks)

        held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.state))
        require_host_memory(self.footprint, held)
        return self._make(base, fresh, shardings)

    def complete(self, state: TrainState, base: Any) -> TrainState:
        """A state as a checkpoint holds it, with what comes from the base put back. `base` is used up."""
        names = [name for name in self.rebuilt if name in self.state.frozen]
        if not names:
            return state
        shardings = jax.tree.map(lambda leaf: leaf.sharding, {name: self.state.frozen[name] for name in names})

        def rest(base: Any) -> dict[str, Any]:
            frozen = self.init(jax.random.key(0), base)[1]
            return {name: frozen[name] for name in names}

        return dataclasses.replace(state, frozen=state.frozen | self._make(base, rest, shardings))

    def _make(self, base: Any, make: Callable[[Any], Any], shardings: Any) -> Any:
        """`make(base)`, laid out on the mesh.

        A base in the host's memory is worked on there: of 8B parameters, one chip holds no more than the quantized.
        """
        here = set(self.mesh.devices.flat)
        arrays = [leaf for leaf in jax.tree.leaves(base) if isinstance(leaf, jax.Array)]
        elsewhere = any(here.isdisjoint(leaf.devices()) for leaf in arrays)
        donated = (0,) if self.mesh.size == 1 else ()  # on one device the base's arrays become the state's
        with explain_out_of_memory(self.footprint), warnings.catch_warnings():
            # What is cut (frozen and trained layers of one stack) or quantized cannot lie where the base did.
            warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
            if elsewhere:
                return jax.device_put(jax.jit(make)(base), shardings)
            if any(leaf.devices() != here for leaf in arrays):  # a file's arrays are committed to the first device
                base = jax.device_put(base, NamedSharding(self.mesh, PartitionSpec()))
            return jax.jit(make, out_shardings=shardings, donate_argnums=donated)(base)

    def compile(self) -> dict[str, Any]:
        """Each kind's step, compiled: called as (state, batch) -> (state, metrics), it can never compile again."""
        compiled = {}
        for name, step in self.steps.items():
            with explain_out_of_memory(self.footprint):
                compiled[name] = step.lower(self.state, dict(self.kinds[name].batch)).compile()
            memory = compiled[name].memory_analysis()
            if memory is not None:
                parts = (memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.output_size_in_bytes)
                held = sum(parts) - memory.alias_size_in_bytes  # by one device; emulated ones share the host's memory
                require_host_memory(self.footprint, held * self.mesh.size)
        return compiled


def make_program(
    init: Init,
    kinds: Mapping[str, StepKind],
    optimizer: optax.GradientTransformation,
    schedule: Schedule,
    mesh: Mesh,
    config: TrainingConfig,
    *,
    base: Any = None,
    rebuilt: Sequence[str] = (),
    remat: str = "none",
) -> Program:
    """Put a program together.

    Args:
        init: makes the parameters; see `Init`.
        kinds: the kinds of steps by name, of which most runs have one, `TRAIN`.
        optimizer: of each network that is trained.
        schedule: the learning rate, as it is reported.
        mesh: the devices.
        config: accumulation, clipping, averaging and skipping.
        base: what `init` is given, or its shapes.
        rebuilt: the parts of `frozen` that are made from the base anew when a run goes on.
        remat: what the model rematerializes, for the advice when memory runs out.
    """
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), base)
    ema = bool(config.ema_decay)
    state = abstract_state(init, optimizer, mesh, ema=ema, base=shapes, networks=_networks(kinds))
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    steps = {
        name: jax.jit(
            make_train_step(kind, optimizer, schedule, config, mesh), donate_argnums=0, out_shardings=(shardings, None)
        )
        for name, kind in kinds.items()
    }
    widest = max((kind.batch for kind in kinds.values()), key=lambda batch: sum(leaf.size for leaf in batch.values()))
    footprint = Footprint(mesh, state, widest, config.accumulation, remat)
    return Program(mesh, init, optimizer, schedule, kinds, steps, state, config.seed, tuple(rebuilt), footprint)


def _networks(kinds: Mapping[str, StepKind]) -> list[str]:
    """The networks that are trained apart, each with an optimizer memory of its own."""
    return sorted({kind.network for kind in kinds.values() if kind.network is not None})


def process_rows(sharding: NamedSharding, batch_size: int) -> list[int]:
    """The rows of a global batch that this process's devices hold; it reads no others."""
    rows: set[int] = set()
    for index in sharding.addressable_devices_indices_map((batch_size, 1 << 30)).values():
        assert index is not None
        rows.update(range(*index[0].indices(batch_size)))
    return sorted(rows)


def to_devices(
    batch: Mapping[str, np.ndarray | jax.Array], fields: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """A batch on the mesh: of numpy arrays this process's rows, of jax arrays the whole.

    Raises:
        UserError: the batch has not exactly the fields that the step was compiled for.
    """
    for name in batch:
        if name not in fields:
            raise UserError(
                f"A batch has the field {name!r}, which its step does not take: {did_you_mean(name, fields)}"
            )
    if missing := [name for name in fields if name not in batch]:
        raise UserError(f"A batch has no field {missing[0]!r}, which its step needs: return it from Batches.next.")
    placed: Batch = {}
    for name, field in fields.items():
        array = batch[name]
        if isinstance(array, jax.Array):
            placed[name] = jax.device_put(array, field.sharding)
        else:
            placed[name] = jax.make_array_from_process_local_data(field.sharding, array, field.shape)
    return placed
