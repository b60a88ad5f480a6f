"""The training progress on stderr: a bar on a terminal, now and then a plain line in a log."""

import sys
import time

from slmjax.console import say
from slmjax.quantities import format_count, format_duration


class Progress:
    """Shows loss, tokens per second, MFU and the time left; use as a context manager or call close()."""

    def __init__(self, total_steps: int, start_step: int = 0, seconds_between_lines: float = 10.0):
        """A bar where stderr is a terminal; else (CI, a notebook's log) at most one line in `seconds_between_lines`."""
        self._total = total_steps
        self._step = start_step
        self._seconds_between_lines = seconds_between_lines
        self._last_line = -float("inf")
        # The clock starts with the first finished step, which had the compilation in it.
        self._first: tuple[int, float] | None = None
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total_steps, initial=start_step, unit="step", dynamic_ncols=True, file=sys.stderr)

    def update(self, step: int, *, loss: float, tokens_per_second: float, mfu: float | None = None) -> None:
        """Report that `step` updates are finished; cheap enough to be called after each."""
        now = time.monotonic()
        self._first = self._first or (step, now)
        numbers = f"loss {loss:.4f}, {format_count(tokens_per_second)} tokens/s" + (f", MFU {mfu:.1%}" if mfu else "")
        if self._bar is not None:
            self._bar.set_postfix_str(numbers, refresh=False)
            self._bar.update(step - self._step)
        elif now - self._last_line >= self._seconds_between_lines or step >= self._total:
            self._last_line = now
            say(f"step {step}/{self._total}: {numbers}{self._time_left(step, now)}")
        self._step = step

    def say(self, message: str) -> None:
        """Print one line on stderr without tearing the bar."""
        if self._bar is not None:
            self._bar.write(message, file=sys.stderr)
        else:
            say(message)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _time_left(self, step: int, now: float) -> str:
        assert self._first is not None
        first_step, first_time = self._first
        if step == first_step or step >= self._total:
            return ""
        return f", {format_duration((now - first_time) / (step - first_step) * (self._total - step))} left"
