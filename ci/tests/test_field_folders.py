"""Folders as people keep them: which label files belong together, which picture a label means, what is for training.

The cases of ../shared/field first, then their neighbours, built here.
"""

import json
import unicodedata

import pytest
from PIL import Image

from madet.boxes.errors import BadInput
from madet.boxes.geometry import Rotated, Upright
from madet.cli import main
from madet.data.discover import discover
from madet.data.open_folder import OpenedFolder, open_data, splits
from madet.data.report import survey

OBJECT = (
    "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin>"
    "<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def picture(path, size=(64, 48), gray=120):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, gray).save(path)
    return path


def xml(path, x=5, name="cup", filename="", size=None):
    """A VOC file with one box whose left edge is `x`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    head = f"<filename>{filename}</filename>" if filename else ""
    if size:
        head += "<size><width>{}</width><height>{}</height></size>".format(*size)
    box = OBJECT.format(name, x, 5, x + 15, 20)
    path.write_text(f"<annotation><folder>{path.parent.name}</folder>{head}{box}</annotation>")
    return path


def coco(path, boxes, size=None, **change):
    """A COCO file: `boxes` {file name: left edge of its one box}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images, rows = [], []
    for i, (name, x) in enumerate(boxes.items()):
        images.append({"id": i, "file_name": name})
        if size:
            images[-1] |= {"width": size[0], "height": size[1]}
        rows.append(
            {"id": i, "image_id": i, "category_id": 1, "bbox": [x, 5, 15, 15], "iscrowd": 0}
        )
    data = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "cup"}]}
    path.write_text(json.dumps(data | change))
    return path


def voc(root, boxes, folder="Annotations", images="JPEGImages", suffix=".png", gray=120):
    """VOC files in `folder` and pictures in `images`: `boxes` {stem: left edge}."""
    for i, (stem, x) in enumerate(boxes.items()):
        xml(root / folder / f"{stem}.xml", x)
        picture(root / images / f"{stem}{suffix}", gray=(gray + 7 * i) % 256)
    return root


def found(path, split=None, **how):
    """{picture below the root: left edges of its boxes} of a data set."""
    dataset = open_data(path, split, geometry=Upright(), **how)
    root = discover(path).root
    left = {}
    for record in dataset.records:
        left[record.path.relative_to(root).as_posix()] = record.objects.boxes[:, 0].tolist()
    return left


def defects(path, **how):
    return " | ".join(map(str, survey(path, verify=0, **how).defects))


def said(path, **how):
    return " ".join(survey(path, verify=0, **how).said)


def refused(path, **how):
    with pytest.raises(BadInput) as caught:
        open_data(path, **how)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- the cases from the field


@pytest.fixture
def field(shared):
    def folder(name):
        if not (shared / "field/upright" / name).is_dir():
            pytest.skip(f"no {name} in {shared}/field/upright")
        return shared / "field/upright" / name

    return folder


COUNTS = {
    "voc_folder_per_class": ({"train": 4}, 4),
    "voc_nested_dirs_unique": ({"train": 4}, 4),
    "voc_same_stems_in_subfolders": ({"train": 2}, 2),
    "voc_split_names_train_dev": ({"train": 2, "val": 2}, 4),
    "voc_split_names_train_set": ({"train": 2, "test": 2}, 4),
    "voc_split_names_training_validation": ({"train": 2, "val": 2}, 4),
    "voc_devkit_two_years": ({"trainval": 4, "test": 2}, 6),
    "voc_devkit_two_years/VOCdevkit": ({"trainval": 4, "test": 2}, 6),
    "voc_devkit_two_years/VOCdevkit/VOC2007": ({"trainval": 2, "test": 1}, 3),
    "coco_json_named_by_camera": ({"train": 4}, 4),
    "voc_object_in_objects": ({"train": 1}, 1),
    "voc_polygon_only": ({"train": 1}, 2),
}


@pytest.mark.parametrize("name", COUNTS)
def test_field_counts(field, name):
    report = survey(field(name), verify=0)
    counted = {split: counts["images"] for split, counts in report.splits.items()}
    assert (counted, report.objects) == COUNTS[name]
    assert {"voc_folder_per_class": {"cat": 2, "dog": 2}}.get(
        name, report.classes
    ) == report.classes


def test_field_boxes_are_on_their_own_pictures(field):
    boxes = found(field("voc_same_stems_in_subfolders"))
    assert boxes["JPEGImages/cam1/0001.png"] == [5] and len(boxes) == 2
    one_missing = field("coco_same_names_one_missing")
    assert found(one_missing) == {"images/cam2/0001.png": [30]}
    assert "images[0]: its picture cam1/0001.png is missing" in defects(one_missing)


@pytest.mark.parametrize(
    "name, image",
    [
        ("coco_url_encoded", "a b.png"),
        ("coco_unicode_nfd", unicodedata.normalize("NFD", "café_ü.png")),
        ("voc_no_extension_match_upper", "A.png"),
        ("voc_filename_differs_from_stem", "photo_7.png"),
        ("voc_two_suffixes", "a.png"),
    ],
)
def test_field_pictures_in_other_spellings(field, name, image):
    record = open_data(field(name)).records[0]
    assert record.path.name == image and defects(field(name)) == ""
    assert (record.width, record.height) == ((32, 24) if name == "voc_two_suffixes" else (64, 48))
    assert (image in said(field(name))) == (name != "voc_two_suffixes")


def test_field_versions_stay_rivals(field):
    opened = OpenedFolder(field("coco_two_versions"))
    assert len(opened.layout.sources) == 2 and opened.source.files[0].name == "train.json"
    assert "v2 (coco)" in said(field("coco_two_versions"))
    assert OpenedFolder(field("coco_two_versions"), "v2").source.files[0].name == "train_v2.json"


def test_field_odd_objects(field):
    one_pixel = open_data(field("voc_one_pixel_inclusive")).records[0].objects.boxes.tolist()
    assert (
        one_pixel == [[5, 5, 6, 20], [1, 1, 64, 48]]
        and defects(field("voc_one_pixel_inclusive")) == ""
    )
    hull = open_data(field("voc_polygon_only")).records[0].objects.boxes.tolist()
    assert hull == [[5, 5, 20, 30], [1, 1, 9, 9]]
    assert "no <bndbox>" in defects(field("voc_polygon_only"))
    assert "<objects>" in defects(field("voc_object_in_objects"))


# -- parts of one set, and rivals


