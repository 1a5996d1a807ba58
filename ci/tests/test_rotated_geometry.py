"""Rotated geometry against a float64 clipper (shapely) and published vectors.

100,000 pairs with every nasty case, properties, gradients, fixtures.
"""

import json
import math

import numpy as np
import pytest
import shapely
import torch

from madet.boxes.conventions import canonical_start, from_convention
from madet.boxes.geometry import Rotated
from madet.boxes.nms import hard_nms
from madet.boxes.rotated_iou import (
    quad_areas,
    quad_iou,
    quad_iou_paired,
    rotated_iof,
    rotated_iof_paired,
    rotated_iou,
    rotated_iou_paired,
)
from madet.boxes.rotated_nms import quad_nms, rotated_nms, rotated_soft_nms

HALF = math.pi / 2


def boxes_of(rows):
    return torch.tensor(rows, dtype=torch.double)


def random_boxes(count, seed, room=60.0, low=0.5, high=50.0):
    random = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.rand(count, n, generator=random, dtype=torch.double)  # noqa: E731
    return torch.cat([draw(2) * room, low + draw(2) * (high - low), (draw(1) - 0.5) * 20], 1)


def aliased(boxes, quarters):
    """The same rectangles with the angle some quarter turns on and the sides swapped for each odd one."""
    sizes = boxes[:, 2:4] if quarters % 2 == 0 else boxes[:, 2:4].flip(1)
    return torch.cat([boxes[:, :2], sizes, boxes[:, 4:] + quarters * HALF], 1)


def nested(boxes):
    return torch.cat([boxes[:, :2], boxes[:, 2:4] * 0.4, boxes[:, 4:] + 0.3], 1)


def slivers(boxes):
    return torch.cat([boxes[:, :2], boxes[:, 2:3] * 10, boxes[:, 2:3] / 50, boxes[:, 4:]], 1)


def beside(boxes):
    """Each box moved by its own width along itself: they share a side and no area."""
    step = torch.cat([boxes[:, 4:].cos(), boxes[:, 4:].sin()], 1) * boxes[:, 2:3]
    return torch.cat([boxes[:, :2] + step, boxes[:, 2:]], 1)


def cases():
    """{name: (a, b)}: 100,000 pairs in all."""
    a, b = random_boxes(45_000, 0), random_boxes(45_000, 1)
    some, other = a[:5000], b[:5000]
    turned = torch.cat([other[:, :4], some[:, 4:] + HALF * torch.arange(5000)[:, None] % 4], 1)
    return {
        "random": (a, b),
        "identical": (some, some),
        "quarter turns": (some, aliased(some, 1)),
        "half turns": (some, aliased(some, 2)),
        "nested": (some, nested(some)),
        "parallel or square": (some, turned),
        "beside": (some, beside(some)),
        "slivers": (slivers(some), slivers(other)),
        "sliver on itself": (
            slivers(some),
            torch.cat([slivers(some)[:, :4], slivers(some)[:, 4:] + 1e-3], 1),
        ),
        "far": (some + boxes_of([1e5, -1e5, 0, 0, 0]), other + boxes_of([1e5, -1e5, 0, 0, 0])),
        "tiny": (
            some * boxes_of([1e-6, 1e-6, 2e-6, 2e-6, 1]),
            other * boxes_of([1e-6, 1e-6, 2e-6, 2e-6, 1]),
        ),
        "tiny in large": (
            some,
            torch.cat([some[:, :2], torch.full((5000, 2), 1e-6), other[:, 4:]], 1),
        ),
    }


def clipped(a, b):
    """Shared area of rotated boxes and their areas by shapely, each pair moved to the first centre."""
    middle = torch.cat([a[:, :2], torch.zeros(len(a), 3)], 1)
    hulls = [shapely.polygons(Rotated().corners(x - middle).numpy()) for x in (a, b)]
    shared = shapely.area(shapely.intersection(*hulls))
    return shared, shapely.area(hulls[0]), shapely.area(hulls[1])


def expected_iou(a, b):
    shared, one, two = clipped(a, b)
    return torch.from_numpy(shared / (one + two - shared))


CASES = cases()


def test_the_cases_are_a_hundred_thousand():
    assert sum(len(a) for a, _ in CASES.values()) == 100_000


