"""Fine-tuning examples: what is learned, what is left out and told, and how rows hold them."""

import json
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slmjax.data.config import RowLayout
from slmjax.data.conversations.encoding import sft_template
from slmjax.data.conversations.examples import ExampleStore, load_examples
from slmjax.data.mixture import Mixture
from slmjax.data.packing import PackedRows, stack_rows
from slmjax.data.pipeline import training_batches, validation_batches
from slmjax.data.sft_config import SftConfig
from slmjax.errors import UserError
from slmjax.tokenization.tokenizer import load_tokenizer, train_bpe

CHATML = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def _chat(*contents):
    return {"messages": [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]}


@pytest.fixture(scope="module")
def tokenizer():
    """bos, eos and pad are one token."""
    trained = train_bpe(["the cat sat on the mat and the dog sat on the cat"] * 5, 270, progress=False)
    trained.settings |= {"chat_template": CHATML}
    trained.pad_id = trained.eos_id
    return trained


@pytest.fixture
def write(tmp_path):
    def write(records, name="a.jsonl"):
        (tmp_path / name).write_text("\n".join(map(json.dumps, records)) + "\n", encoding="utf-8")
        return {"path": str(tmp_path / name)}

    return write


def _load(write, tokenizer, records, **values):
    config = SftConfig(sources={"a": write(records)}, **{"validation_fraction": 0.0} | values)
    return load_examples(config, tokenizer, progress=False)


def _learned(examples, tokenizer, index=0):
    store = examples.train.stores["a"]
    where = np.array([index]), np.zeros(1, int), store.lengths[index : index + 1]
    ids, weights = store.pieces(*where), store.loss_weights(*where)
    return tokenizer.decode(ids[weights > 0], keep_special=True)


EOS = "<|endoftext|>"


@pytest.mark.parametrize(
    ("record", "loss", "learned"),
    [
        (_chat("q", "a1", "r", "a2"), "assistant", f"a1{EOS}a2{EOS}"),
        (_chat("q", "a1", "r", "a2"), "completion", f"a2{EOS}"),
        (_chat("q", "a1"), "all", f"<|user|>q{EOS}\n<|assistant|>a1{EOS}\n"),
        ({"prompt": "q: ", "completion": "a"}, "assistant", f"a{EOS}"),
        ({"prompt": "q: ", "completion": "a"}, "completion", f"a{EOS}"),
        ({"prompt": "q: ", "completion": "a"}, "all", f"q: a{EOS}"),
        ({"prompt": _chat("q", "a", "r")["messages"], "completion": "b"}, "completion", f"b{EOS}"),
        ({"instruction": "i", "input": "x", "output": "o"}, "assistant", f"o{EOS}"),
        ({"text": f"t{EOS}u"}, "all", f"t{EOS}u{EOS}"),
    ],
)
def test_what_is_learned_and_its_end(write, tokenizer, record, loss, learned):
    assert _learned(_load(write, tokenizer, [record], loss=loss), tokenizer) == learned


def test_eos_is_learned_though_it_is_pad_and_padding_is_not(write, tokenizer):
    assert tokenizer.pad_id == tokenizer.eos_id
    examples = _load(write, tokenizer, [_chat("q", "a"), _chat("r", "bb")], sequence_length=128)
    row = PackedRows(examples.train.stores["a"], 128, "best_fit", seed=None)[0]
    ends = (row["targets"] == tokenizer.eos_id) & (row["segments"] > 0)
    assert row["loss_weights"][ends].tolist() == [0, 1, 0, 1]  # of the user, of the assistant
    assert not row["loss_weights"][row["segments"] == 0].any()


@pytest.mark.parametrize(
    ("record", "values", "message"),
    [
        ({"messages": [{"role": "narrator", "content": "x"}]}, {}, r"a.jsonl line 2: Message 1 has the unknown role"),
        ({"prompt": "q", "completion": ""}, {}, "line 2: The completion is empty"),
        (_chat("q"), {}, "line 2: .*no message of the assistant"),
        (_chat("q", "a", "r"), {"loss": "completion"}, "line 2: The last message is not the assistant's"),
        ({"text": "t"}, {}, "line 2: The record is plain text without turns"),
    ],
)
def test_a_bad_record_stops_or_is_skipped_counted_and_told(write, tokenizer, capsys, record, values, message):
    records = [_chat("q", "a"), record, _chat("q2", "a2")]
    with pytest.raises(UserError, match=message):
        _load(write, tokenizer, records, **values)
    config = SftConfig(sources={"a": write(records)}, on_invalid="skip", validation_fraction=0.0, **values)
    report = load_examples(config, tokenizer, progress=True).report
    assert (report.examples, sum(report.skipped.values())) == (2, 1)
    told = capsys.readouterr().err
    assert "1 skipped (cannot be learned from). The first: " in told
    assert "line 2: " in told
    with pytest.raises(UserError, match="Nothing of the source 'a' can be learned from"):
        _load(write, tokenizer, [record], on_invalid="skip", **values)


