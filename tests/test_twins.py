"""Twins of auto-encoders with a density: the law their walks leave as it is, and NUTS through a flow."""

from __future__ import annotations

import math
from typing import Any

import arviz as az
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, autoguide
from scipy import stats
from torch import Tensor
from worlds import data, rows_of

from guides import Auto
from zoo import lab
from zoo.lab import chains, twins
from zoo.lab.chain_reports import judge
from zoo.lab.noise import Noise
from zoo.lab.twins import VAE

D, N = 6, 9


def built(latents: tuple[int, ...] = (2,)) -> tuple[VAE, Any]:
    """A twin and its bottom-up guide, with parameters of order one: q is far from the posterior."""
    model = VAE(D, latents, 8, N)
    guide: Any = twins.bottom_up(model, {"x": data(N, D)})
    with torch.no_grad():
        for parameter in [*model.parameters(), *guide.parameters()]:
            parameter.normal_(std=1 / math.sqrt(max(parameter.shape[-1], 1)))
    return model, guide


# The story.


@pytest.mark.parametrize("latents", [(2,), (3, 2), (4, 3, 2)], ids=str)
def test_the_story_goes_down_and_the_guide_up(latents: tuple[int, ...]) -> None:
    (model, guide), x = built(latents), data(N, D)
    names = [f"z{k}" for k in range(len(latents), 0, -1)]
    nodes: Any = poutine.trace(model).get_trace(x=x[:4]).nodes
    assert [name for name in nodes if name in (*names, "x")] == [*names, "x"] and nodes["x"]["is_observed"]
    assert [nodes[name]["value"].shape for name in names] == [(4, size) for size in reversed(latents)]
    assert all(float(nodes[name]["scale"]) == pytest.approx(N / 4) for name in (*names, "x"))
    drawn = poutine.trace(guide).get_trace(x=x[:4]).nodes
    assert [name for name in drawn if name in names] == [*reversed(names)]
    with torch.no_grad():
        dreams: Any = model()
    assert dreams.shape == (N, D)
    assert math.isfinite(float(Trace_ELBO().loss(model, guide, x=x)))


@pytest.mark.parametrize("latents", [(2,), (3, 2)], ids=str)
def test_the_joint_density_is_a_product_down_the_levels(latents: tuple[int, ...]) -> None:
    model, _ = built(latents)
    x, codes = data(N, D), {f"z{k}": torch.randn(N, size) for k, size in enumerate(latents, 1)}
    found = poutine.trace(poutine.condition(model, data=codes)).get_trace(x=x).log_prob_sum()
    levels = [x, *codes.values()]
    logits = model.nets[0](levels[1])
    truth = torch.where(x.bool(), logits.sigmoid(), 1 - logits.sigmoid()).log().sum()
    if len(latents) == 2:
        squares = (levels[1] - model.nets[1](levels[2])) / model.log_sd[0].exp()
        truth = truth - (squares.square() / 2 + model.log_sd[0] + math.log(2 * math.pi) / 2).sum()
    truth = truth - (levels[-1].square() / 2 + math.log(2 * math.pi) / 2).sum()
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-10)


def test_the_twin_of_a_table() -> None:
    model = VAE.for_data(rows_of(data(N, D)), latents=(3, 2), hidden=5)
    assert (model.in_features, model.latents, model.hidden, model.N) == (D, [3, 2], 5, N)
    assert model.given == {"z2": ("z1",)} and VAE.for_data(rows_of(data(N, D))).latents == [16]


# Its walk.


def after(model: VAE, guide: Any, *, corrected: bool, steps: int = 12, M: int = 8000) -> tuple[Tensor, float]:
    """States of chains that began with z_L ~ N(0, I), and the share of them that moved at the last step."""
    sampler = twins.walk(model, guide, corrected=corrected)
    noise = Noise(M)
    z = noise.normal(model.latents[-1])
    for _ in range(steps):
        before, z = z, sampler.step(z, noise)
    return z, float((z != before).any(-1).double().mean())


