"""tpu.sh: what it would run, and a whole life of a slice against a gcloud that is not one.

The false gcloud keeps the slice's state in a file, and runs what is sent to a host in a directory of this machine; a
false slmjax stands for the training. No Cloud TPU was created by these tests.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tpu_scripts" / "tpu.sh"
COMMANDS = ["create", "install", "mount", "train", "logs", "status", "watch", "fetch", "delete"]
PLACE = ["--name", "slm", "--zone", "us-west4-a"]
GCLOUD = """#!/usr/bin/env bash
echo "$*" >> "$FAKE/calls"
case "$*" in
  *"queued-resources create"*) echo ACTIVE > "$FAKE/state" ;;
  *"queued-resources describe"*) cat "$FAKE/state" 2> /dev/null || { echo NOT_FOUND >&2; exit 1; } ;;
  *"queued-resources delete"*) rm -rf "$FAKE/state" "$FAKE/home/train.log" "$FAKE/home/train.rc" ;;
  *"tpu-vm scp"*) mkdir -p "$FAKE/home/slmjax" ;;
  *venv*install*) ;;
  *"tpu-vm ssh"*) for word; do case $word in --command=*) HOME=$FAKE/home bash -c "${word#--command=}" ;; esac; done ;;
esac
"""
# The first run is preempted with its slice, the second saves after SIGTERM, the third ends.
SLMJAX = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> "$FAKE/runs"
case $(wc -l < "$FAKE/runs") in
  1) echo SUSPENDED > "$FAKE/state"; echo "SIGTERM: saved step 3 of 9; the same command goes on from there." ;;
  2) echo "SIGTERM: saved step 6 of 9; the same command goes on from there." ;;
  *) echo "Step 9 of 9"; exit "${FAKE_STATUS:-0}" ;;
esac
"""


def tpu(*arguments, env=None):
    return subprocess.run([str(SCRIPT), *arguments], capture_output=True, text=True, timeout=60, env=env)


@pytest.fixture
def cloud(tmp_path):
    """The environment of the false cloud, which lives in $FAKE."""
    for path, text in ((tmp_path / "bin" / "gcloud", GCLOUD), (tmp_path / "home/venv/bin/slmjax", SLMJAX)):
        path.parent.mkdir(parents=True)
        path.write_text(text)
        path.chmod(0o755)
    return {**os.environ, "FAKE": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}


def test_help_shows_every_command_and_an_example():
    said = tpu("--help")
    assert said.returncode == 0 and said.stderr == ""
    for word in [*COMMANDS, "--dry-run", "example:"]:
        assert word in said.stdout
    assert tpu().stdout == said.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["destroy"], "no command destroy"),
        (["create"], "needs --name and --zone"),
        (["create", *PLACE, "--tpye", "v5p-8"], "no option --tpye"),
        (["create", "--name"], "--name needs a value"),
        (["create", *PLACE, "--dry-run", "--type", "h100"], "no runtime is known for the type h100"),
        (["train", *PLACE, "--dry-run"], "needs the arguments of slmjax train"),
        (["mount", *PLACE, "--dry-run"], "needs --bucket"),
        (["fetch", "--dry-run"], "needs --bucket, --from and --to"),
    ],
)
def test_mistakes_are_a_sentence_and_status_2(arguments, said):
    done = tpu(*arguments)
    assert done.returncode == 2 and said in done.stderr and done.stdout == ""


def test_a_dry_run_prints_all_that_a_life_takes_and_runs_nothing(cloud):
    options = ["--dry-run", "--spot", "--project", "mine", "--bucket", "b", "--type", "v6e-8"]
    done = tpu("watch", *PLACE, *options, "--", "--config", "c.py", "--workdir", "~/bucket/x", env=cloud)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert "queued-resources create slm" in lines[0] and "--runtime-version=v2-alpha-tpuv6e --spot" in lines[0]
    for part in ("git -C", "tpu-vm scp", "[tpu]", "gcsfuse", "train --distributed"):
        assert any(part in line for line in lines), part
    assert all("--zone=us-west4-a --project=mine" in line for line in lines if line.startswith("gcloud"))
    assert not (Path(cloud["FAKE"]) / "calls").exists()
    assert "gcloud storage rsync --recursive gs://b/runs/x here" in tpu(
        "fetch", "--dry-run", "--bucket", "b", "--from", "runs/x", "--to", "here"
    ).stdout.replace("\\", "")


def test_watch_outlives_preemption_and_signals_and_passes_arguments_as_written(cloud, tmp_path):
    given = ["--config", "c.py", "--workdir", "~/bucket/x", "--config.data.cache_dir=~/c d", "it's $HOME *"]
    done = tpu("watch", *PLACE, "--every", "0.3", "--", *given, env=cloud)
    assert done.returncode == 0, done.stderr
    home = tmp_path / "home"
    expected = (
        f"train --distributed --config c.py --workdir {home}/bucket/x --config.data.cache_dir={home}/c d it's $HOME *"
    )
    # More than three where the false slice is seen to stop before it is seen to be lost, and is started in vain.
    runs = (tmp_path / "runs").read_text().splitlines()
    assert set(runs) == {expected} and len(runs) >= 3
    calls = (tmp_path / "calls").read_text()
    assert calls.count("queued-resources create") == 2 and calls.count("queued-resources delete") == 1
    assert "the training has ended" in done.stderr
    status = tpu("status", *PLACE, env=cloud)
    assert status.stdout.splitlines() == ["slice: ACTIVE", "training: done"]


def test_watch_reports_a_failure_and_stops(cloud, tmp_path):
    (tmp_path / "runs").write_text("\n\n")
    done = tpu("watch", *PLACE, "--every", "0.3", "--", "--config", "c.py", env={**cloud, "FAKE_STATUS": "2"})
    assert done.returncode == 2 and "failed with status 2" in done.stderr and "Step 9 of 9" in done.stderr


def test_shellcheck_has_nothing_to_say():
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed (extra dev)")
    done = subprocess.run(["shellcheck", str(SCRIPT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