def test_what_is_too_long_stops_or_is_skipped_or_cut_and_told(write, tokenizer):
    records = [_chat("q", "a"), _chat("q", "b " * 40), _chat("q " * 60, "c")]
    with pytest.raises(
        UserError, match=r"line 2 has \d+ tokens, more than the 41 .*set data.on_long to truncate or skip"
    ):
        _load(write, tokenizer, records, sequence_length=40)
    skipped = _load(write, tokenizer, records, sequence_length=40, on_long="skip").report
    assert (skipped.examples, skipped.skipped) == (1, {"too long": 2})
    cut = _load(write, tokenizer, records, sequence_length=40, on_long="truncate")
    assert (cut.report.examples, cut.report.truncated) == (2, 1)
    assert cut.report.skipped == {"too long, and what is learned lies beyond the end": 1}
    assert cut.train.stores["a"].lengths.max() == 41
    assert f"lost {cut.report.tokens_cut} tokens" in str(cut.report)
    whole = _load(write, tokenizer, records[:2], sequence_length=400).report.tokens
    assert cut.report.tokens_cut == whole - cut.report.tokens


def test_a_template_that_does_not_end_turns_is_told(write, tokenizer, tmp_path):
    (tmp_path / "open.jinja").write_text("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}")
    examples = _load(write, tokenizer, [_chat("q", "a")], chat_template=str(tmp_path / "open.jinja"))
    assert "1 end without a special token" in str(examples.report)


def test_a_tokenizer_without_a_template_needs_one_for_conversations(write):
    bare = train_bpe(["abc"], 257, progress=False)
    with pytest.raises(UserError, match=r'set data\.chat_template to "plain"'):
        _load(write, bare, [_chat("q", "a")])
    assert _learned(_load(write, bare, [_chat("q", "a")], chat_template="plain"), bare) == f" a{EOS}"
    assert _learned(_load(write, bare, [{"prompt": "q", "completion": "a"}]), bare) == f"a{EOS}"
    assert sft_template(SftConfig(), bare) is None


def test_validation_is_apart_by_content(write, tokenizer):
    records = [_chat(f"q{i % 100}", f"a{i % 100}") for i in range(200)]
    examples = _load(write, tokenizer, records, validation_fraction=0.2, sequence_length=64)
    train, validation = examples.train.stores["a"], examples.validation[0]
    assert train.num_documents + validation.num_documents == 200
    assert 10 <= validation.num_documents <= 70

    def contents(store):
        return {
            tuple(store.pieces(np.array([i]), np.zeros(1, int), store.lengths[i : i + 1]))
            for i in range(len(store.lengths))
        }

    assert not contents(train) & contents(validation)
    own = SftConfig(sources={"a": write(records)}, validation={"v": write(records[:3], "v.jsonl")}, sequence_length=64)
    loaded = load_examples(own, tokenizer, progress=False)
    assert (loaded.train.stores["a"].num_documents, loaded.validation[0].num_documents) == (200, 3)


@pytest.mark.parametrize("name", ["a.json", "a.parquet"])
def test_other_files_hold_the_same_records(tmp_path, write, tokenizer, name):
    records = [_chat("q", "a", "r", "b"), _chat("é☃", "c")]
    if name.endswith("json"):
        (tmp_path / name).write_text(json.dumps(records, indent=1))
    else:
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / name)
    config = SftConfig(sources={"a": {"path": str(tmp_path / name)}}, validation_fraction=0.0)
    other = load_examples(config, tokenizer, progress=False).train.stores["a"]
    lines = _load(write, tokenizer, records).train.stores["a"]
    assert np.array_equal(other.lengths, lines.lengths)
    everything = np.arange(len(lines.lengths)), np.zeros_like(lines.lengths), lines.lengths
    assert np.array_equal(other.pieces(*everything), lines.pieces(*everything))
    assert np.array_equal(other.loss_weights(*everything), lines.loss_weights(*everything))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "name at least one source"),
        ({"sources": {"a": {"path": "x", "fields": {"promt": "q"}}}}, "unknown 'promt': did you mean 'prompt'"),
        ({"sources": {"a": {"pathh": "x"}}}, "sources.a=.* must give a path"),
        ({"loss": "answer"}, "data.loss='answer' is unknown"),
        ({"on_long": "cut"}, "data.on_long='cut' is unknown"),
        ({"sources": {"a": {"path": "absent.jsonl"}}}, "no data at absent.jsonl"),
    ],
)
def test_a_config_that_cannot_be_is_refused(tokenizer, values, message):
    with pytest.raises(UserError, match=message):
        load_examples(SftConfig(**values), tokenizer, progress=False)


