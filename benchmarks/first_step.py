"""Seconds from process start to the first finished step of the quickstart's model: imports, compilation and all.

The corpus is prepared by the first run and reused by the counted ones, which start in empty workdirs; no compilation
cache is used. Example: python benchmarks/first_step.py --workdir /tmp/first --runs 3
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.py"


def seconds_to_first_step(workdir: Path, cache: Path) -> float:
    """Start a run and watch its metrics for the line of step 1."""
    command = [sys.executable, "-m", "slmjax.cli.main", "train", "--config", str(CONFIG), "--workdir", str(workdir)]
    command += [f"--config.data.cache_dir={cache}", "--config.training.steps=30"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    metrics = workdir / "metrics.jsonl"
    while process.poll() is None and not (metrics.is_file() and metrics.stat().st_size):
        time.sleep(0.01)
    seconds = time.perf_counter() - start
    process.kill()
    process.wait()
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    cache = args.workdir / "data"
    first = seconds_to_first_step(args.workdir / "preparing", cache)
    runs = [seconds_to_first_step(args.workdir / f"run{i}-{time.time_ns()}", cache) for i in range(args.runs)]
    print(json.dumps({"with_preparation": round(first, 2), "prepared": [round(s, 2) for s in runs]}))


if __name__ == "__main__":
    main()
