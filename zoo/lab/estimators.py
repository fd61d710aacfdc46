"""Gradients for discrete latents: ELBOs for models whose latents are local, estimated for each datum by itself.

With f_k = f(h_k), h_k ~ q(. | x), k = 1..K, for each datum, and omega_k = log p(x, h_k) - log q(h_k | x):

    leave_one_out   score function, the control variate of a draw is the mean of the others
    with_baseline   score function, the control variate is a learned function of the datum
    vimco           gradient of the importance-weighted bound log mean_k exp(omega_k)
    reweighted      wake-theta and wake-phi of reweighted wake-sleep

Each returns (n,) values whose gradient is the estimator, in nats per datum. (Equation ids of `zoo.layerwise`.) Draws
that can be differentiated (`guides.Concrete`, `guides.StraightThrough`) need no estimator: `Pathwise`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.nn.functional import softplus

from guides.codes import Binary
from guides.sites import DATA, rows
from zoo.lab.checks import TrainingError
from zoo.lab.exact import log_mean
from zoo.lab.stages import Batch, Batches, Stage
from zoo.lab.tables import row_pieces

ROWS_AT_ONCE = 50_000  # rows times draws that `importance_bound` holds


class EstimatorError(TrainingError):
    """An estimator that does not fit the model or guide; the text says why and what does."""


@dataclass(frozen=True)
class Draws:
    """K draws of the local latents of each datum.

    Attributes:
        log_p: log p(x_n, h_kn), nats, (K, n). log_q: log q(h_kn | x_n), (K, n).
        scale: N / n of the data plate.
        latents: {site: (K, n, ...)}. laws: {site: q(site | context)}.
        pathwise: whether every latent was drawn differentiably.
    """

    log_p: Tensor
    log_q: Tensor
    scale: Any
    latents: dict[str, Tensor]
    laws: dict[str, Any]
    pathwise: bool


def draw(model: Any, guide: Any, batch: Mapping[str, Any], particles: int) -> Draws:
    """Draw K times from the guide and score each draw under both, datum by datum.

    Raises:
        EstimatorError: a latent that is not in the plate "data".
    """
    guide_trace = poutine.trace(_repeated(guide, particles)).get_trace(**batch)
    model_trace = poutine.trace(poutine.replay(_repeated(model, particles), trace=guide_trace)).get_trace(**batch)
    p, q = _local(model_trace), _local(guide_trace)
    n = rows(batch)
    log_p = sum(_log_prob(site, particles, n) for site in p.values())
    log_q = sum(_log_prob(site, particles, n) for site in q.values())
    scale = next(iter(p.values()))["scale"]
    values = {name: site["value"] for name, site in q.items()}
    pathwise = all(site["fn"].has_rsample for site in q.values())
    return Draws(
        torch.as_tensor(log_p), torch.as_tensor(log_q), scale, values, {k: s["fn"] for k, s in q.items()}, pathwise
    )


def _repeated(program: Any, particles: int) -> Any:
    def run(**batch: Any) -> None:
        with pyro.plate("particles", particles, dim=-2):
            program(**batch)

    return run


def _log_prob(site: Mapping[str, Any], particles: int, n: int) -> Tensor:
    return site["fn"].log_prob(site["value"]).expand(particles, n)


def _local(trace: Any) -> dict[str, Any]:
    sites = {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not poutine.util.site_is_subsample(site)
    }
    outside = [n for n, s in sites.items() if not any(frame.name == DATA for frame in s["cond_indep_stack"])]
    if outside:
        raise EstimatorError(
            f"{outside} lie outside the plate 'data': this bound is estimated datum by datum; use Trace_ELBO"
        )
    return sites


def leave_one_out(f: Tensor, log_q: Tensor) -> Tensor:
    """(1/K) sum_k (f_k - mean_{j != k} f_j) grad log q(h_k | x), and the gradient of f itself.

    Args:
        f, log_q: (K, n), K >= 2.
    """
    K = len(f)
    if K < 2:
        raise EstimatorError("leave-one-out needs two draws or more: particles=2")
    others = (f.sum(0) - f) / (K - 1)
    score = ((f - others).detach() * log_q).mean(0)  # lw.23
    return f.mean(0) + score - score.detach()


def with_baseline(f: Tensor, log_q: Tensor, baseline: Tensor) -> Tensor:
    """(1/K) sum_k (f_k - b(x)) grad log q(h_k | x), the gradient of f itself, and descent of (f - b)^2 for b.

    Args:
        f, log_q: (K, n). baseline: b(x_n), (n,).
    """
    score = ((f - baseline).detach() * log_q).mean(0)
    error = -(f.detach() - baseline).square().mean(0)
    learned = score + error
    return f.mean(0) + learned - learned.detach()


def vimco(log_w: Tensor, log_q: Tensor) -> Tensor:
    """The importance-weighted bound L = log mean_k exp(omega_k) with VIMCO's gradient.

    sum_k (L - L_{-k}) grad log q(h_k | x) + grad L, where L_{-k} has the geometric mean of the other weights in the
    place of the k-th.

    Args:
        log_w, log_q: omega and log q, (K, n), K >= 2.
    """
    K = len(log_w)
    if K < 2:
        raise EstimatorError("VIMCO needs two draws or more: particles=2")
    bound = log_mean(log_w)
    w = log_w.detach()
    geometric = (w.sum(0) - w) / (K - 1)  # (K, n)
    replaced = w.expand(K, *w.shape).clone()  # (K, K, n): row k without its own weight
    replaced[range(K), range(K)] = geometric
    signal = bound.detach() - log_mean(replaced, 1)  # lw.25
    score = (signal * log_q).sum(0)
    return bound + score - score.detach()


def reweighted(log_p: Tensor, log_q: Tensor) -> Tensor:
    """Wake phases: sum_k w_k grad log p(x, h_k) for theta and sum_k w_k grad log q(h_k | x) for phi.

    The weights w = softmax(omega) are those of each datum by itself. The value is the importance-weighted bound. The
    phi update is no gradient of it: it descends KL(posterior || q), with a bias of order 1/K.

    Args:
        log_p, log_q: (K, n).
    """
    log_w = (log_p - log_q).detach()
    weights = log_w.softmax(0)
    both = (weights * (log_p + log_q)).sum(0)  # lw.26
    return log_mean(log_w) + both - both.detach()


class Estimated(Trace_ELBO):
    """The evidence bound of a guide over local latents, in nats for the data set; a subclass says how it is estimated.

    Args:
        particles: draws for each datum.

    Attributes:
        differentiates: whether draws that can all be differentiated are.
    """

    differentiates = False

    def __init__(self, particles: int = 8) -> None:
        super().__init__(num_particles=particles)

    def values(self, draws: Draws, guide: Any, batch: Mapping[str, Any]) -> Tensor:
        """The bound of each datum with its gradient, (n,)."""
        raise NotImplementedError

    def differentiable_loss(self, model: Any, guide: Any, **batch: Any) -> Tensor:
        """-N/n sum_n of `values`.

        Raises:
            EstimatorError: a latent outside the plate "data", or drawn differentiably where others are not.
        """
        drawn = draw(model, guide, batch, self.num_particles)
        relaxed = [name for name, law in drawn.laws.items() if law.has_rsample]
        if relaxed and not (drawn.pathwise and self.differentiates):
            raise EstimatorError(
                f"{relaxed} would be differentiated through their draws and by the score function too: choose families "
                "whose draws have no derivative, or for all latents families whose draws have one, with LeaveOneOut"
            )
        return -(drawn.scale * self.values(drawn, guide, batch)).sum()


class LeaveOneOut(Estimated):
    """The ELBO by the score function; the control variate of a draw is the mean of the others (lw.23)."""

    differentiates = True

    def values(self, draws: Draws, guide: Any, batch: Mapping[str, Any]) -> Tensor:
        f = draws.log_p - draws.log_q
        return f.mean(0) if draws.pathwise else leave_one_out(f, draws.log_q)


class LearnedBaseline(Estimated):
    """The ELBO by the score function; the control variate is `guide.baseline(**batch)`, (n,), a module of the guide.

    Reference: Mnih, Gregor (2014), NVIL.
    """

    def values(self, draws: Draws, guide: Any, batch: Mapping[str, Any]) -> Tensor:
        baseline = getattr(guide, "baseline", None)
        if baseline is None:
            raise EstimatorError("LearnedBaseline needs a module guide.baseline: guide.baseline = Baseline(features)")
        return with_baseline(draws.log_p - draws.log_q, draws.log_q, baseline(**batch))


class Baseline(nn.Module):
    """A control variate b(x) of each datum: a perceptron with tanh units.

    Args:
        features: of the batch tensor `x`. hidden: units.
    """

    def __init__(self, features: int, hidden: int = 50) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def forward(self, x: Tensor, **batch: Any) -> Tensor:
        """b(x_n), (n,)."""
        return self.net(x).squeeze(-1)


class VIMCO(Estimated):
    """The importance-weighted bound with VIMCO's gradient (lw.25). Reference: Mnih, Rezende (2016)."""

    differentiates = True

    def values(self, draws: Draws, guide: Any, batch: Mapping[str, Any]) -> Tensor:
        log_w = draws.log_p - draws.log_q
        return log_mean(log_w) if draws.pathwise else vimco(log_w, draws.log_q)


