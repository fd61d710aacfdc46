"""Markov chains that walk in the top representation of a deep model, and how well they mix.

Bengio, Mesnil, Dauphin, Rifai (2012). Better mixing via deep representations. arXiv 1207.4404; ICML 2013. Equation ids
are this project's own; the paper's text was not at hand, so this is the paper as we understand it.

Model: a deep belief network (DBN) of depth L, h_0 = x in {0,1}^D; L = 1 is an RBM whose visible side is x.

    mix.1   RBM: E(v,h) = -v'Wh - b.v - c.h;  F(v) = -b.v - sum_j softplus(c + v'W)_j;  log P(v) = -F(v) - log Z
    mix.3   P(x, h_1..h_{L-1}) = P_RBM_L(h_{L-1}) prod_{l<L} P(h_{l-1} | h_l),
            P(h_{l-1,i} = 1 | h_l) = sigma(b_l + W_l h_l)_i
    mix.6   contractive auto-encoder: f(x) = sigma(x W + c), g(h) = sigma(h W' + b), J = diag(h (1 - h)) W';
            loss -sum_i [x_i log g_i + (1 - x_i) log(1 - g_i)] + lambda |J|^2,
            |J|^2 = sum_j (h_j (1 - h_j))^2 sum_i W_ij^2;  stacked on the means of the level below.  No density

Guide, bottom-up:  q(h_l | h_{l-1}) = sigma(r_l + h_{l-1} R_l),  R_l = W_l and r_l = c_l after greedy training.

Bounds:

    mix.2   an RBM learns by <v h'>_data - <v h'>_model, the average of the model exact, after k sweeps from the data
            (CD), or of persistent particles (PCD)
    mix.4   log P(x) >= E_q[log P(x, h_1..h_{L-1})] + H(q), for fine-tuning and as a score
    mix.5   AIS: Z = Z_0 mean prod_k exp(F_{beta_k}(v_k) - F_{beta_k+1}(v_k)), v_k from the machine
            (beta_k W, (1 - beta_k) b_0 + beta_k b, beta_k c)

Chains:

    mix.7   level L: s in {0,1}^n_{L-1}, h ~ P(h_L | s), s' ~ P(h_{L-1} | h); a kept s is decoded once, never fed back
    mix.8   auto-encoders: s' = g_L(h + J J' eps), h = f_L(s), eps ~ N(0, sd^2 I): a process without a known target
    mix.9   block Gibbs K = A B, A[v,h] = P(h | v), B[h,v] = P(v | h): reversible and positive, no autocorrelation < 0
    mix.10  three chains with the same target P(x): a sweep of x_i ~ P(x_i | x_-i); x <-> h_1, h_1 from the exact
            posterior; mix.7 decoded
    mix.11  x ~ p(x | z), z' ~ q(. | x), accepted with min(1, p(x,z') q(z|x) / (p(x,z) q(z'|x))); without the acceptance
            it is no sampler of p unless q is the posterior

Measures, exact for enumerated chains (`zoo.lab.markov`) and of draws (`zoo.lab.visits`, ArviZ):

    mix.12  tau_f = 1 + 2 sum_k rho_k = (2 <f, Z f> - <f, f>) / <f, f>, Z = (I - K + 1 pi')^-1;  ESS = M T / tau_f
    mix.13  f(x_t) decoded from h_t: tau_x(f) = 1 + (Var g / Var f) (tau_h(g) - 1), g(h) = E[f(x) | h]
    mix.14  P(class k not among T labels) = start D_a (K D_a)^(T-1) 1, a = 1 - P(k | s);  V_T = sum_k 1 - that
    mix.15  V_T <= sum_k 1 - (1 - p_k)^T for a reversible positive chain in stationarity
    mix.16  switch rate P(label_{t+1} != label_t), 1 - sum_k p_k^2 if independent; class transition matrix; relaxation
            time 1 / (1 - lambda_2); first passage (I - K_outside) m = 1
    mix.17  TV_t = 1/2 sum_k |P(label_t = k) - p_k| from a start in one class
    mix.18  Parzen: log p(x) = logsumexp_k(-|x - s_k|^2 / 2 sd^2) - log S - D/2 log(2 pi sd^2)
    mix.19  h(t) = (1 - t) h_a + t h_b decoded, scored by mix.18 on other data
    mix.20  h + s std(h) eps decoded, scored by mix.18, against s
    mix.21  test error of a linear classifier on every level

    symbol      site or name                                  shape
    x           batch key "x", site "x" in plate "data"       (n, D)
    h_l         site "h1", "h2", ... in plate "data", l < L   (n, n_l)
    W_l, b_l    model.decoders[l - 1].W (transposed), .b      (n_l, n_{l-1}), (n_{l-1})
    W_L,b_L,c_L model.prior.W, .b, .c                         (n_{L-1}, n_L), (n_{L-1}), (n_L)
    R_l, r_l    guide.R[l - 1], guide.machines[l - 1].c       (n_{l-1}, n_l), (n_l)
    chains      Chains.draws                                  (chain, draw, ...)

Departures from the paper:
    - the compared chains have different targets, so visits are never shown without fit, class law and exact controls;
    - R-hat, effective sample sizes, ceilings and enumerated kernels are ours; the paper's widths and rates are unknown;
    - pictures are made binary by a threshold at 1/2 for both families;
    - grey levels, the Toronto faces and the paper's numbers are not compared with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, NamedTuple

import torch
from pyro import factor, sample
from pyro.distributions import Bernoulli
from pyro.infer import ELBO, Trace_ELBO
from torch import Tensor, nn

from guides import data_plate
from guides.codes import states
from zoo.lab import chain_reports, geometry, kernels, markov, scores
from zoo.lab.chain_reports import Walk
from zoo.lab.data import DataError, Split, Table, load, load_x
from zoo.lab.estimators import LeaveOneOut, WakeSleep
from zoo.lab.geometry import Levels
from zoo.lab.kernels import Step
from zoo.lab.layers import Decoder, Layered
from zoo.lab.ledger import Claim
from zoo.lab.noise import Noise
from zoo.lab.options import Least
from zoo.lab.rbm import RBM, TiedMachine
from zoo.lab.training import Fit, Phase, TrainingError

VALID = 200  # rows cut from the training data where a set has no validation part


class Model(Layered):
    """A deep belief network.

    Args:
        in_features: D.
        widths: n_1..n_L, from the bottom up; one is an RBM.
        N: size of the data set; None follows the batch.
        particles: persistent chains of every machine.
        scale: standard deviation of the initial weights.
    """

    def __init__(
        self,
        in_features: int,
        widths: Sequence[int] = (64, 64),
        N: int | None = None,
        *,
        particles: int = 100,
        scale: float = 0.01,
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise DataError(f"a deep belief network has one layer or more of one unit or more, not {list(widths)}")
        if particles < 1 or scale < 0:
            raise DataError(f"particles takes 1 or more, and scale 0 or more; not {particles} and {scale}")
        self.in_features, self.widths, self.N = in_features, list(widths), N
        self.particles, self.scale = particles, scale
        self.hidden = self.widths[:-1]  # those with a site; h_L is summed out
        sizes = [in_features, *widths]
        self.decoders = nn.ModuleList(Decoder(sizes[k + 1], sizes[k], scale=scale) for k in range(len(self.hidden)))
        self.prior = RBM(sizes[-2], sizes[-1], scale=scale, particles=particles)

    def forward(self, x: Tensor | None = None, **ignored: Any) -> Tensor:
        """The generative story mix.3. x: (n, D), or None for N dreams."""
        n = self.N or 1 if x is None else len(x)
        with data_plate(n, self.N, device=self.device):
            if not self.hidden:
                return sample("x", self.prior(), obs=x)  # (n, D)
            h = sample(f"h{len(self.hidden)}", self.prior())  # (n, n_{L-1})
            for k in range(len(self.hidden) - 1, 0, -1):
                h = sample(f"h{k}", self.decoders[k](h))  # (n, n_k)
            return sample("x", self.decoders[0](h), obs=x)  # (n, D)  mix.3

    @property
    def depth(self) -> int:
        """L."""
        return len(self.widths)

    @torch.no_grad()
    def loglik(self, x: Tensor, **ignored: Any) -> Tensor | None:
        """The exact log-likelihood of each datum, nats, (n,); None where it cannot be enumerated.

        Raises:
            DataError: a value that is no bit.
        """
        for row, column in ((x != 0) & (x != 1)).nonzero()[:1].tolist():
            where = f"in row {row + 1}, column {column + 1}"
            raise DataError(f"x holds {float(x[row, column]):g} {where}: pixels of this model are 0 or 1")
        return super().loglik(x)

    def decode(self, s: Tensor, noise: Noise | None = None) -> Tensor:
        """x from a code of level L - 1: drawn downwards with noise, means without. s: (n, n_{L-1}); returns (n, D)."""
        for decoder in reversed(self.decoders):
            assert isinstance(decoder, Decoder)
            probs = decoder.logits(s).sigmoid()
            s = probs if noise is None else noise.bernoulli(probs)  # mix.7
        return s

    @staticmethod
    def for_data(
        train: Table,
        *,
        depth: int | None = None,
        width: int = 64,
        hidden: Sequence[int] | None = None,
        particles: int = 100,
        scale: float = 0.01,
    ) -> Model:
        """The model of a table; the pixels' biases start at the logits of their means.

        Args:
            depth: L, of `width` units each; 2 if not given. hidden: n_1..n_L instead.
        """
        widths = _widths(depth, width, hidden)
        x = _binary(train)
        model = Model(x.shape[-1], widths, len(x), particles=particles, scale=scale)
        with torch.no_grad():
            bottom: Any = model.decoders[0] if model.hidden else model.prior
            bottom.b.copy_(x.mean(0).clamp(0.01, 0.99).logit())
        return model


def _widths(depth: int | None, width: int, hidden: Sequence[int] | None) -> list[int]:
    if hidden is not None and depth is not None and depth != len(hidden):
        raise DataError(f"depth {depth} and {len(hidden)} hidden widths: give one of them")
    if depth is not None and (not isinstance(depth, int) or depth < 1):
        raise DataError(f"depth is a number of layers, 1 or more, not {depth!r}")
    return [width] * (2 if depth is None else depth) if hidden is None else list(hidden)


def _binary(table: Table) -> Tensor:
    x = table["x"]
    if bool(((x != 0) & (x != 1)).any()):
        raise DataError(f"x of {table.name} is not binary: open it by mixing.data, which cuts grey values at 1/2")
    return x


class Recognition(nn.Module):
    """q(h_l | h_{l-1}) = sigma(r_l + h_{l-1} R_l), from the bottom up.

    While machines are trained greedily (`follow`) R_l is W_l; fine-tuning sets it free.
    """

    def __init__(self, model: Model, batch: Mapping[str, Any]) -> None:
        super().__init__()
        self.N = model.N
        decoders: Any = model.decoders
        self.machines = nn.ModuleList(TiedMachine(decoder, particles=model.particles) for decoder in decoders)
        self.R = nn.ParameterList(decoder.W.detach().mT.clone() for decoder in decoders)

    def forward(self, x: Tensor, **ignored: Any) -> None:
        """Sample h_1, h_2, ..."""
        v = x
        with data_plate(len(x), self.N, device=x.device):
            for k in range(1, len(self.R) + 1):
                v = sample(f"h{k}", Bernoulli(logits=self.logits(k, v)).to_event(1))  # type: ignore[operator]

    def logits(self, level: int, below: Tensor) -> Tensor:
        """Logits of q(h_level | h_{level-1})."""
        machine: Any = self.machines[level - 1]
        return below @ self.R[level - 1] + machine.c

    @torch.no_grad()
    def follow(self) -> None:
        """R_l = W_l at every level."""
        for R, machine in zip(self.R, self.machines, strict=True):
            R.copy_(machine.W)  # type: ignore[arg-type]

    @torch.no_grad()
    def encode(self, x: Tensor, level: int, noise: Noise | None = None) -> Tensor:
        """h_level of x: draws with noise, means of means without. x: (n, D); returns (n, n_level), x itself at 0."""
        for k in range(1, level + 1):
            probs = self.logits(k, x).sigmoid()
            x = probs if noise is None else noise.bernoulli(probs)
        return x


class Greedy(Trace_ELBO):
    """One RBM of the stack learns the codes of the level below; nats for the data set, the value no likelihood.

    Args:
        level: of the machine, 1 at the bottom.
        method: "CD", "PCD", or "ExactRBM" (log Z enumerated, a likelihood of the codes).
        k: sweeps.
        codes: what is learned above the first level: "means" of the codes below, or "draws".

    Raises:
        TrainingError: an unknown method or kind of codes, no sweeps, a guide that is none of this paper.
    """

    evidence_bound = LeaveOneOut()

    def __init__(self, level: int = 1, *, method: str = "PCD", k: int = 1, codes: str = "means") -> None:
        super().__init__()
        if method not in METHODS or codes not in ("means", "draws"):
            raise TrainingError(
                f"criterion is {', '.join(METHODS)}, codes are means or draws; not {method!r}, {codes!r}"
            )
        if k < 1:
            raise TrainingError(f"k is a number of sweeps, 1 or more, not {k}")
        self.level, self.method, self.k, self.codes = level, method, k, codes
        self.likelihood = method == "ExactRBM"  # else no convergence is judged by its value

    def differentiable_loss(self, model: Any, guide: Any, **batch: Any) -> Tensor:
        if not isinstance(guide, Recognition):
            raise TrainingError(STRANGER.format(type(guide).__name__))
        guide.follow()
        v = batch["x"]
        for k in range(1, self.level):
            v = guide.logits(k, v).detach().sigmoid()
            v = v if self.codes == "means" else torch.bernoulli(v)
        machine = model.prior if self.level == model.depth else guide.machines[self.level - 1]
        return (model.N or len(v)) * METHODS[self.method](machine, v, self.k)  # mix.2, mix.3


STRANGER = "a stack of RBMs is trained with the guide Recognition, not {}"
METHODS: dict[str, Any] = {
    "PCD": lambda machine, v, k: machine.pcd(v, k=k),
    "CD": lambda machine, v, k: machine.cd(v, k=k),
    "ExactRBM": lambda machine, v, k: -machine.log_prob(v).mean(),
}
FINE: dict[str, Any] = {"none": None, "elbo": LeaveOneOut, "wake-sleep": WakeSleep}


class Contractive(nn.Module):
    """Stacked contractive auto-encoders as a Pyro pseudo-model: x is predicted from x, so it is NOT generative.

    Under `Nothing` its `Trace_ELBO` is the sum of mix.6 over levels and data; every level takes the means of the one
    below as given. It has no density: no likelihood, k-hat or evidence bound can be asked of it.

    Args:
        in_features: D. widths: n_1..n_L. N: size of the data set.
        contraction: lambda. noise: sd of the walk mix.8. scale: standard deviation of the initial weights.
    """

    density = False  # what it scores is no log-likelihood

    def __init__(
        self,
        in_features: int,
        widths: Sequence[int] = (64, 64),
        N: int | None = None,
        *,
        contraction: float = 0.1,
        noise: float = 1.0,
        scale: float = 0.1,
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise DataError(f"an auto-encoder has one level or more of one unit or more, not {list(widths)}")
        if min(contraction, noise, scale) < 0:
            raise DataError(f"contraction, noise and scale take 0 or more; not {contraction}, {noise} and {scale}")
        self.in_features, self.widths, self.N = in_features, list(widths), N
        self.contraction, self.noise, self.scale = contraction, noise, scale
        sizes = [in_features, *widths]
        self.levels = nn.ModuleList(Level(sizes[k], sizes[k + 1], scale=scale) for k in range(len(widths)))

    def forward(self, x: Tensor, **ignored: Any) -> None:
        """x, h_1, ... each predicted from itself, with the contraction as a factor. x: (n, D)."""
        with data_plate(len(x), self.N, device=x.device):
            below = x
            for k, level in enumerate(self.levels):
                assert isinstance(level, Level)
                h = level.encode(below)  # (n, n_k)
                law = Bernoulli(logits=level.logits(h), validate_args=False).to_event(1)
                sample("x" if k == 0 else f"h{k}", law, obs=below)  # grey values count as probabilities
                factor(f"contraction{k + 1}", -self.contraction * level.contraction(h))  # mix.6
                below = h.detach()

    @property
    def depth(self) -> int:
        """L."""
        return len(self.widths)

    @torch.no_grad()
    def encode(self, x: Tensor, level: int) -> Tensor:
        """f_level o .. o f_1; x itself at 0."""
        for k in range(level):
            x = self.levels[k].encode(x)  # type: ignore[operator]
        return x

    @torch.no_grad()
    def decode(self, s: Tensor, level: int | None = None) -> Tensor:
        """g_1 o .. o g_level of a code of that level, L - 1 if not given."""
        for k in reversed(range(self.depth - 1 if level is None else level)):
            s = self.levels[k].logits(s).sigmoid()  # type: ignore[operator]
        return s

    @staticmethod
    def for_data(
        train: Table,
        *,
        depth: int | None = None,
        width: int = 64,
        hidden: Sequence[int] | None = None,
        contraction: float = 0.1,
        noise: float = 1.0,
        scale: float = 0.1,
    ) -> Contractive:
        """The stack for a table; arguments as in `Model.for_data`."""
        x = train["x"]
        widths = _widths(depth, width, hidden)
        model = Contractive(x.shape[-1], widths, len(x), contraction=contraction, noise=noise, scale=scale)
        with torch.no_grad():
            model.levels[0].b.copy_(x.mean(0).clamp(0.01, 0.99).logit())  # type: ignore[operator]
        return model


class Level(nn.Module):
    """One contractive auto-encoder with tied weights. W: (below, above); b: (below,); c: (above,)."""

    def __init__(self, below: int, above: int, *, scale: float = 0.1) -> None:
        super().__init__()
        self.W = nn.Parameter(scale * torch.randn(below, above))
        self.b, self.c = nn.Parameter(torch.zeros(below)), nn.Parameter(torch.zeros(above))

    def encode(self, x: Tensor) -> Tensor:
        """f(x) = sigma(x W + c)."""
        return (x @ self.W + self.c).sigmoid()

    def logits(self, h: Tensor) -> Tensor:
        """Logits of g(h)."""
        return h @ self.W.mT + self.b

    def contraction(self, h: Tensor) -> Tensor:
        """|J|^2 of each datum, J = df/dx = diag(h (1 - h)) W'; (n,)."""
        return (h * (1 - h)).square() @ self.W.square().sum(0)  # mix.6

    def jacobian(self, h: Tensor) -> Tensor:
        """J of each datum, (n, above, below)."""
        return (h * (1 - h)).unsqueeze(-1) * self.W.mT


