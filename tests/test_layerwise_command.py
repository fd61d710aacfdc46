"""Layer-wise training from the command line: phases, runs that are resumed, exact scores, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from worlds import stopped_and_resumed

from zoo import lab, layerwise
from zoo.lab import comparison, experiments, rbm, runs
from zoo.lab.checkpoints import Saved
from zoo.lab.experiments import Plan, Recipe

Run = Callable[..., tuple[int, str, str]]
QUICK = ("--hidden", "4", "--epochs", "3", "--draws", "20")


def plan(guide: str | None = None, epochs: int = 3, **options: object) -> Plan:
    recipe = Recipe(epochs, batch=30, draws=20, dtype="float64", model={"hidden": [4], **options})
    return Plan("layerwise", "tea", guide=guide, recipe=recipe)


@pytest.mark.parametrize("guide", [None, "Vanilla", "Autoregressive", "TiedRBM", "Posterior"])
@pytest.mark.parametrize("top", ["rbm", "aggregated"])
def test_a_run_of_several_phases_comes_back(guide: str | None, top: str, tmp_path: Path) -> None:
    if top == "aggregated" and guide in ("TiedRBM", "Posterior"):
        pytest.skip("the aggregated top is the q of a composed guide")
    wanted = plan(guide, top=top, fine_tune=guide is None)
    cell, split = experiments.prepare(wanted)
    fit = cell.fit(keep=runs.begin(tmp_path / "run", wanted, cell, split))
    run = lab.load(tmp_path / "run")
    assert (run.fit.losses, run.fit.ends) == (fit.losses, fit.ends) and run.finished
    x = split.test["x"].double()
    torch.testing.assert_close(run.fit.model.loglik(x), fit.model.loglik(x), rtol=0, atol=0)


@pytest.mark.parametrize("guide", ["Rich", "TiedRBM"])
@pytest.mark.parametrize("after", [1, 3, 4])
def test_a_run_stopped_in_any_phase_ends_with_the_same_parameters(guide: str, after: int, tmp_path: Path) -> None:
    wanted = plan(guide)
    whole = experiments.prepare(wanted)[0].fit()
    rest = stopped_and_resumed(wanted, tmp_path / "run", after)
    assert rest.losses == whole.losses and rest.ends == whole.ends
    for name, value in whole.model.state_dict().items():
        assert torch.equal(rest.model.state_dict()[name], value), name


def test_fit_as_the_readme_says(zoo: Run, tmp_path: Path) -> None:
    code, out, err = zoo(
        "fit", "layerwise", "--data", "tea", "--top", "rbm", "--guide", "Rich", "--out", "run", *QUICK
    )  # fmt: skip
    told = " ".join(out.split())
    assert code == 0 and "by enumeration" in told and "gap" in out and "wrote run" in err
    assert "- Layers 100 - 4, top rbm." in told and "best latent marginal" in told, "remarks and books"
    assert "guide parameters model parameters" in told
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    (result,) = scores["results"]
    assert result["model_parameters"] == 100 * 4 + 100 + 4 * 4 + 4 + 4 and result["parameters"] == 100 * 101 + 404
    assert result["evidence"]["mean"] > result["elbo"]["mean"], "the bound of the deep model, not of the layer"
    assert "exact" in scores["units"]["loglik"] and result["khat"] is None
    saved = load_file(tmp_path / "run" / "checkpoint.safetensors")
    assert saved["parameters.model.prior.W"].shape == (4, 4)
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "best latent marginal" in page and "drawn from the model" in page
    code, out, _ = zoo("diagnose", "run")
    assert code == 0 and "exact log evidence" in out and "best latent marginal" in out
    code, out, _ = zoo("diagnose", "run", "--json")
    (books,) = (line for line in json.loads(out)["books"] if "best latent marginal is" in line and "training" in line)
    assert any(line.endswith(books[1:]) for line in scores["about"]), "the same words as beside the scores"


def test_options_of_the_paper_go_by_their_own_names(zoo: Run) -> None:
    code, out, _ = zoo(
        "fit", "layerwise", "--top", "bits", "--criterion=MeanField", "--fine-tune", "true", "--json", *QUICK
    )  # fmt: skip
    same, again, _ = zoo(
        "fit", "layerwise", "--set", "top=bits", "--set", "criterion=MeanField", "--set", "fine_tune=true", "--json",
        *QUICK,
    )  # fmt: skip
    assert code == same == 0
    one, other = (json.loads(text)["results"][0]["loglik"] for text in (out, again))
    assert one == other and json.loads(out)["data"] == "tea", "the paper's own example"


def test_compare_takes_the_papers_example(zoo: Run) -> None:
    code, out, _ = zoo("compare", "layerwise", "--splits", "2", "--json", "--jobs", "1", *QUICK)
    found = json.loads(out)
    assert code == 0
    assert [result["cell"]["guide"] for result in found["results"]] == ["Vanilla", "Rich", "Autoregressive"]
    assert found["data"] == "tea" and "evidence" not in found, "each guide has trained a model of its own"


def test_a_density_whose_likelihood_cannot_be_enumerated_is_scored_by_importance_weights() -> None:
    train, _, test = layerwise.data("tea")
    model = layerwise.Model.for_data(train, hidden=[21], top="bits")
    guide = layerwise.guide(model, train.peek())
    fit = lab.fit(
        model.double(), guide.double(), [train.to(dtype=torch.float64).all()], layerwise.bound(guide), epochs=1
    )
    found = lab.compare({"Rich": fit}, test.to(dtype=torch.float64), draws=30)
    assert "importance-weighted" in found.caption and found.scores[0].loglik[0] < -40
    assert any("Monte Carlo error of the log-lik" in n and "too low in expectation)" in n for n in found.notes)


def test_an_annealed_log_z_is_told_with_its_error_and_the_direction_of_its_bias(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without latents nothing is weighted: the only error is that of log Z, common to all data."""
    monkeypatch.setattr(rbm, "BITS", 2)
    train, _, test = (part.to(dtype=torch.float64) for part in layerwise.data("tea"))
    fits = {}
    for name, hidden in (("alone", []), ("deep", [21])):
        model = layerwise.Model.for_data(train, hidden=hidden, top_hidden=5).double()
        guide = layerwise.guide(model, train.peek()).double()
        phases = layerwise.phases(model, guide)
        fits[name] = lab.fit(model, guide, [train.all()], layerwise.bound(guide), epochs=1, phases=phases)
    alone = lab.compare({"alone": fits["alone"]}, test, draws=5)
    (score,) = alone.scores
    assert score.variant == comparison.ANNEALED and "too high in expectation" in alone.caption
    assert score.loglik_error == pytest.approx(fits["alone"].model.annealed.error)
    assert score.loglik[0] == pytest.approx(float(fits["alone"].model.log_evidence(test["x"]).mean().detach()))
    both = lab.compare(fits, test, draws=5)
    assert both.scores[1].variant == f"{comparison.ESTIMATED}; {comparison.ANNEALED}"
    assert both.scores[1].loglik_error > fits["deep"].model.annealed.error, "errors add in quadrature"
    assert f"alone: {comparison.ANNEALED}; deep: {comparison.ESTIMATED}" in both.variant
    assert both.to_dict()["results"][0]["loglik_error"] == score.loglik_error


