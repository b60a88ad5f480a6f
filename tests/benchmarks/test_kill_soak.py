"""kill_soak.py: a few kills of every kind of work."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).parents[2] / "benchmarks" / "kill_soak.py"


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["pretraining,tokenizer training", "preparation of data,export"])
def test_killed_runs_go_on_to_the_same_bits(jobs):
    done = subprocess.run(
        [sys.executable, str(SOAK), "--kills", "8", "--seed", "1", "--jobs", jobs], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "8 kills" in done.stdout
    rows = re.findall(r"\| [a-z -]+ \| \d+ \| \d+ \| ([\d,]+) \| (\d+) \|", done.stdout)
    assert rows and all(int(compared.replace(",", "")) and different == "0" for compared, different in rows)