class Nothing(nn.Module):
    """The empty guide of a model without latents."""

    def __init__(self, model: nn.Module, batch: Mapping[str, Any]) -> None:
        super().__init__()

    def forward(self, **batch: Any) -> None:
        """Sample nothing."""


def guide(model: nn.Module, batch: Mapping[str, Any]) -> nn.Module:
    """`Recognition`, bottom-up; `Nothing` for auto-encoders."""
    return Recognition(model, batch) if isinstance(model, Model) else Nothing(model, batch)


GUIDES = {"Recognition": Recognition}
DEFAULTS = {"data": "digits", "guides": "Recognition"}


def bound(guide: nn.Module | None = None) -> ELBO:
    """The evidence bound mix.4 by the score function; without latents, the log-probability itself."""
    return LeaveOneOut() if isinstance(guide, Recognition) and len(guide.R) else Trace_ELBO()  # mix.4


def phases(
    model: nn.Module,
    guide: nn.Module,
    *,
    criterion: str = "PCD",
    k: int = 1,
    codes: str = "means",
    fine_tune: str = "none",
) -> list[Phase]:
    """Greedy training, one level after the other; then, if asked for, all of a DBN together.

    Args:
        criterion: of the machines: PCD, CD or ExactRBM. k: sweeps of it. codes: "means" or "draws", see `Greedy`.
        fine_tune: "none", "elbo" (mix.4, guide and model free of one another) or "wake-sleep" (reweighted).
    """
    if isinstance(model, Contractive):
        if (criterion, k, codes, fine_tune) != ("PCD", 1, "means", "none"):
            raise DataError("criterion, k, codes and fine_tune are for DBNs: auto-encoders have a loss of their own")
        return [Phase(f"level {n}", Trace_ELBO(), list(level.parameters())) for n, level in enumerate(model.levels, 1)]
    assert isinstance(model, Model)
    if not isinstance(guide, Recognition):
        raise TrainingError(STRANGER.format(type(guide).__name__))
    if fine_tune not in FINE:
        raise DataError(f"fine_tune is {', '.join(FINE)}; not {fine_tune!r}")
    made = []
    for level in range(1, model.depth + 1):
        greedy = Greedy(level, method=criterion, k=k, codes=codes)
        moving = (
            model.prior.parameters()
            if level == model.depth
            else [*model.decoder(level).parameters(), *guide.machines[level - 1].parameters()]
        )
        made.append(Phase(f"level {level}", greedy, list(moving)))
    if FINE[fine_tune] and model.hidden:
        made.append(Phase("fine-tuning", FINE[fine_tune](), None))
    return made


