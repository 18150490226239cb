"""Only numpy data and plain containers come out of a pickle, and nothing in it is called."""

import codecs
import collections
import functools
import os
import pathlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tune_mm.data.arrays import unpickle
from tune_mm.data.base import DataError

PLAIN = {
    "array": np.arange(6, dtype=np.float16).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big endian": np.arange(3, dtype=">i4"),
    "bool": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "text": np.array([["a_1"], ["b"]]),
    "bytes": np.array([b"x", b"yz"]),
    "object": np.array(["ragged", ["list"], None], dtype=object),
    "empty": np.zeros((0, 3)),
    "scalar": np.float32(1.5),
    "int scalar": np.int64(3),
    "text scalar": np.str_("x"),
    "list": [1, 2.5, None, True, "text", b"\xff\x00", (1, 2)],
    "set": {1, 2},
    "frozenset": frozenset({3}),
    "bytearray": bytearray(b"ab"),
    "complex number": 1j,
    "ordered": collections.OrderedDict(b=1, a=2),
}


class Calls:
    """Unpickles as the call of a function."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


def load(tmp_path: Path, data: bytes) -> Any:
    path = tmp_path / "file.pkl"
    path.write_bytes(data)
    return unpickle.load(path)


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        assert a.tolist() == b.tolist()
    else:
        assert a == b


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", PLAIN)
def test_plain_data_come_back(tmp_path: Path, name: str, protocol: int) -> None:
    data = pickle.dumps({"x": PLAIN[name]}, protocol=protocol)
    # Python's own reader is the reference: numpy itself changes the byte order of old protocols.
    assert_same(load(tmp_path, data)["x"], pickle.loads(data)["x"])


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("name", ["array", "text", "object", "scalar"])
def test_files_of_numpy_1_are_read(tmp_path: Path, name: str, protocol: int) -> None:
    """numpy 1 calls its modules numpy.core where numpy 2 says numpy._core."""
    data = pickle.dumps(PLAIN[name], protocol=protocol)
    for module in (b"multiarray", b"numeric"):
        new, old = b"numpy._core." + module, b"numpy.core." + module
        data = data.replace(
            b"\x8c" + bytes([len(new)]) + new, b"\x8c" + bytes([len(old)]) + old
        ).replace(new, old)
    # Frames say how long they are: take that of protocol 4 and 5 away.
    if protocol >= 4:
        data = data[:2] + data[11:]
    assert b"numpy._core" not in data
    assert_same(load(tmp_path, data), PLAIN[name])


def test_a_python_2_pickle_is_read(tmp_path: Path) -> None:
    """`pickle.dumps({'x': numpy.array([1, 2], 'int8'), 's': {1}}, 2)` as Python 2 wrote it: str
    where 3 has bytes.
    """
    data = (
        b"\x80\x02}q\x00(U\x01xq\x01cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02i1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x02\x01\xfftbU\x01sc__builtin__\nset\n]K\x01a\x85Ru."
    )
    out = load(tmp_path, data)
    assert out["x"].tolist() == [1, -1]
    assert out["s"] == {1}


@pytest.mark.parametrize(
    ("function", "args", "name"),
    [
        (os.system, ("true",), f"{os.system.__module__}.system"),
        (os.popen, ("true",), "os.popen"),
        (functools.partial, (print, 1), "functools.partial"),
        (eval, ("1",), "builtins.eval"),
        (exec, ("1",), "builtins.exec"),
        (getattr, ("", "upper"), "builtins.getattr"),
        (__import__, ("os",), "builtins.__import__"),
        (open, ("x", "w"), "io.open"),
        (np.load, ("x.npy",), "numpy.load"),
        (np.memmap, ("x",), "numpy.memmap"),
        (pathlib.PurePosixPath, ("x",), "pathlib.PurePosixPath"),
        (collections.defaultdict, (list,), "collections.defaultdict"),
        (codecs.decode, (b"x", "latin1"), "_codecs.decode"),
        (codecs.encode, ("x", "utf-8"), "_codecs.encode' to 'utf-8"),
        (codecs.encode, ("x", "rot13"), "_codecs.encode' to 'rot13"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_anything_else_is_refused_by_name(
    tmp_path: Path, function: Callable[..., Any], args: tuple[Any, ...], name: str, protocol: int
) -> None:
    data = pickle.dumps({"train": Calls(function, *args)}, protocol=protocol)
    with pytest.raises(DataError) as caught:
        load(tmp_path, data)
    assert "file.pkl: refused '" in str(caught.value)
    # Protocols 0 to 2 write the names of Python 2.
    assert name in str(caught.value) or f"__builtin__.{name.rpartition('.')[2]}" in str(
        caught.value
    )


def test_nothing_is_called_before_the_refusal(tmp_path: Path) -> None:
    target = tmp_path / "made"
    with pytest.raises(DataError, match="refused"):
        load(tmp_path, pickle.dumps(Calls(os.mkdir, str(target))))
    assert not target.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"cnumpy\ndtype\n(X\x02\x00\x00\x00V8tR.", "'numpy.dtype' of 'V8'"),
        (b"cnumpy\ndtype\n(]tR.", r"'numpy.dtype' of \[\]"),
        (
            b"cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x02\x00\x00\x00O8tRC\x01.tR.",
            "scalar' of dtype",
        ),
        (
            b"cnumpy.core.multiarray\n_reconstruct\n(cbuiltins\nlist\n(K\x00tC\x01btR.",
            "_reconstruct' of <class 'list'>",
        ),
    ],
)
def test_numpys_own_functions_take_plain_arrays_only(
    tmp_path: Path, text: bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path, text)


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"\x80\x04", pickle.dumps(PLAIN)[:-40], b"\x80\x04\x8c\xffabc.", b"h\x05."],
)
def test_damaged_files_are_named(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(DataError, match=r"file\.pkl: is not a readable pickle"):
        load(tmp_path, data)


def test_persistent_ids_and_extensions_are_no_way_in(tmp_path: Path) -> None:
    for data in (b"Pid\n.", b"\x82\x01."):
        with pytest.raises(DataError, match="is not a readable pickle"):
            load(tmp_path, data)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.pkl: cannot be read: No such file"):
        unpickle.load(tmp_path / "none.pkl")
