"""k-hat, bounds, restarts and distances against exact truths; posteriordb where its files are."""

import copy
import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal
from torch import Tensor, nn

import guides
from guides import Guide, data_plate
from zoo import __main__ as command
from zoo import lab, matrix_gaussian
from zoo.lab import diagnosis
from zoo.lab.diagnosis import DiagnosisError
from zoo.lab.pareto import tail_index, threshold
from zoo.lab.posteriors import FLAT, EightSchools, FlatRegression
from zoo.lab.references import POSTERIORS, Reference, reference, reference_table
from zoo.lab.restarts import restart_ratio

N = 20


class Location(nn.Module):
    """theta ~ N(0, I_2), y_n ~ N(theta, I): the posterior is N(sum y / (N + 1), I / (N + 1))."""

    def forward(self, y: Tensor) -> None:
        theta = pyro.sample("theta", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
        with data_plate(len(y), N):
            pyro.sample("y", dist.Normal(theta, 1.0).to_event(1), obs=y)


class Scale(nn.Module):
    """s ~ LogNormal(0, 1), y_n ~ N(log s, 1): log s is normal a posteriori."""

    def forward(self, y: Tensor) -> None:
        s = pyro.sample("s", dist.LogNormal(y.new_zeros(1), 1.0).to_event(1))
        with data_plate(len(y), N):
            pyro.sample("y", dist.Normal(s.log(), 1.0).to_event(1), obs=y)


class Local(nn.Module):
    """w ~ N(0, 1), z_n ~ N(0, I_2), y_n ~ N(w + 3 z_n, I): given w, z_n is N(3 (y_n - w) / 10, I / 10)."""

    def forward(self, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(y.new_zeros(()), 1.0))
        with data_plate(len(y), 40):
            z = pyro.sample("z", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(w.unsqueeze(-1) + 3 * z, 1.0).to_event(1), obs=y)


class Encoder(nn.Module):
    """q(w) is what it likes; q(z | w, y) has `width` times the exact standard deviation, and the exact mean + `off`."""

    def __init__(self, width: float = 1.0, off: Tensor | None = None) -> None:
        super().__init__()
        self.width, self.off = width, torch.zeros(()) if off is None else off

    def forward(self, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(y.new_zeros(()), 1.0))
        with data_plate(len(y), 40):
            mean = 0.3 * (y - w.unsqueeze(-1)) + self.off
            pyro.sample("z", dist.Normal(mean, self.width * math.sqrt(0.1)).to_event(1))


def fit_of(model: nn.Module, guide: nn.Module, y: Tensor, *, size: int | None = None) -> lab.Fit:
    table = lab.Table({"y": y}, name="drawn")
    return lab.Fit(model, guide, Trace_ELBO(), table.batches(size or len(y), seed=0), N=len(y))


def location_fit(width: float, *, size: int | None = None, shift: float = 0.0) -> lab.Fit:
    """The exact posterior of `Location` with its standard deviations times `width` and its means moved by `shift`."""
    y, model = 1 + torch.randn(N, 2), Location()
    guide = Guide(model, {"y": y}, weights=guides.MeanField)
    family: Any = guide.q["theta"]
    family.loc.data.copy_(y.sum(0) / (N + 1) + shift / math.sqrt(N + 1))
    family.log_scale.data.fill_(math.log(width / math.sqrt(N + 1)))
    return fit_of(model, guide, y, size=size)


def test_tail_index_of_exact_pareto_weights() -> None:
    """log w ~ Exp(1) times k is a Pareto law of shape k at every threshold, so the fit is unbiased but for its prior.

    ArviZ shrinks by ten observations at 1/2: with 425 in the tail, at most .012 here. Twenty sets, error .02 to .025;
    a bias of .1 would be seen at four errors.
    """
    for k in (0.2, 0.5, 0.8):
        found = tail_index(k * dist.Exponential(torch.ones(20_000, 20)).sample())
        tail = 3 * math.sqrt(20_000)
        expected = (tail * k + 5) / (tail + 10)
        assert found.mean() == pytest.approx(expected, abs=4 * (1 + k) / math.sqrt(20 * tail))


def test_weights_without_a_tail() -> None:
    equal = torch.full((500,), -3.0)
    assert tail_index(equal) == -math.inf
    assert tail_index(equal + 1e-9 * torch.randn(500), resolution=1e-7) == -math.inf
    assert tail_index(torch.linspace(0, 1e6, 500)) == math.inf, "one draw carries all"
    mixed = tail_index(torch.stack([equal, torch.randn(500)], 1))
    assert mixed[0] == -math.inf and abs(mixed[1]) < 1


def test_the_threshold_of_vehtari_et_al() -> None:
    assert threshold(1000) == pytest.approx(2 / 3)
    assert threshold(100) == pytest.approx(0.5)
    assert threshold(10_000) == 0.7
    with pytest.raises(DiagnosisError, match="at least 100 draws, not 50"):
        tail_index(torch.zeros(50))
    with pytest.raises(DiagnosisError, match="2 of 200 importance weights are not finite"):
        tail_index(torch.tensor([math.nan, -math.inf] + [0.0] * 198))


@pytest.mark.parametrize("size", [None, 7])
def test_exact_posterior_has_equal_weights_whatever_the_batches(size: int | None) -> None:
    found = diagnosis.joint(location_fit(1.0, size=size), draws=300)
    assert found.value == -math.inf and found.usable and found.elements == 2
    assert "q is the exact posterior" in found.sentence
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["value"] is None


@pytest.mark.parametrize("width", [0.3, 0.7])
@pytest.mark.parametrize("size", [None, 7])
def test_joint_khat_of_a_guide_too_narrow_by_a_known_factor(width: float, size: int | None) -> None:
    """q = N(m, r^2 s^2) against N(m, s^2): log w = (1 - r^2) |z|^2 / 2 with z ~ N(0, I), and |z|^2 / 2 ~ Exp(1).

    So w is exactly Pareto with k = 1 - r^2 in two dimensions (in one, this is the limit).
    """
    found = diagnosis.joint(location_fit(width, size=size), draws=20_000)
    k = 1 - width**2
    assert found.error == pytest.approx((1 + found.value) / math.sqrt(425), rel=1e-2)
    assert found.value == pytest.approx(k, abs=3.5 * (1 + k) / math.sqrt(425))
    assert found.usable is (found.value < 0.7)


@pytest.mark.parametrize("guide_class", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal])
@pytest.mark.parametrize("model_class", [Location, Scale])
def test_automatic_guides_at_the_exact_posterior_have_equal_weights(guide_class: type, model_class: type) -> None:
    """The density of an automatic guide lies in an auxiliary site and, off the real line, in its Jacobian."""
    model = model_class()
    y = 1 + torch.randn(N, 2 if model_class is Location else 1)
    site = "theta" if model_class is Location else "s"
    auto = guides.Auto(guide_class, model, {"y": y}, init_scale=1 / math.sqrt(N + 1))
    mean = y.sum(0) / (N + 1)
    with torch.no_grad():
        location: Any = getattr(auto.auto.locs, site) if guide_class is AutoNormal else auto.auto.loc
        location.copy_(mean)
    found = diagnosis.joint(fit_of(model, auto, y, size=7), draws=300)
    assert found.value == -math.inf, found


