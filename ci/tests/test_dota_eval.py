"""Scores of rotated boxes against plain loops over shapely's polygons, through functions, files and `madet
eval`; MADET_SHARED leads to stored numbers.
"""

import json
import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from madet.boxes.geometry import Rotated, Upright
from madet.cli import main
from madet.data.embedded import embedded
from madet.data.export import export_folder
from madet.data.open_folder import open_data
from madet.metrics.dota import (
    DEVKIT,
    MMROTATE,
    dota_pairs,
    dota_score,
    read_task1,
    start_point,
    write_task1,
)
from madet.metrics.errors import ap_at, ap_gains, classify_all_errors
from madet.metrics.slices import slice_scores
from madet.metrics.voc import score_pairs

Polygon = pytest.importorskip("shapely.geometry").Polygon
SHARED = Path(os.environ.get("MADET_SHARED", Path(__file__).parents[2].parent / "shared"))
CLASSES = (
    "ship",
    "plane",
    "dam",
    "bridge",
)  # nothing is a bridge, everything at a dam is difficult
THRESHOLDS = [round(0.5 + 0.05 * k, 2) for k in range(10)]


def turn(box):
    """Corners of centre, sides and a clockwise angle."""
    x, y, w, h, a = box
    along = np.array([math.cos(a), math.sin(a)]) * w / 2
    across = np.array([-math.sin(a), math.cos(a)]) * h / 2
    return np.array([x, y]) + np.array(
        [-along - across, along - across, along + across, across - along]
    )


