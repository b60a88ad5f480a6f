"""A workdir has one run at a time, and a run that died keeps nobody out."""

import json
import os
import re
import subprocess
import sys
import threading
import time

import pytest

from slmjax.errors import UserError
from slmjax.training import workdir_lock
from slmjax.training.workdir_lock import FILE_NAME, hold

HOLDER = """
import sys, time
from pathlib import Path
from slmjax.training.workdir_lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path / "run"."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def written(place, **changes):
    """A lock that some process wrote down."""
    place.mkdir(exist_ok=True)
    values = {"host": "elsewhere", "pid": 7, "since": "then", "machine": "another", "started": "1", "token": "x"}
    (place / FILE_NAME).write_text(json.dumps(values | changes))
    return place


def test_another_process_is_refused_and_named_until_it_is_killed(holder, tmp_path):
    place = tmp_path / "run"
    said = rf"in use by another run, process {holder.pid} on \S+ since \d{{4}}-.*: wait"
    with pytest.raises(UserError, match=said), hold(place):
        pass
    holder.kill()
    holder.wait()
    assert (place / FILE_NAME).exists()
    start = time.monotonic()
    with hold(place):
        assert json.loads((place / FILE_NAME).read_text())["pid"] == os.getpid()
    assert time.monotonic() - start < 2
    assert not (place / FILE_NAME).exists()


def test_what_was_made_for_nothing_is_removed(tmp_path):
    with pytest.raises(ZeroDivisionError), hold(tmp_path / "a" / "run"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with hold(tmp_path / "run"):
        (tmp_path / "run" / "config.json").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_who_holds_it_may_hold_it_again_and_its_other_threads_may_not(tmp_path):
    refusals = []

    def second():
        try:
            with hold(tmp_path):
                pass
        except UserError as error:
            refusals.append(str(error))

    with hold(tmp_path), hold(tmp_path / "." / ""):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert (tmp_path / FILE_NAME).exists()
    assert len(refusals) == 1 and "in use by this process" in refusals[0]
    second()
    assert len(refusals) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": "x", "machine": null}'])
def test_a_damaged_lock_keeps_nobody_out(tmp_path, monkeypatch, content):
    monkeypatch.setattr(workdir_lock, "SILENCE", 0.0)
    (tmp_path / FILE_NAME).write_text(content)
    with hold(tmp_path):
        pass
    assert not (tmp_path / FILE_NAME).exists()


def test_another_machine_is_watched_for_a_sign_of_life(tmp_path, monkeypatch):
    """The kernel knows nothing of the holder, as on many network disks; its clock plays no part."""
    place, told = written(tmp_path / "run"), []
    monkeypatch.setattr(workdir_lock, "SILENCE", 1.0)
    with hold(place, told.append):
        pass
    assert len(told) == 1 and re.search("was in use just now, process 7 on elsewhere since then; waiting", told[0])

    monkeypatch.setattr(workdir_lock, "SILENCE", 30.0)
    os.utime(written(place) / FILE_NAME, (1e9, 1e9))  # silent for long
    with hold(place, told.append):
        pass
    assert len(told) == 1

    written(place)
    beat = threading.Timer(0.3, lambda: os.utime(place / FILE_NAME, (2e9, 2e9)))
    beat.start()
    with pytest.raises(UserError, match="process 7 on elsewhere"), hold(place, told.append):
        pass
    beat.join()
    assert json.loads((place / FILE_NAME).read_text())["token"] == "x"


def test_where_the_kernel_locks_no_files_processes_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(workdir_lock, "_lock_file", lambda file: None)
    here = {"machine": workdir_lock._machine(), "pid": os.getpid()}
    written(tmp_path, **here, started=workdir_lock._start_of(os.getpid()))
    with pytest.raises(UserError, match=f"process {os.getpid()}"), hold(tmp_path):
        pass
    with hold(written(tmp_path, **here, started="another process of that number")):
        pass
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with hold(written(tmp_path, **here | {"pid": ended.pid})):
        pass


def test_a_workdir_that_cannot_be_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"The workdir .*file cannot be written to"), hold(tmp_path / "file"):
        pass
