"""Work on threads keeps its order and passes errors on."""

import threading

import pytest

from tune_mm.data.store.threads import each


@pytest.mark.parametrize("count", [0, 1, 5, 1000])
def test_results_come_in_order(count: int) -> None:
    assert each(lambda i: i * i, count, "squares") == [i * i for i in range(count)]


def test_first_error_is_raised_and_the_rest_is_not_begun() -> None:
    begun: list[int] = []
    go = threading.Event()

    def work(i: int) -> None:
        begun.append(i)
        if i == 0:
            go.set()
            raise OSError("disk full")
        go.wait()

    with pytest.raises(OSError, match="disk full"):
        each(work, 100_000, "work")
    assert len(begun) < 100_000
