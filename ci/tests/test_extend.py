"""A finished run that is given more steps, data that changed between stop and resume, options that are not heeded."""

import io
import json
import os
import shutil
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file
from test_commands import TINY, madet, voc
from toy_run import Toy, write_data

from madet.boxes.errors import BadInput
from madet.methods.score import open_split, relabelled, score_detector
from madet.tables.run import plan, run_table
from madet.training.checkpoint import about_weights
from madet.training.progress import read_log
from madet.training.recipe import make_recipe
from madet.training.run import run

SMALL = dict(
    method="toy",
    image_size="32",
    total_batch=4,
    lr_batch=4,
    steps=10,
    warmup=2,
    eval_every=5,
    save_every=4,
    log_every=1,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("toy"), (("train", 12), ("val", 4), ("test", 4)))


def go(data, out, resume=False, given=None, changed_data=False, **changes):
    """A toy run; gives its metrics and what was said."""
    said = io.StringIO()
    recipe, _ = make_recipe("thimble", SMALL | {"data": str(data)} | changes)
    metrics = run(
        recipe,
        None,
        lambda recipe, options, count: Toy(count),
        out,
        resume=resume,
        given=given,
        device="cpu",
        stream=said,
        changed_data=changed_data,
    )
    return metrics, said.getvalue()


def refused(*args, **more):
    with pytest.raises(BadInput) as error:
        go(*args, **more)
    return str(error.value)


def read(path):
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def ten(data, tmp_path_factory):
    """A finished run of ten steps."""
    out = tmp_path_factory.mktemp("runs") / "ten"
    go(data, out)
    return out


@pytest.fixture
def finished(ten, tmp_path):
    return shutil.copytree(ten, tmp_path / "run")


@pytest.fixture(scope="module")
def twenty(data, ten, tmp_path_factory):
    """The run of ten steps, extended to twenty in peace."""
    out = shutil.copytree(ten, tmp_path_factory.mktemp("runs") / "twenty")
    go(data, out, resume=True, steps=20)
    return out


def weights_of(out):
    state = torch.load(out / "last.pt", weights_only=True)
    return state["step"], {**state["model"], **load_file(out / "best.safetensors")}


def assert_same_end(out, reference):
    (step, mine), (same_step, theirs) = weights_of(out), weights_of(reference)
    assert step == same_step and all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert read(out / "metrics.json")["test"] == read(reference / "metrics.json")["test"]
    losses = [
        [line.get("loss") for line in read_log(one / "log.jsonl")] for one in (out, reference)
    ]
    assert losses[0] == losses[1]


# ------------------------------------------------------------------------------------------------ finished runs