def data(name: str = "digits", *, split: int = 0, **options: Any) -> Split:
    """A table of `zoo.lab.data` with grey values cut at 1/2, its labels, if any, kept, and a validation part."""
    parts = load_x(name, split=split, **options)  # not standardised
    try:
        named = load(name, split=split, **options)
    except DataError:  # a file of the user's own without a target
        named = parts
    train, valid, test = (
        None if part is None or other is None else _cut(part, other) for part, other in zip(parts, named, strict=True)
    )
    assert train is not None and test is not None
    if valid is None and len(train) >= 4 * VALID:
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(split))
        train, valid = train.subset(order[VALID:]), train.subset(order[:VALID])
    return Split(train, valid, test)


def _cut(part: Table, named: Table) -> Table:
    x = part["x"]
    if bool((x < 0).any() or (x > 1).any()):
        raise DataError(
            f"x of {part.name} lies outside [0, 1]: chains here walk on bits; choose binary data or pictures"
        )
    labels = {"y": named["y"]} if "y" in named.tensors and named.classes else {}
    bits = (x > 0.5).to(torch.get_default_dtype())
    transform = part.transform if torch.equal(bits, x.to(bits)) else None  # a cut is none of its steps
    return replace(part, tensors={"x": bits, **labels}, classes=named.classes if labels else None, transform=transform)


