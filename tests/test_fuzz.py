"""A few hundred damaged models through the command line: see `tests/fuzz.py`, which does more of them."""

from __future__ import annotations

import random

from tests.fuzz import fuzz, sources
from tests.mutations import mutate


def test_damaged_models_are_refused_in_a_line_or_folded_right() -> None:
    codes, finds = fuzz(20, examples=300, largest=40_000)
    assert not finds, "\n".join(finds)
    assert codes[0] > 50
    assert codes[1] > 50


def test_damage_is_a_function_of_its_seed() -> None:
    data = sources(10_000)[0].read_bytes()
    assert [mutate(data, random.Random(n)) for n in range(30)] == [
        mutate(data, random.Random(n)) for n in range(30)
    ]
