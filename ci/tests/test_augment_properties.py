"""Augmentation under random data: pixels, boxes, outlines and masks agree with one matrix, whatever was composed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from madet.boxes.geometry import Rotated, Upright, move_points
from madet.data.augment import (
    Compose,
    MultiScale,
    OneOf,
    Photometric,
    RandomCrop,
    RandomFlip,
    RandomRotate,
    Resize,
    ScaleJitter,
    fit,
    generator_for,
    keep_ratio,
    matrix_between,
    mix,
    warp_back,
)
from madet.data.sample import Objects, Sample
from madet.data.warp import (
    crop,
    drop_hidden,
    flip,
    resize,
    rotation,
    view_masks,
    warp_image,
    warp_objects,
)

GEOMETRIES = [Upright(), Rotated("oc"), Rotated("le90"), Rotated("le135")]
DIRECTIONS = ("horizontal", "vertical", "diagonal")
KEEPING = Compose(
    (
        RandomFlip(0.7, DIRECTIONS),
        MultiScale((60, 90, 130), 220, between=True),
        RandomFlip(0.7, DIRECTIONS),
    )
)  # loses nothing
TURNING = Compose((KEEPING, RandomRotate(1.0, (-180.0, 180.0))))
CUTTING = Compose(
    (
        OneOf((KEEPING, TURNING)),
        RandomCrop(0.5, 1.0),
        ScaleJitter(0.4, 1.6, 120, 100),
        Photometric(),
    )
)


def scene(seed, geometry=Upright(), count=None, size=None):
    """A random picture with random boxes inside it; rotated where the geometry has angles.

    Every box has its quadrilateral as outline.
    """
    g = torch.Generator().manual_seed(seed)
    height, width = size or torch.randint(40, 160, (2,), generator=g).tolist()
    count = int(torch.randint(0, 12, (), generator=g)) if count is None else count
    sides = torch.rand(count, 2, generator=g) * torch.tensor([width, height]) / 3 + 4
    room = torch.tensor([width, height]) - sides
    centers = sides / 2 + torch.rand(count, 2, generator=g) * room
    boxes = torch.cat([centers - sides / 2, centers + sides / 2], 1)
    boxes = geometry.from_upright(boxes)
    if geometry.dim == 5:
        boxes[:, 2:4] /= 1.5
        boxes[:, 4] = torch.rand(count, generator=g) * 6 - 3
        boxes = geometry.normalize(boxes)
    objects = Objects(
        boxes,
        torch.randint(0, 5, (count,), generator=g),
        torch.rand(count, generator=g) < 0.3,
        [[quad.double().numpy()] for quad in geometry.corners(boxes)],
    )
    return Sample(
        torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=g),
        objects,
        torch.eye(3),
        seed,
        (height, width),
    )


def tagged(sample):
    """Labels become the objects' numbers, so that they can be told apart afterwards."""
    return replace(
        sample, objects=replace(sample.objects, labels=torch.arange(len(sample.objects)))
    )


def sizes(sample):
    return tuple(sample.image.shape[-2:])


def same_rectangles(geometry, a, b, tolerance=2e-2):
    """Corner sets agree, in whatever order."""
    a, b = geometry.corners(a), geometry.corners(b)
    distance = (a[:, :, None] - b[:, None]).norm(dim=-1)
    return bool((distance.amin(2) < tolerance).all() and (distance.amin(1) < tolerance).all())


def overlap(a, b):
    return float((a & b).sum() / (a | b).sum().clamp(min=1))


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: g.name)
def test_there_and_back(geometry):
    """Flips and scales are undone: upright boxes exactly, rotated ones where both axes have one scale."""
    for seed in range(60):
        sample = scene(seed, geometry, size=(100, 100))
        view = KEEPING(sample, generator_for(seed), geometry)
        assert len(view.objects) == len(sample.objects)
        assert same_rectangles(
            geometry, warp_back(view.objects.boxes, view.matrix, geometry), sample.objects.boxes
        )
        assert torch.equal(view.objects.labels, sample.objects.labels) and torch.equal(
            view.objects.ignore, sample.objects.ignore
        )


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: g.name)
def test_from_view_to_view(geometry):
    for seed in range(60):
        sample = scene(seed, geometry, size=(80, 80))
        a, b = (KEEPING(sample, generator_for(seed, i), geometry) for i in range(2))
        assert same_rectangles(
            geometry,
            geometry.warp(a.objects.boxes, matrix_between(a.matrix, b.matrix)),
            b.objects.boxes,
        )
        assert torch.allclose(
            matrix_between(b.matrix, a.matrix) @ matrix_between(a.matrix, b.matrix),
            torch.eye(3),
            atol=1e-3,
        )


