"""Laws on binary codes and the families that give them, against enumeration, bit by bit, and simulation."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import Tensor, nn
from torch.distributions import kl_divergence
from worlds import shaken

import guides
from guides.codes import AutoregressiveBits, ConcreteBits, StraightThroughBits, Tabular, index, states, table

n = 3
CODES = torch.tensor(list(product((0.0, 1.0), repeat=n)), dtype=torch.float64)
DRAWS = 40_000


def bernoulli(batch: tuple[int, ...]) -> Any:
    return dist.Bernoulli(logits=torch.randn(*batch, n)).to_event(1)


def tabular(batch: tuple[int, ...]) -> Tabular:
    return Tabular(2 * torch.randn(*batch, 2**n))


def autoregressive(batch: tuple[int, ...]) -> AutoregressiveBits:
    return AutoregressiveBits(torch.randn(*batch, n), 2 * torch.randn(n, n))


def concrete(batch: tuple[int, ...]) -> ConcreteBits:
    return ConcreteBits(torch.randn(*batch, n), 0.3)


def straight_through(batch: tuple[int, ...]) -> StraightThroughBits:
    return StraightThroughBits(torch.randn(*batch, n), 0.3)


def mixture(batch: tuple[int, ...]) -> Any:
    """A law without a table of its own."""
    return dist.MixtureSameFamily(dist.Categorical(logits=torch.randn(*batch, 4)), bernoulli((*batch, 4)))


Make = Callable[[tuple[int, ...]], Any]
LAWS: dict[str, Make] = {
    "Bernoulli": bernoulli,
    "Tabular": tabular,
    "Autoregressive": autoregressive,
    "Concrete": concrete,
    "StraightThrough": straight_through,
    "mixture": mixture,
}
OWN = ("Tabular", "Autoregressive")  # those with an enumerable support of their own
BATCHES = [(), (5,), (2, 3)]


def truth(law: Any) -> Tensor:
    """The table of a law, one code and one element of the batch at a time."""
    rows = [law.log_prob(code.expand(*law.batch_shape, n)) for code in CODES]
    return torch.stack(rows, -1)


def test_codes_are_counted_in_binary() -> None:
    assert torch.equal(states(n), CODES)
    assert states(0).shape == (1, 0) and states(10).shape == (1024, 10)
    assert [int("".join(str(int(bit)) for bit in code), 2) for code in states(6)] == list(range(64))


@pytest.mark.parametrize("bits", [1, 3, 12])
def test_the_number_of_a_code_is_its_row(bits: int) -> None:
    assert torch.equal(index(states(bits)), torch.arange(2**bits))
    some = torch.randint(2**bits, (4, 5))
    assert torch.equal(index(states(bits)[some]), some) and index(states(bits)).dtype == torch.int64


def test_codes_follow_the_dtype_of_a_tensor_and_are_made_once() -> None:
    assert states(4, like=torch.zeros(1, dtype=torch.float32)).dtype == torch.float32
    assert states(4).dtype == torch.float64 and states(4) is states(4)


def test_too_many_bits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"2\^21 codes cannot be enumerated, only up to 2\^20; draw codes instead"):
        states(21)


@pytest.mark.equation("lw.3")
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", LAWS)
def test_a_table_is_the_log_prob_of_every_code_and_sums_to_one(name: str, batch: tuple[int, ...]) -> None:
    law = LAWS[name](batch)
    found = table(law)
    assert found.shape == (*batch, 2**n)
    torch.testing.assert_close(found, truth(law), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.logsumexp(-1), torch.zeros(batch), rtol=0, atol=1e-12)


@pytest.mark.equation("lw.3")
@pytest.mark.parametrize("name", ["Bernoulli", "Concrete", "StraightThrough"])
def test_the_bits_of_a_factorial_law_are_independent(name: str) -> None:
    law = LAWS[name]((5,))
    logits = law.logits if name != "Bernoulli" else law.base_dist.logits
    one = logits.sigmoid()
    product_of_bits = torch.where(CODES.bool(), one.unsqueeze(-2), 1 - one.unsqueeze(-2)).prod(-1)
    torch.testing.assert_close(table(law).exp(), product_of_bits, rtol=0, atol=1e-14)


def test_autoregressive_bits_are_a_chain_of_conditionals() -> None:
    logits, lower = torch.randn(5, n), torch.randn(n, n)
    expected = torch.zeros(5, 2**n)
    for m, (i, code) in product(range(5), enumerate(CODES)):
        for j in range(n):
            logit = logits[m, j] + sum(lower[j, k] * code[k] for k in range(j))
            expected[m, i] += dist.Bernoulli(logits=logit).log_prob(code[j])
    torch.testing.assert_close(table(AutoregressiveBits(logits, lower)), expected, rtol=0, atol=1e-13)


def test_autoregressive_bits_do_not_factorise() -> None:
    lower = torch.zeros(n, n)
    lower[1, 0] = 4.0
    law = AutoregressiveBits(torch.tensor([0.0, -2.0, 0.0]), lower)
    p = table(law).exp()
    both, first, second = p[6:].sum(), p[4:].sum(), p[[2, 3, 6, 7]].sum()
    assert float(both - first * second) > 0.1


@pytest.mark.parametrize("name", [*OWN, "mixture"])
def test_a_law_that_is_given_more_values_than_it_has_elements_broadcasts(name: str) -> None:
    law = LAWS[name]((5,))
    values = CODES[torch.randint(2**n, (7, 5))]
    found = law.log_prob(values)
    assert found.shape == (7, 5)
    torch.testing.assert_close(found[3], law.log_prob(values[3]), rtol=0, atol=1e-13)
    assert LAWS[name](()).log_prob(values).shape == (7, 5)


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("name", [name for name in LAWS if name != "Concrete"])
def test_draws_follow_the_table(name: str, batch: tuple[int, ...]) -> None:
    """Counts of 40,000 draws: the standard error of a frequency is at most .0025; a bias of .01 would be seen."""
    law = LAWS[name](batch)
    h = law.sample(torch.Size([DRAWS]))
    assert h.shape == (DRAWS, *batch, n) and ((h == 0) | (h == 1)).all()
    frequencies = (index(h).unsqueeze(-1) == torch.arange(2**n)).double().mean(0)
    p = table(law).exp()
    assert ((frequencies - p).abs() < 4 * (p * (1 - p) / DRAWS).sqrt() + 1e-9).all()


def test_rounded_relaxed_bits_follow_the_table() -> None:
    """As above: h > 1/2 exactly where logits plus logistic noise are positive."""
    law = concrete((2,))
    frequencies = (index(law.sample(torch.Size([DRAWS])).round()).unsqueeze(-1) == torch.arange(2**n)).double().mean(0)
    p = table(law).exp()
    assert ((frequencies - p).abs() < 4 * (p * (1 - p) / DRAWS).sqrt()).all()


@pytest.mark.parametrize("name", [name for name in LAWS if name != "mixture"])
def test_the_mean_is_that_of_the_table(name: str) -> None:
    law = LAWS[name]((2, 3))
    torch.testing.assert_close(law.mean, truth(law).exp() @ CODES, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", [name for name in LAWS if name != "mixture"])
def test_an_expanded_law_is_the_same_law(name: str) -> None:
    law = LAWS[name]((3,))
    wide = law.expand([4, 3])
    assert type(wide) is type(law) and wide.batch_shape == (4, 3) and wide.event_shape == (n,)
    torch.testing.assert_close(table(wide), table(law).expand(4, 3, -1), rtol=0, atol=0)
    assert wide.sample().shape == (4, 3, n)
    assert LAWS[name](()).expand([6]).sample(torch.Size([2])).shape == (2, 6, n)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", OWN)
def test_the_support_is_enumerated_along_a_new_first_dimension(name: str, batch: tuple[int, ...]) -> None:
    law = LAWS[name](batch)
    assert law.has_enumerate_support
    assert law.enumerate_support().shape == (2**n, *batch, n)
    narrow = law.enumerate_support(expand=False)
    assert narrow.shape == (2**n, *[1] * len(batch), n)
    assert torch.equal(narrow.reshape(2**n, n), CODES)
    torch.testing.assert_close(law.log_prob(narrow).movedim(0, -1), table(law), rtol=0, atol=1e-13)
    torch.testing.assert_close(law.log_prob(law.enumerate_support()).movedim(0, -1), table(law), rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", LAWS)
def test_codes_have_the_precision_of_their_law_whatever_the_default(name: str) -> None:
    """Laws in double precision, met while the default is single."""
    law = LAWS[name]((3,))
    expected = table(law)
    torch.set_default_dtype(torch.float32)
    assert table(law).dtype == torch.float64
    torch.testing.assert_close(table(law), expected, rtol=0, atol=1e-13)
    if name in OWN:
        assert law.enumerate_support().dtype == torch.float64


def test_a_table_of_logits_is_normalised_and_may_have_empty_codes() -> None:
    logits = torch.tensor([0.0, 1.0, -math.inf, 2.0])
    law = Tabular(logits)
    torch.testing.assert_close(law.logits.exp(), logits.exp() / logits.exp().sum())
    assert law.log_prob(torch.tensor([1.0, 0.0])) == -math.inf
    assert not (index(law.sample(torch.Size([1000]))) == 2).any()


def test_a_table_has_a_power_of_two_of_entries() -> None:
    with pytest.raises(ValueError, match=r"a table over codes has 2\^n entries, not 6"):
        Tabular(torch.zeros(3, 6))


def test_a_table_refuses_relaxed_codes() -> None:
    with pytest.raises(ValueError, match="no derivative in the code; relaxed codes need another law"):
        tabular(()).log_prob(torch.rand(n, requires_grad=True))


@pytest.mark.parametrize("name", OWN)
def test_a_value_that_is_no_code_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"outside the support|within the support"):
        LAWS[name](()).log_prob(torch.full((n,), 0.5))


@pytest.mark.parametrize("name", ["Concrete", "StraightThrough"])
def test_relaxed_bits_have_the_gradient_of_the_relaxation(name: str) -> None:
    """The same noise, the same gradient: sigma((l + noise) / t)' = h (1 - h) / t, at the value before rounding."""
    logits = torch.randn(4, n, requires_grad=True)
    law = {"Concrete": ConcreteBits, "StraightThrough": StraightThroughBits}[name](logits, 0.4)
    pyro.set_rng_seed(3)
    h = law.rsample()
    pyro.set_rng_seed(3)
    soft = ConcreteBits(logits.detach(), 0.4).rsample()
    torch.testing.assert_close(h, soft if name == "Concrete" else soft.round(), rtol=0, atol=1e-12)
    (slope,) = torch.autograd.grad(h.sum(), logits)
    torch.testing.assert_close(slope, soft * (1 - soft) / 0.4, rtol=0, atol=1e-10)


