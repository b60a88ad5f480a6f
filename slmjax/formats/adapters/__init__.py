"""Adapters of others' libraries."""

from slmjax.moved import names_of

__getattr__ = names_of("slmjax.formats.adapters.door", only=("open_adapter", "read_adapter", "read_run"))
