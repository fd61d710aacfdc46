"""Checkpoints: what goes in comes out bit for bit, a resumed training is the one that never stopped, and what cannot be
read or written is one line and loses nothing."""

import errno
import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import zoo
from guides import data_plate, linear
from zoo import lab
from zoo.lab import checkpoints, experiments
from zoo.lab.state import Randomness, StateError, pack, unpack

EPOCHS, STEPS = 5, 4  # of the trainings here: 5 epochs of 4 batches


class Stop(Exception):
    """What stops a training, where Ctrl-C or a full disk would."""


def through_a_file(state: Any) -> Any:
    skeleton, tensors = pack(state)
    loaded = safetensors.torch.load(safetensors.torch.save(tensors))
    return unpack(json.loads(json.dumps(skeleton)), loaded)


def same(one: Any, other: Any) -> bool:
    """Equal in value, type and key order, bit for bit in tensors and floats."""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        alike = type(one) is type(other) and len(one) == len(other)
        return alike and all(same(a, b) for a, b in zip(one, other, strict=True))
    return type(one) is type(other) and (one == other or (one != one and other != other))


# State


def test_state_comes_back_bit_for_bit() -> None:
    kinds = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    state = {
        "tensors": [torch.arange(6).reshape(2, 3).to(kind) for kind in kinds],
        "views": (torch.arange(6.0)[2:4], torch.arange(6.0).reshape(2, 3).mT, torch.zeros(0, 3), torch.tensor(0.1)),
        "numbers": {0: 0.1, 1: math.nan, -2: -math.inf, "deep": {"betas": (0.9, 0.95), "none": None}, "big": 2**70},
        "flag": True,
    }
    assert same(through_a_file(state), state)


def test_a_tensor_that_stands_in_two_places_is_kept_once() -> None:
    shared = torch.arange(6.0)
    skeleton, tensors = pack({"a": shared, "b": {"c": shared}, "half": shared[:3], "other": shared.reshape(2, 3)})
    assert sorted(tensors) == ["a", "half", "other"]
    back = unpack(skeleton, safetensors.torch.load(safetensors.torch.save(tensors)))
    assert back["a"] is back["b"]["c"] and torch.equal(back["half"], shared[:3])


def test_names_that_meet_are_told_apart() -> None:
    state = {"a": {"b.c": torch.zeros(1)}, "a.b": {"c": torch.ones(1)}}
    assert same(through_a_file(state), state)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"fit": {"f": len}}, "the state fit.f is of type builtin_function_or_method; give tensors or JSON values"),
        ({"fit": {(1, 2): 0}}, r"the state fit has the key \(1, 2\); keys are text or numbers"),
    ],
)
def test_what_json_cannot_hold_is_named(state: Any, message: str) -> None:
    with pytest.raises(StateError, match=message):
        pack(state)


def noise() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.random(), np.random.randn(), float(torch.randn(()))]


def test_random_states_come_back() -> None:
    noise()  # gauss of Python and of numpy keep a second number for the next call
    state = through_a_file(Randomness().state_dict())
    expected = noise()
    noise()
    Randomness().load_state_dict(state)
    assert noise() == expected


# A resumed training is the one that never stopped


class Deep(nn.Module):
    """Has what a state dict can hold: shared parameters, a buffer, a local latent."""

    def __init__(self, N: int) -> None:
        super().__init__()
        self.N, self.one = N, nn.Linear(2, 2)
        self.two = self.one
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        self.count += 1
        w = linear("w", self.two(self.one(x).tanh()), dist.Normal(x.new_zeros(2, 1), 1.0).to_event(2))
        with data_plate(len(x), self.N):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 1), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(w + z, 1.0).to_event(1), obs=y)


def table() -> lab.Table:
    x = torch.randn(30, 2, generator=torch.Generator().manual_seed(1))
    return lab.Table({"x": x, "y": x.sum(-1, keepdim=True)}, name="sums")


class Average:
    """A callback that remembers: the running mean of the guide's first parameter, and how often it was called."""

    def __init__(self, stop: int | None = None) -> None:
        self.mean: Tensor | None = None
        self.calls, self.stop = 0, stop

    def __call__(self, fit: lab.Fit) -> None:
        self.calls += 1
        now = next(fit.guide.parameters()).detach().clone()
        self.mean = now if self.mean is None else self.mean + (now - self.mean) / self.calls
        if fit.steps == self.stop:
            raise Stop

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "calls": self.calls}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean, self.calls = state["mean"], state["calls"]