def test_relaxed_bits_lie_between_zero_and_one_and_harden_as_the_temperature_falls() -> None:
    logits = torch.zeros(2000, n)
    spread = [float((ConcreteBits(logits, t).sample() - 0.5).abs().mean()) for t in (5.0, 0.5, 0.01)]
    assert spread[0] < 0.1 < 0.3 < spread[1] < 0.48 < spread[2] <= 0.5


def divergence(p: Any, q: Any) -> Tensor:
    return kl_divergence(Tabular(table(p)), Tabular(table(q)))


@pytest.mark.parametrize("names", list(product(LAWS, repeat=2)), ids="-".join)
def test_kl_is_the_sum_over_all_codes(names: tuple[str, str]) -> None:
    p, q = (LAWS[name]((4,)) for name in names)
    expected = (truth(p).exp() * (truth(p) - truth(q))).sum(-1)
    torch.testing.assert_close(divergence(p, q), expected, rtol=0, atol=1e-12)


def test_kl_from_a_law_with_empty_codes_is_finite() -> None:
    p, q = Tabular(torch.tensor([0.0, -math.inf, 0.0, -math.inf])), Tabular(torch.zeros(4))
    torch.testing.assert_close(divergence(p, q), torch.tensor(math.log(2)))
    assert divergence(q, p) == math.inf


