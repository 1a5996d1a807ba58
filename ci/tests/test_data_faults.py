"""Broken data folders.

Each fault is either read with an entry in the list of defects, or refused with one sentence that names the place.
"""

import io
import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from madet.boxes.errors import BadInput
from madet.boxes.files import read_json
from madet.boxes.geometry import Rotated, Upright
from madet.cli import main
from madet.data.formats.coco import load_json
from madet.data.open_folder import OpenedFolder, open_data, splits
from madet.data.report import survey

SIZE = (64, 48)


def picture(path, size=SIZE, mode="RGB", exif=None, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.tile(np.linspace(0, 255, size[0]), (size[1], 1)).astype(np.uint8)
    image = (
        Image.fromarray(ramp).convert(mode)
        if mode != "I;16"
        else Image.fromarray(ramp.astype(np.uint16) * 257)
    )
    if exif:
        how["exif"] = Image.Exif()
        how["exif"][274] = exif
    image.save(path, **how)
    return path


def coco(root, split="train", count=2, boxes=None, categories=None, **change):
    """A COCO folder of `count` pictures with one box each; `change` replaces tables."""
    names = [f"{split}{i}.png" for i in range(count)]
    for name in names:
        picture(root / "images" / name)
    images = [
        {"id": i + 1, "file_name": name, "width": SIZE[0], "height": SIZE[1]}
        for i, name in enumerate(names)
    ]
    boxes = boxes or [[5, 5, 20, 20]] * count
    rows = [
        {
            "id": i + 1,
            "image_id": 1 + i % count,
            "category_id": 1,
            "bbox": box,
            "area": 1,
            "iscrowd": 0,
        }
        for i, box in enumerate(boxes)
    ]
    data = {
        "images": images,
        "annotations": rows,
        "categories": categories or [{"id": 1, "name": "cup"}],
    } | change
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / f"annotations/instances_{split}.json").write_text(json.dumps(data))
    return root


VOC_OBJECT = (
    "<object><name>{}</name>\n<bndbox><xmin>{}</xmin><ymin>{}</ymin>"
    "<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>\n"
)


def voc(root, objects, lists=None, declared=None, suffix=".png", **how):
    """A VOC folder: `objects` {stem: [(name, x1, y1, x2, y2), ...]}."""
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    for stem, found in objects.items():
        picture(root / f"JPEGImages/{stem}{suffix}", **how)
        size = (
            "<size><width>{}</width><height>{}</height></size>".format(*declared)
            if declared
            else ""
        )
        (root / f"Annotations/{stem}.xml").write_text(
            f"<annotation>{size}\n"
            + "".join(VOC_OBJECT.format(*one) for one in found)
            + "</annotation>"
        )
    for split, stems in (lists or {}).items():
        (root / "ImageSets").mkdir(exist_ok=True)
        (root / f"ImageSets/{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    return root


def dota(root, texts):
    (root / "labelTxt").mkdir(parents=True, exist_ok=True)
    for stem, text in texts.items():
        picture(root / f"images/{stem}.png")
        (root / f"labelTxt/{stem}.txt").write_bytes(text.encode())
    return root


def whats(dataset):
    return " | ".join(map(str, dataset.defects))


def refused(word, *arguments, **options):
    with pytest.raises(BadInput) as caught:
        open_data(*arguments, **options)
    assert word in str(caught.value) and "\n" not in str(caught.value), str(caught.value)
    return str(caught.value)


def show(*words):
    return main(["data", "show", *map(str, words), "--count", "0"])


# -- paths and files


def test_wrong_path(tmp_path, capsys):
    refused("does not exist", tmp_path / "nowhere")
    assert show(tmp_path / "nowhere") == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_empty_folder(tmp_path):
    refused("neither pictures", tmp_path)
    assert show(tmp_path) == 2


def test_labels_without_any_picture(tmp_path):
    root = coco(tmp_path)
    shutil.rmtree(root / "images")
    refused("not one of 2 images can be read", root)
    assert show(root) == 2


def test_missing_picture_is_skipped(tmp_path):
    root = coco(tmp_path)
    (root / "images/train1.png").unlink()
    found = open_data(root)
    assert len(found) == 1 and "images[1]" in whats(found) and "missing" in whats(found)
    assert show(root) == 0


@pytest.mark.parametrize(
    "train, val", [("train", "val"), ("train2017", "val2017"), ("images/train", "images/val")]
)
def test_missing_picture_is_not_taken_from_another_split(tmp_path, train, val):
    for name, split in ((train, "train"), (val, "val")):
        root = coco(tmp_path, split)
        (root / name).mkdir(parents=True)
        for i, old in enumerate(sorted((root / "images").glob(f"{split}*.png"))):
            old.rename(root / name / f"{i}.png")
        file = root / f"annotations/instances_{split}.json"
        file.write_text(
            file.read_text()
            .replace(f'"{split}0.png"', '"0.png"')
            .replace(f'"{split}1.png"', '"1.png"')
        )
    (root / val / "1.png").unlink()
    found = open_data(root, "val")
    assert [record.path for record in found.records] == [root / val / "0.png"] and len(
        open_data(root, "train").records
    ) == 2
    assert any("1.png" in str(defect) for defect in found.defects)


@pytest.mark.parametrize(
    "text",
    [
        '{"images": [',
        "[]",
        '{"images": [], "annotations": []}',
        '{"images": {}, "categories": [], "annotations": []}',
        "not JSON",
    ],
)
def test_json_that_cannot_be_read(tmp_path, text):
    (tmp_path / "labels.json").write_text(text)
    picture(tmp_path / "a.png")
    refused("labels.json", tmp_path)
    assert show(tmp_path) == 2 and show(tmp_path / "labels.json") == 2


@pytest.mark.parametrize(
    "change",
    [
        {"bbox": "1 2 3 4"},
        {"bbox": [1, 2, 3]},
        {"bbox": [1, 2, None, 4]},
        {"image_id": None},
        {"category_id": "cup"},
    ],
)
def test_annotation_of_a_wrong_type(tmp_path, change):
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20]}
    sound = row | {"id": 2, "image_id": 2}
    found = open_data(coco(tmp_path, annotations=[row | change, sound]))
    assert [len(record.objects) for record in found.records] == [0, 1]
    assert "annotations[0]" in whats(found) and next(iter(change)) in whats(found)
    assert show(tmp_path) == 0


