"""Sources to token stores, once: read, split, tokenize in parallel, put in place atomically.

A prepared corpus is a directory:
    prepared.json               what it was made of (fingerprint)
    tokenizer/                  the tokenizer, so that the corpus explains itself
    train/SOURCE/               a token store for each source
    validation/SOURCE/          a token store of its held-out documents
"""

import array
import dataclasses
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from slmjax.data.config import DataConfig, SourceConfig
from slmjax.data.readers import cut_text
from slmjax.data.reading.compression import Consumed
from slmjax.data.sources import read_documents, source_files
from slmjax.data.split import content_key, is_held_out, smallest_where_none
from slmjax.data.store import StoreWriter, TokenStore
from slmjax.errors import UserError
from slmjax.files import local_path, place_directory
from slmjax.tokenization.tokenizer import Tokenizer, load_tokenizer, train_bpe

_RULES = 1  # raise it when the same sources would be prepared differently
_CHUNK_BYTES = 8 << 20  # text that is tokenized at once
_TOKENIZER_BYTES = 128 << 20  # text that a tokenizer is trained on; the sources share it in proportion to their weights

Split = Literal["train", "validation"]


def prepare(config: DataConfig, tokenizer: Tokenizer, directory: str | Path, *, progress: bool = True) -> Path:
    """Tokenize the sources of `config` into token stores under `directory`.

    Documents are held out for validation by the rule of `split.py`. A source of one document is cut at blank lines
    first.

    The corpus is written beside `directory` and renamed: it is there whole or not at all, also when several processes
    prepare it at once. When the same was prepared before (same tokenizer, files, sizes, times and settings) nothing is
    done. What was prepared differently, or is damaged, is replaced; a directory of anything else is refused.

    Returns:
        `directory`.

    Raises:
        UserError: bad sources, a tokenizer without the tokens that the documents need, a full disk.
    """
    directory = local_path(directory, "The corpus")
    _check(config, tokenizer)
    fingerprint = corpus_fingerprint(config, tokenizer)
    if _is_prepared(directory, fingerprint):
        return directory
    if _is_foreign(directory, "prepared.json"):
        raise UserError(f"{directory} holds something that is not a prepared corpus: give a new or empty directory.")
    with place_directory(directory, lambda: _is_prepared(directory, fingerprint)) as partial:
        writing = _Writing(config, tokenizer, partial, progress)
        drawn = {name: writing.write_source(name) for name in config.sources}
        writing.hold_out_smallest(drawn)
        tokenizer.save(partial / "tokenizer")
        description = {"fingerprint": fingerprint, "config": dataclasses.asdict(config)}
        (partial / "prepared.json").write_text(json.dumps(description, indent=1) + "\n", encoding="utf-8")
    return directory


def open_stores(directory: str | Path, split: Split) -> dict[str, TokenStore]:
    """The token stores of one split of a prepared corpus, by source; those without documents are left out."""
    directory = local_path(directory, "The corpus")
    if not (directory / "prepared.json").is_file():
        raise UserError(
            f"{directory} is not a prepared corpus (it has no prepared.json): run slmjax data prepare first."
        )
    stores = {path.name: TokenStore(path) for path in sorted((directory / split).glob("*/"))}
    return {name: store for name, store in stores.items() if store.num_documents}


def tokenizer_for(config: DataConfig, directory: str | Path, *, progress: bool = True) -> Tokenizer:
    """The tokenizer that `config` names: loaded, or trained on the training documents and kept in `directory`.

    Training reads at most 128 MiB of text, the beginning of each source, shared in proportion to the weights.
    """
    if not config.tokenizer:
        raise UserError(
            'The data names no tokenizer: set data.tokenizer to the path of one, or to "train:4096" to train it.'
        )
    size = config.trained_vocab_size
    if size is None:
        return load_tokenizer(config.tokenizer)
    directory = local_path(directory, "The corpus")
    key = _digest([_RULES, size, config.seed, config.validation_fraction, _source_keys(config, weights=True)])
    if _trained_key(directory) == key:
        return load_tokenizer(directory, as_saved=True)
    if _is_foreign(directory, "trained.json"):
        raise UserError(f"{directory} holds something that is not a trained tokenizer: give a new or empty directory.")
    tokenizer = train_bpe(_training_texts(config), size, progress=progress)
    with place_directory(directory, lambda: _trained_key(directory) == key) as partial:
        tokenizer.save(partial)
        (partial / "trained.json").write_text(json.dumps({"fingerprint": key}) + "\n", encoding="utf-8")
    return tokenizer


