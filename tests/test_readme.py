"""The README's snippet runs as it stands, on few steps, and its results are those of the ledger."""

import re
from pathlib import Path

import pytest
import torch

import zoo.claims
from zoo.lab import rendering
from zoo.lab.ledger import NAME, Ledger

README = Path(__file__).parents[1] / "README.md"


def test_snippet_runs() -> None:
    snippet, _, _ = snippets()
    shorter = snippet.replace("epochs=20", "epochs=2").replace("draws=1000", "draws=20")
    shorter = shorter.replace("chains=4, draws=500", "chains=2, draws=15")
    assert shorter.count("=2)") >= 1 and "draws=15" in shorter, "the snippet changed: shorten it here too"
    torch.set_default_dtype(torch.float32)  # what a reader has; the fixture sets it back
    names: dict = {}
    exec(shorter, names)
    assert set(names["table"].frame.index) == {"MatrixNormal", "MeanField", "MatrixNormalLowRank"}
    assert names["reference"].posterior.sizes["chain"] == 2
    assert not names["guide"].training or names["fits"]["MatrixNormal"].steps == 8


def test_snippet_of_layers_runs() -> None:
    _, snippet, _ = snippets()
    shorter = snippet.replace("epochs=1500", "epochs=2")
    assert shorter != snippet, "the snippet changed: shorten it here too"
    torch.set_default_dtype(torch.float32)
    names: dict = {}
    exec(shorter, names)
    assert names["fit"].ends == {"layer 1": 2, "top": 4}


def test_snippet_of_chains_runs() -> None:
    _, _, snippet = snippets()
    shorter = snippet.replace("epochs=120", "epochs=1").replace("chains=40, steps=1000", "chains=10, steps=20")
    assert "epochs=1," in shorter and "steps=20" in shorter, "the snippet changed: shorten it here too"
    torch.set_default_dtype(torch.float32)
    names: dict = {}
    exec(shorter, names)
    assert names["idata"].posterior.sizes == {"chain": 10, "draw": 20, "x_feature": 64, "label_feature": 10}


def snippets() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_results_are_what_the_ledger_says() -> None:
    text = README.read_text(encoding="utf-8")
    if "<!-- ledger:" not in text:
        pytest.skip("the README shows nothing of the ledger")
    ledger = Ledger.load(README.with_name(NAME))
    filled = rendering.fill(text, lambda paper, table: zoo.claims.table(ledger, paper, table))
    assert filled == text, "run: zoo reproduce --render README.md"
