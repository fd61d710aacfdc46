"""Matrix normals whose activations are drawn given pseudo-data: m inputs A and outputs B a layer is conditioned on.

| family | pseudo-outputs B | what `TraceMeanField_ELBO` gives |
|---|---|---|
| `MatrixNormalFITC` | drawn from q(A W), once per batch | an evidence bound, in expectation that of `MatrixNormal` |
| `MatrixNormalAuthors` | parameters, A and B with noise | no bound: the weights that are used are not charged |

The ids mg.N are those of `zoo.matrix_gaussian`.

Reference: Louizos, Welling (2016), Structured and Efficient Variational Deep Learning with Matrix Gaussian Posteriors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor, nn
from torch.distributions import Distribution
from torch.types import _size

from guides import distributions, weights

JITTER = 1e-6
LOWEST = -4.0  # of a logarithm of the noise, as in the authors' code


class Conditioned(distributions.MatrixNormal):
    """MN(M, U, V) with pseudo-inputs on which x W is conditioned; density and KLs are those of MN(M, U, V).

    Args:
        loc: the mean M, (..., d, k).
        inputs: pseudo-inputs A, (m, d), scaled as the inputs of the layer are.
        jitter: added to the diagonal of A U A'.
        **covariances: as in `distributions.MatrixNormal`.

    Raises:
        ValueError: pseudo-inputs that do not fit the weights.
    """

    def __init__(self, loc: Tensor, *, inputs: Tensor, jitter: float = JITTER, **covariances: Any) -> None:
        super().__init__(loc, **covariances)
        if inputs.dim() < 2 or inputs.shape[-1] != loc.shape[-2]:
            raise ValueError(f"pseudo-inputs of shape {tuple(inputs.shape)} do not fit weights {tuple(loc.shape[-2:])}")
        self.inputs, self.jitter = inputs, jitter

    def condition(self, x: Tensor, A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
        """Mean (..., n, k) and row variance s (..., n) of x W given A W = B, up to the jitter.

        G = x U A' (A U A' + jitter)^-1;   mean = x M + G (B - A M);   s_n = x_n U x_n' - (G A U x')_nn   (mg.15)

        Args:
            x: (..., n, d). A: (..., m, d). B: (..., m, k).
        """
        cross = self.row.times(A) @ x.mT  # (..., m, n)
        gain = torch.cholesky_solve(cross, self.root(A)).mT  # (..., n, m)
        mean = x @ self.loc + gain @ (B - A @ self.loc)  # mg.15
        return mean, (self.row.quad(x) - (gain * cross.mT).sum(-1)).clamp_min(0.0)  # mg.15

    def root(self, A: Tensor) -> Tensor:
        """Cholesky factor of A U A' + jitter I, (..., m, m)."""
        gram = self.row.times(A) @ A.mT
        return torch.linalg.cholesky(gram + self.jitter * torch.eye(A.shape[-2], dtype=A.dtype, device=A.device))

    def white(self, *shape: int) -> Tensor:
        """Standard normals of the batch shape and `shape`, with the dtype and device of the weights."""
        return torch.randn(*self.batch_shape, *shape, dtype=self.loc.dtype, device=self.loc.device)


class FITC(Conditioned):
    """Pseudo-outputs drawn from MN(A M, A U A' + jitter, V) at every use and shared by the rows (mg.17).

    Each row has the law of `MatrixNormal.activation` whatever A is. Across rows the covariance is that of the fully
    independent training conditional, Q + diag(K - Q): function draws are coherent where A is near the rows.
    """

    def activation(self, x: Tensor) -> dist.TorchDistribution:
        """The law of the rows of x W given a fresh draw of the pseudo-outputs, event (k,), batch shape (..., n)."""
        law = self.without_slot()
        noise = law.col.colour(law.white(law.inputs.shape[-2], law.col.noise))
        B = law.inputs @ law.loc + law.root(law.inputs) @ noise  # (..., m, k)  mg.17
        return law.col.law(*law.condition(x, law.inputs, B))