def test_a_json_a_class_folder(tmp_path):
    for kind, x in (("cat", 5), ("dog", 25)):
        coco(tmp_path / kind / "labels.json", {f"{kind}{i}.png": x + i for i in range(2)})
        for i in range(2):
            picture(tmp_path / kind / f"{kind}{i}.png")
    assert found(tmp_path) == {
        "cat/cat0.png": [5],
        "cat/cat1.png": [6],
        "dog/dog0.png": [25],
        "dog/dog1.png": [26],
    }
    assert len(OpenedFolder(tmp_path).layout.sources) == 1


def test_cameras_with_equal_names(tmp_path):
    for camera, x in (("front", 5), ("left", 15), ("right", 25)):
        voc(tmp_path, {"0001": x, "0002": x + 1}, f"Annotations/{camera}", f"JPEGImages/{camera}")
    boxes = found(tmp_path)
    assert boxes["JPEGImages/left/0001.png"] == [15] and boxes["JPEGImages/right/0002.png"] == [26]
    assert len(boxes) == 6 and len({record.image_id for record in open_data(tmp_path).records}) == 6


def test_a_camera_without_its_picture_gets_no_other(tmp_path):
    voc(tmp_path, {"0001": 5, "0002": 6}, "Annotations/day", "JPEGImages/day")
    voc(tmp_path, {"0001": 15, "0003": 16}, "Annotations/night", "JPEGImages/night")
    (tmp_path / "JPEGImages/night/0001.png").unlink()
    assert found(tmp_path) == {
        "JPEGImages/day/0001.png": [5],
        "JPEGImages/day/0002.png": [6],
        "JPEGImages/night/0003.png": [16],
    }
    assert "night/0001.xml: its picture 0001 is missing; JPEGImages/day/0001.png" in defects(
        tmp_path
    )


def test_a_camera_without_any_picture_gets_no_other(tmp_path):
    voc(tmp_path, {"0001": 5, "0002": 6}, "Annotations/day", "JPEGImages/day")
    for stem in ("0001", "0002"):
        xml(tmp_path / f"Annotations/night/{stem}.xml", 15)
    assert list(found(tmp_path).values()) == [[5], [6]]
    assert "night (voc, none of its labelled pictures is here)" in said(tmp_path)


def test_text_files_of_day_and_night(tmp_path):
    for part, x in (("day", 5), ("night", 25)):
        picture(tmp_path / f"images/{part}/1.png")
        (tmp_path / f"labelTxt/{part}").mkdir(parents=True)
        line = f"{x} 5 {x + 9} 5 {x + 9} 20 {x} 20 cup 0"
        (tmp_path / f"labelTxt/{part}/1.txt").write_text(line)
    assert found(tmp_path) == {"images/day/1.png": [5], "images/night/1.png": [25]}


@pytest.mark.parametrize("name", ["{}.json", "instances_{}.json", "{}_annotations.json"])
def test_a_json_a_camera_with_equal_bare_names(tmp_path, name):
    for camera, x in (("cam1", 5), ("cam2", 25)):
        picture(tmp_path / f"images/{camera}/0001.png")
        coco(tmp_path / "annotations" / name.format(camera), {"0001.png": x})
    assert found(tmp_path) == {"images/cam1/0001.png": [5], "images/cam2/0001.png": [25]}


def test_a_json_a_camera_whose_picture_is_missing(tmp_path):
    picture(tmp_path / "images/cam2/0001.png")
    for camera, x in (("cam1", 5), ("cam2", 25)):
        coco(tmp_path / f"annotations/{camera}.json", {"0001.png": x})
    assert found(tmp_path) == {"images/cam2/0001.png": [25]}


def test_upright_beside_rotated_stay_rivals(tmp_path):
    voc(tmp_path, {"a": 5, "b": 6}, "upright")
    for stem in "ab":
        turned = "<cx>30</cx><cy>20</cy><w>9</w><h>5</h><angle>.5</angle>"
        text = f"<annotation><object><name>cup</name><robndbox>{turned}</robndbox></object></annotation>"
        (tmp_path / "turned").mkdir(exist_ok=True)
        (tmp_path / f"turned/{stem}.xml").write_text(text)
    assert OpenedFolder(tmp_path).source.name == "upright"
    assert OpenedFolder(tmp_path, geometry=Rotated()).source.name == "turned"
    assert "upright (voc)" in said(tmp_path) and "turned (rolabel, rotated)" in said(tmp_path)


def test_coco_beside_voc_of_the_same_pictures(tmp_path):
    voc(tmp_path, {"a": 5, "b": 6})
    coco(tmp_path / "all.json", {"a.png": 15, "b.png": 16})
    assert list(found(tmp_path).values()) == [[15], [16]]
    assert list(found(tmp_path, labels="voc").values()) == [[5], [6]]
    assert "all (coco), Annotations (voc)" in said(
        tmp_path
    ) or "Annotations (voc), all (coco)" in said(tmp_path)


def test_a_subset_is_a_rival(tmp_path):
    voc(tmp_path, {stem: 5 for stem in "abcdef"})
    coco(tmp_path / "sample.json", {"a.png": 15})
    assert len(OpenedFolder(tmp_path).layout.sources) == 2


@pytest.mark.parametrize("whole", ["all", "annotations", "data", "instances", "total"])
@pytest.mark.parametrize("parts", [("train", "val"), ("my_train", "my_test")])
def test_of_rivals_the_one_with_parts_is_taken(tmp_path, whole, parts):
    for stem in "abcd":
        picture(tmp_path / f"images/{stem}.png")
    coco(tmp_path / f"{whole}.json", {f"{stem}.png": 5 for stem in "abcd"})
    coco(tmp_path / f"{parts[0]}.json", {f"{stem}.png": 5 for stem in "abc"})
    coco(tmp_path / f"{parts[1]}.json", {"d.png": 5})
    assert splits(tmp_path) == {"train": 3, parts[1].removeprefix("my_"): 1}
    assert f"{whole} has no parts" in said(tmp_path) or whole > "coco"
    assert splits(tmp_path, whole) == {"train": 4}


@pytest.mark.parametrize("images", ["{}", "images"])
def test_of_rivals_a_folder_each_the_one_with_parts_is_taken(tmp_path, images):
    for folder in ("all", "train", "val"):
        boxes = {"a": 5, "b": 6} if folder == "all" else {"a": 5} if folder == "train" else {"b": 6}
        voc(tmp_path, boxes, f"labels/{folder}", images.format(folder))
    assert splits(tmp_path) == {"train": 1, "val": 1}
    assert "all has no parts" in said(tmp_path) or images == "{}"


