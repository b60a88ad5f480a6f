"""Sections of a ConfigDict become DataConfig; what cannot be is refused with its name."""

import math

import pytest
from ml_collections import ConfigDict

from slmjax.data.config import DataConfig, SourceConfig
from slmjax.errors import UserError


def test_a_config_dict_section_becomes_typed_sources():
    section = ConfigDict({"sources": {"books": {"path": "b.txt", "weight": 2.0}}, "tokenizer": "train:512"})
    config = DataConfig(**section)
    assert config.sources == {"books": SourceConfig("b.txt", weight=2.0)}
    assert config.trained_vocab_size == 512
    assert DataConfig(tokenizer="some/path").trained_vocab_size is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"packing": "bestfit"}, "packing must be one of concat, best_fit, got 'bestfit'"),
        ({"store_format": "x"}, "store_format must be one of memmap, array_record"),
        ({"sequence_length": 0}, "sequence_length must be an integer of at least 1"),
        ({"sequence_length": 10.5}, "sequence_length"),
        ({"seed": True}, "seed"),
        ({"validation_fraction": 1.0}, r"validation_fraction must lie in \[0, 1\)"),
        ({"validation_fraction": math.nan}, "validation_fraction"),
        ({"tokenizer": "train:many"}, "train:SIZE"),
        ({"tokenizer": "train:100"}, "train:SIZE"),
        ({"sources": ["a.txt"]}, "sources must be named"),
        ({"sources": {"../up": {"path": "a"}}}, "becomes a directory"),
        ({"sources": {"a": {"weight": 1.0}}}, "source 'a' needs a path"),
        ({"sources": {"a": {"path": "x", "wieght": 1.0}}}, "may set weight, format, text_field"),
        ({"sources": {"a": {"path": "x", "weight": 0}}}, "weight of x must be a number above 0"),
        ({"sources": {"a": {"path": "x", "weight": math.inf}}}, "weight of x"),
        ({"sources": {"a": {"path": ""}}}, "needs the path"),
        ({"sources": {"a": {"path": "x", "format": "csv"}}}, "format of a source must be one of auto, text"),
    ],
)
def test_impossible_values_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        DataConfig(**values)
