"""The data of a run: text in token stores, prepared once and opened by every process, or conversations in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slmjax.data.config import DataConfig
from slmjax.data.conversations.encoding import sft_template
from slmjax.data.conversations.examples import ExampleStore, load_examples
from slmjax.data.mixture import Mixture, repeats, rows_for_epochs
from slmjax.data.pipeline import Interleaved, training_batches, validation_batches
from slmjax.data.prepare import open_stores, prepare, tokenizer_for
from slmjax.data.sft_config import SftConfig
from slmjax.data.store import TokenStore
from slmjax.errors import UserError
from slmjax.files import local_path
from slmjax.recipes.config import RunConfig
from slmjax.tokenization.tokenizer import Tokenizer, load_tokenizer
from slmjax.training.processes import barrier, is_primary


@dataclass(frozen=True)
class Corpus:
    """The data that a run reads."""

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

    def passes(self, data: DataConfig | SftConfig, num_rows: int, replay: float = 0.0) -> dict[str, float]:
        """Passes over each source in `num_rows` training rows, of which the share `replay` is replayed."""
        return repeats(self.train, data.row_layout(), num_rows, interleaved_share=replay)

    def rows_per_epoch(self, data: DataConfig | SftConfig, replay: float = 0.0) -> int:
        """Training rows, the replayed ones included, after which each source has been read through at least once."""
        return rows_for_epochs(self.train, data.row_layout(), 1.0, interleaved_share=replay)

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
        prepared = local_path(config.cache_dir, "data.cache_dir")
        own = prepared / "tokenizer"
        tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else load_tokenizer(own, as_saved=True)
    else:
        base = local_path(config.cache_dir, "data.cache_dir") if config.cache_dir else directory
        prepared = base / "corpus"
        if is_primary():
            tokenizer = tokenizer_for(config, base / "tokenizer", progress=progress)
            prepare(config, tokenizer, prepared, progress=progress)
        barrier("corpus prepared")
        tokenizer = load_tokenizer(prepared / "tokenizer", as_saved=True)
    stores = open_stores(prepared, "train")
    weights = {name: config.sources[name].weight if name in config.sources else 1.0 for name in stores}
    return Corpus(
        tokenizer=tokenizer,
        train=Mixture(stores, weights),
        validation=list(open_stores(prepared, "validation").values()),
    )


def _conversations(config: SftConfig, tokenizer: Tokenizer | None, *, progress: bool) -> Corpus:
    if tokenizer is None:
        raise UserError("Conversations are read in the tokens of a model: set peft.base to the one to fine-tune.")
    template = sft_template(config, tokenizer)
    if template is not None and config.chat_template:  # else it is the tokenizer's, which may have several
        tokenizer.settings["chat_template"] = template.source  # what the fine-tuned model will be talked to with
    examples = load_examples(config, tokenizer, progress=progress)
    return Corpus(tokenizer, examples.train, list(examples.validation))


def check_vocabulary(corpus: Corpus, vocab_size: int) -> None:
    """UserError when the corpus holds a token id that the model's embedding does not have."""
    for store in [*corpus.train.stores.values(), *corpus.validation]:
        store.check_vocabulary(vocab_size)