@pytest.mark.parametrize("geometry", GEOMETRIES[1:], ids=lambda g: g.name)
def test_a_turn_keeps_the_shape_of_rotated_boxes(geometry):
    for seed in range(60):
        sample = tagged(scene(seed, geometry, size=(120, 120)))
        view = RandomRotate(1.0)(sample, generator_for(seed), geometry)
        before = sample.objects[view.objects.labels]
        assert torch.allclose(
            view.objects.boxes[:, 2:4].sort(1).values,
            before.boxes[:, 2:4].sort(1).values,
            atol=1e-3,
        )
        moved = move_points(geometry.corners(before.boxes), view.matrix)
        distance = (geometry.corners(view.objects.boxes)[:, :, None] - moved[:, None]).norm(dim=-1)
        assert len(view.objects) == 0 or distance.amin(2).max() < 2e-2


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: g.name)
def test_objects_are_inside_and_in_step_after_anything(geometry):
    for seed in range(150):
        sample = tagged(scene(seed, geometry))
        view = CUTTING(sample, generator_for(seed), geometry)
        objects, (height, width) = view.objects, sizes(view)
        limit = torch.tensor([width, height])
        centers, sides, _ = geometry.parts(objects.boxes)
        assert (sides >= 1).all() and objects.boxes.isfinite().all()
        assert (centers >= 0).all() and (centers <= limit).all()
        if geometry.dim == 4:
            assert (objects.boxes >= 0).all() and (objects.boxes.view(-1, 2, 2) <= limit).all()
        assert len(objects) == len(objects.labels) == len(objects.ignore) == len(objects.polygons)
        assert (
            objects.boxes.dtype == torch.float32
            and objects.labels.dtype == torch.int64
            and objects.ignore.dtype == torch.bool
        )
        before = sample.objects[objects.labels]  # who is left kept label, flag and outline
        assert torch.equal(objects.ignore, before.ignore)
        for new, old in zip(objects.polygons, before.polygons):
            assert np.allclose(
                new[0],
                move_points(torch.from_numpy(old[0]), view.matrix.double()).numpy(),
                atol=1e-2,
            )


def test_cut_boxes_cover_what_their_outlines_show():
    """Without turns, a box is the hull of its outline, cut to the picture."""
    chain = Compose((KEEPING, RandomCrop(0.4, 1.0), ScaleJitter(0.5, 1.5, 100, 90)))
    for seed in range(100):
        view = chain(scene(seed), generator_for(seed), Upright())
        height, width = sizes(view)
        for box, rings in zip(view.objects.boxes, view.objects.polygons):
            ring = rings[0].clip(0, [width, height])
            assert np.allclose(box, [*ring.min(0), *ring.max(0)], atol=2e-2)


def test_dropping_follows_its_rules():
    """One crop against a reckoning of its own, in plain Python."""
    kept = dropped = 0
    for seed in range(200):
        sample = tagged(scene(seed, count=8))
        height, width = sizes(sample)
        draw = generator_for(seed, 1)
        h, w = (int(torch.randint(5, side + 1, (), generator=draw)) for side in (height, width))
        top, left = (
            int(torch.randint(0, side + 1, (), generator=draw)) for side in (height - h, width - w)
        )
        view = warp_objects(sample, *crop(sample.image, top, left, h, w), Upright())
        expected = {}
        for i, (x1, y1, x2, y2) in enumerate(sample.objects.boxes.double().tolist()):
            a = max(x1 - left, 0)
            b = max(y1 - top, 0)
            c = min(x2 - left, w)
            d = min(y2 - top, h)
            share = max(c - a, 0) * max(d - b, 0) / ((x2 - x1) * (y2 - y1))
            if min(c - a, d - b) >= 1 and share >= 0.1:
                expected[i] = [a, b, c, d]
        assert view.objects.labels.tolist() == list(expected)
        assert np.allclose(
            view.objects.boxes, np.array(list(expected.values())).reshape(-1, 4), atol=1e-3
        )
        kept, dropped = kept + len(expected), dropped + 8 - len(expected)
    assert kept > 200 and dropped > 200


