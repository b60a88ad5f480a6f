"""Programs of a model: those that are right pass, and whatever else they try, the machine and the judge stay whole."""

import itertools
import math
import os
import sys
import time

import pytest

from slmjax.errors import UserError
from slmjax.evaluation.tasks.code_execution import executor as module
from slmjax.evaluation.tasks.code_execution.executor import CodeEval, Executor, install, pass_at_k

TEST = "assert add(2, 3) == 5\nassert add(0, 0) == 0"
RIGHT = "def add(a, b):\n    return a + b"
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="what the kernel refuses is Linux's")


@pytest.fixture(scope="module")
def executor():
    with Executor(seconds=1.0, workers=1) as executor:
        yield executor


@pytest.fixture(scope="module")
def quick():
    with Executor(seconds=0.5, workers=1) as executor:
        yield executor


@pytest.mark.parametrize(
    ("program", "result"),
    [
        (RIGHT, "passed"),
        ("def add(a, b):\n    return a * b", "failed: "),
        ("def add(a, b):\n    raise ValueError('no é')", "failed: no \\xe9"),
        ("def add(a, b):\nreturn", "failed: expected an indented block"),
        ("", "failed: name 'add' is not defined"),
        (f"{RIGHT}\nprint('loud' * 10**7)", "passed"),
        (f"{RIGHT}\nif __name__ == '__main__':\n    raise ValueError", "passed"),  # as in code_eval
        (f"{RIGHT}\nwith open('own.txt', 'w') as file:\n    file.write('x')\nassert open('own.txt').read()", "passed"),
        (
            "import asyncio, collections, dataclasses, decimal, enum, hashlib, inspect, logging, queue, socket\n"
            "import statistics, subprocess, threading, typing, unittest, uuid\n"
            f"P = collections.namedtuple('P', 'x')\n@dataclasses.dataclass\nclass D:\n    x: int\n{RIGHT}",
            "passed",
        ),
        (f"import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()\n{RIGHT}", "passed"),
    ],
)
def test_honest_programs_have_the_results_of_code_eval(executor, program, result):
    (found,) = executor.run([f"{program}\n{TEST}"])
    assert found.startswith(result)
    assert (found == "passed") == (result == "passed")


@pytest.mark.parametrize(
    "program",
    [
        "import os\nwhile True:\n    os.fork()",
        "import threading\nwhile True:\n    threading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()",
        "while True:\n    pass",
        "while True:\n    try:\n        while True:\n            pass\n    except BaseException:\n        pass",
        "import time\ntime.sleep(600)",
        "import signal, time\nfor s in range(1, 32):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except Exception: pass\nwhile True:\n    pass",
        "x = bytearray(1 << 34)",
        "x = []\nwhile True:\n    x.append(bytearray(1 << 24))",
        "def f():\n    f()\nf()",
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "import os\nos.abort()",
        "raise SystemExit(0)",
        "import os\nfor n in range(64):\n    try:\n        os.write(n, b'\\npassed\\n')\n    except OSError:\n"
        "        pass\nos._exit(0)",
        "import os\nfor n in range(64):\n    try:\n        os.close(n)\n    except OSError:\n        pass",
        "import os\nfor n in range(3, 64):\n    try:\n        while True:\n            os.write(n, b'x' * 65536)\n"
        "    except OSError:\n        pass",
        "import builtins\nbuiltins.AssertionError = builtins.str = builtins.len = lambda *a: 'passed'",
        "import json, os\njson.dumps = lambda *a: 'passed'\nos.write = os._exit = lambda *a: None",
        "import sys\nsys._getframe(1)",
        "import inspect\ninspect.currentframe()",
        "try:\n    1 / 0\nexcept Exception as error:\n    error.__traceback__.tb_frame.f_back",
        "import gc\ngc.get_objects()",
        "import sys\nsys.settrace(print)",
        "import ctypes",
        "input()",
        "class E(Exception):\n    def __str__(self):\n        raise self\nraise E",
        "class E(Exception):\n    def __str__(self):\n        while True:\n            pass\nraise E",
    ],
)
def test_hostile_programs_fail_in_time_and_the_next_one_is_judged(quick, program):
    began = time.monotonic()
    # The test is one that a program passes that has brought itself to its end.
    (result,) = quick.run([f"{program}\nassert False"])
    assert result != "passed" and (result == "timed out" or result.startswith("failed: "))
    assert time.monotonic() - began < 10
    assert quick.run([f"{RIGHT}\n{TEST}"]) == ["passed"]


