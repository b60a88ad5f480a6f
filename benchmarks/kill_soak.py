"""Kills runs at random moments, lets them go on, and compares what they leave behind with undisturbed ones.

    python benchmarks/kill_soak.py --kills 200 --seed 0

SIGKILL comes while a tokenizer is trained, a corpus prepared, a network trained or fine-tuned, evaluated, saved,
exported, and in between. A run is killed several times, then left to end; then every array of every checkpoint, every
position, every line of the metrics without its times, and every other file must be what an undisturbed run leaves, bit
by bit. Ends with a table; exit status 1 where something differed or did not go on.

A process is forked for each life of a run, from one that has imported everything, and they share a cache of compiled
programs: a life takes seconds.
"""

import argparse
import contextlib
import hashlib
import json
import mmap
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

import jax
import numpy as np
from tqdm import tqdm

from slmjax.cli import main as command_line
from slmjax.data.config import DataConfig
from slmjax.data.prepare import prepare, tokenizer_for
from slmjax.formats import models
from slmjax.models.config import ModelConfig
from slmjax.recipes import corpus
from slmjax.recipes.config import default_config, set_budget
from slmjax.recipes.config import run_config as typed
from slmjax.recipes.train import make_recipe, train
from slmjax.training import loop
from slmjax.training.checkpoints.checkpointer import Checkpointer

FORK = multiprocessing.get_context("fork")
# What a process is doing, and for how many seconds after its beginning a kill is drawn from.
PHASES = {
    "starting": 3.0,
    "tokenizer training": 0.1,
    "preparation": 0.2,
    "training": 0.5,
    "evaluation": 0.3,
    "checkpointing": 0.4,
    "export": 0.6,
}
NAMES = list(PHASES)
TIMES = ("tokens_per_second", "mfu", "data_wait", "memory_bytes")
UNCOMPARED = ("tensorboard", "loss.png", "metrics.jsonl", "checkpoints")  # with times in them, or compared otherwise


@dataclass(frozen=True)
class Job:
    """What is run again and again in one directory until it has ended, and the phases in which it is killed.

    run: (directory) -> None. compare: (directory) -> {what: digest}, beside the files.
    """

    run: Callable[[Path], Any]
    phases: tuple[str, ...]
    compare: Callable[[Path], dict[str, str]] = lambda place: {}


