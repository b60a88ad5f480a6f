"""`slmjax evaluate`: tasks of lm-evaluation-harness and our own, or bits per byte of text beside baselines."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slmjax.cli.shared.model_arguments import add_checkpoint_argument, add_mesh_argument, mesh_of
from slmjax.cli.shared.option_types import not_empty, whole_number
from slmjax.cli.shared.sampling_arguments import add_context_argument
from slmjax.cli.shared.text_sources import add_format_arguments, texts_of
from slmjax.quantities import json_text

HELP = "measure a model: tasks of lm-evaluation-harness, or bits per byte of text beside baselines"
EXAMPLE = "slmjax evaluate --model runs/small --tasks hellaswag,arc_easy,gsm8k --data-dir data --output results"
OWN_TASKS = ("text2sql", "pubmedqa")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument("--model", help="run directory, checkpoint, model or adapter directory, .gguf file, or hub id")
    parser.add_argument("--base", metavar="MODEL", help="base model of an adapter (default: the one that it names)")
    add_checkpoint_argument(parser)
    add_context_argument(parser)
    add_mesh_argument(parser)
    parser.add_argument("--output", help="directory for the results in the harness's files, or a .json file for them")
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("A.json", "B.json"),
        help="two files of results with --samples beside them: whether their differences are more than noise",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    _add_task_arguments(parser.add_argument_group("tasks"))
    _add_prompt_arguments(parser.add_argument_group("prompts of tasks"))
    text = parser.add_argument_group("text")
    text.add_argument("--text", nargs="+", help="files of held-out text (text, JSONL ...)")
    text.add_argument("--baseline-text", nargs="+", help="files of text to train the unigram and n-gram baselines on")
    text.add_argument(
        "--sequence-length", type=whole_number(0), default=0, help="context length in tokens (default: the model's)"
    )
    add_format_arguments(parser)


def _add_task_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--tasks",
        type=not_empty,
        metavar="NAME,...",
        help="tasks, groups or tags of lm-evaluation-harness, YAML files of tasks, the presets survey, openllm and "
        "in_training, or text2sql, pubmedqa and needle",
    )
    group.add_argument(
        "--data-dir",
        metavar="DIR",
        help="directory of the tasks' data, as in arc_easy.test.jsonl (default: the data sets of the hub)",
    )
    group.add_argument(
        "--num-fewshot",
        type=whole_number(0),
        metavar="N",
        help="examples in each prompt (default: each task's own number)",
    )
    group.add_argument(
        "--shots",
        type=_numbers,
        metavar="N,...",
        help="numbers of examples, as in 0,1,5: an evaluation with each, and a table and a figure of the accuracies",
    )
    group.add_argument(
        "--limit", type=whole_number(0), default=0, help="maximum number of items per task (default: all)"
    )
    group.add_argument(
        "--include-path",
        action="append",
        default=[],
        metavar="DIR",
        help="directory of further tasks in YAML files; may be given several times",
    )
    group.add_argument(
        "--lengths",
        type=_numbers,
        default=[],
        metavar="N,...",
        help="tokens of the prompts of needle tasks (default: 512, 1024 ... up to the model's context)",
    )
    group.add_argument(
        "--allow-code", action="store_true", help="running of programs that the model writes, as humaneval and mbpp do"
    )
    group.add_argument("--samples", action="store_true", help="files of every item's prompt and answer in --output")
    group.add_argument(
        "--resume", action="store_true", help="use of the answers that a stopped run has left beside its --output"
    )


def _numbers(text: str) -> list[int]:
    """Whole numbers separated by commas."""
    return [whole_number(0)(part) for part in text.split(",")]


def _add_prompt_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--apply-chat-template",
        nargs="?",
        const=True,
        default=False,
        metavar="NAME",
        help="rendering with the model's chat template, or with the one of this name",
    )
    group.add_argument("--system-instruction", metavar="TEXT", help="text before every prompt, or the system message")
    group.add_argument(
        "--fewshot-as-multiturn",
        action=argparse.BooleanOptionalAction,
        help="examples as turns of a chat (default: with a chat template)",
    )
    group.add_argument(
        "--seed", type=whole_number(), default=1234, help="seed of the choice of examples (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Evaluate and print a table."""
    from slmjax.errors import UserError
    from slmjax.evaluation.harness import has_harness
    from slmjax.files import local_path

    output = None if args.output is None else local_path(args.output, "--output")
    if output is not None and output.suffix == ".json" and not output.parent.is_dir():
        raise UserError(f"--output {output} cannot be written: there is no directory {output.parent}.")
    if sum(map(bool, (args.text, args.tasks, args.compare))) != 1:
        raise UserError("Give slmjax evaluate one of --tasks NAME,..., --text FILE ... and --compare A.json B.json.")
    if args.compare:
        return _compare(output, args)
    if not args.model:
        raise UserError("Say which model slmjax evaluate is to measure: give --model PATH.")
    names = [name.strip() for name in (args.tasks or "").split(",") if name.strip()]
    if args.text:
        return _print_numbers(_text(args), output, args)
    if set(names) <= set(OWN_TASKS) and not has_harness():
        return _print_numbers(_own_tasks(names, args), output, args)
    return _harness_tasks(names, output, args)


