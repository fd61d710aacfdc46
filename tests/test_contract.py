"""What every paper offers, and how one is found: a law over `zoo.PAPERS`."""

import importlib
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import ELBO, Predictive
from torch import Tensor, nn

import zoo
from zoo import lab
from zoo.lab import manifests

# paper: a data set that comes with scikit-learn, and options that keep the model small
SMALL: Mapping[str, list[tuple[str, dict[str, Any]]]] = {
    "layerwise": [
        ("tea", {"hidden": [4]}),
        ("tea", {"hidden": [4, 3], "top": "tabular"}),
        ("digits_4x4", {"hidden": [4], "top": "bits"}),
        ("tea", {"hidden": [4], "pixels": "gaussian", "top_hidden": 3}),
    ],
    "mixing": [
        ("digits", {"depth": 2, "width": 5}),
        ("digits_4x4", {"hidden": [4]}),
        ("digits", {"hidden": [5, 4, 3], "particles": 7}),
    ],
    "matrix_gaussian": [
        ("diabetes", {"hidden": [3]}),
        ("diabetes", {"hidden": []}),
        ("diabetes", {"hidden": [3, 2], "noise": "standardised", "hyperprior": [1.0, 0.5]}),
        ("diabetes", {"hidden": [3], "noise": "heteroscedastic"}),
        ("digits", {"hidden": [3]}),
    ],
}
CASES = [(paper, *case) for paper in zoo.PAPERS for case in SMALL.get(paper, [])]


def load(paper: str, name: str) -> tuple[ModuleType, lab.Split]:
    module = zoo.paper(paper)
    return module, module.data(name, split=0)


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]} {case[1]} {case[2]}")
def case(request: pytest.FixtureRequest) -> tuple[ModuleType, lab.Table, dict[str, Any]]:
    paper, name, options = request.param
    module, split = load(paper, name)
    return module, split.train, options


def test_every_paper_has_a_case_here() -> None:
    assert SMALL.keys() == zoo.PAPERS.keys()


@pytest.mark.parametrize("name", zoo.PAPERS)
def test_a_paper_has_the_six_names_and_a_card(name: str) -> None:
    paper = zoo.paper(name)
    assert issubclass(paper.Model, nn.Module)
    assert all(callable(getattr(paper, verb)) for verb in ("guide", "bound", "data"))
    assert paper.__doc__ and all(key in paper.__doc__ for key in ("Departures", "Bound", "Guide", "Model"))
    assert isinstance(paper.EQUATIONS, dict) and paper.EQUATIONS
    assert all(isinstance(key, str) and value is not None for key, value in paper.EQUATIONS.items())
    ids = [claim.id for claim in paper.CLAIMS]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize("name", zoo.PAPERS)
def test_a_bound_can_be_had_without_a_guide_and_is_new_each_time(name: str) -> None:
    paper = zoo.paper(name)
    assert isinstance(paper.bound(None), ELBO)
    assert paper.bound() is not paper.bound()


@pytest.mark.parametrize("name", zoo.PAPERS)
def test_data_gives_tables_with_train_and_test_apart(name: str) -> None:
    _, split = load(name, SMALL[name][0][0])
    assert isinstance(split.train, lab.Table) and isinstance(split.test, lab.Table)
    assert split.train.all().keys() == split.test.all().keys()


