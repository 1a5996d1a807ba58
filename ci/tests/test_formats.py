"""Formats of labels: field cases with their right values, every format there and back, and what is no label file."""

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from madet import parsers
from madet.boxes.errors import BadInput
from madet.boxes.geometry import Rotated, Upright
from madet.cli import main
from madet.data.export import FORMATS as WRITTEN
from madet.data.export import convert_folder, export_folder
from madet.data.formats.table import FORMATS, WRITERS
from madet.data.label_writer import loss_sentences
from madet.data.open_folder import OpenedFolder, open_data, splits
from madet.data.sample import Dataset, Objects, Record

LE90 = Rotated("le90")


def picture(path, size=(64, 48)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "#888888").save(path)
    return path


def folder(root, **texts):
    """Text files and pictures by path; a picture's text is not used."""
    for name, text in texts.items():
        if name.endswith((".png", ".jpg", ".bmp")):
            picture(root / name)
            continue
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def boxes_of(dataset):
    return {record.path.name: record.objects.boxes.tolist() for record in dataset.records}


def refused(word, root, **options):
    with pytest.raises(BadInput) as caught:
        open_data(root, **options)
    assert word in str(caught.value) and "\n" not in str(caught.value), str(caught.value)


# -- field cases

SHIP = (100, 80, 90, 20, math.radians(40))
FIELD = {
    "rotated/cvat_images_xml": ("cvat", ("ship",), [SHIP]),
    "rotated/dota_5num": ("dota", ("ship",), [(100, 80, 90, 20, 0.7)]),
    "rotated/dota_class_first": ("dota", ("ship",), [SHIP]),
    "rotated/dota_class_then_number": ("dota", ("A220", "Boeing 737", "Cargo Truck"), [SHIP] * 3),
    "rotated/dota_duplicates": ("dota", ("ship",), [SHIP] * 2),
    "rotated/dota_header_fullwidth": ("dota", ("ship",), [SHIP]),
    "rotated/dota_numeric_class_no_flag": ("dota", ("3",), [SHIP]),
    "rotated/dota_semicolons": ("dota", ("ship",), [SHIP]),
    "rotated/fair1m_xml": ("fair1m", ("Boeing737",), [SHIP]),
    # turned about its top left corner (55, 70), as Label Studio does; (100, 80) is its center before
    "rotated/label_studio_json": ("labelstudio", ("ship",), [(83.044, 106.586, *SHIP[2:])]),
    "rotated/yolo_obb": ("yolo", ("car",), [SHIP]),
    "upright/createml_json": ("createml", ("cup",), [(5, 5, 25, 25)]),
    "upright/csv_openimages": ("openimages", ("/m/01",), [(6.4, 9.6, 25.6, 24)]),
    "upright/cvat_images_xml": ("cvat", ("cup",), [(5, 5, 25, 25)]),
    "upright/labelme_folder": ("labelme", ("cup",), [(5, 5, 25, 25)]),
    "upright/labelstudio_json": ("labelstudio", ("cup",), [(6.4, 4.8, 19.2, 14.4)]),
    "upright/yolo_ultralytics": (
        "yolo",
        ("cup", "mug"),
        [(24, 14.4, 40, 33.6), (9.6, 12, 16, 16.8)],
    ),
}
DEFECTS = {"rotated/dota_duplicates": "a.txt:2: repeats the ship of line 1"}
SAID = {
    "rotated/dota_5num": "five numbers: center, width, height and an angle in radians",
    "rotated/dota_numeric_class_no_flag": "classes are called by numbers: 3",
    "rotated/yolo_obb": "1 pictures in train and in val; they are taken as train",
    "upright/csv_openimages": "called by their ids",
    "upright/yolo_ultralytics": "come from data.yaml",
}