@pytest.mark.parametrize("name", CASES)
def test_exact_against_a_clipper(name):
    """For a rectangle and its other writings the clipper says 0 a few times in ten thousand.

    There the truth is known without it.
    """
    a, b = CASES[name]
    expected = (
        torch.ones(len(a), dtype=torch.double)
        if name in ("identical", "quarter turns", "half turns")
        else expected_iou(a, b)
    )
    error = (rotated_iou_paired(a, b) - expected).abs().max()
    print(f"{name}: largest error {error:.1e}")
    assert error < 1e-11


@pytest.mark.parametrize("name", CASES)
def test_symmetric_in_range_and_blind_to_the_way_of_writing(name):
    a, b = CASES[name]
    value = rotated_iou_paired(a, b)
    assert ((value >= 0) & (value <= 1)).all()
    assert (rotated_iou_paired(b, a) - value).abs().max() < 1e-11
    for quarters in (1, 2, -1):
        assert (rotated_iou_paired(aliased(a, quarters), b) - value).abs().max() < 1e-11


@pytest.mark.parametrize(
    "name", [name for name in CASES if name not in ("far", "tiny", "tiny in large")]
)
def test_unmoved_by_a_common_turn_shift_and_scale(name):
    a, b = CASES[name]
    angle = 0.7
    shift = torch.tensor([300.0, -200.0])
    scale = 3.0
    turn = torch.tensor(
        [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]],
        dtype=torch.double,
    )
    one, two = (
        torch.cat([x[:, :2] @ turn * scale + shift, x[:, 2:4] * scale, x[:, 4:] + angle], 1)
        for x in (a, b)
    )
    assert (rotated_iou_paired(one, two) - rotated_iou_paired(a, b)).abs().max() < 1e-7


def test_identical_and_disjoint_are_exactly_one_and_zero():
    a = CASES["random"][0]
    away = torch.cat([a[:, :2] + a[:, 2:4].norm(dim=1, keepdim=True) * 2.1, a[:, 2:]], 1)
    assert (1 - rotated_iou_paired(a, a)).max() < 1e-14 and (rotated_iou_paired(a, away) == 0).all()
    none = expected_iou(*CASES["random"]) == 0
    assert none.sum() > 10_000 and (rotated_iou_paired(*CASES["random"])[none] == 0).all()


def test_share_of_the_first():
    for name in ("random", "nested", "identical", "parallel or square"):
        a, b = CASES[name]
        shared, one, _ = clipped(a, b)
        assert (rotated_iof_paired(a, b) - torch.from_numpy(shared / one)).abs().max() < 1e-11
    large, tiny = CASES["tiny in large"]
    assert (rotated_iof_paired(tiny, large) - 1).abs().max() < 1e-6
    a, b = CASES["random"][0][:200], CASES["random"][1][:150]
    assert torch.allclose(rotated_iof(a, b), rotated_iof_paired(a[:, None], b[None]))


def test_the_tables_of_pairs():
    a, b = CASES["random"][0][:300], CASES["random"][1][:200]
    assert torch.allclose(
        rotated_iou(a, b), rotated_iou_paired(a[:, None], b[None]), atol=0, rtol=1e-12
    )
    assert rotated_iou(a[:0], b).shape == (0, 200) and rotated_iou(a, b[:0]).shape == (300, 0)
    assert rotated_iou_paired(a[:0], b[:0]).shape == (0,)


# ---------------------------------------------------------------- published vectors


def ccw(*row):
    """detectron2's degrees, counter-clockwise."""
    return [*row[:4], -math.radians(row[4])]