class Authors(Conditioned):
    """Pseudo-data A, B as parameters with multiplicative noise, as in the authors' code (mg.18).

    The weights that reach the likelihood are those of MN(M, U, V) given a noisy draw of the pseudo-data; `rsample`
    draws these. What is charged is another law, MN(M, U, V) itself: `log_prob` and every KL are its own.

    Args:
        outputs: pseudo-outputs B, (m, k).
        noise: relative standard deviations of A and of B, broadcastable with each.
    """

    def __init__(self, loc: Tensor, *, outputs: Tensor, noise: tuple[Tensor, Tensor], **options: Any) -> None:
        super().__init__(loc, **options)
        self.outputs, self.noise = outputs, noise

    def pseudo_data(self) -> tuple[Tensor, Tensor]:
        """A noisy draw of A and B for every element of the batch."""
        pairs = zip((self.inputs, self.outputs), self.noise, strict=True)
        A, B = (value * (1 + s * self.white(*value.shape[-2:])) for value, s in pairs)  # mg.18
        return A, B

    def activation(self, x: Tensor) -> dist.TorchDistribution:
        """The law of the rows of x W given a noisy draw of the pseudo-data, event (k,), batch shape (..., n)."""
        law = self.without_slot()
        return law.col.law(*law.condition(x, *law.pseudo_data()))

    def rsample(self, sample_shape: _size = Size()) -> Tensor:  # noqa: B008
        """Weights that reach the likelihood, (*sample_shape, ..., d, k): a draw of MN(M, U, V), moved onto A W = B."""
        if sample_shape:
            return self.expand(Size(sample_shape) + self.batch_shape).rsample()
        A, B = self.pseudo_data()
        error = math.sqrt(self.jitter) * self.col.colour(self.white(self.inputs.shape[-2], self.col.noise))
        return self._onto(super().rsample(), A, B - error)

    def conditional_mean(self) -> Tensor:
        """The weights of the authors' deterministic pass: M + U A' (A U A' + jitter)^-1 (B - A M), (..., d, k)."""
        return self._onto(self.loc, self.inputs, self.outputs)  # mg.16

    def _onto(self, W: Tensor, A: Tensor, B: Tensor) -> Tensor:
        """Matheron's rule: the weights W moved so that A W = B, as far as the jitter lets them."""
        return W + self.row.times(A).mT @ torch.cholesky_solve(B - A @ W, self.root(A))  # mg.16


def noise_regulariser(alpha: Tensor) -> Tensor:
    """R(alpha) = 1/2 log alpha + c1 alpha + c2 alpha^2 + c3 alpha^3, nats, elementwise.

    Approximates -KL(N(1, alpha) || log-uniform) up to a constant, within .041 on [1e-4, 1]; increasing on (0, 1].

    Reference: Kingma, Salimans, Welling (2015).
    """
    return 0.5 * alpha.log() + 1.16145124 * alpha - 1.50204118 * alpha**2 + 0.58629921 * alpha**3  # mg.19


