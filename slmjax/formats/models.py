"""The front doors: load a model from whatever a path is, save it as whatever is asked for, say what a path is.

A format is four functions; the doors, the commands and their help loop over `FORMATS` and know none of them by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from slmjax.errors import UserError
from slmjax.files import local_path
from slmjax.formats import catalog, facts, model_directory, runs
from slmjax.formats.adapters import door
from slmjax.formats.adapters.adapter import attached
from slmjax.formats.catalog import FormatName
from slmjax.formats.gguf import model as gguf
from slmjax.formats.huggingface import directory as huggingface
from slmjax.formats.huggingface.export import save_huggingface
from slmjax.formats.huggingface.hub import download, is_hub_id
from slmjax.formats.recognition import Kind, require_kind
from slmjax.inference.language_model import LanguageModel
from slmjax.models.config import ModelConfig
from slmjax.models.families.registry import model_config


@dataclass(frozen=True)
class Format:
    """One way in which models lie on a disk.

    kinds: those of `kind_of` that are read in this way. describe: (its network, or None, and what else is there),
    without reading weights. load: (path, *, mesh, dtype, merge, base) -> LanguageModel. save: (lm, path, *, dtype) ->
    Path, None where a model cannot be saved so.
    save_adapter: (fine-tune, path) -> Path, of a format that holds what a fine-tune adds and not its base.
    """

    about: FormatName
    kinds: tuple[Kind, ...]
    describe: Callable[[Path], tuple[ModelConfig | None, dict[str, Any]]]
    load: Callable[..., LanguageModel]
    save: Callable[..., Path] | None = None
    save_adapter: Callable[..., Path] | None = None


def _plain(load: Callable[..., LanguageModel]) -> Callable[..., LanguageModel]:
    """Of a format that has its weights itself."""

    def load_plain(path: Path, *, mesh: Any, dtype: str | None, merge: bool, base: str | None) -> LanguageModel:
        if base is not None:
            raise UserError(f"{path} has its weights itself, so it takes no base: leave base out.")
        return load(path, mesh=mesh, dtype=dtype)

    return load_plain


def _load_run(path: Path, *, mesh: Any, dtype: str | None, merge: bool, base: str | None) -> LanguageModel:
    return runs.load_run(path, lambda base: load(base, dtype="float32"), mesh=mesh, dtype=dtype, merge=merge, base=base)


def _load_adapter(path: Path, *, mesh: Any, dtype: str | None, merge: bool, base: str | None) -> LanguageModel:
    """An adapter's directory put on its base, which is read in float32."""
    tuned = door.read_adapter(path, lambda base: load(base, mesh=mesh, dtype="float32"), base)
    return attached(tuned.base, tuned.adapter, dtype=dtype, merge=merge, path=str(path))


FORMATS = (
    Format(catalog.RUN, ("run", "checkpoint"), runs.describe_run, _load_run),
    Format(
        catalog.SLMJAX,
        model_directory.KINDS,
        model_directory.describe,
        _plain(model_directory.load),
        model_directory.save,
    ),
    Format(
        catalog.HUGGINGFACE,
        ("huggingface",),
        huggingface.describe_huggingface,
        _plain(huggingface.load_huggingface),
        save_huggingface,
    ),
    Format(catalog.GGUF, ("gguf",), gguf.describe_gguf, _plain(gguf.load_gguf), gguf.save_gguf),
    Format(
        catalog.PEFT,
        ("peft",),
        door.describe_adapter,
        _load_adapter,
        save_adapter=door.save_as_peft,
    ),
    Format(
        catalog.ADAPTERHUB,
        ("adapterhub",),
        door.describe_adapter,
        _load_adapter,
        save_adapter=door.save_as_adapterhub,
    ),
)


def load(
    path: str | Path,
    *,
    mesh: jax.sharding.Mesh | None = None,
    dtype: str | None = None,
    merge: bool = True,
    base: str | Path | None = None,
    checkpoint: str | int | None = None,
) -> LanguageModel:
    """A model from a run's workdir, a checkpoint, a directory that `save` wrote, a directory of Hugging Face (one file
    or sharded), a .gguf file, an adapter's directory (peft's or AdapterHub's), or a name on the Hugging Face hub
    ("organization/name", needs slmjax[hub]).

    base: of an adapter or a fine-tuned run, where its base is; None: where it says. The two are merged in float32.
    checkpoint: of a run, "best" (by the validation loss, or checkpoint.best_metric), "latest" or a step; None: the best
    after early stopping, else the latest.
    mesh: to spread the parameters over; None is the first device. dtype: of the parameters, "float32", "bfloat16" or
    "float16"; None keeps the file's (a run's and a GGUF file's are float32). merge: work what a fine-tune added into
    its base's weights; False, and methods that no weights can express (prefixes, prompts, bottleneck adapters), keep it
    beside them in `peft`. UserError when the path is none of these. A model without a tokenizer loads: `lm.tokenizer`
    is then None.
    """
    catalog.require_float(dtype)
    place, format = _find(path, checkpoint, pick=True)
    return format.load(place, mesh=mesh, dtype=dtype, merge=merge, base=None if base is None else str(base))


