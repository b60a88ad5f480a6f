"""`slmjax evaluate --compare`."""

import json

import pytest

from slmjax.cli.main import main


def test_the_command_prints_writes_and_draws(write_results, tmp_path, capsys):
    pair = [str(write_results("good", skill=3.0)), str(write_results("bad"))]
    assert main(["evaluate", "--compare", *pair, "--output", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert told.startswith("A: good\nB: bad\n")
    assert "A is better" in told
    written = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    assert main(["evaluate", "--compare", *pair, "--json", "--output", str(tmp_path / "one.json")]) == 0
    assert json.loads(capsys.readouterr().out) == written
    assert (tmp_path / "one.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--compare", "a.json", "b.json"], "There are no results at a.json"),
        (
            ["--compare", "a.json", "b.json", "--tasks", "piqa"],
            "one of --tasks NAME,..., --text FILE ... and --compare",
        ),
        (["--compare", "a.json"], "expected 2 arguments"),
        (["--tasks", "piqa"], "give --model PATH"),
        ([], "Give slmjax evaluate one of"),
    ],
)
def test_mistakes_are_a_sentence(arguments, sentence, capsys):
    assert main(["evaluate", *arguments]) == 2
    assert sentence in capsys.readouterr().err