def scene(seed, name):
    """One image: quadrilaterals that are no rectangles, difficult ones, duplicates, detections where nothing is."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(0, 10))
    boxes = np.stack(
        [
            *rng.uniform(0, 120, (2, count)),
            *np.exp(rng.normal(3.1, 0.5, (2, count))),
            rng.uniform(-1.57, 1.57, count),
        ],
        1,
    ).reshape(-1, 5)
    labels = rng.integers(0, 3, count)
    quads = np.array([turn(b) for b in boxes]).reshape(-1, 4, 2) + rng.normal(0, 1, (count, 4, 2))
    truth = dict(
        image_id=name,
        boxes=quads.reshape(-1, 8),
        labels=labels,
        ignore=(rng.random(count) < 0.25) | (labels == 2),
    )
    again = rng.integers(0, count, 2 * count) if count else np.zeros(0, int)
    found = np.concatenate(
        [
            boxes[again] + rng.normal(0, 1, (len(again), 5)) * [2, 2, 3, 3, 0.1],
            np.stack([*rng.uniform(0, 120, (2, 3)), [20] * 3, [9] * 3, [0.4] * 3], 1),
        ]
    )
    labels = np.concatenate([labels[again], rng.integers(0, 4, 3)])
    return truth, dict(
        image_id=name,
        boxes=found,
        labels=labels,
        scores=rng.permutation(len(found)) / 100 + rng.random(),
    )


def brute(truths, results, label, iou, eleven, strict, count_difficult):
    """AP of one class by loops; None where there is nothing to find."""
    shapes = {
        t["image_id"]: [
            [Polygon(q.reshape(4, 2)), bool(d) and not count_difficult, False]
            for q, kind, d in zip(t["boxes"], t["labels"], t["ignore"])
            if kind == label
        ]
        for t in truths
    }
    rows = sorted(
        (
            (s, r["image_id"], Polygon(turn(b)))
            for r in results
            for b, s, kind in zip(r["boxes"], r["scores"], r["labels"])
            if kind == label
        ),
        key=lambda row: -row[0],
    )
    total = sum(not hard for mine in shapes.values() for _, hard, _ in mine)
    right = 0
    wrong = 0
    curve = []
    if not total:
        return None
    for _, image, shape in rows:
        shares = [shape.intersection(q).area / shape.union(q).area for q, _, _ in shapes[image]]
        meant = shapes[image][int(np.argmax(shares))] if shares else None
        if meant is None or not (max(shares) > iou if strict else max(shares) >= iou):
            wrong += 1
        elif not meant[1]:
            right, wrong, meant[2] = right + (not meant[2]), wrong + meant[2], True
        curve.append((right / total, right / max(right + wrong, 1)))
    if eleven:
        return (
            sum(max((p for r, p in curve if r >= t), default=0) for t in np.arange(0, 1.1, 0.1))
            / 11
        )
    return sum(
        (r - before) * max(p for r2, p in curve if r2 >= r)
        for (r, _), before in zip(curve, [0] + [r for r, _ in curve])
    )


@pytest.fixture(scope="module")
def scenes():
    truths, results = zip(*[scene(seed, f"P{seed:04}") for seed in range(30)])
    return list(truths), list(results)


@pytest.mark.parametrize("rules", [DEVKIT, MMROTATE], ids=["devkit", "mmrotate"])
@pytest.mark.parametrize("mode", ["11point", "area"])
def test_every_number_is_that_of_the_loops(scenes, mode, rules):
    ours = dota_score(*scenes, CLASSES, mode=mode, **rules)
    means = []
    for c, name in enumerate(CLASSES):
        theirs = [
            brute(*scenes, c, iou, mode == "11point", rules["strict"], rules["count_difficult"])
            for iou in THRESHOLDS
        ]
        if None in theirs:
            assert ours["per_class"][name]["AP"] is None and ours["per_class"][name]["AP50"] is None
            continue
        means.append(theirs)
        for key, value in (("AP", np.mean(theirs)), ("AP50", theirs[0]), ("AP75", theirs[5])):
            assert abs(ours["per_class"][name][key] - value) < 1e-9, (name, key)
    assert len(means) == (3 if rules["count_difficult"] else 2)
    assert (
        np.allclose(ours["by_iou"], np.mean(means, 0), atol=1e-9)
        and abs(ours["AP"] - np.mean(means)) < 1e-9
    )


def test_switches_change_what_they_name(scenes):
    one = (
        [
            dict(
                image_id=1,
                boxes=[[0.0, 0, 40, 40], [100, 0, 140, 40]],
                labels=[0, 0],
                ignore=[False, True],
            )
        ],
        [
            dict(
                image_id=1,
                boxes=[[0.0, 0, 40, 20], [100, 0, 140, 40]],
                labels=[0, 0],
                scores=[0.9, 0.8],
            )
        ],
    )

    def ap(**how):
        return dota_score(*one, ["a"], ious=(0.5,), mode="area", **how)["AP"]

    assert (
        ap() == 0
        and ap(strict=False) == 1
        and ap(strict=False, count_difficult=True) == 1
        and ap(count_difficult=True) == 0.25
    )
    three = (
        [
            dict(
                image_id=1,
                boxes=[[50.0 * k, 0, 50 * k + 40, 40] for k in range(10)],
                labels=[0] * 10,
            )
        ],
        [
            dict(
                image_id=1,
                boxes=[[50.0 * k, 0, 50 * k + 40, 40] for k in range(3)],
                labels=[0] * 3,
                scores=[0.9, 0.8, 0.7],
            )
        ],
    )
    assert math.isclose(dota_score(*three, ["a"])["AP"], 3 / 11) and math.isclose(
        dota_score(*three, ["a"], literal=True)["AP"], 4 / 11
    )


def test_the_best_object_is_asked_even_if_taken():
    """A duplicate does not take the second best.

    That is a mistake, though another object is free and overlapped enough.
    """
    truth = [dict(image_id=1, boxes=[[0.0, 0, 40, 40], [4.0, 0, 44, 40]], labels=[0, 0])]
    found = [
        dict(
            image_id=1, boxes=[[0.0, 0, 40, 40], [1.0, 0, 41, 40]], labels=[0, 0], scores=[0.9, 0.8]
        )
    ]
    assert score_pairs(dota_pairs(truth, found, ["a"]), 0.5)["per_class"]["a"]["recall"] == 0.5


def test_boxes_in_every_form_and_order_give_one_number(scenes):
    truths, results = scenes
    full = dota_score(truths, results, CLASSES)["AP"]
    as_corners = [dict(r, boxes=np.array([turn(b) for b in r["boxes"]])) for r in results]
    as_tensors = [
        dict(
            r,
            boxes=torch.tensor(r["boxes"]),
            labels=torch.tensor(r["labels"]),
            scores=torch.tensor(r["scores"]),
        )
        for r in results
    ]
    swapped = [
        dict(r, boxes=r["boxes"][:, [0, 1, 3, 2, 4]] + [0, 0, 0, 0, math.pi / 2]) for r in results
    ]  # the same rectangles
    for other in (as_corners, as_tensors, swapped, results[::-1]):
        assert abs(dota_score(truths, other, CLASSES)["AP"] - full) < 1e-9


def test_task1_files_keep_every_digit_and_any_line_ending(scenes, tmp_path):
    truths, results = scenes
    every = np.sort(np.concatenate([r["scores"] for r in results]))
    close = [
        dict(r, scores=0.5 + 1e-9 * np.searchsorted(every, r["scores"])) for r in results
    ]  # two digits would make all of them equal
    paths = write_task1(tmp_path / "out", close, CLASSES)
    assert [p.name for p in paths] == [f"Task1_{name}.txt" for name in CLASSES] and all(
        p.read_text().strip() for p in paths
    )
    paths[0].write_bytes(
        b"\xef\xbb\xbf" + paths[0].read_bytes().rstrip().replace(b"\n", b"\r\n")
    )  # Windows, and no final newline
    again, classes = read_task1(tmp_path / "out", CLASSES)
    assert tuple(classes) == CLASSES and sum(len(r["scores"]) for r in again) == sum(
        len(r["scores"]) for r in results
    )
    assert (
        abs(
            dota_score(truths, again, CLASSES)["AP50"]
            - dota_score(truths, results, CLASSES)["AP50"]
        )
        < 1e-9
    )
    write_task1(tmp_path / "none", [], ["ship"], fill=False)
    assert (tmp_path / "none/Task1_ship.txt").read_text() == ""


def test_polygons_begin_where_mmrotate_begins():
    """Four cyclic shifts, the smallest sum of distances to the hull's corners, by loops."""
    for seed in range(50):
        quad = turn(np.random.default_rng(seed).uniform([0, 0, 5, 5, -3], [90, 90, 60, 60, 3]))
        (x1, y1), (x2, y2) = quad.min(0), quad.max(0)
        hull = [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]
        sums = [sum(math.dist(quad[(k + j) % 4], hull[j]) for j in range(4)) for k in range(4)]
        if sorted(sums)[1] - min(sums) > 1e-9:
            assert np.allclose(
                start_point(quad.reshape(1, 8)),
                np.roll(quad, -int(np.argmin(sums)), 0).reshape(1, 8),
            )