def distance(z: Tensor) -> float:
    """The smallest p-value of Kolmogorov and Smirnov's test against N(0, 1), of both units and their mean."""
    parts = [*z.T, z.sum(1) / math.sqrt(z.shape[1])]
    return min(float(stats.kstest(part.numpy(), "norm").pvalue) for part in parts)


@pytest.mark.equation("mix.11")
@pytest.mark.parametrize("latents", [(2,), (3, 2)], ids=str)
def test_the_corrected_walk_keeps_the_prior_of_the_top_and_the_uncorrected_does_not(latents: tuple[int, ...]) -> None:
    """z_L is N(0, I) exactly. 8,000 independent chains: a shift of .08 standard deviations would be seen (p < 1e-4)."""
    visible = stats.kstwo.isf(1e-4, 8000) + 1.96 * 0.5 / math.sqrt(8000)
    assert 2 * stats.norm.cdf(0.08) / 2 - 0.5 > visible - 0.03
    model, guide = built(latents)
    z, moved = after(model, guide, corrected=True)
    assert distance(z) > 1e-4 and 0.03 < moved < 0.99, "neither stuck nor always accepted"
    z, moved = after(model, guide, corrected=False)
    assert moved == 1 and distance(z) < 1e-12, "the same guide without the acceptance"


@pytest.mark.equation("mix.11")
def test_one_step_is_accepted_by_the_ratio_of_joint_densities() -> None:
    model, guide = built((3, 2))
    sampler, z = twins.walk(model, guide), torch.randn(500, 2)
    found = sampler.step(z, Noise(500, seed=4))
    noise, q = Noise(500, seed=4), guide.q["z2"]
    with torch.no_grad():
        law = model.below(2, z).base_dist
        below = law.mean + law.stddev * noise.normal(3)
        proposal = q(below).base_dist.mean + q(below).base_dist.stddev * noise.normal(2)

        def log_weight(z: Tensor) -> Tensor:
            p = model.below(2, z).log_prob(below) + dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
            return p - q(below).log_prob(z)

        accepted = noise.uniform().log() < log_weight(proposal) - log_weight(z)
    assert torch.equal(found, torch.where(accepted[:, None], proposal, z)) and 0 < accepted.sum() < 500


def test_a_walk_starts_in_codes_and_is_decoded_to_bits_and_means() -> None:
    for latents in ((2,), (3, 2)):
        model, guide = built(latents)
        sampler, x = twins.walk(model, guide), data(5000, D)
        with torch.no_grad():
            z, q = sampler.start(x[:1].expand(5000, -1), Noise(5000)), guide.q["z1"](x[:1]).base_dist
        assert z.shape == (5000, latents[-1])
        drawn = sampler.decode(z[:1].expand(5000, -1), Noise(5000, stream=1))
        means = sampler.means(z[:1])
        assert set(drawn.unique().tolist()) <= {0.0, 1.0} and not drawn.requires_grad and not means.requires_grad
        assert float(means.min()) > 0 and float(means.max()) < 1
        if len(latents) == 1:  # of more levels the means are those of means
            assert float((drawn.mean(0) - means).abs().max()) < 4 * 0.5 / math.sqrt(5000)
            error = (z.mean(0) - q.mean).abs() / q.stddev
            assert float(error.max()) < 4 / math.sqrt(5000)
        torch.testing.assert_close(sampler.statistics(z)["|z|"], z.square().sum(-1).sqrt())


def test_a_twin_is_judged_like_any_other_walk() -> None:
    (model, guide), table = built((2,)), rows_of(data(60, D))
    found = judge(twins.walk(model, guide), lab.Split(table, None, table), chains=4, steps=12)
    assert found.chains["x"].shape == (4, 12, D) and found.chains["|z|"].shape == (4, 12)


# NUTS through a flow.


def funnel(x: Tensor) -> None:
    """Neal's funnel: v of standard deviation 3, and the scale of w is exp(v / 2)."""
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    pyro.sample("w", dist.Normal(torch.zeros(2), (v / 2).exp()[..., None]).to_event(1))


def log_funnel(y: Tensor) -> Tensor:
    v, w = y[:, 0], y[:, 1:]
    return dist.Normal(0.0, 3.0).log_prob(v) + dist.Normal(0.0, (v / 2).exp()[:, None]).log_prob(w).sum(1)