def test_xml_that_cannot_be_read(tmp_path):
    root = voc(tmp_path, {"a": [("cup", 5, 5, 20, 20)]})
    (root / "Annotations/a.xml").write_text("<annotation>\n<object>\n</annotation>")
    assert "a.xml:3" in refused("not valid XML", root)
    (root / "Annotations/a.xml").write_text(
        "<annotation>\n<object><name>cup</name></object></annotation>"
    )
    assert "a.xml:2" in refused("has no <bndbox>", root)
    assert show(root) == 2


# -- pictures


def test_truncated_jpeg_is_found_at_once(tmp_path):
    root = voc(
        tmp_path, {"a": [("cup", 5, 5, 20, 20)], "b": [("cup", 5, 5, 20, 20)]}, suffix=".jpg"
    )
    whole = (root / "JPEGImages/b.jpg").read_bytes()
    (root / "JPEGImages/b.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    found = open_data(root)
    assert len(found) == 1 and "b.jpg" in whats(found)
    (root / "JPEGImages/a.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    refused("can be read", root)
    assert show(root) == 2


def test_jpeg_that_breaks_after_opening(tmp_path):
    root = voc(tmp_path, {"a": [("cup", 5, 5, 20, 20)]}, suffix=".jpg")
    found = open_data(root)
    whole = (root / "JPEGImages/a.jpg").read_bytes()
    (root / "JPEGImages/a.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(BadInput, match="a.jpg"):
        found.load(0)


def test_damage_that_only_a_decode_finds(tmp_path):
    root = voc(tmp_path, {"a": [("cup", 5, 5, 20, 20)], "b": [("cup", 5, 5, 20, 20)]})
    Image.effect_noise(SIZE, 60).save(root / "JPEGImages/b.png")
    whole = (root / "JPEGImages/b.png").read_bytes()
    (root / "JPEGImages/b.png").write_bytes(
        whole[:1000] + bytes(300) + whole[1300:]
    )  # head and end mark are fine
    assert len(open_data(root)) == 2
    with pytest.raises(BadInput, match="b.png"):
        open_data(root).load(1)
    report = survey(root)
    assert (
        report.images == 1
        and any("b.png" in defect.where for defect in report.defects)
        and show(root) == 0
    )


def test_text_that_calls_itself_a_picture(tmp_path):
    root = voc(tmp_path, {"a": [("cup", 5, 5, 20, 20)], "b": []})
    (root / "JPEGImages/b.png").write_text("hello")
    assert len(open_data(root)) == 1 and "b.png" in whats(open_data(root))


@pytest.mark.parametrize("mode", ["I;16", "P", "L", "LA", "RGBA", "1", "CMYK"])
def test_kinds_of_pictures(tmp_path, mode):
    suffix = ".jpg" if mode == "CMYK" else ".png"
    image = (
        open_data(voc(tmp_path, {"a": [("cup", 5, 5, 20, 20)]}, mode=mode, suffix=suffix))
        .load(0)
        .image
    )
    assert image.dtype == torch.uint8 and image.shape == (3, SIZE[1], SIZE[0])
    assert image[:, :, -1].float().mean() > 200 and image[:, :, 0].float().mean() < 60


@pytest.mark.parametrize("exif", range(2, 9))
def test_exif_turn_with_boxes_on_the_turned_frame(tmp_path, exif):
    seen = SIZE[::-1] if exif >= 5 else SIZE
    found = open_data(
        voc(tmp_path, {"a": [("cup", 5, 5, 20, 40)]}, declared=seen, suffix=".jpg", exif=exif)
    )
    assert (found.records[0].width, found.records[0].height) == seen and not found.defects
    assert found.load(0).image.shape == (3, seen[1], seen[0]) and found.records[0].objects.boxes[
        0
    ].tolist() == [5, 5, 20, 40]
    assert any("EXIF" in sentence for sentence in found.said) == (exif > 1)


def test_exif_turn_with_boxes_on_the_stored_frame(tmp_path):
    found = open_data(
        voc(tmp_path, {"a": [("cup", 40, 5, 60, 20)]}, declared=SIZE, suffix=".jpg", exif=6)
    )
    assert found.load(0).image.shape == (3, SIZE[1], SIZE[0]) and found.records[0].objects.boxes[
        0
    ].tolist() == [40, 5, 60, 20]
    assert any("as stored" in sentence for sentence in found.said) and not found.defects


def test_declared_size_that_is_wrong(tmp_path):
    found = open_data(voc(tmp_path, {"a": [("cup", 5, 5, 20, 20)]}, declared=(640, 480)))
    assert (
        found.records[0].width,
        found.records[0].height,
    ) == SIZE and "declares a size of 640 x 480" in whats(found)


# -- boxes

BAD = {
    "zero": [10, 10, 0, 0],
    "inverted": [30, 30, -10, -10],
    "outside": [100, 5, 20, 20],
    "nan": [math.nan, 5, 10, 10],
    "infinite": [5, 5, math.inf, 10],
}
WORDS = {
    "zero": "no width and no height",
    "inverted": "ends before it begins",
    "outside": "lies outside",
    "nan": "not a finite number",
    "infinite": "not a finite number",
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("geometry", [Upright(), Rotated("le90")])
def test_bad_boxes_in_coco(tmp_path, kind, geometry):
    found = open_data(coco(tmp_path, boxes=[[5, 5, 20, 20], BAD[kind]]), geometry=geometry)
    assert [len(record.objects) for record in found.records] == [1, 0]
    assert WORDS[kind] in whats(found) and "instances_train.json:annotations[1]" in whats(found)
    report = survey(tmp_path)
    assert report.objects == 2 and report.usable == 1 and show(tmp_path) == 0


@pytest.mark.parametrize("kind", BAD)
def test_bad_boxes_in_voc_and_dota(tmp_path, kind):
    x, y, w, h = BAD[kind]
    x2, y2 = x + w, y + h
    found = open_data(voc(tmp_path / "voc", {"a": [("cup", 5, 5, 20, 20), ("cup", x, y, x2, y2)]}))
    assert (
        len(found.records[0].objects) == 1
        and WORDS[kind] in whats(found)
        and "a.xml:4" in whats(found)
    )
    if kind == "inverted":
        return  # four corners have no direction to invert
    found = open_data(
        dota(
            tmp_path / "dota",
            {"a": f"5 5 20 5 20 20 5 20 cup 0\n{x} {y} {x2} {y} {x2} {y2} {x} {y2} cup 0"},
        )
    )
    assert len(found.records[0].objects) == 1 and "a.txt:2" in whats(found)


def test_box_that_leaves_the_picture_is_cut(tmp_path):
    found = open_data(coco(tmp_path, boxes=[[50, 5, 30, 20], [-0.4, 0, 30, 20]]))
    assert found.records[0].objects.boxes.tolist() == [
        [50, 5, 64, 25]
    ] and "leaves the image" in whats(found)
    assert (
        found.records[1].objects.boxes[0, 0] == 0 and len(found.defects) == 1
    )  # rounding is no defect


def test_picture_without_objects_is_kept(tmp_path):
    for root in (
        voc(tmp_path / "voc", {"a": [("cup", 5, 5, 20, 20)], "b": []}),
        dota(tmp_path / "dota", {"a": "5 5 20 5 20 20 5 20 cup 0", "b": ""}),
        coco(
            tmp_path / "coco",
            annotations=[
                {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 9, 9], "iscrowd": 0}
            ],
        ),
    ):
        found = open_data(root)
        assert [len(record.objects) for record in found.records] == [1, 0] and not found.defects
        empty = found.load(1).objects
        assert (
            empty.boxes.shape == (0, found.geometry.dim)
            and empty.labels.dtype == torch.int64
            and empty.ignore.dtype == torch.bool
        )


def test_no_object_at_all(tmp_path):
    root = voc(tmp_path, {"a": [], "b": []})
    refused("no object", root)
    assert len(open_data(root, classes=("cup",))) == 2 and show(root) == 0


# -- ids and names


def test_duplicate_image_ids(tmp_path):
    images = [{"id": 1, "file_name": f"train{i}.png", "width": 64, "height": 48} for i in range(2)]
    found = open_data(coco(tmp_path, images=images, boxes=[[5, 5, 20, 20]]))
    assert len(found) == 1 and "images[1]" in whats(found) and "used twice" in whats(found)


def test_duplicate_annotation_and_category_ids(tmp_path):
    rows = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5 + i, 5, 9, 9], "iscrowd": 0}
        for i in range(2)
    ]
    found = open_data(
        coco(
            tmp_path,
            annotations=rows,
            categories=[{"id": 1, "name": "cup"}, {"id": 1, "name": "mug"}],
        )
    )
    assert found.classes == ("cup",) and len(found.records[0].objects) == 2
    assert "annotations[1]" in whats(found) and "categories[1]" in whats(found)


