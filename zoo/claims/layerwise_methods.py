"""Nets trained by each method of a comparison, scored exactly: the cells of the random search.

Every method draws the same configurations: widths, rate, steps and spread of the initial weights are those of the cell,
whatever the method. The bottom layer is trained by the method; the top RBM by the exact gradient, for as many steps. A
single RBM has as many parameters as the two layers of its configuration, and as many steps as their two phases.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import guides
from guides import codes
from zoo import lab, layerwise
from zoo.lab import exact

Row = dict[str, Any]


def configuration(seed: int, *, steps: tuple[int, ...]) -> Row:
    """Hyper-parameters of one net, drawn from the search space.

    Widths 4-10 of both layers, 20-200 units of a rich encoder, Adam's rate log-uniform on (1e-3, 3e-2), initial weights
    of standard deviation uniform on (.01, 1).
    """
    random = np.random.default_rng(seed)
    return {
        "n1": int(random.integers(4, 11)),
        "n2": int(random.integers(4, 11)),
        "inference": int(random.integers(20, 201)),
        "lr": float(np.exp(random.uniform(np.log(1e-3), np.log(3e-2)))),
        "scale": float(random.uniform(0.01, 1)),
        "steps": int(random.choice(steps)),
        "seed": seed,
    }


def units(n1: int, n2: int, D: int) -> int:
    """The most hidden units of a single RBM on D pixels with no more parameters than layers of n1 and n2 units have."""
    return n1 + (n1 + 1) * n2 // (D + 1)  # D + u (D + 1) <= D + n1 (D + 1) + n1 n2 + n2


def measure(cell: Row) -> Row:
    """Train one net and score it: exact nats per datum on train, valid and test, and the books of its bottom layer."""
    parts = layerwise.data(cell["data"], split=cell["split"])
    lab.seed(cell["seed"])
    model, guide = METHODS[cell["method"]](cell, parts.train)
    model.double()
    x: dict[str, Tensor] = {name: part["x"].double() for name, part in parts._asdict().items()}
    found: Row = {name: float(_loglik(model, rows)) for name, rows in x.items()}
    found["generative"] = sum(p.numel() for p in model.parameters())
    if guide is not None:
        found |= _books(model, guide.double(), x)
    return found


def _loglik(model: layerwise.Model, x: Tensor) -> Tensor:
    rows, log_w = exact.distinct(x)
    value = model.loglik(rows)
    assert value is not None
    return log_w.exp() @ value


def _books(model: layerwise.Model, guide: nn.Module, x: dict[str, Tensor]) -> Row:
    """The account on the training data and what was promised on the validation data."""
    kept = layerwise.account(model, guide, x["train"], steps=500).to_dict()
    held = layerwise.held_out(model, guide, x["train"], x["valid"], steps=500)
    found: Row = {**kept, "valid_a": held.blm_of_train, "valid_b": held.blm, "valid_c": held.criterion}
    if isinstance(guide, layerwise.TiedRBM):
        found |= _machine(model, guide, x["train"])
    return found


@torch.no_grad()
def _machine(model: layerwise.Model, guide: layerwise.TiedRBM, x: Tensor) -> Row:
    """The bottom RBM's own likelihood, and how far its code law is from that of its codes."""
    rows, log_w = exact.distinct(x)
    machine: Any = guide.machines[0]
    found = layerwise.tables(model, guide, x)
    log_p = machine.hidden_score(codes.states(machine.hidden, like=machine.c)) - machine.log_z()
    return {
        "rbm": log_w.exp() @ machine.log_prob(rows),
        "rbm_kl": exact.kl(exact.aggregated(found.log_q, found.log_w), log_p),
    }


def _fit(model: layerwise.Model, guide: nn.Module, train: lab.Table, cell: Row, plan: list[lab.Phase]) -> None:
    batches = train.batches(cell["batch"], seed=cell["seed"])
    epochs = max(1, round(cell["steps"] / len(batches)))
    lab.fit(model, guide, batches, plan[0].bound, epochs=epochs, lr=cell["lr"], decay=0.1, phases=plan)


