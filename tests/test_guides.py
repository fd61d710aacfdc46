"""Laws of every family and of the composed guide, against exact values where there are any."""

import copy
import math
import pickle
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import safetensors.torch
import torch
from pyro import poutine
from pyro.infer import (
    ELBO,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    Trace_MMD,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    TraceTMC_ELBO,
    autoguide,
)
from pyro.nn import PyroModule, PyroSample
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributions import constraints, kl_divergence

import guides
from guides import Guide, GuideError, NormalEncoder, data_plate, linear, weight_space
from zoo import lab

D, K, GROUPS = 4, 3, 5
START = math.exp(-3)


def normal(*shape: int) -> dist.Distribution:
    return dist.Normal(0.0, torch.ones(shape)).to_event(len(shape))


def matrix() -> dist.Distribution:
    return guides.distributions.MatrixNormal(torch.zeros(D, K), row_scale=torch.ones(D), col_scale=torch.ones(K))


class Lower(dist.TorchDistribution):
    """A law whose support, `lower_cholesky`, has no registered bijection."""

    support = constraints.lower_cholesky
    arg_constraints: Mapping[str, Any] = {}

    def __init__(self) -> None:
        super().__init__(torch.Size(), torch.Size([2, 2]), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return torch.eye(2)

    def log_prob(self, value: Tensor) -> Tensor:
        return torch.zeros(())


REAL_MATRIX = {
    "MeanField": guides.MeanField,
    "MatrixNormal": guides.MatrixNormal,
    "MatrixNormalTril": guides.MatrixNormalTril,
    "MatrixNormalTril both": partial(guides.MatrixNormalTril, col=guides.Tril),
    "MatrixNormalLowRank": partial(guides.MatrixNormalLowRank, rank=2),
    "MatrixNormalLowRank both": partial(guides.MatrixNormalLowRank, rank=2, col_rank=1),
    "MatrixNormalFITC": partial(guides.MatrixNormalFITC, m=2),
    "SiteFullRank": guides.SiteFullRank,
    "Point": guides.Point,
}
REAL = {name: REAL_MATRIX[name] for name in ("MeanField", "SiteFullRank", "Point")}
POSITIVE = {"Gamma": guides.Gamma, "LogNormal": guides.LogNormal}
ANY = {"MeanField": guides.MeanField, "Point": guides.Point}
NOISY = [name for name in REAL_MATRIX if name != "Point"]

Prior = Callable[[], dist.Distribution]
PRIORS: dict[str, tuple[Prior, Mapping[str, Any]]] = {
    "normal matrix": (lambda: normal(D, K), REAL_MATRIX),
    "matrix normal": (matrix, REAL_MATRIX),
    "normal vector": (lambda: normal(D), REAL),
    "normal scalar": (lambda: dist.Normal(0.3, 2.0), ANY),
    "gamma": (lambda: dist.Gamma(torch.tensor([2.0, 6.0]), 3.0).to_event(1), POSITIVE | ANY),
    "log normal": (lambda: dist.LogNormal(0.0, 1.0), POSITIVE | ANY),
    "half cauchy": (lambda: dist.HalfCauchy(5.0), POSITIVE | ANY),
    "exponential": (lambda: dist.Exponential(torch.ones(2, 2)).to_event(2), POSITIVE | ANY),
    "beta": (lambda: dist.Beta(2.0, 3.0), ANY),
    "uniform": (lambda: dist.Uniform(-torch.ones(3), torch.ones(3)).to_event(1), ANY),
    "pareto": (lambda: dist.Pareto(torch.tensor([1.0, 2.0]), 3.0).to_event(1), ANY),
    "dirichlet": (lambda: dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])), ANY),
    "LKJ": (lambda: dist.LKJCholesky(3, 2.0), ANY),
}
CASES = [(prior, family) for prior, (_, families) in PRIORS.items() for family in families]


def unpack(prior: str, family: str) -> tuple[dist.Distribution, Any]:
    build, families = PRIORS[prior]
    return build(), families[family]


class OneSite(nn.Module):
    """w ~ prior, in a plate or not; y ~ N(a fixed contrast of w, 1)."""

    def __init__(self, prior: dist.Distribution, groups: int | None = None) -> None:
        super().__init__()
        self.prior, self.groups = prior, groups

    def forward(self, y: Tensor) -> None:
        if self.groups is None:
            w = pyro.sample("w", self.prior)
        else:
            with pyro.plate("groups", self.groups):
                w = pyro.sample("w", self.prior)
        contrast = (w.reshape(-1) * (1.0 + torch.arange(float(w.numel()))).cos()).sum()
        pyro.sample("y", dist.Normal(contrast, 1.0), obs=y)


def one_site(prior: dist.Distribution, family: Any, groups: int | None = None) -> tuple[OneSite, Guide]:
    model = OneSite(prior, groups)
    return model, Guide(model, Y, weights={"w": family})


Y = {"y": torch.tensor(0.7, dtype=torch.float64)}


# One family


@pytest.mark.parametrize(("prior", "family"), CASES)
@pytest.mark.parametrize("groups", [None, GROUPS])
def test_q_has_the_support_and_the_shapes_of_the_prior(prior: str, family: str, groups: int | None) -> None:
    p, build = unpack(prior, family)
    _, guide = one_site(p, build, groups)
    trace = poutine.trace(guide).get_trace(**Y)
    q = trace.nodes["w"]["fn"]
    assert q.event_shape == p.event_shape
    assert q.batch_shape == torch.Size([groups] if groups else [])
    draws = torch.stack([guide(**Y)["w"] for _ in range(50)])
    assert p.support.check(draws).all()
    assert p.log_prob(draws).isfinite().all()


@pytest.mark.parametrize(("prior", "family"), CASES)
def test_gradients_reach_every_parameter(prior: str, family: str) -> None:
    model, guide = one_site(*unpack(prior, family))
    Trace_ELBO(num_particles=3)(model, guide)(**Y).backward()
    for name, parameter in guide.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("prior", ["normal matrix", "matrix normal"])
