"""Comparisons of results files that lm-evaluation-harness writes."""

import json
import math
import struct
from dataclasses import replace

import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.evaluation.comparison import forest_plot
from slmjax.evaluation.comparison.compare import compare
from slmjax.evaluation.comparison.forest_plot import plot_comparison
from slmjax.evaluation.comparison.paired import holm
from slmjax.evaluation.comparison.table import comparison_table


def row_of(comparison, task, metric):
    (row,) = (row for row in comparison.rows if (row.task, row.metric) == (task, metric))
    return row


def test_every_metric_of_every_task_is_compared(write_results):
    a, b = write_results("good", skill=3.0), write_results("bad")
    found = compare(a, b)
    assert (found.a, found.b) == ("good", "bad")
    reported = [json.loads(path.read_text())["results"] for path in (a, b)]
    for row in found.rows:  # the harness's own numbers
        for side, results in zip("ab", reported, strict=True):
            assert getattr(row, side) == pytest.approx(results[row.task][f"{row.metric},{row.filter}"], rel=1e-6)
        assert row.difference == pytest.approx(row.a - row.b)
        assert row.low <= row.difference <= row.high
    assert {(row.task, row.metric) for row in found.rows} == {
        *((task, metric) for task in ("subject_a", "subject_b") for metric in ("acc", "acc_norm")),
        *(("pages", metric) for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte")),
        *(("last_word", "perplexity"), ("last_word", "acc"), ("answers", "exact_match"), ("subjects", "acc")),
    }
    assert [row.p_holm for row in found.rows] == holm([row.p for row in found.rows])
    assert found.notes == []
    assert row_of(found, "subject_b", "acc").verdict == "A is better"
    pages = row_of(found, "pages", "bits_per_byte")
    assert (pages.verdict, pages.higher_is_better) == ("A is better", False)
    assert pages.difference < 0


def test_exchanging_the_models_exchanges_the_signs(write_results):
    a, b = write_results("good", skill=1.0), write_results("bad")
    for row, back in zip(compare(a, b).rows, compare(b, a).rows, strict=True):
        assert back.difference == pytest.approx(-row.difference)
        assert (back.a, back.b) == (row.b, row.a)
        assert (back.low, back.high) == pytest.approx((-row.high, -row.low))
        assert back.p == pytest.approx(row.p)
        assert back.verdict == {"A is better": "B is better", "B is better": "A is better"}.get(
            row.verdict, row.verdict
        )


def test_a_model_against_itself_shows_no_difference(write_results):
    a = write_results("one")
    for row in compare(a, a).rows:
        assert (row.difference, row.p, row.p_holm, row.verdict) == (0, 1, 1, "no difference")


def test_two_models_alike_differ_by_no_more_than_noise(write_results):
    found = compare(write_results("one"), write_results("other"))
    assert {row.verdict for row in found.rows if row.task != "pages"} <= {"no more than noise", "no difference"}


def test_groups_are_pooled_by_size(write_results):
    found = compare(write_results("good", skill=2.0), write_results("bad"))
    parts, whole = [row_of(found, f"subject_{s}", "acc") for s in "ab"], row_of(found, "subjects", "acc")
    assert whole.items == 90
    assert whole.difference == pytest.approx((30 * parts[0].difference + 60 * parts[1].difference) / 90)
    assert whole.high - whole.low == pytest.approx(
        math.hypot(*((part.high - part.low) * part.items / 90 for part in parts))
    )


def test_items_of_one_passage_are_a_cluster(write_results):
    a, b = write_results("one", passages=15), write_results("other", passages=15)
    row = row_of(compare(a, b), "subject_b", "acc")
    assert (row.items, row.clusters, row.test) == (60, 15, "clustered z")
    alone = row_of(compare(a, b), "last_word", "acc")
    assert (alone.clusters, alone.test) == (0, "McNemar")


def test_too_few_passages_are_not_taken_as_clusters(write_results):
    a, b = write_results("one", passages=3), write_results("other", passages=3)
    assert row_of(compare(a, b), "subject_b", "acc").clusters == 0


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        ({"limit": 20}, "subject_a has 30 items in A and 20 in B, and 10 are not in both"),
        ({"shots": 2}, "another prompt in B than in A .0 shots in A, 2 in B"),
        ({"passages": 7}, "item 0 has another document in B"),
    ],
)
def test_other_items_are_refused(write_results, other, sentence):
    a, b = write_results("one"), write_results("other", **other)
    with pytest.raises(UserError, match=sentence):
        compare(a, b)