def evaluate(capsys, *words):
    code = main(["eval", "--format", "dota", *map(str, words), "--json"])
    out = capsys.readouterr().out
    return code, json.loads(out) if code == 0 else None


@pytest.mark.parametrize("kind", ["dota", "dior", "rolabel"])
def test_folders_of_every_layout_through_the_command(capsys, tmp_path, kind):
    shapes = embedded("standard", "test", Rotated())
    shapes.records = shapes.records[:12]
    for k, record in enumerate(shapes.records):
        image = shapes.load(k).image
        record.path = tmp_path / f"scene{k}.png"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(record.path)
    export_folder(
        tmp_path / kind, {"train": shapes, "test": shapes}, kind
    ) if kind != "dota" else export_folder(tmp_path / kind, {"test": shapes}, kind)
    split = () if kind == "dota" else ("--split", "test")
    data = open_data(tmp_path / kind, "test", geometry=Rotated())
    found = [
        dict(
            image_id=r.path.stem,
            boxes=r.objects.boxes,
            labels=r.objects.labels,
            scores=torch.rand(len(r.objects)),
        )
        for r in data.records
    ]
    write_task1(tmp_path / "task1", found, data.classes)
    code, perfect = evaluate(
        capsys, "--truth", tmp_path / kind, "--results", tmp_path / "task1", *split
    )
    assert (
        code == 0
        and perfect["AP50"] == 1
        and perfect["objects"] == sum(int((~r.objects.ignore).sum()) for r in data.records)
        and perfect["images"] == 12
    )
    for one in found:
        one["boxes"] = one["boxes"] + torch.tensor([0, 0, 0, 0, 0.2])
    write_task1(tmp_path / "turned", found, data.classes)
    assert (
        evaluate(capsys, "--truth", tmp_path / kind, "--results", tmp_path / "turned", *split)[1][
            "AP"
        ]
        < 0.8
    )