def test_joint_khat_is_in_weight_space() -> None:
    """Local reparametrisation would draw activations that belong to no weight; log q and log p must share one.

    With orthonormal columns of x the posterior of W is independent, N(E, 1 / (1 + 1 / noise^2)): mean field is exact.
    """
    x, noise = torch.linalg.qr(torch.randn(N, 3))[0], 0.1

    class Linear(nn.Module):
        def forward(self, x: Tensor, y: Tensor | None = None) -> None:
            f = guides.linear("W", x, dist.Normal(x.new_zeros(3, 1), 1.0).to_event(2))
            with data_plate(len(x), N):
                pyro.sample("y", dist.Normal(f, noise).to_event(1), obs=y)

    y, model = x @ torch.ones(3, 1) + noise * torch.randn(N, 1), Linear()
    guide = Guide(model, {"x": x, "y": y}, weights=guides.MeanField)
    precision = 1 + noise**-2
    family: Any = guide.q["W"]
    family.loc.data.copy_(x.mT @ y / noise**2 / precision)
    family.log_scale.data.fill_(-math.log(precision) / 2)
    table = lab.Table({"x": x, "y": y}, name="linear")
    fit = lab.Fit(model, guide, Trace_ELBO(), table.batches(7, seed=0), N=N)
    assert diagnosis.joint(fit, draws=300).value == -math.inf


