"""fuzz.py: what is broken is found and kept; the readers of today pass a short run."""

import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[2] / "benchmarks" / "fuzz.py"
# A reader that is wrong in a different way for each case, by the first byte of what it is given.
BROKEN = """
import os, sys, time
sys.path.insert(0, {folder!r})
sys.argv = ["fuzz.py", "--cases", "40", "--seconds", "1", "--megabytes", "256", "--out", {out!r}]
import fuzz, fuzz_damage, fuzz_kinds
from slmjax.errors import UserError
numbers = iter(range(1000))

def read(place):
    (path,) = place.iterdir()
    match path.read_bytes():
        case b"sound": return
        case b"error": raise KeyError("x")
        case b"lines": raise UserError("No full stop")
        case b"crash": os.abort()
        case b"hangs": time.sleep(60)
        case b"large": bytearray(1 << 29)
        case b"write": open(place.parent.parent / "outside", "w").close()
        case b"refuse": raise UserError("It is refused.")

def damage(self, kind, seeds, rng):
    contents = [b"sound", b"error", b"lines", b"crash", b"hangs", b"large", b"write", b"refuse"]
    return {{"a": rng.choice(contents)}}

fuzz_damage.Damage.__call__ = damage
fuzz_kinds.KINDS.clear()
fuzz_kinds.KINDS["broken"] = fuzz_kinds.Kind(1, lambda folder: [{{"a": b"sound"}}], read)
fuzz.TURNS, fuzz.NAMES = ["broken"], ["broken"]
raise SystemExit(fuzz.main())
"""


def run(*command):
    return subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("kinds", "cases"),
    [
        ("safetensors,SentencePiece,JSONL,compressed,template", 600),
        pytest.param("safetensors,GGUF,tokenizer,config,slmjax.json,adapter,Parquet", 5000, marks=pytest.mark.slow),
    ],
)
def test_a_short_run_finds_nothing(tmp_path, kinds, cases):
    done = run(FUZZ, "--cases", cases, "--seed", 3, "--out", tmp_path / "found", "--kinds", kinds)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"\| ([^|]+) \| ([\d,]+) \| ([\d,]+) \| ([\d,]+) \| 0 \|", done.stdout)
    assert [row[0] for row in rows] == [*kinds.split(","), "all"] and rows[-1][1] == f"{cases:,}"
    assert all(int(refused.replace(",", "")) and int(read.replace(",", "")) for _, _, refused, read in rows)


@pytest.mark.slow
def test_every_way_of_being_wrong_is_found_kept_and_found_again(tmp_path):
    done = run("-c", BROKEN.format(folder=str(FUZZ.parent), out=str(tmp_path / "found")))
    assert done.returncode == 1, done.stdout + done.stderr
    kept = {}
    for path in (tmp_path / "found").iterdir():
        with zipfile.ZipFile(path) as archive:
            kept[archive.read("case/a")] = json.loads(archive.read("found.json"))["found"].split(":")[0]
    assert kept == {
        b"error": "KeyError",
        b"lines": "sentence",
        b"crash": "crash",
        b"hangs": "hang",
        b"large": "MemoryError",
        b"write": "outside",
    }