VECTORS = [
    ([0.5, 0.5, 1, 1, 0], [0.5, 0.5, 1, 1, math.pi / 4], math.sqrt(0.5), 1e-7),
    ([0.5, 0.5, 1, 1, 0], [1, 1, 1, 1, 0], 1 / 7, 1e-9),
    ([0.5, 0.5, 1, 1, 0], [1.5, 1.5, 1, 1, 0], 0, 0),
    ([0.5, 0.5, 1, 1, 0], [0.25, 0.5, 0.5, 1, 0], 0.5, 1e-12),
    (ccw(5, 5, 10, 6, 55), ccw(5, 5, 10, 6, -35), 3 / 7, 1e-9),
    ([565, 565, 10, 10, 0], [565, 565, 10, 8.3, 0], 0.83, 1e-12),
    (
        ccw(296.6620178, 458.7388306, 23.5157299, 47.6770020, 0.08795166),
        ccw(296.66201, 458.73882, 23.51573, 47.67702, 0.087951),
        1,
        1e-5,
    ),
    (
        ccw(2563.7446289, 1436.7901611, 2174.7033691, 214.0950012, 115.1183472),
        ccw(2563.7446289, 1436.7902832, 2174.7028809, 214.0949554, 115.1183548),
        1,
        1e-5,
    ),
    (ccw(160, 153, 230, 23, -37), ccw(190, 127, 80, 21, -46), 0, 0),
    (ccw(3, 3, 8, 2, -45), ccw(6, 0, 8, 2, -45), 0, 0),
    (
        ccw(299.5, 417.370422, 600, 364.259186, 27.1828),
        ccw(299.5, 417.370422, 600, 364.259155, 27.1828),
        0.99999991,
        1e-8,
    ),
    (
        [0, 0, 180.6422271729, 136.3633728027, 0.9559648633],
        [0, 0, 180.6422271729, 136.3633728027, 0.9559648633],
        1,
        1e-12,
    ),
    (
        [135.07, 406.72, 7.9445e-7, 1971.1, 1.7708],
        [151.008, 436.2173, 302.0159, 313.7347, 3.1184],
        0,
        1e-6,
    ),
    ([903.34, 1034.4, 1.81e-7, 1e-7, -0.312], [215.25, 75.75, 33.204, 12.649, 0.32175], 0, 0),
    ([46.83, 44.03, 3.9, 1.63, 0], [46.83, 44.03, 1.63, 3.9, 1.45], 0.85483367, 1e-7),
    ([0, 0, 5, 10, math.pi / 6], [0, 0, 10, 5, math.pi / 3], 0.40582742, 1e-8),
    ([0, 0, 5, 10, math.pi / 6], [0, 0, 10, 5, 2 * math.pi / 3], 1, 1e-12),
    ([0, 0, 100, 4, 0], [0, 0, 100, 4, HALF], 0.02040816, 1e-8),
    ([0, 0, 100, 10, 0], [0, 0, 100, 10, math.radians(5)], 0.64269678, 1e-8),
    ([0, 0, 100, 10, 0], [0, 0, 100, 10, math.radians(10)], 0.39547194, 1e-8),
    ([10, 10, 8, 8, 0], [12, 11, 6, 10, math.pi / 6], 0.45664145, 1e-8),
    ([0, 0, 2, 2, 0], [2, 0, 2, 2, 0], 0, 0),
]


@pytest.mark.parametrize("a, b, iou, tolerance", VECTORS)
def test_published_pairs(a, b, iou, tolerance):
    a, b = boxes_of(a), boxes_of(b)
    for one, two in ((a, b), (b, a)):
        assert abs(rotated_iou_paired(one, two).item() - iou) <= tolerance
        assert abs(rotated_iou_paired(one.float(), two.float()).item() - iou) <= tolerance + 3e-6
        assert abs(rotated_iou(one[None], two[None]).item() - iou) <= tolerance


def test_published_tables():
    a = boxes_of([[1, 1, 3, 4, 0.5], [2, 2, 3, 4, 0.6], [7, 7, 8, 8, 0.4]])
    b = boxes_of([[0, 2, 2, 5, 0.3], [2, 1, 3, 3, 0.5], [5, 5, 6, 7, 0.4]])
    assert torch.allclose(
        rotated_iou(a, b),
        boxes_of([[0.370821, 0.435137, 0], [0.110420, 0.448708, 0.042440], [0, 0, 0.362234]]),
        atol=1e-6,
    )
    assert torch.allclose(
        rotated_iof(a, b),
        boxes_of([[0.495935, 0.530604, 0], [0.182307, 0.542027, 0.183206], [0, 0, 0.440416]]),
        atol=1e-6,
    )


def test_the_oracle_folder(shared):
    found = json.loads((shared / "data/oracles/rotated_iou/cases.json").read_text())
    for case in found["cases"]:
        a, b = (
            from_convention(boxes_of(case[side]), "detectron2") for side in ("boxes1", "boxes2")
        )
        key = next(key for key in case if key not in ("name", "boxes1", "boxes2"))
        expected = boxes_of(case[key])
        ours = rotated_iou(a, b) if expected.ndim == 2 else rotated_iou_paired(a, b)
        assert torch.allclose(ours, expected, **found["tolerance"]), case["name"]


