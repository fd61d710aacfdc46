"""Labels of generated data, first states, and chains judged together: what is said, and what must fail."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import arviz as az
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor
from worlds import data, rows_of

from guides.codes import states
from zoo import lab, mixing
from zoo.lab import chain_reports, kernels, labels, markov, scores, visits
from zoo.lab.chain_reports import Walk, judge
from zoo.lab.data import DataError
from zoo.lab.labels import Labeller
from zoo.lab.noise import Noise


@cache
def digits() -> lab.Split:
    train, valid, test = (None if p is None else p.to(dtype=torch.float64) for p in mixing.data("digits"))
    assert train is not None and test is not None
    return lab.Split(train.subset(range(700)), valid, test)


@cache
def labeller() -> Labeller:
    return Labeller(digits().train)


def toy(n: int = 120, features: int = 8, classes: int = 3) -> lab.Table:
    """Bits around one prototype for each class."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(n) % classes
    centres = torch.bernoulli(torch.full((classes, features), 0.5, dtype=torch.float64), generator=generator)
    flipped = torch.bernoulli(torch.full((n, features), 0.05, dtype=torch.float64), generator=generator)
    names = ["a", "b", "c", "d"][:classes]
    return lab.Table({"x": (centres[y] - flipped).abs(), "y": y}, name="toy", classes=names)


def cut(table: lab.Table) -> lab.Split:
    return lab.Split(table.subset(range(90)), None, table.subset(range(90, len(table))))


# The class of generated data.


def test_the_classifier_knows_real_digits_and_rejects_what_is_none() -> None:
    """Of 497 or so test digits, of coin flips, and of independent pixels with the means of the data."""
    found, test = labeller(), digits().test
    named = found(test["x"])
    kept = named != visits.NONE
    assert 0.6 < float(kept.double().mean()) < 1
    assert float((named[kept] == test["y"][kept]).double().mean()) > 0.97
    torch.manual_seed(0)
    mean = digits().train["x"].mean(0)
    for p in (torch.full_like(mean, 0.5), mean):
        junk = torch.bernoulli(p.expand(1000, -1))
        assert float((found(junk) == visits.NONE).double().mean()) > 0.75
    assert found.rejects and len(found) == 10 and found.names == [str(k) for k in range(10)]
    torch.testing.assert_close(found.law, torch.bincount(digits().train["y"]).double() / 700)


def test_labels_are_a_function_of_the_datum_whatever_its_shape() -> None:
    x = digits().test["x"][:24]
    flat = labeller()(x)
    assert torch.equal(labeller()(x.reshape(2, 3, 4, -1)), flat.reshape(2, 3, 4))
    assert torch.equal(labeller()(x.flip(0)), flat.flip(0)) and torch.equal(labeller()(x.float()), flat)


def test_confidence_is_what_rejects(monkeypatch: pytest.MonkeyPatch) -> None:
    x = digits().test["x"]
    shares = []
    for confidence in (0.0, 0.8, 0.99, 1.01):
        monkeypatch.setattr(labels, "CONFIDENCE", confidence)
        shares.append(float((labeller()(x) == visits.NONE).double().mean()))
    assert shares[0] == 0 and shares == sorted(shares) and shares[3] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_data_without_labels_have_clusters_and_reject_nothing(dtype: torch.dtype) -> None:
    table = rows_of(toy()["x"].to(dtype))
    found = Labeller(table)
    distinct = len(table["x"].unique(dim=0))
    assert not found.rejects and len(found) == min(10, distinct) and found.names[1] == "cluster 1"
    named = found(table["x"])
    torch.testing.assert_close(found.law, torch.bincount(named, minlength=len(found)).double() / 120)
    centres = torch.as_tensor(found.machine.cluster_centers_, dtype=torch.float64)
    everything = states(8).to(dtype)
    gaps = torch.cdist(everything.double(), centres)
    mine = gaps.gather(1, found(everything)[:, None]).squeeze(1)
    torch.testing.assert_close(mine, gaps.amin(1), rtol=0, atol=1e-6)  # whatever breaks a tie
    assert torch.equal(Labeller(table)(everything), found(everything)), "one seed, the same clusters"