# Families.

N, D = 7, 5
FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "Vanilla": guides.Vanilla,
    "Rich": guides.Rich,
    "Autoregressive": guides.Autoregressive,
    "Concrete": guides.Concrete,
    "StraightThrough": guides.StraightThrough,
    "PerDatum": partial(guides.PerDatum, N=N),
}


class Bits(nn.Module):
    """h ~ a law of the visible table, x ~ N(h A, 1): a model with one site of bits."""

    def __init__(self) -> None:
        super().__init__()
        self.A, self.logits = torch.randn(n, D), torch.randn(2**n)

    def forward(self, x: Tensor, **ignored: Any) -> None:
        with guides.data_plate(len(x), N):
            h = pyro.sample("h1", Tabular(self.logits))
            pyro.sample("x", dist.Normal(h @ self.A, 1.0).to_event(1), obs=x)


def batch() -> dict[str, Tensor]:
    return {"x": torch.randn(N, D), "index": torch.arange(N)}


def composed(name: str, model: nn.Module | None = None, data: dict[str, Tensor] | None = None) -> guides.Guide:
    given = {"h1": ("index",)} if name == "PerDatum" else None
    return guides.Guide(model or Bits(), data or batch(), latents=FAMILIES[name], given=given)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_guides_a_site_of_bits(name: str) -> None:
    data = batch()
    guide = composed(name)
    law = poutine.trace(guide).get_trace(**data).nodes["h1"]["fn"]
    assert (law.batch_shape, law.event_shape) == ((N,), (n,))
    half = {key: value[:3] for key, value in data.items()}
    node = poutine.trace(guide).get_trace(**half).nodes["h1"]
    assert node["value"].shape == (3, n) and float(node["scale"]) == pytest.approx(N / 3)
    torch.testing.assert_close(table(node["fn"]), table(law)[:3], rtol=0, atol=1e-13)


