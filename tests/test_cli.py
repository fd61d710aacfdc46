"""The command line as a user meets it: output, JSON, files, and one line for every error."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import arviz as az
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import zoo as zoo_package
from zoo import __main__ as command

Run = Callable[..., tuple[int, str, str]]
QUICK = ("--epochs", "3", "--jobs", "1", "--hidden", "4")


@pytest.fixture(autouse=True)
def no_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_DATA", raising=False)


@pytest.fixture
def csv(tmp_path: Path) -> str:
    random = np.random.default_rng(0)
    age, smoker = random.integers(20, 80, 60), random.choice(["yes", "no"], 60)
    y = 3.0 * age + 20 * (smoker == "yes") + random.normal(size=60)
    pd.DataFrame({"age": age, "smoker": smoker, "y": y}).to_csv(tmp_path / "my <b>.csv", index=False)
    return "my <b>.csv"


def test_compare_prints_one_json_object_and_nothing_else(zoo: Run, csv: str) -> None:
    code, out, _ = zoo(
        "compare", "matrix_gaussian", "--data", csv, "--target", "y", "--guides", "MatrixNormal,Point",
        "--splits", "2", "--seed", "1", "--epochs", "3", "--json", "--jobs", "1",
    )  # fmt: skip
    found = json.loads(out)
    assert code == 0 and out.count("\n") == 1
    assert (found["paper"], found["data"], found["splits"]) == ("matrix_gaussian", csv, 2)
    first, second = found["results"]
    assert first["cell"] == {"guide": "MatrixNormal"} and second["cell"] == {"guide": "Point"}
    for key in ("loglik", "rmse", "elbo"):
        values = first[key]["values"]
        assert first[key]["mean"] == pytest.approx(np.mean(values))
        assert first[key]["se"] == pytest.approx(np.std(values, ddof=1) / np.sqrt(2))
    assert second["elbo"] == {"mean": None, "se": None, "values": None}, "a point mass has no bound"
    assert first["parameters"] > 0 and first["seconds"] > 0


def test_one_split_has_no_standard_error(zoo: Run) -> None:
    _, out, _ = zoo("compare", "matrix_gaussian", "--guides", "Point", "--splits", "1", "--json", *QUICK)
    (result,) = json.loads(out)["results"]
    assert result["loglik"]["se"] is None and len(result["loglik"]["values"]) == 1


def test_same_seed_same_numbers_whatever_the_jobs(zoo: Run) -> None:
    arguments = ("compare", "matrix_gaussian", "--guides", "MeanField", "--splits", "2", "--json", "--hidden", "4")
    values = []
    for jobs in ("1", "2"):
        _, out, _ = zoo(*arguments, "--epochs", "3", "--jobs", jobs)
        values.append(json.loads(out)["results"][0]["rmse"]["values"])
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_page_is_self_contained_and_escapes_what_a_file_brings(zoo: Run, csv: str, tmp_path: Path) -> None:
    code, _, err = zoo(
        "compare", "matrix_gaussian", "--data", csv, "--target", "y", "--splits", "1", "--out", "page.html", *QUICK
    )
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert code == 0 and "wrote page.html" in err
    assert "<b>" not in page and "my &lt;b&gt;.csv" in page
    assert "<script" not in page and not re.findall(r'(?:src|href)="(?!data:)', page)
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) == 3 and all(re.search(r'alt="[^"]{20,}"', image) for image in images)
    assert '<th scope="col">' in page and "<title>" in page and '<html lang="en">' in page


def test_linear_model_shows_the_gap_to_the_exact_evidence(zoo: Run) -> None:
    code, out, _ = zoo(
        "compare", "matrix_gaussian", "--guides", "MeanField,SiteFullRank", "--splits", "1", "--hidden", "none",
        "--epochs", "800", "--batch", "512", "--lr", "0.03", "--dtype", "float64", "--json", "--jobs", "1",
    )  # fmt: skip
    found = json.loads(out)
    evidence = found["evidence"]["mean"]
    mean_field, full = (result["elbo"]["mean"] for result in found["results"])
    assert code == 0
    assert mean_field < full < evidence + 0.002, "no bound is above the evidence"
    assert 398 * (evidence - full) < 1.0, "with a full covariance only the factor q(w) q(tau) is left to lose"


def test_fit_writes_a_folder_that_others_can_read(zoo: Run, tmp_path: Path) -> None:
    arguments = ("fit", "matrix_gaussian", "--epochs", "2", "--hidden", "4", "--draws", "20", "--out", "run")
    code, out, err = zoo(*arguments)
    assert code == 0 and "the paper's own" in out and "wrote run" in err
    posterior = az.from_netcdf(tmp_path / "run" / "posterior.nc")
    assert posterior.posterior.sizes["draw"] == 1000 and {"lp", "log_q"} <= set(posterior.sample_stats)
    assert "parameters.guide.q.W1.loc" in load_file(tmp_path / "run" / "checkpoint.safetensors")
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["paper"] == "matrix_gaussian"
    assert len((tmp_path / "run" / "losses.csv").read_text().splitlines()) == 1 + 2 * 4
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["data"] == "diabetes"
    code, _, err = zoo(*arguments)
    assert code == 2 and "run exists already" in err, "nothing is overwritten"


def test_classes_from_a_file(zoo: Run, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=80)
    pd.DataFrame({"x": x, "kind": np.where(x > 0, "up", "down")}).to_parquet(tmp_path / "kinds.parquet")
    code, out, _ = zoo(
        "compare", "matrix_gaussian", "--data", "kinds.parquet", "--target", "kind", "--guides", "MeanField",
        "--splits", "1", "--epochs", "200", "--hidden", "none", "--lr", "0.05", "--json", "--jobs", "1",
    )  # fmt: skip
    (result,) = json.loads(out)["results"]
    assert code == 0 and result["rmse"]["mean"] is None and result["error"]["mean"] <= 0.25


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("show", "matrix_gaussin"), "did you mean 'matrix_gaussian'"),
        (("compare", "matrix_gaussian", "--guides", "MatrixNorml"), "did you mean 'MatrixNormal'? these fit: Matrix"),
        (("compare", "matrix_gaussian", "--guides", "NormalEncoder"), "family for local sites"),
        (("compare", "matrix_gaussian", "--guides", "MeanField,MeanField"), "each named once"),
        (("compare", "matrix_gaussian", "--data", "no.csv", "--target", "y"), "no.csv"),
        (("compare", "matrix_gaussian", "--data", "yacht"), "ZOO_DATA is not set"),
        (("compare", "matrix_gaussian", "--splits", "21"), "it has splits 0 to 19"),
        (("compare", "matrix_gaussian", "--splits", "0"), "--splits"),
        (("compare", "matrix_gaussian", "--hidden", "many"), "--hidden takes widths"),
        (("compare", "matrix_gaussian", "--set", "depth=2"), "no model option 'depth'; there are: hidden"),
        (("compare", "matrix_gaussian", "--set", "depth"), "--set takes KEY=VALUE"),
        (("compare", "matrix_gaussian", "--dtype", "float16"), "float32 or float64"),
        (("compare", "matrix_gaussian", "--device", "abacus"), "--device abacus cannot be used here"),
        (("compare", "matrix_gaussian", "--wrong"), "--wrong"),
        (("compare",), "PAPER"),
        (("fit", "nomodule:Model"), "no module 'nomodule'"),
        (("fit", "json:Model"), "has no class 'Model'"),
        (("fit", "matrix_gaussian", "--set", "noise=loud"), "noise is 'raw', 'standardised'"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(zoo: Run, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = zoo(*arguments)
    assert code == 2 and out == ""
    assert err.startswith("zoo: ") and err.count("\n") == 1 and message in err and "Traceback" not in err


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["zoo", "show", "nothing", "--debug"])
    with pytest.raises(ValueError, match="no paper 'nothing'"):
        command.main()


def test_lists(zoo: Run) -> None:
    _, out, _ = zoo("list", "--json")
    assert {paper["paper"] for paper in json.loads(out)["papers"]} == set(zoo_package.PAPERS)
    _, out, _ = zoo("list", "--data", "--json")
    diabetes = json.loads(out)[0]
    assert diabetes["name"] == "diabetes" and diabetes["where"] == "embedded" and diabetes["licence"]
    _, out, _ = zoo("list")
    assert "matrix_gaussian" in out and "MatrixNormalLowRank" in out
    _, out, _ = zoo("show", "matrix_gaussian")
    assert "mg.11" in out and "guides.distributions.MatrixNormal" in out


def test_own_model_and_own_family(zoo: Run, tmp_path: Path) -> None:
    (tmp_path / "ridge_here.py").write_text(
        "from pyro import sample\nfrom pyro.distributions import Normal\nfrom torch import nn\n"
        "from guides import MeanField, data_plate, linear\n"
        "class Mine(MeanField): pass\n"
        "class Model(nn.Module):\n"
        "    def __init__(self, d, N): super().__init__(); self.d, self.N = d, N\n"
        "    def forward(self, x, y=None):\n"
        "        f = 150 + linear('w', x, Normal(x.new_zeros(self.d, 1), 50.0).to_event(2))\n"
        "        with data_plate(len(x), self.N): return sample('y', Normal(f, 60.0).to_event(1), obs=y)\n"
        "    @staticmethod\n"
        "    def for_data(train): return Model(train['x'].shape[-1], len(train))\n"
    )
    code, out, err = zoo(
        "compare", "ridge_here:Model", "--guides", "ridge_here:Mine,SiteFullRank", "--splits", "1", "--epochs", "2",
        "--jobs", "1", "--json",
    )  # fmt: skip
    assert code == 0, err
    assert [result["cell"]["guide"] for result in json.loads(out)["results"]] == ["ridge_here:Mine", "SiteFullRank"]


def test_module_and_script_are_the_same_program() -> None:
    done = subprocess.run([sys.executable, "-m", "zoo", "--help"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "compare" in done.stdout and done.stderr == ""


def test_float64_is_kept(zoo: Run) -> None:
    code, _, _ = zoo("fit", "matrix_gaussian", "--epochs", "1", "--dtype", "float64", "--draws", "10", "--hidden", "4")
    assert code == 0 and torch.get_default_dtype() == torch.float64
