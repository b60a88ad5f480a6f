"""FLOPs by the rule, against a count over the traced program."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.models.counting import count_parameters, flops_per_token
from slmjax.models.execution import Execution
from slmjax.models.families.registry import model_config
from slmjax.models.transformer import Transformer

T = 12


def matmul_flops(jaxpr) -> int:
    """2 x multiply-adds of every dot_general of a program, loops unrolled."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            contracted = equation.params["dimension_numbers"][0][0]
            depth = int(np.prod([equation.invars[0].aval.shape[i] for i in contracted]))
            total += 2 * depth * int(np.prod(equation.outvars[0].aval.shape))
        repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns")):
            total += repeats * matmul_flops(value) if hasattr(value, "eqns") else 0
    return total


def visible_keys(window: int | None) -> float:
    """Mean over queries of the keys that the mask leaves, counted one by one."""
    distance = np.arange(T)[:, None] - np.arange(T)[None]
    visible = (distance >= 0) & (distance < (window or T))
    return visible.sum() / T


def test_flops_are_those_of_the_traced_program(tiny):
    """The XLA path computes whole squares of scores; the rule counts only what the mask leaves."""
    model = Transformer(tiny, Execution(scan_unroll=0))
    tokens = jnp.zeros((1, T), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)
    traced = matmul_flops(jax.make_jaxpr(model.apply)(params, tokens).jaxpr) / T
    for spec in tiny.layers:
        heads = spec.num_heads * tiny.head_dim * tiny.block_repeats
        traced -= 4 * heads * (T - visible_keys(spec.window))
        if tiny.alibi_scaled:  # what its rounding adds to the scores is one more dimension of each head
            traced -= 4 * spec.num_heads * T
    assert flops_per_token(tiny, T, training=False) == pytest.approx(traced, rel=1e-9)


def test_the_backward_pass_costs_twice_the_forward_pass():
    config = model_config("pythia-14m")
    tokens = jnp.zeros((1, T), jnp.int32)
    model = Transformer(config)
    params = jax.eval_shape(model.init, jax.random.key(0), tokens)
    forward = jax.make_jaxpr(model.apply)(params, tokens)
    both = jax.make_jaxpr(jax.value_and_grad(lambda p: jnp.sum(jnp.tanh(model.apply(p, tokens)))))(params)
    assert matmul_flops(both.jaxpr) == 3 * matmul_flops(forward.jaxpr)
    assert flops_per_token(config, T) == 3 * flops_per_token(config, T, training=False)


def test_a_large_model_costs_about_six_times_its_parameters():
    """The 6 N of the scaling laws (arXiv:2001.08361), N without the embedding lookup, attention apart."""
    config = model_config("llama-2-7b")
    counted = count_parameters(config)
    attention = 3 * 4 * config.num_layers * config.embed_dim * (2048 + 1) / 2
    matrices = counted.non_embedding - counted.norms + counted.head
    assert flops_per_token(config, 2048) == pytest.approx(6 * matrices + attention, rel=1e-12)


@pytest.mark.parametrize(("window", "length"), [(1, 5), (4, 12), (12, 12), (99, 12)])
def test_a_window_of_the_whole_length_is_no_window(window, length):
    config = model_config("mistral-7b-v0.1")
    local = dataclasses.replace(config, window=window)
    everything = dataclasses.replace(config, window=None, layer_pattern=("global",))
    if window >= length:
        assert flops_per_token(local, length) == flops_per_token(everything, length)
    else:
        assert flops_per_token(local, length) < flops_per_token(everything, length)
