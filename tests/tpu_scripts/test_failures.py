"""tpu.sh against a false gcloud that fails for a moment, refuses what exists, suspends, and restarts hosts."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tpu_scripts" / "tpu.sh"
PLACE = ["--name", "slm", "--zone", "us-west4-a", "--every", "0.1"]
ARGUMENTS = ["--", "--config", "c.py", "--workdir", "~/bucket/r"]
# $FAKE/failing: "KIND MODULUS": of the calls of a kind, each is refused whose number is a multiple of MODULUS plus 1.
GCLOUD = """#!/usr/bin/env bash
for kind in create describe delete scp ssh; do case " $* " in *" $kind "*) break ;; esac; done
echo "$kind $*" >> "$FAKE/calls"
number=$(grep -c "^$kind " "$FAKE/calls")
while read -r failing modulus; do
  if [ "$failing" = "$kind" ] && [ $((number % modulus)) = $((1 % modulus)) ]; then
    echo "ERROR: (gcloud) ${FAKE_ERROR:-UNAVAILABLE: try again}" >&2; exit "${FAKE_STATUS:-1}"
  fi
done < <(cat "$FAKE/failing" 2> /dev/null)
read -r state next < <(cat "$FAKE/state" 2> /dev/null)
case $kind in
  create)
    [ -z "$state" ] || { echo "ERROR: ALREADY_EXISTS" >&2; exit 1; }
    echo "${FAKE_CREATED:-ACTIVE}" > "$FAKE/state" ;;
  describe)
    [ -n "$state" ] || { echo "ERROR: NOT_FOUND" >&2; exit 1; }
    echo "$state"
    [ -z "$next" ] || echo "$next" > "$FAKE/state"
    [ "$next" != NONE ] || rm "$FAKE/state" ;;
  delete)
    [ -n "$state" ] || { echo "ERROR: NOT_FOUND" >&2; exit 1; }
    rm -rf "$FAKE/state" "$FAKE"/home/train.* "$FAKE/home/bucket" ;;
  ssh) for word; do case $word in
    --command=*venv*install*) mkdir -p "$FAKE/home/slmjax" ;;
    --command=*) HOME=$FAKE/home bash -c "${word#--command=}" || exit ;;
  esac; done ;;
esac
"""
SLMJAX = """#!/usr/bin/env bash
# Says in which directory it trains; ends, or lives as its number in $FAKE/lives says.
where=$([ -e "$HOME/bucket/.mounted" ] && echo mounted || echo bare)
echo "$where $(pgrep -c -f "$FAKE/home/venv/bin/slmjax train")" >> "$FAKE/runs"
case $(sed -n "$(wc -l < "$FAKE/runs")p" "$FAKE/lives" 2> /dev/null) in
  saved) rm -rf "$HOME/bucket"; echo "SIGTERM: saved step 3; the same command goes on from there." ;;
  killed) kill -KILL $$ ;;
  vanished) rm -rf "$HOME/bucket"; kill -KILL $PPID $$ ;;
  aborted) exit 134 ;;
  long) sleep 30 ;;
  *) sleep 0.3; echo "Step 9 of 9" ;;
