"""Everything about a run that can be refused before any work is done."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from slmjax.data.config import SourceConfig
from slmjax.data.sft_config import SftConfig
from slmjax.errors import UserError
from slmjax.evaluation.harness import require_harness
from slmjax.files import local_path
from slmjax.models.parameters import abstract_params
from slmjax.models.transformer import Transformer
from slmjax.objectives.next_token import METRIC_NAMES
from slmjax.recipes.config import RunConfig
from slmjax.recipes.language_model import execution_for, training_method
from slmjax.sharding.activations import check_mesh_fits
from slmjax.sharding.mesh import make_mesh
from slmjax.training.schedules import make_schedule


def check(config: RunConfig, devices: Sequence[jax.Device] | None = None, base: Any = None) -> None:
    """Refuse a run that cannot work; nothing is read, compiled, allocated or written.

    Args:
        config: the run.
        devices: that it is to run on; all by default.
        base: the parameters to fine-tune, or their shapes; None: those of the config's network.

    Raises:
        UserError: what does not fit, and what to change.
    """
    if config.training.branch_from:
        local_path(config.training.branch_from, "training.branch_from")
    if config.forgetting.corpus:
        SourceConfig(config.forgetting.corpus)
    _check_base(config, base)
    _check_batch(config, devices)
    _check_data(config)
    _check_tasks(config, tuned=base is not None or bool(config.peft.base))
    _check_best_metric(config, tuned=base is not None or bool(config.peft.base))
    if not config.training.epochs:  # else the steps are known once the data are
        make_schedule(config.schedule, config.total_steps)
    model = Transformer(config.model, execution_for(config, make_mesh(config.mesh, devices)))
    method = training_method(config, model, encode=lambda text: [0])
    shapes = abstract_params(config.model) if base is None else jax.eval_shape(lambda tree: tree, base)
    trained = jax.eval_shape(method.split, shapes, jax.random.key(0))[0]
    if config.forgetting.l2_sp and config.peft.method != "lora" and "params" not in trained:
        raise UserError(
            f"forgetting.l2_sp={config.forgetting.l2_sp} has no effect, since peft.method={config.peft.method} trains "
            "none of the base's weights: use forgetting.kl."
        )


def _check_base(config: RunConfig, base: Any) -> None:
    if base is not None or config.peft.base:
        return
    if config.peft.method != "full":
        raise UserError(f"peft.method={config.peft.method} needs a model to start from: set peft.base to its path.")
    if strengths := config.forgetting.strengths:
        keys = ", ".join(f"forgetting.{name}={value:g}" for name, value in strengths.items())
        raise UserError(f"{keys} regularizes towards the base model, and there is none: set peft.base to its path.")
    if isinstance(config.data, SftConfig):
        raise UserError("Conversations are read in the tokens of a model: set peft.base to the one to fine-tune.")


def _check_batch(config: RunConfig, devices: Sequence[jax.Device] | None) -> None:
    T, B = config.data.sequence_length, config.training.batch_size
    if config.model.context_length < T:
        raise UserError(
            f"data.sequence_length={T} is longer than the model's context, "
            f"model.context_length={config.model.context_length}: shorten it."
        )
    mesh = make_mesh(config.mesh, devices)
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


def _check_data(config: RunConfig) -> None:
    """What is watched needs data that are held out; a prepared corpus (no sources) says so only when it is opened."""
    t, held_out = config.training, _holds_out(config)
    if t.early_stopping and not held_out:
        raise UserError(f"training.early_stopping={t.early_stopping} {NEEDS_VALIDATION}")
    if t.samples and not held_out:
        raise UserError(f"training.samples={t.samples} {NEEDS_VALIDATION}")
    if (t.samples or t.sample_prompts) and config.model.context_length <= t.sample_tokens:
        raise UserError(
            f"training.sample_tokens={t.sample_tokens} is not below "
            f"model.context_length={config.model.context_length}: lower it."
        )


def _check_tasks(config: RunConfig, *, tuned: bool) -> None:
    """Tasks can be evaluated here; which there are is known once they are opened."""
    if config.forgetting.tasks and not tuned:
        raise UserError(
            "forgetting.tasks is measured where a model is fine-tuned, and there is none: use training.tasks.names."
        )
    if not (config.training.tasks.names or config.forgetting.tasks):
        return
    require_harness()
    place = config.training.tasks.data_dir
    if place and not local_path(place, "training.tasks.data_dir").is_dir():
        raise UserError(f"training.tasks.data_dir={place} is not a directory: give the one of the tasks' files.")


def _holds_out(config: RunConfig) -> bool:
    data = config.data
    return data.validation_fraction > 0 or not data.sources or bool(getattr(data, "validation", None))


def _check_best_metric(config: RunConfig, *, tuned: bool) -> None:
    """The metric by which checkpoints are kept is one that the run measures."""
    keep, held = config.checkpoint, config.forgetting
    validation = [f"validation_{name}" for name in METRIC_NAMES]
    known = [*validation, "general_loss"]
    task = keep.best_metric.startswith("task/")  # of training.tasks, or given by a program
    if keep.best_metric not in known and not task:
        raise UserError(
            f"checkpoint.best_metric={keep.best_metric!r} is not measured: choose one of {', '.join(known)}."
        )
    if config.training.early_stopping and keep.keep_best and keep.best_metric != "validation_loss":
        raise UserError(
            f"checkpoint.best_metric={keep.best_metric} does not go with training.early_stopping, which keeps the "
            "checkpoint of the lowest validation_loss: set it to validation_loss, or leave early stopping out."
        )
    if keep.keep_best and keep.best_metric in validation and not _holds_out(config):
        raise UserError(f"checkpoint.best_metric={keep.best_metric} {NEEDS_VALIDATION}")
    scored = task and bool(config.training.tasks.names or held.tasks)
    measured = scored or (tuned and held.tokens and held.corpus)
    if keep.keep_best and (keep.best_metric == "general_loss" or task) and not measured:
        raise UserError(
            f"checkpoint.best_metric={keep.best_metric} is measured where a model is fine-tuned and general text is "
            "named: set peft.base, forgetting.corpus and forgetting.tokens, or choose validation_loss."
        )


NEEDS_VALIDATION = "needs a validation split: set data.validation_fraction above 0."
