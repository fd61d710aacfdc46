"""Run folders: what was trained comes back without its data, predicts in the units of y, and survives being killed."""

import dataclasses
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import arviz as az
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from zoo import lab
from zoo.lab import experiments, guide_names, runs
from zoo.lab.experiments import Plan, Recipe

Zoo = Callable[..., tuple[int, str, str]]
FIT = ("fit", "matrix_gaussian", "--hidden", "3", "--draws", "20", "--epochs", "6")


def plan(guide: str | None = None, *, data: str = "diabetes", target: str | None = None, **recipe: Any) -> Plan:
    options = {"epochs": 3, "batch": 200, "dtype": "float64", "model": {"hidden": [3]}, **recipe}
    return Plan("matrix_gaussian", data, target=target, guide=guide, recipe=Recipe(**options))


def trained(folder: Path, asked: Plan) -> lab.Fit:
    cell, split = experiments.prepare(asked)
    return cell.fit(keep=runs.begin(folder, asked, cell, split))


def state(fit: lab.Fit) -> dict[str, torch.Tensor]:
    return fit.bound(fit.model, fit.guide).state_dict()


def equal(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return list(one) == list(other) and all(
        one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one
    )


# What was trained comes back

LOCAL = {family.__name__ for family in guide_names.LATENTS}
GUIDES = [None, *(name for name in experiments.known_guides() if name not in LOCAL)]


@pytest.mark.parametrize("guide", GUIDES)
def test_a_run_comes_back_without_its_data(guide: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = trained(tmp_path / "run", plan(guide))
    monkeypatch.setattr(experiments, "load", None)
    noise = torch.get_rng_state()
    run = lab.load(tmp_path / "run")
    assert torch.equal(torch.get_rng_state(), noise), "loading draws nothing"
    assert equal(state(run.fit), state(fit)) and run.finished
    assert (run.fit.losses, run.fit.N, run.fit.seconds) == (fit.losses, fit.N, fit.seconds)
    assert type(run.fit.bound) is type(fit.bound)
    batch = {"x": torch.randn(5, 10)}
    predictions = []
    for pair in (fit, run.fit):
        lab.seed(1)
        predictions.append(pair.predict(batch, draws=20).sample)
    assert torch.equal(*predictions)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_precision_comes_back_and_the_default_stays(dtype: str, tmp_path: Path) -> None:
    trained(tmp_path / "run", plan(dtype=dtype))
    torch.set_default_dtype(torch.float64)
    run = lab.load(tmp_path / "run")
    assert {p.dtype for p in run.fit.guide.parameters()} == {getattr(torch, dtype)}
    assert run.data().train["x"].dtype == getattr(torch, dtype) and torch.get_default_dtype() == torch.float64


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """A file with a number, a category and two possible targets."""
    noise = np.random.default_rng(0)
    age, smoker = noise.integers(20, 80, 60), noise.choice(["no", "yes"], 60)
    risk = 3.0 * age + 20 * (smoker == "yes") + noise.normal(size=60)
    frame = pd.DataFrame({"age": age, "smoker": smoker, "risk": risk, "kind": np.where(age > 50, "old", "young")})
    frame.to_csv(tmp_path / "people.csv", index=False)
    return tmp_path / "people.csv"


def people_plan(path: Path, target: str, guide: str = "Point") -> Plan:
    drop = {"risk": "kind", "kind": "risk"}[target]
    lean = path.with_name(f"{target}.csv")
    pd.read_csv(path).drop(columns=drop).to_csv(lean, index=False)
    return plan(guide, data=str(lean), target=target)


def test_the_data_come_back_and_other_data_are_refused(people: Path, tmp_path: Path) -> None:
    asked = people_plan(people, "risk")
    trained(tmp_path / "run", asked)
    run, (_, split) = lab.load(tmp_path / "run"), experiments.prepare(asked)
    assert equal(run.data().train.tensors, split.train.tensors) and equal(run.data().test.tensors, split.test.tensors)
    frame = pd.read_csv(asked.data)
    frame["age"] += 1
    frame["age"] *= 2.0
    frame["risk"] += 1
    frame.to_csv(asked.data, index=False)
    with pytest.raises(lab.RunError, match=r"was trained on other data: .*risk.csv now gives .* SHA256 .*; restore"):
        run.data()
    Path(asked.data).unlink()
    with pytest.raises(lab.DataError, match="no such file"):
        run.data()


def test_a_file_is_found_again_from_another_folder(people: Path, tmp_path: Path, monkeypatch: Any) -> None:
    asked = people_plan(people, "risk")
    monkeypatch.chdir(tmp_path)
    trained(tmp_path / "run", dataclasses.replace(asked, data="risk.csv"))
    monkeypatch.chdir("/")
    assert lab.load(tmp_path / "run").data().train.N == 54


# Predictions


def test_predictions_of_a_point_are_the_law_of_y_itself(people: Path, tmp_path: Path) -> None:
    """Given W and tau, y is N(f(x), 1 / tau): mean exactly, spread and quantiles within five Monte Carlo errors."""
    fit = trained(tmp_path / "run", people_plan(people, "risk"))
    run, new = lab.load(tmp_path / "run"), pd.DataFrame({"smoker": ["yes", "no"], "age": [30, 70]})
    lab.seed(0)
    found, S = run.predict(new, draws=20_000), 20_000
    point = {name: value.detach() for name, value in fit.guide(x=torch.zeros(1, 3)).items()}
    known = run.transform
    assert known is not None
    h = known.apply(new)
    for name in ("W1", "W2"):
        ones = h.new_ones(len(h), 1)
        h = torch.cat([h if name == "W1" else h.relu(), ones], -1) / (h.shape[-1] + 1) ** 0.5 @ point[name]
    mean, sd = fit.model.y_mean + fit.model.y_sd * h, point["tau"].rsqrt()
    torch.testing.assert_close(found.mean, mean)
    assert ((found.sd - sd) / sd).abs().max() < 5 / (2 * S) ** 0.5
    for q in (0.05, 0.95):
        z = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(q))
        error = (q * (1 - q) / S) ** 0.5 / torch.distributions.Normal(0.0, 1.0).log_prob(z).exp()
        assert ((found.quantile(q) - mean) / sd - z).abs().max() < 5 * error
    assert list(found.frame) == ["mean", "sd", "q05", "q95"] and len(found.frame) == 2
    np.testing.assert_array_equal(found.frame["mean"], found.mean[:, 0])


def test_classes_have_names_and_probabilities(people: Path, tmp_path: Path) -> None:
    fit = trained(tmp_path / "run", people_plan(people, "kind"))
    new = pd.DataFrame({"smoker": ["yes", "no"], "age": [30, 70]})
    run = lab.load(tmp_path / "run")
    found = run.predict(new, draws=10)
    assert run.transform is not None
    logits = fit.model.net
    with torch.no_grad():
        sites = fit.guide(x=torch.zeros(1, 3))
        from pyro import poutine

        exact = poutine.condition(logits, data=sites)(run.transform.apply(new)).softmax(-1)
    torch.testing.assert_close(found.mean, exact)
    assert list(found.frame) == ["class", "P(old)", "P(young)"]
    assert found.frame["class"].tolist() == [["old", "young"][i] for i in exact.argmax(-1)]


def test_predictions_do_not_look_at_the_target(tmp_path: Path) -> None:
    fit = trained(tmp_path / "run", plan())
    test = lab.load(tmp_path / "run").data().test
    found = []
    for table in (test, dataclasses.replace(test, tensors={"x": test["x"], "y": test["y"] + 1000})):
        lab.seed(0)
        found.append(fit.predict(table, draws=10).sample)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"site": "z"}, "the model predicts no site 'z'; there are: y"), ({"draws": 1}, "1 draws have no spread")],
)
def test_predictions_that_cannot_be_made(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    fit = trained(tmp_path / "run", plan("Point"))
    with pytest.raises(lab.PredictionError, match=message):
        fit.predict({"x": torch.zeros(2, 10)}, **options)


# Folders that cannot be used


def edited(folder: Path, **changes: Any) -> Path:
    path = folder / "manifest.json"
    value = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: content for key, content in value.items() if content is not ...}))
    return folder


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "newer": (lambda f: edited(f, schema=7), r"manifest.json was written by a newer pyro-zoo \(schema 7"),
    "cut": (lambda f: (f / "manifest.json").write_text("{"), "manifest.json is damaged"),
    "a list": (lambda f: (f / "manifest.json").write_text("[]"), "manifest.json is damaged"),
    "bytes": (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"), "manifest.json is damaged"),
    "a field lost": (lambda f: edited(f, arguments=...), "manifest.json is damaged .*'arguments'"),
    "recipe": (lambda f: edited(f, recipe={"epoch": 1}), "manifest.json is damaged .*'epoch'"),
    "gone": (lambda f: (f / "manifest.json").unlink(), "is no run: it has no manifest.json"),
    "no checkpoint": (lambda f: (f / "checkpoint.safetensors").unlink(), "has no checkpoint yet: `zoo fit --resume"),
    "other widths": (
        lambda f: edited(f, arguments={"in_features": 10, "hidden": [7]}),
        "does not fit the parameters of this run: .*size mismatch",
    ),
    "other arguments": (lambda f: edited(f, arguments={"depth": 3}), "cannot be built with {'depth': 3}"),
    "other bound": (lambda f: edited(f, bound="RenyiELBO"), "was trained on RenyiELBO; the paper now gives Trace"),
    "other class": (lambda f: edited(f, model="zoo.matrix_gaussian:Modle"), "has no class 'Modle'"),
    "no model": (lambda f: edited(f, model="os:system", arguments={"command": "touch was_called"}), "is no model"),
    "other paper": (lambda f: edited(f, paper="matrix_gausian"), "did you mean 'matrix_gaussian'"),
    "other guide": (lambda f: edited(f, guide="MeanFeld"), "did you mean 'MeanField'"),
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    trained(folder, plan())
    return folder


@pytest.mark.parametrize("case", DAMAGE)
def test_a_folder_that_cannot_be_used_is_one_line(case: str, original: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(original, tmp_path / "run"))
    damage, message = DAMAGE[case]
    damage(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=message) as caught:
        lab.load(folder)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert not (tmp_path / "was_called").exists()


OWN = """
from pyro import sample
from pyro.distributions import Normal
from torch import nn
from guides import data_plate, linear
class Model(nn.Module):
    def __init__(self, d, N, shift=0.0):
        super().__init__()
        self.d, self.N = d, N
        {keep}
    def forward(self, x, y=None):
        f = 150 + linear('w', x, Normal(x.new_zeros(self.d, 1), 50.0).to_event(2))
        with data_plate(len(x), self.N):
            return sample('y', Normal(f, 60.0).to_event(1), obs=y)
    @staticmethod
    def for_data(train):
        return Model(train['x'].shape[-1], len(train))
"""


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("self.shift = shift", None),
        ("", "Model has no attribute 'shift': a run records Model's constructor arguments, each from the attribute"),
        ("self.shift = nn.ReLU()", r"Model.shift is no JSON value \(it holds a ReLU\)"),
        ("self.shift = shift; self.w = nn.Parameter(Normal(0., 1.).sample([1 + (shift is None)])); self.shift = None",
         "Model built from its own attributes differs in 'w'"),
    ],
)  # fmt: skip
def test_ones_own_model_says_its_arguments_or_is_told_to(
    keep: str, message: str | None, zoo: Zoo, tmp_path: Path
) -> None:
    name = f"own_{abs(hash(keep))}"
    (tmp_path / f"{name}.py").write_text(OWN.format(keep=keep))
    fit = ("fit", f"{name}:Model", "--guide", "MeanField", "--epochs", "1", "--draws", "5")
    assert zoo(*fit)[0] == 0, "training itself needs no such thing"
    code, _, err = zoo(*fit, "--out", "run")
    if message is None:
        assert code == 0 and lab.load("run").manifest.arguments == {"d": 10, "N": 398, "shift": 0.0}
    else:
        assert code == 2 and re.search(message, err) and err.count("\n") == 1 and not Path("run").exists()


