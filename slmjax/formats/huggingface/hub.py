"""Models of the Hugging Face hub: only what is read of them is fetched, and nothing that could be run."""

from __future__ import annotations

import re
from pathlib import Path

from slmjax.errors import UserError

FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "added_tokens.json",
    "quantize_config.json",
    "adapter_config.json",
)
_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def is_hub_id(path: str | Path) -> bool:
    """Whether something that is no path here could name a model there: "organization/name"."""
    return _ID.fullmatch(str(path)) is not None and not Path(path).exists() and not str(path).endswith(".gguf")


def download(name: str) -> Path:
    """The directory of a model's files in the hub's local cache, fetched where they are not there yet."""
    nothing = f"There is no model at {name}"
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise UserError(
            f"{nothing}; to fetch one of that name from the Hugging Face hub, install slmjax[hub]."
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # of the hub, of its HTTP library and of the system, by its version
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"{nothing}, and the Hugging Face hub gives none of that name ({reason}): check the name and the network, "
            "or give a directory."
        ) from error