def _model(cell: Row, train: lab.Table, **options: Any) -> layerwise.Model:
    shape = {"hidden": [cell["n1"]], "top": "rbm", "top_hidden": cell["n2"], "scale": cell["scale"]}
    return layerwise.Model.for_data(train, **{**shape, **options})


def _machine_alone(cell: Row, train: lab.Table, criterion: str) -> tuple[layerwise.Model, None]:
    """A single RBM; its only phase is as long as two, so that depth is not bought with steps."""
    model = _model(cell, train, hidden=[], top_hidden=units(cell["n1"], cell["n2"], train["x"].shape[1]))
    guide = layerwise.guide(model, train.peek())
    longer = {**cell, "steps": 2 * cell["steps"]}
    _fit(model, guide, train, longer, layerwise.phases(model, guide, top_criterion=criterion))
    return model, None


def _stacked(cell: Row, train: lab.Table, criterion: str) -> tuple[layerwise.Model, nn.Module]:
    model = _model(cell, train)
    guide = layerwise.TiedRBM(model, train.peek())
    _fit(model, guide, train, cell, layerwise.phases(model, guide, criterion=criterion))
    return model, guide


def _encoded(cell: Row, train: lab.Table, family: str, criterion: str) -> tuple[layerwise.Model, nn.Module]:
    model = _model(cell, train)
    guide = layerwise.guide(model, train.peek(), latents=_family(family, cell))
    _fit(model, guide, train, cell, layerwise.phases(model, guide, criterion=criterion))
    return model, guide


def _family(name: str, cell: Row) -> Callable[..., nn.Module]:
    options = {} if name == "Vanilla" else {"hidden": [cell["inference"]]}
    return partial(getattr(guides, name), scale=cell["scale"], **options)


def _joint(cell: Row, train: lab.Table) -> tuple[layerwise.Model, nn.Module]:
    """All layers at once on the exact likelihood: what layer-wise training is a substitute for."""
    model = _model(cell, train)
    guide = layerwise.Posterior(model, train.peek())
    _fit(model, guide, train, cell, [lab.Phase("joint", layerwise.Evidence())])
    return model, guide


def _free(cell: Row, train: lab.Table) -> tuple[layerwise.Model, nn.Module]:
    """No encoder: the bottom layer and a free law Q on the exact likelihood, then the RBM on Q."""
    bottom = _model(cell, train, top="tabular")
    guide = layerwise.Posterior(bottom, train.peek())
    _fit(bottom, guide, train, cell, [lab.Phase("layer 1", layerwise.Evidence())])
    model = _model(cell, train)
    model.decoders.load_state_dict(bottom.decoders.state_dict())
    _fit(model, guide, train, cell, [lab.Phase("top", layerwise.Top(), list(model.prior.parameters()))])
    bottom.double()  # the guide's, for the books
    return model, guide


METHODS: dict[str, Callable[[Row, lab.Table], tuple[layerwise.Model, nn.Module | None]]] = {
    "RBM": partial(_machine_alone, criterion="TopCD"),
    "RBM, exact": partial(_machine_alone, criterion="Top"),
    "stacked RBM": partial(_stacked, criterion="CD"),
    "stacked RBM, exact": partial(_stacked, criterion="ExactRBM"),
    "AE": partial(_encoded, family="Vanilla", criterion="MeanField"),
    "AERI": partial(_encoded, family="Rich", criterion="MeanField"),
    "AE, bound": partial(_encoded, family="Vanilla", criterion="Reconstruction"),
    "AERI, bound": partial(_encoded, family="Rich", criterion="Reconstruction"),
    "AERI, criterion": partial(_encoded, family="Rich", criterion="Criterion"),
    "free Q": _free,
    "joint": _joint,
}
