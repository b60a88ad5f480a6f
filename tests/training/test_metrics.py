"""Metrics: what is on disk after a kill and a resume; the derived numbers against published ones; the picture."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from slmjax.errors import UserError
from slmjax.recipes.observers.plots import plot_loss
from slmjax.training.reporting import metrics
from slmjax.training.reporting.metrics import MetricsWriter, read_metrics
from slmjax.training.reporting.progress import Progress


def test_each_line_is_on_disk_as_valid_json_before_close(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    writer.write(1, {"loss": np.float32(2.5), "grad_norm": float("nan"), "ratio": float("inf")})
    writer.write(1, {"loss": 2.75}, split="validation")
    strict = lambda name: pytest.fail(f"{name} is not JSON")  # noqa: E731
    lines = [json.loads(t, parse_constant=strict) for t in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 1, "split": "train", "loss": 2.5, "grad_norm": None, "ratio": None},
        {"step": 1, "split": "validation", "loss": 2.75},
    ]
    writer.close()
    writer.close()


def test_a_resumed_run_has_every_step_once(tmp_path):
    """Killed at step 9 in the middle of a line, resumed from the checkpoint of step 6."""
    first = MetricsWriter(tmp_path, tensorboard=False)
    for step in range(1, 10):
        first.write(step, {"loss": step})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 10, "lo')
    second = MetricsWriter(tmp_path, keep_up_to=6, tensorboard=False)
    for step in range(7, 12):
        second.write(step, {"loss": step})
    second.close()
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 12))
    MetricsWriter(tmp_path, tensorboard=False).close()
    assert read_metrics(tmp_path / "metrics.jsonl") == []  # a fresh start begins with an empty file


def test_tensorboard_gets_the_same_numbers_without_holding_up_the_writer(tmp_path):
    writer = MetricsWriter(tmp_path)
    start = time.perf_counter()
    writer.write(1, {"loss": 2.0})
    assert time.perf_counter() - start < 0.5  # the import alone takes longer
    writer.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"train/loss" in events.read_bytes()


def test_importing_the_metrics_does_not_import_what_is_heavy():
    code = "import sys; import slmjax.training.loop, slmjax.recipes.observers.plots; "
    code += "print([m for m in ('matplotlib', 'tensorboardX', 'orbax', 'torch', 'tensorflow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_an_unwritable_workdir_is_a_users_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--workdir"):
        MetricsWriter(tmp_path / "file" / "run")


def test_bits_per_byte():
    assert metrics.bits_per_byte(8 * np.log(2), 4) == pytest.approx(2.0)
    assert np.isnan(metrics.bits_per_byte(1.0, 0))


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v5", 459),
        ("TPU v6 lite", 918),
        ("TPU7x", 2307 / 2),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H200", 989),
        ("NVIDIA B200", 2237),
    ],
)
def test_peak_flops_by_device_kind(kind, teraflops):
    assert metrics.peak_flops(kind) == pytest.approx(teraflops * 1e12)
    # At exactly the peak the utilization is 1, whatever the number of devices.
    assert metrics.model_flops_utilization(8 * teraflops * 1e12 / 6e9, 6e9, teraflops * 1e12, 8) == pytest.approx(1)


def test_an_unknown_device_has_no_utilization():
    assert metrics.peak_flops("cpu") is None


def test_device_memory_is_at_least_what_this_process_holds():
    block = np.ones(20_000_000, np.uint8)
    assert metrics.device_memory_bytes() > block.nbytes


def test_scaling_laws_give_the_published_numbers():
    """Losses at (1B, 20B), (1B, 1.5T), (135M, 2T); 5.76e23 FLOPs want 72B (replication) or 32B parameters."""
    runs = [(1e9, 20e9), (1e9, 1.5e12), (135e6, 2e12)]
    np.testing.assert_allclose([metrics.HOFFMANN.loss(*r) for r in runs], [2.580, 2.204, 2.538], atol=2e-3)
    np.testing.assert_allclose([metrics.BESIROGLU.loss(*r) for r in runs], [2.530, 2.248, 2.601], atol=2e-3)
    assert metrics.BESIROGLU.optimal_params(5.76e23) == pytest.approx(7.2e10, rel=0.01)
    assert metrics.HOFFMANN.optimal_params(5.76e23) == pytest.approx(3.22e10, rel=0.01)


def test_no_other_split_of_the_same_flops_beats_the_optimal_one():
    report = metrics.chinchilla_report(135_000_000, 2_000_000_000_000)
    assert report.tokens_per_param == pytest.approx(14815, rel=1e-3)
    assert report.multiple_of_chinchilla == pytest.approx(report.tokens_per_param / 20)
    assert report.optimal_params * report.optimal_tokens * 6 == pytest.approx(report.flops)
    others = [metrics.BESIROGLU.loss(n, report.flops / (6 * n)) for n in np.geomspace(1e7, 1e12, 101)]
    assert report.optimal_loss <= min(others)
    assert "135M parameters: 14,814.8 tokens per parameter, 741x Chinchilla's 20" in str(report)
    assert "estimated loss" in str(report)
    assert "a guess at this size" in str(metrics.chinchilla_report(2_500_000, 3_000_000))


def test_the_loss_curve_is_a_picture_and_stands_gaps(tmp_path):
    writer = MetricsWriter(tmp_path, tensorboard=False)
    for step in range(1, 60):
        loss = float("nan") if step == 30 else 3 + 5 / step
        writer.write(step, {"loss": loss, "learning_rate": 1e-3, "tokens": 1000 * step})
        if step % 20 == 0:
            writer.write(step, {"loss": 3.2}, split="validation")
    writer.close()
    plot_loss(tmp_path / "metrics.jsonl", tmp_path / "plots" / "loss.png")
    assert (tmp_path / "plots" / "loss.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="no training loss"):
        plot_loss(tmp_path / "nothing.jsonl", tmp_path / "loss.png")


def test_progress_in_a_log_is_a_few_plain_lines(capsys):
    with Progress(total_steps=1000, seconds_between_lines=3600) as progress:
        for step in range(1, 1001):
            progress.update(step, loss=2.5, tokens_per_second=12_345, mfu=0.412)
        progress.say("saved")
    error = capsys.readouterr().err
    assert "\r" not in error
    assert error.splitlines() == [
        "step 1/1000: loss 2.5000, 12.3k tokens/s, MFU 41.2%",
        "step 1000/1000: loss 2.5000, 12.3k tokens/s, MFU 41.2%",
        "saved",
    ]


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress(total_steps=20, start_step=10) as progress:
        progress.update(20, loss=1.5, tokens_per_second=999)
    error = capsys.readouterr().err
    assert "20/20" in error and "loss 1.5000, 999 tokens/s" in error


def test_the_time_left_does_not_count_the_first_step_with_its_compilation(monkeypatch, capsys):
    clock = iter([30.0, 40.0, 41.0, 100.0])  # steps 1, 2, 3, 4 finish
    monkeypatch.setattr("slmjax.training.reporting.progress.time.monotonic", lambda: next(clock))
    progress = Progress(total_steps=1000, seconds_between_lines=5)
    for step in (1, 2, 3, 4):
        progress.update(step, loss=2.0, tokens_per_second=10)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3  # step 3 came too soon
    assert lines[1].endswith(", 2:46:20 left") and "left" not in lines[0]