def walk(model: nn.Module, guide: nn.Module) -> Walk:
    """The paper's chain of a model: `top_walk` of a DBN, `jacobian_walk` of auto-encoders."""
    return jacobian_walk(model) if isinstance(model, Contractive) else top_walk(model, guide)  # type: ignore[arg-type]


def top_walk(model: Model, guide: Recognition) -> Walk:
    """Block Gibbs of the top RBM on h_{L-1}, from encoded data, decoded downwards (mix.7)."""
    return Walk(
        kernels.block_gibbs(model.prior),
        lambda x, noise: guide.encode(x, model.depth - 1, noise),
        model.decode,
        model.decode,
        lambda s: {"free energy": model.prior.free_energy(s)},
    )


def jacobian_walk(model: Contractive) -> Walk:
    """s' = g_L(h + J J' eps), h = f_L(s): noise only along directions to which the code is sensitive."""
    top: Any = model.levels[-1]

    def step(s: Tensor, noise: Noise) -> Tensor:
        h = top.encode(s)
        J = top.jacobian(h)
        eps = model.noise * noise.normal(h.shape[1])
        return top.logits(h + (J @ (J.mT @ eps.unsqueeze(-1))).squeeze(-1)).sigmoid()  # mix.8

    return Walk(
        step,
        lambda x, noise: model.encode(x, model.depth - 1),
        lambda s, noise: noise.bernoulli(model.decode(s)),
        model.decode,
        lambda s: {},
    )


