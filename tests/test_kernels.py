"""Every step of a chain as an exact matrix, by taking all outcomes of its noise; then with the noise it really has.

A simulation counts pairs (state, next state) of chains that start in the exact law. Its bias is the root mean square of
P'/P - 1 over pairs; `seen` is the smallest that a p-value below 1e-4 would have shown with probability .99.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from enumerated import frequencies, law, machine, matrix, p_value, visible_bias
from torch import Tensor

from guides.codes import index, states
from zoo.lab import kernels, markov
from zoo.lab.chains import walk
from zoo.lab.kernels import Tempering
from zoo.lab.noise import Noise
from zoo.lab.rbm import RBM

CHAINS, REPEATS, LEVEL = 2000, 50, 1e-4
DRAWS = CHAINS * REPEATS
BASE = torch.tensor([0.7, -1.0], dtype=torch.float64)


def log_p_of(table: Tensor) -> Callable[[Tensor], Tensor]:
    """log P(x) by a table, (M, n) -> (M)."""
    return lambda x: table[index(x)]


def random_table(n: int) -> Tensor:
    return 1.5 * torch.randn(2**n)


def tempered_law(found: RBM, beta: float, base: Tensor) -> Tensor:
    """P_beta(v) by a machine whose parameters are written down, (2^visible)."""
    warm = RBM(found.visible, found.hidden)
    with torch.no_grad():
        warm.W.copy_(beta * found.W)
        warm.b.copy_((1 - beta) * base + beta * found.b)
        warm.c.copy_(beta * found.c)
    return law(warm)


def ladder(found: RBM, betas: list[float], base: Tensor) -> Tensor:
    """The law of all replicas of parallel tempering, (2^(K visible))."""
    joint = torch.ones(1)
    for beta in betas:
        joint = (joint[:, None] * tempered_law(found, beta, base)).flatten()
    return joint


def replicas(K: int, n: int) -> Tensor:
    return states(K * n).unflatten(1, (K, n))


class Twin:
    """4 bits z, 3 bits x, and a q(z | x) that is not the posterior; all by tables."""

    def __init__(self) -> None:
        self.prior, self.decoder = 2 * torch.randn(4), torch.nn.Linear(4, 3).requires_grad_(False)
        self.encoder = torch.nn.Linear(3, 4).requires_grad_(False)
        for layer in (self.decoder, self.encoder):
            layer.weight.normal_(std=1.5)
        z, x = states(4), states(3)
        self.p_z = self._log(self.prior, z).exp()
        self.decode_table = torch.stack([self._log(self.decoder(row), x) for row in z]).exp()  # (z, x)
        self.q_table = torch.stack([self._log(self.encoder(row), z) for row in x]).exp()  # (x, z)
        self.joint = self.p_z[:, None] * self.decode_table

    @staticmethod
    def _log(logits: Tensor, bits: Tensor) -> Tensor:
        return torch.distributions.Bernoulli(logits=logits).log_prob(bits).sum(-1)

    def decode(self, z: Tensor, noise: Any) -> Tensor:
        return noise.bernoulli(self.decoder(z).sigmoid())

    def propose(self, x: Tensor, noise: Any) -> Tensor:
        return noise.bernoulli(self.encoder(x).sigmoid())

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        return self._log(self.prior, z) + self._log(self.decoder(z), x)

    def log_q(self, z: Tensor, x: Tensor) -> Tensor:
        return self._log(self.encoder(x), z)

    def corrected(self, **other: Any) -> kernels.Step:
        parts = {"log_joint": self.log_joint, "log_q": self.log_q, **other}
        return kernels.corrected(self.decode, self.propose, **parts)


# Exact matrices.


@pytest.mark.equation("mix.7", "mix.9")
@pytest.mark.parametrize("size", [(4, 3), (3, 4), (1, 1)], ids=str)
def test_block_gibbs_is_the_product_of_its_halves(size: tuple[int, int]) -> None:
    found = machine(*size, spread=1.5)
    K = matrix(kernels.block_gibbs(found), states(found.visible))
    A, B = markov.halves(found)
    torch.testing.assert_close(K, A @ B, rtol=0, atol=1e-14)
    assert markov.stationarity_error(K, law(found)) < 1e-15


@pytest.mark.equation("mix.10")
@pytest.mark.parametrize("n", [1, 3, 4])
def test_a_sweep_of_single_sites_is_the_enumerated_sweep(n: int) -> None:
    log_p = random_table(n)
    K = matrix(kernels.single_site(log_p_of(log_p)), states(n))
    torch.testing.assert_close(K, markov.sweep(log_p), rtol=0, atol=1e-14)
    assert markov.stationarity_error(K, log_p.softmax(0)) < 1e-15


@pytest.mark.parametrize("n", [1, 2, 3])
def test_flips_are_as_many_metropolis_steps_as_units(n: int) -> None:
    log_p, index_of = random_table(n), torch.arange(2**n)
    propose = torch.zeros(2**n, 2**n)
    for site in range(n):
        propose[index_of, index_of ^ (1 << site)] = 1 / n
    once = markov.metropolised(propose, log_p)
    K = matrix(kernels.flips(log_p_of(log_p)), states(n))
    torch.testing.assert_close(K, once.matrix_power(n), rtol=0, atol=1e-14)
    assert markov.balance_error(K, log_p.softmax(0)) < 1e-15


def test_independent_draws_forget_everything() -> None:
    log_p = random_table(4)
    K = matrix(kernels.independent(log_p, 4), states(4))
    torch.testing.assert_close(K, log_p.softmax(0).expand(16, -1), rtol=0, atol=1e-15)


@pytest.mark.parametrize("base", [None, BASE])
@pytest.mark.parametrize("betas", [[1.0], [0.0, 1.0], [0.3, 0.6, 1.0]], ids=str)
def test_parallel_tempering_leaves_the_law_of_all_its_replicas(betas: list[float], base: Tensor | None) -> None:
    """A sweep in every replica, then even pairs exchange, then odd ones: by matrices too."""
    found, n = machine(2, 1, spread=1.5), len(betas)
    b0 = found.b.detach() if base is None else base
    K, pi = matrix(Tempering(found, betas, base=base), replicas(n, 2)), ladder(found, betas, b0)
    assert markov.stationarity_error(K, pi) < 1e-15
    sweeps, codes = torch.ones(1, 1), replicas(n, 2)
    for beta in betas:
        warm = machine(2, 1)
        with torch.no_grad():
            warm.W.copy_(beta * found.W)
            warm.b.copy_((1 - beta) * b0 + beta * found.b)
            warm.c.copy_(beta * found.c)
        A, B = markov.halves(warm)
        sweeps = torch.kron(sweeps, A @ B)
    expected = sweeps
    for first in (0, 1):
        for low in range(first, n - 1, 2):
            exchanged = codes.clone()
            exchanged[:, [low, low + 1]] = codes[:, [low + 1, low]]
            propose = torch.zeros(4**n, 4**n)
            propose[torch.arange(4**n), index(exchanged.flatten(1))] = 1
            expected = expected @ markov.metropolised(propose, pi.log())
    torch.testing.assert_close(K, expected, rtol=0, atol=1e-14)


def test_the_cold_replica_of_parallel_tempering_is_the_machine() -> None:
    found, betas = machine(2, 1, spread=1.5), [0.2, 1.0]
    pi = ladder(found, betas, found.b.detach()).unflatten(0, (4, 4))
    torch.testing.assert_close(pi.sum(0), law(found), rtol=0, atol=1e-15)
    start = Tempering(found, betas).start(states(2))
    assert start.shape == (4, 2, 2) and torch.equal(start[:, 0], states(2))
    assert torch.equal(Tempering.cold(replicas(2, 2)), states(4)[:, 2:])


@pytest.mark.parametrize("base", [None, BASE])
@pytest.mark.parametrize("betas", [[0.5], [0.0], [0.6, 0.2]], ids=str)
def test_tempered_transitions_are_reversible(betas: list[float], base: Tensor | None) -> None:
    found = machine(2, 1, spread=2.0)
    K = matrix(kernels.tempered(found, betas, base=base), states(2))
    torch.testing.assert_close(K.sum(1), torch.ones(4), rtol=0, atol=1e-13)
    assert markov.stationarity_error(K, law(found)) < 1e-15 and markov.balance_error(K, law(found)) < 1e-15
    assert (K > 1e-3).all()


def test_the_base_takes_the_precision_of_the_machine() -> None:
    found, base = machine(2, 1), BASE.float()
    for make, among in (
        (lambda b: Tempering(found, [0.3, 1.0], base=b), replicas(2, 2)),
        (lambda b: kernels.tempered(found, [0.3], base=b), states(2)),
    ):
        torch.testing.assert_close(matrix(make(base), among), matrix(make(base.double()), among), rtol=0, atol=0)


def test_one_tempered_transition_by_hand() -> None:
    """Up and down one rung: sum over the state on top, with the weights of Neal (1996)."""
    found, beta = machine(2, 1, spread=2.0), 0.4
    hot, cold = tempered_law(found, beta, found.b.detach()), law(found)
    warm = machine(2, 1)
    with torch.no_grad():
        for mine, theirs in zip((warm.W, warm.c), (found.W, found.c), strict=True):
            mine.copy_(beta * theirs)
        warm.b.copy_(found.b)
    A, B = markov.halves(warm)
    T = A @ B  # of the machine at beta, up and down
    expected = torch.zeros(4, 4)
    for s in range(4):
        for top in range(4):
            for t in range(4):
                accept = min(1.0, float(hot[s] / cold[s] * cold[t] / hot[t]))
                expected[s, t] += T[s, top] * T[top, t] * accept
        expected[s, s] += 1 - expected[s].sum()
    K = matrix(kernels.tempered(found, [beta]), states(2))
    torch.testing.assert_close(K, expected, rtol=0, atol=1e-14)


@pytest.mark.equation("mix.11")
def test_the_corrected_step_leaves_the_prior_and_the_uncorrected_does_not() -> None:
    twin = Twin()
    K = matrix(twin.corrected(), states(4))
    by_hand = [markov.metropolised(twin.q_table[x].expand(16, -1), twin.joint[:, x].log()) for x in range(8)]
    expected = torch.einsum("zx,xzy->zy", twin.decode_table, torch.stack(by_hand))
    torch.testing.assert_close(K, expected, rtol=0, atol=1e-14)
    assert markov.stationarity_error(K, twin.p_z) < 1e-15
    free = matrix(kernels.uncorrected(twin.decode, twin.propose), states(4))
    torch.testing.assert_close(free, twin.decode_table @ twin.q_table, rtol=0, atol=1e-14)
    assert markov.stationarity_error(free, twin.p_z) > 0.01


@pytest.mark.equation("mix.11")
def test_with_the_true_posterior_nothing_needs_a_correction() -> None:
    twin = Twin()
    log_posterior = (twin.joint / twin.joint.sum(0)).log().mT  # (x, z)

    def propose(x: Tensor, noise: Any) -> Tensor:
        return states(4)[noise.category(log_posterior[index(x)])]

    def log_q(z: Tensor, x: Tensor) -> Tensor:
        return log_posterior[index(x), index(z)]

    free = matrix(kernels.uncorrected(twin.decode, propose), states(4))
    assert markov.stationarity_error(free, twin.p_z) < 1e-15
    step = kernels.corrected(twin.decode, propose, twin.log_joint, log_q)
    torch.testing.assert_close(matrix(step, states(4)), free, rtol=0, atol=1e-13)


def test_codes_of_several_dimensions_are_accepted_or_kept_as_a_whole() -> None:
    def decode(z: Tensor, noise: Noise) -> Tensor:
        return z[:, 0]

    def propose(x: Tensor, noise: Noise) -> Tensor:
        return torch.ones(len(x), 3, 2)

    def half(x: Tensor, z: Tensor) -> Tensor:
        return -torch.log(torch.tensor(2.0)) * z[:, 0, 0]

    def even(z: Tensor, x: Tensor) -> Tensor:
        return torch.zeros(len(z))

    found = kernels.corrected(decode, propose, half, even)(torch.zeros(1000, 3, 2), Noise(1000)).flatten(1)
    assert (found == found[:, :1]).all() and 0.4 < float(found.mean()) < 0.6


# Negative controls of the exact matrices: a wrong sign of the acceptance.


@pytest.fixture
def wrong_sign(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    right = kernels.tempered_energy
    monkeypatch.setattr(kernels, "tempered_energy", lambda *args: -right(*args))
    yield


def test_a_wrong_sign_is_seen_in_the_matrices(wrong_sign: None) -> None:
    found, betas = machine(2, 1, spread=1.5), [0.2, 1.0]
    K, pi = matrix(Tempering(found, betas), replicas(2, 2)), ladder(found, betas, found.b.detach())
    assert markov.stationarity_error(K, pi) > 1e-3
    assert markov.stationarity_error(matrix(kernels.tempered(found, [0.4]), states(2)), law(found)) > 1e-3
    log_p = random_table(3)
    K = matrix(kernels.flips(lambda x: -log_p_of(log_p)(x)), states(3))
    assert markov.stationarity_error(K, log_p.softmax(0)) > 1e-2
    twin = Twin()
    K = matrix(twin.corrected(log_q=lambda z, x: -twin.log_q(z, x)), states(4))
    assert markov.stationarity_error(K, twin.p_z) > 1e-3


# With the noise of chains.


class Case:
    """A step, its states and their law, and a broken twin of the step."""

    def __init__(self, step: kernels.Step, among: Tensor, pi: Tensor, broken: kernels.Step) -> None:
        self.step, self.among, self.pi, self.broken = step, among, pi, broken


def case(name: str) -> Case:
    found, log_p, twin = machine(3, 2, spread=1.5), random_table(3), Twin()
    pi, wrong = log_p.softmax(0), lambda x: -log_p_of(log_p)(x)
    other = machine(3, 2, spread=1.5)
    with torch.no_grad():
        other.c.neg_()
    small, warm = machine(2, 1, spread=1.5), machine(2, 1, spread=1.2)
    betas, rungs = [0.2, 1.0], [0.7, 0.4]
    b0 = small.b.detach()
    return {
        "block_gibbs": lambda: Case(kernels.block_gibbs(found), states(3), law(found), kernels.block_gibbs(other)),
        "single_site": lambda: Case(
            kernels.single_site(log_p_of(log_p)), states(3), pi, kernels.single_site(log_p_of(0.9 * log_p))
        ),
        "flips": lambda: Case(kernels.flips(log_p_of(log_p)), states(3), pi, kernels.flips(wrong)),
        "independent": lambda: Case(kernels.independent(log_p, 3), states(3), pi, kernels.independent(0.95 * log_p, 3)),
        "Tempering": lambda: Case(
            Tempering(small, betas), replicas(2, 2), ladder(small, betas, b0), Tempering(small, [0.5, 1.0])
        ),
        "tempered": lambda: Case(kernels.tempered(small, rungs), states(2), law(small), kernels.tempered(warm, rungs)),
        "corrected": lambda: Case(
            twin.corrected(), states(4), twin.p_z, twin.corrected(log_q=lambda z, x: -twin.log_q(z, x))
        ),
    }[name]()


CASES = ["block_gibbs", "single_site", "flips", "independent", "Tempering", "tempered", "corrected"]


def pairs(step: kernels.Step, among: Tensor, pi: Tensor, *, seed: int = 0) -> Tensor:
    """Counts of (state, next state) of chains that start in their law, again and again, (S, S)."""
    S, counts = len(among), torch.zeros(len(among) ** 2)
    starts, noise = Noise(CHAINS, seed=seed, stream=7), Noise(CHAINS, seed=seed)
    for _ in range(REPEATS):
        first = starts.category(pi.log())
        counts += frequencies(first * S + index(step(among[first], noise).flatten(1)), S * S)
    return counts.unflatten(0, (S, S))


@pytest.mark.parametrize("name", CASES)
def test_simulated_steps_follow_the_matrix_and_keep_the_law(name: str) -> None:
    """100,000 steps; `seen` is .025 to .042 for pairs of states, .021 to .026 for the next state."""
    torch.manual_seed(3)
    this = case(name)
    S = len(this.among)
    assert visible_bias(S * S, DRAWS) < 0.042 and visible_bias(S, DRAWS) < 0.026
    counts, K = pairs(this.step, this.among, this.pi), matrix(this.step, this.among)
    assert markov.stationarity_error(K, this.pi) < 5e-15
    assert p_value(counts, this.pi[:, None] * K) > LEVEL
    assert p_value(counts.sum(0), this.pi) > LEVEL
    wrong = pairs(this.broken, this.among, this.pi)
    assert p_value(wrong.sum(0), this.pi) < 1e-12, "the negative control"


@pytest.mark.equation("mix.11")
def test_the_uncorrected_chain_drifts_away_and_the_corrected_one_stays() -> None:
    """10,000 chains from the prior, 5 steps: a bias of .083 in the law of z would be seen."""
    twin, chains = Twin(), 10_000
    assert visible_bias(16, chains) < 0.083
    start = states(4)[Noise(chains, stream=7).category(twin.p_z.log())]
    for step, stays in ((twin.corrected(), True), (kernels.uncorrected(twin.decode, twin.propose), False)):
        found = frequencies(index(walk(step, start, draws=1, thin=5, watch={}).state), 16)
        exact = twin.p_z @ matrix(step, states(4)).matrix_power(5)
        assert p_value(found, exact) > LEVEL
        assert p_value(found, twin.p_z) > LEVEL if stays else p_value(found, twin.p_z) < 1e-12


def test_steps_change_neither_their_states_nor_their_machine() -> None:
    torch.manual_seed(1)
    for name in CASES:
        this = case(name)
        before = this.among.clone()
        after = this.step(this.among, Noise(len(this.among)))
        assert torch.equal(this.among, before) and after.shape == before.shape and not after.requires_grad
        assert after.dtype == before.dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_steps_keep_the_precision_of_their_states(dtype: torch.dtype) -> None:
    found = machine(3, 2).to(dtype)
    v, noise = states(3).to(dtype), Noise(8, dtype=dtype)
    for step in (kernels.block_gibbs(found), kernels.tempered(found, [0.5]), kernels.single_site(found.log_prob)):
        with torch.no_grad():
            assert step(v, noise).dtype == dtype
    tempering = Tempering(found, [0.5, 1.0], base=torch.zeros(3, dtype=torch.float64))
    assert tempering.base.dtype == tempering(tempering.start(v), noise).dtype == dtype
    assert kernels.independent(torch.zeros(8), 3)(v, noise).dtype == dtype


@pytest.mark.parametrize("betas", [[], [0.5], [0.5, 0.2, 1.0], [-0.1, 1.0], [0.5, 0.5, 1.0], [0.5, 1.0, 1.1]])
def test_a_ladder_of_parallel_tempering_rises_to_one(betas: list[float]) -> None:
    with pytest.raises(ValueError, match=r"rise from 0 or more to 1, such as 0, 0\.5, 1"):
        Tempering(machine(), betas)


@pytest.mark.parametrize("betas", [[], [1.0, 0.5], [0.5, 0.7], [0.5, -0.1], [0.5, 0.5]])
def test_a_ladder_of_tempered_transitions_falls_from_below_one(betas: list[float]) -> None:
    with pytest.raises(ValueError, match=r"fall from below 1 to 0 or more, such as \.9"):
        kernels.tempered(machine(), betas)
