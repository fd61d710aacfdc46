"""Variational matrix Gaussian: a Bayesian network whose weight matrices have matrix-normal posteriors.

Louizos, Welling (2016). Structured and Efficient Variational Deep Learning with Matrix Gaussian Posteriors.
ICML 2016 (PMLR 48), arXiv 1603.04733. Equation ids are this project's own. The reading follows the authors' public
code; the paper's text numbers its equations otherwise.

Model (mg.9), N data, layer l from D_l to D_{l+1} units, d = D_l + 1 rows (bias), k = D_{l+1} columns:

    W_l ~ MN(0, I, I), or MN(0, I / t_r, I / t_c) with t_r, t_c ~ Gamma(1, 0.5);   tau ~ Gamma(6, 6), rate
    h_1 = [x, 1] / sqrt(d);   a_l = h_l W_l;   h_{l+1} = [relu(a_l), 1] / sqrt(d);   net(x) = the last a
    y | x ~ N(mean_y + sd_y net(x), 1 / tau), y in raw units;     classes: y | x ~ Cat(softmax(net(x)))

Guide: W_l ~ MN(M, U, V), log-density mg.1, one covariance over inputs, one over outputs; tau and t are Gamma.

    mg.11   row n of h W is N(h_n M, (h_n U h_n^T) V): local reparametrisation, `guides.linear`

Bound (mg.10): sum_n E_q log p(y_n | x_n, W, tau) - sum_l KL(W_l) - KL(tau) - sum KL(t), KL of W in closed form (mg.5).

    symbol      site or name                            shape
    x           batch key "x"                           (n, D_1)
    y           batch key "y", site "y" in plate "data" (n, K), classes (n,)
    W_l         sites "W1", "W2", ...                   (d, k)
    M, U, V     loc, row and column covariance of q(W)  (d, k), (d, d), (k, k)
    a, h        pre-activation, layer input             (n, k), (n, d)
    tau         site "tau", noise precision             (K,)
    t_r, t_c    sites "t1_row", "t1_col", ...           ()

Departures from the authors' code:
    - a weight starts at standard deviation e^-3 instead of 1 (`partial(MatrixNormal, scale=1.0)` gives theirs):
      thousands of nearly pure-noise steps are saved on small sets;
    - q(tau) starts at a third of the targets' standard deviation instead of at its prior, whatever their units;
    - the bias row starts like every other row (`bias_scale=exp(-4)` gives theirs);
    - hyperpriors t are an option, off by default: only the product t_r t_c is identified;
    - their pseudo-data objective is not here: it is no evidence bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from pyro import sample
from pyro.distributions import Categorical, Gamma, Normal
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from guides import Guide, MatrixNormal, covariances, data_plate, distributions, linear
from zoo.lab import scores
from zoo.lab.data import DataError, Split, Table, load


class Network(nn.Module):
    """The layers mg.9 and the priors of their weights, shared by regression and classification.

    Args:
        widths: D_1, hidden widths, K.
        N: size of the data set; None follows the batch.
        hyperprior: shape and rate of the Gamma prior of every t; None fixes t = 1.
    """

    def __init__(self, widths: Sequence[int], N: int | None, hyperprior: Sequence[float] | None) -> None:
        super().__init__()
        self.widths, self.N = list(widths), N
        self.hyperprior = None if hyperprior is None else tuple(float(number) for number in hyperprior)

    def start(self) -> dict[str, Tensor]:
        """Values {site: value} at which a fit may start instead of at the prior."""
        return {}

    def prior(self, layer: int, like: Tensor, d: int, k: int) -> distributions.MatrixNormal:
        """p(W_l), drawing its hyperparameters t where the model has them."""
        row, col = like.new_ones(d), like.new_ones(k)
        if self.hyperprior is not None:
            shape, rate = (like.new_tensor(value) for value in self.hyperprior)
            row = row * _column(sample(f"t{layer}_row", Gamma(shape, rate))).rsqrt()
            col = col * _column(sample(f"t{layer}_col", Gamma(shape, rate))).rsqrt()
        return distributions.MatrixNormal(like.new_zeros(d, k), row_scale=row, col_scale=col)

    def net(self, x: Tensor) -> Tensor:
        """The last pre-activation, (..., n, K)."""
        a, h = x, x
        for layer, (D, k) in enumerate(pairwise(self.widths), 1):
            h = torch.cat([h, h.new_ones(*h.shape[:-1], 1)], -1) / math.sqrt(D + 1)  # (n, d)
            a = linear(f"W{layer}", h, self.prior(layer, x, D + 1, k))  # (n, k)  mg.9
            h = a.relu()
        return a


class Model(Network):
    """Regression, with Gamma noise precision for each output.

    Args:
        in_features: D_1.
        hidden: hidden widths; an empty list is Bayesian linear regression.
        N: size of the data set, nats of the bound are for N data; None follows the batch.
        out_features: K.
        y_mean, y_sd: mean and standard deviation of the training targets, K numbers each.
        noise: shape and rate of the prior of tau in raw units; a rate per output is allowed.
        hyperprior: shape and rate of the priors of t, `(1.0, 0.5)` as published; None fixes t = 1.
    """

    noise_rate: Tensor
    y_mean: Tensor
    y_sd: Tensor

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int] = (50,),
        N: int | None = None,
        *,
        out_features: int = 1,
        y_mean: Sequence[float] = (0.0,),
        y_sd: Sequence[float] = (1.0,),
        noise: tuple[float, float | Sequence[float]] = (6.0, 6.0),
        hyperprior: Sequence[float] | None = None,
    ) -> None:
        super().__init__([in_features, *hidden, out_features], N, hyperprior)
        self.noise_shape = float(noise[0])
        for name, values in (("noise_rate", noise[1]), ("y_mean", y_mean), ("y_sd", y_sd)):
            numbers = torch.as_tensor(values, dtype=torch.get_default_dtype())
            self.register_buffer(name, numbers.expand(out_features).clone())

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The generative story mg.9. x: (n, D_1); y: (n, K) or None."""
        shape = torch.full_like(self.noise_rate, self.noise_shape)
        tau = sample("tau", Gamma(shape, self.noise_rate).to_event(1))  # (K,)
        f = self.y_mean + self.y_sd * self.net(x)  # (n, K)
        with data_plate(x.shape[-2], self.N, device=x.device):
            return sample("y", Normal(f, tau.rsqrt()).to_event(1), obs=y)

    def start(self) -> dict[str, Tensor]:
        """Where a fit starts: noise of a third of the targets' standard deviation, whatever their units.

        As much noise as the targets have is no good start: on Yacht, with hyperpriors, the net then returns to its
        prior before it has learned anything.
        """
        return {"tau": 10 * self.y_sd.pow(-2).clamp(1e-12, 1e12)}

    @staticmethod
    def for_data(
        train: Table, *, hidden: Sequence[int] = (50,), noise: str = "raw", hyperprior: Sequence[float] | None = None
    ) -> Network:
        """The model of a table: regression, or classification where the table has classes.

        Args:
            noise: "raw" is the published Gamma(6, 6) whatever the units of y, which caps the fit of targets on a
                small scale (mg.23) ; "standardised" is Gamma(6, 6 sd_y^2), the same prior for standardised y.
        """
        in_features = train["x"].shape[-1]
        if train.classes is not None:
            return Classifier(in_features, hidden, len(train), classes=len(train.classes), hyperprior=hyperprior)
        y = train["y"]
        sd = y.std(0, correction=0)
        if noise not in ("raw", "standardised"):
            raise DataError(f"noise is 'raw' or 'standardised', not {noise!r}")
        rate = (6 * sd.square()).tolist() if noise == "standardised" else 6.0
        return Model(
            in_features,
            hidden,
            len(train),
            out_features=y.shape[-1],
            y_mean=y.mean(0).tolist(),
            y_sd=sd.tolist(),
            noise=(6.0, rate),
            hyperprior=hyperprior,
        )


