"""benchmarks/on_gpu.sh without a GPU: every part runs in miniature, and what it writes can be read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "on_gpu.sh"
# What each part must leave: beginnings of the names of its lines.
EXPECTED = {
    "machine": ["the machine", "copying", "a bfloat16 product"],
    "correctness": ["window 1", "soft cap", "ALiBi", "a step of decoding", "isolation", "training in bfloat16"],
    "attention": ["speed"],
    "training": ["0.35b"],
    "torch": [""],  # skipped where torch is not installed
    "lora": ["llama-3.2-3b"],
    "decoding": ["1.1b, batch 1", "1.1b, batch 2"],
    "training, default remat": ["0.35b"],
}


def on_gpu(*arguments, **environment):
    env = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run(["bash", str(SCRIPT), *arguments], capture_output=True, text=True, timeout=900, env=env)


def read(directory):
    return [json.loads(line) for line in (directory / "results.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_every_part_runs_and_leaves_its_lines(tmp_path):
    done = on_gpu("--dry-run", "--minutes", "14", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "log.txt").read_text()
    lines = read(tmp_path)
    assert all(line["dry_run"] for line in lines)
    assert {line["status"] for line in lines if line["part"] != "torch"} == {"measured", "passed"}
    assert list(dict.fromkeys(line["part"] for line in lines)) == list(EXPECTED)
    for part, names in EXPECTED.items():
        there = [line["name"] for line in lines if line["part"] == part]
        for name in names:
            assert any(found.startswith(name) for found in there), (part, name, there)
    for line in lines:
        if line["part"] in ("training", "training, default remat", "lora", "decoding"):
            assert line["tokens_per_second"] > 0
    summary = (tmp_path / "summary.md").read_text()
    assert "the numbers mean nothing" in summary
    for line in lines:
        assert line["name"] in summary and line["name"] in done.stdout


def test_what_there_is_no_time_for_is_said(tmp_path):
    """Nothing is begun without time, and that is no failure."""
    done = on_gpu("--dry-run", "--minutes", "0", "--only", "training,lora", "--output", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(line["part"], line["status"]) for line in read(tmp_path)] == [("training", "skipped"), ("lora", "skipped")]


def test_without_a_gpu_nothing_is_measured(tmp_path):
    """jax would go on with the CPU alone; the numbers would be taken for a GPU's."""
    done = on_gpu("--only", "training", "--output", str(tmp_path), CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1 and "jax sees no GPU here" in done.stderr
    assert not (tmp_path / "results.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "speed"], "--only speed is not a part"),
        (["--minutes", "ten"], "--minutes ten is not a number"),
        (["--output"], "--output needs a value"),
        (["--gpu"], "--gpu is not an option"),
    ],
)
def test_mistakes_are_told(arguments, said):
    done = on_gpu(*arguments)
    assert done.returncode == 2 and said in done.stderr and done.stdout == ""


def test_a_report_survives_what_it_measures(tmp_path):
    """An exception is a line, a number that is not finite is null, a failed check is the summary's status."""
    program = f"""
import argparse, math, sys
sys.path.insert(0, {str(SCRIPT.parent / "gpu")!r})
from reporting import Report
report = Report("p", argparse.Namespace(output={str(tmp_path)!r}, deadline=math.inf, dry_run=False))
report.record("breaks", lambda: 1 / 0)
report.record("is not finite", lambda: {{"x": math.nan}})
report.record("is wrong", lambda: {{"passed": False, "difference": 2.0}})
report.deadline = 0
report.record("is late", lambda: {{"x": 1}}, needs=1)
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    lines = read(tmp_path)
    assert [line["status"] for line in lines] == ["error", "measured", "failed", "skipped"]
    assert lines[0]["reason"].startswith("ZeroDivisionError") and lines[1]["x"] is None
    command = [sys.executable, str(SCRIPT.parent / "gpu" / "reporting.py"), "summarize", str(tmp_path)]
    assert subprocess.run(command).returncode == 1
    assert (tmp_path / "summary.md").read_text().startswith("1 measured, 1 failed, 1 skipped, 1 error.")
