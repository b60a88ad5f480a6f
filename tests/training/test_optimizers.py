"""Optimizers: stacked layers equal separate ones; the decay mask goes by name; parity with torch and numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from slmjax.errors import UserError
from slmjax.training.optimizers import OptimizerConfig, decay_mask, make_optimizer, muon_mask

NAMES = ("adamw", "adafactor", "lion", "muon")


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def tree(seed: int, layers: int | None = 3, wide: int = 16, narrow: int = 12) -> dict:
    """A parameter tree by the names that the model uses; layers=None: one segment that does not repeat."""
    lead = () if layers is None else (layers,)
    return {
        "embedder": {"embedding": normal(seed, 20, narrow)},
        "segment_0": {
            "block_0": {
                "attention_norm": {"scale": 1 + normal(seed + 1, *lead, narrow)},
                "attention": {
                    "q_proj": {"kernel": normal(seed + 2, *lead, narrow, wide), "bias": normal(3, *lead, wide)}
                },
            }
        },
        "final_norm": {"scale": 1 + normal(seed + 4, narrow)},
        "lm_head": {"kernel": normal(seed + 5, narrow, 20)},
    }


def run(config: OptimizerConfig, params, gradients, rate=1e-2):
    """The parameters after one update for each tree of gradients."""
    optimizer = make_optimizer(config, rate)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        params, state = step(params, state, gradient)
    return params


@pytest.mark.parametrize(
    ("name", "layers", "wide", "narrow"), [*((name, 3, 16, 12) for name in NAMES), ("adafactor", 140, 130, 128)]
)
def test_a_stack_of_layers_is_updated_as_its_layers_would_be(name, layers, wide, narrow):
    """At 128 and above Adafactor factors its statistics; it must never do so over the axis of layers, however long."""
    config = OptimizerConfig(name=name)
    params, gradients = tree(0, layers, wide, narrow), [tree(s, layers, wide, narrow) for s in (10, 20)]
    stacked = run(config, params, gradients)
    layer = layers - 1
    pick = lambda t: {**t, "segment_0": jax.tree.map(lambda x: x[layer], t["segment_0"])}  # noqa: E731
    alone = run(config, pick(params), [pick(g) for g in gradients])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), pick(stacked), alone)


def test_weight_decay_goes_by_name_and_not_by_the_number_of_axes():
    mask = decay_mask(tree(0))
    block = mask["segment_0"]["block_0"]
    assert block["attention"]["q_proj"] == {"kernel": True, "bias": False}
    assert not block["attention_norm"]["scale"] and not mask["final_norm"]["scale"]
    assert mask["lm_head"]["kernel"] and not mask["embedder"]["embedding"]
    assert decay_mask(tree(0), decay_embeddings=True)["embedder"]["embedding"]


@pytest.mark.parametrize("name", NAMES)
def test_without_a_gradient_only_decayed_leaves_shrink_by_rate_times_decay(name):
    params = tree(0)
    zeros = jax.tree.map(np.zeros_like, params)
    after = run(OptimizerConfig(name=name, weight_decay=0.5), params, [zeros], rate=0.1)
    expected = jax.tree.map(lambda p, m: p * (0.95 if m else 1.0), params, decay_mask(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), after, expected)


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_goes_downhill(name):
    """A least-squares problem, on the path names of the model."""
    x, target = jnp.asarray(normal(1, 64, 12)), jnp.asarray(normal(2, 12, 16))
    params = {"segment_0": {"kernel": jnp.zeros((12, 16))}}
    loss = lambda p: jnp.mean((x @ p["segment_0"]["kernel"] - x @ target) ** 2)  # noqa: E731
    optimizer = make_optimizer(OptimizerConfig(name=name, weight_decay=0.0), 0.03)
    state = optimizer.init(params)
    step = jax.jit(lambda p, s: optimizer.update(jax.grad(loss)(p), s, p))
    start = loss(params)
    for _ in range(60):
        updates, state = step(params, state)
        params = optax.apply_updates(params, updates)
    assert loss(params) < 0.6 * start


def test_adamw_equals_torch():
    torch = pytest.importorskip("torch")
    start, gradients = normal(0, 7, 5), [normal(s, 7, 5) for s in range(1, 21)]
    ours = run(OptimizerConfig(), {"kernel": start}, [{"kernel": g} for g in gradients], rate=1e-2)["kernel"]
    weight = torch.nn.Parameter(torch.tensor(start))
    adamw = torch.optim.AdamW([weight], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for gradient in gradients:
        weight.grad = torch.tensor(gradient)
        adamw.step()
    np.testing.assert_allclose(ours, weight.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_lion_equals_its_definition():
    """Chen et al., arXiv:2302.06675, algorithm 2."""
    weight, gradients = normal(0, 7, 5), [normal(s, 7, 5) for s in range(1, 11)]
    ours = run(OptimizerConfig(name="lion"), {"kernel": weight}, [{"kernel": g} for g in gradients], rate=1e-2)[
        "kernel"
    ]
    momentum = np.zeros_like(weight)
    for gradient in gradients:
        weight = weight - 1e-2 * (np.sign(0.9 * momentum + 0.1 * gradient) + 0.1 * weight)
        momentum = 0.95 * momentum + 0.05 * gradient
    np.testing.assert_allclose(ours, weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (3, 24, 16)])
def test_muon_updates_are_near_orthogonal_with_adamws_rms(shape):
    """Newton-Schulz brings every singular value near 1; times 0.2 sqrt(max(in, out)) the RMS is about AdamW's 0.2."""
    params = {"segment_0": {"kernel": np.zeros(shape, np.float32)}}
    after = run(
        OptimizerConfig(name="muon", weight_decay=0.0), params, [{"segment_0": {"kernel": normal(0, *shape)}}], 1.0
    )
    update = np.asarray(after["segment_0"]["kernel"])
    singular = np.linalg.svd(update / (0.2 * np.sqrt(24)), compute_uv=False)
    assert singular.min() > 0.6 and singular.max() < 1.3
    assert 0.15 < np.sqrt(np.mean(update**2)) < 0.25


