"""Scores are those of each text run by itself, whatever is shared, in which order, and in which chunks."""

import dataclasses
import importlib
import itertools
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slmjax.evaluation.scoring.score import NotFiniteError, score, score_with
from slmjax.evaluation.scoring.trie import cut_chunks, cut_streams
from slmjax.inference.decoding import Decoder
from slmjax.inference.language_model import LanguageModel
from slmjax.inference.refilling import common_prefix, generate_rows
from slmjax.models.config import ModelConfig, RopeScaling
from slmjax.models.transformer import Transformer
from slmjax.peft.config import PeftConfig
from slmjax.peft.forward import Network, forward
from slmjax.peft.method import make_method
from slmjax.sharding.mesh import MeshConfig, make_mesh
from slmjax.sharding.rules import tree_shardings
from tests.tiny import noise, param_shapes

V = 40
SIZES = {"vocab_size": V, "num_layers": 2, "embed_dim": 16, "num_heads": 2, "ffn_dim": 24, "context_length": 128}
SCALING = RopeScaling("longrope", 4.0, 40, short_factor=(1.0, 1.1, 1.3, 1.5), long_factor=(2.0, 4.0, 6.0, 8.0))
KINDS = {
    "rope": {"num_kv_heads": 1},
    "window": {"window": 5},
    "alibi": {"position": "alibi"},
    "Falcon's alibi": {"position": "alibi", "alibi_scaled": True},
    "learned": {"position": "learned"},
    "longrope": {"rope_scaling": SCALING},
}
scoring = importlib.import_module("slmjax.evaluation.scoring.score")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK", 16)
    monkeypatch.setattr(scoring, "SMALLEST", 16)


def make_lm(**changes) -> LanguageModel:
    config = ModelConfig(**SIZES | changes)
    return LanguageModel(config=config, params=noise(param_shapes(config), 0.3))