def test_an_own_file_needs_no_target_and_its_bits_stay_bits(zoo: Run, tmp_path: Path) -> None:
    torch.manual_seed(0)
    frame = pd.DataFrame(torch.bernoulli(torch.full((60, 3), 0.3)).int().numpy(), columns=["a", "b", "c"])
    frame.to_csv(tmp_path / "my.csv", index=False)
    code, _, _ = zoo("fit", "layerwise", "--data", "my.csv", "--json", "--out", "run", *QUICK)
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert code == 0 and manifest["arguments"]["pixels"] == "bernoulli" and manifest["arguments"]["in_features"] == 3
    code, _, _ = zoo(
        "compare", "layerwise", "--data", "my.csv", "--target", "b", "--guides", "Rich", "--jobs", "1", *QUICK
    )
    assert code == 0


@pytest.mark.parametrize("criterion", ["CD", "ExactRBM"])
def test_convergence_is_not_judged_by_a_loss_that_is_no_likelihood(criterion: str) -> None:
    cell, split = experiments.prepare(plan("TiedRBM", epochs=120, criterion=criterion))
    fit = cell.fit()
    judged = criterion == "ExactRBM"
    assert list(fit.curves) == (["layer 1", "top"] if judged else ["top"])
    fit.losses[:360] = [0.01 * step for step in range(360)]  # of layer 1: rising
    fit.losses[360:] = [1.0] * 360
    assert fit.converged is not judged
    found = lab.compare({"TiedRBM": fit}, split.test.to(dtype=torch.float64), draws=5)
    told = any("layer 1 learned by a gradient whose loss is no likelihood" in note for note in found.notes)
    assert told is not judged and list(found.losses["TiedRBM"]) == list(fit.curves)
    fit.unjudged = ["layer 1", "top"]
    assert not fit.converged and not lab.compare({"TiedRBM": fit}, split.test, draws=5).losses


