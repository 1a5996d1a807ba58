"""How COCO JSON is read: the cases that were found in the field, each with its right value, and their neighbours."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from madet.boxes.errors import BadInput
from madet.boxes.geometry import Rotated, Upright
from madet.cli import main
from madet.data.duplicates import between_parts
from madet.data.open_folder import OpenedFolder, open_data
from madet.data.report import survey
from madet.metrics.dota import as_quads

HALF = math.pi / 2


@pytest.fixture
def field(shared):
    """A function from `upright/NAME` or `rotated/NAME` to its folder; skips where it is absent."""

    def folder(name):
        if not (shared / "field" / name).is_dir():
            pytest.skip(f"no {name} in {shared}/field")
        return shared / "field" / name

    return folder


def picture(path, color=0, size=(64, 48)):
    """A picture that no other color's has the bytes of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), color, np.uint8)).save(path)
    return path


def coco(root, rows, count=2, name="labels.json", **tables):
    """A folder with a JSON of `count` pictures; a row of annotations lies on picture 1 where it says nothing else."""
    names = [f"{name.partition('.')[0]}{i}.png" for i in range(count)]
    for i, file_name in enumerate(names):
        picture(root / "images" / file_name, color=i + 20 * len(name))
    images = [
        {"id": i, "file_name": file_name, "width": 64, "height": 48}
        for i, file_name in enumerate(names, 1)
    ]
    sound = {"image_id": 1, "category_id": 1, "iscrowd": 0}
    rows = [
        {"id": i, **sound, **row} if isinstance(row, dict) else row for i, row in enumerate(rows)
    ]
    whole = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "cup"}]}
    (root / name).write_text(json.dumps(whole | tables))
    return root


def boxes_of(found):
    return [record.objects.boxes.tolist() for record in found.records]


def whats(found):
    return " | ".join(str(defect) for defect in found.defects)


