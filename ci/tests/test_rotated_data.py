"""Folders with rotated boxes: HRSC2016, DIOR-R, DOTA and roLabelImg in their published layouts.

Also what can be wrong in them, and rotations that keep boxes on their pixels.
"""

import json
import math
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from madet.boxes.errors import BadInput
from madet.boxes.geometry import Rotated, Upright
from madet.cli import main
from madet.data.augment import Compose, MultiScale, RandomFlip, RandomRotate, generator_for
from madet.data.class_lists import DIOR, DOTA, HRSC
from madet.data.export import export_folder
from madet.data.open_folder import open_data, splits
from madet.data.report import survey
from madet.data.sample import Dataset, Objects, Record, Sample
from madet.training.recipe import Recipe
from madet.training.run import augmentation, open_splits

SIZE = (200, 160)
SHARED = Path(__file__).parents[3] / "shared" / "data"
LE90 = Rotated("le90")
DIRECTIONS = ("horizontal", "vertical", "diagonal")


def show(folder, *words):
    return main(["data", "show", str(folder), *words, "--count", "0"])


def shown(capsys, folder, *words):
    "Exit code and document of `madet data show --json`."
    capsys.readouterr()
    code = show(folder, *words, "--json")
    return code, json.loads(capsys.readouterr().out)


def picture(path, boxes=()):
    "A grey picture with white turned rectangles, and one pixel that no picture of another name has."
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", SIZE, "#444444")
    for corners in LE90.corners(torch.tensor(boxes).view(-1, 5)).tolist():
        ImageDraw.Draw(image).polygon([tuple(c) for c in corners], "#ffffff")
    image.putpixel((0, 0), tuple(zlib.crc32(path.stem.encode()).to_bytes(4)[:3]))
    image.save(path)
    return path


def scenes(home, classes, counts, seed=0):
    "Splits of made pictures with three turned boxes each, every fourth without any, the second object difficult."
    generator, parts = torch.Generator().manual_seed(seed), {}
    for split, count in counts.items():
        records = []
        for i in range(count):
            n = 0 if i % 4 == 3 else 3
            centers = torch.rand(n, 2, generator=generator) * torch.tensor([100.0, 60.0]) + 50
            boxes = LE90.normalize(
                torch.cat(
                    [
                        centers,
                        torch.rand(n, 2, generator=generator) * 40 + 8,
                        torch.rand(n, 1, generator=generator) * 6 - 3,
                    ],
                    1,
                )
            )
            path = picture(home / f"{split}_{i:03}.png", boxes.tolist())
            records.append(
                Record(
                    path.stem,
                    path,
                    *SIZE,
                    Objects(boxes, torch.arange(n) % len(classes), torch.arange(n) == 1),
                )
            )
        parts[split] = Dataset(records, classes, LE90)
    return parts


def dota(root, texts, names=("labelTxt", "images")):
    for stem, text in texts.items():
        picture(root / names[1] / f"{stem}.png")
        (root / names[0]).mkdir(parents=True, exist_ok=True)
        (root / names[0] / f"{stem}.txt").write_bytes(text.encode())
    return root


def quad(name="plane", x=20, y=20, flag=" 0"):
    return f"{x} {y} {x + 40} {y} {x + 40} {y + 20} {x} {y + 20} {name}{flag}"


HRSC_OBJECT = (
    "<HRSC_Object><Object_ID>1</Object_ID>\n"
    "<Class_ID>{type}</Class_ID><truncated>0</truncated><difficult>{difficult}</difficult>\n"
    "<box_xmin>1</box_xmin>"
    "<mbox_cx>{cx}</mbox_cx><mbox_cy>{cy}</mbox_cy><mbox_w>{w}</mbox_w><mbox_h>{h}</mbox_h>\n"
    "<mbox_ang>{angle}</mbox_ang><header_x>1</header_x></HRSC_Object>\n"
)


def hrsc_text(*objects):
    plain = dict(type="100000006", difficult=0, cx=100, cy=80, w=90, h=20, angle=0.5)
    inner = "".join(HRSC_OBJECT.format(**plain | one) for one in objects)
    return (
        '<?xml version="1.0" encoding="utf-8"?>\n<HRSC_Image>\n'
        f"<Img_SizeWidth>{SIZE[0]}</Img_SizeWidth><Img_SizeHeight>{SIZE[1]}</Img_SizeHeight>\n"
        f"<HRSC_Objects>\n{inner}</HRSC_Objects></HRSC_Image>\n"
    )