def test_the_command_is_the_loops_too(capsys, scenes, tmp_path):
    truths, results = scenes
    (tmp_path / "labelTxt").mkdir()
    for t in truths:
        lines = [
            f"{' '.join(repr(float(v)) for v in q)} {CLASSES[kind]} {int(d)}"
            for q, kind, d in zip(t["boxes"], t["labels"], t["ignore"])
        ]
        (tmp_path / f"labelTxt/{t['image_id']}.txt").write_text(
            "imagesource:made\r\ngsd:null\r\n" + "\r\n".join(lines)
        )
    rows = [
        {
            "image_id": r["image_id"],
            "class": CLASSES[kind],
            "bbox": list(map(float, b)),
            "score": float(s),
        }
        for r in results
        for b, kind, s in zip(r["boxes"], r["labels"], r["scores"])
    ]
    (tmp_path / "found.json").write_text(json.dumps(rows))
    code, ours = evaluate(
        capsys,
        "--truth",
        tmp_path / "labelTxt",
        "--results",
        tmp_path / "found.json",
        "--ap",
        "area",
        "--rules",
        "mmrotate",
    )
    theirs = [brute(truths, results, c, 0.5, False, False, True) for c in range(4)]
    assert code == 0 and abs(ours["AP50"] - np.mean([v for v in theirs if v is not None])) < 1e-9
    as_coco = {
        "categories": [{"id": 10 * c, "name": n} for c, n in enumerate(CLASSES)],
        "annotations": [dict(r, category_id=10 * CLASSES.index(r.pop("class"))) for r in rows],
    }
    (tmp_path / "found_dict.json").write_text(json.dumps(as_coco))
    assert (
        evaluate(
            capsys,
            "--truth",
            tmp_path / "labelTxt",
            "--results",
            tmp_path / "found_dict.json",
            "--ap",
            "area",
            "--rules",
            "mmrotate",
        )[1]
        == ours
    )


@pytest.mark.skipif(
    not (SHARED / "data/hit_uav").exists(), reason="MADET_SHARED does not lead to data/hit_uav"
)
@pytest.mark.parametrize("labels", ["rotate_xml", "labelTxt_derived", "rotate_json"])
def test_real_folder_scored_with_its_own_truth(capsys, tmp_path, labels):
    data = open_data(SHARED / "data/hit_uav", "test", labels, geometry=Rotated())
    write_task1(
        tmp_path,
        [
            dict(
                image_id=r.path.stem,
                boxes=r.objects.boxes,
                labels=r.objects.labels.clamp(min=0),
                scores=torch.rand(len(r.objects)),
            )
            for r in data.records
        ],
        data.classes,
    )
    code, score = evaluate(
        capsys,
        "--truth",
        SHARED / "data/hit_uav",
        "--labels",
        labels,
        "--split",
        "test",
        "--results",
        tmp_path,
    )
    assert code == 0 and score["AP50"] > 0.99 and score["images"] == len(data)


@pytest.mark.skipif(
    not (SHARED / "golden/eval_dota.npz").exists(), reason="MADET_SHARED does not lead to golden"
)
def test_numbers_of_the_peer():
    z = np.load(SHARED / "golden/eval_dota.npz")
    images = np.union1d(z["gt_image"], z["det_image"])
    truths = [
        dict(
            image_id=int(i),
            boxes=z["gt_boxes"][m],
            labels=z["gt_class"][m],
            ignore=z["gt_flag"][m] > 0,
        )
        for i in images
        for m in [z["gt_image"] == i]
    ]
    results = [
        dict(
            image_id=int(i),
            boxes=z["det_boxes"][m],
            labels=z["det_class"][m],
            scores=z["det_scores"][m],
        )
        for i in images
        for m in [z["det_image"] == i]
    ]
    pairs = dota_pairs(truths, results, "01234", real_first=True)
    for mode, stem in (("11point", "voc07"), ("area", "area")):
        for iou in (50, 75):
            ours = score_pairs(pairs, iou / 100, mode)
            assert abs(ours["AP"] - z[f"{stem}_{iou}_map"]) < 1e-6
            assert np.allclose(
                [one["AP"] or 0 for one in ours["per_class"].values()],
                z[f"{stem}_{iou}_ap"],
                atol=1e-6,
            )
            assert np.allclose(
                [one["recall"] for one in ours["per_class"].values()],
                z[f"{stem}_{iou}_recall"],
                atol=1e-6,
            )
    assert np.allclose(
        dota_score(truths, results, "01234", strict=False, real_first=True)["by_iou"],
        z["voc07_map_50_95"],
        atol=1e-6,
    )