@pytest.mark.parametrize("case", FIELD)
def test_field_case(shared, case):
    kind, classes, boxes = FIELD[case]
    found = open_data(shared / "field" / case)
    assert (found.format, found.classes) == (kind, classes)
    wanted = torch.tensor(boxes, dtype=torch.float32)
    for record in found.records:
        assert torch.allclose(record.objects.boxes, wanted, atol=0.01), record.objects.boxes
    told = " | ".join(map(str, found.defects))
    assert DEFECTS.get(case, "") in told and bool(told) == (case in DEFECTS), told
    assert SAID.get(case, "") in " | ".join(found.said)


def test_field_dronevehicle(shared):
    found = open_data(shared / "field/rotated/dronevehicle_xml")
    assert found.format == "dronevehicle" and found.classes == ("bus", "car") and not found.defects
    car, bus = found.records[0].objects.boxes
    assert torch.allclose(car, torch.tensor(SHIP), atol=0.7) and car[4] - SHIP[4] < 0.01
    assert torch.allclose(bus, torch.tensor([15.5, 21, 29, 38, 0]))


def test_field_detections_given_as_labels(shared):
    refused("these are detections, not labels", shared / "field/rotated/dota_score_last")


def test_field_splits(shared):
    assert splits(shared / "field/upright/yolo_ultralytics") == {"train": 4, "val": 2}
    assert splits(shared / "field/upright/yolo_ultralytics/data.yaml") == {"train": 4, "val": 2}


# -- there and back

CLASSES = ("100000002", "100000013", "100000003")  # HRSC2016 has no others; the last has no object
BEND = np.array([(6, 6), (30, 6), (30, 14), (14, 14), (14, 30), (6, 30)], dtype=float)
RUNS = {"size": [64, 96], "counts": "0`2W2"}
SIZE = (96, 64)


def objects(rows, dim):
    """Objects of (box, label, ignore, outline)."""
    if not rows:
        return Objects.none(dim)
    boxes, labels, ignore, outlines = zip(*rows)
    has_outlines = any(outline is not None for outline in outlines)
    return Objects(
        torch.tensor(boxes, dtype=torch.float32),
        torch.tensor(labels),
        torch.tensor(ignore),
        list(outlines) if has_outlines else None,
    )


UPRIGHT = {
    "train": [
        [
            ((10.5, 4, 40.25, 30), 0, False, None),
            ((6, 6, 30, 30), 1, False, [BEND]),
            ((0, 0, 96, 64), 0, True, None),
        ],
        [((6, 6, 42, 42), 1, False, [BEND, BEND + 12])],
        [],
    ],
    "val": [[((50, 20, 60, 28), 0, False, RUNS)], [((1, 2, 4, 9), 1, False, None)]],
}
SKEWED = np.array([(50, 20), (80, 24), (78, 40), (48, 30)], dtype=float)
FITTED = LE90.from_quads(torch.tensor(SKEWED[None], dtype=torch.float64))[0].tolist()
ROTATED = {
    "train": [
        [
            ((40, 30, 30, 10, 0.5), 0, False, None),
            ((60, 30, 20, 8, -1.2), 1, False, None),
            ((30, 40, 16, 6, 0.8), 1, True, None),
        ],
        [(FITTED, 1, False, [SKEWED]), ((20, 20, 10, 6, 0), 0, False, None)],
        [],
    ],
    "val": [[((48, 32, 40, 12, 1.0), 0, False, None)]],
}


def scenes(home, rows, geometry):
    parts = {}
    for split, pictures in rows.items():
        records = []
        for i, found in enumerate(pictures):
            path = picture(home / f"{split}{i}.png", SIZE)
            records.append(Record(path.stem, path, *SIZE, objects(found, geometry.dim)))
        parts[split] = Dataset(records, CLASSES, geometry)
    return parts


def state(dataset):
    """Every picture's objects as comparable values: class, corners of the box, outline, flag."""
    pictures = {}
    for record in dataset.records:
        found = record.objects
        corners = dataset.geometry.corners(found.boxes.double())
        rows = []
        for i, label in enumerate(found.labels.tolist()):
            outline = found.polygons[i] if found.polygons else None
            outline = named_outline(outline, corners[i])
            name = dataset.classes[label]
            rows.append((name, sorted(corners[i].tolist()), outline, bool(found.ignore[i])))
        pictures[record.path.stem] = rows
    return pictures