def levels(model: nn.Module, guide: nn.Module) -> Levels:
    """The representations of a model by means, level L included; x itself at level 0."""
    if isinstance(model, Contractive):
        return Levels(model.encode, model.decode, model.depth)
    assert isinstance(model, Model) and isinstance(guide, Recognition)

    @torch.no_grad()
    def encode(x: Tensor, level: int) -> Tensor:
        h = guide.encode(x, min(level, model.depth - 1))
        return model.prior.hidden_logits(h).sigmoid() if level == model.depth else h

    @torch.no_grad()
    def decode(h: Tensor, level: int) -> Tensor:
        if level == model.depth:
            h = model.prior.visible_logits(h).sigmoid()
        for k in range(min(level, model.depth - 1), 0, -1):
            h = model.decoder(k).logits(h).sigmoid()
        return h

    return Levels(encode, decode, model.depth)


def alternating(model: Model) -> Step:
    """x <-> h_1: h_1 ~ P(h_1 | x), the exact posterior by enumeration; x ~ P(x | h_1)."""
    bottom, log_prior = model.decoder(1), model.log_prior().detach()
    codes = states(model.hidden[0], like=log_prior)

    def step(x: Tensor, noise: Noise) -> Tensor:
        h = codes[noise.category(bottom.table(x) + log_prior)]
        return noise.bernoulli(bottom.logits(h).sigmoid())  # mix.10

    return step


