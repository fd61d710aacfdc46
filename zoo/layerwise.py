"""Deep generative models trained layer by layer against the best latent marginal.

Arnold, Ollivier (2012). Layer-wise learning of deep generative models. arXiv 1212.1524. Equation ids are this
project's own; the paper's text was not at hand, so this is the paper as we understand it, every inequality proved anew.

Model (lw.1), binary layers h_k in {0,1}^n_k, k = 1..L, h_0 = x in {0,1}^D (or real, with Gaussian pixels):

    h_L ~ P_J;   h_{k-1} | h_k ~ prod_i Bernoulli(sigma(h_k W_k + b_k)_i)
    evidence of the bottom layer under any law Q of its codes: L_D(theta_I, Q) = E_{x ~ P_D} log sum_h P_I(x|h) Q(h)

    lw.2    T[n,h] = log P_I(x_n|h) = x_n.eta(h) - sum_i softplus(eta_i(h)), eta(h) = h W + b: a table (N, 2^n)
    lw.17   RBM: log P(v) = -F(v) - log Z, F(v) = -b.v - sum_j softplus(c + v'W)_j;  P(h_j = 1|v) = sigma(c + v'W)_j;
            log P(h) = c.h + sum_i softplus(b + W h)_i - log Z;  log Z: one sum over the states of the smaller layer

Guide: any q(h_1|x) q(h_2|h_1) ...; it is no part of the model, so it may be as rich as one likes ("rich inference").

    lw.3    aggregated posterior q_D(h) = sum_n w_n q(h|x_n);  factorial: log q(h|x) = h.l(x) - sum_j softplus(l_j(x))

Bound of a bottom layer that does not know its top: the best latent marginal (BLM), and what lies below it.

    lw.4    U_D(theta_I) = max over all laws Q of L_D(theta_I, Q);  L_D(theta_I, P_J) <= U_D, for bits <= -H(P_D)
    lw.5    max_q L_D(theta_I, q_D) = U_D, q over all conditionals
    lw.6    at theta_I, q maximal for lw.5: P_J = q_D gives the global maximum of the deep likelihood; any P_J misses
            it by at most KL(q_D || P_J)
    lw.7    0 <= U_D - L_D(theta_I, P_J) <= KL(Q_hat || P_J), Q_hat the BLM
    lw.8    any q: L_D(theta_I, q_D) - L_D(theta_I, P_J) <= KL(Q_cond || P_J) - KL(Q_cond || q_D), Q_cond from q_D by
            lw.9 (with KL(q_D || P_J) on the right it is false)
    lw.9    data incorporation, an EM step: Q_cond(h) = sum_n w_n r(h|x_n), r(h|x) = P_I(x|h) Q(h) / P_Q(x)
    lw.10   L_D(Q_cond) - L_D(Q) >= KL(Q_cond || Q);  KL(Q_hat || Q) - KL(Q_hat || Q_cond) >= U_D - L_D(Q);  hence from
            the uniform law U_D - L_D(Q_t) <= n log 2 / (t + 1)
    lw.11   G_Q(h) = E_{P_D}[P_I(x|h) / P_Q(x)];  U_D - L_D(Q) <= log max_h G_Q(h), and 0 only at the BLM
    lw.12   the next layer: argmin KL(q_D || P_J) = argmax E_{h ~ q_D} log P_J(h), codes in the place of data
    lw.13   L_D(theta_I, q_D) >= E log sum_h q(h|x) P_I(x|h) - H(P_D) >= E E_q log P_I(x|h) - H(P_D): auto-encoders
    lw.14   E E_q log P_I - I_q(x;h) = ELBO with prior q_D, I_q = E KL(q(.|x) || q_D) <= H(P_D);  with P_J: less
            KL(q_D || P_J).  Auto-encoder bound <= ELBO(q_D) <= L_D(theta_I, q_D) <= U_D
    lw.15   n ~ P_D, h ~ q(.|x_n), x ~ P_I(.|h), with the guide n = m, h ~ q(.|x_m):
            log p - log q = log w_m + log P_I(x_m|h)
    lw.16   log P_I(x | E_q h) >= E_q log P_I(x|h): the loss of a classical auto-encoder is no bound
    lw.19   q = P_RBM(h|x): q_D is one step lw.9 from P_RBM(h), so L_RBM + KL(q_D || P_RBM) <= L_D(theta_I, q_D), L_RBM
            the log-likelihood of the RBM
    lw.20   minibatch B: q_D(h) ~ q(h|x_n) / N + (N - 1) / N mean_{m in B, m != n} q(h|x_m), unbiased for each n
    lw.21   grad U_D = E_x E_{r(h|x)} grad log P_I(x|h), Q_hat held fixed
    lw.22   held-out data V: (a) L_V(Q_hat of D) <= (b) U_V;  (c) L_V(q_D) <= (b);  (d) L_V(P_J), the final score

Estimators of gradients for the bits (`zoo.lab.estimators`), f_k = f(h_k), omega_k = log p(x, h_k) - log q(h_k|x):

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
from typing import Any, NamedTuple

import torch
from pyro import sample
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor, nn

from guides import Guide, Rich, codes, data_plate
from guides.codes import Tabular, table
from zoo.lab import accounts, estimators, exact
from zoo.lab.accounts import Account, HeldOut
from zoo.lab.data import DataError, Split, Table, load_x
from zoo.lab.estimators import LeaveOneOut, leave_one_out
from zoo.lab.layers import AggregatedPosterior, BitsPrior, Decoder, GaussianDecoder, Layered, TablePrior
from zoo.lab.ledger import Claim
from zoo.lab.rbm import RBM
from zoo.lab.stacking import CD, PCD, ExactRBM, LayerBound, Seen, TiedRBM, TopCD, TopPCD, look
from zoo.lab.training import Fit, Phase, TrainingError

TABLE_BITS = 12  # codes are enumerated in training up to this many bits, drawn beyond
BOOKS = 2**23  # entries of a table up to which `books` are kept: a handful of tables of 64 MiB

PIXELS = {"bernoulli": Decoder, "gaussian": GaussianDecoder}


class Model(Layered):
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
        binary: whether every x is 0 or 1; grey values in [0, 1] count as probabilities, and have no ceiling.

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
        binary: bool = True,
    ) -> None:
        super().__init__()
        self.in_features, self.hidden, self.N = in_features, list(hidden), N
        self.top, self.top_hidden, self.pixels = top, top_hidden, pixels
        self.entropy, self.scale, self.binary = float(entropy), scale, binary
        if pixels not in PIXELS:
            raise DataError(f"pixels are {' or '.join(PIXELS)}, not {pixels!r}")
        if min([1, *hidden]) < 1:
            raise DataError(f"hidden takes widths of 1 or more, not {list(hidden)}")
        if top_hidden is not None and top_hidden < 1:
            raise DataError(f"top_hidden takes 1 unit or more, not {top_hidden}")
        if not 0 <= scale < math.inf:
            raise DataError(f"scale is a standard deviation of 0 or more, not {scale}")
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
        if self.top == "tabular" and n > codes.BITS:
            raise DataError(
                f"a free table over 2^{n} codes is too large (up to 2^{codes.BITS}); choose top=rbm or bits"
            )
        if self.top == "tabular":
            return TablePrior(n)
        if self.top == "bits":
            return BitsPrior(n)
        if self.top == "aggregated":
            if len(self.hidden) != 1 or self.N is None:
                raise DataError("top 'aggregated' is for one hidden layer over a data set of known size N")
            return AggregatedPosterior(n, self.N, self.in_features)
        raise DataError(f"top is rbm, tabular, bits or aggregated, not {self.top!r}")

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

    @torch.no_grad()
    def loglik(self, x: Tensor, **ignored: Any) -> Tensor | None:
        """The exact log-likelihood of each datum, nats, (n,); None where it cannot be enumerated.

        Raises:
            DataError: a value that pixels of this kind cannot have.
        """
        if self.pixels == "bernoulli":
            fine = (x >= 0) & (x <= 1) if self.hidden else (x == 0) | (x == 1)
            for row, column in (~fine).nonzero()[:1].tolist():
                may = "lie in [0, 1]" if self.hidden else "are 0 or 1"
                where = f"in row {row + 1}, column {column + 1}"
                raise DataError(f"x holds {float(x[row, column]):g} {where}: pixels of this model {may}")
        return super().loglik(x)

    def attach(self, guide: nn.Module) -> None:
        """Let an aggregated posterior be that of the guide: they share q."""
        if isinstance(self.prior, AggregatedPosterior):
            families: Any = getattr(guide, "q", None)
            if families is None:
                raise DataError(f"top 'aggregated' is the q of a composed guide, and {type(guide).__name__} has none")
            self.prior.share(families["h1"])

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
        binary = _is_binary(x)
        if not hidden and not binary:
            raise DataError(f"x of {train.name} is not binary: without a hidden layer it would have a prior on bits")
        entropy = exact.entropy(exact.distinct(x.double())[1])
        options: dict[str, Any] = {"top": top, "top_hidden": top_hidden, "pixels": pixels, "scale": scale}
        model = Model(x.shape[-1], hidden, len(train), entropy=entropy, binary=binary, **options)
        if isinstance(model.prior, AggregatedPosterior):
            model.prior.data.copy_(x)
        return model


def _is_binary(x: Tensor) -> bool:
    return bool(((x == 0) | (x == 1)).all())


class Posterior(nn.Module):
    """The exact posterior r(h_1 | x) of a model with one hidden layer: no parameters of its own, and no gradient.

    Under it the M-step of EM is a gradient step on `Reconstruction`.
    """

    def __init__(self, model: Model, batch: Mapping[str, Any]) -> None:
        super().__init__()
        if len(model.hidden) != 1:
            raise DataError("Posterior enumerates the codes of one hidden layer")
        self._model, self.N = (model,), model.N

    def forward(self, x: Tensor, **ignored: Any) -> None:
        """Sample h_1."""
        model: Any = self._model[0]
        with torch.no_grad():
            log_r = exact.posterior(model.decoders[0].table(x), model.log_prior())
        with data_plate(len(x), self.N, device=x.device):
            sample("h1", Tabular(log_r))


class Criterion(LayerBound):
    """L_D(theta_I, q_D), the theorem's objective, by enumeration: -N/n sum_n log sum_h P_I(x_n|h) q_D(h)."""

    def values(self, seen: Seen) -> Tensor:
        log_q = table(seen.q)  # (n, 2^bits)
        return (seen.decoder.table(seen.below) + minibatch_aggregated(log_q, seen.N)).logsumexp(-1)


