"""Scores say what they are of: cases of $MADET_SHARED/field and their neighbours, with detectors that are told the
answer instead of trained.
"""

import contextlib
import io
import json
import shutil

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from madet.boxes.geometry import Rotated, Upright
from madet.cli import main
from madet.data.open_folder import open_data
from madet.methods import detector, save_results, score
from madet.metrics.dota import dota_truths, read_task1, write_task1
from madet.training.recipe import Recipe
from madet.training.run import run

SIZES = ("AP", "AP50", "AP75", "APs", "APm", "APl")


class Told(nn.Module):
    """A detector that answers with the given results, one picture after the other, in the network's pixels."""

    def __init__(self, answers, geometry, classes, factor=1.0):
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))
        self.boxes, self.classes, self.factor = geometry, classes, factor
        self.answers = iter(answers)

    def forward(self, images):
        told = [next(self.answers) for _ in images]
        scale = torch.ones(self.boxes.dim)
        scale[:4] = self.factor
        return [one | dict(boxes=one["boxes"] * scale) for one in told]


def answer(boxes, labels, scores=None):
    boxes = torch.as_tensor(boxes, dtype=torch.float32)
    scores = torch.linspace(0.9, 0.5, len(boxes)) if scores is None else torch.tensor(scores)
    return dict(boxes=boxes, labels=torch.tensor(labels), scores=scores)


def truth_as_answers(dataset):
    """The truth of every record, each picture with other scores."""
    found = []
    for number, record in enumerate(dataset.records):
        one = answer(record.objects.boxes, record.objects.labels.tolist())
        found.append(one | dict(scores=one["scores"] - number / 100))
    return found


@pytest.fixture
def told(monkeypatch):
    """A function that makes `madet test` and `madet predict` use a detector which is told its answers."""

    def use(answers, classes, geometry=Upright(), image_size="192", factor=1.0):
        recipe = Recipe(method="told", image_size=image_size)
        model = Told(answers, geometry, classes, factor)
        for module in (score, detector):
            monkeypatch.setattr(module, "detector_from", lambda *_: (model, recipe, classes))

    monkeypatch.setattr(score, "draw_run", lambda *_: [])  # half a second each
    return use


def madet(capsys, *words):
    """Exit code, standard output and standard error of one command, in this process."""
    code = main([str(word) for word in words])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err + printed.out
    return code, printed.out, printed.err


def scored_by_test(capsys, folder, *more):
    """Exit code, document and standard error of `madet test WEIGHTS --data FOLDER --json`."""
    words = ("--data", folder, "--device", "cpu", "--batch", 1, "--json", *more)
    code, out, err = madet(capsys, "test", "weights", *words)
    return code, json.loads(out) if out else None, err


def scored_by_eval(capsys, rules, truth, results, *more):
    """Exit code, document and standard error of `madet eval --json`."""
    files = "--format", rules, "--truth", truth, "--results", results
    code, out, err = madet(capsys, "eval", *files, "--json", *more)
    return code, json.loads(out) if out else None, err


