"""The scaling law against its paper's numbers, and a run's place by it."""

import numpy as np
import pytest

from slmjax.training.reporting.scaling_laws import BESIROGLU, chinchilla_report


def test_the_law_gives_the_published_numbers():
    """Losses at (1B, 20B), (1B, 1.5T), (135M, 2T); 5.76e23 FLOPs want 72B parameters."""
    runs = [(1e9, 20e9), (1e9, 1.5e12), (135e6, 2e12)]
    np.testing.assert_allclose([BESIROGLU.loss(*r) for r in runs], [2.530, 2.248, 2.601], atol=2e-3)
    assert BESIROGLU.optimal_params(5.76e23) == pytest.approx(7.2e10, rel=0.01)


def test_no_other_split_of_the_same_flops_beats_the_optimal_one():
    report = chinchilla_report(135_000_000, 2_000_000_000_000)
    assert report.tokens_per_param == pytest.approx(14815, rel=1e-3)
    assert report.multiple_of_chinchilla == pytest.approx(report.tokens_per_param / 20)
    assert report.optimal_params * report.optimal_tokens * 6 == pytest.approx(report.flops)
    others = [BESIROGLU.loss(n, report.flops / (6 * n)) for n in np.geomspace(1e7, 1e12, 101)]
    assert report.optimal_loss <= min(others)
    assert "135M parameters: 14,814.8 tokens per parameter, 741x Chinchilla's 20" in str(report)
    assert "estimated loss" in str(report)
    assert "a guess at this size" in str(chinchilla_report(2_500_000, 3_000_000))