@pytest.mark.parametrize("family", NOISY)
def test_a_weight_starts_at_standard_deviation_e_to_the_minus_3(prior: str, family: str) -> None:
    p, build = unpack(prior, family)
    deviation = build(p)().variance.sqrt()
    # low-rank factors start at a tenth of the scale, so each of rank r adds about r / 200 of it
    tolerance = 0.2 if "LowRank" in family else 1e-9
    torch.testing.assert_close(deviation, torch.full((D, K), START), rtol=tolerance, atol=0)


@pytest.mark.parametrize("prior", ["beta", "dirichlet", "LKJ", "uniform"])
def test_mean_field_starts_at_e_to_the_minus_3_in_unconstrained_space(prior: str) -> None:
    module = guides.MeanField(PRIORS[prior][0]())
    deviation = module.transform.inv(module().sample((20_000,))).std(0)
    torch.testing.assert_close(deviation, torch.full_like(module.loc, START), rtol=0.04, atol=0)


@pytest.mark.parametrize("family", NOISY)
def test_scale_option(family: str) -> None:
    deviation = partial(REAL_MATRIX[family], scale=0.5)(normal(D, K))().variance.sqrt()
    torch.testing.assert_close(deviation, torch.full((D, K), 0.5), rtol=0.2, atol=0)


@pytest.mark.parametrize("family", REAL_MATRIX)
def test_spread_zero_starts_at_the_prior_mean(family: str) -> None:
    prior = dist.Normal(torch.arange(12.0).reshape(D, K), 1.0).to_event(2)
    mean = partial(REAL_MATRIX[family], spread=0.0)(prior)().mean
    torch.testing.assert_close(mean, prior.mean)


@pytest.mark.parametrize("family", REAL_MATRIX)
@pytest.mark.parametrize(("spread", "expected"), [(None, math.sqrt(4 / (80 - 1 + 60))), (0.7, 0.7)])
def test_spread_is_the_deviation_of_the_starting_means(family: str, spread: float | None, expected: float) -> None:
    if family == "SiteFullRank":
        pytest.skip("a triangle over 4800 elements")
    loc = partial(REAL_MATRIX[family], spread=spread)(normal(80, 60)).loc
    assert float(loc.detach().std()) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("family", ["MeanField", "MatrixNormal"])
def test_bias_scale_is_the_deviation_of_the_last_row(family: str) -> None:
    module = partial(REAL_MATRIX[family], bias_scale=0.01)(normal(D, K))
    deviation = module().variance.sqrt()
    torch.testing.assert_close(deviation[-1], torch.full((K,), 0.01))
    torch.testing.assert_close(deviation[:-1], torch.full((D - 1, K), START))
    assert not module.loc[-1].any()


def test_bias_scale_needs_diagonal_rows() -> None:
    with pytest.raises(GuideError, match="bias_scale= needs diagonal rows"):
        one_site(normal(D, K), partial(guides.MatrixNormalTril, bias_scale=0.01))


@pytest.mark.parametrize("prior", [lambda: normal(D), lambda: dist.Normal(0.0, 1.0)], ids=["vector", "scalar"])
@pytest.mark.parametrize("groups", [None, GROUPS])
def test_bias_scale_leaves_sites_without_rows_alone(prior: Prior, groups: int | None) -> None:
    model = OneSite(prior(), groups)
    guide = Guide(model, Y, weights=partial(guides.MeanField, bias_scale=1e-4))
    torch.testing.assert_close(guide.q["w"].log_scale.exp(), torch.full_like(guide.q["w"].loc, START))


@pytest.mark.parametrize(("rank", "col_rank"), [(0, 0), (1, -1)])
def test_impossible_ranks_are_refused(rank: int, col_rank: int) -> None:
    with pytest.raises(GuideError, match="rank must be at least 1 and col_rank at least 0"):
        one_site(normal(D, K), partial(guides.MatrixNormalLowRank, rank=rank, col_rank=col_rank))


@pytest.mark.parametrize(("rank", "col_rank"), [(1, 0), (3, 0), (2, 2)])
def test_ranks_are_those_asked_for(rank: int, col_rank: int) -> None:
    module = guides.MatrixNormalLowRank(normal(D, K), rank=rank, col_rank=col_rank)
    assert module.row.factor.shape == (D, rank)
    assert isinstance(module.col, guides.LowRank if col_rank else guides.Diagonal)
    assert not col_rank or module.col.factor.shape == (K, col_rank)


@pytest.mark.parametrize("family", POSITIVE)
def test_positive_families_start_at_a_gamma_prior(family: str) -> None:
    prior = dist.Gamma(torch.tensor([2.0, 6.0]), 3.0).to_event(1)
    q = POSITIVE[family](prior)()
    log_q = q.sample((100_000,)).log()
    torch.testing.assert_close(log_q.mean(0), torch.tensor([2.0, 6.0]).digamma() - math.log(3), atol=0.02, rtol=0)
    torch.testing.assert_close(log_q.var(0), torch.polygamma(1, torch.tensor([2.0, 6.0])), rtol=0.05, atol=0)


def test_a_positive_site_whose_prior_is_no_gamma_gets_the_mean_field_of_its_logarithm() -> None:
    """A Gamma of shape 1 would give a scale s with E[1 / s^2] infinite, on which no fit gets anywhere."""

    def model(x: Tensor) -> None:
        pyro.sample("s", dist.HalfCauchy(2.5))
        pyro.sample("t", dist.Gamma(2.0, 1.0).expand([2]).to_event(1))

    guide = Guide(model, {"x": torch.zeros(3)}, weights=guides.MatrixNormal)
    assert isinstance(guide.q["s"], guides.MeanField) and isinstance(guide.q["t"], guides.Gamma)
    assert guide.q["s"]().support.check(torch.tensor(2.0))


def test_a_gamma_started_at_its_prior_has_no_divergence() -> None:
    prior = dist.Gamma(torch.tensor([2.0, 6.0]), 3.0).to_event(1)
    assert float(kl_divergence(guides.Gamma(prior)(), prior).detach()) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("prior", "family"), CASES)
