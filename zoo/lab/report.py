"""One self-contained HTML page of comparisons."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.figure import Figure

from zoo.lab.checkpoints import replacing
from zoo.lab.comparison import Comparison


def page(comparisons: Sequence[Comparison], path: Path, *, title: str) -> Path:
    """Write one HTML file that needs nothing else: no script, no network, every text escaped."""
    environment = jinja2.Environment(loader=jinja2.PackageLoader("zoo.lab", "."), autoescape=True)
    sections = [
        {
            "comparison": comparison,
            "columns": comparison.columns(),
            "caption": comparison.caption,
            "measures": _measures(comparison),
            "spread": "one split"
            if comparison.splits < 2
            else f"mean ± standard error over {comparison.splits} splits",
            "pictures": [(alt, _png(figure)) for alt, figure in comparison.pictures],
        }
        for comparison in comparisons
    ]
    with replacing(path) as partial:
        text = environment.get_template("report.html.j2").render(title=title, sections=sections)
        partial.write_text(text, encoding="utf-8")
    return path


def _measures(comparison: Comparison) -> dict[str, list[Any]] | None:
    frame = comparison.measures
    if frame is None:
        return None
    return {"heads": ["measure", *frame.columns], "rows": [[heading, *row] for heading, row in frame.iterrows()]}


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return base64.b64encode(buffer.getvalue()).decode()