class Clock:
    """The phase of a run, in memory that it shares with who kills it."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 1)

    @property
    def phase(self) -> str:
        return NAMES[self.memory[0]]

    @phase.setter
    def phase(self, name: str) -> None:
        self.memory[0] = NAMES.index(name)

    def watch(self, owner: Any, attribute: str, phase: str) -> None:
        """From now on the phase begins when this function is called, and another when the next of them is."""
        original = getattr(owner, attribute)

        def watched(*args: Any, **kwargs: Any) -> Any:
            self.phase = phase
            return original(*args, **kwargs)

        setattr(owner, attribute, watched)


def watched(clock: Clock) -> None:
    """Tell the clock of the phases of whatever runs in this process."""
    clock.watch(corpus, "tokenizer_for", "tokenizer training")
    clock.watch(corpus, "prepare", "preparation")
    clock.watch(loop, "to_devices", "training")
    clock.watch(loop, "_observe", "evaluation")
    clock.watch(Checkpointer, "save", "checkpointing")


def write_text(path: Path, megabytes: float, seed: int = 0) -> None:
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghijklmnop", k=rng.randint(2, 9))) for _ in range(2000)]
    lines = (" ".join(rng.choices(words, k=12)) + "." for _ in range(int(megabytes * 12_000)))
    path.write_text("\n\n".join(lines), encoding="utf-8")


def pretraining_config(texts: Path) -> Any:
    shape = {"num_layers": 1, "embed_dim": 16, "num_heads": 2, "ffn_dim": 24, "context_length": 32}
    config = default_config(ModelConfig(vocab_size=300, **shape))
    config.data.sources.text = {"path": str(texts / "small.txt")}
    config.data.tokenizer, config.data.sequence_length, config.data.validation_fraction = "train:280", 16, 0.2
    config.training.batch_size, config.training.log_every, config.training.ema_decay = 8, 1, 0.5
    config.training.eval_every, config.training.eval_batches = 3, 1
    config.training.samples, config.training.sample_tokens = 1, 4
    config.checkpoint.every = 2
    set_budget(config, steps=20)
    return config


def finetuning_config(texts: Path, base: Path) -> Any:
    config = pretraining_config(texts)
    config.peft.base, config.peft.method = str(base), "lora"
    config.data.tokenizer, config.training.ema_decay = str(base / "tokenizer"), 0.0
    config.data.sources.text = {"path": str(texts / "other.txt")}
    return config


def training_job(make: Callable[[], Any]) -> Job:
    def compare(place: Path) -> dict[str, str]:
        recipe = make_recipe(typed(make()), place)
        checkpointer = Checkpointer(place / loop.CHECKPOINTS)
        digests = {"steps": str(checkpointer.all_steps())}
        for step in checkpointer.all_steps():
            restored = checkpointer.restore(step, recipe.program.stored)
            digests[f"{step} position"] = json.dumps(restored.position, sort_keys=True, default=str)
            for path, leaf in jax.tree_util.tree_leaves_with_path(jax.device_get(restored.state)):
                array = np.asarray(leaf)
                content = hashlib.sha256(array.tobytes()).hexdigest()
                digests[f"{step} {jax.tree_util.keystr(path)}"] = f"{array.dtype} {array.shape} {content}"
        lines = (place / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(map(json.loads, lines)):
            digests[f"metrics line {number}"] = json.dumps({k: v for k, v in line.items() if k not in TIMES})
        return digests

    phases = ("starting", "training", "evaluation", "checkpointing", "checkpointing")
    return Job(lambda place: train(make(), place, say=lambda message: None), phases, compare)


def jobs(texts: Path, base: Path, clock: Clock) -> dict[str, Job]:
    """The kinds of work; `base` is a run that has ended."""

    def prepared(place: Path) -> None:
        sources = {"text": {"path": str(texts / "large.txt")}, "more": {"path": str(texts / "other.txt")}}
        config = DataConfig(sources=sources, tokenizer="train:400", validation_fraction=0.1)
        clock.phase = "tokenizer training"
        tokenizer = tokenizer_for(config, place / "tokenizer", progress=False)
        clock.phase = "preparation"
        prepare(config, tokenizer, place / "corpus", progress=False)

    def trained_tokenizer(place: Path) -> None:
        if not (place / "tokenizer").exists():  # the command never replaces one
            clock.phase = "tokenizer training"
            source, output = str(texts / "large.txt"), str(place / "tokenizer")
            command_line.main(["tokenizer", "train", "--source", source, "--vocab-size", "400", "--output", output])

    def exported(place: Path) -> None:
        clock.phase = "export"
        for name in ("huggingface", "slmjax"):
            models.convert(base, place / name, format=name)
        models.convert(base, place / "model.gguf", format="gguf", dtype="q8_0")
        models.convert(place / "huggingface", place / "again", format="huggingface", dtype="bfloat16")

    def evaluated(place: Path) -> None:
        clock.phase = "evaluation"
        output = str(place / "result.json")
        command_line.main(["evaluate", str(base), "--text", str(texts / "small.txt"), "--output", output])

    pretraining = training_job(lambda: pretraining_config(texts))
    whole = ("tokenizer training", "preparation", *pretraining.phases)
    return {
        "pretraining": Job(pretraining.run, whole, pretraining.compare),
        "fine-tuning": training_job(lambda: finetuning_config(texts, base)),
        "preparation of data": Job(prepared, ("starting", "tokenizer training", "preparation", "preparation")),
        "tokenizer training": Job(trained_tokenizer, ("tokenizer training",)),
        "export": Job(exported, ("export",)),
        "evaluation": Job(evaluated, ("evaluation",)),
    }


class Soak:
    """Runs jobs in processes of their own, and kills some."""

    def __init__(self, place: Path, seed: int):
        self.place, self.rng, self.clock = place, random.Random(seed), Clock()
        self.kills: Counter[tuple[str, str]] = Counter()
        self.unfinished = 0  # kills that left something half written

    def life(self, run: Callable[[], None]) -> Any:
        """A process that does this, with its messages in a file."""

        def live() -> None:
            log = os.open(self.place / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            watched(self.clock)
            try:
                run()
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)

        self.clock.phase = "starting"
        process = FORK.Process(target=live)
        process.start()
        return process

    def finish(self, run: Callable[[], None]) -> None:
        """Let it end. SystemExit with what it said where it does not end well."""
        process = self.life(run)
        process.join()
        if process.exitcode:
            said = (self.place / "log").read_text(errors="replace")
            raise SystemExit(f"A run did not go on (status {process.exitcode}):\n{said[-4000:]}")

    def kill(self, name: str, job: Job, where: Path) -> bool:
        """One life that is ended at a random moment. False where it ended before."""
        phase = self.rng.choice(job.phases)
        wait = self.rng.random() * PHASES[phase]
        process = self.life(lambda: job.run(where))
        while process.is_alive() and self.clock.phase != phase:
            time.sleep(0.002)
        process.join(wait)
        if not process.is_alive():
            if process.exitcode:
                self.finish(lambda: job.run(where))  # says why
            return False
        process.kill()
        process.join()
        self.kills[name, self.clock.phase] += 1
        self.unfinished += any("partial" in path.name or "-tmp" in path.name for path in where.rglob("*"))
        return True

    def digests(self, job: Job, where: Path) -> dict[str, str]:
        """What a run left behind, with the place that it is in left out."""
        receiver, sender = FORK.Pipe(duplex=False)
        reader = self.life(lambda: sender.send(job.compare(where)))
        sender.close()
        with contextlib.suppress(EOFError):
            found = receiver.recv()
            reader.join()
            for path in sorted(where.rglob("*")):
                name = path.relative_to(where)
                if path.is_file() and name.parts[0] not in UNCOMPARED:
                    content = path.read_bytes().replace(str(where).encode(), b"WORKDIR")
                    found[f"file {name}"] = hashlib.sha256(content).hexdigest()
            return found
        raise SystemExit(f"What a run left cannot be read:\n{(self.place / 'log').read_text(errors='replace')[-4000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--each", type=int, default=6, help="kills of one run, at most (default: %(default)s)")
    parser.add_argument("--jobs", help="names of jobs, separated by commas (default: all)")
    args = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kill-soak-") as folder:
        place = Path(folder)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(place / "compiled")
        jax.config.update("jax_compilation_cache_dir", str(place / "compiled"))
        for name, size in (("small", 0.02), ("other", 0.03), ("large", 3)):
            write_text(place / f"{name}.txt", size, seed=len(name))
        soak = Soak(place, args.seed)
        base = place / "straight pretraining"
        known = jobs(place, base, soak.clock)
        chosen = args.jobs.split(",") if args.jobs else list(known)
        straight = {}
        for name in dict.fromkeys(["pretraining", *chosen]):
            where = place / f"straight {name}"
            where.mkdir()
            soak.finish(lambda name=name, where=where: known[name].run(where))
            straight[name] = soak.digests(known[name], where)
        faults, compared, runs = [], Counter[str](), Counter[str]()
        with tqdm(total=args.kills, unit=" kills") as bar:
            while bar.n < args.kills:
                name = chosen[sum(runs.values()) % len(chosen)]
                where = place / "killed"
                where.mkdir()
                for _ in range(min(soak.rng.randint(2, args.each), args.kills - bar.n)):
                    if not soak.kill(name, known[name], where):
                        break
                    bar.update()
                soak.finish(lambda name=name, where=where: known[name].run(where))
                found = soak.digests(known[name], where)
                differing = [k for k in straight[name] | found if straight[name].get(k) != found.get(k)]
                faults += [f"{name}, run {runs[name]}: {key}" for key in differing]
                compared[name] += len(found)
                runs[name] += 1
                bar.set_postfix_str(f"{len(faults)} differences")
                shutil.rmtree(where)
    print("| job | runs | kills | compared | different |\n|---|---:|---:|---:|---:|")
    for name in runs:
        kills = sum(count for (job, _), count in soak.kills.items() if job == name)
        different = sum(fault.startswith(f"{name},") for fault in faults)
        print(f"| {name} | {runs[name]} | {kills} | {compared[name]:,} | {different} |")
    print("\n| killed while | kills |\n|---|---:|")
    for phase in NAMES:
        print(f"| {phase} | {sum(count for (_, at), count in soak.kills.items() if at == phase)} |")
    print(f"\n{soak.kills.total()} kills, {soak.unfinished} of them with something half written; seed {args.seed}; "
          f"{time.monotonic() - start:,.0f} s.")  # fmt: skip
    print(*faults[:50], sep="\n")
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