def hrsc(root, texts, lists=None, deeper=True):
    inner = root / "FullDataSet" if deeper else root
    (inner / "Annotations").mkdir(parents=True, exist_ok=True)
    for stem, text in texts.items():
        picture(inner / "AllImages" / f"{stem}.bmp")
        (inner / "Annotations" / f"{stem}.xml").write_bytes(
            text if isinstance(text, bytes) else text.encode()
        )
    for split, stems in (lists or {}).items():
        (root / "ImageSets").mkdir(exist_ok=True)
        (root / f"ImageSets/{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    return root


def same_boxes(old, new, geometry, atol=2e-3):
    "Whether two sets of boxes are the same rectangles in the same order."
    a, b = geometry.corners(old), geometry.corners(new)
    return (
        len(a) == len(b)
        and (not len(a) or torch.cdist(a, b).amin(2).max() < atol)
        and bool(((new[:, 4] >= -math.pi / 2 - 1e-6) & (new[:, 4] < math.pi)).all())
    )


# -- there and back in the published layouts


@pytest.mark.parametrize(
    "kind, classes",
    [
        ("dota", ("plane", "ship", "harbor")),
        ("rolabel", ("car", "person")),
        ("dior", ("airplane", "ship", "windmill")),
        ("hrsc", ("ship",)),
        ("hrsc", ("100000002", "100000013", "100000027")),
    ],
)
@pytest.mark.parametrize("version", ["oc", "le90", "le135"])
def test_there_and_back(tmp_path, kind, classes, version):
    parts = scenes(tmp_path / "made", classes, {"train": 5, "val": 4, "test": 4})
    out = export_folder(tmp_path / "out", parts, kind)
    labels = "types" if classes[0] in HRSC else None
    for split, part in parts.items():
        back = open_data(out, split, labels, geometry=Rotated(version))
        assert (
            back.classes
            == tuple(
                sorted(
                    classes,
                    key={"dota": DOTA, "dior": DIOR}[kind].index
                    if kind in ("dota", "dior")
                    else None,
                )
            )
            and not back.defects
        )
        assert back.format == ("hrsc-types" if labels else kind) and len(back) == len(part)
        found = {record.image_id: record for record in back.records}
        for _i, record in enumerate(part.records):
            new = found[record.image_id].objects
            assert same_boxes(
                Rotated(version).normalize(record.objects.boxes), new.boxes, Rotated(version)
            )
            assert [back.classes[label] for label in new.labels] == [
                classes[label] for label in record.objects.labels
            ] and new.ignore.equal(record.objects.ignore)
        sample = back.load(0)
        assert (
            sample.image.shape == (3, SIZE[1], SIZE[0])
            and sample.objects.boxes.dtype == torch.float32
        )


def test_hrsc_layout_is_the_published_one(tmp_path):
    parts = scenes(tmp_path / "made", ("ship",), {"trainval": 4, "test": 3})
    out = export_folder(tmp_path / "HRSC2016", parts, "hrsc")
    assert sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_dir()) == [
        "FullDataSet",
        "FullDataSet/AllImages",
        "FullDataSet/Annotations",
        "ImageSets",
    ]
    assert {path.suffix for path in (out / "FullDataSet/AllImages").iterdir()} == {".bmp"}
    assert (out / "ImageSets/test.txt").read_text().split() == ["test_000", "test_001", "test_002"]
    for extra in (
        "LandMask",
        "Segmentations",
    ):  # as unpacked: masks and a list of classes lie beside
        (out / "FullDataSet" / extra).mkdir()
        for path in (out / "FullDataSet/AllImages").iterdir():
            shutil.copy(path, out / "FullDataSet" / extra / f"{path.stem}.png")
    (out / "FullDataSet/sysdata.xml").write_text("<SystemData/>")
    for root in (out, out / "FullDataSet", out / "FullDataSet/Annotations"):
        assert splits(root) == {"trainval": 4, "test": 3} and all(
            record.path.suffix == ".bmp" for record in open_data(root).records
        )
    report = survey(out)
    assert (
        report.images == 7
        and report.objects == 18
        and report.usable == 12
        and report.ignored == 6
        and not report.defects
    )
    assert report.format == "hrsc" and any(
        "types (hrsc-types, rotated)" in sentence for sentence in report.said
    )
    train = open_data(out, "train", geometry=LE90)
    val = open_data(out, "val", geometry=LE90)
    assert len(train) + len(val) == 4 and len(val) == 1  # a tenth of trainval is set aside
    flat = tmp_path / "flat"  # the layout without the folder between
    shutil.copytree(out / "FullDataSet/Annotations", flat / "Annotations")
    shutil.copytree(out / "FullDataSet/AllImages", flat / "AllImages")
    shutil.copytree(out / "ImageSets", flat / "ImageSets")
    assert splits(flat) == {"trainval": 4, "test": 3} and open_data(flat).format == "hrsc"