def _ragged(count, T, seed=0):
    """Lengths as of real conversations: log-normal around 250 tokens, cut at T + 1."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(5.5, 0.9, count).astype(int), 8, T + 1)
    examples = []
    for length in lengths:
        learned = rng.random(length) < 0.6
        learned[-1] = True
        examples.append((rng.integers(1, 60, length, dtype=np.int32), learned))
    return examples


@pytest.mark.parametrize("T", [1024, 2048])
def test_rows_of_2000_ragged_conversations_are_97_percent_full(T):
    examples = _ragged(2000, T)
    rows = PackedRows(ExampleStore("a", examples), T, "best_fit")
    assert rows.num_transitions / (len(rows) * T) >= 0.97
    total = sum(int(row["loss_weights"].sum()) for row in (rows[i] for i in range(len(rows))))
    assert total == sum(int(learned[1:].sum()) for _, learned in examples)


@pytest.mark.slow
def test_rows_of_real_instructions_are_97_percent_full(assets):
    tokenizer = load_tokenizer(assets / "models" / "smollm2-135m-instruct")
    source = {"path": str(assets / "data" / "sft" / "alpaca_en_999.json")}
    examples = load_examples(SftConfig(sources={"alpaca": source}), tokenizer, progress=False)
    store = examples.train.stores["alpaca"]
    rows = PackedRows(store, 1024, "best_fit")
    assert examples.report.examples == 999
    assert rows.num_transitions / (len(rows) * 1024) >= 0.97


def test_batches_are_resumed_bitwise_and_shared_among_processes():
    store = ExampleStore("a", _ragged(200, 64))
    layout, mixture = RowLayout(64, "best_fit"), Mixture({"a": store})
    arguments = {"batch_size": 4, "seed": 3, "num_threads": 0}
    whole = list(islice(training_batches(mixture, layout, **arguments), 60))  # more than an epoch
    resumed = training_batches(mixture, layout, **arguments)
    resumed.set_state({"next_index": 37})
    half = training_batches(mixture, layout, **arguments, rows=[2, 3])
    for n, batch in enumerate(whole):
        part = next(half)
        assert all(np.array_equal(batch[name][2:], part[name]) for name in batch)
        if n >= 37:
            again = next(resumed)
            assert all(np.array_equal(batch[name], again[name]) for name in batch)
    seen = sum(int(b["loss_weights"].sum()) for b in validation_batches(store, layout, batch_size=4))
    each = np.arange(len(store.lengths))
    all_but_first = store.loss_weights(each, np.ones_like(each), store.lengths - 1)
    assert seen == all_but_first.sum()


def test_packed_losses_are_those_of_each_example_alone():
    from slmjax.models.config import ModelConfig
    from slmjax.models.transformer import Transformer
    from slmjax.objectives.next_token import next_token

    T = 48
    model = Transformer(ModelConfig(vocab_size=64, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, ffn_dim=48))
    examples = _ragged(12, T, seed=1)
    examples = [(ids[: 5 + 3 * i], learned[: 5 + 3 * i]) for i, (ids, learned) in enumerate(examples)]
    for _, learned in examples:
        learned[-1] = True
    rows = PackedRows(ExampleStore("a", examples), T, "best_fit", seed=None)
    packed = stack_rows(rows[i] for i in range(len(rows)))
    alone = stack_rows(PackedRows(ExampleStore("a", [example]), T, "best_fit")[0] for example in examples)
    assert len(packed["inputs"]) < len(examples)
    key = jax.random.key(0)
    params = jax.jit(model.init)(key, jnp.zeros((1, T), jnp.int32))["params"]
    objective = jax.jit(next_token(model))
    packed_loss, packed_weight, _ = objective({"params": params}, {}, packed, None)
    alone_loss, alone_weight, _ = objective({"params": params}, {}, alone, None)
    assert packed_weight == alone_weight
    assert abs(packed_loss / packed_weight - alone_loss / alone_weight) < 1e-5
