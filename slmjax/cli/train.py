"""`slmjax train`: run a config to the end of its budget, or continue a run."""

from __future__ import annotations

import argparse
import signal
from typing import Any

from slmjax.cli.shared.option_types import not_empty, whole_number
from slmjax.quantities import json_text

HELP = "pretrain, over-train or fine-tune a model from a config file"
EXAMPLE = "slmjax train --config configs/books_25m.py --workdir runs/books --config.training.steps=200"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command."""
    parser.add_argument(
        "--config",
        required=True,
        help="config file in Python, or FILE:ARGUMENT for its get_config(); --config.KEY=VALUE overrides a key",
    )
    parser.add_argument(
        "--workdir", type=not_empty, required=True, help="directory of the run; an existing run is continued"
    )
    parser.add_argument("--json", action="store_true", help="print the final metrics as one JSON object")
    parser.add_argument(
        "--distributed", action="store_true", help="join several processes (on a TPU pod this alone is enough)"
    )
    parser.add_argument("--coordinator", help="address HOST:PORT of process 0, if jax cannot find it by itself")
    parser.add_argument("--num-processes", type=whole_number(1), help="number of processes")
    parser.add_argument("--process-id", type=whole_number(0), help="number of this process, from 0")


def run(args: argparse.Namespace) -> int:
    """Train; status 0 when finished or saved after SIGTERM, 130 after Ctrl-C."""
    from slmjax.cli.shared.config_files import load_config
    from slmjax.recipes.config import run_config

    config = run_config(load_config(args.config, args.overrides))
    _initialize(args)
    from slmjax.recipes.train import train

    result = train(config, args.workdir)
    forgetting = result.reports.get("forgetting")
    if args.json:
        more: dict[str, Any] = {} if forgetting is None else {"forgetting": forgetting.to_dict()}
        more |= {"best_step": result.reports["early_stopping"]} if "early_stopping" in result.reports else {}
        print(json_text({"step": result.step, "total_steps": result.total_steps, **result.metrics, **more}))
    else:
        if forgetting is not None:
            print(forgetting.table())
        names = ("loss", "validation_loss", "validation_bits_per_byte", "general_loss", "tokens_per_second", "mfu")
        numbers = ", ".join(f"{n} {result.metrics[n]:.4g}" for n in names if n in result.metrics)
        print(f"Step {result.step:,} of {result.total_steps:,}{': ' if numbers else ''}{numbers}. See {args.workdir}.")
    return 130 if result.stopped_by == signal.SIGINT else 0


def _initialize(args: argparse.Namespace) -> None:
    """Join the other processes, before jax looks for devices."""
    from slmjax.errors import UserError, one_line

    given = (args.coordinator, args.num_processes, args.process_id)
    if not args.distributed:
        if any(value is not None for value in given):
            raise UserError("--coordinator, --num-processes and --process-id need --distributed.")
        return
    if any(value is not None for value in given) and any(value is None for value in given):
        raise UserError("--coordinator HOST:PORT, --num-processes N and --process-id I are given all or not at all.")
    if args.num_processes is not None and not 0 <= args.process_id < args.num_processes:
        raise UserError(f"--process-id {args.process_id} must be a number from 0 to {args.num_processes - 1}.")
    import jax

    try:
        jax.distributed.initialize(*given)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"The processes could not be joined ({one_line(error)}): give --coordinator HOST:PORT."
        ) from error
