"""Training tokens/s and MFU on one device at 2048 tokens a row, by the FLOP rule of slmjax/models/counting.py.

Three kinds: fast (the first of a model's candidates, a remat policy and rows, that fits the memory), default (the remat
policy that a config gets by default) and lora (r=16 on all weight products of Llama-3.2-3B in bfloat16; a frozen weight
has no gradient, so its rule is twice the forward pass). Rows are packed with four documents each.
Example: python benchmarks/gpu/mfu.py --kind fast --models 1.1b --output runs/gpu
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

import jax
import subjects
from reporting import Report, Values, arguments

# (training.remat, rows), the fastest first.
CANDIDATES = {
    "0.35b": (("none", 16), ("projections", 16), ("full", 16)),
    "1.1b": (("none", 16), ("projections", 16), ("full", 16)),
    "3b": (("none", 8), ("projections", 8), ("full", 8)),
}
DEFAULT = (("auto", 16), ("auto", 8))
LORA = "llama-3.2-3b"
SECONDS = 75.0  # that one model may take, compiling included
WINDOWS = 3
Candidate = tuple[str, int]


def fits(compiled: Any, device: jax.Device) -> tuple[bool, float]:
    """Whether the compiler's account of the step's memory fits the device, and the account in GiB."""
    memory = compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    held += memory.output_size_in_bytes - memory.alias_size_in_bytes
    return held < (device.memory_stats() or {}).get("bytes_limit", float("inf")), held / 2**30


def is_out_of_memory(error: Exception) -> bool:
    """Whether an exception tells of memory that ran out, in jax's words or in ours."""
    return any(phrase in str(error) for phrase in ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory"))


def timed(step: Any, state: Any, batch: Any, seconds: float) -> tuple[list[float], float]:
    """Seconds a step in each of three windows that together take about `seconds`; the last loss."""
    for _ in range(2):  # the first also loads what it needs
        begin = time.perf_counter()
        state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        one = time.perf_counter() - begin
    count = min(max(int(seconds / WINDOWS / one), 1), 50)
    windows = []
    for _ in range(WINDOWS):
        begin = time.perf_counter()
        for _ in range(count):
            state, metrics = step(state, batch)
        jax.block_until_ready((state, metrics))
        windows.append((time.perf_counter() - begin) / count)
    return windows, float(metrics["loss"])


def measure(config: subjects.ModelConfig, candidates: tuple[Candidate, ...], method: str, args: Any) -> Values:
    """The first candidate that fits, or `skipped`."""
    device, refused = jax.devices()[0], []
    length = 64 if args.dry_run else 2048
    for remat, rows in candidates:
        rows = 2 if args.dry_run else rows
        try:
            values = _measure(config, remat, rows, length, method, 0.1 if args.dry_run else 6.0, device)
        except (subjects.UserError, jax.errors.JaxRuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            values = {"skipped": "out of memory"}
        if "skipped" not in values:
            return values | ({"did not fit": "; ".join(refused)} if refused else {})
        refused.append(f"{remat}, {rows} rows ({values['skipped']})")
    return {"skipped": f"nothing fits: {'; '.join(refused)}"}


def _measure(
    config: subjects.ModelConfig, remat: str, rows: int, length: int, method: str, seconds: float, device: jax.Device
) -> Values:
    base = None if method == "full" else subjects.random_parameters(config)
    lm = subjects.training_program(config, rows=rows, length=length, remat=remat, method=method, base=base)
    begin = time.perf_counter()
    step = lm.program.compile()[subjects.TRAIN]
    compiling = time.perf_counter() - begin
    fit, held = fits(step, device)
    if not fit:
        return {"skipped": f"{held:.0f} GiB"}
    batch = subjects.to_devices(subjects.packed_batch(config.vocab_size, rows, length), lm.batch)
    windows, loss = timed(step, lm.program.initialize(base), batch, seconds)
    rates = [rows * length / window for window in windows]
    rate = statistics.median(rates)
    # A frozen weight has no gradient: its backward pass costs what its forward pass does.
    flops = subjects.flops_per_token(config, length, training=method == "full") * (1 if method == "full" else 2)
    peak = subjects.peak_flops(device.device_kind)
    return {
        "parameters": subjects.count_parameters(config).total,
        "remat": lm.model.execution.remat,
        "rows": rows,
        "length": length,
        "tokens_per_second": rate,
        "mfu": subjects.model_flops_utilization(rate, flops, peak, 1) if peak else None,
        "tflops": rate * flops / 1e12,
        "step_seconds": statistics.median(windows),
        "spread": (max(rates) - min(rates)) / rate,
        "memory_gib": held,
        "compile_seconds": compiling,
        "loss": loss,
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--kind", choices=["fast", "default", "lora"], default="fast")
    parser.add_argument("--models", nargs="+", choices=list(CANDIDATES), default=list(CANDIDATES))
    args = parser.parse_args()
    report = Report({"fast": "training", "default": "training, default remat", "lora": "lora"}[args.kind], args)
    for name in [LORA] if args.kind == "lora" else args.models[:1] if args.dry_run else args.models:
        config = subjects.model(name, dry_run=args.dry_run)
        candidates = CANDIDATES[name] if args.kind == "fast" else DEFAULT
        method = "lora" if args.kind == "lora" else "full"
        report.record(name, partial(measure, config, candidates, method, args), needs=SECONDS)


if __name__ == "__main__":
    main()
