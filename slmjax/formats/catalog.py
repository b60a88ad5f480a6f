"""The formats of models by name, for help texts and choices: importing this imports no jax."""

from __future__ import annotations

from dataclasses import dataclass

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


def require_float(dtype: str | None) -> None:
    """UserError for a dtype that is not one of `FLOATS`; None, which leaves it open, passes."""
    if dtype is not None and dtype not in FLOATS:
        raise UserError(f"The dtype is {dtype!r}; choose {', '.join(FLOATS)}.")
