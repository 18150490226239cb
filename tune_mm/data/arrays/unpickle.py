"""An unpickler for the community's feature files: numpy arrays and plain containers, nothing else.

A pickle is a program that may call anything it can name. This reader resolves only the names below,
so a file can build arrays and containers but call nothing. It is no sandbox against flaws inside
numpy itself.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from numpy._core.multiarray import _reconstruct, scalar
from numpy._core.numeric import _frombuffer  # type: ignore[attr-defined]

from tune_mm.data.arrays.checks import DataError

# Kinds of dtype that hold numbers or text; O (object arrays) holds what the pickle itself admits,
# e.g. lists of str.
_KINDS = frozenset("?bBhHiIlLqQefdgFDGucSUO")


class RefusedPickle(pickle.UnpicklingError):
    """The file names something that is neither numpy data nor a plain container."""


def _encode(text: str, encoding: str = "utf-8", errors: str = "strict") -> bytes:
    """`codecs.encode` as pickle protocols 0-2 use it for bytes: str to latin1, no other codec (some
    can import).
    """
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedPickle(f"'_codecs.encode' to {encoding!r}")
    return text.encode("latin1", errors)


def _dtype(code: Any, *rest: Any) -> np.dtype[Any]:
    """`numpy.dtype` for numbers and text; structured and other kinds are refused."""
    if not isinstance(code, str) or code.lstrip("<>=|")[:1] not in _KINDS:
        raise RefusedPickle(f"'numpy.dtype' of {code!r}")
    return np.dtype(code, *rest)


def _array(subtype: Any, shape: Any, code: Any) -> Any:
    """`_reconstruct` for plain arrays only."""
    if subtype is not np.ndarray:
        raise RefusedPickle(f"'numpy.core.multiarray._reconstruct' of {subtype!r}")
    return _reconstruct(subtype, shape, code)


def _scalar(dtype: Any, raw: Any = b"") -> Any:
    """`scalar` for numbers and text: one of object dtype would be unpickled by numpy itself."""
    if not isinstance(dtype, np.dtype) or dtype.hasobject:
        raise RefusedPickle(f"'numpy.core.multiarray.scalar' of {dtype!r}")
    return scalar(dtype, raw)


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
}
# numpy 1 wrote numpy.core, numpy 2 writes numpy._core: files of either kind are read by either.
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[(f"{_core}.multiarray", "_reconstruct")] = _array
    _ALLOWED[(f"{_core}.multiarray", "scalar")] = _scalar
    _ALLOWED[(f"{_core}.numeric", "_frombuffer")] = _frombuffer
# Python 2 wrote __builtin__, Python 3 writes builtins.
for _builtins in ("builtins", "__builtin__"):
    for _type in (
        set,
        frozenset,
        list,
        dict,
        tuple,
        str,
        bytes,
        bytearray,
        int,
        float,
        bool,
        complex,
    ):
        _ALLOWED[(_builtins, _type.__name__)] = _type


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[(module, name)]
        except KeyError:
            raise RefusedPickle(f"'{module}.{name}'") from None


def load(path: Path) -> Any:
    """What the pickle at `path` holds. Raises DataError for a refused name or a file that is no
    pickle.

    Python 2 pickles are read with latin1, as their arrays need.
    """
    try:
        with path.open("rb") as file:
            return _Unpickler(file, encoding="latin1").load()
    except RefusedPickle as refused:
        raise DataError(
            f"{path}: refused {refused}: only numpy arrays of numbers or text and plain containers are read"
        ) from None
    except OSError as problem:
        raise DataError(f"{path}: cannot be read: {problem.strerror or problem}") from problem
    except Exception as problem:  # damaged bytes make the unpickler raise nearly anything
        raise DataError(
            f"{path}: is not a readable pickle ({type(problem).__name__}: {problem})"
        ) from problem
