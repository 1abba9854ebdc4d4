"""Pictures of what a run learned, as a report shows them."""

from __future__ import annotations

from collections.abc import Mapping
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