def test_a_small_rival_with_parts_is_not_taken(tmp_path):
    for stem in "abcdef":
        picture(tmp_path / f"images/{stem}.png")
    coco(tmp_path / "all.json", {f"{stem}.png": 5 for stem in "abcdef"})
    coco(tmp_path / "mini_train.json", {"a.png": 5})
    coco(tmp_path / "mini_val.json", {"b.png": 5})
    assert splits(tmp_path) == {"train": 6}


def test_lists_make_the_parts_of_what_is_read(tmp_path):
    for stem in "ab":
        picture(tmp_path / f"images/{stem}.png")
        (tmp_path / f"{'train' if stem == 'a' else 'val'}.txt").write_text(f"{stem}\n")
    coco(tmp_path / "all.json", {"a.png": 5, "b.png": 5})
    coco(tmp_path / "train.json", {"a.png": 5})
    coco(tmp_path / "val.json", {"b.png": 5})
    assert "all is read" in said(tmp_path) and splits(tmp_path) == {"train": 1, "val": 1}


def test_two_formats_of_different_pictures(tmp_path):
    voc(tmp_path, {"a": 5, "b": 6}, "day", "day")
    coco(tmp_path / "night/labels.json", {"c.png": 15, "d.png": 16})
    for stem in "cd":
        picture(tmp_path / f"night/{stem}.png")
    assert found(tmp_path) == {
        "day/a.png": [5],
        "day/b.png": [6],
        "night/c.png": [15],
        "night/d.png": [16],
    }
    assert "voc and coco labels" in said(tmp_path) and "read as one set" in said(tmp_path)
    assert list(found(tmp_path, labels="day")) == ["day/a.png", "day/b.png"]


def test_labels_that_share_a_few_pictures_are_refused(tmp_path):
    for stem in "abcdefgh":
        picture(tmp_path / f"images/{stem}.png")
    coco(tmp_path / "car.json", {f"{stem}.png": 5 for stem in "abcde"})
    coco(tmp_path / "bus.json", {f"{stem}.png": 15 for stem in "efgh"})
    sentence = refused(tmp_path)
    assert "1 pictures have labels in" in sentence and "--labels car" in sentence
    assert len(found(tmp_path, labels="bus")) == 4


def test_shards_are_read_together_and_versions_are_not(tmp_path):
    for stem in "abcd":
        picture(tmp_path / f"images/{stem}.png")
    coco(tmp_path / "train1.json", {"a.png": 5, "b.png": 6})
    coco(tmp_path / "train2.json", {"c.png": 7, "d.png": 8})
    assert len(found(tmp_path)) == 4
    coco(tmp_path / "train2.json", {"a.png": 15, "b.png": 16})
    assert list(found(tmp_path).values()) == [[5], [6]]
    assert list(found(tmp_path, labels="train2").values()) == [[15], [16]]


def test_an_example_of_another_set_brings_nothing(tmp_path):
    voc(tmp_path, {"a": 5})
    coco(tmp_path / "docs/example.json", {"zebra.png": 5}, categories=[{"id": 1, "name": "zebra"}])
    dataset = open_data(tmp_path)
    assert dataset.classes == ("cup",) and len(dataset) == 1
    assert "none of its labelled pictures is here" in said(tmp_path)


def test_pictures_listed_without_labels_bring_nothing(tmp_path):
    picture(tmp_path / "images/a.png")
    picture(tmp_path / "images/b.png")
    coco(tmp_path / "annotations/instances_train.json", {"a.png": 5})
    info = {"images": [{"id": 1, "file_name": "b.png"}], "categories": [{"id": 1, "name": "cup"}]}
    (tmp_path / "annotations/image_info_test-dev.json").write_text(json.dumps(info))
    assert found(tmp_path) == {"images/a.png": [5]}


@pytest.mark.parametrize("copy", ["backup", "old", "images_old", "runs"])
def test_a_copy_is_no_part(tmp_path, copy):
    voc(tmp_path, {"a": 5, "b": 6})
    voc(tmp_path / copy, {"a": 15, "b": 16, "c": 17})
    assert list(found(tmp_path).values()) == [[5], [6]]


def test_frames_of_sequences(tmp_path):
    for sequence, x in (("seq1", 5), ("seq2", 15)):
        voc(tmp_path / sequence, {"000001": x, "000002": x + 1}, "gt", "img1", gray=x)
    boxes = found(tmp_path)
    assert boxes["seq2/img1/000001.png"] == [15] and len(boxes) == 4


def test_dotas_upright_copies_are_not_preferred(tmp_path):
    for split in ("train", "val"):
        picture(tmp_path / f"{split}/images/P{split}.png")
        for folder in (f"labelTxt-v1.5/DOTA-v1.5_{split}", f"labelTxt-v1.5/DOTA-v1.5_{split}_hbb"):
            (tmp_path / split / folder).mkdir(parents=True)
            (tmp_path / split / folder / f"P{split}.txt").write_text("5 5 9 5 9 9 5 9 ship 0")
    opened = OpenedFolder(tmp_path, geometry=Rotated())
    assert {len(entries) for entries in opened.parts.entries.values()} == {1}
    assert [file.parent.name for file in opened.source.files] == [
        "DOTA-v1.5_train",
        "DOTA-v1.5_val",
    ]


def test_the_same_data_in_two_formats_with_their_own_pictures(tmp_path):
    voc(tmp_path / "voc", {"a": 5, "b": 6})
    coco(tmp_path / "coco/labels.json", {"a.png": 5, "b.png": 6})
    for i, stem in enumerate("ab"):
        picture(tmp_path / f"coco/images/{stem}.png", gray=120 + 7 * i)
    assert len(open_data(tmp_path)) == 2 and len(OpenedFolder(tmp_path).layout.sources) == 2


def test_an_xml_of_another_kind_in_a_folder_of_the_first(tmp_path):
    voc(tmp_path, {"a": 5, "b": 6, "c": 7})
    (tmp_path / "Annotations/pom.xml").write_text("<project/>")
    assert len(found(tmp_path)) == 3 and "pom.xml:1" in defects(tmp_path)


# -- words for parts


