"""The model of layer-wise learning and its exact likelihood, against the sum over all codes."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor
from worlds import assert_same, brute, built, data, gradients, rows_of, shaken

import guides
from guides.codes import index, states, table
from zoo import layerwise
from zoo.lab import accounts, exact, rbm
from zoo.lab.data import DataError, load
from zoo.lab.generated import tea
from zoo.lab.training import TrainingError
from zoo.layerwise import Decoder, Evidence, GaussianDecoder, Model, Posterior, TiedRBM

N, D = 7, 5
DEPTHS = [(), (3,), (3, 2), (4, 3, 2)]
TOPS = ["rbm", "tabular", "bits", "aggregated"]
KINDS = [(hidden, top) for hidden in DEPTHS for top in TOPS if top != "aggregated" or len(hidden) == 1]


@pytest.mark.equation("lw.1")
@pytest.mark.parametrize(("hidden", "top"), KINDS, ids=str)
def test_the_story_goes_down_from_the_top(hidden: tuple[int, ...], top: str) -> None:
    model, x = built(hidden, top), data()
    sites = [f"h{k}" for k in range(len(hidden), 0, -1)] + ["x"]
    for batch, n in [({"x": x}, N), ({"x": x[:3]}, 3), ({}, N)]:
        nodes = poutine.trace(model).get_trace(**batch).nodes
        assert [name for name in nodes if name in sites] == sites
        widths = [*reversed(hidden), D]
        for name, width in zip(sites, widths, strict=True):
            assert nodes[name]["value"].shape == (n, width) and nodes[name]["fn"].event_dim == 1
            assert [frame.name for frame in nodes[name]["cond_indep_stack"]] == ["data"]
            assert float(nodes[name]["scale"]) == pytest.approx(N / n)
        assert nodes["x"]["is_observed"] == ("x" in batch)
    assert model.device == torch.device("cpu")


@pytest.mark.equation("lw.1")
@pytest.mark.parametrize(("hidden", "top"), [kind for kind in KINDS if kind[0]], ids=str)
def test_the_joint_law_is_a_product_down_the_layers(hidden: tuple[int, ...], top: str) -> None:
    model, x = built(hidden, top), data()
    codes = {f"h{k}": data(N, width) for k, width in enumerate(hidden, 1)}
    found = poutine.trace(poutine.condition(model, data=codes)).get_trace(x=x).log_prob_sum()
    expected = table(model.prior())[index(codes[f"h{len(hidden)}"])]
    layers = [x, *codes.values()]
    for k, decoder in enumerate(model.decoders):
        p = (layers[k + 1] @ decoder.W + decoder.b).sigmoid()
        expected = expected + torch.where(layers[k].bool(), p, 1 - p).log().sum(-1)
    torch.testing.assert_close(found, expected.sum(), rtol=0, atol=1e-11)


@pytest.mark.equation("lw.2")
def test_a_row_of_the_decoder_s_table_is_a_sum_over_pixels() -> None:
    """Grey values too: they count as probabilities."""
    decoder: Any = shaken(Decoder(4, D))
    for below in (data(), torch.rand(N, D)):
        p = (states(4) @ decoder.W + decoder.b).sigmoid()
        expected = below @ p.log().mT + (1 - below) @ (1 - p).log().mT
        torch.testing.assert_close(decoder.table(below), expected, rtol=0, atol=1e-12)
        laws = torch.stack([decoder(h).log_prob(below) for h in states(4)], -1)
        torch.testing.assert_close(decoder.table(below), laws, rtol=0, atol=1e-12)


@pytest.mark.equation("lw.2")
def test_a_row_of_the_gaussian_decoder_s_table_is_a_sum_of_normal_densities() -> None:
    decoder: Any = shaken(GaussianDecoder(4, D))
    x = 2 * torch.randn(N, D)
    normal = dist.Normal(states(4) @ decoder.W + decoder.b, decoder.log_sd.exp())
    expected = normal.log_prob(x[:, None]).sum(-1)
    torch.testing.assert_close(decoder.table(x), expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(torch.stack([decoder(h).log_prob(x) for h in states(4)], -1), expected)
    assert_same(gradients(decoder.table(x).sum(), decoder), gradients(expected.sum(), decoder))


def test_widths_and_starts() -> None:
    model = Model(1000, (30,), scale=0.3, top_hidden=4)
    assert [tuple(p.shape) for p in model.decoders[0].parameters()] == [(30, 1000), (1000,)]
    assert float(model.decoders[0].W.detach().std()) == pytest.approx(0.3, rel=0.03)  # 30,000: known to 0.4 %
    assert (model.prior.visible, model.prior.hidden, model.decoders[0].above) == (30, 4, 30)
    assert Model(8, (6,)).prior.hidden == 6


# The exact likelihood.


@pytest.mark.equation("lw.1", "lw.4")
@pytest.mark.parametrize("pixels", ["bernoulli", "gaussian"])
@pytest.mark.parametrize(("hidden", "top"), [kind for kind in KINDS if kind[0]], ids=str)
def test_the_exact_likelihood_is_the_sum_over_all_codes(hidden: tuple[int, ...], top: str, pixels: str) -> None:
    model, x = built(hidden, top, pixels=pixels), data()
    found, expected = model.log_evidence(x), brute(model, x)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    assert_same(gradients(found.sum(), model), gradients(expected.sum(), model), 1e-10)
    loglik = model.loglik(x, index=torch.arange(N))
    assert not loglik.requires_grad
    torch.testing.assert_close(loglik, expected.detach(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("top", ["rbm", "tabular", "bits"])
def test_without_a_hidden_layer_x_has_the_prior(top: str) -> None:
    model, x = built((), top), data()
    assert model.enumerable
    torch.testing.assert_close(model.loglik(x), table(model.prior()).detach()[index(x)], rtol=0, atol=1e-12)
    loss = Evidence()(model, lambda **_: None)(x=x[:3])
    torch.testing.assert_close(loss, -N / 3 * model.log_evidence(x[:3]).sum())


@pytest.mark.equation("lw.1")
@pytest.mark.parametrize("hidden", [(3,), (3, 2), (4, 3, 2)])
def test_the_law_of_every_layer_sums_to_one_and_follows_from_the_one_above(hidden: tuple[int, ...]) -> None:
    model: Any = built(hidden)
    for layer in range(len(hidden), 0, -1):
        found = model.log_prior(layer)
        torch.testing.assert_close(found.logsumexp(0), torch.tensor(0.0), rtol=0, atol=1e-12)
        if layer < len(hidden):
            below, above = states(hidden[layer - 1]), states(hidden[layer])
            p = (above @ model.decoders[layer].W + model.decoders[layer].b).sigmoid()  # (2^above, n_layer)
            given = torch.stack([torch.where(code.bool(), p, 1 - p).prod(-1) for code in below])
            torch.testing.assert_close(found.exp(), given @ model.log_prior(layer + 1).exp(), rtol=0, atol=1e-12)


def test_a_likelihood_in_pieces_is_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = built((4, 3)), data(40)
    whole = model.log_evidence(x)
    slopes = gradients(whole.sum(), model)
    monkeypatch.setattr(exact, "CELLS", 50)  # one code of the lower table at a time, six of the upper one
    pieces = model.log_evidence(x)
    torch.testing.assert_close(pieces, whole, rtol=0, atol=1e-12)
    assert_same(gradients(pieces.sum(), model), slopes)


@pytest.mark.parametrize(
    ("options", "within"),
    [
        ({"hidden": (20,)}, True),
        ({"hidden": (21,), "top": "bits"}, False),
        ({"hidden": (13, 13)}, True),
        ({"hidden": (14, 13)}, False),
        ({"hidden": (6, 20, 6)}, True),
        ({"hidden": (), "in_features": 30, "top_hidden": 20}, True),
        ({"hidden": (), "in_features": 30, "top_hidden": 21}, False),
        ({"hidden": (), "in_features": 30, "top": "bits"}, True),
    ],
    ids=str,
)
def test_what_cannot_be_enumerated_has_no_exact_likelihood(options: dict[str, Any], within: bool) -> None:
    model = Model(**{"in_features": D, "N": N, **options})
    assert model.enumerable == within
    if not within:
        assert model.loglik(torch.zeros(2, model.in_features)) is None
        assert layerwise.evidence(model, rows_of(torch.zeros(2, model.in_features))) is None
        told = " ".join(layerwise.remarks(model))
        assert ("importance-weighted estimates" in told) == bool(model.hidden), "without latents nothing is weighted"
        with pytest.raises(TrainingError, match="exact evidence of this model is out of reach; fine-tune with VIMCO"):
            Evidence()(model, lambda **_: None)(x=torch.zeros(2, model.in_features))


def reference_world(**options: Any) -> tuple[Model, Tensor]:
    """n1 = 6, D = 8, N = 12."""
    return built((6,), in_features=8, N=12, **options), data(12, 8)


def no_guide(**batch: Any) -> None:
    """The model's latents are summed out."""