# The command line


def results(folder: str) -> tuple[dict[str, torch.Tensor], Any, Any]:
    """Parameters, losses and scores of a finished run, without what a clock measured."""
    scores = json.loads(Path(folder, "scores.json").read_text())
    for result in scores["results"]:
        del result["seconds"]
    tensors = load_file(Path(folder, "checkpoint.safetensors"))
    return tensors, Path(folder, "losses.csv").read_text(), scores


@pytest.fixture
def stopped(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A run that Ctrl-C stopped in its third epoch, and `straight` beside it, which was not stopped."""
    assert zoo(*FIT, "--out", "straight")[0] == 0
    offer = lab.Checkpoints.offer

    def interrupted(self: lab.Checkpoints, parts: Any, schedule: Any, done: int) -> None:
        self.every = 0.0
        offer(self, parts, schedule, done)
        if done == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(lab.Checkpoints, "offer", interrupted)
    code, out, err = zoo(*FIT, "--out", "run")
    monkeypatch.setattr(lab.Checkpoints, "offer", offer)
    assert (code, out) == (130, "") and err.startswith("go on with: zoo fit --resume run\n")
    yield "run"


def test_fit_is_resumed_with_its_options_and_ends_as_if_never_stopped(stopped: str, zoo: Zoo) -> None:
    assert sorted(os.listdir(stopped)) == ["checkpoint.safetensors", "manifest.json"]
    assert not lab.load(stopped).finished
    code, out, err = zoo("fit", "--resume", stopped, "--json")
    assert (
        code == 0 and "run: going on in 'training' after epoch 2 of " in err and json.loads(out)["data"] == "diabetes"
    )
    (tensors, losses, scores), (expected, *rest) = results(stopped), results("straight")
    assert equal(tensors, expected) and [losses, scores] == rest
    posteriors = [az.from_netcdf(Path(folder, "posterior.nc")).posterior for folder in (stopped, "straight")]
    assert posteriors[0].equals(posteriors[1])
    code, out, err = zoo("fit", "--resume", stopped)
    assert (code, out, err) == (0, "", "run is finished: nothing to resume\n")


def test_a_run_killed_between_training_and_scores_is_scored(zoo: Zoo) -> None:
    assert zoo(*FIT, "--out", "run")[0] == 0
    before = results("run")
    for name in ("scores.json", "posterior.nc", "report.html"):
        Path("run", name).unlink()
    assert zoo("fit", "--resume", "run")[0] == 0
    assert equal(results("run")[0], before[0]) and results("run")[1:] == before[1:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fit", "--resume", "run", "--epochs", "9"), "--resume takes all from the run .*; leave out --epochs"),
        (("fit", "matrix_gaussian", "--resume", "run"), "leave out paper_name|leave out PAPER"),
        (("fit", "--resume", "nowhere"), "nowhere is no run: it has no manifest.json"),
        (("fit",), "fit what"),
        ((*FIT, "--out", "run"), "run exists already; give a new folder, or go on with `zoo fit --resume run`"),
        (("predict", "run", "--data", "no.csv"), "no.csv: no such file"),
        (("predict", "nowhere", "--data", "new.csv"), "nowhere is no run"),
        (("predict", "run", "--data", "less.csv"), "no column bmi; add what is missing"),
        (("predict", "run", "--data", "gaps.csv"), r"NaN, empty or infinite cells in age \(rows 2\)"),
        (("predict", "run", "--data", "new.csv", "--out", "new.csv"), "new.csv exists already"),
    ],
)
def test_wrong_commands_are_one_line(
    arguments: tuple[str, ...], message: str, original: Path, zoo: Zoo, tmp_path: Path
) -> None:
    shutil.copytree(original, tmp_path / "run")
    new = pd.DataFrame(
        np.ones((3, 10)), columns=json.loads((original / "manifest.json").read_text())["transform"]["columns"]
    )
    new.to_csv("new.csv", index=False)
    new.drop(columns="bmi").to_csv("less.csv", index=False)
    new.assign(age=[1, np.nan, 2]).to_csv("gaps.csv", index=False)
    code, out, err = zoo(*arguments)
    assert code == 2 and out == "" and re.search(message, err) and err.count("\n") == 1 and "Traceback" not in err


def test_predict_prints_writes_and_notes_what_is_new(zoo: Zoo, people: Path) -> None:
    people_plan(people, "risk")
    arguments = ("fit", "matrix_gaussian", "--data", "risk.csv", "--target", "risk", "--epochs", "2", "--draws", "5")
    assert zoo(*arguments, "--out", "run")[0] == 0
    pd.DataFrame({"smoker": ["yes", "maybe"], "age": [30, 40], "more": [0, 0]}).to_csv("new.csv", index=False)
    code, out, err = zoo("predict", "run", "--data", "new.csv", "--json", "--draws", "50")
    found = json.loads(out)
    assert code == 0 and out.count("\n") == 1 and found["unit"] == "as in the column risk"
    assert "column 'smoker': 'maybe' not seen in training (1 rows)" in err and err.count("\n") == 1
    code, out, _ = zoo("predict", "run", "--data", "new.csv", "--draws", "50")
    assert code == 0 and out.splitlines()[0] == "mean,sd,q05,q95"
    code, out, err = zoo("predict", "run", "--data", "new.csv", "--draws", "50", "--out", "found.csv")
    assert code == 0 and out == "" and "wrote found.csv" in err
    rows = pd.DataFrame(found["rows"])
    pd.testing.assert_frame_equal(pd.read_csv("found.csv"), rows)
    assert (rows["q05"] < rows["mean"]).all() and (rows["mean"] < rows["q95"]).all()


# Killed with SIGKILL

KILLED = plan(epochs=60, dtype="float32")
WRITING = ("before", "half", "fsync", "replace", "after")  # a write that is hit at this point


def child(folder: str, moment: tuple[str, int] | None, ready: Connection) -> None:
    """Begin or resume, and train; at a moment of a write, die by SIGKILL."""
    torch.set_num_threads(1)
    if Path(folder).exists():
        _, cell, _, keep = runs.resume(Path(folder))
    else:
        cell, split = experiments.prepare(KILLED)
        keep = runs.begin(Path(folder), KILLED, cell, split)
    keep.every = 0.0
    if moment is not None:
        die(*moment)
    ready.send("ready")
    cell.fit(keep=keep)


def die(point: str, write: int) -> None:
    """Kill this process at a point of the given write of a checkpoint."""
    count = 0
    originals = {"half": Path.write_bytes, "fsync": os.fsync, "replace": os.replace}

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write_bytes(self: Path, data: bytes) -> int:
        nonlocal count
        count += 1
        if count == write and point == "before":
            kill()
        if count == write and point == "half":
            originals["half"](self, data[: len(data) // 2])  # type: ignore[operator]
            kill()
        return originals["half"](self, data)  # type: ignore[operator]

    def fsync(handle: int) -> None:
        if count == write and point == "fsync":
            kill()
        originals["fsync"](handle)  # type: ignore[operator]

    def replace(*paths: Any) -> None:
        if count == write and point == "replace":
            kill()
        originals["replace"](*paths)  # type: ignore[operator]
        if count == write and point == "after":
            kill()

    Path.write_bytes, os.fsync, os.replace = write_bytes, fsync, replace  # type: ignore[assignment, method-assign]


class Children:
    """Trainings as processes of their own, from one that has imported everything and trained nothing."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["zoo.lab", "zoo.matrix_gaussian"])

    def train(self, folder: Path, moment: tuple[str, int] | None = None, after: float | None = None) -> int:
        """Returns the exit code; after some seconds of training (negative: of building) the child is killed."""
        here, there = self.context.Pipe()
        process = self.context.Process(target=child, args=(str(folder), moment, there))
        process.start()
        if after is not None:
            if after >= 0:
                here.recv()
            time.sleep(abs(after))
            process.kill()
        process.join(300)
        return process.exitcode or 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="SIGKILL is of POSIX")
