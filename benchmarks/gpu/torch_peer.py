"""peers/torch_gpu_mfu.py (transformers under torch.compile and SDPA) at the sizes and rows of mfu.py, where torch is.

Example: python benchmarks/gpu/torch_peer.py --output runs/gpu
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

from reporting import Report, Values, arguments

SCRIPT = Path(__file__).resolve().parents[1] / "peers" / "torch_gpu_mfu.py"
ROWS = {"1.1b": 16, "0.35b": 16, "3b": 8}
SECONDS = 90.0  # that one model may take, compiling included
KEYS = ("parameters", "batch", "length", "sdp", "compile", "remat", "tokens_per_second", "mfu", "step_seconds", "loss")


def measure(options: list[str], seconds: float) -> Values:
    """One run of the peer's script in a process of its own; what fails there is a gap in the table, no error."""
    command = [sys.executable, str(SCRIPT), *options]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"skipped": f"not done after {seconds:.0f} s"}
    lines: list[dict[str, Any]] = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines or lines[-1]["error"]:
        reason = lines[-1]["error"] if lines else (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"skipped": f"it failed: {reason[:300]}"}
    line = lines[-1]
    return {key: line[key] for key in KEYS} | {"memory_gib": line["peak_bytes"] and line["peak_bytes"] / 2**30}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--models", nargs="+", choices=list(ROWS), default=list(ROWS))
    args = parser.parse_args()
    report = Report("torch", args)
    if missing := [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]:
        report.write("torch.compile and SDPA", "skipped", reason=f"{' and '.join(missing)} is not installed")
        return
    if args.dry_run:
        report.record("tiny", partial(measure, ["--smoke", "--compile", "off"], SECONDS))
        return
    for name in args.models:
        options = ["--shape", name, "--batch", str(ROWS[name])]
        report.record(name, partial(measure, options, min(2 * SECONDS, report.seconds_left())), needs=SECONDS)


if __name__ == "__main__":
    main()
