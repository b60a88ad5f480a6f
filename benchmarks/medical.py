"""A medical domain: what a fine-tune gains on it and forgets of general text, with each tool against forgetting.

A variant is a name and the overrides of its run, `NAME:--config.a.b=value --config.c=value`; rows are written down as
they come, and the same command goes on after an interruption. Example:
    python benchmarks/medical.py --study pubmedqa --data-dir domain --base SmolLM2-135M-Instruct.Q4_1.gguf \
        --general wikitext2-test.txt --workdir /tmp/medical --common "--config.training.steps=60" --variant lora: \
        --variant "full:--config.peft.method=full --config.schedule.peak=5e-5"

pubmedqa: accuracy and macro F1 on the 500 test questions. medquad (medquad.jsonl.gz in --data-dir): nats a token of the
answers that were held out; the base's are those of a run of one step at a learning rate of 1e-12.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from text_to_sql import GENERAL_CHARACTERS, TRAINING, slmjax, trained_parameters

CONFIG = Path(__file__).parents[1] / "configs" / "finetune" / "medical.py"
STILL = "--config.training.steps=1 --config.schedule.peak=1e-12 --config.schedule.warmup_steps=0"


def measured(model: Path | str, args: argparse.Namespace) -> dict:
    """The loss on the general text and, of PubMedQA, the score."""
    text = slmjax("evaluate", "--model", str(model), "--text", str(args.workdir / "general.txt"))
    row = {"general_loss": text["nll_per_token"]}
    if args.study == "pubmedqa":
        task = ["--tasks", "pubmedqa", "--data-dir", str(args.data_dir), "--limit", str(args.limit)]
        result = slmjax("evaluate", "--model", str(model), *task)["pubmedqa"]
        row |= {name: result[name] for name in ("accuracy", "macro_f1", "most_frequent_answer_accuracy")}
    return row


def fine_tuned(name: str, overrides: str, args: argparse.Namespace) -> dict:
    """Train, then measure."""
    run = args.workdir / name
    records = (
        args.workdir / "records" / "train.jsonl" if args.study == "pubmedqa" else args.data_dir / "medquad.jsonl.gz"
    )
    sources = [f"--config.peft.base={args.base}", f"--config.data.sources.train.path={records}"]
    sources += [*args.common.split(), *overrides.split()]
    trained = slmjax("train", "--config", f"{CONFIG}:{args.study}", "--workdir", str(run), *sources)
    kept = {key: trained.get(key) for key in ("step", *TRAINING)}
    return kept | {"trained": trained_parameters(run)} | measured(run, args)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=["pubmedqa", "medquad"], default="pubmedqa")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--general", type=Path, required=True, help="text outside the domain")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=0, help="of test questions; default: all")
    parser.add_argument("--common", default="", help="overrides of all runs")
    parser.add_argument("--variant", action="append", required=True, help="NAME:OVERRIDES")
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    text = args.general.read_text(encoding="utf-8")[:GENERAL_CHARACTERS]
    (args.workdir / "general.txt").write_text(text, encoding="utf-8")
    if args.study == "pubmedqa":
        records(args)
    variants = dict(variant.partition(":")[::2] for variant in args.variant)
    base = {"base": lambda: measured(args.base, args)}
    if args.study == "medquad":
        base = {"base": lambda: fine_tuned("base", STILL, args)}
    wanted = base | {name: lambda n=name, o=o: fine_tuned(n, o, args) for name, o in variants.items()}
    rows = {}
    for name, measure in wanted.items():
        path = args.workdir / f"row-{name}.json"
        if not path.is_file():
            path.write_text(json.dumps(measure(), indent=1) + "\n", encoding="utf-8")
        rows[name] = json.loads(path.read_text(encoding="utf-8"))
        print(table(rows, "accuracy" if args.study == "pubmedqa" else "validation_loss"), flush=True)


def records(args: argparse.Namespace) -> None:
    """Write PubMedQA's training questions, where they are not there yet."""
    command = [sys.executable, "-m", "slmjax.cli.main", "data", "records", "--task", "pubmedqa"]
    subprocess.run([*command, "--data-dir", str(args.data_dir), "--output", str(args.workdir / "records")], check=True)


def table(rows: dict[str, dict], gain: str) -> str:
    """The rows in Markdown; what is gained and forgotten is against the first."""
    first = next(iter(rows.values()))
    lines = [
        f"| variant | {gain.replace('_', ' ')} | gained | forgotten (nats) | trained | peak memory | CPU seconds |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for name, row in rows.items():
        cells = [name, f"{row[gain]:.3f}", f"{row[gain] - first[gain]:+.3f}"]
        cells.append(f"{row['general_loss'] - first['general_loss']:+.3f}")
        cells.append(f"{row['trained']:,}" if "trained" in row else "")
        cells.append(f"{row['peak_bytes'] / 2**30:.2f} GiB" if "peak_bytes" in row else "")
        cells.append(f"{row['cpu_seconds']:.0f}" if "cpu_seconds" in row else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
