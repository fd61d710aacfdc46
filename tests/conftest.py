"""Double precision, a fixed seed and validation on, for every test."""

from collections.abc import Iterator

import pyro
import pytest
import torch

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