def test_start_moves_q_to_a_value(prior: str, family: str) -> None:
    p, build = unpack(prior, family)
    value = p.sample()
    model = OneSite(p)
    guide = Guide(model, Y, weights={"w": build}, start={"w": value})
    if family == "Gamma":
        centre = guide.q["w"]().mean
    elif family == "LogNormal":
        centre = guide.q["w"].loc.exp()
    else:
        centre = getattr(guide.q["w"], "transform", lambda v: v)(guide.q["w"].loc)
    torch.testing.assert_close(centre, value, rtol=1e-6, atol=1e-8)


# Which family a site gets


class Everything(nn.Module):
    """One global site per kind of support."""

    def forward(self, y: Tensor) -> None:
        pyro.sample("W", normal(D, K))
        b = pyro.sample("b", normal(K))
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        tau = pyro.sample("tau", dist.Gamma(2.0, 2.0))
        pyro.sample("p", dist.Beta(1.0, 1.0))
        pyro.sample("pi", dist.Dirichlet(torch.ones(3)))
        pyro.sample("L", dist.LKJCholesky(3, 1.0))
        pyro.sample("y", dist.Normal(m + b.sum(-1), tau.rsqrt()), obs=y)


@pytest.mark.parametrize("family", REAL_MATRIX)
def test_a_family_for_all_leaves_what_it_does_not_fit_to_the_support(family: str) -> None:
    guide = Guide(Everything(), Y, weights=REAL_MATRIX[family])
    chosen = {name: type(module) for name, module in guide.q.items()}
    if family == "Point":
        assert set(chosen.values()) == {guides.Point}
        return
    assert chosen["W"].__name__ == family.split()[0]
    assert chosen["b"] is (guides.SiteFullRank if family == "SiteFullRank" else guides.MeanField)
    assert chosen["m"] is guides.MeanField
    assert chosen["tau"] is guides.Gamma
    assert {chosen["p"], chosen["pi"], chosen["L"]} == {guides.MeanField}
    lab.check(Everything(), guide, Y, Trace_ELBO())


def test_a_mapping_chooses_per_site() -> None:
    families = dict.fromkeys(("b", "m", "p", "pi", "L"), guides.MeanField)
    guide = Guide(Everything(), Y, weights={"W": guides.MatrixNormal, "tau": guides.LogNormal, **families})
    assert isinstance(guide.q["W"], guides.MatrixNormal)
    assert isinstance(guide.q["tau"], guides.LogNormal)


DISCRETE = {
    "Bernoulli": lambda: dist.Bernoulli(0.5),
    "Categorical": lambda: dist.Categorical(torch.ones(3)),
    "Poisson": lambda: dist.Poisson(2.0),
    "Geometric": lambda: dist.Geometric(0.5),
    "NegativeBinomial": lambda: dist.NegativeBinomial(5.0, 0.5),
    "Multinomial": lambda: dist.Multinomial(3, torch.ones(3) / 3),
    "OneHotCategorical": lambda: dist.OneHotCategorical(torch.ones(3)),
}


@pytest.mark.parametrize("prior", DISCRETE)
@pytest.mark.parametrize("family", ["MeanField", "MatrixNormal", "Point"])
def test_a_discrete_site_without_enumeration_is_refused(prior: str, family: str) -> None:
    with pytest.raises(GuideError, match=r"site 'w': no family for a discrete site .* enumerate it in the model"):
        Guide(OneSite(DISCRETE[prior]()), Y, weights=REAL_MATRIX[family])


def test_a_support_without_a_bijection_is_refused_but_not_called_discrete() -> None:
    with pytest.raises(GuideError, match=r"site 'w': no family for .*Lower.*LowerCholesky") as refusal:
        Guide(OneSite(Lower()), Y, weights=guides.MeanField)
    assert "discrete" not in str(refusal.value)


@pytest.mark.parametrize(("prior", "family"), CASES)
def test_a_family_named_for_a_site_is_the_one_it_gets(prior: str, family: str) -> None:
    p, build = unpack(prior, family)
    _, guide = one_site(p, build)
    wanted = build.func if isinstance(build, partial) else build
    assert type(guide.q["w"]) is wanted


NAMED = {
    "SiteFullRank": "SiteFullRank needs a site on the real line.*",
    "MatrixNormal": r"a matrix normal needs a real site of event shape \(d, k\)",
}


@pytest.mark.parametrize("family", NAMED)
def test_a_family_named_for_a_site_that_it_does_not_fit_is_refused(family: str) -> None:
    with pytest.raises(GuideError, match=f"site 'w': {NAMED[family]}, not Gamma with event shape"):
        one_site(dist.Gamma(2.0, 2.0), REAL_MATRIX[family])


@pytest.mark.parametrize("family", ["Gamma", "LogNormal"])
def test_a_positive_family_named_for_a_real_site_is_refused(family: str) -> None:
    with pytest.raises(GuideError, match=f"site 'w': {family} needs a positive site, not Normal"):
        one_site(dist.Normal(0.0, 1.0), POSITIVE[family])


def test_a_site_without_a_family_is_refused() -> None:
    with pytest.raises(
        GuideError, match=r"no family for the latent sites \['W'\]: give weights=.* or allow_prior=True"
    ):
        names = ("b", "m", "tau", "p", "pi", "L")
        Guide(Everything(), Y, weights=dict.fromkeys(names, guides.MeanField))


@pytest.mark.parametrize("argument", ["weights", "latents", "given", "observed", "start"])
def test_a_misspelt_site_is_refused(argument: str) -> None:
    options: dict[str, Any] = {"weights": guides.MeanField}
    wrong = {"weights": guides.MeanField, "start": torch.zeros(K)}.get(argument, ("x",))
    with pytest.raises(GuideError, match=rf"{argument}= names \['v'\], but the latent sites of the model are \['w'\]"):
        Guide(OneSite(normal(K)), Y, **{**options, argument: {"v": wrong}})