def test_joint_khat_refuses_what_has_no_joint_density() -> None:
    train, _, _ = matrix_gaussian.data("diabetes")
    model = matrix_gaussian.Model.for_data(train, hidden=[])
    point = Guide(model, train.peek(), weights=guides.Point)
    fit = lab.Fit(model, point, Trace_ELBO(), train.batches(100, seed=0), N=len(train))
    with pytest.raises(DiagnosisError, match=r"point mass at \['tau', 'W1'\], and a point has no density"):
        diagnosis.joint(fit)
    delta = guides.Auto(AutoDelta, model, train.peek())
    with pytest.raises(DiagnosisError, match="point mass at"):
        diagnosis.joint(replace(fit, guide=delta))
    y = torch.randn(40, 2)
    with pytest.raises(DiagnosisError, match=r"\['z'\] are latents of each datum; look at k-hat per datum"):
        diagnosis.joint(fit_of(Local(), Encoder(), y, size=10))
    with pytest.raises(DiagnosisError, match="several data streams"):
        diagnosis.joint(replace(fit, batches=[{"pairs": train.peek()}]))


def test_khat_refuses_a_model_that_sums_a_latent_out() -> None:
    """One draw of such a site from the prior would enter p and not q."""

    class Mixture(nn.Module):
        def forward(self, y: Tensor) -> None:
            theta = pyro.sample("theta", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
            with data_plate(len(y), N):
                side = pyro.sample("side", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
                pyro.sample("y", dist.Normal(theta + side.unsqueeze(-1), 1.0).to_event(1), obs=y)

    y, model = torch.randn(N, 2), Mixture()
    fit = fit_of(model, Guide(model, {"y": y}, weights=guides.MeanField), y)
    for number in (diagnosis.joint, diagnosis.per_datum):
        with pytest.raises(DiagnosisError, match=r"does not draw \['side'\], which the model sums out"):
            number(fit)


class Charged(Encoder):
    """A guide of its own that says that its draws are not those it charges."""

    joint_density = False


def test_a_guide_that_charges_another_law_has_neither_khat_nor_bound() -> None:
    train, _, _ = matrix_gaussian.data("diabetes")
    model = matrix_gaussian.Model.for_data(train, hidden=[])
    guide = Guide(model, train.peek(), weights=guides.MatrixNormalAuthors)
    family = lab.Fit(model, guide, Trace_ELBO(), train.batches(100, seed=0), N=len(train))
    y = torch.randn(40, 2)
    native = fit_of(Local(), Charged(), y)
    for fit, name in ((family, "MatrixNormalAuthors"), (native, "Charged")):
        for number, measure in (("joint k-hat", diagnosis.joint), ("bound", diagnosis.bound)):
            reason = f"no {number}: the activations of {name} follow another law than its weights"
            with pytest.raises(DiagnosisError, match=reason):
                measure(fit)


def test_khat_per_datum_of_an_exact_encoder_given_the_weights() -> None:
    """The weights are equal for each datum only if all its draws share one draw of w, and the likelihood counts."""
    found = diagnosis.per_datum(fit_of(Local(), Encoder(), torch.randn(40, 2)), draws=200)
    assert (found.values == -math.inf).all() and found.share == 0


def test_khat_per_datum_of_an_encoder_too_narrow_by_a_known_factor() -> None:
    """As for the joint one, k = 1 - r^2 in two dimensions; forty data, error .02. Rows are told apart."""
    off = torch.zeros(40, 2)
    off[7] = 8 * math.sqrt(0.1)
    found = diagnosis.per_datum(fit_of(Local(), Encoder(0.8, off), torch.randn(40, 2)), draws=4000)
    rest = np.delete(found.values, 7)
    tail = 3 * math.sqrt(4000)
    assert rest.mean() == pytest.approx((0.36 * tail + 5) / (tail + 10), abs=4 * 1.36 / math.sqrt(39 * tail))
    assert found.worst(1) == [7] and found.share == pytest.approx(1 / 40)
    assert "2 % of 40 data" in found.sentence and "Worst rows: 7" in found.sentence


def test_rows_are_the_same_in_whatever_portions_they_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zoo.lab.khat.ROWS_AT_ONCE", 3 * 200)
    off = torch.zeros(40, 2)  # the encoder's means of every portion must be those of its own rows
    found = diagnosis.per_datum(fit_of(Local(), Encoder(1.0, off[:1]), torch.randn(40, 2)), draws=200)
    assert found.values.shape == (40,) and (found.values == -math.inf).all()


def test_khat_per_datum_is_refused_where_there_is_none() -> None:
    with pytest.raises(DiagnosisError, match="no local latents; look at the joint one"):
        diagnosis.per_datum(location_fit(1.0))
    y, model = torch.randn(40, 2), Local()
    auto = guides.Auto(AutoNormal, model, {"y": y})
    with pytest.raises(DiagnosisError, match="joint over the data"):
        diagnosis.per_datum(fit_of(model, auto, y))
    assert diagnosis.joint(fit_of(model, auto, y), draws=200).elements == 81, "full batches: joint over all latents"


def test_gap_is_the_known_divergence() -> None:
    """KL(N(m, r^2 s^2 I) || N(m, s^2 I)) = -2 log r + r^2 - 1 in two dimensions."""
    for width in (1.0, 0.5):
        fit = location_fit(width)
        y = fit.batches.tensors["y"]  # type: ignore[attr-defined]
        joint = dist.MultivariateNormal(torch.zeros(N), torch.eye(N) + 1.0)
        evidence = float(joint.log_prob(y.mT).sum())
        found = diagnosis.bound(fit, evidence=evidence, particles=400)
        exact = -2 * math.log(width) + width**2 - 1
        assert found.gap == pytest.approx(exact, abs=4 * found.error + 1e-9)
        assert found.to_dict()["per_datum"] == pytest.approx(found.value / N)
    assert "this is KL(q || posterior)" in found.sentence
    assert "cannot be" in replace(found, evidence=found.value - 10 * found.error).sentence


def test_a_point_has_no_bound() -> None:
    y, model = torch.randn(N, 2), Location()
    with pytest.raises(DiagnosisError, match="no bound: a point mass has no entropy"):
        diagnosis.bound(fit_of(model, Guide(model, {"y": y}, weights=guides.Point), y))


def test_diagnose_says_what_it_refuses() -> None:
    found = diagnosis.diagnose(location_fit(0.5), draws=1000, particles=20)
    assert set(found.found) == {"bound", "khat"} and set(found.refused) == {"khat_per_datum"}
    assert len(found.sentences) == 4 and found.sentences[-1].startswith("No k-hat per datum: the model has no local")
    json.dumps(found.to_dict(), allow_nan=False)


def test_restart_ratio_is_the_formula() -> None:
    """Two fits at -1 and 1 with unit variance within: B / S = 2, W = 1, so sqrt(2 + (S - 1) / S)."""
    within = torch.randn(2, 400)
    within = (within - within.mean(1, keepdim=True)) / within.std(1, keepdim=True)
    draws = within + torch.tensor([[-1.0], [1.0]])
    assert restart_ratio(draws) == pytest.approx(math.sqrt(2 + 399 / 400), rel=1e-9)
    assert restart_ratio(torch.stack([within, draws], -1)) == restart_ratio(draws), "the worst number"
    assert restart_ratio(torch.ones(2, 50)) == 1.0


def test_agreement_of_fits_a_known_distance_apart() -> None:
    """Posterior means s apart in two fits of sd s: sd between fits s / sqrt 2, predictive sd sqrt(1 + s^2)."""
    s = 1 / math.sqrt(N + 1)
    first = location_fit(1.0)
    second = copy.deepcopy(first)
    guide: Any = second.guide
    guide.q["theta"].loc.data.add_(s)
    batch = first.first_batch()
    found = diagnosis.agreement([first, second], batch, identified=["theta"], draws=4000)
    assert found.mean_spread == pytest.approx(s / math.sqrt(2) / math.sqrt(1 + s**2), rel=0.1)
    assert found.mean_noise == pytest.approx(s / math.sqrt(4000) / math.sqrt(1 + s**2), rel=0.05)
    assert found.sd_spread < 2 * found.sd_noise
    assert found.scalars["theta"] == pytest.approx(math.sqrt(1.5), rel=0.05)
    assert found.function_ratio == pytest.approx(math.sqrt(1.5), rel=0.05)
    gap = 1.0  # KL of a shift by one sd in each of two dimensions is 2 / 2
    assert found.bounds[0][0] - found.bounds[1][0] == pytest.approx(gap, abs=4 * found.bounds[1][1] + 1e-9)
    json.dumps(found.to_dict(), allow_nan=False)


def test_fits_that_are_the_same_agree_within_noise() -> None:
    first = location_fit(0.9)
    found = diagnosis.agreement([first, copy.deepcopy(first)], first.first_batch(), draws=1000)
    assert found.mean_spread < 4 * found.mean_noise and found.sd_spread < 2 * found.sd_noise
    assert found.function_ratio < 1.02
    assert not found.scalars and len(found.sentences) == 4


def test_agreement_is_refused_for_one_fit_or_the_same_guide_twice() -> None:
    fit = location_fit(1.0)
    for fits in ([fit], [fit, fit], [fit, replace(copy.deepcopy(fit), model=fit.model)]):
        with pytest.raises(DiagnosisError, match="two fits or more, each with a model and a guide of its own"):
            diagnosis.agreement(fits, fit.first_batch())
    with pytest.raises(DiagnosisError, match="no latent site 'tau'; there are: theta"):
        diagnosis.agreement([fit, copy.deepcopy(fit)], fit.first_batch(), identified=["tau"])


def test_restarts_differ_by_their_seed_only() -> None:
    y, model = torch.randn(N, 2), Location()

    def make() -> lab.Fit:
        guide = Guide(model, {"y": y}, weights=guides.MeanField)
        return lab.fit(model, guide, [{"y": y}], Trace_ELBO(), epochs=5)

    a, b, c = diagnosis.restarts(make, [0, 1, 0])
    assert a.losses == c.losses and a.losses != b.losses


def test_distance_of_normals_is_known() -> None:
    rho_p, rho_q = 0.8, -0.3
    p = correlated(rho_p, 20_000)
    q = torch.tensor([0.5, -2.0]) * correlated(rho_q, 10_000) + torch.tensor([0.1, 0.0])
    found = diagnosis.distance({"a": q[None]}, {"a": p[None]})
    first, second = found.marginals
    seen: Any = found.visible  # about two standard errors
    assert (first.name, second.name) == ("a[1]", "a[2]")
    assert first.shift == pytest.approx(0.1, abs=2 * seen["shift"])
    assert second.shift == pytest.approx(0, abs=2 * seen["shift"])
    assert found.ratios == (pytest.approx(0.5, abs=2 * seen["ratio"]), pytest.approx(2.0, abs=2 * seen["ratio"]))
    assert found.correlation_max == pytest.approx(0.5, abs=2 * seen["correlation"]), "a negative factor turns its sign"
    error = math.sqrt((1 - rho_q**2) ** 2 / 10_000 + (1 - rho_p**2) ** 2 / 20_000)
    assert found.correlation_error == pytest.approx(error, rel=0.1)
    assert first.shift_error == pytest.approx(math.sqrt(0.25 / 10_000 + 1 / 20_000), rel=0.1)
    assert first.ratio_error == pytest.approx(0.5 * math.sqrt(0.5 / 10_000 + 0.5 / 20_000), rel=0.1)


def correlated(rho: float, draws: int) -> Tensor:
    u, v = torch.randn(2, draws)
    return torch.stack([u, rho * u + math.sqrt(1 - rho**2) * v], -1)


def test_chance_alone_is_seldom_visible() -> None:
    """Equal laws, three numbers: each kind of distance may exceed what chance explains one time in twenty.

    Of 60 pairs 3 are expected; more than 9 has probability below .001.
    """
    over = {"shift": 0, "ratio": 0, "correlation": 0}
    for _ in range(60):
        q, p = torch.randn(2, 1, 500, 3)
        found = diagnosis.distance({"a": q}, {"a": p})
        worst = {
            "shift": found.shift,
            "ratio": max(abs(ratio - 1) for ratio in found.ratios),
            "correlation": found.correlation_max,
        }
        for name in over:
            over[name] += worst[name] > found.visible[name]  # type: ignore[operator]
    assert max(over.values()) <= 9, over


def test_a_point_has_a_shift_and_no_correlation() -> None:
    found = diagnosis.distance({"a": torch.ones(1, 100, 2)}, {"a": torch.randn(4, 100, 2)})
    assert found.ratios == (0.0, 0.0) and found.correlation_max is None and len(found.sentences) == 2
    json.dumps(found.to_dict(), allow_nan=False)


def test_distances_that_mean_nothing_are_refused() -> None:
    with pytest.raises(DiagnosisError, match="nothing to compare: the draws have a; the reference has b"):
        diagnosis.distance({"a": torch.randn(1, 50)}, {"b": torch.randn(1, 50)})
    with pytest.raises(DiagnosisError, match="'a' does not vary in the reference"):
        diagnosis.distance({"a": torch.randn(1, 50)}, {"a": torch.ones(1, 50)})
    with pytest.raises(DiagnosisError, match=r"'a' wants shape \(chain, draw, ...\)"):
        diagnosis.distance({"a": torch.randn(50)}, {"a": torch.randn(1, 50)})


@pytest.fixture(params=list(POSTERIORS))
def known(request: pytest.FixtureRequest) -> Reference:
    return open_reference(request.param)


def open_reference(name: str) -> Reference:
    try:
        return reference(name)
    except lab.DataError as error:
        pytest.skip(str(error))


def test_reference_is_refused_with_the_mend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(lab.DataError, match="no reference posterior 'nine_schools'; there are: eight_schools"):
        reference("nine_schools")
    monkeypatch.setenv("ZOO_DATA", str(tmp_path))
    with pytest.raises(lab.DataError, match=r"set ZOO_DATA to the folder that holds posteriordb/kidiq-.*\.data\.json"):
        reference("kidscore_momiq")


def test_a_flat_prior_is_wide_enough() -> None:
    """The exact posterior of b given s under N(0, FLAT^2) against the flat prior: means and standard deviations."""
    x = torch.randn(50)
    y = 3 + x + torch.randn(50)
    model = FlatRegression(x, y)
    design = torch.stack([torch.ones(50), x], 1) * model.unit / model.residual_sd
    residual = (y - design @ torch.zeros(2) - model.origin[0] - model.origin[1] * x) / model.residual_sd
    precision = design.mT @ design
    moments = []
    for added in (0.0, FLAT**-2):
        covariance = torch.linalg.inv(precision + added * torch.eye(2))
        moments.append((covariance @ design.mT @ residual, covariance.diagonal().sqrt()))
    (flat_mean, flat_sd), (mean, sd) = moments
    assert ((mean - flat_mean) / flat_sd).abs().max() < 1e-7 and (sd / flat_sd - 1).abs().max() < 1e-7
    torch.testing.assert_close(flat_sd, torch.ones(2), msg="the sites are in units of their standard errors")


def test_evidence_of_the_schools_by_draws_of_the_prior() -> None:
    """A plain average over 400,000 draws; its standard error, about .002, is computed."""
    sigma, y = torch.tensor([15.0, 10, 16, 11, 9, 11, 10, 18]), torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12])
    mu, tau = 5 * torch.randn(400_000, 1), dist.HalfCauchy(5.0).sample((400_000, 1))
    likelihood = dist.Normal(mu + tau * torch.randn(400_000, 8), sigma).log_prob(y).sum(1)
    ratio = (likelihood - likelihood.max()).exp()
    error = float(ratio.std() / ratio.mean() / math.sqrt(len(ratio)))
    found = float(ratio.mean().log() + likelihood.max())
    assert error < 0.01
    assert EightSchools().evidence(sigma, y) == pytest.approx(found, abs=4 * error)


