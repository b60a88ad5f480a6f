"""The run's numbers: where they are written, and the rules by which they are derived."""

import dataclasses
import json
import math
import os
import queue
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import jax

from slmjax.errors import UserError

FILE_NAME = "metrics.jsonl"


class MetricsWriter:
    """Appends metrics to WORKDIR/metrics.jsonl, and to TensorBoard events in WORKDIR/tensorboard.

    Each line is one JSON object: {"step": n, "split": "train", "loss": 3.2, ...}; what is not finite becomes null.
    Every line is flushed, so that a killed run keeps what it wrote. Lines of steps after `keep_up_to` (all where it is
    None), which a killed run left behind and which will be written again, are dropped first, with `unobserved` also the
    evaluation's line of that step. Only process 0 writes.
    """

    def __init__(
        self,
        workdir: str | Path,
        *,
        keep_up_to: int | None = None,
        unobserved: bool = False,
        tensorboard: bool = True,
    ):
        self._file: TextIO | None = None
        self._events: queue.SimpleQueue[tuple[int, str, dict[str, float]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if jax.process_index() != 0:
            return
        self._path = Path(workdir) / FILE_NAME
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            drop_lines_after(self._path, keep_up_to, unobserved=unobserved)
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise _cannot_write(self._path, error) from error
        if tensorboard:
            # The thread starts with the first write: importing tensorboardX takes a second or two, which the first step
            # of the run should not wait for, and neither should any later one.
            arguments = (self._path.parent / "tensorboard", -1 if keep_up_to is None else keep_up_to, self._events)
            self._thread = threading.Thread(target=_write_tensorboard, args=arguments, daemon=True)

    def write(self, step: int, values: Mapping[str, float], split: str = "train") -> None:
        """Append one line; `step` counts finished updates. Raises UserError when the disk refuses."""
        if self._file is None:
            return
        numbers = {name: float(value) for name, value in values.items()}
        line = {"step": int(step), "split": split}
        line |= {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        try:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise _cannot_write(self._path, error) from error
        if self._thread is not None:
            if self._thread.ident is None:
                self._thread.start()
            self._events.put((int(step), split, numbers))

    def close(self) -> None:
        """Finish both files; harmless when called twice."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._thread is not None and self._thread.ident is not None:
            self._events.put(None)
            self._thread.join()
        self._thread = None


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, in order; a last line that a kill cut short is left out."""
    lines = []
    for text in Path(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def drop_lines_after(path: Path, step: int | None, *, unobserved: bool = False) -> None:
    """Take the lines of steps after `step` (None: all) out of a file of JSON lines; harmless where there is none.

    unobserved: of `step` itself only the training line is kept.
    """
    if not path.exists():
        return
    last = -1 if step is None else step
    lines = [line for line in read_metrics(path) if line["step"] <= last]
    if unobserved:
        lines = [line for line in lines if line["step"] < last or line.get("split") == "train"]
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    os.replace(scratch, path)


def _write_tensorboard(directory: Path, resume_step: int, events: queue.SimpleQueue) -> None:
    try:
        from tensorboardX import SummaryWriter

        with SummaryWriter(str(directory), purge_step=resume_step + 1) as writer:
            while (event := events.get()) is not None:
                step, split, numbers = event
                for name, value in numbers.items():
                    writer.add_scalar(f"{split}/{name}", value, step)
    except Exception as error:  # a picture is not worth a run; metrics.jsonl has the numbers
        print(f"warning: TensorBoard events stop here ({error}); {FILE_NAME} goes on.", file=sys.stderr)


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"Cannot write {path} ({error.strerror or error}); free space there or choose another --workdir.")


def bits_per_byte(nll_nats_sum: float, num_bytes: float) -> float:
    """Negative log-likelihood in bits per UTF-8 byte of text: nll_nats_sum / (ln 2 * num_bytes).

    The sum is over the tokens, the bytes over the text that those tokens stand for, so that the number can be compared
    across tokenizers (and with a compressor's). NaN when there are no bytes.
    """
    return nll_nats_sum / (math.log(2) * num_bytes) if num_bytes else math.nan


# Dense bfloat16 FLOP/s of one jax device, by a part of its `device_kind`; the first that fits holds. From the vendors'
# data sheets. A TPU v7x chip (2307e12) shows as two devices.
_PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,  # v5p
    "TPU v6": 918e12,
    "TPU7x": 2307e12 / 2,
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2237e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Peak dense bfloat16 FLOP/s of one device, or None where it is not known (a CPU): then there is no MFU."""
    return next((flops for part, flops in _PEAK_FLOPS.items() if part.lower() in device_kind.lower()), None)


def model_flops_utilization(
    tokens_per_second: float, flops_per_token: float, peak_flops_per_device: float, num_devices: int
) -> float:
    """Model FLOPs utilization in [0, 1] (PaLM, arXiv:2204.02311, appendix B).

    flops_per_token is the model's analytic count for forward and backward (ModelConfig); what rematerialization
    computes again is not counted, and XLA's cost_analysis, which counts the body of a scan once, is never used.
    """
    return tokens_per_second * flops_per_token / (peak_flops_per_device * num_devices)


def device_memory_bytes() -> int:
    """The most bytes that any local device has held so far; on a CPU the peak resident size of the process."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    if any(peaks):
        return int(max(peaks))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclasses.dataclass(frozen=True)
class ScalingLaw:
    """loss(N, D) = E + A / N^alpha + B / D^beta, in nats per token of the law's own data and tokenizer."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, num_params: float, tokens: float) -> float:
        """The law's estimate of the loss after one pass over `tokens`."""
        return self.E + self.A / num_params**self.alpha + self.B / tokens**self.beta

    def optimal_params(self, flops: float) -> float:
        """The N that minimizes the loss at flops = 6 N D (Hoffmann et al., eq. 4)."""
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        return scale * (flops / 6) ** (self.beta / (self.alpha + self.beta))


HOFFMANN = ScalingLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)  # arXiv:2203.15556
BESIROGLU = ScalingLaw(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)  # arXiv:2404.10102, a corrected fit
_SMALLEST_FITTED = 44e6  # parameters of the smallest model that the laws were fitted to


@dataclasses.dataclass(frozen=True)
class ChinchillaReport:
    """Where a run stands against the compute-optimal point; `str` makes the sentence."""

    num_params: int
    tokens: int
    tokens_per_param: float
    multiple_of_chinchilla: float  # of 20 tokens per parameter
    flops: float  # 6 N D
    loss: float  # the law's estimate, nats per token
    optimal_params: float  # at the same FLOPs
    optimal_tokens: float
    optimal_loss: float

    def __str__(self) -> str:
        times = f"{self.multiple_of_chinchilla:,.{0 if self.multiple_of_chinchilla >= 10 else 2}f}"
        sentence = (
            f"{_short(self.tokens)} tokens for {_short(self.num_params)} parameters: {self.tokens_per_param:,.1f} "
            f"tokens per parameter, {times}x Chinchilla's 20. The compute-optimal model for the same {self.flops:.2g} "
            f"FLOPs has about {_short(self.optimal_params)} parameters and {_short(self.optimal_tokens)} tokens"
        )
        if self.num_params < _SMALLEST_FITTED or self.optimal_params < _SMALLEST_FITTED:
            return f"{sentence} (the law was fitted to models of 44M to 16B parameters: a guess at this size)."
        return f"{sentence} (estimated loss {self.optimal_loss:.3f}, against {self.loss:.3f} nats per token here)."


def chinchilla_report(num_params: int, tokens: int, law: ScalingLaw = BESIROGLU) -> ChinchillaReport:
    """Compare a run of `tokens` on a model of `num_params` with the compute-optimal one, by a published scaling law.

    The estimated losses are for the law's data and tokenizer: they compare plans, and do not predict this run's loss.
    """
    flops = 6.0 * num_params * tokens
    best = law.optimal_params(flops)
    best_tokens = flops / (6 * best)
    per_param = tokens / num_params
    return ChinchillaReport(
        num_params=num_params,
        tokens=tokens,
        tokens_per_param=per_param,
        multiple_of_chinchilla=per_param / 20,
        flops=flops,
        loss=law.loss(num_params, tokens),
        optimal_params=best,
        optimal_tokens=best_tokens,
        optimal_loss=law.loss(best, best_tokens),
    )


def _short(number: float) -> str:
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"