def train(guide: str, keep: lab.Checkpoints | None, stop: int | None = None) -> dict[str, Any]:
    """The whole state at the end of a training that draws on every source of noise."""
    lab.seed(0)
    model = Deep(30)
    pair = experiments.build_guide(guide, model, table().peek())
    average = Average(stop)
    fit = lab.fit(
        model,
        pair,
        table().batches(8, seed=3),
        pyro.infer.Trace_ELBO(),
        epochs=EPOCHS,
        decay=0.1,
        valid=table().batches(20, seed=4),
        callbacks=[average, lambda fit: noise()],
        keep=keep,
    )
    curves = {name: values for name, values in fit.state_dict().items() if name != "seconds"}
    return {"model": model.state_dict(), "guide": pair.state_dict(), **curves, "average": average.state_dict(),
            "noise": noise()}  # fmt: skip


GUIDES = ("MeanField", "MatrixNormal", "SiteFullRank", "Point", "NormalEncoder")


@pytest.fixture(scope="module")
def straight() -> Callable[[str], dict[str, Any]]:
    known: dict[str, dict[str, Any]] = {}
    return lambda guide: known.setdefault(guide, train(guide, None))


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("stop", [2, STEPS, STEPS + 1, 3 * STEPS, EPOCHS * STEPS])
def test_stopped_and_resumed_is_never_stopped(
    guide: str, stop: int, straight: Callable[[str], dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(Stop):
        train(guide, lab.Checkpoints(tmp_path, every=0.0), stop)
    assert same(train(guide, lab.Checkpoints.resume(tmp_path, every=0.0)), straight(guide))
    assert same(train(guide, lab.Checkpoints.resume(tmp_path)), straight(guide)), "and again, from its end"


def test_checkpoints_change_nothing(straight: Callable[[str], dict[str, Any]], tmp_path: Path) -> None:
    assert same(train("MeanField", lab.Checkpoints(tmp_path, every=0.0)), straight("MeanField"))


def test_the_last_epoch_is_kept_however_rare_checkpoints_are(tmp_path: Path) -> None:
    train("MeanField", lab.Checkpoints(tmp_path, every=3600.0))
    saved = checkpoints.read(tmp_path / "checkpoint.safetensors")
    assert saved.finished and saved.done == EPOCHS
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"], "and nothing else is left"


AUTO = ("AutoNormal", "AutoDelta", "AutoMultivariateNormal", "AutoLowRankMultivariateNormal", "AutoIAFNormal")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("guide", AUTO)
def test_automatic_guides_are_resumed_too(guide: str, dtype: str, tmp_path: Path) -> None:
    recipe = experiments.Recipe(epochs=4, batch=200, dtype=dtype, model={"hidden": [2]})
    plan = experiments.Plan("matrix_gaussian", "diabetes", guide=guide, recipe=recipe)
    whole = experiments.prepare(plan)[0].fit()
    cell = experiments.prepare(plan)[0]
    keep = lab.Checkpoints(tmp_path, every=0.0)
    keep.offer = stopping(keep.offer, 2)  # type: ignore[method-assign]
    with pytest.raises(Stop):
        cell.fit(keep=keep)
    fit = experiments.prepare(plan)[0].fit(keep=lab.Checkpoints.resume(tmp_path))
    assert same(fit.guide.state_dict(), whole.guide.state_dict()) and fit.losses == whole.losses
    assert next(fit.guide.parameters()).dtype == getattr(torch, dtype)


def stopping(offer: Callable[..., None], epoch: int) -> Callable[..., None]:
    """Keep a checkpoint, and stop after that of this epoch."""

    def wrapped(parts: Any, schedule: Any, done: int) -> None:
        offer(parts, schedule, done)
        if done == epoch:
            raise Stop

    return wrapped


class Walk(nn.Module):
    """Two parameters: one takes random steps by itself, the other descends."""

    def __init__(self) -> None:
        super().__init__()
        self.loc, self.fallen = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.ones(3))


def walk(keep: lab.Checkpoints | None) -> tuple[dict[str, Any], list[int]]:
    """Three stages with one model; returns its state and the order of the rows of the last one."""
    lab.seed(0)
    model, rows = Walk(), table().batches(10, seed=0)
    seen: list[int] = []

    def step(batch: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            model.loc += torch.randn(3) * random.random() * np.random.random()
        return model.loc.detach().sum()

    def descend(batch: Mapping[str, Tensor]) -> Tensor:
        seen[:] = [*seen, round(1e6 * float(batch["y"][0]))]
        return (model.fallen * batch["x"].sum() + torch.randn(3) - model.loc.detach()).square().sum()

    def stage(name: str) -> lab.Stage:
        adam = torch.optim.Adam([model.fallen])
        return lab.Stage(name, descend, rows, 3, adam, torch.optim.lr_scheduler.ExponentialLR(adam, 0.9))

    lab.run([stage("first"), lab.Stage("walk", step, rows, 2), stage("last")], state={"model": model}, keep=keep)
    return model.state_dict(), seen[-3:]


@pytest.mark.parametrize("stop", range(1, 9))
def test_several_stages_resume_in_the_one_they_were_in(stop: int, tmp_path: Path) -> None:
    expected = walk(None)
    keep = lab.Checkpoints(tmp_path, every=0.0)
    keep.offer = stopping(keep.offer, stop)  # type: ignore[method-assign]
    with pytest.raises(Stop):
        walk(keep)
    state, seen = walk(lab.Checkpoints.resume(tmp_path, every=0.0))
    assert same(state, expected[0]) and (stop == 8 or seen == expected[1])


# What is refused


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A checkpoint of `train("MeanField")`, stopped after two epochs."""
    keep = lab.Checkpoints(tmp_path / "run", every=0.0)
    with pytest.raises(Stop):
        train("MeanField", keep, 2 * STEPS + 1)
    return keep.path


def schema(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Rewrite our JSON in a checkpoint."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["pyro-zoo"])
    text = json.dumps(change(about))
    path.write_bytes(safetensors.torch.save(safetensors.torch.load(data), {"pyro-zoo": text}))


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (lambda p: p.write_bytes(b""), "is no complete safetensors file"),
    "header cut": (lambda p: p.write_bytes(p.read_bytes()[:100]), "is no complete safetensors file"),
    "one byte short": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "is no complete safetensors file"),
    "a pickle": (lambda p: torch.save({"a": 1}, p), "is no complete safetensors file"),
    "foreign": (
        lambda p: safetensors.torch.save_file({"w": torch.ones(2)}, p),
        "is a safetensors file, but no checkpoint of pyro-zoo",
    ),
    "newer": (
        lambda p: schema(p, lambda about: {**about, "schema": 99}),
        r"was written by a newer pyro-zoo \(schema 99, this one reads up to 1\): upgrade pyro-zoo",
    ),
    "no schema": (lambda p: schema(p, lambda about: {}), r"is damaged \('schema'\)"),
    "no state": (lambda p: schema(p, lambda about: {"schema": 1, "done": 0, "schedule": []}), "is damaged"),
    "a list": (lambda p: schema(p, lambda about: [1]), "is damaged"),
    "a lost tensor": (
        lambda p: schema(p, lambda about: {**about, "state": {"dict": [["fit", {"tensor": "nowhere"}]]}}),
        "is damaged",
    ),
    "another part": (
        lambda p: schema(p, lambda about: {**about, "state": {"dict": [["fit", {"dict": []}]]}}),
        "holds no state of 'parameters', only of fit",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_checkpoint_that_cannot_be_used_is_one_line_and_stays_as_it_is(case: str, kept: Path) -> None:
    damage, message = DAMAGE[case]
    damage(kept)
    before = kept.read_bytes()
    with pytest.raises(lab.RunError, match=message) as caught:
        train("MeanField", lab.Checkpoints.resume(kept.parent))
    assert str(kept) in str(caught.value) and "\n" not in str(caught.value)
    assert kept.read_bytes() == before and [path.name for path in kept.parent.iterdir()] == [kept.name]


def test_parameters_of_another_guide_do_not_fit(kept: Path) -> None:
    with pytest.raises(
        lab.RunError, match=r"does not fit the parameters of this run: .*loading state_dict.*Unexpected key"
    ):
        train("Point", lab.Checkpoints.resume(kept.parent))


def test_another_training_is_refused(kept: Path) -> None:
    with pytest.raises(lab.RunError, match=r"is of the stages training \(5 epochs\), not of first \(3 epochs\), walk"):
        walk(lab.Checkpoints.resume(kept.parent))


def test_a_new_training_does_not_overwrite_a_checkpoint(kept: Path) -> None:
    with pytest.raises(lab.RunError, match="exists already: resume from it, or give a new folder"):
        lab.Checkpoints(kept.parent)


def test_checkpoints_of_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(lab.TrainingError, match="checkpoints of what"):
        lab.run([lab.Stage("one", lambda batch: torch.zeros(()), [{}], 1)], keep=lab.Checkpoints(tmp_path))


def test_a_callback_whose_state_is_no_json_is_named(tmp_path: Path) -> None:
    average = Average()
    average.calls = object()  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"the state callback 1.calls is of type object; give tensors or JSON values"):
        checkpoints.write(tmp_path / "c", {"callback 1": average}, [], 0)
    assert not list(tmp_path.iterdir())


def test_resuming_clears_what_a_killed_writer_left(kept: Path) -> None:
    (kept.parent / "checkpoint.safetensors.123.partial").write_text("half")
    lab.Checkpoints.resume(kept.parent)
    assert [path.name for path in kept.parent.iterdir()] == [kept.name]


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(kept: Path) -> None:
    before = kept.read_bytes()
    model = Deep(30)
    pair = experiments.build_guide("MeanField", model, table().peek())
    x, y = table().all().values()
    bad = [{"x": x, "y": y.clone().fill_(math.inf)}] * STEPS
    with pyro.validation_enabled(False), pytest.raises(lab.NonFiniteLoss, match=r"step 9.*'y' in the model"):
        lab.fit(
            model, pair, bad, pyro.infer.Trace_ELBO(), epochs=EPOCHS, decay=0.1, callbacks=[Average()],
            keep=lab.Checkpoints.resume(kept.parent, every=0.0),
        )  # fmt: skip
    assert kept.read_bytes() == before


# Disks that are full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with 256 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root on Linux")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_loses_nothing(small_disk: Path, straight: Callable[[str], dict[str, Any]]) -> None:
    folder = small_disk / "run"
    with pytest.raises(Stop):
        train("MeanField", lab.Checkpoints(folder, every=0.0), 2 * STEPS + 1)
    before = (folder / "checkpoint.safetensors").read_bytes()
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "filler").write_bytes(bytes(2**20))
    with pytest.raises(lab.RunError, match=r"could not be written \(No space left on device; make room\); the one bef"):
        train("MeanField", lab.Checkpoints.resume(folder, every=0.0))
    assert (folder / "checkpoint.safetensors").read_bytes() == before and len(list(folder.iterdir())) == 1
    (small_disk / "filler").unlink()
    assert same(train("MeanField", lab.Checkpoints.resume(folder)), straight("MeanField"))


@pytest.mark.skipif(sys.platform == "win32", reason="limits on file sizes are of POSIX")
def test_a_file_that_may_not_grow_loses_nothing(kept: Path) -> None:
    import resource

    before, limits = kept.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(lab.RunError, match=r"could not be written \(File too large\); the one before is kept"):
            train("MeanField", lab.Checkpoints.resume(kept.parent, every=0.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert kept.read_bytes() == before and len(list(kept.parent.iterdir())) == 1


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_fails_late_loses_nothing(call: str, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.EIO, "a long story\nof some library")

    before = kept.read_bytes()
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(lab.RunError, match=r"could not be written \(Input/output error\); the one before is kept"):
        train("MeanField", lab.Checkpoints.resume(kept.parent, every=0.0))
    assert kept.read_bytes() == before and len(list(kept.parent.iterdir())) == 1


def test_nothing_that_is_loaded_is_unpickled() -> None:
    """Neither the lab nor the commands name a way to unpickle."""
    sources = "\n".join(path.read_text(encoding="utf-8") for path in Path(zoo.__file__).parent.rglob("*.py"))
    assert not any(word in sources for word in ("import pickle", "torch.load", "allow_pickle=True", "joblib.load"))
