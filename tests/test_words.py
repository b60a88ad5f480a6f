"""The house rules that a reader notices first, over the syntax trees of the package: sentences, names, sizes, imports.

A file that does not keep a rule yet stands in `DEBTS`.
"""

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "slmjax"
FILES = sorted(ROOT.rglob("*.py"))

# Each room may import itself and what stands before it; modules directly in slmjax/ are the ground floor.
ROOMS = (
    *("models", "sharding", "tokenization", "data", "quantization", "peft", "objectives", "training", "inference"),
    *("evaluation", "formats", "recipes", "curation", "serving", "planning", "governance", "cli"),
)
MAX_LINES = 320
MAX_FILES = 16  # Python files of one folder, without __init__.py
TABLES = ("models/families",)  # folders of data, a file each for what a reader looks up by its name: any number
KINDS = (ast.Call, ast.Assign, ast.Import, ast.ImportFrom)
SECTIONS = ("model", "data", "training", "optimizer", "schedule", "mesh", "checkpoint", "peft", "forgetting")

# What does not keep a rule yet: rooms or files. Take out a line when its room keeps it.
DEBTS: dict[str, tuple[str, ...]] = {
    "sentences": (),
    "docstrings": (),
    "help": (),
    "lines": (),
    "imports": (),
    "printing": (),
}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes(path: Path) -> list[ast.AST]:
    """The nodes of a file that the rules look at, in the order of the file."""
    return [node for node in ast.walk(tree(path)) if isinstance(node, KINDS)]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def report(rule: str, found: dict[str, list[str]]) -> None:
    """Fail with every place of `found` whose file does not stand in the debts of the rule."""
    owed = DEBTS[rule]
    places = [f"slmjax/{file}: {place}" for file in found if not file.startswith(owed) for place in found[file]]
    assert not places, f"{len(places)} places:\n" + "\n".join(places)


@cache
def constants() -> dict[str, str]:
    """The strings that modules give names in capitals, which sentences may end with."""
    assigned = [node for path in FILES for node in tree(path).body if isinstance(node, ast.Assign)]
    return {
        target.id: node.value.value
        for node in assigned
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }


def texts(node: ast.expr) -> list[str]:
    """The strings that an expression may become, `{}` for what is computed, `{did_you_mean}` for a suggestion."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            return joined([texts(part) for part in parts])
        case ast.FormattedValue(value=ast.Name(id=name)) if name in constants():
            return [constants()[name]]
        case ast.FormattedValue(value=value):
            return texts(value) if isinstance(value, ast.IfExp | ast.Call | ast.BinOp) else ["{}"]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return joined([texts(left), texts(right)])
        case ast.IfExp(body=body, orelse=other):
            return texts(body) + texts(other)
        case ast.Call(func=ast.Name(id="did_you_mean")):
            return ["{did_you_mean}"]
    return ["{}"]


def joined(parts: list[list[str]]) -> list[str]:
    whole = [""]
    for alternatives in parts:
        whole = [text + more for text in whole for more in alternatives]
    return whole


def faults(sentence: str) -> list[str]:
    """What is wrong with the sentence of a UserError."""
    key = rf"({'|'.join(SECTIONS)})\.[a-z_{{]"
    wrong = []
    if not re.match(rf"[A-Z]|\{{|--[a-z]|{key}", sentence):
        wrong.append("does not begin with a capital, a key, an option or a value")
    if not re.search(r"([.?]|[.?]['\")]|\{did_you_mean\})$", sentence):
        wrong.append("does not end with a full stop")
    if re.search(r"(?<!here )\b(is|are) no (?!longer|more|less)", sentence):
        wrong.append("says 'is no' for 'is not a'")
    return wrong


def test_the_sentence_of_every_user_error_is_one():
    found: dict[str, list[str]] = {}
    for path in FILES:
        for node in nodes(path):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "UserError":
                for sentence in texts(node.args[0]):
                    if sentence.strip("{}") and (wrong := faults(sentence)):
                        place = f"{node.lineno}: {', '.join(wrong)}: {sentence}"
                        found.setdefault(name_of(path), []).append(place)
    report("sentences", found)


@pytest.mark.parametrize(
    ("sentence", "number"),
    [
        ("training.steps={} must be above 0.", 0),
        ("{} is not a GGUF file: give one.", 0),
        ("--save needs a weight: write --save 0.5 DIR.", 0),
        ("There is no model {}; {did_you_mean}", 0),
        ("the file is missing.", 1),
        ("The file is missing", 1),
        ("{} is no file", 2),
        ("steps={} must be above 0.", 1),
    ],
)
def test_the_rule_tells_good_sentences_from_bad(sentence, number):
    assert len(faults(sentence)) == number


# What begins with one of these leans on something that stands elsewhere, or names no thing.
LEANING = (
    *("and", "as", "at", "but", "by", "for", "from", "here", "how", "if", "in", "it", "its", "of", "on", "only", "or"),
    *("that", "their", "them", "there", "they", "these", "this", "those", "to", "what", "when", "where", "which"),
    *("who", "whose", "why", "with"),
)


def leans(text: str) -> bool:
    return re.split(r"[\s:,;.]", text.strip(), maxsplit=1)[0].lower() in LEANING


def test_every_help_text_names_a_thing():
    found: dict[str, list[str]] = {}
    for path in FILES:
        for node in nodes(path):
            helps = []
            if isinstance(node, ast.Call):
                helps = [argument.value for argument in node.keywords if argument.arg == "help"]
            elif isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["HELP"]:
                helps = [node.value]
            for text in [text for value in helps for text in texts(value) if text != "{}"]:
                if not re.match(r"[a-z]", text) or leans(text) or text.startswith("default") or text.endswith("."):
                    found.setdefault(name_of(path), []).append(f"{node.lineno}: {text}")
    report("help", found)


def documented(module: ast.Module):
    """The module, its public classes with their public methods, and its public functions."""
    yield module, "module"
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node, node.name
            if isinstance(node, ast.ClassDef):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef) and not method.name.startswith("_"):
                        yield method, f"{node.name}.{method.name}"


def test_every_public_docstring_stands_alone():
    found: dict[str, list[str]] = {}
    for path in FILES:
        for node, name in documented(tree(path)):
            text = (ast.get_docstring(node) or "").partition("\n\n")[0]
            short = len(text.split()) < 3 and "`" not in text
            if text and (short or leans(text) or not text.endswith((".", ":", "?"))):
                found.setdefault(name_of(path), []).append(f"{name}: {' '.join(text.split())}")
    report("docstrings", found)


def imported(path: Path):
    """(line, name) of every module of slmjax that is imported, also inside functions and for type checkers."""
    for node in nodes(path):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "slmjax":
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] == "slmjax")


def test_imports_go_one_way():
    rank = {room: number for number, room in enumerate(ROOMS)}
    found: dict[str, list[str]] = {}
    for path in FILES:
        own = rank.get(name_of(path).partition("/")[0], -1)
        for line, module in imported(path):
            if rank.get(module.split(".")[1], -1) > own:
                found.setdefault(name_of(path), []).append(f"{line}: {module}")
    report("imports", found)


def test_every_room_stands_in_the_table():
    assert {path.relative_to(ROOT).parts[0] for path in FILES if path.parent != ROOT} <= set(ROOMS)


def test_files_and_rooms_are_of_a_readers_size():
    lines = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    report("lines", {file: [f"{count} lines"] for file, count in lines.items() if count > MAX_LINES})
    rooms = Counter(name_of(path.parent) for path in FILES if path.name != "__init__.py")
    assert {room: count for room, count in rooms.items() if count > MAX_FILES and room not in TABLES} == {}


def test_no_room_is_a_drawer():
    drawers = {"utils", "util", "common", "helpers", "misc"}
    assert [path for path in FILES if drawers & {*path.relative_to(ROOT).parts, path.stem}] == []


def test_only_commands_print():
    """A library tells its caller by return values, exceptions, `warnings` and `console.say`."""
    found: dict[str, list[str]] = {}
    for path in FILES:
        if not name_of(path).startswith(("cli/", "console.py")):
            for node in nodes(path):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                    found.setdefault(name_of(path), []).append(f"{node.lineno}: {ast.unparse(node)[:80]}")
    report("printing", found)