esac
"""
PROGRAMS = {
    "bin/gcloud": GCLOUD,
    "home/venv/bin/slmjax": SLMJAX,
    "bin/mountpoint": '#!/bin/sh\ntest -e "$2/.mounted"\n',
    "bin/gcsfuse": '#!/bin/sh\nfor last; do :; done; touch "$last/.mounted"\n',
    "bin/fusermount": "#!/bin/sh\nexit 1\n",
}


@pytest.fixture
def cloud(tmp_path):
    """cloud(COMMAND, OPTION, ...): tpu.sh, done; what it left lies in tmp_path."""
    for name, text in PROGRAMS.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    (tmp_path / "home" / "slmjax").mkdir()
    environment = {**os.environ, "FAKE": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}

    def tpu(*arguments, **changes):
        return subprocess.run(
            [str(SCRIPT), arguments[0], *PLACE, *arguments[1:]],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment | changes,
        )

    return tpu


def runs(tmp_path):
    return (tmp_path / "runs").read_text().splitlines()


def calls(tmp_path, kind):
    return sum(line.startswith(f"{kind} ") for line in (tmp_path / "calls").read_text().splitlines())


@pytest.mark.parametrize("kind", ["create", "describe", "scp", "ssh", "delete"])
def test_a_command_that_fails_every_second_time_stops_nothing(cloud, tmp_path, kind):
    (tmp_path / "failing").write_text(f"{kind} 2\n")
    (tmp_path / "state").write_text("SUSPENDED")
    done = cloud("watch", "--bucket", "b", *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    assert runs(tmp_path) == ["mounted 1"]
    assert cloud("status").stdout.splitlines() == ["slice: ACTIVE", "training: done"]
    assert cloud("delete").returncode == 0 and not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("command", "state", "made"),
    [
        ("create", "ACTIVE", 0),
        ("create", "WAITING_FOR_RESOURCES ACTIVE", 0),
        ("create", "PROVISIONING ACTIVE", 0),
        ("create", "SUSPENDED", 1),
        ("create", "SUSPENDING SUSPENDED", 1),
        ("create", "FAILED", 1),
        ("create", "DELETING NONE", 1),
        ("watch", "ACTIVE", 0),
        ("watch", "SUSPENDING SUSPENDED", 1),
    ],
)
def test_any_state_before_leads_to_a_slice(cloud, tmp_path, command, state, made):
    (tmp_path / "state").write_text(state)
    done = cloud(command, *(ARGUMENTS if command == "watch" else []))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "state").read_text().strip() == "ACTIVE" and calls(tmp_path, "create") == made


def test_a_request_that_arrived_without_its_answer_is_not_made_twice(cloud, tmp_path):
    (tmp_path / "state").write_text("ACCEPTED ACTIVE")
    (tmp_path / "failing").write_text("describe 3\n")
    assert cloud("create").returncode == 0 and calls(tmp_path, "create") == 0


@pytest.mark.parametrize("state", ["", "ACTIVE", "SUSPENDED", "FAILED", "DELETING NONE"])
def test_delete_ends_with_nothing_left(cloud, tmp_path, state):
    if state:
        (tmp_path / "state").write_text(state)
    assert cloud("delete").returncode == 0 and not (tmp_path / "state").exists()


@pytest.mark.parametrize("end", ["saved", "killed", "vanished", "aborted"])
def test_a_training_that_ended_early_goes_on_and_on_the_bucket(cloud, tmp_path, end):
    (tmp_path / "lives").write_text(f"{end}\n")
    done = cloud("watch", "--bucket", "b", *ARGUMENTS)
    assert done.returncode == 0, done.stderr
    assert runs(tmp_path) == ["mounted 1", "mounted 1"]


def test_training_twice_starts_once_and_a_number_of_another_process_is_no_training(cloud, tmp_path):
    (tmp_path / "state").write_text("ACTIVE")
    (tmp_path / "lives").write_text("long\n")
    (tmp_path / "home" / "train.pid").write_text(str(os.getpid()))  # as after a restart of the host
    try:
        for _ in range(2):
            assert cloud("train", "--bucket", "b", *ARGUMENTS).returncode == 0
        assert cloud("status").stdout.splitlines() == ["slice: ACTIVE", "training: running"]
        time.sleep(0.2)
        assert runs(tmp_path) == ["mounted 1"]
    finally:
        os.killpg(int((tmp_path / "home" / "train.pid").read_text()), signal.SIGKILL)


@pytest.mark.parametrize("command", ["create", "watch", "status", "delete"])
def test_a_refusal_is_told_in_the_words_of_gcloud_at_once(cloud, tmp_path, command):
    (tmp_path / "failing").write_text("describe 1\n")
    done = cloud(command, *(ARGUMENTS if command == "watch" else []), FAKE_ERROR="PERMISSION_DENIED: no project x")
    assert done.returncode == 2 and "PERMISSION_DENIED: no project x" in done.stderr
    assert calls(tmp_path, "describe") == 1 and calls(tmp_path, "create") == 0


def test_what_never_answers_is_given_up(cloud, tmp_path):
    (tmp_path / "failing").write_text("describe 1\n")
    done = cloud("create", "--every", "0")
    assert done.returncode == 2 and "UNAVAILABLE: try again, 30 times in a row" in done.stderr
    done = cloud("status", "--every", "0")
    assert done.returncode == 2 and done.stdout == "" and "UNAVAILABLE" in done.stderr


def test_a_request_that_fails_again_is_given_up(cloud, tmp_path):
    done = cloud("create", FAKE_CREATED="FAILED")
    assert done.returncode == 2 and "was not created (state FAILED)" in done.stderr and calls(tmp_path, "create") == 2
    assert cloud("create", "--type", "h100", "--name", "other").returncode == 2
    assert cloud("create", "--every", "soon").returncode == 2
