"""Log-likelihoods of continuations, in token ids; those that begin alike are computed once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from slmjax.evaluation.scoring import shared_prefixes as compiled
from slmjax.evaluation.scoring.trie import Chunk, Ids, Stream, cut_chunks, cut_streams
from slmjax.evaluation.scoring.whole import score_whole
from slmjax.inference.decoding import Decoder
from slmjax.inference.language_model import LanguageModel
from slmjax.inference.refilling import keys_stay

CHUNK = 256  # tokens of a row that are run at once: on two CPU cores products of 512 are no faster
ROWS = {"cpu": 1}  # streams side by side, of a device; 8 elsewhere. A CPU is busy with one
SMALLEST = 64  # sizes are rounded up to this times a power of two, so that few programs are compiled


class Score(NamedTuple):
    """The summed log-probability of a continuation in nats, and whether greedy decoding would have given it."""

    logprob: float
    is_greedy: bool


class NotFiniteError(Exception):
    """A log-likelihood that is NaN or infinite; `index` is its request's."""

    def __init__(self, index: int):
        super().__init__(f"The log-likelihood of request {index} is not finite.")
        self.index = index


def score(
    lm: LanguageModel,
    requests: Sequence[tuple[Ids, Ids]],
    *,
    share: bool = True,
    progress: bool = True,
    tell: Callable[[int, Score], object] | None = None,
) -> list[Score]:
    """The score of each request (context, continuation), in their order.

    Neither is empty, and together they have at most one token more than the model's context. share: run what requests
    begin with alike once. tell: called with a request's index and score as soon as it is known.

    Raises:
        NotFiniteError: a log-likelihood is not finite.
    """
    decoder, arrays = lm.decoding(num_rows(lm.mesh))
    decoder = dataclasses.replace(decoder, mesh=lm.mesh)
    return score_with(decoder, arrays, requests, share=share, progress=progress, tell=tell)


