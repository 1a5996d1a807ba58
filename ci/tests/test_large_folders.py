"""What large folders need: as much work as there are labels, and the same answers as looking at every pair."""

import json
import random
from itertools import product

import pytest
from PIL import Image

from madet.boxes.errors import BadInput
from madet.data import picture_files
from madet.data.annotations import ImageAnnotations
from madet.data.duplicates import _EXPECTED, _pairs
from madet.data.formats.coco import load_json
from madet.data.formats.voc import read_xml
from madet.data.open_folder import OpenedFolder
from madet.data.picture_index import PictureIndex, Wanted, fits, namesakes
from madet.data.picture_names import read_key
from madet.data.picture_search import first_look
from madet.data.pixels import look
from madet.data.report import as_text, survey
from madet.data.splits import ImageEntry

XML = (
    "<annotation><object><name>ship</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax>"
    "<ymax>9</ymax></bndbox></object></annotation>"
)


def videos(root, count=10, frames=2):
    """`count` folders of pictures with the same names, and VOC labels in folders beside them."""
    for i, k in product(range(count), range(frames)):
        for kind in ("images", "Annotations"):
            (root / kind / f"clip_{i:02}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 12), (i, k, 0)).save(root / f"images/clip_{i:02}/{k:04}.png")
        (root / f"Annotations/clip_{i:02}/{k:04}.xml").write_text(XML)
    return root


def test_a_frame_is_compared_with_its_own_video_only(tmp_path):
    root = videos(tmp_path)
    images = sorted(root.rglob("*.png"))
    labels = sorted(root.rglob("*.xml"))
    index = PictureIndex(root, images, labels=labels)
    for label in labels:
        near = namesakes(index, "stem", label.stem, read_key(label.stem), label)
        assert [picture.path.parent.name for picture in near] == [label.parent.name]
        assert first_look(index, Wanted(label.stem, label)).image == near[0].path


@pytest.mark.parametrize("root_name", ["data", "clip_03"])
def test_leaving_out_other_folders_changes_nothing(tmp_path, root_name):
    """Keys with and without folders, of this machine and another, against all namesakes one by one."""
    root = videos(tmp_path / root_name)
    (root / "clip_02").mkdir()
    images = sorted(root.rglob("*.png"))
    places = [*sorted(root.rglob("*.xml"))[::3], root / "all.json", root / "clip_02" / "x.json"]
    index = PictureIndex(root, images, labels=places[:-2], sheets=places[-2:])
    keys = ["0000.png", "0001", "CLIP_01/0000.png", "images/clip_02/0001.png", "clip_99/0000.png"]
    keys += [
        "/home/me/clip_04/0000.png",
        "D:\\x\\clip_05\\0001.png",
        "clip_03/0001.png",
        "data/0000.png",
    ]
    fewer = 0
    for text, near in product(keys, places):
        wanted, key = Wanted(text, near), read_key(text)
        for table, word in (("name", key.name), ("stem", key.name[:4])):
            every = index.tables[table].get(word, [])
            some = namesakes(index, table, word, key, near)
            fewer += len(some) < len(every)
            assert [one for one in some if fits(index, one, key, wanted)] == [
                one for one in every if fits(index, one, key, wanted)
            ]
    assert fewer > 100


def test_lists_name_frames_by_their_video(tmp_path):
    root = videos(tmp_path)
    (root / "ImageSets").mkdir()
    rows = [f"clip_{i:02}/{k:04}" for i, k in product(range(10), range(2))]
    for split, some in (("train", rows[:14]), ("val", [*rows[14:], "clip_77/0000"])):
        (root / f"ImageSets/{split}.txt").write_text("\n".join(some))
    opened = OpenedFolder(root)
    for split, some in (("train", rows[:14]), ("val", rows[14:])):
        found = [entry.image.relative_to(root / "images") for entry in opened.parts.entries[split]]
        assert [path.with_suffix("").as_posix() for path in found] == some
    assert [defect.where.rpartition(":")[2] for defect in opened.parts.defects] == ["7"]


def every_pair(found):
    pairs = {}
    for i, (a, first) in enumerate(found):
        for b, second in found[i + 1 :]:
            if {a, b} not in _EXPECTED and (a != b or first is not second):
                pairs.setdefault((a, b), (first, second))
    return pairs


def test_pairs_of_equal_pictures_are_those_of_all_pairs():
    draw = random.Random(0)
    entries = [ImageEntry(ImageAnnotations(f"{i}.png", ""), None) for i in range(4)]
    for _ in range(500):
        parts = [
            draw.choice(("train", "val", "test", "trainval")) for _ in range(draw.randrange(9))
        ]
        found = [(part, draw.choice(entries)) for part in parts]
        assert list(_pairs(found).items()) == list(every_pair(found).items())


def test_thousands_of_equal_pictures_are_few_pairs():
    entries = [("train", ImageEntry(None, None)) for _ in range(10_000)]
    assert list(_pairs(entries)) == [("train", "train")]  # of 50 millions


def test_a_small_picture_asks_for_no_memory(tmp_path, monkeypatch):
    Image.new("RGB", (16, 12)).save(tmp_path / "a.png")

    def never():
        raise AssertionError("asked")

    monkeypatch.setattr(picture_files.psutil, "virtual_memory", never)
    assert look(tmp_path / "a.png").stored == (16, 12)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r'"a\ud800b"', "a?b"),
        (r'"\udc00\ud83d\ude00"', "?\U0001f600"),
        (r'"\uD83D\uDE00"', "\U0001f600"),
        (r'"\\ud800"', r"\ud800"),
        (r'"\\\ud800\n"', "\\?\n"),
    ],
)
def test_half_a_character_in_json_becomes_a_question_mark(tmp_path, written, read):
    (tmp_path / "a.json").write_text(f"[{written}]")
    assert load_json(tmp_path / "a.json") == [read]


def test_a_report_on_createml_with_half_a_character_can_be_printed(tmp_path):
    Image.new("RGB", (16, 12)).save(tmp_path / "a.png")
    box = {"x": 5, "y": 5, "width": 4, "height": 4}
    rows = [
        {"image": name, "annotations": [{"label": "cup", "coordinates": box}]}
        for name in ("a.png", "\ud800.png")
    ]
    (tmp_path / "_annotations.createml.json").write_text(json.dumps(rows))
    assert "its picture ?.png is missing" in as_text(survey(tmp_path)).encode().decode()


@pytest.mark.parametrize("encoding", ["idna", "undefined", "punycode"])
def test_an_encoding_that_replaces_nothing_is_one_bad_file(tmp_path, encoding):
    head = f'<?xml version="1.0" encoding="{encoding}"?>'.encode()
    (tmp_path / "a.xml").write_bytes(head + b"<annotation>caf\xe9</annotation>")
    assert read_xml(tmp_path / "a.xml").note.startswith("the characters do not fit")
    (tmp_path / "a.xml").write_bytes(head + b"<annotation>\xe9")
    with pytest.raises(BadInput, match=r"a\.xml:1: not valid XML"):
        read_xml(tmp_path / "a.xml")
