"""Decoding tokens/s of random models in bfloat16 at batch 1, 16 and 128, beside what the memory's bandwidth allows.

A decoding step reads every weight but the embedding's other rows once, and the whole cache: the limit is the batch over
the time that these bytes take at the bandwidth of a copy, measured in the same process.
Example: python benchmarks/gpu/decode.py --output runs/gpu
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

import ceilings
import jax
import numpy as np
import subjects
from reporting import Report, Values, arguments

MODELS = ("1.1b", "0.35b")
BATCHES = (1, 16, 128)
PROMPT, NEW = 512, 64  # NEW is what generation makes room for at least, so that 1 token and NEW run the same programs
SECONDS = 40.0  # that one batch may take, compiling included
REPEATS = 5


def tokens_per_second(lm: Any, batch: int, prompt: int, new: int) -> Values:
    """Medians over repeats: of the first tokens alone (prefill) and of the steps after them."""
    prompts = np.random.default_rng(0).integers(0, lm.config.vocab_size, (batch, prompt)).tolist()

    def seconds(count: int) -> float:
        begin = time.perf_counter()
        output = subjects.generate_ids(lm, prompts, max_new_tokens=count)
        assert all(len(row) == count for row in output)
        return time.perf_counter() - begin

    begin = time.perf_counter()
    seconds(new)
    compiling = time.perf_counter() - begin
    first = statistics.median(seconds(1) for _ in range(REPEATS))
    whole = statistics.median(seconds(new) for _ in range(REPEATS))
    return {
        "tokens_per_second": batch * (new - 1) / (whole - first),
        "step_milliseconds": (whole - first) / (new - 1) * 1e3,
        "prefill_tokens_per_second": batch * prompt / first,
        "first_call_seconds": compiling,
    }


def measure(lm: Any, batch: int, bandwidth: float, args: Any) -> Values:
    """Speed, limit and share of the limit."""
    prompt = 16 if args.dry_run else PROMPT
    values = tokens_per_second(lm, batch, prompt, NEW)
    count = subjects.count_parameters(lm.config)
    weights = 2 * (count.total - (0 if lm.config.tie_embeddings else count.embedding))
    read = weights + subjects.kv_cache_bytes(lm.config, prompt + NEW, batch_size=batch)
    limit = batch * bandwidth / read
    return {"batch": batch, **values, "limit": limit, "share": values["tokens_per_second"] / limit}


def main() -> None:
    args = arguments(__doc__).parse_args()
    report = Report("decoding", args)
    bandwidth = ceilings.copied_bytes_per_second(dry_run=args.dry_run)
    for name in MODELS[:1] if args.dry_run else MODELS:
        config = subjects.model(name, dry_run=args.dry_run)
        if report.seconds_left() < SECONDS:
            report.write(name, "skipped", reason=f"{report.seconds_left():.0f} s are left")
            continue
        lm = subjects.LanguageModel(config=config, params=subjects.random_parameters(config))
        for batch in (1, 2) if args.dry_run else BATCHES:
            report.record(f"{name}, batch {batch}", partial(measure, lm, batch, bandwidth, args), needs=SECONDS)
        jax.clear_caches()


if __name__ == "__main__":
    main()