def num_rows(mesh: jax.sharding.Mesh | None = None) -> int:
    """Streams that are scored side by side."""
    return ROWS.get(jax.default_backend(), 8) * (1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"])


def score_with(
    decoder: Decoder,
    arrays: Any,
    requests: Sequence[tuple[Ids, Ids]],
    *,
    share: bool = True,
    progress: bool = True,
    tell: Callable[[int, Score], object] | None = None,
) -> list[Score]:
    """`score` of any decoder and its arrays, those of a training state on a mesh among them."""
    for index, (context, continuation) in enumerate(requests):
        if not len(context) or not len(continuation):
            raise ValueError(f"Request {index} has an empty context or continuation.")
    config, scores = decoder.model.config, dict[int, Score]()
    runs = {i: len(context) + len(continuation) - 1 for i, (context, continuation) in enumerate(requests)}
    apart = {i for i, length in runs.items() if not keys_stay(config, length)}
    total = sum(len(continuation) for _, continuation in requests)
    with tqdm(total=total, desc="score", unit="tok", unit_scale=True, disable=not progress) as bar:

        def add(index: int, logprob: float, is_greedy: bool) -> None:
            if not math.isfinite(logprob):
                raise NotFiniteError(index)
            scores[index] = Score(logprob, is_greedy)
            bar.update(len(requests[index][1]))
            if tell is not None:
                tell(index, scores[index])

        together = [i for i in runs if i not in apart]
        if together:
            streams = cut_streams([requests[i] for i in together], num_rows(decoder.mesh), share=share)
            for number, logprob, is_greedy in _score_streams(decoder, arrays, streams):
                add(together[number], logprob, is_greedy)
        for index in sorted(apart, key=lambda i: -runs[i]):
            add(index, *score_whole(decoder, arrays, *requests[index]))
    return [scores[i] for i in range(len(requests))]


def _score_streams(decoder: Decoder, arrays: Any, streams: Sequence[Stream]) -> Iterator[tuple[int, float, bool]]:
    """(request, log-probability, whether it is greedy) in the order in which they are known."""
    B = len(streams)
    deepest = max((int(stream.depths.max()) for stream in streams if len(stream)), default=0)
    capacity = rounded(deepest + 1)
    path = compiled.empty_path(decoder, arrays, B, capacity)
    rows = [cut_chunks(stream, CHUNK, capacity) for stream in streams]
    sums, waiting = [_Sums(stream) for stream in streams], []
    blank = _blank_chunk(capacity)
    for first in range(0, max(map(len, streams)), CHUNK):
        chunks = [next(row, blank) for row in rows]
        seen = min(rounded(max(1, *(int(chunk.floors.max()) for chunk in chunks))), capacity)
        fields = ("tokens", "depths", "ends", "floors", "sources")
        inputs = tuple(np.stack([getattr(chunk, name) for chunk in chunks]) for name in fields)
        hidden_BTE, path = compiled.run_chunk(decoder, arrays, path, inputs, seen)
        waiting.append((first, _read(decoder, arrays, hidden_BTE, sums, first)))
        if len(waiting) > 1:  # what a chunk gave is read while the next one runs
            yield from _finished(sums, *waiting.pop(0))
    for entry in waiting:
        yield from _finished(sums, *entry)


def _blank_chunk(capacity: int) -> Chunk:
    zeros = np.zeros(CHUNK, np.int32)
    return Chunk(0, 0, zeros, zeros, zeros, zeros, np.arange(capacity, dtype=np.int32))


class _Sums:
    """What a stream's requests have come to, while its chunks are run in order."""

    def __init__(self, stream: Stream):
        self.asked = stream.asked
        counts = [len(a.nodes) for a in stream.asked]
        nodes = np.concatenate([a.nodes for a in stream.asked]) if counts else np.zeros(0, np.int32)
        targets = np.concatenate([a.targets for a in stream.asked]) if counts else np.zeros(0, np.int32)
        owners = np.repeat(np.arange(len(counts)), counts)
        order = np.argsort(nodes, kind="stable")
        self.nodes, self.targets, self.owners = nodes[order], targets[order], owners[order]
        self.left = np.asarray(counts)
        self.logprobs, self.greedy = np.zeros(len(counts)), np.ones(len(counts), bool)

    def part(self, first: int) -> slice:
        """The targets that are asked of the chunk from node `first`."""
        begin, end = np.searchsorted(self.nodes, [first, first + CHUNK])
        return slice(int(begin), int(end))

    def add(self, part: slice, logprobs: np.ndarray, greedy: np.ndarray) -> Iterator[tuple[int, float, bool]]:
        """Add a chunk's numbers; returns what is complete."""
        owners = self.owners[part]
        np.add.at(self.logprobs, owners, logprobs)
        np.logical_and.at(self.greedy, owners, greedy)
        np.subtract.at(self.left, owners, 1)
        for owner in np.unique(owners).tolist():
            if not self.left[owner]:
                yield self.asked[owner].request, float(self.logprobs[owner]), bool(self.greedy[owner])


def _read(
    decoder: Decoder, arrays: Any, hidden_BTE: jax.Array, sums: Sequence[_Sums], first: int
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities of a chunk's targets, row after row, and whether each is the likeliest; not waited for."""
    places, targets = [], []
    for row, of_row in enumerate(sums):
        part = of_row.part(first)
        places.append(of_row.nodes[part] - first + row * CHUNK)
        targets.append(of_row.targets[part])
    if not sum(map(len, targets)):  # inside of what many requests begin with
        return jnp.zeros(0), jnp.zeros(0, bool)
    nodes, asked = np.unique(np.concatenate(places), return_inverse=True)
    inputs = padded(nodes), padded(asked), padded(np.concatenate(targets))
    return compiled.read_targets(decoder, arrays, hidden_BTE, *inputs)


def _finished(
    sums: Sequence[_Sums], first: int, read: tuple[jax.Array, jax.Array]
) -> Iterator[tuple[int, float, bool]]:
    logprobs, greedy = np.asarray(read[0], np.float64), np.asarray(read[1])
    at = 0
    for of_row in sums:
        part = of_row.part(first)
        end = at + part.stop - part.start
        yield from of_row.add(part, logprobs[at:end], greedy[at:end])
        at = end


def rounded(size: int) -> int:
    """The size that is run for a size: 0, or a power of two from `SMALLEST`."""
    return 0 if size <= 0 else max(SMALLEST, 1 << (size - 1).bit_length())


def padded(array: np.ndarray) -> np.ndarray:
    """int32, filled up with zeros to a size that few programs tell apart."""
    whole = np.zeros(rounded(max(len(array), 1)), np.int32)
    whole[: len(array)] = array
    return whole
