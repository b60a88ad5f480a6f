"""Models in GGUF files, as llama.cpp reads them."""

from slmjax.moved import names_of

__getattr__ = names_of("slmjax.formats.gguf.model", only=("load_gguf", "read_config", "save_gguf"))
