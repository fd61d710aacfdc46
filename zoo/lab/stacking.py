"""Layers trained one at a time: what a criterion of one layer sees, and the stacked RBMs that learn so.

A stacked model has `decoders` and `decoder(k)` (`layers.Decoder`, from the bottom up), `hidden` (their widths), a
`prior` on the last code, `N`, `entropy` and `pixels`; its sites are x, h1, h2, ... (Equation ids of `zoo.layerwise`.)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pyro import poutine, sample
from pyro.distributions import Bernoulli
from pyro.infer import Trace_ELBO
from torch import Tensor, nn
from torch.distributions import Distribution

from guides import data_plate
from zoo.lab.checks import TrainingError
from zoo.lab.data import DataError
from zoo.lab.estimators import LeaveOneOut
from zoo.lab.layers import Decoder
from zoo.lab.rbm import RBM, TiedMachine


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


def look(model: Any, guide: nn.Module, layer: int, batch: Mapping[str, Any]) -> Seen:
    """Run the guide once and pick out one layer; codes of the layers below are drawn anew, and carry no gradient."""
    if not 1 <= layer <= len(model.hidden):
        raise TrainingError(f"there is no layer {layer}: the model has {len(model.hidden)}")
    nodes: Any = poutine.trace(guide).get_trace(**batch).nodes
    if f"h{layer}" not in nodes:
        raise TrainingError(f"this criterion needs a guide for h{layer}")
    site = nodes[f"h{layer}"]
    below = batch["x"] if layer == 1 else nodes[f"h{layer - 1}"]["value"].detach()
    entropy = model.entropy if layer == 1 else 0.0
    decoder = model.decoder(layer)
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


class TiedRBM(nn.Module):
    """q(h_k | h_{k-1}) = sigma(c_k + h_{k-1}' W_k'), the posterior of the RBM of each decoder: stacked RBMs."""

    def __init__(self, model: Any, batch: Mapping[str, Any]) -> None:
        super().__init__()
        if model.pixels != "bernoulli" or not model.hidden:
            raise DataError(
                "TiedRBM is the recognition of an RBM on bits: it needs a hidden layer and bernoulli pixels"
            )
        self.N = model.N
        self.machines = nn.ModuleList(TiedMachine(decoder) for decoder in model.decoders)

    def forward(self, x: Tensor, **ignored: Any) -> None:
        """Sample h_1, h_2, ... from the bottom up."""
        v = x
        with data_plate(x.shape[-2], self.N, device=x.device):
            for k, machine in enumerate(self.machines, 1):
                v = sample(f"h{k}", Bernoulli(logits=machine.hidden_logits(v)).to_event(1))  # type: ignore[operator]


class CD(Trace_ELBO):
    """Contrastive divergence for one layer under the guide `TiedRBM`, as stacked RBMs learn; its value no likelihood.

    Args:
        layer: whose decoder and hidden bias are trained. k: sweeps.
    """

    evidence_bound = LeaveOneOut()
    likelihood = False  # no convergence is judged by its value
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

    likelihood = True

    def differentiable_loss(self, model: Any, guide: Any, **batch: Any) -> Tensor:
        if not isinstance(guide, TiedRBM):
            raise TrainingError("ExactRBM trains RBMs: it needs the guide TiedRBM")
        seen = look(model, guide, self.layer, batch)
        machine: Any = guide.machines[self.layer - 1]
        return -seen.N * machine.log_prob(seen.below).mean()  # lw.18


class TopCD(Trace_ELBO):
    """The same for an RBM by contrastive divergence on drawn codes: a gradient, its value no likelihood.

    Without a hidden layer the machine learns x itself.

    Args:
        k: sweeps.
    """

    evidence_bound = LeaveOneOut()
    likelihood = False
    method = "cd"

    def __init__(self, *, k: int = 1) -> None:
        super().__init__()
        self.k = k

    def differentiable_loss(self, model: Any, guide: Any, **batch: Any) -> Tensor:
        if not isinstance(model.prior, RBM):
            raise TrainingError(f"{type(self).__name__} trains RBMs, and the top is {model.top}")
        v = look(model, guide, len(model.hidden), batch).code.detach() if model.hidden else batch["x"]
        return (model.N or len(v)) * getattr(model.prior, self.method)(v, k=self.k)


class TopPCD(TopCD):
    """The same with persistent particles."""

    method = "pcd"
