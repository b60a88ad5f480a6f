"""Meshes: sizes that multiply to the devices, and mistakes refused with the axes and the numbers."""

import re

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmjax.errors import UserError
from slmjax.models.config import ModelConfig
from slmjax.sharding.activations import check_mesh_fits
from slmjax.sharding.mesh import AXES, MeshConfig, make_mesh


@given(st.tuples(*[st.integers(1, 6)] * 4), st.integers(0, 3))
def test_the_open_axis_takes_what_is_left(sizes, open_axis):
    devices = sizes[0] * sizes[1] * sizes[2] * sizes[3]
    given_sizes = dict(zip(AXES, sizes, strict=True)) | {AXES[open_axis]: -1}
    assert MeshConfig(**given_sizes).sizes(devices) == sizes
    assert MeshConfig(**dict(zip(AXES, sizes, strict=True))).sizes(devices) == sizes


def test_the_default_splits_everything_over_fsdp():
    assert MeshConfig().sizes(1) == (1, 1, 1, 1)
    assert MeshConfig().sizes(16) == (1, 16, 1, 1)


def test_a_mesh_holds_every_device_once():
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "sequence": 1, "tensor": 2}
    assert sorted(d.id for d in mesh.devices.flat) == [d.id for d in jax.devices()]
    assert make_mesh(MeshConfig(), jax.devices()[:1]).size == 1


@pytest.mark.parametrize(
    ("config", "devices", "message"),
    [
        (
            MeshConfig(fsdp=3),
            8,
            "mesh.data=1, mesh.fsdp=3, mesh.sequence=1, mesh.tensor=1 multiply to 3, but there are 8",
        ),
        (MeshConfig(tensor=3), 8, "mesh.tensor=3 multiply to 3 times -1, but there are 8 devices"),
        (MeshConfig(data=-1), 8, "mesh.data=-1, mesh.fsdp=-1"),
        (MeshConfig(tensor=0), 8, "mesh.tensor=0: each axis must be at least 1"),
        (MeshConfig(data=-2), 8, "mesh.data=-2"),
        (MeshConfig(fsdp=16), 8, "multiply to 16, but there are 8 devices"),
        (MeshConfig(tensor=16), 8, "multiply to 16 times -1, but there are 8 devices"),
    ],
)
def test_a_mistake_is_refused_with_its_axes_and_numbers(config, devices, message):
    with pytest.raises(UserError, match=re.escape(message)):
        config.sizes(devices)


def small(**changes) -> ModelConfig:
    return ModelConfig(**{"vocab_size": 61, "num_layers": 2, "embed_dim": 48, "num_heads": 6, "ffn_dim": 8} | changes)


@pytest.mark.parametrize(
    ("config", "mesh", "length", "message"),
    [
        (small(), MeshConfig(tensor=4), 16, "model.num_heads=6 (layer 0) is not a multiple of mesh.tensor=4"),
        (
            small(num_heads=12, num_kv_heads=3),
            MeshConfig(tensor=2),
            16,
            "model.num_kv_heads=3 (layer 0) and mesh.tensor=2",
        ),
        (
            small(num_heads=(8, 6), num_kv_heads=2, head_dim=8),
            MeshConfig(tensor=4),
            16,
            "model.num_heads=6 (layer 1) is not a multiple of mesh.tensor=4",
        ),
        (small(), MeshConfig(sequence=8), 20, "data.sequence_length=20 is not a multiple of mesh.sequence=8"),
    ],
)
def test_a_model_that_does_not_fit_the_mesh_is_refused(config, mesh, length, message):
    with pytest.raises(UserError, match=re.escape(message)):
        check_mesh_fits(config, make_mesh(mesh), length)


def test_models_that_fit():
    check_mesh_fits(small(num_heads=4, num_kv_heads=1), make_mesh(MeshConfig(tensor=4)), 16)  # one head, copied
    check_mesh_fits(small(num_heads=8, num_kv_heads=4), make_mesh(MeshConfig(tensor=2, sequence=4)), 16)