TRIES = {
    "open": "open(PATH, MODE).close()",
    "os.open": "import os\nos.close(os.open(PATH, os.O_RDWR | os.O_CREAT if MODE == 'w' else os.O_RDONLY))",
    "io": "import io\nio.FileIO(PATH, MODE).close()",
    "relative": "import os\nopen(os.path.relpath(PATH), MODE).close()",
    "bytes": "open(PATH.encode(), MODE).close()",
    "changed": "import os\nos.chdir('/')\nopen(PATH[1:], MODE).close()",
}


@pytest.mark.parametrize("how", TRIES)
def test_files_elsewhere_are_neither_read_nor_written(executor, tmp_path, how):
    (tmp_path / "secret").write_text("x")
    for path, mode in (("/etc/passwd", "r"), (tmp_path / "secret", "r"), (tmp_path / "new", "w"), ("/dev/shm/y", "w")):
        result = executor.run([TRIES[how].replace("PATH", repr(str(path))).replace("MODE", repr(mode))])[0]
        assert result.startswith("failed: "), path
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


@pytest.mark.parametrize(
    "program",
    [
        "import socket\nsocket.socket()",
        "import _socket\n_socket.socket()",
        "import urllib.request\nurllib.request.urlopen('http://127.0.0.1:1')",
        "import subprocess\nsubprocess.run(['true'])",
        "import os\nos.system('true') == 0 or 1 / 0",
        "import os\nos.execv('/bin/true', ['true'])",
        "import os\nos.posix_spawn('/bin/true', ['true'], {})",
        "import os\nos.kill(os.getppid(), 9)",
        "import multiprocessing\np = multiprocessing.Process(target=print)\np.start()",
        "import os\nos.symlink('/etc/passwd', 'link')",
        "import os\nos.chmod('.', 0)",
        "import os\nos.setuid(0) if os.getuid() else 1 / 0",
        "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (-1, -1))",
        "for n in range(1000):\n    open(f'file{n}', 'w').close()",
        "with open('big', 'wb') as file:\n    file.write(bytes(1 << 22))",
    ],
)
def test_nothing_leaves_the_process(executor, program):
    assert executor.run([program])[0].startswith(("failed: ", "timed out"))


@LINUX
def test_the_kernel_refuses_what_python_does_not_tell_of(executor, tmp_path, monkeypatch):
    """Without the audit hook: what an escape from it would meet."""
    source = module._PROGRAM.read_text().replace("sys.addaudithook(hook)", "hook")
    (tmp_path / "process.py").write_text(source)
    (tmp_path / "kernel.py").write_text(module._PROGRAM.with_name("kernel.py").read_text())
    monkeypatch.setattr(module, "_PROGRAM", tmp_path / "process.py")
    (tmp_path / "secret").write_text("x")
    programs = [
        f"open({str(tmp_path / 'secret')!r}).close()",
        f"open({str(tmp_path / 'new')!r}, 'w').close()",
        "open('/etc/passwd').close()",
        "import socket\nsocket.socket()",
        "import socket\nsocket.socketpair()",
        "import os\nos.fork()",
        "import os\nos.execv('/bin/true', ['true'])",
        "import os\nos.posix_spawn('/bin/true', ['true'], {})",
        "import os\nos.kill(os.getppid(), 0)",
        "import os\nos.chmod('.', 0o755)",
        "import os\nos.mkfifo('x')",
        "import os\nos.memfd_create('x')",
        "import _ctypes",
    ]
    with Executor(seconds=1.0, workers=1) as without:
        if {"files", "calls"} - set(without.layers):
            pytest.skip("this kernel has no Landlock or no seccomp")
        assert without.run([RIGHT + "\nopen('own', 'w').close()"]) == ["passed"]
        results = without.run(programs[:-1])
    assert all("ermitted" in r or "denied" in r for r in results), results
    assert not (tmp_path / "new").exists()


