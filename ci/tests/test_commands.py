"""The command line as a stranger meets it: wrong input gets a sentence and exit 2, nothing computed is lost."""

import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from madet.cli import main

TINY = (
    "--method atss --backbone tiny --image-size 64 --total-batch 2 --log-every 1 "
    "--fpn-channels 16 --head-convs 1"
).split()


def voc(folder, splits, classes=("cup", "spoon"), objects=True):
    """A VOC folder of small noise pictures; `splits` is {name: number of images}."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for split, count in splits.items():
        names = [f"{split}_{i}" for i in range(count)]
        (folder / f"ImageSets/Main/{split}.txt").write_text("\n".join(names) + "\n")
        for i, name in enumerate(names):
            Image.fromarray(generator.integers(0, 255, (48, 64, 3), dtype=np.uint8)).save(
                folder / f"JPEGImages/{name}.jpg"
            )
            boxes = (
                "<object>"
                f"<name>{classes[i % len(classes)]}</name><bndbox><xmin>10</xmin><ymin>8</ymin><xmax>"
                "40</xmax><ymax>36</ymax></bndbox></object>"
            )
            (folder / f"Annotations/{name}.xml").write_text(
                "<annotation>"
                f"<filename>{name}.jpg</filename><size><width>64</width><height>48</height><depth>"
                f"3</depth></size>{boxes if objects else ''}</annotation>"
            )
    return folder


def madet(capsys, *words):
    """Exit code, standard output and standard error of one command, in this process."""
    code = main([str(word) for word in words])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err + printed.out
    return code, printed.out, printed.err


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return voc(tmp_path_factory.mktemp("voc"), dict(train=6, val=2, test=2))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, pictures):
    out = tmp_path_factory.mktemp("runs") / "a"
    assert (
        main(
            [
                "train",
                "--scale",
                "bench",
                "--data",
                str(pictures),
                "--out",
                str(out),
                "--steps",
                "3",
                *TINY,
            ]
        )
        == 0
    )
    return out


def test_a_run_leaves_what_the_contract_says(trained):
    assert {
        "params.json",
        "env.json",
        "log.jsonl",
        "last.pt",
        "best.safetensors",
        "metrics.json",
    } <= {p.name for p in trained.iterdir()}
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    assert set(json.loads((trained / "metrics.json").read_text())["test"]) >= {"AP", "AP50"}


@pytest.mark.parametrize("wrong, hint", [("nowhere", "nowhere"), ("empty", "empty")])
def test_data_that_is_not_there(capsys, tmp_path, wrong, hint):
    (tmp_path / "empty").mkdir()
    code, _, said = madet(
        capsys,
        "train",
        "--scale",
        "bench",
        "--data",
        tmp_path / wrong,
        "--out",
        tmp_path / "run",
        *TINY,
    )
    assert code == 2 and hint in said and not (tmp_path / "run/metrics.json").exists()


def test_an_unknown_option_names_the_nearest(capsys, tmp_path):
    code, _, said = madet(capsys, "train", "--out", tmp_path / "r", "--learning-rte", "1")
    assert code == 2 and "--learning-rte" in said
    code, _, said = madet(capsys, "train", "--out", tmp_path / "r", "--total-bach", "1")
    assert code == 2 and "--total-batch" in said


def test_a_folder_with_a_run_is_not_overwritten(capsys, trained, pictures):
    before = (trained / "last.pt").read_bytes()
    words = [
        "train",
        "--scale",
        "bench",
        "--data",
        pictures,
        "--out",
        trained,
        "--steps",
        "3",
        *TINY,
    ]
    code, _, said = madet(capsys, *words)
    assert code == 2 and "--resume" in said
    code, _, said = madet(capsys, *words, "--resume")
    assert code == 0 and (trained / "last.pt").read_bytes() == before


def test_weights_of_another_class_count(capsys, trained, tmp_path):
    other = voc(tmp_path / "other", dict(train=3, val=1, test=2), classes=("cup", "spoon", "plate"))
    code, _, said = madet(capsys, "test", trained / "best.safetensors", "--data", other)
    assert code == 2 and "plate" in said


def test_class_names_that_differ_between_train_and_test(capsys, tmp_path):
    folder = voc(tmp_path / "mixed", dict(train=3, val=1))
    voc(folder, dict(test=2), classes=("dog",))
    code, _, said = madet(
        capsys,
        "train",
        "--scale",
        "bench",
        "--data",
        folder,
        "--out",
        tmp_path / "run",
        "--steps",
        "2",
        *TINY,
    )
    assert code == 2 and "dog" in said and "spoon" in said


class Bomb:
    """A pickle that would write a file when opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_weights_that_want_to_run_a_program(capsys, pictures, trained, tmp_path, zipped):
    path, mark = tmp_path / "w.pth", tmp_path / "executed"
    if zipped:
        torch.save({"state_dict": {"x": torch.zeros(1)}, "meta": Bomb(mark)}, path)
    else:
        path.write_bytes(pickle.dumps({"state_dict": Bomb(mark)}))
    picture = next((pictures / "JPEGImages").glob("*.jpg"))
    for words in (
        ["predict", path, picture, "--out", tmp_path / "p"],
        ["test", path, "--data", pictures],
        [
            "train",
            "--scale",
            "bench",
            "--data",
            pictures,
            "--backbone",
            "resnet18",
            "--weights",
            path,
            "--steps",
            "1",
            "--out",
            tmp_path / "r",
        ],
    ):
        code, _, said = madet(capsys, *words)
        assert code == 2 and "w.pth" in said and not mark.exists(), said