class Classifier(Network):
    """Classification with softmax outputs; arguments as in `Model`."""

    def __init__(
        self,
        in_features: int,
        hidden: Sequence[int] = (50,),
        N: int | None = None,
        *,
        classes: int = 2,
        hyperprior: Sequence[float] | None = None,
    ) -> None:
        super().__init__([in_features, *hidden, classes], N, hyperprior)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The generative story mg.9. x: (n, D_1); y: (n,) class labels or None."""
        logits = self.net(x)  # (n, K)
        with data_plate(x.shape[-2], self.N, device=x.device):
            return sample("y", Categorical(logits=logits), obs=y)


def guide(model: Network, batch: Mapping[str, Any], *, weights: Any = MatrixNormal) -> Guide:
    """The paper's own q: a matrix normal with diagonal covariances per layer, Gamma for tau and t (or another family).

    As `guides.Guide(model, batch, weights=weights)`, but tau starts where `Model.start` says.
    """
    return Guide(model, batch, weights=weights, start=model.start())


def bound(guide: nn.Module | None = None) -> ELBO:
    """The evidence bound mg.10 with closed-form KLs, or sampled ones for a guide that has none (`Trace_ELBO`)."""
    return TraceMeanField_ELBO() if getattr(guide, "mean_field", True) else Trace_ELBO()  # mg.10


def data(name: str, *, split: int = 0, **options: Any) -> Split:
    """Any table of `zoo.lab.data.load`; x standardised on the training rows, y in its own units."""
    return load(name, split=split, **options)


def noise_fixed_point(residual: Tensor, *, noise: tuple[float, float] = (6.0, 6.0)) -> tuple[float, float]:
    """The optimal q(tau) = Gamma(a, b) given E_q sum_n (y_n - f_n)^2.

    Args:
        residual: squared residuals (N,), in expectation under q(W).
        noise: prior shape and rate.
    """
    return noise[0] + residual.numel() / 2, noise[1] + float(residual.sum()) / 2  # mg.21


def noise_cap(N: int, *, noise: tuple[float, float] = (6.0, 6.0)) -> float:
    """The highest test log-likelihood (nats per datum, `scores.loglik_expected`) that the noise prior allows."""
    shape, rate = noise
    e_log_tau = float(torch.digamma(torch.tensor(shape + N / 2, dtype=torch.float64))) - math.log(rate)
    return 0.5 * (e_log_tau - math.log(2 * math.pi))  # mg.23


class LinearPosterior(NamedTuple):
    """The exact posterior of one output of the model without hidden layers; see `linear_posterior`."""

    evidence: float
    tau_mean: float
    tau_sd: float
    mean: Tensor
    covariance: Tensor


def linear_loglik(X: Tensor, y: Tensor, tau: Tensor) -> Tensor:
    """log p(y | tau) for f = X w, w ~ N(0, I). X: (N, d); y: (N,); tau: (T,); returns (T,), nats for the data set."""
    eigenvalues, vectors = torch.linalg.eigh(X.mT @ X)
    beta, tau = vectors.mT @ (X.mT @ y), tau[:, None]
    spread = 1 + tau * eigenvalues.clamp(min=0)  # (T, d)
    fit = tau[:, 0] * (y @ y) - (tau.square() * beta.square() / spread).sum(-1)
    return 0.5 * (len(y) * (tau[:, 0] / (2 * math.pi)).log() - spread.log().sum(-1) - fit)  # mg.27


def linear_posterior(
    X: Tensor, y: Tensor, *, noise: tuple[float, float] = (6.0, 6.0), nodes: int = 4001
) -> LinearPosterior:
    """Exact posterior and evidence of y = X w + noise, w ~ N(0, I), tau ~ Gamma(noise), in double precision.

    Given tau all is Gaussian; what remains is one integral over log tau, by the trapezium rule on a grid around the
    mode, which is exact to rounding for so smooth an integrand.

    Args:
        X: design (N, d). y: targets (N,). noise: shape and rate. nodes: of the grid.
    """
    X, y = X.double(), y.double()
    tau, log_joint = _tau_grid(X, y, noise, nodes)
    width = tau.log().diff()[0]
    weights = log_joint.softmax(0)
    eigenvalues, vectors = torch.linalg.eigh(X.mT @ X)
    shrink = 1 / (1 + tau[:, None] * eigenvalues.clamp(min=0))
    means = (tau[:, None] * shrink * (vectors.mT @ (X.mT @ y))) @ vectors.mT  # (T, d)
    mean, tau_mean = weights @ means, weights @ tau
    spread = (means - mean).mT @ (weights[:, None] * (means - mean))
    covariance = vectors @ torch.diag(weights @ shrink) @ vectors.mT + spread
    tau_sd = (weights @ (tau - tau_mean).square()).sqrt()
    return LinearPosterior(
        float(log_joint.logsumexp(0) + width.log()), float(tau_mean), float(tau_sd), mean, covariance
    )


def evidence(model: Network, train: Table) -> float | None:
    """Exact log evidence of regression without hidden layers and hyperpriors, in nats for the data set (mg.27).

    None for every other model: there no exact evidence is known.
    """
    if not isinstance(model, Model) or len(model.widths) != 2 or model.hyperprior is not None:
        return None
    x, y = train["x"].double(), train["y"].double()
    design = torch.cat([x, x.new_ones(len(x), 1)], -1) / math.sqrt(x.shape[-1] + 1)
    total = 0.0
    for k in range(y.shape[-1]):
        noise = (model.noise_shape, float(model.noise_rate[k]))
        residual = y[:, k] - model.y_mean[k].double().cpu()
        total += linear_posterior(model.y_sd[k].double().cpu() * design, residual, noise=noise).evidence
    return total


def remarks(model: Network) -> list[str]:
    """What belongs beside every result: the noise prior, and the cap it puts on the log-likelihood."""
    if not isinstance(model, Model):
        return []
    priors = []
    for rate in model.noise_rate.tolist():
        cap = noise_cap(model.N or 1, noise=(model.noise_shape, rate))
        priors.append(
            f"tau ~ Gamma({model.noise_shape:g}, rate {rate:.4g}) in the units of y, which caps the test "
            f"log-likelihood at about {cap:.3f} nats per datum"
        )
    return [f"Noise prior: {'; '.join(priors)}."]


def _tau_grid(X: Tensor, y: Tensor, noise: tuple[float, float], nodes: int) -> tuple[Tensor, Tensor]:
    """tau on an even grid of log tau that covers its posterior, and log p(y, log tau) there."""
    shape, rate = noise

    def log_joint(log_tau: Tensor) -> Tensor:
        prior = shape * math.log(rate) - math.lgamma(shape) + shape * log_tau - rate * log_tau.exp()
        return prior + linear_loglik(X, y, log_tau.exp())

    coarse = torch.linspace(-40, 40, 8001, dtype=torch.float64)
    values = log_joint(coarse)
    likely = coarse[values > values.max() - 60]
    grid = torch.linspace(float(likely[0]), float(likely[-1]), nodes, dtype=torch.float64)
    return grid.exp(), log_joint(grid)


def _column(t: Tensor) -> Tensor:
    """Under particles t has the slot of plate "data" and no event; its scale needs the event dimension of a row."""
    return t.unsqueeze(-1) if t.dim() else t


EQUATIONS = {
    "mg.1": distributions.MatrixNormal.log_prob,
    "mg.2": distributions.MatrixNormal,
    "mg.3": distributions.MatrixNormal.rsample,
    "mg.4": distributions.MatrixNormal.entropy,
    "mg.5": distributions,
    "mg.5a": distributions,
    "mg.5b": distributions,
    "mg.7": covariances.TrilCovariance,
    "mg.8": covariances.LowRankCovariance,
    "mg.9": Network.net,
    "mg.10": bound,
    "mg.11": distributions.MatrixNormal.activation,
    "mg.12": linear,
    "mg.21": noise_fixed_point,
    "mg.23": noise_cap,
    "mg.26": scores,
    "mg.27": linear_posterior,
}

CLAIMS: tuple[Any, ...] = ()
