"""Pictures as people have them: the field cases on pixels, and their neighbours. Each test names the right value."""

import json
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from madet.boxes.errors import BadInput
from madet.data import picture_files
from madet.data.any_image import to_pixels
from madet.data.intensity import choose_intensity
from madet.data.open_folder import open_data
from madet.data.pixels import IMAGE_SUFFIXES, look, read_image
from madet.data.report import survey
from madet.detectors.dense import atss_detector
from madet.detectors.torchvision import tv_retinanet
from madet.figures import sheets
from madet.methods import detector, picture_paths
from madet.methods import predict as predicting
from madet.methods.detector import as_bytes
from madet.methods.load import detector_from
from madet.methods.names import recipe_of
from madet.methods.score import open_split
from madet.training.checkpoint import save_weights
from madet.training.recipe import Recipe, intensity_range, merge
from madet.training.run import open_splits, resolve_intensity
from madet.training.run_folder import RunFolder, settled

tifffile = pytest.importorskip("tifffile")


def scene(width=64, height=48, seed=0):
    """uint8 [H, W, 3] without two equal pixels in a row."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def coco(folder, names, boxes=((5, 5, 20, 20),), **image):
    """A COCO folder for pictures that lie in `folder`/images; `image`: more keys of its entries."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    images = [{"id": i, "file_name": name, **image} for i, name in enumerate(names, 1)]
    rows = []
    for one in images:
        for box in boxes:
            row = {"id": len(rows) + 1, "image_id": one["id"], "category_id": 1, "bbox": list(box)}
            rows.append(row | {"area": box[2] * box[3], "iscrowd": 0})
    content = {
        "images": images,
        "annotations": rows,
        "categories": [{"id": 1, "name": "cup"}],
    }
    (folder / "annotations/instances_train.json").write_text(json.dumps(content))
    return folder


def turned_note(turn):
    exif = Image.Exif()
    exif[274] = turn
    return exif


def complaint(call, *words):
    with pytest.raises(BadInput) as caught:
        call()
    sentence = str(caught.value)
    for word in words:
        assert word in sentence, sentence
    assert "\n" not in sentence and "Traceback" not in sentence
    return sentence


# the field cases


@pytest.fixture
def field(shared):
    def folder(name):
        if not (shared / "field/upright" / name).is_dir():
            pytest.skip(f"no {name} in {shared}/field")
        return shared / "field/upright" / name

    return folder


def test_a_turned_tiff_is_said_to_be_turned(field):
    report = survey(field("tiff_orientation"))
    assert any("1 pictures are turned by their EXIF note" in sentence for sentence in report.said)
    assert report.sizes == {"48x64": 1} and report.objects == 1 and not report.defects


def test_a_turned_tiff_without_declared_size_keeps_both_objects(field):
    folder = field("tiff_orientation_no_size")
    report = survey(folder)
    assert (report.objects, report.usable, report.sizes) == (2, 2, {"48x64": 1})
    assert not report.defects
    sample = open_data(folder, "train").load(0)
    assert sample.image.shape == (3, 64, 48)
    assert sample.objects.boxes.tolist() == [[10, 50, 30, 62], [38, 0, 48, 20]]


@pytest.mark.parametrize("name", ["coco_gif", "coco_jfif_avif"])
def test_other_endings_are_looked_for(field, name):
    report = survey(field(name))
    assert (report.images, report.objects, report.defects) == (2, 2, [])
    for i in range(2):
        assert report.dataset.load(i).image.shape == (3, 48, 64)


@pytest.mark.parametrize(
    "name, size", [("huge_image", "14000x14000"), ("huge_image_95mpx", "10000x9500")]
)
def test_large_pictures_are_read_without_a_word(field, name, size):
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = survey(field(name), verify=0)
    assert report.sizes == {size: 1} and report.objects == 1 and not report.defects
    assert limit == Image.MAX_IMAGE_PIXELS