def minibatch_aggregated(log_q: Tensor, N: int) -> Tensor:
    """log of an unbiased q_D for each datum of a batch: its own code counts 1/N, whatever the batch; (n, 2^n).

    A batch of one row knows no other codes: there only its own share q / N is left, a lower bound.

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
        if particles < 2:
            raise TrainingError("SampledCriterion needs two codes of each datum or more: particles=2")
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
            others = _without_each(log_terms.flatten(0, 1)).view_as(log_terms)  # (K, m, n)
            replaced = _without_each(log_terms) - math.log(K - 1)
            signal = (total - others.logaddexp(replaced)).sum(-1)  # (K, m): total less the one without code k
        score = (signal * seen.q.log_prob(h)).sum(0)
        return total + score - score.detach()


def _without_each(x: Tensor) -> Tensor:
    """logsumexp over the first dimension without each entry in turn; a difference would cancel where one dominates."""
    none = torch.full_like(x[:1], -math.inf)
    before = torch.cat([none, x.logcumsumexp(0)[:-1]])
    after = torch.cat([x.flip(0).logcumsumexp(0).flip(0)[1:], none])
    return before.logaddexp(after)


class Codes(LayerBound):
    """The sum form of the auto-encoder bound: -N/n sum_n log sum_h q(h|x_n) P_I(x_n|h) + N H(P_D), enumerated."""

    def values(self, seen: Seen) -> Tensor:
        return (table(seen.q) + seen.decoder.table(seen.below)).logsumexp(-1) - seen.entropy  # lw.13


class Reconstruction(LayerBound):
    """The expectation form: -N/n sum_n E_q log P_I(x_n|h) + N H(P_D): an auto-encoder whose code is stochastic.

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
    """What a classical auto-encoder trains, -N/n sum_n log P_I(x_n | E_q h) + N H(P_D).

    NOT A BOUND: it may exceed U_D.
    """

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

    The last code is enumerated up to `bits` units and drawn beyond; those below are drawn. Without a hidden layer the
    prior learns x itself.
    """

    evidence_bound = LeaveOneOut()

    def __init__(self, *, bits: int = TABLE_BITS) -> None:
        super().__init__()
        self.bits = bits

    def differentiable_loss(self, model: Any, guide: Any, **batch: Any) -> Tensor:
        if not model.hidden:
            x = batch["x"]
            return -(model.N or len(x)) / len(x) * model.prior().log_prob(x).sum()
        seen = look(model, guide, len(model.hidden), batch)
        if seen.bits <= self.bits:
            values = (table(seen.q).detach().exp() * table(model.prior())).sum(-1)  # lw.12
        else:
            values = model.prior().log_prob(seen.code.detach())  # lw.12
        return -seen.N / len(seen.below) * values.sum()


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
TOPS: dict[str, type[ELBO]] = {"Top": Top, "TopCD": TopCD, "TopPCD": TopPCD}


def guide(model: Model, batch: Mapping[str, Any], *, latents: Any = Rich) -> nn.Module:
    """The paper's q: a rich encoder for each layer, from the bottom up (or another family)."""
    found = Guide(model, batch, latents=latents, given=model.given)
    model.attach(found)
    return found