@pytest.mark.equation("lw.3")
@pytest.mark.parametrize("name", ["Rich", "Vanilla", "Concrete", "StraightThrough"])
def test_the_encoder_s_logits_are_those_of_its_net(name: str) -> None:
    data = batch()
    q = shaken(composed(name).q["h1"])
    net, a = list(q.net.parameters()), data["x"]
    for W, b in zip(net[::2], net[1::2], strict=True):
        a = (a if W is net[0] else a.sigmoid()) @ W.mT + b
    torch.testing.assert_close(table(q(data["x"])), table(dist.Bernoulli(logits=a).to_event(1)), rtol=0, atol=1e-12)


def test_an_autoregressive_encoder_that_sees_no_bits_is_a_rich_one() -> None:
    data = batch()
    q = composed("Autoregressive").q["h1"]
    rich = composed("Rich").q["h1"]
    rich.load_state_dict({key: value for key, value in q.state_dict().items() if key != "lower"})
    torch.testing.assert_close(table(q(data["x"])), table(rich(data["x"])), rtol=0, atol=1e-13)
    shaken(q)
    rich.load_state_dict({key: value for key, value in q.state_dict().items() if key != "lower"})
    ours, theirs = q(data["x"]), rich(data["x"])
    by_hand = AutoregressiveBits(theirs.base_dist.logits, q.lower)
    torch.testing.assert_close(table(ours), table(by_hand), rtol=0, atol=1e-13)
    assert float((table(ours) - table(theirs)).detach().abs().max()) > 0.5


def test_per_datum_keeps_one_table_for_each_row() -> None:
    q = composed("PerDatum").q["h1"]
    rows = torch.tensor([[4.0], [0.0], [4.0]])
    torch.testing.assert_close(table(q(rows)), q.logits[[4, 0, 4]].log_softmax(-1), rtol=0, atol=1e-13)
    assert q.logits.shape == (N, 2**n)


@pytest.mark.parametrize("name", ["Rich", "Autoregressive", "PerDatum"])
def test_an_elbo_of_draws_has_the_enumerated_elbo_as_its_mean(name: str) -> None:
    """4,000 draws; the standard error is some .3 % of the spread of one: a bias of 7 % of it would be seen."""
    data, model = batch(), Bits()
    guide = composed(name, model, data)
    log_q = table(guide.q["h1"](guide.context("h1", data, {}))).detach()
    log_p = model.logits.log_softmax(0) + dist.Normal(CODES @ model.A, 1.0).to_event(1).log_prob(data["x"][:, None])
    expected = -(log_q.exp() * (log_p - log_q)).sum()
    loss = Trace_ELBO(num_particles=4000, vectorize_particles=True, max_plate_nesting=1)
    with torch.no_grad():
        spread = torch.tensor([Trace_ELBO().loss(model, guide, **data) for _ in range(100)]).std()
        found = loss.loss(model, guide, **data)
    assert abs(found - float(expected)) < 4 * float(spread) / math.sqrt(4000)


