"""Papers of probabilistic machine learning as Pyro model/guide pairs, checked against exact truth.

`zoo.paper("matrix_gaussian")` is the paper's module: `Model`, `guide`, `bound`, `data`, `EQUATIONS`, `CLAIMS`.
`zoo.lab` trains, measures and reports; the swappable families are the package `guides`.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

PAPERS = {"layerwise": "zoo.layerwise", "mixing": "zoo.mixing", "matrix_gaussian": "zoo.matrix_gaussian"}

OPTIONAL = (  # names of a paper that a user's module may have
    "guide", "bound", "phases", "data", "evidence", "remarks", "books", "measures", "DEFAULTS", "EQUATIONS", "CLAIMS",
)  # fmt: skip

__version__ = "0.1.0"


class PaperError(ValueError):
    """A paper, or a user's `module:Model`, that cannot be found; the text says how to mend it."""


def paper(name: str) -> ModuleType | SimpleNamespace:
    """The paper of that name, or a user's own model given as `module:Model`.

    Of a user's module the names of a paper (`guide`, `bound`, `data`, `evidence`, ...) are taken where it has them.

    Raises:
        PaperError: unknown name, module that does not import, class that is not there.
    """
    if ":" in name:
        return _own(name)
    if name not in PAPERS:
        near = difflib.get_close_matches(name, PAPERS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(PAPERS)}"
        raise PaperError(f"no paper {name!r}; {hint} (your own model: module:Model)")
    return importlib.import_module(PAPERS[name])


def own_module(name: str) -> ModuleType:
    """A user's own module, looked for beside the user too, whatever started the interpreter.

    Raises:
        PaperError: no such module.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        if not all(part.isidentifier() for part in name.split(".")):
            raise ModuleNotFoundError(f"{name!r} is no name of a module")
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise PaperError(f"no module {name!r} here ({error}); give it as module:Model or module:Family") from error


def _own(name: str) -> SimpleNamespace:
    module_name, _, class_name = name.partition(":")
    module = own_module(module_name)
    model: Any = getattr(module, class_name, None)
    if not callable(model):
        raise PaperError(f"module {module_name!r} has no class {class_name!r}")
    names = (
        "guide",
        "bound",
        "phases",
        "data",
        "evidence",
        "remarks",
        "books",
        "measures",
        "DEFAULTS",
        "EQUATIONS",
        "CLAIMS",
    )
    own = {key: getattr(module, key) for key in names if hasattr(module, key)}
    return SimpleNamespace(__name__=name, __doc__=module.__doc__, Model=model, **{"EQUATIONS": {}, "CLAIMS": (), **own})
