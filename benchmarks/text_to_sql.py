"""Every method of fine-tuning on text-to-SQL: execution accuracy, what is trained, memory, time, what is forgotten.

Each row is a process that trains and one that evaluates, and is written down when it is there: the same command goes
on after an interruption. Example:
    python benchmarks/text_to_sql.py --data-dir text2sql_geography --base SmolLM2-135M-Instruct.Q4_1.gguf \
        --general wikitext2-test.txt --workdir /tmp/text2sql --methods full,lora

Forgetting is the loss (nats a token) on the first 60,000 characters of the general text, after less before. Peak memory
is the largest resident set of the training process; its seconds are the process's own, compilation included, its CPU
seconds those of all its threads (which another job on the machine lengthens less).
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

CONFIG = Path(__file__).parents[1] / "configs" / "finetune" / "text2sql.py"
METHODS = ("full", "lora", "dora", "freeze", "adapter", "prefix", "prompt", "p_tuning", "ia3")
GENERAL_CHARACTERS = 60_000
TRAINING = ("seconds", "cpu_seconds", "peak_bytes", "tokens_per_second", "validation_loss")
COLUMNS = {
    "method": "method",
    "execution_accuracy": "execution accuracy",
    "valid_sql": "valid SQL",
    "trained": "trained parameters",
    "peak_bytes": "peak memory",
    "seconds": "seconds",
    "cpu_seconds": "CPU seconds",
    "tokens_per_second": "tokens/s",
    "forgotten": "forgotten (nats)",
}


def slmjax(*arguments: str) -> dict:
    """Run a command with --json; its answer, wall-clock and processor seconds, and its largest resident set."""
    command = [sys.executable, "-m", "slmjax.cli.main", *arguments, "--json"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}.")
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
    answer = json.loads(output.splitlines()[-1])
    cost = {"seconds": time.perf_counter() - start, "cpu_seconds": usage.ru_utime + usage.ru_stime}
    return answer | cost | {"peak_bytes": usage.ru_maxrss * unit}


def measured(model: Path | str, args: argparse.Namespace, name: str, num_fewshot: int = 0) -> dict:
    """Execution accuracy on the test questions, and the loss on the general text."""
    answers = args.workdir / f"{name}-answers.json"
    task = ["--tasks", "text2sql", "--data-dir", str(args.data_dir), "--limit", str(args.limit)]
    task += ["--num-fewshot", str(num_fewshot), "--output", str(answers)]
    result = slmjax("evaluate", "--model", str(model), *task)["text2sql"]
    text = slmjax("evaluate", "--model", str(model), "--text", str(args.workdir / "general.txt"))
    return {
        "method": name,
        "questions": result["questions"],
        "execution_accuracy": result["execution_accuracy"],
        "valid_sql": result["valid_sql"],
        "general_loss": text["nll_per_token"],
    }


def trained_parameters(workdir: Path) -> int:
    """How many numbers the run trained."""
    import jax
    import jax.numpy as jnp

    from slmjax.models.transformer import Transformer
    from slmjax.peft.method import make_method
    from slmjax.recipes.config import run_config

    config = run_config(json.loads((workdir / "config.json").read_text()))
    model = Transformer(config.model)
    base = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    split = make_method(config.peft, model).split
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(split, base, jax.random.key(0))[0]))


def fine_tuned(method: str, args: argparse.Namespace) -> dict:
    """One row: train, then measure."""
    run, data = args.workdir / method, args.workdir / "data"
    arguments = [f"--config.peft.base={args.base}", f"--config.data.sources.train.path={data / 'train.jsonl'}"]
    arguments += [f"--config.data.validation.dev.path={data / 'dev.jsonl'}", *args.override]
    if args.steps:
        arguments.append(f"--config.training.steps={args.steps}")
    trained = slmjax("train", "--config", f"{CONFIG}:{method}", "--workdir", str(run), *arguments)
    row = measured(run, args, method) | {"trained": trained_parameters(run), "steps": trained["step"]}
    return row | {key: trained.get(key) for key in TRAINING}


def table(rows: list[dict]) -> str:
    """The rows in Markdown, the base's loss on the general text taken off the others'."""
    before = rows[0]["general_loss"]
    lines = ["| " + " | ".join(COLUMNS.values()) + " |", "|" + "---|" * len(COLUMNS)]
    for row in rows:
        values = row | {"forgotten": row["general_loss"] - before}
        shown = {
            "method": str,
            "execution_accuracy": "{:.1%}".format,
            "valid_sql": "{:.1%}".format,
            "trained": "{:,}".format,
            "peak_bytes": lambda n: f"{n / 2**30:.2f} GiB",
            "seconds": "{:.0f}".format,
            "cpu_seconds": "{:.0f}".format,
            "tokens_per_second": "{:.0f}".format,
            "forgotten": "{:+.3f}".format,
        }
        cells = [shown[name](values[name]) if values.get(name) is not None else "" for name in COLUMNS]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="geography.json and geography.sqlite")
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--general", type=Path, required=True, help="text outside the domain")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--steps", type=int, default=0, help="default: the config's")
    parser.add_argument("--limit", type=int, default=0, help="of test questions; default: all")
    parser.add_argument("--base-shots", type=int, default=8, help="examples in the prompts of the untrained base")
    parser.add_argument("--override", action="append", default=[], help="--config.key=value of the training runs")
    args = parser.parse_args()
    args.workdir.mkdir(parents=True, exist_ok=True)
    text = args.general.read_text(encoding="utf-8")[:GENERAL_CHARACTERS]
    (args.workdir / "general.txt").write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "slmjax.cli.main", "data", "records", "--task", "text2sql"]
    command += ["--data-dir", str(args.data_dir), "--output", str(args.workdir / "data")]
    subprocess.run(command, check=True)

    def base(name: str, shots: int):
        return lambda: measured(args.base, args, name, shots)

    wanted = {"base": base("base", 0), f"base, {args.base_shots} examples": base("base-shots", args.base_shots)}
    wanted |= {method: lambda method=method: fine_tuned(method, args) for method in args.methods.split(",")}
    rows = []
    for name, measure in wanted.items():
        path = args.workdir / f"row-{name.replace(', ', '-').replace(' ', '-')}.json"
        if not path.is_file():
            row = json.dumps(measure() | {"method": name}, indent=1)
            path.write_text(row + "\n", encoding="utf-8")
        rows.append(json.loads(path.read_text(encoding="utf-8")))
        print(table(rows), flush=True)


if __name__ == "__main__":
    main()
