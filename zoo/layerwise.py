"""Deep generative models trained layer by layer against the best latent marginal.

Arnold, Ollivier (2012). Layer-wise learning of deep generative models. arXiv 1212.1524. Equation ids are this
project's own; the paper's text was not at hand, so this is the paper as we understand it, every inequality proved anew.

Model (lw.1), binary layers h_k in {0,1}^n_k, k = 1..L, h_0 = x in {0,1}^D (or real, with Gaussian pixels):

    h_L ~ P_J;   h_{k-1} | h_k ~ prod_i Bernoulli(sigma(h_k W_k + b_k)_i);   L_D(theta_I, Q) = E_{x ~ P_D} log sum_h P_I(x|h) Q(h)

    lw.2    T[n,h] = log P_I(x_n|h) = x_n.eta(h) - sum_i softplus(eta_i(h)), eta(h) = h W + b: a table (N, 2^n)
    lw.17   RBM: log P(v) = -F(v) - log Z, F(v) = -b.v - sum_j softplus(c + v'W)_j;  P(h_j = 1|v) = sigma(c + v'W)_j;
            log P(h) = c.h + sum_i softplus(b + W h)_i - log Z;  log Z: one sum over the states of the smaller layer

Guide: any q(h_1|x) q(h_2|h_1) ...; it is no part of the model, so it may be as rich as one likes ("rich inference").

    lw.3    aggregated posterior q_D(h) = sum_n w_n q(h|x_n);  factorial: log q(h|x) = h.l(x) - sum_j softplus(l_j(x))

Bound of a bottom layer that does not know its top: the best latent marginal (BLM), and what lies below it.

    lw.4    U_D(theta_I) = max over all laws Q of L_D(theta_I, Q);  L_D(theta_I, P_J) <= U_D <= -H(P_D)
    lw.5    max_q L_D(theta_I, q_D) = U_D, q over all conditionals
    lw.6    at theta_I, q maximal for lw.5: P_J = q_D gives the global maximum of the deep likelihood; any P_J misses
            it by at most KL(q_D || P_J)
    lw.7    0 <= U_D - L_D(theta_I, P_J) <= KL(Q_hat || P_J), Q_hat the BLM
    lw.8    any q: L_D(theta_I, q_D) - L_D(theta_I, P_J) <= KL(Q_cond || P_J) - KL(Q_cond || q_D), Q_cond by lw.9 from q_D
            (with KL(q_D || P_J) on the right it is false)
    lw.9    data incorporation, an EM step: Q_cond(h) = sum_n w_n r(h|x_n), r(h|x) = P_I(x|h) Q(h) / P_Q(x)
    lw.10   L_D(Q_cond) - L_D(Q) >= KL(Q_cond || Q);  KL(Q_hat || Q) - KL(Q_hat || Q_cond) >= U_D - L_D(Q);  hence from
            the uniform law U_D - L_D(Q_t) <= n log 2 / (t + 1)
    lw.11   G_Q(h) = E_{P_D}[P_I(x|h) / P_Q(x)];  U_D - L_D(Q) <= log max_h G_Q(h), and 0 only at the BLM
    lw.12   the next layer: argmin KL(q_D || P_J) = argmax E_{h ~ q_D} log P_J(h), codes in the place of data
    lw.13   L_D(theta_I, q_D) >= E log sum_h q(h|x) P_I(x|h) - H(P_D) >= E E_q log P_I(x|h) - H(P_D): auto-encoders
    lw.14   E E_q log P_I - I_q(x;h) = ELBO with prior q_D, I_q = E KL(q(.|x) || q_D) <= H(P_D);  with P_J: less
            KL(q_D || P_J).  Auto-encoder bound <= ELBO(q_D) <= L_D(theta_I, q_D) <= U_D
    lw.15   n ~ P_D, h ~ q(.|x_n), x ~ P_I(.|h), with the guide n = m, h ~ q(.|x_m): log p - log q = log w_m + log P_I(x_m|h)
    lw.16   log P_I(x | E_q h) >= E_q log P_I(x|h): the loss of a classical auto-encoder is no bound
    lw.19   q = P_RBM(h|x): q_D is one step lw.9 from P_RBM(h), so log-likelihood of the RBM + KL(q_D || P_RBM) <= L_D(q_D)
    lw.20   minibatch B: q_D(h) ~ q(h|x_n) / N + (N - 1) / N mean_{m in B, m != n} q(h|x_m), unbiased for each n
    lw.21   grad U_D = E_x E_{r(h|x)} grad log P_I(x|h), Q_hat held fixed
    lw.22   held-out data V: (a) L_V(Q_hat of D) <= (b) U_V;  (c) L_V(q_D) <= (b);  (d) L_V(P_J), the final score

Estimators of gradients for the bits (`zoo.lab.estimators`, `RBM.cd`), f_k = f(h_k), omega_k = log p(x,h_k) - log q(h_k|x):

    lw.18   RBM: <v h'>_data - <v h'>_model, the model's average exact, after k sweeps from the data, or of particles;
            AIS: Z = Z_0 mean prod_k exp(F_{beta_k}(v_k) - F_{beta_k+1}(v_k))
    lw.23   (1/K) sum_k (f_k - mean_{j != k} f_j) grad log q(h_k|x)
    lw.24   ARM: d/dl_j = E[(f(1[u > sigma(-l)]) - f(1[u < sigma(l)])) (u_j - 1/2)]
    lw.25   VIMCO: L = log mean_k exp(omega_k); sum_k (L - L_-k) grad log q(h_k|x) + grad L
    lw.26   reweighted wake-sleep: weights softmax_k(omega_k) of each datum; sleep: grad log q(h|x) at dreams (x, h)

    symbol      site or name                              shape
    x           batch key "x", site "x" in plate "data"   (n, D)
    h_k         site "h1", "h2", ... in plate "data"      (n, n_k)
    W_k, b_k    model.decoders[k - 1].W, .b               (n_k, n_{k-1}), (n_{k-1})
    P_J         model.prior                               event (n_L)
    T           Decoder.table(x)                          (n, 2^n_k)
    w_n         weights of distinct data                  (N)
    H(P_D)      model.entropy, nats                       ()

Departures from the paper:
    - every number here is an exact log-likelihood where 2^n codes can be enumerated; the paper's search ranges are
      remembered, not read;
    - the default criterion is the expectation form of the auto-encoder (lw.13), a bound; the classical loss lw.16 is
      `MeanField`, and says that it is none;
    - autoregressive and free-table encoders, Gaussian pixels, priors other than an RBM and estimators later than 2012
      are additions;
    - no site is marked for enumeration: a composed guide takes marked sites for summed out (`config_enumerate` marks).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from pyro import poutine, sample
from pyro.distributions import Bernoulli, Categorical, MixtureSameFamily, Normal
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.nn.functional import softplus

from guides import Guide, Rich, codes, data_plate
from guides.codes import Tabular, states, table
from zoo.lab import accounts, estimators, exact
from zoo.lab.accounts import Account, HeldOut
from zoo.lab.data import DataError, Split, Table, load
from zoo.lab.estimators import LeaveOneOut, leave_one_out
from zoo.lab.ledger import Claim
from zoo.lab.rbm import RBM
from zoo.lab.training import Phase, TrainingError

TABLE_BITS = 12  # codes are enumerated in training up to this many bits, drawn beyond
EXACT_BITS = 26  # of two neighbouring layers together, for an exact likelihood


class Decoder(nn.Module):
    """P_I(below | h): independent bits with logits h W + b.

    Args:
        above, below: numbers of units. scale: standard deviation of the initial W.
    """

    def __init__(self, above: int, below: int, *, scale: float = 0.1) -> None:
        super().__init__()
        self.W = nn.Parameter(scale * torch.randn(above, below))
        self.b = nn.Parameter(torch.zeros(below))

    @property
    def above(self) -> int:
        """Number of units of the code."""
        return len(self.W)

    def logits(self, h: Tensor) -> Tensor:
        """eta(h) = h W + b. h: (..., above); returns (..., below)."""
        return h @ self.W + self.b

    def forward(self, h: Tensor) -> Distribution:
        """The law of the layer below, batch shape `h.shape[:-1]`; grey values in [0, 1] count as probabilities."""
        return Bernoulli(logits=self.logits(h), validate_args=False).to_event(1)

    def table(self, below: Tensor) -> Tensor:
        """log P_I(below_n | h) of every code in one product, nats. below: (n, D); returns (n, 2^above)."""
        eta = self.logits(states(self.above, like=self.W))  # (2^above, D)
        return below @ eta.mT - softplus(eta).sum(-1)  # lw.2


class GaussianDecoder(Decoder):
    """Real pixels: independent normals with mean h W + b and a standard deviation for each pixel."""

    def __init__(self, above: int, below: int, *, scale: float = 0.1) -> None:
        super().__init__(above, below, scale=scale)
        self.log_sd = nn.Parameter(torch.zeros(below))

    def forward(self, h: Tensor) -> Distribution:
        return Normal(self.logits(h), self.log_sd.exp()).to_event(1)

    def table(self, below: Tensor) -> Tensor:
        precision = (-2 * self.log_sd).exp()
        eta = self.logits(states(self.above, like=self.W))
        squares = (below.square() @ precision)[:, None] - 2 * (below * precision) @ eta.mT + eta.square() @ precision
        return -0.5 * squares - self.log_sd.sum() - 0.5 * len(precision) * math.log(2 * math.pi)


PIXELS = {"bernoulli": Decoder, "gaussian": GaussianDecoder}


class TablePrior(nn.Module):
    """Any law on the codes of n bits, as a table of 2^n logits: Q, the BLM, or a free P_J."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(len(states(n))))

    def forward(self) -> Distribution:
        return Tabular(self.logits)


