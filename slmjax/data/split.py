"""The rule that holds documents out for validation.

A document is held out when the hash of its content, with the seed, falls below a fraction of all hashes. So the side of
a document depends on nothing else, and equal documents are on one side, whichever sources they come from. Where a
source of different documents would have none held out, the one with the smallest hash is, and so are its equals.
"""

import hashlib
from collections.abc import Iterable, Sequence


def content_key(content: bytes, seed: int) -> int:
    """The hash of a document, 64 bits."""
    digest = hashlib.blake2b(content, digest_size=8, salt=seed.to_bytes(16, "little")).digest()
    return int.from_bytes(digest, "little")


def is_held_out(key: int, fraction: float) -> bool:
    """Whether the hash falls below `fraction`, in [0, 1), of all hashes."""
    return key < fraction * 2.0**64


def smallest_where_none(keys_of_sources: Iterable[Sequence[int]], fraction: float) -> set[int]:
    """The smallest hash of each source of different documents of which `is_held_out` takes none."""
    smallest = set()
    for keys in keys_of_sources:
        if fraction and len(keys) and not is_held_out(least := min(keys), fraction) and least != max(keys):
            smallest.add(least)
    return smallest


def held_out_keys(keys_of_sources: Sequence[Sequence[int]], fraction: float) -> set[int]:
    """The hashes of all documents that are held out of the training of every source."""
    drawn = {key for keys in keys_of_sources for key in keys if is_held_out(key, fraction)}
    return drawn | smallest_where_none(keys_of_sources, fraction)