def test_hrsc_sample_of_the_specification(tmp_path):
    sample = dict(cx=341.2143, cy=443.3325, w=778.4297, h=178.2595, angle=-1.122944)
    root = hrsc(tmp_path, {"100000008": hrsc_text(sample)})
    Image.new("RGB", (1166, 865)).save(root / "FullDataSet/AllImages/100000008.bmp")
    corners = torch.tensor([[92.33, 755.57], [429.42, 53.91], [590.10, 131.10], [253.01, 832.76]])
    for version in ("oc", "le90", "le135"):
        found = open_data(root, geometry=Rotated(version))
        assert (
            torch.cdist(Rotated(version).corners(found.records[0].objects.boxes)[0], corners)
            .min(1)
            .values.max()
            < 0.02
        )
        assert found.classes == ("ship",)
    assert torch.allclose(
        open_data(root, geometry=LE90).records[0].objects.boxes[0],
        torch.tensor(list(sample.values())),
        atol=1e-3,
    )


def test_hrsc_types_and_their_order(tmp_path):
    root = hrsc(
        tmp_path,
        {
            "a": hrsc_text({"type": "100000033"}, {"type": "100000002"}),
            "b": hrsc_text({"type": "100000013"}),
        },
    )
    assert open_data(root).classes == ("ship",) and open_data(root, labels="hrsc").counts() == {
        "ship": 3
    }
    assert (
        open_data(root, labels="types").classes == ("100000002", "100000013", "100000033")
        and open_data(root, labels="hrsc-types").counts()["100000013"] == 1
    )
    (root / "FullDataSet/Annotations/b.xml").write_text(
        hrsc_text({"type": "100000021"})
    )  # 21 does not occur
    found = open_data(root, labels="types")
    assert found.classes[-1] == "100000021" and any(
        "b.xml:5" in str(defect) and "100000021" in defect.what for defect in found.defects
    )
    assert not open_data(root).defects


def test_dior_layout_is_the_published_one(tmp_path):
    parts = scenes(
        tmp_path / "made",
        ("airplane", "Expressway-Service-area"),
        {"train": 4, "val": 3, "test": 3},
    )
    out = export_folder(tmp_path / "DIOR-R", parts, "dior")
    assert sorted({str(path.parent.relative_to(out)) for path in out.rglob("*.*")}) == [
        "Annotations/Oriented Bounding Boxes",
        "ImageSets/Main",
        "JPEGImages-test",
        "JPEGImages-trainval",
    ]
    (out / "Annotations/Horizontal Bounding Boxes").mkdir()  # the published set has these, too
    for path in (out / "Annotations/Oriented Bounding Boxes").iterdir():
        (out / "Annotations/Horizontal Bounding Boxes" / path.name).write_text(
            "<annotation>"
            "<object><name>airplane</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax>"
            "<ymax>9</ymax></bndbox></object></annotation>"
        )
    assert (
        open_data(out, "test", geometry=LE90).format == "dior"
        and open_data(out, "test", geometry=Upright()).format == "voc"
    )
    assert (
        splits(out, "dior")
        == {"train": 4, "trainval": 7, "val": 3, "test": 3}
        == splits(out, "Oriented Bounding Boxes")
    )
    shutil.rmtree(out / "ImageSets")
    assert splits(out, "dior") == {
        "trainval": 7,
        "test": 3,
    }  # without lists the picture folders decide
    assert all(
        record.path.parent.name == "JPEGImages-test"
        for record in open_data(out, "test", "dior").records
    )


def test_dior_sample_and_names_in_any_case(tmp_path):
    tags = "".join(
        f"<{axis}_{corner}>{value}</{axis}_{corner}>"
        for corner, pair in zip(
            ("left_top", "right_top", "right_bottom", "left_bottom"),
            ((133, 137), (184, 137), (184, 152), (133, 152)),
        )
        for axis, value in zip("xy", pair)
    )
    text = (
        "<annotation><size><width>200</width><height>160</height></size>\n"
        + "".join(
            "<object>"
            f"<name>{name}</name><difficult>{flag}</difficult><robndbox>{tags}</robndbox><angle>"
            "0</angle></object>\n"
            for name, flag in (
                ("golffield", 0),
                ("expressway-service-area", 1),
                ("Expressway-Toll-Station", 0),
            )
        )
        + "</annotation>"
    )
    picture(tmp_path / "JPEGImages-trainval/00001.jpg")
    (tmp_path / "Annotations/Oriented Bounding Boxes").mkdir(parents=True)
    path = tmp_path / "Annotations/Oriented Bounding Boxes/00001.xml"
    path.write_text(text)
    found = open_data(tmp_path, geometry=LE90)
    assert found.classes == (
        "Expressway-Service-area",
        "Expressway-toll-station",
        "golffield",
    ) and found.records[0].objects.ignore.tolist() == [False, True, False]
    assert (
        found.records[0].objects.boxes[0].tolist() == [158.5, 144.5, 51, 15, 0]
        and not found.defects
    )
    path.write_text(text.replace("golffield", "golfield"))
    assert any(
        "golfield is none of DIOR-R's 20, perhaps golffield" in str(defect)
        and "00001.xml:2" in str(defect)
        for defect in open_data(tmp_path).defects
    )