def test_a_finished_run_takes_no_other_option(data, finished):
    before = {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    sentence = refused(data, finished, resume=True, lr=0.5)
    assert "says lr 0.003, now it is 0.5" in sentence and "more --steps or --epochs" in sentence
    assert "says scale 'thimble'" not in sentence
    assert "cannot have only 4" in refused(data, finished, resume=True, steps=4)
    assert "finished already" in go(data, finished, resume=True)[1]
    assert "finished already" in go(data, finished, resume=True, save_every=7, workers=1)[1]
    assert "finished already" in go(data, finished, resume=True, given=[], lr=0.5)[1], "not typed"
    slash = f"{data}/../{data.name}/"
    assert "finished already" in go(slash, finished, resume=True)[1], "the same folder"
    after = {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    assert after == before, "nothing was touched"


def test_more_steps_extend_it(data, ten, twenty):
    assert read(twenty / "metrics_10.json") == read(ten / "metrics.json")
    assert read(twenty / "metrics.json")["steps"] == 20
    assert read(twenty / "params.json")["steps"] == 20
    lines = [line for line in read_log(twenty / "log.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 21))
    cosine = [line["lr"] for line in lines]
    assert cosine[9] < 1e-3 * 0.3 < cosine[10], "the rate comes back to that of a run of twenty"
    straight = read_log(ten / "log.jsonl")
    losses = [line["loss"] for line in straight if "loss" in line]
    assert [line["loss"] for line in lines[:10]] == losses, (
        "the first ten steps stay what they were"
    )


def test_what_is_said_of_it(data, finished):
    _, said = go(data, finished, resume=True, steps=12)
    assert "is extended from 10 to 12 steps: the schedule (cosine) is that of 12 steps" in said
    assert "kept in metrics_10.json" in said and "resumed at step 10 of 12" in said
    assert "cannot have only 10" in refused(data, finished, resume=True, steps=10)
    _, said = go(data, finished, resume=True, steps=14)
    assert "extended from 12 to 14" in said, "and once more"
    kept = {path.name for path in finished.glob("metrics*")}
    assert kept == {"metrics.json", "metrics_10.json", "metrics_12.json"}


def test_more_epochs_extend_it_too(data, finished):
    _, said = go(data, finished, resume=True, given=["epochs"], epochs=4.0, steps=0)
    assert "extended from 10 to 12 steps" in said, "an epoch has three steps"
    params = read(finished / "params.json")
    assert params["steps"] == 12 and params["epochs"] == 4
    typed = dict(resume=True, given=["epochs"], steps=0)
    assert "finished already" in go(data, finished, epochs=4.0, **typed)[1]
    assert "cannot have only 6" in refused(data, finished, epochs=2.0, **typed)
    assert read(finished / "metrics.json")["steps"] == 12


class Killed(BaseException):
    """What a kill is to the code that it hits."""


def killed_at(number):
    """`os.replace` that dies at its `number`-th call: each change of a run folder goes through it."""
    calls, true_replace = iter(range(number)), os.replace

    def replace_or_die(old, new):
        if next(calls, None) is None:
            raise Killed
        true_replace(old, new)

    return patch("os.replace", replace_or_die)


@pytest.mark.parametrize("number, typed", [(0, 1), (1, 1), (1, 0), (2, 0), (3, 1), (7, 0)])
def test_killed_while_it_is_extended(data, ten, twenty, finished, number, typed):
    """Killed at a change of the folder (the scores, params.json, env.json, the log, ...), and started once more."""
    words = {"steps": 20} if typed else {}
    with killed_at(number), pytest.raises(Killed):
        go(data, finished, resume=True, steps=20)
    scores = [path for path in finished.glob("metrics*.json")]
    assert read(ten / "metrics.json") in map(read, scores), "the old scores are there at any moment"
    unbegun = read(finished / "params.json")["steps"] == 10
    assert (finished / "metrics.json").exists() == (number == 0), "else it does not look finished"
    if words or not unbegun:
        go(data, finished, resume=True, given=list(words), **words)
        assert_same_end(finished, twenty)
    else:
        go(data, finished, resume=True, given=[])
        assert_same_end(finished, ten)


def test_the_last_weights_are_kept_where_nothing_is_evaluated(data, tmp_path):
    go(data, tmp_path / "run", eval_every=0)
    before = load_file(tmp_path / "run/best.safetensors")
    go(data, tmp_path / "run", resume=True, eval_every=0, steps=14)
    about = about_weights(tmp_path / "run/best.safetensors")
    after = load_file(tmp_path / "run/best.safetensors")
    assert about["step"] == 14 and read(tmp_path / "run/metrics.json")["best_step"] == 14
    assert not all(torch.equal(before[name], after[name]) for name in before)


def test_without_a_checkpoint_it_cannot_go_on(data, finished):
    (finished / "last.pt").unlink()
    assert "last.pt is gone" in refused(data, finished, resume=True, steps=20)
    (finished / "last.pt").write_bytes(b"damaged")
    assert "cannot be read" in refused(data, finished, resume=True, steps=20)
    assert (finished / "metrics.json").exists() and read(finished / "params.json")["steps"] == 10
    assert "finished already" in go(data, finished, resume=True)[1]


@pytest.mark.parametrize("begun", ["nothing", "empty", "before a checkpoint"])
def test_resuming_what_was_not_begun(data, tmp_path, begun):
    out = tmp_path / "run"
    if begun != "nothing":
        out.mkdir()
    if begun == "before a checkpoint":
        with killed_at(2), pytest.raises(Killed):
            go(data, out)
        assert (out / "params.json").exists() and not (out / "last.pt").exists()
    metrics, said = go(data, out, resume=True, steps=2, given=[])
    why = "before its first checkpoint" if begun[0] == "b" else "nothing to resume"
    assert said.count("it starts anew") == 1 and why in said
    assert metrics["steps"] in (2, 10) and "resumed at step" not in said


# ------------------------------------------------------------------------------------------------ changed data


def change(root, how):
    """Change the training labels of a copy of the data."""
    path = root / "train/annotations.json"
    labels = read(path)
    if how == "fewer":
        labels["images"], labels["annotations"] = labels["images"][:-1], labels["annotations"][:-1]
    elif how == "moved box":
        labels["annotations"][3]["bbox"][0] += 1
    elif how == "other class":
        one = labels["annotations"][0]
        one["category_id"] = 3 - one["category_id"]
    elif how == "new class":
        labels["categories"].append({"id": 3, "name": "blue"})
    elif how == "layout":
        labels = dict(reversed(labels.items()))
    path.write_text(json.dumps(labels))


HOW = {
    "fewer": "train has 11 images with 11 objects, it had 12 images with 12 objects",
    "moved box": "train has as many (12 images with 12 objects), but other names or labels",
    "other class": "but other names or labels",
    "new class": "a run keeps its classes",
}


@pytest.fixture
def stopped(data, tmp_path):
    """A copy of the data and a run on it that stopped after four steps."""
    root = shutil.copytree(data, tmp_path / "data")
    with killed_at(5), pytest.raises(Killed):
        go(root, tmp_path / "run")
    assert torch.load(tmp_path / "run/last.pt", weights_only=True)["step"] == 4
    return root, tmp_path / "run"


@pytest.mark.parametrize("how", HOW)
def test_data_that_changed_are_noticed(stopped, how):
    root, out = stopped
    change(root, how)
    before = (out / "last.pt").read_bytes()
    sentence = refused(root, out, resume=True)
    assert HOW[how] in sentence and (out / "last.pt").read_bytes() == before
    if how == "new class":
        assert HOW[how] in refused(root, out, resume=True, changed_data=True)
        return
    assert "--changed-data" in sentence
    _, said = go(root, out, resume=True, changed_data=True)
    assert said.count("has changed since this run began") == 1 and "resumed at step 4" in said
    note = read(out / "data.json")
    assert [one["step"] for one in note["changed"]] == [4]
    assert note["changed"][0]["before"]["train"]["images"] == 12
    more = go(root, out, resume=True, steps=12)[1]
    assert "has changed" not in more, "what was allowed is what the run has now"


def test_data_that_did_not_change(stopped, tmp_path):
    root, out = stopped
    change(root, "layout")
    written = (out / "data.json").read_bytes()
    _, said = go(root, out, resume=True)
    assert "has changed" not in said and (out / "data.json").read_bytes() == written


def test_data_that_moved(stopped, tmp_path):
    root, out = stopped
    moved = root.rename(tmp_path / "elsewhere")
    assert "--changed-data" in refused(moved, out, resume=True)
    _, said = go(moved, out, resume=True, changed_data=True)
    assert "resumed at step 4" in said and "has changed" not in said, "the same labels"
    assert read(out / "params.json")["data"] == str(moved)


def test_a_finished_run_is_not_extended_on_other_data(data, ten, tmp_path):
    root = shutil.copytree(data, tmp_path / "data")
    out = tmp_path / "run"
    go(root, out)
    change(root, "fewer")
    assert "finished already" in go(root, out, resume=True)[1], "it will not read them"
    assert "has changed" in refused(root, out, resume=True, steps=12)
    assert (out / "metrics.json").exists() and not (out / "metrics_10.json").exists()
    go(root, out, resume=True, steps=12, changed_data=True)
    assert read(out / "data.json")["changed"][0]["step"] == 10


def test_a_run_of_before_has_no_fingerprint(stopped):
    root, out = stopped
    (out / "data.json").unlink()
    change(root, "fewer")
    _, said = go(root, out, resume=True)
    assert "has changed" not in said and read(out / "data.json")["parts"]["train"]["images"] == 11


# ------------------------------------------------------------------------------------------------ the command line


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return voc(tmp_path_factory.mktemp("voc"), dict(train=4, val=2, test=2))


@pytest.fixture(scope="module")
def trained(tmp_path_factory, pictures):
    from madet.cli import main

    out = tmp_path_factory.mktemp("runs") / "a"
    words = ["train", "--data", str(pictures), "--out", str(out), "--steps", "2", *TINY]
    assert main(words) == 0
    return out


def test_the_command_line_extends(capsys, trained, tmp_path):
    out = shutil.copytree(trained, tmp_path / "run")
    words = ["train", "--out", out, "--resume", "--device", "cpu"]
    code, _, said = madet(capsys, *words, "--lr", "0.5")
    assert code == 2 and "says lr 0.001, now it is 0.5" in said
    code, _, said = madet(capsys, *words, "--scale", "full")
    assert code == 2 and "says scale 'bench', now it is 'full'" in said
    code, _, said = madet(capsys, *words, "--epochs", "2")
    assert code == 0 and "extended from 2 to 4 steps" in said, "four pictures, two a step"
    assert read(out / "metrics.json")["steps"] == 4 and (out / "metrics_2.json").exists()
    code, _, said = madet(capsys, *words, "--steps", "4")
    assert code == 0 and "finished already" in said


def test_changed_data_wants_resume(capsys, tmp_path):
    code, _, said = madet(capsys, "train", "--out", tmp_path / "run", "--changed-data")
    assert code == 2 and "--resume" in said and not (tmp_path / "run").exists()


def test_resuming_nothing_takes_the_scale_of_a_new_run(capsys, pictures, tmp_path):
    out = tmp_path / "typo"
    words = ["train", "--data", pictures, "--out", out, "--steps", 1, *TINY, "--resume"]
    code, _, said = madet(capsys, *words)
    assert (
        code == 0 and "nothing to resume" in said and read(out / "params.json")["scale"] == "bench"
    )


@pytest.mark.parametrize("name", ["cat", "ring,cat"])
def test_an_unknown_class_to_ignore(capsys, trained, tmp_path, name):
    words = ["train", "--out", tmp_path / "run", "--ignore-class", name]
    code, _, said = madet(capsys, *words)
    assert code == 2 and "no class 'cat' to ignore; the embedded set has" in said
    code, _, said = madet(capsys, "test", trained, "--ignore-class", "cat")
    assert code == 2 and "no class 'cat' to ignore; the data set has cup, spoon" in said


def test_a_class_is_ignored_in_the_embedded_set(tmp_path):
    recipe, _ = make_recipe("thimble", {"ignore_class": "ring"})
    from madet.training.run import open_splits

    parts = open_splits(recipe)
    assert all("ring" not in part.classes and len(part.classes) == 4 for part in parts.values())


def test_ignoring_a_class_in_a_test_does_not_shift_the_others(trained, pictures, monkeypatch):
    """The detector finds all truth; without cups it still finds all spoons."""
    from madet.boxes.geometry import Upright

    def perfect(model, dataset, views, batch, workers):
        found = []
        whole = open_split(recipe_of_run, "test", ("cup", "spoon"), Upright())
        for record in whole.records:
            objects = record.objects
            scores = torch.ones(len(objects))
            one = {"boxes": objects.boxes, "labels": objects.labels, "scores": scores}
            found.append({"image_id": record.image_id} | one)
        return found

    from madet.methods.load import detector_from

    _, recipe_of_run, _ = detector_from(trained)
    monkeypatch.setattr("madet.methods.score.detect", perfect)
    assert score_detector(trained, device="cpu")["AP50"] == 1
    answer = score_detector(trained, {"ignore_class": "cup"}, device="cpu")
    assert answer["AP50"] == 1 and list(answer["per_class"]) == ["spoon"]


def test_the_embedded_set_has_other_classes_than_the_model(capsys, trained):
    code, _, said = madet(capsys, "test", trained, "--data", "embedded")
    assert code == 2 and "not among the model's (cup, spoon)" in said


def test_labels_are_translated_by_name():
    one = {"boxes": torch.eye(2, 4), "scores": torch.ones(2), "labels": torch.tensor([1, 0])}
    (found,) = relabelled([one], ("a", "b"), ("b",))
    assert found["labels"].tolist() == [0] and found["boxes"].tolist() == [[1, 0, 0, 0]]


def test_images_without_labels_are_refused(capsys, tmp_path, pictures):
    words = ["train", "--out", tmp_path / "run", "--unlabelled", pictures]
    code, _, said = madet(capsys, *words)
    assert code == 2 and "no method of this version learns from images without labels" in said
    words = ["table", "atss", "--dry-run", "--out", tmp_path / "table", "--unlabelled", pictures]
    code, _, said = madet(capsys, *words)
    assert code == 2 and "--unlabelled" in said and not (tmp_path / "table").exists()


def test_former_words_are_explained_in_refusals(capsys, tmp_path):
    words = ["train", "--out", tmp_path / "run"]
    code, _, said = madet(capsys, *words, "--method", "madet", "--weigh-yes", "maybe")
    assert code == 2 and "(--weigh-yes is called --weight-positives now)" in said
    code, _, said = madet(capsys, *words, "--method", "fcos", "--clip_free=true")
    assert code == 2 and "(--clip_free is called --clip-anchor-free now)" in said
    code, _, said = madet(capsys, *words, "--method", "madet", "--weigh-yes", "no", "--lr", "0")
    assert code == 2 and "is called" not in said, "the refusal is about something else"


def test_seed_and_seeds(capsys, tmp_path):
    words = ["table", "atss", "--dry-run", "--json", "--only", "atss", "--out", tmp_path]
    code, out, _ = madet(capsys, *words, "--seed", "4")
    assert code == 0 and [one["seed"] for one in json.loads(out)["runs"]] == [4]
    code, _, said = madet(capsys, *words, "--seed", "4", "--seeds", "3")
    assert code == 2 and "give one of the two" in said
    code, _, said = madet(capsys, *words, "--seed", "four")
    assert code == 2 and "--seed is 'four', but it has to be a whole number" in said
    with pytest.raises(BadInput):
        run_table("atss", "thimble", {"seed": "1"}, seeds="2", out=tmp_path, dry_run=True)
    assert plan([], "thimble", [1], {"seed": "2"}, tmp_path) == ([], {})


# ------------------------------------------------------------------------------------------------ objects that vanish


def test_objects_that_resizing_makes_too_small(capsys, tmp_path):
    """Pictures of 960 px with things of 6 to 15 px, read at 64 px."""
    from PIL import Image

    data = write_data(tmp_path / "data", (("train", 4), ("val", 2), ("test", 2)), side=960)
    words = ["train", "--data", data, "--steps", 1, "--device", "cpu", *TINY]
    code, _, said = madet(capsys, *words, "--out", tmp_path / "run")
    assert code == 0
    assert said.count("smaller than the finest stride of the network (4 px)") == 1
    assert "resizing to 64 px makes 100 % of the training objects" in said
    assert "--image-size 768 would make the median" in said and "tiles" in said
    about = about_weights(tmp_path / "run/best.safetensors")
    assert about["sizes"]["stride"] == 4 and about["sizes"]["file"][-1] <= 15
    assert about["sizes"]["resized"][-1] <= 1.01 and set(about["sizes"]["pictures"]) == {960}
    assert read(tmp_path / "run/data.json")["sizes"] == about["sizes"]

    code, said, _ = madet(capsys, "test", tmp_path / "run", "--device", "cpu")
    assert code == 0 and said.count("the test part's objects smaller than the finest stride") == 1
    code, said, _ = madet(capsys, "test", tmp_path / "run", "--device", "cpu", "--image-size", 960)
    assert code == 0 and "finest stride" not in said

    Image.new("RGB", (1200, 900)).save(tmp_path / "large.png")
    Image.new("RGB", (64, 48)).save(tmp_path / "small.png")
    words = ["predict", tmp_path / "run", "--out", tmp_path / "drawn", "--device", "cpu"]
    code, said, _ = madet(capsys, *words, tmp_path / "large.png", tmp_path / "small.png")
    assert code == 0 and "large.png of 1200 x 900 px is read at 64 px" in said
    assert said.count("finest stride") == 1 and "100 % are smaller" in said
    code, said, _ = madet(capsys, *words, tmp_path / "small.png")
    assert code == 0 and "finest stride" not in said