@pytest.mark.equation("lw.1", "lw.17")
@pytest.mark.parametrize("top", ["rbm", "tabular"])
def test_pyro_s_own_enumeration_is_the_exact_evidence(top: str) -> None:
    model, x = reference_world(top=top)
    truth = -brute(model, x).sum()
    ours = Evidence()(model, no_guide)(x=x)
    pyros = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(config_enumerate(model), no_guide, x=x)
    for loss in (ours, pyros):
        torch.testing.assert_close(loss, truth, rtol=0, atol=1e-10)
        assert_same(gradients(loss, model), gradients(truth, model), 1e-10)


@pytest.mark.equation("lw.1")
def test_one_site_of_64_categories_is_the_same_model() -> None:
    model, x = reference_world()
    decoder: Any = model.decoders[0]

    def one_site(x: Tensor) -> None:
        with guides.data_plate(len(x), 12):
            k = pyro.sample("h1", dist.Categorical(logits=table(model.prior())), infer={"enumerate": "parallel"})
            pyro.sample("x", decoder(states(6)[k]), obs=x)

    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(one_site, no_guide, x=x)
    truth = -brute(model, x).sum()
    torch.testing.assert_close(loss, truth, rtol=0, atol=1e-10)
    assert_same(gradients(loss, model), gradients(truth, model), 1e-10)


