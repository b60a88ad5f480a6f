"""SIGTERM and Ctrl-C ask a run to save and stop; they never interrupt a step."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import jax


class StopRequest:
    """While entered, the first SIGTERM or SIGINT is remembered in `signal`; a second SIGINT kills as usual.

    In a multi-process run all processes must stop after the same step, so they agree through jax's preemption service.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in (signal.SIGTERM, signal.SIGINT):
                if number == signal.SIGTERM and jax.process_count() > 1:
                    continue  # jax.distributed listens to it
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _remember(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    def wanted(self, step: int) -> bool:
        """Whether to stop after this step; all processes get the same answer."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(step):
                self.signal = signal.SIGTERM
                return True
        return self.signal is not None
