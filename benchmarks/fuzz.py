"""Damages small files of every kind that slmjax reads, a million of them in one run, and tries how each is taken.

    python benchmarks/fuzz.py --cases 1000000 --seed 0 --out findings
    python benchmarks/fuzz.py --replay findings/GGUF-0-123.zip

A file must be read or be refused in one sentence (`UserError`). Anything else is a finding: another exception, a crash,
more seconds or memory than the limits, a sentence of several lines, a file opened or written outside of the directory.
Cases are tried in worker processes that the system limits and that are ended when one takes too long. Case n of a seed
is always the same. A finding is kept as a zip of its files and what was found; of findings alike three are kept. Exit
status 1 where there was one.
"""

import argparse
import contextlib
import json
import mmap
import multiprocessing
import os
import random
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # a case opens nothing outside of its directory
sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).parent))

import fuzz_damage  # noqa: E402
import fuzz_kinds  # noqa: E402
import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from slmjax.errors import UserError  # noqa: E402

VERDICTS = ("read", "refused", "found")
TURNS = fuzz_kinds.schedule()
NAMES = list(fuzz_kinds.KINDS)
ROOT = Path(__file__).parents[1]
# What may be opened for reading: the code, the system's own tables, and the case.
READABLE = tuple(map(str, (ROOT, sys.prefix, sys.base_prefix, "/proc", "/sys", "/dev", "/usr", "/etc/ld", "/lib")))
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.symlink", "os.link", "os.truncate", "shutil.rmtree", "os.rmdir")
RUNS = ("os.system", "os.exec", "os.posix_spawn", "socket.connect")
FORK = multiprocessing.get_context("fork")  # a worker that was ended is replaced in no time


class Guard:
    """Notes what a case opens outside of its scratch directory; audit hooks see every path that Python opens."""

    def __init__(self, scratch: Path):
        self.scratch, self.armed, self.seen = str(scratch), False, ""
        sys.addaudithook(self.hook)

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.armed:
            return
        if event in RUNS:
            self.seen = f"{event} {str(args)[:200]}"
        elif event == "open" or (event in CHANGES and not any(type(at) is int and at >= 0 for at in args[-2:])):
            for path in args[: 2 if event in ("os.rename", "os.symlink", "os.link") else 1]:
                if isinstance(path, str | bytes | os.PathLike):
                    self.note(event, os.path.abspath(os.fsdecode(path)), event != "open" or bool(args[2] & WRITING))

    def note(self, event: str, path: str, writes: bool) -> None:
        if not path.startswith(self.scratch) and (writes or not path.startswith(READABLE)) and path != os.devnull:
            self.seen = f"{event} {path}"


