"""What was written before options were renamed is read as it was: runs, weights, grids, words (ci/former/README.md)."""

import csv
import json
import subprocess
import sys
import tarfile
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from madet.boxes.errors import BadInput
from madet.cli import main, parse
from madet.methods.load import detector_from
from madet.methods.names import method_fields, recipe_of
from madet.methods.train import parse_run
from madet.tables.grid import read_grid
from madet.tables.jobs import make_job
from madet.tables.run import plan
from madet.training.checkpoint import about_weights
from madet.training.former_names import FIELDS, VALUES, current_names, former_names
from madet.training.recipe import merge

FORMER = Path(__file__).parents[1] / "former"
sys.path.insert(0, str(FORMER))
from make import digest, processor  # noqa: E402

REFERENCE = json.loads((FORMER / "reference.json").read_text())
LATER = {
    "intensity": "",
    "init": "",
    "init_sha256": "",
}  # fields that came after the renaming, as they are by default
UNFINISHED = ("--method", "rotated-madet", "--match", "hull", "--weigh-yes", "false")


def unpacked(name, place):
    with tarfile.open(FORMER / f"{name}.tar.xz") as file:
        file.extractall(place, filter="data")
    return place


def call(*words):
    """Exit code, standard output and standard error of a command line."""
    out, errors = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(errors):
        code = main(list(map(str, words)))
    return code, out.getvalue(), errors.getvalue()


def stored(folder):
    return json.loads((folder / "params.json").read_text())


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder with the data that the runs of before were made on: twelve scenes in `shapes`."""
    monkeypatch.chdir(tmp_path)
    code, _, errors = call("data", "make", "--level", "easy", "--count", "12", "--out", "shapes")
    assert code == 0, errors
    for path in (tmp_path / "shapes/coco").glob(
        "*.json"
    ):  # outlines of four corners meant nothing before
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            del annotation["segmentation"]
        path.write_text(json.dumps(content))
    return tmp_path


def losses_of(path):
    """What a loaded detector loses on one image of noise with one object, as `ci/former/make.py` measured it."""
    model, _, _ = detector_from(path)
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    box = model.boxes.from_upright(torch.tensor([[8.0, 8.0, 40.0, 36.0]]))
    losses = model.train()([image], [{"boxes": box, "labels": torch.tensor([1])}])
    return {name: value.item() for name, value in losses.items()}


def test_weights_of_before_are_the_same_detector(tmp_path):
    unpacked("weights", tmp_path)
    file = tmp_path / "weights.safetensors"
    flat = about_weights(file)["recipe"]
    assert {"weigh_yes", "clip_free", "detached"} <= flat.keys() and flat["assigner"] == "mutual"
    model, _, classes = detector_from(file)
    config = model.head.loss_config
    assert config.detach_weights and not config.weight_negatives and len(classes) == 5
    assert losses_of(file) == pytest.approx(REFERENCE["loaded"]["weights.safetensors"], rel=1e-4)


def test_a_finished_run_of_before_is_left_alone_scored_and_drawn(place):
    unpacked("finished", place)
    before = (place / "finished/params.json").read_bytes()
    metrics = json.loads((place / "finished/metrics.json").read_text())
    assert b'"match": "hull"' in before and b'"inside_box": true' in before
    assert losses_of("finished") == pytest.approx(REFERENCE["loaded"]["finished"], rel=1e-4)
    code, out, errors = call("train", "--out", "finished", "--resume", "--json")
    assert code == 0 and json.loads(out) == metrics, errors
    assert "finished already" in errors
    assert (place / "finished/detections.png").is_file(), "missing pictures are drawn"
    assert (place / "finished/params.json").read_bytes() == before
    code, out, _ = call("test", "finished", "--data", "shapes", "--labels", "coco", "--json")
    assert code == 0 and json.loads(out)["images"] == 6


def compare(path):
    """Assert that a weights file is what the former code reached from the same checkpoint."""
    whole, parts = digest(path)
    assert parts.keys() == REFERENCE["tensors"].keys()
    for name, numbers in REFERENCE["tensors"].items():
        assert parts[name] == pytest.approx(numbers, rel=1e-4, abs=1e-4), name
    same_torch = torch.__version__ == REFERENCE["torch"]
    if same_torch and processor() in REFERENCE["weights"]:
        expected = REFERENCE["weights"][processor()]
        assert whole == expected, "bit for bit on a machine of the same kind"


@pytest.mark.parametrize("words", [(), UNFINISHED], ids=["as it says", "with former words"])
def test_an_unfinished_run_of_before_goes_on_to_the_same_end(place, words):
    unpacked("unfinished", place)
    former = stored(place / "unfinished")
    code, _, errors = call("train", "--out", "unfinished", "--resume", "--device", "cpu", *words)
    assert code == 0, errors
    assert f"resumed at step {REFERENCE['steps_resumed_from']} of 8" in errors
    log = (place / "unfinished/log.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in log]
    assert losses == pytest.approx(REFERENCE["losses"], rel=1e-4)
    compare(place / "unfinished/best.safetensors")
    now = stored(place / "unfinished")
    assert now == current_names(former) and list(now) == list(current_names(former))
    assert former_names(now) == former and not now.keys() & FIELDS.keys()


def test_contradicting_a_run_of_before_is_refused(place):
    unpacked("unfinished", place)
    for words in (("--match", "own"), ("--match-on", "rotated"), ("--weigh-yes", "true")):
        code, _, errors = call("train", "--out", "unfinished", "--resume", *words)
        assert code == 2 and "a run goes on as it began" in errors, words
        assert "--match" not in errors or "match_on" in errors


def test_params_of_before_are_typed_once_to_the_same_recipe(place):
    unpacked("unfinished", place)
    for words in ({}, {"match": "hull"}, {"match-on": "horizontal", "weigh_yes": "no"}):
        asked = parse_run(words, "unfinished", resume=True)
        flat = {"scale": asked.scale} | merge(asked.recipe, asked.method_options)
        assert flat == current_names(stored(place / "unfinished")) | LATER
        assert asked.given == current_names(words).keys()


def test_a_grid_of_before_plans_the_same_runs():
    rows = read_grid(FORMER / "grid.csv")
    jobs, reasons = plan(rows, "thimble", [1], {}, ".")
    assert not reasons and {job.name for job in jobs} == set(REFERENCE["jobs"])
    for job in jobs:
        flat = {name: value for name, value in job.params.items() if name != "scale"}
        _, recipe, options = recipe_of("thimble", flat)
        assert former_names(merge(recipe, options)) == REFERENCE["jobs"][job.name] | LATER


def test_folders_of_table_rows_keep_their_names():
    """The digest in a folder's name was taken over former names, so a run of before is found, not run again."""
    new = {"method": "rotated-atss", "match_on": "horizontal", "scale": "thimble", "seed": 1}
    new["assigner"] = "default"
    old = former_names(new)
    assert old["match"] == "hull" and old["assigner"] == "own"
    assert "rotated-hull-s1-f70a32ca" in REFERENCE["jobs"]
    assert make_job("rotated-hull", 1, new, ".").name == "rotated-hull-s1-f70a32ca"
    assert make_job("rotated-hull", 1, old, ".").name == "rotated-hull-s1-f70a32ca"


