"""Merging and combining adapters against dense sums."""

import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.models.parameters import flatten
from slmjax.peft.combining import combine
from slmjax.peft.forward import Network, forward
from slmjax.peft.merging import merge
from tests import tiny
from tests.tiny import largest

KINDS = {
    "lora": {"method": "lora", "lora": {"r": 3, "targets": ("all-linear", "embedder", "lm_head")}},
    "dora": {"method": "lora", "lora": {"r": 3, "dora": True, "layers": (0, 2)}},
    "pissa": {"method": "lora", "lora": {"r": 3, "init": "pissa"}},
    "ia3": {"method": "ia3"},
}
TOKENS = np.random.default_rng(0).integers(0, 61, (3, 7)).astype(np.int32)


def moved(tuned, seed=0):
    return tiny.moved(tuned.trained, 0.2, seed)


def parts(tuned, seed=0):
    return tuned.method.parts(moved(tuned, seed), tuned.frozen)


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_network_computes_the_same(kind, tune, jit):
    tuned = tune(**KINDS[kind])
    found = parts(tuned)
    merged = jit(merge)(found["params"], found["peft"])
    expected = jit(lambda t: forward(Network(tuned.model), tuned.method.variables(t, tuned.frozen), TOKENS))(
        moved(tuned)
    )
    plain = jit(lambda p: tuned.model.apply({"params": p}, TOKENS))
    logits = plain(merged)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * largest(expected))
    assert largest(logits - plain(tuned.base)) > 1e-2


def test_a_prefix_cannot_be_merged(tune):
    found = parts(tune(method="prefix", prefix={"num_virtual_tokens": 2}))
    with pytest.raises(UserError, match="only LoRA"):
        merge(found["params"], found["peft"])


@pytest.fixture(scope="module")
def adapters(tune):
    """Three adapters of one base; the third of another rank and other modules."""
    one = tune(method="lora", lora={"r": 2, "alpha": 4.0})
    other = tune(method="lora", lora={"r": 3, "alpha": 1.0, "targets": ("q_proj", "down_proj"), "layers": (1,)})
    return one, [parts(one, 1)["peft"], parts(one, 2)["peft"], parts(other, 3)["peft"]]


def changes(adapter):
    """module -> s A B."""
    flat = flatten(adapter)
    modules = {path.rpartition("/")[0] for path in flat}
    a, b, s = ({m: flat[f"{m}/lora_{x}"] for m in modules} for x in ("a", "b", "scale"))
    return {m: np.asarray(s[m])[:, None, None] * (np.asarray(a[m]) @ np.asarray(b[m])) for m in modules}


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_cat_and_svd_are_the_weighted_sum(adapters, method):
    first, second = map(changes, adapters[1][:2])
    both = changes(combine(adapters[1][:2], [0.7, -0.4], method, rank=4))
    for module, change in both.items():
        expected = 0.7 * first[module] - 0.4 * second[module]
        np.testing.assert_allclose(change, expected, atol=2e-6 * np.abs(expected).max() + 1e-6)


@pytest.mark.parametrize("method", ["linear", "ties", "dare"])
def test_one_adapter_by_itself_is_itself_when_all_is_kept(adapters, method):
    first = adapters[1][0]
    alone, expected = changes(combine([first], [1.5], method, density=1.0)), changes(first)
    for module, change in alone.items():
        np.testing.assert_allclose(change, 1.5 * expected[module], atol=1e-5)


def test_ties_elects_a_sign_and_averages_those_that_agree():
    def adapter(values):
        a = jnp.asarray(values, jnp.float32).reshape(1, 4, 1)
        return {"segment_0": {"m": {"lora_a": a, "lora_b": jnp.ones((1, 1, 1)), "lora_scale": jnp.ones(1)}}}

    adapters = [adapter([4, 3, -1, 0.1]), adapter([2, -5, -3, 0.2])]
    mixed = combine(adapters, [1.0, 1.0], "ties", density=0.75)
    np.testing.assert_allclose(mixed["segment_0"]["m"]["lora_a"][0, :, 0], [3, -5, -2, 0])


def test_dare_keeps_the_mean():
    """Of n equal values a share of 1/2 is kept, doubled, within five standard deviations of a binomial mean."""
    n, value = 40_000, 0.25
    a, b = np.full((1, n, 1), value, np.float32), np.ones((1, 1, 1), np.float32)
    adapter = {"segment_0": {"m": {"lora_a": a, "lora_b": b, "lora_scale": np.ones(1, np.float32)}}}
    drawn = np.asarray(combine([adapter], [1.0], "dare", density=0.5, seed=3)["segment_0"]["m"]["lora_a"])
    deviation = 0.5 / n**0.5
    assert np.mean(drawn == 0) == pytest.approx(0.5, abs=5 * deviation)
    assert drawn.mean() == pytest.approx(value, abs=5 * deviation * 2 * value)
    np.testing.assert_allclose(drawn[drawn != 0], 2 * value, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: combine(a[:2], [1.0]), "2 adapters and 1 weights"),
        (lambda a: combine(a[:2], [1.0, 1.0], "mean"), "cat, linear, ties, dare, svd"),
        (lambda a: combine([a[0], a[2]], [1.0, 1.0], "linear"), "same modules"),
        (lambda a: combine(a[:1], [1.0], "ties", density=0.0), "density"),
    ],
)
def test_mistakes_are_named(adapters, call, message):
    with pytest.raises(UserError, match=message):
        call(adapters[1])
