"""Fixtures of the data room."""

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from slmjax.data.store import StoreWriter, TokenStore


@pytest.fixture(scope="session")
def make_store(tmp_path_factory) -> Callable[..., TokenStore]:
    """A store of the given documents, in a directory of its own."""
    numbers = itertools.count()
    root: Path = tmp_path_factory.mktemp("stores")

    def make(documents, *, encoding="memmap", vocab_size=1 << 20, **metadata) -> TokenStore:
        directory = root / str(next(numbers))
        with StoreWriter(directory, vocab_size=vocab_size, encoding=encoding, metadata=metadata) as writer:
            for tokens in documents:
                writer.append(tokens, num_bytes=3 * len(tokens))
        return TokenStore(directory)

    return make


@pytest.fixture(scope="session")
def unique_documents() -> Callable[..., list[np.ndarray]]:
    """Documents of the given lengths in which every token is another number, from `first` on."""

    def make(lengths, first: int = 1) -> list[np.ndarray]:
        ends = first + np.cumsum(lengths, dtype=int)
        return [np.arange(end - length, end) for length, end in zip(lengths, ends, strict=True)]

    return make