def test_resume_names_the_phase_and_the_epoch_within_it() -> None:
    schedule = [("layer 1", 3), ("top", 4)]
    places = [Saved(Path("c"), schedule, done, {}, {}).place for done in (0, 2, 3, 6, 7)]
    assert places == [
        "in 'layer 1' after epoch 0 of 3", "in 'layer 1' after epoch 2 of 3", "in 'top' after epoch 0 of 4",
        "in 'top' after epoch 3 of 4", "after the last epoch of 'top'",
    ]  # fmt: skip


def test_an_own_family_serves_local_sites(zoo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("import guides\nclass Twin(guides.Vanilla): pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    few = ("--splits", "1", "--json", "--jobs", "1", *QUICK)
    code, out, _ = zoo("compare", "layerwise", "--guides", "mine:Twin,Vanilla", *few)
    mine, ours = json.loads(out)["results"]
    assert code == 0 and mine["parameters"] == ours["parameters"] == 404
    assert mine["loglik"]["mean"] == pytest.approx(ours["loglik"]["mean"], abs=0.5)


def test_predict_writes_the_log_likelihood_of_each_row(zoo: Run, tmp_path: Path) -> None:
    bits = torch.bernoulli(torch.full((60, 3), 0.3)).int()
    pd.DataFrame(bits.numpy(), columns=["a", "b", "c"]).to_csv(tmp_path / "my.csv", index=False)
    assert zoo("fit", "layerwise", "--data", "my.csv", "--out", "run", "--dtype", "float64", *QUICK)[0] == 0
    new = torch.tensor([[0, 1, 1], [1, 0, 0]])
    pd.DataFrame(new.numpy()[:, ::-1], columns=["c", "b", "a"]).to_csv(tmp_path / "new.csv", index=False)
    code, out, err = zoo("predict", "run", "--data", "new.csv", "--json")
    found = json.loads(out)
    exact = lab.load(tmp_path / "run").fit.model.loglik(new.double()).tolist()  # type: ignore[operator]
    assert code == 0 and err == "" and found["unit"] == "nats"
    assert [row["loglik"] for row in found["rows"]] == pytest.approx(exact, abs=1e-12)
    pd.DataFrame({"a": [0, 1], "b": [0, 5], "c": [0, 1]}).to_csv(tmp_path / "new.csv", index=False)
    code, out, err = zoo("predict", "run", "--data", "new.csv")
    assert code == 2 and out == "" and "x holds 5 in row 2, column 2: pixels of this model lie in [0, 1]" in err


def test_an_estimated_log_likelihood_of_rows_says_so(zoo: Run, tmp_path: Path) -> None:
    bits = torch.bernoulli(torch.full((40, 3), 0.3)).int()
    pd.DataFrame(bits.numpy(), columns=["a", "b", "c"]).to_csv(tmp_path / "my.csv", index=False)
    code, _, _ = zoo("fit", "layerwise", "--data", "my.csv", "--out", "run", "--epochs", "1", "--draws", "9",
                     "--hidden", "21", "--top", "bits")  # fmt: skip
    assert code == 0
    code, out, err = zoo("predict", "run", "--data", "my.csv", "--draws", "50")
    assert code == 0 and out.startswith("loglik\n-") and out.count("\n") == 41
    assert "importance-weighted over 50 draws, too low in expectation" in err


def test_relaxed_draws_have_no_bound(zoo: Run) -> None:
    code, out, _ = zoo("compare", "layerwise", "--guides", "Concrete,StraightThrough", "--splits", "1", "--json",
                       "--jobs", "1", *QUICK)  # fmt: skip
    concrete, straight = json.loads(out)["results"]
    assert code == 0 and concrete["elbo"]["mean"] is None and straight["elbo"]["mean"] < straight["loglik"]["mean"] + 2
    code, _, _ = zoo("fit", "layerwise", "--guide", "Concrete", "--out", "run", *QUICK)
    code, out, _ = zoo("diagnose", "run")
    assert code == 0 and "No bound: draws of h1 are relaxed" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--topp", "rbm"), "no such option --topp; did you mean --top? layerwise has the options: hidden, top"),
        (("--epohcs", "3"), "no such option --epohcs; did you mean --epochs?"),
        (("--top",), "option --top needs a value"),
        (("--top", "rmb"), "top is rbm, tabular, bits or aggregated, not 'rmb'"),
        (("here",), "unexpected argument 'here'"),
        (("--criterion", "X"), "no criterion 'X'; there are: Reconstruction, Criterion"),
        (("--top-criterion", "X"), "no top_criterion 'X'; there are: Top, TopCD, TopPCD"),
        (("--guide", "MeanField"), "MeanField is a family for weights, and all latent sites of this model are local"),
        (("--hidden", "none", "--guide", "Rich"), "this model has no latent sites, so there is no guide to choose"),
        (("--hidden", "none", "--guide", "AutoNormal"), "this model has no latent sites"),
        (("--guide", "zoo.layerwise:TiedRBM"), "is a guide, not a family; the paper knows it as TiedRBM"),
        (("--guide", "guides:PerDatum"), "guides:PerDatum cannot be called as a family, (prior, context) -> module:"),
        (("--guide", "zoo.layerwise:guide"), "zoo.layerwise:guide cannot be called as a family"),
        (("--guide", "Ritch"), "did you mean 'Rich'? these fit: Vanilla, Rich, Autoregressive"),
        (("--guide", "Rich", "--criterion", "CD"), "CD trains RBMs: it needs the guide TiedRBM"),
        (("--data", "diabetes", "--pixels", "bernoulli"), "x of diabetes lies outside [0, 1]: choose pixels=gaussian"),
        (("--data", "digits", "--hidden", "none"), "x of digits is not binary"),
        (("--fine-tune", "maybe"), "option fine_tune takes true or false, not 'maybe'"),
        (("--fine-tune", "1"), "option fine_tune takes true or false, not 1"),
        (("--top", "3"), "option top takes a word, not 3"),
        (("--top-hidden", "0"), "top_hidden takes 1 unit or more, not 0"),
        (("--top-hidden=-3",), "top_hidden takes 1 unit or more, not -3"),
        (("--top-hidden", "abc"), "option top_hidden takes a whole number or null, not 'abc'"),
        (("--top-hidden", "2.5"), "option top_hidden takes a whole number or null, not 2.5"),
        (("--scale", "abc"), "option scale takes a finite number, not 'abc'"),
        (("--scale", "NaN"), "option scale takes a finite number, not nan"),
        (("--scale=-1",), "scale is a standard deviation of 0 or more, not -1"),
        (("--set", "hidden=5"), "option hidden takes a list of whole numbers, [50, 50], not 5"),
        (("--set", "hidden=abc"), "option hidden takes a list of whole numbers, [50, 50], not 'abc'"),
        (("--set", "hidden=[0]"), "hidden takes widths of 1 or more, not [0]"),
        (("--top", "bits", "--top", "rbm"), "option top is given twice"),
        (("--top", "bits", "--set", "top=rbm"), "option top is given twice"),
        (("--hidden", "4", "--set", "hidden=[5]"), "option hidden is given twice"),
        (("--resume", "run", "--top", "rbm"), "--resume takes all from the run (except --device); leave out --top"),
        (("--top", "bits", "layerwise"), "PAPER is missing before --top: options of the paper come after its name"),
    ],
)
def test_bad_input_is_one_line(zoo: Run, arguments: tuple[str, ...], text: str) -> None:
    paper = () if "--resume" in arguments or "layerwise" in arguments else ("layerwise",)
    code, out, err = zoo("fit", *paper, *(arguments if "--epohcs" in arguments else (*arguments, "--epochs", "1")))
    assert code == 2 and out == "" and err.count("\n") == 1, err
    assert text in " ".join(err.split())


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("layerwise", "--scales", "0.1,abc"), "option scale takes a finite number, not 'abc'"),
        (("layerwise", "--top-hiddens", "4,0"), "top_hidden takes 1 unit or more, not 0"),
        (
            ("layerwise", "--scales", "0.1,0.2", "--scale", "0.3"),
            "option scale is given with one value and, in the plural",
        ),
        (("layerwise", "--scales", "0.1", "--scales", "0.2"), "option scales is given twice"),
        (("mixing", "--k", "many"), "option k takes a whole number, not 'many'"),
        (("mixing", "--chains", "2.5"), "option chains takes a whole number, not 2.5"),
        (("matrix_gaussian", "--hyperprior", "high"), "option hyperprior takes a list of numbers, [1, 0.5] or null"),
    ],
)
def test_options_are_held_against_their_annotations_whatever_the_paper(
    zoo: Run, arguments: tuple[str, ...], text: str
) -> None:
    code, out, err = zoo("compare", *arguments, "--epochs", "1", "--splits", "1", "--jobs", "1")
    assert code == 2 and out == "" and err.count("\n") == 1, err
    assert text in " ".join(err.split())
