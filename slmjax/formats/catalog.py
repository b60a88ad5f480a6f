"""The formats of models by name, for help texts and choices: importing this imports no jax."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from slmjax.errors import UserError

FLOATS = ("float32", "bfloat16", "float16")
BLOCKS = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")  # llama.cpp's types of quantized weights that can be written


@dataclass(frozen=True)
class FormatName:
    """A format: its name, what it is, the dtypes that a model can be saved in (none: it holds no whole model)."""

    name: str
    help: str
    dtypes: tuple[str, ...] = ()
    default_dtype: str = ""
    is_adapter: bool = False  # what a fine-tune adds, without its base


RUN = FormatName("run", "a run or one of its checkpoints")
SLMJAX = FormatName("slmjax", "a directory for slmjax and transformers", FLOATS, "the source's")
HUGGINGFACE = FormatName("huggingface", "a directory of transformers", FLOATS, "the source's")
GGUF = FormatName("gguf", "a file of llama.cpp", FLOATS + BLOCKS, "float16")
PEFT = FormatName("peft", "an adapter of Hugging Face peft (LoRA, IA3, prefixes, prompts)", is_adapter=True)
ADAPTERHUB = FormatName("adapterhub", "an adapter of AdapterHub (bottleneck adapters)", is_adapter=True)
WRITTEN = (SLMJAX, HUGGINGFACE, GGUF, PEFT, ADAPTERHUB)


# Ends of names that say a format which is not written, and what to write instead.
_MODEL = "give a directory, whose model.safetensors transformers reads"
_NOT_WRITTEN = {
    **dict.fromkeys((".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".npz", ".h5", ".msgpack"), _MODEL),
    **dict.fromkeys((".onnx", ".tflite", ".mlpackage", ".mlmodel", ".engine", ".pte", ".task"), _MODEL),
    **dict.fromkeys((".ggml", ".ggjt"), "give a name that ends with .gguf"),
    **dict.fromkeys((".zip", ".tar", ".gz", ".tgz", ".zst", ".xz", ".7z"), "give a directory and pack it yourself"),
    **dict.fromkeys((".json", ".txt", ".py", ".model"), "give a directory, or a name that ends with .gguf"),
}


def format_of_destination(destination: str | Path, name: str | None) -> str:
    """The format to write: the one that is named, else what the destination's name ends with, else slmjax's own.

    UserError where the two contradict each other, and for names that stand for files which are not written.
    """
    suffix = Path(destination).suffix.lower()
    if suffix == ".gguf":
        if name not in (None, GGUF.name):
            raise UserError(
                f"{destination} would be a GGUF file and --format {name} writes a directory: change the one."
            )
        return GGUF.name
    if suffix in _NOT_WRITTEN and name != GGUF.name:
        raise UserError(f"{destination} would be a file of a kind that is not written: {_NOT_WRITTEN[suffix]}.")
    return name or SLMJAX.name


def require_float(dtype: str | None) -> None:
    """UserError for a dtype that is not one of `FLOATS`; None, which leaves it open, passes."""
    if dtype is not None and dtype not in FLOATS:
        raise UserError(f"The dtype is {dtype!r}; choose {', '.join(FLOATS)}.")