def test_a_family_of_the_wrong_event_shape_is_refused() -> None:
    class Wrong(nn.Module):
        def __init__(self, prior: Any, context: Any) -> None:
            super().__init__()

        def forward(self, context: Any) -> dist.Distribution:
            return normal(K + 1)

    with pytest.raises(GuideError, match=r"site 'w': its family gives event shape \(4,\), the model has \(3,\)"):
        one_site(normal(K), Wrong)


# Local sites


class Layers(nn.Module):
    """z2 ~ N(0, I), z1 | z2, x | z1, all local: top-down; `c` observes z2 where the batch has it."""

    def __init__(self, N: int | None = None) -> None:
        super().__init__()
        self.N = N

    def forward(self, x: Tensor, c: Tensor | None = None, k: Tensor | None = None) -> None:
        with data_plate(len(x), self.N):
            z2 = pyro.sample("z2", normal(2), obs=c)
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z1, 1.0).to_event(1), obs=x)


class Watching(NormalEncoder):
    """An encoder that keeps the contexts it was given."""

    def forward(self, context: Tensor) -> dist.Distribution:
        self.seen = context
        return super().forward(context)


def xs(n: int = 6, d: int = 2) -> Tensor:
    return torch.sin(torch.arange(float(n * d))).reshape(n, d)


def test_given_orders_the_sampling_and_the_contexts() -> None:
    guide = Guide(Layers(), {"x": xs()}, latents=Watching, given={"z2": ("z1", "x")})
    assert guide.order == ["z1", "z2"]
    trace = poutine.util.prune_subsample_sites(poutine.trace(guide).get_trace(x=xs()))
    assert [name for name, site in trace.nodes.items() if site["type"] == "sample"] == ["z1", "z2"]
    torch.testing.assert_close(guide.q["z1"].seen, xs())
    torch.testing.assert_close(guide.q["z2"].seen, torch.cat([trace.nodes["z1"]["value"], xs()], -1))


def test_the_default_order_is_the_models() -> None:
    guide = Guide(Layers(), {"x": xs()}, latents=NormalEncoder)
    assert guide.order == ["z2", "z1"]
    assert guide.mean_field


def test_a_reordered_guide_does_not_claim_to_be_mean_field() -> None:
    assert not Guide(Layers(), {"x": xs()}, latents=NormalEncoder, given={"z2": ("z1",)}).mean_field


def test_circular_given_is_refused() -> None:
    with pytest.raises(GuideError, match="given= is circular: z2 <- z1 <- z2"):
        Guide(Layers(), {"x": xs()}, latents=NormalEncoder, given={"z1": ("z2",), "z2": ("z1",)})


def test_a_missing_context_is_refused() -> None:
    with pytest.raises(GuideError, match=r"site 'z2' is given 'u', which is neither in this batch nor a local site"):
        Guide(Layers(), {"x": xs()}, latents=NormalEncoder, given={"z2": ("u",)})


def test_an_encoder_for_a_global_site_is_refused() -> None:
    with pytest.raises(GuideError, match="an encoder needs a local site: one inside the plate 'data'"):
        one_site(normal(K), NormalEncoder)


def test_an_observed_local_site_is_not_sampled_and_is_context_instead() -> None:
    guide = Guide(Layers(), {"x": xs()}, latents=Watching, given={"z1": ("x", "z2")}, observed={"z2": "c"})
    trace = poutine.trace(guide).get_trace(x=xs(), c=xs() + 1)
    assert "z2" not in trace.nodes
    torch.testing.assert_close(guide.q["z1"].seen, torch.cat([xs(), xs() + 1], -1))
    assert "z2" in poutine.trace(guide).get_trace(x=xs()).nodes
    for batch in ({"x": xs()}, {"x": xs(), "c": xs() + 1}):
        lab.check(Layers(), guide, batch, TraceMeanField_ELBO())


def test_scalar_and_integer_contexts_become_columns() -> None:
    guide = Guide(Layers(), {"x": xs(), "k": torch.arange(6)}, latents=Watching, given={"z2": ("x", "k")})
    assert guide.q["z2"].seen.shape == (6, 3)
    assert guide.q["z2"].seen.is_floating_point()


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 40])
@pytest.mark.parametrize("N", [None, 20])
def test_the_guides_plate_is_the_models(n: int, N: int | None) -> None:
    model = Layers(N)
    guide = Guide(model, {"x": xs(8)}, latents=NormalEncoder)
    assert N == guide.N
    p, q = (poutine.trace(f).get_trace(x=xs(n)) for f in (model, guide))
    assert p.nodes["z1"]["scale"] == q.nodes["z1"]["scale"] == (N or n) / n
    assert lab.check(model, guide, {"x": xs(n)}, TraceMeanField_ELBO()) == (N or n)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_short_prototype_still_finds_out_whether_the_plate_follows(n: int) -> None:
    assert Guide(Layers(), {"x": xs(n)}, latents=NormalEncoder).N is None
    assert n == Guide(Layers(n), {"x": xs(n)}, latents=NormalEncoder).N


# allow_prior


