"""What trains the top and the machines, against enumeration, and what is refused."""

from __future__ import annotations

from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import ELBO
from worlds import assert_same, built, data, every_draw, gradients, law_of, pair, rows_of, shaken

from guides.codes import Tabular, index, states, table
from zoo import layerwise
from zoo.lab import exact
from zoo.lab.data import Split
from zoo.lab.estimators import EstimatorError
from zoo.lab.training import Fit, TrainingError
from zoo.layerwise import Criterion, Reconstruction, TiedRBM, Top

N, D = 7, 5


@pytest.mark.equation("lw.12")
@pytest.mark.parametrize("rows", [N, 3])
@pytest.mark.parametrize("top", ["rbm", "tabular", "bits"])
def test_the_top_learns_the_likelihood_of_codes_and_only_the_top(top: str, rows: int) -> None:
    model, guide, batch = pair(top=top)
    some = {key: value[:rows] for key, value in batch.items()}
    loss = Top()(model, guide)(**some)
    q_D = table(law_of(guide, some)).exp().mean(0).detach()
    truth = -N * (q_D @ table(model.prior()))
    torch.testing.assert_close(loss, truth, rtol=0, atol=1e-11)
    assert_same(gradients(loss, model.prior), gradients(truth, model.prior))
    for part in (model.decoders, guide):
        assert not any(g.any() for g in gradients(loss, part))


@pytest.mark.equation("lw.12")
def test_a_free_top_has_learned_all_at_the_aggregated_posterior() -> None:
    """The loss is convex in its logits: no gradient there, and the entropy of q_D; then deep = criterion."""
    model, guide, batch = pair(top="tabular")
    q_D = table(law_of(guide, batch)).exp().mean(0).detach()
    with torch.no_grad():
        model.prior.logits.copy_(q_D.log())
    loss = Top()(model, guide)(**batch)
    assert float(loss.detach()) == pytest.approx(-N * float(q_D @ q_D.log()), abs=1e-11)
    assert gradients(loss, model.prior)[0].abs().max() < 1e-13
    deep = layerwise.Evidence()(model, guide)(**batch)
    torch.testing.assert_close(deep, Criterion()(model, guide)(**batch), rtol=0, atol=1e-11)


@pytest.mark.equation("lw.12")
def test_drawn_codes_give_the_same_top_in_the_mean() -> None:
    """The mean over all outcomes of the code of each of two data."""
    model, guide, batch = pair(hidden=(2,))
    some, outcomes = {key: value[:2] for key, value in batch.items()}, every_draw(2, 1, 2)[:, 0]
    p = table(law_of(guide, some))[torch.arange(2), outcomes].sum(-1).exp().detach()
    drawn: Any = Top(bits=0)
    losses = [
        drawn.differentiable_loss(model, poutine.condition(guide, {"h1": states(2)[c]}), **some) for c in outcomes
    ]
    surrogate, truth = (p * torch.stack(losses)).sum(), Top()(model, guide)(**some)
    torch.testing.assert_close(surrogate, truth, rtol=0, atol=1e-11)
    assert_same(gradients(surrogate, model.prior), gradients(truth, model.prior))


@pytest.mark.equation("lw.12")
def test_the_top_of_two_layers_sees_the_last_code() -> None:
    model, guide, batch = pair(hidden=(3, 2))
    codes = data(N, 3)
    loss: Any = Top().differentiable_loss(model, poutine.condition(guide, {"h1": codes}), **batch)
    truth = -(table(guide.q["h2"](codes)).exp() @ table(model.prior())).sum()
    torch.testing.assert_close(loss, truth, rtol=0, atol=1e-11)


@pytest.mark.equation("lw.1")
@pytest.mark.parametrize("top", ["rbm", "tabular", "bits"])
def test_without_a_hidden_layer_the_top_learns_x(top: str) -> None:
    model, x = built((), top), data()
    loss = Top()(model, lambda **_: None)(x=x[:3])
    torch.testing.assert_close(loss, -N / 3 * table(model.prior())[index(x[:3])].sum(), rtol=0, atol=1e-11)


@pytest.mark.equation("lw.18", "lw.12")
@pytest.mark.parametrize("hidden", [(), (3,), (4, 3)])
@pytest.mark.parametrize("name", ["TopCD", "TopPCD"])
def test_contrastive_divergence_of_the_top_starts_at_codes(
    name: str, hidden: tuple[int, ...], gibbs: dict[str, Any]
) -> None:
    model, batch = built(hidden), {"x": data()}
    codes = {f"h{k}": data(N, width) for k, width in enumerate(hidden, 1)}
    guide = poutine.condition(layerwise.guide(model, batch), codes) if hidden else lambda **_: None
    v, prior = codes[f"h{len(hidden)}"] if hidden else batch["x"], model.prior
    loss: Any = layerwise.TOPS[name](k=3).differentiable_loss(model, guide, **batch)
    expected = N * (prior.free_energy(v).mean() - prior.free_energy(torch.ones(prior.visible)))
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-11)
    assert_same(gradients(loss, prior), gradients(expected, prior))
    assert gibbs["sweeps"] == 3 and torch.equal(
        gibbs["start"], v if name == "TopCD" else torch.zeros(100, prior.visible)
    )