def refused(root, **options):
    with pytest.raises(BadInput) as caught:
        open_data(root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


BOX = {"bbox": [5, 5, 20, 20]}
OUTLINE = {"segmentation": [[5, 5, 25, 5, 25, 25, 5, 25]]}

# -- boxes


@pytest.mark.parametrize("name", ["coco_bbox_missing", "coco_bbox_empty"])
def test_field_box_from_the_outline(field, name):
    found = open_data(field(f"upright/{name}"))
    assert boxes_of(found) == [[[5, 5, 25, 25]], [[5, 5, 25, 25]]]
    assert "annotations[1].bbox" in whats(found) and len(found.defects) == 1


@pytest.mark.parametrize(
    "box", [{}, {"bbox": None}, {"bbox": []}, {"bbox": [1, 2]}, {"bbox": "x"}, {"bbox": [0] * 4}]
)
@pytest.mark.parametrize("geometry", [Upright(), Rotated()])
def test_broken_box(tmp_path, box, geometry):
    runs = {"segmentation": {"size": [48, 64], "counts": [245, 20, 28, 20, 2759]}}
    found = open_data(coco(tmp_path, [BOX, box, box | OUTLINE, box | runs]), geometry=geometry)
    hulls = geometry.enclosing_upright(found.records[0].objects.boxes)
    assert hulls.tolist() == [[5, 5, 25, 25], [5, 5, 25, 25], [5, 5, 7, 25]]
    where = [defect.where.rpartition(":")[2] for defect in found.defects]
    kept = "annotations[1]" if box.get("bbox") == [0] * 4 else "annotations[1].bbox"
    assert sorted(where) == sorted([kept, "annotations[2].bbox", "annotations[3].bbox"])


def test_numbers_as_text(tmp_path):
    found = open_data(coco(tmp_path, [{"bbox": ["5", "5.0", "20", " 20"]}]))
    assert boxes_of(found)[0] == [[5, 5, 25, 25]] and not found.defects


def test_field_shares_are_refused(field):
    assert "shares of the picture's sides" in refused(field("upright/coco_relative_boxes"))


@pytest.mark.parametrize(
    "boxes",
    [
        [[0.1, 0.2, 0.4, 0.6]],
        [[0.1, 0.2, 0.95, 0.9], [0.5, 0.5, 0.9, 0.8]],  # corners as shares
        [[0.1, 0.2, 0.4, 0.6]] * 19 + [[5, 5, 20, 20]],  # one box by hand
        [[0.1, -0.001, 0.4, 1.0005]] * 4,  # rounded
    ],
)
def test_shares_are_refused(tmp_path, boxes):
    said = refused(coco(tmp_path, [{"bbox": box} for box in boxes]))
    assert "labels.json:annotations[0]" in said and "shares" in said


def test_small_boxes_are_no_shares(tmp_path):
    boxes = [[0, 0, 1, 1], [0.5, 0.5, 2.5, 2.5], [10.5, 3.2, 0.9, 0.9]]
    assert len(open_data(coco(tmp_path, [{"bbox": box} for box in boxes])).records[0].objects) == 3


def test_shares_in_one_of_two_files_are_refused(tmp_path):
    coco(tmp_path, [BOX], name="train.json")
    coco(tmp_path, [{"bbox": [0.1, 0.2, 0.4, 0.6]}], name="val.json")
    assert "val.json" in refused(tmp_path)


def test_field_corners_as_sizes(field):
    found = open_data(field("upright/coco_xyxy_boxes"))
    hints = [defect.what for defect in found.defects if "right - left" in defect.what]
    assert len(hints) == 1 and "4 of 4 boxes" in hints[0]


def test_no_hint_where_corners_do_not_fit(tmp_path):
    leaving = [{"bbox": [40, 30, 30, 25]}] * 4  # read as corners: right of its right side
    assert "right - left" not in whats(open_data(coco(tmp_path / "a", leaving)))
    inside = [{"bbox": [5, 5, 30, 30]}] * 4
    assert not open_data(coco(tmp_path / "b", inside)).defects


# -- ids and rows


@pytest.mark.parametrize("name", ["float_ids", "string_category_id", "string_image_id"])
def test_field_ids(field, name):
    found = open_data(field(f"upright/coco_{name}"))
    assert boxes_of(found) == [[[5, 5, 25, 25]], [[5, 5, 25, 25]]] and found.classes == ("cup",)
    assert [type(record.image_id) for record in found.records] == [int, int]
    assert ("matched by value" in whats(found)) == (name == "string_image_id")


def test_ids_that_are_alike_stay_apart(tmp_path):
    images = [
        {"id": i, "file_name": f"labels{k}.png", "width": 64, "height": 48}
        for k, i in enumerate((7, "7"))
    ]
    rows = [{"image_id": 7, **BOX}, {"image_id": "7", "bbox": [30, 10, 9, 9]}, {"image_id": "07"}]
    found = open_data(coco(tmp_path, rows, images=images))
    assert boxes_of(found) == [[[5, 5, 25, 25]], [[30, 10, 39, 19]]]
    assert "image_id 07 is in no entry" in whats(found) and len(found.defects) == 1
    assert [record.image_id for record in found.records] == [7, "7"]


@pytest.mark.parametrize(
    "row, word",
    [
        ("text", "is a text and no object"),
        (None, "is null and no object"),
        ({"image_id": None}, "null as 'image_id'"),
        ({"image_id": [1]}, "a list as 'image_id'"),
        ({"category_id": True}, "true or false as 'category_id'"),
        ({"image_id": 99}, "image_id 99 is in no entry of images"),
        ({"category_id": "mug"}, "category_id mug is in no entry of categories"),
        ({"bbox": [10**400, 1, 2, 3]}, "finite"),
        ({"segmentation": {"size": [9, 9], "counts": [1, 99]}}, "run lengths"),
        ({"segmentation": [[1, 2]]}, "three corners"),
    ],
)
def test_one_broken_row(tmp_path, row, word):
    row = BOX | row if isinstance(row, dict) else row
    found = open_data(coco(tmp_path, [row, BOX]))
    assert boxes_of(found)[0][-1] == [5, 5, 25, 25]
    assert word in whats(found) and "annotations[0]" in whats(found)
    assert survey(tmp_path).usable >= 1


def test_rows_that_lack_a_key(tmp_path):
    coco(tmp_path, [BOX, BOX])
    whole = json.loads((tmp_path / "labels.json").read_text())
    del whole["annotations"][0]["image_id"]
    whole["images"] += [{"file_name": "x.png"}, {"id": 5}, 3]
    whole["categories"] += [{"name": "mug"}]
    (tmp_path / "labels.json").write_text(json.dumps(whole))
    found = open_data(tmp_path)
    assert len(found.records[0].objects) == 1
    for place in ("annotations[0]", "images[2]", "images[3]", "images[4]", "categories[1]"):
        assert f"labels.json:{place}" in whats(found)


def test_many_broken_rows_are_counted(tmp_path):
    found = open_data(coco(tmp_path, [OUTLINE] * 500))
    assert len(found.records[0].objects) == 500 and len(found.defects) < 30
    assert "480 more rows have defects of this kind: bbox" in whats(found)


@pytest.mark.parametrize(
    "tables", [{"images": None}, {"annotations": {}}, {"categories": "cup"}, {"images": [1, {}]}]
)
def test_broken_tables_are_refused(tmp_path, tables):
    assert "labels.json" in refused(coco(tmp_path, [BOX], **tables))


def test_field_size_null(field):
    found = open_data(field("upright/coco_size_null"))
    assert (found.records[0].width, found.records[0].height) == (64, 48) and not found.defects


# -- classes


def test_field_namesakes(field):
    found = open_data(field("upright/coco_same_category_name"))
    assert found.classes == ("left", "left (id 2)")
    assert found.records[0].objects.labels.tolist() == [0, 1]
    assert any("2 categories called 'left'" in said for said in found.said)


def test_field_number_as_name(field):
    assert open_data(field("upright/coco_number_name")).classes == ("0", "1")


def test_field_parent_without_objects(field):
    found = open_data(field("upright/coco_roboflow_root_class"), "train")
    assert found.classes == ("cup", "mug")
    assert any("'things'" in said and "parent" in said for said in found.said)
    assert "begin at 0" not in whats(found)


def test_parents_are_settled_by_the_whole_set(tmp_path):
    tables = {
        "categories": [
            {"id": 0, "name": "things", "supercategory": "none"},
            {"id": 1, "name": "cup", "supercategory": "things"},
            {"id": 2, "name": "unused", "supercategory": "things"},
        ]
    }
    coco(tmp_path, [BOX], name="train.json", **tables)
    coco(tmp_path, [BOX], name="val.json", **tables)
    assert open_data(tmp_path, "train").classes == ("cup", "unused")
    coco(tmp_path, [BOX, BOX | {"category_id": 0}], name="val.json", **tables)
    for split in ("train", "val"):
        assert open_data(tmp_path, split).classes == ("things", "cup", "unused")


def test_project_called_like_its_class(tmp_path):
    categories = [{"id": 0, "name": "cup"}, {"id": 1, "name": "cup", "supercategory": "cup"}]
    assert open_data(coco(tmp_path, [BOX], categories=categories)).classes == ("cup",)


# -- flags


def test_field_ignore_flag(field):
    found = open_data(field("upright/coco_ignore_flag"), "test")
    assert sum(len(record.objects) for record in found.records) == 8
    assert not any(record.objects.ignore.any() for record in found.records)
    assert any("4 annotations" in said and "'ignore'" in said for said in found.said)


def test_field_all_crowds(field, capsys, tmp_path):
    root = field("upright/coco_iscrowd_all")
    sentence = "all 3 objects are crowds (iscrowd = 1); set it to 0"
    assert main(["data", "show", str(root), "--count", "0"]) == 0
    assert sentence in capsys.readouterr().out
    words = ["train", "--data", str(root), "--out", str(tmp_path / "run"), "--steps", "1"]
    assert main([*words, "--scale", "thimble"]) == 2
    assert sentence in capsys.readouterr().err


def test_flags_as_text(tmp_path):
    rows = [BOX | {"iscrowd": flag} for flag in ("0", "1", 0.0, True, None, "false")]
    found = open_data(coco(tmp_path, rows))
    assert found.records[0].objects.ignore.tolist() == [False, True, False, True, False, False]


# -- other files


def test_field_beside_other_json(field):
    found = open_data(field("upright/coco_beside_other_json"))
    assert boxes_of(found) == [[[5, 5, 25, 25]]]
    said = " ".join(found.said)
    assert "a_panoptic.json (panoptic segments)" in said and "captions.json (captions)" in said


OTHERS = {
    "captions": {"images": [], "annotations": [{"image_id": 1, "caption": "a cup"}]},
    "keypoints": {"images": [], "annotations": [{"image_id": 1, "keypoints": [1, 2, 2]}]},
    "panoptic": {"images": [], "annotations": [{"image_id": 1, "segments_info": [{"bbox": []}]}]},
    "results": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}],
    "package": {"name": "package", "version": "1"},
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_json(tmp_path, kind):
    coco(tmp_path, [BOX])
    (tmp_path / "a_other.json").write_text(json.dumps(OTHERS[kind]))
    found = open_data(tmp_path)
    assert boxes_of(found)[0] == [[5, 5, 25, 25]]
    assert any("a_other.json" in said for said in found.said)
    assert "a_other.json" in refused(tmp_path / "a_other.json")
    (tmp_path / "labels.json").unlink()
    assert "a_other.json" in refused(tmp_path)