@pytest.mark.parametrize("option", sorted(FIELDS))
def test_former_words_are_understood(option):
    name = FIELDS[option]
    former, current = (word.replace("_", "-") for word in (option, name))
    for word in (former, option):
        _, args = parse(["train", "--out", "x", f"--{word}", "7"])
        assert vars(args)[f"recipe.{name}"] == "7", word
    owners = [m for m in ("atss", "madet", "rotated-atss") if name in method_fields(m)]
    wrong = {"method": owners[0], option: "nonsense"}
    with pytest.raises(BadInput, match=f"--{current} is 'nonsense'"):
        recipe_of("thimble", wrong)


@pytest.mark.parametrize("name", sorted(VALUES))
def test_former_values_mean_the_same(name):
    methods = ("atss", "rotated-atss", "oriented-rcnn")
    method = next(m for m in methods if name in method_fields(m))
    for former, value in VALUES[name].items():
        old, new = (
            recipe_of("thimble", {"method": method, name: word}) for word in (former, value)
        )
        assert old == new and getattr(new[2], name) == value


def test_help_shows_only_new_words():
    for command in ("train", "table"):
        words = [sys.executable, "-m", "madet", command, "--help"]
        shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        options = {word.strip(",").split("=")[0] for word in shown.split() if word.startswith("--")}
        for former, name in FIELDS.items():
            assert f"--{name.replace('_', '-')}" in options
            assert f"--{former.replace('_', '-')}" not in options, former
        assert " own" not in shown.replace("their own", "") and "hull" not in shown


def test_grids_in_the_repository_use_new_words():
    for path in (FORMER.parents[1] / "papers").glob("*/grid.csv"):
        with open(path, newline="") as file:
            columns = [column.split(".")[-1] for column in next(csv.reader(file))]
        assert not set(columns) & FIELDS.keys(), path


def test_what_a_run_writes_uses_new_words(place):
    words = "--method madet --weigh-yes false --steps 2 --fpn-channels 8 --total-batch 2".split()
    code, _, errors = call(
        "train", "--out", "run", "--data", "shapes", "--scale", "thimble", "--device", "cpu", *words
    )
    assert code == 0, errors
    flat = about_weights("run/best.safetensors")["recipe"]
    for written in (stored(place / "run"), flat):
        assert written["weight_positives"] is False and not written.keys() & FIELDS.keys()
    assert len(load_file("run/best.safetensors")) > 50
