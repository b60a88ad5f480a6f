"""Needle tasks within the harness."""

import json
import re

import pytest

pytest.importorskip("lm_eval")

from slmjax.cli.main import main
from slmjax.data.config import SourceConfig
from slmjax.data.sources import read_documents
from slmjax.errors import UserError
from slmjax.evaluation.harness.run import evaluate_harness, load_tasks
from slmjax.evaluation.tasks.needle.items import KINDS, MAX_NEW_TOKENS
from tests.evaluation.hashed_model import HashedModel


class Reader(HashedModel):
    """A model whose tokens are words, and that remembers the numbers in the last `sight` words of its prompt."""

    max_length = 1024
    tokenizer_name = "words"

    def __init__(self, sight=10**6):
        super().__init__()
        self.sight = sight

    def tok_encode(self, string, add_special_tokens=None):
        return [0] * (len(string.split()) + (add_special_tokens is not False))

    def generate_until(self, requests, disable_tqdm=False):
        self.prompts += [request.args[0] for request in requests]
        seen = [" ".join(request.args[0].split()[-self.sight :]) for request in requests]
        return [" ".join(re.findall(r" is: (\d{7})\.", text)) for text in seen]


@pytest.fixture
def text(tmp_path):
    directory = tmp_path / "data" / "needle"
    directory.mkdir(parents=True)
    (directory / "book.txt").write_text("".join(f"On day {i} the lamp was lit. " for i in range(400)))
    return directory.parent


def test_a_model_that_reads_all_finds_all(text):
    model = Reader()
    results = evaluate_harness(model, ["needle"], data_dir=text, limit=6, needle_lengths=[400, 1000], progress=False)
    assert results["results"].keys() == KINDS.keys()
    for name, scores in results["results"].items():
        assert (scores["400,none"], scores["1000,none"]) == (1, 1)
        assert scores["400_stderr,none"] == 0
        assert results["n-shot"][name] == 0
        items = [sample["doc"] for sample in results["samples"][name]]
        assert [item["max_length"] for item in items] == [400, 1000] * 3
        assert json.dumps(items)
    for prompt in model.prompts:  # as the harness makes it of the item
        assert len(prompt.split()) + 1 + MAX_NEW_TOKENS <= 1000
        assert prompt.rpartition("\n")[2].count("mentioned in the provided text") == 2
        assert re.search(r"text\? The special magic numbers? for .* (is|are)$", prompt)


def test_a_model_that_reads_the_end_loses_the_needles_before(text):
    results = evaluate_harness(
        Reader(sight=300), ["needle_single"], data_dir=text, needle_lengths=[400, 1000], progress=False
    )
    scores = results["results"]["needle_single"]
    assert scores["400,none"] == 1
    assert 0 < scores["1000,none"] < 0.5
    for sample in results["samples"]["needle_single"]:
        item = sample["doc"]
        if item["max_length"] == 1000:
            assert sample["1000"] == (item["depths"][0] > 70) or 60 < item["depths"][0] < 80
            assert sample["400"] == -1


def test_lengths_go_up_to_the_context(text):
    model = Reader()
    results = evaluate_harness(model, ["needle_multikey"], data_dir=text, limit=2, progress=False)
    assert [key for key in results["results"]["needle_multikey"] if key.endswith(",none") and "_" not in key] == [
        "512,none",
        "1024,none",
    ]
    with pytest.raises(UserError, match="prompts of 2,048 tokens: the model's context is 1,024"):
        evaluate_harness(model, ["needle_multikey"], data_dir=text, needle_lengths=[2048])


def test_a_chat_template_counts(text):
    model = Reader()
    options = {"data_dir": text, "limit": 3, "needle_lengths": [600], "progress": False}
    evaluate_harness(model, ["needle_single"], **options)
    evaluate_harness(model, ["needle_single"], apply_chat_template=True, system_instruction="word " * 100, **options)
    plain, chat = model.prompts[:3], model.prompts[3:]
    for a, b in zip(plain, chat, strict=True):
        assert a != b
        assert 0 <= 600 - MAX_NEW_TOKENS - len(b.split()) < 15


def test_the_standard_library_is_a_haystack():
    model = Reader()
    beginning = next(read_documents(SourceConfig("python:stdlib"))).split()[:5]
    evaluate_harness(model, ["needle_single"], limit=1, needle_lengths=[900], progress=False)
    assert " ".join(beginning) in model.prompts[0]


def test_items_of_no_model_are_refused():
    (task,) = load_tasks(["needle_single"]).loaded[0].tasks.values()
    with pytest.raises(UserError, match="evaluate it by slmjax evaluate --tasks"):
        task.build_all_requests()


@pytest.mark.slow
def test_the_command_draws_depth_and_length(talker, text, tmp_path, capsys):
    from dataclasses import replace

    import slmjax

    lm = replace(talker, config=replace(talker.config, context_length=2048))
    path = slmjax.save(lm, tmp_path / "model")
    command = ["evaluate", "--model", str(path), "--tasks", "needle_single,needle_multiquery", "--data-dir", str(text)]
    command += ["--lengths", "1500,2048", "--limit", "4", "--output", str(tmp_path / "out.json"), "--samples"]
    assert main(command) == 0
    assert "needle_multiquery" in capsys.readouterr().out
    assert (tmp_path / "out_needles.png").read_bytes().startswith(b"\x89PNG")
    assert main(["evaluate", "--compare", *[str(tmp_path / "out.json")] * 2]) == 0
    assert "no difference" in capsys.readouterr().out


def test_lengths_without_a_needle_are_refused(text):
    from tests.evaluation import miniatures

    miniatures.write(text, ["piqa"])
    with pytest.raises(UserError, match=r"--lengths N,\.\.\. is of needle tasks"):
        evaluate_harness(Reader(), ["piqa"], data_dir=text, needle_lengths=[512])