@pytest.mark.equation("lw.14")
@pytest.mark.parametrize("family", ["PerDatum", "Autoregressive"])
def test_an_enumerated_guide_gives_the_enumerated_elbo(family: str) -> None:
    """Values and gradients of both model and guide, and the account's number."""
    model, x = reference_world()
    batch: dict[str, Tensor] = {"x": x, "index": torch.arange(12)}
    families = {"PerDatum": partial(guides.PerDatum, N=12), "Autoregressive": guides.Autoregressive}
    given = {"h1": ("index",)} if family == "PerDatum" else None
    guide: Any = shaken(guides.Guide(model, batch, latents=families[family], given=given))
    log_q = table(guide.q["h1"](guide.context("h1", batch, {})))
    T = model.decoders[0].table(x)
    truth = -(log_q.exp() * (T + model.log_prior() - log_q)).sum()
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, config_enumerate(guide), **batch)
    torch.testing.assert_close(loss, truth, rtol=1e-12, atol=0)
    for part in (model, guide):
        assert_same(gradients(loss, part), gradients(truth, part), 1e-10)
    log_w = torch.full((12,), -math.log(12))
    books = accounts.account(T, log_q, model.log_prior(), log_w, steps=0)
    assert books.elbo == pytest.approx(-float(truth.detach()) / 12, abs=1e-11)


@pytest.mark.equation("lw.1")
def test_dreams_follow_the_exact_likelihood() -> None:
    """40,000 dreams of 3 pixels: the standard error of a frequency is .0025 at most; a bias of .01 would be seen."""
    model, draws = built((3, 2), in_features=3, N=40_000), 40_000
    with torch.no_grad():
        x = model()
        p = model.log_evidence(states(3)).exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    frequencies = torch.bincount(index(x), minlength=8) / draws
    assert ((frequencies - p).abs() < 4 * (p * (1 - p) / draws).sqrt()).all()


# Tea.


