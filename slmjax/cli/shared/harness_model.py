"""The model that lm-evaluation-harness's own command line makes of its arguments."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from slmjax.errors import UserError, did_you_mean
from slmjax.evaluation.harness.model import HarnessModel
from slmjax.sharding.config import MeshConfig

_MESH = tuple(field.name for field in dataclasses.fields(MeshConfig))
_LOADING = ("path", "base", "checkpoint", "dtype")
_SETTINGS = tuple(name for name in inspect.signature(HarnessModel).parameters if name != "lm")
# The harness gives these on its own, whatever the machine is; how many rows run at once is the engine's.
_IGNORED = ("batch_size", "max_batch_size", "device", "trust_remote_code")


class SlmjaxModel(HarnessModel):
    """The model that the harness makes of `--model slmjax --model_args path=PATH,...`.

    Arguments: path, base, checkpoint and dtype as `slmjax.load` takes them; data, fsdp, sequence and tensor, the sizes
    of a mesh; and the settings of `HarnessModel`, such as max_length.

    Raises:
        UserError: no path, an unknown argument, or what `slmjax.load` and `HarnessModel` refuse.
    """

    def __init__(self, **arguments: Any):
        known = (*_LOADING, *_MESH, *_SETTINGS)
        unknown = next((name for name in arguments if name not in (*known, *_IGNORED)), None)
        if unknown is not None:
            raise UserError(f"The model slmjax takes no argument {unknown!r}; {did_you_mean(unknown, known)}")
        if not arguments.get("path"):
            raise UserError("The model slmjax needs its path: give --model_args path=PATH.")
        super().__init__(_load(arguments), **{name: arguments[name] for name in _SETTINGS if name in arguments})


def _load(arguments: dict[str, Any]) -> Any:
    from slmjax.formats.models import load
    from slmjax.sharding.mesh import make_mesh

    sizes = {axis: arguments[axis] for axis in _MESH if axis in arguments}
    chosen = {name: arguments[name] for name in _LOADING[1:] if name in arguments}
    return load(str(arguments["path"]), mesh=make_mesh(MeshConfig(**sizes)) if sizes else None, **chosen)
