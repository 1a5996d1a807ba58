"""Damaged input of every kind ends in a result or in a sentence, never in a traceback (ci/fuzz.py draws the damage)."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import fuzz  # noqa: E402

SHORT = {"data": 800, "weights": 800, "results": 500, "recipes": 800}  # a minute in all
LONG = {"data": 30_000, "weights": 30_000, "results": 15_000, "recipes": 25_000}


def assert_no_faults(kind, numbers):
    faults = fuzz.fuzz(kind, numbers)
    number = min(faults, default=0)
    again = f"python ci/fuzz.py {kind} --only {number}"
    assert not faults, f"{len(faults)} faults, the first again by `{again}`:\n{faults[number]}"


@pytest.mark.parametrize("kind", SHORT)
def test_damaged_input_ends_in_a_sentence(kind):
    assert_no_faults(kind, range(SHORT[kind]))


@pytest.mark.long
@pytest.mark.parametrize("kind", LONG)
def test_a_hundred_thousand_cases(kind):
    assert_no_faults(kind, range(SHORT[kind], SHORT[kind] + LONG[kind]))


def test_a_fault_is_found(tmp_path, monkeypatch):
    def broken(source, place, rng):
        if rng.random() < 0.5:
            raise KeyError("x")

    monkeypatch.setitem(fuzz.CASES, "recipes", broken)
    with pytest.raises(AssertionError, match="python ci/fuzz.py recipes --only"):
        assert_no_faults("recipes", range(20))