def test_few_distinct_rows_are_as_many_clusters() -> None:
    assert len(Labeller(rows_of(states(2).repeat(9, 1)))) == 4


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (replace(toy(), classes=["a"], tensors={"x": toy()["x"], "y": torch.zeros(120).long()}), r"toy has \[120\]"),
        (replace(toy(), classes=["a", "b", "c", "d"]), r"toy has \[40, 40, 40, 0\]"),
        (toy(12), r"class visits need two classes of five data or more; toy has \[4, 4, 4\]"),
    ],
)
def test_too_few_data_of_a_class_are_refused(table: lab.Table, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Labeller(table)


def test_the_nearest_datum_is_found_by_the_count_of_different_units() -> None:
    x, rows = data(60, 7).reshape(3, 20, 7), data(11, 7)
    truth = (x[:, :, None] != rows).sum(-1).amin(-1)
    assert torch.equal(labels.nearest(x, rows), truth.double())
    assert not labels.nearest(rows, rows).any()
    many = data(20_001, 7)  # more than are held at once
    assert torch.equal(labels.nearest(many, rows)[-5:], labels.nearest(many[-5:], rows))


# First states.


def test_chains_start_in_one_class_after_the_other() -> None:
    table = toy()
    first = chain_reports.starts(table, table["y"], 8, classes=3)
    members = [table["x"][table["y"] == k] for k in range(3)]
    for m in range(8):
        assert torch.equal(first[m], members[m % 3][m // 3])
    alone = chain_reports.starts(table, table["y"], 50, classes=3, only=1)
    assert torch.equal(alone[:40], members[1]) and torch.equal(alone[40:], members[1][:10]), "from the first again"


def test_a_class_without_data_is_passed_over_and_alone_is_refused() -> None:
    table = toy()
    labelled = table["y"].clone()
    labelled[labelled == 1] = visits.NONE
    first = chain_reports.starts(table, labelled, 4, classes=3)
    assert torch.equal(first[1], table["x"][2]) and torch.equal(first[2], table["x"][3])
    with pytest.raises(DataError, match="no datum to start from"):
        chain_reports.starts(table, labelled, 4, classes=3, only=1)
    with pytest.raises(DataError, match="one chain or more, not 0"):
        chain_reports.starts(table, labelled, 0, classes=3)


# Chains judged.


def independent(p: Tensor) -> Walk:
    """Not a chain: independent bits, seen as they are."""
    return Walk(
        lambda s, noise: noise.bernoulli(p.expand(len(s), -1)),
        lambda x, noise: x,
        lambda s, noise: s,
        lambda s: s,
        lambda s: {"first": s[:, 0]},
    )


STILL = Walk(lambda s, noise: s, lambda x, noise: x, lambda s, noise: s, lambda s: s, lambda s: {})


def draws_of(table: lab.Table) -> Walk:
    """Independent draws from the data themselves."""
    x = table["x"]
    return Walk(
        lambda s, noise: x[(noise.uniform() * len(x)).long()],
        lambda x, noise: x,
        lambda s, noise: s,
        lambda s: s,
        lambda s: {"first": s[:, 0]},
    )


def test_independent_draws_of_the_data_pass_everything() -> None:
    parts = cut(toy())
    found = judge(draws_of(parts.train), parts, chains=8, steps=400)
    row, mixed = found.row(), found.mixing
    assert not mixed.stuck and row["R-hat"] < 1.02 and row["rejected"] < 0.1 and row["nearest"] == 0
    assert row["ESS/step median"] == pytest.approx(1, abs=0.2) and row["class error"] < 0.05
    for T in (10, 25, 100):
        assert row[f"of ceiling in {T}"] == pytest.approx(1, abs=0.03)
        law = visits.one_hot(found.labels, 3).mean((0, 1))
        assert mixed.ceilings[T] == pytest.approx(markov.ceiling(law, T))
    assert row["switch rate"] == pytest.approx(2 / 3, abs=0.05)
    assert (mixed.chains, mixed.draws, found.chains.steps) == (8, 400, 440), "a tenth before the first draw"
    assert "FAILED" not in found.sentences[0] and found.sentences[-1].startswith("Parzen score of the test data")


@pytest.mark.parametrize("table", [toy(), rows_of(toy()["x"])], ids=["classes", "clusters"])
def test_a_chain_that_never_moves_fails_in_words(table: lab.Table) -> None:
    parts = cut(table)
    found = judge(STILL, parts, chains=6, steps=20)
    assert found.sentences[0].startswith("FAILED: ")
    assert "moved in no chain" in found.sentences[0] and "these chains did not mix" in found.sentences[0]
    assert found.row()["R-hat"] == math.inf and found.row()["ESS/step median"] == 0
    assert found.row()["classes in 10"] <= 1
    alone = judge(STILL, parts, chains=6, steps=20, only=0)
    assert "never moved" in alone.sentences[0] and alone.mixing.to_dict()["R-hat"] is None


def test_what_is_watched_is_what_is_said_of_it() -> None:
    parts = cut(toy())
    p = torch.linspace(0.2, 0.8, 8)
    found = judge(independent(p), parts, chains=4, steps=30)
    x, seen = found.chains["x"], found.chains.draws
    assert x.shape == (4, 30, 8) and {
        name: value.shape for name, value in seen.items() if name != "x"
    } == dict.fromkeys(["pixel sum", "pixel sum | s", "PC 1", "PC 1 | s", "PC 2", "first"], (4, 30))
    torch.testing.assert_close(seen["pixel sum"], x.sum(-1))
    torch.testing.assert_close(seen["first"], x[..., 0])
    real = parts.train["x"]
    _, _, axes = torch.linalg.svd(real - real.mean(0))
    for name, axis in (("PC 1", axes[0]), ("PC 2", axes[1])):
        truth = (x - real.mean(0)) @ axis
        torch.testing.assert_close(seen[name].abs(), truth.abs(), rtol=0, atol=1e-10)
    torch.testing.assert_close(seen["PC 1"], seen["PC 1 | s"])
    assert torch.equal(found.labels, Labeller(parts.train)(x))
    assert found.mixing.nearest == pytest.approx(float(labels.nearest(x, real).mean()))
    assert [s.name for s in found.mixing.indicators] == ["class a", "class b", "class c"]


def test_the_parzen_score_is_under_the_draws_with_the_window_of_other_data() -> None:
    table = toy(150)
    parts = lab.Split(table.subset(range(90)), table.subset(range(90, 120)), table.subset(range(120, 150)))
    found = judge(independent(torch.full((8,), 0.5)), parts, chains=4, steps=30)
    rows = found.chains["x"].reshape(-1, 8)
    assert parts.valid is not None
    assert found.parzen == scores.parzen(parts.test["x"], rows, parts.valid["x"])
    assert found.row()["Parzen"] == found.parzen.mean
    near = parts._replace(valid=rows_of(rows[:30]))  # data that the draws hit
    narrow = judge(independent(torch.full((8,), 0.5)), near, chains=4, steps=30)
    assert narrow.parzen == scores.parzen(parts.test["x"], rows, rows[:30]) and narrow.parzen.sd < found.parzen.sd
    without = judge(independent(torch.full((8,), 0.5)), parts._replace(valid=None), chains=4, steps=30)
    assert without.parzen == scores.parzen(parts.test["x"][15:], rows, parts.test["x"][:15]), "half of the test data"


def test_draws_are_thinned_evenly_for_parzen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_reports, "PARZEN_SAMPLES", 30)
    parts = cut(toy())
    found = judge(independent(torch.full((8,), 0.5)), parts, chains=4, steps=30)
    rows = found.chains["x"].reshape(-1, 8)[::4]
    half = len(parts.test) // 2
    assert len(rows) == 30
    assert found.parzen == scores.parzen(parts.test["x"][half:], rows, parts.test["x"][:half])


def test_one_seed_gives_the_same_numbers_and_another_gives_others() -> None:
    parts, sampler = cut(toy()), independent(torch.full((8,), 0.4))
    one, two, other = (judge(sampler, parts, chains=5, steps=20, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(one.chains["x"], two.chains["x"]) and not torch.equal(one.chains["x"], other.chains["x"])
    timed = {"ESS/s worst"}
    assert {k: v for k, v in one.row().items() if k not in timed} == {
        k: v for k, v in two.row().items() if k not in timed
    }
    some = judge(sampler, parts, chains=3, steps=20, seed=3)
    assert torch.equal(some.chains["x"], one.chains["x"][:3]), "a chain does not depend on the others"
    cold = judge(sampler, parts, chains=3, steps=20, seed=3, warmup=0)
    assert torch.equal(cold.chains["x"][:, 2:], some.chains["x"][:, :-2]) and cold.chains.steps == 20


def test_a_labeller_that_is_there_is_used() -> None:
    parts = cut(toy())
    mine = Labeller(rows_of(parts.train["x"]))
    found = judge(independent(torch.full((8,), 0.4)), parts, chains=4, steps=20, labeller=mine)
    assert found.mixing.classes == mine.names and torch.equal(found.labels, mine(found.chains["x"]))


def test_chains_leave_for_arviz_by_chain_draw_and_feature(tmp_path: Path) -> None:
    found = judge(independent(torch.full((8,), 0.4)), cut(toy()), chains=5, steps=24)
    whole: Any = found.inference_data()
    posterior = whole.posterior
    for name, features in (("x", 8), ("label", 3)):
        assert posterior[name].dims[:2] == ("chain", "draw") and posterior[name].shape == (5, 24, features)
        assert len(posterior[name].dims) == 3
    assert np.array_equal(posterior["pixel sum"].values, found.chains["pixel sum"].numpy())
    assert np.array_equal(posterior["x"].values, found.chains["x"].numpy())
    label = posterior["label"].values
    assert np.array_equal(label, visits.one_hot(found.labels, 3).numpy()) and set(label.sum(-1).flat) <= {0.0, 1.0}
    found.inference_data().to_netcdf(str(tmp_path / "chains.nc"))
    again: Any = az.from_netcdf(tmp_path / "chains.nc")
    again = again.posterior
    assert float(again["pixel sum"].mean()) == pytest.approx(float(found.chains["pixel sum"].mean()))
    worst = min(float(az.ess(again["label"], method="mean")["label"][k]) for k in range(3))
    assert found.mixing.ess[1] * 5 * 24 == pytest.approx(worst)


def test_pictures_have_texts_and_are_drawn_without_a_window() -> None:
    before = plt.get_fignums()
    sides = {9: 5, 8: 4}
    for features, count in sides.items():
        found = judge(independent(torch.full((features,), 0.4)), cut(toy(features=features)), chains=5, steps=24)
        pictures = found.pictures()
        assert len(pictures) == count, "strips only of square pictures"
        for alt, figure in pictures:
            assert alt.endswith(".") and isinstance(figure, Figure)
    alt, figure = judge(independent(torch.full((9,), 0.4)), cut(toy(features=9)), chains=10, steps=24).pictures()[0]
    assert alt == "The first 25 draws of each of 8 chains, one row each." and len(figure.axes) == 8
    assert plt.get_fignums() == before


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"chains": 1}, ValueError, "chains are judged together, 2 or more"),
        ({"chains": 0}, DataError, "one chain or more, not 0"),
        ({"steps": 3}, ValueError, "of 4 draws or more"),
        ({"steps": 0}, ValueError, "a walk takes one draw or more"),
        ({"only": 7}, DataError, "no datum to start from"),
    ],
)
def test_what_cannot_be_judged_is_refused(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        judge(independent(torch.full((8,), 0.4)), cut(toy()), **{"chains": 4, "steps": 20, **options})


@pytest.mark.equation("mix.17")
def test_chains_from_one_class_forget_it_as_the_exact_kernel_says() -> None:
    """Single-site flips towards two prototypes: total variation of 400 chains, noise 0.04 at most."""
    table = toy(classes=2)
    found = Labeller(table)
    named = found(states(8))
    log_p = torch.where(named == visits.NONE, -1.5, 0.0)
    step, M = kernels.single_site(lambda x: log_p[(x @ 2.0 ** torch.arange(7, -1, -1)).long()]), 400
    sampler = replace_step(step)
    seen = judge(sampler, lab.Split(table, None, table), chains=M, steps=6, only=0, labeller=found, warmup=0)
    K, pi = markov.sweep(log_p), log_p.softmax(0)
    e = (named[:, None] == torch.arange(2)).double()
    first = chain_reports.starts(table, table["y"], M, classes=2, only=0)
    where = (first @ 2.0 ** torch.arange(7, -1, -1)).long()
    begin = torch.bincount(where, minlength=256).double() / M
    exact = markov.total_variation(
        K, begin, torch.cat([e, 1 - e.sum(1, keepdim=True)], 1), torch.cat([pi @ e, 1 - (pi @ e).sum()[None]]), 7
    )[1:]
    simulated = visits.total_variation(seen.labels, pi @ e)
    assert float(exact[0]) > 0.1
    assert float((simulated - exact).abs().max()) < 4 * math.sqrt(0.5 / M)


def replace_step(step: kernels.Step) -> Walk:
    return STILL._replace(step=step)


def test_starts_are_encoded_with_noise_of_their_own() -> None:
    """The first states do not repeat the numbers that move the chains or look at them."""
    seen: list[Tensor] = []

    def start(x: Tensor, noise: Noise) -> Tensor:
        seen.append(noise.uniform(8))
        return x

    judge(independent(torch.full((8,), 0.4))._replace(start=start), cut(toy()), chains=4, steps=20, seed=5)
    others = [Noise(4, seed=5, stream=stream).uniform(8) for stream in (0, 1)]
    assert not any(torch.equal(seen[0], other) for other in others)