@pytest.mark.parametrize("cauchy", [None, 2.5])
def test_evidence_of_the_regression_by_the_covariance_of_the_data(cauchy: float | None) -> None:
    """y ~ N(origin, s^2 r^2 I + FLAT^2 D D^T) given s, on a grid that is even in s instead of log s."""
    x = torch.randn(30)
    y = 3 + x + torch.randn(30)
    model = FlatRegression(x, y, cauchy=cauchy)
    design = torch.stack([torch.ones(30), x], 1)
    wide = FLAT**2 * (design * model.unit) @ (design * model.unit).mT
    s = torch.linspace(0.5, 2.0, 2001)
    covariance = (s * model.residual_sd).square()[:, None, None] * torch.eye(30) + wide
    log_joint = dist.MultivariateNormal(design @ model.origin, covariance).log_prob(y) + model.prior().log_prob(s)
    exact = float(log_joint.logsumexp(0) + s.diff()[0].log())
    assert model.evidence(x, y) == pytest.approx(exact, abs=1e-3), "rounding of covariances of condition 10^8 and more"


def test_reference_draws_have_the_moments_of_the_exact_posterior(known: Reference) -> None:
    """The posterior by quadrature over one scale, all else being Gaussian: loader, model and draws agree."""
    exact = EXACT[known.name](known)
    for name, (mean, sd) in exact.items():
        draws = known.draws[name]
        size = 0.5 * draws.size  # at least: they are nearly independent
        assert draws.mean() == pytest.approx(mean, abs=4.5 * sd / math.sqrt(size)), name
        assert draws.std() == pytest.approx(sd, rel=4.5 * 1.5 / math.sqrt(2 * size)), name


