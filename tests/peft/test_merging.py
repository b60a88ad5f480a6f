"""Merging, combining and serving adapters against dense sums."""

import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.peft.adapters_by_row import for_rows, stack_adapters
from slmjax.peft.combining import combine
from slmjax.peft.interception import applied
from slmjax.peft.merging import merge, unmerge
from slmjax.peft.targets import flatten
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
def test_a_merged_network_computes_the_same_and_unmerges_to_the_base(kind, tune, jit):
    tuned = tune(**KINDS[kind])
    found = parts(tuned)
    merged = jit(merge)(found["params"], found["peft"])
    expected = jit(lambda t: applied(tuned.model, tuned.method.variables(t, tuned.frozen), TOKENS))(moved(tuned))
    plain = jit(lambda p: tuned.model.apply({"params": p}, TOKENS))
    logits = plain(merged)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * largest(expected))
    assert largest(logits - plain(tuned.base)) > 1e-2
    if kind == "dora":
        with pytest.raises(UserError, match="norms are gone"):
            unmerge(merged, found["peft"])
        return
    back = flatten(jit(unmerge)(merged, found["peft"]))
    for path, leaf in flatten(tuned.base).items():  # to float32 rounding of the larger of the two
        larger = max(largest(leaf), largest(flatten(merged)[path]))
        np.testing.assert_allclose(back[path], leaf, atol=4e-7 * larger, err_msg=path)


def test_a_prefix_cannot_be_merged(tune):
    found = parts(tune(method="prefix", prefix={"num_tokens": 2}))
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


def test_each_row_of_a_batch_has_its_own_adapter(adapters, jit):
    tuned, collections = adapters
    stacked = stack_adapters([{}, *collections])

    def run(added, tokens):
        return applied(tuned.model, {"params": tuned.base, "peft": added}, tokens)

    by_itself = jit(run)
    served = jit(lambda which: run(for_rows(stacked, which), TOKENS))
    for which in ([1, 0, 3], [2, 2, 1]):  # one program: the adapters are chosen when it is run
        rows = served(jnp.asarray(which, jnp.int32))
        for row, adapter in enumerate(which):
            alone = by_itself([{}, *collections][adapter], TOKENS[row : row + 1])
            np.testing.assert_allclose(rows[row], alone[0], atol=1e-5 * largest(alone))
    assert served._cache_size() == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a: combine(a[:2], [1.0]), "2 adapters and 1 weights"),
        (lambda a: combine(a[:2], [1.0, 1.0], "mean"), "cat, linear, ties, dare, svd"),
        (lambda a: combine([a[0], a[2]], [1.0, 1.0], "linear"), "same modules"),
        (lambda a: combine(a[:1], [1.0], "ties", density=0.0), "density"),
        (lambda a: stack_adapters([{"lm_head": {"lora_a": jnp.zeros((2, 1))}}]), "table or head"),
        (lambda a: stack_adapters([{"segment_0": {"x": {"ia3_output": jnp.zeros((1, 2))}}}]), "only LoRA"),
    ],
)
def test_mistakes_are_named(adapters, call, message):
    with pytest.raises(UserError, match=message):
        call(adapters[1])