class ReweightedWake(Estimated):
    """Both wake phases of reweighted wake-sleep in one loss, weights of each datum by itself (lw.26).

    (`pyro.infer.ReweightedWakeSleep` normalises them over the whole batch.) Reference: Bornschein, Bengio (2015).
    """

    def values(self, draws: Draws, guide: Any, batch: Mapping[str, Any]) -> Tensor:
        return reweighted(draws.log_p, draws.log_q)


class Sleep(Trace_ELBO):
    """The sleep phase, -N/n sum log q(h | x) at pairs (x, h) drawn from the model; only the guide learns (lw.26).

    Not a bound. Reference: Hinton, Dayan, Frey, Neal (1995).
    """

    def differentiable_loss(self, model: Any, guide: Any, **batch: Any) -> Tensor:
        """As many dreams as the batch has rows."""
        with torch.no_grad():
            dream = poutine.trace(poutine.uncondition(model)).get_trace(**batch)
        sites = _local(dream)
        dreamt = {**batch, **{name: sites[name]["value"] for name in sites if name in batch}}
        latents = {name: site["value"] for name, site in sites.items() if name not in batch}
        q = _local(poutine.trace(poutine.condition(guide, data=latents)).get_trace(**dreamt))
        total = sum((site["scale"] * site["fn"].log_prob(site["value"])).sum() for site in q.values())
        return -torch.as_tensor(total)  # lw.26


