"""The front doors: load a model from whatever a path is, save it as whatever is asked for."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp

from slmjax.errors import UserError
from slmjax.formats.adapters.adapter import attached
from slmjax.formats.adapters.door import is_adapter, read_adapter, read_run, save_adapter
from slmjax.formats.huggingface.directory import DTYPES, is_huggingface, load_huggingface
from slmjax.formats.huggingface.export import save_huggingface
from slmjax.formats.huggingface.hub import download, is_hub_id
from slmjax.inference import language_model
from slmjax.inference.finetuned import load_finetuned
from slmjax.inference.language_model import LanguageModel
from slmjax.peft.config import MERGEABLE

FORMATS = ("slmjax", "huggingface", "gguf")
_FLOATS = (jnp.float32, jnp.bfloat16, jnp.float16)  # codes of quantized weights are none
_GGUF_DTYPES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}


def load(
    path: str | Path,
    *,
    mesh: jax.sharding.Mesh | None = None,
    dtype: str | None = None,
    merge: bool = True,
    base: str | Path | None = None,
) -> LanguageModel:
    """A model from a run's workdir, a checkpoint, a directory that `save` wrote, a directory of Hugging Face (one file
    or sharded), a .gguf file, an adapter's directory (peft's or AdapterHub's), or a name on the Hugging Face hub
    ("organization/name", needs slmjax[hub]).

    base: of an adapter, where its base is; None: where the adapter says. The two are merged in float32.
    mesh: to spread the parameters over; None is the first device. dtype: of the parameters, "float32", "bfloat16" or
    "float16"; None keeps the file's (a run's and a GGUF file's are float32). merge: work what a fine-tune added into
    its base's weights; False, and methods that no weights can express (prefixes, prompts, bottleneck adapters), keep it
    beside them in `peft`. UserError when the path is none of these.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype is {dtype!r}; choose {', '.join(DTYPES)}.")
    if is_hub_id(path):
        path = download(str(path))
    path = Path(path).expanduser()
    if is_adapter(path):
        return _with_base(path, mesh, dtype, base, merge)
    if base is not None:
        raise UserError(f"{path} is no adapter's directory: it has its weights itself and takes no base.")
    if path.is_file() and path.suffix.lower() == ".gguf":
        from slmjax.formats.gguf.model import load_gguf

        return LanguageModel(*load_gguf(path, mesh=mesh, dtype=None if dtype is None else jnp.dtype(dtype)))
    if is_huggingface(path):
        return load_huggingface(path, mesh=mesh, dtype=dtype)
    place = language_model.locate(path)
    if place.description.peft.method != "full":
        return _finetuned(place, dtype, merge)
    return language_model.load(path, mesh=mesh, dtype=dtype)


def _with_base(
    path: Path, mesh: jax.sharding.Mesh | None, dtype: str | None, base: str | Path | None, merge: bool
) -> LanguageModel:
    """An adapter's directory put on its base, which is read in float32."""
    where = None if base is None else str(base)
    tuned = read_adapter(path, lambda base: load(base, mesh=mesh, dtype="float32"), where)
    return attached(tuned.base, tuned.adapter, dtype=dtype, merges=merge)


def convert_adapter(source: str | Path, path: str | Path, *, format: str = "peft", base: str | None = None) -> Path:
    """Write what a fine-tuned run (or an adapter's directory) adds to its base, without the base; returns where.

    format: "peft" for LoRA and kin, IA3, prefixes and prompts, "adapterhub" for bottleneck adapters. base: of a run,
    the name or path that is written as the base's (its own when None); of an adapter, where its base is.
    """
    source = Path(source).expanduser()

    def load_base(base: str) -> LanguageModel:
        return load(base, dtype="float32")

    if is_adapter(source):
        return save_adapter(read_adapter(source, load_base, base), path, format=format)
    return save_adapter(read_run(language_model.locate(source), load_base, base), path, format=format)


def _finetuned(place: language_model.Location, dtype: str | None, merge: bool) -> LanguageModel:
    """A fine-tuned run on its base: merged, or what it added beside the parameters."""
    run = place.description
    base = load(run.peft.base, dtype="float32")
    tokenizer, _ = language_model.run_tokenizer(place)
    checkpoints = place.directory / "checkpoints"
    tuned = load_finetuned(run, checkpoints, base.params, step=place.step, encode=tokenizer.encode)
    merge = merge and run.peft.method in MERGEABLE
    variables = {"params": tuned.merged()} if merge else tuned.variables
    params = variables["params"]
    if dtype is not None:
        params = jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.dtype in _FLOATS else leaf, params)
    return LanguageModel(run.model, params, tokenizer, base.stop_ids, variables.get("peft", {}), tuned.method.options)


def save(lm: LanguageModel, path: str | Path, *, format: str = "slmjax", dtype: str | None = None) -> Path:
    """Write a model, whole or not at all; returns where.

    format: "slmjax" and "huggingface" make a directory, "gguf" a file. dtype: float32 (the default of slmjax),
    bfloat16, or for huggingface also float16 (its default is that of the parameters); gguf has also q8_0, q4_0, q4_1,
    q5_0 and q5_1, and float16 by default. What it replaces must be a model of that format and nothing but that.
    """
    path = Path(path).expanduser()
    language_model.require_plain(lm)
    if format == "slmjax":
        return language_model.save(lm, path, dtype=dtype or "float32")
    if format == "huggingface":
        stored = lm.params["embedder"]["embedding"].dtype.name
        dtype = dtype or (stored if stored in DTYPES else "float32")
        return save_huggingface(lm.config, lm.params, lm.tokenizer, path, dtype=dtype, stop_ids=lm.stop_ids)
    if format == "gguf":
        from slmjax.formats.gguf.model import save_gguf

        dtype = dtype or "float16"
        return save_gguf(lm.config, lm.params, lm.tokenizer, path, _GGUF_DTYPES.get(dtype, dtype))
    raise UserError(f"format is {format!r}; choose {', '.join(FORMATS)}.")
