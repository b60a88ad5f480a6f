"""Programs in a process with limits: each request answered, whatever ends the process, and no file written."""

import contextlib
import time

import pytest

from slmjax.limited_process import LimitedProcess, ProcessEndedError

PROGRAM = """
def start(settings):
    if settings["broken"]:
        raise RuntimeError
    count = 0
    def handle(request):
        nonlocal count
        count += 1
        if request == "loop":
            while True: pass
        if request == "sleep":
            import time; time.sleep(600)
        if request == "memory":
            return len(bytearray(1 << 33))
        if request == "end":
            import os; os._exit(0)
        if request == "write":
            try:
                with open(settings["file"], "w") as file:
                    file.write("x" * 100)
            except OSError as error:
                return type(error).__name__
        if request == "modules":
            import sys; return "site" in sys.modules and sys.flags.isolated
        return [request, count]
    return {"started": True}, handle
"""


@pytest.fixture
def make(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    made = []

    def make(wait=20.0, broken=False, isolated=True):
        settings = {"broken": broken, "file": str(tmp_path / "file")}
        limits = {"memory": 1 << 28, "seconds": 0.5, "wait": wait, "wait_for_start": 60.0}
        made.append(LimitedProcess(tmp_path / "program.py", settings, **limits, isolated=isolated))
        return made[-1]

    yield make
    for process in made:
        process.close()


@pytest.mark.parametrize("isolated", [False, True])
def test_requests_are_answered_in_one_process_until_it_is_closed(make, isolated):
    process = make(isolated=isolated)
    assert process.start() == {"started": True}
    assert process.ask("modules") == isolated
    assert [process.ask(text) for text in ("a", "é\ud800")] == [["a", 2], ["é\ud800", 3]]
    with pytest.raises(TypeError):
        process.ask(object())
    assert process.ask("b") == ["b", 4]
    process.close()
    assert process.pid is None
    assert process.ask("c") == ["c", 1]  # begun anew


@pytest.mark.parametrize("request_", ["loop", "memory", "end"])
def test_a_process_that_ends_by_its_limits_is_begun_anew(make, request_):
    process = make()
    process.ask("a")
    with pytest.raises(ProcessEndedError) as caught:
        process.ask(request_)
    assert not caught.value.expired
    assert process.ask("b") == ["b", 1]


def test_whoever_waits_can_give_up(make):
    process = make(wait=0.3)
    process.start()
    began = time.monotonic()
    with pytest.raises(ProcessEndedError) as caught:
        process.ask("sleep")
    assert caught.value.expired and time.monotonic() - began < 20
    assert process.pid is None


def test_nothing_can_be_written(make, tmp_path):
    process = make()
    with contextlib.suppress(ProcessEndedError):  # by the system's signal for a file that is too large
        assert process.ask("write") == "OSError"
    assert not (tmp_path / "file").exists() or not (tmp_path / "file").read_bytes()


def test_a_program_that_does_not_start(make):
    with pytest.raises(ProcessEndedError):
        make(broken=True).start()
