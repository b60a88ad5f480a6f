"""The contents of a prepared corpus, in numbers and a few words."""

from pathlib import Path
from typing import Any

import numpy as np

from slmjax.data.prepare import open_stores
from slmjax.data.store import TokenStore
from slmjax.files import local_path
from slmjax.tokenization.tokenizer import Tokenizer, load_tokenizer

_PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


def describe(directory: str | Path, *, samples: int = 3, sample_tokens: int = 64) -> dict[str, Any]:
    """Counts, lengths and decoded samples of a prepared corpus or of one token store.

    Returns:
        For a store: `documents`, `tokens` (bos and eos counted), `bytes` (of UTF-8 text), `bytes_per_token`,
        `document_tokens` (percentile → tokens), `vocab_size`, `samples` (the beginnings of evenly spaced documents).
        For a corpus: `train` and `validation`, each a dict of such by source.

    Raises:
        UserError: it is neither, or damaged.
    """
    directory = local_path(directory, "The corpus")
    if (directory / "meta.json").is_file():
        return _describe_store(TokenStore(directory), _tokenizer_of(directory.parent.parent), samples, sample_tokens)
    tokenizer = _tokenizer_of(directory)
    return {
        split: {
            name: _describe_store(store, tokenizer, samples, sample_tokens)
            for name, store in open_stores(directory, split).items()
        }
        for split in ("train", "validation")
    }


def _tokenizer_of(corpus: Path) -> Tokenizer | None:
    directory = corpus / "tokenizer"
    return load_tokenizer(directory, as_saved=True) if directory.is_dir() else None


def _describe_store(store: TokenStore, tokenizer: Tokenizer | None, samples: int, sample_tokens: int) -> dict[str, Any]:
    lengths = store.lengths
    percentiles = np.percentile(lengths, _PERCENTILES) if len(lengths) else np.zeros(len(_PERCENTILES))
    chosen = np.linspace(0, store.num_documents - 1, min(samples, store.num_documents)).astype(int)
    return {
        "documents": store.num_documents,
        "tokens": store.num_tokens,
        "bytes": store.num_bytes,
        "bytes_per_token": store.num_bytes / store.num_tokens if store.num_tokens else 0.0,
        "document_tokens": {str(p): int(value) for p, value in zip(_PERCENTILES, percentiles, strict=True)},
        "vocab_size": store.vocab_size,
        "samples": [tokenizer.decode(store.document(i)[:sample_tokens]) for i in chosen] if tokenizer else [],
    }