GUIDES = {"TiedRBM": TiedRBM, "Posterior": Posterior}
DEFAULTS = {"data": "tea", "guides": "Vanilla,Rich,Autoregressive"}


def bound(guide: nn.Module | None = None) -> ELBO:
    """What the bottom layer trains: `Reconstruction`, or `CD` under `TiedRBM`."""
    return CD() if isinstance(guide, TiedRBM) else Reconstruction()


def phases(
    model: Model,
    guide: nn.Module,
    *,
    criterion: str | None = None,
    top_criterion: str | None = None,
    fine_tune: bool = False,
) -> list[Phase]:
    """Layer-wise training: each layer on its criterion, given those below; then the prior on the codes (lw.12).

    Args:
        criterion: of the layers, a name of `CRITERIA`; `bound(guide)`'s if not given.
        top_criterion: of the prior, a name of `TOPS`; if not given `Top`, or `TopPCD` for an RBM whose log Z cannot be
            enumerated.
        fine_tune: whether all layers are trained together in the end, on the exact evidence where it can be had, after
            which the guide alone follows on the evidence bound; else on VIMCO's bound.
    """
    exact_top = not isinstance(model.prior, RBM) or model.prior.enumerable
    kind: Any = _named(criterion, CRITERIA, "criterion") or type(bound(guide))
    learn = _named(top_criterion, TOPS, "top_criterion") or (Top if exact_top else TopPCD)
    found = [
        Phase(f"layer {k}", kind(k), [*decoder.parameters(), *_guide_parameters(guide, k)])
        for k, decoder in enumerate(model.decoders, 1)
    ]
    prior = list(model.prior.parameters())
    if prior and model.top != "aggregated":
        found.append(Phase("top", learn(), prior))
    if fine_tune and model.hidden:
        found.append(Phase("fine-tuning", Evidence() if model.enumerable else estimators.VIMCO(8), None))
        if model.enumerable and list(guide.parameters()):  # the exact evidence leaves q where it was
            found.append(Phase("guide", LeaveOneOut(), list(guide.parameters())))
    return found


