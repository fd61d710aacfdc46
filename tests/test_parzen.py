"""The Parzen score: the density it is, the width it chooses, and that it may turn a ranking upside down."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from guides.codes import states
from zoo.lab import scores
from zoo.lab.scores import PARZEN_WIDTHS, parzen, parzen_log_density


def by_hand(x: Tensor, samples: Tensor, sd: float) -> Tensor:
    """A mixture of Gaussian densities, one kernel at a time."""
    D = x.shape[1]
    kernels = [MultivariateNormal(s, sd**2 * torch.eye(D)).log_prob(x) for s in samples]
    return torch.stack(kernels).logsumexp(0) - math.log(len(samples))


@pytest.mark.equation("mix.18")
@pytest.mark.parametrize("sd", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("D", [1, 2, 7])
def test_a_single_kernel_is_the_gaussian_density(D: int, sd: float) -> None:
    x, centre = torch.randn(5, D), torch.randn(1, D)
    expected = MultivariateNormal(centre[0], sd**2 * torch.eye(D)).log_prob(x)
    torch.testing.assert_close(parzen_log_density(x, centre, sd), expected, rtol=1e-12, atol=1e-12)
    peak = parzen_log_density(centre, centre, sd)
    torch.testing.assert_close(peak, torch.tensor([-D / 2 * math.log(2 * math.pi * sd**2)]), rtol=0, atol=1e-12)


@pytest.mark.equation("mix.18")
@pytest.mark.parametrize(("n", "S"), [(1, 1), (4, 9), (40, 60)])
def test_many_kernels_are_their_mixture(n: int, S: int) -> None:
    x, samples = torch.randn(n, 3), torch.randn(S, 3)
    ours = parzen_log_density(x, samples, 0.3)
    assert ours.shape == (n,)
    torch.testing.assert_close(ours, by_hand(x, samples, 0.3), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(parzen_log_density(x, samples.repeat(5, 1), 0.3), ours, rtol=1e-11, atol=1e-11)


@pytest.mark.equation("mix.18")
def test_it_is_a_density() -> None:
    grid = torch.linspace(-6, 6, 601)
    points = torch.cartesian_prod(grid, grid)
    total = parzen_log_density(points, torch.randn(4, 2), 0.4).exp().sum() * (grid[1] - grid[0]) ** 2
    assert float(total) == pytest.approx(1, abs=1e-9)


def test_pictures_in_single_precision_are_worth_what_they_are_in_double() -> None:
    x, samples = (torch.bernoulli(torch.full((n, 64), 0.3)) for n in (50, 200))
    two = parzen_log_density(x, samples, 0.1)
    one = parzen_log_density(x.float(), samples.float(), 0.1)
    torch.testing.assert_close(one.double(), two, rtol=1e-5, atol=0)
    own = parzen_log_density(samples.float(), samples.float(), 0.1)  # distances of 0
    torch.testing.assert_close(own.double(), parzen_log_density(samples, samples, 0.1), rtol=0, atol=0.02)


@pytest.mark.equation("mix.18")
def test_the_width_is_chosen_on_validation_data_and_the_score_is_of_the_test_data() -> None:
    samples, valid, x = torch.randn(80, 2), 0.6 * torch.randn(30, 2), torch.randn(40, 2) + 1
    found = parzen(x, samples, valid)
    means = {sd: float(by_hand(valid, samples, sd).mean()) for sd in PARZEN_WIDTHS}
    assert found.sd == max(means, key=lambda sd: means[sd])
    log_p = by_hand(x, samples, found.sd)
    assert found.mean == pytest.approx(float(log_p.mean()), abs=1e-11)
    assert found.error == pytest.approx(float(log_p.std() / math.sqrt(40)), abs=1e-11)
    assert parzen(x + 5, samples, valid).sd == found.sd, "whatever the test data"
    best_for_test = max(PARZEN_WIDTHS, key=lambda sd: float(by_hand(x + 5, samples, sd).mean()))
    assert best_for_test != found.sd
    assert parzen(x, samples, x + 5).sd == best_for_test
    chosen = parzen(x, samples, valid, widths=[2.0, 5.0])
    assert chosen.sd == 2.0 and chosen.mean == pytest.approx(float(by_hand(x, samples, 2.0).mean()), abs=1e-11)


def test_the_widths_are_ten_in_equal_ratios() -> None:
    torch.testing.assert_close(torch.tensor(PARZEN_WIDTHS), torch.logspace(-1, 0, 10), rtol=1e-12, atol=0)


def test_one_datum_has_no_standard_error() -> None:
    found = parzen(torch.zeros(1, 2), torch.zeros(3, 2), torch.zeros(1, 2))
    assert found == scores.Parzen(pytest.approx(-math.log(2 * math.pi * 0.01)), 0.0, PARZEN_WIDTHS[0])


@pytest.mark.equation("mix.18")
def test_it_may_rank_the_true_law_last() -> None:
    """Two opposite prototypes of 16 bits under flips of probability .25: models of fewer flips are sharper.

    By the exact likelihood the true law is best by .5 and 3.6 nats; by the score of 30 samples it is worst, by .5 nats
    or more in the mean of 20 sets of samples (five standard errors), and in 18 of the sets or more.
    """
    D, codes = 16, states(16)
    prototype = (torch.arange(D) % 3 == 0).double()
    both = torch.stack([prototype, 1 - prototype])

    def log_law(flip: float) -> Tensor:
        far = torch.cdist(codes, both, p=1)
        return (far * math.log(flip) + (D - far) * math.log(1 - flip)).logsumexp(-1) - math.log(2)

    laws = {flip: log_law(flip) for flip in (0.25, 0.15, 0.05)}
    true = laws[0.25].exp()
    exact = [float(true @ log_p) for log_p in laws.values()]
    assert all(float(log_p.logsumexp(0)) == pytest.approx(0, abs=1e-12) for log_p in laws.values())
    assert exact[0] > exact[1] + 0.5 and exact[1] > exact[2] + 3

    def draw(log_p: Tensor, n: int) -> Tensor:
        return codes[torch.multinomial(log_p.exp(), n, replacement=True)]

    x, valid = draw(laws[0.25], 1000), draw(laws[0.25], 300)
    found = torch.tensor([[parzen(x, draw(log_p, 30), valid).mean for log_p in laws.values()] for _ in range(20)])
    for other in (1, 2):
        behind = found[:, other] - found[:, 0]
        assert float(behind.mean()) > 0.5 and float(behind.mean()) > 5 * float(behind.std()) / 20**0.5
        assert int((behind > 0).sum()) >= 18
