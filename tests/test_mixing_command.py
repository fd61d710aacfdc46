"""Chains in deep representations from the command line: fit, resume, diagnose, compare in the plural, and refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arviz as az
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from worlds import stop_runs, stopped_and_resumed

from zoo import lab
from zoo.lab import experiments
from zoo.lab.experiments import Plan, Recipe

Run = Callable[..., tuple[int, str, str]]
SMALL = ("--data", "digits_4x4", "--width", "5", "--epochs", "1", "--chains", "6", "--steps", "30", "--draws", "20")
MEASURES = [
    "classes in 10", "classes in 25", "of ceiling in 10", "of ceiling in 25", "switch rate", "ESS/step median",
    "ESS/step worst", "ESS/s worst", "R-hat", "relaxation", "class error", "rejected", "nearest", "Parzen",
]  # fmt: skip


def test_fit_keeps_a_run_and_says_what_its_chains_did(zoo: Run, tmp_path: Path) -> None:
    code, out, err = zoo("fit", "mixing", *SMALL, "--depth", "2", "--out", "run")
    told = " ".join(out.split())
    assert code == 0 and "wrote run" in err
    assert "- Layers 16 - 5 - 5." in told and "6 chains of 30 draws" in told and "by enumeration" in told
    assert "ESS/step worst" in out and "Parzen score of the test data under the draws" in told
    assert "level 1, level 2 learned by a gradient whose loss is no likelihood" in told
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    (result,) = scores["results"]
    assert (
        list(result["measured"]) == MEASURES and result["model_parameters"] == 2 * 5 * 5 + 5 * 16 + 16 + 5 - 5 * 5 + 5
    )
    assert result["elbo"]["mean"] < -1 and "exact" in scores["units"]["loglik"]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") >= 4 and "one row each" in page and "ESS/step median" in page and "<script" not in page
    run = lab.load(tmp_path / "run")
    assert run.finished and run.fit.model.widths == [5, 5]


def test_diagnose_writes_figures_and_chains_and_prints_the_table(zoo: Run, tmp_path: Path) -> None:
    assert zoo("fit", "mixing", *SMALL, "--depth", "2", "--out", "run")[0] == 0
    code, out, err = zoo("diagnose", "run", "--chains", "7", "--steps", "40", "--draws", "100")
    told = " ".join(out.split())
    assert code == 0 and "7 chains of 40 draws" in told and "measure" in out
    written = [f"figure_{number}.png" for number in range(1, 6)]
    assert f"{', '.join(written)}, chains.nc in run" in " ".join(err.split())
    for name in written:
        assert matplotlib.image.imread(tmp_path / "run" / name).shape[2] == 4
    posterior = az.from_netcdf(tmp_path / "run" / "chains.nc").posterior
    assert posterior["x"].shape == (7, 40, 16) and posterior["label"].shape == (7, 40, 10)
    assert posterior["free energy"].shape == (7, 40) and set(np.unique(posterior["x"])) <= {0.0, 1.0}
    code, out, _ = zoo("diagnose", "run", "--draws", "100", "--json")
    found = json.loads(out)
    assert code == 0 and list(found["measured"]) == MEASURES and found["bound"]["N"] > 1000
    again = json.loads(zoo("diagnose", "run", "--draws", "100", "--json")[1])["measured"]
    assert {**again, "ESS/s worst": 0} == {**found["measured"], "ESS/s worst": 0}, "chains are seeded; seconds are not"
    code, _, err = zoo("diagnose", "run", "--depth", "3")
    assert code == 2 and "--depth is no option of what mixing measures" in " ".join(err.split())
    fitted = json.loads((tmp_path / "run" / "scores.json").read_text())["results"][0]["measured"]
    assert found["measured"]["classes in 10"] == pytest.approx(fitted["classes in 10"]["mean"], abs=1e-6)


@pytest.mark.parametrize("after", [1, 3])
def test_a_run_stopped_in_any_phase_ends_with_the_same_parameters_and_particles(after: int, tmp_path: Path) -> None:
    recipe = Recipe(2, batch=300, draws=20, dtype="float64", model={"depth": 2, "width": 4, "fine_tune": "elbo"})
    wanted = Plan("mixing", "digits_4x4", recipe=recipe)
    whole = experiments.prepare(wanted)[0].fit()
    rest = stopped_and_resumed(wanted, tmp_path / "run", after)
    assert rest.losses == whole.losses and list(rest.ends) == ["level 1", "level 2", "fine-tuning"]
    for part in ("model", "guide"):
        theirs = getattr(rest, part).state_dict()
        assert any("particles" in name for name in theirs)
        for name, value in getattr(whole, part).state_dict().items():
            assert torch.equal(theirs[name], value), name


def test_a_stopped_run_is_resumed_from_the_command_line(zoo: Run, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_runs(patch, after=1, by=KeyboardInterrupt)
        code, _, err = zoo("fit", "mixing", *SMALL, "--out", "run")
    assert code != 0 and "go on with: zoo fit --resume run" in err
    code, out, err = zoo("fit", "--resume", "run", "--json")
    assert code == 0 and "going on" in err and "level" in err
    assert list(json.loads(out)["results"][0]["measured"]) == MEASURES
    code, _, err = zoo("fit", "--resume", "run")
    assert code == 0 and "is finished: nothing to resume" in err


def test_depths_are_compared_in_the_plural(zoo: Run, tmp_path: Path) -> None:
    arguments = ("compare", "mixing", *SMALL, "--depths", "1,2", "--splits", "2", "--jobs", "1")
    code, out, err = zoo(*arguments, "--out", "page.html")
    told = " ".join(out.split())
    assert code == 0 and "wrote page.html" in err
    assert "depth 1" in out and "depth 2" in out and "minus depth 1" in told and "classes in 25" in out
    assert "depth 1: Layers 16 - 5." in told and "depth 2: Layers 16 - 5 - 5." in told
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "depth 2: The first 25 draws of each of 6 chains" in page and "of ceiling in 10" in page
    code, out, _ = zoo(*arguments, "--json")
    found = json.loads(out)
    assert code == 0 and [result["cell"] for result in found["results"]] == [{"depth": "depth 1"}, {"depth": "depth 2"}]
    for result in found["results"]:
        assert list(result["measured"]) == MEASURES
        assert all(len(value["values"]) == 2 for value in result["measured"].values())
    assert found["results"][0]["parameters"] == 0 and found["results"][1]["parameters"] == 16 * 5 + 5


def test_two_axes_make_every_pair(zoo: Run) -> None:
    code, out, _ = zoo("compare", "mixing", "--data", "bars_and_stripes_3x3", "--epochs", "1", "--depths", "1,2",
                       "--widths", "3,4", "--chains", "4", "--steps", "12", "--jobs", "1", "--json")  # fmt: skip
    names = [next(iter(result["cell"].values())) for result in json.loads(out)["results"]]
    assert code == 0 and names == [f"depth {d}, width {w}" for d in (1, 2) for w in (3, 4)]


def test_bits_without_classes_are_walked_through_clusters(zoo: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    bits = torch.bernoulli(torch.full((90, 5), 0.4)).int()
    pd.DataFrame(bits.numpy(), columns=list("abcde")).to_csv(tmp_path / "my.csv", index=False)
    few = ("--width", "3", "--epochs", "1", "--chains", "4", "--steps", "12", "--json")
    for name in ("bars_and_stripes_3x3", "my.csv"):
        for dtype in ("float32", "float64"):
            code, out, err = zoo("fit", "mixing", "--data", name, "--dtype", dtype, *few)
            assert code == 0, err
            assert json.loads(out)["results"][0]["measured"]["rejected"]["mean"] == 0


def test_rows_of_a_file_get_their_likelihood_if_they_are_bits(zoo: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    frame = pd.DataFrame(torch.bernoulli(torch.full((90, 3), 0.4)).int().numpy(), columns=list("abc"))
    frame["kind"] = np.where(frame.a + frame.b > 0, "up", "down")
    frame.to_csv(tmp_path / "my.csv", index=False)
    code, out, err = zoo("fit", "mixing", "--data", "my.csv", "--target", "kind", "--width", "3", "--epochs", "1",
                         "--chains", "4", "--steps", "12", "--dtype", "float64", "--out", "run", "--json")  # fmt: skip
    assert code == 0 and json.loads(out)["results"][0]["measured"]["rejected"]["mean"] <= 1, err
    pd.DataFrame({"c": [1, 0], "b": [1, 0], "a": [0, 1]}).to_csv(tmp_path / "new.csv", index=False)
    code, out, err = zoo("predict", "run", "--data", "new.csv", "--json")
    model: Any = lab.load(tmp_path / "run").fit.model
    exact = model.loglik(torch.tensor([[0.0, 1, 1], [1, 0, 0]]))
    assert code == 0 and [row["loglik"] for row in json.loads(out)["rows"]] == pytest.approx(exact.tolist(), abs=1e-12)
    pd.DataFrame({"a": [1, 0.3], "b": [1, 0], "c": [0, 1]}).to_csv(tmp_path / "new.csv", index=False)
    code, out, err = zoo("predict", "run", "--data", "new.csv")
    assert code == 2 and "x holds 0.3 in row 2, column 1: pixels of this model are 0 or 1" in " ".join(err.split())


def test_every_way_of_training_goes_by_its_name(zoo: Run) -> None:
    few = ("--data", "bars_and_stripes_3x3", "--width", "3", "--epochs", "2", "--chains", "4", "--steps", "12")
    for options in (
        ("--criterion", "CD", "--k", "2", "--codes", "draws"),
        ("--criterion", "ExactRBM", "--fine-tune", "elbo"),
        ("--fine-tune", "wake-sleep", "--depth", "3"),
        ("--hidden", "4,3", "--particles", "5", "--scale", "0.1"),
    ):
        code, out, err = zoo("fit", "mixing", *few, *options, "--json")
        assert code == 0 and json.loads(out)["results"][0]["loglik"]["mean"] < 0, err


def test_auto_encoders_are_fitted_without_a_density(zoo: Run, tmp_path: Path) -> None:
    code, out, err = zoo("fit", "zoo.mixing:Contractive", *SMALL, "--noise", "0.5", "--out", "run")
    told = " ".join(out.split())
    assert code == 0, err
    assert "no density" in told and "no bound" in told and "its walk no known target" in told
    (result,) = json.loads((tmp_path / "run" / "scores.json").read_text())["results"]
    assert result["loglik"]["mean"] is None and result["elbo"]["mean"] is None and result["khat"] is None
    assert list(result["measured"]) == MEASURES
    code, out, _ = zoo("diagnose", "run", "--draws", "100")
    assert code == 0 and "no density" in out and "No bound" in out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--depth", "0"), "depth is a number of layers, 1 or more, not 0"),
        (("--depth=-1",), "depth is a number of layers, 1 or more, not -1"),
        (("--depth", "a"), "option depth takes a whole number or null, not 'a'"),
        (("--depth", "1.5"), "option depth takes a whole number or null, not 1.5"),
        (("--depth", "3", "--hidden", "4,4"), "depth 3 and 2 hidden widths: give one of them"),
        (("--width", "0"), "has one layer or more of one unit or more, not [0, 0]"),
        (("--hidden", "none"), "has one layer or more of one unit or more, not []"),
        (("--depths", "1,2"), "no such option --depths; did you mean --depth?"),
        (("--criterion", "SGD"), "criterion is PCD, CD, ExactRBM, codes are means or draws; not 'SGD'"),
        (("--codes", "modes"), "codes are means or draws; not 'PCD', 'modes'"),
        (("--fine-tune", "adam"), "fine_tune is none, elbo, wake-sleep; not 'adam'"),
        (("--chains", "1"), "option chains takes 2 or more, not 1"),
        (("--chains", "0"), "option chains takes 2 or more, not 0"),
        (("--steps", "3"), "option steps takes 4 or more, not 3"),
        (("--steps", "0"), "option steps takes 4 or more, not 0"),
        (("--data", "diabetes"), "x of diabetes lies outside [0, 1]: chains here walk on bits"),
        (("--guide", "Rihc"), "Rihc"),
        (("--guide", "Rich"), "a stack of RBMs is trained with the guide Recognition, not Guide"),
        (("--k", "0"), "k is a number of sweeps, 1 or more, not 0"),
        (("--particles", "0"), "particles takes 1 or more, and scale 0 or more; not 0 and 0.01"),
        (("--scale=-1",), "particles takes 1 or more, and scale 0 or more; not 100 and -1"),
    ],
)
def test_bad_input_is_one_line(zoo: Run, arguments: tuple[str, ...], text: str) -> None:
    few = {"--data": "bars_and_stripes_3x3", "--chains": "4", "--steps": "12", "--width": "3"}
    rest = [part for key, value in few.items() if key not in arguments for part in (key, value)]
    code, out, err = zoo("fit", "mixing", "--epochs", "1", *rest, *arguments)
    assert code == 2 and out == "" and err.count("\n") == 1, err
    assert text in " ".join(err.split())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--depths", "a"), "option depth takes a whole number or null, not 'a'"),
        (("--depths", "1,0"), "depth is a number of layers, 1 or more, not 0"),
        (("--depths", "1,1"), "a comparison takes different guides and values, each named once"),
        (("--depths", "1,2", "--depth", "2"), "option depth is given with one value and, in the plural, with several"),
        (("--depts", "1,2"), "no such option --depts; did you mean --depth?"),
        (("--sizes", "1,2"), "no such option --sizes"),
    ],
)
def test_bad_plurals_are_one_line(zoo: Run, arguments: tuple[str, ...], text: str) -> None:
    code, out, err = zoo("compare", "mixing", "--data", "bars_and_stripes_3x3", "--epochs", "1", *arguments)
    assert code == 2 and out == "" and err.count("\n") == 1, err
    assert text in " ".join(err.split())
