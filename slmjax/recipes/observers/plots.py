"""Curves of a run as PNG, from its metrics.jsonl."""

from pathlib import Path
from typing import Any

import numpy as np

from slmjax.errors import UserError
from slmjax.figures import new_figure, tidy, write_figure
from slmjax.training.reporting.metrics import read_metrics

TASK = "task/"  # before a task's name in the metrics


def plot_loss(metrics_jsonl: str | Path, png: str | Path, title: str = "") -> None:
    """Draw the training loss (raw and smoothed), the validation loss and, beneath, the learning rate, over tokens.

    Reads the fields loss, learning_rate and tokens (steps where there are no tokens). Raises UserError when the file
    has no training loss.
    """
    from matplotlib.ticker import EngFormatter

    lines = read_metrics(metrics_jsonl) if Path(metrics_jsonl).is_file() else []
    train = [line for line in lines if line.get("split") == "train"]
    if not any(line.get("loss") is not None for line in train):
        raise UserError(
            f"{metrics_jsonl} has no training loss to draw; give the metrics.jsonl of a run that has begun."
        )
    x_name = "tokens" if all("tokens" in line for line in train) else "step"

    figure = new_figure()
    loss_axes, rate_axes = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    x, loss = _column(train, x_name, train), _column(train, "loss", train)
    loss_axes.plot(x, loss, color="#9ecae1", linewidth=0.8, label="training, as logged")
    loss_axes.plot(x, _smoothed(loss), color="#08519c", linewidth=1.8, label="training, smoothed")
    validation = [line for line in lines if line.get("split") == "validation" and line.get("loss") is not None]
    if validation:
        v_x, v_loss = _column(validation, x_name, train), _column(validation, "loss", train)
        loss_axes.plot(v_x, v_loss, "o-", color="#d94801", markersize=4.5, linewidth=1.2, label="validation")
        loss_axes.annotate(
            f"{v_loss[-1]:.3f}", (v_x[-1], v_loss[-1]), (0, 8), textcoords="offset points", color="#d94801", ha="center"
        )
    finite = loss[np.isfinite(loss)]
    # A spike or the first steps should not squash the part that matters.
    low, high = finite.min(), np.quantile(finite, 0.995)
    loss_axes.set_ylim(low - 0.05 * (high - low) - 1e-3, high + 0.08 * (high - low) + 1e-3)
    loss_axes.set_ylabel("loss (nats per token)")
    loss_axes.legend(frameon=False, loc="upper right")
    loss_axes.set_title(
        title or Path(metrics_jsonl).resolve().parent.name, loc="left", fontweight="bold", parse_math=False
    )

    rate_axes.plot(x, _column(train, "learning_rate", train), color="#31a354", linewidth=1.4)
    rate_axes.set_ylabel("learning rate")
    rate_axes.set_ylim(bottom=0)
    rate_axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
    rate_axes.set_xlabel("training tokens" if x_name == "tokens" else "step")
    rate_axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    rate_axes.margins(x=0.02)
    for axes in (loss_axes, rate_axes):
        tidy(axes)
    write_figure(figure, png)


def is_score(name: str) -> bool:
    """Whether a number of the metrics is a task's score."""
    return name.startswith(TASK) and not name.partition(",")[0].endswith("_stderr")


def metric_of(name: str) -> str:
    """The metric of a task's score: `acc` of `task/piqa/acc`."""
    return name.rpartition("/")[2].partition(",")[0]


def plot_tasks(metrics_jsonl: str | Path, png: str | Path, title: str = "") -> None:
    """Draw scores of tasks over the steps of a run, with their standard errors.

    Of each task one share (0 to 1), `acc_norm` where there is one, and in a panel beneath one other number (a
    perplexity), those that there are. Nothing is drawn where there is no score.
    """
    panels = _score_curves(metrics_jsonl)
    drawn = {label: curves for label, curves in zip(("score", "other scores"), panels, strict=True) if curves}
    if not drawn:
        return
    figure = new_figure()
    all_axes = np.atleast_1d(figure.subplots(len(drawn), 1, sharex=True))
    for axes, (label, curves) in zip(all_axes, drawn.items(), strict=True):
        for name, curve in curves.items():
            steps, scores, errors = zip(*curve, strict=True)
            axes.errorbar(
                steps, scores, errors, marker="o", markersize=4.5, linewidth=1.4, capsize=2, elinewidth=0.7, label=name
            )
        axes.set_ylabel(label)
        axes.legend(frameon=False, fontsize="small", ncols=2)
        axes.margins(x=0.06, y=0.2)
        tidy(axes)
    heading = f"{title}: tasks, with one standard error" if title else "Tasks, with one standard error"
    all_axes[0].set_title(heading, loc="left", weight="bold", parse_math=False)
    all_axes[-1].set_xlabel("step")
    write_figure(figure, png)


Curves = dict[str, list[tuple[int, float, float]]]  # (step, score, standard error) by what the score is called


