"""The door of the command line: quick, and every mistake a sentence with status 2."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import slmjax
from slmjax.cli import main as module
from slmjax.cli.main import COMMANDS, main
from slmjax.errors import UserError
from slmjax.formats import catalog
from slmjax.formats import models as formats

QUICKSTART = str(Path(__file__).parents[2] / "configs" / "quickstart.py")


def imported(argv):
    """(exit status, stderr, imported packages) of a command in a process of its own; None imports slmjax alone."""
    command = "" if argv is None else f"from slmjax.cli.main import main; status = main({argv!r})"
    code = f"import json, sys, slmjax; status = 0; {command}\n"
    code += "json.dump([status, [name for name in sys.modules if '.' not in name]], open(sys.argv[1], 'w'))"
    with tempfile.NamedTemporaryFile("r") as file:
        done = subprocess.run([sys.executable, "-c", code, file.name], capture_output=True, text=True)
        status, packages = json.load(file)
    return status, done.stderr, set(packages)


# Seconds differ from machine to machine; what takes them is what is imported.
@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (None, 0),
        (["--help"], 0),
        (["--version"], 0),
        (["trian"], 2),
        (["train", "--config", QUICKSTART, "--wrkdir", "run"], 2),
        (["generate", "--model", "run", "--prompt", "a", "--temprature", "1"], 2),
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(argv, status):
    found, _, packages = imported(argv)
    assert found == status
    assert packages & {"jax", "numpy", "flax", "orbax", "ml_collections", "tokenizers", "matplotlib"} == set()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.stepz=9", "did you mean 'steps'?"),
        ("training.batch_size=-1", "training.batch_size=-1"),
        ("peft.lora.rr=2", "did you mean 'r'?"),
    ],
)
def test_a_wrong_key_is_refused_without_jax(override, said, tmp_path):
    argv = ["train", "--config", QUICKSTART, "--workdir", str(tmp_path / "run"), f"--config.{override}"]
    status, error, packages = imported(argv)
    assert status == 2 and said in error and not (tmp_path / "run").exists()
    assert packages & {"jax", "flax", "optax", "orbax", "tokenizers", "matplotlib"} == set()


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_every_command_helps_with_an_example(command, capsys):
    assert main([*command, "--help"]) == 0
    assert f"Example: slmjax {''.join(command)}" in capsys.readouterr().out


def test_the_catalog_of_formats_is_those_that_can_be_written():
    written = [format.about for format in formats.FORMATS if format.save or format.save_adapter]
    assert written == list(catalog.WRITTEN)
    assert {format.name for format in written if format.dtypes} == {"slmjax", "huggingface", "gguf"}


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
        (["xyzzy"], "choose one of quickstart, train"),
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

    return module.run_command(argparse.Namespace(command="train", run=run))


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
