"""SQL written shorter without another meaning: what a small model has to learn of a query, and no more.

The queries of text2sql-data (Finegan-Dollak et al. 2018, arXiv:1806.09029) name every table anew, as in `STATE AS
STATEalias0`, and every column with its table. Where a SELECT reads one table, its columns need no table's name; where
it reads several, the tables' own names do.
"""

from __future__ import annotations

import dataclasses
import re

_TOKEN = re.compile(r"""\s+|("(?:[^"]|"")*"|'(?:[^']|'')*'|[A-Za-z_]\w*|\d+(?:\.\d+)?|<>|!=|<=|>=|\S)""")
_ALIAS = re.compile(r"(\w+?)alias(\d+)", re.IGNORECASE)
_SHORT = {"derived_table": "t", "derived_field": "n"}


@dataclasses.dataclass
class _Scope:
    """One SELECT: the aliases that it names, and the SELECT around it."""

    around: int | None
    aliases: list[str] = dataclasses.field(default_factory=list)


def tokens_of(sql: str) -> list[str]:
    """Words, numbers, quoted strings and signs; the last semicolon left out."""
    tokens = [token for token in _TOKEN.findall(sql) if token]
    return tokens[:-1] if tokens and tokens[-1] == ";" else tokens


def lower_case(sql: str) -> str:
    """The query on one line in lower case but for its strings, which get the quotes of standard SQL."""
    return _joined([_plain(token) for token in tokens_of(sql)])


def compact(sql: str) -> str:
    """The same query with fewer names, in lower case; queries in no need of it are only set in lower case.

    An alias is dropped where the table's name says the same, and a column's table where its SELECT reads no other.
    Both mean what was there before; queries of other authors may be of forms that this does not know: compare results.
    """
    tokens = tokens_of(sql)
    scopes, scope_of = _scopes(tokens)
    written: list[str] = []
    i = 0
    while i < len(tokens):
        token, scope = tokens[i], scope_of[i]
        following = tokens[i + 1 : i + 3]
        alias = token.lower() if _ALIAS.fullmatch(token) else None
        if token.lower() == "as" and following and _is_table(following[0]) and _named(scopes, scope, following[0]):
            i += 2  # the table's own name is enough
            continue
        if alias is not None and following[:1] == ["."]:
            owner = _owner(scopes, scope, alias)
            if owner != scope or len(scopes[scope].aliases) > 1:
                written += [_name(scopes, scope, alias), "."]
            i += 2
            continue
        written.append(_name(scopes, scope, alias) if alias is not None else _plain(token))
        i += 1
    return _joined(written)


def _scopes(tokens: list[str]) -> tuple[list[_Scope], list[int]]:
    """The SELECTs of a query, and for each token the innermost that it is in."""
    scopes, scope_of, open_brackets, inside = [_Scope(None)], [], [], 0
    for i, token in enumerate(tokens):
        if token == "(":
            open_brackets.append(inside)
            if tokens[i + 1 : i + 2] and tokens[i + 1].lower() == "select":
                scopes.append(_Scope(inside))
                inside = len(scopes) - 1
        scope_of.append(inside)
        if token == ")" and open_brackets:
            inside = open_brackets.pop()
        if token.lower() == "as" and i + 1 < len(tokens) and not tokens[i + 1].lower().startswith("derived_field"):
            scopes[inside].aliases.append(tokens[i + 1].lower())
    return scopes, scope_of


def _is_table(token: str) -> bool:
    found = _ALIAS.fullmatch(token)
    return found is not None and found[1].lower() not in _SHORT


def _owner(scopes: list[_Scope], scope: int | None, alias: str) -> int | None:
    """The innermost SELECT from `scope` outwards that names the alias."""
    while scope is not None and alias not in scopes[scope].aliases:
        scope = scopes[scope].around
    return scope


def _named(scopes: list[_Scope], scope: int, alias: str) -> bool:
    """Whether a table goes by its own name in this SELECT."""
    return _name(scopes, scope, alias.lower()) == _table(alias)


def _name(scopes: list[_Scope], scope: int, alias: str) -> str:
    """What an alias is called: its table's name where no other alias of the table can be meant."""
    found = _ALIAS.fullmatch(alias)
    assert found is not None
    kind = found[1].lower()
    if kind in _SHORT:
        return _SHORT[kind] + found[2]
    owner = _owner(scopes, scope, alias)
    same = [a for a in scopes[owner].aliases if _table(a) == kind] if owner is not None else [alias, alias]
    between: list[str] = []
    place: int | None = scope
    while place is not None and place != owner:
        between += scopes[place].aliases
        place = scopes[place].around
    hidden = any(_table(a) == kind for a in between)
    return f"{kind}{found[2]}" if len(same) > 1 or hidden else kind


def _table(alias: str) -> str:
    found = _ALIAS.fullmatch(alias)
    return found[1].lower() if found else alias.lower()


def _plain(token: str) -> str:
    if token[0] == '"':
        return "'" + token[1:-1].replace('""', '"').replace("'", "''") + "'"
    return token if token[0] == "'" else token.lower()


def _joined(tokens: list[str]) -> str:
    """One space between words, none inside `max(area)` and `state.area`."""
    text = " ".join(tokens)
    text = re.sub(r" ?\. ?(?=\w)", ".", text)
    text = re.sub(r"\b(max|min|sum|avg|count) \(", r"\1(", text)
    return re.sub(r"(?<=\() | (?=[),])", "", text)