# -- DOTA: classes, difficulty, spelling of lines


@pytest.mark.parametrize("count, version", [(15, "v1.0"), (16, "v1.5"), (18, "v2.0")])
def test_dota_keeps_the_published_order(tmp_path, count, version):
    names = sorted(DOTA[:count])
    found = open_data(
        dota(tmp_path, {"P0000": "\n".join(quad(name, 10 + 5 * i) for i, name in enumerate(names))})
    )
    assert found.classes == DOTA[:count] and any(
        f"DOTA {version}'s, in its order." in sentence for sentence in found.said
    )
    assert [found.classes[label] for label in found.records[0].objects.labels] == names


def test_dota_of_other_classes_and_of_a_model(tmp_path):
    assert open_data(dota(tmp_path / "cups", {"a": quad("mug") + "\n" + quad("cup")})).classes == (
        "cup",
        "mug",
    )
    root = dota(
        tmp_path / "few", {"a": quad("ship") + "\n" + quad("large-vehicle") + "\n" + quad("plane")}
    )
    assert open_data(root).classes == ("plane", "large-vehicle", "ship")
    assert open_data(root, classes=DOTA[:15]).records[0].objects.labels.tolist() == [6, 5, 0]


def test_unknown_class_names(tmp_path, capsys):
    root = dota(
        tmp_path,
        {
            "a": quad("plane") + "\n" + quad("ship"),
            "b": quad("ship") + "\n" + quad("helicoptr") + "\n" + quad("helicoptr", 70),
        },
    )
    code, document = shown(capsys, root)
    (defect,) = document["defects"]
    assert (
        code == 0
        and defect["file"].endswith("b.txt")
        and defect["line"] == 2
        and "perhaps helicopter" in defect["what"]
    )
    assert open_data(root).classes == ("plane", "ship", "helicoptr") and document["objects"] == 5
    assert not open_data(root, ignore_classes=("helicoptr",)).defects


def test_difficulty_is_a_visible_choice(tmp_path):
    root = dota(
        tmp_path,
        {
            "a": "\n".join(
                quad("plane", 10 + 30 * i, flag=flag)
                for i, flag in enumerate(("", " 0", " 1", " 2"))
            )
        },
    )
    for learn, ignored in (
        (0, [False, False, True, True]),
        (1, [False, False, False, True]),
        (2, [False] * 4),
    ):
        found = open_data(root, learn=learn)
        assert found.records[0].objects.ignore.tolist() == ignored
        assert any("difficult and ignored" in sentence for sentence in found.said) == any(
            ignored
        ) and any("difficult and learned" in sentence for sentence in found.said) == (learn > 0)
    assert survey(root).ignored == 2


def test_difficulty_is_learned_in_training_only(tmp_path):
    parts = scenes(tmp_path / "made", ("ship",), {"train": 4, "val": 4, "test": 4})
    out = export_folder(tmp_path / "out", parts, "hrsc")
    for learn in (0, 1):
        opened = open_splits(Recipe(data=str(out), learn_difficult=learn), LE90)
        assert {
            split: sum(int(record.objects.ignore.sum()) for record in part.records)
            for split, part in opened.items()
        } == {"train": 0 if learn else 3, "val": 3, "test": 3}
    crowd = open_splits(Recipe(data=str(out), learn_difficult=2, ignore_class=""), Upright())[
        "train"
    ]
    assert not any(record.objects.ignore.any() for record in crowd.records)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(" ", ","),
        lambda text: text.replace(" ", ", "),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.rstrip("\n"),
        lambda text: "\ufeff" + text,
        lambda text: text.replace(" 0\n", "\n"),
        lambda text: text.replace("20 ", "20.0 "),
    ],
)
def test_ways_to_write_the_same_lines(tmp_path, change):
    text = (
        "imagesource:GoogleEarth\ngsd:null\n" + quad("plane") + "\n" + quad("ship", 90, 90) + "\n"
    )
    plain = open_data(dota(tmp_path / "plain", {"a": text}))
    other = open_data(dota(tmp_path / "other", {"a": change(text)}, ("labels", "images")))
    assert (
        other.format == "dota"
        and not other.defects
        and other.classes == plain.classes == ("plane", "ship")
    )
    assert (
        torch.equal(other.records[0].objects.boxes, plain.records[0].objects.boxes)
        and not other.records[0].objects.ignore.any()
    )
    assert [where[-1] for where in other.records[0].lines] == ["3", "4"]


