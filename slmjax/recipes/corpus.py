"""The data of a run: text in token stores, prepared once and opened by every process, or conversations in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from slmjax.data.config import DataConfig, SourceConfig
from slmjax.data.conversations.encoding import sft_template
from slmjax.data.conversations.examples import ExampleStore, load_examples
from slmjax.data.mixture import Mixture
from slmjax.data.packing import PackedRows, Row
from slmjax.data.pipeline import Interleaved, training_batches, validation_batches
from slmjax.data.prepare import open_stores, prepare, tokenizer_for
from slmjax.data.sft_config import SftConfig
from slmjax.data.store import TokenStore
from slmjax.errors import UserError
from slmjax.tokenization.tokenizer import Tokenizer, load_tokenizer
from slmjax.training.config import RunConfig


@dataclass(frozen=True)
class Corpus:
    """What a run reads."""

    tokenizer: Tokenizer
    train: Mixture
    validation: list[TokenStore | ExampleStore]

    def batches(self, config: RunConfig, rows: list[int], interleaved: Interleaved | None = None) -> Any:
        """The endless, resumable iterator over this process's rows of the training batches."""
        data = config.data
        return training_batches(
            self.train,
            data.row_layout(),
            batch_size=config.training.batch_size,
            rows=rows,
            seed=data.seed,
            num_threads=data.num_threads,
            prefetch=data.prefetch,
            interleaved=interleaved,
        )

    def validation_batches(self, config: RunConfig, rows: list[int]) -> Iterator[dict[str, np.ndarray]]:
        """The first `training.eval_batches` batches of each source's validation split (0: all), in order."""
        for store in self.validation:
            yield from validation_batches(
                store,
                config.data.row_layout(),
                batch_size=config.training.batch_size,
                rows=rows,
                max_batches=config.training.eval_batches or None,
            )


def open_corpus(
    config: DataConfig | SftConfig, directory: Path, *, tokenizer: Tokenizer | None = None, progress: bool = True
) -> Corpus:
    """Prepare what is not prepared yet under `data.cache_dir` (or `directory`), and open it.

    With no sources, `data.cache_dir` names a corpus that `slmjax data prepare` made. Process 0 prepares, the others
    wait for it. tokenizer: of the model that is fine-tuned; conversations are encoded with it, by every process.
    """
    if isinstance(config, SftConfig):
        return _conversations(config, tokenizer, progress=progress)
    if not config.sources:
        if not config.cache_dir:
            raise UserError("The config names no text: set data.sources, or data.cache_dir to a prepared corpus.")
        prepared = Path(config.cache_dir)
        tokenizer = load_tokenizer(config.tokenizer or prepared / "tokenizer")
    else:
        base = Path(config.cache_dir) if config.cache_dir else directory
        prepared = base / "corpus"
        if jax.process_index() == 0:
            tokenizer = tokenizer_for(config, base / "tokenizer", progress=progress)
            prepare(config, tokenizer, prepared, progress=progress)
        _wait_for_process_0("corpus prepared")
        tokenizer = load_tokenizer(prepared / "tokenizer")
    stores = open_stores(prepared, "train")
    weights = {name: config.sources[name].weight if name in config.sources else 1.0 for name in stores}
    return Corpus(
        tokenizer=tokenizer,
        train=Mixture(stores, weights),
        validation=list(open_stores(prepared, "validation").values()),
    )


@dataclass(frozen=True)
class GeneralText:
    """Text outside the domain: to train on or to estimate with, and to measure on."""

    train: TokenStore
    heldout: TokenStore

    def measured_rows(self, sequence_length: int, tokens: int) -> list[Row]:
        """At most `tokens` tokens of the held-out text in whole rows (at least one), spread over all of it."""
        return _spread_rows(self.heldout, sequence_length, max(1, tokens // sequence_length))

    def estimation_rows(self, sequence_length: int, count: int) -> list[Row]:
        """At most `count` rows of the other text, spread over all of it."""
        return _spread_rows(self.train, sequence_length, count)


def open_general(config: RunConfig, directory: Path, tokenizer: Tokenizer, *, progress: bool = True) -> GeneralText:
    """The corpus that `forgetting.corpus` names, prepared in `directory` if it is not yet; a tenth is held out."""
    source = SourceConfig(config.forgetting.corpus, text_field=config.forgetting.text_field)
    add_bos = config.data.add_bos
    wanted = DataConfig(sources={"general": source}, validation_fraction=0.1, add_bos=add_bos)
    if jax.process_index() == 0:
        prepare(wanted, tokenizer, directory, progress=progress)
    _wait_for_process_0("general text prepared")
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


def _wait_for_process_0(what: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental.multihost_utils import sync_global_devices

        sync_global_devices(what)


def _conversations(config: SftConfig, tokenizer: Tokenizer | None, *, progress: bool) -> Corpus:
    if tokenizer is None:
        raise UserError("Conversations are read in the tokens of a model: set peft.base to the one to fine-tune.")
    template = sft_template(config, tokenizer)
    if template is not None:
        tokenizer.settings["chat_template"] = template.source  # what the fine-tuned model will be talked to with
    examples = load_examples(config, tokenizer, progress=progress)
    return Corpus(tokenizer, examples.train, list(examples.validation))


def check_vocabulary(corpus: Corpus, vocab_size: int) -> None:
    """UserError when the corpus holds a token id that the model's embedding does not have."""
    for store in [*corpus.train.stores.values(), *corpus.validation]:
        store.check_vocabulary(vocab_size)
