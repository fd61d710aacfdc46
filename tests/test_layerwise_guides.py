"""Guides, books and phases of layer-wise learning, against enumeration."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import nn
from worlds import brute, built, data, shaken

import guides
from guides.codes import index, states, table
from zoo import lab, layerwise
from zoo.lab import estimators, exact
from zoo.lab.data import DataError
from zoo.lab.estimators import LeaveOneOut
from zoo.lab.training import Fit
from zoo.layerwise import Criterion, Evidence, Model, Posterior, TablePrior, TiedRBM

N, D = 7, 5
DEPTHS = [(), (3,), (3, 2), (4, 3, 2)]
TOPS = ["rbm", "tabular", "bits", "aggregated"]
KINDS = [(hidden, top) for hidden in DEPTHS for top in TOPS if top != "aggregated" or len(hidden) == 1]
PHASED = [(*kind, False) for kind in KINDS] + [(*kind, True) for kind in KINDS if kind[0] and kind[1] != "aggregated"]


@pytest.mark.equation("lw.3")
@pytest.mark.parametrize("family", ["Vanilla", "Rich", "Autoregressive"])
def test_the_aggregated_top_is_the_mixture_of_the_guide_s_own_q(family: str) -> None:
    x = data()
    model: Any = Model(D, (3,), N, top="aggregated")
    model.prior.data.copy_(x)
    before = table(model.prior())
    torch.testing.assert_close(before, torch.full((8,), -3 * math.log(2)))
    guide: Any = shaken(layerwise.guide(model, {"x": x}, latents=getattr(guides, family)))
    mixture = torch.stack([guide.q["h1"](row).log_prob(states(3)) for row in x]).logsumexp(0) - math.log(N)
    torch.testing.assert_close(table(model.prior()), mixture, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.log_prior(), mixture, rtol=0, atol=1e-12)
    codes = states(3)[torch.randint(8, (N,))]
    torch.testing.assert_close(model.prior().log_prob(codes), mixture[index(codes)], rtol=0, atol=1e-12)
    assert model.prior.q is guide.q["h1"] and not list(model.prior.parameters()), "they stay the guide's"
    everything = list(nn.ModuleList([model, guide]).parameters())
    assert len(everything) == len(list(model.decoders.parameters())) + len(list(guide.parameters()))


@pytest.mark.parametrize("kind", [TiedRBM, Posterior])
def test_a_guide_without_a_family_cannot_be_the_aggregated_top(kind: Any) -> None:
    model, batch = built((3,), "aggregated"), {"x": data()}
    with pytest.raises(DataError, match=f"top 'aggregated' is the q of a composed guide, and {kind.__name__} has none"):
        model.attach(kind(model, batch))


def test_a_second_guide_takes_over_the_aggregated_top() -> None:
    model: Any = built((3,), "aggregated")
    second: Any = layerwise.guide(model, {"x": data()}, latents=guides.Autoregressive)
    assert model.prior.q is second.q["h1"]


@pytest.mark.equation("lw.14")
def test_the_elbo_under_the_aggregated_top_is_that_of_the_chain() -> None:
    """3,000 draws; an error of .03 nats for the data set at most: a bias of .15 would be seen."""
    model, x = built((3,), "aggregated"), data()
    model.prior.data.copy_(x)
    guide = layerwise.guide(model, {"x": x})
    shaken(guide)
    books = layerwise.account(model, guide, x)
    assert books.kl == pytest.approx(0, abs=1e-12)
    assert books.elbo == pytest.approx(books.elbo_aggregated, abs=1e-12)
    loss = Trace_ELBO(num_particles=3000, vectorize_particles=True, max_plate_nesting=1)
    with torch.no_grad():
        error = torch.tensor([Trace_ELBO().loss(model, guide, x=x) for _ in range(100)]).std() / math.sqrt(3000)
        assert error < 0.1 and abs(loss.loss(model, guide, x=x) / N + books.elbo) < 4 * error / N


@pytest.mark.parametrize("hidden", [(3,), (3, 2), (4, 3, 2)])
def test_the_guide_goes_up_and_each_layer_sees_the_one_below(hidden: tuple[int, ...]) -> None:
    model, x = built(hidden), data()
    guide: Any = layerwise.guide(model, {"x": x})
    nodes = poutine.trace(guide).get_trace(x=x).nodes
    assert [name for name in nodes if name.startswith("h")] == [f"h{k}" for k in range(1, len(hidden) + 1)]
    below = x
    for k, width in enumerate(hidden, 1):
        law = guide.q[f"h{k}"](below)
        torch.testing.assert_close(table(nodes[f"h{k}"]["fn"]), table(law))
        assert isinstance(guide.q[f"h{k}"], guides.Rich) and nodes[f"h{k}"]["value"].shape == (N, width)
        below = nodes[f"h{k}"]["value"]


@pytest.mark.equation("lw.17")
@pytest.mark.parametrize("hidden", [(3,), (3, 2), (4, 3, 2)])
def test_a_tied_guide_is_the_posterior_of_the_machine_of_each_decoder(hidden: tuple[int, ...]) -> None:
    model, x = built(hidden), data()
    guide: Any = shaken(TiedRBM(model, {"x": x}))
    assert [tuple(p.shape) for p in guide.parameters()] == [(width,) for width in hidden]
    nodes = poutine.trace(guide).get_trace(x=x[:4]).nodes
    v = x[:4]
    for k, (decoder, machine) in enumerate(zip(model.decoders, guide.machines, strict=True), 1):
        node, width = nodes[f"h{k}"], hidden[k - 1]
        assert float(node["scale"]) == pytest.approx(N / 4) and node["value"].shape == (4, width)
        log_p = v @ decoder.b[:, None] + (v @ decoder.W.mT + machine.c) @ states(width).mT  # -E(v, h)
        torch.testing.assert_close(table(node["fn"]), log_p.log_softmax(-1), rtol=0, atol=1e-12)
        torch.testing.assert_close(machine.visible_logits(states(width)), decoder.logits(states(width)))
        v = node["value"]


@pytest.mark.equation("lw.19", "lw.8", "lw.14")
def test_the_account_of_a_stacked_machine_starts_as_an_equality() -> None:
    """With P_RBM(h) as a table on top the model is the machine: deep = ELBO = log-likelihood of the RBM."""
    model: Any = built((4,), "tabular")
    guide: Any = shaken(TiedRBM(model, {}))
    machine, x = guide.machines[0], data()
    with torch.no_grad():
        model.prior.logits.copy_(machine.hidden_score(states(4)))
        likelihood = float(machine.log_prob(x).mean())
    books = layerwise.account(model, guide, x)
    assert books.deep == pytest.approx(likelihood, abs=1e-11) and books.elbo == pytest.approx(likelihood, abs=1e-11)
    assert likelihood + books.kl <= books.criterion + 1e-12 <= books.blm + books.certificate + 2e-12


@pytest.mark.equation("lw.5", "lw.9", "lw.4")
def test_the_posterior_under_the_blm_attains_it() -> None:
    rows, log_w = exact.distinct(data(12))
    model: Any = built((4,), "tabular", N=len(rows))
    best = exact.blm(model.decoders[0].table(rows), log_w, tol=1e-9)
    with torch.no_grad():
        model.prior.logits.copy_(best.log_prior.clamp_min(-700))
    guide = Posterior(model, {"x": rows})
    assert not list(guide.parameters())
    books = layerwise.account(model, guide, rows)
    for value in (books.criterion, books.deep, books.elbo, books.elbo_aggregated):
        assert value == pytest.approx(best.bound, abs=1e-7)
    assert books.kl == pytest.approx(0, abs=1e-7)
    assert float(Criterion()(model, guide)(x=rows).detach()) == pytest.approx(-len(rows) * best.bound, abs=1e-6)


@pytest.mark.equation("lw.9")
def test_the_posterior_guide_makes_the_elbo_the_evidence_whatever_is_drawn() -> None:
    model, x = built((4,)), data()
    guide = Posterior(model, {"x": x})
    with torch.no_grad():
        losses = [Trace_ELBO().loss(model, guide, x=x) for _ in range(10)]
    assert losses == pytest.approx([-float(brute(model, x).detach().sum())] * 10, abs=1e-10)


# Books.


@pytest.mark.equation("lw.4", "lw.8", "lw.13", "lw.14", "lw.16")
@pytest.mark.parametrize("top", TOPS)
@pytest.mark.parametrize("family", ["Vanilla", "Rich", "Autoregressive"])
def test_the_books_of_a_model_are_those_of_its_tables_and_in_order(family: str, top: str) -> None:
    """Repeated rows count by their weights."""
    x = torch.cat([data(), data(3)[:, [0] * D]])
    model = built((3,), top, N=len(x))
    guide: Any = shaken(layerwise.guide(model, {"x": x}, latents=getattr(guides, family)))
    books = layerwise.account(model, guide, x)
    U, EPS = books.blm + books.certificate, 1e-12
    assert books.reconstruction <= books.elbo_aggregated + EPS <= books.criterion + 2 * EPS <= U + 3 * EPS
    assert books.reconstruction <= books.codes + EPS <= books.criterion + 2 * EPS
    assert books.elbo <= min(books.deep, books.elbo_aggregated) + EPS and books.blm <= books.ceiling + EPS
    assert books.deep <= U + EPS and books.criterion - books.deep <= books.price + EPS
    assert books.reconstruction <= books.mean_field + EPS
    assert books.deep == pytest.approx(float(brute(model, x).mean()), abs=1e-11)
    q = guide.q["h1"](x)
    mean_field = model.decoders[0](q.mean).log_prob(x).mean() + books.ceiling
    assert books.mean_field == pytest.approx(float(mean_field), abs=1e-11)
    expectation = (table(q).exp() * model.decoders[0].table(x)).sum(-1).mean() + books.ceiling
    assert books.reconstruction == pytest.approx(float(expectation), abs=1e-11)


@pytest.mark.equation("lw.22", "lw.4")
def test_the_books_of_held_out_data() -> None:
    x, V = data(9), data(8)
    model = built((3, 2), N=9)
    guide: Any = shaken(layerwise.guide(model, {"x": x}))
    found = layerwise.held_out(model, guide, x, V)
    assert found.deep == pytest.approx(float(brute(model, V).mean()), abs=1e-11)
    q_D = table(guide.q["h1"](x)).exp().mean(0)
    T = model.decoders[0].table(V)
    assert found.criterion == pytest.approx(float((T.exp() @ q_D).log().mean()), abs=1e-11)
    assert found.blm == pytest.approx(layerwise.promise(model, V), abs=1e-12)
    assert max(found.blm_of_train, found.criterion, found.deep) <= found.blm + 1e-5
    assert layerwise.account(model, guide, V).blm == pytest.approx(found.blm, abs=1e-12)


# Phases.


@pytest.mark.parametrize(("hidden", "top", "tied"), PHASED, ids=str)
def test_the_phases_train_each_layer_and_then_the_top(hidden: tuple[int, ...], top: str, tied: bool) -> None:
    model, batch = built(hidden, top), {"x": data()}
    guide: Any = TiedRBM(model, batch) if tied else layerwise.guide(model, batch)
    found = layerwise.phases(model, guide)
    learned = [] if top == "aggregated" else ["top"]
    assert [phase.name for phase in found] == [f"layer {k}" for k in range(1, len(hidden) + 1)] + learned
    sets = [{id(p) for p in phase.parameters} for phase in found]
    assert all(not one & two for one, two in combinations(sets, 2))
    assert set().union(*sets) == {id(p) for part in (model, guide) for p in part.parameters()}
    for k, phase in enumerate(found[: len(hidden)], 1):
        assert type(phase.bound) is (layerwise.CD if tied else layerwise.Reconstruction) and phase.bound.layer == k
        assert {id(p) for p in model.decoders[k - 1].parameters()} <= sets[k - 1]
    tuned = layerwise.phases(model, guide, fine_tune=True)[len(found) :]
    assert [phase.name for phase in tuned] == (["fine-tuning", "guide"] if hidden else [])
    if hidden:
        assert type(tuned[0].bound) is Evidence and tuned[0].parameters is None
        assert {id(p) for p in tuned[1].parameters or ()} == {id(p) for p in guide.parameters()}


@pytest.mark.parametrize(("hidden", "top"), [kind for kind in KINDS if kind[0]], ids=str)
def test_the_bound_of_a_phase_moves_its_own_parameters(hidden: tuple[int, ...], top: str) -> None:
    """Every parameter of the phase has a gradient, and no parameter of another layer has."""
    model, x = built(hidden, top), data()
    guide: Any = shaken(layerwise.guide(model, {"x": x}))
    everything = {id(p): p for part in (model, guide) for p in part.parameters()}
    for phase in layerwise.phases(model, guide):
        loss = phase.bound(model, guide)(x=x)
        found = torch.autograd.grad(loss, list(everything.values()), allow_unused=True)
        moved = {key for key, g in zip(everything, found, strict=True) if g is not None and bool(g.any())}
        assert moved == {id(p) for p in phase.parameters}, phase.name


def test_the_guide_follows_what_fine_tuning_moved() -> None:
    """The exact evidence gives q no gradient: the gap to it shrinks in the last phase, which leaves the model alone."""
    model, x = built(scale=1.0), data()
    guide: Any = shaken(layerwise.guide(model, {"x": x}))
    follow = layerwise.phases(model, guide, fine_tune=True)[-1:]
    before = [p.detach().clone() for p in model.parameters()]
    stale = Fit(model, guide, LeaveOneOut(), [{"x": x}], N=7).elbo(particles=200)[0]
    fit = lab.fit(model, guide, [{"x": x}], layerwise.bound(guide), epochs=400, lr=0.03, phases=follow)
    value, error = fit.elbo(particles=200)
    evidence = float(model.loglik(x).sum())  # type: ignore[union-attr]
    assert stale + 1 < value < evidence + 4 * error
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert len(layerwise.phases(model, layerwise.Posterior(model, {"x": x}), fine_tune=True)) == 3, (
        "it has no parameters"
    )


def test_fine_tuning_beyond_enumeration_is_by_importance_weights() -> None:
    model, batch = Model(D, (21,), N, top="rbm", top_hidden=21), {"x": data()}
    found = layerwise.phases(model, layerwise.guide(model, batch), fine_tune=True)
    assert [type(phase.bound) for phase in found[1:]] == [layerwise.TopPCD, estimators.VIMCO]


@pytest.mark.parametrize("name", layerwise.CRITERIA)
def test_every_criterion_can_be_named(name: str) -> None:
    model, batch = built((3, 2)), {"x": data()}
    tied = name in ("CD", "PCD", "ExactRBM")
    guide = TiedRBM(model, batch) if tied else layerwise.guide(model, batch)
    found = layerwise.phases(model, guide, criterion=name)
    assert [type(phase.bound) for phase in found[:2]] == [layerwise.CRITERIA[name]] * 2
    assert [phase.bound.layer for phase in found[:2]] == [1, 2]
    for phase in found:
        assert torch.isfinite(phase.bound(model, guide)(**batch))


@pytest.mark.parametrize("name", layerwise.TOPS)
def test_every_criterion_of_the_top_can_be_named(name: str) -> None:
    model, batch = built(), {"x": data()}
    found = layerwise.phases(model, layerwise.guide(model, batch), top_criterion=name)
    assert type(found[-1].bound) is layerwise.TOPS[name] and found[-1].name == "top"


def test_an_unknown_criterion_is_refused() -> None:
    model, batch = built(), {"x": data()}
    guide = layerwise.guide(model, batch)
    with pytest.raises(DataError, match="no criterion 'Elbow'; there are: Reconstruction, Criterion, SampledCriterion"):
        layerwise.phases(model, guide, criterion="Elbow")
    with pytest.raises(DataError, match="no top_criterion 'Elbow'; there are: Top, TopCD, TopPCD"):
        layerwise.phases(model, guide, top_criterion="Elbow")


def test_a_guide_without_parameters_has_phases_too() -> None:
    """EM: the decoder learns under the exact posterior, then the top."""
    model, batch = built(), {"x": data()}
    found = layerwise.phases(model, Posterior(model, batch), criterion="Criterion")
    assert [phase.name for phase in found] == ["layer 1", "top"]
    assert [id(p) for p in found[0].parameters] == [id(p) for p in model.decoders[0].parameters()]


def test_the_bound_that_belongs_to_a_guide() -> None:
    model, batch = built(), {"x": data()}
    assert type(layerwise.bound()) is layerwise.Reconstruction
    assert type(layerwise.bound(layerwise.guide(model, batch))) is layerwise.Reconstruction
    assert type(layerwise.bound(TiedRBM(model, batch))) is layerwise.CD
    for name in ("Reconstruction", "Criterion", "MeanField", "CD"):
        assert isinstance(layerwise.CRITERIA[name].evidence_bound, estimators.LeaveOneOut)


def test_a_table_on_top_starts_uniform() -> None:
    torch.testing.assert_close(table(TablePrior(4)()), torch.full((16,), -4 * math.log(2)))