def by_pycocotools(truth, results):
    """The six APs of two files, by pycocotools; None where it says -1."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(truth))
        for one in coco.dataset["annotations"]:  # which it asks for
            one.setdefault("area", one["bbox"][2] * one["bbox"][3])
        judge = COCOeval(coco, coco.loadRes(str(results)), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [None if value < 0 else value for value in judge.stats[:6]]


def equal(ours, theirs):
    """Whether two lists of APs are the same, None where undefined."""
    pairs = zip(ours, theirs, strict=True)
    return all(a is b if None in (a, b) else abs(a - b) < 1e-9 for a, b in pairs)


def of_file(results, dataset):
    """A COCO result list as answers, in the order of the data set."""
    answers = []
    for record in dataset.records:
        mine = [one for one in results if one["image_id"] == record.image_id]
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in mine)]
        labels = [one["category_id"] - 1 for one in mine]
        answers.append(answer(boxes, labels, [one["score"] for one in mine]))
    return answers


def coco_folder(folder, objects, files=("a.png", "b.png")):
    """A COCO test set of blank pictures; `objects`: (image, category, box, extra keys), ids with gaps."""
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    images = []
    for number, name in enumerate(files):
        Image.new("RGB", (64, 48), (9 * number, 9, 9)).save(folder / "images" / name)
        images.append(dict(id=7 + 10 * number, file_name=name, width=64, height=48))
    rows = []
    for number, (image, category, box, extra) in enumerate(objects):
        row = dict(id=number + 1, image_id=7 + 10 * image, category_id=30 + 5 * category, bbox=box)
        rows.append(row | dict(iscrowd=0) | extra)
    categories = [dict(id=30 + 5 * n, name=name) for n, name in enumerate(("cup", "mug"))]
    document = dict(images=images, annotations=rows, categories=categories)
    path = folder / "annotations/instances_test.json"
    path.write_text(json.dumps(document))
    return path


TWO = [(0, 0, [5, 5, 20, 20], {}), (1, 1, [9, 9, 30, 30], {})]


# ---- areas


@pytest.mark.parametrize("size, factor", [("192", 1.0), ("96", 0.5)])
def test_areas_of_the_file_decide_sizes(capsys, shared, told, tmp_path, size, factor):
    case = shared / "field/upright/coco_area_from_masks"
    truth, results = case / "annotations/instances_test.json", case / "detections.json"
    expected = by_pycocotools(truth, results)
    assert expected[3] == 0 and expected[4] is None  # APs 0.0, APm none
    dataset = open_data(case, "test")
    answers = of_file(json.loads(results.read_text()), dataset)
    told(answers, dataset.classes, Upright(), size, factor)
    code, scored, _ = scored_by_test(capsys, case, "--out", tmp_path)
    assert code == 0 and equal([scored[key] for key in SIZES], expected)
    code, evaluated, _ = scored_by_eval(capsys, "coco", truth, results)
    assert code == 0 and equal([evaluated[key] for key in SIZES], expected)
    # what was written is what was scored, by anybody
    assert equal(by_pycocotools(truth, tmp_path / "results.json"), expected)


ELL = [[5, 5, 45, 5, 45, 15, 15, 15, 15, 45, 5, 45]]  # 400 + 300 square pixels in a box of 1,600


@pytest.mark.parametrize(
    "extra, small, medium",
    [
        (dict(area=1600.0, segmentation=ELL), None, 1.0),  # as stated
        (dict(area=0, segmentation=ELL), 1.0, None),
        (dict(segmentation=ELL), 1.0, None),  # else the outline
        (dict(segmentation=dict(size=[48, 64], counts=[5, 600, 2467])), 1.0, None),
        (dict(segmentation=[]), None, 1.0),  # else the box
        (dict(), None, 1.0),
    ],
)
def test_area_else_outline_else_box(capsys, told, tmp_path, extra, small, medium):
    objects = [(0, 0, [5, 5, 40, 40], extra), (1, 1, [5, 5, 40, 40], extra)]
    truth = coco_folder(tmp_path / "data", objects)
    dataset = open_data(tmp_path / "data", "test")
    told(truth_as_answers(dataset), dataset.classes, image_size="64")
    code, scored, _ = scored_by_test(capsys, tmp_path / "data", "--out", tmp_path / "out")
    assert code == 0 and equal([scored["APs"], scored["APm"]], [small, medium])
    code, evaluated, _ = scored_by_eval(capsys, "coco", truth, tmp_path / "out/results.json")
    assert code == 0 and equal([evaluated[k] for k in SIZES], [scored[k] for k in SIZES])


# ---- what is missing


def test_missing_pictures_are_said_with_their_number(capsys, shared, told, tmp_path):
    case = shared / "field/upright/test_missing_pictures"
    dataset = open_data(case, "test")
    told(truth_as_answers(dataset), dataset.classes, image_size="96")
    words = ("--data", case, "--device", "cpu", "--batch", 1, "--out", tmp_path)
    code, out, _ = madet(capsys, "test", "weights", *words)
    assert code == 0 and "of 2 of 4 images, 2 missing" in out
    kept = json.loads((tmp_path / "metrics.json").read_text())["test"]
    assert (kept["images"], kept["missing_images"], kept["dropped_boxes"]) == (2, 2, 0)


def test_unreadable_pictures_and_unusable_boxes_count_too(capsys, told, tmp_path):
    objects = [(i, 0, [5, 5, 20, 20], {}) for i in range(4)]
    objects += [(0, 1, [30, 5, 0, 9], {}), (0, 1, [300, 5, 9, 9], {}), (1, 1, [30, 30, 9, 9], {})]
    coco_folder(tmp_path / "data", objects, [f"{letter}.png" for letter in "abcd"])
    broken = tmp_path / "data/images/c.png"  # its head is sound, its pixels are not
    broken.write_bytes(broken.read_bytes()[:45])
    (tmp_path / "data/images/d.png").write_text("no picture")
    dataset = open_data(tmp_path / "data", "test")
    told(truth_as_answers(dataset), dataset.classes, image_size="64")
    words = ("--data", tmp_path / "data", "--device", "cpu", "--batch", 1)
    code, out, _ = madet(capsys, "test", "weights", *words)
    assert code == 0 and "of 2 of 4 images, 2 missing" in out
    assert "without 2 truth boxes left out as unusable" in out
    told(truth_as_answers(dataset), dataset.classes, image_size="64")
    _, scored, _ = scored_by_test(capsys, tmp_path / "data")
    assert (scored["missing_images"], scored["dropped_boxes"]) == (2, 2)
    assert scored["objects"] == 3


def test_nothing_missing_says_nothing(capsys, told, tmp_path):
    coco_folder(tmp_path / "data", TWO)
    dataset = open_data(tmp_path / "data", "test")
    told(truth_as_answers(dataset), dataset.classes, image_size="64")
    words = ("--data", tmp_path / "data", "--device", "cpu", "--batch", 1)
    code, out, _ = madet(capsys, "test", "weights", *words)
    assert code == 0 and "The score is" not in out


def test_names_on_a_list_without_labels_are_missing(tmp_path):
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / part).mkdir(parents=True)
    box = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>30</xmax><ymax>30</ymax></bndbox>"
    for name in ("a", "b"):
        Image.new("RGB", (64, 48)).save(tmp_path / f"JPEGImages/{name}.jpg")
        text = f"<annotation><object><name>cup</name>{box}</object></annotation>"
        (tmp_path / f"Annotations/{name}.xml").write_text(text)
    (tmp_path / "ImageSets/Main/train.txt").write_text("a\nx\ny\n")
    (tmp_path / "ImageSets/Main/test.txt").write_text("b\nz\n")
    assert open_data(tmp_path, "test").missing_images == 1
    assert open_data(tmp_path, "train").missing_images == 2


# ---- one truth, two ways to name it


SHIP = "10 10 50 10 50 30 10 30 ship 0"


def dota_folder(folder, *lines):
    """A DOTA folder of one picture, P1."""
    for part in ("images", "labelTxt"):
        (folder / part).mkdir(parents=True)
    Image.new("RGB", (100, 100)).save(folder / "images/P1.png")
    (folder / "labelTxt/P1.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.mark.parametrize(
    "extra, found, words",
    [
        ("10 50 50 70 50 50 10 70 ship 0", 2, "1 truth polygons cross themselves"),
        ("60 60 60 60 60 60 60 60 ship 0", 1, "1 truth objects enclose no area"),
        ("900 9 950 9 950 40 900 40 ship 0", 1, ""),  # outside of its picture
        ("10 50 50 50 50 70 10 70 ship 1", 2, ""),  # difficult
    ],
)
def test_a_folder_and_its_labels_are_one_truth(capsys, tmp_path, extra, found, words):
    folder = dota_folder(tmp_path / "data", "gsd:1", SHIP, extra)
    quads = [[10, 10, 50, 10, 50, 30, 10, 30], [10, 50, 50, 50, 50, 70, 10, 70]][:found]
    one = dict(image_id="P1", boxes=quads, scores=[0.9, 0.8][:found], labels=[0] * found)
    write_task1(tmp_path / "task1", [one], ["ship"])
    answers = []
    for truth in (folder, folder / "labelTxt"):
        code, score, err = scored_by_eval(capsys, "dota", truth, tmp_path / "task1")
        assert code == 0 and words in err
        answers.append(score)
    assert answers[0] == answers[1]
    lost = found == 1  # what the devkit counts and nobody finds
    assert abs(answers[0]["AP50"] - (6 / 11 if lost else 1)) < 1e-9  # recalls 0 to .5


def test_a_line_that_cannot_be_read_is_refused_either_way(capsys, tmp_path):
    folder = dota_folder(tmp_path / "data", SHIP, "1 2 3 ship 0")
    write_task1(tmp_path / "task1", [], ["ship"])
    for truth in (folder, folder / "labelTxt"):
        code, _, err = scored_by_eval(capsys, "dota", truth, tmp_path / "task1")
        assert code == 2 and "P1.txt:2" in err and "needs the whole truth" in err


def test_two_truths_of_one_name_ask_for_a_split(capsys, tmp_path):
    for split in ("train", "val"):
        dota_folder(tmp_path / "data" / split, SHIP)
    one = dict(image_id="P1", boxes=[[10, 10, 50, 10, 50, 30, 10, 30]], scores=[1], labels=[0])
    write_task1(tmp_path / "task1", [one], ["ship"])
    files = tmp_path / "data", tmp_path / "task1"
    code, _, err = scored_by_eval(capsys, "dota", *files)
    assert code == 2 and "both the truth of P1" in err and "--split" in err
    code, score, _ = scored_by_eval(capsys, "dota", *files, "--split", "val")
    assert code == 0 and score["AP50"] == 1


# ---- names that result files cannot hold


@pytest.mark.parametrize("case", ["dota_slash_class", "dota_spaced_names"])
def test_odd_names_are_written_scored_and_read_back(capsys, shared, told, tmp_path, case):
    folder = shared / "field/rotated" / case
    dataset = open_data(folder, geometry=Rotated())
    assert any("Task 1 files" in sentence for sentence in dataset.said)
    parts = open_data(folder, "train", geometry=Rotated())
    told(truth_as_answers(parts), parts.classes, Rotated(), "200")
    code, scored, err = scored_by_test(capsys, folder, "--split", "train", "--out", tmp_path)
    assert code == 0 and scored["AP50"] == 1 and "errors" not in scored, err
    assert json.loads((tmp_path / "metrics.json").read_text())["train"]["AP50"] == 1
    found, classes = read_task1(tmp_path / "task1")
    assert classes == list(parts.classes)
    assert {one["image_id"] for one in found} == {record.path.stem for record in parts.records}
    for results in ("task1", "detections.json"):
        files = folder, tmp_path / results, "--split", "train"
        code, score, err = scored_by_eval(capsys, "dota", *files)
        assert code == 0 and score["AP50"] == 1, err


def test_a_name_that_looks_encoded_is_found(capsys, tmp_path):
    (tmp_path / "labelTxt").mkdir()
    (tmp_path / "labelTxt/a%20b.txt").write_text(f"{SHIP}\n")
    (tmp_path / "labelTxt/c d.txt").write_text(f"{SHIP}\n")
    (tmp_path / "task1").mkdir()
    line = "0.9 10 10 50 10 50 30 10 30\n"  # as another program writes, which encodes nothing
    (tmp_path / "task1/Task1_ship.txt").write_text(f"a%20b {line}c%20d {line}")
    code, score, err = scored_by_eval(capsys, "dota", tmp_path / "labelTxt", tmp_path / "task1")
    assert code == 0 and score["AP50"] == 1, err


def test_pictures_of_one_name_are_not_mixed(tmp_path):
    for camera in ("cam1", "cam2"):
        (tmp_path / camera).mkdir()
        Image.new("RGB", (100, 100)).save(tmp_path / camera / "0001.png")
    words = {"images": [], "categories": [dict(id=1, name="ship")], "annotations": []}
    for number, camera in enumerate(("cam1", "cam2")):
        words["images"].append(dict(id=number, file_name=f"{camera}/0001.png"))
        row = dict(id=number, image_id=number, category_id=1, bbox=[50, 50, 40, 20, 0.3])
        words["annotations"].append(row | dict(iscrowd=0))
    (tmp_path / "test.json").write_text(json.dumps(words))
    dataset = open_data(tmp_path / "test.json", geometry=Rotated())
    found = [
        dict(image_id=record.image_id) | one
        for record, one in zip(dataset.records, truth_as_answers(dataset), strict=True)
    ]
    save_results.write_detections(tmp_path, found, dataset)
    assert len({one["image_id"] for one in read_task1(tmp_path / "task1")[0]}) == 2


# ---- nothing that was computed is lost


@pytest.mark.parametrize("broken", ["write_detections", "draw_run"])
def test_a_score_outlives_what_fails_after_it(capsys, told, tmp_path, monkeypatch, broken):
    coco_folder(tmp_path / "data", TWO)
    dataset = open_data(tmp_path / "data", "test")

    def full(*_):
        raise OSError(28, "No space left on device", "somewhere.txt")

    monkeypatch.setattr(score, broken, full)
    for more in ((), ("--json",)):
        told(truth_as_answers(dataset), dataset.classes, image_size="64")
        out = tmp_path / f"out{len(more)}"
        words = ("--data", tmp_path / "data", "--device", "cpu", "--batch", 1, "--out", out)
        code, printed, err = madet(capsys, "test", "weights", *words, *more)
        assert code == 2 and "No space left" in err + printed
        assert "100.0" in printed or '"AP": 1.0' in printed
        kept = json.loads((out / "metrics.json").read_text())["test"]
        assert kept["AP"] == 1 and len(kept["errors"]) == 1
        assert (out / "results.json").exists() == (broken == "draw_run")


def test_metrics_are_there_before_an_error_of_another_kind(capsys, told, tmp_path, monkeypatch):
    coco_folder(tmp_path / "data", TWO)
    dataset = open_data(tmp_path / "data", "test")
    told(truth_as_answers(dataset), dataset.classes, image_size="64")

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(score, "draw_run", stopped)
    words = ("--data", tmp_path / "data", "--device", "cpu", "--batch", 1, "--out", tmp_path / "o")
    with contextlib.suppress(KeyboardInterrupt):
        madet(capsys, "test", "weights", *words)
    assert json.loads((tmp_path / "o/metrics.json").read_text())["test"]["AP"] == 1


# ---- results for other programs


def test_results_have_the_numbers_of_the_truth(capsys, told, tmp_path):
    truth = coco_folder(tmp_path / "data", [*TWO, (1, 1, [1, 1, 8, 8], {})])
    dataset = open_data(tmp_path / "data", "test", classes=("saucer", "mug", "cup"))
    told(truth_as_answers(dataset), dataset.classes, image_size="64")
    code, scored, _ = scored_by_test(capsys, tmp_path / "data", "--out", tmp_path / "out")
    path = tmp_path / "out/results.json"
    listed = json.loads(path.read_text())
    assert {entry["category_id"] for entry in listed} == {30, 35}
    assert {entry["image_id"] for entry in listed} == {7, 17} and scored["files"] == [str(path)]
    assert by_pycocotools(truth, path)[0] == pytest.approx(1) and scored["AP"] == pytest.approx(1)


@pytest.mark.parametrize("rules", ["coco", "voc"])
def test_results_of_other_labels_are_matched_by_name(capsys, told, tmp_path, rules):
    truth = coco_folder(tmp_path / "c", TWO, ["b b.png", "a.png"])
    out = "--out", tmp_path / "v", "--to", "voc"
    code, *_ = madet(capsys, "data", "convert", tmp_path / "c", *out)
    assert code == 0
    dataset = open_data(tmp_path / "v", "test", classes=("mug", "cup"))
    told(truth_as_answers(dataset), dataset.classes, image_size="64")
    code, scored, _ = scored_by_test(capsys, tmp_path / "v", "--out", tmp_path / "out")
    assert code == 0 and scored["AP"] == pytest.approx(1)
    code, score, err = scored_by_eval(capsys, rules, truth, tmp_path / "out/results.json")
    assert code == 0 and score["AP50"] == pytest.approx(1), err


def test_predict_writes_results_that_are_scored(capsys, told, tmp_path):
    truth = coco_folder(tmp_path / "c", TWO)
    dataset = open_data(tmp_path / "c", "test")
    told(truth_as_answers(dataset), dataset.classes, image_size="64")
    words = tmp_path / "c/images", "--out", tmp_path / "p", "--device", "cpu", "--json"
    code, out, err = madet(capsys, "predict", "weights", *words)
    assert code == 0 and json.loads(out)["files"] == [str(tmp_path / "p/results.json")], err
    results = tmp_path / "p/results.json"
    assert [entry["image_id"] for entry in json.loads(results.read_text())] == ["a", "b"]
    code, score, err = scored_by_eval(capsys, "coco", truth, results)
    assert code == 0 and score["AP"] == pytest.approx(1), err
    document = json.loads(truth.read_text())
    for one in document["images"]:
        one["file_name"] = f"other/{one['file_name'][::-1]}"
    truth.write_text(json.dumps(document))
    code, _, err = scored_by_eval(capsys, "coco", truth, results)
    assert code == 2 and "is not in the truth" in err  # never another picture's


def test_predict_of_cocos_own_names_has_cocos_ids(capsys, told, tmp_path):
    files = ["000000000009.png", "000000397133.png"]
    truth = coco_folder(tmp_path / "c", TWO, files)
    document = json.loads(truth.read_text())
    for one in document["images"]:
        one["id"] = {7: 9, 17: 397133}[one["id"]]
    for one in document["annotations"]:
        one["image_id"] = {7: 9, 17: 397133}[one["image_id"]]
        one["category_id"] = one["category_id"] // 5 - 5
    for one in document["categories"]:
        one["id"] = one["id"] // 5 - 5
    truth.write_text(json.dumps(document))
    dataset = open_data(tmp_path / "c", "test")
    told(truth_as_answers(dataset), dataset.classes, image_size="64")
    words = tmp_path / "c/images", "--out", tmp_path / "p", "--device", "cpu"
    code, *_ = madet(capsys, "predict", "weights", *words)
    assert code == 0
    assert by_pycocotools(truth, tmp_path / "p/results.json")[0] == pytest.approx(1)


def test_predict_of_rotated_boxes_writes_task1(capsys, shared, told, tmp_path):
    folder = shared / "field/rotated/dota_spaced_names"
    dataset = open_data(folder, geometry=Rotated())
    told(truth_as_answers(dataset), dataset.classes, Rotated(), "200")
    pictures = [record.path for record in dataset.records]
    code, _, err = madet(
        capsys, "predict", "weights", *pictures, "--out", tmp_path, "--device", "cpu"
    )
    assert code == 0, err
    files = folder / "labelTxt", tmp_path / "task1"
    code, score, err = scored_by_eval(capsys, "dota", *files)
    objects = sum(len(one["labels"]) for one in dota_truths(dataset))
    assert code == 0 and score["detections"] == objects and score["AP50"] == 1, err


def test_an_old_folder_of_results_is_read_as_before(tmp_path):
    (tmp_path / "Task1_small vehicle.txt").write_text("P1 0.5 1 1 9 1 9 9 1 9\n")
    (tmp_path / "Task1_50%.txt").write_text("P%1 0.5 1 1 9 1 9 9 1 9\n")
    found, classes = read_task1(tmp_path)
    assert classes == ["50%", "small vehicle"]
    assert {one["image_id"] for one in found} == {"P1", "P%1"}


# ---- the end of a training


class Toy(nn.Module):
    """Says one box a picture, and learns a number."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images, targets=None):
        if self.training:
            return {"loss": (self.weight - 1).square().sum()}
        box = torch.tensor([[5.0, 5, 25, 25]])
        return [dict(boxes=box, scores=torch.ones(1), labels=torch.tensor([0])) for _ in images]