class Noise(nn.Module):
    """Relative standard deviations of pseudo-data; every parameter is a logarithm in [-4, 1/2 log nu].

    Attributes:
        largest: the largest variance alpha it can give.
    """

    largest: float

    def __init__(self, nu: float, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        if not math.exp(2 * LOWEST) < nu <= 1:
            raise ValueError(f"nu bounds the noise and lies between {math.exp(2 * LOWEST):.2g} and 1, not {nu}")
        self.highest = 0.5 * math.log(nu)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.full(shape, self.highest)))

    def project(self) -> None:
        """Parameters that an optimiser step has carried out of their range go back to its edge."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(parameter.clamp(LOWEST, self.highest))  # clamp_ has no rule for vmap


class ScalarNoise(Noise):
    """One relative standard deviation for all of A and one for all of B, each at most sqrt(nu) (regression)."""

    log_A: Tensor
    log_B: Tensor

    def __init__(self, m: int, d: int, k: int, nu: float) -> None:
        super().__init__(nu, log_A=(), log_B=())
        self.largest = nu

    def forward(self) -> tuple[Tensor, Tensor]:
        """Relative standard deviations of A and of B, scalars."""
        return self.log_A.exp(), self.log_B.exp()


class OuterNoise(Noise):
    """Products of a factor per pseudo-point and one per column, each at most sqrt(nu) (classification)."""

    log_point: Tensor
    log_A: Tensor
    log_B: Tensor

    def __init__(self, m: int, d: int, k: int, nu: float) -> None:
        super().__init__(nu, log_point=(m,), log_A=(d,), log_B=(k,))
        self.largest = nu**2

    def forward(self) -> tuple[Tensor, Tensor]:
        """Relative standard deviations of A, (m, d), and of B, (m, k)."""
        point = self.log_point.unsqueeze(-1)
        return (point + self.log_A).exp(), (point + self.log_B).exp()


class MatrixNormalFITC(weights.MatrixNormal):
    """`MatrixNormal` whose activations share one draw of m pseudo-outputs per batch: coherent function draws.

    The bound is that of `MatrixNormal` in expectation, for any pseudo-inputs; so they are fixed, not learned. Their
    price is a noisier gradient, between that of local reparametrisation (m = 0) and of weight space (m = d).

    Args:
        m: number of pseudo-points, at most d.
        inputs: pseudo-inputs A, (m, d), in the units of the layer's inputs; drawn from N(0, 1/d) if not given.
        **options: as in `MatrixNormal`.
    """

    inputs: Tensor

    def __init__(
        self,
        prior: Distribution,
        context: Tensor | None = None,
        *,
        m: int = 5,
        inputs: Tensor | None = None,
        **options: Any,
    ) -> None:
        super().__init__(prior, context, **options)
        d = prior.event_shape[0]
        drawn = torch.randn(*prior.batch_shape, min(m, d), d) / math.sqrt(d)
        self.register_buffer("inputs", drawn if inputs is None else inputs)

    def forward(self, context: Tensor | None = None) -> FITC:
        """Return q(site)."""
        return FITC(self.loc, inputs=self.inputs, **self.covariances())


class MatrixNormalAuthors(weights.MatrixNormal):
    """The authors' pseudo-data: learned, uncharged and noisy (mg.18). Its objective is not an evidence bound.

    For each draw of the pseudo-data the weights that reach the likelihood have m null directions, so their own KL to
    the prior is infinite; charged is the finite KL of MN(M, U, V). The numbers compare with no bound, and not with
    themselves at another nu.

    Args:
        m: number of pseudo-points.
        nu: bound on the noise; of a variance (`ScalarNoise`) or of a factor of one (`OuterNoise`).
        noise: `(m, d, k, nu) -> Noise`, the relative standard deviations of A and B.
        **options: as in `MatrixNormal`.

    Attributes:
        joint_density: False, the draws of this family do not follow the density it charges.
    """

    joint_density = False

    def __init__(
        self,
        prior: Distribution,
        context: Tensor | None = None,
        *,
        m: int = 5,
        nu: float = 0.005,
        noise: Callable[[int, int, int, float], Noise] = ScalarNoise,
        **options: Any,
    ) -> None:
        super().__init__(prior, context, **options)
        d, k = prior.event_shape
        self.A, self.B = (nn.Parameter(0.01 * (2 * torch.rand(*prior.batch_shape, m, n) - 1)) for n in (d, k))
        self.noise = noise(m, d, k, nu)

    def forward(self, context: Tensor | None = None) -> Authors:
        """Return q(site)."""
        self.noise.project()
        A = self.A / math.sqrt(self.A.shape[-1])
        return Authors(self.loc, inputs=A, outputs=self.B, noise=self.noise(), **self.covariances())

    def penalty(self) -> Tensor:
        """What the noise costs: the sum of R(largest) - R(alpha) over the elements of A and B, >= 0, nats."""
        cost: Any = 0.0
        for value, s in zip((self.A, self.B), self.noise(), strict=True):
            alpha = s.square().expand(value.shape)
            cost = cost + (noise_regulariser(alpha.new_tensor(self.noise.largest)) - noise_regulariser(alpha)).sum()
        return cost  # mg.18
