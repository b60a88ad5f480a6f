"""Attention: one contract and a backend each."""

from slmjax.moved import names_of

__getattr__ = names_of("slmjax.models.attention.layer", only=("Attention",))
