"""`import madet` at a keyboard: lean, the command's own results, and pictures of every kind (nbs/96_door)."""

import json
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import madet
from madet.boxes.errors import BadInput
from madet.cli import main
from madet.data.embedded import embedded
from madet.tables.grid import paper_folder

WEIGHTS = paper_folder("madet") / "example.safetensors"


@pytest.fixture(scope="module")
def detector():
    return madet.load(WEIGHTS, "cpu")


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "scene.png"
    pixels = embedded("standard", "test").load(0).image
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
    return path


def test_import_is_lean():
    code = "import sys, madet; print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_same_boxes_as_the_command(detector, picture, tmp_path):
    out = tmp_path / "out"
    with redirect_stdout(StringIO()):
        assert main(["predict", str(WEIGHTS), str(picture), "--out", str(out)]) == 0
    written = json.loads((out / "predictions.json").read_text())["images"][0]["detections"]
    found = detector(picture)
    assert len(found) == len(written) > 0
    for (name, score, box), entry in zip(found, written):
        assert name == entry["class"] and score == pytest.approx(entry["score"], abs=1e-5)
        assert box == pytest.approx(entry["box"], abs=0.006)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_pictures_of_other_modes(detector, picture, mode):
    image = Image.open(picture).convert(mode)
    assert detector(image).image.shape == (3, 96, 96)
    if mode == "RGBA":
        assert torch.equal(detector(np.asarray(image)).boxes, detector(picture).boxes)


def test_folders_lists_and_batches(detector, picture, tmp_path):
    alone = detector(picture)
    for several in ([picture, picture], torch.stack([alone.image, alone.image])):
        assert [len(one) for one in detector(several)] == [len(alone)] * 2
    (one,) = detector(tmp_path)
    assert torch.equal(one.boxes, alone.boxes) and one.path.endswith("scene.png")
    assert detector([]) == []


def test_deep_pictures_and_low_thresholds_as_the_command_has_them(tmp_path):
    """The rule of intensity and the threshold reach every kind of image, as they reach `madet predict`."""
    deep = madet.load(WEIGHTS, "cpu")
    deep.recipe = replace(deep.recipe, intensity="7000..9000")
    values = np.random.default_rng(0).integers(7000, 9001, (96, 96), dtype=np.uint16)
    path = tmp_path / "thermal.png"
    Image.fromarray(values).save(path)
    expected = np.rint((values - 7000.0) * 255 / 2000)
    found = deep(path, 0.01)
    for other in (found, deep(values, 0.01), deep(Image.open(path), 0.01)):
        assert np.array_equal(other.image[0].numpy(), expected)
        assert torch.equal(other.scores, found.scores)
    assert found.scores.min() < 0.05, "below what the weights keep by themselves"
    with pytest.raises(BadInput, match="no score"):
        deep(path, 1.5)


@pytest.mark.parametrize(
    "image, words",
    [
        (torch.zeros(3, 8, 8) + 200, "divide by 255"),
        (torch.zeros(3, 8, 8) - 2, "normalized already"),
        (np.zeros((3, 8, 8), np.uint8), "channels are first"),
        (torch.zeros(8, 8, 3), "channels are last"),
        (None, "NoneType"),
        ("missing.png", "missing.png"),
        (torch.zeros(3, 0, 8), "no pixels"),
    ],
)
def test_what_is_no_picture_ends_in_a_sentence(detector, image, words):
    with pytest.raises(BadInput, match=words):
        detector(image)


def test_results_for_other_libraries(detector, picture):
    found = detector(picture)
    entries = found.to_coco(7)
    assert {entry["image_id"] for entry in entries} == {7}
    assert [entry["category_id"] - 1 for entry in entries] == found.labels.tolist()
    assert found._repr_png_().startswith(b"\x89PNG")
    supervision = pytest.importorskip("supervision")
    theirs = found.to_supervision()
    assert isinstance(theirs, supervision.Detections) and len(theirs) == len(found)
    assert theirs.data["class_name"].tolist() == found.names


def test_functions_say_what_is_wrong(tmp_path):
    for call, words in [
        (lambda: madet.load(tmp_path / "x"), "does not exist"),
        (lambda: madet.train(tmp_path / "run", stepz=3), "stepz"),
        (lambda: madet.train(tmp_path / "run", "atts"), "atts"),
        (lambda: madet.evaluate(WEIGHTS, split="tset"), "tset"),
        (lambda: madet.evaluate(WEIGHTS, colour="red"), "colour"),
        (lambda: madet.open_data(tmp_path / "x"), "does not exist"),
    ]:
        with pytest.raises(BadInput, match=words):
            call()
    assert not Path(tmp_path, "run").exists()