def named_outline(outline, corners):
    """Kind and points of an outline; nothing where it is the box itself."""
    if outline is None:
        return "", None
    if isinstance(outline, dict):
        return "masks", outline["counts"]
    if len(outline) > 1:
        return "parts", np.concatenate(outline)
    if len(outline[0]) == 4:
        near = torch.cdist(torch.tensor(outline[0]), corners).amin(1)
        return ("", None) if near.max() < 0.01 else ("corners", outline[0])
    return "polygons", outline[0]


def kept(pictures, holds, rotated):
    """What a format that holds some kinds of things keeps, and how many of each kind are lost."""
    left, lost = {}, Counter()
    for stem, rows in pictures.items():
        found = []
        for name, corners, (kind, points), ignore in rows:
            if ignore and "ignored" not in holds:
                lost["ignored"] += 1
                continue
            turned = len({round(x, 2) for x, _ in corners}) > 2
            if turned and "angles" not in holds:
                lost["angles"] += 1
                (x1, y1), (x2, y2) = np.min(corners, 0), np.max(corners, 0)
                corners = sorted([[x1, y1], [x1, y2], [x2, y1], [x2, y2]])
            if kind and kind not in holds:
                lost[kind] += 1
                kind, points = "", None
            found.append((name, corners, (kind, points), ignore))
        if not rows and "empty" not in holds:
            lost["empty"] += 1
            continue
        left[stem] = found
    return left, Counter({kind: count for kind, count in lost.items() if count})


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for stem, rows in wanted.items():
        assert len(rows) == len(found[stem])
        for (name, corners, outline, flag), new in zip(rows, found[stem]):
            assert (name, outline[0], flag) == (new[0], new[2][0], new[3]), stem
            gap = torch.cdist(as_tensor(corners), as_tensor(new[1])).amin(1).max()
            assert gap < 3e-3, (stem, corners, new[1])
            if outline[0] == "masks":
                assert outline[1] == new[2][1]
            elif outline[0]:
                assert np.allclose(outline[1], new[2][1], atol=2e-3)


def as_tensor(points):
    return torch.from_numpy(np.array(points, dtype=np.float64))


def labels_of(kind):
    return "types" if kind == "hrsc" else None


def read_back(out, kind, geometry):
    """The state of a written folder, its splits, and the classes that it has."""
    opened = OpenedFolder(out, labels_of(kind), geometry, strict=False)
    assert opened.source.format.split("-")[0] == kind
    pictures = {}
    for split in ("train", "val"):
        part = opened.dataset(split)
        assert not part.defects, part.defects
        pictures |= {(split, stem): rows for stem, rows in state(part).items()}
    return pictures, opened.classes


def with_splits(parts):
    """The state of parts in memory, by split and picture."""
    found = {}
    for split, part in parts.items():
        found |= {(split, stem): rows for stem, rows in state(part).items()}
    return found


def losses_said(pictures, classes, holds, rotated):
    """What is left, and the counts that a conversion should name."""
    left, lost = kept(pictures, holds, rotated)
    used = {row[0] for rows in pictures.values() for row in rows}
    if "classes" not in holds and set(classes) - used:
        lost["classes"] = len(set(classes) - used)
    return left, lost


def said_losses(said, title):
    """Counts in the sentences of a conversion, by kind."""
    found = Counter()
    for kind in loss_kinds():
        for count in range(1, 9):
            if loss_sentences(Counter({kind: count}), title)[0] in said:
                found[kind] = count
    return found


def loss_kinds():
    return ("angles", "corners", "polygons", "parts", "masks", "ignored", "empty", "classes")


