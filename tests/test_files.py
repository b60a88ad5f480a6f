"""A directory appears whole or not at all."""

import errno
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from slmjax.errors import UserError
from slmjax.files import local_path, place_directory


def _never() -> bool:
    return False


@pytest.mark.parametrize("address", ["gs://bucket/run", "gs:/bucket/run", "s3://bucket", "hf+x://a/b"])
def test_a_buckets_address_is_no_directory(address):
    with pytest.raises(UserError, match=rf"The workdir is the address {re.escape(address)}.*mount the bucket"):
        local_path(address, "The workdir")


@pytest.mark.parametrize("path", ["runs/x", "/a:/b", "C:/runs", "a b", ".", ""])
def test_paths_stay_paths(path):
    assert local_path(path, "The workdir") == Path(path)


def test_it_is_there_only_after_the_block(tmp_path):
    with place_directory(tmp_path / "new" / "place", _never) as partial:
        (partial / "file").write_text("content")
        assert not (tmp_path / "new" / "place").exists()
    assert (tmp_path / "new" / "place" / "file").read_text() == "content"
    assert os.listdir(tmp_path / "new") == ["place"]


def test_what_was_there_is_replaced_whole(tmp_path):
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "old").touch()
    with place_directory(tmp_path / "place", _never) as partial:
        (partial / "new").touch()
    assert os.listdir(tmp_path / "place") == ["new"]


def test_another_process_that_was_first_wins(tmp_path):
    with place_directory(tmp_path / "place", lambda: (tmp_path / "place" / "theirs").exists()) as partial:
        (partial / "ours").touch()
        (tmp_path / "place").mkdir()
        (tmp_path / "place" / "theirs").touch()
    assert os.listdir(tmp_path / "place") == ["theirs"]
    assert os.listdir(tmp_path) == ["place"]


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), place_directory(tmp_path / "place", _never) as partial:
        (partial / "half").touch()
        _ = 1 / 0
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_one_sentence(tmp_path):
    with (
        pytest.raises(UserError, match=r"The disk is full while writing .*place"),
        place_directory(tmp_path / "place", _never),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert os.listdir(tmp_path) == []


def test_what_killed_processes_left_is_removed_and_living_ones_are_not_disturbed(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    prefix = f".place.partial-{socket.gethostname()}-"
    for process in (ended.pid, os.getppid()):
        (tmp_path / f"{prefix}{process}-0").mkdir()
    (tmp_path / f".place.partial-elsewhere-{ended.pid}-0").mkdir()
    with place_directory(tmp_path / "place", _never):
        pass
    left = [f".place.partial-elsewhere-{ended.pid}-0", f"{prefix}{os.getppid()}-0", "place"]
    assert sorted(os.listdir(tmp_path)) == sorted(left)
