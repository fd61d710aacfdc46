"""Contractive auto-encoders, and the chains of deep models: their laws by enumeration, by autograd and by long runs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from enumerated import frequencies, matrix, p_value, visible_bias
from pyro.infer import Trace_ELBO
from test_mixing import D, N, built, conditional, joint, law_of_outcomes
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy
from worlds import data, gradients, rows_of, shaken

from guides.codes import index, states
from zoo import lab, mixing
from zoo.lab import chains, diagnosis, kernels, khat, markov
from zoo.lab.data import DataError
from zoo.lab.noise import Noise
from zoo.mixing import Contractive, Nothing


def stack(widths: tuple[int, ...] = (3, 2), features: int = D, **options: Any) -> Any:
    return shaken(Contractive(features, widths, N, **options))


# Contractive auto-encoders.


@pytest.mark.equation("mix.6")
def test_the_contraction_is_the_squared_norm_of_the_jacobian() -> None:
    model, x = stack((6, 5), 8), torch.rand(9, 8)
    for level, below in zip(model.levels, (x, model.encode(x, 1)), strict=True):
        truth = torch.stack([torch.autograd.functional.jacobian(level.encode, row) for row in below])
        h = level.encode(below).detach()
        torch.testing.assert_close(level.jacobian(h), truth, rtol=0, atol=1e-14)
        torch.testing.assert_close(level.contraction(h), truth.square().sum((1, 2)), rtol=1e-12, atol=0)


@pytest.mark.equation("mix.6")
def test_the_jacobian_of_a_stack_is_the_product_of_its_levels() -> None:
    model, x = stack((6, 5), 8), torch.rand(3, 8)
    first, second = model.levels
    for row in x:
        whole = torch.autograd.functional.jacobian(lambda v: second.encode(first.encode(v)), row)
        h = first.encode(row)
        product = second.jacobian(second.encode(h)) @ first.jacobian(h)
        torch.testing.assert_close(product.detach(), whole, rtol=0, atol=1e-14)


@pytest.mark.equation("mix.6")
@pytest.mark.parametrize("kind", ["bits", "grey"])
def test_the_loss_is_summed_over_levels_and_data_and_no_level_trains_the_one_below(kind: str) -> None:
    model = stack(contraction=0.7)
    x = (data(N, D) if kind == "bits" else torch.rand(N, D))[:3]
    loss: Any = Trace_ELBO()(model, Nothing(model, {"x": x}))(x=x)
    parts, below = [], x
    for level in model.levels:
        h = (below @ level.W + level.c).sigmoid()
        J = (h * (1 - h))[:, :, None] * level.W.mT  # (n, above, below)
        cross = binary_cross_entropy((h @ level.W.mT + level.b).sigmoid(), below, reduction="sum")
        parts.append(N / 3 * (cross + 0.7 * J.square().sum()))
        below = h.detach()
    torch.testing.assert_close(loss, sum(parts), rtol=0, atol=1e-10)
    for level, own in zip(model.levels, parts, strict=True):
        for found, truth in zip(gradients(loss, level), gradients(own, level), strict=True):
            torch.testing.assert_close(found, truth, rtol=0, atol=1e-10)
    plan = mixing.phases(model, Nothing(model, {}))
    assert [phase.name for phase in plan] == ["level 1", "level 2"]
    assert [[id(p) for p in phase.parameters or ()] for phase in plan] == [
        [id(p) for p in level.parameters()] for level in model.levels
    ]


def test_a_stack_encodes_and_decodes_by_means() -> None:
    model, x = stack(), torch.rand(5, D)
    first, second = model.levels
    h1 = (x @ first.W + first.c).sigmoid()
    h2 = (h1 @ second.W + second.c).sigmoid()
    assert torch.equal(model.encode(x, 0), x) and model.depth == 2
    for level, h in ((1, h1), (2, h2)):
        torch.testing.assert_close(model.encode(x, level), h.detach())
    down = (h2 @ second.W.mT + second.b).sigmoid()
    pixels = (down @ first.W.mT + first.b).sigmoid().detach()
    torch.testing.assert_close(model.decode(h2, 2), pixels)
    torch.testing.assert_close(model.decode(down), pixels)  # level L - 1 where none is given


def fitted() -> tuple[lab.Fit, lab.Table]:
    train, _, test = (None if p is None else p.to(dtype=torch.float64) for p in mixing.data("digits_4x4"))
    assert train is not None and test is not None
    model = Contractive.for_data(train, hidden=[5, 4])
    guide = mixing.guide(model, train.peek())
    assert isinstance(guide, Nothing)
    plan = mixing.phases(model, guide)
    return lab.fit(model, guide, train.batches(200, seed=0), mixing.bound(guide), epochs=1, phases=plan), test


def test_auto_encoders_claim_no_density() -> None:
    fit, test = fitted()
    found = lab.compare({"CAE": fit}, test, draws=5)
    (score,) = found.scores
    assert not score.loglik and not score.elbo and score.khat is None and not Contractive.density
    (row,) = found.frame.to_dict("records")
    assert row["log-lik"] == "no density" and row["bound"] == "no bound" and "no density" in found.caption
    assert not any("importance-weighted" in note for note in found.notes) and not found.losses
    told = " ".join(diagnosis.diagnose(fit, draws=100).sentences)
    assert "No bound: " in told and "no density" in told
    for refused in (khat.joint, khat.per_datum, diagnosis.bound):
        with pytest.raises(diagnosis.DiagnosisError):
            refused(fit)
    assert not hasattr(fit.model, "loglik")


# The walk of auto-encoders.


class Thrown:
    """Normal noise of one stream for all chains: many are cheap."""

    def __init__(self, chains: int) -> None:
        self.chains = chains

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(self.chains, *shape)

    def bernoulli(self, probs: Tensor) -> Tensor:
        return torch.bernoulli(probs)


@pytest.mark.equation("mix.8")
@pytest.mark.parametrize("widths", [(5,), (7, 5)], ids=str)
def test_a_small_step_has_the_covariance_of_its_linear_part(widths: tuple[int, ...]) -> None:
    """400,000 draws at sd 1e-3; relative errors of 1 % in the Frobenius norm would be seen."""
    model, sd, draws = stack(widths, 6, noise=1e-3), 1e-3, 400_000
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.div_(math.sqrt(6))
    sampler, top = mixing.jacobian_walk(model), model.levels[-1]
    s = model.encode(torch.rand(1, 6), model.depth - 1)
    with torch.no_grad():
        after = sampler.step(s.expand(draws, -1), Thrown(draws))  # type: ignore[arg-type]
        h = top.encode(s)
    down = torch.autograd.functional.jacobian(lambda code: top.logits(code).sigmoid(), h[0])  # (below, above)
    J = torch.autograd.functional.jacobian(top.encode, s[0])
    A = down @ J @ J.mT
    truth = sd**2 * A @ A.mT
    error = float((after.T.cov() - truth).norm() / truth.norm())
    assert error < 0.01, error
    clean = top.logits(h).sigmoid()[0].detach()
    assert float((after.mean(0) - clean).abs().max()) < 6 * float(truth.diag().max()) ** 0.5 / math.sqrt(draws) + 1e-5
    wrong = sd**2 * down @ down.mT
    assert float((wrong - truth).norm() / truth.norm()) > 0.1, "noise in all directions alike would be seen"


def test_the_walk_of_a_stack_starts_at_codes_and_is_decoded_to_bits() -> None:
    for widths in ((3,), (3, 2)):
        model, x, noise = stack(widths), data(6, D), Noise(6)
        sampler = mixing.walk(model, Nothing(model, {}))
        s = sampler.start(x, noise)
        torch.testing.assert_close(s, model.encode(x, len(widths) - 1))
        assert set(sampler.decode(s, noise).unique().tolist()) <= {0.0, 1.0} and sampler.statistics(s) == {}
        torch.testing.assert_close(sampler.means(s), model.decode(s))
        found = law_of_outcomes(sampler.decode, s, D) @ states(D)
        torch.testing.assert_close(found, model.decode(s), rtol=0, atol=1e-12)
        still = stack(widths, noise=0.0)
        torch.testing.assert_close(
            mixing.walk(still, Nothing(still, {})).step(s, noise),
            still.levels[-1].logits(still.levels[-1].encode(s)).sigmoid(),
        )


# The walk of a deep belief network.


@pytest.mark.equation("mix.7")
@pytest.mark.parametrize("widths", [(3,), (3, 2), (3, 2, 3)], ids=str)
def test_the_top_walk_decoded_has_the_law_of_the_model_exactly(widths: tuple[int, ...]) -> None:
    model = built(widths)
    guide: Any = shaken(mixing.guide(model, {"x": data(N, D)}))
    sampler, codes = mixing.walk(model, guide), states(model.prior.visible)
    pi = model.prior.log_prob(codes).exp().detach()
    with torch.no_grad():
        K = matrix(sampler.step, codes)
        assert markov.stationarity_error(K, pi) < 1e-14
        decoded = pi @ law_of_outcomes(sampler.decode, codes, D)
        torch.testing.assert_close(decoded, model.loglik(states(D)).exp(), rtol=0, atol=1e-13)
    torch.testing.assert_close(sampler.statistics(codes)["free energy"], model.prior.free_energy(codes))
    x = data(6, D)
    torch.testing.assert_close(
        law_of_outcomes(sampler.start, x, codes.shape[1]),
        law_of_outcomes(lambda rows, noise: guide.encode(rows, len(widths) - 1, noise), x, codes.shape[1]),
    )


def slow(widths: tuple[int, int] = (4, 3)) -> Any:
    """A DBN whose top has balanced modes far from one another, so that its walk takes several steps to forget."""
    model = built(widths)
    with torch.no_grad():
        W = model.prior.W.mul_(2.5)
        model.prior.b.copy_(-W.sum(1) / 2), model.prior.c.copy_(-W.sum(0) / 2)
    return model


@pytest.mark.equation("mix.7", "mix.12")
def test_a_long_walk_thinned_by_its_autocorrelation_time_has_the_exact_frequencies() -> None:
    """20,000 draws: relative errors of P(x) of 7 % in the root mean square would be seen; the start is forgotten."""
    model = slow()
    world = mixing.same_target(model)
    tau = float(markov.iact(world.top, world.prior, torch.eye(16)).max())
    thin = math.ceil(2 * tau)
    assert 3 < tau < 30 and visible_bias(16, 20_000) < 0.07
    guide: Any = mixing.guide(model, {"x": data(N, D)})
    sampler, M = mixing.top_walk(model, guide), 500
    first = sampler.start(torch.ones(M, D), Noise(M, stream=2))
    walked = chains.walk(
        sampler.step, first, draws=40, warmup=10 * thin, thin=thin, watch={"x": sampler.decode, "s": lambda s, _: s}
    )
    assert p_value(frequencies(index(walked["x"]), 16), world.law) > 1e-4
    assert p_value(frequencies(index(walked["s"]), 16), world.prior) > 1e-4
    assert p_value(frequencies(index(walked["x"]), 16), mixing.same_target(built((4, 3))).law) < 1e-9


# Three chains with one target.


@pytest.mark.equation("mix.10")
@pytest.mark.parametrize("widths", [(3, 2), (2, 4), (4, 3)], ids=str)
def test_three_chains_leave_one_law_as_it_is(widths: tuple[int, int]) -> None:
    model = built(widths)
    world, P = mixing.same_target(model), joint(model).detach()
    torch.testing.assert_close(world.law, P.sum((1, 2)), rtol=0, atol=1e-13)
    torch.testing.assert_close(world.prior, P.sum((0, 2)), rtol=0, atol=1e-13)
    torch.testing.assert_close(world.prior @ world.decode, world.law, rtol=0, atol=1e-14)
    decoder = model.decoders[0]
    torch.testing.assert_close(world.decode.mT, conditional(decoder.W, decoder.b).detach(), rtol=0, atol=1e-14)
    for K, pi in ((world.sweep, world.law), (world.alternate, world.law), (world.top, world.prior)):
        torch.testing.assert_close(K.sum(1), torch.ones(len(K)), rtol=0, atol=1e-12)
        assert bool((K >= 0).all()) and markov.stationarity_error(K, pi) < 1e-14
        assert markov.stationarity_error(K, torch.full_like(pi, 1 / len(pi))) > 1e-3
    assert markov.balance_error(world.alternate, world.law) < 1e-14
    assert float(markov.eigenvalues(world.alternate, world.law).min()) > -1e-12, "positive, as block Gibbs is"


@pytest.mark.equation("mix.10")
def test_the_steps_are_those_matrices() -> None:
    model = built((3, 2))
    world = mixing.same_target(model)
    with torch.no_grad():
        alternate = matrix(mixing.alternating(model), states(D))
        torch.testing.assert_close(alternate, world.alternate, rtol=0, atol=1e-13)
        sweep = matrix(kernels.single_site(model.log_evidence), states(D))
        torch.testing.assert_close(sweep, world.sweep, rtol=0, atol=1e-13)
        torch.testing.assert_close(matrix(kernels.block_gibbs(model.prior), states(3)), world.top, rtol=0, atol=1e-13)
    deep = built((3, 2, 2))
    with torch.no_grad():
        K = matrix(mixing.alternating(deep), states(D))
    assert markov.stationarity_error(K, deep.loglik(states(D)).exp()) < 1e-14, "whatever is above h_1"


@pytest.mark.equation("mix.10")
def test_the_network_of_the_dossier_has_one_target_too() -> None:
    model = built((6, 4), 9)
    world = mixing.same_target(model)
    laws = ((world.sweep, world.law), (world.alternate, world.law), (world.top, world.prior))
    assert max(markov.stationarity_error(K, pi) for K, pi in laws) < 1e-14


@pytest.mark.equation("mix.13")
@pytest.mark.parametrize("widths", [(3, 2), (4, 3)], ids=str)
def test_the_decoded_top_walk_against_the_joint_chain_of_code_and_picture(widths: tuple[int, int]) -> None:
    world, S = mixing.same_target(slow(widths)), 2**D
    K = (world.top[:, None, :, None] * world.decode[None, None]).expand(-1, S, -1, -1).reshape(len(world.prior) * S, -1)
    pi = (world.prior[:, None] * world.decode).flatten()
    assert markov.stationarity_error(K, pi) < 1e-14
    slowest = 0.0
    for f in (states(D).sum(-1), states(D)[:, 0], (index(states(D)) == 5).double()):
        g, share = markov.explained(world.prior, world.decode, f)
        found = markov.decoded_iact(markov.iact(world.top, world.prior, g), share)
        truth = markov.iact(K, pi, f.repeat(len(world.prior)))
        torch.testing.assert_close(found, truth, rtol=1e-11, atol=0)
        slowest = max(slowest, float(found))
    assert slowest > 1.2, "there is something to see"


@pytest.mark.parametrize(("widths", "features"), [((3,), D), ((3, 2, 2), D), ((3, 2), 13), ((13, 2), D)])
def test_what_cannot_be_enumerated_has_no_same_target_control(widths: tuple[int, ...], features: int) -> None:
    with pytest.raises(DataError, match="enumerates a DBN of depth 2 with up to 12 pixels and codes"):
        mixing.same_target(built(widths, features))


# The representations of a model.


def pairs() -> list[Any]:
    found: list[tuple[nn.Module, nn.Module]] = []
    for widths in ((3,), (3, 2), (3, 2, 4)):
        model = built(widths)
        found.append((model, shaken(mixing.guide(model, {"x": data(N, D)}))))
    for widths in ((3,), (3, 2)):
        found.append((stack(widths), Nothing(stack(widths), {})))
    return found


@pytest.mark.equation("mix.19", "mix.20")
@pytest.mark.parametrize("which", range(5))
def test_levels_are_means_upwards_and_downwards(which: int) -> None:
    model, guide = pairs()[which]
    spaces, x = mixing.levels(model, guide), data(6, D)
    assert spaces.depth == model.depth
    up: Tensor = x
    down: list[Any] = []
    W: Any
    b: Any
    c: Any
    R: Any
    for level in range(model.depth + 1):
        torch.testing.assert_close(spaces.encode(x, level), up, rtol=0, atol=1e-12)
        pixels = up
        for step in reversed(down):
            pixels = step(pixels)
        torch.testing.assert_close(spaces.decode(up, level), pixels, rtol=0, atol=1e-12)
        if level == model.depth:
            break
        if isinstance(model, Contractive):
            W, b, c = model.levels[level].W, model.levels[level].b, model.levels[level].c  # type: ignore[union-attr]
            R = W
        elif level == model.depth - 1:
            W, b, c = model.prior.W, model.prior.b, model.prior.c
            R = W
        else:
            W, b = model.decoders[level].W.mT, model.decoders[level].b
            R, c = guide.R[level], guide.machines[level].c
        up = (up @ R + c).sigmoid().detach()
        down.append(lambda h, W=W, b=b: (h @ W.mT + b).sigmoid().detach())
    assert torch.equal(spaces.encode(x, 0), x) and torch.equal(spaces.decode(x, 0), x)


def test_measures_walk_from_data_and_judge() -> None:
    """Of both families; the state of a chain is that of the paper's walk, and the weights stay as they are."""
    split = mixing.data("bars_and_stripes_3x3")
    for kind in (mixing.Model, Contractive):
        model = kind.for_data(split.train, hidden=[4, 3])
        guide = mixing.guide(model, split.train.peek())
        before = {name: value.clone() for name, value in model.state_dict().items()}
        fit = lab.Fit(model, guide, mixing.bound(guide), [split.train.all()])
        report = mixing.measures(fit, split, chains=5, steps=12)
        assert report.chains["x"].shape == (5, 12, 9) and report.mixing.chains == 5 and report.mixing.draws == 12
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert ("free energy" in report.chains.draws) is (kind is mixing.Model)


def test_a_table_of_bits_needs_no_labels_to_be_walked_on() -> None:
    torch.manual_seed(1)
    table = rows_of(data(60, 5))
    model = mixing.Model.for_data(table, hidden=[3])
    guide = mixing.guide(model, table.peek())
    fit = lab.Fit(model, guide, mixing.bound(guide), [table.all()])
    report = mixing.measures(fit, lab.Split(table, None, table), chains=4, steps=12)
    assert report.mixing.classes[0] == "cluster 0" and report.mixing.rejected == 0