def test_tasks_of_one_file_alone_are_told(write_results):
    a, b = write_results("one"), write_results("other")
    results = json.loads(b.read_text())
    del results["results"]["pages"]
    b.write_text(json.dumps(results))
    found = compare(a, b)
    assert found.notes == ["pages only in A."]
    assert "pages" not in {row.task for row in found.rows}


def test_a_metric_that_is_no_mean_of_its_items_is_left_out_and_told(write_results):
    a, b = write_results("one"), write_results("other")
    results = json.loads(b.read_text())
    results["results"]["answers"]["exact_match,none"] += 0.01
    b.write_text(json.dumps(results))
    found = compare(a, b)
    assert "answers" not in {row.task for row in found.rows}
    assert found.notes[0].startswith("answers: exact_match,none is left out")


def damage(path, change):
    (samples,) = path.parent.glob("samples_last_word_*.jsonl")
    lines = samples.read_bytes().splitlines(keepends=True)
    samples.write_bytes(b"".join(change(lines)))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda lines: lines[:-1] + [lines[-1][:40]], "line 30 is not readable as JSON"),
        (lambda lines: lines[:-1], "is not of the run of results_"),
        (lambda lines: lines + lines[:1], "line 31 gives item 0 again"),
        (lambda lines: [], "has no items"),
        (lambda lines: [b"[1]\n"], r"line 1 is \[1\], not an item"),
        (lambda lines: [b'{"doc_id": 0}\n'], "line 1: doc_hash is missing"),
        (lambda lines: [b'{"doc_id": -1, "doc_hash": "", "prompt_hash": ""}\n'], "doc_id is -1"),
        (lambda lines: [b"\xff\xfe\n"], "line 1 is not readable as JSON"),
        (lambda lines: [b"[" * 100_000 + b"\n"], "line 1 is not readable as JSON"),
        (lambda lines: [lines[0].replace(b'"acc": ', b'"acc": NaN, "_": ')], "acc is nan: a result that is not finite"),
        (lambda lines: [lines[0].replace(b'"acc": ', b'"acc": 1e999, "_": ')], "acc is inf"),
        (lambda lines: [lines[0].replace(b'"acc": ', b'"acc": null, "_": ')], "acc is not a number"),
        (lambda lines: [lines[0].replace(b'"acc": ', b'"acc": ' + b"9" * 400 + b', "_": ')], "not finite"),
        (
            lambda lines: [lines[0].replace(b'"metrics": [', b'"metrics": [7, ')],
            "metrics is .* must be a list of names",
        ),
    ],
)
def test_damaged_samples_are_refused_in_a_sentence(write_results, change, sentence):
    a, b = write_results("one"), write_results("other")
    damage(b, change)
    with pytest.raises(UserError, match=sentence) as error:
        compare(a, b)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is not readable as JSON"),
        ("[]", "holds no JSON object"),
        ("{}", "holds no results of tasks"),
        ('{"results": []}', "results is \\[\\]; it must be an object"),
        ('{"results": {"last_word": 3}}', "last_word is 3; it must be an object"),
        ('{"results": {"last_word": {}}, "group_subtasks": {"last_word": 5}}', "must be a list of names"),
        ('{"results": {"last_word": {}}, "n-shot": {"last_word": "many"}}', "must be a whole number"),
        ('{"results": {"another": {}}}', "have no task in common"),
        ('{"results": {"../../etc/passwd": {}}}', "have no task in common"),
    ],
)
def test_damaged_results_are_refused_in_a_sentence(write_results, text, sentence):
    a, b = write_results("one"), write_results("other")
    b.write_text(text)
    with pytest.raises(UserError, match=sentence):
        compare(a, b)


def test_a_task_cannot_name_a_file_elsewhere(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "r.json").write_text('{"results": {"x/../../secret": {"acc,none": 1}}}')
    (tmp_path / "samples_x").mkdir()
    with pytest.raises(UserError, match="a comparison needs"):
        compare(tmp_path / "a/r.json", tmp_path / "b/r.json")