def test_ids_that_point_nowhere(tmp_path):
    rows = [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [5, 5, 9, 9]},
        {"id": 2, "image_id": 77, "category_id": 1, "bbox": [5, 5, 9, 9]},
        {"id": 3, "image_id": 1, "category_id": 77, "bbox": [5, 5, 9, 9]},
    ]
    found = open_data(coco(tmp_path, annotations=rows))
    assert (
        len(found.records[0].objects) == 1
        and "image_id 77" in whats(found)
        and "category_id 77" in whats(found)
    )


def test_category_ids_with_gaps(tmp_path):
    rows = [
        {"id": i, "image_id": 1, "category_id": c, "bbox": [5, 5, 9, 9], "iscrowd": 0}
        for i, c in enumerate((90, 3, 44))
    ]
    found = open_data(
        coco(
            tmp_path,
            annotations=rows,
            categories=[{"id": 90, "name": "z"}, {"id": 3, "name": "b"}, {"id": 44, "name": "a"}],
        )
    )
    assert found.classes == ("b", "a", "z") and found.records[0].objects.labels.tolist() == [
        2,
        0,
        1,
    ]
    assert any("gaps" in sentence for sentence in found.said) and not found.defects


def test_coco_labels_do_not_depend_on_the_split(tmp_path):
    coco(tmp_path, "train", categories=[{"id": 1, "name": "cup"}, {"id": 2, "name": "mug"}])
    coco(tmp_path, "val", categories=[{"id": 1, "name": "mug"}])  # a subset, numbered otherwise
    train, val = open_data(tmp_path, "train"), open_data(tmp_path, "val")
    assert train.classes == val.classes == ("cup", "mug")
    assert train.records[0].objects.labels.tolist() == [0] and val.records[
        0
    ].objects.labels.tolist() == [1]


