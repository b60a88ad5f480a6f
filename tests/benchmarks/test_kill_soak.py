"""kill_soak.py: a few kills of every kind of work."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "benchmarks" / "kill_soak.py"


JOBS = ["pretraining", "tokenizer training", "preparation of data", "export"]


@pytest.mark.slow
def test_killed_runs_go_on_to_the_same_bits():
    # At most three kills of one run, so that the jobs take turns; a fast one may end before its moments come.
    command = [sys.executable, str(SOAK), "--kills", "12", "--each", "3", "--seed", "1", "--jobs", ",".join(JOBS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "12 kills" in done.stdout
    rows = re.findall(r"\| ([a-z -]+) \| \d+ \| (\d+) \| ([\d,]+) \| (\d+) \|", done.stdout)
    assert [row[0] for row in rows] == JOBS and sum(int(kills) for _, kills, _, _ in rows) == 12
    assert all(int(compared.replace(",", "")) and different == "0" for _, _, compared, different in rows)