class BitsPrior(nn.Module):
    """Independent bits: a control."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(n))

    def forward(self) -> Distribution:
        return Bernoulli(logits=self.logits, validate_args=False).to_event(1)


class AggregatedPosterior(nn.Module):
    """q_D, the mixture of q(h | x_n) over the training data; q is that of the guide, shared with it (`Model.attach`).

    Until a guide is attached it is uniform.
    """

    data: Tensor

    def __init__(self, n: int, N: int, features: int) -> None:
        super().__init__()
        self.n, self.q = n, None
        self.register_buffer("data", torch.zeros(N, features))

    def forward(self) -> Distribution:
        if self.q is None:
            return Bernoulli(logits=self.data.new_zeros(self.n), validate_args=False).to_event(1)
        weights = Categorical(logits=self.data.new_zeros(len(self.data)))
        return MixtureSameFamily(weights, self.q(self.data))


class Model(nn.Module):
    """Directed layers of bits below a top prior.

    Args:
        in_features: D.
        hidden: n_1, n_2, ...: units of the layers, from the bottom up; none: x itself has the prior.
        N: size of the data set; None follows the batch.
        top: P_J: "rbm", "tabular" (a free table), "bits" (independent), or "aggregated" (q_D itself).
        top_hidden: hidden units of the RBM; as many as the layer below it if not given.
        pixels: "bernoulli" or "gaussian".
        entropy: H(P_D) of the training data in nats, log N for N distinct data.
        scale: standard deviation of the initial weights.

    Raises:
        DataError: an unknown top or kind of pixels, widths that no top can have.
    """

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int] = (10,),
        N: int | None = None,
        *,
        top: str = "rbm",
        top_hidden: int | None = None,
        pixels: str = "bernoulli",
        entropy: float = 0.0,
        scale: float = 0.1,
    ) -> None:
        super().__init__()
        self.in_features, self.hidden, self.N = in_features, list(hidden), N
        self.top, self.top_hidden, self.pixels = top, top_hidden, pixels
        self.entropy, self.scale = float(entropy), scale
        if pixels not in PIXELS:
            raise DataError(f"pixels are {' or '.join(PIXELS)}, not {pixels!r}")
        widths = [in_features, *hidden]
        self.decoders = nn.ModuleList(
            (PIXELS[pixels] if below == 0 else Decoder)(widths[below + 1], widths[below], scale=scale)
            for below in range(len(hidden))
        )
        self.prior = self._prior(widths[-1])

    def _prior(self, n: int) -> nn.Module:
        if not self.hidden and self.pixels != "bernoulli":
            raise DataError("without a hidden layer x has the prior on bits; real pixels need a layer: hidden=[10]")
        if self.top == "rbm":
            return RBM(n, self.top_hidden or n, scale=self.scale)
        if self.top == "tabular":
            return TablePrior(n)
        if self.top == "bits":
            return BitsPrior(n)
        if self.top == "aggregated":
            if len(self.hidden) != 1 or self.N is None:
                raise DataError("top 'aggregated' is for one hidden layer over a data set of known size N")
            return AggregatedPosterior(n, self.N, self.in_features)
        raise DataError(f"top is rbm, tabular, bits or aggregated, not {self.top!r}")

    @property
    def given(self) -> dict[str, tuple[str, ...]]:
        """What a guide's family sees at each layer: the one below."""
        return {f"h{k}": (f"h{k - 1}",) for k in range(2, len(self.hidden) + 1)}

    def forward(self, x: Tensor | None = None, **ignored: Any) -> Tensor:
        """The generative story lw.1. x: (n, D), or None for N dreams."""
        n = self.N or 1 if x is None else len(x)
        with data_plate(n, self.N, device=self.device):
            if not self.hidden:
                return sample("x", self.prior(), obs=x)
            h = sample(f"h{len(self.hidden)}", self.prior())  # (n, n_L)
            for k in range(len(self.hidden) - 1, 0, -1):
                h = sample(f"h{k}", self.decoders[k](h))  # (n, n_k)
            return sample("x", self.decoders[0](h), obs=x)  # (n, D)  lw.1

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def attach(self, guide: nn.Module) -> None:
        """Let an aggregated posterior be that of the guide: they share q."""
        if isinstance(self.prior, AggregatedPosterior):
            self.prior.q = guide.q["h1"]  # type: ignore[index]

    def log_prior(self, layer: int = 1) -> Tensor:
        """log P(h_layer) of every code by enumeration downwards from the top, nats, (2^n)."""
        log_p = table(self.prior())
        for k in range(len(self.hidden), layer, -1):
            below = states(self.hidden[k - 2], like=log_p)
            log_p = exact.log_likelihood(self.decoders[k - 1].table, below, log_p)
        return log_p

    def log_evidence(self, x: Tensor) -> Tensor:
        """log P(x_n) exactly, nats, (n,), with its gradient."""
        if not self.hidden:
            return self.prior().log_prob(x)
        return exact.log_likelihood(self.decoders[0].table, x, self.log_prior())  # lw.1

    @property
    def enumerable(self) -> bool:
        """Whether the exact likelihood is within reach."""
        if not self.hidden:
            return not isinstance(self.prior, RBM) or self.prior.enumerable
        sizes = [sum(pair) for pair in pairwise(self.hidden)]
        return max(self.hidden) <= codes.BITS and max(sizes, default=0) <= EXACT_BITS

    @torch.no_grad()
    def loglik(self, x: Tensor, **ignored: Any) -> Tensor | None:
        """The exact log-likelihood of each datum, nats, (n,); None where it cannot be enumerated."""
        return self.log_evidence(x) if self.enumerable else None

    @staticmethod
    def for_data(
        train: Table,
        *,
        hidden: Sequence[int] = (10,),
        top: str = "rbm",
        top_hidden: int | None = None,
        pixels: str | None = None,
        scale: float = 0.1,
    ) -> Model:
        """The model of a table.

        Args:
            pixels: where not given, "bernoulli" if x lies in [0, 1] (grey values count as probabilities), else
                "gaussian". Others as in `Model`.
        """
        x = train["x"]
        within = bool((x >= 0).all() and (x <= 1).all())
        if pixels == "bernoulli" and not within:
            raise DataError(f"x of {train.name} lies outside [0, 1]: choose pixels=gaussian")
        pixels = pixels or ("bernoulli" if within else "gaussian")
        if not hidden and bool(((x != 0) & (x != 1)).any()):
            raise DataError(f"x of {train.name} is not binary: without a hidden layer it would have a prior on bits")
        entropy = exact.entropy(exact.distinct(x.double())[1])
        model = Model(
            x.shape[-1], hidden, len(train), top=top, top_hidden=top_hidden, pixels=pixels, entropy=entropy, scale=scale
        )
        if isinstance(model.prior, AggregatedPosterior):
            model.prior.data.copy_(x)
        return model


