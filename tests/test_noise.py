"""The random numbers of many chains: each chain has a stream of its own, and nothing else moves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from enumerated import frequencies, p_value
from safetensors.torch import load_file, save_file
from scipy import stats
from torch import Tensor

from zoo.lab import noise
from zoo.lab.noise import Noise

KINDS = [torch.float64, torch.float32]


def stream(chain: int, count: int, dtype: torch.dtype, *, seed: int = 0, number: int = 0) -> Tensor:
    """The numbers of one chain, drawn at once by NumPy."""
    kind: Any = np.float64 if dtype == torch.float64 else np.float32
    generator = np.random.Generator(np.random.SFC64(np.random.SeedSequence((seed, number, chain))))
    return torch.from_numpy(generator.random(count, dtype=kind))


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize(("ahead", "held"), [(2, 2**22), (6, 2**22), (2**14, 2**22), (2**14, 9), (2**14, 1)])
def test_numbers_do_not_depend_on_how_they_are_taken(
    ahead: int, held: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(noise, "AHEAD", ahead)
    monkeypatch.setattr(noise, "HELD", held)
    found = Noise(3, seed=5, stream=2, dtype=dtype)
    shapes = [(), (3,), (2, 2), (1,), (), (7,), (5, 1, 3), (2,)]
    parts = [found.uniform(*shape) for shape in shapes]
    assert [part.shape for part in parts] == [(3, *shape) for shape in shapes]
    ours = torch.cat([part.reshape(3, -1) for part in parts], 1)
    theirs = torch.stack([stream(chain, ours.shape[1], dtype, seed=5, number=2) for chain in range(3)])
    assert ours.dtype == dtype and torch.equal(ours, theirs)


def test_a_chain_has_its_numbers_whatever_the_other_chains_and_the_global_state() -> None:
    few = Noise(2, seed=1).uniform(10)
    np.random.seed(3)
    torch.manual_seed(3)
    before, theirs = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    many = Noise(50, seed=1).uniform(10)
    assert torch.equal(many[:2], few) and torch.equal(torch.get_rng_state(), before)
    assert (np.random.get_state()[1] == theirs).all()  # type: ignore[index]


def test_many_chains_hold_few_numbers_each() -> None:
    found = Noise(2**11, dtype=torch.float32)
    found.uniform(3)
    assert found.ahead.numel() <= noise.HELD


def test_chains_streams_and_seeds_are_independent() -> None:
    """120 sequences of 4,000 numbers, 7,140 pairs: a correlation of .1 would be seen; chance makes .016 of each."""
    kinds = [(seed, number) for seed in range(3) for number in range(2)]
    numbers = torch.cat([Noise(20, seed=seed, stream=number).uniform(4000) for seed, number in kinds])
    correlation = torch.corrcoef(numbers) - torch.eye(120)
    assert float(correlation.abs().max()) < 5 / 4000**0.5
    assert float(correlation.square().sum() / (120 * 119)) == pytest.approx(1 / 4000, rel=0.1)


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_numbers_are_uniform_and_normal(dtype: torch.dtype) -> None:
    """Kolmogorov-Smirnov, 200,000 numbers: a distance of .006 between distribution functions would be seen."""
    found = Noise(20, seed=3, dtype=dtype)
    u, z = found.uniform(10_000), found.normal(100, 100)
    assert u.dtype == z.dtype == dtype and z.shape == (20, 100, 100)
    assert float(u.min()) >= 0 and float(u.max()) < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize("dtype", KINDS, ids=str)
def test_normal_numbers_are_the_inverse_of_their_distribution_function_and_finite(dtype: torch.dtype) -> None:
    one, two = Noise(2, dtype=dtype), Noise(2, dtype=dtype)
    expected = stats.norm.ppf(two.uniform(50).double().numpy())
    torch.testing.assert_close(one.normal(50).double(), torch.from_numpy(expected), rtol=1e-5, atol=1e-5)
    one.ahead = torch.zeros(2, 3, dtype=dtype)
    least = one.normal(3)
    assert least.isfinite().all() and (least < -5).all()


def test_bits_have_their_probabilities_and_certain_bits_are_certain() -> None:
    """400,000 bits: the standard error of a frequency is .0011 at most; a bias of .005 would be seen."""
    probs = torch.tensor([0.0, 0.003, 0.25, 0.5, 0.9, 1.0])
    found = Noise(4).bernoulli(probs.expand(4, 100_000, 6))
    share = found.mean((0, 1))
    assert set(found.unique().tolist()) == {0.0, 1.0} and share[0] == 0 and share[-1] == 1
    assert ((share - probs).abs() <= 4.5 * (probs * (1 - probs) / 400_000).sqrt()).all()


def test_bits_and_categories_compare_the_same_numbers_with_a_threshold() -> None:
    u, probs = Noise(5).uniform(7), torch.rand(5, 7)
    assert torch.equal(Noise(5).bernoulli(probs), (u < probs).double())
    log_p = torch.randn(5, 6)
    edges = log_p.exp().cumsum(1) / log_p.exp().sum(1, keepdim=True)
    expected = (u[:, :1] >= edges).sum(1)
    assert torch.equal(Noise(5).category(log_p), expected)
    assert torch.equal(Noise(5).category(log_p[0]), (u[:, :1] >= edges[0]).sum(1))


@pytest.mark.parametrize("batched", [False, True])
def test_categories_have_their_probabilities_and_empty_ones_are_never_drawn(batched: bool) -> None:
    """100,000 draws of each table, chi-square: frequencies that are 4 % off in the mean square would be seen."""
    log_p = torch.tensor([-torch.inf, 0.3, -torch.inf, 1.0, -2.0, -torch.inf]) + 7.0  # tables need no normalising
    tables = torch.stack([log_p, log_p.flip(0)]).repeat_interleave(100, 0) if batched else log_p
    found, draws = Noise(200, seed=1), 1000
    drawn = torch.stack([found.category(tables) for _ in range(draws)], 1)
    halves = [drawn[:100], 5 - drawn[100:]] if batched else [drawn[:100], drawn[100:]]
    for half in halves:
        counts, p = frequencies(half, 6), log_p.softmax(0)
        assert not counts[p == 0].any() and p_value(counts, p) > 1e-3


def test_the_last_number_belongs_to_the_last_category() -> None:
    """Rounding may leave the cumulative sum below the largest number there is."""
    counts = [S for S in range(2, 300) if torch.zeros(S).softmax(-1).cumsum(-1)[-1] < 1 - 2**-53]
    assert counts, "no such sum on this machine"
    for S in counts:
        found = Noise(1)
        found.ahead = torch.full((1, 1), 1 - 2**-53)
        assert found.category(torch.zeros(S)).tolist() == [S - 1]


def test_a_number_on_an_edge_belongs_to_the_category_above() -> None:
    u = torch.tensor([0.0, 0.25 - 2**-54, 0.25, 0.5 - 2**-53, 0.5, 0.75, 1 - 2**-53])
    found = Noise(7)
    found.ahead = torch.stack([u, torch.zeros(7)], 1)
    assert found.category(torch.zeros(4)).tolist() == [0, 0, 1, 1, 2, 3, 3]
    assert found.category(torch.tensor([-torch.inf, 0.0])).tolist() == [1] * 7


@pytest.mark.parametrize("dtype", KINDS, ids=str)
@pytest.mark.parametrize("taken", [0, 3, 2**14, 2**14 + 5])
def test_a_stream_goes_on_from_its_state_through_a_file(taken: int, dtype: torch.dtype, tmp_path: Path) -> None:
    found = Noise(3, seed=4, stream=1, dtype=dtype)
    found.uniform(taken)
    save_file(found.state_dict(), tmp_path / "noise.safetensors")
    other = Noise(3, seed=99, dtype=dtype)
    other.uniform(11)
    other.load_state_dict(load_file(tmp_path / "noise.safetensors"))
    assert torch.equal(other.uniform(2**15), found.uniform(2**15))
    assert torch.equal(other.uniform(5), found.uniform(5))


def test_a_state_is_a_copy() -> None:
    found = Noise(2)
    found.uniform(4)
    state = found.state_dict()
    after = found.uniform(2**15)
    other = Noise(2)
    other.load_state_dict(state)
    assert torch.equal(other.uniform(2**15), after)
    again = Noise(2)
    again.load_state_dict(state)
    assert torch.equal(again.uniform(2**15), after)


def test_impossible_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="one chain or more and a seed of 0 or more, not 0 and 0"):
        Noise(0)
    with pytest.raises(ValueError, match="not 2 and -1"):
        Noise(2, seed=-1)
    for dtype in (torch.int64, torch.bool, torch.bfloat16):
        with pytest.raises(ValueError, match="single or double precision, not torch"):
            Noise(2, dtype=dtype)
    with pytest.raises(ValueError, match="noise of 3 chains, not of 2"):
        Noise(2).load_state_dict(Noise(3).state_dict())
    with pytest.raises(ValueError, match=r"noise of torch\.float32, not of torch\.float64"):
        Noise(2).load_state_dict(Noise(2, dtype=torch.float32).state_dict())


def test_numbers_have_the_default_precision_and_the_length_is_that_of_the_chains() -> None:
    assert len(Noise(7)) == 7 and Noise(1).uniform(2).dtype == torch.float64
    torch.set_default_dtype(torch.float32)
    assert Noise(1).uniform(2).dtype == torch.float32