# ---------------------------------------------------------------- gradients and dtypes


def test_gradcheck_away_from_coincidence():
    a, b = random_boxes(60, 5, room=25.0), random_boxes(60, 6, room=25.0)
    meets = rotated_iou_paired(a, b) > 0.02
    a, b = a[meets].requires_grad_(), b[meets].requires_grad_()
    assert (
        len(a) > 15
        and torch.autograd.gradcheck(rotated_iou_paired, (a, b))
        and torch.autograd.gradcheck(rotated_iof_paired, (a, b))
    )
    quads = (
        Rotated()
        .corners(a.detach())
        .add_(torch.randn(len(a), 4, 2, generator=torch.Generator().manual_seed(0)))
        .requires_grad_()
    )
    assert torch.autograd.gradcheck(quad_iou_paired, (quads, Rotated().corners(b.detach())))


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_finite(name):
    a, b = (x.clone().requires_grad_() for x in CASES[name])
    rotated_iou_paired(a, b).sum().backward()
    assert a.grad.isfinite().all() and b.grad.isfinite().all()


def test_gradients_are_finite_without_area_and_zero_without_contact():
    a = boxes_of(
        [[5, 5, 0, 0, 0], [5, 5, -3, 4, 1], [5, 5, 1e-9, 1e9, 1], [5, 5, 2, 2, 0], [50, 5, 2, 2, 0]]
    ).requires_grad_()
    value = rotated_iou_paired(a, boxes_of([5, 5, 4, 4, 0.3]))
    value.sum().backward()
    assert (
        value.isfinite().all()
        and a.grad.isfinite().all()
        and not a.grad[4].any()
        and (value[[0, 1, 4]] == 0).all()
    )


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-6), (torch.float16, 2e-3), (torch.bfloat16, 1e-2)]
)
def test_lower_precision_goes_in_and_comes_out(dtype, tolerance):
    """Only the answer is rounded: the overlap of the rounded boxes is computed in double precision."""
    a, b = (x[:2000].to(dtype) for x in CASES["random"])
    value = rotated_iou_paired(a, b)
    assert value.dtype == dtype and rotated_iou(a[:50], b[:40]).dtype == dtype
    assert (value.double() - rotated_iou_paired(a.double(), b.double())).abs().max() < tolerance


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype):
    a, b = (x[:500].float() for x in CASES["random"])
    plain = rotated_iou_paired(a, b)
    with torch.autocast("cpu", dtype):
        inside = rotated_iou_paired(a.requires_grad_(), b)
        table = rotated_iou(a[:40], b[:30])
        quads = quad_iou_paired(Rotated().corners(a.detach()), Rotated().corners(b))
        inside.sum().backward()
    assert (
        inside.detach().equal(plain)
        and table.equal(rotated_iou(a[:40], b[:30]))
        and a.grad.isfinite().all()
    )
    assert (quads - plain).abs().max() < 1e-4


# ---------------------------------------------------------------- quadrilaterals


def simple_quads(count, seed, convex):
    """Quadrilaterals that do not cross themselves, of one kind, with sides of tens of pixels."""
    random, found = np.random.default_rng(seed), []
    while len(found) < count:
        quads = random.uniform(0, 60, (4 * count, 4, 2))
        shapes = shapely.polygons(quads)
        full = np.isclose(shapely.area(shapely.convex_hull(shapes)), shapely.area(shapes))
        found += list(
            quads[shapely.is_valid(shapes) & (full == convex) & (shapely.area(shapes) > 5)]
        )
    return torch.from_numpy(np.stack(found[:count]))


