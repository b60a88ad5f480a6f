"""Damages small files of both formats for some minutes; one file is kept of each answer that a reader gives.

    python -m tests.formats.fuzz_readers --minutes 5 --seed 1

An answer is the sentence of a refusal without its numbers and names, or "read". The files lie in corpus/ and are read
anew by test_corpus.py. One that brings about anything else, or takes long, is kept too: it fails there until mended.
"""

import argparse
import random
import re
import struct
import tempfile
import time
from pathlib import Path

import numpy as np

from slmjax.errors import UserError
from slmjax.formats.gguf.blocks import BLOCK_TYPES
from slmjax.formats.gguf.file import open_gguf
from slmjax.formats.gguf.writer import write_gguf
from slmjax.formats.safetensors_files import SafetensorsDirectory, write_safetensors
from slmjax.formats.tensors import PlannedTensor

CORPUS = Path(__file__).with_name("corpus")
SECONDS = 2.0  # no file of this size may take longer
NUMBERS = [0, 1, 2, 3, 8, 9, 12, 31, 2**16, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]
WORDS = [
    b"F32",
    b"BF16",
    b"F8",
    b"I64",
    b"shape",
    b"dtype",
    b"null",
    b"[]",
    b"{}",
    b"-1",
    b"1e99",
    b'"',
    b",",
    b"\\u0000",
]


def read_all(path: Path) -> None:
    """Every tensor of a file. UserError where it is refused."""
    if path.suffix == ".gguf":
        gguf = open_gguf(path)
        for name in gguf.tensors:
            gguf.read(name)
        return
    directory = SafetensorsDirectory(path.parent, path.name)
    for name in directory.tensors:
        directory.read(name)


def answer(path: Path) -> str:
    """What the reader says of a file, without what is particular to it; anything but a UserError is raised."""
    try:
        read_all(path)
    except UserError as error:
        said = str(error).replace(str(path), "FILE").replace(path.name, "FILE")
        said = re.sub(r"'[^']*'|\"[^\"]*\"|\[[^\]]*\]|\([^)]*\)|-?\d[\d.,e+x]*", "_", said)
        return " ".join(word for word in said.split() if word.isascii())
    return "read"


def seeds(directory: Path) -> list[Path]:
    """A sound file of each format."""
    gguf, tensors = directory / "sound.gguf", {"w": np.ones((2, 32), np.float32), "q": np.ones((1, 32), np.float32)}
    plans = [PlannedTensor("w", (2, 32), BLOCK_TYPES["F32"]), PlannedTensor("q", (1, 32), BLOCK_TYPES["Q8_0"])]
    words = {"general.architecture": "llama", "words": ["a", "é"], "numbers": np.arange(3, dtype=np.int32), "x": 0.5}
    write_gguf(gguf, words | {"general.alignment": 32, "yes": True}, plans, tensors.items())
    arrays = {"w": np.ones((2, 3), np.float32), "v": np.zeros(4, np.float16)}
    write_safetensors(
        directory,
        [PlannedTensor(n, a.shape, a.dtype) for n, a in arrays.items()],
        arrays.items(),
        max_shard_bytes=10**6,
    )
    return [gguf, directory / "model.safetensors"]


def damaged(content: bytes, rng: random.Random) -> bytes:
    """A few places overwritten, inserted or removed, most of them in the header; now and then the end is missing."""
    raw = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randint(0, max(0, len(raw) - 1))
        kinds = [lambda: bytes([rng.randrange(256)]), lambda: struct.pack("<Q", rng.choice(NUMBERS))]
        kinds += [lambda: struct.pack("<I", rng.choice(NUMBERS) % 2**32), lambda: rng.choice(WORDS)]
        kinds += [lambda at=at: bytes(raw[at : at + rng.randint(1, 40)])]
        new = rng.choice(kinds)()
        raw[at : at + rng.choice([0, len(new), len(new), rng.randint(0, 40)])] = new
    return bytes(raw[: rng.randint(0, len(raw))] if rng.random() < 0.1 else raw)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    CORPUS.mkdir(exist_ok=True)
    known = {(path.suffix, answer(path)) for path in CORPUS.iterdir()}
    rng, tried, end = random.Random(args.seed), 0, time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory() as folder:
        sound = seeds(Path(folder))
        whole = [path.read_bytes() for path in sound]
        for path in sound:
            assert answer(path) == "read", answer(path)
        while time.monotonic() < end:
            i = tried % len(sound)
            sound[i].write_bytes(damaged(whole[i], rng))
            start, tried = time.monotonic(), tried + 1
            try:
                said = answer(sound[i])
            except Exception as error:  # what is looked for: anything may come
                said = f"{type(error).__name__}"
            if time.monotonic() - start > SECONDS:
                said = "slow"
            if (sound[i].suffix, said) not in known:
                known.add((sound[i].suffix, said))
                number = 1 + sum(1 for _ in CORPUS.iterdir())
                (CORPUS / f"{number:03d}{sound[i].suffix}").write_bytes(sound[i].read_bytes())
                print(f"{tried:8,} {sound[i].suffix} {said}", flush=True)
    print(f"{tried:,} files, {len(known)} answers.")


if __name__ == "__main__":
    main()
