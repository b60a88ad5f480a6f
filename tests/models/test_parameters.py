"""The schema of the parameters against the network itself, for uniform, periodic and irregular layers."""

import jax
import numpy as np
import optax
import pytest

from slmjax.models.config import ModelConfig
from slmjax.models.parameters import (
    abstract_leaves,
    abstract_params,
    flatten,
    is_matrix,
    is_stacked,
    is_weight_product,
    layers_by_block,
    layers_of,
    path_string,
    place_of,
    unflatten,
    within_block,
)
from slmjax.models.transformer import Transformer
from tests.tiny import noise

NETWORKS = {
    "uniform": ModelConfig(vocab_size=16, num_layers=3, embed_dim=8, num_heads=2, ffn_dim=12),
    "period of three, one left over": ModelConfig(
        vocab_size=16, num_layers=7, embed_dim=8, num_heads=2, ffn_dim=12, window=4,
        layer_pattern=("local", "local", "global"),
    ),
    "layers that all differ": ModelConfig(
        vocab_size=16, num_layers=3, embed_dim=8, num_heads=2, ffn_dim=(12, 16, 20), position="learned",
        embedding_projection_dim=4, tie_embeddings=False, norm="layer", norm_bias=True, qkv_bias=True,
    ),
}  # fmt: skip
each_network = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS.keys())


@pytest.fixture
def params(network):
    return noise(abstract_params(network))


@each_network
def test_abstract_parameters_are_those_of_the_network(network):
    found = jax.eval_shape(Transformer(network).init, jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), found)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract_params(network)) == shapes
    assert list(abstract_leaves(network)) == list(flatten(found))


@each_network
def test_flatten_and_unflatten_are_inverse(network, params):
    again = unflatten(flatten(params))
    assert jax.tree.structure(again) == jax.tree.structure(params)
    assert all(map(np.array_equal, jax.tree.leaves(again), jax.tree.leaves(params)))


@each_network
def test_every_layer_has_one_place_and_every_place_one_layer(network):
    places = [place_of(network, layer) for layer in range(network.num_layers)]
    assert len(set(places)) == network.num_layers
    for layer, place in enumerate(places):
        assert layers_by_block(network)[place.path][place.repeat] == layer
        assert network.segments[place.segment].period[place.block] == network.layers[layer]
    assert sorted(sum(layers_by_block(network).values(), ())) == list(range(network.num_layers))
    for outside in (-1, network.num_layers):
        with pytest.raises(IndexError):
            place_of(network, outside)


@each_network
def test_the_first_axis_of_a_stacked_array_is_that_of_its_layers(network, params):
    for path, leaf in flatten(params).items():
        layers = layers_of(network, path)
        assert is_stacked(path) == bool(layers)
        if layers:
            assert leaf.shape[0] == len(layers)
            places = [place_of(network, layer) for layer in layers]
            assert {f"{place.path}/{within_block(path)}" for place in places} == {path}
            assert [place.repeat for place in places] == list(range(len(layers)))
        else:
            assert within_block(path) == path


@each_network
def test_matrices_are_the_arrays_of_two_axes_and_products_those_that_are_no_tables(network, params):
    for path, leaf in flatten(params).items():
        assert is_matrix(path) == (leaf.ndim - is_stacked(path) == 2), path
        outside = path.startswith(("embedder/", "position_embedder/", "lm_head/"))
        assert is_weight_product(path) == (is_matrix(path) and not outside), path


@each_network
def test_paths_are_recognised_below_an_optimizers_state(network, params):
    state = optax.adam(1e-3).init(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state[0].mu):
        assert path_string(path) in flatten(params)
        assert leaf.shape == flatten(params)[path_string(path)].shape
    below = {path: path.partition("mu/")[2] for path in flatten({"opt_state": state}) if "/mu/" in path}
    assert sorted(below.values()) == sorted(flatten(params))
    for whole, path in below.items():
        assert is_stacked(whole) == is_stacked(path)
        assert is_weight_product(whole) == is_weight_product(path)
        assert layers_of(network, whole) == layers_of(network, path)


def test_words_that_only_resemble_the_names_are_not_taken_for_them():
    assert not is_stacked("segmented/block_0/kernel")
    assert not is_stacked("my_segment_0/kernel")
    assert not is_matrix("q_proj/kernel_int8")
    assert not is_weight_product("embed_in_proj/bias")
    assert is_weight_product("embed_in_proj/kernel")
