"""Walks of many chains: each chain has its own noise, and a walk that goes on is the walk that never stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pyro
import pytest
import torch
from enumerated import law, machine
from safetensors.torch import load_file, save_file
from torch import Tensor

from guides.codes import states
from zoo.lab import kernels
from zoo.lab.chains import Chains, walk
from zoo.lab.kernels import Step, Tempering
from zoo.lab.noise import Noise

M, T = 6, 8


def start(chains: int = M) -> Tensor:
    return states(4)[torch.arange(chains) % 16]


def steps() -> dict[str, tuple[Step, Callable[[Tensor], Tensor]]]:
    """Every kind of step, and how its state is made of bits."""
    found, log_p = machine(), law(machine()).log()
    tempering = Tempering(found, [0.2, 0.6, 1.0])
    table = kernels.single_site(lambda x: log_p[(x.long() @ torch.tensor([8, 4, 2, 1]))])
    return {
        "block_gibbs": (kernels.block_gibbs(found), lambda v: v),
        "single_site": (table, lambda v: v),
        "flips": (kernels.flips(lambda x: -found.free_energy(x)), lambda v: v),
        "independent": (kernels.independent(log_p, 4), lambda v: v),
        "Tempering": (tempering, tempering.start),
        "tempered": (kernels.tempered(found, [0.8, 0.5]), lambda v: v),
        "uncorrected": (
            kernels.uncorrected(lambda z, noise: noise.bernoulli(0.1 + 0.8 * z), lambda x, noise: x * noise.normal(4)),
            lambda v: v,
        ),
    }


STEPS = list(steps())
STATE = {"state": lambda s, noise: s}
DRAWN = {"state": lambda s, noise: s, "noisy": lambda s, noise: s.flatten(1) + noise.normal(3).sum(1, keepdim=True)}


def equal(one: Chains, two: Chains) -> bool:
    same = all(torch.equal(value, two[name]) for name, value in one.draws.items())
    return (
        same and torch.equal(one.state, two.state) and one.steps == two.steps and one.draws.keys() == two.draws.keys()
    )


def counting(state: Tensor, noise: Noise) -> Tensor:
    """A step that counts itself."""
    noise.uniform()
    return state + 1


# Resuming.


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("cut", [1, 5])
def test_a_walk_that_goes_on_is_one_long_walk(name: str, cut: int) -> None:
    step, made = steps()[name]
    whole = walk(step, made(start()), draws=T, watch=DRAWN, warmup=3, thin=2, seed=1)
    first = walk(step, made(start()), draws=cut, watch=DRAWN, warmup=3, thin=2, seed=1)
    more = walk(step, first, draws=T - cut, watch=DRAWN, thin=2, seed=77)
    assert equal(first.then(more), whole) and whole.steps == 3 + 2 * T
    assert whole["state"].shape[:2] == (M, T) and more["state"].shape[:2] == (M, T - cut)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", STEPS)
def test_a_walk_goes_on_from_a_file(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.set_default_dtype(dtype)
    step, made = steps()[name]
    whole = walk(step, made(start()), draws=T, watch=DRAWN, warmup=1, seed=5)
    first = walk(step, made(start()), draws=3, watch=DRAWN, warmup=1, seed=5)
    save_file(first.state_dict(), tmp_path / "chains.safetensors")
    found = Chains.from_state_dict(load_file(tmp_path / "chains.safetensors"))
    assert found.draws == {} and found.steps == first.steps == 4 and torch.equal(found.state, first.state)
    more = walk(step, found, draws=T - 3, watch=DRAWN)
    assert equal(first.then(more), whole) and more.state.dtype == dtype


def test_a_state_dict_is_ready_for_a_file(tmp_path: Path) -> None:
    """The cold replicas are a view of all replicas: a state need not lie in one piece of memory."""
    tempering = Tempering(machine(), [0.5, 1.0])
    first = walk(tempering, tempering.start(start()), draws=2, watch=STATE)
    view = Chains({}, Tempering.cold(first.state), first.noise, first.asides, first.steps, 0.0)
    save_file(view.state_dict(), tmp_path / "chains.safetensors")
    assert torch.equal(Chains.from_state_dict(load_file(tmp_path / "chains.safetensors")).state, view.state)


def test_a_walk_may_go_on_twice_from_the_same_place() -> None:
    step = kernels.block_gibbs(machine())
    first = walk(step, start(), draws=3, watch=DRAWN)
    before = {name: value.clone() for name, value in first.state_dict().items()}
    one, two = (walk(step, first, draws=4, watch=DRAWN) for _ in range(2))
    assert equal(one, two) and equal(first.then(one), walk(step, start(), draws=7, watch=DRAWN))
    assert all(torch.equal(value, before[name]) for name, value in first.state_dict().items())


def test_walks_in_many_pieces_are_joined_with_their_seconds() -> None:
    step = kernels.block_gibbs(machine())
    whole = walk(step, start(), draws=6, watch=STATE)
    joined = walk(step, start(), draws=1, watch=STATE)
    seconds = joined.seconds
    for _ in range(5):
        more = walk(step, joined, draws=1, watch=STATE)
        seconds += more.seconds
        joined = joined.then(more)
    assert equal(joined, whole) and joined.seconds == pytest.approx(seconds)


# Independence.


@pytest.mark.parametrize("name", STEPS)
def test_a_chain_does_not_depend_on_the_others(name: str) -> None:
    step, made = steps()[name]
    many = walk(step, made(start(40)), draws=T, watch=DRAWN, seed=2)
    few = walk(step, made(start(3)), draws=T, watch=DRAWN, seed=2)
    assert torch.equal(many["state"][:3], few["state"])
    torch.testing.assert_close(many["noisy"][:3], few["noisy"], rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", STEPS)
def test_looking_moves_nothing(name: str) -> None:
    step, made = steps()[name]
    blind = walk(step, made(start()), draws=T, watch={})
    plain = walk(step, made(start()), draws=T, watch=STATE)
    noisy = walk(step, made(start()), draws=T, watch={"first": lambda s, noise: noise.uniform(100), **STATE})
    assert torch.equal(plain["state"], noisy["state"])
    assert torch.equal(blind.state, plain.state) and torch.equal(plain.state, noisy.state) and blind.draws == {}


def test_looking_has_a_noise_of_its_own() -> None:
    seen = walk(counting, start(), draws=3, watch={"u": lambda s, noise: noise.uniform(2)}, seed=4)
    assert torch.equal(seen["u"].flatten(1), Noise(M, seed=4, stream=1).uniform(6))
    assert not torch.equal(seen["u"].flatten(1), Noise(M, seed=4).uniform(6))


def test_the_seed_decides_and_the_global_state_does_not() -> None:
    step = kernels.block_gibbs(machine())
    pyro.set_rng_seed(1)
    before = torch.get_rng_state()
    one = walk(step, start(), draws=T, watch=DRAWN, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    pyro.set_rng_seed(2)
    two, other = (walk(step, start(), draws=T, watch=DRAWN, seed=seed) for seed in (3, 4))
    assert equal(one, two) and not torch.equal(one["state"], other["state"])
    default, zero = walk(step, start(), draws=T, watch=STATE), walk(step, start(), draws=T, watch=STATE, seed=0)
    assert equal(default, zero)


def test_chains_from_one_state_go_their_own_ways() -> None:
    seen = walk(kernels.block_gibbs(machine()), start(1).expand(50, -1), draws=20, watch=STATE)["state"]
    assert len(seen.flatten(1).unique(dim=0)) == 50


# What is kept.


@pytest.mark.parametrize(("draws", "warmup", "thin"), [(1, 0, 1), (4, 0, 1), (3, 5, 1), (3, 0, 4), (3, 2, 3)])
def test_warmup_comes_before_the_first_draw_and_thin_between_draws(draws: int, warmup: int, thin: int) -> None:
    seen = walk(counting, torch.zeros(M, 2), draws=draws, warmup=warmup, thin=thin, watch=STATE)
    expected = warmup + thin * torch.arange(1, draws + 1)
    assert torch.equal(seen["state"], expected.double()[None, :, None].expand(M, draws, 2))
    assert seen.steps == warmup + thin * draws == int(seen.state[0, 0])
    again = walk(counting, seen, draws=2, warmup=10, thin=thin, watch=STATE)
    assert again.steps == seen.steps + 10 + 2 * thin == int(again.state[0, 0])


def test_thinning_keeps_every_other_draw_of_the_same_walk() -> None:
    step = kernels.block_gibbs(machine())
    whole = walk(step, start(), draws=13, watch=STATE)["state"]
    assert torch.equal(walk(step, start(), draws=3, warmup=1, thin=4, watch=STATE)["state"], whole[:, 4::4])


def test_whatever_is_watched_is_kept_by_chain_and_draw() -> None:
    watch = {
        "sum": lambda s, noise: s.sum(-1),
        "square": lambda s, noise: s[:, :, None] * s[:, None],
        "label": lambda s, noise: s.sum(-1).long(),
    }
    seen = walk(kernels.block_gibbs(machine()), start(), draws=T, watch={**STATE, **watch})
    s = seen["state"]
    assert torch.equal(seen["sum"], s.sum(-1)) and torch.equal(seen["square"], s[..., None] * s[:, :, None])
    assert seen["label"].dtype == torch.int64 and seen["label"].shape == (M, T)
    assert torch.equal(s[:, -1], seen.state)


def test_the_first_state_is_left_as_it_was_and_nothing_is_differentiated() -> None:
    first = start().clone()
    seen = walk(kernels.flips(machine().log_prob), first, draws=T, watch=STATE)
    assert torch.equal(first, start()) and not seen["state"].requires_grad


def test_states_that_are_numbers_of_states_walk_too() -> None:
    """Integer states: the noise is in the default precision, not rounded down to zeros."""
    table = torch.tensor([[0.1, 0.9], [0.5, 0.5]]).log()

    def step(s: Tensor, noise: Noise) -> Tensor:
        return noise.category(table[s])

    seen = walk(step, torch.zeros(200, dtype=torch.long), draws=50, watch=STATE)["state"]
    assert seen.dtype == torch.int64 and 0.6 < float(seen.double().mean()) < 0.69  # 9 / 14


def test_only_steps_are_timed() -> None:
    def slow_look(s: Tensor, noise: Noise) -> Tensor:
        time.sleep(0.05)
        return s

    def slow_step(s: Tensor, noise: Noise) -> Tensor:
        time.sleep(0.01)
        return s

    assert walk(counting, start(), draws=2, watch={"s": slow_look}).seconds < 0.05
    assert 0.06 <= walk(slow_step, start(), draws=2, thin=2, warmup=2, watch={}).seconds < 0.5


@pytest.mark.parametrize("wrong", [{"draws": 0}, {"draws": 3, "thin": 0}, {"draws": 3, "warmup": -1}], ids=str)
def test_an_impossible_walk_is_refused(wrong: dict[str, int]) -> None:
    numbers = ", ".join(str(wrong.get(key, 1 if key == "thin" else 0)) for key in ("draws", "thin", "warmup"))
    with pytest.raises(ValueError, match=f"thin of 1 or more, warmup of 0 or more; not {numbers}"):
        walk(counting, start(), watch={}, **wrong)  # type: ignore[arg-type]


def test_chains_without_a_chain_are_refused() -> None:
    with pytest.raises(ValueError, match="one chain or more"):
        walk(counting, torch.zeros(0, 3), draws=1, watch={})


def test_what_was_not_watched_is_not_there() -> None:
    with pytest.raises(KeyError, match="label"):
        walk(counting, start(), draws=1, watch=STATE)["label"]