def test_class_names_that_differ_between_train_and_test(tmp_path):
    root = voc(
        tmp_path,
        {"a": [("cup", 5, 5, 20, 20)], "b": [("Cup", 5, 5, 20, 20)]},
        {"train": ["a"], "test": ["b"]},
    )
    for split in ("train", "test"):
        sentence = refused("classes that train lacks", root, split)
        assert "train has cup" in sentence and "test has Cup" in sentence
    assert open_data(root, "train", ignore_classes=("Cup",)).classes == ("cup",)
    assert show(root) == 0 and any("train lacks" in defect.what for defect in survey(root).defects)


def test_voc_labels_do_not_depend_on_the_split(tmp_path):
    root = voc(
        tmp_path,
        {"a": [("cup", 5, 5, 20, 20), ("bowl", 5, 5, 20, 20)], "b": [("cup", 5, 5, 20, 20)]},
        {"train": ["a"], "test": ["b"]},
    )
    assert open_data(root, "train").classes == open_data(root, "test").classes == ("bowl", "cup")
    assert open_data(root, "test").records[0].objects.labels.tolist() == [1]


def test_a_models_classes(tmp_path):
    root = voc(tmp_path, {"a": [("cup", 5, 5, 20, 20)]})
    assert open_data(root, classes=("bowl", "cup")).records[0].objects.labels.tolist() == [1]
    sentence = refused("not among the model's", root, classes=("bowl", "plate"))
    assert "cup" in sentence and "bowl, plate" in sentence