class TiedMachine(RBM):
    """The RBM of a decoder: its W and b are the decoder's, only the hidden bias c is its own."""

    def __init__(self, decoder: Decoder, *, particles: int = 100) -> None:
        nn.Module.__init__(self)
        self._decoder = (decoder,)  # in a tuple: the model's parameters are not the guide's
        self.c = nn.Parameter(torch.zeros(decoder.above))
        self.register_buffer("particles", torch.zeros(particles, len(decoder.b)))
        self.register_buffer("estimate", torch.tensor(math.inf, dtype=torch.get_default_dtype()))

    @property
    def W(self) -> Tensor:  # type: ignore[override]
        return self._decoder[0].W.mT

    @property
    def b(self) -> Tensor:  # type: ignore[override]
        return self._decoder[0].b


class TiedRBM(nn.Module):
    """q(h_k | h_{k-1}) = sigma(c_k + h_{k-1}' W_k'), the posterior of the RBM that each decoder belongs to: stacked RBMs."""

    def __init__(self, model: Model, batch: Mapping[str, Any]) -> None:
        super().__init__()
        if model.pixels != "bernoulli" or not model.hidden:
            raise DataError("TiedRBM is the recognition of an RBM on bits: it needs a hidden layer and bernoulli pixels")
        self.N = model.N
        self.machines = nn.ModuleList(TiedMachine(decoder) for decoder in model.decoders)

    def forward(self, x: Tensor, **ignored: Any) -> None:
        """Sample h_1, h_2, ... from the bottom up."""
        v = x
        with data_plate(x.shape[-2], self.N, device=x.device):
            for k, machine in enumerate(self.machines, 1):
                v = sample(f"h{k}", Bernoulli(logits=machine.hidden_logits(v)).to_event(1))  # type: ignore[operator]