def test_settling_twice_is_settling_once():
    for geometry in GEOMETRIES:
        for seed in range(40):
            objects = drop_hidden(scene(seed, geometry).objects, (50, 60), geometry)
            again = drop_hidden(objects, (50, 60), geometry)
            assert torch.equal(again.boxes, objects.boxes) and torch.equal(
                again.labels, objects.labels
            )


def test_order_of_objects_does_not_matter():
    for seed in range(40):
        sample = tagged(scene(seed, count=9))
        shuffle = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
        a = CUTTING(sample, generator_for(seed), Upright()).objects
        b = CUTTING(
            replace(sample, objects=sample.objects[shuffle]), generator_for(seed), Upright()
        ).objects
        b = b[b.labels.argsort()]
        assert torch.equal(a.labels, b.labels) and torch.equal(a.boxes, b.boxes)


@pytest.mark.parametrize("bits", [torch.uint8, torch.float32])
def test_bright_spots_stay_where_the_matrix_says(bits):
    """Gaussian spots, moved as pixels, have their center of gravity at the moved point.

    Half a pixel of bias would show.
    """
    chain = Compose(
        (
            MultiScale((70, 150), 400, between=True),
            RandomFlip(0.8, DIRECTIONS),
            RandomRotate(0.5, (-60.0, 60.0)),
        )
    )
    bias = []
    for seed in range(60):
        g = torch.Generator().manual_seed(seed)
        points = torch.rand(1, 2, generator=g) * torch.tensor([50, 30]) + torch.tensor([35, 35])
        y, x = torch.meshgrid(torch.arange(100) + 0.5, torch.arange(120) + 0.5, indexing="ij")
        light = torch.exp(-((x - points[0, 0]) ** 2 + (y - points[0, 1]) ** 2) / (2 * 4**2))
        image = (
            light.expand(3, -1, -1)
            if bits is torch.float32
            else (light * 255).round().to(torch.uint8).expand(3, -1, -1)
        )
        view = chain(
            Sample(image.contiguous(), Objects.none(), torch.eye(3), 0, (100, 120)),
            generator_for(seed),
            Upright(),
        )
        light = view.image[0].double()
        height, width = light.shape
        found = (
            torch.stack(
                [
                    (light.sum(0) * (torch.arange(width) + 0.5)).sum(),
                    (light.sum(1) * (torch.arange(height) + 0.5)).sum(),
                ]
            )
            / light.sum()
        )
        bias.append(found - move_points(points, view.matrix)[0])
    bias = torch.stack(bias)
    assert bias.abs().max() < 0.12 and bias.mean(0).abs().max() < 0.03


def test_masks_follow_like_pixels():
    """A blob painted into the picture, its run-length mask and its outline give the same region after a chain."""
    chain = Compose(
        (
            RandomRotate(0.7, (-90.0, 90.0)),
            RandomFlip(0.8, DIRECTIONS),
            MultiScale((90, 200), 400, between=True),
            RandomCrop(0.6, 1.0),
        )
    )
    worst = 1.0
    for seed in range(40):
        g = np.random.default_rng(seed)
        angles = np.sort(g.random(9)) * 2 * np.pi
        ring = np.stack([70 + (15 + 15 * g.random()) * np.cos(angles), 60 + 25 * np.sin(angles)], 1)
        box = torch.tensor([[*ring.min(0), *ring.max(0)]], dtype=torch.float32)
        outline = Objects(
            box, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.bool), [[ring]]
        )
        mask = view_masks(outline, (120, 140))[0]
        packed = coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
        both = Objects(
            box.repeat(2, 1),
            torch.zeros(2, dtype=torch.int64),
            torch.zeros(2, dtype=torch.bool),
            [[ring], packed],
        )
        view = chain(
            Sample(mask.float().expand(3, -1, -1).contiguous(), both, torch.eye(3), 0, (120, 140)),
            generator_for(seed),
            Upright(),
        )
        if len(view.objects) < 2 or (view.image[0] > 0.5).sum() < 200:
            continue
        polygon, run_length = view_masks(view.objects, sizes(view))
        worst = min(
            worst, overlap(polygon, view.image[0] > 0.5), overlap(run_length, view.image[0] > 0.5)
        )
    assert worst > 0.93


