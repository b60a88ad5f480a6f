"""Each family's largest difference of float32 logits to its reference, as the parity tests found it, as a table.

Needs slmjax[test,parity]. Example: python benchmarks/family_parity.py
"""

import ast
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = tuple(f"tests/parity/test_{name}.py" for name in ("huggingface_rms", "llama_heirs", "family_directories"))


def main() -> int:
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-m", "", *TESTS, f"--junitxml={report}"]  # the slow ones too
        run = subprocess.run(command, cwd=ROOT)
        cases = list(ET.parse(report).iter("testcase"))
    rows = [
        ast.literal_eval(found.attrib["value"])
        for case in cases
        for found in case.iter("property")
        if found.attrib["name"] == "largest_differences"
    ]
    width = max((len(name) for name, *_ in rows), default=0)
    print(f"| {'family':{width}} | whole sequences | padded, or with a cache |")
    print(f"|{'-' * (width + 2)}|---|---|")
    for name, whole, others in sorted(rows):
        print(f"| {name:{width}} | {whole:.1e} | {others:.1e} |")
    print(f"{len(rows)} of {len(cases)} tests; largest {max(max(row[1:]) for row in rows):.1e}")
    return run.returncode


if __name__ == "__main__":
    raise SystemExit(main())