def exact_eight_schools(known: Reference) -> dict[str, tuple[float, float]]:
    """Given tau, y_j ~ N(mu, sigma_j^2 + tau^2) with mu ~ N(0, 5^2)."""
    y, sigma = known.batch["y"], known.batch["sigma"]
    tau = torch.linspace(1e-3, 200, 40_001)
    precision = 1 / (sigma.square() + tau[:, None].square())
    spread = 1 / (precision.sum(-1) + 1 / 25)
    centre = spread * (precision * y).sum(-1)
    weight = -((1 + (tau / 5).square()).log()) + 0.5 * (precision.log().sum(-1) + spread.log() + centre**2 / spread)
    weight = (weight - 0.5 * (precision * y.square()).sum(-1)).softmax(0)
    return {"mu": mixed(weight, centre, spread), "tau": mixed(weight, tau, torch.zeros(()))}


def exact_regression(known: Reference) -> dict[str, tuple[float, float]]:
    """Given sigma, beta ~ N(least squares, sigma^2 (X^T X)^-1) under a flat prior."""
    x, y = known.batch["x"], known.batch["y"]
    design = torch.stack([torch.ones_like(x), x], 1)
    inverse = torch.linalg.inv(design.mT @ design)
    beta = inverse @ design.mT @ y
    rss = (y - design @ beta).square().sum()
    guess = (rss / len(x)).sqrt()
    sigma = torch.linspace(float(0.7 * guess), float(1.4 * guess), 20_001)
    prior = -((1 + (sigma / 2.5).square()).log()) if known.name == "kidscore_momiq" else torch.zeros(())
    weight = (prior - (len(x) - 2) * sigma.log() - rss / (2 * sigma.square())).softmax(0)
    found = {"sigma": mixed(weight, sigma, torch.zeros(()))}
    for i in range(2):
        found[f"beta[{i + 1}]"] = mixed(weight, beta[i].expand_as(sigma), sigma.square() * inverse[i, i])
    return found