@pytest.mark.parametrize("first", WRITTEN)
def test_upright_sets_there_and_back(tmp_path, first):
    """A set is written as one format, and from there as every other one."""
    parts = scenes(tmp_path / "made", UPRIGHT, Upright())
    export_folder(tmp_path / first, parts, first)
    wanted, _ = kept(with_splits(parts), WRITERS[first].holds, False)
    pictures, classes = read_back(tmp_path / first, first, Upright())
    assert_same(pictures, wanted)
    assert ("100000003" in classes) == ("classes" in WRITERS[first].holds)
    for second in WRITTEN:
        out = tmp_path / f"{first}-{second}"
        said = convert_folder(tmp_path / first, out, second, labels_of(first))[2]
        left, lost = losses_said(pictures, classes, WRITERS[second].holds, False)
        assert_same(read_back(out, second, Upright())[0], left)
        assert said_losses(said, WRITERS[second].title) == lost, (second, said)


@pytest.mark.parametrize(
    "first", [kind for kind in WRITTEN if "angles" in WRITERS[kind].holds and kind != "coco"]
)
def test_rotated_sets_there_and_back(tmp_path, first):
    parts = scenes(tmp_path / "made", ROTATED, LE90)
    export_folder(tmp_path / first, parts, first)
    wanted, _ = kept(with_splits(parts), WRITERS[first].holds, True)
    pictures, classes = read_back(tmp_path / first, first, LE90)
    assert_same(pictures, wanted)
    for second in WRITTEN:
        out = tmp_path / f"{first}-{second}"
        said = convert_folder(tmp_path / first, out, second, labels_of(first))[2]
        left, lost = losses_said(pictures, classes, WRITERS[second].holds, True)
        assert said_losses(said, WRITERS[second].title) == lost, (second, said)
        assert_same(read_back(out, second, LE90)[0], left)


def test_rotated_boxes_in_coco_are_outlines(tmp_path):
    """Read for rotated training they are the boxes again, and every format that holds turned boxes gets them."""
    parts = scenes(tmp_path / "made", ROTATED, LE90)
    export_folder(tmp_path / "coco", parts, "coco")
    pictures, classes = read_back(tmp_path / "coco", "coco", LE90)
    assert_same(pictures, with_splits(parts))
    assert classes == CLASSES
    for second in WRITTEN:
        if "angles" in WRITERS[second].holds:
            out = tmp_path / f"coco-{second}"
            said = convert_folder(tmp_path / "coco", out, second)[2]
            left, lost = losses_said(pictures, classes, WRITERS[second].holds, True)
            assert_same(read_back(out, second, LE90)[0], left)
            assert said_losses(said, WRITERS[second].title) == lost, (second, said)


def test_outlines_of_four_corners_in_upright_sets(tmp_path):
    plate = np.array([(50, 20), (60, 20), (80, 40), (40, 38)], dtype=float)
    rows = {
        "train": [[((40, 20, 80, 40), 0, False, [plate]), ((1, 2, 9, 8), 1, False, None)]],
        "val": [[]],
    }
    parts = scenes(tmp_path / "made", rows, Upright())
    for kind in ("coco", "yolo", "labelme", "labelstudio", "cvat", "csv"):
        out = export_folder(tmp_path / kind, parts, kind)
        opened = OpenedFolder(out)
        assert not opened.source.rotated, f"{kind}: four corners that are no rectangle's"
        assert_same(read_back(out, kind, Upright())[0], with_splits(parts))


def test_convert_by_command(tmp_path, capsys):
    export_folder(tmp_path / "made", scenes(tmp_path / "png", ROTATED, LE90), "cvat")
    words = ["data", "convert", tmp_path / "made", "--to", "createml", "--out", tmp_path / "new"]
    assert main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert "4 boxes are rotated, CreateML holds upright ones" in said
    assert (
        "1 ignored objects" in said and "1 outlines of four corners differ from their boxes" in said
    )
    assert parsers.FORMATS == WRITTEN == tuple(WRITERS)
    assert set(WRITERS) <= set(FORMATS)