def test_mirrored_masks_lose_nothing_in_any_notation():
    for seed in range(20):
        mask = torch.rand(23, 31, generator=torch.Generator().manual_seed(seed)) < 0.5
        packed = coco_mask.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
        flat = mask.T.flatten().tolist()
        counts = []
        value = False
        run = 0
        for bit in flat:
            if bit != value:
                counts.append(run)
                value, run = bit, 0
            run += 1
        counts.append(run)
        notations = [
            packed,
            {"size": [23, 31], "counts": packed["counts"].decode()},
            {"size": [23, 31], "counts": counts},
        ]
        box = torch.tensor([[0.0, 0, 31, 23]]).repeat(3, 1)
        sample = Sample(
            torch.zeros(3, 23, 31),
            Objects(
                box, torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.bool), notations
            ),
            torch.eye(3),
            0,
            (23, 31),
        )
        for direction, axes in (("horizontal", (1,)), ("vertical", (0,)), ("diagonal", (0, 1))):
            view = warp_objects(sample, *flip(sample.image, direction), Upright())
            assert all(
                torch.equal(drawn, mask.flip(axes)) for drawn in view_masks(view.objects, (23, 31))
            )
        twice = warp_objects(view, *flip(view.image, "diagonal"), Upright())
        assert all(torch.equal(drawn, mask) for drawn in view_masks(twice.objects, (23, 31)))


