"""Names for the shapes of tensors at the package's boundaries.

Equal letters in one signature are equal lengths. The tests check them at every call (jaxtyping's import hook and
beartype); outside of them they cost nothing.

==========  ============================================================
letter      length
==========  ============================================================
``n``       points, samples or neurons
``k``       a second number of those
``m``       a third
``d``       coordinates of a point
``r``       rays
``c``       channels
==========  ============================================================
"""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor

Scalar = Float[Tensor, ""]
PerRow = Float[Tensor, " n"]
OtherRows = Float[Tensor, " m"]
Points = Float[Tensor, "n d"]
Points3 = Float[Tensor, "n 3"]
PartPoints3 = Float[Tensor, "k 3"]
NewRows = Float[Tensor, "k n"]
PerNew = Float[Tensor, " k"]
NewColumns = Float[Tensor, "m k"]
Channels = Float[Tensor, "n c"]
AnyPoints = Float[Tensor, "*rows d"]
AnyPoints3 = Float[Tensor, "*rows 3"]
AnyRows = Float[Tensor, "*rows"]
AnyChannels = Float[Tensor, "*rows c"]
Rays3 = Float[Tensor, "r 3"]
PerRay = Float[Tensor, " r"]
RayMask = Bool[Tensor, " r"]
Box = Float[Tensor, " 6"]
