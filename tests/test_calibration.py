"""Calibration scores against laws whose calibration is known exactly."""

import math

import pytest
import torch

from zoo.lab import scores


def test_crps_of_a_normal_has_its_closed_form() -> None:
    torch.manual_seed(0)
    y = torch.linspace(-2, 3, 400)
    sample = 0.5 + 1.5 * torch.randn(4000, 400)
    z = (y - 0.5) / 1.5
    normal = torch.distributions.Normal(0.0, 1.0)
    exact = 1.5 * (z * (2 * normal.cdf(z) - 1) + 2 * normal.log_prob(z).exp() - 1 / math.sqrt(math.pi))
    assert scores.crps(y, sample) == pytest.approx(float(exact.mean()), abs=2e-3)


def test_crps_of_few_draws_is_fair_and_of_two_is_by_hand() -> None:
    y, sample = torch.tensor([1.0]), torch.tensor([[0.0], [3.0]])
    assert scores.crps(y, sample) == pytest.approx((1 + 2) / 2 - 3 / 2)
    torch.manual_seed(0)
    many = torch.stack([torch.tensor(scores.crps(torch.zeros(2000), torch.randn(s, 2000))) for s in (2, 5, 1000)])
    exact = 2 / math.sqrt(2 * math.pi) - 1 / math.sqrt(math.pi)
    assert (many - exact).abs().max() < 0.05 and abs(float(many[-1]) - exact) < 2e-3


def test_crps_needs_two_draws() -> None:
    with pytest.raises(ValueError, match="two predictive draws"):
        scores.crps(torch.zeros(3), torch.zeros(1, 3))


def test_the_pit_of_a_calibrated_law_is_uniform() -> None:
    torch.manual_seed(0)
    y, sample = torch.randn(5000), torch.randn(99, 5000)
    values = scores.pit(y, sample)
    assert values.min() > 0 and values.max() < 1
    for edge in (0.1, 0.5, 0.9):
        assert abs(float((values < edge).double().mean()) - edge) < 5 * math.sqrt(edge * (1 - edge) / 5000)


@pytest.mark.parametrize(("spread", "promised"), [(1.0, 0.9), (0.5, None), (2.0, None)])
def test_coverage_and_reliability_of_a_normal_of_known_spread(spread: float, promised: float | None) -> None:
    """Intervals of N(0, spread^2) hold a standard normal with probability 2 Phi(spread z) - 1."""
    torch.manual_seed(0)
    y, sample = torch.randn(4000), spread * torch.randn(999, 4000)
    normal = torch.distributions.Normal(0.0, 1.0)
    curve = scores.reliability(y, sample)
    z = normal.icdf((1 + curve.promised) / 2)
    truth = 2 * normal.cdf(spread * z) - 1
    assert (curve.observed - truth).abs().max() < 5 * math.sqrt(0.25 / 4000) + 2e-3
    held = 2 * float(normal.cdf(spread * normal.icdf(torch.tensor(0.95)))) - 1
    assert scores.coverage(y, sample) == pytest.approx(held, abs=0.025)
    if promised is None:
        assert curve.error > 0.1
    else:
        assert curve.error < 0.02


def test_reliability_of_classes_by_hand() -> None:
    probs = torch.tensor([[0.9, 0.1], [0.85, 0.15], [0.3, 0.7], [0.45, 0.55]])
    curve = scores.reliability_of_classes(torch.tensor([0, 1, 1, 0]), probs, bins=5)
    torch.testing.assert_close(curve.data, torch.tensor([0, 0, 1, 1, 2]))
    torch.testing.assert_close(curve.promised[2:], torch.tensor([0.55, 0.7, 0.875]))
    torch.testing.assert_close(curve.observed[2:], torch.tensor([0.0, 1.0, 0.5]))
    assert curve.promised[:2].isnan().all()
    assert curve.error == pytest.approx(0.25 * 0.55 + 0.25 * 0.3 + 0.5 * 0.375)


def test_a_certain_prediction_falls_into_the_last_bin() -> None:
    curve = scores.reliability_of_classes(torch.tensor([0]), torch.tensor([[1.0, 0.0]]), bins=10)
    assert int(curve.data[-1]) == 1 and curve.error == 0.0


def test_a_level_is_a_probability() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        scores.coverage(torch.zeros(2), torch.zeros(3, 2), level=90)
