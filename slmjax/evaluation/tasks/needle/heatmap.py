"""Needles that were found, by the length of the text and the depth of the needle in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slmjax.evaluation.tasks.needle.items import KINDS, found_strings
from slmjax.figures import new_figure, short_name, write_figure

BANDS = 10  # of depth, a tenth of the text each


def needle_samples(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Sequence[Mapping[str, Any]]]:
    """The samples of needle tasks among those of an evaluation."""
    return {name: found for name, found in samples.items() if name in KINDS and found}


def depth_by_length(samples: Sequence[Mapping[str, Any]]) -> tuple[list[int], np.ndarray]:
    """The lengths, and the share of needles found by band of depth and length, float64 [BANDS, lengths].

    NaN where none was hidden. samples: of one task, as the harness gives them.
    """
    lengths = sorted({sample["doc"]["max_length"] for sample in samples})
    found, hidden = np.zeros((2, BANDS, len(lengths)))
    for sample in samples:
        item = sample["doc"]
        column = lengths.index(item["max_length"])
        hits = found_strings(sample["filtered_resps"][0], item["outputs"])
        for depth, hit in zip(item["depths"], hits, strict=True):
            band = min(depth * BANDS // 100, BANDS - 1)
            found[band, column] += hit
            hidden[band, column] += 1
    return lengths, np.divide(found, hidden, out=np.full_like(found, np.nan), where=hidden > 0)


def plot_needles(samples: Mapping[str, Sequence[Mapping[str, Any]]], png: str | Path, title: str = "") -> None:
    """Draw depth over length for each task, from red (no needle found) to green (all), with the share in percent."""
    grids = {name: depth_by_length(found) for name, found in samples.items()}
    widest = max(len(lengths) for lengths, _ in grids.values())
    figure = new_figure(1.6 + len(grids) * (1.3 + 0.55 * widest), 4.6)
    all_axes = figure.subplots(1, len(grids), sharey=True, squeeze=False)[0]
    for axes, (name, (lengths, share)) in zip(all_axes, grids.items(), strict=True):
        axes.imshow(share, cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
        for band, column in np.argwhere(np.isfinite(share)):
            percent = 100 * share[band, column]
            color = "black" if 15 < percent < 85 else "white"
            axes.text(column, band, f"{percent:.0f}", ha="center", va="center", fontsize=8, color=color)
        axes.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths], rotation=45, ha="right")
        axes.set_title(name.removeprefix("needle_"), fontsize=10)
        axes.set_xlabel("length (tokens)")
        axes.spines[:].set_visible(False)
    step = 100 // BANDS
    all_axes[0].set_yticks(range(BANDS), [f"{low}-{low + step}" for low in range(0, 100, step)])
    all_axes[0].set_ylabel("depth of the needle (%)")
    heading = f"Needles found (%)\n{short_name(title, 40)}" if title else "Needles found (%)"
    figure.suptitle(heading, x=0.01, ha="left", weight="bold", fontsize=11, parse_math=False)
    write_figure(figure, png)