def _named(name: str | None, known: Mapping[str, type[ELBO]], what: str) -> type[ELBO] | None:
    if name is not None and name not in known:
        raise DataError(f"no {what} {name!r}; there are: {', '.join(known)}")
    return known[name] if name else None


def _guide_parameters(guide: Any, layer: int) -> list[nn.Parameter]:
    if isinstance(guide, Posterior):
        return []
    part = guide.machines[layer - 1] if isinstance(guide, TiedRBM) else guide.q[f"h{layer}"]
    return list(part.parameters())


def data(name: str = "tea", *, split: int = 0, **options: Any) -> Split:
    """Any table of `zoo.lab.data`, x alone: columns in [0, 1] as they are, labels left out."""
    return load_x(name, split=split, **options)


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


@torch.no_grad()
def promise(model: Model, x: Tensor, *, steps: int = 2000) -> float:
    """U of the bottom layer on data x (N, D), nats per datum: by it layers are ranked before any layer above exists.

    On validation data; that of the training data overfits (lw.22).
    """
    rows, log_w = exact.distinct(x)
    decoder: Any = model.decoders[0]
    return exact.blm(decoder.table(rows), log_w, steps=steps).bound


def account(model: Model, guide: nn.Module, x: Tensor, *, steps: int = 2000) -> Account:
    """Every bound of the bottom layer on the data x (N, D), exactly, in nats per datum; see `accounts.Account`."""
    T, log_q, log_prior, log_w, mean_field = tables(model, guide, x)
    found = accounts.account(T, log_q, log_prior, log_w, mean_field=mean_field, steps=steps)
    return found if model.pixels == "bernoulli" and _is_binary(x) else replace(found, ceiling=None)


