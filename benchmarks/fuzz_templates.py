"""The program of fuzz.py's limited process for templates: each request is [source, what `template_process` is asked].

None is asked for the compilation alone.
"""

from collections.abc import Callable
from typing import Any

from slmjax.tokenization import template_process


def start(settings: dict[str, Any]) -> tuple[None, Callable[[Any], Any]]:
    """See `slmjax/limited_process_child.py`."""
    compiled: dict[str, Any] = {}

    def handle(request: list[Any]) -> Any:
        source, asked = request
        if source not in compiled:
            compiled.clear()
            compiled[source] = template_process.start({"source": source, "output_limit": 16 << 20})
        first, answer = compiled[source]
        return first if asked is None else answer(asked)

    return None, handle
