"""Pictures of what a run learned, as a report shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Portrait:
    """One view and what it scored.

    Attributes:
        title: which view.
        pictures: by caption, each ``[H, W, 3]`` uint8.
        scores: of this view, by name; empty where it was not scored.
    """

    title: str
    pictures: Mapping[str, np.ndarray]
    scores: Mapping[str, float] = field(default_factory=dict)


def mean_scores(portraits: Sequence[Portrait]) -> tuple[dict[str, float], int]:
    """Means of the scores that all scored views have, and of how many views they are."""
    views = [portrait.scores for portrait in portraits if portrait.scores]
    names = [name for name in views[0] if all(name in view for view in views)] if views else []
    return {name: float(np.mean([view[name] for view in views])) for name in names}, len(views)


def views_in_words(views: int) -> str:
    """``1 view``, ``2 views``."""
    return f"{views} view{'s' if views > 1 else ''}"
