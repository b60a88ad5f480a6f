"""Chat templates by name: a tokenizer may have several ("default", "tool_use", "rag"), and files say it in four ways.

A setting `chat_template` is one text, a list of {"name", "template"} (transformers' older way), or a dict; in files,
chat_template.jinja is the default one and additional_chat_templates/NAME.jinja the others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slmjax.untrusted import MAX_NAMES, MAX_TEMPLATE_BYTES, inside, read_text

DEFAULT = "default"
FILE_NAME = "chat_template.jinja"
DIRECTORY = "additional_chat_templates"


def named_templates(setting: Any) -> dict[str, str]:
    """The templates of a setting `chat_template` by their names, in its order; what is none of the three is none."""
    if isinstance(setting, str):
        return {DEFAULT: setting}
    if isinstance(setting, list):
        listed = [item for item in setting if isinstance(item, Mapping) and isinstance(item.get("name"), str)]
        setting = {item["name"]: item.get("template") for item in listed}
    if not isinstance(setting, Mapping):
        return {}
    return {str(name): text for name, text in setting.items() if name and isinstance(text, str)}


def template_setting(templates: Mapping[str, str]) -> str | list[dict[str, str]] | None:
    """The setting `chat_template` that says these: a text where there is the default alone."""
    if set(templates) <= {DEFAULT}:
        return templates.get(DEFAULT)
    return [{"name": name, "template": text} for name, text in templates.items()]


def read_templates(directory: Path) -> dict[str, str]:
    """The templates that lie in files of their own, as transformers saves them; these outrank the settings'."""
    found = {}
    if (directory / FILE_NAME).exists():
        found[DEFAULT] = read_text(inside(directory, FILE_NAME), most=MAX_TEMPLATE_BYTES)
    if (directory / DIRECTORY).is_dir():
        for path in sorted((directory / DIRECTORY).glob("*.jinja"))[:MAX_NAMES]:
            found[path.stem] = read_text(inside(directory / DIRECTORY, path.name), most=MAX_TEMPLATE_BYTES)
    return found


def write_templates(templates: Mapping[str, str], directory: Path) -> None:
    """Write each template into its file."""
    for name, text in templates.items():
        if name == DEFAULT:
            (directory / FILE_NAME).write_text(text, encoding="utf-8")
        elif re.fullmatch(r"\w[\w.-]{0,99}", name):  # others stay in the settings alone: a name is no path
            (directory / DIRECTORY).mkdir(exist_ok=True)
            (directory / DIRECTORY / f"{name}.jinja").write_text(text, encoding="utf-8")
