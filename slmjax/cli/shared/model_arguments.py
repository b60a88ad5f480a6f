"""Options of the commands that load a model."""

from __future__ import annotations

import argparse
from typing import Any

from slmjax.errors import UserError
from slmjax.sharding.config import AXES, MeshConfig


def add_checkpoint_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--checkpoint`."""
    parser.add_argument(
        "--checkpoint",
        metavar="best|latest|STEP",
        help="checkpoint of a run to load (default: best after early stopping, else latest)",
    )


def add_mesh_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--mesh`."""
    parser.add_argument(
        "--mesh",
        metavar="AXIS=N,...",
        help="devices along data, fsdp and tensor, as in data=4,tensor=2 (default: all accelerators along data)",
    )


def mesh_of(text: str | None) -> Any:
    """The mesh of `--mesh`; None for one device."""
    import jax

    from slmjax.sharding.mesh import make_mesh

    if text is None:
        many = jax.default_backend() != "cpu" and jax.device_count() > 1
        return make_mesh(MeshConfig(data=-1, fsdp=1)) if many else None
    sizes = {"fsdp": 1}
    for part in text.split(","):
        axis, _, size = part.partition("=")
        if axis.strip() not in AXES or not size.strip().lstrip("-").isdecimal():
            raise UserError(f"--mesh {text} is not understood: write it as in data=4,tensor=2.")
        sizes[axis.strip()] = int(size)
    return make_mesh(MeshConfig(**sizes))