@pytest.mark.parametrize("convex_a, convex_b", [(True, True), (True, False), (False, False)])
def test_quadrilaterals_against_a_clipper(convex_a, convex_b):
    a, b = simple_quads(4000, 0, convex_a), simple_quads(4000, 1, convex_b)
    one, two = (shapely.polygons(x.numpy()) for x in (a, b))
    shared = shapely.area(shapely.intersection(one, two))
    areas = (shapely.area(one), shapely.area(two))
    value = quad_iou_paired(a, b)
    assert (value - torch.from_numpy(shared / (areas[0] + areas[1] - shared))).abs().max() < 1e-9
    assert (
        torch.allclose(quad_areas(a), torch.from_numpy(areas[0]))
        and ((value >= 0) & (value <= 1)).all()
    )
    for same in (a.flip(1), a.roll(1, 1)):
        assert (quad_iou_paired(same, b) - value).abs().max() < 1e-9
    assert (quad_iou_paired(b, a) - value).abs().max() < 1e-9
    assert torch.allclose(
        quad_iou(a[:60], b[:50]), quad_iou_paired(a[:60, None], b[None, :50]), atol=1e-12
    )


def test_rectangles_are_quadrilaterals():
    a, b = (x[:5000] for x in CASES["random"])
    assert (
        quad_iou_paired(Rotated().corners(a), Rotated().corners(b)) - rotated_iou_paired(a, b)
    ).abs().max() < 1e-10


def test_the_start_of_a_quadrilateral_against_four_trials():
    quads = simple_quads(300, 3, True)
    for quad, ours in zip(quads.numpy(), canonical_start(quads).numpy()):
        (x1, y1), (x2, y2) = quad.min(0), quad.max(0)
        goal = np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])
        sums = [np.hypot(*(np.roll(quad, -k, 0) - goal).T).sum() for k in range(4)]
        assert (ours == np.roll(quad, -int(np.argmin(sums)), 0)).all()


# ---------------------------------------------------------------- suppression


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.5, 0.9])
def test_suppression_is_the_plain_loop(threshold):
    boxes = random_boxes(1500, 7, room=500.0)
    scores = torch.rand(1500, generator=torch.Generator().manual_seed(8))
    boxes[:500] = boxes[:50].repeat(10, 1) + torch.randn(
        500, 5, generator=torch.Generator().manual_seed(9)
    )
    labels = torch.arange(1500) % 7
    assert rotated_nms(boxes, scores, threshold).equal(
        hard_nms(boxes, scores, threshold, rotated_iou)
    )
    assert rotated_nms(boxes, scores, threshold, labels).equal(
        hard_nms(boxes, scores, threshold, rotated_iou, labels)
    )
    quads = Rotated().corners(boxes)
    assert quad_nms(quads, scores, threshold).equal(hard_nms(quads, scores, threshold, quad_iou))


def test_blocks_hand_over_correctly(monkeypatch):
    """Many small blocks, and lists spelled out a few pairs at a time, change nothing."""
    from madet.boxes import rotated_nms as module

    boxes = random_boxes(600, 10, room=300.0)
    scores = torch.rand(600, generator=torch.Generator().manual_seed(11))
    expected = rotated_nms(boxes, scores, 0.2)
    for first, together in ((1, 50), (7, 1 << 20), (64, 33)):
        monkeypatch.setattr(module, "_FIRST", first)
        monkeypatch.setattr(module, "_LARGEST", first)
        monkeypatch.setattr(module, "_TOGETHER", together)
        assert rotated_nms(boxes, scores, 0.2).equal(expected)


def test_geometry_suppresses_softly_where_the_list_does_not_fit(monkeypatch):
    from madet.boxes import rotated_nms as module

    boxes = random_boxes(150, 12)
    scores = torch.rand(150, generator=torch.Generator().manual_seed(13))
    listed = Rotated().nms(boxes, scores, 0.3, soft="gaussian")
    monkeypatch.setattr(module, "_LISTED", 10)
    assert rotated_soft_nms(boxes, scores, 0.3, kind="gaussian") is None
    row_by_row = Rotated().nms(boxes, scores, 0.3, soft="gaussian")
    assert listed[0].equal(row_by_row[0]) and torch.allclose(
        listed[1], row_by_row[1].float(), atol=1e-6
    )


# ---------------------------------------------------------------- fixtures


def fixture(golden, name):
    z = np.load(golden / f"{name}.npz", allow_pickle=False)
    return {key: torch.from_numpy(z[key]) for key in z.files if key != "meta"}


