"""Deep belief networks, their bottom-up guide and their training, against sums over all states of all layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from enumerated import Outcomes, frequencies, p_value, visible_bias
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from sklearn.datasets import load_digits
from torch import Tensor, nn
from worlds import assert_same, data, gradients, rows_of, shaken

from guides import data_plate
from guides.codes import index, states
from zoo import lab, mixing
from zoo.lab.data import DataError, load
from zoo.lab.estimators import LeaveOneOut
from zoo.lab.rbm import RBM
from zoo.lab.training import TrainingError
from zoo.mixing import Greedy, Model, Recognition

N, D = 7, 4
DEPTHS = [(3,), (3, 2), (3, 2, 2)]


def built(widths: Sequence[int] = (3, 2), features: int = D) -> Any:
    return shaken(Model(features, widths, N))


def joint(model: Any) -> Tensor:
    """P(x, h_1, ..., h_L) of every state of every layer, (2^D, 2^n_1, ..., 2^n_L), from the energy of the top."""
    v, h = states(model.prior.visible), states(model.prior.hidden)
    energy = -(v @ model.prior.W @ h.mT) - (v @ model.prior.b)[:, None] - h @ model.prior.c
    P = (-energy).exp() / (-energy).exp().sum()  # (2^n_{L-1}, 2^n_L)
    for decoder in reversed(model.decoders):
        P = conditional(decoder.W, decoder.b).reshape(-1, len(P), *[1] * (P.dim() - 1)) * P
    return P


def conditional(W: Tensor, b: Tensor) -> Tensor:
    """P(below | h) of every pair, (2^below, 2^above)."""
    p = (states(len(W)) @ W + b).sigmoid()
    return torch.stack([torch.where(code.bool(), p, 1 - p).prod(-1) for code in states(len(b))])


def bottom_up(guide: Recognition, P: Tensor) -> Tensor:
    """q(h_1, ..., h_{L-1} | x) of every state, of the shape of P without h_L."""
    q = torch.ones(P.shape[:-1])
    for level in range(1, P.dim() - 1):
        p = conditional(guide.R[level - 1], guide.machines[level - 1].c)  # type: ignore[arg-type]  # (above, below)
        q = q * p.mT.reshape(*[1] * (level - 1), *p.mT.shape, *[1] * (P.dim() - 2 - level))
    return q


def over_codes(table: Tensor) -> Tensor:
    """The sum over all but x, (2^D)."""
    return table.flatten(1).sum(1)


def law_of_outcomes(draw: Any, given: Tensor, n: int) -> Tensor:
    """The law of n bits drawn by `draw(row, noise)`, of every row of `given`, (rows, 2^n): all outcomes, weighed."""
    dry = Outcomes(torch.zeros(1, dtype=torch.long))
    draw(given[:1], dry)
    first = torch.arange(len(given)).repeat_interleave(dry.total)
    noise = Outcomes(torch.arange(dry.total).repeat(len(given)))
    cells = first * 2**n + index(draw(given[first], noise))
    return torch.zeros(len(given) * 2**n).index_add(0, cells, noise.weight.detach()).unflatten(0, (-1, 2**n))


# The model.


@pytest.mark.equation("mix.1", "mix.3")
@pytest.mark.parametrize("widths", DEPTHS, ids=str)
def test_the_likelihood_is_the_sum_over_all_states_of_all_layers(widths: tuple[int, ...]) -> None:
    model, x = built(widths), states(D)
    P = joint(model)
    assert float(P.sum().detach()) == pytest.approx(1, abs=1e-12)
    expected = over_codes(P).log()
    torch.testing.assert_close(model.log_evidence(x), expected, rtol=0, atol=1e-11)
    assert_same(gradients(model.log_evidence(x).sum(), model), gradients(expected.sum(), model), 1e-10)
    assert not model.loglik(x).requires_grad and model.enumerable and model.depth == len(widths)
    torch.testing.assert_close(model.loglik(x), expected.detach(), rtol=0, atol=1e-11)
    for level in range(1, len(widths)):
        others = [k for k in range(P.dim()) if k != level]
        torch.testing.assert_close(model.log_prior(level).exp(), P.sum(others), rtol=0, atol=1e-12)


@pytest.mark.equation("mix.3")
@pytest.mark.parametrize("widths", DEPTHS, ids=str)
def test_the_story_goes_down_from_the_visible_side_of_the_top(widths: tuple[int, ...]) -> None:
    model, x = built(widths), data(N, D)
    codes = {f"h{k}": data(N, width) for k, width in enumerate(widths[:-1], 1)}
    sites = [*reversed(codes), "x"]
    trace = poutine.trace(poutine.condition(model, data={k: v[:3] for k, v in codes.items()})).get_trace(x=x[:3])
    assert [name for name in trace.nodes if name in sites] == sites
    assert all(float(trace.nodes[name]["scale"]) == pytest.approx(N / 3) for name in sites)
    place = tuple(index(part[:3]) for part in (x, *codes.values()))
    expected = N / 3 * joint(model).sum(-1)[place].log().sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected, rtol=0, atol=1e-11)
    dreams = poutine.trace(model).get_trace()
    assert [tuple(dreams.nodes[name]["value"].shape) for name in sites] == [
        (N, width) for width in [*reversed(widths[:-1]), D]
    ]
    assert model.device == torch.device("cpu") and model.given == {
        f"h{k}": (f"h{k - 1}",) for k in range(2, len(widths))
    }


@pytest.mark.equation("mix.3")
def test_pyro_s_enumeration_of_the_code_is_the_likelihood() -> None:
    """One categorical site over all codes h_1, an empty guide."""
    model, x = built((3, 2)), data(N, D)

    def one_site(x: Tensor) -> None:
        with data_plate(len(x), N):
            code = pyro.sample("code", dist.Categorical(logits=model.log_prior()), infer={"enumerate": "parallel"})
            pyro.sample("x", model.decoders[0](states(3)[code]), obs=x)

    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(one_site, lambda x: None, x)
    torch.testing.assert_close(torch.as_tensor(loss), -model.log_evidence(x).sum(), rtol=0, atol=1e-11)


@pytest.mark.equation("mix.3", "mix.7")
@pytest.mark.parametrize("widths", DEPTHS, ids=str)
def test_decoding_is_ancestral_sampling(widths: tuple[int, ...]) -> None:
    """All outcomes of all layers below, each with its probability; the law of the codes then gives P(x)."""
    model = built(widths)
    P = joint(model).sum(-1).detach()  # (2^D, ..., 2^n_{L-1})
    middle = P.reshape(2**D, -1, P.shape[-1]).sum(1) if len(widths) > 1 else torch.diag(P)
    prior = middle.sum(0)
    with torch.no_grad():
        found = law_of_outcomes(model.decode, states(model.prior.visible), D)
        torch.testing.assert_close(found, (middle / prior).mT, rtol=0, atol=1e-12)
        torch.testing.assert_close(prior @ found, model.loglik(states(D)).exp(), rtol=0, atol=1e-12)
        if len(widths) == 2:
            torch.testing.assert_close(model.decode(states(3)), found @ states(D), rtol=0, atol=1e-12)
    if len(widths) == 1:
        assert model.decode(states(D)) is not None and torch.equal(model.decode(states(D)), states(D))


@pytest.mark.equation("mix.3")
@pytest.mark.parametrize("widths", DEPTHS, ids=str)
def test_dreams_have_the_law_of_the_model(widths: tuple[int, ...]) -> None:
    """60,000 dreams: relative errors of P(x) of 4 % in the root mean square would be seen."""
    model = built(widths)
    model.N = 60_000
    with torch.no_grad():
        x = model()
    P = model.loglik(states(D)).exp()
    assert visible_bias(2**D, 60_000) < 0.04
    assert p_value(frequencies(index(x), 2**D), P) > 1e-4
    assert p_value(frequencies(index(x), 2**D), built(widths).loglik(states(D)).exp()) < 1e-9, "another model's"


# The bound.


@pytest.mark.equation("mix.4")
@pytest.mark.parametrize("depth", [2, 3])
def test_at_the_greedy_start_the_bound_is_the_likelihood_of_the_machine_below(depth: int) -> None:
    """Each upper machine is the one below upside down; then every single draw gives log P_RBM_1(x)."""
    widths = [3, D, 3][:depth]
    model, x = built(widths), data(N, D)
    machine: Any = shaken(RBM(D, 3))
    with torch.no_grad():
        upwards = [machine.W, machine.W.mT, machine.W][: depth - 1]
        below = [machine.b, machine.c, machine.b][: depth + 1]
        for decoder, W, b in zip(model.decoders, upwards, below, strict=False):
            decoder.W.copy_(W.mT), decoder.b.copy_(b)
        model.prior.W.copy_([machine.W, machine.W.mT, machine.W][depth - 1])
        model.prior.b.copy_(below[depth - 1]), model.prior.c.copy_([machine.c, machine.b, machine.c][depth - 1])
    guide = Recognition(model, {"x": x})
    with torch.no_grad():
        for own, c in zip(guide.machines, below[1:], strict=False):
            own.c.copy_(c)  # type: ignore[union-attr, operator]
    truth = -machine.log_prob(x).sum()
    torch.testing.assert_close(model.log_evidence(x), machine.log_prob(x), rtol=0, atol=1e-11)
    loss: Any = mixing.bound(guide)(model, guide)(x=x)
    torch.testing.assert_close(loss, truth, rtol=0, atol=1e-11)


@pytest.mark.equation("mix.4")
@pytest.mark.parametrize("widths", DEPTHS[1:], ids=str)
def test_the_bound_lies_below_by_the_divergence_from_the_posterior(widths: tuple[int, ...]) -> None:
    """q enumerated; the estimate of Pyro is within four standard errors of it, which are .1 nats per datum."""
    model, x = built(widths), states(D)
    model.N = len(x)
    guide: Any = shaken(Recognition(model, {"x": x}))
    P = joint(model).detach().sum(-1)
    q = bottom_up(guide, joint(model)).detach()
    torch.testing.assert_close(over_codes(q), torch.ones(2**D), rtol=0, atol=1e-12)
    bound = over_codes(q * (P.log() - q.log()))
    posterior = P / over_codes(P).reshape(-1, *[1] * (P.dim() - 1))
    kl = over_codes(q * (q / posterior).log())
    torch.testing.assert_close(bound + kl, model.loglik(x), rtol=0, atol=1e-11)
    assert bool((kl > 0).all())
    with torch.no_grad():
        drawn = torch.stack([-LeaveOneOut(50)(model, guide)(x=x) for _ in range(40)])
    error = float(drawn.std()) / math.sqrt(40)
    assert abs(float(drawn.mean() - bound.sum())) < 4 * error and 4 * error < 0.1 * len(x)


@pytest.mark.equation("mix.4")
def test_the_bound_belongs_to_the_guide() -> None:
    deep, shallow, x = built((3, 2)), built((3,)), data(N, D)
    assert isinstance(mixing.bound(mixing.guide(deep, {"x": x})), LeaveOneOut)
    alone = mixing.guide(shallow, {"x": x})
    assert type(mixing.bound(alone)) is type(mixing.bound()) is Trace_ELBO
    for bound in (mixing.bound(alone), Greedy.evidence_bound):
        loss: Any = bound(shallow, alone)(x=x[:3])
        torch.testing.assert_close(loss, -N / 3 * shallow.log_evidence(x[:3]).sum(), rtol=0, atol=1e-11)


# The guide.


@pytest.mark.equation("mix.4")
def test_the_guide_goes_up_and_encodes_by_its_own_law() -> None:
    model, x = built((3, 2, 2)), states(D)
    guide: Any = shaken(Recognition(model, {"x": x}))
    nodes = poutine.trace(guide).get_trace(x=x[:3]).nodes
    assert [name for name in nodes if name.startswith("h")] == ["h1", "h2"]
    assert [tuple(nodes[name]["value"].shape) for name in ("h1", "h2")] == [(3, 3), (3, 2)]
    assert float(nodes["h1"]["scale"]) == pytest.approx(N / 3)
    first = (x @ guide.R[0] + guide.machines[0].c).sigmoid()
    second = (first @ guide.R[1] + guide.machines[1].c).sigmoid()
    for level, expected in enumerate((x, first, second)):
        torch.testing.assert_close(guide.encode(x, level), expected.detach(), rtol=0, atol=1e-12)
    q = bottom_up(guide, joint(model)).detach()
    for level, table in ((1, q.sum(2)), (2, q.sum(1))):
        found = law_of_outcomes(lambda rows, noise, level=level: guide.encode(rows, level, noise), x, [3, 2][level - 1])
        torch.testing.assert_close(found, table, rtol=0, atol=1e-12)


def test_the_guide_follows_the_machines_until_it_is_set_free() -> None:
    model, x = built((3, 2)), data(N, D)
    guide: Any = Recognition(model, {"x": x})
    assert torch.equal(guide.R[0], model.decoders[0].W.mT)
    with torch.no_grad():
        model.decoders[0].W.add_(1)
    assert not torch.equal(guide.R[0], model.decoders[0].W.mT)
    torch.testing.assert_close(guide.machines[0].W, model.decoders[0].W.mT)
    guide.follow()
    assert torch.equal(guide.R[0], model.decoders[0].W.mT)
    assert {name for name, _ in guide.named_parameters()} == {"R.0", "machines.0.c"}, "W and b are the model's"


# Greedy training.


def machine_of(model: Any, guide: Any, level: int) -> tuple[Tensor, Tensor, Tensor]:
    """W, b, c of the machine of a level, leaves of the graph of its parameters."""
    if level == model.depth:
        return model.prior.W, model.prior.b, model.prior.c
    return model.decoders[level - 1].W.mT, model.decoders[level - 1].b, guide.machines[level - 1].c


def energies(machine: tuple[Tensor, Tensor, Tensor], v: Tensor) -> Tensor:
    """F(v)."""
    W, b, c = machine
    return -v @ b - (1 + (c + v @ W).exp()).log().sum(-1)


def moving(model: Any, guide: Any, level: int) -> tuple[nn.Module, ...]:
    return (model.prior,) if level == model.depth else (model.decoders[level - 1], guide.machines[level - 1])


@pytest.mark.equation("mix.2")
@pytest.mark.parametrize("rows", [N, 3])
@pytest.mark.parametrize("level", [1, 2, 3])
def test_the_exact_method_learns_by_the_average_of_data_minus_that_of_the_model(level: int, rows: int) -> None:
    model, x = built((3, 2, 2)), data(N, D)[:rows]
    guide: Any = shaken(Recognition(model, {"x": x}))
    loss: Any = Greedy(level, method="ExactRBM")(model, guide)(x=x)
    v = guide.encode(x, level - 1)  # means of the level below, R following W
    W, b, c = machine = machine_of(model, guide, level)
    every = states(len(b))
    p = (-energies(machine, every)).softmax(0).detach()
    truth = N * (energies(machine, v).mean() + (-energies(machine, every)).logsumexp(0))
    torch.testing.assert_close(loss, truth, rtol=0, atol=1e-10)
    on, dreamt = (c + v @ W).sigmoid(), (c + every @ W).sigmoid()
    slopes = (v.mT @ on / rows - every.mT @ (p[:, None] * dreamt), v.mean(0) - p @ every, on.mean(0) - p @ dreamt)
    found = torch.autograd.grad(loss, [W, b, c] if level == 3 else [model.decoders[level - 1].W, b, c])
    expected = [-N * slope for slope in slopes]
    expected[0] = expected[0] if level == 3 else expected[0].mT
    assert_same(list(found), [part.detach() for part in expected], 1e-10)


def test_a_level_learns_alone() -> None:
    model, x = built((3, 2, 2)), data(N, D)
    guide: Any = Recognition(model, {"x": x})
    for level in (1, 2, 3):
        loss: Any = Greedy(level, method="ExactRBM")(model, guide)(x=x)
        parts = [*model.decoders, *guide.machines, model.prior]
        own = {id(part) for part in moving(model, guide, level)}
        for part in parts:
            assert any(g.any() for g in gradients(loss, part)) is (id(part) in own)
        assert not gradients(loss, guide.R)[0].any()


@pytest.mark.equation("mix.2")
@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize("method", ["CD", "PCD"])
def test_contrastive_divergence_is_its_formula(method: str, level: int, gibbs: dict[str, Any]) -> None:
    model, x = built((3, 2, 2)), data(N, D)[:5]
    guide: Any = shaken(Recognition(model, {"x": x}))
    loss: Any = Greedy(level, method=method, k=3)(model, guide)(x=x)
    v, machine = guide.encode(x, level - 1), machine_of(model, guide, level)
    expected = N * (energies(machine, v).mean() - energies(machine, torch.ones(v.shape[-1])))
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-10)
    for part in moving(model, guide, level):
        assert_same(gradients(loss, part), gradients(expected, part), 1e-10)
    start = v if method == "CD" else torch.zeros(100, v.shape[-1])
    assert gibbs["sweeps"] == 3
    torch.testing.assert_close(gibbs["start"], start, rtol=0, atol=1e-12)


@pytest.mark.equation("mix.2")
def test_particles_persist_and_belong_to_their_machine() -> None:
    model, x = built((3, 2)), data(N, D)
    guide: Any = shaken(Recognition(model, {"x": x}))
    torch.manual_seed(3)
    expected = guide.machines[0].gibbs(guide.machines[0].particles, 2)
    torch.manual_seed(3)
    Greedy(1, k=2)(model, guide)(x=x)
    assert torch.equal(guide.machines[0].particles, expected) and not model.prior.particles.any()


@pytest.mark.equation("mix.3")
def test_codes_below_are_means_or_draws(gibbs: dict[str, Any]) -> None:
    model, x = built((3, 2, 2)), data(N, D)
    guide: Any = shaken(Recognition(model, {"x": x}))
    for codes in ("means", "draws"):
        torch.manual_seed(1)
        Greedy(3, method="CD", codes=codes)(model, guide)(x=x)
        torch.manual_seed(1)
        v = x
        for level in (1, 2):
            v = guide.logits(level, v).sigmoid()
            v = v if codes == "means" else torch.bernoulli(v)
        assert torch.equal(gibbs["start"], v.detach())
    assert set(gibbs["start"].unique().tolist()) <= {0.0, 1.0}


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(TrainingError, match="criterion is PCD, CD, ExactRBM, codes are means or draws; not 'SGD'"):
        Greedy(1, method="SGD")
    with pytest.raises(TrainingError, match="k is a number of sweeps, 1 or more, not 0"):
        Greedy(1, k=0)
    with pytest.raises(TrainingError, match="not 'PCD', 'modes'"):
        Greedy(1, codes="modes")
    model = built()
    with pytest.raises(TrainingError, match="is trained with the guide Recognition, not Nothing"):
        Greedy()(model, mixing.Nothing(model, {}))(x=data(N, D))


# Phases.


def test_phases_go_up_and_move_their_own_parameters() -> None:
    model, x = built((3, 2, 2)), data(N, D)
    guide: Any = mixing.guide(model, {"x": x})
    plan = mixing.phases(model, guide, criterion="CD", k=4, codes="draws", fine_tune="elbo")
    assert [phase.name for phase in plan] == ["level 1", "level 2", "level 3", "fine-tuning"]
    for level, phase in enumerate(plan[:-1], 1):
        own = {id(p) for part in moving(model, guide, level) for p in part.parameters()}
        assert {id(p) for p in phase.parameters or ()} == own
        bound: Any = phase.bound
        assert (bound.level, bound.method, bound.k, bound.codes) == (level, "CD", 4, "draws") and not bound.likelihood
    assert plan[-1].parameters is None and isinstance(plan[-1].bound, LeaveOneOut)
    assert type(mixing.phases(model, guide, fine_tune="wake-sleep")[-1].bound) is mixing.FINE["wake-sleep"]
    exact: Any = [phase.bound for phase in mixing.phases(model, guide, criterion="ExactRBM")]
    assert [bound.likelihood for bound in exact] == [True] * 3
    shallow = built((3,))
    alone = mixing.phases(shallow, mixing.guide(shallow, {"x": x}), fine_tune="elbo")
    assert [phase.name for phase in alone] == ["level 1"], "nothing to tune: the machine is the model"
    with pytest.raises(DataError, match="fine_tune is none, elbo, wake-sleep; not 'adam'"):
        mixing.phases(model, guide, fine_tune="adam")
    with pytest.raises(TrainingError, match="is trained with the guide Recognition, not Nothing"):
        mixing.phases(model, mixing.Nothing(model, {}))
    stack = mixing.Contractive(D, [3])
    with pytest.raises(DataError, match="criterion, k, codes and fine_tune are for DBNs: auto-encoders have a loss"):
        mixing.phases(stack, mixing.Nothing(stack, {}), fine_tune="elbo")


def log_likelihood(model: Any, x: Tensor) -> Tensor:
    return model.loglik(x)


def trained(fine_tune: str, epochs: int = 150) -> tuple[Any, Any, Tensor]:
    """A DBN 9-6-4 on the 14 bars and stripes, trained greedily by exact gradients, then together."""
    split = mixing.data("bars_and_stripes_3x3")
    lab.seed(0)
    model = Model.for_data(split.train, hidden=[6, 4], scale=0.1)
    guide = Recognition(model, split.train.peek())
    plan = mixing.phases(model, guide, criterion="ExactRBM", fine_tune=fine_tune)
    lab.fit(model, guide, [split.train.all()], mixing.bound(guide), epochs=epochs, lr=0.03, phases=plan)
    return model, guide, split.train["x"]


def test_fine_tuning_sets_the_guide_free_and_raises_the_exact_likelihood() -> None:
    """Exact log-likelihoods in nats per datum, of at most -log 14 = -2.64."""
    found = {}
    for fine_tune in mixing.FINE:
        model, guide, x = trained(fine_tune)
        found[fine_tune] = float(model.loglik(x).mean())
        apart = float((guide.R[0] - model.decoders[0].W.mT).abs().max().detach())
        assert (apart == 0) is (fine_tune == "none") and (apart == 0 or apart > 0.05)
    assert -6.3 < found["none"] < -2.64
    assert found["elbo"] > found["none"] + 0.4 and found["wake-sleep"] > found["none"] + 0.4, found


@pytest.mark.equation("mix.2")
def test_greedy_training_by_exact_gradients_ends_at_a_maximum() -> None:
    """The machine at the bottom of digits 4x4: an optimiser of another kind finds nothing better."""
    train = mixing.data("digits_4x4").train.subset(range(100))
    lab.seed(0)
    model = Model.for_data(train, hidden=[3], scale=0.1)
    guide = Recognition(model, train.peek())
    plan = mixing.phases(model, guide, criterion="ExactRBM")
    fit = lab.fit(model, guide, [train.all()], mixing.bound(guide), epochs=800, lr=0.05, phases=plan)
    loglik = log_likelihood(model, train["x"])
    assert fit.losses[-1] == pytest.approx(-float(loglik.mean()), abs=1e-3), "the loss is the likelihood"
    loss = Greedy(1, method="ExactRBM")(model, guide)
    optimiser = torch.optim.LBFGS(model.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value: Any = loss(x=train["x"])
        value.backward()
        return value

    optimiser.step(closure)  # type: ignore[arg-type]
    better = log_likelihood(model, train["x"])
    assert 0 <= float(better.mean() - loglik.mean()) < 0.05


# The model of a table, and the data.


def test_the_model_of_a_table() -> None:
    x = torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    wanted = torch.tensor([1 / 3, 0.99, 1 / 3]).logit()
    for options, widths in (
        ({}, [64, 64]),
        ({"depth": 3, "width": 5}, [5, 5, 5]),
        ({"hidden": [4, 2]}, [4, 2]),
        ({"depth": 2, "hidden": [4, 2]}, [4, 2]),
        ({"depth": 1, "width": 2}, [2]),
    ):
        model: Any = Model.for_data(rows_of(x), particles=9, **options)  # type: ignore[arg-type]
        bottom = model.decoders[0] if len(widths) > 1 else model.prior
        assert (model.widths, model.N, model.in_features, model.depth) == (widths, 3, 3, len(widths))
        torch.testing.assert_close(bottom.b.detach(), wanted)
        assert model.prior.particles.shape == (9, widths[-2] if len(widths) > 1 else 3)
        assert mixing.remarks(model) == [f"Layers 3 - {' - '.join(map(str, widths))}."] or max(widths) > 20
        same: Any = mixing.Contractive.for_data(rows_of(x), **options)  # type: ignore[arg-type]
        torch.testing.assert_close(same.levels[0].b.detach(), wanted)
        assert same.widths == widths
    wide: Any = Model.for_data(rows_of(torch.bernoulli(torch.full((9, 300), 0.5))), hidden=[200, 2], scale=0.3)
    assert float(wide.decoders[0].W.detach().std()) == pytest.approx(0.3, rel=0.02)  # 60,000: known to 0.3 %


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 3, "hidden": [4, 2]}, "depth 3 and 2 hidden widths: give one of them"),
        ({"depth": 0}, "depth is a number of layers, 1 or more, not 0"),
        ({"depth": -1}, "depth is a number of layers, 1 or more, not -1"),
        ({"depth": 1.5}, "depth is a number of layers, 1 or more, not 1.5"),
        ({"depth": "two"}, "depth is a number of layers, 1 or more, not 'two'"),
        ({"hidden": []}, "has one l.* or more of one unit or more, not "),
        ({"width": 0}, "has one l.* or more of one unit or more, not "),
    ],
)
@pytest.mark.parametrize("kind", [Model, mixing.Contractive])
def test_an_impossible_stack_is_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        kind.for_data(rows_of(data(N, D)), **options)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Model, {"particles": 0}, "particles takes 1 or more, and scale 0 or more; not 0 and 0.01"),
        (Model, {"scale": -1}, "not 100 and -1"),
        (mixing.Contractive, {"contraction": -1.0}, "contraction, noise and scale take 0 or more; not -1.0, 1.0 and"),
        (mixing.Contractive, {"noise": -1.0}, "not 0.1, -1.0 and 0.1"),
        (mixing.Contractive, {"scale": -1.0}, "not 0.1, 1.0 and -1.0"),
    ],
)
def test_impossible_numbers_are_refused(kind: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        kind(D, [3], N, **options)


def test_only_bits_have_a_likelihood() -> None:
    x = states(D).clone()
    x[2, 1] = 0.5
    with pytest.raises(DataError, match=r"x holds 0\.5 in row 3, column 2: pixels of this model are 0 or 1"):
        built().loglik(x)


def test_grey_values_are_refused_by_the_model_and_cut_by_the_data() -> None:
    with pytest.raises(DataError, match=r"x of t is not binary: open it by mixing\.data"):
        Model.for_data(rows_of(0.5 * data(N, D)))
    with pytest.raises(DataError, match=r"x of diabetes lies outside \[0, 1\]: chains here walk on bits"):
        mixing.data("diabetes")


def test_pictures_are_cut_at_one_half_and_keep_their_labels() -> None:
    raw, parts = load("digits", split=1), mixing.data("digits", split=1)
    every = torch.cat([part["x"] for part in parts if part is not None])
    truth = torch.from_numpy(load_digits().data > 8).double()
    assert torch.equal(every.unique(dim=0), truth.unique(dim=0)) and every.dtype == torch.get_default_dtype()
    assert torch.equal(parts.test["y"], raw.test["y"]) and parts.test.classes == raw.test.classes
    assert all(part is None or part.transform is None for part in parts), "no row of a file would be cut"
    assert parts.valid is not None and set(parts.train.tensors) == {"x", "y"}


def test_a_validation_part_is_cut_from_the_training_data_once() -> None:
    raw: Any = load("digits")
    parts, again, other = (mixing.data("digits", split=s) for s in (0, 0, 1))
    if raw.valid is None:
        assert parts.valid is not None and len(parts.valid) == mixing.VALID
        assert len(parts.train) + len(parts.valid) == len(raw.train)
        rows = sorted(map(bytes, torch.cat([parts.train["x"], parts.valid["x"]]).byte().numpy()))
        assert rows == sorted(map(bytes, (raw.train["x"] > 0.5).byte().numpy()))
    assert again.valid is not None and other.valid is not None
    assert parts.valid is not None
    assert torch.equal(parts.valid["x"], again.valid["x"]) and not torch.equal(parts.valid["x"], other.valid["x"])
    assert mixing.data("bars_and_stripes_3x3").valid is None, "14 rows are too few to cut"


def test_classes_of_numbers_are_no_labels() -> None:
    parts = mixing.data("bars_and_stripes_3x3")
    assert set(parts.train.tensors) == {"x"} and len(parts.train) == 14
    table = replace(rows_of(data(N, D)), tensors={"x": data(N, D), "y": torch.arange(N)})
    assert set(mixing._cut(table, table).tensors) == {"x"}, "a target without classes"


def test_bits_of_an_own_file_stay_bits_with_labels_or_without(tmp_path: Path) -> None:
    bits = data(90, 5).int()
    frame = pd.DataFrame(bits.numpy(), columns=list("abcde"))
    frame["kind"] = np.where(frame.a + frame.b > 0, "up", "down")
    frame.to_csv(tmp_path / "my.csv", index=False)
    for part in mixing.data(str(tmp_path / "my.csv"), target="kind", split=2):
        if part is not None:
            assert torch.equal(part["y"], (part["x"][:, 0] + part["x"][:, 1] > 0).long()), "rows belong together"
            assert list(part.classes or ()) == ["down", "up"] and set(part["x"].unique().tolist()) == {0.0, 1.0}
    frame.drop(columns="kind").to_csv(tmp_path / "plain.csv", index=False)
    parts = mixing.data(str(tmp_path / "plain.csv"))
    assert set(parts.train.tensors) == {"x"} and parts.train["x"].shape[1] == 5
    with pytest.raises(DataError, match="nosuch"):
        mixing.data(str(tmp_path / "my.csv"), target="nosuch")


def test_remarks_tell_the_layers_and_an_annealed_log_z(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mixing.remarks(built((3, 2))) == ["Layers 4 - 3 - 2."]
    assert mixing.remarks(mixing.Contractive(4, [3])) == [
        "Levels 4 - 3; a stack of auto-encoders has no density, and its walk no known target."
    ]
    monkeypatch.setattr("zoo.lab.rbm.BITS", 1)
    model = built((3, 2))
    found = model.annealed
    told = f"log Z of the top by annealed importance sampling: {found.log_z:.2f} ± {found.error:.2f} nats."
    assert mixing.remarks(model)[1] == told


def test_seeds_decide() -> None:
    found = []
    for _ in (0, 1):
        lab.seed(5)
        found.append(built((3, 2)).prior.W)
    assert torch.equal(*found)