@pytest.mark.parametrize(
    "train, other, split",
    [
        ("train", "dev", "val"),
        ("Training", "Validation", "val"),
        ("train_set", "test_set", "test"),
        ("trainset", "testset", "test"),
        ("TrainSet", "ValSet", "val"),
        ("trn", "tst", "test"),
        ("train2017", "val2017", "val"),
        ("train-images", "holdout", "test"),
        ("Training Data", "hold_out", "test"),
        ("training", "eval", "val"),
        ("roads_train", "roads_test", "test"),
        ("train", "valid", "valid"),
        ("split_train", "Testing", "test"),
    ],
)
def test_words_for_parts_in_folders(tmp_path, train, other, split):
    voc(tmp_path, {"a": 5, "b": 6}, train, train)
    voc(tmp_path, {"c": 15}, f"{other}/labels", f"{other}/images")
    assert splits(tmp_path) == {"train": 2, split: 1}
    assert list(found(tmp_path, split).values()) == [[15]]


@pytest.mark.parametrize(
    "train, other, split",
    [
        ("instances_training", "instances_validation", "val"),
        ("train_set", "dev_set", "val"),
        ("cars_trn", "cars_tst", "test"),
        ("my_train", "my_holdout", "test"),
        ("person_keypoints_train2017", "person_keypoints_val2017", "val"),
    ],
)
def test_words_for_parts_in_file_names(tmp_path, train, other, split):
    for stem in "ab":
        picture(tmp_path / f"images/{stem}.png")
    coco(tmp_path / f"annotations/{train}.json", {"a.png": 5})
    coco(tmp_path / f"annotations/{other}.json", {"b.png": 15})
    assert (
        splits(tmp_path) == {"train": 1, split: 1}
        and len(OpenedFolder(tmp_path).layout.sources) == 1
    )


@pytest.mark.parametrize(
    "train, others, counted",
    [
        ("roads_train fields_train", "roads_test", {"train": 3, "test": 1}),
        ("day_train night_train", "day_test", {"train": 3, "test": 1}),
        ("train_day train_night", "test_day", {"train": 3, "test": 1}),
        ("train extra_train", "test night_test", {"train": 3, "test": 3}),
        ("munich_train", "berlin_test", {"train": 1, "test": 1}),
        ("roads_train", "roads_dev", {"train": 1, "val": 1}),
        ("crowdtrain", "crowdtest", {"train": 1, "test": 1}),
        ("mytrain2017", "myval2017", {"train": 1, "val": 1}),
        ("mytrainset", "mytestset", {"train": 1, "test": 1}),
    ],
)
@pytest.mark.parametrize("place", ["{}", "{}/labels", "labels/{}"])
def test_words_for_parts_with_another_word(tmp_path, train, others, counted, place):
    """The second folder has two pictures; with `labels/{}` all are called alike in `images/{}`."""
    folders = dict.fromkeys(train.split(), 1) | dict.fromkeys(others.split(), 1)
    for folder in folders:
        boxes = {f"{folder}{i}": 5 + i for i in range(2 if folder in train.split()[1:] else 1)}
        if folder == "night_test":
            boxes = {"n1": 5, "n2": 6}
        labels = place.format(folder)
        images = labels.replace("labels", "images")
        voc(tmp_path, boxes, labels, images, gray=sum(map(ord, folder)))
    assert splits(tmp_path) == counted
    assert "left out" not in said(tmp_path)


def test_a_copy_of_a_part_is_no_part(tmp_path):
    for folder in ("roads_train", "roads_test"):
        voc(tmp_path, {"a": 5, "b": 6}, folder, folder, gray=sum(map(ord, folder)))
    for copy in ("roads_train_small", "roads_train_old", "fields_train_backup", "all_train"):
        voc(tmp_path, {"a": 5, "b": 6}, copy, copy, gray=sum(map(ord, "roads_train")))
    assert splits(tmp_path) == {"train": 2, "test": 2}


def test_words_that_mean_no_part_beside_others(tmp_path):
    for name in ("munich_train", "berlin_test", "paris"):
        voc(tmp_path, {f"{name}1": 5}, name, name)
    assert splits(tmp_path) == {"train": 3} and "No split was found" in said(tmp_path)


def test_classes_with_such_words(tmp_path):
    for i, name in enumerate(("train_station", "test_bench")):
        xml(tmp_path / name / f"{i}.xml", 5, name)
        picture(tmp_path / name / f"{i}.png")
    assert splits(tmp_path) == {"train": 2} and "No split was found" in said(tmp_path)


@pytest.mark.parametrize("place", ["", "annotations/"])
def test_glued_words_in_file_names(tmp_path, place):
    for stem in "abc":
        picture(tmp_path / f"images/{stem}.png")
    coco(tmp_path / f"{place}crowdtrain.json", {"a.png": 5, "b.png": 6})
    coco(tmp_path / f"{place}crowdtest.json", {"c.png": 15})
    assert splits(tmp_path) == {"train": 2, "test": 1}
    assert "crowdtest.json as test, crowdtrain.json as train" in said(tmp_path)


def test_a_glued_word_alone_means_nothing(tmp_path):
    for name in ("contest", "latest", "mytrain"):
        voc(tmp_path, {f"{name}1": 5}, name, name)
    assert splits(tmp_path) == {"train": 3} and "No split was found" in said(tmp_path)


def test_words_that_only_look_alike(tmp_path):
    voc(tmp_path, {"a": 5}, "eval_tools", "eval_tools")
    voc(tmp_path, {"b": 6}, "trains", "trains")
    voc(tmp_path, {"c": 7}, "dev1", "dev1")
    assert splits(tmp_path) == {"train": 3} and "No split was found" in said(tmp_path)


def test_a_class_called_train(tmp_path):
    for i, name in enumerate(("bus", "car", "train")):
        xml(tmp_path / name / f"{i}.xml", 5 + i, name)
        picture(tmp_path / name / f"{i}.png")
    assert splits(tmp_path) == {"train": 3}
    assert open_data(tmp_path).classes == ("bus", "car", "train")
    assert "train is taken as the folder of a class" in said(tmp_path)


def test_a_class_called_train_inside_of_parts(tmp_path):
    for split in ("train", "test"):
        for i, name in enumerate(("car", "train")):
            xml(tmp_path / split / name / f"{split}{i}.xml", 5 + i, name)
            picture(tmp_path / split / name / f"{split}{i}.png")
    assert splits(tmp_path) == {"train": 2, "test": 2}


def test_train_beside_others_is_refused_where_nothing_tells(tmp_path):
    for i, name in enumerate(("bus", "car", "train")):
        xml(tmp_path / name / f"{i}.xml", 5 + i)
        picture(tmp_path / name / f"{i}.png")
    sentence = refused(tmp_path)
    assert "bus, car" in sentence and "ImageSets (train.txt" in sentence
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets/train.txt").write_text("0\n1\n")
    (tmp_path / "ImageSets/test.txt").write_text("2\n")
    assert splits(tmp_path) == {"train": 2, "test": 1}