def test_unknown_ignored_class_labels_and_split(tmp_path):
    root = voc(tmp_path, {"a": [("cup", 5, 5, 20, 20)]})
    refused("no class 'mug' to ignore", root, ignore_classes=("mug",))
    refused("no labels called", root, labels="other")
    refused("not a split", root, "training")


def test_crowd_difficult_and_ignored_classes(tmp_path):
    rows = [
        {"id": i, "image_id": 1, "category_id": 1, "bbox": [5, 5, 9, 9], "iscrowd": i}
        for i in range(2)
    ]
    assert open_data(coco(tmp_path / "coco", annotations=rows)).records[
        0
    ].objects.ignore.tolist() == [False, True]
    found = open_data(
        dota(tmp_path / "dota", {"a": "5 5 20 5 20 20 5 20 cup 1\n5 5 20 5 20 20 5 20 mug 0"}),
        ignore_classes=("mug",),
    )
    assert (
        found.classes == ("cup",)
        and found.records[0].objects.ignore.tolist() == [True, True]
        and found.records[0].objects.labels.tolist() == [0, -1]
    )


# -- text labels


def test_dota_as_real_files_have_it(tmp_path):
    text = "imagesource:GoogleEarth\r\ngsd:0.1\r\n5 5 20 5 20 20 5 20 small vehicle 0\r\n30 30 40 30 40 40 30 40 ship"
    found = open_data(dota(tmp_path, {"a": text}))
    assert (
        found.classes == ("ship", "small vehicle")
        and found.geometry == Rotated()
        and not found.defects
    )
    assert found.records[0].lines[0].endswith("a.txt:3") and found.records[0].objects.polygons[0][
        0
    ].shape == (4, 2)
    assert open_data(tmp_path, geometry=Upright()).records[0].objects.boxes.tolist() == [
        [5, 5, 20, 20],
        [30, 30, 40, 40],
    ]


def test_dota_lines_glued_together(tmp_path):
    found = open_data(
        dota(
            tmp_path,
            {
                "a": "5 5 20 5 20 20 5 20 cup 05 5 20 5 20 20 5 20 cup 0\n5 5 20 5 20 20 5 20 cup 0\n"
            },
        )
    )
    assert (
        len(found.records[0].objects) == 1 and "a.txt:1" in whats(found) and "glued" in whats(found)
    )


