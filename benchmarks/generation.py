"""Generation on CPU, float32: slmjax against transformers' `generate`, in turn, in one process.

Needs torch and transformers, a Hugging Face directory, and the two to share the machine: each round runs one window of
ours, one of theirs, and a matrix-vector product over as many bytes as the model's weights (the limit of memory for one
row: every weight is read once a token). Prints a line a row of the table with medians and the ratio of each round.

Example:
  slmjax convert SmolLM2-135M-Instruct.Q4_1.gguf smollm2 --format huggingface --dtype float32
  python benchmarks/generation.py --model smollm2 --rounds 5
"""

import argparse
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import AutoModelForCausalLM

import slmjax
from slmjax.inference.generate import generate_ids
from slmjax.models.counting import count_parameters

PROMPT = 16  # tokens of each prompt of the decoding rows


def seconds(function: Callable[[], object]) -> float:
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def memory_limit(num_bytes: int) -> Callable[[], object]:
    """A float32 matrix-vector product over `num_bytes` of weights, in matrices far larger than any cache."""
    width, count = 4096, 8
    keys = jax.random.split(jax.random.key(0), count)
    matrices = [jax.random.normal(key, (num_bytes // (4 * width * count), width)) for key in keys]
    product = jax.jit(lambda matrices, x: [matrix @ x for matrix in matrices])
    x = jnp.ones(width)
    return lambda: jax.block_until_ready(product(matrices, x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a directory or .gguf that slmjax.load reads")
    parser.add_argument("--peer", help="the same model for transformers (default: --model)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rows", nargs="*", default=[], help="beginnings of names: only these rows of the table")
    args = parser.parse_args()

    lm = slmjax.load(args.model)
    theirs = AutoModelForCausalLM.from_pretrained(args.peer or args.model, dtype=torch.float32).eval()
    rng = np.random.default_rng(0)

    def pair(batch: int, length: int, new: int):
        """(ours, theirs): each generates `new` tokens greedily after `batch` prompts of `length` random tokens."""
        prompts = rng.integers(100, lm.config.vocab_size, (batch, length))
        mask, ids = torch.ones(batch, length, dtype=torch.long), torch.tensor(prompts)
        options = {"do_sample": False, "min_new_tokens": new, "max_new_tokens": new, "pad_token_id": 0}

        def run_theirs():
            with torch.inference_mode():
                return theirs.generate(ids, attention_mask=mask, **options)[:, length:].tolist()

        return (lambda: generate_ids(lm, prompts.tolist(), max_new_tokens=new)), run_theirs

    new = args.new_tokens
    rows = {  # what: (tokens counted, the pair whose seconds are taken away: prefill's, pair)
        "decode, batch 1": (new - 1, pair(1, PROMPT, 1), pair(1, PROMPT, new)),
        "decode, batch 16": (16 * (new - 1), pair(16, PROMPT, 1), pair(16, PROMPT, new)),
        "prefill, 4 x 512": (4 * 512, None, pair(4, 512, 1)),
    }
    rows = {name: row for name, row in rows.items() if not args.rows or name.startswith(tuple(args.rows))}
    limit = memory_limit(4 * count_parameters(lm.config).total)
    limit()
    for name, (tokens, start, whole) in rows.items():
        for run in (*(start or ()), *whole):
            run()  # compilation and warm-up
        speeds: list[tuple[float, float, float]] = []
        for _ in range(args.rounds):
            ours, peer = (tokens / (seconds(whole[side]) - (seconds(start[side]) if start else 0.0)) for side in (0, 1))
            speeds.append((ours, peer, 1 / statistics.median(seconds(limit) for _ in range(5))))
        ours, peer, most = (statistics.median(column) for column in zip(*speeds, strict=True))
        ratios = sorted(a / b for a, b, _ in speeds)
        line = f"{name}: ours {ours:.1f}, transformers {peer:.1f} tokens/s, ratio {statistics.median(ratios):.2f}"
        line += f" ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        if name == "decode, batch 1":
            shares = statistics.median(a / c for a, _, c in speeds)
            line += f"; limit of memory {most:.1f} tokens/s, reached {shares:.0%}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
