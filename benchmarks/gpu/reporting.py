"""Results, each written the moment it is there: a JSON line in results.jsonl, a line to read, in the end a table.

As a command, for on_gpu.sh:
  python reporting.py note DIR --part NAME --status skipped --reason TEXT     # append a line about a whole part
  python reporting.py summarize DIR                                           # write DIR/summary.md; 1 if one failed
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS, SUMMARY = "results.jsonl", "summary.md"
# measured: numbers. passed, failed: a check. skipped: not tried, and why. error: an exception, or a part that died.
STATUSES = ("measured", "passed", "failed", "skipped", "error")
BAD = ("failed", "error")

Values = dict[str, Any]


class Report:
    """Where the measurements of one part are written, and how long it may still measure."""

    def __init__(self, part: str, arguments: argparse.Namespace):
        self.part = part
        self.path = Path(arguments.output) / RESULTS
        self.deadline = arguments.deadline
        self.dry_run = arguments.dry_run
        self.path.parent.mkdir(parents=True, exist_ok=True)

    def seconds_left(self) -> float:
        """Until the deadline; infinite without one."""
        return self.deadline - time.time()

    def record(self, name: str, function: Callable[[], Values], *, needs: float = 0.0) -> Values | None:
        """Run `function` and write what it returns under `name`; None where it was skipped or raised.

        A value `passed` makes it a check, a value `skipped` (a reason) something that could not be tried. `needs`: with
        fewer seconds left it is not begun.
        """
        left = self.seconds_left()
        if left < needs:
            self.write(name, "skipped", reason=f"{left:.0f} s are left, about {needs:.0f} s are needed")
            return None
        begin = time.perf_counter()
        try:
            values = dict(function())
        except Exception as error:
            traceback.print_exc()
            self.write(name, "error", seconds=time.perf_counter() - begin, reason=first_lines(error))
            return None
        if "skipped" in values:
            self.write(name, "skipped", reason=values.pop("skipped"), **values)
            return None
        status = "measured"
        if "passed" in values:
            status = "passed" if values.pop("passed") else "failed"
        self.write(name, status, seconds=time.perf_counter() - begin, **values)
        return values

    def write(self, name: str, status: str, **values: Any) -> None:
        """Append one line and show it."""
        assert status in STATUSES
        line = {"part": self.part, "name": name, "status": status, **{k: _finite(v) for k, v in values.items()}}
        if self.dry_run:
            line["dry_run"] = True
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        shown = ", ".join(f"{key} {readable(value)}" for key, value in line.items() if key not in _KEYS)
        print(f"{self.part}: {name}: {status}{': ' if shown else ''}{shown}", flush=True)


_KEYS = ("part", "name", "status", "dry_run")


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser of what every part is told."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default="runs/gpu", help="directory; results.jsonl there is appended to")
    parser.add_argument("--deadline", type=float, default=math.inf, help="seconds since 1970; begin nothing longer")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, on any machine; its numbers mean nothing")
    return parser


def first_lines(error: Exception, count: int = 3) -> str:
    """The type and the first lines of an exception's text."""
    lines = str(error).strip().splitlines()[:count]
    return f"{type(error).__name__}: {' / '.join(lines)}"[:600]


def readable(value: Any) -> str:
    """A value in few characters."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list):
        return " ".join(readable(item) for item in value)
    return "" if value is None else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def read(directory: Path) -> list[Values]:
    """The lines of results.jsonl, in order."""
    path = directory / RESULTS
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def summary(lines: list[Values]) -> str:
    """A Markdown table a part: a row a result, a column for every value that a row of the part has."""
    counts = {status: sum(line["status"] == status for line in lines) for status in STATUSES}
    text = [", ".join(f"{count} {status}" for status, count in counts.items() if count) + "."]
    if any(line.get("dry_run") for line in lines):
        text.append("A dry run: sizes are tiny and the numbers mean nothing.")
    for part in dict.fromkeys(line["part"] for line in lines):
        rows = [line for line in lines if line["part"] == part]
        columns = list(dict.fromkeys(["name", "status", *(key for row in rows for key in row if key not in _KEYS)]))
        text += ["", f"## {part}", "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        for row in rows:
            cells = (readable(row.get(column)).replace("|", "\\|") for column in columns)
            text.append(f"| {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["note", "summarize"])
    parser.add_argument("output", type=Path)
    parser.add_argument("--part", default="")
    parser.add_argument("--status", choices=STATUSES, default="skipped")
    parser.add_argument("--reason", default="")
    args = parser.parse_args()
    if args.command == "note":
        args.deadline, args.dry_run = math.inf, False
        Report(args.part, args).write("all of it", args.status, reason=args.reason)
        return
    lines = read(args.output)
    (args.output / SUMMARY).write_text(summary(lines), encoding="utf-8")
    sys.exit(any(line["status"] in BAD for line in lines))


if __name__ == "__main__":
    main()
