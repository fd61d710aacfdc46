"""Deep models trained on digits, and their chains: the cells of `mixing` that are simulated.

One seed is one model of each kind on one split, trained alike; levels have equal widths.
"""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from zoo import lab, mixing
from zoo.lab import chain_reports, geometry, visits
from zoo.lab.estimators import importance_score
from zoo.lab.geometry import Levels
from zoo.lab.labels import Labeller
from zoo.lab.noise import Noise

Row = dict[str, Any]

CONTRACTIONS, NOISES = (0.01, 0.1, 1.0), (0.1, 0.3, 1.0, 3.0)  # lambda and sd of the walk, chosen on validation data
FORGET = (1, 3, 10, 30)  # steps after which the class of the start should be forgotten
TIMES = (0.0, 0.25, 0.5, 0.75, 1.0)
AMOUNTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
CHANGE = 0.2  # root mean square change of a picture, for noise of equal effect
PAIRS = 400


def opened(cell: Row) -> lab.Split:
    """The split of a cell, at most `rows` training data."""
    parts = mixing.data(cell["data"], split=cell["seed"] % 20)
    return parts._replace(train=parts.train.subset(range(min(len(parts.train), cell["rows"]))))


def dbn(cell: Row, parts: lab.Split, depth: int) -> tuple[mixing.Model, mixing.Recognition]:
    """A deep belief network trained greedily by PCD, Adam."""
    lab.seed(1000 * cell["seed"] + depth)
    model = mixing.Model.for_data(parts.train, depth=depth, width=cell["width"])
    guide = mixing.Recognition(model, parts.train.peek())
    _train(cell, parts, model, guide)
    return model, guide


def _train(cell: Row, parts: lab.Split, model: nn.Module, guide: nn.Module) -> None:
    batches = parts.train.batches(50, seed=cell["seed"])
    plan = mixing.phases(model, guide)
    lab.fit(model, guide, batches, mixing.bound(guide), epochs=cell["epochs"], lr=cell["lr"], decay=0.01, phases=plan)


def chains_of_dbn(cell: Row) -> Row:
    """One DBN: mixing, fit and class law; again with the entries of its top couplings shuffled, which must fail."""
    parts = opened(cell)
    model, guide = dbn(cell, parts, cell["depth"])
    labeller = Labeller(parts.train)
    whole = _judged(cell, parts, labeller, model, guide)
    with torch.no_grad():
        W = model.prior.W
        W.copy_(W.flatten()[torch.randperm(W.numel())].view_as(W))
    shuffled = _judged(cell, parts, labeller, model, guide)
    return {**whole, "real rejected": _rejected(labeller, parts), **{f"shuffled {k}": v for k, v in shuffled.items()}}


def _rejected(labeller: Labeller, parts: lab.Split) -> float:
    """Share of real test data that the labeller would not name."""
    return float((labeller(parts.test["x"]) == visits.NONE).double().mean())


def _judged(cell: Row, parts: lab.Split, labeller: Labeller, model: mixing.Model, guide: nn.Module) -> Row:
    walk = mixing.walk(model, guide)
    found = _walked(cell, parts, labeller, walk)
    return {**found, **_log_likelihood(model, guide, parts.test["x"]), **forgetting(cell, parts, labeller, walk)}


def _walked(cell: Row, parts: lab.Split, labeller: Labeller, walk: chain_reports.Walk) -> Row:
    report = chain_reports.judge(
        walk, parts, chains=cell["chains"], steps=cell["steps"], seed=cell["seed"], labeller=labeller
    )
    return {**report.row(), "stuck": len(report.mixing.stuck)}


@torch.no_grad()
def _log_likelihood(model: mixing.Model, guide: nn.Module, x: Tensor) -> Row:
    """Test log-likelihood: log Z by annealing, h_1.. by importance weights of the guide; nats per datum."""
    found = model.prior.anneal(chains=200, steps=2000)
    value, error = importance_score(model, guide, {"x": x}, particles=500) if model.hidden else (None, 0.0)
    if value is None:
        value = float((-model.prior.free_energy(x)).mean()) - found.log_z
    return {"loglik": value, "loglik error": (error**2 + found.error**2) ** 0.5}


def forgetting(cell: Row, parts: lab.Split, labeller: Labeller, walk: chain_reports.Walk) -> Row:
    """Total variation to the chains' own class law after t steps from a one-class start, mean over classes.

    The law is that of all these chains over the second half of the walk.
    """
    runs = [
        chain_reports.judge(
            walk, parts, chains=cell["chains"], steps=2 * max(FORGET), seed=cell["seed"] + 7 * k, labeller=labeller,
            only=k, warmup=0,
        ).labels
        for k in range(len(labeller))
    ]  # fmt: skip
    law = visits.shares(torch.cat(runs)[:, max(FORGET) :], len(labeller))
    e = [visits.one_hot(labels, len(labeller)) for labels in runs]
    named = [one.sum(-1, keepdim=True).sum(0).clamp_min(1) for one in e]  # chains that belong to a class, (draw, 1)
    tv = [0.5 * ((one.sum(0) / n) - law).abs().sum(-1) for one, n in zip(e, named, strict=True)]
    return {f"TV after {t}": fmean(float(values[t - 1]) for values in tv) for t in FORGET}


