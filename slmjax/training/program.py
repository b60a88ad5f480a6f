"""From a `RunConfig` to what runs: mesh, model, optimizer, the compiled step, on these devices or described ones."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from slmjax.errors import UserError
from slmjax.models.attention.kernels import attention_for
from slmjax.models.execution import Execution
from slmjax.models.transformer import Transformer
from slmjax.objectives.cross_entropy import logits_bytes_for
from slmjax.objectives.held_to_base import held_to_base
from slmjax.objectives.next_token import Objective, next_token
from slmjax.peft.anchoring import OF_BASE, anchored, base_weights
from slmjax.peft.method import Method, full, make_method
from slmjax.sharding.activations import check_mesh_fits, make_constrain, sharded_attention, sharded_sum_rows
from slmjax.sharding.chunked_feedforward import chunked_feedforward
from slmjax.sharding.mesh import batch_spec, make_mesh
from slmjax.training.config import RunConfig
from slmjax.training.memory import out_of_memory_is_the_users, require_host_memory
from slmjax.training.optimizers import make_optimizer, with_multipliers
from slmjax.training.schedules import Schedule, make_schedule
from slmjax.training.state import TrainState, abstract_state, init_state
from slmjax.training.step import make_eval_step, make_train_step


@dataclass(frozen=True)
class Program:
    """All that a run needs besides its data; nothing here is compiled or allocated yet."""

    config: RunConfig
    mesh: Mesh
    model: Transformer
    optimizer: optax.GradientTransformation
    schedule: Schedule
    method: Method
    objective: Objective  # what is evaluated; what is trained may be held to the base besides
    state: TrainState  # shapes, dtypes and shardings
    batch: dict[str, jax.ShapeDtypeStruct]
    train_step: Any  # jitted, donates its state
    eval_step: Any  # jitted
    base_eval_step: Any  # the same without what the method adds

    @property
    def batch_sharding(self) -> NamedSharding:
        """Of each array of a batch."""
        return self.batch["inputs"].sharding

    @property
    def _donated(self) -> tuple[int, ...]:
        return (0,) if self.mesh.size == 1 else ()  # on one device the base's arrays become the state's

    def initialize(self, base: Any = None) -> TrainState:
        """A fresh state, created in its place on the mesh. `base`, the parameters to fine-tune, is used up."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.state)
        training = self.config.training

        def fresh(base):
            ema = bool(training.ema_decay)
            return init_state(self.model, self.optimizer, training.seed, ema=ema, method=self.method, base=base)

        held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(self.state))
        require_host_memory(self.config, self.mesh, held)
        return self._made_of(base, fresh, shardings)

    def with_base(self, state: TrainState, base: Any) -> TrainState:
        """A state as a checkpoint holds it, with what comes from the base put back. `base` is used up."""
        names = [name for name in OF_BASE if name in self.state.frozen]
        if not names:
            return state
        shardings = jax.tree.map(lambda leaf: leaf.sharding, {name: self.state.frozen[name] for name in names})

        def rest(base):
            frozen = self.method.split(base, jax.random.key(0))[1]
            return {name: frozen[name] for name in names}

        return dataclasses.replace(state, frozen=state.frozen | self._made_of(base, rest, shardings))

    def _made_of(self, base: Any, make: Callable[[Any], Any], shardings: Any) -> Any:
        """`make(base)`, laid out on the mesh.

        A base in the host's memory is worked on there: of 8B parameters, one chip holds no more than the quantized.
        """
        here = set(self.mesh.devices.flat)
        arrays = [leaf for leaf in jax.tree.leaves(base) if isinstance(leaf, jax.Array)]
        elsewhere = any(here.isdisjoint(leaf.devices()) for leaf in arrays)
        with out_of_memory_is_the_users(self.config, self.mesh), warnings.catch_warnings():
            # What is cut (frozen and trained layers of one stack) or quantized cannot lie where the base did.
            warnings.filterwarnings("ignore", message="Some donated buffers were not usable")
            if elsewhere:
                return jax.device_put(jax.jit(make)(base), shardings)
            return jax.jit(make, out_shardings=shardings, donate_argnums=self._donated)(base)

    def compile(self) -> Any:
        """The train step, compiled: called as (state, batch) -> (state, metrics), it can never compile again."""
        with out_of_memory_is_the_users(self.config, self.mesh):
            compiled = self.train_step.lower(self.state, self.batch).compile()
        memory = compiled.memory_analysis()
        if memory is not None:
            parts = (memory.argument_size_in_bytes, memory.temp_size_in_bytes, memory.output_size_in_bytes)
            held = sum(parts) - memory.alias_size_in_bytes  # by one device; emulated ones share the host's memory
            require_host_memory(self.config, self.mesh, held * self.mesh.size)
        return compiled


def execution_for(config: RunConfig, mesh: Mesh) -> Execution:
    """The ways of running that a platform wants, where the config says "auto"."""
    platform = mesh.devices.flat[0].platform
    on_cpu = platform == "cpu"
    t = config.training
    dtype = ("float32" if on_cpu else "bfloat16") if t.dtype == "auto" else t.dtype
    # With a frozen base a CPU gains from remat in time as well as memory, without one it loses (benchmarks/RESULTS.md).
    on_cpu_remat = "none" if config.peft.method == "full" else "projections"
    remat = (on_cpu_remat if on_cpu else "full") if t.remat == "auto" else t.remat
    attention = attention_for(platform, t.attention)
    lean = not on_cpu and remat in ("full", "context", "attention")  # policies that keep none of its products
    return Execution(
        dtype=jnp.dtype(dtype),
        attention=sharded_attention(attention, mesh) if mesh.size > 1 else attention,
        feedforward=chunked_feedforward(mesh if mesh.size > 1 else None) if lean else None,
        remat=remat,
        # Unrolled on a CPU, XLA merges what is rematerialized with the forward pass and nothing is saved.
        scan_unroll=(0 if on_cpu and remat == "none" else 1) if t.scan_unroll < 0 else t.scan_unroll,
        flatten_tokens=on_cpu and mesh.shape["sequence"] == 1,
        constrain=make_constrain(mesh) if mesh.size > 1 else Execution().constrain,
        embedding_gradient=sharded_sum_rows(mesh) if mesh.size > 1 else Execution().embedding_gradient,
    )