def save(lm: LanguageModel, path: str | Path, *, format: str | None = None, dtype: str | None = None) -> Path:
    """Write a model, whole or not at all; returns where.

    format: "slmjax" and "huggingface" make a directory, "gguf" a file; None: gguf where the path ends with .gguf, else
    slmjax. dtype: float32, bfloat16 or float16, by default what the parameters have; gguf has also q8_0, q5_1, q5_0,
    q4_1 and q4_0, and float16 by default. What it replaces must be a model of that format and nothing but that.
    "slmjax" is transformers' layout too, wherever a family of transformers can express the network, with slmjax.json
    beside it, from which the very same model is loaded.
    """
    known = [f.name for f in catalog.WRITTEN if not f.is_adapter]
    if format is not None:
        _named(format, known)
    write = _named(catalog.format_of_destination(path, format), known).save
    assert write is not None
    return write(lm, path, dtype=dtype)


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    format: str | None = None,
    dtype: str | None = None,
    base: str | Path | None = None,
    checkpoint: str | int | None = None,
) -> Path:
    """Write the model at `source` in another format or dtype; returns where.

    format: one of `save`'s for a model (None: by the destination's name, as there), "peft" or "adapterhub" for what a
    fine-tuned run (or an adapter's directory) adds, without the base. dtype: as in `save`; adapters are written in
    float32. base: of an adapter, where its base is; of a run that is written as an adapter, the name or path that is
    written as its base's (its own when None).
    """
    known = [f.name for f in catalog.WRITTEN]
    if format is not None:
        _named(format, known)
    wanted = _named(catalog.format_of_destination(destination, format), known)
    if wanted.save_adapter is None:
        model = load(source, base=base, checkpoint=checkpoint)
        return save(model, destination, format=wanted.about.name, dtype=dtype)
    if dtype not in (None, "float32"):
        raise UserError(f"The dtype {dtype} cannot be chosen here: adapters are written in float32, as by peft itself.")
    place, found = _find(source, checkpoint, pick=True)
    read = door.read_run if found.about is catalog.RUN else door.read_adapter
    if found.about is not catalog.RUN and found.save_adapter is None:
        raise UserError(f"{place} is a model and not a fine-tuned run: there is no adapter to write.")
    where = None if base is None else str(base)
    return wanted.save_adapter(read(place, lambda base: load(base, dtype="float32"), where), destination)


def inspect(
    path: str | Path, *, batch_size: int = 1, context: int = 0, checkpoint: str | int | None = None
) -> dict[str, Any]:
    """Describe a path or a named model: kind, architecture, sizes and costs; no weight is read.

    batch_size, context: rows and tokens a row of the key/value cache that is counted; 0: the model's own context.
    checkpoint: of a run, as in `load`; None describes the run. An adapter is described by its own files alone, without
    its base's sizes.
    """
    if batch_size < 1 or context < 0:
        raise UserError(f"The cache needs batch_size={batch_size} >= 1 and context={context} >= 0 (the model's).")
    if checkpoint is None and "/" not in str(path) and not local_path(path, "The model").exists():
        return {"kind": "named model", **describe_config(model_config(str(path)), batch_size, context)}
    place, format = _find(path, checkpoint, pick=checkpoint is not None)
    config, found = format.describe(place)
    return found if config is None else found | describe_config(config, batch_size, context)


def describe_config(config: ModelConfig, batch_size: int = 1, context: int = 0) -> dict[str, Any]:
    """Architecture and costs of a network, as `inspect` gives them."""
    return facts.describe_network(config) | facts.describe_costs(config, batch_size, context)


def _find(path: str | Path, checkpoint: str | int | None = None, *, pick: bool = False) -> tuple[Path, Format]:
    """A path (fetched where it names a model of the hub) and its format; with `pick`, of a run the one checkpoint."""
    place, kind = require_kind(download(str(path)) if is_hub_id(path) else path)
    if kind == "run" and pick:
        run = runs.open_run(place)
        step = runs.pick_step(run, checkpoint)
        place = place if step is None else run.checkpoints / str(step)
    elif checkpoint is not None:
        raise UserError(f"{place} is not the workdir of a run and has no checkpoints to choose from: leave it out.")
    return place, next(format for format in FORMATS if kind in format.kinds)


def _named(name: str, known: list[str]) -> Format:
    if name not in known:
        raise UserError(f"The format is {name!r}; choose {', '.join(known)}.")
    return next(format for format in FORMATS if format.about.name == name)
