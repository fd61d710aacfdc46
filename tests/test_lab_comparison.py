"""Comparisons: what is scored, what is called a bound, and what is refused."""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoLaplaceApproximation, AutoMultivariateNormal
from torch import Tensor, nn

import guides
from guides import Guide, data_plate
from zoo import lab, matrix_gaussian
from zoo.lab.comparison import is_bound
from zoo.lab.experiments import ExperimentError, build_guide
from zoo.lab.options import check_options
from zoo.lab.predictive import condition, draw


class Local(nn.Module):
    """z_n ~ N(0, 1), y_n ~ N(2 + 3 z_n, 1): marginally y_n ~ N(2, 10)."""

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        with data_plate(len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
            pyro.sample("y", dist.Normal(2 + 3 * z, 1.0).to_event(1), obs=y)


def table(n: int = 40) -> lab.Table:
    y = 2 + math.sqrt(10) * torch.randn(n, 1)
    return lab.Table({"x": torch.ones(n, 1), "y": y}, name="local")


def test_loglik_of_a_model_with_local_latents_is_the_marginal_one() -> None:
    data, model = table(), Local()
    guide = Guide(model, data.peek(), latents=guides.NormalEncoder, given={"z": ("x", "y")})
    fit = lab.fit(model, guide, data.batches(10, seed=0), Trace_ELBO(), epochs=60, lr=1e-2)
    found = lab.compare({"encoder": fit}, data, draws=3000)
    exact = dist.Normal(2.0, math.sqrt(10)).log_prob(data["y"]).mean().item()
    (score,) = found.scores
    assert score.loglik[0] == pytest.approx(exact, abs=0.05), "y must not choose its own z"
    assert not score.rmse and any("importance-weighted" in note for note in found.notes)


def test_a_plate_that_follows_the_batch_is_refused_where_weights_would_count_twice() -> None:
    class Weight(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> None:
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            with data_plate(len(x)):
                pyro.sample("y", dist.Normal(w * x, 1.0).to_event(1), obs=y)

    data, model = table(), Weight()
    guide = Guide(model, data.peek(), weights=guides.MeanField)
    with pytest.raises(lab.PlateScale, match=r"follows the batch, and there are 4 batches: the KL of \['w'\]"):
        lab.fit(model, guide, data.batches(10, seed=0), Trace_ELBO(), epochs=1)
    fit = lab.fit(model, guide, data.batches(40, seed=0), Trace_ELBO(), epochs=1)
    assert fit.N == 40


def test_losses_are_per_datum_where_the_plate_follows_the_batch() -> None:
    data, model = table(), Local()
    guide = Guide(model, data.peek(), latents=guides.NormalEncoder)
    fit = lab.fit(model, guide, data.batches(10, seed=0), Trace_ELBO(), epochs=100, lr=1e-9)
    bound, error = fit.elbo(particles=400)
    losses = 40 * torch.tensor(fit.losses)
    assert fit.N == 40
    spread = math.hypot(error, float(losses.std()) / math.sqrt(len(losses)))
    assert -losses.mean() == pytest.approx(bound, abs=5 * spread)


@pytest.mark.parametrize(
    ("guide_class", "bound"), [(AutoDelta, False), (AutoLaplaceApproximation, False), (AutoMultivariateNormal, True)]
)
def test_a_point_is_no_bound(guide_class: type, bound: bool) -> None:
    train, _, _ = matrix_gaussian.data("diabetes")
    model = matrix_gaussian.Model.for_data(train, hidden=[])
    guide = guides.Auto(guide_class, model, train.peek())
    fit = lab.fit(model, guide, train.batches(200, seed=0), Trace_ELBO(), epochs=1)
    assert is_bound(fit) is bound


def test_guides_that_cannot_be_compared_are_refused() -> None:
    train, _, _ = matrix_gaussian.data("diabetes")
    model = matrix_gaussian.Model.for_data(train, hidden=[])
    with pytest.raises(ExperimentError, match="compare AutoDelta instead"):
        build_guide("AutoLaplaceApproximation", model, train.peek())
    with pytest.raises(ExperimentError, match="one parameter per datum"):
        build_guide("AutoNormal", Local(), table().peek())


def test_the_site_called_y_is_scored_among_several() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor | None = None) -> None:
            m = pyro.sample("m", dist.Normal(0.0, 10.0))
            with data_plate(len(x), 40):
                pyro.sample("c", dist.Normal(0.0, 1.0).expand([1]).to_event(1), obs=x)
                pyro.sample("y", dist.Normal(m.unsqueeze(-1), 3.0).to_event(1), obs=y)

    data, model = table(), Two()
    guide = Guide(model, data.peek(), weights=guides.MeanField)
    fit = lab.fit(model, guide, [data.all()], Trace_ELBO(), epochs=300, lr=0.05)
    (score,) = lab.compare({"MeanField": fit}, data).scores
    assert score.rmse[0] == pytest.approx(float(data["y"].std(correction=0)), rel=0.1)


def test_a_model_that_cannot_be_vectorised_is_drawn_from_one_by_one() -> None:
    class Rigid(nn.Module):
        def forward(self, x: Tensor, y: Tensor | None = None) -> None:
            w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([2, 1]).to_event(2))
            f = torch.cat([x, torch.ones(len(x), 1)], 1) @ w.reshape(2, 1)
            with data_plate(len(x), 40):
                pyro.sample("y", dist.Normal(f, 1.0).to_event(1), obs=y)

    data, model = table(), Rigid()
    guide = Guide(model, data.peek(), weights=guides.MeanField)
    drawn = draw(model, guide, data.all(), 6)
    assert drawn.latents["w"].shape == (6, 2, 1) and drawn.outputs["y"].mean.shape == (6, 40, 1)
    assert drawn.lp.shape == (6,) and drawn.outputs["y"].log_prob.shape == (6, 40)


