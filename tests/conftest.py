"""Double precision, a fixed seed and validation on, for every test."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyro
import pytest
import torch
from torch import Tensor

from zoo import __main__ as command
from zoo.lab.rbm import RBM

torch.set_num_threads(1)  # the tensors are small: threads would only get in one another's way


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    with pyro.validation_enabled():
        yield
    assert not dict(pyro.get_param_store()), "something wrote to the global parameter store"
    torch.set_default_dtype(before)


@pytest.fixture
def zoo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """The command line in an empty folder: arguments -> exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["zoo", *arguments])
        with pytest.raises(SystemExit) as stop:
            command.main()
        printed = capsys.readouterr()
        return int(stop.value.code or 0), printed.out, printed.err

    return run


@pytest.fixture
def gibbs(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Sweeps that lead to the state of all ones, whatever the start: what remains is the contrast."""
    calls: dict[str, Any] = {}

    def fixed(self: RBM, v: Tensor, sweeps: int = 1) -> Tensor:
        calls.update(start=v.clone(), sweeps=sweeps)
        return torch.ones_like(v)

    monkeypatch.setattr(RBM, "gibbs", fixed)
    return calls
