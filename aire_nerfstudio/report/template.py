"""Templates that lie beside the code: page.html.j2 of a package, filled in."""

from __future__ import annotations

import importlib.resources
from typing import Any

import jinja2


def fill(package: str, **values: Any) -> str:
    """The package's ``page.html.j2`` with the values in place, escaped; a name that is missing is an error."""
    source = importlib.resources.files(package).joinpath("page.html.j2").read_text("utf8")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["number"] = lambda value: f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
    environment.filters["duration"] = duration
    return environment.from_string(source).render(**values)


def duration(seconds: float) -> str:
    """Seconds in words: ``7.3 s``, ``4 min 12 s``, ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