class Posterior(nn.Module):
    """The exact posterior r(h_1 | x) of a model with one hidden layer: no parameters of its own."""

    def __init__(self, model: Model, batch: Mapping[str, Any]) -> None:
        super().__init__()
        if len(model.hidden) != 1:
            raise DataError("Posterior enumerates the codes of one hidden layer")
        self._model, self.N = (model,), model.N

    def forward(self, x: Tensor, **ignored: Any) -> None:
        """Sample h_1."""
        model = self._model[0]
        with data_plate(len(x), self.N, device=x.device):
            sample("h1", Tabular(exact.posterior(model.decoders[0].table(x), model.log_prior())))  # type: ignore[operator]


class Seen(NamedTuple):
    """What a criterion of one layer sees of a batch.

    Attributes:
        below: the layer below, x or codes drawn by the guide, (n, D).
        q: the guide's law of the layer, batch shape (n,). code: a draw from it.
        N: size of the data set. entropy: H(P_D) in nats; 0 above the first layer, where it is not known.
    """

    below: Tensor
    decoder: Decoder
    q: Distribution
    code: Tensor
    N: int
    entropy: float

    @property
    def bits(self) -> int:
        """Units of the code."""
        return self.decoder.above


def look(model: Model, guide: nn.Module, layer: int, batch: Mapping[str, Any]) -> Seen:
    """Run the guide once and pick out one layer; codes of the layers below are drawn anew, and carry no gradient."""
    if not 1 <= layer <= len(model.hidden):
        raise TrainingError(f"there is no layer {layer}: the model has {len(model.hidden)}")
    nodes = poutine.trace(guide).get_trace(**batch).nodes
    if f"h{layer}" not in nodes:
        raise TrainingError(f"this criterion needs a guide for h{layer}")
    site = nodes[f"h{layer}"]
    below = batch["x"] if layer == 1 else nodes[f"h{layer - 1}"]["value"].detach()
    entropy = model.entropy if layer == 1 else 0.0
    decoder: Any = model.decoders[layer - 1]
    return Seen(below, decoder, site["fn"], site["value"], model.N or len(below), entropy)


