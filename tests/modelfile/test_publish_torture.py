"""The short form of `python -m tests.publish_torture`."""

from __future__ import annotations

from tests.publish_torture import is_bad, torture


def test_parallel_and_killed_runs_and_changed_inputs_leave_nothing_wrong():
    tally = torture(rounds=4, kills=3, changes=3)
    assert not is_bad(tally), tally
    assert tally.total() >= 4 * 2 + 3 + 3
    assert tally["fine"] > 0