def test_a_truncated_weights_file(capsys, trained, pictures, tmp_path):
    whole = (trained / "best.safetensors").read_bytes()
    (tmp_path / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    code, _, said = madet(capsys, "test", tmp_path / "half.safetensors", "--data", pictures)
    assert code == 2 and "half.safetensors" in said


def test_no_object_in_any_image(capsys, tmp_path):
    """A batch without any object, and a test set without any: trains, and says that there is nothing to score."""
    folder = voc(tmp_path / "bare", dict(train=2, val=1, test=1), objects=True)
    for path in (folder / "Annotations").glob("*.xml"):
        if "train_0" not in path.name:
            path.write_text(path.read_text().split("<object>")[0] + "</annotation>")
    code, _, said = madet(
        capsys,
        "train",
        "--scale",
        "bench",
        "--data",
        folder,
        "--out",
        tmp_path / "run",
        "--steps",
        "4",
        *TINY,
        "--total-batch",
        "1",
    )
    assert code == 0, said
    assert json.loads((tmp_path / "run/metrics.json").read_text())["test"]["AP"] in (None, -1)


def test_a_truncated_picture_does_not_lose_the_run(capsys, pictures, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(pictures, folder)
    path = folder / "JPEGImages/train_2.jpg"
    path.write_bytes(path.read_bytes()[:400])
    code, _, said = madet(
        capsys,
        "train",
        "--scale",
        "bench",
        "--data",
        folder,
        "--out",
        tmp_path / "run",
        "--steps",
        "4",
        *TINY,
    )
    assert code == 0 and "train_2.jpg" in said


def test_predict_draws_and_writes_json(capsys, trained, pictures, tmp_path):
    picture = next((pictures / "JPEGImages").glob("*.jpg"))
    (tmp_path / "note.txt").write_text("no picture")
    code, out, _ = madet(
        capsys, "predict", trained / "best.safetensors", picture, "--out", tmp_path / "p", "--json"
    )
    assert code == 0 and json.loads(out) is not None
    assert list((tmp_path / "p").rglob("*.png")) and list((tmp_path / "p").rglob("*.json"))
    code, _, said = madet(
        capsys,
        "predict",
        trained / "best.safetensors",
        tmp_path / "note.txt",
        "--out",
        tmp_path / "q",
    )
    assert code == 2 and "note.txt" in said


def test_json_is_the_only_thing_on_standard_output(capsys, trained, pictures):
    code, out, _ = madet(capsys, "test", trained, "--data", pictures, "--json")
    assert code == 0 and "AP" in json.dumps(json.loads(out))
    stored = json.loads((trained / "metrics.json").read_text())["test"]["AP"]
    found = json.loads(out)
    assert (found.get("test") or found)["AP"] == pytest.approx(stored)


def test_help_is_quick_because_it_loads_no_torch():
    script = (
        "import sys; from madet.cli import main; code = main(['--help']); assert 'torch' not in "
        "sys.modules; sys.exit(code)"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0


@pytest.mark.long
def test_torchrun_gives_the_losses_of_one_process(tmp_path):
    """ATSS normalises over all processes, so two with half the batch each say what one says with the whole."""
    base = (
        "-m madet train --method atss --level easy --steps 5 --log-every 1 --total-batch 4"
    ).split()
    one = [sys.executable, *base, "--out", str(tmp_path / "one")]
    two = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        "29517",
        *base,
        "--out",
        str(tmp_path / "two"),
    ]
    for command in (one, two):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    rows = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    losses = [[row["loss"] for row in part if "loss" in row] for part in rows]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