def perfect(gain: float, top_gain: float) -> Model:
    """Two bits for each cup, has it a row and has it two; the RBM's five hidden units make 'two without one' rare."""
    model: Any = Model(100, (10,), 243, top_hidden=5)
    W, b, prior, B = torch.zeros(10, 10, 10), torch.zeros(10, 10), model.prior, top_gain
    for c in range(5):
        W[2 * c, 2 * c + 1, 5:], W[2 * c + 1, 2 * c, 5:] = 2 * gain, 2 * gain  # code, row, columns
    b[:, 5:] = -gain
    W[:, :, :5] = -gain
    b[:, :5] = gain * (torch.arange(10.0)[:, None] + 0.5)
    with torch.no_grad():
        model.decoders[0].W.copy_(W.reshape(10, 100))
        model.decoders[0].b.copy_(b.reshape(100))
        prior.W.zero_()
        prior.b.copy_(torch.tensor([0.0, -B]).repeat(5))
        prior.c.fill_(-3 * B)
        for c in range(5):
            prior.W[2 * c, c], prior.W[2 * c + 1, c] = 2 * B, 2 * B
    return model


@pytest.mark.equation("lw.1", "lw.17")
@pytest.mark.parametrize(("gain", "top_gain", "expected"), [(20.0, 10.0, -5.49359), (40.0, 20.0, -5.4930615)])
def test_a_perfect_model_of_tea(gain: float, top_gain: float, expected: float) -> None:
    model = perfect(gain, top_gain)
    images = torch.tensor(tea(), dtype=torch.float64)
    found = float(model.loglik(images).mean())
    assert found == pytest.approx(expected, abs=1e-7 if gain == 40 else 1e-5)
    assert -math.log(243) - found == pytest.approx({20.0: 5.3e-4, 40.0: 2.4e-8}[gain], rel=0.05)
    assert layerwise.evidence(model, rows_of(images)) == pytest.approx(243 * found, abs=1e-8)


def test_the_top_of_the_perfect_model_weighs_the_codes_of_a_cup_as_designed() -> None:
    B = 3.0
    found = table(perfect(20, B).prior()).detach().exp().reshape(4, 4**4).sum(1)  # the first cup
    weights = [1 + math.exp(-3 * B), math.exp(-B) + math.exp(-2 * B), 1 + math.exp(-B), 1 + math.exp(-B)]
    torch.testing.assert_close(found, torch.tensor(weights) / sum(weights))


@pytest.mark.equation("lw.4", "lw.12")
def test_a_perfect_decoder_promises_a_third_of_tea_its_ceiling() -> None:
    train = load("tea").train["x"].double()
    model = perfect(40, 20)
    assert layerwise.promise(model, train) == pytest.approx(-math.log(81), abs=1e-6)
    books = layerwise.account(model, Posterior(model, {"x": train}), train)
    assert books.ceiling == pytest.approx(-math.log(81), abs=1e-12)
    assert books.criterion == pytest.approx(-math.log(81), abs=1e-6)
    assert books.deep == pytest.approx(-math.log(243), abs=1e-6)
    assert books.kl == pytest.approx(math.log(3), abs=1e-6)  # what the top of all 243 images wastes


def test_uniform_tea_and_remarks() -> None:
    model: Any = Model(100, (), 243, top="bits", entropy=math.log(243))
    images = torch.tensor(tea(), dtype=torch.float64)
    assert float(model.loglik(images).mean()) == pytest.approx(-69.31, abs=0.005)
    with torch.no_grad():
        p = images.mean(0)
        model.prior.logits.copy_(p.logit().clamp(-40, 40))
    assert float(model.loglik(images).mean()) == pytest.approx(-48.04, abs=0.005)
    assert layerwise.remarks(model)[0] == "Layers 100, top bits."
    assert "no training log-likelihood per datum exceeds -5.493" in layerwise.remarks(model)[1]
    assert layerwise.remarks(Model(4, (3, 2), pixels="gaussian")) == [
        "Layers 4 - 3 - 2, top rbm.",
        "Gaussian pixels: log-likelihoods are log densities, in the units of x, and have no ceiling.",
    ]


