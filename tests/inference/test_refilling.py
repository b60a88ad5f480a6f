"""Rows that are refilled give what each prompt gives by itself."""

import dataclasses

import jax
import numpy as np
import pytest

from slmjax.inference import ragged_rows, refilling
from slmjax.inference.generate import generate_ids
from slmjax.inference.refilling import generate_rows
from slmjax.inference.sampling import Sampling
from slmjax.peft.config import PeftConfig
from slmjax.peft.method import make_method
from tests.tiny import noise

rng = np.random.default_rng(0)
SHARED = rng.integers(0, 200, 20).tolist()
PROMPTS = [rng.integers(0, 200, n).tolist() for n in (3, 50, 1, 18)]
PROMPTS += [SHARED + [5], SHARED + [6, 7, 8], SHARED[:12] + [9], SHARED + [5]]


@pytest.fixture(autouse=True, scope="module")
def small_pieces():
    before = refilling.PIECE, ragged_rows.BURST
    refilling.PIECE, ragged_rows.BURST = 16, 4
    yield
    refilling.PIECE, ragged_rows.BURST = before


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_give_what_each_prompt_gives(lm, rows):
    told = {}
    found = generate_rows(lm, PROMPTS, max_new_tokens=10, rows=rows, tell=lambda i, ids: told.setdefault(i, ids))
    assert found == generate_ids(lm, PROMPTS, max_new_tokens=10)
    assert told == dict(enumerate(found)) and len(set(map(tuple, found))) > 4


def test_what_is_drawn_depends_on_the_seed_and_the_prompt_alone(lm):
    sampling = Sampling(temperature=1.0, top_k=50, repetition_penalty=1.3)
    settings = {"max_new_tokens": 9, "sampling": sampling, "seed": 3}
    found = generate_rows(lm, PROMPTS, rows=3, **settings)
    assert found == generate_ids(lm, PROMPTS, **settings) == generate_rows(lm, PROMPTS, rows=2, **settings)
    assert found[4] != found[-1]  # the same prompt twice


def test_a_row_ends_at_a_stop_id_or_string_and_the_next_prompt_takes_its_place(lm):
    free = generate_ids(lm, PROMPTS, max_new_tokens=12)
    stop_ids = (free[0][0], free[1][4])
    cut = [row[: next((i for i, token in enumerate(row) if token in stop_ids), None)] for row in free]
    assert generate_rows(lm, PROMPTS, max_new_tokens=12, rows=3, stop_ids=stop_ids) == cut
    stop = lm.tokenizer.decode(free[1])[3:5]
    for row, whole in zip(generate_rows(lm, PROMPTS, max_new_tokens=12, rows=3, stop=[stop]), free, strict=True):
        assert row == whole[: len(row)]
        assert len(row) == 12 or stop in lm.tokenizer.decode(row)


def test_a_shared_beginning_is_run_once(lm, monkeypatch):
    ran = []
    original = ragged_rows.run_piece
    monkeypatch.setattr(ragged_rows, "run_piece", lambda *a: ran.append(int(a[-1])) or original(*a))
    generate_rows(lm, PROMPTS[4:], max_new_tokens=2, rows=2)
    assert sum(ran) == 20 + 1 + 3 + 1 + 1  # the last: of a prompt that is another's the last token runs again


@pytest.mark.slow
def test_the_network_may_have_a_window_a_prefix_or_rotations_that_change(lm, stretched):
    windowed = dataclasses.replace(lm, config=dataclasses.replace(lm.config, window=7))
    method = make_method(PeftConfig(method="prefix", prefix={"num_virtual_tokens": 3}), windowed.model)
    trained, frozen = method.split(lm.params, jax.random.key(1))
    trained = jax.tree.map(lambda x: x + noise(x, 0.5), trained)
    prefixed = dataclasses.replace(windowed, **method.variables(trained, frozen), options=method.options)
    for model in (windowed, prefixed, stretched):
        found = generate_rows(model, [*PROMPTS, PROMPTS[1] + SHARED], max_new_tokens=8, rows=3)
        assert found == generate_ids(model, [*PROMPTS, PROMPTS[1] + SHARED], max_new_tokens=8)
