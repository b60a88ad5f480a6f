"""Directories of Hugging Face datasets: which files are data, and which split each belongs to.

Both layouts are known: a repository of the hub (data/train-00000-of-00002.parquet, train.jsonl ..., as `load_dataset`
reads it) and what `save_to_disk` writes (state.json beside data-00000-of-00001.arrow). The names of splits are found as
the library finds them: https://huggingface.co/docs/hub/datasets-file-names-and-splits.
"""

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from slmjax.errors import UserError, did_you_mean, first_few
from slmjax.untrusted import read_json

# What lies beside the data and is none of it.
_CARDS = re.compile(r"(readme|license|licence|citation|contributing|changelog)(\.(md|txt|rst))?")
_DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "croissant.json")
_CACHES = re.compile(r"(cache-|tmp|indices).*\.arrow")  # what `map` and `shuffle` of the library left
_SHARD = re.compile(r"(?P<name>.+)[-.](?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>(-[0-9a-f]{16})?\.[^/]+)")
_KEYWORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_KEYWORD = re.compile(rf"(?<![a-z0-9])({'|'.join(_KEYWORDS)})(?![a-z0-9])")
_CARD_KEYS = re.compile(
    rb"^(license|language|dataset_info|configs|task_categories|size_categories|pretty_name|source_datasets):",
    re.MULTILINE,
)
_PART = re.compile(r"(?P<name>[\w.-]+)(\[(?P<begin>-?\d+%?)?:(?P<end>-?\d+%?)?\])?", re.ASCII)


@dataclass(frozen=True)
class Part:
    """A stretch of the records of some files.

    Attributes:
        files: in order.
        begin, end: as Python slices, numbers of records or percentages ("10%"); empty for the first and the last.
    """

    files: list[Path]
    begin: str = ""
    end: str = ""

    def limits(self, count: int) -> tuple[int, int]:
        """The numbers of the first record and of the one after the last, of so many."""
        begin, end = (_place(text, count, otherwise) for text, otherwise in ((self.begin, 0), (self.end, count)))
        return begin, max(begin, end)


def parts_of_directory(root: Path, files: list[Path], split: str, is_record_file: Callable[[Path], bool]) -> list[Part]:
    """The data among the files below `root`, without the card of a dataset, its descriptions and its script.

    A README.md is text where nothing says that it describes a dataset.

    Args:
        split: see `choose_parts`.
        is_record_file: tells the files of records (JSON, Parquet ...) from those of text by their name.

    Raises:
        UserError: no such split, or a file that `save_to_disk` has written is missing.
    """
    saved = {path.parent for path in files if path.suffix == ".arrow"}
    listed = {path.parent: _saved_files(path) for path in files if path.name == "state.json" and path.parent in saved}
    data = [
        path
        for path in files
        if path.name.lower() not in _DESCRIPTIONS
        and not (path.name == "state.json" and path.parent in listed)
        and not _CACHES.fullmatch(path.name)
        and (path.suffix != ".arrow" or path.name in listed.get(path.parent, (path.name,)))
    ]
    with_records, is_dataset = any(map(is_record_file, data)), bool(listed) or _is_dataset(root, files)
    if with_records or is_dataset:
        scripts = {path for path in data if path.suffix == ".py" and path.parent == root}
        scripts = {path for path in scripts if with_records or path.stem == root.name}
        data = [path for path in data if not _CARDS.fullmatch(path.name.lower()) and path not in scripts]
    _tell_missing_shards(data)
    return choose_parts(root, data, split, of_dataset=is_dataset)


