"""Predictions of the public GHN-2 for torchvision's models, and its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: ``config`` and ``state_keys`` (shapes) of its checkpoint, and for each of ``models`` its graph and
#: of each parameter the shape, the sum, the sum of squares and four elements.
VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parent / "data" / "ghn2_vectors.json").read_text("utf-8")
)