def _load(args: argparse.Namespace) -> Any:
    from slmjax.formats.models import load

    lm = load(args.model, mesh=mesh_of(args.mesh), base=args.base, checkpoint=args.checkpoint)
    return lm.with_context(args.context)


def _text(args: argparse.Namespace) -> dict[str, Any]:
    from slmjax.evaluation.baselines import gzip_bits_per_byte, ngram_bits_per_byte, unigram_bits_per_byte
    from slmjax.evaluation.bits_per_byte import evaluate_text

    texts = list(texts_of(args.text, args))
    heldout = "".join(texts).encode()
    lm = _load(args)
    result: dict[str, Any] = evaluate_text(lm, texts, sequence_length=args.sequence_length)
    result["gzip_bits_per_byte"] = gzip_bits_per_byte(heldout)
    if args.baseline_text:
        train = "".join(texts_of(args.baseline_text, args)).encode()
        result["unigram_bits_per_byte"] = unigram_bits_per_byte(lm.require_tokenizer(), train, heldout)
        result["ngram_bits_per_byte"] = ngram_bits_per_byte(train, heldout)
    return result


def _own_tasks(names: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Our own tasks, where lm-evaluation-harness is not installed."""
    from slmjax.errors import UserError
    from slmjax.evaluation.tasks.registry import evaluate_tasks
    from slmjax.files import local_path

    if not args.data_dir or not local_path(args.data_dir, "--data-dir").is_dir():
        raise UserError(
            f"--tasks needs the directory of their data: give --data-dir DIR (there is none at {args.data_dir})."
        )
    return evaluate_tasks(_load(args), names, args.data_dir, limit=args.limit, num_fewshot=args.num_fewshot or 0)


def _print_numbers(result: dict[str, Any], output: Path | None, args: argparse.Namespace) -> int:
    """Write a result with its predictions, and print its numbers."""
    from slmjax.cli.shared.table import print_table
    from slmjax.files import place_file

    if output is not None:
        with place_file(output) as partial:
            partial.write_text(json_text(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shown = {name: value for name, value in result.items() if not isinstance(value, dict)}
    for name, facts in result.items():
        if isinstance(facts, dict):
            numbers = {key: value for key, value in facts.items() if key not in ("task", "predictions")}
            shown |= {f"{name} {key.replace('_', ' ')}": value for key, value in numbers.items()}
            result[name] = numbers
    if args.json:
        print(json_text(result))
    else:
        print_table(shown)
    return 0


def _compare(output: Path | None, args: argparse.Namespace) -> int:
    """Compare two files of results, and print and draw which differences are more than noise."""
    from slmjax.evaluation.comparison.compare import compare
    from slmjax.evaluation.comparison.forest_plot import plot_comparison
    from slmjax.evaluation.comparison.table import comparison_table

    found = compare(*args.compare, seed=args.seed)
    if output is not None:
        plot_comparison(found, _written_beside(output, "comparison", json_text(found.to_dict(), indent=1)))
    print(json_text(found.to_dict()) if args.json else comparison_table(found))
    return 0


def _written_beside(output: Path, name: str, text: str) -> Path:
    """Write the JSON of a summary to --output, NAME.json where that is a directory; the path for its figure."""
    from slmjax.files import place_file

    file = output if output.suffix == ".json" else output / f"{name}.json"
    with place_file(file) as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    return file.with_suffix(".png")


def _harness_tasks(names: list[str], output: Path | None, args: argparse.Namespace) -> int:
    """Evaluate tasks, write what is done after each of them, and print the table."""
    from slmjax.errors import UserError
    from slmjax.evaluation.harness import require_harness

    require_harness()
    from slmjax.evaluation.harness.results import ResultFiles, table, to_json
    from slmjax.evaluation.harness.run import evaluate_harness, load_tasks

    if output is None and (args.resume or args.samples):
        raise UserError(f"{'--resume' if args.resume else '--samples'} needs --output DIR, where those files lie.")
    if args.shots is not None:
        return _shots(names, output, args)
    tasks = load_tasks(names, num_fewshot=args.num_fewshot, **_loading(args))
    lm = _load(args)
    files = None if output is None else ResultFiles(output, args.model)
    results = evaluate_harness(lm, tasks, **_asking(args), **_writing(files, args))
    if files is not None:
        _write_samples(files, results["samples"], args)
    plain = {key: value for key, value in results.items() if key != "samples"}
    for name in set(plain) & set(OWN_TASKS):
        plain[name] = {key: value for key, value in plain[name].items() if key not in ("task", "predictions")}
    print(to_json(plain) if args.json else table(results))
    return 0


def _shots(names: list[str], output: Path | None, args: argparse.Namespace) -> int:
    """Evaluate tasks with each number of shots, and print and draw their accuracies."""
    from slmjax.errors import UserError
    from slmjax.evaluation.harness.results import ResultFiles
    from slmjax.evaluation.in_context import accuracy_lines, evaluate_shots, load_shots, plot_shots, shots_table

    if args.num_fewshot is not None:
        raise UserError("Give either --num-fewshot N or --shots N,... and not both.")
    selections = load_shots(names, args.shots, **_loading(args))
    lm = _load(args)
    files: dict[int, ResultFiles | None] = dict.fromkeys(selections)
    if output is not None:
        json_file = output.suffix == ".json"
        for n in selections:
            place = output.with_name(f"{output.stem}_{n}_shot.json") if json_file else output / f"{n}_shot"
            files[n] = ResultFiles(place, args.model)
    results = evaluate_shots(lm, selections, settings=lambda n: _writing(files[n], args), **_asking(args))
    lines = accuracy_lines(results)
    text = json_text([asdict(line) for line in lines], indent=1)
    if output is not None:
        for n, one in files.items():
            assert one is not None
            _write_samples(one, results[n]["samples"], args)
        png = _written_beside(output, "in_context", text)
        if lines:
            plot_shots(lines, png, args.model)
    print(text if args.json else shots_table(lines))
    return 0


def _loading(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `load_tasks`."""
    names = ("data_dir", "limit", "include_path", "allow_code")
    return {name: getattr(args, name) for name in names}


def _asking(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `evaluate_harness` about how a model is asked."""
    names = ("apply_chat_template", "system_instruction", "fewshot_as_multiturn", "seed", "allow_code")
    return {"needle_lengths": args.lengths, **{name: getattr(args, name) for name in names}}


def _writing(files: Any, args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of `evaluate_harness` about where answers and results are kept."""
    return {} if files is None else {"answers": files.answers, "resume": args.resume, "tell": files.write}


def _write_samples(files: Any, samples: dict[str, Any], args: argparse.Namespace) -> None:
    """Write the files of samples where they are asked for, and the figure of needle tasks."""
    from slmjax.evaluation.tasks.needle.heatmap import needle_samples, plot_needles

    if args.samples:
        files.write_samples(samples)
    if needles := needle_samples(samples):
        plot_needles(needles, files.results.with_name(f"{files.results.stem}_needles.png"), args.model)