@pytest.mark.parametrize(("kind", "ceiling"), [("bits", True), ("grey", False), ("gaussian", False)])
def test_only_bits_have_a_ceiling(kind: str, ceiling: bool) -> None:
    x = {"bits": data(12, 4), "grey": 0.5 * data(12, 4), "gaussian": 9 * data(12, 4)}[kind]
    model: Any = Model.for_data(rows_of(x), hidden=[3])
    told = " ".join(layerwise.remarks(model))
    assert model.binary is ceiling and ("exceeds" in told) is ceiling
    assert (layerwise.account(model, Posterior(model, {"x": x}), x).ceiling is not None) is ceiling


def test_a_density_can_stand_above_the_data_entropy() -> None:
    """One constant pixel and a narrow normal: the "ceiling" would be false."""
    model: Any = Model(1, (1,), 3, top="bits", pixels="gaussian", entropy=math.log(3))
    with torch.no_grad():
        model.decoders[0].W.zero_(), model.decoders[0].log_sd.fill_(-9.0)
    assert float(model.loglik(torch.zeros(3, 1)).mean()) > 0 > -model.entropy


def test_the_remark_tells_the_very_estimate_of_log_z_that_scores_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rbm, "BITS", 2)
    model: Any = Model(6, (), 12, top_hidden=5, scale=1.0)
    x = data(12, 6)
    with torch.no_grad():
        value = model.prior().log_prob(x)
    used = float((-model.prior.free_energy(x) - value).mean().detach())
    assert used == pytest.approx(model.annealed.log_z, abs=1e-12)
    assert f"importance sampling: {used:.2f} ± {model.annealed.error:.2f} nats, too low" in layerwise.remarks(model)[-1]
    with torch.no_grad():
        model.prior.b.add_(1.0)
    assert model.annealed.log_z != used, "made anew for other parameters"
    assert Model(6, (), 12, top="bits").annealed is None


def test_data_have_no_labels() -> None:
    parts = layerwise.data("tea", split=2)
    assert [set(part.tensors) for part in parts if part is not None] == [{"x"}] * 3
    assert torch.equal(parts.train["x"], load("tea", split=2).train["x"])


# The model of a table.


def test_the_model_of_a_table() -> None:
    x = torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    model = Model.for_data(rows_of(x), hidden=(4, 3), top_hidden=2, scale=0.0)
    assert (model.in_features, model.hidden, model.N, model.pixels) == (2, [4, 3], 3, "bernoulli")
    assert model.entropy == pytest.approx(-(2 * math.log(2 / 3) + math.log(1 / 3)) / 3)
    assert model.prior.hidden == 2 and not model.decoders[0].W.any()
    assert Model.for_data(rows_of(3 * x)).pixels == "gaussian"
    grey = rows_of(x / 2)
    assert Model.for_data(grey).pixels == "bernoulli" and Model.for_data(grey, pixels="gaussian").pixels == "gaussian"
    aggregated: Any = Model.for_data(rows_of(x), top="aggregated")
    assert torch.equal(aggregated.prior.data, x)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Model(D, pixels="ordinal"), "pixels are bernoulli or gaussian, not 'ordinal'"),
        (lambda: Model(D, top="crbm"), "top is rbm, tabular, bits or aggregated, not 'crbm'"),
        (lambda: Model(D, (), pixels="gaussian"), r"real pixels need a layer: hidden=\[10\]"),
        (
            lambda: Model(D, (3, 2), N, top="aggregated"),
            "'aggregated' is for one hidden layer over a data set",
        ),
        (lambda: Model(D, (), N, top="aggregated"), "'aggregated' is for one hidden layer"),
        (lambda: Model(D, (3,), top="aggregated"), "of known size N"),
        (
            lambda: Model.for_data(rows_of(2 * torch.ones(3, 2)), pixels="bernoulli"),
            r"x of t lies outside \[0, 1\]: choose pixels=gaussian",
        ),
        (lambda: Model.for_data(rows_of(torch.ones(3, 2) / 2), hidden=()), "x of t is not binary"),
        (lambda: TiedRBM(Model(D, pixels="gaussian"), {}), "it needs a hidden layer and bernoulli pixels"),
        (lambda: TiedRBM(Model(D, ()), {}), "it needs a hidden layer and bernoulli pixels"),
        (lambda: Posterior(Model(D, (3, 2)), {}), "Posterior enumerates the codes of one hidden layer"),
    ],
)
def test_an_impossible_model_is_refused(build: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build()