class LayerBound(Trace_ELBO):
    """A criterion of one layer, blind to what lies above it; nats for the data set. A subclass has `values`.

    Args:
        layer: 1 is the bottom; above it codes drawn from the guide are the data.

    Attributes:
        evidence_bound: the bound of the whole model's evidence, which these criteria are not.
    """

    evidence_bound = LeaveOneOut()

    def __init__(self, layer: int = 1) -> None:
        super().__init__()
        self.layer = layer

    def values(self, seen: Seen) -> Tensor:
        """The criterion of each datum in nats, (n,)."""
        raise NotImplementedError

    def differentiable_loss(self, model: Any, guide: Any, **batch: Any) -> Tensor:
        """-N/n sum_n of `values`."""
        seen = look(model, guide, self.layer, batch)
        return -seen.N / len(seen.below) * self.values(seen).sum()


class Criterion(LayerBound):
    """L_D(theta_I, q_D), the theorem's objective, by enumeration: -N/n sum_n log sum_h P_I(x_n|h) q_D(h)."""

    def values(self, seen: Seen) -> Tensor:
        log_q = table(seen.q)  # (n, 2^bits)
        return (seen.decoder.table(seen.below) + minibatch_aggregated(log_q, seen.N)).logsumexp(-1)


def minibatch_aggregated(log_q: Tensor, N: int) -> Tensor:
    """log of an unbiased q_D for each datum of a batch: its own code counts 1/N, whatever the batch; (n, 2^n).

    Args:
        log_q: log q(h | x_m) of the batch, (n, 2^n). N: size of the data set.
    """
    n, q = len(log_q), log_q.exp()
    if n == 1:
        return log_q - math.log(N)
    others = (q.sum(0) - q).clamp_min(0) / (n - 1)
    return (q / N + (N - 1) / N * others).clamp_min(torch.finfo(q.dtype).tiny).log()  # lw.20


class SampledCriterion(LayerBound):
    """L_D(theta_I, q_D) where codes cannot be enumerated: q_D by K codes of each datum, a lower bound in the mean.

    The gradient of the bits is the score function with the control variate of VIMCO: a code is replaced by the mean of
    its datum's others.

    Args:
        particles: K >= 2.
    """

    def __init__(self, layer: int = 1, *, particles: int = 4) -> None:
        super().__init__(layer)
        self.particles = particles

    def values(self, seen: Seen) -> Tensor:
        K, n = self.particles, len(seen.below)
        h = seen.q.sample(torch.Size([K]))  # (K, n, bits)
        T = seen.decoder(h.unsqueeze(2)).log_prob(seen.below)  # (K, m, n): datum n from code k of datum m
        own = torch.eye(n, dtype=torch.bool, device=T.device)
        share = torch.where(own, 1 / seen.N, (1 - 1 / seen.N) / max(n - 1, 1)).to(T)  # lw.20
        log_terms = T + share.log() - math.log(K)
        total = log_terms.flatten(0, 1).logsumexp(0)  # (n,)
        with torch.no_grad():
            part = (log_terms - total).exp()  # (K, m, n), sums to 1 over codes
            replaced = (part.sum(0) - part) / (K - 1)
            signal = -(1 - part + replaced).clamp_min(1e-6).log().sum(-1)  # (K, m): total less the one without code k
        score = (signal * seen.q.log_prob(h)).sum(0)
        return total + score - score.detach()