def test_nothing_is_left_of_the_programs(executor):
    executor.run(["import os\nos.makedirs('a/b')\nopen('a/b/c', 'w').close()"])
    assert os.listdir(executor.place) == []
    with Executor(seconds=1.0, workers=1) as other:
        other.run(["1"])
        place = other.place
    assert not os.path.exists(place)


def test_pass_at_k_is_the_share_of_draws_with_a_right_answer():
    for total, right, k in itertools.product(range(1, 6), range(6), range(1, 6)):
        if right <= total >= k:
            draws = list(itertools.combinations([n < right for n in range(total)], k))
            assert math.isclose(pass_at_k(total, right, k), sum(map(any, draws)) / len(draws))


def test_the_metric_has_the_form_of_evaluates(executor):
    metric = CodeEval(executor)
    wrong = "def add(a, b):\n    return 7"
    asked = {"references": [TEST, TEST], "predictions": [[RIGHT, wrong, wrong], [wrong, wrong, wrong]]}
    with pytest.raises(UserError, match="--allow-code"):
        metric.compute(**asked)
    metric.allowed = True
    scores, details = metric.compute(**asked, k=[1, 2, 4])
    assert scores == {"pass@1": pytest.approx(1 / 6), "pass@2": pytest.approx(1 / 3)}
    assert [entry["passed"] for _, entry in details[0]] == [True, False, False]
    assert details[1][2] == (2, {"task_id": 1, "passed": False, "result": "failed: ", "completion_id": 2})


def test_mbpp_counts_the_programs_of_its_own_examples(monkeypatch):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks._yaml_loader import load_yaml

    install(True)
    try:
        task = load_yaml(os.path.join(os.path.dirname(lm_eval.__file__), "tasks", "mbpp", "mbpp.yaml"))
        score = task["metric_list"][0]["metric"]
        for example in task["fewshot_config"]["samples"]():
            test = "\n".join(example["test_list"])
            assert score([test], [[example["code"]]]) == 1.0
            assert score([test], [["return None".join(example["code"].rsplit("return", 1))]]) == 0.0
    finally:
        install(False)
        module.CODE_EVAL.close()


def test_the_harness_gets_the_metric_only_where_it_was_allowed(monkeypatch):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks._yaml_loader import load_yaml

    for name in [name for name in sys.modules if name.startswith("lm_eval.tasks.humaneval")]:
        monkeypatch.delitem(sys.modules, name)
    official = os.path.join(os.path.dirname(lm_eval.__file__), "tasks", "humaneval", "humaneval.yaml")
    install(False)
    import evaluate

    assert not hasattr(evaluate, "__wrapped__") and evaluate.__name__ == "evaluate"
    with pytest.raises(UserError, match="--allow-code"):
        load_yaml(official)
    install(True)
    try:
        score = load_yaml(official)["metric_list"][0]["metric"]
        assert score(references=[TEST], predictions=[[RIGHT]], k=[1]) == {"pass@1": 1.0}
        assert score(references=[TEST], predictions=[["def add(a, b): return 4"]], k=[1]) == {"pass@1": 0.0}
        install(False)
        with pytest.raises(UserError, match="--allow-code"):
            score(references=[TEST], predictions=[[RIGHT]], k=[1])
    finally:
        install(False)
        module.CODE_EVAL.close()
