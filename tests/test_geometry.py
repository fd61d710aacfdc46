"""What lies between and around data in a representation: interpolation, noise, linear separability."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from test_mixing_walks import pairs
from torch import Tensor
from worlds import data

from zoo import mixing
from zoo.lab import geometry
from zoo.lab.geometry import Levels
from zoo.lab.noise import Noise
from zoo.lab.scores import PARZEN_WIDTHS, parzen_log_density

D = 4


def linear(seed: int = 0, units: int = 5) -> tuple[Levels, list[Tensor]]:
    """A representation h = x A at level 1 that is not decoded but kept."""
    seen: list[Tensor] = []
    A = torch.randn(D, units, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def decode(h: Tensor, level: int) -> Tensor:
        seen.append(h)
        return h if level == 0 else h @ torch.linalg.pinv(A)

    return Levels(lambda x, level: x @ A if level else x, decode, 1), seen


@pytest.mark.equation("mix.19")
@pytest.mark.parametrize("which", range(5))
def test_the_ends_of_an_interpolation_are_the_reconstructions(which: int) -> None:
    model, guide = pairs()[which]
    spaces, a, b = mixing.levels(model, guide), data(6, D), data(6, D)
    for level in range(spaces.depth + 1):
        curve = geometry.interpolate(spaces, level, a, b, (0.0, 0.5, 1.0))
        assert curve.shape == (3, 6, D)
        for end, x in ((0, a), (2, b)):
            torch.testing.assert_close(curve[end], spaces.decode(spaces.encode(x, level), level), rtol=0, atol=1e-12)
        middle = (spaces.encode(a, level) + spaces.encode(b, level)) / 2
        torch.testing.assert_close(curve[1], spaces.decode(middle, level), rtol=0, atol=1e-12)
    times = (0.0, 0.25, 1.0)
    plain = geometry.interpolate(spaces, 0, a, b, times)
    torch.testing.assert_close(plain, torch.stack([(1 - t) * a + t * b for t in times]), rtol=0, atol=1e-15)


@pytest.mark.equation("mix.20")
@pytest.mark.parametrize("which", range(5))
def test_no_noise_gives_the_reconstructions_and_pixels_get_plain_noise(which: int) -> None:
    model, guide = pairs()[which]
    spaces, x = mixing.levels(model, guide), data(6, D)
    for level in range(spaces.depth + 1):
        found = geometry.perturb(spaces, level, x, 0.0, Noise(6))
        torch.testing.assert_close(found, spaces.decode(spaces.encode(x, level), level), rtol=0, atol=1e-12)
    plain = geometry.perturb(spaces, 0, x, 0.7, Noise(6, seed=3))
    torch.testing.assert_close(plain, x + 0.7 * x.std(0) * Noise(6, seed=3).normal(D), rtol=0, atol=1e-15)


@pytest.mark.equation("mix.20")
def test_the_noise_of_every_unit_has_s_times_its_standard_deviation() -> None:
    """20,000 rows: an error of 3 % of a unit's standard deviation, or of 0.04 in a correlation, would be seen."""
    (spaces, seen), x = linear(), torch.rand(20_000, D)
    geometry.perturb(spaces, 1, x, 1.7, Noise(len(x)))
    added, h = seen[-1] - spaces.encode(x, 1), spaces.encode(x, 1)
    torch.testing.assert_close(added.std(0) / h.std(0), torch.full((5,), 1.7), rtol=0.03, atol=0)
    assert float((added.mean(0) / added.std(0)).abs().max()) < 0.04
    assert float((added.T.corrcoef() - torch.eye(5)).abs().max()) < 0.04


@pytest.mark.equation("mix.20")
def test_matched_noise_changes_pictures_by_what_was_asked() -> None:
    (spaces, _), x = linear(), torch.rand(300, D)
    for level in (0, 1):
        s = geometry.matched(spaces, level, x, 0.2, 4)
        moved = geometry.perturb(spaces, level, x, s, Noise(300, seed=4)) - x
        assert float(moved.square().mean().sqrt()) == pytest.approx(0.2, rel=1e-5)
    blind = Levels(lambda x, level: x, lambda h, level: torch.zeros_like(h), 1)
    assert geometry.matched(blind, 1, x, 0.2, 4) == math.inf


@pytest.mark.equation("mix.19")
def test_pictures_are_scored_under_a_window_on_other_data() -> None:
    pictures, centres = torch.rand(3, 7, D), torch.rand(11, D)
    found = geometry.score(pictures, centres, 0.3)
    squares = (pictures[:, :, None] - centres).square().sum(-1)
    truth = (-squares / 0.18).exp().mean(-1).log() - D / 2 * math.log(2 * math.pi * 0.09)
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-10)
    valid = torch.rand(9, D)
    scores = [float(parzen_log_density(valid, centres, sd).mean()) for sd in PARZEN_WIDTHS]
    assert geometry.window(centres, valid) == PARZEN_WIDTHS[scores.index(max(scores))]


@pytest.mark.equation("mix.19")
def test_neighbours_are_those_of_the_level() -> None:
    (spaces, _), x, others = linear(), torch.rand(6, D), torch.rand(20, D)
    for level in (0, 1):
        h, g = spaces.encode(x, level), spaces.encode(others, level)
        order = (h[:, None] - g).square().sum(-1).argsort(1)
        for k in (1, 3):
            assert torch.equal(geometry.neighbours(spaces, level, x, others, k), others[order[:, k - 1]])
    assert torch.equal(geometry.neighbours(spaces, 1, x, x, 1), x), "the nearest of all is itself"


def classes(n: int, shift: float, seed: int) -> tuple[Tensor, Tensor]:
    """Two clouds in the plane, `shift` apart."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    cloud: Any = torch.rand(n, 2, generator=generator, dtype=torch.float64)
    return cloud + shift * y[:, None], y


@pytest.mark.equation("mix.21")
def test_a_line_errs_on_nothing_that_is_separable() -> None:
    train, valid, test = (classes(200, 1.5, seed) for seed in range(3))
    assert geometry.linear_error(train, valid, test) == 0
    mixed = (classes(200, 0.0, seed) for seed in range(3))
    assert 0.35 < geometry.linear_error(*mixed) < 0.65, "one cloud cannot be told from itself: 4 errors of .035"
    ring = [(x, ((x - 0.5).abs().amax(1) < 0.25).long()) for x, _ in (classes(400, 0.0, seed) for seed in range(3))]
    inner = float(ring[2][1].double().mean())
    assert geometry.linear_error(*ring) == pytest.approx(min(inner, 1 - inner), abs=0.03), "a line cannot cut a ring"
    square = [((x - 0.5).abs().amax(1, keepdim=True), y) for x, y in ring]
    assert geometry.linear_error(*square) < 0.02, "another representation can"


@pytest.mark.equation("mix.21")
def test_c_is_chosen_on_validation_data() -> None:
    """Training labels that are wrong in one corner: only what the validation data say decides between the C."""
    train, test = classes(200, 1.5, 0), classes(200, 1.5, 1)
    assert geometry.linear_error(train, test, test) <= geometry.linear_error(train, (test[0], 1 - test[1]), test)