class WakeSleep(ReweightedWake):
    """Both wake phases and the sleep phase as one loss, for one optimiser; its value is that of the wake phases.

    (`wake_sleep` makes the updates one after the other.)
    """

    def differentiable_loss(self, model: Any, guide: Any, **batch: Any) -> Tensor:
        asleep = Sleep().differentiable_loss(model, guide, **batch)
        return super().differentiable_loss(model, guide, **batch) + asleep - asleep.detach()


def wake_sleep(
    model: nn.Module, guide: nn.Module, batches: Batches, *, epochs: int, lr: float = 1e-3, particles: int = 8
) -> Stage:
    """Reweighted wake-sleep with all its updates as one stage: at every batch a wake step of the model and of the guide
    (`ReweightedWake`), then a sleep step of the guide (`Sleep`), each by Adam; run it with `lab.run([stage])`.

    Returns:
        The `Stage`; what it records is the importance-weighted loss in nats per datum.
    """
    wake, sleep = ReweightedWake(particles)(model, guide), Sleep()(model, guide)
    awake = torch.optim.Adam([*model.parameters(), *guide.parameters()], lr=lr)
    asleep = torch.optim.Adam(guide.parameters(), lr=lr)

    def step(batch: Batch) -> Tensor:
        losses = []
        for loss, optimiser in ((wake, awake), (sleep, asleep)):
            optimiser.zero_grad()
            losses.append(loss(**batch))
            losses[-1].backward()
            optimiser.step()
        return losses[0].detach() / (getattr(model, "N", None) or rows(batch))

    return Stage("wake-sleep", step, batches, epochs, state={"awake": awake, "asleep": asleep})


