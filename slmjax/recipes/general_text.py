"""Text outside the domain of a fine-tune: to measure what is forgotten, to replay, to estimate with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slmjax.data.config import DataConfig, SourceConfig
from slmjax.data.packing import PackedRows, Row
from slmjax.data.prepare import open_stores
from slmjax.data.store import TokenStore
from slmjax.errors import UserError
from slmjax.recipes.config import RunConfig
from slmjax.recipes.corpus import prepare_or_keep
from slmjax.tokenization.tokenizer import Tokenizer
from slmjax.training.processes import barrier, is_primary


@dataclass(frozen=True)
class GeneralText:
    """Text outside the domain: to train on or to estimate with, and to measure on."""

    train: TokenStore
    heldout: TokenStore

    def measured_rows(self, sequence_length: int, tokens: int) -> list[Row]:
        """Whole rows of the held-out text, at most `tokens` tokens (but at least one row), spread over all of it."""
        return _spread_rows(self.heldout, sequence_length, max(1, tokens // sequence_length))

    def estimation_rows(self, sequence_length: int, count: int) -> list[Row]:
        """Rows of the other text, at most `count`, spread over all of it."""
        return _spread_rows(self.train, sequence_length, count)


def open_general(
    config: RunConfig, directory: Path, tokenizer: Tokenizer, *, progress: bool = True, begun: bool = False
) -> GeneralText:
    """The corpus that `forgetting.corpus` names, prepared in `directory` if it is not yet; a tenth is held out.

    begun: by a run that has a checkpoint, which keeps what was prepared for it.
    """
    source = SourceConfig(config.forgetting.corpus, text_field=config.forgetting.text_field)
    add_bos = config.data.add_bos
    wanted = DataConfig(
        sources={"general": source}, validation_fraction=0.1, add_bos=add_bos, on_change=config.data.on_change
    )
    if is_primary():
        prepare_or_keep(wanted, tokenizer, directory, begun=begun, progress=progress)
    barrier("general text prepared")
    stores = [open_stores(directory, split) for split in ("train", "validation")]
    if not all(stores):
        raise UserError(
            f"forgetting.corpus={config.forgetting.corpus} is a single piece of text, of which nothing can be held "
            "out: give more text, or set forgetting.tokens=0."
        )
    general = GeneralText(*(store["general"] for store in stores))
    for store in (general.train, general.heldout):
        store.check_vocabulary(config.model.vocab_size)
    return general


def _spread_rows(store: TokenStore, sequence_length: int, count: int) -> list[Row]:
    rows = PackedRows(store, sequence_length, "concat", seed=0)
    return [rows[int(i)] for i in np.linspace(0, len(rows) - 1, min(count, len(rows))).round()]