def chains_of_cae(cell: Row) -> Row:
    """One stack of contractive auto-encoders; contraction and noise are chosen on validation data, by Parzen."""
    parts = opened(cell)
    labeller = Labeller(parts.train)
    assert parts.valid is not None
    valid = parts._replace(test=parts.valid)
    best: tuple[float, Row] | None = None
    for contraction in CONTRACTIONS:
        model, guide = cae(cell, parts, cell["depth"], contraction)
        for noise in NOISES:
            model.noise = noise
            walk = mixing.walk(model, guide)
            score = chain_reports.judge(
                walk, valid, chains=cell["chains"], steps=cell["steps"] // 2, seed=cell["seed"], labeller=labeller
            ).parzen.mean
            if best is None or score > best[0]:
                best = score, {"contraction": contraction, "noise": noise}
                chosen = model
                kept = {key: value.clone() for key, value in model.state_dict().items()}
    assert best is not None
    chosen.load_state_dict(kept)
    chosen.noise = best[1]["noise"]
    walk = mixing.walk(chosen, guide)
    return {**best[1], **_walked(cell, parts, labeller, walk), **forgetting(cell, parts, labeller, walk)}


def cae(cell: Row, parts: lab.Split, depth: int, contraction: float) -> tuple[mixing.Contractive, mixing.Nothing]:
    """A stack trained greedily."""
    lab.seed(1000 * cell["seed"] + depth)
    model = mixing.Contractive.for_data(parts.train, depth=depth, width=cell["width"], contraction=contraction)
    guide = mixing.Nothing(model, parts.train.peek())
    _train({**cell, "lr": 3e-3}, parts, model, guide)
    return model, guide


def representations(cell: Row) -> Row:
    """What lies between and around data at every level, and how well a line separates the classes there."""
    parts = opened(cell)
    kind = cell["kind"]
    model: Any
    guide: Any
    model, guide = dbn(cell, parts, cell["depth"]) if kind == "DBN" else cae(cell, parts, cell["depth"], 0.1)
    spaces = mixing.levels(model, guide)
    found: Row = {}
    for level in range(spaces.depth + 1):
        here = {
            **_between(cell, parts, spaces, level),
            **_around(cell, parts, spaces, level),
            "linear error": _separated(parts, spaces, level),
        }
        found |= {f"{name} at {level}": value for name, value in here.items()}
    return found


def _between(cell: Row, parts: lab.Split, spaces: Levels, level: int) -> Row:
    """Midpoints of interpolation, and how far they lie below the ends as the same level decodes them, nats.

    Decoded means are smoother than pictures, which the score rewards anywhere; the fall from the ends is free of that.
    Pairs are the same at every level, neighbours are each level's.
    """
    assert parts.valid is not None
    x, y = parts.train["x"], parts.train["y"]
    half = len(x) // 2
    ends, centres = x[:half], x[half:]  # no end point is a centre
    sd = geometry.window(centres, parts.valid["x"])
    random = torch.Generator().manual_seed(cell["seed"])
    i, j = torch.randint(half, (2, 20 * PAIRS), generator=random)
    i, j = i[i != j], j[i != j]
    kinds = {"classes": y[i] != y[j], "class": y[i] == y[j]}
    pairs = {name: (ends[i[chosen][:PAIRS]], ends[j[chosen][:PAIRS]]) for name, chosen in kinds.items()}
    some = ends[:PAIRS]
    pairs["neighbours"] = some, geometry.neighbours(spaces, level, some, ends, k=2)  # the first is itself
    found: Row = {}
    for name, (a, b) in pairs.items():
        curve = geometry.score(geometry.interpolate(spaces, level, a, b, TIMES), centres, sd).mean(1)
        ends_here = (curve[0] + curve[-1]) / 2
        found |= {f"midpoint, {name}": float(curve[2]), f"fall, {name}": float(curve[2] - ends_here)}
    return found


def _around(cell: Row, parts: lab.Split, spaces: Levels, level: int) -> Row:
    """Mean score over amounts of noise, and at noise of equal effect, and the falls of both from no noise; nats."""
    assert parts.valid is not None
    x = parts.train["x"]
    half = len(x) // 2
    some, centres = x[:half], x[half:]
    sd = geometry.window(centres, parts.valid["x"])

    def scored(s: float) -> float:
        noise = Noise(len(some), seed=cell["seed"], dtype=x.dtype)
        return float(geometry.score(geometry.perturb(spaces, level, some, s, noise), centres, sd).mean())

    curve = torch.tensor([scored(s) for s in AMOUNTS])
    area = float(torch.trapezoid(curve, torch.tensor(AMOUNTS)) / max(AMOUNTS))
    s = geometry.matched(spaces, level, some, CHANGE, cell["seed"])
    equal = scored(s) if s < 1000 else math.nan
    clean = float(curve[0])
    return {
        "noise area": area, "noise fall": area - clean, "matched s": s, "matched noise": equal,
        "matched fall": equal - clean,
    }  # fmt: skip


def _separated(parts: lab.Split, spaces: Levels, level: int) -> float:
    assert parts.valid is not None
    sets = [(spaces.encode(part["x"], level), part["y"]) for part in (parts.train, parts.valid, parts.test)]
    return geometry.linear_error(*sets)


MEASURES = {"dbn": chains_of_dbn, "cae": chains_of_cae, "levels": representations}


def measure(cell: Row) -> Row:
    """Measure one cell by its `measure`."""
    return MEASURES[cell["measure"]](cell)