def _is_dataset(root: Path, files: Sequence[Path]) -> bool:
    """Whether a directory says that it is a Hugging Face dataset: by its descriptions, card, or names of files."""
    if any(path.name.lower() in _DESCRIPTIONS for path in files):
        return True
    if any(match and match["name"] in _KEYWORDS for match in (_SHARD.fullmatch(path.name) for path in files)):
        return True
    card = _beginning(root / "README.md").lstrip(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    if card.startswith(b"---\n") and _CARD_KEYS.search(card.split(b"\n---", 1)[0]):
        return True
    return b"*.parquet filter=lfs" in _beginning(root / ".gitattributes")


def choose_parts(root: Path, files: list[Path], split: str, *, of_dataset: bool = False) -> list[Part]:
    """The files of the splits that are asked for, as in "train+validation[:10%]".

    With an empty `split` they are all the files; but of a dataset with a split for training that split alone, and the
    others are told in a warning.

    Raises:
        UserError: there is no such split, or a dataset does not say which one is for training.
    """
    if not split and not of_dataset:
        return [Part(files)]
    splits: dict[str, list[Path]] = {}
    for path in files:
        splits.setdefault(_split_of(root, path), []).append(path)
    if split:
        return [_part(root, splits, text) for text in split.split("+")]
    if len(splits) <= 1:
        return [Part(files)]
    if "train" not in splits:
        raise UserError(
            f"{root} has the splits {first_few(sorted(splits), 10)}: set the split of its source to the names of those "
            f"to read, as in {'+'.join(sorted(splits)[:2])}."
        )
    others = first_few(sorted(set(splits) - {"train"}), 10)
    warnings.warn(
        f"of {root} the split train is read, and not {others}: set the split of its source to read more", stacklevel=2
    )
    return [Part(splits["train"])]


def _part(root: Path, splits: dict[str, list[Path]], text: str) -> Part:
    match = _PART.fullmatch(text)
    assert match is not None  # SourceConfig saw to it
    name = match["name"] if match["name"] in splits else _KEYWORDS.get(match["name"], match["name"])
    if name not in splits:
        raise UserError(f"{root} has no split {match['name']!r}: {did_you_mean(match['name'], sorted(splits))}")
    return Part(splits[name], match["begin"] or "", match["end"] or "")


def _split_of(root: Path, path: Path) -> str:
    """The split that the name of a file, or of a directory around it, tells; "train" where none does."""
    shard = _SHARD.fullmatch(path.name)
    if shard is not None and shard["name"] != "data":
        name = shard["name"]
        found = _KEYWORD.findall(name.lower())
        return _KEYWORDS[found[-1]] if found and found[-1] == re.split(r"[^a-z0-9]", name.lower())[-1] else name
    for part in reversed(path.relative_to(root).parts):
        if found := _KEYWORD.findall(part.lower()):
            return _KEYWORDS[found[-1]]
    return "train"


def _saved_files(state: Path) -> set[str]:
    values = read_json(state)
    if values.get("_indices_data_files") or values.get("_indices_files"):
        raise UserError(f"{state.parent} stores its rows by indices: save it again with a current version of datasets.")
    listed = values.get("_data_files")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    names = {str(entry["filename"]) for entry in entries if "filename" in entry}
    if not names:
        raise UserError(f"{state} does not list the files of a saved dataset: save it again with save_to_disk.")
    if missing := sorted(name for name in names if not (state.parent / Path(name).name).is_file()):
        raise UserError(f"{state.parent} is incomplete, since {first_few(missing)} is missing: copy all of its files.")
    return names


def _tell_missing_shards(files: list[Path]) -> None:
    present: dict[tuple[Path, str, str, str], int] = {}
    for path in files:
        if (shard := _SHARD.fullmatch(path.name)) is not None:
            key = (path.parent, shard["name"], shard["count"], path.suffix)
            present[key] = present.get(key, 0) + 1
    for (directory, name, count, _), number in present.items():
        if number < int(count):
            warnings.warn(f"{directory} has {number} of the {int(count)} files {name}-*-of-{count}", stacklevel=3)


def _beginning(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(1 << 16)
    except OSError:
        return b""


def _place(text: str, count: int, otherwise: int) -> int:
    if not text:
        return otherwise
    place = round(count * int(text[:-1]) / 100) if text.endswith("%") else int(text)
    return min(max(place + count if place < 0 else place, 0), count)