def test_golden_overlaps(golden):
    z = fixture(golden, "rotated_iou")
    mirrored = [torch.cat([z[k][:, :4], -z[k][:, 4:]], 1) for k in "ab"]
    for name, ours in (
        ("iou_cw", rotated_iou(z["a"], z["b"])),
        ("iof_cw", rotated_iof(z["a"], z["b"])),
        ("iou_ccw", rotated_iou(*mirrored)),
        ("iof_ccw", rotated_iof(*mirrored)),
        ("pair_iou", rotated_iou_paired(z["pair_a"], z["pair_b"])),
        ("pair_iof", rotated_iof_paired(z["pair_a"], z["pair_b"])),
        ("special_iou", rotated_iou_paired(z["special_a"], z["special_b"])),
    ):
        assert (ours - z[name]).abs().max() < 2e-6, name


def test_golden_quadrilaterals(golden):
    """The peer's test of corners inside assumes rectangles.

    39 of 221 pairs that meet are off by up to .09; the clipper agrees with ours on all.
    """
    z = fixture(golden, "rotated_iou")
    a, b = (z[key].double().view(-1, 4, 2) for key in ("quad_a", "quad_b"))
    ours = quad_iou(a, b)
    one, two = (shapely.polygons(x.numpy()) for x in (a, b))
    shared = shapely.area(shapely.intersection(one[:, None], two[None]))
    clipper = torch.from_numpy(shared / (shapely.area(one)[:, None] + shapely.area(two) - shared))
    assert (ours - clipper).abs().max() < 1e-12
    agrees = (ours - z["quad_iou"]).abs() < 2e-6
    assert agrees[ours > 0].float().mean() > 0.8 and agrees.float().mean() > 0.97


def test_golden_differentiable_overlap(golden):
    z = fixture(golden, "rotated_diff_iou")
    a, b = z["a"].requires_grad_(), z["b"].requires_grad_()
    value = rotated_iou_paired(a, b)
    (value * z["grad_out"]).sum().backward()
    assert (value - z["iou_plain"]).abs().max() < 2e-6 and (value - z["iou"]).abs().max() < 1e-4
    for name, ours in (("grad_a", a.grad), ("grad_b", b.grad)):
        assert (ours - z[name]).abs().max() < 1e-4 * z[name].abs().max(), name


def test_golden_suppression(golden):
    z = fixture(golden, "rotated_nms")
    boxes = z["boxes"]
    scores = z["scores"]
    labels = z["labels"]
    for threshold in (10, 30, 50, 70):
        assert rotated_nms(boxes, scores, threshold / 100).equal(z[f"keep_{threshold}"].long())
        per_class = rotated_nms(boxes, scores, threshold / 100, labels)
        assert per_class.equal(z[f"keep_batched_{threshold}"].long())


def test_golden_conversions(golden):
    z = fixture(golden, "rotated_boxes")
    geometry = Rotated("le90")
    assert (geometry.enclosing_upright(z["rbox"]) - z["rbox_to_hbox"]).abs().max() < 1e-3
    assert (
        quad_iou_paired(geometry.corners(z["rbox"]), z["rbox_to_qbox"].view(-1, 4, 2)).min()
        > 1 - 1e-4
    )
    assert rotated_iou_paired(geometry.from_upright(z["hbox"]), z["hbox_to_rbox"]).min() > 1 - 1e-4
    refitted = geometry.from_quads(z["qbox"].view(-1, 4, 2).double())
    assert torch.allclose(
        geometry.areas(refitted), geometry.areas(z["qbox_to_rbox"].double()), rtol=1e-4
    )
    assert (
        rotated_iou_paired(
            geometry.from_quads(z["rbox_to_qbox"].view(-1, 4, 2)), z["clean_qbox_to_rbox"]
        ).min()
        > 1 - 1e-3
    )
    for version in ("oc", "le90", "le135"):
        ours, theirs = Rotated(version).normalize(z["rbox"]), z[f"regular_{version}"]
        square = (
            z["rbox"][:, 2] == z["rbox"][:, 3]
        )  # the peer turns squares by a quarter, the rectangle is the same
        assert (ours - theirs)[~square].abs().max() < 1e-4 and square.sum() < 20
        assert rotated_iou_paired(ours, theirs).min() > 1 - 1e-5
    inside = geometry.side_distances(z["points"], z["rbox"]).amin(-1) > 0.01
    assert inside.equal(z["points_inside"])