def corpus_fingerprint(config: DataConfig, tokenizer: Tokenizer) -> str:
    """Hex digest of all that decides a prepared corpus: tokenizer, rules, settings, and files with sizes and times."""
    settings = [config.validation_fraction, config.add_bos, config.seed, config.store_format]
    return _digest([_RULES, tokenizer.fingerprint, settings, _source_keys(config, weights=False)])


_Document = tuple[str, int, int]  # text, hash of the text, bytes of the text


class _Drawn:
    """Hash and size of each document that went to one side, in the order of its store."""

    def __init__(self) -> None:
        self.keys = array.array("Q")
        self.sizes = array.array("q")

    def append(self, key: int, size: int) -> None:
        self.keys.append(key)
        self.sizes.append(size)


@dataclasses.dataclass
class _Writing:
    """The work of one `prepare`: what its steps share."""

    config: DataConfig
    tokenizer: Tokenizer
    directory: Path
    progress: bool

    def write_source(self, name: str) -> dict[Split, _Drawn]:
        """Write the stores of one source and return what went where."""
        source = self.config.sources[name]
        drawn: dict[Split, _Drawn] = {"train": _Drawn(), "validation": _Drawn()}
        total = sum(path.stat().st_size for path in source_files(source)) or None
        with (
            tqdm(total=total, desc=f"prepare {name}", unit="B", unit_scale=True, disable=not self.progress) as bar,
            self._writer("train", name) as train,
            self._writer("validation", name) as validation,
        ):
            writers: dict[Split, StoreWriter] = {"train": train, "validation": validation}
            text_bytes = num_tokens = 0
            for chunk in _chunks(_documents(source, self.config.seed, bar.update)):
                for (_, key, size), tokens in zip(chunk, self._encoded(chunk), strict=True):
                    split: Split = "validation" if is_held_out(key, self.config.validation_fraction) else "train"
                    writers[split].append(tokens, size)
                    drawn[split].append(key, size)
                    text_bytes += size
                    num_tokens += len(tokens)
                seconds = max(bar.format_dict["elapsed"], 1e-9)
                bar.set_postfix_str(f"text {text_bytes / seconds / 1e6:.1f} MB/s, {num_tokens / 1e6:.1f}M tokens")
        return drawn

    def hold_out_smallest(self, drawn: dict[str, dict[Split, _Drawn]]) -> None:
        """Give validation a document where none was drawn, and take its equals out of every source's training."""
        keys = (sides["train"].keys + sides["validation"].keys for sides in drawn.values())
        moved = smallest_where_none(keys, self.config.validation_fraction)
        for name, sides in drawn.items():
            if moved and moved.intersection(sides["train"].keys):
                self._move_to_validation(name, sides, moved)

    def _move_to_validation(self, name: str, sides: dict[Split, _Drawn], moved: set[int]) -> None:
        aside = self.directory / "aside"
        old = {}
        for split in sides:
            (aside / split).parent.mkdir(exist_ok=True)
            old[split] = TokenStore((self.directory / split / name).rename(aside / split))
        with self._writer("train", name) as train, self._writer("validation", name) as validation:
            for split, drawn in sides.items():
                for i, (key, size) in enumerate(zip(drawn.keys, drawn.sizes, strict=True)):
                    stays = split == "train" and key not in moved
                    (train if stays else validation).append(old[split].document(i), size)
        shutil.rmtree(aside)

    def _writer(self, split: Split, name: str) -> StoreWriter:
        metadata = {
            "source": dataclasses.asdict(self.config.sources[name]),
            "split": split,
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
            "bos_id": self.tokenizer.bos_id if self.config.add_bos else None,
            "eos_id": self.tokenizer.eos_id,
        }
        directory, vocab_size = self.directory / split / name, self.tokenizer.vocab_size
        return StoreWriter(directory, vocab_size=vocab_size, encoding=self.config.store_format, metadata=metadata)

    def _encoded(self, chunk: list[_Document]) -> Iterator[list[int]]:
        bos, eos = self.tokenizer.bos_id, self.tokenizer.eos_id
        assert eos is not None  # _check saw to it
        before = [bos] if self.config.add_bos and bos is not None else []
        for ids in self.tokenizer.encode_batch([text for text, _, _ in chunk]):
            yield [*before, *ids, eos]


