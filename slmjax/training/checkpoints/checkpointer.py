"""Checkpoints that never lose work: asynchronous, atomic, checked by checksums, restored onto any mesh.

One step directory holds everything: `state` (arrays), `data` (the position: JSON), `arrays` (what of the position is
arrays, if anything is), `config` and `evaluation` (JSON), and `checksums.json`. Orbax writes it under a temporary name
and renames it when all of it is on disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from slmjax.errors import UserError
from slmjax.training.checkpoints.checksums import DamagedError, write_checksums
from slmjax.training.checkpoints.config import CheckpointConfig
from slmjax.training.checkpoints.files import (
    ARRAYS,
    CONFIG,
    DATA,
    EVALUATION,
    STATE,
    read_arrays,
    read_json,
    read_state,
)
from slmjax.training.checkpoints.orbax import is_full_disk, orbax, plainly_named
from slmjax.training.checkpoints.positions import decode_position, encode_position, stored_sizes
from slmjax.training.checkpoints.retention import Retention, best_first, steps_to_keep
from slmjax.training.processes import barrier, is_primary, warn

__all__ = ["Checkpointer", "Restored", "steps_to_keep"]
_COMPRESSED = 0.8  # of a state's bytes: weights and moments shrink by about a tenth on disk


@dataclasses.dataclass(frozen=True)
class Restored:
    """The contents of a checkpoint. `step` counts finished updates.

    position: as it was saved, its arrays as NumPy arrays. A checkpoint from before positions were nested gives
    {"batches": {"next_index": n}, "observers": {"early_stopping": {...}}}, without early stopping where there was none.
    """

    step: int
    state: Any
    position: dict[str, Any]
    run_config: dict[str, Any]


class Checkpointer:
    """Saves and restores training states in DIRECTORY/<step>/; in a multi-process run every process makes every call.

    The directory is on a disk that all processes share.
    Restoring changes nothing on disk. The first save after restore_latest has passed over damaged steps renames them.
    """

    def __init__(self, directory: str | Path, config: CheckpointConfig | None = None):
        self._real = Path(os.path.abspath(directory))  # as it is called in messages
        self._directory = plainly_named(self._real)
        self._config = config or CheckpointConfig()
        self._manager: Any = None  # opened by the first save, for it cleans up: a reader may look at a running job
        self._scores: dict[int, float | None] = {}
        self._passed_over: list[int] = []  # damaged steps, newer than the one that training goes on from
        self._saving = -1  # the step that is being written
        self._state_bytes = 0

    def save(
        self,
        step: int,
        state: Any,
        *,
        position: Mapping[str, Any] | None = None,
        run_config: dict[str, Any],
        metrics: Mapping[str, float] | None = None,
        data_state: Mapping[str, Any] | None = None,
    ) -> bool:
        """Begin to save; on return everything has been copied, and `state` and `position` may be donated or changed.

        position: where batches and observers are, a nested dict of JSON values and arrays, equal on every process.
        metrics: of an evaluation at this step; `checkpoint.best_metric` is one of them.
        data_state: what `position` was called in 0.1.

        Returns False when that step is already there. Raises UserError when the disk is full, perhaps only here for the
        save before this one; what was saved before stays as it is.
        """
        ocp = orbax()
        data, arrays = encode_position(position or data_state or {})
        while self._passed_over:
            self._set_aside(self._passed_over.pop())
        with self._full_disk_as_user_error():
            manager = self._open_manager()
            manager.wait_until_finished()
            if step in manager.all_steps():
                return False
            self._saving = step
            leaves = jax.tree.leaves((state, arrays))
            self._state_bytes = sum(leaf.nbytes for leaf in leaves if hasattr(leaf, "nbytes"))
            self._require_room()
            evaluation = {name: float(value) for name, value in (metrics or {}).items()}
            self._scores[step] = evaluation.get(self._config.best_metric)
            items = {
                STATE: ocp.args.StandardSave(state),
                DATA: ocp.args.JsonSave(data),
                CONFIG: ocp.args.JsonSave(run_config),
                EVALUATION: ocp.args.JsonSave(evaluation),
            }
            if arrays:
                items[ARRAYS] = ocp.args.StandardSave(arrays)
            manager.save(step, args=ocp.args.Composite(**items), force=True)
            if not self._config.asynchronous:
                manager.wait_until_finished()
        return True

    def restore_latest(self, abstract_state: Any) -> Restored | None:
        """The newest readable checkpoint, or None when there is none yet.

        abstract_state: the state's tree of jax.ShapeDtypeStruct, with the shardings that it shall have now. A damaged
        step is passed over with a warning; the next save renames it to damaged-<step>, so that training can save that
        step anew. Raises UserError when every checkpoint is damaged, or an intact one differs.
        """
        self.wait()
        steps = self.all_steps()
        damaged: dict[int, str] = {}
        for step in reversed(steps):
            try:
                restored = self._read(step, abstract_state)
            except DamagedError as error:
                damaged[step] = str(error)
                warn(f"checkpoint step {step} in {self._real} is damaged ({error}); trying the one before it.")
                continue
            self._passed_over = list(damaged)
            return restored
        if not steps:
            return None
        raise UserError(
            f"None of the checkpoints in {self._real} can be read (steps {_listed(steps)}; the newest: "
            f"{damaged[steps[-1]]}); bring them back from a copy, or begin anew in another --workdir."
        )

    def restore(self, step: int, abstract_state: Any) -> Restored:
        """The checkpoint of exactly this step. Raises UserError when it is not there, damaged, or of another shape.

        To train on from a step that is not the latest, save into another directory: later steps here stay the latest.
        """
        self.wait()
        self._require(step)
        with self._damage_as_user_error(step):
            return self._read(step, abstract_state)

    def restore_params(self, abstract_params: Any, *, step: int | None = None, name: str = "params") -> Any:
        """The sub-tree `name` of the state alone, of the newest readable step unless one is named.

        abstract_params: as in restore_latest, for that sub-tree; arrays are cast to its dtypes. A damaged step is
        passed over with a warning.
        """
        self.wait()
        steps = self.all_steps()
        if step is not None or not steps:
            self._require(step)
            steps = [] if step is None else [step]
        for candidate in reversed(steps):
            try:
                return read_state(self._directory / str(candidate), {name: abstract_params}, partial=True)[name]
            except DamagedError as error:
                warn(f"checkpoint step {candidate} in {self._real} is damaged ({error}).")
        raise UserError(f"No checkpoint in {self._real} can be read (steps {_listed(steps)}).")

    def all_steps(self) -> list[int]:
        """The steps whose checkpoints are complete on disk, ascending."""
        if not self._directory.exists():
            return []
        return sorted(orbax().utils.checkpoint_steps(self._directory))

    def best_steps(self, metric: str) -> list[int]:
        """The steps whose checkpoints carry an evaluation's `metric`, the best first."""
        return best_first({step: self._score(step, metric) for step in self.all_steps()}, metric)

    def latest_step(self) -> int | None:
        """The newest of all_steps()."""
        return max(self.all_steps(), default=None)

    def wait(self) -> None:
        """Block until what was saved is on disk. Raises UserError when the disk is full."""
        if self._manager is not None:
            with self._full_disk_as_user_error():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish the last save and let go of the directory."""
        self.wait()
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _open_manager(self) -> Any:
        if self._manager is None:
            ocp = orbax()
            if self._config.keep_best:
                self._scores = {step: self._score(step, self._config.best_metric) for step in self.all_steps()}
            self._real.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(
                # Always asynchronous, so that the checksums are written before the step gets its final name.
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_checksums),
                preservation_policy=Retention(self._scores, self._config),
                cleanup_tmp_directories=True,
                save_root_metadata=False,
            )
            self._manager = ocp.CheckpointManager(self._directory, options=options)
        return self._manager

    def _score(self, step: int, metric: str) -> float | None:
        try:
            score = read_json(self._directory / str(step), EVALUATION).get(metric)
        except DamagedError:
            return None
        return float(score) if isinstance(score, int | float) else None

    def _read(self, step: int, abstract_state: Any) -> Restored:
        path = self._directory / str(step)
        state = read_state(path, abstract_state, partial=False)
        data = read_json(path, DATA)
        position = decode_position(data, read_arrays(path, stored_sizes(data)))
        return Restored(step, state, position, read_json(path, CONFIG))

    def _require(self, step: int | None) -> None:
        steps = self.all_steps()
        if not steps:
            raise UserError(f"There is no checkpoint in {self._real}; give that of a run that has saved one.")
        if step not in steps:
            raise UserError(f"There is no checkpoint of step {step} in {self._real}; there are {_listed(steps)}.")

    def _require_room(self) -> None:
        """Refuse what cannot fit before anything is written; one process alone, so that several do not part ways."""
        if jax.process_count() == 1:
            free = shutil.disk_usage(self._directory).free
            if free < _COMPRESSED * self._state_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._directory))

    def _set_aside(self, step: int) -> None:
        if is_primary():
            target = self._directory / f"damaged-{step}"
            if target.exists():
                shutil.rmtree(target)
            (self._directory / str(step)).rename(target)
            warn(f"the damaged checkpoint step {step} is kept as {self._real / target.name}.")
        barrier(f"slmjax_set_aside_{step}")
        if self._manager is not None:
            self._manager.reload()

    def _write_checksums(self) -> None:
        """Runs in Orbax's thread on process 0: the files are whole, the directory still has its temporary name."""
        scratch_name = f"{self._saving}{orbax().utils.TMP_DIR_SUFFIX}"
        for path in self._directory.iterdir():
            if path.name == str(self._saving) or path.name.startswith(scratch_name):
                write_checksums(path)

    @contextlib.contextmanager
    def _damage_as_user_error(self, step: int) -> Iterator[None]:
        try:
            yield
        except DamagedError as error:
            others = [other for other in self.all_steps() if other != step]
            raise UserError(
                f"Checkpoint step {step} in {self._real} is damaged ({error}); other steps: {_listed(others)}."
            ) from error

    @contextlib.contextmanager
    def _full_disk_as_user_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            manager, self._manager = self._manager, None
            with contextlib.suppress(Exception):
                manager.close()
            if not is_full_disk(error):
                raise
            free = shutil.disk_usage(self._directory).free
            for scratch in self._directory.glob(f"{self._saving}{orbax().utils.TMP_DIR_SUFFIX}*"):
                if is_primary():
                    shutil.rmtree(scratch)
            raise UserError(
                f"The disk holding {self._real} is full: checkpoint step {self._saving} needs up to "
                f"{self._state_bytes / 1e9:.3g} GB and {free / 1e9:.3g} GB are free; make room, keep fewer checkpoints "
                f"or choose another --workdir (last good checkpoint: step {self.latest_step()})."
            ) from error


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) or "none"