class ARM(Trace_ELBO):
    """The ELBO of a factorial guide over one site of bits, by augment-REINFORCE-merge (lw.24); nats for the data set.

    With u_j uniform, d/dl_j = E[(f(1[u > sigma(-l)]) - f(1[u < sigma(l)])) (u_j - 1/2)]: two evaluations of f whatever
    the number of bits. Reference: Yin, Zhou (2019).
    """

    def differentiable_loss(self, model: Any, guide: Any, **batch: Any) -> Tensor:
        q = _local(poutine.trace(guide).get_trace(**batch))
        if len(q) != 1 or not isinstance(base := _base(next(iter(q.values()))["fn"]), torch.distributions.Bernoulli):
            raise EstimatorError("ARM is for one site of independent bits; use LeaveOneOut")
        name, logits = next(iter(q)), base.logits
        u = torch.rand_like(logits)
        first, second = (u > (-logits).sigmoid()).to(u), (u < logits.sigmoid()).to(u)

        def f(h: Tensor) -> tuple[Tensor, Any]:
            sites = _local(poutine.trace(poutine.condition(model, data={name: h})).get_trace(**batch))
            log_p = sum(site["fn"].log_prob(site["value"]) for site in sites.values())
            return log_p - (h * logits - softplus(logits)).sum(-1), sites[name]["scale"]

        (one, scale), (two, _) = f(first), f(second)
        slope = ((one - two).detach().unsqueeze(-1) * (u - 0.5) * logits).sum(-1)  # lw.24
        value = (one + two) / 2
        return -(scale * (value + slope - slope.detach())).sum()


def _base(law: Any) -> Any:
    while hasattr(law, "base_dist"):
        law = law.base_dist
    return law


def importance_bound(model: Any, guide: Any, batch: Mapping[str, Any], *, particles: int, chunk: int = 100) -> Tensor:
    """log mean_k exp(omega_k) of each datum in nats, (n,): too low in the mean, tight as K grows.

    Args:
        particles: K. chunk: draws of a datum held at once; long batches are taken `ROWS_AT_ONCE / chunk` at a time.
    """
    pieces = _log_weights(model, guide, batch, particles, chunk)
    return torch.cat([log_mean(log_w) for log_w in pieces])


def importance_score(
    model: Any, guide: Any, batch: Mapping[str, Any], *, particles: int, chunk: int = 100
) -> tuple[float, float]:
    """The mean of `importance_bound` over the data, nats per datum, and its Monte Carlo standard error.

    The error is that of the draws, by the delta method on each datum's mean weight; the bias is not in it.
    """
    values, variances = [], []
    for log_w in _log_weights(model, guide, batch, particles, chunk):
        value = log_mean(log_w)
        relative = (log_w - value).exp()  # of mean 1
        values.append(value.double())
        variances.append(relative.double().var(0) / particles)
    error = torch.cat(variances).sum().sqrt() / len(torch.cat(values))
    return float(torch.cat(values).mean()), float(error)


def _log_weights(model: Any, guide: Any, batch: Mapping[str, Any], particles: int, chunk: int) -> Iterator[Tensor]:
    """omega_k (K, m) for some rows of the batch after the other; of relaxed laws the weights of their bits."""
    sizes = [min(chunk, particles - begun) for begun in range(0, particles, chunk)]
    for piece in row_pieces(batch, max(1, ROWS_AT_ONCE // chunk)):
        with torch.no_grad(), Binary():
            parts = [draw(model, guide, piece, size) for size in sizes]
        yield torch.cat([part.log_p - part.log_q for part in parts])
