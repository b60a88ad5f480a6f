"""The data of a run: text in token stores, prepared once and opened by every process, or conversations in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from slmjax.data.config import DataConfig
from slmjax.data.conversations.encoding import sft_template
from slmjax.data.conversations.examples import ExampleStore, load_examples
from slmjax.data.mixture import Mixture, repeats, rows_for_epochs
from slmjax.data.packing import Documents
from slmjax.data.pipeline import Interleaved, training_batches, validation_batches
from slmjax.data.prepare import corpus_fingerprint, open_stores, prepare, tokenizer_for
from slmjax.data.sft_config import SftConfig
from slmjax.data.store import TokenStore
from slmjax.errors import UserError, first_few, one_line
from slmjax.files import local_path
from slmjax.inference.description import Description
from slmjax.recipes.config import RunConfig
from slmjax.tokenization.tokenizer import Tokenizer, load_tokenizer
from slmjax.training.processes import barrier, is_primary, warn

_SAMPLE = 1 << 20  # tokens of a corpus that its digest looks at


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

    def digest(self, *more: Documents) -> str:
        """16 hexadecimal digits that tell these data (and `more`) from others, wherever their files lie.

        Of a corpus beyond a million tokens they tell the counts and an even sample.
        """
        digest = hashlib.blake2b(digest_size=8)
        for name, store in [*self.train.stores.items(), *((s.name, s) for s in (*self.validation, *more))]:
            digest.update(f"{Path(name).name} {len(store.lengths)} {int(store.lengths.sum())}:".encode())
            _add_sample(digest, store)
        return digest.hexdigest()

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
    config: DataConfig | SftConfig,
    directory: Path,
    *,
    tokenizer: Tokenizer | None = None,
    progress: bool = True,
    begun: Path | None = None,
) -> Corpus:
    """Prepare what is not prepared yet under `data.cache_dir` (or `directory`), and open it.

    With no sources, `data.cache_dir` names a corpus that `slmjax data prepare` made. Process 0 prepares, the others
    wait for it. tokenizer: of the model that is fine-tuned; conversations are encoded with it, by every process.
    begun: the workdir of a run that has a checkpoint. Its tokenizer is never replaced, and the corpus that was prepared
    for it is opened as it is, whatever has become of the text, unless `data.on_change` is "use".

    Raises:
        UserError: no data, or data in the tokens of another tokenizer than the run began with.
    """
    own = None if begun is None else _tokenizer_of(begun)
    if isinstance(config, SftConfig):
        if tokenizer is not None:
            _require_same(own, tokenizer, "peft.base")
        return _conversations(config, tokenizer, progress=progress)
    if not config.sources:
        if not config.cache_dir:
            raise UserError("The config names no text: set data.sources, or data.cache_dir to a prepared corpus.")
        prepared = local_path(config.cache_dir, "data.cache_dir")
        there = prepared / "tokenizer"
        tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else load_tokenizer(there, as_saved=True)
        _require_same(own, tokenizer, f"data.cache_dir={config.cache_dir}")
    else:
        base = local_path(config.cache_dir, "data.cache_dir") if config.cache_dir else directory
        prepared = base / "corpus"
        if is_primary() and not _keeps(config, own, prepared, begun is not None):
            tokenizer = own or tokenizer_for(config, base / "tokenizer", progress=progress)
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


def prepare_or_keep(
    config: DataConfig, tokenizer: Tokenizer, directory: Path, *, begun: bool, progress: bool = True
) -> None:
    """Prepare a corpus, but for a run that has begun keep the one that it began with."""
    if not _keeps(config, tokenizer, directory, begun):
        prepare(config, tokenizer, directory, progress=progress)


def _keeps(config: DataConfig, tokenizer: Tokenizer | None, prepared: Path, begun: bool) -> bool:
    """Whether the corpus in `prepared` is taken as it is: for a run that has begun, or when its text is gone.

    tokenizer: whose ids it must hold; None: those of its own. That the text has changed, or is gone, is told.
    """
    own = _prepared_with(config, prepared)
    if own is None or (tokenizer is not None and tokenizer.fingerprint != own.fingerprint):
        return False
    paths = first_few([source.path for source in config.sources.values()])
    try:
        same = corpus_fingerprint(config, own) == _read_prepared(prepared).get("fingerprint")
    except UserError as error:
        warn(f"the text is gone ({one_line(error).rstrip('.')}); what was prepared of it in {prepared} is used.")
        return True
    if begun and not same and config.on_change == "error":
        warn(
            f"the text of {paths} is not as it was when it was prepared; the run goes on with what was prepared, in "
            f"{prepared}, and with its tokenizer (data.on_change=use takes the text as it is now)."
        )
    return begun and (same or config.on_change == "error")


def _prepared_with(config: DataConfig, prepared: Path) -> Tokenizer | None:
    """The tokenizer of a prepared corpus; None unless it is whole and was made of these sources by these rules."""
    was: Any = _read_prepared(prepared).get("config")
    rules = ("validation_fraction", "add_bos", "seed", "store_format")
    try:
        if any(was[name] != getattr(config, name) for name in rules) or was["sources"].keys() != config.sources.keys():
            return None
        for name, source in config.sources.items():
            before = {"split": "", **was["sources"][name]}  # a corpus of 0.1 knows of no split
            if any(before[key] != getattr(source, key) for key in ("path", "format", "text_field", "split")):
                return None
            for split in ("train", "validation"):
                TokenStore(prepared / split / name)
        return load_tokenizer(prepared / "tokenizer")
    except (KeyError, TypeError, AttributeError, UserError):
        return None


def _read_prepared(directory: Path) -> dict[str, Any]:
    try:
        description = json.loads((directory / "prepared.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return description if isinstance(description, dict) else {}


def _tokenizer_of(workdir: Path) -> Tokenizer | None:
    """The tokenizer of a run that has begun; None where it was written before runs had one of their own."""
    directory = workdir / Description.read(workdir).tokenizer
    return load_tokenizer(directory) if directory.is_dir() else None


def _require_same(own: Tokenizer | None, tokenizer: Tokenizer, where: str) -> None:
    if own is None or own.fingerprint == tokenizer.fingerprint:
        return
    ids = range(own.vocab_size)  # files of another kind may hold the same vocabulary
    if own.vocab_size != tokenizer.vocab_size or any(own.id_to_token(i) != tokenizer.id_to_token(i) for i in ids):
        raise UserError(
            f"The tokenizer of {where} is not the one that the run began with, and its weights know no other: bring "
            "it back, or begin a run in another --workdir."
        )


def _add_sample(digest: Any, store: Documents) -> None:
    """Tokens of documents spread over a store, all of them where they are few."""
    lengths = np.asarray(store.lengths)
    count = len(lengths)
    few = int(lengths.sum()) <= _SAMPLE
    documents = np.arange(count) if few else np.unique(np.linspace(0, count - 1, min(count, 2048)).astype(np.int64))
    taken = lengths[documents] if few else np.minimum(lengths[documents], _SAMPLE // 2048)
    for first in range(0, len(documents), 256):
        part = slice(first, first + 256)
        starts = np.zeros(len(documents[part]), np.int64)
        for values in (store.pieces, store.loss_weights):
            digest.update(np.ascontiguousarray(values(documents[part], starts, taken[part])).tobytes())
    digest.update(lengths[documents].astype("<i8").tobytes())


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
