"""A fine-tune through the whole loop: what is saved, what it is resumed with, and which base it insists on."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.inference.finetuned import load_finetuned
from slmjax.models.transformer import Transformer
from slmjax.peft.config import FreezeConfig, PeftConfig
from slmjax.peft.forward import Network, forward
from slmjax.recipes.config import run_config
from slmjax.recipes.finetuned import describe_run
from slmjax.recipes.language_model import build
from slmjax.recipes.train import train
from slmjax.training.checkpoints.checkpointer import Checkpointer
from slmjax.training.loop import CHECKPOINTS
from slmjax.training.program import TRAIN
from slmjax.training.state import without
from tests.tiny import largest
from tests.tiny_run import make_base


@pytest.fixture(scope="module")
def config(tiny_config):
    def make(steps=4, **peft):
        run = tiny_config(steps, **{"training.ema_decay": 0.5, "training.clip_norm": 0.5, "schedule.name": "constant"})
        peft = {"method": "lora", "base": "somewhere", "lora": {"r": 2}, "train": ("final_norm/scale",)} | peft
        return dataclasses.replace(run, peft=PeftConfig(**peft))

    return make


@pytest.mark.slow
def test_a_fine_tune_saves_the_small_tree_and_goes_on_bitwise(config, tmp_path, assert_bitwise_equal):
    base = make_base(config())
    size = sum(leaf.size for leaf in jax.tree.leaves(base))
    train(config(4), tmp_path / "whole", base=make_base(config()))
    train(config(2), tmp_path / "parts", base=make_base(config()))
    result = train(config(4), tmp_path / "parts", base=make_base(config()))
    assert result.step == 4

    program = build(config(4)).program
    states = [
        Checkpointer(tmp_path / name / CHECKPOINTS).restore(4, program.stored).state for name in ("whole", "parts")
    ]
    assert_bitwise_equal(*(jax.device_get(state) for state in states))
    state = states[0]
    assert int(state.step) == 4 and not state.frozen
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < size / 2
    assert set(state.params) == {"peft", "params"} and list(state.params["params"]) == ["final_norm"]
    moved = jax.tree.map(lambda x, y: largest(np.subtract(x, y)), state.params, program.initialize(base).params)
    assert min(jax.tree.leaves(moved)) > 0  # every array of the small tree was trained

    found = load_finetuned(describe_run(config(4)), tmp_path / "whole" / CHECKPOINTS, base)
    assert_bitwise_equal(jax.device_get(found.trained), jax.device_get(state.ema))
    tokens = np.arange(6, dtype=np.int32)[None]
    merged = jax.jit(Transformer(config().model).apply)({"params": found.merged()}, tokens)
    beside = jax.jit(lambda v: forward(Network(Transformer(config().model)), v, tokens))(found.variables)
    np.testing.assert_allclose(merged, beside, atol=1e-5)

    saved = json.loads((tmp_path / "whole" / "config.json").read_text())["peft"]
    assert saved["base"] == "somewhere" and len(saved["fingerprint"]) == 16


@pytest.mark.slow
def test_a_base_in_the_hosts_memory_gives_the_same_state(config, assert_bitwise_equal):
    """As the weights that an accelerator holds only in int8: the last of eight devices stands for the host."""
    run, devices = config(quantize="int8"), jax.devices()
    program = build(run, devices=devices[:4]).program
    host = jax.device_put(make_base(run), devices[-1])
    state = program.initialize(host)
    assert not host["final_norm"]["scale"].is_deleted()
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(program.state), strict=True):
        assert leaf.sharding.is_equivalent_to(wanted.sharding, leaf.ndim)
    assert_bitwise_equal(jax.device_get(state), jax.device_get(program.initialize(make_base(run))))
    again = program.complete(without(state, program.rebuilt), host)
    assert_bitwise_equal(jax.device_get(again), jax.device_get(state))


def test_a_base_that_is_cut_is_taken_without_a_warning(config, recwarn):
    run = config(method="freeze", freeze=FreezeConfig(last_layers=1), train=())
    run = dataclasses.replace(run, mesh=dataclasses.replace(run.mesh, data=1, fsdp=1))
    build(run, devices=jax.devices()[:1]).program.initialize(make_base(run))
    assert not [w for w in recwarn if "donated" in str(w.message)]  # a user could do nothing about it


@pytest.mark.slow
def test_another_base_is_refused(config, tmp_path):
    train(config(2), tmp_path, base=make_base(config()))
    with pytest.raises(UserError, match=r"peft\.fingerprint"):
        train(config(4), tmp_path, base=make_base(config(), seed=1))
    saved = run_config(json.loads((tmp_path / "config.json").read_text()))
    with pytest.raises(UserError, match="other parameters"):
        load_finetuned(describe_run(saved), tmp_path / CHECKPOINTS, make_base(config(), seed=1))


def test_a_method_needs_a_base(config, tmp_path):
    with pytest.raises(UserError, match=r"peft\.base"):
        train(config(), tmp_path)


@pytest.mark.slow
def test_nothing_of_the_base_is_in_the_optimizer_or_moves(config):
    lm = build(config())
    program, base = lm.program, make_base(config())
    before = jax.tree.map(np.asarray, base)
    state = program.initialize(base)
    T = config().data.sequence_length
    ones = np.ones((8, T), np.int32)
    batch = {"inputs": ones, "targets": ones, "positions": ones * np.arange(T), "segments": ones}
    batch = jax.device_put(batch | {"loss_weights": ones.astype(np.float32)}, lm.batch_sharding)
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert sum(leaf.size for leaf in jax.tree.leaves(state.opt_state)) <= 2 * trained + 8
    step = program.compile()[TRAIN]
    after, metrics = step(state, batch)
    assert float(metrics["gradient_norm"]) > 0
    kept = jax.tree.map(np.asarray, after.frozen["params"])
    del before["final_norm"]
    jax.tree.map(np.testing.assert_array_equal, kept, before)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.frozen))  # donated, not copied