def test_given_draws_fit_models_with_further_plates() -> None:
    class Groups(nn.Module):
        def forward(self, x: Tensor, y: Tensor | None = None) -> None:
            m = pyro.sample("m", dist.Normal(0.0, 1.0))
            with pyro.plate("group", 4, dim=-1):
                g = pyro.sample("g", dist.Normal(m, 1.0))
            with data_plate(len(x)):
                pyro.sample("y", dist.Normal(g.mean(-1, keepdim=True), 1.0), obs=y)

    batch = {"x": torch.ones(5), "y": torch.zeros(5)}
    m, g = torch.randn(7), torch.randn(7, 4)
    drawn = condition(Groups(), {"m": m, "g": g}, batch)
    by_hand = (
        dist.Normal(0.0, 1.0).log_prob(m)
        + dist.Normal(m[:, None], 1.0).log_prob(g).sum(-1)
        + 5 * dist.Normal(g.mean(-1), 1.0).log_prob(torch.zeros(7))
    )
    torch.testing.assert_close(drawn.lp, by_hand)


def test_a_rising_loss_has_not_converged() -> None:
    data, model = table(), Local()
    guide = Guide(model, data.peek(), latents=guides.NormalEncoder)
    fit = lab.fit(model, guide, data.batches(40, seed=0), Trace_ELBO(), epochs=1)
    fit.losses = [0.01 * step for step in range(400)]
    assert not fit.converged


def test_log_q_is_always_there() -> None:
    train, _, test = matrix_gaussian.data("diabetes")
    model = matrix_gaussian.Model.for_data(train, hidden=[])
    guide = Guide(model, train.peek(), weights=guides.Point)
    fit = lab.fit(model, guide, train.batches(200, seed=0), matrix_gaussian.bound(guide), epochs=1)
    assert {"lp", "log_q"} <= set(lab.to_arviz(fit, test, draws=5).sample_stats)
    assert draw(model, guide, test.all(), 5).local is None


class Annotated(nn.Module):
    def __init__(
        self, wide: bool = False, rate: float | None = None, widths: Sequence[int] = (), other: Any = 0
    ) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"wide": 1}, "option wide takes true or false, not 1"),
        ({"rate": True}, "option rate takes a finite number or null, not True"),
        ({"rate": math.inf}, "option rate takes a finite number or null, not inf"),
        ({"widths": [1, 2.5]}, r"option widths takes a list of whole numbers, \[50, 50\], not \[1, 2.5\]"),
    ],
)
def test_options_of_any_model_are_held_against_its_annotations(options: dict[str, Any], text: str) -> None:
    paper = SimpleNamespace(__name__="mine:Annotated", Model=Annotated)
    with pytest.raises(ExperimentError, match=f"^{text}$"):
        check_options(paper, options)
    check_options(paper, {"wide": True, "rate": 1, "widths": [], "other": object()})
    check_options(paper, {"rate": None})