def mixed(weight: Tensor, mean: Tensor, variance: Tensor) -> tuple[float, float]:
    total = weight @ mean
    return float(total), float((weight @ (variance + (mean - total).square())).sqrt())


EXACT: dict[str, Callable[[Reference], dict[str, tuple[float, float]]]] = {
    "eight_schools": exact_eight_schools,
    "kidscore_momiq": exact_regression,
    "logearn_height": exact_regression,
}


def test_the_model_is_the_posterior_in_its_own_numbers(known: Reference) -> None:
    """At reference draws: the numbers come back, and the log joint is posteriordb's density up to a constant."""
    numbers = {name: torch.tensor(values[0, :20]) for name, values in known.draws.items()}
    latents, density = SITES[known.name](known, numbers)
    back = known.model.parameters_of(latents)
    for name, value in back.items():
        elements = [name] if value.dim() == 1 else [f"{name}[{i + 1}]" for i in range(value.shape[1])]
        torch.testing.assert_close(value.reshape(20, -1), torch.stack([numbers[e] for e in elements], 1))
    joint = torch.stack([log_joint(known, {name: value[i] for name, value in latents.items()}) for i in range(20)])
    difference = joint - density
    torch.testing.assert_close(difference, difference[0].expand(20), rtol=0, atol=1e-5)  # flat to 10^-7