def test_lists_and_tuples_are_options_as_the_command_line_has_them():
    from madet.training.recipe import as_option

    assert as_option("image_size", (96, 64)) == "96x64"
    assert as_option("turns", [30, 60]) == "30,60"
    assert as_option("steps", 4) == 4 and as_option("data", None) is None


def test_an_image_size_may_be_a_tuple(detector, picture):
    found = detector(picture, image_size=(96, 64))
    assert torch.equal(found.boxes, detector(picture, image_size="96x64").boxes)


def test_entries_of_coco_name_their_picture(detector, picture, tmp_path):
    path = picture.rename(tmp_path / "a b.png")
    entries = detector(path, 0.05).to_coco(7)
    assert entries and {(e["image_id"], e["file_name"]) for e in entries} == {(7, "a b.png")}
    assert all("file_name" not in entry for entry in detector(Image.open(path)).to_coco())


def test_a_data_set_is_shown_in_one_line(tmp_path):
    for name, line in (("a", "disc 5 5 40 40"), ("b", "bar 9 9 30 30")):
        Image.new("RGB", (64, 48)).save(tmp_path / f"{name}.png")
        corners = line.split()
        box = "".join(
            f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners[1:])
        )
        text = f"<annotation><object><name>{corners[0]}</name><bndbox>{box}</bndbox></object></annotation>"
        (tmp_path / f"{name}.xml").write_text(text)
    dataset = madet.open_data(tmp_path)
    assert repr(dataset).count("\n") == 0 and "2 pictures, 0 defects" in repr(dataset)
    assert dataset.classes == ("bar", "disc")
    assert madet.open_data(tmp_path, ignore_classes="disc").classes == ("bar",)


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"\n\nplain text", b""])
def test_what_torch_did_not_write_is_said(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(BadInput, match="was not written by torch"):
        madet.load(path)


def deep_folder(folder, parts):
    """A COCO folder of 16-bit pictures: {part: (lowest, highest value)}."""
    (folder / "annotations").mkdir(parents=True)
    number = 0
    for part, (low, high) in parts.items():
        images, rows = [], []
        for i in range(3):
            number += 1
            name = f"{part}{i}.png"
            values = np.linspace(low, high, 64 * 48).reshape(48, 64)
            values = np.roll(values, i, 1).round().astype(np.uint16)
            (folder / part).mkdir(exist_ok=True)
            Image.fromarray(values).save(folder / part / name)
            images.append({"id": number, "file_name": name, "width": 64, "height": 48})
            rows.append({"id": number, "image_id": number, "category_id": 1, "bbox": [5, 5, 20, 9]})
        table = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "cup"}]}
        (folder / f"annotations/instances_{part}.json").write_text(json.dumps(table))
    return folder


def test_open_data_reads_deep_pictures_by_the_rule_that_training_chooses(tmp_path):
    folder = deep_folder(tmp_path / "heat", {"train": (7000, 9000), "test": (7500, 9500)})
    for split in ("train", None, "test"):
        data = madet.open_data(folder, split)
        low, high = data.intensity
        assert 7000 <= low < 7010 and 8990 < high <= 9000  # of the training images in every part
        assert sum("becomes black" in sentence for sentence in data.said) == 1
        image = data.load(0).image
        assert image.max() == 255 and image.float().std() > 50
    twelve = deep_folder(tmp_path / "twelve", {"test": (0, 4095)})
    data = madet.open_data(twelve, "test")
    assert data.intensity == (0, 4095) and data.load(0).image.max() == 255
    plain = madet.open_data(deep_folder(tmp_path / "flat", {"train": (500, 500)}))
    assert plain.intensity is None and any("by its own type" in said for said in plain.said)


def test_open_data_says_nothing_of_intensity_for_eight_bits(tmp_path):
    folder = deep_folder(tmp_path / "data", {"train": (0, 200)})
    for path in (folder / "train").iterdir():
        Image.fromarray(np.asarray(Image.open(path)).astype(np.uint8)).save(path)
    data = madet.open_data(folder)
    assert data.intensity is None and not any("bits" in said for said in data.said)


def test_a_file_that_may_not_be_read_is_said(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"PK")

    def refused(*args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("madet.nets.weights.load_content", refused)
    monkeypatch.setattr("madet.nets.weights.is_torch_file", refused)  # it would open the file too
    with pytest.raises(BadInput, match="may not be read; change its permissions"):
        madet.load(path)
