"""Whatever files a directory has, its tokenizer gives the ids that transformers' AutoTokenizer gives."""

import random
import tempfile
from pathlib import Path

import pytest

from slmjax.formats.huggingface.tokenizer import read, write
from slmjax.tokenization.chat_template import template_tokens
from tests.tokenizer_directories import text, write_directory

TEXTS = 6


def _reference(folder: Path):
    import transformers

    try:
        reference = transformers.AutoTokenizer.from_pretrained(folder)
        reference("\0 a unknown 🦙")  # an unk_token that is none is found now
        return reference if len(reference) > 100 else None  # else the class does not read the files that are there
    except BaseException as error:  # what transformers does not read has no reference; its library may panic
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return None


def differences(seed: int) -> list[str] | None:
    """What differs between transformers and slmjax in a random directory; None where transformers refuses it."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        write_directory(rng, Path(name))
        reference = _reference(Path(name))
        if reference is None:
            return None
        tokenizer = read(Path(name))
        written = Path(name) / "written"
        written.mkdir()
        (written / "config.json").write_text('{"model_type": "llama"}')
        write(tokenizer, written, 64)
        reference_of_written, again = _reference(written), read(written)
    found = []

    def compare(what: str, expected, got) -> None:
        if expected != got:
            found.append(f"seed {seed}, {what}: {expected!r} of transformers, {got!r} of slmjax")

    for role in ("bos", "eos", "pad"):
        compare(f"{role}_id", getattr(reference, f"{role}_token_id"), getattr(tokenizer, f"{role}_id"))
    special = {token.content: id for id, token in reference.added_tokens_decoder.items() if token.special}
    compare("special tokens", special, tokenizer.special_tokens())
    compare("names of special tokens", reference.special_tokens_map, template_tokens(tokenizer))
    first, last = tokenizer.added_around()
    if not first and tokenizer.settings["add_bos_token"]:
        first = [tokenizer.bos_id]
    for sample in (text(rng) for _ in range(TEXTS)):
        ids = reference(sample, add_special_tokens=False).input_ids
        compare(f"ids of {sample!r}", ids, tokenizer.encode(sample, allow_special=True))
        compare(f"all ids of {sample!r}", reference(sample).input_ids, [*first, *ids, *last])
        if not tokenizer.settings.get("split_special_tokens"):
            compare(
                f"ids of {sample!r}, written", ids, reference_of_written(sample, add_special_tokens=False).input_ids
            )
            compare(f"ids of {sample!r}, written and read", ids, again.encode(sample, allow_special=True))
        plain = reference(sample, add_special_tokens=False, split_special_tokens=True).input_ids
        compare(f"plain ids of {sample!r}", plain, tokenizer.encode(sample))
        shown = reference.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        compare(f"text of {ids}", shown, tokenizer.decode(ids))
    return found


def count_equal(seeds: range) -> int:
    """The number of directories that transformers reads, all of whose ids are equal; fails on the first other."""
    results = [differences(seed) for seed in seeds]
    wrong = [found for found in results if found]
    assert not wrong, f"{len(wrong)} directories differ; {wrong[0][0]}"
    return sum(found is not None for found in results)


def test_random_directories_give_the_ids_of_transformers():
    pytest.importorskip("transformers")
    assert count_equal(range(40)) >= 20


@pytest.mark.slow
def test_more_random_directories_give_the_ids_of_transformers():
    pytest.importorskip("transformers")
    assert count_equal(range(1000, 1200)) >= 100