class Tries:
    """Tries cases in this process, within the limits.

    Args:
        seeds: sound files by kind.
        megabytes: that a case may add, of address space and of resident memory.
    """

    def __init__(self, seeds: dict[str, list[fuzz_damage.Files]], megabytes: int):
        shared = Path("/dev/shm")
        self.scratch = Path(tempfile.mkdtemp(prefix="fuzz-", dir=shared if shared.is_dir() else None)).resolve()
        tempfile.tempdir = str(self.scratch / "tmp")
        self.case = self.scratch / "case"
        (self.scratch / "tmp").mkdir()
        self.seeds, self.guard, self.damage = seeds, Guard(self.scratch), fuzz_damage.Damage()
        self.most = megabytes << 10  # KiB, as the system counts
        warnings.simplefilter("ignore")
        np.seterr(all="ignore")
        for name, sound in seeds.items():
            self.damage.know(sound)
            for files in sound[:1]:  # what is imported or compiled once is no case's
                verdict, said = self.verdict(name, files)
                assert verdict == "read", f"A sound file of {name}: {said}"
        self.peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * mmap.PAGESIZE + (megabytes << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def files(self, seed: int, number: int) -> tuple[str, fuzz_damage.Files]:
        """The kind of case `number`, and its files."""
        name = TURNS[number % len(TURNS)]
        return name, self.damage(fuzz_kinds.KINDS[name], self.seeds[name], random.Random(f"{seed}-{number}"))

    def verdict(self, name: str, files: fuzz_damage.Files) -> tuple[str, str]:
        """One of VERDICTS, and what was said or found."""
        self.case.mkdir()
        for file, content in files.items():
            (self.case / file).write_bytes(content)
        self.guard.armed, self.guard.seen = True, ""
        try:
            fuzz_kinds.KINDS[name].read(self.case)
            found = "read", ""
        except UserError as error:
            said = str(error)
            sound = len(said) < 3000 and said.isprintable() and re.search(r"[.?][)'\"]?$", said)
            found = ("refused", said) if sound else ("found", f"sentence: {said[:3000]!r}\n{traceback.format_exc()}")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic of a library in Rust is no Exception
            found = "found", f"{type(error).__name__}: {str(error)[:300]}\n{traceback.format_exc(limit=-12)[-4000:]}"
        finally:
            self.guard.armed = False
            shutil.rmtree(self.case)
        if self.guard.seen:
            found = "found", f"outside: {self.guard.seen}"
        elif len(os.listdir(self.scratch)) > 1 or os.listdir(self.scratch / "tmp"):
            found = "found", f"outside: {os.listdir(self.scratch)} {os.listdir(self.scratch / 'tmp')}"
            shutil.rmtree(self.scratch / "tmp")
            (self.scratch / "tmp").mkdir()
        return found

    def memory(self) -> str:
        """What the last case took, where it was too much."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        grown, self.peak = peak - self.peak, max(peak, self.peak)
        return f"memory: {grown >> 10} MiB" if grown > self.most // 2 else ""

    def close(self) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)


class Board:
    """Memory that a worker shares with who watches it: its case, since when, and counts by kind and verdict."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 8 * (3 + len(NAMES) * len(VERDICTS)))
        self.numbers = np.frombuffer(self.memory, np.int64)
        self.times = np.frombuffer(self.memory, np.float64, 2, 8)  # since when, and the slowest case
        self.counts = self.numbers[3:].reshape(len(NAMES), len(VERDICTS))


def work(board: Board, sender: Any, seeds: Any, args: argparse.Namespace, first: int, step: int) -> None:
    """Try cases first, first + step ...; counts go to the board and findings to the sender."""
    tries = Tries(seeds, args.megabytes)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)  # panics print
    os.dup2(quiet, 1)
    for number in range(first, args.cases, step):
        name, files = tries.files(args.seed, number)
        board.numbers[0], board.times[0] = number, time.monotonic()
        verdict, said = tries.verdict(name, files)
        taken = time.monotonic() - board.times[0]
        board.times[:] = 0, max(board.times[1], taken)
        if grown := tries.memory():
            verdict, said = "found", grown
        board.counts[NAMES.index(name), VERDICTS.index(verdict)] += 1
        if verdict == "found":
            sender.send((number, name, files, said))
    tries.close()
    board.numbers[0] = args.cases
    sender.close()


class Findings:
    """What was found, by signature; three of each are kept as files."""

    def __init__(self, out: Path, seed: int):
        self.out, self.seed, self.seen = out, seed, Counter[str]()

    def add(self, number: int, name: str, files: fuzz_damage.Files, said: str) -> None:
        frames = re.findall(r'File "([^"]+)", line (\d+)', said)
        own = [frame for frame in frames if "/slmjax/" in frame[0]] or frames
        signature = f"{name}: {said.splitlines()[0][:90]}"
        if own:
            place = f"{Path(own[-1][0]).name}:{own[-1][1]}"
            signature = f"{name}: {said.partition(':')[0]} at {place}"
        self.seen[signature] += 1
        if self.seen[signature] <= 3:
            self.out.mkdir(parents=True, exist_ok=True)
            path = self.out / f"{name}-{self.seed}-{number}.zip"
            with zipfile.ZipFile(path, "w") as archive:
                for file, content in files.items():
                    archive.writestr(f"case/{file}", content)
                about = {"kind": name, "seed": self.seed, "case": number, "found": said}
                archive.writestr("found.json", json.dumps(about, indent=1))
            if self.seen[signature] == 1:
                tqdm.write(f"{path}: {signature}")


class Worker:
    """A worker process, begun anew behind the case that ended it."""

    def __init__(self, seeds: Any, args: argparse.Namespace, first: int, findings: Findings):
        self.seeds, self.args, self.step, self.findings = seeds, args, args.processes, findings
        self.board = Board()
        self.start(first)

    def start(self, first: int) -> None:
        self.board.numbers[0], self.board.times[0] = first, 0
        self.receiver, sender = FORK.Pipe(duplex=False)
        work_args = (self.board, sender, self.seeds, self.args, first, self.step)
        self.process = FORK.Process(target=work, args=work_args, daemon=False)
        self.process.start()
        sender.close()

    def look(self) -> bool:
        """Take what was found, end a case that takes too long, replace a worker that died. Whether there is more."""
        alive = self.process.is_alive()
        with contextlib.suppress(EOFError):
            while self.receiver.poll():
                self.findings.add(*self.receiver.recv())
        number, since = int(self.board.numbers[0]), float(self.board.times[0])
        if alive and not (since and time.monotonic() - since > self.args.seconds):
            return True
        if number >= self.args.cases:
            return False
        self.process.kill()
        self.process.join()
        if not since:
            raise SystemExit(f"A worker ended between cases, before case {number} (status {self.process.exitcode}).")
        said = f"hang: more than {self.args.seconds:g} s" if alive else f"crash: status {self.process.exitcode}"
        damage = fuzz_damage.Damage()
        for sound in self.seeds.values():
            damage.know(sound)
        name = TURNS[number % len(TURNS)]
        rng = random.Random(f"{self.args.seed}-{number}")
        self.findings.add(number, name, damage(fuzz_kinds.KINDS[name], self.seeds[name], rng), said)
        self.board.counts[NAMES.index(name), VERDICTS.index("found")] += 1
        if number + self.step >= self.args.cases:
            return False
        self.start(number + self.step)
        return True