def _score_curves(metrics_jsonl: str | Path) -> tuple[Curves, Curves]:
    """Shares and other numbers, one of each kind of a task at most."""
    lines = [line for line in read_metrics(metrics_jsonl) if line.get("split") == "validation"]
    chosen: dict[tuple[str, bool], str] = {}
    for name in dict.fromkeys(name for line in lines for name in line if is_score(name)):
        values = [line[name] for line in lines if line.get(name) is not None]
        key = name.rpartition("/")[0], all(0 <= value <= 1 for value in values)
        if values and (key not in chosen or metric_of(name) == "acc_norm"):
            chosen[key] = name
    shares, others = Curves(), Curves()
    for (_, is_share), name in chosen.items():
        metric, comma, kind = name.partition(",")
        error = f"{metric}_stderr{comma}{kind}"
        label = metric.removeprefix(TASK).replace("/", " ") + (f" ({kind})" if kind else "")
        curve = [(line["step"], line[name], line.get(error) or 0.0) for line in lines if line.get(name) is not None]
        (shares if is_share else others)[label] = curve
    return shares, others


def plot_forgetting(metrics_jsonl: str | Path, png: str | Path, title: str = "") -> None:
    """Draw the validation loss (what is gained) and the general loss (what is forgotten) over the steps of a run.

    Beneath them, where tasks were scored, how far each one's share of right answers has moved from the first one.
    """
    lines = [line for line in read_metrics(metrics_jsonl) if line.get("split") == "validation"]
    curves = {
        name: [(line["step"], line[name]) for line in lines if line.get(name) is not None]
        for name in ("validation_loss", "general_loss")
    }
    drawn = {name: points for name, points in curves.items() if points}
    scores, _ = _score_curves(metrics_jsonl)
    if not drawn and not scores:
        return
    figure = new_figure()
    axes = np.atleast_1d(figure.subplots(len(drawn) + bool(scores), 1, sharex=True))
    if scores:
        _draw_moves(axes[-1], scores)
    for ax, (name, points) in zip(axes, drawn.items(), strict=False):
        color = _COLORS[name]
        steps, losses = zip(*points, strict=True)
        ax.axhline(losses[0], color="#999999", linewidth=0.9, linestyle="--")
        ax.plot(steps, losses, "o-", color=color, markersize=4.5, linewidth=1.4)
        ax.annotate(
            f"{losses[-1] - losses[0]:+.3f}", (steps[-1], losses[-1]), (0, 8), textcoords="offset points", color=color
        )
        ax.set_ylabel(f"{name.replace('_', ' ')}\n(nats per token)")
        ax.margins(x=0.06, y=0.2)
        tidy(ax)
    axes[0].set_title(
        f"{title}: gained and forgotten" if title else "Gained and forgotten",
        loc="left",
        weight="bold",
        parse_math=False,
    )
    axes[-1].set_xlabel("step (dashed: before training)")
    write_figure(figure, png)


def _draw_moves(axes: Any, scores: Curves) -> None:
    axes.axhline(0.0, color="#999999", linewidth=0.9, linestyle="--")
    for name, curve in scores.items():
        steps, moves = [step for step, _, _ in curve], [score - curve[0][1] for _, score, _ in curve]
        axes.plot(steps, moves, "o-", markersize=4.5, linewidth=1.4, label=name)
    axes.set_ylabel("change of score")
    axes.legend(frameon=False, fontsize="small", ncols=2)
    axes.margins(x=0.06, y=0.2)
    tidy(axes)


def plot_interpolation(points: list[dict[str, float]], png: str | Path, title: str = "") -> None:
    """Draw losses over the mixing weight, 0 the base and 1 the fine-tuned network.

    points: of each its `weight`, and `validation_loss` and `general_loss` where they were measured.
    """
    figure = new_figure()
    axes = figure.subplots()
    weights = [point["weight"] for point in points]
    for name, color in _COLORS.items():
        if name in points[0]:
            label = name.replace("_", " ")
            axes.plot(weights, [p[name] for p in points], "o-", color=color, markersize=4.5, linewidth=1.4, label=label)
    axes.set_xlabel("weight of the fine-tuned network (0: the base)")
    axes.set_ylabel("loss (nats per token)")
    axes.set_title(title, loc="left", weight="bold", parse_math=False)
    axes.legend(frameon=False)
    tidy(axes)
    write_figure(figure, png)


_COLORS = {"validation_loss": "#08519c", "general_loss": "#d94801"}


def _column(lines: list[dict[str, Any]], name: str, train: list[dict[str, Any]]) -> np.ndarray:
    """float64 [len(lines)], NaN where a line has no such number; a validation line takes its tokens from its step."""
    if name == "tokens":
        steps, tokens = ([float(line[key]) for line in train] for key in ("step", "tokens"))
        return np.interp([line["step"] for line in lines], steps, tokens)
    return np.array([np.nan if line.get(name) is None else line[name] for line in lines], np.float64)


def _smoothed(values: np.ndarray) -> np.ndarray:
    """A centred Gaussian average (no lag behind a falling loss) over about 2% of the points; NaN has no weight."""
    sigma = min(0.01 * len(values), 500.0)
    if sigma < 0.5:
        return values
    offsets = np.arange(-round(3 * sigma), round(3 * sigma) + 1)
    window = np.exp(-0.5 * (offsets / sigma) ** 2)
    finite = np.isfinite(values)
    middle = slice(len(window) // 2, len(window) // 2 + len(values))
    total = np.convolve(np.where(finite, values, 0.0), window)[middle]
    weight = np.convolve(finite.astype(np.float64), window)[middle]
    return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 1e-9)