def questions(seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Choices of a question, questions that begin alike, one request that is another's beginning, one twice."""
    rng = np.random.default_rng(seed)

    def ids(n):
        return rng.integers(0, V, n).tolist()

    shots, requests = ids(30), []
    for _ in range(3):
        context = shots + ids(int(rng.integers(1, 20)))
        requests += [(context, ids(int(rng.integers(1, 6)))) for _ in range(3)]
    requests += [(shots[:7], shots[7:12]), (shots[:7], shots[7:12]), ([3], ids(20)), (ids(60), ids(1)), ([3], [4])]
    return requests


def one_by_one(lm, requests):
    @partial(jax.jit, static_argnums=0)
    def logits(network, variables, inputs):
        return forward(network, variables, *inputs)

    found = []
    for context, continuation in requests:
        run = [*context, *continuation[:-1]]
        inputs = np.zeros((3, 1, 96), np.int32)
        inputs[:, 0, : len(run)] = run, np.arange(len(run)), np.ones(len(run))
        logits_TV = np.asarray(logits(Network(lm.model, lm.options), lm.variables, inputs), np.float64)[0]
        logits_NV = logits_TV[len(context) - 1 : len(run)]
        log_probs = logits_NV - np.log(np.exp(logits_NV).sum(-1, keepdims=True))
        total = log_probs[np.arange(len(continuation)), continuation].sum()
        found.append((total, bool((logits_NV.argmax(-1) == continuation).all())))
    return found


def assert_same(ours, theirs):
    np.testing.assert_allclose([s[0] for s in ours], [s[0] for s in theirs], atol=1e-4)
    assert [s[1] for s in ours] == [s[1] for s in theirs]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_each_text_by_itself(kind):
    lm, requests = make_lm(**KINDS[kind]), questions()
    told = {}
    scores = score(lm, requests, progress=False, tell=lambda i, s: told.setdefault(i, s))
    assert_same(scores, one_by_one(lm, requests))
    assert told == dict(enumerate(scores))


def test_nothing_depends_on_sharing_order_or_chunks(monkeypatch):
    lm, requests = make_lm(), questions(1)
    scores = score(lm, requests, progress=False)
    assert len({s.logprob for s in scores}) > 10
    assert_same(score(lm, requests, progress=False, share=False), scores)
    order = np.random.default_rng(0).permutation(len(requests))
    assert_same(score(lm, [requests[i] for i in order], progress=False), [scores[i] for i in order])
    monkeypatch.setattr(scoring, "CHUNK", 128)
    assert_same(score(lm, requests, progress=False), scores)


def test_a_greedy_continuation_is_known_as_one():
    lm = make_lm()
    context = [3, 5, 7]
    tokens = list(context)
    for _ in range(4):
        inputs = np.zeros((1, 16), np.int32)
        inputs[0, : len(tokens)] = tokens
        tokens.append(int(np.argmax(lm.apply(lm.params, inputs)[0, len(tokens) - 1])))
    other = [*tokens[3:-1], (tokens[-1] + 1) % V]
    assert [s.is_greedy for s in score(lm, [(context, tokens[3:]), (context, other)], progress=False)] == [True, False]


@pytest.mark.parametrize("window", [None, 5])
def test_a_prefix_stands_before_every_text(window):
    lm = make_lm(window=window)
    method = make_method(PeftConfig(method="prefix", prefix={"num_virtual_tokens": 3}), lm.model)
    trained, frozen = method.split(lm.params, jax.random.key(1))
    trained = jax.tree.map(lambda x: x + noise(x, 0.5), trained)
    lm = dataclasses.replace(lm, **method.variables(trained, frozen), options=method.options)
    assert_same(score(lm, questions(), progress=False), one_by_one(lm, questions()))


@pytest.mark.slow
def test_rows_lie_over_a_mesh():
    lm, requests = make_lm(), questions()
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    params = jax.device_put(lm.params, tree_shardings(lm.params, mesh))
    decoder = Decoder(Network(Transformer(lm.config)), mesh=mesh)
    scores = score_with(decoder, {"params": params}, requests, progress=False)
    assert_same(scores, score(lm, requests, progress=False))
    spread = dataclasses.replace(lm, params=params)
    assert spread.mesh == mesh and lm.mesh is None
    assert_same(score(spread, requests, progress=False), scores)
    settings = {"max_new_tokens": 4, "rows": 8}
    prompts = [context for context, _ in requests]
    assert generate_rows(spread, prompts, **settings) == generate_rows(lm, prompts, **settings)


def test_a_sum_that_is_not_finite_names_its_request():
    lm = make_lm()
    lm.params["embedder"]["embedding"][39] = np.nan
    with pytest.raises(NotFiniteError) as error:
        score(lm, [([1, 2], [3]), ([39, 2], [3])], progress=False)
    # A table that is tied to the head makes every logit of the token NaN, and so each sum.
    assert error.value.index in (0, 1)


ids_lists = st.lists(st.integers(0, 2), min_size=1, max_size=9)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(ids_lists, ids_lists), min_size=1, max_size=8), st.integers(1, 3), st.integers(1, 6))
def test_chunks_hold_the_ancestors_of_each_node(requests, count, size):
    """Following floors, ends and sources as the compiled half does gives back each request's own tokens."""
    capacity = max(len(context) + len(continuation) for context, continuation in requests)
    answered = []
    for stream in cut_streams(requests, count):
        texts = {}  # a node's text, as the masks show it
        path = [None] * capacity
        for chunk in cut_chunks(stream, size, capacity):
            for place in range(chunk.size):
                seen = path[: chunk.floors[place]]
                seen += [chunk.tokens[s] for s in range(place + 1) if chunk.ends[s] > place]
                assert len(seen) == chunk.depths[place] + 1
                texts[chunk.first + place] = [int(token) for token in seen]
            path = [path[s] if s < capacity else chunk.tokens[s - capacity] for s in chunk.sources]
        for asked in stream.asked:
            context, continuation = requests[asked.request]
            answered.append(asked.request)
            assert asked.targets.tolist() == continuation
            for n, node in enumerate(asked.nodes.tolist()):
                assert texts[node] == [*context, *continuation[:n]]
        assert len(stream) == len(set(map(tuple, texts.values())))  # nothing is run twice
    assert sorted(answered) == list(range(len(requests)))
    runs = sorted([*context, *continuation[:-1]] for context, continuation in requests)
    if count == 1:
        nodes = len(runs[0]) + sum(len(b) - common_prefix(a, b) for a, b in itertools.pairwise(runs))
        assert nodes == len(cut_streams(requests, 1)[0])
