"""Generation: the cache changes nothing, neither does a neighbour, the seed decides everything."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.inference import decoding
from slmjax.inference.generate import decode_prompts, generate, generate_ids
from slmjax.inference.sampling import GREEDY, Sampling
from slmjax.models.transformer import Transformer
from slmjax.peft.config import PeftConfig
from slmjax.peft.forward import Network
from slmjax.peft.method import make_method
from slmjax.sharding.mesh import MeshConfig, make_mesh
from slmjax.sharding.rules import tree_shardings

OPTIONS = {"temperature": 1.0, "top_k": 50, "top_p": 0.95}
DRAW = Sampling(**OPTIONS)
PROMPTS = [[5, 6, 7], list(range(40, 120)), [9], list(range(10, 74))]  # 64 fills a bucket exactly
# Most calls below have the same shapes and settings, so that few programs are compiled.


def test_greedy_decoding_is_the_argmax_of_the_full_forward(lm):
    apply = jax.jit(lm.apply)
    for prompt, new in zip(PROMPTS, generate_ids(lm, PROMPTS, max_new_tokens=12), strict=True):
        row = np.asarray([prompt + new])
        logits_TV = apply(lm.params, row)[0]
        assert new == np.argmax(logits_TV[len(prompt) - 1 : -1], axis=-1).tolist()
        assert len(set(new)) > 1  # else any cache would do


def test_rows_that_outgrow_longropes_short_factors_are_run_anew(stretched):
    # Of the four one is beyond the switch at once, one crosses it, two stay before it.
    new = generate_ids(stretched, PROMPTS, max_new_tokens=12)
    # The network decides by the last position of what it is given: each token has a run of its own, padded on the
    # right with another document.
    apply = jax.jit(partial(Transformer(stretched.config).apply, {"params": stretched.params}))
    for prompt, row in zip(PROMPTS, new, strict=True):
        for n, token in enumerate(row):
            tokens = [*prompt, *row[:n]]
            inputs = np.zeros((3, 1, 96), np.int32)
            inputs[:, 0, : len(tokens)] = tokens, np.arange(len(tokens)), np.ones(len(tokens))
            assert token == int(np.argmax(apply(*inputs)[0, len(tokens) - 1])), (len(prompt), n)
    streamed: list[list[int]] = [[] for _ in PROMPTS]
    assert new == generate_ids(stretched, PROMPTS, max_new_tokens=12, stream=lambda r, t: streamed[r].append(t))
    assert new == streamed


def test_a_batch_is_its_prompts_one_at_a_time_when_greedy(lm):
    together = generate_ids(lm, PROMPTS, max_new_tokens=10)
    assert together == [generate_ids(lm, [prompt], max_new_tokens=10)[0] for prompt in PROMPTS]


@pytest.mark.parametrize("row", [0, 1])
def test_what_a_row_draws_does_not_depend_on_its_neighbours(lm, row):
    together = generate_ids(lm, PROMPTS, max_new_tokens=10, sampling=DRAW, seed=3)
    others = [PROMPTS[row] if i == row else [1, 2] for i in range(len(PROMPTS))]
    assert generate_ids(lm, others, max_new_tokens=10, sampling=DRAW, seed=3)[row] == together[row]


def test_the_seed_decides_what_is_drawn(lm):
    first, again, other = (
        generate_ids(lm, [[5]] * 4, max_new_tokens=16, sampling=DRAW, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again and first != other
    assert first[0] != first[1]  # rows have keys of their own


def test_a_longer_generation_begins_with_the_shorter(lm):
    short = generate_ids(lm, PROMPTS, max_new_tokens=9, sampling=DRAW, seed=4)
    long = generate_ids(lm, PROMPTS, max_new_tokens=70, sampling=DRAW, seed=4)  # of another size of cache
    assert [row[:9] for row in long] == short


def test_a_stop_token_ends_its_row_alone_and_is_not_in_it(lm):
    free = generate_ids(lm, PROMPTS, max_new_tokens=10, sampling=DRAW, seed=5)
    stop = free[0][4]
    at = free[0].index(stop)
    rows = generate_ids(lm, PROMPTS, max_new_tokens=10, sampling=DRAW, seed=5, stop_ids=[stop])
    assert rows[0] == free[0][:at]
    assert rows == [row[: row.index(stop) if stop in row else None] for row in free]
    assert any(stop not in row for row in free)


def test_streamed_tokens_are_the_result(lm):
    seen = [[] for _ in PROMPTS]
    rows = generate_ids(lm, PROMPTS, max_new_tokens=9, sampling=DRAW, seed=6, stream=lambda r, t: seen[r].append(t))
    assert seen == rows == generate_ids(lm, PROMPTS, max_new_tokens=9, sampling=DRAW, seed=6)


def test_lengths_of_one_bucket_share_their_programs(lm):
    generate_ids(lm, [[1] * 33], max_new_tokens=5, sampling=GREEDY)
    sizes = decoding.prefill._cache_size(), decoding.decode._cache_size()
    for n, new in ((40, 1), (50, 64), (64, 30)):
        generate_ids(lm, [[2] * n], max_new_tokens=new, sampling=GREEDY, stop_ids=[3], seed=n)
    assert (decoding.prefill._cache_size(), decoding.decode._cache_size()) == sizes


def test_a_row_that_is_told_to_end_ends_alone(lm):
    free = generate_ids(lm, PROMPTS, max_new_tokens=9, sampling=DRAW, seed=6)
    rows = generate_ids(lm, PROMPTS, max_new_tokens=9, sampling=DRAW, seed=6, stream=lambda row, token: row == 1)
    assert rows == [row[:1] if i == 1 else row for i, row in enumerate(free)]


def test_stop_strings_cut_each_row_where_they_begin(lm):
    options = {"max_new_tokens": 30, **OPTIONS, "seed": 2, "stop_at_eos": False}
    free = generate(lm, PROMPTS, **options)
    stop = [free[0][5:7], free[1][9:10]]
    pieces = []
    texts = generate(lm, PROMPTS, **options, stop=stop, stream=pieces.append)
    assert texts == [text[: min((at for s in stop if (at := text.find(s)) >= 0), default=None)] for text in free]
    assert "".join(pieces) == texts[0] and len(texts[0]) <= 5 < len(free[0])
    assert generate(lm, PROMPTS, **options, stop=stop) == texts


def test_many_stop_ids(lm):
    free = generate_ids(lm, [[5]], max_new_tokens=10)[0]
    unused = [token for token in range(lm.config.vocab_size) if token not in free][:20]
    assert generate_ids(lm, [[5]], max_new_tokens=10, stop_ids=unused)[0] == free
    assert generate_ids(lm, [[5]], max_new_tokens=10, stop_ids=[*unused, free[0]])[0] == []


def test_a_models_own_stop_ids_are_the_ones(lm):
    ids = generate_ids(lm, [[5]], max_new_tokens=10)[0]
    changed = dataclasses.replace(lm, stop_ids=(ids[4],))
    assert generate(changed, [[5]], max_new_tokens=10) == [lm.tokenizer.decode(ids[: ids.index(ids[4])])]


def test_a_penalty_counts_the_prompt_and_what_was_drawn_in_each_row_alone(lm):
    """Greedy steps of the full forward pass, penalized by hand."""
    sampling, apply = Sampling(repetition_penalty=1.5), jax.jit(lm.apply)
    together = generate_ids(lm, PROMPTS, max_new_tokens=8, sampling=sampling)
    for prompt, new in zip(PROMPTS[:2], together, strict=False):
        logits_TV = np.asarray(apply(lm.params, np.asarray([prompt + new]))[0])
        for n, token in enumerate(new):
            scores = logits_TV[len(prompt) + n - 1].copy()
            seen = list({*prompt, *new[:n]})
            scores[seen] = np.where(scores[seen] < 0, scores[seen] * 1.5, scores[seen] / 1.5)
            assert token == scores.argmax()
    assert together != generate_ids(lm, PROMPTS, max_new_tokens=8)


def test_streamed_text_joined_is_the_text(lm):
    pieces = []
    texts = generate(lm, ["the old", "", "a", "b"], max_new_tokens=40, **OPTIONS, stream=pieces.append)
    assert "".join(pieces) == texts[0] != "" and len(pieces) > 1


def test_texts_and_their_ids_are_one_prompt(lm):
    ids = lm.tokenizer.encode("the river")
    assert generate(lm, ["the river"], max_new_tokens=8) == generate(lm, [ids], max_new_tokens=8)


def test_the_end_of_text_token_stops_unless_told_not_to(lm):
    eos = lm.tokenizer.eos_id
    head = np.array(lm.params["embedder"]["embedding"])
    head[eos] = head[7] * 1.5  # now likely, now not
    params = {**lm.params, "embedder": {"embedding": head}}
    changed = dataclasses.replace(lm, params=params)
    rows = [[7]] * 4
    kept = generate_ids(changed, rows, max_new_tokens=40, sampling=DRAW)
    assert any(eos in row[:-1] for row in kept)
    cut = [lm.tokenizer.decode(row[: row.index(eos) if eos in row else None]) for row in kept]
    assert generate(changed, rows, max_new_tokens=40, **OPTIONS) == cut
    whole = [lm.tokenizer.decode(row) for row in kept]
    assert generate(changed, rows, max_new_tokens=40, **OPTIONS, stop_at_eos=False) == whole != cut


def test_a_model_trained_with_bos_is_prompted_with_it(lm, monkeypatch):
    plain = generate(lm, ["the"], max_new_tokens=8)
    monkeypatch.setitem(lm.tokenizer.settings, "add_bos_token", True)
    with_bos = [lm.tokenizer.bos_id, *lm.tokenizer.encode("the")]
    assert generate(lm, ["the"], max_new_tokens=8) == generate(lm, [with_bos], max_new_tokens=8) != plain


@pytest.mark.parametrize(
    ("prompts", "options", "said"),
    [
        ([[1] * 250], {}, "context is 256"),
        ([[]], {}, "empty prompt"),
        ([[1, 9999]], {}, "9999"),
        ([[-1]], {}, "-1"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens=0"),
        ("text", {}, "list of texts"),
        ([[1]], {"stop": "text"}, "list of texts"),
        ([[1]], {"stop": [""]}, "none of them empty"),
    ],
)
def test_what_cannot_be_continued_is_refused(lm, prompts, options, said):
    with pytest.raises(UserError, match=said):
        generate(lm, prompts, **options)


def test_no_prompts_no_texts(lm):
    assert generate(lm, []) == []


def test_training_parameters_on_a_mesh_generate_what_the_model_does(lm):
    """From a state as it lies: sharded over eight devices, LoRA beside the base, cut as the method cuts it."""
    model = Transformer(lm.config)
    method = make_method(PeftConfig(method="lora", lora={"r": 2}, train=("final_norm/scale",)), model)
    trained, frozen = method.split(lm.params, jax.random.key(1))
    trained = jax.tree.map(lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape), trained)
    tuned = dataclasses.replace(lm, **method.variables(trained, frozen), options=method.options)
    wanted = generate_ids(tuned, PROMPTS, max_new_tokens=12)
    assert wanted != generate_ids(lm, PROMPTS, max_new_tokens=12)

    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    arrays = jax.device_put((trained, frozen), tree_shardings((trained, frozen), mesh))
    traced = []

    def collections(arrays):
        traced.append(1)
        return method.variables(*arrays)

    decoder = decoding.Decoder(Network(model, method.options), collections, mesh)
    for stops in ((), (), (wanted[0][3],)):
        found = decode_prompts(decoder, arrays, PROMPTS, max_new_tokens=12, stop_ids=stops)
        cut = [row[: row.index(stops[0])] if stops and stops[0] in row else row for row in wanted]
        assert found == cut
    assert len(traced) == 2  # one prefill and one decode for all evaluations
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(arrays))


def test_a_sampling_and_its_settings_are_one(lm):
    prompts = PROMPTS[:1] * 4
    assert generate(lm, prompts, sampling=DRAW) == generate(lm, prompts, **OPTIONS)
    with pytest.raises(UserError, match="Sampling and top_k are both given"):
        generate(lm, prompts, sampling=DRAW, top_k=3)


def test_a_text_that_is_told_to_end_ends(lm):
    pieces = []
    end = lambda piece: pieces.append(piece) or len(pieces) == 2  # noqa: E731
    text = generate(lm, ["the old"], max_new_tokens=12, stream=end)[0]
    assert text == "".join(pieces) and generate(lm, ["the old"], max_new_tokens=12)[0].startswith(text)