def test_muon_leaves_embeddings_head_norms_and_biases_to_adamw():
    assert [p for p, m in jax.tree_util.tree_leaves_with_path(muon_mask(tree(0))) if m] == [
        p for p, _ in jax.tree_util.tree_leaves_with_path(tree(0)) if "segment_0" in str(p) and "kernel" in str(p)
    ]
    muon, adamw = (run(OptimizerConfig(name=n), tree(0), [tree(1), tree(2)]) for n in ("muon", "adamw"))
    same = jax.tree.map(lambda a, b: bool(np.allclose(a, b, rtol=1e-5)), muon, adamw)
    kernel = same["segment_0"]["block_0"]["attention"]["q_proj"].pop("kernel")
    assert not kernel and all(jax.tree.leaves(same))


def test_adafactor_keeps_rows_and_columns_of_each_layer_only():
    params = {"segment_0": {"kernel": jnp.zeros((140, 128, 256))}}
    state = make_optimizer(OptimizerConfig(name="adafactor", b1=0.0), 1e-3).init(params)
    sizes = sorted((x.shape for x in jax.tree.leaves(state) if x.size > 1000), key=str)
    assert sizes == [(140, 128), (140, 256)]


@pytest.mark.parametrize("name", NAMES)
def test_the_first_moment_can_be_kept_in_bfloat16(name):
    params = tree(0)
    state = make_optimizer(OptimizerConfig(name=name, momentum_dtype="bfloat16"), 1e-3).init(params)
    largest = sum(x.size for x in jax.tree.leaves(state) if x.dtype == jnp.bfloat16)
    assert largest == sum(x.size for x in jax.tree.leaves(params))


@pytest.mark.parametrize("arguments", [{"name": "adam"}, {"b1": 1.0}, {"eps": 0.0}, {"momentum_dtype": "int8"}])
def test_impossible_settings_are_refused_by_name(arguments):
    with pytest.raises(UserError, match=f"optimizer.{next(iter(arguments))}"):
        OptimizerConfig(**arguments)