class SameTarget(NamedTuple):
    """Three chains with the same target P(x), as matrices.

    Attributes:
        law: P(x), (2^D). prior: P(h_1), (2^n_1). decode: P(x | h_1), (2^n_1, 2^D).
        sweep, alternate: kernels on x. top: the kernel on h_1, decoded.
    """

    law: Tensor
    prior: Tensor
    decode: Tensor
    sweep: Tensor
    alternate: Tensor
    top: Tensor


@torch.no_grad()
def same_target(model: Model) -> SameTarget:
    """The three chains of mix.10 of an enumerable DBN of depth 2, in double precision.

    Raises:
        DataError: another depth, or more than 2^12 states.
    """
    if model.depth != 2 or max(model.in_features, model.hidden[0]) > 12:
        raise DataError("the same-target control enumerates a DBN of depth 2 with up to 12 pixels and codes")
    h, x = states(model.hidden[0]).double(), states(model.in_features).double()
    decode = markov.bits_kernel(model.decoder(1).logits(h.to(model.decoder(1).b)), x)
    prior = model.log_prior().double().softmax(0)
    law = prior @ decode
    posterior = (prior[:, None] * decode).mT / law[:, None]
    A, B = markov.halves(model.prior)
    return SameTarget(law, prior, decode, markov.sweep(law.log()), posterior @ decode, A @ B)  # mix.10