def test_a_model_is_rebuilt_from_arguments_in_json(
    case: tuple[ModuleType, lab.Table, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    paper, train, options = case
    kind = type(paper.Model.for_data(train, **options))
    original, calls = kind.__init__, []

    def recording(self: nn.Module, *args: Any, **kwargs: Any) -> None:
        calls.append((args, kwargs))
        original(self, *args, **kwargs)

    monkeypatch.setattr(kind, "__init__", recording)
    model = paper.Model.for_data(train, **options)
    args, kwargs = json.loads(json.dumps(calls[0]))
    twin = kind(*args, **kwargs)
    twin.load_state_dict(model.state_dict())
    assert sites(model, train.peek()) == sites(twin, train.peek())


def test_a_models_arguments_are_read_back_from_its_attributes(
    case: tuple[ModuleType, lab.Table, dict[str, Any]],
) -> None:
    paper, train, options = case
    model = paper.Model.for_data(train, **options)
    arguments = manifests.arguments(model)
    twin = type(model)(**json.loads(json.dumps(arguments)))
    assert manifests.arguments(twin) == arguments
    assert all(torch.equal(value, model.get_buffer(name)) for name, value in twin.named_buffers())
    twin.load_state_dict(model.state_dict())
    assert sites(model, train.peek()) == sites(twin, train.peek())


def sites(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, float]]:
    """Every site's shape and its log-probability under one seed."""
    pyro.set_rng_seed(0)
    trace = poutine.trace(model).get_trace(**batch)
    trace.compute_log_prob()
    nodes = {name: node for name, node in trace.nodes.items() if node["type"] == "sample"}
    return {name: (node["value"].shape, float(node["log_prob_sum"])) for name, node in nodes.items()}


def test_one_step_trains_guide_and_model(case: tuple[ModuleType, lab.Table, dict[str, Any]]) -> None:
    paper, train, options = case
    model = paper.Model.for_data(train, **options)
    guide = paper.guide(model, train.peek())
    before = [p.detach().clone() for p in guide.parameters()]
    phases = paper.phases(model, guide) if hasattr(paper, "phases") else []
    fit = lab.fit(model, guide, [train.peek()], paper.bound(guide), epochs=1, phases=phases)
    assert (fit.steps, fit.N) == (len(phases) or 1, train.N)
    assert all(not torch.equal(p, old) for p, old in zip(guide.parameters(), before, strict=True))
    assert not dict(pyro.get_param_store())


def test_a_batch_may_have_more_rows_than_the_data_set(case: tuple[ModuleType, lab.Table, dict[str, Any]]) -> None:
    paper, train, options = case
    model = paper.Model.for_data(train, **options)
    guide = paper.guide(model, train.peek())
    more = {key: torch.cat([value, value]) for key, value in train.all().items()}
    assert lab.check(model, guide, more, paper.bound(guide)) == train.N


def test_predictive_works(case: tuple[ModuleType, lab.Table, dict[str, Any]]) -> None:
    paper, train, options = case
    model = paper.Model.for_data(train, **options)
    guide = paper.guide(model, train.peek())
    trace = poutine.trace(model).get_trace(**train.peek())
    observed = [name for name in trace.observation_nodes if name in train.all()]
    density = "x" in observed  # there the guide reads x itself
    inputs = {key: value for key, value in train.peek().items() if density or key not in observed}
    draws = Predictive(model, guide=guide, num_samples=4)(**inputs)
    for name in observed:
        assert draws[name].shape == (4, *train.peek()[name].shape)


def test_an_unknown_paper_names_the_nearest() -> None:
    with pytest.raises(zoo.PaperError, match=r"no paper 'matrix_gausian'; did you mean 'matrix_gaussian'\?"):
        zoo.paper("matrix_gausian")


def test_a_name_near_none_lists_them_all() -> None:
    with pytest.raises(zoo.PaperError, match=r"no paper 'q'; there are: .*matrix_gaussian"):
        zoo.paper("q")


OWN = '''"""My model."""
import pyro, pyro.distributions as dist, torch
from pyro.infer import Trace_ELBO
class Model(torch.nn.Module):
    def forward(self, x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)
def bound(guide=None):
    return Trace_ELBO()
number = 3
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "my_own_model.py").write_text(OWN)
    (tmp_path / "my_broken_model.py").write_text("import a_package_that_is_nowhere\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    yield "my_own_model"
    sys.modules.pop("my_own_model", None)


def test_a_users_own_model_is_a_paper(own: str) -> None:
    paper = zoo.paper(f"{own}:Model")
    assert paper.__doc__ == "My model."
    assert isinstance(paper.bound(), ELBO)
    assert (paper.EQUATIONS, paper.CLAIMS) == ({}, ())
    assert not hasattr(paper, "data")
    poutine.trace(paper.Model()).get_trace(x=torch.zeros(3))


def test_a_module_that_is_not_there(own: str) -> None:
    with pytest.raises(zoo.PaperError, match=r"no module 'my_other_model' here .* give it as module:Model"):
        zoo.paper("my_other_model:Model")


@pytest.mark.parametrize("name", ["Modle", "number", ""])
def test_a_class_that_is_not_there(own: str, name: str) -> None:
    with pytest.raises(zoo.PaperError, match=f"module 'my_own_model' has no class '{name}'"):
        zoo.paper(f"{own}:{name}")


@pytest.mark.parametrize("name", [":Model", ".:Model"])
def test_a_name_without_a_module(name: str) -> None:
    with pytest.raises(zoo.PaperError, match="module:Model"):
        zoo.paper(name)


def test_a_module_that_lacks_a_package_says_which(own: str) -> None:
    with pytest.raises(zoo.PaperError, match="a_package_that_is_nowhere"):
        zoo.paper("my_broken_model:Model")


def test_finding_a_paper_leaves_the_search_path_alone(own: str) -> None:
    before = list(sys.path)
    zoo.paper(f"{own}:Model")
    assert sys.path in (before, ["", *before])