# -- polygons that are none


def test_polygons_that_cross_themselves(tmp_path, capsys):
    tie, tidy = "20 20 60 20 20 50 60 50 plane 0", "20 20 60 20 60 50 20 50 plane 0"
    root = dota(tmp_path, {"a": f"{tie}\n{tidy}\n"})
    code, document = shown(capsys, root)
    (defect,) = document["defects"]
    assert (
        code == 0
        and defect["line"] == 1
        and "cross each other" in defect["what"]
        and document["objects"] == document["usable"] == 2
    )
    for geometry in (LE90, Rotated("le135", "edges"), Upright()):
        boxes = open_data(root, geometry=geometry).records[0].objects.boxes
        assert torch.allclose(boxes[0], boxes[1], atol=1e-4)


@pytest.mark.parametrize(
    "numbers",
    [
        "20 20 60 20 40 50",
        "20 20 60 20 70 40 40 60 10 40",
        "20 20 60 50",
        "20 20 60 20 60 50 20 50 7",
    ],
)
def test_polygons_with_other_than_four_corners(tmp_path, capsys, numbers):
    root = dota(tmp_path, {"a": f"{quad()}\n{numbers} plane 0\n"})
    code, document = shown(capsys, root)
    (defect,) = document["defects"]
    assert (
        code == 0
        and defect["line"] == 2
        and f"{len(numbers.split())} numbers" in defect["what"]
        and document["objects"] == 1
    )
    if len(numbers.split()) in (
        6,
        10,
    ):  # such an object alone in its file is no reason to refuse the set
        (root / "labelTxt/b.txt").write_text(f"{numbers} plane 0")
        picture(root / "images/b.png")
        assert shown(capsys, root)[0] == 0 and [
            len(record.objects) for record in open_data(root).records
        ] == [1, 0]


def test_negative_coordinates_and_corners_outside(tmp_path, capsys):
    root = dota(
        tmp_path,
        {
            "a": "-12 20 30 20 30 50 -12 50 plane 0\n-40 -40 -10 -40 -10 -10 -40 -10 plane 0\n"
            "170 20 230 20 230 60 170 60 plane 0"
        },
    )
    code, document = shown(capsys, root)
    found = {defect["line"]: defect["what"] for defect in document["defects"]}
    assert (
        code == 0
        and "leaves the image" in found[1]
        and "lies outside" in found[2]
        and "leaves the image" in found[3]
        and document["usable"] == 2
    )
    assert open_data(root, geometry=LE90).records[0].objects.boxes[0].tolist() == [
        9,
        35,
        42,
        30,
        0,
    ]  # kept whole


def test_images_without_objects(tmp_path, capsys):
    root = dota(
        tmp_path / "dota", {"a": quad(), "b": "", "c": "imagesource:GoogleEarth\ngsd:0.1\n"}
    )
    ships = hrsc(tmp_path / "hrsc", {"a": hrsc_text({}), "b": hrsc_text()})
    for folder, count in ((root, 3), (ships, 2)):
        found = open_data(folder, geometry=LE90)
        assert (
            len(found) == count
            and not found.defects
            and found.records[1].objects.boxes.shape == (0, 5)
        )
        code, document = shown(capsys, folder)
        assert code == 0 and document["images"] == count and document["objects"] == 1


@pytest.mark.parametrize(
    "change, words",
    [
        ({"w": 0}, "no width"),
        ({"h": 0, "w": 0}, "no width and no height"),
        ({"h": -5}, "negative side"),
        ({"cx": "nan"}, "not a finite number"),
        ({"cx": 900}, "lies outside"),
    ],
)
def test_turned_boxes_without_extent(tmp_path, capsys, change, words):
    root = hrsc(tmp_path, {"a": hrsc_text({}, change)})
    code, document = shown(capsys, root)
    (defect,) = document["defects"]
    assert (
        code == 0
        and defect["line"] == 9
        and words in defect["what"]
        and (document["objects"], document["usable"]) == (2, 1)
    )