def test_train_beside_files_of_cameras_is_refused(tmp_path):
    for name in ("cam1", "cam2", "train"):
        picture(tmp_path / f"images/{name}_0.png")
        coco(tmp_path / f"annotations/{name}.json", {f"{name}_0.png": 5})
    assert "annotations/cam1.json, annotations/cam2.json" in refused(tmp_path)
    assert len(found(tmp_path, labels="cam1")) == 1


def test_test_beside_classes_leaves_the_rest_for_training(tmp_path):
    for name in ("cat", "dog", "test"):
        voc(tmp_path, {f"{name}1": 5}, name, name)
    assert splits(tmp_path) == {"train": 2, "test": 1} and "taken as train" in said(tmp_path)


def test_train_dev_eval(tmp_path):
    for name in ("train", "dev", "eval"):
        voc(tmp_path, {f"{name}1": 5}, name, name)
    assert splits(tmp_path) == {"train": 1, "val": 1, "test": 1} and "taken as test" in said(
        tmp_path
    )


@pytest.mark.parametrize("word", ["unlabelled", "unlabeled", "Unlabeled2017"])
def test_the_pool_in_both_spellings(tmp_path, word):
    voc(tmp_path, {"a": 5})
    picture(tmp_path / word / "b.png")
    assert splits(tmp_path) == {"train": 1, "unlabelled": 1}


@pytest.mark.parametrize(
    "name, split", [("test_set", "test"), ("Training", "train"), ("dev", "train")]
)
def test_the_folder_itself_is_called_so(tmp_path, name, split):
    voc(tmp_path / name, {"a": 5})
    assert splits(tmp_path / name) == {split: 1}


def test_one_json_for_pictures_in_two_parts(tmp_path):
    for name in ("train/a.png", "val/b.png"):
        picture(tmp_path / name)
    coco(tmp_path / "labels.json", {"a.png": 5, "b.png": 6})
    assert splits(tmp_path) == {"train": 1, "val": 1}
    (tmp_path / "val/b.png").rename(tmp_path / "train/b.png")
    assert splits(tmp_path) == {"train": 2}


def test_own_lists_of_pictures_that_lie_in_one_folder(tmp_path):
    for stem in "abc":
        picture(tmp_path / f"train/{stem}.png")
    coco(tmp_path / "train.json", {"a.png": 5, "b.png": 6})
    coco(tmp_path / "val.json", {"c.png": 7})
    assert found(tmp_path, "val") == {"train/c.png": [7]} and splits(tmp_path) == {
        "train": 2,
        "val": 1,
    }


def test_labels_of_val_take_no_picture_of_train(tmp_path):
    voc(tmp_path, {"1": 5, "2": 6}, "labels/train", "images/train")
    xml(tmp_path / "labels/val/1.xml", 15)
    assert found(tmp_path) == {"images/train/1.png": [5], "images/train/2.png": [6]}
    assert "val/1.xml: its picture 1 is missing" in defects(tmp_path)


# -- lists


def devkit(root, tests=("VOC2007",)):
    """Two years with pictures of the same names; lists as the organisers have them."""
    for year, x in (("VOC2007", 5), ("VOC2012", 15)):
        voc(root / year, {"000001": x, "000002": x + 1}, gray=10 * x)
        lists = root / year / "ImageSets/Main"
        lists.mkdir(parents=True)
        (lists / "train.txt").write_text("000001\n")
        (lists / "val.txt").write_text("000002\n")
        (lists / "trainval.txt").write_text("000001\n000002\n")
        (lists / "cup_train.txt").write_text("000001 1\n")
        (lists / "test.txt").write_text("000003\n000004\n")
        for stem in ("000003", "000004"):
            picture(root / year / f"JPEGImages/{stem}.png", gray=10 * x + 20 * int(stem))
            if year in tests:
                xml(root / year / f"Annotations/{stem}.xml", x + 2)
    return root


def test_two_years_of_voc(tmp_path):
    root = devkit(tmp_path / "VOCdevkit")
    assert splits(root) == {"trainval": 4, "test": 2}
    assert found(root, "test") == {f"VOC2007/JPEGImages/00000{i}.png": [7] for i in (3, 4)}
    boxes = found(root, "trainval")
    assert boxes["VOC2007/JPEGImages/000001.png"] == [5] and boxes[
        "VOC2012/JPEGImages/000001.png"
    ] == [15]
    sentences = said(root)
    assert "VOC07+12" in sentences and "The list of test in VOC2012 names 2 images" in sentences
    assert "test 2 (VOC2007 2)" in sentences and not defects(root)


def test_one_year_of_voc_is_read_as_before(tmp_path):
    root = devkit(tmp_path / "VOCdevkit")
    assert splits(root / "VOC2007") == {"train": 1, "trainval": 2, "val": 1, "test": 2}
    (root / "VOC2012").rename(tmp_path / "VOC2012")
    assert splits(root) == splits(root / "VOC2007")
    (root / "README.md").write_text("from the organisers")
    assert splits(root) == splits(root / "VOC2007")


def test_lists_beside_the_pictures(tmp_path):
    voc(tmp_path, {stem: 5 for stem in "abc"}, "labels", "images")
    (tmp_path / "train.txt").write_text("images/a.png\n./images/b.png\n")
    (tmp_path / "val.txt").write_text("/home/somebody/data/images/c.png\n")
    assert splits(tmp_path) == {"train": 2, "val": 1}


@pytest.mark.parametrize(
    "line",
    [
        "./JPEGImages/{0}.png ./Annotations/{0}.xml",
        "JPEGImages/{0}.png\tAnnotations/{0}.xml",
        "/data/me/JPEGImages/{0}.png,/data/me/Annotations/{0}.xml",
        "Annotations/{0}.xml JPEGImages/{0}.png",
        "{0}.png {0}.xml",
        "{0}.png 1",
        "{0}.png 5,5,20,20,0 6,6,20,20,1",
        "JPEGImages/{0}.png",
    ],
)
@pytest.mark.parametrize("stem", ["x", "x y", "x.png copy"])
@pytest.mark.parametrize("place", ["", "ImageSets/Main/"])
def test_lists_with_a_label_file_beside_each_picture(tmp_path, line, stem, place):
    if stem == "x.png copy" and line != "JPEGImages/{0}.png":
        stem = "x"
    voc(tmp_path, {f"{stem}{i}": 5 + i for i in range(4)})
    for split, chosen in (("train", (0, 1, 2)), ("val", (3,))):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        text = "".join(line.format(f"{stem}{i}") + "\n" for i in chosen)
        (tmp_path / f"{place}{split}.txt").write_text(text)
    assert splits(tmp_path) == {"train": 3, "val": 1} and not defects(tmp_path)