class Codes(LayerBound):
    """The sum form of the auto-encoder bound: -N/n sum_n log sum_h q(h|x_n) P_I(x_n|h) + N H(P_D), enumerated."""

    def values(self, seen: Seen) -> Tensor:
        return (table(seen.q) + seen.decoder.table(seen.below)).logsumexp(-1) - seen.entropy  # lw.13


class Reconstruction(LayerBound):
    """The expectation form: -N/n sum_n E_q log P_I(x_n|h) + N H(P_D). What an auto-encoder with stochastic code trains.

    The expectation is enumerated up to `bits` units, and drawn beyond (leave-one-out, lw.23); relaxed draws are
    differentiated.

    Args:
        particles: draws for each datum.
    """

    def __init__(self, layer: int = 1, *, bits: int = TABLE_BITS, particles: int = 8) -> None:
        super().__init__(layer)
        self.bits, self.particles = bits, particles

    def values(self, seen: Seen) -> Tensor:
        if seen.q.has_rsample or seen.bits > self.bits:
            return self._drawn(seen) - seen.entropy
        return (table(seen.q).exp() * seen.decoder.table(seen.below)).sum(-1) - seen.entropy  # lw.13

    def _drawn(self, seen: Seen) -> Tensor:
        shape = torch.Size([self.particles])
        h = seen.q.rsample(shape) if seen.q.has_rsample else seen.q.sample(shape)
        f = seen.decoder(h).log_prob(seen.below)  # (K, n)
        return f.mean(0) if seen.q.has_rsample else leave_one_out(f, seen.q.log_prob(h))


class MeanField(LayerBound):
    """What a classical auto-encoder trains, -N/n sum_n log P_I(x_n | E_q h) + N H(P_D): NOT A BOUND, it may exceed U_D."""

    def values(self, seen: Seen) -> Tensor:
        return seen.decoder(seen.q.mean).log_prob(seen.below) - seen.entropy  # lw.16


class BLM(LayerBound):
    """-N U_D of the batch, by EM, with its envelope gradient: a bottom layer trained without any encoder.

    Args:
        tol, steps: of `exact.blm`.
    """

    def __init__(self, layer: int = 1, *, tol: float = 1e-4, steps: int = 500) -> None:
        super().__init__(layer)
        self.tol, self.steps = tol, steps

    def values(self, seen: Seen) -> Tensor:
        T = seen.decoder.table(seen.below)
        log_w = T.new_full((len(T),), -math.log(len(T)))
        best = exact.blm(T, log_w, tol=self.tol, steps=self.steps)
        return exact.evidence(T, best.log_prior.to(T))  # lw.21


class Top(Trace_ELBO):
    """The next layer's likelihood of codes, -E_{q_D} log P_J(h_L), nats for the data set: only the prior learns.

    The last code is enumerated up to `bits` units and drawn beyond; those below are drawn.
    """

    evidence_bound = LeaveOneOut()

    def __init__(self, *, bits: int = TABLE_BITS) -> None:
        super().__init__()
        self.bits = bits

    def differentiable_loss(self, model: Any, guide: Any, **batch: Any) -> Tensor:
        seen = look(model, guide, len(model.hidden), batch)
        if seen.bits <= self.bits:
            values = (table(seen.q).detach().exp() * table(model.prior())).sum(-1)  # lw.12
        else:
            values = model.prior().log_prob(seen.code.detach())  # lw.12
        return -seen.N / len(seen.below) * values.sum()


class TopPCD(Trace_ELBO):
    """The same for an RBM by persistent contrastive divergence on drawn codes: a gradient, its value no likelihood."""

    evidence_bound = LeaveOneOut()

    def __init__(self, *, k: int = 1) -> None:
        super().__init__()
        self.k = k

    def differentiable_loss(self, model: Any, guide: Any, **batch: Any) -> Tensor:
        if not model.hidden:
            return (model.N or len(batch["x"])) * model.prior.pcd(batch["x"], k=self.k)
        seen = look(model, guide, len(model.hidden), batch)
        return seen.N * model.prior.pcd(seen.code.detach(), k=self.k)


