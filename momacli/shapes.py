"""Annotations of shapes, such as Float[np.ndarray, "T n"], as jaxtyping has them.

They are checked where jaxtyping is there, as in tests. Otherwise it is not imported, which takes
a tenth of a second: then they stand for the type of the array alone.
"""

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or "jaxtyping" in sys.modules:
    from jaxtyping import Bool as Bool
    from jaxtyping import Float as Float
    from jaxtyping import Int as Int
    from jaxtyping import UInt as UInt
else:

    class _Shaped:
        def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
            kind, _ = item
            return kind

    Bool = Float = Int = UInt = _Shaped
