"""What remains after many polls. `make soak` makes more of them."""

from __future__ import annotations

from soak import LIBRARY, PROGRAM, growth, polled


def test_polls_in_one_process_leave_nothing_behind() -> None:
    """Neither memory, nor open files, nor threads, of regions that answer and of one that is denied."""
    kilobytes, files, threads = growth(polled(LIBRARY, 60))
    assert kilobytes < 3_000
    assert (files, threads) == (0, 0)


def test_main_leaves_nothing_behind() -> None:
    """But its log: no file at home, and no run is larger than the one before."""
    kilobytes, left = growth(polled(PROGRAM, 8))
    assert kilobytes < 3_000
    assert left == 0
