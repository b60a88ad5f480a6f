"""A command begins again with the allocator's settings, once, with its own arguments, and leaves the user's alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from slmjax.cli.shared import malloc_settings
from slmjax.cli.shared.malloc_settings import JEMALLOC_OPTIONS, SWITCH, TUNABLES, TUNABLES_VARIABLE

VARIABLES = (TUNABLES_VARIABLE, "LD_PRELOAD", "MALLOC_CONF")
KEPT = ":".join(f"{name}={value}" for name, value in TUNABLES.items())


@pytest.fixture
def begun(monkeypatch, tmp_path):
    """What was begun instead of this process; the C library knows the tunables, jemalloc is not installed."""
    commands = []
    monkeypatch.setattr(malloc_settings, "LIBRARIES", (tmp_path / "none", tmp_path))
    monkeypatch.setattr(malloc_settings.os, "execv", lambda path, command: commands.append(command))
    monkeypatch.setattr(malloc_settings.os, "confstr", lambda name: "glibc 2.36")
    monkeypatch.setattr(malloc_settings.os, "sysconf", lambda name: 4096)
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what is set here goes with the test
        monkeypatch.delenv(name)
    return commands


def settings():
    """What the process that is begun finds of the allocators' variables."""
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def parsed():
    return dict(item.split("=") for item in os.environ[TUNABLES_VARIABLE].split(":"))


def test_it_begins_again_once_with_the_same_arguments(begun, monkeypatch):
    monkeypatch.setenv(TUNABLES_VARIABLE, "glibc.malloc.check=1")
    monkeypatch.setattr(malloc_settings.sys, "orig_argv", ["python", "-u", "/bin/slmjax", "train", "--workdir", "a b"])
    malloc_settings.begin_with_kept_memory()
    assert begun == [[sys.executable, "-u", "/bin/slmjax", "train", "--workdir", "a b"]]
    assert settings() == {TUNABLES_VARIABLE: f"glibc.malloc.check=1:{KEPT}"}
    malloc_settings.begin_with_kept_memory()
    assert len(begun) == 1


@pytest.mark.parametrize("name", [name for name in TUNABLES if name != SWITCH])
def test_a_tunable_of_the_users_stands_and_the_others_are_added(begun, name, monkeypatch):
    monkeypatch.setenv(TUNABLES_VARIABLE, f"{name}=7")
    malloc_settings.begin_with_kept_memory()
    assert parsed() == {key: str(value) for key, value in TUNABLES.items()} | {name: "7"}


def test_jemalloc_is_preferred_where_it_is_installed(begun, tmp_path):
    library = tmp_path / "libjemalloc.so.2"
    library.touch()
    malloc_settings.begin_with_kept_memory()
    malloc_settings.begin_with_kept_memory()
    assert len(begun) == 1
    assert settings() == {TUNABLES_VARIABLE: KEPT, "LD_PRELOAD": str(library), "MALLOC_CONF": JEMALLOC_OPTIONS}


@pytest.mark.parametrize("users", [{"LD_PRELOAD": "/lib/mine.so"}, {"MALLOC_CONF": "narenas:3"}])
def test_the_users_allocator_stands(begun, users, tmp_path, monkeypatch):
    (tmp_path / "libjemalloc.so.2").touch()
    for name, value in users.items():
        monkeypatch.setenv(name, value)
    malloc_settings.begin_with_kept_memory()
    assert len(begun) == 1
    assert users.items() <= settings().items()
    assert ("MALLOC_CONF" in settings()) == ("MALLOC_CONF" in users)  # no options where no jemalloc is loaded


def test_jemalloc_is_left_alone_on_a_machine_with_other_pages(begun, tmp_path, monkeypatch):
    (tmp_path / "libjemalloc.so.2").touch()
    monkeypatch.setattr(malloc_settings.os, "sysconf", lambda name: 65536)
    malloc_settings.begin_with_kept_memory()
    assert settings() == {TUNABLES_VARIABLE: KEPT}


@pytest.mark.parametrize("reason", ["turned off", "large pages only", "an old library", "another library", "no answer"])
def test_it_goes_on_as_it_is_where_it_is_not_wanted_or_nothing_is_to_be_had(begun, reason, tmp_path, monkeypatch):
    (tmp_path / "libjemalloc.so.2").touch()
    if reason in ("turned off", "large pages only"):
        monkeypatch.setenv(TUNABLES_VARIABLE, f"glibc.malloc.check=1:{SWITCH}={int(reason != 'turned off')}")
    elif reason == "no answer":
        monkeypatch.delattr(malloc_settings.os, "confstr")  # as under Windows
    else:
        answer = "glibc 2.17" if reason == "an old library" else None
        monkeypatch.setattr(malloc_settings.os, "confstr", lambda name: answer)
    before = settings()
    malloc_settings.begin_with_kept_memory()
    assert not begun and settings() == before


def test_a_command_answers_as_ever():
    done = subprocess.run([sys.executable, "-m", "slmjax.cli.main", "trian"], capture_output=True, text=True)
    assert done.returncode == 2 and "did you mean 'train'?" in done.stderr


@pytest.mark.skipif(not malloc_settings._has_glibc(), reason="glibc's")
def test_the_process_that_answers_has_the_settings():
    code = (
        "from slmjax.cli.shared import malloc_settings; malloc_settings.begin_with_kept_memory();"
        "import os; print(os.environ['GLIBC_TUNABLES'])"
    )
    free = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=free, check=True)
    assert done.stdout.strip() == KEPT and done.stderr == ""


@pytest.mark.slow
@pytest.mark.skipif(not malloc_settings._has_glibc(), reason="glibc's and jemalloc's")
@pytest.mark.parametrize("allocator", ["glibc", "jemalloc"])
def test_children_with_limited_memory_work_under_the_settings(allocator):
    """The renderer of templates and the process of SQL, whose address space is limited, pass their own tests."""
    environment = os.environ | {TUNABLES_VARIABLE: KEPT}
    if allocator == "jemalloc":
        library = malloc_settings._find_jemalloc()
        if library is None:
            pytest.skip("jemalloc is not installed")
        environment |= {"LD_PRELOAD": str(library), "MALLOC_CONF": JEMALLOC_OPTIONS}
    tests = Path(__file__).parents[1]
    files = [tests / "tokenization/test_chat_template.py", tests / "evaluation/test_sql_database.py"]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-n0",
        "-p",
        "no:cacheprovider",
        "-k",
        "hostile or within_limits or small or finds",
        *map(str, files),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout
