"""Traps of Pyro that train silently wrong, each shown to be impossible here or loud; the numbers are our own."""

import ast
import inspect
import math
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import safetensors.torch
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO, autoguide
from pyro.nn import PyroModule
from torch import Tensor, nn
from torch.distributions import kl_divergence

import guides
from guides import Auto, Guide, GuideError, NormalEncoder, data_plate, linear, weight_space
from zoo import lab
from zoo.lab.predictive import draw

AUTOS = ("AutoNormal", "AutoMultivariateNormal", "AutoLowRankMultivariateNormal", "AutoDelta")
WEIGHTS = {
    "MeanField": guides.MeanField,
    "MatrixNormal": guides.MatrixNormal,
    "MatrixNormalTril": guides.MatrixNormalTril,
    "MatrixNormalLowRank": guides.MatrixNormalLowRank,
    "SiteFullRank": guides.SiteFullRank,
}


class Mean(nn.Module):
    """m ~ N(0, sd), y ~ N(m, 1)."""

    def __init__(self, N: int | None = None, *, sd: float = 10.0) -> None:
        super().__init__()
        self.N, self.sd = N, sd

    def forward(self, y: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, self.sd))
        with data_plate(len(y), self.N):
            pyro.sample("y", dist.Normal(m, 1.0), obs=y)


class Net(nn.Module):
    """A Bayesian network of two layers, classification or regression."""

    def __init__(self, N: int | None = None) -> None:
        super().__init__()
        self.N = N

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        h = linear("W1", x, dist.Normal(0.0, torch.ones(3, 4)).to_event(2)).tanh()
        h = torch.cat([h, h.new_ones(*h.shape[:-1], 1)], -1)
        f = linear("W2", h, dist.Normal(0.0, torch.ones(5, 2)).to_event(2))
        with data_plate(x.shape[-2], self.N):
            return pyro.sample("y", dist.Normal(f, 0.5).to_event(1), obs=y)


class VAE(nn.Module):
    """z ~ N(0, I), x ~ Bernoulli(net(z)), with attributes named like those of guide and encoder."""

    def __init__(self, N: int | None = None) -> None:
        super().__init__()
        self.N, self.net = N, nn.Linear(2, 4)
        self.q = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor) -> None:
        with data_plate(len(x), self.N):
            z = pyro.sample("z", dist.Normal(0.0, torch.ones(2)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.net(z) + self.q).to_event(1), obs=x)


class Story(nn.Module):
    """A guide written by hand around another one."""

    def __init__(self, guide: nn.Module, before: Any) -> None:
        super().__init__()
        self.guide, self.before = guide, before

    def forward(self, **batch: Tensor) -> None:
        self.before()
        self.guide(**batch)


def net_batch(n: int = 6) -> dict[str, Tensor]:
    x = torch.arange(float(3 * n)).sin().reshape(n, 3)
    return {"x": x, "y": x[:, :2].cos()}


def pixels(n: int = 32) -> dict[str, Tensor]:
    return {"x": (torch.arange(4.0 * n).sin().reshape(n, 4) > 0).to(torch.get_default_dtype())}


def value(loss: nn.Module, batch: Mapping[str, Tensor], seed: int = 0) -> float:
    pyro.set_rng_seed(seed)
    return float(loss(**batch).detach())


def posterior_mean(guide: nn.Module, batch: Mapping[str, Tensor]) -> float:
    with torch.no_grad():
        return float(torch.stack([guide(**batch)["m"] for _ in range(50)]).mean())


