"""Token sequences as a trie in depth-first order, cut into streams and chunks: what begins alike is computed once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from slmjax.inference.refilling import common_prefix

Ids = Sequence[int]


@dataclass(frozen=True)
class Asked:
    """A request's targets, each of which is asked for at a node of the trie.

    request: its number. nodes: int32 [n], ascending along the request's path. targets: int32 [n], tokens.
    """

    request: int
    nodes: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class Stream:
    """A trie in depth-first order, N nodes, and what is asked of it.

    tokens, depths, ends: int32 [N], a node's token, its position in the text, and the first node that is not below it.
    """

    tokens: np.ndarray
    depths: np.ndarray
    ends: np.ndarray
    asked: list[Asked]

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Chunk:
    """T nodes of a stream from node `first`, padded to T; those before it are known by the path to the last of them.

    tokens, depths: int32 [T]. ends: int32 [T], the first place in the chunk that is not below. floors: int32 [T], how
    many of the path's nodes stand above. sources: int32 [C], where the path to the chunk's last node finds its node at
    each depth: in the path as it was (below C) or in the chunk (C and the place). size: nodes without the padding.
    """

    first: int
    size: int
    tokens: np.ndarray
    depths: np.ndarray
    ends: np.ndarray
    floors: np.ndarray
    sources: np.ndarray


def build_stream(requests: Sequence[tuple[int, Ids, Ids]], *, share: bool = True) -> Stream:
    """The stream of requests (number, context, continuation), which are sorted by their tokens.

    share: False gives each request a path of its own.
    """
    tokens: list[int] = []
    depths: list[int] = []
    path: list[int] = []  # nodes of the request before
    before: list[int] = []  # its tokens
    asked = []
    for number, context, continuation in requests:
        run = [*context, *continuation[:-1]]
        common = common_prefix(before, run) if share else 0
        path = path[:common] + list(range(len(tokens), len(tokens) + len(run) - common))
        tokens += run[common:]
        depths += range(common, len(run))
        before = run
        nodes = np.asarray(path[len(context) - 1 :], np.int32)
        asked.append(Asked(number, nodes, np.asarray(continuation, np.int32)))
    return Stream(np.asarray(tokens, np.int32), np.asarray(depths, np.int32), _ends(depths), asked)


def cut_streams(requests: Sequence[tuple[Ids, Ids]], count: int, *, share: bool = True) -> list[Stream]:
    """`count` streams of about equal length with all requests, those that begin alike side by side."""
    runs = [(*context, *continuation[:-1]) for context, continuation in requests]
    order = sorted(range(len(requests)), key=runs.__getitem__)
    costs = [len(runs[order[0]])] if order else []
    for a, b in itertools.pairwise(order):
        costs.append(len(runs[b]) - (common_prefix(runs[a], runs[b]) if share else 0))
    ends = np.cumsum(costs)
    share_of = np.minimum((ends - np.asarray(costs) / 2) * count / max(ends[-1:].sum(), 1), count - 1).astype(int)
    parts: list[list[tuple[int, Ids, Ids]]] = [[] for _ in range(count)]
    for place, number in zip(share_of.tolist(), order, strict=True):
        parts[place].append((number, *requests[number]))
    return [build_stream(part, share=share) for part in parts]


def cut_chunks(stream: Stream, size: int, capacity: int) -> Iterator[Chunk]:
    """The stream's nodes, `size` at a time. capacity: C, at least one more than the deepest node's depth."""
    path = np.full(capacity, -1, np.int64)  # the node at each depth of the path to the last node seen
    for first in range(0, len(stream), size):
        last = min(first + size, len(stream))
        tokens, depths, ends, floors = np.zeros((4, size), np.int32)
        tokens[: last - first], depths[: last - first] = stream.tokens[first:last], stream.depths[first:last]
        ends[: last - first] = np.minimum(stream.ends[first:last] - first, size)
        floor = 0
        for place, depth in enumerate(stream.depths[first:last].tolist()):
            # The first node below a path that the chunk leaves to the one before it stands right under that path.
            floor = depth if place == 0 else min(floor, depth)
            floors[place] = floor
            path[depth] = first + place
        sources = np.where(path >= first, path - first + capacity, np.arange(capacity)).astype(np.int32)
        yield Chunk(first, last - first, tokens, depths, ends, floors, sources)


def _ends(depths: Sequence[int]) -> np.ndarray:
    """For each node in depth-first order the first later one that is not deeper, int32 [N]."""
    ends = np.full(len(depths), len(depths), np.int32)
    open_nodes: list[int] = []
    for node, depth in enumerate(depths):
        while open_nodes and depths[open_nodes[-1]] >= depth:
            ends[open_nodes.pop()] = node
        open_nodes.append(node)
    return ends
