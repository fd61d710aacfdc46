"""What is exact of the claims of `mixing`: chains with one target, ceilings, forgetting, and Parzen's ranking."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from guides.codes import states
from zoo import lab, mixing
from zoo.lab import markov, scores
from zoo.lab.labels import Labeller
from zoo.lab.layers import Decoder
from zoo.lab.rbm import RBM
from zoo.lab.visits import NONE

Row = dict[str, Any]

FORGET = (1, 3, 10, 30)


def same_target(cell: Row) -> Row:
    """Autocorrelation times of three chains with one target: a DBN 9-6-4 fitted to bars and stripes, then sharpened.

    Fitted by its exact likelihood; `sharpness` multiplies all parameters.
    """
    torch.set_default_dtype(torch.float64)
    lab.seed(cell["seed"])
    split = mixing.data("bars_and_stripes_3x3")
    x = split.train["x"].double()
    model = _fitted(x, cell["steps"])
    with torch.no_grad():
        fit = float(model.log_evidence(x).mean())
        for parameter in model.parameters():
            parameter.mul_(cell["sharpness"])
        sharp = float(model.log_evidence(x).mean())
    world = mixing.same_target(model)
    codes = states(9).reshape(-1, 3, 3)
    rows = (codes == codes[:, :, :1]).all(-1).all(-1).double()
    columns = (codes == codes[:, :1, :]).all(1).all(1).double()
    statistics = {"pixel sum": states(9).sum(-1), "x_0": states(9)[:, 0], "rows": rows, "columns": columns}
    found: Row = {"loglik": fit, "loglik sharpened": sharp}
    for name, f in statistics.items():
        g, share = markov.explained(world.prior, world.decode, f)
        tau_h = markov.iact(world.top, world.prior, g)
        found[f"sweep, {name}"] = float(markov.iact(world.sweep, world.law, f))
        found[f"alternate, {name}"] = float(markov.iact(world.alternate, world.law, f))
        found[f"top, {name}"] = float(markov.decoded_iact(tau_h, share))
        found[f"top given h, {name}"] = float(tau_h)
    errors = [
        markov.stationarity_error(world.sweep, world.law),
        markov.stationarity_error(world.alternate, world.law),
        markov.stationarity_error(world.top, world.prior),
    ]
    relax = {
        "sweep": (world.sweep, world.law),
        "alternate": (world.alternate, world.law),
        "top": (world.top, world.prior),
    }
    return {
        **found,
        "stationarity error": max(errors),
        **{f"relaxation, {name}": markov.relaxation_time(K, pi) for name, (K, pi) in relax.items()},
    }


def _fitted(x: Tensor, steps: int) -> mixing.Model:
    """The better of two starts, Adam .05 on the exact likelihood with a little weight decay."""
    found = []
    for _ in range(2):
        model = mixing.Model(x.shape[1], [6, 4], len(x), scale=0.5)
        optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
        for _ in range(steps):
            optimiser.zero_grad()
            squares = sum(p.square().sum() for p in model.parameters())
            loss = -model.log_evidence(x).mean() + 1e-3 * squares
            loss.backward()
            optimiser.step()
        found.append((float(loss.detach()), model))
    return min(found, key=lambda pair: pair[0])[1]


def ceilings(cell: Row) -> Row:
    """Class visits of random RBMs against the ceiling of independent draws, hard and soft labels."""
    random = np.random.default_rng(cell["seed"])
    broken, closest, cases = 0, -np.inf, 0
    for case in range(cell["cases"]):
        rbm = RBM(6, 4)
        with torch.no_grad():
            for parameter in (rbm.W, rbm.b, rbm.c):
                parameter.copy_(torch.from_numpy(random.normal(size=tuple(parameter.shape)) * random.uniform(0.3, 3)))
        A, B = markov.halves(rbm)
        pi = (-rbm.free_energy(states(6, like=rbm.b))).double().softmax(0).detach()
        e = torch.from_numpy(random.dirichlet(np.full(5, 0.3), size=64))
        if case % 2 == 0:
            e = torch.nn.functional.one_hot(e.argmax(-1), 5).double()
        for T in (2, 5, 10, 25):
            excess = markov.visits(A @ B, pi, e, T) - markov.ceiling(pi @ e, T)
            broken, closest, cases = broken + (excess > 1e-9), max(closest, excess), cases + 1
    cycle = torch.roll(torch.eye(5, dtype=torch.float64), 1, 1)
    fifth = torch.full((5,), 0.2, dtype=torch.float64)
    found = markov.visits(cycle, fifth, torch.eye(5), 5)
    return {
        "checked": cases,
        "broken": int(broken),
        "closest": closest,
        "cycle": found,
        "cycle iid": markov.ceiling(fifth, 5),
    }


def forgetting(cell: Row) -> Row:
    """TV_t from one class, exactly, on digits 4 x 4: h is the top walk's state, x decoded from it, both enumerated."""
    parts = mixing.data("digits_4x4", split=cell["seed"] % 20)
    lab.seed(1000 * cell["seed"] + cell["depth"])
    model = mixing.Model.for_data(parts.train, depth=cell["depth"], width=cell["width"])
    guide = mixing.Recognition(model, parts.train.peek())
    batches = parts.train.batches(50, seed=cell["seed"])
    plan = mixing.phases(model, guide, criterion="ExactRBM")
    lab.fit(model, guide, batches, mixing.bound(guide), epochs=cell["epochs"], lr=cell["lr"], decay=0.01, phases=plan)
    x, y, labeller = parts.train["x"], parts.train["y"], Labeller(parts.train)
    named = labeller(states(16).to(x))
    e_x = torch.nn.functional.one_hot(named.clamp_min(0), 10).double() * (named != NONE).double()[:, None]
    with torch.no_grad():
        K, pi, decoder, encoded = _chain(model, guide, x)
        e = _decoded(decoder, e_x)
    e = e / e.sum(-1, keepdim=True).clamp_min(1e-12)  # of the draws that belong to a class
    law = pi @ e
    tv = torch.stack([markov.total_variation(K, encoded[y == k].mean(0), e, law, max(FORGET) + 1) for k in range(10)])
    found = {f"TV after {t}": float(tv[:, t].mean()) for t in FORGET}
    loglik = model.loglik(parts.test["x"])
    assert loglik is not None
    return {**found, "relaxation": markov.relaxation_time(K, pi), "loglik": float(loglik.mean())}