class CD(Trace_ELBO):
    """Contrastive divergence for one layer under the guide `TiedRBM`: the step of stacked RBMs; its value no likelihood.

    Args:
        layer: whose decoder and hidden bias are trained. k: sweeps.
    """

    evidence_bound = LeaveOneOut()
    method = "cd"

    def __init__(self, layer: int = 1, *, k: int = 1) -> None:
        super().__init__()
        self.layer, self.k = layer, k

    def differentiable_loss(self, model: Any, guide: Any, **batch: Any) -> Tensor:
        if not isinstance(guide, TiedRBM):
            raise TrainingError(f"{type(self).__name__} trains RBMs: it needs the guide TiedRBM")
        seen = look(model, guide, self.layer, batch)
        return seen.N * getattr(guide.machines[self.layer - 1], self.method)(seen.below, k=self.k)


class PCD(CD):
    """The same with persistent particles."""

    method = "pcd"


class ExactRBM(CD):
    """The exact twin: the machine's own log-likelihood, log Z by enumeration."""

    def differentiable_loss(self, model: Any, guide: Any, **batch: Any) -> Tensor:
        if not isinstance(guide, TiedRBM):
            raise TrainingError("ExactRBM trains RBMs: it needs the guide TiedRBM")
        seen = look(model, guide, self.layer, batch)
        machine: Any = guide.machines[self.layer - 1]
        return -seen.N * machine.log_prob(seen.below).mean()  # lw.18


class Evidence(Trace_ELBO):
    """-N/n sum_n log P(x_n), exact: joint training, and fine-tuning of a model that was trained layer by layer."""

    def differentiable_loss(self, model: Any, guide: Any, **batch: Any) -> Tensor:
        x = batch["x"]
        if not model.enumerable:
            raise TrainingError("the exact evidence of this model is out of reach; fine-tune with VIMCO")
        return -(model.N or len(x)) / len(x) * model.log_evidence(x).sum()  # lw.1


CRITERIA: dict[str, type[ELBO]] = {
    "Reconstruction": Reconstruction,
    "Criterion": Criterion,
    "SampledCriterion": SampledCriterion,
    "Codes": Codes,
    "MeanField": MeanField,
    "CD": CD,
    "PCD": PCD,
    "ExactRBM": ExactRBM,
}


def guide(model: Model, batch: Mapping[str, Any], *, latents: Any = Rich) -> nn.Module:
    """The paper's q: a rich encoder for each layer, from the bottom up (or another family)."""
    found = Guide(model, batch, latents=latents, given=model.given)
    model.attach(found)
    return found


GUIDES = {"TiedRBM": TiedRBM, "Posterior": Posterior}


def bound(guide: nn.Module | None = None) -> ELBO:
    """What the bottom layer trains: `Reconstruction`, or `CD` under `TiedRBM`."""
    return CD() if isinstance(guide, TiedRBM) else Reconstruction()


def phases(
    model: Model, guide: nn.Module, *, criterion: str | None = None, fine_tune: bool = False, top: bool = True
) -> list[Phase]:
    """Layer-wise training: each layer on its criterion, given those below; then the prior on the codes (lw.12).

    Args:
        criterion: of the layers, a name of `CRITERIA`; `bound(guide)`'s if not given.
        fine_tune: whether all layers are trained together in the end, on the exact evidence where it can be had,
            else on VIMCO's bound.
        top: whether the prior is trained.
    """
    if criterion is not None and criterion not in CRITERIA:
        raise DataError(f"no criterion {criterion!r}; there are: {', '.join(CRITERIA)}")
    kind: Any = CRITERIA[criterion] if criterion else type(bound(guide))
    found = [
        Phase(f"layer {k}", kind(k), [*decoder.parameters(), *_guide_parameters(guide, k)])
        for k, decoder in enumerate(model.decoders, 1)
    ]
    prior = list(model.prior.parameters())
    if top and prior and model.top != "aggregated":
        learn = Top() if model.hidden else Evidence()
        small = not isinstance(model.prior, RBM) or model.prior.enumerable
        found.append(Phase("top", learn if small else TopPCD(), prior))
    if fine_tune and model.hidden:
        found.append(Phase("fine-tuning", Evidence() if model.enumerable else estimators.VIMCO(8), None))
    return found


def _guide_parameters(guide: Any, layer: int) -> list[nn.Parameter]:
    part = guide.machines[layer - 1] if isinstance(guide, TiedRBM) else guide.q[f"h{layer}"]
    return list(part.parameters())


def data(name: str = "tea", *, split: int = 0, **options: Any) -> Split:
    """Any table of `zoo.lab.data.load` without its labels."""
    return Split(*(None if part is None else _unlabelled(part) for part in load(name, split=split, **options)))  # type: ignore[arg-type]


def _unlabelled(part: Table) -> Table:
    return replace(part, tensors={"x": part["x"]}, classes=None)


