"""Parity can fail: every recorded array, moved by ten tolerances in one entry, is noticed."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from madet.parity.fixtures import Check, Fixture, open_fixture, run_fixture
from madet.parity.madet import HANDLERS as MADET
from madet.parity.models import HANDLERS as MODELS
from madet.parity.run import HANDLERS

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
WHOLE = [
    *sorted(GOLDEN.glob("model_*.npz")),
    GOLDEN / "official_madet_detector.npz",
]  # computed once for all that is moved
SHARED = (
    Path(os.environ.get("MADET_SHARED", GOLDEN.parents[2] / "shared")) / "golden"
)  # more of them, where there is such a folder
PARTS = [path for path in sorted(GOLDEN.glob("*.npz")) if path not in WHOLE] + [
    *sorted(SHARED.glob("official_ratss*.npz")),
    *SHARED.glob("rotated_coders.npz"),
]
TURNED = [
    pytest.param(path, marks=pytest.mark.long)
    for path in sorted(SHARED.glob("model_rotated_*.npz"))
]


def moved(expected, tolerance, kind, free=None):
    """A copy of an array with one entry, the largest finite one that is compared, moved by ten tolerances
    of its kind.
    """
    other = np.array(expected, copy=True)
    size = np.where(
        np.isfinite(other) & ~np.broadcast_to(False if free is None else free, other.shape),
        np.abs(other),
        -1,
    )
    if other.dtype.kind == "b":
        other.flat[size.argmax()] = not other.flat[size.argmax()]
        return other
    if other.dtype.kind in "iu":
        other.flat[size.argmax()] += 1
        return other
    other = other.astype(np.float64)
    finite = np.isfinite(other)
    unit = (
        1.0
        if kind in ("absolute", "exact")
        else np.abs(other[finite]).max()
        if kind == "scale"
        else other[finite].std()
    )
    other.flat[size.argmax()] += 10 * (tolerance or 1e-6) * max(unit, 1e-12)
    return other


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.stem)
def test_a_moved_entry_of_any_array_is_noticed(path):
    fixture = open_fixture(path)
    right = run_fixture(fixture, HANDLERS)
    assert right.ok, (right.trouble, right.forgotten)
    for check in right.checks:
        if not check.expected.size or check.free is not None and check.free.all():
            continue
        wrong = Check(
            check.name,
            moved(check.expected, check.tolerance, check.kind, check.free),
            check.computed,
            check.tolerance,
            check.kind,
            check.free,
        )
        assert not wrong.ok, check.name


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.stem)
def test_the_whole_run_fails_on_a_moved_file(path):
    """Through the handler, with the fixture itself changed: the first, a middle and the last compared array."""
    fixture = open_fixture(path)
    checks = [
        c
        for c in run_fixture(fixture, HANDLERS).checks
        if c.expected.size and c.name in fixture.arrays
    ]
    for check in (checks[0], checks[len(checks) // 2], checks[-1]):
        arrays = fixture.arrays | {
            check.name: moved(fixture.arrays[check.name], check.tolerance, check.kind, check.free)
        }
        assert not run_fixture(Fixture(path, arrays, fixture.meta), HANDLERS).ok, check.name


@pytest.fixture(scope="module", params=[*WHOLE, *TURNED], ids=lambda path: path.stem)
def detector_case(request):
    fixture = open_fixture(request.param)
    return fixture, run_fixture(fixture, HANDLERS)


def test_every_array_of_a_detector_is_noticed(detector_case):
    fixture, right = detector_case
    assert right.ok and not right.forgotten
    compared = {check.name for check in right.checks}
    for check in right.checks:
        wrong = Check(
            check.name,
            moved(check.expected, check.tolerance, check.kind, check.free),
            check.computed,
            check.tolerance,
            check.kind,
            check.free,
        )
        assert not wrong.ok, check.name
    assert {
        name
        for name in fixture.arrays
        if name.startswith(("det", "loss", "grad_", "feat", "cls", "reg"))
    } - compared <= {name for name in fixture.arrays if name.endswith("__idx")}


def test_a_moved_detection_is_noticed_by_the_lookup(detector_case):
    """Detections are found by looking them up, so the recorded file itself is changed and looked up again."""
    from madet.parity import madet as parity_madet
    from madet.parity import models as parity_models

    fixture, _ = detector_case
    meta = fixture.meta
    model = (
        parity_madet.build(meta)
        if "madet" in meta["case"]
        else parity_models.build(meta["model_config"])
    )
    parity_models.load_drawn(model, meta)
    pixels, sizes, _, _ = parity_models.inputs_of(fixture, meta)
    with torch.no_grad():
        predictions = model.head(model.features(pixels))
    before = model.head.candidates(predictions, sizes)[0]
    after = model.head.detect(predictions, sizes)[0]

    def verdict(z):
        return all(
            check.ok
            for check in parity_models.recorded_detections(z, 0, before, after, torch.ones(4), "")
        )

    assert verdict(fixture)
    for name, step in (("det0_boxes", 1.0), ("det0_scores", 0.02), ("det0_labels", 1)):
        other = np.array(fixture[name], copy=True)
        other.flat[0] += step
        assert not verdict(Fixture(fixture.path, fixture.arrays | {name: other}, meta)), name


def test_an_array_that_nobody_compares_fails():
    fixture = open_fixture(GOLDEN / "centerness.npz")
    more = Fixture(fixture.path, fixture.arrays | {"extra": np.ones(3)}, fixture.meta)
    result = run_fixture(more, HANDLERS)
    assert result.forgotten == ["extra"] and not result.ok


def test_the_longest_known_beginning_chooses_the_handler(tmp_path):
    fixture = open_fixture(GOLDEN / "centerness.npz")
    arrays = {name: fixture[name] for name in fixture.files}
    np.savez(
        tmp_path / "renamed.npz",
        meta=json.dumps(fixture.meta | dict(case="centerness_of_another_seed")),
        **arrays,
    )
    assert run_fixture(open_fixture(tmp_path / "renamed.npz"), HANDLERS).ok
    assert set(MODELS) | set(MADET) <= set(HANDLERS)
