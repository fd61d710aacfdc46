"""Statements about the matrix normal that can be checked against exact values, one function for each cell."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor, nn

import guides
from guides import weight_space
from guides.distributions import MatrixNormal
from guides.pseudo_data import FITC, Authors
from zoo import lab, matrix_gaussian
from zoo.claims import anchors


class Fixed(nn.Module):
    """A family that is always the same law."""

    def __init__(self, law: Any, prior: Any, context: Any = None) -> None:
        super().__init__()
        self.law = law

    def forward(self, context: Any = None) -> Any:
        return self.law


def measure(cell: dict[str, Any]) -> dict[str, Any]:
    """Run the check that the cell names, in double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    lab.seed(cell.get("seed", 0))
    try:
        return CHECKS[cell["check"]](cell)
    finally:
        torch.set_default_dtype(before)


def losses(law: Any, draws: int) -> Tensor:
    """Draws of the anchor's loss, nats, with that law as q(W)."""
    model = anchors.KnownNoise()
    guide = guides.Guide(model, anchors.batch(), weights=partial(Fixed, law))
    loss = TraceMeanField_ELBO()(model, guide)
    with torch.no_grad():
        return torch.stack([loss(**anchors.batch()) for _ in range(draws)])


def parameters(cell: dict[str, Any]) -> dict[str, Any]:
    """Variational parameters of the weights of a network."""
    model = matrix_gaussian.Classifier(cell["widths"][0], cell["widths"][1:-1], 1, classes=cell["widths"][-1])
    batch = {"x": torch.zeros(2, cell["widths"][0])}
    count = {
        name: sum(p.numel() for p in guides.Guide(model, batch, weights=family, allow_prior=True).parameters())
        for name, family in (("matrix_normal", guides.MatrixNormal), ("mean_field", guides.MeanField))
    }
    return {**count, "weights": count["mean_field"] // 2}


def reparametrisation(cell: dict[str, Any]) -> dict[str, Any]:
    """The bound in both spaces against its exact value."""
    rows, cols = torch.full((4,), math.exp(-0.5)), torch.full((3,), math.exp(-0.3))
    law = MatrixNormal(anchors.M(), row_scale=rows, col_scale=cols)
    exact = float(anchors.elbo(law.mean, anchors.dense(law), anchors.COMMON))
    found: dict[str, Any] = {"exact": exact}
    for name, space in (("local", nullcontext()), ("weight", weight_space())):
        with space:
            draws = losses(law, cell["draws"])
        found |= {f"{name}_bias": draws.mean() + exact, f"{name}_error": draws.std() / math.sqrt(len(draws))}
    return found


def kernel(cell: dict[str, Any]) -> dict[str, Any]:
    """cov(x W) of a batch against the kernel X U X' and V."""
    law = MatrixNormal(anchors.M(), row_tril=anchors.row_tril(), col_tril=anchors.col_tril())
    x = torch.cos(torch.arange(5.0)[:, None] + 0.5 * torch.arange(4.0))
    jacobian = torch.kron(x, torch.eye(3))
    weights = jacobian @ torch.kron(law.row.dense(), law.col.dense()) @ jacobian.mT
    process = torch.kron(x @ law.row.dense() @ x.mT, law.col.dense())
    marginal = law.activation(x).covariance_matrix  # type: ignore[attr-defined]
    rows = torch.stack([process.reshape(5, 3, 5, 3)[n, :, n] for n in range(5)])
    return {"difference": (weights - process).abs().max(), "marginal_difference": (marginal - rows).abs().max()}


def optimum(cell: dict[str, Any]) -> dict[str, Any]:
    """The best bound of a family on the anchor, by LBFGS on the closed form, the best of several starts."""
    variances = anchors.COMMON if cell["noise"] == "common" else anchors.EACH
    best = -math.inf
    for start in range(cell["starts"]):
        lab.seed(start)
        family = FAMILIES[cell["guide"]](anchors.standard_prior(), scale=1.0)
        best = max(best, anchors.climb(family, variances))
    return {"bound": best, "evidence": anchors.evidence(variances)}


FAMILIES: dict[str, Any] = {
    "MatrixNormal": guides.MatrixNormal,
    "MeanField": guides.MeanField,
    "MatrixNormalLowRank-1": partial(guides.MatrixNormalLowRank, rank=1),
    "MatrixNormalLowRank-2": partial(guides.MatrixNormalLowRank, rank=2),
    "MatrixNormalLowRank-3": partial(guides.MatrixNormalLowRank, rank=3),
    "MatrixNormalTril": guides.MatrixNormalTril,
    "SiteFullRank": guides.SiteFullRank,
}


def released_objective(cell: dict[str, Any]) -> dict[str, Any]:
    """J of the authors' code against the log evidence, where pseudo-outputs are the least-squares fit."""
    outputs = torch.linalg.lstsq(anchors.X(), anchors.Y()).solution
    noise = (torch.tensor(cell["nu"]).sqrt(),) * 2  # at its bound, so that the penalty is 0
    ones = {"row_scale": torch.ones(4), "col_scale": torch.ones(3)}
    J = -losses(Authors(torch.zeros(4, 3), inputs=torch.eye(4), outputs=outputs, noise=noise, **ones), cell["draws"])
    evidence = anchors.evidence(anchors.COMMON)
    return {"J": J.mean(), "error": J.std() / math.sqrt(len(J)), "evidence": evidence, "excess": J.mean() - evidence}


def coherent_draws(cell: dict[str, Any]) -> dict[str, Any]:
    """Functions drawn per second over the rows of a batch: from pseudo-outputs, and from weights."""
    d, k, m, n = (cell[name] for name in ("d", "k", "m", "rows"))
    scales: dict[str, Any] = {"row_scale": torch.ones(d), "col_scale": torch.ones(k)}
    x = torch.randn(n, d) / math.sqrt(d)
    pseudo = FITC(torch.zeros(d, k), inputs=x[:m], **scales)
    plain = MatrixNormal(torch.zeros(d, k), **scales)
    ways: dict[str, Callable[[], Tensor]] = {
        "fitc": lambda: pseudo.activation(x).rsample(),
        "weight": lambda: x @ plain.rsample(),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(cell["rounds"]):
        for name, way in ways.items():
            began = time.process_time()
            way()
            seconds[name].append(time.process_time() - began)
    median = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
    return {"speed_ratio": median["weight"] / median["fitc"]}


def gradient_variance(cell: dict[str, Any]) -> dict[str, Any]:
    """Variance of the first layer's gradient at the start, weight space over local reparametrisation."""
    train = matrix_gaussian.data(cell["data"]).train.to(dtype=torch.get_default_dtype())
    model = matrix_gaussian.Model.for_data(train)
    guide = guides.Guide(model, train.peek(), weights=partial(guides.MatrixNormal, scale=math.exp(cell["log_start"])))
    family: Any = guide.q["W1"]
    loss = matrix_gaussian.bound(guide)(model, guide)
    batch = next(iter(train.batches(32, seed=cell["seed"])))

    def variance() -> Tensor:
        draws = [torch.autograd.grad(loss(**batch), family.loc)[0] for _ in range(cell["draws"])]
        return torch.stack(draws).var(0).sum()

    local = variance()
    with weight_space():
        return {"ratio": variance() / local, "local": local}


CHECKS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "parameters": parameters,
    "reparametrisation": reparametrisation,
    "kernel": kernel,
    "optimum": optimum,
    "released objective": released_objective,
    "coherent draws": coherent_draws,
    "gradient variance": gradient_variance,
}