# -- YOLO's neighbours

LINE = "0 0.5 0.5 0.25 0.5\n"
BOX = [24.0, 12.0, 40.0, 36.0]


@pytest.mark.parametrize("order", ["{1}/{0}", "{0}/{1}"])
def test_yolo_in_both_orders(tmp_path, order):
    images, labels = (
        [order.format(split, kind) for split in ("train", "valid", "test")]
        for kind in ("images", "labels")
    )
    entries = "\n".join(f"{key}: ../{name}" for key, name in zip(("train", "val", "test"), images))
    files = {
        "data.yaml": f"{entries}\nnc: 2\nnames: ['cup', 'mug']\n",
        "README.roboflow.txt": "x\n",
    }
    for image, label in zip(images, labels):
        files |= {f"{image}/a.png": "", f"{image}/b.png": "", f"{label}/a.txt": LINE}
    root = folder(tmp_path, **files)
    assert splits(root) == {"train": 2, "val": 2, "test": 2}
    found = open_data(root, "test")
    assert found.classes == ("cup", "mug") and boxes_of(found) == {"a.png": [BOX], "b.png": []}
    assert not found.defects and any("3 pictures have no label file" in said for said in found.said)


def test_yolo_with_lists_of_pictures(tmp_path):
    root = folder(
        tmp_path,
        **{f"images/{name}.png": "" for name in "abc"},
        **{f"labels/{name}.txt": LINE for name in "abc"},
        **{
            "coco.yaml": "path: /content/set\ntrain: lists/train.txt\nval: lists/val.txt\nnames: {0: cup}",
            "lists/train.txt": "./images/a.png\n/content/set/images/b.png\n",
            "lists/val.txt": "images/c.png\n",
        },
    )
    assert splits(root) == {"train": 2, "val": 1}
    assert boxes_of(open_data(root, "val")) == {"c.png": [BOX]}


def test_darknet_beside_its_pictures(tmp_path):
    root = folder(
        tmp_path,
        **{f"obj_train_data/{name}.png": "" for name in "ab"},
        **{
            "obj_train_data/a.txt": LINE + "1 0.5 0.5 0.1 0.1\n",
            "obj_train_data/b.txt": "",
            "obj.data": "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n",
            "obj.names": "cup\nmug\n",
            "train.txt": "data/obj_train_data/a.png\ndata/obj_train_data/b.png\n",
        },
    )
    found = open_data(root)
    assert found.classes == ("cup", "mug") and len(found) == 2 and not found.defects
    assert found.records[0].objects.labels.tolist() == [0, 1]


def test_yolo_names_beside_labels(tmp_path):
    root = folder(
        tmp_path, **{"images/a.png": "", "labels/a.txt": LINE, "labels/classes.txt": "cup\nmug\n"}
    )
    assert open_data(root).classes == ("cup", "mug")


def test_yolo_twins_in_subfolders_keep_their_own_pictures(tmp_path):
    root = folder(
        tmp_path,
        **{f"images/{cam}/1.png": "" for cam in ("cam1", "cam2")},
        **{"labels/cam1/1.txt": LINE, "labels/cam2/1.txt": "0 0.5 0.5 0.5 0.5\n"},
    )
    found = {
        record.path.parent.name: record.objects.boxes.tolist() for record in open_data(root).records
    }
    assert found == {"cam1": [BOX], "cam2": [[16.0, 12.0, 48.0, 36.0]]}


def test_yolo_split_of_backgrounds_only(tmp_path):
    root = folder(
        tmp_path,
        **{f"images/{split}/{split}.png": "" for split in ("train", "val")},
        **{"labels/train/train.txt": LINE, "labels/val/val.txt": ""},
    )
    assert splits(root) == {"train": 1, "val": 1} and len(OpenedFolder(root).layout.sources) == 1