@pytest.mark.parametrize("name", ["Autoregressive", "PerDatum"])
def test_a_guide_may_be_enumerated(name: str) -> None:
    data, model = batch(), Bits()
    guide = composed(name, model, data)
    shaken(guide)
    log_q = table(guide.q["h1"](guide.context("h1", data, {})))
    log_p = model.logits.log_softmax(0) + dist.Normal(CODES @ model.A, 1.0).to_event(1).log_prob(data["x"][:, None])
    expected = -(log_q.exp() * (log_p - log_q)).sum()
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, config_enumerate(guide), **data)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    parameters = list(guide.parameters())
    ours, theirs = (torch.autograd.grad(value, parameters, retain_graph=True) for value in (loss, expected))
    for one, two in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-11)


def global_bits(x: Tensor, **ignored: Any) -> None:
    pyro.sample("h1", Tabular(torch.zeros(2**n)))


def local_reals(x: Tensor, **ignored: Any) -> None:
    with guides.data_plate(len(x)):
        pyro.sample("h1", dist.Normal(torch.zeros(n), 1.0).to_event(1))


def local_bit(x: Tensor, **ignored: Any) -> None:
    with guides.data_plate(len(x)):
        pyro.sample("h1", dist.Bernoulli(0.5))


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "PerDatum"])
@pytest.mark.parametrize(
    ("model", "what"), [(local_reals, r"Normal|Independent"), (local_bit, r"Bernoulli of shape \(\)")]
)
def test_a_family_of_bits_refuses_another_site(name: str, model: Any, what: str) -> None:
    with pytest.raises(guides.GuideError, match=rf"'h1': {name} is for binary codes \(n,\) .* not for ({what})"):
        guides.Guide(model, batch(), latents=FAMILIES[name])


def test_a_family_of_bits_refuses_a_global_site() -> None:
    prior = Tabular(torch.zeros(2**n))
    with pytest.raises(ValueError, match=r"Rich is for binary codes \(n,\) in the plate 'data', not for a global site"):
        guides.Rich(prior, None)
    with pytest.raises(ValueError, match=r"PerDatum is for binary codes in the plate 'data', given the row numbers"):
        guides.PerDatum(prior, None, N=N)


def test_per_datum_refuses_the_data_in_place_of_their_numbers() -> None:
    with pytest.raises(guides.GuideError, match=r"given the row numbers: \('index',\)"):
        guides.Guide(Bits(), batch(), latents=FAMILIES["PerDatum"])
    with pytest.raises(guides.GuideError, match="PerDatum is for binary codes"):
        guides.Guide(local_reals, batch(), latents=FAMILIES["PerDatum"], given={"h1": ("index",)})


def test_per_datum_without_the_numbers_says_so() -> None:
    data = batch()
    guide = composed("PerDatum", data=data)
    with pytest.raises(guides.GuideError, match="is given 'index', which is neither in this batch nor a local site"):
        guide(x=data["x"])


@pytest.mark.parametrize("name", ["Vanilla", "Rich", "Autoregressive", "Concrete"])
def test_the_scale_of_the_initial_weights_can_be_chosen(name: str) -> None:
    """4,000 weights and more: their standard deviation is known to 1.2 %."""
    q = FAMILIES[name](tabular((1,)), torch.zeros(1, 4000), scale=0.5)
    first = q.net[0]
    assert float(first.weight.detach().std()) == pytest.approx(0.5, rel=0.05) and not first.bias.any()


def test_widths_of_a_rich_encoder() -> None:
    q = guides.Rich(tabular((1,)), torch.zeros(1, D), hidden=(20, 30))
    assert [tuple(layer.weight.shape) for layer in q.net if isinstance(layer, nn.Linear)] == [
        (20, 5),
        (30, 20),
        (3, 30),
    ]
    assert [tuple(layer.weight.shape) for layer in guides.Vanilla(tabular((1,)), torch.zeros(1, D)).net] == [(3, 5)]