def toy_run(folder, conclude):
    """Two steps of the toy on a COCO folder of which one test picture is missing."""
    coco_folder(folder / "data", [(0, 0, [5, 5, 20, 20], {}), (1, 0, [5, 5, 20, 20], {})])
    labels = folder / "data/annotations"
    shutil.copy(labels / "instances_test.json", labels / "instances_train.json")
    document = json.loads((labels / "instances_test.json").read_text())
    document["images"].append(dict(id=99, file_name="gone.png", width=64, height=48))
    document["annotations"].append(document["annotations"][0] | dict(id=99, bbox=[5, 5, 0, 9]))
    (labels / "instances_test.json").write_text(json.dumps(document))
    recipe = Recipe(method="toy", data=str(folder / "data"), image_size="64", steps=2, warmup=0)
    with open(folder / "said.txt", "w") as stream:
        how = dict(device="cpu", stream=stream, conclude=conclude)
        return run(recipe, None, lambda *_: Toy(), folder / "out", **how)


def test_training_says_what_its_test_score_is_of(tmp_path):
    seen = []
    metrics = toy_run(tmp_path, seen.append)
    assert (metrics["test"]["missing_images"], metrics["test"]["dropped_boxes"]) == (1, 1)
    assert json.loads((tmp_path / "out/metrics.json").read_text())["test"] == metrics["test"]
    said = (tmp_path / "said.txt").read_text()
    assert "of 2 of 3 images, 1 missing" in said and "without 1 truth box" in said
    assert len(seen[0]) == 2 and {"image_id", "boxes"} <= seen[0][0].keys()


