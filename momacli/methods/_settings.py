"""What a method is given for one tensor, where that is not what it is given for all."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TensorSettings:
    """A method's options and the experts' weights, as they hold for one tensor."""

    options: Mapping[str, Any]
    weights: Mapping[str, float] | None  # by task