def test_lists_that_fit_no_label(tmp_path):
    voc(tmp_path, {"a": 5, "b": 6})
    lists = tmp_path / "ImageSets"
    lists.mkdir()
    (lists / "train.txt").write_text("one\ntwo\n")
    assert "train.txt:1: no labels are of one, nor of any other name" in refused(tmp_path)
    (lists / "test.txt").write_text("a\n")
    assert splits(tmp_path) == {"test": 1} and "train.txt:1: no labels are of one" in defects(
        tmp_path
    )
    (lists / "trainval.txt").write_text("b\n")
    assert not defects(tmp_path)


def test_a_line_that_two_pictures_could_be(tmp_path):
    for camera in ("cam1", "cam2"):
        voc(tmp_path, {"1": 5, "2": 6}, f"Annotations/{camera}", f"JPEGImages/{camera}")
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets/train.txt").write_text("cam1/1\ncam1/2\n2\n")
    (tmp_path / "ImageSets/test.txt").write_text("cam2/1.png\n")
    assert splits(tmp_path) == {"train": 2, "test": 1}
    assert "train.txt:3: 2 may be" in defects(tmp_path)


# -- a label never lands on another picture


@pytest.mark.parametrize(
    "folder", ["backup", "thumbs", "runs/detect/exp", "images_old", "vis", "JPEGImages - Copy"]
)
def test_a_missing_picture_is_not_replaced(tmp_path, folder):
    voc(tmp_path, {"a": 5, "b": 6})
    coco(tmp_path / "c.json", {"a.png": 5, "b.png": 6})
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "JPEGImages/b.png").rename(tmp_path / folder / "b.png")
    for labels in ("voc", "c"):
        assert list(found(tmp_path, labels=labels)) == ["JPEGImages/a.png"]
        assert f"is missing; {folder}/b.png has its name" in defects(tmp_path, labels=labels)


@pytest.mark.parametrize(
    "key, image",
    [
        ("images/a.png", "train/images/a.png"),
        ("/home/somebody/set/images/a.png", "images/a.png"),
        ("C:\\Users\\somebody\\set\\images\\a.png", "images/a.png"),
        ("images\\a.png", "images/a.png"),
        ("./images/a.png", "images/a.png"),
        ("../images/a.png", "images/a.png"),
        ("JPEGImages/a.png", "images/a.png"),
        ("cam1/a.png", "images/cam1/a.png"),
        ("cam1/images/a.png", "images/cam1/a.png"),
        ("train2017/a.png", "train/a.png"),
        ("s3://bucket/set/a.png", "images/a.png"),
        ("a.jpeg", "images/a.png"),
        ("A.PNG", "images/a.png"),
        ("a b.png", "images/a%20b.png"),
        ("a", "images/a.png"),
    ],
)
def test_keys_that_find_their_picture(tmp_path, key, image):
    picture(tmp_path / image)
    coco(tmp_path / "annotations/labels.json", {key: 5})
    assert found(tmp_path) == {image: [5]}


@pytest.mark.parametrize(
    "key, image",
    [
        ("cam1/a.png", "images/a.png"),
        ("cam1/a.png", "cam2/a.png"),
        ("/home/somebody/cam1/a.png", "cam2/a.png"),
        ("cam1/images/a.png", "cam2/images/a.png"),
        ("images/a.png", "backup/a.png"),
        ("train/a.png", "val/a.png"),
        ("images/a.png", "thumbs/images/a.png"),
    ],
)
def test_keys_that_find_no_other_picture(tmp_path, key, image):
    picture(tmp_path / image)
    picture(tmp_path / "images/z.png")
    coco(tmp_path / "annotations/labels.json", {key: 5, "z.png": 6})
    assert found(tmp_path) == {"images/z.png": [6]}
    assert "images[0]: its picture" in defects(tmp_path) and "missing" in defects(tmp_path)


def test_an_absolute_path_that_two_keys_share(tmp_path):
    picture(tmp_path / "images/a.png")
    coco(tmp_path / "labels.json", {"/x/cam1/a.png": 5, "/x/cam2/a.png": 6, "images/a.png": 7})
    assert found(tmp_path) == {"images/a.png": [7]}


def test_two_kinds_of_camera_are_ambiguous(tmp_path):
    for kind, size in (("rgb", (64, 48)), ("thermal", (32, 24))):
        picture(tmp_path / kind / "a.png", size)
        picture(tmp_path / kind / "b.png")
    xml(tmp_path / "Annotations/a.xml", size=(32, 24))
    xml(tmp_path / "Annotations/b.xml", size=(64, 48))
    assert list(found(tmp_path)) == ["thermal/a.png"]
    assert "its picture b may be rgb/b.png or thermal/b.png" in defects(tmp_path)


def test_the_usual_folder_is_nearest_and_said(tmp_path):
    voc(tmp_path, {"a": 5, "b": 6})
    for stem in "ab":
        picture(tmp_path / f"enhanced/{stem}.png", gray=9)
    assert list(found(tmp_path)) == ["JPEGImages/a.png", "JPEGImages/b.png"]
    assert "several folders" in said(tmp_path)


def test_filenames_in_xml(tmp_path):
    for name in ("a.png", "b.png", "photo.png", "other.png"):
        picture(tmp_path / "JPEGImages" / name)
    picture(tmp_path / "JPEGImages/small.png", (32, 24))
    xml(tmp_path / "Annotations/a.xml", 5, filename="b.png")  # b.png has labels of its own
    xml(tmp_path / "Annotations/b.xml", 6)
    xml(tmp_path / "Annotations/c.xml", 7, filename="photo.png")
    assert found(tmp_path) == {
        "JPEGImages/a.png": [5],
        "JPEGImages/b.png": [6],
        "JPEGImages/photo.png": [7],
    }
    xml(tmp_path / "Annotations/d.xml", 8, filename="photo.png")  # two labels for one picture
    xml(tmp_path / "Annotations/a.xml", 5, filename="other.png")  # two pictures for one label
    xml(tmp_path / "Annotations/b.xml", 6, filename="small.png", size=(32, 24))  # settled by size
    assert found(tmp_path) == {"JPEGImages/small.png": [6]}
    sentences = defects(tmp_path)
    assert "2 labels could mean JPEGImages/photo.png" in sentences
    assert "its picture a may be JPEGImages/a.png or JPEGImages/other.png" in sentences


