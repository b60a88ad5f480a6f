"""Forgetting is measured without asking, the anchors survive a stop, early stopping and samples do as they say."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.models.transformer import Transformer
from slmjax.peft.config import PeftConfig
from slmjax.peft.forward import Network, forward
from slmjax.recipes import language_model
from slmjax.recipes.check import check
from slmjax.recipes.corpus import open_corpus
from slmjax.recipes.fisher import with_fisher
from slmjax.recipes.forgetting_config import ForgettingConfig
from slmjax.recipes.general_text import open_general
from slmjax.recipes.observers import losses as losses_room
from slmjax.recipes.train import train
from slmjax.training import loop
from slmjax.training.checkpoints.checkpointer import Checkpointer
from tests.tiny_run import make_base, stop_at


@pytest.fixture(scope="module")
def general(tmp_path_factory):
    rng = np.random.default_rng(1)
    words = ["sea", "sky", "runs", "a", "blue", "on", "far"]
    path = tmp_path_factory.mktemp("general") / "general.txt"
    path.write_text("\n\n".join(" ".join(rng.choice(words, 20)) for _ in range(120)))
    return str(path)


@pytest.fixture(scope="module")
def config(tiny_config, general):
    """config(steps, peft={...}, forgetting={...}, **{"training.x": ...}): a fine-tune on eight devices."""

    def make(steps=4, *, peft=None, held=None, **changes):
        run = tiny_config(steps, **{"schedule.name": "constant"} | changes)
        peft = PeftConfig(**{"method": "lora", "base": "somewhere", "lora": {"r": 2}} | (peft or {}))
        held = ForgettingConfig(**{"corpus": general, "tokens": 256} | (held or {}))
        return dataclasses.replace(run, peft=peft, forgetting=held)

    return make


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_fine_tune_reports_what_it_gained_and_forgot_without_being_asked(config, tmp_path):
    run = config(peft={"method": "prefix", "prefix": {"num_virtual_tokens": 2}}, **{"schedule.peak": 0.01})
    scores = iter([0.25, 0.75])
    result = train(run, tmp_path / "run", base=make_base(run), tasks={"made up": lambda *_: next(scores)})
    report = json.loads((tmp_path / "run" / "forgetting.json").read_text())
    assert report == result.reports["forgetting"].to_dict() and report["steps"] == 4
    rows = {row["name"]: row for row in report["rows"]}
    assert list(rows) == ["validation_loss", "general_loss", "task/made up"]
    measured = [line for line in lines(tmp_path / "run" / "metrics.jsonl") if line["split"] == "validation"]
    assert [line["step"] for line in measured] == [0, 2, 4]
    for name, row in rows.items():
        assert row["before"] == measured[0][name] and row["after"] == measured[-1][name] != row["before"]
        assert row["change"] == pytest.approx(row["after"] - row["before"])
    assert rows["task/made up"]["gain"] == 0.5 and rows["general_loss"]["gain"] == -rows["general_loss"]["change"]
    for word in ("before", "after", "validation loss", "general loss"):
        assert word in result.reports["forgetting"].table()
    assert (tmp_path / "run" / "forgetting.png").stat().st_size > 10_000
    # Before is the base itself, also where the method changes the network at once: a mean over the same tokens by hand.
    text = open_general(run, tmp_path / "run" / "data" / "general", open_corpus(run.data, tmp_path).tokenizer)
    nll = tokens = 0.0
    apply, base = jax.jit(Transformer(run.model).apply), make_base(run)
    for row in text.measured_rows(run.data.sequence_length, 256):
        inputs = [row[name][None] for name in ("inputs", "positions", "segments")]
        logits = apply({"params": base}, *inputs)[0]
        logits = np.asarray(logits, np.float64)
        chosen = np.take_along_axis(logits, row["targets"][:, None], 1)[:, 0]
        losses = np.log(np.exp(logits).sum(axis=-1)) - chosen
        nll, tokens = nll + float(losses @ row["loss_weights"]), tokens + float(row["loss_weights"].sum())
    assert 200 < tokens <= 256
    assert rows["general_loss"]["before"] == pytest.approx(nll / tokens, rel=1e-5)


@pytest.mark.slow
def test_measuring_is_turned_off_by_zero_tokens(config, tmp_path):
    run = config(2, held={"tokens": 0})
    result = train(run, tmp_path / "run", base=make_base(run))
    assert "forgetting" not in result.reports and not (tmp_path / "run" / "forgetting.json").exists()
    assert not (tmp_path / "run" / "data" / "general").exists()
    assert all("general_loss" not in line for line in lines(tmp_path / "run" / "metrics.jsonl"))


ALL = {"replay": 0.25, "l2_sp": 0.1, "ewc": 0.1, "kl": 0.2, "kl_on": "general", "fisher_rows": 8}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_run_with_everything_goes_on_bitwise_after_a_stop(
    method, config, tmp_path, monkeypatch, assert_bitwise_equal
):
    run = config(4, peft={"method": method, "train": ("final_norm/scale",) if method == "lora" else ()}, held=ALL)
    train(run, tmp_path / "straight", base=make_base(run))
    with monkeypatch.context() as patched:
        stop_at(patched, 3)
        assert train(run, tmp_path / "parts", base=make_base(run)).step == 3
    result = train(run, tmp_path / "parts", base=make_base(run))
    abstract = language_model.build(run).program.stored
    assert "fisher" in abstract.frozen and "start" not in abstract.frozen
    states = [
        jax.device_get(Checkpointer(tmp_path / name / loop.CHECKPOINTS).restore(4, abstract).state)
        for name in ("straight", "parts")
    ]
    assert_bitwise_equal(*states)
    assert max(float(leaf.max()) for leaf in jax.tree.leaves(states[0].frozen["fisher"])) > 0
    reports = [json.loads((tmp_path / name / "forgetting.json").read_text()) for name in ("straight", "parts")]
    assert reports[0] == reports[1] == result.reports["forgetting"].to_dict()
    steps = [line for line in lines(tmp_path / "parts" / "metrics.jsonl") if line["split"] == "train"]
    assert {"l2_sp", "ewc", "kl"} <= steps[-1].keys() and steps[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert steps[-1]["kl"] > 0


@pytest.mark.slow
def test_the_fisher_information_is_the_mean_of_squared_gradients_on_any_mesh(config, tmp_path):
    run = config(2, peft={"method": "full"}, held={"ewc": 1.0})
    text = open_general(run, tmp_path, open_corpus(run.data, tmp_path).tokenizer, progress=False)
    rows = text.estimation_rows(run.data.sequence_length, 3)
    found = []
    for devices in (None, jax.devices()[:1]):
        made = language_model.build(run, devices=devices)
        state = with_fisher(made, made.program.initialize(make_base(run)), rows)
        found.append(jax.device_get(state.frozen["fisher"]))
    # The mesh's reduction orders differ, and squares of what nearly cancels with them.
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * float(b.max()))

    base = make_base(run)

    def row_loss(scale, row):
        params = {**base, "final_norm": {"scale": scale}}
        inputs = [row[name][None] for name in ("inputs", "positions", "segments")]
        logits = Transformer(run.model).apply({"params": params}, *inputs)[0]
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), row["targets"][:, None], 1)[:, 0]
        return -jnp.sum(picked * row["loss_weights"])

    gradient, ones = jax.jit(jax.grad(row_loss)), np.ones(run.model.embed_dim, np.float32)
    squares = [np.square(gradient(ones, row)) for row in rows]
    expected = sum(squares) / sum(row["loss_weights"].sum() for row in rows)
    np.testing.assert_allclose(found[1]["params"]["final_norm"]["scale"], expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("held", "peft", "message"),
    [
        ({"l2_sp": 1.0}, {"method": "prefix"}, r"forgetting\.l2_sp=1\.0 has no effect"),
        ({"replay": 0.95}, {}, r"replay=0\.95 leaves less than one row .* raise training\.batch_size"),
        ({"kl": 1.0, "kl_on": "general"}, {}, r"set forgetting\.replay"),
        ({"kl": -1.0}, {}, r"forgetting\.kl=-1\.0"),
        ({"replay": 0.5, "corpus": ""}, {}, r"set forgetting\.corpus"),
    ],
)
def test_what_cannot_be_is_refused(held, peft, message, config):
    with pytest.raises(UserError, match=message):
        check(config(2, peft=peft, held=held))


def test_holding_needs_a_base(config, tmp_path):
    run = config(2, peft={"method": "full", "base": ""}, held={"ewc": 1.0})
    with pytest.raises(UserError, match=r"forgetting\.ewc=1 regularizes towards the base model.* set peft\.base"):
        train(run, tmp_path / "run")


EARLY = {"training.early_stopping": 2, "training.eval_every": 1, "checkpoint.every": 50, "checkpoint.keep_last": 1}


@pytest.mark.slow
def test_early_stopping_stops_keeps_the_best_and_goes_on_bitwise(
    config, tmp_path, monkeypatch, assert_bitwise_equal, capsys
):
    # Losses are made up, so that the test knows the best: 3 at step 2, and nothing better until the end.
    losses = {0: 9.0, 1: 5.0, 2: 3.0, 3: 4.0, 4: 3.5}

    def made_up(lm, step, state, batches):
        return {"loss": losses[int(state.step)], "bits_per_byte": 1.0, "accuracy": 0.0}

    monkeypatch.setattr(losses_room, "mean_losses", made_up)
    run = config(8, **EARLY)
    result = train(run, tmp_path / "straight", base=make_base(run))
    assert (result.step, result.reports["early_stopping"], result.stopped_by) == (4, 2, None)
    assert Checkpointer(tmp_path / "straight" / loop.CHECKPOINTS).all_steps() == [2, 4]
    said = capsys.readouterr().err
    assert "Stopped early: 2 evaluations" in said and "Best: step 2" in said
    assert result.reports["forgetting"].rows[0]["after"] == 3.5
    with monkeypatch.context() as patched:
        stop_at(patched, 3)
        assert train(run, tmp_path / "parts", base=make_base(run)).step == 3
    assert train(run, tmp_path / "parts", base=make_base(run)).step == 4  # the count went on from step 3's
    finished = train(run, tmp_path / "parts", base=make_base(run))
    assert finished.step == 4 and finished.reports["early_stopping"] == 2  # it is not begun again
    assert Checkpointer(tmp_path / "parts" / loop.CHECKPOINTS).all_steps() == [2, 4]
    abstract = language_model.build(run).program.stored
    states = [
        jax.device_get(Checkpointer(tmp_path / name / loop.CHECKPOINTS).restore(4, abstract).state)
        for name in ("straight", "parts")
    ]
    assert_bitwise_equal(*states)


@pytest.mark.slow
def test_samples_are_the_greedy_continuation_and_are_written_down(config, tmp_path):
    run = config(
        2,
        peft={"method": "prefix", "prefix": {"num_virtual_tokens": 2}},
        **{"training.samples": 2, "training.sample_prompts": ("river",), "training.sample_tokens": 4},
    )
    train(run, tmp_path / "run", base=make_base(run))
    found = lines(tmp_path / "run" / "samples.jsonl")
    assert [line["step"] for line in found] == [0, 0, 0, 2, 2, 2] and found[-1]["prompt"] == "river"
    made = language_model.build(run)
    restored = Checkpointer(tmp_path / "run" / loop.CHECKPOINTS).restore(2, made.program.stored)
    state = made.program.complete(restored.state, make_base(run))
    corpus = open_corpus(run.data, tmp_path)
    ids = corpus.tokenizer.encode("river")
    logits = whole_text_logits(made, state)
    for _ in range(4):  # the whole text again for each token, without a cache; what is behind its end does not matter
        padded = np.pad(ids, (0, 16 - len(ids)))[None].astype(np.int32)
        ids.append(int(np.argmax(logits(padded)[0, len(ids) - 1])))
    stops = {*corpus.tokenizer.special_tokens().values(), corpus.tokenizer.eos_id}
    answer = ids[len(corpus.tokenizer.encode("river")) :]
    cut = next((i for i, token in enumerate(answer) if token in stops), len(answer))
    assert found[-1]["answer"] == corpus.tokenizer.decode(answer[:cut])


def whole_text_logits(made, state):
    """tokens -> logits of the network as it was trained."""
    variables = made.method.variables(*jax.device_get((state.params, state.frozen)))
    return jax.jit(lambda tokens: forward(Network(Transformer(made.config.model)), variables, tokens))


@pytest.mark.slow
def test_new_layers_alone_are_trained_and_the_run_is_a_deeper_model(config, tmp_path):
    run = config(2, peft={"method": "freeze", "expand": 2})
    base = jax.device_get(make_base(run))
    result = train(run, tmp_path / "run", base=make_base(run))
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["model"]["num_layers"] == 4
    from slmjax.inference.finetuned import load_finetuned
    from slmjax.recipes.config import run_config
    from slmjax.recipes.finetuned import describe_run

    first = result.reports["forgetting"].rows[0]
    assert first["before"] != first["after"]
    tuned = load_finetuned(
        describe_run(run_config(saved)), tmp_path / "run" / loop.CHECKPOINTS, make_base(run)
    ).merged()
    stack = lambda tree: tree["segment_0"]["block_0"]["attention"]["q_proj"]["kernel"]  # noqa: E731
    np.testing.assert_array_equal(stack(tuned)[::2], stack(base))
    assert not np.array_equal(stack(tuned)[1::2], stack(base))
    # Going on finds the same run, and one that is written down as larger is not made larger again.
    assert train(run, tmp_path / "run", base=make_base(run)).step == 2
    assert train(run_config(saved), tmp_path / "run", base=make_base(run)).step == 2
    with pytest.raises(UserError, match=r"peft\.method=freeze"):
        PeftConfig(method="lora", expand=2)
