"""The files of a run's numbers: metrics.jsonl and the events of TensorBoard."""

import json
import math
import queue
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from slmjax.console import warn
from slmjax.errors import UserError
from slmjax.files import place_file
from slmjax.training.processes import is_primary

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
        if not is_primary():
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
    return [line for _, line in _texts_and_lines(Path(path))]


def _texts_and_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line as it is written and as it is read."""
    # Not splitlines(), which cuts at U+2028 and others too: an answer of a network may hold them.
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            yield text, line


def drop_lines_after(path: Path, step: int | None, *, unobserved: bool = False) -> None:
    """Take the lines of steps after `step` (None: all) out of a file of JSON lines; harmless where there is none.

    unobserved: of `step` itself only the training line is kept.
    """
    if not path.exists():
        return
    last = -1 if step is None else step
    kept = [(text, line) for text, line in _texts_and_lines(path) if line["step"] <= last]
    if unobserved:
        kept = [(text, line) for text, line in kept if line["step"] < last or line.get("split") == "train"]
    with place_file(path) as partial:
        partial.write_text("".join(text + "\n" for text, _ in kept), encoding="utf-8")


def _write_tensorboard(directory: Path, resume_step: int, events: queue.SimpleQueue) -> None:
    try:
        from tensorboardX import SummaryWriter

        with SummaryWriter(str(directory), purge_step=resume_step + 1) as writer:
            while (event := events.get()) is not None:
                step, split, numbers = event
                for name, value in numbers.items():
                    writer.add_scalar(f"{split}/{name}", value, step)
    except Exception as error:  # a picture is not worth a run; metrics.jsonl has the numbers
        warn(f"TensorBoard events stop here ({error}); {FILE_NAME} goes on.")


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(f"Cannot write {path} ({error.strerror or error}); free space there or choose another --workdir.")