def held_out(model: Model, guide: nn.Module, train: Tensor, valid: Tensor, *, steps: int = 2000) -> HeldOut:
    """What the bottom layer promises on validation data, and the final score, nats per datum: `accounts.HeldOut`."""
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
    told = [f"Layers {layers}, top {model.top}.", _ceiling(model)]
    if not model.enumerable and model.hidden:
        told.append("The likelihood cannot be enumerated here: log-likelihoods are importance-weighted estimates.")
    annealed = model.annealed
    if annealed is not None:
        told.append(
            f"log Z of the top by annealed importance sampling: {annealed.log_z:.2f} ± {annealed.error:.2f} nats, too "
            "low in the mean, so that likelihoods and bounds are too high."
        )
    return told


def _ceiling(model: Model) -> str:
    if model.pixels != "bernoulli":
        return "Gaussian pixels: log-likelihoods are log densities, in the units of x, and have no ceiling."
    if not model.binary:
        return "x is not binary: grey values count as probabilities, and the data entropy is no ceiling."
    return (
        f"Data entropy {model.entropy:.3f} nats, so no training log-likelihood per datum exceeds {-model.entropy:.3f}."
    )


def books(fit: Fit, split: Split) -> list[str]:
    """The account of a trained bottom layer in words, or why there is none of a large one; empty beyond enumeration."""
    model: Any = fit.model
    if not model.hidden or not model.enumerable:
        return []
    parts = [part for part in (split.train, split.valid) if part is not None]
    cells = max(len(part["x"].unique(dim=0)) for part in parts) * 2 ** model.hidden[0]
    if cells > BOOKS:
        return [
            f"no books are kept of {cells:,} pairs of datum and code, more than {BOOKS:,}: they would fill the memory."
        ]
    found = account(model, fit.guide, _like(model, split.train), steps=500)
    told = (
        f"on the training data the best latent marginal is {found.blm:.3f} nats per datum, the criterion of q_D "
        f"{found.criterion:.3f}, the auto-encoder bound {found.reconstruction:.3f} (its mean-field form, no bound, "
        f"{found.mean_field:.3f}), the deep log-likelihood {found.deep:.3f}: the top costs "
        f"{found.criterion - found.deep:.3f}, at most {found.price:.3f} by lw.8."
    )
    if split.valid is None:
        return [told]
    promised = promise(model, _like(model, split.valid), steps=500)
    return [told, f"on the validation data the best latent marginal, by which layers are ranked, is {promised:.3f}."]


def _like(model: Model, table: Table) -> Tensor:
    return table["x"].to(next(model.parameters()))


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
    Claim("C3", "Layer-wise training with rich inference beats stacked RBMs (here: on Tea).", source="abstract"),
    Claim("C4", "Inference should be richer than generation: AERI beats the plain auto-encoder (here: on Tea).",
          source="abstract"),
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
