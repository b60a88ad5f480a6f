"""A tiny run for the rooms of training and of recipes: its text, its config, and how to read what it left behind."""

import dataclasses
import functools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.models.config import ModelConfig
from slmjax.models.transformer import Transformer
from slmjax.recipes import finetuning, language_model, pretraining
from slmjax.recipes.config import RunConfig, default_config, run_config, set_budget
from slmjax.training import loop, program
from slmjax.training.checkpoints.checkpointer import Checkpointer, Restored
from slmjax.training.checkpoints.orbax import orbax
from slmjax.training.interrupts import StopRequest
from slmjax.training.program import Program
from slmjax.training.reporting.metrics import read_metrics
from slmjax.training.schedules import make_schedule

V, T, B = 300, 32, 8


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory) -> Path:
    """About 20 kB of words in some order."""
    rng = np.random.default_rng(0)
    words = ["river", "stone", "light", "walk", "under", "the", "old", "a", "of", "and"]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(" ".join(rng.choice(words, 12)) + "." for _ in range(300)))
    return path


@pytest.fixture(scope="session")
def tiny_config(tiny_text) -> Callable[..., RunConfig]:
    """tiny_config(steps=6, **{"training.seed": 1, ...}): a run of seconds on the eight devices; one shared corpus.

    steps=0: a budget of `epochs`.
    """

    def make(steps: int = 6, *, epochs: float = 0, **changes: Any) -> RunConfig:
        config = default_config(
            ModelConfig(vocab_size=V, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, ffn_dim=64)
        )
        config.data.sources.text = {"path": str(tiny_text)}
        config.data.tokenizer = "train:280"
        config.data.sequence_length = T
        config.data.validation_fraction = 0.2
        config.data.cache_dir = str(tiny_text.parent / "cache")
        config.training.batch_size = B
        config.training.eval_every = 2
        config.training.eval_batches = 1
        config.checkpoint.every = 2
        config.schedule.warmup_steps = 1
        set_budget(config, **{"steps": steps} if steps else {"epochs": epochs})
        for key, value in changes.items():
            section, name = key.split(".")
            config[section][name] = value
        return run_config(config)

    return make


@pytest.fixture(scope="session")
def saved() -> Callable[..., Restored]:
    """saved(config, workdir, step=None): that checkpoint, the newest by default, with its state on the host."""

    def read(config: RunConfig, workdir: Path, step: int | None = None) -> Restored:
        checkpointer = Checkpointer(workdir / loop.CHECKPOINTS)
        abstract = language_model.build(config).program.stored
        restored = checkpointer.restore_latest(abstract) if step is None else checkpointer.restore(step, abstract)
        assert restored is not None
        return dataclasses.replace(restored, state=jax.device_get(restored.state))

    return read


@pytest.fixture(scope="session")
def assert_bitwise_equal() -> Callable[[Any, Any], None]:
    """Every leaf of two pytrees has the same bits."""

    def check(a: Any, b: Any) -> None:
        assert jax.tree.structure(a) == jax.tree.structure(b)
        for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
            x, y = np.asarray(x), np.asarray(y)
            assert x.dtype == y.dtype and x.tobytes() == y.tobytes(), jax.tree_util.keystr(path)

    return check


# Of a run, but of no program: runs that differ in these alone share theirs.
HOST_ONLY = {"tokens": 0, "tokens_per_param": 0.0, "epochs": 0.0, "log_every": 1, "eval_every": 0, "eval_batches": 0}
HOST_ONLY |= {"profile_at": -1, "branch_from": "", "branch_step": -1, "early_stopping": 0, "samples": 0}
_built: dict[Any, language_model.ModelProgram] = {}
_compiled: dict[int, Any] = {}
_makers: dict[tuple[int, str], Any] = {}


def _rates(config: RunConfig) -> list[float]:
    schedule, steps = make_schedule(config.laid_out_schedule, config.total_steps), np.arange(config.total_steps + 1)
    return np.asarray(schedule(steps)).tolist()


def _what_is_compiled(config: RunConfig) -> str:
    """What of a config its program depends on; a run that goes on has the schedule that it began with, if it has."""
    begun, held = dataclasses.replace(config, begun_steps=None), config.forgetting
    same = config.begun_steps is None or _rates(begun) == _rates(config)
    schedule = config.schedule if same else config.laid_out_schedule
    training = dataclasses.replace(config.training, steps=config.total_steps, **HOST_ONLY)
    peft = dataclasses.replace(config.peft, base="", fingerprint="")
    methods = (peft, held.strengths, held.general_rows_are_held)
    return repr((config.model, training, config.optimizer, schedule, config.mesh, config.data.sequence_length, methods))


@pytest.fixture(scope="module", autouse=True)
def built_once() -> Iterator[None]:
    """Runs whose programs are the same share one: each would trace and compile the same again.

    Processes that a test starts build their own. A test that replaces the training step gets a program with it.
    """
    build, compile_steps, make = language_model.build, Program.compile, Program._make

    def build_once(config: RunConfig, **given: Any) -> language_model.ModelProgram:
        table, base, devices = (given.get(name) for name in ("token_bytes", "base", "devices"))
        shapes = str(jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), base))
        same = _what_is_compiled(config)
        key = (same, None if table is None else table.tobytes(), str(devices), shapes, program.make_train_step)
        if key not in _built:
            _built[key] = build(config, **given)
        return dataclasses.replace(_built[key], config=config)

    def compile_once(self: Program) -> dict[str, Any]:
        if id(self) not in _compiled:
            _compiled[id(self)] = self, compile_steps(self)
        return _compiled[id(self)][1]

    def make_once(self: Program, base: Any, function: Any, shardings: Any) -> Any:
        """With the first of a program's functions of this name, for which jax has a program already."""
        _, first = _makers.setdefault((id(self), function.__qualname__), (self, function))
        return make(self, base, first, shardings)

    with pytest.MonkeyPatch.context() as patched:
        for room in (language_model, pretraining, finetuning):
            patched.setattr(room, "build", build_once)
        patched.setattr(Program, "compile", compile_once)
        patched.setattr(Program, "_make", make_once)
        # Orbax has each replica write a slice of an array, and each slice's shape is a program: of large ones only.
        handler = orbax().type_handlers.get_type_handler(jax.Array)
        patched.setattr(handler, "_min_slice_bytes_for_replica_parallel", 1 << 20)
        yield


@functools.cache
def _base(model: ModelConfig, seed: int) -> Any:
    init = jax.jit(Transformer(model).init)
    return jax.device_get(init(jax.random.key(seed), jnp.zeros((1, 1), jnp.int32))["params"])


def make_base(config: RunConfig, seed: int = 0) -> Any:
    """Random parameters of the config's network, in arrays of the caller's own."""
    return jax.tree.map(jnp.array, _base(config.model, seed))


def stop_at(patch: pytest.MonkeyPatch, step: int) -> None:
    """Make each run, while the patch holds, behave as if SIGTERM had come during this step."""

    def wanted(self: StopRequest, now: int) -> bool:
        self.signal = signal.SIGTERM if now == step else None
        return now == step

    patch.setattr(StopRequest, "wanted", wanted)


def lines_of(workdir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what a clock or the machine decides."""
    timed = ("tokens_per_second", "data_wait", "memory_bytes", "mfu")
    return [{k: v for k, v in line.items() if k not in timed} for line in read_metrics(workdir / "metrics.jsonl")]