def test_five_hundred_tiles_take_seconds():
    rng = np.random.default_rng(0)
    tiles = []
    for k in range(500):
        boxes = np.stack(
            [
                *rng.uniform(0, 1024, (2, 50)),
                *np.exp(rng.normal(3.5, 0.5, (2, 50))),
                rng.uniform(-1.5, 1.5, 50),
            ],
            1,
        )
        tiles.append(
            (
                dict(image_id=k, boxes=boxes, labels=rng.integers(0, 15, 50)),
                dict(
                    image_id=k,
                    boxes=boxes + 2,
                    labels=rng.integers(0, 15, 50),
                    scores=rng.random(50),
                ),
            )
        )
    start = time.perf_counter()
    dota_score([t for t, _ in tiles], [r for _, r in tiles], [str(c) for c in range(15)])
    assert time.perf_counter() - start < 5


def upright_scenes(count=40):
    """Upright truth and detections, and the same as rotated boxes of angle 0 or a quarter turn."""
    pairs = []
    for seed in range(count):
        rng = np.random.default_rng(seed)
        size, corner = np.exp(rng.normal(3, 0.6, (6, 2))), rng.uniform(0, 90, (6, 2))
        boxes, labels = np.concatenate([corner, corner + size], 1), rng.integers(0, 3, 6)
        again = rng.integers(0, 6, 9)
        moved = boxes[again] + rng.normal(0, 2, (9, 1))
        truth = dict(
            image_id=seed,
            boxes=torch.tensor(boxes),
            labels=torch.tensor(labels),
            ignore=torch.tensor(rng.random(6) < 0.15),
        )
        pairs.append(
            (
                truth,
                dict(
                    image_id=seed,
                    boxes=torch.tensor(moved),
                    labels=torch.tensor(labels[again]),
                    scores=torch.tensor(rng.permutation(900 * count)[:9] / 1000),
                ),
            )
        )
    return pairs


def as_rotated(one, quarter):
    x1, y1, x2, y2 = one["boxes"].unbind(-1)
    sides = (y2 - y1, x2 - x1) if quarter else (x2 - x1, y2 - y1)
    return dict(
        one,
        boxes=torch.stack(
            [(x1 + x2) / 2, (y1 + y2) / 2, *sides, torch.full_like(x1, math.pi / 2 * quarter)], -1
        ),
    )


@pytest.mark.parametrize("quarter", [False, True])
def test_slices_and_mistakes_of_upright_boxes_are_the_same_under_both_geometries(quarter):
    pairs = upright_scenes()
    truths, results = [t for t, _ in pairs], [r for _, r in pairs]
    turned = [as_rotated(t, quarter) for t in truths], [as_rotated(r, quarter) for r in results]
    plain = slice_scores(truths, results, CLASSES[:3])
    other = slice_scores(*turned, CLASSES[:3], Rotated())
    assert plain.keys() == other.keys() and all(one["objects"] > 0 for one in plain.values())
    for name, one in plain.items():
        assert (
            abs(one["AP"] - other[name]["AP"]) < 1e-9 and one["objects"] == other[name]["objects"]
        )
    ours = classify_all_errors(*turned, Rotated())
    theirs = classify_all_errors(truths, results, Upright())
    for a, b in zip(ours, theirs):
        assert (
            (a["kind"] == b["kind"]).all()
            and (a["points_at"] == b["points_at"]).all()
            and np.allclose(a["iou"], b["iou"], atol=1e-6)
        )
    price = ap_gains(ours, CLASSES[:3], ap_at(mode="area"))
    assert (
        abs(price["AP"] - dota_score(*turned, CLASSES[:3], mode="area")["AP50"]) < 1e-12
        and price["gains"]["missed"] > 0
    )
