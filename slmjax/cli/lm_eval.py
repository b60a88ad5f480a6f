"""lm-evaluation-harness's own command line, with a model `slmjax` among its models: `python -m slmjax.lm_eval`."""

from __future__ import annotations

import argparse
import sys

from slmjax.cli.main import run_command
from slmjax.cli.shared.malloc_settings import begin_with_kept_memory


def command() -> int:
    """Run `main` as a process of its own, which may re-execute itself."""
    begin_with_kept_memory()
    return main()


def main() -> int:
    """Run the harness with this process's arguments; returns the exit status, 2 after a user's mistake."""
    return run_command(argparse.Namespace(command="lm_eval", run=_evaluate))


def _evaluate(_: argparse.Namespace) -> int:
    from slmjax.cli.shared.harness_model import SlmjaxModel  # isort: skip (it fills the harness's list of models first)

    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model

    from slmjax.evaluation.tasks.code_execution.executor import install

    register_model("slmjax")(SlmjaxModel)
    install("--confirm_run_unsafe_code" in sys.argv)
    cli_evaluate()
    return 0
