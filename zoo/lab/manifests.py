"""What a run is, as JSON: enough to build its model and guide again without the data, and without a pickle."""

from __future__ import annotations

import hashlib
import inspect
import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import reduce
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from zoo.lab.checkpoints import SCHEMA, RunError, brief, parse, replacing
from zoo.lab.experiments import Cell, Plan, Recipe
from zoo.lab.frames import Transform
from zoo.lab.state import Randomness
from zoo.lab.tables import Table

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Manifest:
    """A run as its folder describes it. Every attribute is a key of `manifest.json`.

    Attributes:
        paper: name of the paper, or `module:Model`.
        model: `module:class` of the model. arguments: those of its constructor.
        guide: its name; None for the paper's own.
        bound: its class.
        prototype: {key: {"shape": ..., "dtype": ...}} of the batch that the guide was built on.
        recipe: see `experiments.Recipe`.
        data: name, split and target as asked for; provenance; sha256 of the training tensors.
        transform: how a row of the source becomes a row of x, as `Transform.to_dict` says; None if it does not apply.
        classes: names of the classes that y indexes; None for numbers.
        units: {tensor: unit}.
        versions: of Python and of the packages that computed it.
    """

    paper: str
    model: str
    arguments: dict[str, Any]
    guide: str | None
    bound: str
    prototype: dict[str, dict[str, Any]]
    recipe: dict[str, Any]
    data: dict[str, Any]
    transform: dict[str, Any] | None
    classes: list[str] | None
    units: dict[str, str]
    versions: dict[str, str]
    schema: int = SCHEMA

    @property
    def plan(self) -> Plan:
        """What the run was asked to be."""
        where = {key: self.data[key] for key in ("split", "target")}
        return Plan(self.paper, self.data["name"], guide=self.guide, recipe=Recipe(**self.recipe), **where)


def describe(plan: Plan, cell: Cell, source: Table) -> Manifest:
    """The manifest of a pair before it is trained.

    Args:
        source: the training table as it was opened.

    Raises:
        RunError: the model's arguments cannot be read back from it.
    """
    kind = type(cell.model)
    return Manifest(
        paper=plan.paper,
        model=f"{kind.__module__}:{kind.__qualname__}",
        arguments=arguments(cell.model),
        guide=plan.guide,
        bound=type(cell.bound).__name__,
        prototype={key: _outline(value) for key, value in cell.train.peek().items()},
        recipe=asdict(plan.recipe),
        data=_origin(plan, source),
        transform=source.transform.to_dict() if source.transform else None,
        classes=list(source.classes) if source.classes else None,
        units=dict(source.units),
        versions=_versions(),
    )


def _origin(plan: Plan, source: Table) -> dict[str, Any]:
    path = Path(plan.data).expanduser()
    return {
        "name": str(path.resolve()) if path.is_file() else plan.data,
        "split": plan.split,
        "target": plan.target,
        "provenance": source.provenance,
        "sha256": fingerprint(source),
    }


def write(manifest: Manifest, folder: Path) -> None:
    """Write `manifest.json`.

    Raises:
        RunError: it cannot be written.
    """
    with replacing(folder / MANIFEST) as partial:
        partial.write_text(json.dumps(asdict(manifest), indent=2), encoding="utf-8")


def _check(manifest: Manifest) -> None:
    """Use once what is needed later: what is damaged shows here."""
    _ = getattr(torch, manifest.plan.recipe.dtype)
    _ = manifest.data["sha256"], manifest.data["provenance"]
    if manifest.transform is not None:
        Transform.from_dict(manifest.transform)


