"""The door of the command line: quick, and every mistake a sentence with status 2."""

import argparse
import os
import subprocess
import sys
import time

import pytest

import slmjax
from slmjax.cli import main as module
from slmjax.cli.main import COMMANDS, main
from slmjax.errors import UserError

HEAVY = ("jax", "numpy", "flax", "orbax", "tokenizers", "matplotlib")


@pytest.mark.parametrize("code", ["import slmjax", "from slmjax.cli.main import main; main(['--help'])"])
def test_nothing_heavy_is_imported_before_it_is_needed(code):
    check = f"{code}; import sys; sys.exit(any(name in sys.modules for name in {HEAVY}))"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", check], stdout=subprocess.DEVNULL)
    assert done.returncode == 0 and time.perf_counter() - start < 5  # ~0.1 s on an idle machine


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_every_command_helps_with_an_example(command, capsys):
    assert main([*command, "--help"]) == 0
    assert f"Example: slmjax {''.join(command)}" in capsys.readouterr().out


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"slmjax {slmjax.__version__}\n"


def test_the_python_surface():
    assert set(slmjax.__all__) == set(dir(slmjax))
    assert callable(slmjax.generate) and callable(slmjax.load) and callable(slmjax.families)
    with pytest.raises(AttributeError, match="'lod'"):
        _ = slmjax.lod


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["trian"], "did you mean 'train'?"),
        (["xyzzy"], "there are quickstart, train"),
        ([], "COMMAND"),
        (["inspect", "x", "--jsn"], "--jsn"),
        (["inspect", "x", "--js"], "--js"),  # no abbreviations: a later option could change their meaning
        (["convert", "a", "b", "--dtype", "int3"], "int3"),
        (["inspect", "x", "--config.a=1"], "--config.a"),
        (["generate", "--model", "x", "--prompt", "y", "--top-k", "many"], "--top-k"),
    ],
)
def test_arguments_that_are_wrong(argv, said, capsys):
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert error.startswith("slmjax: error: ") and said in error and error.count("\n") == 1


def test_overrides_are_taken_out_wherever_they_stand():
    argv = ["train", "--config.a.b=1", "--config", "f.py", "--config.c", "2", "--config.d=x=y", "--json"]
    rest, overrides = module._take_overrides(argv)
    assert rest == ["train", "--config", "f.py", "--json"]
    assert overrides == ["--config.a.b=1", "--config.c=2", "--config.d=x=y"]


def outcome(error):
    def run(_):
        raise error

    return module._run(argparse.Namespace(command="train", run=run))


class JaxRuntimeError(RuntimeError):
    pass


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("one\n  sentence."), "one sentence."),
        (FileNotFoundError(2, "No such file or directory", "/a/b"), "/a/b: No such file or directory."),
        (OSError(28, "No space left on device"), "the disk: No space left on device."),
        (MemoryError("Unable to allocate 9 GiB"), "ran out of memory"),
        (JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 99 bytes."), "99 bytes"),
    ],
)
def test_what_the_user_can_mend_is_a_sentence(error, said, capsys):
    assert outcome(error) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("slmjax: error: ") and said in printed and printed.count("\n") == 1


@pytest.mark.parametrize("error", [ZeroDivisionError(), JaxRuntimeError("INTERNAL"), OSError(9, "Bad descriptor")])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        outcome(error)


def test_ctrl_c_is_130():
    assert outcome(KeyboardInterrupt()) == 130


def test_a_reader_that_has_gone_is_no_error():
    read, write = os.pipe()
    os.close(read)
    argv = [sys.executable, "-m", "slmjax.cli.main", "--help"]
    done = subprocess.run([*argv[:3], "inspect", "gpt2", "--json"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 1 and done.stderr == ""