def test_missing_samples_are_told(write_results):
    a, b = write_results("one"), write_results("other")
    for path in b.parent.glob("samples_pages_*"):
        path.unlink()
    with pytest.raises(UserError, match=r"There is no samples_pages_.*a comparison needs"):
        compare(a, b)
    with pytest.raises(UserError, match="There are no results at"):
        compare(a, b.with_name("none.json"))


def test_groups_that_name_each_other_end(write_results):
    a = write_results("one")
    results = json.loads(a.read_text())
    results["group_subtasks"] = {"subjects": ["subject_a", "subjects", "subject_b"]}
    a.write_text(json.dumps(results))
    assert row_of(compare(a, a), "subjects", "acc").items == 90


def test_values_of_a_list_are_a_cluster_of_their_item(write_results):
    """The instructions of an item of ifeval stand and fall together."""
    paths = write_results("one"), write_results("other")
    rng = np.random.default_rng(0)
    for path in paths:
        (samples,) = path.parent.glob("samples_answers_*.jsonl")
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        for line in lines:
            line["exact_match"] = rng.integers(0, 2, 1 + line["doc_id"] % 3).astype(bool).tolist()
        samples.write_text("".join(json.dumps(line) + "\n" for line in lines))
        results = json.loads(path.read_text())
        values = [value for line in lines for value in line["exact_match"]]
        results["results"]["answers"]["exact_match,none"] = sum(values) / len(values)
        path.write_text(json.dumps(results))
    row = row_of(compare(*paths), "answers", "exact_match")
    assert (row.items, row.clusters, row.test) == (60, 30, "clustered z")


def test_the_table_lines_up_and_says_what_is_noise(write_results):
    found = compare(write_results("good", skill=3.0), write_results("bad"))
    lines = comparison_table(found).splitlines()
    assert lines[:2] == ["A: good", "B: bad"]
    table = lines[3 : 4 + len(found.rows)]
    for column in ("items", "A - B", "p (Holm)"):  # numbers end where their head does
        end = table[0].index(column) + len(column)
        assert all(line[end - 1] != " " and line[end : end + 1] in (" ", "") for line in table)
    for row, line in zip(found.rows, table[1:], strict=True):
        assert line.startswith(row.task)
        assert line.endswith(row.verdict)
    assert "adjusted after Holm, is below 0.05" in lines[-1]


def test_the_picture_shows_better_scores_of_a_to_the_right(write_results, tmp_path):
    found = compare(write_results("good", skill=3.0), write_results("bad"))
    plot_comparison(found, tmp_path / "forest.png")
    width, height = struct.unpack(">II", (tmp_path / "forest.png").read_bytes()[16:24])
    assert width == 1200
    assert height > 300


def test_json_of_a_comparison_can_be_read_back(write_results):
    found = compare(write_results("one"), write_results("other"))
    read = json.loads(json.dumps(found.to_dict()))
    assert [row["task"] for row in read["rows"]] == [row.task for row in found.rows]


def test_names_cannot_steer_the_terminal(write_results):
    a, b = write_results("one"), write_results("other")
    results = json.loads(b.read_text())
    b.write_text(json.dumps(results | {"model_name": "\x1b[2Jother"}))
    table = comparison_table(compare(a, b))
    assert "\x1b" not in table
    assert "B: \\x1b[2Jother" in table


def test_another_version_of_a_task_is_told(write_results):
    a, b = write_results("one"), write_results("other")
    results = json.loads(b.read_text())
    results["versions"]["pages"] = 7.0
    b.write_text(json.dumps(results))
    assert "pages: version 1.0 in A, 7.0 in B" in compare(a, b).notes[0]


def test_a_picture_of_many_rows_has_an_end(write_results, tmp_path, monkeypatch):
    monkeypatch.setattr(forest_plot, "MAX_ROWS", 12)
    found = compare(write_results("one"), write_results("other"))
    heights = []
    for times in (2, 100):
        plot_comparison(replace(found, rows=found.rows * times), tmp_path / "forest.png")
        heights.append(struct.unpack(">I", (tmp_path / "forest.png").read_bytes()[20:24])[0])
    assert heights[0] == heights[1] < 1000