def test_pixels_are_moved_as_torchvision_moves_them():
    image = scene(1, size=(90, 130)).image
    for size in [(45, 65), (200, 301), (90, 131)]:
        moved, matrix = resize(image, size)
        assert moved.shape[-2:] == size and matrix.diagonal().tolist() == pytest.approx(
            [size[1] / 130, size[0] / 90, 1]
        )
    assert resize(image, (90, 130))[0] is image
    for degrees in (0, 90, 180, 270, 360):
        square = image[:, :90, :90]
        moved, _ = warp_image(square, rotation(degrees, (90, 90)))
        assert (moved.int() - square.rot90(-degrees // 90, (1, 2)).int()).abs().max() <= 1


def test_flips_are_involutions_and_commute():
    for seed in range(20):
        sample = scene(seed)
        for direction in DIRECTIONS:
            once = warp_objects(sample, *flip(sample.image, direction), Upright())
            twice = warp_objects(once, *flip(once.image, direction), Upright())
            assert torch.equal(twice.image, sample.image) and torch.equal(
                twice.matrix, torch.eye(3)
            )
            assert torch.allclose(twice.objects.boxes, sample.objects.boxes, atol=1e-4)
        h = warp_objects(sample, *flip(sample.image, "horizontal"), Upright())
        hv = warp_objects(h, *flip(h.image, "vertical"), Upright())
        d = warp_objects(sample, *flip(sample.image, "diagonal"), Upright())
        assert (
            torch.equal(hv.image, d.image)
            and torch.equal(hv.matrix, d.matrix)
            and torch.allclose(hv.objects.boxes, d.objects.boxes)
        )


def test_sizes_stay_within_their_limits():
    g = np.random.default_rng(0)
    for _ in range(500):
        size = tuple(g.integers(1, 3000, 2).tolist())
        long, short = sorted(g.integers(32, 1500, 2).tolist(), reverse=True)
        new = keep_ratio(size, long, short)
        assert max(new) <= long and min(new) <= max(short, 1) and min(new) >= 1
        assert (
            abs(max(new) - long) < 1 or abs(min(new) - short) < 1 or 1 in new
        )  # one limit is reached
        exact = min(long / max(size), short / min(size))
        assert all(abs(a - b * exact) <= 0.5 + 1e-6 or a == 1 for a, b in zip(new, size))
        assert max(keep_ratio(size, 320, 320)) == 320
    sample = scene(0, size=(100, 133))
    assert (
        fit(133)(sample, None, Upright()) is sample
        and Resize(133, 100)(sample, None, Upright()) is sample
    )


def test_crops_keep_an_object_unless_allowed_to_lose_all():
    lost = 0
    for seed in range(100):
        sample = scene(seed, count=1 + seed % 3)
        sample.objects.ignore[:] = False
        assert len(RandomCrop(0.1, 0.4)(sample, generator_for(seed), Upright()).objects)
        lost += not len(
            RandomCrop(0.1, 0.4, allow_empty=True)(sample, generator_for(seed), Upright()).objects
        )
    assert lost > 10
    cut = RandomCrop(50, 60)(scene(3, size=(40, 200)), generator_for(0), Upright())
    assert sizes(cut)[0] == 40 and (50 <= sizes(cut)[1] <= 60)


def test_chance_depends_on_its_words_only():
    for seed in range(20):
        sample = scene(seed)
        torch.manual_seed(seed)
        a = CUTTING(sample, generator_for(7, 3, seed), Upright())
        torch.rand(5)
        b = CUTTING(sample, generator_for(7, 3, seed), Upright())
        assert (
            torch.equal(a.image, b.image)
            and torch.equal(a.objects.boxes, b.objects.boxes)
            and torch.equal(a.matrix, b.matrix)
        )
    looks = {
        float(
            Photometric()(scene(4), generator_for(0, epoch, index), Upright()).image.double().sum()
        )
        for epoch in range(6)
        for index in range(6)
    }
    assert len(looks) > 30


def test_the_hash_spreads_and_vectorises():
    grid = np.arange(256)
    together = mix(5, grid, 2)
    assert together.dtype == np.uint64 and all(
        together[i] == mix(5, i, 2)[0] for i in range(0, 256, 17)
    )
    bits = np.unpackbits(mix(np.arange(20000)).view(np.uint8)).reshape(-1, 64).mean(0)
    assert abs(bits - 0.5).max() < 0.02
    flipped = (
        np.bitwise_count(mix(np.arange(2000)) ^ mix(np.arange(2000) ^ 1))
        if hasattr(np, "bitwise_count")
        else np.array([32])
    )
    assert abs(flipped.mean() - 32) < 0.5


def test_inputs_are_left_as_they_were():
    for seed in range(30):
        sample = scene(seed)
        image = sample.image.clone()
        boxes = sample.objects.boxes.clone()
        ring = [x[0].copy() for x in sample.objects.polygons]
        CUTTING(sample, generator_for(seed), Upright())
        assert (
            torch.equal(sample.image, image)
            and torch.equal(sample.objects.boxes, boxes)
            and torch.equal(sample.matrix, torch.eye(3))
        )
        assert all(np.array_equal(x[0], y) for x, y in zip(sample.objects.polygons, ring))


def test_labels_that_allow_right_angles_only():
    op = RandomRotate(1.0, (10.0, 80.0), right_angles=(2,))
    for seed in range(30):
        sample = scene(seed, count=1, size=(60, 60))
        sample.objects.labels[:] = seed % 3
        cos = float(op(sample, generator_for(seed), Upright()).matrix[0, 0])
        right = min(abs(abs(cos) - x) for x in (0, 1)) < 1e-6
        assert right == (seed % 3 == 2)
    listed = {
        round(
            float(
                RandomRotate(1.0, (0.0, 45.0, 90.0), between=False)(
                    scene(1), generator_for(i), Upright()
                ).matrix[0, 0]
            ),
            3,
        )
        for i in range(60)
    }
    assert listed == {1.0, 0.707, -0.0} or listed == {1.0, 0.707, 0.0}