def test_two_suffixes_that_nothing_settles(tmp_path):
    voc(tmp_path, {"a": 5, "b": 6})
    picture(tmp_path / "JPEGImages/a.bmp")
    assert list(found(tmp_path)) == ["JPEGImages/b.png"] and "a.bmp or JPEGImages/a.png" in defects(
        tmp_path
    )


def test_accents_in_stems(tmp_path):
    name = "école"
    picture(tmp_path / f"JPEGImages/{unicodedata.normalize('NFD', name)}.png")
    xml(tmp_path / f"Annotations/{unicodedata.normalize('NFC', name)}.xml")
    (tmp_path / "labelTxt").mkdir()
    assert len(found(tmp_path)) == 1 and "another spelling" in said(tmp_path)


def test_a_picture_in_another_case_belongs_to_its_own_label(tmp_path):
    picture(tmp_path / "JPEGImages/A.png")
    xml(tmp_path / "Annotations/A.xml", 5)
    xml(tmp_path / "Annotations/a.xml", 15)
    assert found(tmp_path) == {"JPEGImages/A.png": [5]} and "belongs to another label" in defects(
        tmp_path
    )


def test_a_folder_for_each_picture(tmp_path):
    for i in range(20):
        xml(tmp_path / f"case{i}/image.xml", 5 + i)
        picture(tmp_path / f"case{i}/image.png")
    boxes = found(tmp_path)
    assert len(boxes) == 20 and boxes["case7/image.png"] == [12]
    assert len(open_data(tmp_path, "val")) == 2 and len(open_data(tmp_path, "train")) == 18


# -- what is broken


def test_a_broken_file_among_many(tmp_path):
    voc(tmp_path, {stem: 5 for stem in "abcde"})
    (tmp_path / "Annotations/c.xml").write_text("<annotation>\n<object>")
    assert len(found(tmp_path)) == 4 and "c.xml:2: not valid XML" in defects(tmp_path)
    for stem in "ab":
        (tmp_path / f"Annotations/{stem}.xml").write_text("")
    assert "a.xml" in refused(tmp_path)


def test_a_broken_object_among_others(tmp_path):
    voc(tmp_path, {"a": 5})
    good = OBJECT.format("cup", 30, 5, 40, 20)
    bad = "<object><name>cup</name></object>"
    (tmp_path / "Annotations/a.xml").write_text(f"<annotation>\n{bad}\n{good}</annotation>")
    assert found(tmp_path) == {
        "JPEGImages/a.png": [30]
    } and "a.xml:2: <object> has no <bndbox>" in defects(tmp_path)


def test_a_yaml_names_its_folder(tmp_path):
    voc(tmp_path, {"a": 5}, "labels/train", "images/train")
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: [cup]\n")
    assert splits(tmp_path / "data.yaml") == {"train": 1}


# -- names of classes


CUP_NFC = unicodedata.normalize("NFC", "tass\u00e9")
CUP_NFD = unicodedata.normalize("NFD", CUP_NFC)


def classes_in(path, *names):
    """COCO's list of categories in a file of `coco`, objects of the first."""
    data = json.loads(path.read_text())
    data["categories"] = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("first, second", [(CUP_NFC, CUP_NFD), (CUP_NFD, CUP_NFC)])
def test_class_names_that_look_alike_in_parts(tmp_path, first, second):
    for split, name in (("train", first), ("test", second)):
        picture(tmp_path / split / f"{split}.png", gray=len(split) * 20)
        classes_in(coco(tmp_path / split / "a.json", {f"{split}.png": 5}), name)
    assert open_data(tmp_path, "test").classes == (CUP_NFC,)
    assert f"taken as composed (NFC): {CUP_NFC}." in said(tmp_path) and not defects(tmp_path)
    assert len(open_data(tmp_path, ignore_classes=(CUP_NFD,), classes=("cup",)).records) == 2


def test_class_names_that_look_alike_in_one_part(tmp_path):
    voc(tmp_path, {"a": 5, "b": 6})
    xml(tmp_path / "Annotations/a.xml", 5, CUP_NFC)
    xml(tmp_path / "Annotations/b.xml", 6, CUP_NFD)
    assert open_data(tmp_path).classes == (CUP_NFC,)
    assert open_data(tmp_path, classes=("cup", CUP_NFD)).classes == ("cup", CUP_NFD)  # a model's
    labels = [
        record.objects.labels.tolist()
        for record in open_data(tmp_path, classes=("cup", CUP_NFD)).records
    ]
    assert labels == [[1], [1]]


def test_one_file_that_declares_both_spellings(tmp_path):
    picture(tmp_path / "a.png")
    classes_in(coco(tmp_path / "a.json", {"a.png": 5}), CUP_NFD, "dish", CUP_NFC)
    dataset = open_data(tmp_path)
    assert dataset.classes == (CUP_NFC, "dish") and dataset.records[0].objects.labels.tolist() == [
        0
    ]


@pytest.fixture
def larger_test(tmp_path):
    for split, names in (("train", ("cup",)), ("test", ("cup", "dish"))):
        picture(tmp_path / f"{split}.png", gray=len(split) * 20)
        classes_in(coco(tmp_path / f"{split}.json", {f"{split}.png": 5}), *names)
    return tmp_path


def test_a_class_that_only_test_declares(larger_test):
    assert open_data(larger_test, "test").classes == ("cup",) and not defects(larger_test)
    sentence = "only val or test declares and no object has are left out: dish."
    assert sentence in said(larger_test)
    assert open_data(larger_test, ignore_classes=("dish",)).classes == ("cup",)
    assert len(open_data(larger_test, "test", classes=("cup",)).records) == 1


def test_a_class_that_only_test_has_objects_of(larger_test):
    classes_in(larger_test / "test.json", "dish", "cup")
    assert "test has classes that train lacks (dish)" in refused(larger_test)


def test_a_class_without_objects_that_a_model_lacks(tmp_path):
    picture(tmp_path / "test/a.png")
    file = coco(tmp_path / "test/a.json", {"a.png": 5})
    classes_in(file, "cup", "dish")
    assert open_data(tmp_path).classes == ("cup", "dish")
    dataset = open_data(tmp_path, classes=("cup", "fork"))
    assert dataset.classes == ("cup", "fork")
    assert "the model lacks and no object has are left out: dish." in " ".join(dataset.said)
    classes_in(file, "dish", "cup")
    assert "not among the model's (cup, fork): dish" in refused(tmp_path, classes=("cup", "fork"))