BUILDERS = {
    **{name: partial(Auto, getattr(autoguide, name)) for name in AUTOS},
    "Guide": partial(Guide, weights=guides.MeanField),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_fact_1_two_guides_never_share_parameters(name: str) -> None:
    data = [{"y": torch.full((20,), centre)} for centre in (3.0, -3.0)]
    models = [Mean(), Mean()]
    pair = [BUILDERS[name](model, batch) for model, batch in zip(models, data, strict=True)]
    assert not {id(p) for p in pair[0].parameters()} & {id(p) for p in pair[1].parameters()}
    for model, guide, batch in zip(models, pair, data, strict=True):
        lab.fit(model, guide, [batch], Trace_ELBO(), epochs=120, lr=0.2, decay=0.05)
    for guide, batch, centre in zip(pair, data, (3.0, -3.0), strict=True):
        assert posterior_mean(guide, batch) == pytest.approx(centre, abs=0.5)
    assert not dict(pyro.get_param_store())


def test_fact_2_plain_pyro_still_works_beside_us() -> None:
    """Under module_local_params, which we never set, SVI fails on plain parameters."""
    Auto(autoguide.AutoNormal, Mean(), {"y": torch.zeros(3)})(y=torch.zeros(3))
    assert not pyro.settings.get("module_local_params")
    net = nn.Linear(1, 1)

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        pyro.sample("y", dist.Normal(net(x), 1.0).to_event(2), obs=x)

    try:
        svi = SVI(model, lambda x: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        before = net.weight.detach().clone()
        svi.step(torch.ones(4, 1))
        assert not torch.equal(net.weight, before)
    finally:
        pyro.clear_param_store()


def test_fact_3_attributes_of_the_same_name_do_not_collide() -> None:
    model = VAE()
    guide = Guide(model, pixels(), latents=NormalEncoder)
    assert {"net", "q"} <= {name.split(".")[0] for name, _ in model.named_parameters()}
    before = [p.detach().clone() for p in [*model.parameters(), *guide.parameters()]]
    lab.fit(model, guide, [pixels()], Trace_ELBO(), epochs=1)
    after = [*model.parameters(), *guide.parameters()]
    assert all(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
    assert not dict(pyro.get_param_store())


def test_fact_3_our_modules_are_no_pyro_modules() -> None:
    kinds = [*WEIGHTS.values(), Guide, Auto, NormalEncoder, guides.Gamma, guides.LogNormal, guides.Point]
    assert not [kind for kind in kinds if issubclass(kind, PyroModule)]


def test_fact_4_a_guide_that_forgets_a_site_is_refused() -> None:
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Parameter(torch.zeros(()))

        def forward(self, y: Tensor) -> None:
            pyro.sample("n", dist.Normal(self.loc, 1.0), infer={"is_auxiliary": True})

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(lab.UnmatchedSites, match=r"the guide samples no \['m'\]"):
            lab.fit(Mean(), Forgetful(), [{"y": torch.zeros(3)}], Trace_ELBO(), epochs=1)
    with pytest.raises(GuideError, match=r"no family for the latent sites \['m'\]"):
        Guide(Mean(), {"y": torch.zeros(3)})


@pytest.mark.parametrize("name", AUTOS)
def test_fact_5_a_fresh_automatic_guide_loads_a_state_dict(name: str) -> None:
    trained = Auto(getattr(autoguide, name), Net(), net_batch())
    lab.fit(Net(), trained, [net_batch()], Trace_ELBO(), epochs=2, lr=0.1)
    stored = safetensors.torch.save(trained.state_dict())  # fact 6: no pickle anywhere
    fresh = Auto(getattr(autoguide, name), Net(), net_batch())
    fresh.load_state_dict(safetensors.torch.load(stored))
    results = []
    for guide in (trained, fresh):
        pyro.set_rng_seed(0)
        results.append(guide(**net_batch()))
    assert all(torch.equal(results[0][site], results[1][site]) for site in results[0])


def test_fact_6_and_7_we_neither_unpickle_nor_use_the_store() -> None:
    """No call of pyro.param, pyro.module, the store, torch.load or pickle in either package."""
    banned = {"param", "module", "get_param_store", "clear_param_store", "load"}
    for package in (guides, __import__("zoo")):
        for path in Path(inspect.getfile(package)).parent.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                    assert node.value.id not in ("pyro", "torch") or node.attr not in banned, (path, node.lineno)
                if isinstance(node, ast.Import):
                    assert not {alias.name for alias in node.names} & {"pickle", "dill", "joblib"}, path


class Ladder(nn.Module):
    """z2 ~ N(0, 1), z1 ~ N(z2, 1), x ~ N(z1, 1)."""

    def forward(self, x: Tensor) -> None:
        with data_plate(len(x)):
            z2 = pyro.sample("z2", dist.Normal(0.0, 1.0))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
            pyro.sample("x", dist.Normal(z1, 1.0), obs=x)


class Affine(nn.Module):
    """A family: N(a c + b, s^2) for scalar context c."""

    def __init__(self, prior: Any, context: Any, *, a: float, s: float) -> None:
        super().__init__()
        self.a, self.s = (nn.Parameter(torch.tensor(number)) for number in (a, s))

    def forward(self, context: Tensor) -> dist.Distribution:
        return dist.Normal(self.a * context.squeeze(-1), self.s)


def test_fact_8_the_mean_field_bound_of_a_bottom_up_guide_is_wrong_and_refused() -> None:
    batch = {"x": torch.tensor([0.5, 1.0, 2.0])}
    exact = {"z1": partial(Affine, a=2 / 3, s=math.sqrt(2 / 3)), "z2": partial(Affine, a=1 / 2, s=math.sqrt(1 / 2))}
    guide = Guide(Ladder(), batch, latents=exact, given={"z2": ("z1",)})
    evidence = float(dist.Normal(0.0, math.sqrt(3)).log_prob(batch["x"]).sum())
    assert -value(Trace_ELBO()(Ladder(), guide), batch) == pytest.approx(evidence, abs=1e-9)
    with pytest.warns(UserWarning, match="mean field"):
        wrong = -value(TraceMeanField_ELBO(num_particles=20_000, vectorize_particles=True)(Ladder(), guide), batch)
    assert (round(evidence, 2), wrong) == (-5.28, pytest.approx(-6.28, abs=0.05))
    with pytest.raises(lab.MeanFieldOrder, match="use Trace_ELBO, or keep the model's order"):
        lab.fit(Ladder(), guide, [batch], TraceMeanField_ELBO(), epochs=1)
    assert not guide.mean_field


PRIORS = {
    "normal": lambda: dist.Normal(0.0, torch.ones(3, 2)).to_event(2),
    "matrix normal": lambda: guides.distributions.MatrixNormal(
        torch.zeros(3, 2), row_scale=torch.ones(3), col_scale=torch.ones(2)
    ),
    "vector": lambda: dist.Normal(0.0, torch.ones(3)).to_event(1),
    "scalar": lambda: dist.Normal(0.0, 1.0),
    "gamma": lambda: dist.Gamma(torch.ones(2), 1.0).to_event(1),
    "log normal": lambda: dist.LogNormal(torch.zeros(2), 1.0).to_event(1),
}
PAIRS = [
    *((family, prior) for family in (*WEIGHTS, "Point") for prior in ("normal", "matrix normal")),
    *((family, "vector") for family in ("MeanField", "SiteFullRank", "Point")),
    ("MeanField", "scalar"),
    *((family, prior) for family in ("Gamma", "LogNormal") for prior in ("gamma", "log normal")),
]


@pytest.mark.parametrize(("family", "name"), PAIRS)
def test_fact_9_no_site_falls_back_on_sampling(family: str, name: str) -> None:
    prior = PRIORS[name]()

    class One(nn.Module):
        def forward(self) -> None:
            pyro.sample("w", prior)

    guide = Guide(One(), {}, weights={"w": getattr(guides, family)})
    loss = TraceMeanField_ELBO()(One(), guide)
    assert guide.mean_field
    assert value(loss, {}, seed=0) == value(loss, {}, seed=1)  # a sampled divergence would differ
    assert lab.check(One(), guide, {}, TraceMeanField_ELBO()) == 1


def test_fact_9_a_pair_without_a_divergence_is_refused() -> None:
    class One(nn.Module):
        def forward(self) -> None:
            pyro.sample("w", dist.HalfCauchy(1.0))

    guide = Guide(One(), {}, weights=guides.Gamma)
    assert not guide.mean_field
    with pytest.raises(lab.UnregisteredKL, match=r"closed-form KL\(Gamma \|\| HalfCauchy\)"):
        lab.check(One(), guide, {}, TraceMeanField_ELBO())


class Scaled(nn.Module):
    """A model under a scale."""

    def __init__(self, model: nn.Module, scale: float) -> None:
        super().__init__()
        self.model, self.scale = model, scale

    def forward(self, **batch: Tensor) -> None:
        with poutine.scale(scale=self.scale):
            self.model(**batch)


class Passed(nn.Module):
    """A guide behind a plain call, as wrappers do it."""

    def __init__(self, guide: nn.Module) -> None:
        super().__init__()
        self.guide = guide

    def forward(self, **batch: Tensor) -> None:
        self.guide(**batch)


def test_fact_10_the_bound_uses_the_model_it_is_given() -> None:
    guide = Guide(Net(6), net_batch(), weights=guides.MatrixNormal)
    plain, hundredfold = (value(Trace_ELBO()(Net(N), guide), net_batch()) for N in (6, 600))
    scaled = value(Trace_ELBO()(Scaled(Net(6), 0.01), guide), net_batch())
    assert len({round(number, 6) for number in (plain, hundredfold, scaled)}) == 3


def test_fact_10_the_given_model_gets_its_gradient() -> None:
    guide, other = Guide(VAE(), pixels(), latents=NormalEncoder), VAE()
    Trace_ELBO()(other, guide)(**pixels()).backward()
    assert all(p.grad is not None and p.grad.any() for p in other.parameters())


def test_fact_10_a_wrapped_guide_observes_nothing() -> None:
    guide = Guide(Net(), net_batch(), weights=guides.MatrixNormal, allow_prior=True)
    assert not poutine.trace(Passed(guide)).get_trace(**net_batch()).observation_nodes
    losses = [value(Trace_ELBO()(Net(), q), net_batch()) for q in (guide, Passed(guide))]
    assert losses[0] == losses[1]


def exact_vae_loss(guide: Guide, model: VAE, batch: Mapping[str, Tensor], draws: int = 4000) -> tuple[float, float]:
    """-sum_n (E_q log p(x_n | z_n) - KL_n), with the KL in closed form and the rest by plain Monte Carlo."""
    with torch.no_grad():
        q = guide.q["z"](batch["x"])
        loglik = dist.Bernoulli(logits=model.net(q.sample((draws,))) + model.q).log_prob(batch["x"]).sum((-1, -2))
        kl = kl_divergence(q, dist.Normal(0.0, torch.ones(2)).to_event(1)).sum()
    return float(kl - loglik.mean()), float(loglik.std()) / math.sqrt(draws)


@pytest.mark.parametrize("n", [7, 32, 50])
@pytest.mark.parametrize("N", [None, 40])
def test_fact_10a_the_plates_of_model_and_guide_agree_on_any_number_of_rows(n: int, N: int | None) -> None:
    model = VAE(N)
    guide = Guide(model, pixels(32), latents=NormalEncoder)
    expected, error = exact_vae_loss(guide, model, pixels(n))
    bound = TraceMeanField_ELBO(num_particles=4000, vectorize_particles=True)
    scale = (N or n) / n
    assert value(bound(model, guide), pixels(n)) == pytest.approx(scale * expected, abs=6 * scale * error)
    assert value(Trace_ELBO(num_particles=4000, vectorize_particles=True)(model, guide), pixels(n)) == pytest.approx(
        scale * expected, rel=0.02
    )


def test_fact_10a_another_plate_is_refused_and_ours_permutes_nothing() -> None:
    guide = Guide(VAE(32), pixels(32), latents=NormalEncoder)
    with pytest.raises(lab.PlateScale, match=r"site 'z' is scaled by 1 in the model and 4.57143 in the guide"):
        lab.fit(VAE(), guide, [pixels(7)], Trace_ELBO(), epochs=1)
    with data_plate(50, 40) as rows:
        assert torch.equal(rows, torch.arange(50))


def test_fact_10b_an_automatic_guide_of_local_sites_refuses_other_rows() -> None:
    guide = Auto(autoguide.AutoNormal, VAE(), pixels(32))
    with pytest.raises(GuideError, match=r"one parameter per datum of \['z'\] and was built on 32 rows, not 7"):
        guide(**pixels(7))
    Auto(autoguide.AutoNormal, Net(), net_batch(6))(**net_batch(3))


def test_fact_10c_families_start_at_the_prior_mean_and_automatic_guides_where_told() -> None:
    vague, batch = Mean(sd=1000.0), {"y": torch.full((20,), 0.3)}
    assert posterior_mean(Guide(vague, batch, weights=guides.MeanField), batch) == pytest.approx(0, abs=0.1)
    guide = Auto(autoguide.AutoNormal, vague, batch, start={"m": torch.tensor(0.3)}, init_scale=0.01)
    assert posterior_mean(guide, batch) == pytest.approx(0.3, abs=0.02)


def test_fact_10c_a_fit_that_has_not_converged_says_so() -> None:
    vague, batch = Mean(sd=1000.0), {"y": torch.full((20,), 300.0)}
    guide = Guide(vague, batch, weights=guides.MeanField)
    assert not lab.fit(vague, guide, [batch], Trace_ELBO(), epochs=150, lr=0.01).converged


@pytest.mark.parametrize("family", ["MeanField", "MatrixNormal", "MatrixNormalTril", "MatrixNormalLowRank"])
def test_fact_11_the_activations_come_from_the_guide_and_not_from_the_prior(family: str) -> None:
    guide = Guide(Net(), net_batch(), weights=partial(WEIGHTS[family], scale=1e-8, spread=0.7))
    parameters = [guide.q[name].loc for name in ("W1", "W2")]
    mean_field = TraceMeanField_ELBO()
    bound = torch.autograd.grad(mean_field(Net(), guide)(**net_batch()), parameters)
    priors = {"W1": torch.ones(3, 4), "W2": torch.ones(5, 2)}
    kl = sum(kl_divergence(guide.q[n](), dist.Normal(0.0, s).to_event(2)) for n, s in priors.items())
    of_kl = torch.autograd.grad(kl, parameters)
    W1, W2 = (p.detach().clone().requires_grad_() for p in parameters)
    h = (net_batch()["x"] @ W1).tanh()
    f = torch.cat([h, torch.ones(6, 1)], -1) @ W2
    of_loss = torch.autograd.grad(-dist.Normal(f, 0.5).log_prob(net_batch()["y"]).sum(), [W1, W2])
    for got, own, likelihood in zip(bound, of_kl, of_loss, strict=True):
        assert likelihood.norm() > 0.1
        torch.testing.assert_close(got, own + likelihood, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["MeanField", "MatrixNormal", "MatrixNormalTril"])
def test_fact_11_and_10_local_reparametrisation_lowers_the_variance_of_the_gradient(family: str) -> None:
    batch = net_batch(40)
    guide = Guide(Net(), batch, weights=partial(WEIGHTS[family], scale=0.5))

    def spread() -> float:
        loss, parameter = TraceMeanField_ELBO()(Net(), guide), guide.q["W1"].loc
        grads = [torch.autograd.grad(loss(**batch), parameter)[0] for _ in range(60)]
        return float(torch.stack(grads).var(0).sum())

    local = spread()
    with weight_space():
        assert spread() > 1.5 * local


@pytest.mark.parametrize("family", ["MeanField", "MatrixNormal", "SiteFullRank"])
def test_fact_12_joint_draws_are_in_weight_space(family: str) -> None:
    guide, batch = Guide(Net(), net_batch(), weights=partial(WEIGHTS[family], scale=0.5)), net_batch()
    draws = draw(Net(), guide, batch, 5)
    for s in range(5):
        W1, W2 = (draws.latents[name][s] for name in ("W1", "W2"))
        h = (batch["x"] @ W1).tanh()
        f = torch.cat([h, torch.ones(6, 1)], -1) @ W2
        torch.testing.assert_close(draws.outputs["y"].mean[s], f)
        prior = dist.Normal(0.0, 1.0).log_prob(W1).sum() + dist.Normal(0.0, 1.0).log_prob(W2).sum()
        torch.testing.assert_close(draws.lp[s], prior + dist.Normal(f, 0.5).log_prob(batch["y"]).sum())
        q = sum(guide.q[name]().log_prob(W) for name, W in (("W1", W1), ("W2", W2)))
        torch.testing.assert_close(draws.log_q[s], q.detach())


def test_fact_12_weight_space_hides_the_law() -> None:
    guide = Guide(Net(), net_batch(), weights=guides.MatrixNormal)
    for context, expected in ((weight_space, True), (poutine.block, False)):
        trace = poutine.trace(guide).get_trace(**net_batch())
        with context():
            out = poutine.trace(poutine.replay(Net(), trace=trace)).get_trace(**net_batch())
        W1, W2 = (trace.nodes[name]["value"] for name in ("W1", "W2"))
        h = torch.cat([(net_batch()["x"] @ W1).tanh(), torch.ones(6, 1)], -1)
        assert torch.allclose(out.nodes["y"]["fn"].mean, h @ W2) is expected


def test_fact_13_an_automatic_guide_multiplies_the_weight_itself() -> None:
    guide = Auto(autoguide.AutoNormal, Net(), net_batch())
    trace = poutine.trace(guide).get_trace(**net_batch())
    out = poutine.trace(poutine.replay(Net(), trace=trace)).get_trace(**net_batch())
    W1, W2 = (trace.nodes[name]["value"] for name in ("W1", "W2"))
    h = torch.cat([(net_batch()["x"] @ W1).tanh(), torch.ones(6, 1)], -1)
    torch.testing.assert_close(out.nodes["y"]["fn"].mean, h @ W2)


def test_fact_15_subsampled_plates_are_no_latent_sites() -> None:
    guide = Guide(Ladder(), {"x": torch.zeros(4)}, latents=NormalEncoder, given={"z2": ("x",), "z1": ("x",)})
    assert set(guide.q) == {"z1", "z2"}
    assert set(guide(x=torch.zeros(4))) == {"z1", "z2"}
    assert lab.check(Ladder(), guide, {"x": torch.zeros(4)}, Trace_ELBO()) == 4
    auto = Auto(autoguide.AutoNormal, Net(20), net_batch())
    assert lab.check(Net(20), auto, net_batch(), Trace_ELBO()) == 20


def test_fact_15_latents_in_another_subsampled_plate_are_refused() -> None:
    class Other(nn.Module):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("documents", 10, subsample=torch.arange(len(x))):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(GuideError, match="site 'z' lies in the subsampled plate 'documents'; name that plate 'data'"):
        Guide(Other(), {"x": torch.zeros(4)}, weights=guides.MeanField, latents=NormalEncoder)


def auxiliary(*, masked: bool) -> None:
    with poutine.mask(mask=not masked):
        pyro.sample("noise", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})


def test_fact_16_plain_noise_of_a_guide_must_be_masked() -> None:
    """Unmasked, its entropy joins the bound; the mean-field bound is refused; the composed guide has no such site."""
    batch = {"y": torch.tensor([0.5, 1.0])}
    guide = Guide(Mean(), batch, weights=guides.Point)
    plain = value(Trace_ELBO()(Mean(), guide), batch)
    masked, unmasked = (Story(guide, partial(auxiliary, masked=flag)) for flag in (True, False))
    assert value(Trace_ELBO()(Mean(), masked), batch) == pytest.approx(plain)
    pyro.set_rng_seed(0)
    log_q = float(dist.Normal(0.0, 1.0).log_prob(torch.randn(())))
    assert value(Trace_ELBO()(Mean(), unmasked), batch) == pytest.approx(plain + log_q)
    with pytest.raises(lab.UnregisteredKL, match="the auxiliary site 'noise'"):
        lab.check(Mean(), unmasked, batch, TraceMeanField_ELBO())
    own = poutine.trace(Guide(Net(), net_batch(), weights=guides.MatrixNormal)).get_trace(**net_batch())
    assert not [name for name, site in own.nodes.items() if (site.get("infer") or {}).get("is_auxiliary")]


@pytest.mark.parametrize("bound", [Trace_ELBO, TraceMeanField_ELBO])
def test_fact_17_a_penalty_raises_the_loss_by_exactly_itself(bound: Any) -> None:
    guide = Guide(Net(), net_batch(), weights=guides.MatrixNormal)
    fined = Story(guide, lambda: pyro.factor("fine", torch.tensor(2.5), has_rsample=True))
    lab.check(Net(), fined, net_batch(), bound())
    losses = [value(bound()(Net(), q), net_batch()) for q in (guide, fined)]
    assert losses[1] - losses[0] == pytest.approx(2.5)


@pytest.mark.parametrize("parallel", [False, True])
def test_fact_20_weights_with_an_inserted_dimension_work(parallel: bool) -> None:
    """A guide with a data plate hands weights on as (S, 1, D, K)."""
    guide = Guide(Net(), net_batch(), weights=guides.MatrixNormal)
    weights = {name: torch.stack([guide()[name].unsqueeze(0) for _ in range(7)]).detach() for name in ("W1", "W2")}
    assert weights["W1"].shape == (7, 1, 3, 4)
    x = net_batch()["x"]
    names = ("y", "_RETURN")
    drawn = Predictive(Net(), posterior_samples=weights, return_sites=names, parallel=parallel)(x=x)
    assert drawn["y"].shape == (7, 6, 2)
    h = torch.cat([(x @ weights["W1"].squeeze(1)).tanh(), torch.ones(7, 6, 1)], -1)
    deviation = drawn["y"] - h @ weights["W2"].squeeze(1)
    assert float(deviation.std()) == pytest.approx(0.5, rel=0.3)


@pytest.mark.parametrize("parallel", [False, True])
def test_fact_20_predictive_with_a_guide(parallel: bool) -> None:
    guide = Guide(Net(), net_batch(), weights=partial(guides.MatrixNormal, scale=1e-6))
    drawn = Predictive(Net(), guide=guide, num_samples=200, parallel=parallel)(x=net_batch()["x"])
    W1, W2 = (guide.q[name].loc.detach() for name in ("W1", "W2"))
    h = torch.cat([(net_batch()["x"] @ W1).tanh(), torch.ones(6, 1)], -1)
    assert drawn["y"].shape == (200, 6, 2)
    torch.testing.assert_close(drawn["y"].mean(0), h @ W2, atol=0.2, rtol=0)
    torch.testing.assert_close(drawn["y"].std(0), torch.full((6, 2), 0.5), atol=0.15, rtol=0)
