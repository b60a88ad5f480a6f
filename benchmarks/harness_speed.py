"""Evaluates the same tasks through slmjax and through lm-evaluation-harness' own `hf` class, in turn, and compares.

    python benchmarks/harness_speed.py MODEL --data-dir DIR --cases arc_easy:0 arc_challenge:5 mmlu_form:5 gsm8k:2:50

MODEL is read by both: anything that slmjax loads, converted to a Hugging Face directory in float32 for the other. A
case is TASK:SHOTS or TASK:SHOTS:ITEMS. `mmlu_form` is a subject of MMLU's form, its questions taken from sciq's file:
five fixed shots, lettered options. Every run is a process of its own; the two sides of a round follow each other. The
`hf` class runs each of --batch-sizes once on a part of the case, and the whole case with the fastest. Only the calls of
the model are timed, with all programs compiled before and each side in a process that begins as its command does.

Both sides must give the same answers: log-likelihoods to 1e-3, the same texts. Prints a table of medians with the range
of the ratio, the processor's seconds, peak memory, and for log-likelihoods the FLOPs that perfect sharing needs at the
machine's measured matrix rate.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
CALLS = ("loglikelihood", "loglikelihood_rolling", "generate_until")
MMLU_FORM, SUBJECT = "mmlu_form", "mmlu_high_school_biology"


def write_mmlu_form(data_dir: Path, output: Path, items: int = 150) -> None:
    """A subject of MMLU's form from sciq: the right option at a place that the question's number decides."""
    (found,) = data_dir.glob("sciq.validation.jsonl*")
    opened = gzip.open(found, "rt") if found.suffix == ".gz" else open(found)  # noqa: SIM115
    with opened as file:
        records = [json.loads(line) for line in file][: items + 5]
    rows = []
    for number, r in enumerate(records):
        choices = [r["distractor1"], r["distractor2"], r["distractor3"]]
        choices.insert(number % 4, r["correct_answer"])
        rows.append({"question": r["question"], "subject": "sciq", "choices": choices, "answer": number % 4})
    for split, part in (("dev", rows[:5]), ("test", rows[5:])):
        path = output / f"{SUBJECT}.{split}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in part))


def model_of(side: str, path: str, batch_size: int) -> Any:
    if side == "slmjax":
        import slmjax
        from slmjax.evaluation.harness.model import HarnessModel

        return HarnessModel(slmjax.load(path))
    import torch
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=path, dtype=torch.float32, device="cpu", batch_size=batch_size, trust_remote_code=False)


def run_side(args: argparse.Namespace) -> None:
    """One evaluation; prints its numbers as the last line."""
    from slmjax.cli.shared.compiled_programs import keep_compiled_programs
    from slmjax.cli.shared.malloc_settings import begin_with_kept_memory

    if args.side == "slmjax":  # as the command begins, before jax is imported
        begin_with_kept_memory()
    keep_compiled_programs()
    from slmjax.evaluation.harness.run import evaluate_harness, load_tasks

    task, shots, limit = parse_case(args.cases[0])
    name = SUBJECT if task == MMLU_FORM else task
    selection = load_tasks([name], data_dir=args.data_dir, num_fewshot=shots, limit=args.limit or limit)
    model = model_of(args.side, args.model, args.batch_size)
    spent, answers, requests = {"wall": 0.0, "cpu": 0.0}, [], 0

    def timed(call: Any) -> Any:
        def run(asked: Any, *rest: Any, **options: Any) -> Any:
            nonlocal requests
            requests += len(asked)
            wall, cpu = time.perf_counter(), processor_seconds()
            found = call(asked, *rest, **options)
            spent["wall"] += time.perf_counter() - wall
            spent["cpu"] += processor_seconds() - cpu
            answers.extend(found)
            return found

        return run

    for name in CALLS:
        setattr(model, name, timed(getattr(model, name)))
    begun = time.perf_counter()
    results = evaluate_harness(model, selection, progress=False)
    whole = time.perf_counter() - begun
    texts = [answer for answer in answers if isinstance(answer, str)]
    tokens = sum(len(model.tok_encode(text)) for text in texts)
    numbers = next(iter(results["results"].values()))
    report = {
        "requests": requests,
        "tokens": tokens,
        **spent,
        "host": whole - spent["wall"],
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "answers": [list(a) if isinstance(a, tuple) else a for a in answers],
        "numbers": {k: v for k, v in numbers.items() if isinstance(v, float)},
        **limit_of(model, selection, args.side),
    }
    print(json.dumps(report))


def limit_of(model: Any, selection: Any, side: str) -> dict[str, float]:
    """FLOPs of a task's log-likelihoods with perfect sharing, and the machine's rate of matrix products."""
    if side != "slmjax":
        return {}
    import jax
    import numpy as np

    from slmjax.evaluation.scoring.trie import cut_streams
    from slmjax.models.counting import count_parameters

    pairs = []
    for each in selection.loaded:
        for task in each.tasks.values():
            for instance in task.instances:
                if instance.request_type == "loglikelihood":
                    pairs.append(model._encode_pair(*instance.args))
    if not pairs:
        return {}
    (stream,) = cut_streams(pairs, 1)
    config = model.lm.config
    read = len(np.unique(np.concatenate([asked.nodes for asked in stream.asked])))
    head = 2 * config.vocab_size * config.table_dim
    body = 2 * (count_parameters(config).total - config.vocab_size * config.table_dim)
    x, w = jax.numpy.ones((512, config.embed_dim)), jax.numpy.ones((config.embed_dim, 4 * config.embed_dim))
    product = jax.jit(lambda x, w: x @ w)
    product(x, w).block_until_ready()
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        for _ in range(50):
            product(x, w).block_until_ready()
        times.append(time.perf_counter() - begun)
    return {"flops": float(body * len(stream) + head * read), "rate": 50 * 2 * x.size * w.shape[1] / min(times)}


def processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def parse_case(case: str) -> tuple[str, int, int]:
    task, shots, items = (*case.split(":"), "0")[:3]
    return task, int(shots), int(items)


def ask(side: str, model: str, case: str, data_dir: Path, batch_size: int = 1, limit: int = 0) -> dict[str, Any]:
    command = [sys.executable, __file__, model, "--side", side, "--cases", case, "--data-dir", str(data_dir)]
    command += ["--batch-size", str(batch_size), "--limit", str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} on {case} failed:\n{done.stderr[-3000:]}")
    report: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return report


def compare(ours: dict[str, Any], theirs: dict[str, Any]) -> str:
    """What differs between the answers of the two sides."""
    pairs = list(zip(ours["answers"], theirs["answers"], strict=True))
    texts = [(a, b) for a, b in pairs if isinstance(a, str)]
    if texts:
        return f"{sum(a == b for a, b in texts)} of {len(texts)} texts equal"
    furthest = max(abs(a[0] - b[0]) for a, b in pairs)
    flags = sum(a[1] != b[1] for a, b in pairs)
    return f"log-likelihoods within {furthest:.1e}, {flags} greedy flags differ"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", default=["arc_easy:0", "arc_challenge:5", "mmlu_form:5", "gsm8k:2:50"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--limit", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=("slmjax", "hf"), help=argparse.SUPPRESS)
    parser.add_argument("--batch-size", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        run_side(args)
        return
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "model"
        convert = [sys.executable, "-m", "slmjax.cli.main", "convert", args.model, str(exported)]
        subprocess.run([*convert, "--format", "huggingface"], check=True, capture_output=True)
        data = Path(folder) / "data"
        data.mkdir()
        for path in args.data_dir.resolve().iterdir():
            (data / path.name).symlink_to(path)
        with contextlib.suppress(ValueError):
            write_mmlu_form(args.data_dir, data)
        head = ("case", "requests/s or tokens/s", "hf (batch)", "ratio (range)", "memory", "of the limit", "answers")
        print("| " + " | ".join(head) + " |\n|" + "---|" * len(head), flush=True)
        for case in args.cases:
            part = 16 if "gsm8k" in case else 60
            tried = {n: ask("hf", str(exported), case, data, n, part)["wall"] for n in args.batch_sizes}
            best = min(tried, key=tried.__getitem__)
            ask("slmjax", args.model, case, data)  # compiles
            pairs = [
                (ask("slmjax", args.model, case, data), ask("hf", str(exported), case, data, best))
                for _ in range(args.rounds)
            ]
            print(row(case, best, pairs), flush=True)


def row(case: str, best: int, pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> str:
    kind = "tokens" if pairs[0][0]["tokens"] else "requests"
    ours, theirs = ([side[kind] / side["wall"] for side in sides] for sides in zip(*pairs, strict=True))
    ratios = sorted(b["wall"] / a["wall"] for a, b in pairs)
    memory = statistics.median(a["memory"] / b["memory"] for a, b in pairs)
    limit = "-"
    if "flops" in pairs[0][0]:
        shares = [a["flops"] / a["rate"] / a["wall"] for a, _ in pairs]
        limit = f"{pairs[0][0]['flops'] / 1e12:.2f} TFLOP, {100 * statistics.median(shares):.0f}%"
    cells = (
        case,
        f"{statistics.median(ours):.1f} {kind}/s ({statistics.median(a['cpu'] for a, _ in pairs):.0f} cpu s)",
        f"{statistics.median(theirs):.1f} ({best}; {statistics.median(b['cpu'] for _, b in pairs):.0f} cpu s)",
        f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})",
        f"{memory:.2f}",
        limit,
        compare(*pairs[0]),
    )
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
