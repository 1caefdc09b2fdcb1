"""Which positions of the decoder's grid, the largest kernel, a smaller kernel is cut from."""

from __future__ import annotations

from typing import Literal, NamedTuple

Shape4d = tuple[int, int, int, int]
#: How a smaller kernel is cut from the grid: from its center, so that a 1×1 kernel is the middle of a
#: 3×3 one, or from its top left corner, as in GHN-2.
KernelCut = Literal["centre", "corner"]


class Grid(NamedTuple):
    """The positions that kernels are cut from."""

    max_shape: Shape4d
    cut: KernelCut

    def window(self, kernel: tuple[int, int]) -> tuple[slice, slice]:
        """Rows and columns of a kernel (kh, kw) in the grid.

        Example:
            >>> Grid((64, 64, 11, 11), "centre").window((1, 3))
            (slice(5, 6, None), slice(4, 7, None))
        """
        starts = (
            (most // 2 - size // 2 if self.cut == "centre" else 0, size)
            for most, size in zip(self.max_shape[2:], kernel, strict=True)
        )
        rows, columns = (slice(start, start + size) for start, size in starts)
        return rows, columns