def test_yolo_text_without_names_is_read_by_numbers(tmp_path):
    picture(tmp_path / "images/a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    found = open_data(tmp_path, "train")
    assert found.classes == ("0",) and "called by their numbers" in " ".join(found.said)
    assert show(tmp_path) == 0


def test_degrees_for_radians(tmp_path):
    picture(tmp_path / "images/a.png")
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml/a.xml").write_text(
        "<annotation><object><name>car</name><robndbox><cx>30</cx><cy>20</cy><w>9</w>\n"
        "<h>5</h><angle>45</angle></robndbox></object></annotation>"
    )
    sentence = refused("degrees", tmp_path)
    assert "a.xml:1" in sentence and "pi/180" in sentence and show(tmp_path) == 2


# -- splits


def test_splits_by_folder_and_stems_that_repeat(tmp_path):
    for split, x in (("train", 5), ("valid", 15), ("test", 25)):
        picture(tmp_path / split / "images/1.png", mode="L")
        (tmp_path / split / "labelTxt").mkdir()
        (tmp_path / split / "labelTxt/1.txt").write_text(f"{x} 5 {x + 9} 5 {x + 9} 20 {x} 20 cup 0")
    picture(tmp_path / "unlabelled/1.png")
    assert splits(tmp_path) == {"train": 1, "valid": 1, "test": 1, "unlabelled": 1}
    for split, x in (("train", 5), ("val", 15), ("valid", 15), ("test", 25)):
        found = open_data(tmp_path, split, geometry=Upright())
        assert found.records[0].objects.boxes[0, 0] == x and found.records[0].path.parts[-3] == (
            "valid" if split == "val" else split
        )
    assert len(open_data(tmp_path, "unlabelled")) == 1 and len(open_data(tmp_path)) == 3
    assert len({record.image_id for record in open_data(tmp_path).records}) == 3


def test_missing_parts_are_derived_and_said(tmp_path):
    root = voc(tmp_path, {f"p{i:02}": [("cup", 5, 5, 20, 20)] for i in range(30)})
    train, val, test = (open_data(root, split) for split in ("train", "val", "test"))
    assert (len(train), len(val)) == (27, 3) and [r.path for r in test.records] == [
        r.path for r in val.records
    ]
    assert not {r.path for r in train.records} & {r.path for r in val.records}
    assert any("tenth" in sentence for sentence in val.said) and any(
        "under test" in sentence for sentence in test.said
    )
    assert len(open_data(root)) == 30


def test_trainval_overlaps_its_parts(tmp_path):
    root = voc(
        tmp_path, {stem: [("cup", 5, 5, 20, 20)] for stem in "abc"}, {"trainval": "abc", "val": "c"}
    )
    assert len(open_data(root, "train")) == 2 and len(open_data(root, "trainval")) == 3
    report = survey(root)
    assert report.images == 3 and report.objects == 3 and report.splits["trainval"]["images"] == 3


def test_lists_in_main_and_names_without_labels(tmp_path):
    root = voc(tmp_path, {stem: [("cup", 5, 5, 20, 20)] for stem in "ab"})
    (root / "ImageSets/Main").mkdir(parents=True)
    (root / "ImageSets/Main/train.txt").write_text("a\nzzz\n")
    (root / "ImageSets/Main/test.txt").write_text("b\n")
    (root / "ImageSets/Main/cup_train.txt").write_text("a 1\n")
    assert splits(root) == {"train": 1, "test": 1} and "train.txt:2" in whats(
        open_data(root, "train")
    )


def test_benchmark_test_set_without_labels(tmp_path):
    root = voc(
        tmp_path,
        {stem: [("cup", 5, 5, 20, 20)] for stem in "ab"},
        {"train": "a", "val": "b", "test": "x"},
    )
    picture(root / "JPEGImages/x.png")
    found = open_data(root, "test")
    assert len(found) == 1 and any(
        "none of which has labels" in sentence for sentence in found.said
    )


# -- the real sets, counted as their own pages count them

