"""LoRA and its kin: what a dense network with the changed weights would compute, and nothing at the start."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.models.execution import Execution
from slmjax.models.parameters import flatten, unflatten
from slmjax.peft.config import LoraConfig
from slmjax.sharding.chunked_feedforward import chunked_feedforward
from tests.tiny import largest

KINDS = {
    "lora": {},
    "patterns": {
        "layers": (0, 2),
        "targets": ("q_proj", ".*/down_proj"),
        "rank_pattern": (("layers/2/.*", 2), ("down_proj", 5)),
        "alpha_pattern": (("attention/q_proj", 1.0),),
    },
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "dora in one layer": {"dora": True, "layers": (1,)},
    "pissa": {"init": "pissa"},
    "embeddings and head": {"targets": ("embedder", "lm_head", "v_proj")},
}


@pytest.fixture(scope="module", params=KINDS)
def tuned(request, tune):
    made = tune(method="lora", lora={"r": 4, "alpha": 6.0} | KINDS[request.param])
    # Off the start, but for the zeros that fill up smaller ranks.
    rng, start = np.random.default_rng(9), flatten(made.trained)
    moved = {}
    for path, x in start.items():
        used = 1.0
        if made.config.lora.rank_pattern and path.endswith("lora_b"):
            used = np.any(np.asarray(start[path[:-1] + "a"]), axis=-2)[..., None]
        elif made.config.lora.rank_pattern:
            used = np.any(np.asarray(x), axis=-2, keepdims=True)
        moved[path] = np.asarray(x) + (0.3 * used * rng.standard_normal(x.shape)).astype(np.float32)
    return dataclasses.replace(made, moved=unflatten(moved))


def dense(tuned, trained):
    """The base with each changed weight written out from the definition, a layer at a time."""
    lora = tuned.config.lora
    ours, weights, start = flatten(trained["peft"]), flatten(tuned.base), flatten(tuned.frozen.get("peft", {}))

    def changed(path, weight, layer, pick):
        rank, alpha = lora.r, lora.alpha
        if lora.rank_pattern:
            rank = 5 if path.endswith("down_proj") else 2 if layer == 2 else 4
            alpha = 1.0 if path.endswith("q_proj") else alpha
        scale = alpha / (rank**0.5 if lora.rslora else rank)
        change = pick(ours[f"{path}/lora_a"])[:, :rank] @ pick(ours[f"{path}/lora_b"])[:rank]
        if start:
            change -= pick(start[f"{path}/lora_a"]) @ pick(start[f"{path}/lora_b"])
        new = weight + scale * change
        if lora.dora:
            new *= pick(ours[f"{path}/dora_magnitude"]) / jax.lax.stop_gradient(jnp.linalg.norm(new, axis=0))
        return new

    for path in sorted({key.rpartition("/")[0] for key in ours}):
        name = f"{path}/kernel" if f"{path}/kernel" in weights else f"{path}/embedding"
        if not path.startswith("segment_"):
            weights[name] = changed(path, weights[name], None, lambda x: x)
            continue
        for place, layer in enumerate(lora.layers or range(3)):
            new = changed(path, weights[name][layer], layer, lambda x, place=place: x[place])
            weights[name] = weights[name].at[layer].set(new)
    return unflatten(weights)


@pytest.fixture(scope="module")
def program(tuned, jit):
    """trained -> (loss, gradients), compiled once for both tests of a kind."""
    return jit(jax.value_and_grad(tuned.loss))


@pytest.fixture(scope="module")
def plain_loss(tune, jit):
    """Of the base alone, which all kinds share."""
    plain = tune(method="full")
    return float(jit(plain.plain_loss)(plain.base))


def test_a_fresh_adapter_changes_nothing(tuned, program, plain_loss):
    np.testing.assert_allclose(program(tuned.trained)[0], plain_loss, rtol=2e-6)


def test_loss_and_gradients_are_those_of_the_dense_weights(tuned, program, plain_loss, jit):
    loss, grads = program(tuned.moved)
    reference = jax.value_and_grad(lambda trained: tuned.plain_loss(dense(tuned, trained)))
    expected, expected_grads = jit(reference)(tuned.moved)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert abs(float(loss) - plain_loss) > 1e-3  # the adapter does something
    for (path, g), e in zip(jax.tree_util.tree_leaves_with_path(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(g, e, atol=5e-5 * largest(e) + 1e-6, err_msg=str(path))
        assert largest(g) > 0, path


def test_what_fills_up_smaller_ranks_stays_zero(tune, jit):
    tuned = tune(method="lora", lora={"r": 3, "targets": ("q_proj",), "rank_pattern": (("layers/1/.*", 1),)})
    a, b = (flatten(tuned.trained)[f"peft/segment_0/block_0/attention/q_proj/lora_{x}"] for x in "ab")
    assert a.shape == (3, 16, 3) and b.shape == (3, 3, 16)
    assert not a[1, :, 1:].any() and a[0].all() and a[1, :, :1].all()
    trained = jax.tree.map(np.asarray, tuned.trained)
    moved = jax.tree.map(lambda x: np.where(x == 0, x, x + np.float32(0.1)), trained)
    grads = flatten(jit(jax.grad(tuned.loss))(moved))
    assert not grads["peft/segment_0/block_0/attention/q_proj/lora_b"][1, 1:].any()


def test_only_the_small_tree_is_trained_and_the_base_is_untouched(tune):
    tuned = tune(method="lora", train=("final_norm/scale", "layers/2/attention_norm/scale"), lora={"r": 2})
    names = {re.sub(".*/", "", path) for path in flatten(tuned.trained["peft"])}
    assert names == {"lora_a", "lora_b"}
    assert set(flatten(tuned.trained["params"])) == {"final_norm/scale", "segment_0/block_0/attention_norm/scale"}
    variables = tuned.method.variables(tuned.trained, tuned.frozen)
    jax.tree.map(np.testing.assert_array_equal, variables["params"], tuned.base)


@pytest.mark.slow
def test_scan_is_the_loop_and_dropout_is_only_of_training(tune, jit):
    lora = {"r": 4, "dropout": 0.5, "dora": True}
    scanned = tune(method="lora", lora=lora, execution=Execution(remat="full"))
    looped = tune(method="lora", lora=lora, execution=Execution(scan_unroll=0))
    moved = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.02), scanned.trained)
    programs = [jit(tuned.loss) for tuned in (scanned, looped)]
    losses = {float(programs[0](moved, jax.random.key(2)))}
    for rng in (None, jax.random.key(1)):
        one, other = (float(program(moved, rng)) for program in programs)
        assert one == pytest.approx(other, rel=1e-5)
        losses.add(one)
    assert len(losses) == 3


@pytest.mark.parametrize("quantize", ["", "int8"])
def test_a_lean_feed_forward_does_not_pass_over_what_is_added(quantize, tune, jit):
    lora = {"r": 4, "targets": ("up_proj",)}
    plain = tune(method="lora", lora=lora, quantize=quantize)
    lean = tune(method="lora", lora=lora, quantize=quantize, execution=Execution(feedforward=chunked_feedforward(None)))
    moved = jax.tree.map(lambda x: np.asarray(x) + np.float32(0.1), plain.trained)
    np.testing.assert_allclose(jit(lean.loss)(moved), jit(plain.loss)(moved), rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"targets": ("q_proj", "query")}, "'query' matches nothing.*layers/N/attention/q_proj"),
        ({"targets": ("(",)}, "not a regular expression"),
        ({"targets": ("q_proj",), "exclude": ("q_proj",)}, "chooses nothing"),
        ({"layers": (3,)}, "layers are 0 to 2"),
        ({"r": 0}, "rank of 0"),
        ({"rank_pattern": (("q_proj", 0),)}, "rank of 0"),
        ({"dropout": 1.0}, "dropout"),
        ({"init": "zeros"}, "pissa"),
        ({"rank": 4}, "unknown key peft.lora.rank"),
    ],
)
def test_mistakes_are_named(tune, config, message):
    with pytest.raises(UserError, match=message):
        tune(method="lora", lora=config)


def test_defaults():
    assert dataclasses.astuple(LoraConfig()) == (
        16, 32.0, 0.0, ("all-linear",), (), (), (), (), False, False, "kaiming", 1.0,
    )  # fmt: skip