# frames


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("name", ["a.tif", "big.TIFF", "a.jpg", "a.webp", "lzw.tif", "floats.tif"])
def test_size_box_and_picture_share_a_frame(tmp_path, name, turn):
    picture = Image.fromarray(scene())
    undo = {5: 5, 6: 8, 7: 7, 8: 6}.get(turn, turn)
    moves = "FLIP_LEFT_RIGHT ROTATE_180 FLIP_TOP_BOTTOM TRANSPOSE ROTATE_270 TRANSVERSE ROTATE_90"
    stored = picture
    if turn > 1:
        stored = picture.transpose(getattr(Image.Transpose, moves.split()[undo - 2]))
    (tmp_path / "images").mkdir()
    path = tmp_path / "images" / name
    if name == "floats.tif":
        note = [(274, "H", 1, turn, True)]
        values = np.asarray(stored).astype(np.float32) / 255
        tifffile.imwrite(path, values, photometric="rgb", extratags=note)
    else:
        options = {"big.TIFF": {"big_tiff": True}, "lzw.tif": {"compression": "tiff_lzw"}}
        more = options.get(name, {"lossless": True} if name == "a.webp" else {})
        stored.save(path, exif=turned_note(turn), **more)
    data = open_data(coco(tmp_path, [name], [(5, 5, 20, 20), (44, 30, 20, 18)]), "train")
    record, image = data.records[0], data.load(0).image
    assert (record.width, record.height) == (64, 48) and len(record.objects) == 2
    assert image.shape == (3, 48, 64)
    if name != "a.jpg":
        assert np.array_equal(image.permute(1, 2, 0), scene())
    assert any("turned by their EXIF note" in said for said in data.said) == (turn >= 5)


