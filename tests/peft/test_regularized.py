"""L2-SP, EWC and KL to the base: nothing at the start, closed forms away from it, however a batch is cut."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.models.parameters import flatten
from slmjax.objectives.next_token import next_token
from slmjax.objectives.regularized import regularized
from slmjax.peft.forward import Network, forward
from slmjax.peft.merging import merge
from slmjax.peft.method import anchor
from tests.tiny import largest, moved

B, T, V = 4, 12, 61
METHODS = {
    "full": {"method": "full"},
    "freeze": {"method": "freeze", "freeze": {"last_layers": 1}, "train": ("embedder/embedding",)},
    "lora": {"method": "lora", "lora": {"r": 3, "targets": ("all-linear", "embedder", "lm_head")}},
    "pissa and a norm": {"method": "lora", "lora": {"r": 3, "init": "pissa"}, "train": ("final_norm/scale",)},
    "lora on int8": {"method": "lora", "lora": {"r": 3}, "quantize": "int8"},
    "prefix": {"method": "prefix", "prefix": {"num_virtual_tokens": 3}},
}
OF_WEIGHTS = [name for name in METHODS if name not in ("prefix", "lora on int8")]


def make_batch(rows=B):
    rng = np.random.default_rng(0)
    segments = np.sort(rng.integers(1, 3, (rows, T)), axis=1).astype(np.int32)
    inputs, targets = rng.integers(0, V, (2, rows, T)).astype(np.int32)
    weights = (rng.random((rows, T)) * np.linspace(0.2, 1, rows)[:, None]).astype(np.float32)
    positions = np.tile(np.arange(T, dtype=np.int32), (rows, 1))
    arrays = {"inputs": inputs, "targets": targets, "positions": positions, "segments": segments}
    return arrays | {"loss_weights": weights}


class Held:
    """A method with its anchor, at the start and away from it, and its terms one by one."""

    def __init__(self, tune, jit, kind):
        self.tuned, self.jit = tune(**METHODS[kind]), jit
        self.model, self.method = self.tuned.model, anchor(self.tuned.method, ewc=True)
        self.start, self.frozen = jit(self.method.split)(self.tuned.base, jax.random.key(3))
        self.frozen["fisher"] = jax.tree.map(np.abs, moved(self.frozen["fisher"], 1.0, seed=7))
        self.away = moved(self.start)
        self.programs = {}

    def terms(self, **strengths):
        return regularized(self.model, self.method, logits_bytes=4 * V * 10, **strengths)

    def extra(self, params, batch=None, **strengths):
        """(what the strengths add to the loss sum, its gradient)"""
        plain = next_token(self.model, self.method)

        def value(params, frozen, batch):
            return self.terms(**strengths)(params, frozen, batch, None).sum - plain(params, frozen, batch, None).sum

        program = self.programs.setdefault(repr(strengths), self.jit(jax.value_and_grad(value)))
        return program(params, self.frozen, make_batch() if batch is None else batch)


@pytest.fixture(scope="module")
def held(tune, jit):
    made = {}
    return lambda kind: made.setdefault(kind, Held(tune, jit, kind))


@pytest.mark.parametrize(
    "kind",
    [pytest.param(name, marks=[] if name in ("full", "lora", "prefix") else [pytest.mark.slow]) for name in METHODS],
)
def test_the_start_is_held_by_nothing(kind, held):
    h = held(kind)
    strengths = (
        {"ewc": 3.0} | ({} if kind == "prefix" else {"kl": 3.0}) | ({"l2_sp": 3.0} if kind in OF_WEIGHTS else {})
    )
    value, gradient = h.extra(h.start, **strengths)
    assert abs(float(value)) < 2e-3  # of a loss of about 100; PiSSA's start is a difference of products
    assert max(largest(g) for g in jax.tree.leaves(gradient)) < 5e-3
    away, _ = h.extra(h.away, **strengths)
    assert float(away) > 0.5


@pytest.mark.parametrize("kind", ["full", "lora", "prefix"])
def test_ewc_is_the_closed_form(kind, held):
    h = held(kind)
    weight = make_batch()["loss_weights"].sum()
    value, gradient = h.extra(h.away, ewc=2.0)
    steps = jax.tree.map(lambda x, y: np.asarray(x) - np.asarray(y), h.away, h.start)
    expected = jax.tree.map(lambda f, s: 2.0 * weight * f * s, h.frozen["fisher"], steps)
    half = sum(float(np.sum(e * s)) for e, s in zip(jax.tree.leaves(expected), jax.tree.leaves(steps), strict=True)) / 2
    assert float(value) == pytest.approx(half, rel=1e-3)
    for (path, found), wanted in zip(flatten(gradient).items(), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=2e-2, atol=2e-3 * largest(wanted), err_msg=path)


@pytest.mark.parametrize("kind", OF_WEIGHTS)
def test_l2_sp_is_the_distance_of_the_networks_weights(kind, held):
    h = held(kind)

    @h.jit
    def merged(away, frozen):
        parts = h.method.parts(away, frozen)
        return merge(parts["params"], parts["peft"]) if "peft" in parts else parts["params"]

    leaves = zip(*map(jax.tree.leaves, (merged(h.away, h.frozen), h.tuned.base)), strict=True)
    moved = (np.square(np.asarray(x) - np.asarray(y)).sum() for x, y in leaves)
    value, _ = h.extra(h.away, l2_sp=0.5)
    assert float(value) == pytest.approx(float(make_batch()["loss_weights"].sum()) * 0.25 * float(sum(moved)), rel=1e-3)


def direct_kl(h, params, batch):
    """Summed, with whole logits."""
    inputs = [batch[name] for name in ("inputs", "positions", "segments")]
    ours = jax.nn.log_softmax(forward(Network(h.model), h.method.variables(params, h.frozen), *inputs))
    params = h.tuned.method.parts(h.start, h.tuned.frozen)["params"]
    base = jax.nn.log_softmax(forward(Network(h.model), {"params": params}, *inputs))
    weights = batch.get("kl_weights", batch["loss_weights"])
    return jnp.sum(weights * jnp.sum(jnp.exp(base) * (base - ours), axis=-1))


@pytest.mark.parametrize(
    ("kind", "marked"),
    [
        ("lora", False),
        ("full", True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("full", False), ("prefix", False))),
        pytest.param("lora on int8", True, marks=pytest.mark.slow),
    ],
)
def test_kl_and_its_gradient_are_those_of_whole_logits(kind, marked, held):
    h, batch = held(kind), make_batch()
    if marked:  # rows that are held are not learned
        batch["kl_weights"] = np.where(np.arange(B)[:, None] == 1, batch["loss_weights"], 0)
        batch["loss_weights"] = batch["loss_weights"] - batch["kl_weights"]
    value, gradient = h.extra(h.away, batch, kl=0.7)
    expected, wanted = h.jit(jax.value_and_grad(lambda p: 0.7 * direct_kl(h, p, batch)))(h.away)
    assert float(expected) > 0.1
    assert float(value) == pytest.approx(float(expected), rel=1e-3, abs=1e-3)
    for (path, x), y in zip(flatten(gradient).items(), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(x, y, atol=2e-3 * largest(y) + 1e-4, err_msg=path)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_normalized_loss_does_not_depend_on_how_the_batch_is_cut(kind, held):
    h, batch = held(kind), make_batch()
    batch["kl_weights"] = batch["loss_weights"][::-1].copy()
    objective = h.jit(h.terms(l2_sp=0.1, ewc=0.1, kl=0.5))
    whole = objective(h.away, h.frozen, batch, None)
    halves = [
        objective(h.away, h.frozen, {k: v[rows] for k, v in batch.items()}, None) for rows in (slice(1), slice(1, B))
    ]
    added = jax.tree.map(lambda a, b: float(a + b), *halves)
    assert added.sum / added.weight == pytest.approx(float(whole.sum / whole.weight), rel=1e-5)
    for name in ("l2_sp", "ewc", "kl"):
        expected = float(whole.metrics[name].over(whole.weight))
        assert added.metrics[name].over(added.weight) == pytest.approx(expected, rel=1e-5), name
        assert added.metrics[name].sum == pytest.approx(float(whole.metrics[name].sum), rel=1e-5), name
    assert added.metrics["kl"].weight == pytest.approx(float(batch["kl_weights"].sum()), rel=1e-5)


def test_dora_has_no_distance(tune):
    tuned = tune(method="lora", lora={"r": 2, "dora": True})
    with pytest.raises(UserError, match="DoRA"):
        regularized(tuned.model, anchor(tuned.method, ewc=False), l2_sp=1.0)(
            tuned.trained, tuned.frozen, make_batch(), None
        )


NEFTUNE = 5.0


def embeddings_of(tuned, segments):
    """rng -> what enters the first layer."""
    options = dataclasses.replace(tuned.method.options, neftune=NEFTUNE)

    def embed(rng, trained, frozen):
        seen = {}
        record = dataclasses.replace(
            tuned.model.execution, constrain=lambda x, name: (seen.setdefault(name, x), x)[1], remat="none"
        )
        network = Network(tuned.model.clone(execution=record), options)
        forward(network, tuned.method.variables(trained, frozen), make_batch()["inputs"], None, segments, rng=rng)
        return seen["embedding"]

    program = jax.jit(embed)  # the layers behind are no part of it: nothing of them is returned
    return lambda rng: np.asarray(program(rng, tuned.trained, tuned.frozen))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora"])
def test_neftune_is_uniform_noise_of_each_documents_length_and_none_in_evaluation(kind, tune):
    tuned = tune(**METHODS[kind])
    segments = np.tile(np.repeat([1, 2, 0], [7, 3, 2]), (B, 1)).astype(np.int32)
    embeddings = embeddings_of(tuned, segments)
    plain, noisy = embeddings(None), embeddings(jax.random.key(0))
    noise = np.abs(noisy - plain)
    D = plain.shape[-1]
    for place, length in ((slice(0, 7), 7), (slice(7, 10), 3)):
        bound = NEFTUNE / np.sqrt(length * D)
        found = noise[:, place]
        assert found.max() <= bound * 1.0001 and found.max() > 0.95 * bound
        assert found.mean() == pytest.approx(bound / 2, rel=0.1)  # of a uniform absolute value
    assert (noise[:, 10:] == 0).all()
    assert not np.allclose(embeddings(jax.random.key(1)), noisy)
    table = tuned.base["embedder"]["embedding"]
    np.testing.assert_allclose(plain, table[make_batch()["inputs"]], atol=1e-6)
