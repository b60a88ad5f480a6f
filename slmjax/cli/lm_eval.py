"""lm-evaluation-harness's own command line, with a model `slmjax` among its models: `python -m slmjax.lm_eval`."""

from __future__ import annotations

import argparse
import sys

from slmjax.cli.main import run_command
from slmjax.cli.shared.malloc_settings import begin_with_kept_memory
from slmjax.errors import UserError


def command() -> int:
    """Run `main` as a process of its own, which may re-execute itself."""
    begin_with_kept_memory()
    return main()


def main() -> int:
    """Run the harness with this process's arguments; returns the exit status, 2 after a user's mistake."""
    return run_command(argparse.Namespace(command="lm_eval", run=_evaluate))


def _evaluate(_: argparse.Namespace) -> int:
    try:
        import lm_eval.models  # noqa: F401 (before ours is added: the harness fills its registry only while it is empty)
        from lm_eval.__main__ import cli_evaluate
        from lm_eval.api.registry import model_registry
    except ImportError as error:
        raise UserError("Evaluation needs lm-evaluation-harness: pip install 'slmjax[eval]'.") from error
    from slmjax.evaluation.tasks.code_execution.executor import install

    install("--confirm_run_unsafe_code" in sys.argv)
    if "slmjax" not in model_registry:
        model_registry.register("slmjax", target="slmjax.cli.shared.harness_model:SlmjaxModel")
    cli_evaluate()
    return 0
