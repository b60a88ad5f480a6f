"""A command begins again with large pages where it would get them, once, with its own arguments."""

import os
import subprocess
import sys

import pytest

from slmjax.cli.shared import large_pages


@pytest.fixture
def begun(monkeypatch, tmp_path):
    """What was begun instead of this process; the kernel gives large pages on request, the C library knows how to."""
    commands = []
    setting = tmp_path / "enabled"
    setting.write_text("always [madvise] never\n")
    monkeypatch.setattr(large_pages, "SETTING", setting)
    monkeypatch.setattr(large_pages.os, "execv", lambda path, command: commands.append(command))
    monkeypatch.setattr(large_pages.os, "confstr", lambda name: "glibc 2.36")
    monkeypatch.setenv(large_pages.TUNABLES, "")
    return commands


def test_it_begins_again_once_with_the_same_arguments(begun, monkeypatch):
    monkeypatch.setenv(large_pages.TUNABLES, "glibc.malloc.check=1")
    monkeypatch.setattr(large_pages.sys, "orig_argv", ["python", "-u", "/bin/slmjax", "train", "--workdir", "a b"])
    large_pages.begin_with_large_pages()
    assert begun == [[sys.executable, "-u", "/bin/slmjax", "train", "--workdir", "a b"]]
    assert os.environ[large_pages.TUNABLES] == "glibc.malloc.check=1:glibc.malloc.hugetlb=1"
    large_pages.begin_with_large_pages()
    assert len(begun) == 1


@pytest.mark.parametrize("reason", ["turned off", "always given", "never given", "an old library", "another library"])
def test_it_goes_on_as_it_is_where_nothing_is_to_be_had(begun, reason, monkeypatch):
    if reason == "turned off":
        monkeypatch.setenv(large_pages.TUNABLES, "glibc.malloc.hugetlb=0")
    elif reason.endswith("given"):
        large_pages.SETTING.write_text({"always given": "[always] madvise never"}.get(reason, "always madvise [never]"))
    else:
        answer = "glibc 2.31" if reason == "an old library" else None
        monkeypatch.setattr(large_pages.os, "confstr", lambda name: answer)
    large_pages.begin_with_large_pages()
    assert not begun


def test_a_command_answers_as_ever():
    done = subprocess.run([sys.executable, "-m", "slmjax.cli.main", "trian"], capture_output=True, text=True)
    assert done.returncode == 2 and "did you mean 'train'?" in done.stderr