def _chain(model: mixing.Model, guide: mixing.Recognition, x: Tensor) -> tuple[Tensor, Tensor, Decoder, Tensor]:
    """Kernel, law, decoder to x, and the law of the code of every datum; a code of h_1 at both depths."""
    A, B = markov.halves(model.prior)
    codes = states(model.widths[0])
    if model.depth == 1:  # x is the visible side: the chain of h, decoded by the RBM, is that of x
        decoder = Decoder(model.widths[0], model.in_features)
        decoder.W.copy_(model.prior.W.mT), decoder.b.copy_(model.prior.b)
        logits, K = model.prior.hidden_logits(x), B @ A
        log_p = model.prior.hidden_score(codes.to(model.prior.b))
    else:
        decoder, logits, K = model.decoder(1), guide.logits(1, x), A @ B
        log_p = -model.prior.free_energy(codes.to(model.prior.b))
    return K, log_p.double().softmax(0), decoder, markov.bits_kernel(logits, codes.double())


def _decoded(decoder: Decoder, e_x: Tensor) -> Tensor:
    """E[e(x) | h] of every code, (2^n, classes), some codes at a time."""
    x = states(decoder.b.shape[0]).double()
    rows = states(decoder.above).to(decoder.b).split(128)
    return torch.cat([markov.bits_kernel(decoder.logits(some), x) @ e_x for some in rows])


def parzen_ranking(cell: Row) -> Row:
    """Ten RBMs on digits 4 x 4, of different widths and lengths of training: Parzen's ranking against the exact one."""
    parts = mixing.data("digits_4x4", split=cell["seed"] % 20)
    assert parts.valid is not None
    random = np.random.default_rng(cell["seed"])
    exact, parzen = [], []
    for number in range(10):
        lab.seed(100 * cell["seed"] + number)
        width, epochs = int(random.integers(2, 17)), int(random.choice([3, 10, 30, 100]))
        model = mixing.Model.for_data(parts.train, hidden=[width])
        guide = mixing.Recognition(model, parts.train.peek())
        batches = parts.train.batches(50, seed=cell["seed"])
        plan = mixing.phases(model, guide)
        lab.fit(model, guide, batches, mixing.bound(guide), epochs=epochs, lr=0.01, phases=plan)
        loglik = model.loglik(parts.test["x"])
        assert loglik is not None
        exact.append(float(loglik.mean()))
        samples = model.prior.sample(cell["samples"])
        parzen.append(scores.parzen(parts.test["x"], samples, parts.valid["x"]).mean)
    a, b = np.array(exact), np.array(parzen)
    wrong = [(i, j) for i in range(10) for j in range(i) if (a[i] - a[j]) * (b[i] - b[j]) < 0]
    widest = max((abs(a[i] - a[j]) for i, j in wrong), default=0.0)
    truth = scores.parzen(parts.test["x"], parts.train["x"], parts.valid["x"]).mean
    above = int((b > truth).sum())
    return {"exact": exact, "parzen": parzen, "misranked": len(wrong), "widest": widest, "above data": above}


MEASURES = {
    "same target": same_target,
    "ceilings": ceilings,
    "forgetting": forgetting,
    "parzen": parzen_ranking,
}


def measure(cell: Row) -> Row:
    """Measure one cell by its `measure`."""
    return MEASURES[cell["measure"]](cell)