def test_labels_of_the_stored_frame_keep_it(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(scene()).save(tmp_path / "images/a.tif", exif=turned_note(6))
    folder = coco(tmp_path, ["a.tif"], [(44, 30, 20, 18)], width=64, height=48)
    data = open_data(folder, "train")
    assert (data.records[0].width, data.records[0].height) == (64, 48)
    assert np.array_equal(data.load(0).image.permute(1, 2, 0), scene())
    assert any("do not follow; they are read as stored" in said for said in data.said)


# kinds of files


def test_every_ending_in_capital_letters(tmp_path):
    (tmp_path / "images").mkdir()
    kinds = {".JFIF": "JPEG", ".JPE": "JPEG", ".GIF": "GIF", ".PNM": "PPM", ".PBM": "PPM"}
    names = []
    for suffix in (*kinds, ".JPG", ".PNG", ".BMP", ".TIF", ".WEBP", ".PGM", ".JP2"):
        names.append(f"p{len(names)}{suffix}")
        mode = "1" if suffix == ".PBM" else "L" if suffix == ".PGM" else "RGB"
        picture = Image.fromarray(scene(seed=len(names))).convert(mode)
        picture.save(tmp_path / "images" / names[-1], kinds.get(suffix))
    report = survey(coco(tmp_path, names))
    assert (report.images, report.objects, report.defects) == (len(names), len(names), [])


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read(tmp_path):
    Image.fromarray(scene()).save(tmp_path / "a.avif")
    assert read_image(tmp_path / "a.avif").shape == (3, 48, 64)


def test_the_first_frame_is_read_and_said(tmp_path):
    (tmp_path / "images").mkdir()
    first, second = (Image.fromarray(scene(seed=seed)).quantize(64) for seed in (1, 2))
    for name in ("a.gif", "b.tif", "c.webp", "d.png"):
        first.save(tmp_path / "images" / name, save_all=True, append_images=[second])
    first.save(tmp_path / "images/still.gif")
    names = ["a.gif", "b.tif", "c.webp", "d.png", "still.gif"]
    report = survey(coco(tmp_path, names))
    assert any("4 pictures are animated or have several pages" in said for said in report.said)
    expected = np.asarray(first.convert("RGB"))
    for name in ("a.gif", "b.tif", "d.png"):
        assert np.array_equal(read_image(tmp_path / "images" / name).permute(1, 2, 0), expected)


def test_what_pillow_cannot_decode_names_a_package(tmp_path, monkeypatch):
    for module in ("pillow_heif", "pillow_jxl", "pillow_avif"):
        monkeypatch.setitem(sys.modules, module, None)
    heads = {
        "a.heic": (b"\0\0\0\x18ftypheic" + bytes(40), "pip install pillow-heif"),
        "iphone.jpg": (b"\0\0\0\x18ftypmif1" + bytes(40), "pip install pillow-heif"),
        "a.jxl": (b"\xff\x0a" + bytes(40), "pip install pillow-jxl-plugin"),
    }
    (tmp_path / "images").mkdir()
    Image.fromarray(scene()).save(tmp_path / "images/good.png")
    for name, (head, words) in heads.items():
        (tmp_path / "images" / name).write_bytes(head)
        complaint(lambda name=name: read_image(tmp_path / "images" / name), name, words, "convert")
    report = survey(coco(tmp_path, [*heads, "good.png"]))
    assert report.images == 1 and len(report.defects) == len(heads)
    assert all("pip install" in defect.what for defect in report.defects)


def test_eight_bits_are_read_as_pillow_reads_them(tmp_path):
    picture = Image.fromarray(scene())
    quantized = picture.quantize(32)
    quantized.info["transparency"] = bytes(range(32))
    kinds = {
        "rgb.png": picture,
        "grey.png": picture.convert("L"),
        "alpha.png": picture.convert("RGBA"),
        "two.png": picture.convert("LA"),
        "palette.png": quantized,
        "bits.png": picture.convert("1"),
        "a.jpg": picture,
        "cmyk.jpg": picture.convert("CMYK"),
        "a.tif": picture,
        "a.bmp": picture,
        "a.gif": picture.quantize(16),
    }
    for name, image in kinds.items():
        image.save(tmp_path / name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(tmp_path / name) as opened:
                expected = np.asarray(opened.convert("RGB"))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for ends in (None, (7000.0, 9000.0)):  # a rule of deeper pictures changes nothing
                pixels = read_image(tmp_path / name, intensity=ends)
                assert np.array_equal(pixels.permute(1, 2, 0), expected), name


# size and memory


def test_memory_is_looked_at_before_a_large_picture_is_decoded(tmp_path, monkeypatch):
    Image.fromarray(scene()).save(tmp_path / "a.png")
    monkeypatch.setattr(picture_files, "LARGE", 1000)
    assert read_image(tmp_path / "a.png").shape == (3, 48, 64)
    monkeypatch.setattr(picture_files, "available_memory", lambda: 1000)
    words = ("a.png", "64 x 48 pixels", "GB of memory", "are free", "cut the picture into tiles")
    complaint(lambda: read_image(tmp_path / "a.png"), *words)
    assert look(tmp_path / "a.png").stored == (64, 48)  # a header needs none


def test_a_picture_beyond_the_machine_is_a_defect(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(scene()).save(tmp_path / "images" / name)
    Image.new("1", (300, 300)).save(tmp_path / "images/bomb.png")
    total = picture_files.psutil.virtual_memory()._replace(total=500_000)
    monkeypatch.setattr(picture_files.psutil, "virtual_memory", lambda: total)
    monkeypatch.setattr(picture_files, "LARGE", 10_000)
    report = survey(coco(tmp_path, ["a.png", "bomb.png", "b.png"]))
    assert report.images == 2
    assert "more than this machine has" in report.defects[0].what


def test_the_limit_of_pillow_is_back_after_threads(tmp_path, monkeypatch):
    Image.fromarray(scene()).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    failed = []

    def read():
        for _ in range(20):
            try:
                read_image(tmp_path / "a.png")
            except BadInput as error:
                failed.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and Image.MAX_IMAGE_PIXELS == 100
    with pytest.raises(BadInput):
        read_image(tmp_path / "none.png")
    assert Image.MAX_IMAGE_PIXELS == 100


# a model handed anything


@pytest.mark.parametrize("build", [atss_detector, tv_retinanet])
def test_a_model_takes_an_image_in_any_form(tmp_path, build):
    torch.manual_seed(0)
    model = build(2, backbone="tiny").eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    array = scene()
    Image.fromarray(array).save(tmp_path / "a.png")
    floats = torch.from_numpy(array).permute(2, 0, 1).float() / 255
    expected = model([floats])[0]
    forms = [
        str(tmp_path / "a.png"),
        tmp_path / "a.png",
        Image.fromarray(array),
        array,
        array.astype(np.float64) / 255,
        np.dstack([array, array[..., :1]]),
        torch.from_numpy(array).permute(2, 0, 1),
        floats,
        floats[None],
        array[None],
    ]
    for form in forms:
        for images in (form, [form]) if getattr(form, "ndim", 3) == 3 else (form,):
            found = model(images)[0]
            assert all(found[key].equal(expected[key]) for key in expected)
    assert len(model(forms[:4])) == 4
    complaint(lambda: model([floats * 255]), "image 0 of 1", "divide by 255")
    complaint(lambda: model(torch.from_numpy(array)), "permute(2, 0, 1)")
    complaint(lambda: model([array.transpose(2, 0, 1)]), "transpose(1, 2, 0)")
    complaint(lambda: model([array.astype(np.uint16)]), "which value is white")
    complaint(lambda: model([]), "no image")
    complaint(lambda: model([{"image": floats}]), "given as dict")
    model.intensity = (0.0, 4080.0)  # trained on twelve bits
    deep = model([array.astype(np.uint16) * 16])[0]
    assert all(deep[key].equal(expected[key]) for key in expected)


# pictures of science


def thermal_set(folder, kind="thermal", count=4):
    """A COCO folder of 16-bit pictures whose truth is known: (folder, [values])."""
    (folder / "images").mkdir(parents=True)
    values = []
    for i in range(count):
        ramp = np.linspace(0, 1, 64 * 48).reshape(48, 64)
        share = np.roll(ramp, 9 * i, 1)
        stored = 7000 + 2000 * share if kind == "thermal" else 4095 * share
        values.append(np.rint(stored).astype(np.uint16))
        Image.fromarray(values[-1]).save(folder / f"images/p{i}.tif")
    return coco(folder, [f"p{i}.tif" for i in range(count)]), values


def settle(folder, recipe, **more):
    """(recipe, params.json, what was said, parts) at the beginning of a run."""
    folder.path.mkdir(exist_ok=True)
    parts, said = open_splits(recipe), []
    params = merge(recipe) | more
    recipe, _ = resolve_intensity(recipe, params, folder, parts, lambda *some: said.extend(some))
    stored = json.loads(folder.params.read_text()) if folder.params.exists() else {}
    return recipe, stored, said, parts


def test_a_rule_is_chosen_for_the_set_said_stored_and_used(tmp_path):
    folder, values = thermal_set(tmp_path / "data")
    recipe = Recipe(data=str(folder))
    before = open_splits(recipe)["train"].load(0).image
    assert before.min() >= 27 and before.max() <= 35  # by type: what it was
    run = RunFolder(tmp_path / "run")
    recipe, params, said, parts = settle(run, recipe)
    low, high = intensity_range(recipe.intensity)
    assert 7000 <= low < 7010 and 8990 < high <= 9000
    assert params["intensity"] == recipe.intensity and f"{low:g} becomes black" in said[0]
    for part in (*parts.values(), *open_splits(recipe).values()):
        image = part.load(0).image
        index = int(part.records[0].path.stem[1:])
        expected = np.rint(np.clip((values[index] - low) * 255.0 / (high - low), 0, 255))
        assert np.array_equal(image[0], expected) and image.min() == 0 and image.max() == 255


def test_twelve_bits_become_the_whole_range(tmp_path):
    folder, values = thermal_set(tmp_path / "data", "twelve")
    recipe, _, said, parts = settle(RunFolder(tmp_path / "run"), Recipe(data=str(folder)))
    assert recipe.intensity == "0..4095" and "the range of 12 bits" in said[0]
    image = parts["train"].load(0).image
    assert (image.min(), image.max()) == (0, 255)


def test_a_resumed_run_keeps_its_rule_and_one_without_gets_none(tmp_path):
    folder, _ = thermal_set(tmp_path / "data")
    run = RunFolder(tmp_path / "run")
    given = replace(Recipe(data=str(folder)), intensity="6000..9500")
    recipe, _, said, parts = settle(run, given)
    assert recipe.intensity == "6000..9500" and "6000 becomes black" in said[0]
    assert parts["test"].intensity == (6000, 9500)
    run.last.write_bytes(b"")  # as if a run of an earlier version had been stopped
    recipe, _, said, parts = settle(run, Recipe(data=str(folder)))
    assert recipe.intensity == "" and parts["train"].intensity is None
    assert "by its own type" in said[0]
    stored, source = {"intensity": "0..4095"}, Path("params.json")
    kept = settled(stored, {"intensity": ""}, ["intensity"], source)
    assert kept == stored
    again = settled({}, {"intensity": ""}, ["intensity"], source)  # an older params.json
    assert again == {}
    complaint(lambda: settled(stored, {"intensity": "0..9"}, ["intensity"], source), "0..9")


def test_eight_bits_get_no_rule(tmp_path):
    (tmp_path / "data/images").mkdir(parents=True)
    for i in range(4):
        Image.fromarray(scene(seed=i)).save(tmp_path / f"data/images/p{i}.png")
    folder = coco(tmp_path / "data", [f"p{i}.png" for i in range(4)])
    recipe, params, said, _ = settle(RunFolder(tmp_path / "run"), Recipe(data=str(folder)))
    assert (recipe.intensity, params, said) == ("", {}, [])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of an untrained detector that was trained on a thermal set, or so it says."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    model = atss_detector(1, backbone="tiny")
    _, recipe, options = recipe_of("thimble", {"method": "atss", "intensity": "7000..9000"})
    about = {"method": "atss", "recipe": merge(recipe, options), "classes": ["cup"]}
    save_weights(path, model, **about)
    return path


def test_predict_and_test_use_the_rule_of_the_weights(tmp_path, weights, monkeypatch, capsys):
    folder, values = thermal_set(tmp_path / "data", count=2)
    seen = []

    def detect(model, images, views):
        seen.extend(images)
        none = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0)}
        return [none | {"labels": torch.zeros(0, dtype=torch.int64)}]

    monkeypatch.setattr(detector, "detect_images", detect)
    answer = predicting.predict(weights, [str(folder / "images")], tmp_path / "out", device="cpu")
    expected = np.rint((values[0] - 7000.0) * 255 / 2000)
    assert np.array_equal(seen[0][0], expected)
    assert "in all of them 7000 becomes black and 9000 white" in answer["said"][0]
    assert answer["said"][0] in capsys.readouterr().out
    out = tmp_path / "other"
    predicting.predict(weights, [str(folder / "images/p0.tif")], out, intensity="0..65535")
    assert np.array_equal(seen[2][0], np.rint(values[0] / 257))
    model, recipe, classes = detector_from(weights)
    assert model.intensity == (7000, 9000)
    dataset = open_split(replace(recipe, data=str(folder)), "train", classes, model.boxes)
    first = dataset.records[0].path.stem
    assert np.array_equal(dataset.load(0).image[0], expected) == (first == "p0")
    assert any("7000 becomes black" in sentence for sentence in dataset.said)
    bare = replace(recipe, data=str(folder), intensity="")
    dataset = open_split(bare, "train", classes, model.boxes)
    assert any("give one with --intensity LOW..HIGH" in sentence for sentence in dataset.said)
    wrong = {"intensity": "9..3"}
    complaint(lambda: detector.recipe_with(recipe, wrong), "--intensity is '9..3'", "0..4095")


def test_bands_and_floats_that_pillow_does_not_know(tmp_path):
    (tmp_path / "images").mkdir()
    colors = scene()
    four = np.dstack([colors, colors[..., 0]])
    flat = {"photometric": "minisblack", "planarconfig": "contig"}
    apart = {"photometric": "minisblack", "planarconfig": "separate"}
    files = {
        "four.tif": (four, flat),
        "planes.tif": (four.transpose(2, 0, 1), apart),
        "deflate.tif": (four, flat | {"compression": "zlib"}),
        "seven.tif": (np.dstack([four, colors]), flat),
        "floats.tif": (colors.astype(np.float32) / 255, {"photometric": "rgb"}),
        "big.tif": (colors.astype(np.float64) / 255, {"photometric": "rgb", "bigtiff": True}),
        "sixteen.tif": (four.astype(np.uint16) * 257, flat),
        "motorola.tif": (four.astype(np.uint16) * 257, flat | {"byteorder": ">"}),
    }
    for name, (values, options) in files.items():
        tifffile.imwrite(tmp_path / "images" / name, values, **options)
        pixels = read_image(tmp_path / "images" / name)
        assert np.array_equal(pixels.permute(1, 2, 0), colors), name
    report = survey(coco(tmp_path, list(files)))
    assert (report.images, report.defects) == (len(files), [])
    assert any("6 pictures have more than three bands" in said for said in report.said)


def test_sixteen_bits_in_color_are_whole_with_a_rule(tmp_path):
    twelve = scene().astype(np.uint16) * 16  # 0 to 4,080
    tifffile.imwrite(tmp_path / "rgb.tif", twelve, photometric="rgb")
    alpha = np.dstack([twelve, twelve[..., 0]])
    tifffile.imwrite(tmp_path / "rgba.tif", alpha, photometric="rgb", extrasamples=["unassalpha"])
    for name in ("rgb.tif", "rgba.tif"):
        assert look(tmp_path / name).depth.bands == 3
        assert read_image(tmp_path / name).max() <= 16  # by type: the upper byte, as ever
        pixels = read_image(tmp_path / name, intensity=(0, 4080))
        assert np.array_equal(pixels.permute(1, 2, 0), scene())
    assert choose_intensity([tmp_path / "rgb.tif"])[0] == (0, 4095)


def test_whole_numbers_of_32_bits(tmp_path):
    grey = scene()[..., 0]
    for name, values in (
        ("byte.tif", grey.astype(np.int32)),
        ("short.tif", grey.astype(np.int32) * 257),
        ("unsigned.tif", grey.astype(np.uint32)),
        ("signed.tif", grey.astype(np.int16)),
    ):
        tifffile.imwrite(tmp_path / name, values)
        assert np.array_equal(read_image(tmp_path / name)[0], grey), name
    tifffile.imwrite(tmp_path / "large.tif", grey.astype(np.int32) * 100_000 - 5)
    assert np.array_equal(read_image(tmp_path / "large.tif")[0], grey)
    turned = tmp_path / "turned.tif"
    Image.fromarray(grey.astype(np.int32)).save(turned, exif=turned_note(6))
    assert np.array_equal(read_image(turned)[0], np.rot90(grey, -1))


def test_without_tifffile_one_sentence_names_it(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    four = np.zeros((48, 64, 4), np.uint16)
    flat = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(tmp_path / "images/four.tif", four, **flat)
    Image.fromarray(scene()).save(tmp_path / "images/a.png")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    words = ("four.tif", "pip install tifffile", "convert")
    complaint(lambda: read_image(tmp_path / "images/four.tif"), *words)
    report = survey(coco(tmp_path, ["four.tif", "a.png"]))
    assert report.images == 1 and "pip install tifffile" in report.defects[0].what


# madet predict FOLDER


def test_predict_takes_every_picture_and_no_drawing_of_its_own(tmp_path, weights, capsys):
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    for name in ("a.png", "b.GIF", "deeper/c.jfif", "d.TIF"):
        Image.fromarray(scene()).save(folder / name, "JPEG" if name.endswith("jfif") else None)
    (folder / "._a.png").write_bytes(b"of a Mac")
    mine = (folder / "a.png").read_bytes()
    for out in (folder / "out", folder, folder / "out", folder / "deeper/again"):
        answer = predicting.predict(weights, [str(folder)], out, device="cpu")
        taken = {str(Path(one["image"]).relative_to(folder)) for one in answer["images"]}
        assert taken == {"a.png", "b.GIF", "deeper/c.jfif", "d.TIF"} and not answer["errors"]
    assert "drawings of earlier runs of madet are left out" in capsys.readouterr().out
    assert (folder / "a.png").read_bytes() == mine and (folder / "a-2.png").exists()
    words = ("holds no picture but drawings that madet made",)
    complaint(lambda: predicting.predict(weights, [str(folder / "out")], tmp_path / "x"), *words)


def test_every_figure_is_known_as_a_drawing(tmp_path):
    figure = sheets.contact_sheet([{"image": scene()}])
    assert picture_paths.is_drawing(sheets.save_png(figure, tmp_path / "page.png"))
    Image.fromarray(scene()).save(tmp_path / "photo.png")
    assert not picture_paths.is_drawing(tmp_path / "photo.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert not picture_paths.is_drawing(tmp_path / "broken.png")
    (tmp_path / "detections.png").write_bytes((tmp_path / "photo.png").read_bytes())
    assert not picture_paths.is_drawing(tmp_path / "detections.png")
    (tmp_path / "params.json").write_text("{}")  # a run folder of an earlier version
    assert picture_paths.is_drawing(tmp_path / "detections.png")
    assert {".gif", ".jfif", ".avif", ".heic", ".tif"} <= set(IMAGE_SUFFIXES)


# what Pillow garbles, and forms of one picture


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bands", [2, 3, 4])
@pytest.mark.parametrize("kind", ["u1", "u2"])
def test_planes_are_read_as_the_same_pixels(tmp_path, kind, bands, order):
    values = np.random.default_rng(0).integers(0, 65536, (48, 64, bands)).astype("u2")
    values = (values >> 8).astype("u1") if kind == "u1" else values
    options = {"photometric": "rgb" if bands > 2 else "minisblack", "byteorder": order}
    if bands != 3:
        options["extrasamples"] = ["unassalpha"]
    tifffile.imwrite(tmp_path / "a.tif", values, planarconfig="contig", **options)
    planes = np.moveaxis(values, -1, 0)
    tifffile.imwrite(tmp_path / "b.tif", planes, planarconfig="separate", **options)
    for rule in (None, (0, 4095)):
        same = read_image(tmp_path / "a.tif", intensity=rule)
        found = read_image(tmp_path / "b.tif", intensity=rule).int()
        assert (found - same.int()).abs().max() <= (bands == 2)
    if (kind, bands) == ("u2", 2):
        return  # Pillow does not open it
    opened = Image.open(tmp_path / "b.tif")
    assert (to_pixels(opened) - to_pixels(tmp_path / "b.tif")).abs().max() == 0


def test_compressed_floats_of_the_other_byte_order(tmp_path):
    floats = scene()[..., 0].astype(np.float32) / 255
    tifffile.imwrite(tmp_path / "a.tif", floats, byteorder=">", compression="zlib")
    assert np.array_equal(read_image(tmp_path / "a.tif")[0], scene()[..., 0])
    assert choose_intensity([tmp_path / "a.tif"])[0] == (0, 1)


@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
@pytest.mark.parametrize("turn", [1, 6])
def test_the_smallest_value_may_be_white(tmp_path, kind, turn):
    grey = scene()[..., 0]
    largest = {"u1": 255, "u2": 65535, "f4": 1}[kind]
    values = ((255 - grey.astype(float)) / 255 * largest).astype(kind)
    note = [(274, "H", 1, turn, True)]
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite", extratags=note)
    seen = np.rot90(grey, -1) if turn == 6 else grey
    pictures = {
        "turned": (read_image(tmp_path / "a.tif"), seen),
        "stored": (read_image(tmp_path / "a.tif", (64, 48)), grey),
        "opened": (to_pixels(Image.open(tmp_path / "a.tif")) * 255, seen),
    }
    for form, (found, expected) in pictures.items():
        assert np.abs(found[0].numpy().astype(float) - expected).max() <= 1, form


def test_a_rule_of_floats_reads_all_forms_alike(tmp_path):
    values = scene()[..., 0].astype(np.float32) / 1020
    Image.fromarray(values).save(tmp_path / "a.tif")
    rule, file = (0, 0.25), tmp_path / "a.tif"
    expected = as_bytes(file, rule)
    forms = {
        "pil": Image.open(file),
        "array": values,
        "double": values.astype(np.float64),
        "tensor": torch.from_numpy(values),
        "three": torch.from_numpy(values).expand(3, -1, -1),
    }
    for name, form in forms.items():
        assert as_bytes(form, rule).equal(expected), name
    bytes_ = scene()[..., 0]
    assert as_bytes(bytes_, rule).equal(as_bytes(Image.fromarray(bytes_), rule))
    heat = (7000 + bytes_ * 8.0).astype(np.float32)
    expected = as_bytes(Image.fromarray(heat), (7000, 9040))
    assert as_bytes(heat, (7000, 9040)).equal(expected)
    assert as_bytes(torch.from_numpy(heat), (7000, 9040)).equal(expected)
    scaled = bytes_.astype(np.float32) / 255  # pixels: within 0..1
    assert np.array_equal(as_bytes(scaled, (7000, 9040))[0], bytes_)
    complaint(lambda: as_bytes(heat), "divide by 255")


@pytest.mark.parametrize("kind", [np.int16, np.uint16, np.int32, np.int64])
def test_whole_numbers_are_taken_as_arrays_and_as_tensors(kind):
    values = scene()[..., 0].astype(kind) * 16
    for form in (values, torch.from_numpy(values)):
        assert np.array_equal(as_bytes(form, (0, 4080))[0], scene()[..., 0])
        assert np.array_equal(to_pixels(form, intensity=(0, 4080))[0] * 255, scene()[..., 0])
        complaint(lambda one=form: as_bytes(one), "which value is white")


def test_an_opened_deep_picture_is_read_from_its_file_or_refused(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", scene().astype(np.uint16) * 16, photometric="rgb")
    for _ in range(2):
        opened = Image.open(tmp_path / "a.tif")
        assert np.array_equal(as_bytes(opened, (0, 4080)).permute(1, 2, 0), scene())
    opened.load()
    complaint(lambda: as_bytes(opened, (0, 4080)), "a.tif", "give the path")
    assert as_bytes(opened).max() == 15  # by type, as ever


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK", "I;16", "F", "I"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_a_plain_tiff_of_any_mode_is_turned(tmp_path, mode, turn):
    grey = Image.fromarray(scene()[..., 0])
    if mode in ("I;16", "F", "I"):
        kind = {"I;16": np.uint16, "F": np.float32, "I": np.int32}[mode]
        picture = Image.fromarray(scene()[..., 0].astype(kind) * (257 if mode == "I;16" else 1))
    else:
        picture = grey.convert("RGB").convert(mode)
    picture.save(tmp_path / "plain.tif")
    picture.save(tmp_path / "turned.tif", exif=turned_note(turn))
    moves = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
    shown = Image.fromarray(read_image(tmp_path / "plain.tif").permute(1, 2, 0).numpy())
    seen = shown if turn == 1 else shown.transpose(Image.Transpose(moves[turn]))
    expected = torch.from_numpy(np.array(seen)).permute(2, 0, 1)
    assert read_image(tmp_path / "turned.tif").equal(expected)
    assert as_bytes(Image.open(tmp_path / "turned.tif")).equal(expected)


@pytest.mark.parametrize("turn", [2, 3, 4])
def test_a_turn_that_keeps_the_sides_is_said(tmp_path, turn):
    (tmp_path / "images").mkdir()
    Image.fromarray(scene()).save(tmp_path / "images/a.png", exif=turned_note(turn))
    data = open_data(coco(tmp_path, ["a.png"]), "train")
    assert sum("mirrored or turned by 180 degrees" in said for said in data.said) == 1


def test_rare_endings_are_taken_from_a_folder(tmp_path):
    for suffix in ("tga", "dib", "ICO"):
        Image.fromarray(scene()).save(tmp_path / f"a.{suffix}")
    assert len(picture_paths.pictures_inside(tmp_path)) == 3