def _documents(source: SourceConfig, seed: int, consumed: Consumed = lambda _: None) -> Iterator[_Document]:
    """The documents of a source with the hash that decides their side; a single one is cut at blank lines first."""
    texts = read_documents(source, consumed)
    first = next(texts)
    second = next(texts, None)
    if second is None:
        whole: Iterable[str] = cut_text(first, min(max(len(first) // 256, 512), 1 << 16))
    else:
        whole = itertools.chain((first, second), texts)
    for text in whole:
        content = text.encode()
        yield text, content_key(content, seed), len(content)


def _chunks(documents: Iterable[_Document]) -> Iterator[list[_Document]]:
    chunk: list[_Document] = []
    size = 0
    for document in documents:
        chunk.append(document)
        size += document[2]
        if size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _training_texts(config: DataConfig) -> Iterator[str]:
    weights = sum(source.weight for source in config.sources.values())
    for source in config.sources.values():
        budget = _TOKENIZER_BYTES * source.weight / weights
        for text, key, size in _documents(source, config.seed):
            if budget <= 0:
                break
            if not is_held_out(key, config.validation_fraction):
                yield text
                budget -= size


def _check(config: DataConfig, tokenizer: Tokenizer) -> None:
    if not config.sources:
        raise UserError("There is nothing to prepare: name at least one source in data.sources.")
    if tokenizer.eos_id is None:
        raise UserError("The tokenizer names no end-of-document token: set eos_token in its tokenizer_config.json.")
    if config.add_bos and tokenizer.bos_id is None:
        raise UserError(
            "data.add_bos=True needs a beginning-of-document token, which the tokenizer does not have: set it to False."
        )


def _is_prepared(directory: Path, fingerprint: str) -> bool:
    """Whether `directory` holds this corpus, undamaged as far as opening tells."""
    try:
        description = json.loads((directory / "prepared.json").read_text(encoding="utf-8"))
        if description["fingerprint"] != fingerprint:
            return False
        for name in description["config"]["sources"]:
            for split in ("train", "validation"):
                TokenStore(directory / split / name)
        load_tokenizer(directory / "tokenizer", as_saved=True)
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return False
    return True


def _is_foreign(directory: Path, mark: str) -> bool:
    """Whether something lies there that this module did not make, and so may not replace."""
    if directory.is_dir():
        return not (directory / mark).is_file() and any(directory.iterdir())
    return directory.exists()


def _trained_key(directory: Path) -> str | None:
    try:
        return json.loads((directory / "trained.json").read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _source_keys(config: DataConfig, *, weights: bool) -> list[Any]:
    keys: list[Any] = []
    for name, source in sorted(config.sources.items()):
        files = [
            (str(path.resolve()), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in source_files(source)
        ]
        split = [source.split] if source.split else []  # without one the key is that of corpora made before
        keys.append(
            [name, source.path, source.format, source.text_field, source.weight if weights else None, files, *split]
        )
    return keys


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]
