"""The number of compiled kernels that oneDNN keeps."""

from __future__ import annotations

import os

_VARIABLE = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
_CAPACITY = 30_000


def keep_many_kernels() -> None:
    """Let oneDNN keep the kernels of thousands of networks.

    On CPU it compiles one for each new combination of a convolution's shapes and keeps the last
    1,024, fewer than the networks of ten steps need, so most would be compiled again and again. It
    reads the setting at the process's first convolution; later changes have no effect. A value set
    by the user stays.
    """
    os.environ.setdefault(_VARIABLE, str(_CAPACITY))