def test_quadrilaterals_without_extent(tmp_path):
    found = open_data(
        dota(
            tmp_path,
            {
                "a": quad()
                + "\n10 10 10 10 10 10 10 10 plane 0\n10 10 30 30 20 20 40 40 plane 0\n10 10 40 10 40 10 25 40 plane 0"
            },
        )
    )
    assert ["no area" in str(defect) for defect in found.defects] == [True, True] and [
        str(defect).split(":")[1] for defect in found.defects
    ] == ["2", "3"]
    assert len(found.records[0].objects) == 2  # a triangle has an area


# -- angles


@pytest.mark.parametrize("angle", [45, -64.34, 6.5])
def test_degrees_beyond_a_full_turn(tmp_path, angle):
    root = hrsc(tmp_path, {"a": hrsc_text({}), "b": hrsc_text({}, {"angle": angle})})
    with pytest.raises(BadInput) as caught:
        open_data(root)
    assert (
        "b.xml:12" in str(caught.value)
        and "degrees" in str(caught.value)
        and "pi/180" in str(caught.value)
    )
    assert show(root) == 2


def test_small_degrees_are_found_by_their_company(tmp_path, capsys):
    texts = {f"p{i}": hrsc_text({"angle": i % 5 - 2}, {"angle": 0}) for i in range(12)}
    root = hrsc(tmp_path, texts)
    with pytest.raises(
        BadInput,
        match="whole numbers from -2 to 2, so the labels seem to hold degrees; multiply the angles by pi/180",
    ):
        open_data(root)
    assert show(root) == 2
    (root / "FullDataSet/Annotations/p0.xml").write_text(
        hrsc_text({"angle": 0.123})
    )  # one angle that is none: radians
    assert len(open_data(root)) == 12 and show(root) == 0


# -- XML of all kinds


@pytest.mark.parametrize(
    "declared, written",
    [
        ("utf-8", "gbk"),
        ("utf-16", "utf-8"),
        ("gb2312", "gbk"),
        ("utf-8", "latin-1"),
        ("nonsense", "utf-8"),
    ],
)
def test_xml_with_odd_encoding(tmp_path, capsys, declared, written):
    remark = "\u8239" if written == "gbk" else "Gr\u00f6\u00dfe"
    text = (
        hrsc_text({})
        .replace("utf-8", declared)
        .replace("<HRSC_Objects>", f"<Annotator>{remark}</Annotator>\n<HRSC_Objects>")
    )
    root = hrsc(tmp_path, {"a": text.encode(written), "b": hrsc_text({})})
    code, document = shown(capsys, root)
    (defect,) = document["defects"]
    assert (
        code == 0
        and defect["file"].endswith("a.xml")
        and "UTF-8" in defect["what"]
        and document["usable"] == 2
    )
    first, second = open_data(root).records
    assert torch.equal(first.objects.boxes, second.objects.boxes) and first.lines[0].endswith(
        "a.xml:6"
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text[:300],
        lambda text: text.replace("mbox_w", "width"),
        lambda text: text.replace(">90<", ">long<"),
        lambda text: text.replace("HRSC_Objects", "Objects"),
        lambda text: text.replace("<Class_ID>", "<Class>").replace("</Class_ID>", "</Class>"),
    ],
)
def test_xml_that_cannot_be_read(tmp_path, capsys, change):
    root = hrsc(tmp_path, {"a": hrsc_text({}), "b": change(hrsc_text({}))})
    labels = ("--labels", "types") if "<Class>" in change(hrsc_text({})) else ()
    assert show(root, *labels) == 2
    error = capsys.readouterr().err.strip()
    assert "b.xml:" in error and len(error.splitlines()) == 1


def test_windows_line_ends_in_xml_and_lists(tmp_path):
    root = hrsc(
        tmp_path,
        {"a": hrsc_text({}).replace("\n", "\r\n"), "b": hrsc_text({})},
        {"trainval": "a", "test": "b"},
    )
    for split, stem in (("trainval", "a"), ("test", "b")):
        (root / f"ImageSets/{split}.txt").write_bytes(f"{stem}\r\n".encode())
    assert splits(root) == {"trainval": 1, "test": 1} and not open_data(root).defects
    assert torch.equal(
        open_data(root, "test").records[0].objects.boxes,
        open_data(root, "trainval").records[0].objects.boxes,
    )


# -- conversion by command


