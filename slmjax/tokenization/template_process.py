"""The program that renders a chat template in a limited process.

A template is a program of strangers. Jinja's sandbox keeps it from Python's insides, but not from taking forever or
all of memory within one operation that no Python code can interrupt (comparing nested lists is one). So it runs here,
where memory, files and processor time are limited by the system, and whoever waits for it can end it.

Settings: {"source", "output_limit"}. First answer: {"generation": are there such blocks}. Requests: a list of
{"variables", "marks"}. Answers: a list of {"text"}. In place of each answer: {"error", "raised"}.
"""

import datetime
import json
from collections.abc import Callable
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox


class Generation(jinja2.ext.Extension):
    """`{% generation %} … {% endgeneration %}`: what the model writes. Put between marks where they are asked for."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's own declaration)

    def parse(self, parser: Any) -> jinja2.nodes.Node:
        """The block as a call of `_marked`."""
        self.environment.has_generation = True  # type: ignore[attr-defined]
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        before, after = self.environment.marks  # type: ignore[attr-defined]
        return before + caller() + after


class Raised(jinja2.TemplateError):
    """The template's own `raise_exception`."""


class PlainDict:
    """`dict` in a template: a function, without the class's attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """A new dict."""
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        """A new dict of these keys."""
        return dict.fromkeys(keys, value)


def environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    """Jinja as chat templates expect it: transformers' settings, filters and functions."""
    env: Any = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    env.marks, env.has_generation = ("", ""), False
    env.filters["tojson"] = _to_json  # Jinja's own escapes HTML
    env.globals |= {"raise_exception": _raise, "strftime_now": _now, "dict": PlainDict(), "namespace": _namespace}
    return env


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: Any) -> None:
    raise Raised(str(message))


def _now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def _namespace(*args: Any, **kwargs: Any) -> jinja2.utils.Namespace:
    names = [name for name in dict(*args, **kwargs) if str(name).startswith("_")]
    if names:
        raise jinja2.exceptions.SecurityError(f"a namespace may not hold {names[0]!r}")
    return jinja2.utils.Namespace(*args, **kwargs)


def render(env: Any, template: jinja2.Template, request: dict[str, Any], output_limit: int) -> dict[str, Any]:
    """{"text"} or {"error", "raised"}."""
    env.marks = request["marks"]
    pieces, size = [], 0
    try:
        for piece in template.generate(**request["variables"]):
            pieces.append(piece)
            size += len(piece)
            if size > output_limit:
                return {"error": f"it writes more than {output_limit:,} characters", "raised": False}
        return {"text": "".join(pieces)}
    except Exception as error:  # a template may cause any
        return _failure(error)


def _failure(error: Exception) -> dict[str, Any]:
    text = str(error) if isinstance(error, Raised) else f"{type(error).__name__}: {error}"
    line = getattr(error, "lineno", None)
    return {"error": text + (f" in line {line}" if line else ""), "raised": isinstance(error, Raised)}


def start(settings: dict[str, Any]) -> tuple[dict[str, Any], Callable[[Any], Any] | None]:
    """Compile the template. See `limited_process_child.py`."""
    env: Any = environment()
    try:
        template = env.from_string(settings["source"])
    except Exception as error:
        return _failure(error), None

    def handle(requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [render(env, template, request, settings["output_limit"]) for request in requests]

    return {"generation": env.has_generation}, handle