def read(folder: Path) -> Manifest:
    """The manifest of a run folder.

    Raises:
        RunError: there is none; it is damaged, or written by a newer version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise RunError(f"{folder} is no run: it has no {MANIFEST}; runs are written by `zoo fit PAPER --out {folder}`")
    try:
        value = parse(path.read_text(encoding="utf-8"), path)
        manifest = Manifest(**{field.name: value[field.name] for field in fields(Manifest)})
        _check(manifest)
        return manifest
    except (LookupError, TypeError, AttributeError, UnicodeError) as error:
        raise RunError(
            f"{path} is damaged ({type(error).__name__}: {brief(error)}); restore it or start anew"
        ) from error


def arguments(model: nn.Module) -> dict[str, Any]:
    """The constructor's arguments as JSON values, read from the model's attributes of the same names.

    They are tried: a model built from them must have the same parameters and buffers.

    Raises:
        RunError: an argument is no attribute or no JSON value, or the twin is another model.
    """
    kind = type(model)
    found = {name: _json(kind, name, getattr(model, name, inspect.Parameter.empty)) for name in _names(kind)}
    with undisturbed():
        try:
            twin = kind(**found).state_dict()
        except (TypeError, ValueError, RuntimeError) as error:
            raise RunError(f"{kind.__name__} cannot be built from its own attributes: {brief(error)}") from error
    state = model.state_dict()
    different = [key for key in state.keys() | twin.keys() if _shape(state, key) != _shape(twin, key)]
    if different:
        raise RunError(
            f"{kind.__name__} built from its own attributes differs in {min(different)!r}: {_convention(kind)}"
        )
    return found


def model_of(manifest: Manifest) -> nn.Module:
    """The model of a manifest, as its constructor makes it.

    Raises:
        RunError: it cannot be built. PaperError: its module is not here.
    """
    from zoo import own_module

    module, _, name = manifest.model.partition(":")
    try:
        kind = reduce(getattr, name.split("."), own_module(module))
    except AttributeError as error:
        raise RunError(f"module {module!r} has no class {name!r}, which the run was trained with") from error
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise RunError(f"{manifest.model} is no model (an nn.Module); the manifest is damaged")
    try:
        return kind(**manifest.arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RunError(f"{manifest.model} cannot be built with {manifest.arguments}: {brief(error)}") from error


def prototype(manifest: Manifest) -> dict[str, Tensor]:
    """A batch of zeros with the shapes and dtypes of the training data."""
    outlines = manifest.prototype.items()
    return {key: torch.zeros(of["shape"], dtype=getattr(torch, of["dtype"])) for key, of in outlines}


def fingerprint(table: Table) -> str:
    """SHA256 of a table's tensors: names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in table.tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def precision(dtype: str) -> Iterator[None]:
    """Torch's default dtype within a block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Leave the random states as they were; a batch of zeros need not be a valid observation."""
    random, before = Randomness(), Randomness().state_dict()
    try:
        with pyro.validation_enabled(False):
            yield
    finally:
        random.load_state_dict(before)


def _names(kind: type) -> list[str]:
    parameters = list(inspect.signature(kind).parameters.values())
    for parameter in parameters:
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise RunError(f"{kind.__name__} takes {parameter}, which no run can record: {_convention(kind)}")
    return [parameter.name for parameter in parameters]


def _json(kind: type, name: str, value: Any) -> Any:
    if value is inspect.Parameter.empty:
        raise RunError(f"{kind.__name__} has no attribute {name!r}: {_convention(kind)}")
    try:
        return json.loads(json.dumps(value, default=_as_list))
    except (TypeError, ValueError) as error:
        raise RunError(f"{kind.__name__}.{name} is no JSON value ({brief(error)}): {_convention(kind)}") from error


def _as_list(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    raise TypeError(f"it holds a {type(value).__name__}")


def _convention(kind: type) -> str:
    return f"a run records {kind.__name__}'s constructor arguments, each from the attribute of its name, as JSON values"


def _versions() -> dict[str, str]:
    from zoo import __version__

    packages = {"torch": torch.__version__, "pyro": pyro.__version__, "pyro-zoo": __version__}
    return {"python": platform.python_version(), **{name: str(version) for name, version in packages.items()}}


def _shape(state: Mapping[str, Any], key: str) -> tuple[Any, ...] | None:
    value = state.get(key)
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _outline(value: Tensor) -> dict[str, Any]:
    return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
