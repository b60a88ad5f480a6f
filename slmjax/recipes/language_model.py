"""A language model's training program: what pretraining and fine-tuning share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from slmjax.models.attention.kernels import attention_for
from slmjax.models.counting import count_parameters, flops_per_token
from slmjax.models.execution import Execution
from slmjax.models.transformer import Transformer
from slmjax.objectives.chunks import logits_bytes_for
from slmjax.objectives.loss import Objective
from slmjax.objectives.next_token import next_token
from slmjax.objectives.regularized import regularized
from slmjax.peft.anchors import REBUILT
from slmjax.peft.method import Method, anchor, make_method
from slmjax.recipes.config import RunConfig
from slmjax.sharding.activations import make_constrain, sharded_attention, sharded_sum_rows
from slmjax.sharding.chunked_feedforward import chunked_feedforward
from slmjax.sharding.mesh import batch_spec, make_mesh
from slmjax.training.optimizers import make_optimizer, with_multipliers
from slmjax.training.program import TRAIN, Program, make_program, process_rows
from slmjax.training.recipe import Budget
from slmjax.training.schedules import make_schedule
from slmjax.training.step import StepKind, make_eval_step

TEXT = {"inputs": jnp.int32, "targets": jnp.int32, "positions": jnp.int32, "segments": jnp.int32}


@dataclass(frozen=True)
class ModelProgram:
    """The engine's program of a run, and what its observers need of the network.

    Attributes:
        config: the run.
        program: what is trained.
        model: the network, run as the platform wants.
        method: how trained and frozen arrays make up its variables.
        objective: what is evaluated; what is trained may have penalties besides.
        eval_step: jitted, (params, frozen, batch) -> Loss.
        base_eval_step: the same without what the method adds.
        batch: the fields of a text batch.
    """

    config: RunConfig
    program: Program
    model: Transformer
    method: Method
    objective: Objective
    eval_step: Any
    base_eval_step: Any
    batch: Mapping[str, jax.ShapeDtypeStruct]

    @property
    def rows(self) -> list[int]:
        """The rows of a batch that this process reads."""
        return process_rows(self.batch_sharding, self.config.training.batch_size)

    @property
    def batch_sharding(self) -> NamedSharding:
        """The sharding of each array of a text batch."""
        sharding = self.batch["inputs"].sharding
        assert isinstance(sharding, NamedSharding)
        return sharding


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
) -> ModelProgram:
    """Put a run together that `check` has passed.

    Args:
        config: the run, its total steps known.
        token_bytes: int32 [V], UTF-8 bytes of each token, for bits per byte; None counts one byte a token.
        devices: all by default; they may be those of a TPU topology that is not there (compiling ahead of time).
        base: the parameters that are fine-tuned, of which only shapes and dtypes count here; None: random float32 ones.
        encode: the tokenizer's, for soft prompts that start from a text.
    """
    mesh = make_mesh(config.mesh, devices)
    model = Transformer(config.model, execution_for(config, mesh))
    method = training_method(config, model, encode)
    schedule = make_schedule(config.laid_out_schedule, config.total_steps)
    optimizer = make_optimizer(config.optimizer, schedule)
    if method.scales_rates:
        optimizer = with_multipliers(optimizer, method.multipliers)
    strengths: dict[str, Any] = config.forgetting.strengths
    platform = mesh.devices.flat[0].platform
    losses: Any = {
        "token_bytes": token_bytes,
        "z_loss": config.training.z_loss,
        "mesh": mesh,
        "logits_bytes": logits_bytes_for(platform, config.model),
    }
    objective = next_token(model, method, **losses)
    text = _fields(config, mesh, TEXT | {"loss_weights": jnp.float32})
    trained = _fields(config, mesh, {"kl_weights": jnp.float32}) if config.forgetting.general_rows_are_held else {}
    kind = StepKind(regularized(model, method, **strengths, **losses) if strengths else objective, text | trained)
    program = make_program(
        lambda key, base: _init(model, method, key, base),
        {TRAIN: kind},
        optimizer,
        schedule,
        mesh,
        config.training,
        base=base,
        rebuilt=REBUILT,
        remat=model.execution.remat,
    )
    return ModelProgram(
        config=config,
        program=program,
        model=model,
        method=method,
        objective=objective,
        eval_step=jax.jit(make_eval_step(objective)),
        base_eval_step=jax.jit(make_eval_step(next_token(model, method.without_added(), **losses))),
        batch=text,
    )


def training_method(config: RunConfig, model: Transformer, encode: Callable[[str], list[int]] | None = None) -> Method:
    """The config's method with what only training adds: noise on embeddings, and anchors of the penalties."""
    method = make_method(config.peft, model, encode)
    if config.training.neftune_alpha:
        options = dataclasses.replace(method.options, neftune=config.training.neftune_alpha)
        method = dataclasses.replace(method, options=options)
    strengths = config.forgetting.strengths
    return anchor(method, ewc="ewc" in strengths) if strengths else method


def budget_of(config: RunConfig, trained_share: float = 1.0) -> Budget:
    """The length and cost of a run, `trained_share` of whose parameters are trained.

    A backward pass computes the gradients of activations and of weights, each as costly as the forward pass; of weights
    only those that are trained have one. What the forward pass repeats is not counted.
    """
    flops = flops_per_token(config.model, config.data.sequence_length)
    num_params = count_parameters(config.model).total
    return Budget(config.total_steps, config.tokens_per_step, flops * (2 + trained_share) / 3, num_params)


def _init(model: Transformer, method: Method, key: jax.Array, base: Any) -> tuple[Any, Any]:
    if base is None:
        # Of layers that are alike, one is compiled: random numbers make long programs, and this one runs once.
        rolled = model.clone(execution=dataclasses.replace(model.execution, scan_unroll=1))
        base = rolled.init(key, jnp.zeros((1, 1), jnp.int32))["params"]
    return method.split(base, jax.random.fold_in(key, 1))


def _fields(config: RunConfig, mesh: Mesh, dtypes: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    shape = (config.training.batch_size, config.data.sequence_length)
    sharding = NamedSharding(mesh, batch_spec())
    return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, dtype in dtypes.items()}