def test_a_picture_that_cannot_be_drawn_does_not_cost_the_run_its_score(tmp_path):
    def broken(found):
        raise OSError(28, "No space left on device", "mistakes.png")

    with pytest.raises(OSError):
        toy_run(tmp_path, broken)
    assert json.loads((tmp_path / "out/metrics.json").read_text())["test"]["AP"] == 1


def test_what_whole_files_and_rows_lose_is_counted_where_it_lies(tmp_path):
    """A broken XML, and rows of a JSON that point nowhere, belong to the part in whose folder they are."""
    box = "<bndbox><xmin>5</xmin><ymin>5</ymin><xmax>30</xmax><ymax>30</ymax></bndbox>"
    for split, letters in (("train", "abcd"), ("test", "efgh")):
        folder = tmp_path / "voc" / split
        folder.mkdir(parents=True)
        for letter in letters:
            Image.new("RGB", (64, 48)).save(folder / f"{letter}.jpg")
            text = f"<annotation><object><name>cup</name>{box}</object></annotation>"
            (folder / f"{letter}.xml").write_text(text)
    (tmp_path / "voc/test/h.xml").write_text("<annotation><object>")
    found = [open_data(tmp_path / "voc", split).missing_images for split in ("train", "test", None)]
    assert found == [0, 1, 1]
    coco_folder(tmp_path / "coco", TWO)
    path = next((tmp_path / "coco").rglob("*.json"))
    content = json.loads(path.read_text())
    row = content["annotations"][0]
    nowhere = [row | {"id": 91, "image_id": 99}, row | {"id": 92, "category_id": 99}]
    nowhere += [row | {"id": 93, "bbox": None}, "no row"]
    content["annotations"] += nowhere
    content["images"].append({"id": 98})
    path.write_text(json.dumps(content))
    dataset = open_data(tmp_path / "coco", "test")
    assert (dataset.missing_images, dataset.dropped_boxes) == (1, 4)
