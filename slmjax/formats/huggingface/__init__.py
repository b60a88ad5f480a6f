"""Models as Hugging Face's libraries write them."""

from slmjax.moved import names_of

__getattr__ = names_of(
    "slmjax.formats.huggingface.directory", only=("is_huggingface", "load_huggingface", "open_huggingface")
)