def test_a_class_that_only_train_declares_stays(larger_test):
    classes_in(larger_test / "train.json", "cup", "dish", "fork")
    assert open_data(larger_test).classes == ("cup", "dish", "fork")


# -- two annotators


@pytest.mark.parametrize("first, second", [("abcd", "cdef"), ("abcd", "bcde"), ("abcd", "bcd")])
def test_two_annotators_share_many_pictures(tmp_path, first, second):
    for i, stem in enumerate("abcdef"):
        picture(tmp_path / f"images/{stem}.png", gray=20 + 30 * i)
    for name, stems in (("anna", first), ("ben", second)):
        for i, stem in enumerate(stems):
            xml(tmp_path / name / f"{stem}.xml", 5 + i)
    told = said(tmp_path)
    alone = sorted(set(second) - set(first))
    sentence = f"{len(alone)} pictures have labels only in ben, which is not read, and are left out"
    assert splits(tmp_path) == {"train": 4} and (sentence in told) == bool(alone)
    bare = 6 - len({*first, *second})
    assert (f"{bare} pictures have no label file" in told) == bool(bare)
    assert "ben" not in " ".join(open_data(tmp_path, labels="ben").said).split("only in")[-1]


def test_two_annotators_in_coco(tmp_path):
    for i, stem in enumerate("abcdef"):
        picture(tmp_path / f"images/{stem}.png", gray=20 + 30 * i)
    coco(tmp_path / "anna.json", {f"{stem}.png": 5 for stem in "abcd"})
    coco(tmp_path / "ben.json", {f"{stem}.png": 5 for stem in "cdef"})
    assert "2 pictures have labels only in ben, which is not read" in said(tmp_path)
    assert "first is e.png" in said(tmp_path)


# -- names of label sets


def yolo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("0 .5 .5 .2 .2\n")


def usable(path):
    """The names of all sets and parts that sentences offer; each must choose its own."""
    layout = discover(path)
    offered = [*layout.sources, *(part for source in layout.sources for part in source.parts)]
    for source in offered:
        assert OpenedFolder(path, source.name).source.files == source.files, source.name
        assert source.name in said(path) or len(offered) == 1
    return [source.name for source in offered]


def test_a_name_that_is_offered_chooses_one(tmp_path):
    voc(tmp_path / "test", {"a": 5}, "labels", "images", gray=20)
    picture(tmp_path / "train/images/b.png", gray=90)
    yolo(tmp_path / "train/labels/b.txt")
    (tmp_path / "classes.txt").write_text("cup\n")
    assert sorted(usable(tmp_path)) == ["labels-voc", "labels-yolo", "voc"]


def test_rivals_of_one_name(tmp_path):
    voc(tmp_path, {"a": 5, "b": 6}, "labels", "images")
    for stem in "ab":
        yolo(tmp_path / f"labels/{stem}.txt")
    assert sorted(usable(tmp_path)) == ["labels-voc", "labels-yolo"]


def test_a_part_that_is_called_as_the_whole(tmp_path):
    voc(tmp_path, {"a": 5}, "Annotations", "JPEGImages", gray=20)
    voc(tmp_path, {"b": 6}, "Annotations/cam1", "JPEGImages/cam1", gray=90)
    assert len(found(tmp_path)) == 2 and len(set(usable(tmp_path))) == len(usable(tmp_path))


def test_json_files_of_one_name(tmp_path):
    for folder in ("first", "second"):
        for stem in "ab":
            picture(tmp_path / f"images/{stem}.png", gray=ord(stem))
        coco(tmp_path / folder / "labels.json", {"a.png": 5, "b.png": 6})
    assert len(set(usable(tmp_path))) == len(usable(tmp_path))


# -- labels that are not read


UNREAD = {
    "labels/a.txt": "cat 1 2 30 40",
    "labels/a.txt ": "0 .5 .5 .2 .1 45",
    "train/metadata.jsonl": '{"file_name": "a.png", "objects": {"bbox": [[1, 2, 3, 4]]}}',
    "automl.csv": "TRAIN,gs://b/a.png,cat,0.1,0.1,,,0.4,0.4,,",
    "via.csv": "filename,file_size,region_shape_attributes\na.png,9,"
    '"{""name"":""rect"",""x"":1,""y"":2,""width"":3,""height"":4}"',
    "frames.csv": "frame,xmin,xmax,ymin,ymax,class_id\na.png,1,20,2,30,1",
    "wider.txt": "images/a.png\n1\n5 5 20 20 0 0 0\n",
    "yolo3.txt": "images/a.png 5,5,20,20,0",
    "boxes.tsv": "a.png\t5\t5\t20\t20\tcat",
    "data/train-00000-of-00001.parquet": "PAR1",
    "train.tfrecord-00000-of-00002": "x",
    "cups.record.tfrecord": "x",
    "instances.json.gz": "x",
    "annotations.zip": "x",
    "digitStruct.mat": "x",
}


@pytest.mark.parametrize("name", UNREAD)
def test_labels_that_are_not_read_are_named(tmp_path, name):
    for stem in "ab":
        picture(tmp_path / f"images/{stem}.png", gray=ord(stem))
    file = tmp_path / name.strip()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(UNREAD[name])
    report = survey(tmp_path, verify=0)
    sentence = f"{name.strip()} looks like labels in a format that madet does not read; convert"
    assert [sentence in str(defect) for defect in report.defects] == [True]
    assert "without labels" not in report.said[0]
    assert sentence in refused(tmp_path, split="train")
    assert main(["data", "check", str(tmp_path)]) == 1


@pytest.mark.parametrize(
    "name, text",
    [
        ("notes.txt", "Taken in May 2024, at 5 5 20 20"),
        ("train.txt", "a\nb\n"),
        ("weather.csv", "day,degrees\n2024-05-01,12.5"),
        ("labels/a.txt", ""),
        ("classes.txt", "cup\n"),
        ("README.md", "a.png 1 2 3 4"),
        ("images.zip", "x"),
    ],
)
def test_files_that_are_no_labels(tmp_path, name, text):
    picture(tmp_path / "images/a.png")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
    assert discover(tmp_path).unread == []


def test_labels_that_are_not_read_where_there_are_no_pictures(tmp_path):
    (tmp_path / "train.parquet").write_text("PAR1")
    assert "holds no pictures; train.parquet looks like labels" in refused(tmp_path)


def test_where_labels_are_read_others_cost_nothing(tmp_path):
    voc(tmp_path, {"a": 5})
    (tmp_path / "metadata.jsonl").write_text("{}")
    assert discover(tmp_path).unread == [] and not defects(tmp_path)
