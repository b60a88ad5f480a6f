"""Whatever files a directory has, its tokenizer gives the ids that transformers' AutoTokenizer gives."""

import json
import random
import tempfile
from pathlib import Path

import pytest

from slmjax.errors import UserError
from slmjax.formats.huggingface.tokenizer import read, write
from slmjax.tokenization.chat_template import template_tokens
from slmjax.tokenization.huggingface_classes import CLASSES, GENERIC, MISNAMED, REGISTERED
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
    assert count_equal(range(30)) >= 15


@pytest.mark.slow
def test_more_random_directories_give_the_ids_of_transformers():
    pytest.importorskip("transformers")
    assert count_equal(range(1000, 1070)) >= 35


def test_classes_by_model_type_are_those_of_transformers():
    auto = pytest.importorskip("transformers.models.auto.tokenization_auto")
    named = {model_type: (name or "").removesuffix("Fast") for model_type, name in auto.TOKENIZER_MAPPING_NAMES.items()}
    theirs = {model_type: name.replace("MistralCommonBackend", GENERIC) for model_type, name in named.items()}
    assert {k: v for k, v in theirs.items() if v in {*CLASSES, GENERIC}} == REGISTERED
    assert MISNAMED == auto.MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS


ODD = [None, True, -1, 1 << 40, 1.5, "", "x", "\u2581", [], ["x", 3], {}, {"content": 3}, {"x": {"y": []}}]


def _with_an_odd_value(rng: random.Random, value):
    """The value with something else in one place of it."""
    if isinstance(value, dict | list) and value and rng.random() < 0.8:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys[:12])
        changed = {**value} if isinstance(value, dict) else [*value]
        changed[key] = _with_an_odd_value(rng, value[key])
        return changed
    return rng.choice(ODD)


def _read_damaged(seed: int) -> bool:
    """Whether a directory in one of whose files a value is odd is read all the same; UserError is the one refusal."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        write_directory(rng, Path(name))
        file = rng.choice(sorted(Path(name).glob("*.json")))
        file.write_text(json.dumps(_with_an_odd_value(rng, json.loads(file.read_text()))))
        try:
            tokenizer = read(Path(name))
            tokenizer.decode(tokenizer.encode(text(rng), allow_special=True))
            template_tokens(tokenizer)
        except UserError as error:
            assert "\n" not in str(error)
            return False
    return True


def test_odd_values_in_a_directory_are_refused_in_a_sentence_or_read():
    assert 0 < sum(_read_damaged(seed) for seed in range(40)) < 40


@pytest.mark.slow
def test_more_odd_values_in_a_directory_are_refused_in_a_sentence_or_read():
    assert 0 < sum(_read_damaged(seed) for seed in range(1000, 1150)) < 150