def test_yolo_key_points_outlines_and_detections(tmp_path):
    pose = folder(
        tmp_path / "pose",
        **{"images/a.png": "", "labels/a.txt": "0 0.5 0.5 0.25 0.5 0.1 0.1 2 0.2 0.2 2\n"},
        **{"data.yaml": "names: [man]\nkpt_shape: [2, 3]\ntrain: images"},
    )
    assert boxes_of(open_data(pose)) == {"a.png": [BOX]}
    found = open_data(
        folder(tmp_path / "found", **{"images/a.png": "", "labels/a.txt": LINE[:-1] + " 0.93\n"})
    )
    assert "these are detections" in str(found.defects[0])
    outline = "0 0.1 0.1 0.5 0.1 0.5 0.5 0.3 0.3 0.1 0.5\n"
    drawn = open_data(folder(tmp_path / "drawn", **{"images/a.png": "", "labels/a.txt": outline}))
    assert len(drawn.records[0].objects.polygons[0][0]) == 5 and drawn.geometry == Upright()


def test_yolo_that_cannot_be_read(tmp_path):
    one = {"images/a.png": "", "labels/a.txt": LINE}
    refused(
        "data.yaml:1: not valid YAML", folder(tmp_path / "1", **one, **{"data.yaml": "names: [cup"})
    )
    refused(
        "data.yaml: names should be",
        folder(tmp_path / "2", **one, **{"data.yaml": "names: {cup: 0}"}),
    )
    pixels = folder(tmp_path / "3", **{"images/a.png": "", "labels/a.txt": "0 24 12 40 36\n"})
    refused("a.txt:1: YOLO's numbers are shares", pixels)
    few = folder(
        tmp_path / "4", **{"images/a.png": "", "labels/a.txt": LINE + "7 0.5 0.5 0.1 0.1\n"}
    )
    (few / "data.yaml").write_text("names: [cup]\ntrain: images\n")
    found = open_data(few)
    assert len(found.records[0].objects) == 1 and "a.txt:2: class 7 is none of the 1" in str(
        found.defects[0]
    )


# -- other neighbours


def test_x_anylabeling_rotation(tmp_path):
    points = [[71.956, 43.414], [140.9, 101.265], [128.044, 116.586], [59.1, 58.735]]
    shape = {"label": "ship", "points": points, "shape_type": "rotation", "direction": 0.698}
    data = {"version": "2.3.0", "shapes": [shape | {"difficult": True}], "imagePath": "a.png"}
    picture(tmp_path / "a.png", (200, 160))
    (tmp_path / "a.json").write_text(json.dumps(data | {"imageData": "x" * 200_000}))
    found = open_data(tmp_path)
    assert found.geometry == Rotated() and found.records[0].objects.ignore.tolist() == [True]
    assert torch.allclose(found.records[0].objects.boxes[0], torch.tensor(SHIP), atol=0.01)


def test_cvat_subsets_and_video(tmp_path):
    box = '<box label="cup" xtl="1" ytl="2" xbr="9" ybr="8"/>'
    image = '<image id="{0}" name="{0}.png" subset="{1}" width="64" height="48">' + box + "</image>"
    text = "".join(image.format(i, split) for i, split in enumerate(("Train", "Validation")))
    root = folder(
        tmp_path / "a",
        **{
            "images/0.png": "",
            "images/1.png": "",
            "annotations.xml": f"<annotations>{text}</annotations>",
        },
    )
    assert splits(root) == {"train": 1, "val": 1}
    video = folder(
        tmp_path / "b",
        **{
            "a.png": "",
            "annotations.xml": "<annotations><track id='0' label='cup'/></annotations>",
        },
    )
    refused('"CVAT for video"', video)