def log_joint(known: Reference, latents: dict[str, Tensor]) -> Tensor:
    model = pyro.poutine.condition(known.model, data=latents)
    return pyro.poutine.trace(model).get_trace(**known.batch).log_prob_sum()


def schools_in_sites(known: Reference, numbers: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    mu, tau = numbers["mu"], numbers["tau"]
    theta = torch.stack([numbers[f"theta[{j + 1}]"] for j in range(8)], 1)
    t = (theta - mu[:, None]) / tau[:, None]
    likelihood = -((known.batch["y"] - theta) / known.batch["sigma"]).square().sum(1) / 2
    density = likelihood - t.square().sum(1) / 2 - mu.square() / 50 - (1 + (tau / 5).square()).log()
    return {"mu": mu, "tau": tau, "theta_trans": t}, density


def regression_in_sites(known: Reference, numbers: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
    model, x, y = known.model, known.batch["x"], known.batch["y"]
    beta, sigma = torch.stack([numbers["beta[1]"], numbers["beta[2]"]], 1), numbers["sigma"]
    residual = y - beta[:, :1] - beta[:, 1:] * x
    density = -residual.square().sum(1) / (2 * sigma**2) - len(x) * sigma.log()
    if known.name == "kidscore_momiq":
        density = density - (1 + (sigma / 2.5).square()).log()
    return {"b": (beta - model.origin) / model.unit, "s": sigma / model.residual_sd}, density


SITES: dict[str, Callable[[Reference, dict[str, Tensor]], tuple[dict[str, Tensor], Tensor]]] = {
    "eight_schools": schools_in_sites,
    "kidscore_momiq": regression_in_sites,
    "logearn_height": regression_in_sites,
}


@pytest.mark.parametrize("name", list(POSTERIORS))
def test_the_table_says_what_is_refused_and_is_quick_on_few_steps(name: str) -> None:
    open_reference(name)
    point, field = reference_table(name, ["AutoDelta", "MeanField"], steps=5, draws=200)
    assert point["khat"] is None and point["bound"] is None and len(point["notes"]) == 2
    assert point["distance"]["correlation_max"] is None and not point["converged"]
    assert field["khat"]["draws"] == 200 and not field["notes"]
    json.dumps([point, field], allow_nan=False)


@pytest.mark.slow
def test_mean_field_and_full_rank_on_a_correlated_posterior() -> None:
    """Of a Gaussian posterior the best mean field has standard deviations sqrt(1 - rho^2) times the true ones.

    Its divergence is -log(1 - rho^2) / 2; what else is in the gap, from the skewed sigma, is below .02 nats. Its
    k-hat is that of the narrow direction.
    """
    known = open_reference("kidscore_momiq")
    rho = np.corrcoef(known.draws["beta[1]"].ravel(), known.draws["beta[2]"].ravel())[0, 1]
    (field,) = reference_table(known.name, ["MeanField"], steps=1500, draws=4000)
    (full,) = reference_table(known.name, ["SiteFullRank"], draws=4000)  # its covariance is learned last
    for row, ratio in ((field, math.sqrt(1 - rho**2)), (full, 1.0)):
        for marginal in row["distance"]["marginals"]:
            if marginal["name"] != "sigma":
                assert marginal["ratio"] == pytest.approx(ratio, rel=0.05), (row["guide"], marginal)
                assert abs(marginal["shift"]) < 0.1
    assert field["bound"]["gap"] == pytest.approx(-math.log(1 - rho**2) / 2, abs=0.02 + 4 * field["bound"]["error"])
    assert 0 < full["bound"]["gap"] < 0.02
    assert field["khat"]["value"] == pytest.approx(rho**2, abs=4 * field["khat"]["error"]), "1 - r^2, the limit"
    assert full["distance"]["correlation_max"] < 0.05


def test_zoo_diagnose(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    zoo(monkeypatch, "fit", "matrix_gaussian", "--hidden", "none", "--epochs", "3", "--out", str(run))
    capsys.readouterr()
    assert zoo(monkeypatch, "diagnose", str(run), "--draws", "500", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["data"] and found["bound"]["gap"] > 0 and found["khat"]["draws"] == 500
    assert set(found["refused"]) == {"khat_per_datum"}
    assert zoo(monkeypatch, "diagnose", str(run), "--draws", "500") == 0
    told = capsys.readouterr().out
    assert told.count("\n- ") + 1 == len(found["sentences"]) and "Pareto k-hat" in told
    assert zoo(monkeypatch, "diagnose", str(tmp_path / "nothing")) == 2
    assert "is no run" in capsys.readouterr().err


def zoo(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["zoo", *arguments])
    with pytest.raises(SystemExit) as stop:
        command.main()
    return int(stop.value.code or 0)
