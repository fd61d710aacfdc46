"""The options of a paper, by name: those of its model, of its training and of its measures."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin, get_type_hints

from zoo.lab.guide_names import ExperimentError


class Least(NamedTuple):
    """The smallest value of an option: `chains: Annotated[int, Least(2)] = 24`."""

    value: float


def known_options(paper: Any) -> list[str] | None:
    """The options of a paper's model, of its training and of its measures, by name; None if its model takes any."""
    parameters = [p for part in _parts(paper).values() for p in part]
    return None if any(p.kind is p.VAR_KEYWORD for p in parameters) else [p.name for p in parameters]


def varying_options(paper: Any) -> list[str]:
    """Those whose values a comparison may vary: of the model and of its training, not of what is measured alike."""
    return [p.name for part, parameters in _parts(paper).items() if part != "measures" for p in parameters]


def check_options(paper: Any, options: Mapping[str, Any]) -> None:
    """Hold every value against the annotation of its option; annotations that say nothing accept everything.

    Raises:
        ExperimentError: a value of another type, or below the `Least`, with what the option takes.
    """
    for part, function in _functions(paper).items():
        try:
            hints = get_type_hints(function, include_extras=True)
        except (NameError, TypeError, AttributeError):  # names of a user's module that only a type checker imports
            continue
        for name, value in options_of(paper, part, options).items():
            hint, *extras = _unwrapped(hints.get(name, Any))
            kinds = _kinds(hint)
            if not any(kind is Any or KINDS[kind][1](value) for kind in kinds):
                told = " or ".join(KINDS[kind][0] for kind in kinds)
                raise ExperimentError(f"option {name} takes {told}, not {value!r}")
            for extra in extras:
                if isinstance(extra, Least) and value < extra.value:
                    raise ExperimentError(f"option {name} takes {extra.value} or more, not {value!r}")


def _unwrapped(hint: Any) -> tuple[Any, ...]:
    """An annotation, and what `Annotated` adds to it."""
    return get_args(hint) if get_origin(hint) is Annotated else (hint,)


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_float(value: Any) -> bool:
    return _is_int(value) or (isinstance(value, float) and math.isfinite(value))


def _are(values: Any, kind: Callable[[Any], bool]) -> bool:
    return isinstance(values, list | tuple) and all(map(kind, values))


KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a whole number", _is_int),
    float: ("a finite number", _is_float),
    str: ("a word", lambda value: isinstance(value, str)),
    NoneType: ("null", lambda value: value is None),
    Sequence[int]: ("a list of whole numbers, [50, 50]", lambda value: _are(value, _is_int)),
    Sequence[float]: ("a list of numbers, [1, 0.5]", lambda value: _are(value, _is_float)),
}


def _kinds(hint: Any) -> list[Any]:
    """The keys of `KINDS` that an annotation allows; `Any` where it allows others."""
    members = get_args(hint) if isinstance(hint, UnionType) or get_origin(hint) is Union else (hint,)
    return [member if member in KINDS else Any for member in members]


def _functions(paper: Any) -> dict[str, Any]:
    """What takes options: the model or its `for_data`, `phases`, `measures`."""
    make = getattr(paper.Model, "for_data", paper.Model)
    make = make.__init__ if isinstance(make, type) else make  # type: ignore[misc]
    own = {name: getattr(paper, name) for name in ("phases", "measures") if hasattr(paper, name)}
    return {"model": make, **own}


def _parts(paper: Any) -> dict[str, list[inspect.Parameter]]:
    """The optional parameters of the model, of the training and of the measures."""
    make = getattr(paper.Model, "for_data", None)
    parts = {"model": list(inspect.signature(make or paper.Model).parameters.values())[1 if make else 0 :]}
    for name in ("phases", "measures"):
        own = getattr(paper, name, None)
        parts[name] = list(inspect.signature(own).parameters.values())[2:] if own else []
    return parts


def options_of(paper: Any, part: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that one part takes: "model", "phases" or "measures"."""
    names = {parameter.name for parameter in _parts(paper)[part]}
    return {key: value for key, value in options.items() if key in names}
