"""The names of a checkpoint's tensors as a family writes them, whatever wrapped the model when it was saved.

torch.compile puts `_orig_mod.` before a module's names, FSDP `_fsdp_wrapped_module.`, DataParallel and DeepSpeed
`module.`, a trainer the name of its own attribute; a model that was saved without its head lacks the family's prefix.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator

from slmjax.errors import UserError
from slmjax.formats.huggingface.family import HuggingFaceFamily

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_MOST_PREFIXES = 4  # names of attributes before a tensor's own


def unwrapped(name: str) -> str:
    """A tensor's name without what torch's wrappers put into it."""
    name = _WRAPPERS.sub("", name)
    while name.startswith("module."):
        name = name.removeprefix("module.")
    return name


def own_names(shipped: Iterable[str], family: HuggingFaceFamily, expected: Collection[str]) -> dict[str, str]:
    """The family's name of each tensor -> the file's; what the family ignores is left out.

    expected: the names that the network may have, with and without a head of its own. UserError for two tensors that
    are one.
    """
    names: dict[str, str] = {}
    prefix = _prefix_of(expected)
    for theirs in shipped:
        spellings = list(_spellings(unwrapped(theirs), prefix))
        if any(re.fullmatch(pattern, name) for name in spellings[:2] for pattern in family.ignored):
            continue
        found = (name for name in map(family.own_name, spellings) if name in expected)
        name = next(found, family.own_name(spellings[0]))
        if name in names:
            raise UserError(f"The tensors {names[name]} and {theirs} are the same one of {family.model_type}.")
        names[name] = theirs
    return names


def _spellings(name: str, prefix: str) -> Iterator[str]:
    """The name, with the family's prefix, and without as many of its first parts as could be somebody's attributes."""
    yield name
    yield prefix + name
    for _ in range(_MOST_PREFIXES):
        _, dot, name = name.partition(".")
        if not dot:
            return
        yield name


def _prefix_of(expected: Collection[str]) -> str:
    """The first part of most names, "model.", which a model without its head is saved without."""
    (first, count), *_ = Counter(name.partition(".")[0] for name in expected).most_common(1)
    return f"{first}." if count > len(expected) // 2 else ""