REAL = {
    "bccd": (
        None,
        292,
        3214,
        {"train": (155, 2076), "val": (44, 597), "test": (43, 541), "unlabelled": (50, 0)},
        {"RBC": 2738, "WBC": 251, "Platelets": 225},
    ),
    "nuts_seg": (
        None,
        12,
        113,
        {"train": (8, 76), "val": (4, 37)},
        {"date": 47, "fig": 31, "hazelnut": 35},
    ),
    "trash_obb": (
        None,
        148,
        843,
        {"train": (84, 555), "valid": (35, 188), "test": (29, 100)},
        {
            "bottle": 259,
            "drink-cans": 347,
            "cups": 63,
            "drink-packets": 60,
            "styrofoam": 58,
            "wrappers": 53,
            "plastic-trash": 3,
        },
    ),
}
HIT_UAV = {"Person": 878, "Car": 700, "Bicycle": 488, "OtherVehicle": 30, "DontCare": 36}
for _labels in ("rotate_xml", "normal_xml", "normal_json", "rotate_json", "labelTxt_derived"):
    REAL[f"hit_uav {_labels}"] = (
        _labels,
        280,
        2132,
        {"train": (140, 1269), "val": (40, 399), "test": (45, 464), "unlabelled": (55, 0)},
        HIT_UAV,
    )


@pytest.mark.parametrize("name", REAL)
def test_real_sets(real, name):
    labels, images, objects, parts, classes = REAL[name]
    report = survey(real(name.split()[0]), labels, verify=20)
    assert (report.images, report.objects, report.classes) == (images, objects, classes)
    assert {
        split: (counts["images"], counts["objects"]) for split, counts in report.splits.items()
    } == parts


def test_defects_of_the_real_sets(real):
    bccd = survey(real("bccd"), verify=0).defects
    assert sorted((d.where.rsplit("/")[-1].split(".")[0]) for d in bccd) == [
        "BloodImage_00338",
        "BloodImage_00343",
    ]
    assert survey(real("hit_uav"), "normal_xml", verify=0).defects == []
    rough = " ".join(d.what for d in survey(real("hit_uav"), "normal_json", verify=0).defects)
    assert (
        "filename" in rough
        and "'annotations'" in rough
        and "begin at 0" in rough
        and "iscrowd" in rough
    )
    assert all("leaves the image" in d.what for d in survey(real("trash_obb"), verify=0).defects)


def test_five_label_sets_agree(real):
    """The same cars in four files of turned boxes and in two of upright ones."""
    root = real("hit_uav")
    classes = ("Person", "Car", "Bicycle", "OtherVehicle", "DontCare")
    opened = {
        name: open_data(root, "test", name, geometry=Rotated(), classes=classes)
        for name in ("rotate_xml", "rotate_json", "labelTxt_derived")
    }
    hulls = {
        name: open_data(root, "test", name, geometry=Upright(), classes=classes)
        for name in ("rotate_xml", "normal_xml", "normal_json")
    }
    for found in (opened, hulls):
        sets = [
            {record.path.name: record.objects for record in data.records} for data in found.values()
        ]
        for name, objects in sets[0].items():
            for other in sets[1:]:
                assert len(objects) == len(other[name])
                if not len(objects):
                    continue
                geometry = Rotated() if objects.boxes.shape[1] == 5 else Upright()
                hull = geometry.enclosing_upright(objects.boxes)
                hull_ = geometry.enclosing_upright(other[name].boxes)
                gap = torch.cdist(hull, hull_, p=math.inf)
                assert gap.min(1).values.max() < (0.1 if found is opened else 1.6)
                assert (objects.labels[:, None] == other[name].labels)[
                    torch.arange(len(objects)), gap.argmin(1)
                ].all() or gap.min(1).values.max() > 0.1


def test_rotated_methods_prefer_rotated_labels(real):
    assert OpenedFolder(real("hit_uav"), geometry=Rotated()).source.name == "rotate_xml"
    assert OpenedFolder(real("hit_uav"), geometry=Upright()).source.name == "normal_xml"


def test_show_as_json(real, capsys):
    assert main(["data", "show", str(real("bccd")), "--json", "--count", "0"]) == 0
    found = json.load(io.StringIO(capsys.readouterr().out))
    assert (found["images"], found["objects"], len(found["classes"]), len(found["defects"])) == (
        292,
        3214,
        3,
        2,
    )
    assert {"file", "line", "what", "where"} <= set(found["defects"][0]) and isinstance(
        found["defects"][0]["line"], int
    )


def test_endless_whole_numbers_of_json_are_no_traceback(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text('{"id": 12, "a": 123456789012345678, "b": -' + "9" * 400 + ', "c": 1.5}')
    assert (
        read_json(path)
        == load_json(path)
        == {"id": 12, "a": 123456789012345678, "b": -math.inf, "c": 1.5}
    )
