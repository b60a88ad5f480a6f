"""Prompts with needles: what stands in them, where, and how long they are."""

import ast
import random
from pathlib import Path

import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.evaluation.tasks.needle import items
from slmjax.evaluation.tasks.needle.heatmap import depth_by_length, needle_samples, plot_needles
from slmjax.evaluation.tasks.needle.items import DEPTHS, KINDS, NEEDLE, Haystack, make_items, place_needles

WORDS = [f"w{i}" for i in range(200)]


def count(text):
    """A tokenizer that has a token for each word and sign, and one more for long words."""
    return sum(1 + (len(word) > 5) + (not word[-1].isalnum()) for word in text.split())


def haystack(sentences=3000):
    rng = random.Random(0)
    return Haystack(
        " ".join(" ".join(rng.choices(WORDS, k=rng.randrange(3, 20))) + "." for _ in range(sentences)), count
    )


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("margin", [0, 17])
def test_every_prompt_fits_its_length_and_fills_it(name, margin):
    lengths = (512, 1000, 4096)
    for item in make_items(name, haystack(), lengths, samples=10, margin=margin):
        whole = count(f"{item['input']} {item['gen_prefix']}") + items.MAX_NEW_TOKENS + margin
        assert item["length"] == whole <= item["max_length"]
        assert whole > item["max_length"] - 60  # no room for two more sentences


@pytest.mark.parametrize("name", KINDS)
def test_the_numbers_stand_in_the_text_at_their_depths(name):
    kind = KINDS[name]
    for item in make_items(name, haystack(), [2000], samples=12):
        text, _, question = item["input"].partition("\n")[2].rpartition("\n")
        assert len(item["outputs"]) == len(item["depths"]) == kind.values * kind.queries
        assert len(set(item["outputs"])) == len(item["outputs"])
        assert text.count("special magic numbers") == kind.keys * kind.values
        assert item["query"] in question
        for number, depth in zip(item["outputs"], item["depths"], strict=True):
            assert text.count(f" is: {number}.") == 1
            before = text[: text.index(f"{number}.")]
            assert len(before) / len(text) == pytest.approx(depth / 100, abs=0.06)
        for number in item["outputs"]:  # of a key that is asked for
            key = text[: text.index(f" is: {number}.")].rpartition(" for ")[2]
            assert key in item["query"]


def test_items_are_the_same_whatever_else_is_asked():
    every = make_items("needle_multikey", haystack(), [512, 1024], samples=5)
    assert [item for item in every if item["max_length"] == 1024] == make_items(
        "needle_multikey", haystack(), [1024], samples=5
    )
    random.seed(5)
    assert every[:4] == make_items("needle_multikey", haystack(), [512, 1024], samples=2)
    state = random.getstate()
    make_items("needle_single", haystack(), [512], samples=2)
    assert random.getstate() == state  # upstream draws from the global generator


def test_every_beginning_of_the_depths_covers_the_text():
    order = items.depth_order()
    assert sorted(order) == DEPTHS
    assert (DEPTHS[0], DEPTHS[-1], len(DEPTHS)) == (0, 100, 40)
    for taken in range(4, 41):
        gaps = np.diff(sorted([0, *order[:taken], 100]))
        assert gaps.max() <= 250 / taken


def test_needles_at_the_ends_are_the_first_and_the_last_sentence():
    text = place_needles(["One.", "Two.", "Three."], [100, 0], ["Last.", "First."])
    assert text == "First. One. Two. Three. Last."


def test_sentences_hold_the_whole_text():
    text = 'He said: "No."  Then\nnothing, for ' + "very " * 100 + "long. End"
    sentences = items.split_sentences(text)
    assert " ".join(sentences) == " ".join(text.split())
    assert sentences[0] == 'He said: "No."'
    assert max(len(sentence.split()) for sentence in sentences) <= 30


@pytest.mark.parametrize(
    ("lengths", "sentences", "sentence"),
    [
        ([150], 3000, "cannot be hidden in 150 tokens"),
        ([4096], 20, "too few for prompts of 4,096"),
        ([0], 20, "hidden in 0"),
    ],
)
def test_lengths_that_cannot_be_are_refused(lengths, sentences, sentence):
    with pytest.raises(UserError, match=sentence):
        make_items("needle_single", haystack(sentences), lengths, samples=1)


def test_the_template_and_the_needle_are_rulers():
    lm_eval = pytest.importorskip("lm_eval")
    ruler = Path(lm_eval.__file__).parent / "tasks" / "ruler"

    def constant(file, name):
        for node in ast.parse((ruler / file).read_text()).body:
            if isinstance(node, ast.Assign) and node.targets[0].id == name:
                return ast.literal_eval(node.value)
        raise AssertionError(name)

    template = constant("niah_utils.py", "TEMPLATE")
    blanks = {"context": "{context}", "query": "{query}"}
    assert template.format(type_needle_v="numbers", **blanks) == items.TEMPLATE
    one = template.replace("Some", "A").replace("are all", "is").replace("are", "is")
    assert one.format(type_needle_v="number", **blanks) == items.TEMPLATE_OF_ONE
    needle = constant("prepare_niah.py", "NEEDLE")
    assert needle.format(type_needle_v="numbers", key="{key}", value="{value}") == items.NEEDLE


def answers(names, share):
    """Samples in the harness's form, of a model that finds what lies in the first `share` percent."""
    samples = {}
    for name in names:
        samples[name] = []
        for item in make_items(name, haystack(), [512, 1024]):
            told = [number for number, depth in zip(item["outputs"], item["depths"], strict=True) if depth < share]
            samples[name].append({"doc": item, "filtered_resps": [f" {', '.join(told)}."]})
    return samples


@pytest.mark.parametrize("name", KINDS)
def test_the_grid_shows_where_needles_are_lost(name):
    lengths, share = depth_by_length(answers([name], share=50)[name])
    assert lengths == [512, 1024]
    assert (share[:5] == 1).all()
    assert (share[5:] == 0).all()


def test_the_picture_is_drawn(tmp_path):
    samples = answers(KINDS, share=30)
    assert list(needle_samples({"arc_easy": [{}], **samples})) == list(KINDS)
    plot_needles(samples, tmp_path / "needles.png", "a model")
    assert (tmp_path / "needles.png").read_bytes().startswith(b"\x89PNG")


def test_a_string_is_found_whatever_surrounds_it():
    assert items.found_strings("It is\x00 1234567, And more: AbC", ["1234567", "abc", "7654321"]) == [True, True, False]
    assert NEEDLE.format(key="k", value="1").endswith("k is: 1.")
