"""Parts of a file that anybody may have written, or that is damaged."""

from __future__ import annotations

import math
from typing import Any, TypeGuard


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def mapping(value: Any) -> dict[str, Any]:
    """What should be an object; empty if it is something else."""
    return value if isinstance(value, dict) else {}
