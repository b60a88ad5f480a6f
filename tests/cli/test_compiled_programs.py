"""Where compiled programs are kept: the user's word first, never where it cannot be written."""

import os

import pytest

from slmjax.cli.shared.compiled_programs import DEFAULTS, keep_compiled_programs

NAME = "JAX_COMPILATION_CACHE_DIR"


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    for name in (NAME, *DEFAULTS):
        monkeypatch.setenv(name, "")  # so that it is put back after the test
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def directory_for_jax():
    keep_compiled_programs()
    return os.environ.get(NAME)


def test_a_directory_of_the_user_is_made_for_this_cpu_alone(tmp_path):
    directory = directory_for_jax()
    made = list((tmp_path / "cache" / "slmjax").iterdir())
    assert [str(path) for path in made] == [directory]
    assert made[0].stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("word", ["", "/elsewhere"])
def test_what_the_environment_says_stands(word, tmp_path, monkeypatch):
    monkeypatch.setenv(NAME, word)
    assert directory_for_jax() == word
    assert not (tmp_path / "cache").exists()


def test_where_it_cannot_be_made_nothing_is_kept(tmp_path):
    (tmp_path / "cache").write_text("a file in the way")
    assert directory_for_jax() is None
