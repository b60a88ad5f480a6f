"""Renders a chat template in a process of its own, which is ended when it takes too long."""

from pathlib import Path
from typing import Any

from slmjax.errors import UserError
from slmjax.limited_process import LimitedProcess, ProcessEndedError

_OUTPUT_LIMIT = 16 << 20  # characters of one rendering
_MEMORY_LIMIT = 1 << 30  # bytes of address space
_START_SECONDS = 60.0  # for Python and Jinja to be imported, on a busy machine too
_SOURCE_LIMIT = 1 << 20  # characters of a template
_PROGRAM = Path(__file__).with_name("template_process.py")


class TemplateRenderer:
    """A Jinja template, compiled.

    Attributes:
        has_generation: whether it holds `{% generation %}` blocks.

    Args:
        source: the template.
        seconds: after which a call is given up.

    Raises:
        UserError: no Jinja that compiles, within the limits.
    """

    def __init__(self, source: str, seconds: float):
        if len(source) > _SOURCE_LIMIT:
            raise UserError(
                f"The chat template has {len(source):,} characters, more than the {_SOURCE_LIMIT:,} allowed."
            )
        self._source, self._seconds = source, seconds
        self._process = LimitedProcess(
            _PROGRAM,
            {"source": source, "output_limit": _OUTPUT_LIMIT},
            memory=_MEMORY_LIMIT,
            seconds=seconds,
            wait=seconds,
            wait_for_start=_START_SECONDS + seconds,
            isolated=False,  # Jinja is one of the environment's packages
        )
        try:
            answer = self._process.start()
        except ProcessEndedError as error:
            raise self._refusal(error) from error
        if "error" in answer:
            self._process.close()
            raise UserError(f"The chat template is not usable Jinja ({shorten(answer['error'])}).")
        self.has_generation = bool(answer["generation"])

    def __reduce__(self) -> tuple[type["TemplateRenderer"], tuple[str, float]]:
        return type(self), (self._source, self._seconds)

    def render(self, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Each {"variables", "marks"} to {"text"}, or {"error", "raised"}: a sentence, whether the template wrote it.

        Raises:
            UserError: it took too long or too much memory.
            TypeError: a variable is not JSON-able.
        """
        try:
            return self._process.ask(requests)
        except ProcessEndedError as error:
            raise self._refusal(error) from error

    def _refusal(self, error: ProcessEndedError) -> UserError:
        if error.expired:
            return UserError(f"The chat template ran for more than {self._seconds:g} s and was stopped: does it loop?")
        return UserError(
            f"The chat template needs too much time, or more than {_MEMORY_LIMIT >> 20} MiB, and was stopped."
        )


def shorten(text: str) -> str:
    """The first 300 characters, without line breaks."""
    return " ".join(text.split())[:300]