def build(
    config: RunConfig,
    *,
    token_bytes: np.ndarray | None = None,
    devices: Sequence[jax.Device] | None = None,
    base: Any = None,
    encode: Callable[[str], list[int]] | None = None,
) -> Program:
    """Put a run together. `devices` may be those of a TPU topology that is not there (compiling ahead of time).

    token_bytes: int32 [V], UTF-8 bytes of each token, for bits per byte; None counts one byte a token.
    base: the parameters that are fine-tuned, of which only shapes and dtypes count here; None: random float32 ones.
    encode: the tokenizer's, for soft prompts that start from a text.
    """
    mesh = make_mesh(config.mesh, devices)
    T, B = config.data.sequence_length, config.training.batch_size
    check_mesh_fits(config.model, mesh, T)
    shards = mesh.shape["data"] * mesh.shape["fsdp"] * config.training.accumulation
    if B % shards:
        raise UserError(
            f"training.batch_size={B} is not a multiple of {shards} = mesh.data x mesh.fsdp x training.accumulation: "
            "every device must get the same number of rows in every micro-batch."
        )
    if config.forgetting.replay and B * (1 - config.forgetting.replay) < 1:
        raise UserError(
            f"forgetting.replay={config.forgetting.replay} leaves less than one row of training.batch_size={B} to "
            "learn from: raise training.batch_size or lower forgetting.replay."
        )
    model = Transformer(config.model, execution_for(config, mesh))
    schedule = make_schedule(config.schedule, config.total_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    method = make_method(config.peft, model, encode)
    if config.training.neftune_alpha:
        options = dataclasses.replace(method.options, neftune=config.training.neftune_alpha)
        method = dataclasses.replace(method, options=options)
    bare = dataclasses.replace(
        full(), parts=lambda trained, frozen: {"params": method.parts(trained, frozen)["params"]}
    )
    strengths: dict[str, Any] = config.forgetting.strengths
    if strengths:
        method = anchored(method, added="ewc" in strengths)
    if method.multipliers is not None:
        optimizer = with_multipliers(optimizer, method.multipliers)
    logits_bytes = logits_bytes_for(mesh.devices.flat[0].platform, config.model)
    losses: Any = {"z_loss": config.training.z_loss, "mesh": mesh, "logits_bytes": logits_bytes}
    objective = next_token(model, method, **losses)
    trained_objective = held_to_base(model, method, **strengths, **losses) if strengths else objective
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), base)
    ema = bool(config.training.ema_decay)
    state = abstract_state(model, optimizer, mesh, ema=ema, method=method, base=shapes)
    sharding = NamedSharding(mesh, batch_spec())
    names = {"inputs": jnp.int32, "targets": jnp.int32, "positions": jnp.int32, "segments": jnp.int32}
    weights = {"loss_weights": jnp.float32}
    if config.forgetting.general_rows_are_held:
        weights["kl_weights"] = jnp.float32
    batch = {
        name: jax.ShapeDtypeStruct((B, T), dtype, sharding=sharding) for name, dtype in {**names, **weights}.items()
    }
    sizes = np.ones(config.model.vocab_size, np.int32)
    if token_bytes is not None:
        sizes[: len(token_bytes)] = token_bytes[: len(sizes)]
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    if "l2_sp" in strengths and config.peft.method != "lora" and not base_weights(method, state.params):
        raise UserError(
            f"forgetting.l2_sp has nothing to hold: peft.method={config.peft.method} trains none of the base's "
            "weights; use forgetting.kl."
        )
    step = make_train_step(trained_objective, optimizer, schedule, config.training, sizes, mesh)
    return Program(
        config=config,
        mesh=mesh,
        model=model,
        optimizer=optimizer,
        schedule=schedule,
        method=method,
        objective=objective,
        state=state,
        batch=batch,
        train_step=jax.jit(step, donate_argnums=0, out_shardings=(shardings, None)),
        eval_step=jax.jit(make_eval_step(objective, sizes)),
        base_eval_step=jax.jit(make_eval_step(next_token(model, bare, **losses), sizes)),
    )


def local_rows(sharding: NamedSharding, batch_size: int) -> list[int]:
    """The rows of a global batch that this process's devices hold; it reads no others."""
    rows: set[int] = set()
    for index in sharding.addressable_devices_indices_map((batch_size, 1 << 30)).values():
        assert index is not None
        rows.update(range(*index[0].indices(batch_size)))
    return sorted(rows)


def to_devices(batch: dict[str, np.ndarray], program: Program) -> dict[str, jax.Array]:
    """This process's rows as global arrays on the mesh."""
    B, T = program.batch["inputs"].shape
    return {
        name: jax.make_array_from_process_local_data(program.batch_sharding, array, (B, T))
        for name, array in batch.items()
        if name in program.batch
    }