def make_seeds(sender: Any) -> None:
    """Sound files of every kind, each of which is read."""
    seeds = {}
    for name, kind in fuzz_kinds.KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            seeds[name] = kind.seeds(Path(folder))
        for number, files in enumerate(seeds[name]):
            with tempfile.TemporaryDirectory() as folder:
                for file, content in files.items():
                    (Path(folder) / file).write_bytes(content)
                try:
                    kind.read(Path(folder))
                except UserError as error:
                    raise SystemExit(f"The sound file {number} of {name} is refused: {error}") from error
    sender.send(seeds)


def seeds_of_child() -> dict[str, list[fuzz_damage.Files]]:
    """The sound files, made in a process of its own: the libraries start threads, and this one is yet to fork."""
    receiver, sender = FORK.Pipe(duplex=False)
    child = FORK.Process(target=make_seeds, args=(sender,))
    child.start()
    sender.close()
    try:
        seeds = receiver.recv()
    except EOFError:
        raise SystemExit("The sound files could not be made (see above).") from None
    child.join()
    return seeds


def replay(path: Path, megabytes: int) -> int:
    """Try one finding again, with what it says on the terminal."""
    with zipfile.ZipFile(path) as archive:
        about = json.loads(archive.read("found.json"))
        files = {name.removeprefix("case/"): archive.read(name) for name in archive.namelist() if name[:5] == "case/"}
    seeds = {name: sound for name, sound in seeds_of_child().items() if name == about["kind"]}
    tries = Tries(seeds, megabytes)
    start = time.monotonic()
    verdict, said = tries.verdict(about["kind"], files)
    print(f"{verdict} in {time.monotonic() - start:.2f} s: {tries.memory() or said}")
    print(f"Then: {about['found']}")
    tries.close()
    return int(verdict == "found")


def table(counts: np.ndarray) -> str:
    """Markdown: a row a kind, and one for all."""
    rows = [*zip(NAMES, counts, strict=True), ("all", counts.sum(axis=0))]
    shown = [f"| {name} | {row.sum():,} | {row[1]:,} | {row[0]:,} | {row[2]:,} |" for name, row in rows]
    return "\n".join(["| kind | cases | refused | read | findings |", "|---|---:|---:|---:|---:|", *shown])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9, help="end after so many, with what was tried by then")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20, help="that a case may take")
    parser.add_argument("--megabytes", type=int, default=1024, help="of address space for a case; half of it resident")
    parser.add_argument("--out", type=Path, default=Path("findings"), help="where findings are kept")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="try one finding again")
    parser.add_argument("--kinds", metavar="KIND,...", help=f"only these (default: all): {', '.join(NAMES)}")
    args = parser.parse_args()
    if args.kinds:
        fuzz_kinds.keep(args.kinds.split(","))
        TURNS[:], NAMES[:] = fuzz_kinds.schedule(), list(fuzz_kinds.KINDS)
    if args.replay:
        return replay(args.replay, args.megabytes)
    start, seeds, findings = time.monotonic(), seeds_of_child(), Findings(args.out, args.seed)
    workers = [Worker(seeds, args, first, findings) for first in range(min(args.processes, args.cases))]
    with tqdm(total=args.cases, unit=" cases", smoothing=0.02) as bar:
        while [worker for worker in workers if worker.look()]:  # all are looked at
            if time.monotonic() - start > 60 * args.minutes:
                for worker in workers:
                    worker.process.kill()
                break
            time.sleep(0.1)
            bar.update(sum(int(worker.board.counts.sum()) for worker in workers) - bar.n)
            bar.set_postfix_str(f"{findings.seen.total()} findings", refresh=False)
        bar.update(sum(int(worker.board.counts.sum()) for worker in workers) - bar.n)
    print(table(sum(worker.board.counts for worker in workers)))
    slowest = max(worker.board.times[1] for worker in workers)
    tried = sum(int(worker.board.counts.sum()) for worker in workers)
    print(f"{tried:,} cases of seed {args.seed} in {time.monotonic() - start:,.0f} s; the slowest {slowest:.2f} s.")
    for signature, count in findings.seen.most_common():
        print(f"{count:8,} {signature}")
    return int(bool(findings.seen))


if __name__ == "__main__":
    raise SystemExit(main())