def test_convert_by_command(tmp_path, capsys):
    parts = scenes(tmp_path / "made", ("plane", "ship"), {"train": 4, "val": 3, "test": 3})
    root = export_folder(tmp_path / "dota", parts, "dota")
    for kind in ("rolabel", "dior"):
        assert (
            main(["data", "convert", str(root), "--to", kind, "--out", str(tmp_path / kind)]) == 0
        )
        assert (
            main(
                [
                    "data",
                    "convert",
                    str(tmp_path / kind),
                    "--to",
                    "dota",
                    "--out",
                    str(tmp_path / f"{kind}_back"),
                ]
            )
            == 0
        )
        for split, part in parts.items():
            for old, new in zip(
                part.records, open_data(tmp_path / f"{kind}_back", split, geometry=LE90).records
            ):
                assert same_boxes(old.objects.boxes, new.objects.boxes, LE90, atol=0.01)
    capsys.readouterr()
    assert (
        main(["data", "convert", str(root), "--to", "hrsc", "--out", str(tmp_path / "hrsc")]) == 2
    )
    assert "ship" in capsys.readouterr().err and not (tmp_path / "hrsc").exists()


# -- turning pictures and boxes together


def painted(boxes, size):
    "Pixels whose centres lie in each box, bool [G, H, W]: an oracle that knows nothing of matrices."
    masks = []
    for box in boxes.double():
        cos, sin = math.cos(box[4]), math.sin(box[4])
        y, x = np.mgrid[: size[0], : size[1]] + 0.5
        u = (x - float(box[0])) * cos + (y - float(box[1])) * sin
        v = (y - float(box[1])) * cos - (x - float(box[0])) * sin
        masks.append((abs(u) < float(box[2]) / 2) & (abs(v) < float(box[3]) / 2))
    return torch.from_numpy(np.stack(masks)) if masks else torch.zeros(0, *size, dtype=torch.bool)


def bars(seed, geometry, size=(420, 420)):
    "Three boxes at random angles in the middle of a picture, each painted into a channel of its own."
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.cat(
        [
            torch.rand(3, 2, generator=generator) * 60 + 180,
            torch.tensor([[150.0, 36.0], [90.0, 60.0], [60.0, 44.0]]),
            torch.rand(3, 1, generator=generator) * 6,
        ],
        1,
    )
    boxes = geometry.normalize(boxes)
    return Sample(
        painted(boxes, size).float(),
        Objects(boxes, torch.arange(3), torch.zeros(3, dtype=torch.bool)),
        torch.eye(3),
        seed,
        size,
    )


def overlap(a, b):
    return float((a & b).sum() / (a | b).sum())


OPS = {
    "turn": RandomRotate(1.0),
    "turn and grow": RandomRotate(1.0, grow=True),
    "list": RandomRotate(1.0, (30.0, 60.0, 90.0, 120.0, 150.0), between=False),
    "right angles": RandomRotate(1.0, right_angles=(0,)),
    "flips": RandomFlip(1.0, DIRECTIONS),
    "scales": MultiScale((300, 400, 600), 900),
    "all": Compose(
        (RandomFlip(0.75, DIRECTIONS), RandomRotate(1.0), MultiScale((350, 600), 900, between=True))
    ),
}


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("version", ["oc", "le90", "le135"])
def test_boxes_stay_on_their_pixels(name, version):
    geometry, moved = Rotated(version), 0
    for seed in range(6):
        sample = bars(seed, geometry)
        view = OPS[name](sample, generator_for(3, seed), geometry)
        moved += not torch.equal(view.matrix, torch.eye(3))
        assert view.objects.labels.tolist() == [0, 1, 2]
        shapes = painted(view.objects.boxes, tuple(view.image.shape[-2:]))
        for shape, pixels in zip(shapes, view.image > 0.5):
            assert overlap(shape, pixels) > 0.95
        assert torch.allclose(
            geometry.normalize(view.objects.boxes), view.objects.boxes, atol=1e-4
        )  # the angle is in its version's range
    assert moved >= 3


def test_rotated_embedded_set_follows_its_pixels():
    """The embedded set's rotated boxes, rotated with their pictures, lie on their pixels."""
    from madet.data.embedded import embedded

    data = embedded("easy", "train", LE90, count=12)
    op = augmentation(Recipe(flips="all", turns="-180..180"), data.classes, "thimble")
    seen = 0
    for i in range(12):
        sample = data.load(i)
        inside = painted(sample.objects.boxes, (96, 96)).float()
        stack = Sample(
            torch.cat([inside.amax(0, keepdim=True)] * 3)
            if len(inside)
            else torch.zeros(3, 96, 96),
            sample.objects,
            torch.eye(3),
            i,
            (96, 96),
        )
        view = op(stack, generator_for(1, 0, i), LE90)
        for shape in painted(view.objects.boxes, (96, 96)):
            covered = (shape & (view.image[0] > 0.5)).sum() / shape.sum().clamp(min=1)
            edge = (LE90.enclosing_upright(view.objects.boxes) < 2).any() or (
                LE90.enclosing_upright(view.objects.boxes) > 94
            ).any()
            if not edge:
                assert covered > 0.85
                seen += 1
    assert seen >= 8