def test_field_leak(field):
    found = survey(field("upright/coco_leak_train_test"))
    assert len(found.defects) == 1
    assert "4 pictures are in two parts, train and test" in found.defects[0].what
    assert "test0.png" in found.defects[0].what


def test_field_one_file_two_ids(field):
    found = survey(field("upright/coco_same_file_two_ids"))
    assert len(found.defects) == 1 and "images[4]" in found.defects[0].what
    assert "1 picture is in test more than once" in found.defects[0].what


def test_leak_under_another_name(tmp_path, capsys):
    coco(tmp_path, [BOX], name="train.json")
    coco(tmp_path, [BOX], name="test.json")
    assert not survey(tmp_path).defects
    (tmp_path / "images/test1.png").write_bytes((tmp_path / "images/train0.png").read_bytes())
    assert main(["data", "check", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "1 picture is in two parts" in said and "train0.png" in said and "test1.png" in said
    parts = {split: open_data(tmp_path, split) for split in ("train", "val", "test")}
    (sentence,) = between_parts(parts)  # what a training says
    assert "train0.png" in sentence and "two parts, val and test" in sentence  # drawn
    assert between_parts(parts, most=1) == [] and between_parts({"train": parts["train"]}) == []


# -- results inside the data folder


def test_results_in_the_data_folder_are_no_data(tmp_path):
    root = coco(tmp_path, [BOX])
    before = boxes_of(open_data(root))
    drawn = {"image": "labels0.png", "drawn": "seen/labels0.png"}
    documents = {
        "run/params.json": {"method": "atss"},
        "run/metrics.json": {"weights": "x"},
        "run/detections.json": {"images": [], "annotations": [{"bbox": [1, 2, 3, 4, 5]}]},
        "seen/predictions.json": {"weights": "run", "images": [drawn]},
    }
    for name, content in documents.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(json.dumps(content))
    for name in ("run/errors.png", "run/pr.png", "seen/labels0.png"):
        picture(root / name, 200)
    opened = OpenedFolder(root)
    assert len(opened.layout.images) == 2 and len(opened.layout.sources) == 1
    found = opened.dataset()
    assert boxes_of(found) == before and {r.path.parent.name for r in found.records} == {"images"}
    assert any("7 files that madet wrote are passed over" in said for said in found.said)
    (root / "labels.json").unlink()  # a pool of unlabelled pictures
    assert len(open_data(root, "unlabelled")) == 2


def test_data_written_into_the_data_folder_are_refused(tmp_path, capsys):
    root = coco(tmp_path / "data", [BOX])
    words = ["data", "convert", str(root), "--to", "voc", "--out"]
    assert main([*words, str(root / "voc")]) == 2
    assert "inside the data folder" in capsys.readouterr().err
    assert not (root / "voc").exists()
    assert main([*words, str(tmp_path / "voc")]) == 0
    capsys.readouterr()
    assert main(["data", "show", str(root), "--out", str(root / "page.png")]) == 2
    assert "inside the data folder" in capsys.readouterr().err


# -- turned boxes


def test_field_degrees_are_refused(field):
    said = refused(field("rotated/coco_degrees_90"), geometry=Rotated())
    assert "degrees" in said and "pi/180" in said
    said = refused(field("rotated/coco_small_degrees"), geometry=Rotated())
    assert "whole numbers from -6 to 6" in said and "pi/180" in said


def test_whole_radians_of_a_few_boxes_are_read(tmp_path):
    rows = [{"bbox": [30, 20, 20, 10, angle]} for angle in (1.0, 2.0, 0.0, 0.5)]
    assert len(open_data(coco(tmp_path, rows)).records[0].objects) == 4


def test_field_outline_quads(field):
    root = field("rotated/coco_outline_quads")
    turned = open_data(root, geometry=Rotated())
    box = turned.records[0].objects.boxes
    truth = torch.tensor([[100.0, 80, 90, 20, math.radians(40)]])
    assert Rotated().iou(box, truth) > 0.999
    upright = open_data(root, geometry=Upright())
    x, y, w, h = json.loads(next(root.glob("*/*.json")).read_text())["annotations"][0]["bbox"]
    assert torch.allclose(upright.records[0].objects.boxes[0], torch.tensor([x, y, x + w, y + h]))
    for found in (turned, upright):
        assert any("outlines of 1 of 1 objects" in said for said in found.said)


def test_outlines_of_other_shapes_stay_upright(tmp_path):
    star = [10, 0, 20, 10, 30, 0, 25, 20, 30, 40, 10, 40, 0, 20]
    kite = [0, 20, 30, 0, 60, 20, 30, 40]
    rows = [
        {"bbox": [0, 0, 30, 40], "segmentation": [star]},
        {"bbox": [0, 0, 60, 40], "segmentation": [kite]},
    ]
    found = open_data(coco(tmp_path, rows), geometry=Rotated())
    assert found.records[0].objects.boxes.tolist() == [[15, 20, 30, 40, 0], [30, 20, 60, 40, 0]]
    assert any("at angle zero" in said for said in found.said)


def test_field_cvat_rotation(field):
    root = field("rotated/cvat_coco_rotation")
    turned = open_data(root, geometry=Rotated())
    truth = torch.tensor([[100.0, 80, 80, 20, HALF], [100, 40, 80, 20, 0]])
    boxes = turned.records[0].objects.boxes
    assert (Rotated().iou_paired(boxes, truth) > 0.999).all()
    upright = open_data(root)
    expected = torch.tensor([[90.0, 40, 110, 120], [60, 30, 140, 50]])
    assert torch.allclose(upright.records[0].objects.boxes, expected, atol=1e-3)
    for found in (turned, upright):
        assert any("1 of 2 boxes are turned" in said for said in found.said)


@pytest.mark.parametrize("degrees", ["30", 30, 390.0, -330])
def test_cvat_rotation_turns_clockwise(tmp_path, degrees):
    row = {"bbox": [12, 14, 40, 20], "attributes": {"occluded": False, "rotation": degrees}}
    found = open_data(coco(tmp_path, [row]), geometry=Rotated("le90"))
    expected = torch.tensor([32.0, 24, 40, 20, math.radians(30)])
    assert torch.allclose(found.records[0].objects.boxes[0], expected, atol=1e-4)


def test_cvat_rotation_in_voc(tmp_path):
    picture(tmp_path / "a.png")
    (tmp_path / "a.xml").write_text(
        "<annotation><object><name>cup</name><bndbox><xmin>12</xmin><ymin>14</ymin>"
        "<xmax>52</xmax><ymax>34</ymax></bndbox><attributes><attribute><name>occluded</name>"
        "<value>0</value></attribute><attribute><name>rotation</name><value>30.0</value>"
        "</attribute></attributes></object></annotation>"
    )
    found = open_data(tmp_path, geometry=Rotated("le90"))
    expected = torch.tensor([32.0, 24, 40, 20, math.radians(30)])
    assert torch.allclose(found.records[0].objects.boxes[0], expected, atol=1e-4)
    assert any("turned by their attribute" in said for said in found.said)
    hull = Rotated().enclosing_upright(expected)
    assert torch.allclose(open_data(tmp_path).records[0].objects.boxes[0], hull, atol=1e-3)


def test_detectron2_degrees_are_counter_clockwise(tmp_path):
    rows = [{"bbox": [32, 24, 40, 10, angle], "bbox_mode": 4} for angle in (30, -90, 0)]
    found = open_data(coco(tmp_path, rows), geometry=Rotated("le90"))
    truth = torch.tensor([[32.0, 24, 40, 10, -math.radians(30)], [32, 24, 40, 10, HALF]])
    boxes = found.records[0].objects.boxes
    assert (Rotated().iou_paired(boxes[:2], truth) > 0.999).all()
    corners = as_quads(boxes[:1])[0].reshape(4, 2)
    right = corners[corners[:, 0].argmax()]
    assert right[1] < 24  # counter-clockwise on the screen: the right end is up
    assert any("bbox_mode 4" in said for said in found.said)


def test_areas_are_kept(tmp_path):
    rows = [BOX | {"area": 99}, BOX | OUTLINE, BOX | {"area": -1}, BOX | {"area": "x"}]
    objects = open_data(coco(tmp_path, rows)).records[0].objects
    assert objects.areas.tolist() == [99, 400, 400, 400] and objects.areas.dtype == torch.float32
    assert open_data(coco(tmp_path / "plain", [BOX])).records[0].objects.areas is None


# boxes that contradict their own row


def corner_row(i, **more):
    x1, y1, x2, y2 = 20 + i, 15, 30 + 2 * i, 22  # as sizes: within 64 x 48
    row = {"bbox": [x1, y1, x2, y2], "area": (x2 - x1) * (y2 - y1)}
    row["segmentation"] = [[x1, y1, x2, y1, x2, y2, x1, y2]]
    return {key: value for key, value in (row | more).items() if value is not None}


@pytest.mark.parametrize("more", [{}, {"area": None}, {"segmentation": None}])
def test_corners_that_stay_inside_are_hinted_at(tmp_path, more):
    root = coco(tmp_path, [corner_row(i, **more) for i in range(4)])
    assert "4 boxes contradict their own area or segmentation" in whats(open_data(root))
    assert "bbox seems to hold left, top, right, bottom" in whats(open_data(root))


def test_sizes_with_outlines_and_areas_get_no_hint(tmp_path):
    rows = []
    for i in range(6):
        x, y, w, h = 2 + i, 3, 20 + i, 12
        outline = [x, y, x + w, y + 2, x + w - 3, y + h, x + 1, y + h]
        area = 0.8 * w * h  # of the outline, not of the box
        rows.append({"bbox": [x, y, w, h], "area": area, "segmentation": [outline]})
    rows += [corner_row(i) for i in range(2)]  # two slips are no habit
    assert "left, top, right, bottom" not in whats(open_data(coco(tmp_path, rows)))


# turns outside of `attributes`


@pytest.mark.parametrize("degrees", [30, "30", -330])
def test_rotation_at_the_annotation_is_the_attribute(tmp_path, degrees):
    box = {"bbox": [30, 20, 20, 10]}
    beside = open_data(coco(tmp_path / "a", [box | {"rotation": degrees}]), geometry=Rotated())
    inside = {"attributes": {"rotation": degrees}}
    expected = open_data(coco(tmp_path / "b", [box | inside]), geometry=Rotated())
    assert boxes_of(beside) == boxes_of(expected)
    assert any("turned by their attribute `rotation`" in said for said in beside.said)


@pytest.mark.parametrize(
    "more", [{"angle": 30}, {"theta": 0.5}, {"attributes": {"angle": "30"}}, {"rot": -90}]
)
def test_an_angle_of_unknown_unit_is_said(tmp_path, more):
    found = open_data(coco(tmp_path, [BOX | more, BOX]))
    assert boxes_of(found)[0] == [[5, 5, 25, 25]] * 2
    said = [sentence for sentence in found.said if "whose unit and direction" in sentence]
    assert len(said) == 1 and "1 annotations" in said[0] and "'rotation'" in said[0]


@pytest.mark.parametrize("more", [{"angle": 0}, {"angle": None}, {"orientation": "left"}, OUTLINE])
def test_no_angle_is_no_doubt(tmp_path, more):
    found = open_data(coco(tmp_path, [BOX | more | ({"angle": 30} if more is OUTLINE else {})]))
    assert not any("whose unit" in sentence for sentence in found.said)


def test_five_numbers_among_four_are_no_attribute(tmp_path):
    rows = [BOX, BOX | {"bbox": [30, 20, 20, 10, 0.5]}, BOX | {"rotation": 30}]
    found = open_data(coco(tmp_path, rows), geometry=Rotated())
    said = " ".join(found.said)
    assert "1 of 3 boxes are turned by their attribute" in said
    assert "1 of 3 boxes have an angle of their own" in said


# sentences that name what is there


@pytest.mark.parametrize(
    "row, words",
    [
        ({"bbox": "[5, 5, 20, 20]"}, ["the text '[5, 5, 20, 20]'", "without quotes"]),
        (BOX | {"image_id": float("nan")}, ["has NaN as 'image_id'"]),
        (BOX | {"category_id": float("inf")}, ["has Infinity as 'category_id'"]),
    ],
)
def test_sentences_name_what_is_written(tmp_path, row, words):
    found = whats(open_data(coco(tmp_path, [BOX, row])))
    assert all(word in found for word in words), found


@pytest.mark.parametrize("box", [[-1, -1, -1, -1], [0, 0, 0, 0], [30, 30, -10, 5], [9, 9, 5, -2]])
def test_a_placeholder_gives_way_to_the_outline(tmp_path, box):
    found = open_data(coco(tmp_path, [OUTLINE | {"bbox": box}]))
    assert boxes_of(found)[0] == [[5, 5, 25, 25]]
    assert "the box is taken from the outline" in whats(found)