def measures(
    fit: Fit, split: Split, *, chains: Annotated[int, Least(2)] = 24, steps: Annotated[int, Least(4)] = 600
) -> chain_reports.ChainReport:
    """Chains from encoded data of different classes, judged: mixing, class law and Parzen score together.

    Args:
        chains: how many. steps: draws of each.
    """
    return chain_reports.judge(walk(fit.model, fit.guide), split, chains=chains, steps=steps)


def remarks(model: nn.Module) -> list[str]:
    """What belongs beside every result."""
    layers = " - ".join(str(n) for n in [model.in_features, *model.widths])  # type: ignore[misc]
    if isinstance(model, Contractive):
        return [f"Levels {layers}; a stack of auto-encoders has no density, and its walk no known target."]
    told = [f"Layers {layers}."]
    if isinstance(model, Model) and (found := model.annealed) is not None:
        told.append(f"log Z of the top by annealed importance sampling: {found.log_z:.2f} ± {found.error:.2f} nats.")
    return told


EQUATIONS = {
    "mix.1": RBM,
    "mix.2": Greedy,
    "mix.3": Model.forward,
    "mix.4": bound,
    "mix.5": RBM.anneal,
    "mix.6": Contractive.forward,
    "mix.7": kernels.block_gibbs,
    "mix.8": jacobian_walk,
    "mix.9": markov.halves,
    "mix.10": same_target,
    "mix.11": kernels.corrected,
    "mix.12": markov.iact,
    "mix.13": markov.decoded_iact,
    "mix.14": markov.visits,
    "mix.15": markov.ceiling,
    "mix.16": markov.switch_rate,
    "mix.17": markov.total_variation,
    "mix.18": scores.parzen_log_density,
    "mix.19": geometry.interpolate,
    "mix.20": geometry.perturb,
    "mix.21": geometry.linear_error,
}

CLAIMS = (
    Claim("C1", "Chains at level 2 of a DBN visit more classes than at level 1 (here: digits).", source="abstract"),
    Claim("C2", "Chains at level 2 of stacked auto-encoders visit more classes than at level 1.", source="abstract"),
    Claim("C3", "Samples of deeper models score better under a Parzen window.", source="cited",
          number="DBN-2: MNIST 138 ± 2, TFD 1909 ± 66; stacked CAE: MNIST 121 ± 1.6, TFD 2110 ± 50"),
    Claim("C4", "Interpolations decoded from deeper levels stay closer to the data.", source="cited"),
    Claim("C5", "Isotropic noise hurts less at deeper levels.", source="cited"),
    Claim("C6", "A linear classifier does better on deeper levels.", source="cited"),
    Claim("C7", "From a one-class start the class law is forgotten faster at deeper levels.", source="abstract"),
    Claim("C8", "With the same target P(x), walking at the top beats walking in x (ours).", source="unknown"),
    Claim("C9", "Shuffled upper weights may visit more classes, but fit and rejection tell (ours).", source="unknown"),
    Claim("C10", "Class visits of block Gibbs never exceed those of independent draws.", source="checked"),
    Claim("C11", "The Parzen score may misrank models.", source="cited"),
)  # fmt: skip
