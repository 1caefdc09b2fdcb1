"""Networks made for large images, adapted to small ones."""

from ghnq_quant.stem.small_images import adapt_stem

__all__ = ["adapt_stem"]