BATCH = {"x": torch.zeros(1)}


def transport(steps: int) -> Auto:
    """A flow trained on the funnel, 256 draws at a step."""
    guide = Auto(autoguide.AutoIAFNormal, funnel, BATCH, hidden_dim=[32], num_transforms=1)
    flow: Any = guide.auto.get_transform()
    optimiser = torch.optim.Adam(guide.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        z = torch.randn(256, 3)
        y = flow(z)
        loss = -(flow.log_abs_det_jacobian(z, y) + log_funnel(y)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return guide


@pytest.mark.slow
def test_nuts_through_a_flow_walks_down_the_funnel() -> None:
    """The standard deviation of v is 3, known to 4 Monte Carlo errors of at most .3; plain NUTS is slower by far."""
    lab.seed(0)
    guide = transport(1500)
    options: dict[str, Any] = {"chains": 2, "draws": 300, "warmup": 100, "max_tree_depth": 6}
    through: Any = chains.neutra(funnel, guide, BATCH, target_accept_prob=0.9, **options)
    plain = chains.nuts(funnel, BATCH, target_accept_prob=0.9, **options)
    ess = [float(az.ess(found, var_names=["v"])["v"]) for found in (through, plain)]
    error = float(az.mcse(through, var_names=["v"], method="sd")["v"])
    sd = float(through.posterior["v"].std())
    assert error < 0.3 and abs(sd - 3) < 4 * error, (sd, error)
    assert ess[0] > 3 * ess[1] and ess[0] > 150, ess
    assert set(through.posterior.data_vars) >= {"v", "w"} and through.posterior["w"].shape == (2, 300, 2)


def gaussian(x: Tensor) -> None:
    pyro.sample("a", dist.Normal(5.0, 3.0))
    pyro.sample("s", dist.LogNormal(0.0, 0.5))


@pytest.fixture
def bad() -> Auto:
    """A guide that was never trained, far from the target."""
    start = {"a": torch.tensor(-2.0), "s": torch.tensor(4.0)}
    return Auto(autoguide.AutoDiagonalNormal, gaussian, BATCH, start=start, init_scale=0.7)


def test_the_target_is_exact_however_badly_the_guide_fits(bad: Auto) -> None:
    """Of 300 effective draws or more: shifts of a quarter of a standard deviation would be seen."""
    before = {name: value.clone() for name, value in bad.state_dict().items()}
    state = torch.get_rng_state()
    found: Any = chains.neutra(gaussian, bad, BATCH, chains=2, draws=250, warmup=100, max_tree_depth=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in bad.state_dict().items())
    assert all(parameter.requires_grad for parameter in bad.parameters()), "it can be trained further"
    for name, law in (("a", stats.norm(5, 3)), ("s", stats.lognorm(0.5))):
        value = found.posterior[name]
        u = law.cdf(value.values)
        ess = float(az.ess(u))
        assert ess > 150 and abs(u.mean() - 0.5) < 4 * math.sqrt(1 / 12 / ess)
        assert abs(u.std() - math.sqrt(1 / 12)) < 0.06
        assert value.shape == (2, 250)
    again: Any = chains.neutra(gaussian, bad, BATCH, chains=1, draws=20, warmup=10)
    same: Any = chains.neutra(gaussian, bad, BATCH, chains=2, draws=20, warmup=10)
    assert (again.posterior["a"][0].values == same.posterior["a"][0].values).all(), "every chain has its seed"


@pytest.mark.parametrize("kind", [autoguide.AutoNormal, autoguide.AutoDelta])
def test_a_guide_without_a_transform_is_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match="neural transport needs a guide with a transform, such as AutoIAFNormal"):
        chains.neutra(gaussian, Auto(kind, gaussian, BATCH), BATCH, draws=5)


def test_too_few_draws_are_refused(bad: Auto) -> None:
    with pytest.raises(ValueError, match="NUTS needs at least 4 draws per chain to be diagnosed, not 3"):
        chains.neutra(gaussian, bad, BATCH, draws=3)