def test_uploaded_names_and_percent_of_label_studio(tmp_path):
    value = {"x": 10, "y": 10, "width": 20, "height": 20, "rotation": 0, "rectanglelabels": ["cup"]}
    result = [
        {"type": "rectanglelabels", "value": value, "original_width": 64, "original_height": 48}
    ]
    tasks = [
        {"id": i, "data": {"image": image}, "annotations": [{"result": result}]}
        for i, image in enumerate(
            (
                "/data/upload/1/0a1b2c3d-a.png",
                "/data/local-files/?d=set/images/b.png",
                "https://host/x/c.png",
            )
        )
    ]
    root = folder(tmp_path, **{f"images/{name}.png": "" for name in "abc"})
    (root / "export.json").write_text(json.dumps(tasks))
    found = boxes_of(open_data(root))
    assert found.keys() == {"a.png", "b.png", "c.png"}
    for (box,) in found.values():
        assert np.allclose(box, [6.4, 4.8, 19.2, 14.4])


@pytest.mark.parametrize(
    "text",
    [
        "filename,width,height,class,xmin,ymin,xmax,ymax\na.png,64,48,cup,5,5,25,20\n",
        "a.png,5,5,25,20,cup\n",
        "image;label;x;y;w;h\na.png;cup;5;5;20;15\n",
        "image\tlabel\tcx\tcy\tw\th\nimages/a.png\tcup\t15\t12.5\t20\t15\n",
        'image_id,width,height,bbox,label\na,64,48,"[5, 5, 20, 15]",cup\n',
    ],
)
def test_tables_of_boxes(tmp_path, text):
    root = folder(tmp_path, **{"images/a.png": "", "train_labels.csv": text})
    found = open_data(root)
    assert found.format == "csv" and found.classes == ("cup",) and splits(root) == {"train": 1}
    assert boxes_of(found) == {"a.png": [[5.0, 5.0, 25.0, 20.0]]}


def test_open_images_names_and_groups(tmp_path):
    text = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsGroupOf\na,x,/m/01,1,0.1,0.4,0.2,0.5,1\n"
    root = folder(tmp_path, **{"train/a.png": "", "train-annotations-bbox.csv": text})
    folder(root, **{"class-descriptions-boxable.csv": "/m/01,Cup\n"})
    found = open_data(root)
    assert found.classes == ("Cup",) and found.records[0].objects.ignore.tolist() == [True]


def test_other_programs_files_are_no_labels(tmp_path):
    others = {
        "package.json": '{"name": "tool", "dependencies": {"a": "1"}}',
        "results.json": '[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]',
        "requirements.txt": "numpy\ntorch\n",
        "README.txt": "About these pictures.\n",
        "a.txt": "Taken on a rainy day, 3 cups.\n",
        "results.csv": "epoch,train/box_loss,metrics/mAP50(B)\n1,0.5,0.1\n",
        "labels.csv": "image,label\na.png,cup\n",
        "config.yaml": "lr: 0.1\n",
        "notes.xml.bak": "<annotations/>",
    }
    root = folder(tmp_path / "voc", **others, **{"a.png": "", "b.png": ""})
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"
    folder(root, **{"b.xml": f"<annotation><object><name>cup</name>{box}</object></annotation>"})
    opened = OpenedFolder(root)
    assert [source.format for source in opened.layout.sources] == ["voc"]
    bare = folder(
        tmp_path / "bare",
        **{name: text for name, text in others.items() if name[-5:] != ".json"},
        **{"a.png": ""},
    )
    assert not OpenedFolder(bare).layout.sources


def test_refusals_name_every_format(tmp_path):
    with pytest.raises(BadInput) as caught:
        open_data(tmp_path)
    for format in FORMATS.values():
        assert format.title in str(caught.value) or format.variant_of


# -- doubts that only a whole set shows


def dota_set(root, *ends):
    corners = "10 10 40 10 40 30 10 30"
    text = "".join(f"{corners.replace('40', str(40 + i))} {end}\n" for i, end in enumerate(ends))
    return folder(root, **{"images/a.png": "", "labelTxt/a.txt": text})


