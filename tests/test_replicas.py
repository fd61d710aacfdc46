"""Several fits side by side, and averages of parameters: both against plain loops."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import guides
from zoo import lab, matrix_gaussian
from zoo.lab import runs
from zoo.lab.averaging import Average, weight
from zoo.lab.experiments import Plan, Recipe, prepare
from zoo.lab.replicas import fit_together


def pairs(family: Any, splits: int) -> tuple[list[nn.Module], list[lab.Table]]:
    tables = [matrix_gaussian.data("diabetes", split=split).train for split in range(splits)]
    losses = []
    for split, train in enumerate(tables):
        lab.seed(split)
        model = matrix_gaussian.Model.for_data(train, hidden=[4])
        guide = matrix_gaussian.guide(model, train.peek(), weights=family)
        losses.append(matrix_gaussian.bound(guide)(model, guide))
    return losses, tables


def test_points_trained_together_are_those_trained_alone() -> None:
    """Points draw no noise, so the two ways take the same steps."""
    together, tables = pairs(guides.Point, 3)
    history = fit_together(
        together, [t.batches(100, seed=s) for s, t in enumerate(tables)], N=398, epochs=5, lr=0.02, decay=0.1
    )
    alone, _ = pairs(guides.Point, 3)
    for split, (loss, train) in enumerate(zip(alone, tables, strict=True)):
        pair: Any = loss
        bound = matrix_gaussian.bound(pair.guide)
        fit = lab.fit(pair.model, pair.guide, train.batches(100, seed=split), bound, epochs=5, lr=0.02, decay=0.1)
        torch.testing.assert_close(history[:, split], torch.tensor(fit.losses))
        for mine, other in zip(together[split].parameters(), loss.parameters(), strict=True):
            torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("family", [guides.MatrixNormal, guides.MatrixNormalTril, guides.MatrixNormalAuthors])
def test_replicas_have_noise_of_their_own(family: Any) -> None:
    losses, tables = pairs(family, 1)
    twin, _ = pairs(family, 1)
    history = fit_together(losses + twin, [tables[0].batches(398, seed=0)] * 2, N=398, epochs=3, lr=0.0)
    assert (history[:, 0] != history[:, 1]).all()
    one: Any = losses[0]
    with torch.no_grad():
        draws = torch.stack([one(**tables[0].all()) for _ in range(300)]) / 398
    assert abs(history.mean() - draws.mean()) < 5 * draws.std()


def test_a_loss_that_is_not_finite_names_its_replica() -> None:
    losses, tables = pairs(guides.Point, 2)
    batches = [[table.all()] for table in tables]
    batches[1][0]["y"] = batches[1][0]["y"] * torch.nan
    with pytest.raises(lab.TrainingError, match=r"replicas \[1\]"):
        fit_together(losses, batches, N=398, epochs=1, lr=0.01)


def test_a_parameter_that_is_not_finite_is_no_result() -> None:
    """A loss can be finite while its last gradient was not."""

    class Root(nn.Module):
        def __init__(self, start: float) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(start))

        def forward(self, **batch: torch.Tensor) -> torch.Tensor:
            return self.w.sqrt()

    with pytest.raises(lab.TrainingError, match=r"a parameter of replicas \[1\]"):
        fit_together([Root(1.0), Root(0.0)], [[{"x": torch.ones(1)}]] * 2, N=1, epochs=1, lr=0.1)


def test_weights_of_an_average_are_those_of_the_bias_corrected_formula() -> None:
    values = torch.tensor([3.0, -1.0, 2.0, 5.0])
    average = torch.tensor(0.0)
    for t, value in enumerate(values):
        average = average.lerp(value, weight(0.9, t))
    powers = 0.9 ** torch.arange(3.0, -1.0, -1.0)
    torch.testing.assert_close(average, (powers * values).sum() * 0.1 / (1 - 0.9**4))


def train(callbacks: list[Callable[[lab.Fit], None]]) -> lab.Fit:
    (loss,), (table,) = pairs(guides.Point, 1)
    pair: Any = loss
    bound, batches = matrix_gaussian.bound(pair.guide), table.batches(100, seed=0)
    return lab.fit(pair.model, pair.guide, batches, bound, epochs=3, callbacks=callbacks)


def test_the_average_of_a_fit_is_that_of_its_parameters_and_of_replicas() -> None:
    seen: list[list[torch.Tensor]] = []
    average = Average(0.8)
    fit = train([average, lambda fit: seen.append([p.detach().clone() for p in fit.guide.parameters()])])
    average.apply(fit)
    shares = 0.8 ** torch.arange(len(seen) - 1.0, -1.0, -1.0)
    shares /= shares.sum()
    for index, parameter in enumerate(fit.guide.parameters()):
        truth = sum(share * values[index] for share, values in zip(shares, seen, strict=True))
        torch.testing.assert_close(parameter.detach(), truth)
    losses, tables = pairs(guides.Point, 1)
    fit_together(losses, [tables[0].batches(100, seed=0)], N=398, epochs=3, lr=1e-3, average=0.8)
    one: Any = losses[0]
    for mine, other in zip(one.guide.parameters(), fit.guide.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_a_run_whose_recipe_averages_is_loaded_averaged(tmp_path: Path) -> None:
    plan = Plan("matrix_gaussian", "diabetes", recipe=Recipe(epochs=2, average=0.9, model={"hidden": [3]}))
    cell, split = prepare(plan)
    trained = cell.fit(keep=runs.begin(tmp_path / "run", plan, cell, split))
    torch.set_default_dtype(torch.float64)
    again = lab.load(tmp_path / "run")
    for mine, other in zip(trained.guide.parameters(), again.fit.guide.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)
    last, _ = prepare(replace(plan, recipe=replace(plan.recipe, average=0.0)))
    torch.set_default_dtype(torch.float64)
    plain = last.fit()
    assert any(not torch.equal(a, b) for a, b in zip(plain.guide.parameters(), trained.guide.parameters(), strict=True))


def test_averages_refuse_what_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        Average(1.0)
    with pytest.raises(ValueError, match="give this callback to fit"):
        Average(0.9).apply(train([]))


def test_a_family_whose_draws_are_not_its_density_needs_the_closed_form() -> None:
    from pyro.infer import Trace_ELBO

    table = matrix_gaussian.data("diabetes").train
    model = matrix_gaussian.Model.for_data(table, hidden=[4])
    guide = matrix_gaussian.published_guide(model, table.peek(), m=2)
    assert not guide.joint_density and guide.mean_field
    with pytest.raises(lab.UnregisteredKL, match="another law than the density it charges"):
        lab.fit(model, guide, [table.all()], Trace_ELBO(), epochs=1)
    fit = lab.fit(model, guide, [table.all()], matrix_gaussian.bound(guide), epochs=1)
    assert "no bound" in str(lab.compare({"authors": fit}, table, draws=10).frame)