def test_centres_stay_inside_and_slivers_go():
    op = RandomRotate(1.0, min_side=5.0)
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        boxes = torch.cat(
            [
                torch.rand(9, 2, generator=generator) * torch.tensor([300.0, 100.0]),
                torch.rand(9, 2, generator=generator) * 30 + 1,
                torch.rand(9, 1, generator=generator) * 3,
            ],
            1,
        )
        sample = Sample(
            torch.zeros(3, 100, 300, dtype=torch.uint8),
            Objects(LE90.normalize(boxes), torch.arange(9), torch.zeros(9, dtype=torch.bool)),
            torch.eye(3),
            0,
            (100, 300),
        )
        view = op(sample, generator_for(2, seed), LE90)
        left = view.objects.boxes
        if view.matrix.equal(torch.eye(3)):
            continue  # every turn would have emptied it
        assert (
            len(left)
            and ((left[:, :2] >= 0) & (left[:, :2] < torch.tensor([300.0, 100.0]))).all()
            and (left[:, 2:4] >= 5).all()
        )


def test_a_turn_never_empties_a_picture_unless_allowed():
    box = torch.tensor([[390.0, 20, 12, 9, 0.3]])
    sample = Sample(
        torch.zeros(3, 40, 400, dtype=torch.uint8),
        Objects(box, torch.tensor([0]), torch.tensor([False])),
        torch.eye(3),
        0,
        (40, 400),
    )
    counts = {
        allowed: [
            len(RandomRotate(1.0, allow_empty=allowed)(sample, generator_for(0, i), LE90).objects)
            for i in range(20)
        ]
        for allowed in (False, True)
    }
    assert sum(counts[False]) == 20 and sum(counts[True]) < 10
    assert all(
        len(
            RandomRotate(1.0, grow=True, allow_empty=True)(
                sample, generator_for(0, i), LE90
            ).objects
        )
        == 1
        for i in range(8)
    )
    empty = Sample(sample.image, Objects.none(5), torch.eye(3), 0, (40, 400))
    assert len(RandomRotate(1.0)(empty, generator_for(1), LE90).objects) == 0 and not RandomRotate(
        1.0
    )(empty, generator_for(1), LE90).matrix.equal(torch.eye(3))


def test_published_settings_of_flips():
    op = augmentation(Recipe(flips="all", image_size="64"), ("a",), "thimble").ops[-1]
    sample = bars(0, LE90, (64, 64))
    seen = {}
    for i in range(500):
        matrix = op(sample, generator_for(9, i), LE90).matrix
        key = (float(matrix[0, 0]), float(matrix[1, 1]))
        seen[key] = seen.get(key, 0) + 1
    assert len(seen) == 4 and all(abs(count / 500 - 0.25) < 0.08 for count in seen.values())


# -- the real sets


@pytest.mark.skipif(not SHARED.exists(), reason="the shared real data is not here")
def test_hit_uav_as_turned_boxes():
    found = open_data(SHARED / "hit_uav", "train", "rotate_xml", ("DontCare",), Rotated("le90"))
    assert (len(found), found.format, found.classes) == (
        140,
        "rolabel",
        ("Bicycle", "Car", "OtherVehicle", "Person"),
    )
    derived = open_data(
        SHARED / "hit_uav", "train", "labelTxt_derived", ("DontCare",), Rotated("le90")
    )
    hulls = open_data(SHARED / "hit_uav", "train", "normal_xml", ("DontCare",), Upright())
    assert found.classes == derived.classes == hulls.classes
    for a, b in zip(found.records, derived.records):  # the same objects, written by other code
        assert a.image_id == b.image_id and len(a.objects) == len(b.objects)
        if len(a.objects):
            assert (
                LE90.corners(a.objects.boxes)[:, :, None] - LE90.corners(b.objects.boxes)[:, None]
            ).norm(dim=-1).amin(2).max() < 0.05


@pytest.mark.skipif(not SHARED.exists(), reason="the shared real data is not here")
def test_trash_as_dota():
    report = survey(SHARED / "trash_obb", verify=0)
    assert (report.format, report.images, report.objects, report.usable) == (
        "dota",
        148,
        843,
        843,
    ) and list(report.classes) == sorted(report.classes)
    assert len(report.defects) == 27 and all(
        "leaves the image" in defect.what for defect in report.defects
    )