@pytest.mark.equation("lw.18")
@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("name", ["CD", "PCD"])
def test_contrastive_divergence_of_a_layer_trains_its_decoder_and_bias(
    name: str, layer: int, gibbs: dict[str, Any]
) -> None:
    model, batch = built((4, 3)), {"x": data()}
    guide: Any = shaken(TiedRBM(model, batch))
    with pyro.poutine.trace() as drawn:
        loss = layerwise.CRITERIA[name](layer, k=2)(model, guide)(**batch)
    v = batch["x"] if layer == 1 else drawn.trace.nodes["h1"]["value"]
    machine, decoder = guide.machines[layer - 1], model.decoders[layer - 1]
    F = [
        -u @ decoder.b - (1 + (machine.c + u @ decoder.W.mT).exp()).log().sum(-1) for u in (v, torch.ones(v.shape[-1]))
    ]
    expected = N * (F[0].mean() - F[1])
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
    for part in (model, guide):
        assert_same(gradients(loss, part), gradients(expected, part), 1e-10)
    assert gibbs["sweeps"] == 2 and torch.equal(gibbs["start"], v if name == "CD" else torch.zeros(100, v.shape[-1]))


@pytest.mark.equation("lw.17", "lw.18")
@pytest.mark.parametrize("rows", [N, 3])
def test_the_exact_twin_is_the_likelihood_of_the_tied_machine(rows: int) -> None:
    model, x = built(), data()[:rows]
    guide: Any = shaken(TiedRBM(model, {"x": x}))
    loss = layerwise.ExactRBM()(model, guide)(x=x)
    decoder, c, h = model.decoders[0], guide.machines[0].c, states(3)
    joint = states(D) @ (h @ decoder.W).mT + (states(D) @ decoder.b)[:, None] + h @ c  # -E(v, h)
    truth = -N * (joint.logsumexp(1) - joint.logsumexp((0, 1)))[index(x)].mean()
    torch.testing.assert_close(loss, truth, rtol=0, atol=1e-10)
    for part in (model, guide):
        assert_same(gradients(loss, part), gradients(truth, part), 1e-10)


# What is refused.


@pytest.mark.parametrize("name", ["CD", "PCD", "ExactRBM"])
def test_a_criterion_of_machines_needs_the_tied_guide(name: str) -> None:
    model, guide, batch = pair()
    with pytest.raises(TrainingError, match=f"{name} trains RBMs: it needs the guide TiedRBM"):
        layerwise.CRITERIA[name]()(model, guide)(**batch)


@pytest.mark.parametrize("name", ["TopCD", "TopPCD"])
def test_a_top_that_is_no_machine_has_no_contrastive_divergence(name: str) -> None:
    model, guide, batch = pair(top="tabular")
    with pytest.raises(TrainingError, match=f"{name} trains RBMs, and the top is tabular"):
        layerwise.TOPS[name]()(model, guide)(**batch)


def test_a_layer_that_is_not_there_is_refused() -> None:
    model, guide, batch = pair(hidden=(3, 2))
    for layer in (0, 3):
        with pytest.raises(TrainingError, match=f"there is no layer {layer}: the model has 2"):
            Criterion(layer)(model, guide)(**batch)
    bare: Any = Criterion()
    with pytest.raises(TrainingError, match="this criterion needs a guide for h1"):
        bare.differentiable_loss(model, lambda **_: None, **batch)


def test_one_draw_has_no_others_to_compare_with() -> None:
    model, guide, batch = pair()
    with pytest.raises(EstimatorError, match="leave-one-out needs two draws or more: particles=2"):
        Reconstruction(bits=0, particles=1)(model, guide)(**batch)


@pytest.mark.parametrize("name", layerwise.CRITERIA)
def test_a_criterion_is_an_elbo_of_pyro(name: str) -> None:
    kind = layerwise.CRITERIA[name]
    assert issubclass(kind, ELBO) and kind(2).layer == 2 and kind().layer == 1


@pytest.mark.equation("lw.3")
@pytest.mark.parametrize("cells", [2**20, 8, 1])
def test_an_aggregated_top_is_a_table_in_pieces(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of data with repetitions, with its gradient."""
    monkeypatch.setattr(exact, "CELLS", cells)
    model, x = built(top="aggregated"), data()
    x[4:6] = x[0]
    prior: Any = model.prior
    prior.data.copy_(x)
    truth = table(prior.q(x)).exp().mean(0).log()
    law = prior()
    assert isinstance(law, Tabular) and law.expand(torch.Size([9])).logits.stride() == (0, 1), "no copies in a plate"
    torch.testing.assert_close(table(law), truth, rtol=0, atol=1e-12)
    assert_same(gradients(table(law)[3], prior.q), gradients(truth[3], prior.q))
    torch.testing.assert_close(law.expand(torch.Size([9])).log_prob(states(3)[5]), truth[5].expand(9))


def test_books_that_would_fill_the_memory_are_not_kept_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model, guide, batch = pair()
    part = rows_of(batch["x"])
    fit = Fit(model, guide, layerwise.bound(guide), [batch])
    assert "best latent marginal" in layerwise.books(fit, Split(part, None, part))[0]
    monkeypatch.setattr(layerwise, "BOOKS", 8 * len(part["x"].unique(dim=0)) - 1)
    (line,) = layerwise.books(fit, Split(part, None, part))
    assert line.startswith("no books are kept of") and "they would fill the memory" in line