class Means(nn.Module):
    """m ~ N(0, 1); z_n ~ N(m, 1); y_n ~ N(z_n, 1/2)."""

    def __init__(self, N: int | None = None) -> None:
        super().__init__()
        self.N = N

    def forward(self, y: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with data_plate(len(y), self.N):
            z = pyro.sample("z", dist.Normal(m, 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)


class Slopes(nn.Module):
    """W ~ N(0, 1); z_n ~ N(x_n W, 1); y_n ~ N(z_n, 1/2)."""

    def forward(self, x: Tensor, y: Tensor) -> None:
        f = linear("W", x, normal(1, 1)).squeeze(-1)
        with data_plate(len(x)):
            z = pyro.sample("z", dist.Normal(f, 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)


def expected_loglik(y: Tensor, loc: Tensor, variance: Tensor) -> Tensor:
    """E log N(y; z, 1/2) for z with this mean and variance."""
    return -0.5 * math.log(2 * math.pi * 0.25) - ((y - loc).square() + variance) / (2 * 0.25)


def estimate(bound: Callable[..., ELBO], model: nn.Module, guide: nn.Module, **batch: Tensor) -> tuple[float, float]:
    """The bound and its standard error from twenty estimates of 500 vectorised particles each."""
    loss = bound(num_particles=500, vectorize_particles=True)(model, guide)
    with torch.no_grad():
        draws = -torch.stack([loss(**batch) for _ in range(20)])
    return float(draws.mean()), float(draws.std() / math.sqrt(len(draws)))


@pytest.mark.parametrize("N", [None, 30])
def test_prior_sites_cost_nothing_and_are_drawn_given_the_guided_ones(N: int | None) -> None:
    y = torch.tensor([0.5, -1.0, 2.0])
    guide = Guide(Means(N), {"y": y}, weights=partial(guides.MeanField, scale=0.4), allow_prior=True)
    m, s = torch.tensor(0.3), torch.tensor(0.4)
    guide.q["m"].start_at(m)
    exact = (N or 3) / 3 * expected_loglik(y, m, s**2 + 1).sum() - kl_divergence(
        dist.Normal(m, s), dist.Normal(0.0, 1.0)
    )
    value, error = estimate(Trace_ELBO, Means(N), guide, y=y)
    assert value == pytest.approx(float(exact), abs=5 * error)
    assert not guide.mean_field


def test_prior_sites_below_a_locally_reparametrised_weight_still_cost_nothing() -> None:
    x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([0.5, -1.0])
    family = partial(guides.MeanField, scale=0.8, spread=0.0)
    guide = Guide(Slopes(), {"x": x, "y": y}, weights=family, allow_prior=True)
    variance = 0.64 * x.squeeze(-1).square() + 1
    exact = expected_loglik(y, torch.zeros(2), variance).sum() - kl_divergence(
        dist.Normal(0.0, 0.8), dist.Normal(0.0, 1.0)
    )
    value, error = estimate(Trace_ELBO, Slopes(), guide, x=x, y=y)
    assert value == pytest.approx(float(exact), abs=5 * error)


# Other people's models


class Schools(nn.Module):
    """Eight schools, non-centred: a plate of 8 and no data plate."""

    def forward(self, y: Tensor, sigma: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("schools", 8):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


def schools() -> dict[str, Tensor]:
    return {
        "y": torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
        "sigma": torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
    }


@pytest.mark.parametrize("family", REAL)
def test_a_plate_of_the_model_is_the_guides_too(family: str) -> None:
    guide = Guide(Schools(), schools(), weights=REAL[family])
    trace = poutine.trace(guide).get_trace(**schools())
    assert trace.nodes["eta"]["value"].shape == (8,)
    assert [frame.name for frame in trace.nodes["eta"]["cond_indep_stack"]] == ["schools"]
    assert lab.check(Schools(), guide, schools(), Trace_ELBO()) == 1


def test_eight_schools_as_quadrature_has_it() -> None:
    """Given tau everything is Gaussian, so E mu is one integral over tau; a mean-field q comes near it."""
    batch = schools()
    guide = Guide(Schools(), batch, weights={"mu": guides.MeanField, "tau": guides.LogNormal, "eta": guides.MeanField})
    lab.fit(
        Schools(),
        guide,
        [batch],
        Trace_ELBO(num_particles=8, vectorize_particles=True),
        epochs=400,
        lr=0.05,
        decay=0.01,
    )
    tau = torch.linspace(1e-3, 60, 20001)[:, None]
    variance = batch["sigma"].square() + tau.square()
    precision = 1 / 25 + (1 / variance).sum(-1)
    mean = (batch["y"] / variance).sum(-1) / precision
    log_weight = 0.5 * (
        precision * mean.square() - precision.log() - (batch["y"].square() / variance + variance.log()).sum(-1)
    )
    weight = (log_weight + dist.HalfCauchy(5.0).log_prob(tau[:, 0])).softmax(0)
    deviation = float((weight @ (1 / precision + mean.square()) - (weight @ mean).square()).sqrt())
    assert abs(float(guide.q["mu"].loc.detach()) - float(weight @ mean)) < 0.3 * deviation


class Dotted(PyroModule):
    """A PyroModule whose sites are named layer.weight and layer.bias."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = PyroModule[nn.Linear](3, 1)
        self.layer.weight = PyroSample(normal(1, 3))
        self.layer.bias = PyroSample(normal(1))

    def forward(self, x: Tensor, y: Tensor) -> None:
        f = self.layer(x).squeeze(-1)
        with data_plate(len(x)):
            pyro.sample("y", dist.Normal(f, 1.0), obs=y)


def test_sites_with_dots_in_their_names() -> None:
    model, batch = Dotted(), {"x": xs(6, 3), "y": xs(6, 1)[:, 0]}
    guide = Guide(model, batch, weights=guides.MeanField)
    assert set(guide(**batch)) == {"layer.weight", "layer.bias"}
    assert lab.check(model, guide, batch, TraceMeanField_ELBO()) == 6
    Guide(model, batch, weights=guides.MeanField).load_state_dict(guide.state_dict())


@pytest.mark.parametrize("name", ["keys", "type", "pop", "training", "_modules", "q"])
def test_sites_named_like_methods_of_a_module(name: str) -> None:
    def model() -> None:
        pyro.sample(name, normal(2))

    guide = Guide(model, {}, weights=guides.MeanField)
    assert guide()[name].shape == (2,)
    Guide(model, {}, weights=guides.MeanField).load_state_dict(guide.state_dict())


class Components(nn.Module):
    """Two sites in one plate, opened twice, and one in two nested plates."""

    def forward(self, y: Tensor) -> None:
        components, parts = pyro.plate("components", 3, dim=-2), pyro.plate("parts", 2, dim=-1)
        with components:
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            tau = pyro.sample("tau", dist.Gamma(2.0, 2.0))
        with components, parts:
            b = pyro.sample("b", dist.Normal(mu, tau.rsqrt()))
        pyro.sample("y", dist.Normal(b.sum((-1, -2)), 1.0), obs=y)


def test_several_sites_in_the_same_plates() -> None:
    guide = Guide(Components(), Y, weights=guides.MeanField)
    trace = poutine.trace(guide).get_trace(**Y)
    assert trace.nodes["b"]["fn"].batch_shape == (3, 2)
    assert trace.nodes["mu"]["fn"].batch_shape == trace.nodes["tau"]["fn"].batch_shape == (3, 1)
    lab.check(Components(), guide, Y, Trace_ELBO())


# Copies


class Net(nn.Module):
    """A two-layer Bayesian network."""

    def __init__(self, N: int | None = None) -> None:
        super().__init__()
        self.N = N

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        like: dict[str, Any] = {"dtype": x.dtype}
        h = linear("W1", x, dist.Normal(0.0, torch.ones(2, 5, **like)).to_event(2)).tanh()
        f = linear("W2", h, dist.Normal(0.0, torch.ones(5, 3, **like)).to_event(2))
        tau = pyro.sample("tau", dist.Gamma(torch.tensor(2.0, **like), torch.tensor(1.0, **like)))
        with data_plate(x.shape[-2], self.N):
            return pyro.sample("y", dist.Normal(f, tau.rsqrt().unsqueeze(-1)).to_event(1), obs=y)


class VAE(nn.Module):
    """z ~ N(0, I) in the data plate, pixels Bernoulli."""

    def __init__(self, pixels: int = 2, latent: int = 2, N: int | None = None, width: int = 32) -> None:
        super().__init__()
        self.latent, self.N = latent, N
        self.net = nn.Sequential(nn.Linear(latent, width), nn.Tanh(), nn.Linear(width, pixels))

    def forward(self, x: Tensor) -> Tensor:
        with data_plate(x.shape[-2], self.N):
            z = pyro.sample("z", normal(self.latent))
            return pyro.sample("x", dist.Bernoulli(logits=self.net(z)).to_event(1), obs=x)


def net_batch(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {"x": xs(6, 2).to(dtype), "y": xs(6, 3).cos().to(dtype)}


def pixels() -> dict[str, Tensor]:
    return {"x": (xs(6, 2) > 0).double()}


AUTOS = ("AutoNormal", "AutoMultivariateNormal", "AutoLowRankMultivariateNormal", "AutoDelta")
NET_GUIDES: dict[str, Callable[[], nn.Module]] = {
    **{name: partial(Guide, weights=family) for name, family in REAL_MATRIX.items()},
    "LogNormal": partial(Guide, weights={"W1": guides.MeanField, "W2": guides.MatrixNormal, "tau": guides.LogNormal}),
    **{name: partial(guides.Auto, getattr(autoguide, name)) for name in AUTOS},
}


def twin(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A freshly built guide and a batch for it."""
    if name == "NormalEncoder":
        return Guide(VAE(), pixels(), latents=partial(NormalEncoder, hidden=[4, 3])), pixels()
    if name in AUTOS:
        return guides.Auto(getattr(autoguide, name), Net(), net_batch()), net_batch()
    return NET_GUIDES[name](Net(), net_batch()), net_batch()


def draws(guide: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    pyro.set_rng_seed(7)
    return {name: torch.as_tensor(value) for name, value in guide(**batch).items()}


def same_draws(one: nn.Module, other: nn.Module, batch: Mapping[str, Tensor]) -> bool:
    a, b = draws(one, batch), draws(other, batch)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", [*NET_GUIDES, "NormalEncoder"])
def test_a_state_dict_makes_a_fresh_guide_the_same(name: str) -> None:
    guide, batch = twin(name)
    for parameter in guide.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    pyro.set_rng_seed(3)
    fresh, _ = twin(name)
    assert not same_draws(guide, fresh, batch)
    fresh.load_state_dict(guide.state_dict())
    assert same_draws(guide, fresh, batch)


@pytest.mark.parametrize("name", [*NET_GUIDES, "NormalEncoder"])
def test_a_guide_goes_through_safetensors(name: str) -> None:
    guide, batch = twin(name)
    for parameter in guide.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    stored = safetensors.torch.save(guide.state_dict())
    pyro.set_rng_seed(3)
    fresh, _ = twin(name)
    fresh.load_state_dict(safetensors.torch.load(stored))
    assert same_draws(guide, fresh, batch)


@pytest.mark.parametrize("name", [*NET_GUIDES, "NormalEncoder"])
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda guide: pickle.loads(pickle.dumps(guide))])
def test_a_guide_can_be_copied_and_pickled(name: str, clone: Callable[[nn.Module], nn.Module]) -> None:
    guide, batch = twin(name)
    other = clone(guide)
    assert same_draws(guide, other, batch)
    next(guide.parameters()).data += 1
    assert not same_draws(guide, other, batch)


def test_the_models_parameters_are_not_the_guides() -> None:
    model = VAE()
    guide = Guide(model, pixels(), latents=NormalEncoder)
    assert not {id(p) for p in guide.parameters()} & {id(p) for p in model.parameters()}
    assert not list(Guide(model, pixels(), allow_prior=True).parameters())


@pytest.mark.parametrize("name", [name for name in NET_GUIDES if name not in AUTOS])
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_guide_has_the_dtype_of_the_model(name: str, default: torch.dtype, dtype: torch.dtype) -> None:
    torch.set_default_dtype(default)
    guide = NET_GUIDES[name](Net(), net_batch(dtype))
    assert {parameter.dtype for parameter in guide.parameters()} == {dtype}
    loss = Trace_ELBO()(Net(), guide)(**net_batch(dtype))
    assert loss.dtype is dtype
    loss.backward()


@pytest.mark.parametrize("default", [torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_encoder_has_the_dtype_of_the_data(default: torch.dtype, dtype: torch.dtype) -> None:
    batch = {"x": xs().to(dtype)}
    torch.set_default_dtype(default)

    class Same(nn.Module):
        def forward(self, x: Tensor) -> None:
            with data_plate(len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    guide = Guide(Same(), batch, latents=NormalEncoder)
    assert guide(**batch)["z"].dtype is dtype


# Bounds


class Regression(nn.Module):
    """Conjugate: W ~ N(0, I), y ~ N(x W, 1/2), without local reparametrisation."""

    def forward(self, x: Tensor, y: Tensor) -> None:
        W = pyro.sample("W", normal(2, 1))
        W = W.squeeze(-3) if W.dim() > 3 else W
        with data_plate(len(x)):
            pyro.sample("y", dist.Normal(x @ W, 0.5).to_event(1), obs=y)


def regression() -> dict[str, Tensor]:
    return {"x": xs(6, 2), "y": xs(6, 1).cos()}


def exact_regression() -> tuple[Guide, float]:
    """The exact posterior as a guide, and the log evidence."""
    x, y = regression().values()
    covariance = torch.linalg.inv(torch.eye(2) + x.mT @ x / 0.25)
    guide = Guide(Regression(), regression(), weights=guides.SiteFullRank)
    q = guide.q["W"]
    q.loc.data.copy_(covariance @ x.mT @ y / 0.25)
    tril = torch.linalg.cholesky(covariance)
    q.tril.log_scale.data.copy_(tril.diagonal().log())
    q.tril.lower.data.copy_((tril / tril.diagonal()[:, None])[1, :1])
    marginal = dist.MultivariateNormal(torch.zeros(6), x @ x.mT + 0.25 * torch.eye(6))
    return guide, float(marginal.log_prob(y[:, 0]))


JOINT = {
    "Trace_ELBO": Trace_ELBO(),
    "TraceEnum_ELBO": TraceEnum_ELBO(strict_enumeration_warning=False),
    "TraceTMC_ELBO": TraceTMC_ELBO(strict_enumeration_warning=False),
    "Trace_ELBO vectorised": Trace_ELBO(num_particles=3, vectorize_particles=True),
}


@pytest.mark.parametrize("bound", JOINT)
def test_at_the_exact_posterior_every_draw_of_the_bound_is_the_evidence(bound: str) -> None:
    guide, evidence = exact_regression()
    assert float(-JOINT[bound](Regression(), guide)(**regression()).detach()) == pytest.approx(evidence, abs=1e-9)


def test_at_the_exact_posterior_the_mean_field_bound_is_the_evidence_in_expectation() -> None:
    guide, evidence = exact_regression()
    loss = TraceMeanField_ELBO()(Regression(), guide)
    values = -torch.stack([loss(**regression()).detach() for _ in range(200)])
    assert float(values.mean()) == pytest.approx(evidence, abs=5 * float(values.std()) / math.sqrt(200))


BOUNDS: dict[str, Callable[[], ELBO]] = {
    "Trace_ELBO": Trace_ELBO,
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "TraceEnum_ELBO": lambda: TraceEnum_ELBO(strict_enumeration_warning=False),
    "TraceTMC_ELBO": lambda: TraceTMC_ELBO(strict_enumeration_warning=False),
    "TraceTailAdaptive_ELBO": lambda: TraceTailAdaptive_ELBO(num_particles=4, vectorize_particles=True),
}


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("family", NOISY)
def test_every_bound_runs_on_a_network_and_moves_every_parameter(bound: str, family: str) -> None:
    guide = Guide(Net(), net_batch(), weights=REAL_MATRIX[family])
    loss = BOUNDS[bound]()(Net(), guide)(**net_batch())
    loss.backward()
    assert loss.isfinite() or bound == "TraceTailAdaptive_ELBO"  # which has gradients but no value
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in guide.parameters())


@pytest.mark.parametrize("bound", [name for name in BOUNDS if name != "TraceTailAdaptive_ELBO"])
def test_every_bound_runs_on_a_vae_and_trains_the_model_it_is_given(bound: str) -> None:
    model = VAE()
    guide = Guide(model, pixels(), latents=NormalEncoder)
    BOUNDS[bound]()(model, guide)(**pixels()).backward()
    assert all(p.grad is not None and p.grad.any() for p in [*model.parameters(), *guide.parameters()])


def test_trace_mmd_runs_on_a_vae() -> None:
    """Its kernels are PyroModules, which write to the global store unless told otherwise."""
    from pyro.contrib.gp.kernels import RBF

    model = VAE()
    guide = Guide(model, pixels(), latents=NormalEncoder)
    with pyro.settings.context(module_local_params=True):
        kernel = RBF(12, lengthscale=torch.tensor(2.0))
        loss = Trace_MMD(kernel, num_particles=20, vectorize_particles=True)(model, guide)(**pixels())
        loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.any() for p in guide.parameters())


@pytest.mark.parametrize("bound", [RenyiELBO, TraceGraph_ELBO, ReweightedWakeSleep])
def test_bounds_without_a_differentiable_loss_do_not_apply(bound: type[ELBO]) -> None:
    """They compute gradients in `loss_and_grads` only, so `bound(model, guide)` as a module cannot take them."""
    assert not hasattr(bound, "differentiable_loss")


class Mixture(nn.Module):
    """pi ~ Dirichlet, component of each y enumerated in the model."""

    def forward(self, y: Tensor) -> None:
        pi = pyro.sample("pi", dist.Dirichlet(torch.tensor([2.0, 3.0])))
        mu = pyro.sample("mu", dist.Normal(torch.tensor([-1.0, 2.0]), 1.0).to_event(1))
        with data_plate(len(y)):
            k = pyro.sample("k", dist.Categorical(pi), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(mu[..., k], 0.7), obs=y)


def mixture_log_joint(pi: Tensor, mu: Tensor, y: Tensor) -> Tensor:
    prior = dist.Dirichlet(torch.tensor([2.0, 3.0])).log_prob(pi)
    prior = prior + dist.Normal(torch.tensor([-1.0, 2.0]), 1.0).log_prob(mu).sum()
    return prior + (pi.log() + dist.Normal(mu, 0.7).log_prob(y[:, None])).logsumexp(-1).sum()


@pytest.mark.parametrize("family", ["MeanField", "Point"])
def test_assignments_enumerated_in_the_model(family: str) -> None:
    y = torch.tensor([-1.2, 0.4, 2.5, 1.9])
    guide = Guide(Mixture(), {"y": y}, weights=REAL_MATRIX[family])
    assert set(guide.q) == {"pi", "mu"}
    lab.check(Mixture(), guide, {"y": y}, TraceEnum_ELBO(max_plate_nesting=1))
    pyro.set_rng_seed(5)
    loss = TraceEnum_ELBO(max_plate_nesting=1)(Mixture(), guide)(y=y)
    pyro.set_rng_seed(5)
    trace = poutine.trace(guide).get_trace(y=y)
    pi, mu = (trace.nodes[name]["value"] for name in ("pi", "mu"))
    assert float(-loss.detach()) == pytest.approx(float(mixture_log_joint(pi, mu, y) - trace.log_prob_sum()), abs=1e-9)


PARTICLES: dict[str, Callable[..., ELBO]] = {
    "Trace_ELBO": Trace_ELBO,
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "TraceEnum_ELBO": partial(TraceEnum_ELBO, strict_enumeration_warning=False),
}
QUICK = [("Trace_ELBO", "MeanField"), ("TraceMeanField_ELBO", "MatrixNormalTril"), ("TraceEnum_ELBO", "SiteFullRank")]


@pytest.mark.parametrize(
    ("bound", "family"),
    [
        pytest.param(bound, family, marks=[] if (bound, family) in QUICK else pytest.mark.slow)
        for bound in PARTICLES
        for family in ("MeanField", "MatrixNormal", "MatrixNormalTril", "SiteFullRank")
    ],
)
def test_vectorised_and_looped_particles_agree_in_mean_and_spread(bound: str, family: str) -> None:
    """Were the noise of local reparametrisation shared by the particles, their spread would be several times larger."""
    guide = Guide(Net(), net_batch(), weights=partial(REAL_MATRIX[family], scale=0.5))
    particles, repeats = 8, 80
    many = PARTICLES[bound](num_particles=particles, vectorize_particles=True)(Net(), guide)
    one = PARTICLES[bound]()(Net(), guide)
    together = torch.stack([many(**net_batch()).detach() for _ in range(repeats)])
    looped = torch.stack([one(**net_batch()).detach() for _ in range(3 * repeats)])
    error = math.sqrt(float(together.var() / len(together) + looped.var() / len(looped)))
    assert float(together.mean()) == pytest.approx(float(looped.mean()), abs=5 * error)
    assert float(together.std()) == pytest.approx(float(looped.std()) / math.sqrt(particles), rel=0.45)


def test_weight_space_and_local_reparametrisation_have_the_same_bound() -> None:
    guide = Guide(Net(), net_batch(), weights=partial(guides.MatrixNormal, scale=0.3))
    value, error = estimate(TraceMeanField_ELBO, Net(), guide, **net_batch())
    with weight_space():
        weights, weight_error = estimate(TraceMeanField_ELBO, Net(), guide, **net_batch())
    assert value == pytest.approx(weights, abs=5 * math.hypot(error, weight_error))


# Variational autoencoders: the same guide serves local sites


class LinearGaussian(nn.Module):
    """Probabilistic PCA with orthogonal loadings, so that the exact posterior is a linear diagonal encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("loadings", torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.5, 0.0]]))

    def forward(self, x: Tensor) -> None:
        with data_plate(x.shape[-2]):
            z = pyro.sample("z", normal(2))
            pyro.sample("x", dist.Normal(z @ self.loadings, 0.8).to_event(1), obs=x)

    def log_marginal(self, x: Tensor) -> Tensor:
        covariance = self.loadings.mT @ self.loadings + 0.64 * torch.eye(3)
        return dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(x).sum()


def test_a_linear_gaussian_vae_reaches_the_exact_log_marginal_and_never_passes_it() -> None:
    model = LinearGaussian()
    x = torch.randn(100, 2) @ model.loadings + 0.8 * torch.randn(100, 3)
    guide = Guide(model, {"x": x}, latents=partial(NormalEncoder, hidden=[]))
    fit = lab.fit(model, guide, [{"x": x}], TraceMeanField_ELBO(), epochs=300, lr=0.05, decay=0.01)
    exact = float(model.log_marginal(x))
    value, error = fit.elbo({"x": x}, particles=300)
    assert value < exact + 4 * error
    assert value > exact - 0.02 * len(x) - 4 * error


def log_weights(model: nn.Module, guide: nn.Module, batch: Mapping[str, Tensor], draws: int) -> Tensor:
    """log p(x, z) - log q(z) for each datum, (draws, n)."""
    with torch.no_grad(), pyro.plate("draws", draws, dim=-2):
        q = poutine.trace(guide).get_trace(**batch)
        p = poutine.trace(poutine.replay(model, trace=q)).get_trace(**batch)
    logs = [t.nodes[name]["fn"].log_prob(t.nodes[name]["value"]) for t, name in ((p, "x"), (p, "z"), (q, "z"))]
    return logs[0] + logs[1] - logs[2]


def test_a_vae_on_digits() -> None:
    x = torch.as_tensor(load_digits().data > 8).to(torch.get_default_dtype())
    table = lab.Table({"x": x}, name="digits")
    model = VAE(64, 4, N=len(x), width=64)
    guide = Guide(model, table.peek(), latents=partial(NormalEncoder, hidden=[64]))
    fit = lab.fit(model, guide, table.batches(100, seed=0), TraceMeanField_ELBO(), epochs=15, lr=5e-3)
    value, error = (number / len(x) for number in fit.elbo(table.all(), particles=20))
    weights = log_weights(model, guide, table.all(), 100)
    assert value == pytest.approx(float(weights.mean()), abs=0.2)  # the same number by another way
    importance = float((weights.logsumexp(0) - math.log(len(weights))).mean())
    assert value < importance + 4 * error
    rate = x.mean(0).clamp(1e-3, 1 - 1e-3)
    independent = float(dist.Bernoulli(rate).log_prob(x).sum(-1).mean())
    assert value > independent + 3  # z is used: no model with independent pixels can score above this
