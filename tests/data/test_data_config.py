"""Sections of a ConfigDict become the data config of their kind; what cannot be is refused with its name."""

import dataclasses
import math
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from slmjax.data.config import DataConfig, RowLayout, SourceConfig
from slmjax.data.sft_config import ConversationSource, SftConfig, data_config_class
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
        ({"packing": "bestfit"}, "data.packing='bestfit' is unknown: did you mean 'best_fit'"),
        ({"store_format": "x"}, "data.store_format='x' is unknown: choose one of memmap, array_record"),
        ({"sequence_length": 0}, "data.sequence_length=0 must be an integer of at least 1"),
        ({"sequence_length": 10.5}, "data.sequence_length=10.5"),
        ({"seed": True}, "data.seed=True"),
        ({"validation_fraction": 1.0}, "data.validation_fraction=1.0 must be a number of at least 0 and below 1"),
        ({"validation_fraction": math.nan}, "data.validation_fraction=nan"),
        ({"tokenizer": "train:many"}, "train:SIZE"),
        ({"tokenizer": "train:100"}, "train:SIZE"),
        ({"sources": ["a.txt"]}, "data.sources=.* must give each source a name"),
        ({"sources": {"../up": {"path": "a"}}}, "becomes a directory"),
        ({"sources": {"a": {"weight": 1.0}}}, "data.sources.a=.* must give a path"),
        ({"sources": {"a": {"path": "x", "wieght": 1.0}}}, "may give weight, format, text_field"),
        ({"sources": {"a": {"path": "x", "weight": 0}}}, "weight of the source x must be a number above 0"),
        ({"sources": {"a": {"path": "x", "weight": math.inf}}}, "weight of the source x"),
        ({"sources": {"a": {"path": ""}}}, "needs the path"),
        (
            {"sources": {"a": {"path": "x", "format": "xls"}}},
            "format 'xls' of the source x is unknown: choose one of auto",
        ),
    ],
)
def test_impossible_values_are_refused(values, message):
    with pytest.raises(UserError, match=message):
        DataConfig(**values)


def test_the_kind_of_data_is_said_and_old_configs_are_told_by_their_keys():
    for config in (
        DataConfig(packing="best_fit"),
        SftConfig(loss="all", validation={"v": ConversationSource("v.json")}),
    ):
        stored = dataclasses.asdict(config)
        assert data_config_class(stored)(**stored) == config
        del stored["kind"]  # as versions without the key wrote it
        assert data_config_class(stored)(**stored) == config
    with pytest.raises(UserError, match=r"data\.kind='texts' is unknown: did you mean 'text'"):
        data_config_class({"kind": "texts"})
    with pytest.raises(UserError, match=r"data\.kind='conversations' does not fit a DataConfig"):
        DataConfig(kind="conversations")


def test_row_layouts():
    assert DataConfig(sequence_length=8).row_layout() == RowLayout(8, "concat")
    assert DataConfig(packing="best_fit").row_layout() == RowLayout(1024, "best_fit")
    assert SftConfig(sequence_length=8).row_layout() == RowLayout(8, "best_fit")


def test_the_configs_import_nothing_heavy():
    program = "import sys, slmjax.data.sft_config; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "slmjax" in loaded
    assert not {"numpy", "jax", "grain", "flax", "tokenizers"} & set(loaded)