class Tables(NamedTuple):
    """A trained bottom layer on some data, as tables in nats: what `zoo.lab.accounts` keeps the books of.

    Attributes:
        T: log P_I(x_n | h), (N, 2^n). log_q: log q(h | x_n), (N, 2^n). log_prior: log P_J(h), (2^n). log_w: (N,).
        mean_field: log P_I(x_n | E_q h), (N,).
    """

    T: Tensor
    log_q: Tensor
    log_prior: Tensor
    log_w: Tensor
    mean_field: Tensor


@torch.no_grad()
def tables(model: Model, guide: nn.Module, x: Tensor) -> Tables:
    """The tables of the bottom layer on the distinct rows of x (N, D), weighted."""
    rows, log_w = exact.distinct(x)
    seen = look(model, guide, 1, {"x": rows})
    mean_field = seen.decoder(seen.q.mean).log_prob(rows)
    return Tables(seen.decoder.table(rows), table(seen.q), model.log_prior(), log_w, mean_field)


def account(model: Model, guide: nn.Module, x: Tensor, *, steps: int = 2000) -> Account:
    """Every bound of the bottom layer on the data x (N, D), exactly, in nats per datum; see `accounts.Account`."""
    found = tables(model, guide, x)
    return accounts.account(
        found.T, found.log_q, found.log_prior, found.log_w, mean_field=found.mean_field, steps=steps
    )


def held_out(model: Model, guide: nn.Module, train: Tensor, valid: Tensor, *, steps: int = 2000) -> HeldOut:
    """What the bottom layer promises on validation data, and the final score, nats per datum; see `accounts.HeldOut`."""
    D, V = tables(model, guide, train), tables(model, guide, valid)
    return accounts.held_out(
        D.T, V.T, log_q=D.log_q, log_prior=D.log_prior, log_w=D.log_w, log_w_valid=V.log_w, steps=steps
    )


def evidence(model: Model, train: Table) -> float | None:
    """The exact log-likelihood of the training data in nats for the data set; None where it cannot be enumerated."""
    found = model.loglik(train["x"].to(model.device))
    return None if found is None else float(found.double().sum())


def remarks(model: Model) -> list[str]:
    """What belongs beside every result: the sizes, the ceiling, and how log Z was had."""
    layers = " - ".join(str(n) for n in [model.in_features, *model.hidden])
    ceiling = f"Data entropy {model.entropy:.3f} nats, so no training log-likelihood per datum exceeds {-model.entropy:.3f}."
    told = [f"Layers {layers}, top {model.top}.", ceiling if model.pixels == "bernoulli" else "Gaussian pixels: densities."]
    if not model.enumerable:
        told.append("The likelihood cannot be enumerated here: log-likelihoods are importance-weighted estimates.")
    return told


EQUATIONS = {
    "lw.1": Model.forward,
    "lw.2": Decoder.table,
    "lw.3": exact.aggregated,
    "lw.4": exact.blm,
    "lw.8": exact.price,
    "lw.9": exact.incorporate,
    "lw.11": exact.log_gain,
    "lw.12": Top,
    "lw.13": Reconstruction,
    "lw.14": accounts.account,
    "lw.16": MeanField,
    "lw.17": RBM,
    "lw.18": RBM.contrast,
    "lw.20": minibatch_aggregated,
    "lw.21": BLM,
    "lw.22": accounts.held_out,
    "lw.23": leave_one_out,
    "lw.24": estimators.ARM,
    "lw.25": estimators.vimco,
    "lw.26": estimators.reweighted,
}

CLAIMS = (
    Claim("C1", "Layer-wise training has a guarantee against the global optimum.", source="checked"),
    Claim("C2", "Auto-encoders train a lower bound of the layer's criterion.", source="checked"),
    Claim("C3", "Layer-wise training with rich inference beats stacked RBMs.", source="abstract"),
    Claim("C4", "Inference should be richer than generation: AERI beats the plain auto-encoder.", source="abstract"),
    Claim("C5", "The bottom layer's bound predicts the final score, so layers can be selected.", source="recalled"),
    Claim("C6", "Tea baselines: uniform, independent bits (validation), perfect.", source="recalled",
          number="-69.31, -49.27, -5.49"),
    Claim("C7", "Cropped MNIST baselines: uniform, independent bits (validation).", source="recalled",
          number="-69.31, -67.38"),
    Claim("C8", "On deep data, two-layer nets beat single RBMs of as many parameters.", source="recalled"),
    Claim("C9", "A stacked RBM is pessimistic: its codes deserve a better prior than its own.", source="checked"),
    Claim("C10", "The bound of the training data overfits.", source="measured"),
    Claim("C11", "An auto-encoder with an RBM on top models densities far better than independent pixels.",
          source="measured"),
)  # fmt: skip