def test_killed_at_twenty_moments_a_run_ends_bit_identical(tmp_path: Path) -> None:
    children, moments = Children(), random.Random(0)
    assert children.train(tmp_path / "warm") == 0
    began = time.perf_counter()
    assert children.train(tmp_path / "straight") == 0
    length = time.perf_counter() - began
    expected, losses = load_file(tmp_path / "straight" / runs.CHECKPOINT), lab.load(tmp_path / "straight").fit.losses
    hit = []
    for trial in range(20):
        folder = tmp_path / str(trial)
        code = 0
        while code == 0:  # a run that ended before its moment came is begun anew, with another moment
            shutil.rmtree(folder, ignore_errors=True)
            if trial < 10:
                code = children.train(folder, after=moments.uniform(0, length) if trial else -0.01)
            else:
                code = children.train(folder, (WRITING[trial % 5], moments.randint(1, 60)))
        hit.append((code, (folder / runs.CHECKPOINT).exists()))
        assert children.train(folder) == 0
        assert equal(load_file(folder / runs.CHECKPOINT), expected), f"trial {trial}"
        assert lab.load(folder).fit.losses == losses and sorted(os.listdir(folder)) == [
            runs.CHECKPOINT,
            "manifest.json",
        ]
    killed = [code == -signal.SIGKILL for code, _ in hit]
    print(
        f"{sum(killed)} of 20 killed, {sum(there for _, there in hit)} of them after a checkpoint, {length:.1f} s each"
    )
    assert all(killed) and not all(there for _, there in hit)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="SIGKILL is of POSIX")
def test_the_command_itself_is_killed_and_resumed(tmp_path: Path) -> None:
    fit = ["fit", "matrix_gaussian", "--hidden", "3", "--draws", "20", "--epochs", "400"]

    def zoo(*arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "zoo", *arguments], cwd=tmp_path, stdout=subprocess.DEVNULL)

    assert zoo(*fit, "--out", "straight").wait(300) == 0
    process = zoo(*fit, "--out", "run")
    for _ in range(2):
        deadline = time.monotonic() + 120
        seen = (tmp_path / "run" / runs.CHECKPOINT).stat().st_mtime_ns if (tmp_path / "run").exists() else 0
        while time.monotonic() < deadline and process.poll() is None:
            path = tmp_path / "run" / runs.CHECKPOINT
            if path.exists() and path.stat().st_mtime_ns != seen:
                break
            time.sleep(0.2)
        process.kill()
        process.wait()
        process = zoo("fit", "--resume", "run")
    assert process.wait(300) == 0
    (tensors, losses, scores), (expected, *rest) = results(str(tmp_path / "run")), results(str(tmp_path / "straight"))
    assert equal(tensors, expected) and [losses, scores] == rest
