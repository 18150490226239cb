"""torchvision, importable beside a CPU build of torch.

The package index serves torchvision as a CUDA build. Beside a CPU torch its compiled operators do
not load, and `import torchvision` raises "operator torchvision::nms does not exist" because it
registers shape functions for them. Nothing here needs those operators (box suppression for
detection), so their schemas alone are enough for the import. Where the operators load, nothing is
touched.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType

import torch

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_MISSING = "operator torchvision::nms does not exist"


@cache
def _define_operators() -> torch.library.Library:
    """Declares nms and qnms. The library is cached because its declarations end with the object."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(name + _SCHEMA)
    return library


def torchvision() -> ModuleType:
    """The torchvision package. Raises what its import raises, where that is not the missing
    operators.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if torch.version.cuda is not None or _MISSING not in str(error):
            raise
    _define_operators()
    return importlib.import_module("torchvision")