def test_numbers_of_classes_read_as_difficulty_are_doubted(tmp_path):
    found = open_data(dota_set(tmp_path / "all", "class 2", "class 1", "class 2"))
    doubt = next(str(defect) for defect in found.defects if "none in 0" in str(defect))
    assert "3 of 3 lines end in 1 or 2" in doubt and "quotes" in doubt and "class_1" in doubt
    found = open_data(dota_set(tmp_path / "some", "class 2", "class 1", "class 2", "truck"))
    assert any("3 of 4 lines end in 1 or 2" in sentence for sentence in found.said)
    quoted = dota_set(tmp_path / "cured", '"class 2" 0', '"class 1" 0', "class_2 0")
    assert open_data(quoted).classes == ("class 1", "class 2", "class_2")
    for ends in (["ship 1", "ship 2", "ship 1", "ship 0"], ["ship 1", "ship 2"], ["ship"] * 4):
        found = open_data(dota_set(tmp_path / f"{len(ends)}{ends[-1]}", *ends))
        assert not any("none in 0" in str(one) for one in [*found.said, *found.defects])


def test_yolo_corners_as_centers_are_hinted_at(tmp_path):
    lines = "0 .4 .4 .9 .8\n0 .3 .5 .8 .9\n0 .5 .2 .95 .7\n"
    root = folder(tmp_path / "a", **{"images/a.png": "", "labels/a.txt": lines})
    defects = " | ".join(map(str, open_data(root).defects))
    assert "lines seem to hold left, top, right, bottom" in defects and "YOLO" in defects
    sound = "0 .4 .4 .5 .5\n0 .5 .5 .9 .8\n0 .5 .5 1 1\n"
    root = folder(tmp_path / "b", **{"images/a.png": "", "labels/a.txt": sound})
    assert not any("seem to hold" in str(defect) for defect in open_data(root).defects)


# -- JSON of other programs, labels without objects

VIA = {"a.png9": {"filename": "a.png", "size": 9, "regions": []}}
SUPERVISELY = {"size": {"height": 48, "width": 64}, "objects": [{"classTitle": "cat"}]}


@pytest.mark.parametrize(
    "content, words",
    [
        (VIA, ["VGG Image Annotator", "export it as COCO"]),
        ({"_via_settings": {}, "_via_img_metadata": VIA}, ["VGG Image Annotator"]),
        (SUPERVISELY, ["Supervisely", "export it as COCO"]),
        ([{"Labeled Data": "a.png", "Label": {}}], ["Labelbox"]),
        ({"pictures": []}, ["its own are 'pictures'", "convert it to COCO"]),
        ({"annotations": [], "categories": []}, ["lacks the key 'images'", "add it"]),
    ],
)
def test_json_of_other_programs_is_named(tmp_path, content, words):
    root = folder(tmp_path, **{"images/a.png": "", "labels.json": json.dumps(content)})
    for word in words:
        refused(word, root / "labels.json")


@pytest.mark.parametrize("label", ["", "  "])
def test_an_empty_label_of_label_studio_is_no_class(tmp_path, label):
    value = {"x": 5, "y": 5, "width": 20, "height": 20, "rotation": 0}
    regions = []
    for name in (label, "cat"):
        more = {"original_width": 64, "original_height": 48, "type": "rectanglelabels"}
        regions.append(more | {"value": value | {"rectanglelabels": [name]}})
    task = {"id": 1, "data": {"image": "a.png"}, "annotations": [{"result": regions}]}
    found = open_data(folder(tmp_path, **{"a.png": "", "labels.json": json.dumps([task])}))
    assert found.classes == ("cat",) and found.dropped_boxes == 1
    assert any("the region has no label" in str(defect) for defect in found.defects)


def test_labels_without_an_object_say_why(tmp_path):
    shape = {"label": "cat", "points": [[1, 2], [9, 9]], "shape_type": "linestrip"}
    data = {"shapes": [shape], "imagePath": "a.png", "imageHeight": 48, "imageWidth": 64}
    root = folder(tmp_path, **{"a.png": "", "a.json": json.dumps(data)})
    refused("left out: 1 linestrip", root)
