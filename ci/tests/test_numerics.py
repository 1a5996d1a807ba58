"""A refactoring must not change a number: the losses of fifty steps, written down once.

`python ci/tests/test_numerics.py` writes them down anew, which is right only where a change of numbers was meant."""

import json
import sys
from pathlib import Path

import pytest
import torch

STEPS, RECORD = 50, Path(__file__).with_name("fifty_steps.json")


# Largest relative difference from the recorded losses (torch 2.14.1, AVX-512, another processor), measured on
# a Xeon with
# AVX-512 and AMX, in ten steps and in all fifty: best instruction set 4.0e-5, 4.2e-3 on one thread and
# 1.3e-4, 2.1e-3 on
# two; AVX2 8.0e-5, 1.8e-3 and 1.5e-4, 3.1e-3; no vector instructions 4.0e-5, 3.3e-3. A learning rate larger by a
# twentieth is 8.3e-3 away in ten steps, an untrained network 2.9e-1.
FIRST, FIRST_WITHIN, WITHIN = 10, 1e-3, 2e-2


def losses(rate=1e-3, steps=STEPS):
    """Total losses of the first steps of tiny ATSS at level hard, seed 0."""
    from madet.data.augment import Compose, RandomFlip
    from madet.data.batches import Batches
    from madet.data.embedded import embedded
    from madet.detectors.dense import atss_detector

    torch.manual_seed(0)
    dataset = embedded("hard", "train", count=64)
    model = atss_detector(len(dataset.classes), "tiny")
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    totals = []
    for images, targets in Batches(dataset, Compose((RandomFlip(),)), 4, seed=0).stream(0, steps):
        total = sum(model(images, targets).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    return totals


def differences(now, recorded):
    """Largest relative difference in the first steps and in all of them."""
    each = [abs(ours - theirs) / theirs for ours, theirs in zip(now, recorded)]
    return max(each[:FIRST]), max(each)


def machine():
    """What may change the order of sums."""
    return {
        "torch": torch.__version__.split("+")[0],
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


@pytest.mark.trains
def test_fifty_steps_lose_what_they_lost():
    """Rounding grows with the steps, also between processors of equal capability: none is held to the last digit."""
    recorded = json.loads(RECORD.read_text())["losses"]
    now = losses()
    assert len(now) == len(recorded) == STEPS
    first, all_of_them = differences(now, recorded)
    print(f"relative difference {first:.1e} in {FIRST} steps, {all_of_them:.1e} in {STEPS}")
    assert first < FIRST_WITHIN and all_of_them < WITHIN


@pytest.mark.trains
def test_another_learning_rate_is_another_curve():
    """What the tolerance still sees: a rate a twentieth larger, and no training at all."""
    recorded = json.loads(RECORD.read_text())["losses"]
    for rate in (1.05e-3, 0.0):
        first, _ = differences(losses(rate, FIRST), recorded)
        assert first > 1.5 * FIRST_WITHIN, (rate, first)


if __name__ == "__main__":
    torch.set_num_threads(1)
    RECORD.write_text(json.dumps({"machine": machine(), "losses": losses()}, indent=1) + "\n")
    print(RECORD.read_text(), file=sys.stderr)
