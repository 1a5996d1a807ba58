"""Runs that begin from another detector: what is taken, what starts anew, and what `--resume` makes of it."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_commands import madet, voc

from madet.boxes.errors import BadInput
from madet.methods.init import file_digest, start_of
from madet.methods.load import detector_from, rebuilt
from madet.methods.names import recipe_of
from madet.methods.train import parse_run
from madet.tables.run import absolute_paths
from madet.training.checkpoint import about_weights, load_checkpoint, save_weights
from madet.training.recipe import merge
from madet.training.run_folder import RunFolder

SMALL = {"backbone": "tiny", "fpn_channels": 16, "head_convs": 1, "data": "embedded"}
FEW = "--steps 1 --image-size 64 --total-batch 2 --log-every 1".split()
TWO_STAGE = {"backbone": "tiny", "fpn_channels": 16, "fc_width": 16, "data": "embedded"}


def saved(file, classes, published=None, norm=False, **options):
    """A detector with random weights in `file`, as runs and `madet convert` save theirs."""
    torch.manual_seed(len(str(options)))
    method, recipe, method_options = recipe_of("bench", {"data": "embedded"} | options)
    names = ["backbone.bn1.running_mean"] if norm else []
    model = rebuilt(method, recipe, method_options, len(classes), dict.fromkeys(names), published)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.8, 1.2)
        elif tensor.is_floating_point():
            tensor.add_(torch.randn_like(tensor) * 0.01)
    about = dict(method=method.name, scale="bench", recipe=merge(recipe, method_options))
    about |= {} if published is None else {"published": published}
    save_weights(file, model, **about, classes=list(classes))
    return file


def begin(file, classes, folder, **options):
    """(detector of a new run that begins from `file`, its sentences, its init.json)."""
    folder.mkdir(parents=True, exist_ok=True)
    typed = {"init": str(file), "scale": "bench", "data": "embedded"} | options
    parsed = parse_run(typed, folder)
    start = start_of(parsed.recipe, parsed.method_options, folder, begun=False)
    build = start.build(parsed.method)
    model = build(parsed.recipe, parsed.method_options, len(classes))
    model.classes = tuple(classes)
    said, _ = start.begin(model, RunFolder(folder))
    return model, said, json.loads((folder / "init.json").read_text())


def noise(seed=0):
    image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(seed))
    return [image], [dict(boxes=torch.tensor([[10.0, 8, 60, 50]]), labels=torch.tensor([1]))]


METHODS = {
    "atss": SMALL,
    "retinanet": SMALL,
    "fcos": SMALL,
    "madet": SMALL,
    "tv-retinanet": {"backbone": "tiny", "tv_channels": 32, "tv_convs": 1},
    "tv-fcos": {"backbone": "tiny", "tv_channels": 32, "tv_convs": 1},
    "faster-rcnn": TWO_STAGE,
}


@pytest.mark.parametrize("method", METHODS)
def test_with_the_same_classes_all_of_it_is_the_files(tmp_path, method):
    """Losses and detections of the first step are those of the file, to the last bit."""
    file = saved(tmp_path / "w.safetensors", ["a", "b"], method=method, **METHODS[method])
    model, said, record = begin(file, ["a", "b"], tmp_path / "run")
    whole = detector_from(file)[0]
    assert not record["anew"] and not record["by_name"] and not record["left"]
    assert f"begins from {file} ({method} on tiny, 2 classes)" in said[0]
    losses = []
    for one in (whole, model):
        torch.manual_seed(0)  # samplers draw
        losses.append({k: v.item() for k, v in one.train()(*noise()).items()})
    assert losses[0] == losses[1]
    with torch.no_grad():
        found = [one.eval()(noise()[0])[0] for one in (whole, model)]
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@pytest.mark.parametrize("method", METHODS)
def test_rows_go_by_class_name(tmp_path, method):
    """c, new and a of the new list: the logits of a and c are those of the file, whatever the layout of the head."""
    names = ["a", "b", "c"]
    file = saved(tmp_path / "w.safetensors", names, method=method, **METHODS[method])
    model, said, record = begin(file, ["c", "new", "A"], tmp_path / "run")
    whole, fresh = detector_from(file)[0].state_dict(), model.state_dict()
    (layer, *more) = record["by_name"]
    assert record["by_name"][layer] == ["c", "A"] and not record["anew"]
    assert any("2 of 3 classes by name (c, A); new: new" in one for one in said)
    assert more == (["head.box_out"] if method == "faster-rcnn" else [])
    full = next(name for name in fresh if name.endswith(f"{layer}.weight"))
    background = method == "faster-rcnn"
    old, new = (t.view(-1, 3 + background, *t.shape[1:]) for t in (whole[full], fresh[full]))
    assert torch.equal(new[:, 0], old[:, 2]) and torch.equal(new[:, 2], old[:, 0])
    assert not torch.isclose(new[:, 1], old[:, 1]).all()
    if background:
        assert torch.equal(new[:, -1], old[:, -1])
        boxes = [t["head.box_out.bias"].view(3, 4) for t in (whole, fresh)]
        assert torch.equal(boxes[1][0], boxes[0][2]) and torch.equal(boxes[1][2], boxes[0][0])


def test_what_starts_anew_is_named(tmp_path):
    file = saved(tmp_path / "w.safetensors", ["a", "b"], method="retinanet", **SMALL)
    _, said, record = begin(file, ["c"], tmp_path / "others")
    assert {name.rpartition(".")[0] for name in record["anew"]} == {"head.class_out"}
    assert any("no class of the data is among the file's (a, b)" in one for one in said)
    _, said, _ = begin(file, ["a", "b"], tmp_path / "anchors", anchors_per_location=3)
    assert any("head.box_out starts anew (1 tensors): 36x16x3x3 in the file" in s for s in said)
    _, said, record = begin(file, ["a"], tmp_path / "rows", anchors_per_location=3)
    assert any("other anchors or branches" in one for one in said) and not record["by_name"]
    _, said, record = begin(file, ["a", "b"], tmp_path / "method", method="fcos")
    assert (
        "head.quality_out.weight" in record["anew"] and "neck.fpn_convs.0.bias" in record["whole"]
    )
    _, said, record = begin(file, ["a", "b"], tmp_path / "wide", fpn_channels=24)
    assert "backbone" in said[0] and "neck" not in said[0]
    assert any(one.startswith("neck starts anew") for one in said)


def test_a_network_that_hardly_fits_is_refused(tmp_path):
    file = saved(tmp_path / "w.safetensors", ["a"], method="atss", **SMALL)
    with pytest.raises(BadInput, match="nothing or little of its backbone.*--backbone tiny"):
        begin(file, ["a"], tmp_path / "run", backbone="resnet18")
    deep = saved(tmp_path / "r34.safetensors", ["a"], method="atss", backbone="resnet34")
    model, said, record = begin(deep, ["a"], tmp_path / "r18", backbone="resnet18")
    assert any("not used of the file: backbone" in one for one in said), "layers 3 and 4 are left"


def test_torchvisions_backbone_and_pyramid_serve_ours(tmp_path):
    file = saved(tmp_path / "tv.safetensors", ["a"], method="tv-fcos", backbone="tiny", norm=False)
    model, _, record = begin(file, ["a"], tmp_path / "run", method="fcos")
    theirs = detector_from(file)[0].model.backbone
    for ours, other in ((model.backbone, theirs.body), (model.neck, theirs.fpn)):
        pairs = zip(ours.state_dict().values(), other.state_dict().values())
        assert all(torch.equal(*pair) for pair in pairs)
    assert "head.class_out.weight" in record["anew"]


CAFFE = dict(style="caffe", pixels=dict(mean=(1.0, 2, 3), std=(1.0, 1, 1), bgr=True))


def test_a_converted_file_brings_its_network_along(tmp_path):
    """BatchNorm, the style of the backbone, pixels and biases; the first stage is frozen as with --weights."""
    options = dict(method="atss", backbone="resnet18", fpn_channels=64, head_convs=1)
    file = saved(tmp_path / "w.safetensors", ["a", "b"], published=CAFFE, **options)
    model, said, record = begin(file, ["a", "b"], tmp_path / "run")
    whole = detector_from(file)[0]
    assert model.pixels == whole.pixels and model.backbone.style == "caffe" and model.pixels.bgr
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert "backbone.conv1.weight" in frozen and "backbone.layer1.0.conv1.weight" in frozen
    assert "backbone.layer2.0.conv1.weight" not in frozen and not record["anew"]
    assert f"starts from {file}" in model.backbone.said and "layer1" in model.backbone.said
    with torch.no_grad():
        found = [one.eval()(noise()[0])[0] for one in (whole, model)]
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    other, _, record = begin(file, ["a", "b"], tmp_path / "fcos", method="fcos", head_convs=1)
    assert other.pixels == whole.pixels and record["published"]["style"] == "caffe"
    with pytest.raises(BadInput, match="caffe style"):
        begin(file, ["a"], tmp_path / "tv", method="tv-fcos")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return voc(tmp_path_factory.mktemp("voc"), dict(train=4, val=2, test=2))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Weights that know a fork and a spoon."""
    file = tmp_path_factory.mktemp("w") / "w.safetensors"
    return saved(file, ["fork", "spoon"], method="atss", **SMALL)


def train(capsys, *words):
    return madet(capsys, "train", "--scale", "bench", *words, *FEW)


def test_a_run_begins_records_and_goes_on(capsys, tmp_path, data, source):
    """cup and spoon from fork and spoon; on a resumption the file is not opened, so it may be gone."""
    out = tmp_path / "run"
    moved = Path(shutil.copy(source, tmp_path / "moved.safetensors"))
    code, _, said = train(capsys, "--data", data, "--out", out, "--init", moved, "--ema", "0.9")
    assert code == 0, said
    assert "head.class_out: 1 of 2 classes by name (spoon); new: cup" in said
    params = json.loads((out / "params.json").read_text())
    assert params["init"] == str(moved) and params["init_sha256"] == file_digest(source)
    assert params["fpn_channels"] == 16 and params["backbone"] == "tiny", "the file's, not bench's"
    about = about_weights(out / "best.safetensors")
    assert about["init"] == {"path": str(moved), "sha256": file_digest(source)}
    state = load_checkpoint(out / "last.pt")
    best = detector_from(out)[0].state_dict()
    average = state["extras"]["average"]
    assert all(torch.equal(best[name], average[name]) for name in best), "best holds the average"
    moved.unlink()
    (out / "metrics.json").unlink()
    again = ("train", "--data", data, "--out", out, "--init", moved, "--resume")
    code, _, said = madet(capsys, *again)
    assert code == 0 and "begins from" not in said, said
    code, _, said = madet(capsys, "train", "--data", data, "--out", out, "--init", source)
    assert code == 2 and "already holds a run" in said
    shutil.copy(source, tmp_path / "same.safetensors")
    same = ("train", "--out", out, "--resume", "--init")
    code, _, said = madet(capsys, *same, tmp_path / "same.safetensors")
    assert code == 0, "the same file under another name"
    other = saved(tmp_path / "other.safetensors", ["x"], method="atss", **SMALL)
    code, _, said = madet(capsys, *same, other)
    assert code == 2 and "began from" in said and "leave --init out" in said
    second = tmp_path / "second"
    code, _, said = train(capsys, "--data", data, "--out", second, "--init", out)
    assert code == 0 and "2 classes, averaged weights)" in said and "by name" not in said


def test_resume_and_init_are_different_words(capsys, tmp_path, data, source):
    out = tmp_path / "run"
    tiny = "--method atss --backbone tiny --fpn-channels 16 --head-convs 1".split()
    code, _, said = train(capsys, "--data", data, "--out", out, *tiny)
    assert code == 0, said
    (out / "metrics.json").unlink()
    words = ("train", "--out", out, "--resume", "--init", source)
    code, _, said = madet(capsys, *words)
    assert code == 2 and "did not begin from another detector" in said and "--out" in said
    code, _, said = train(capsys, "--data", data, "--out", out, "--init", out)
    assert code == 2 and "--resume" in said and (out / "last.pt").exists()
    new = ("--data", data, "--out", tmp_path / "new", "--resume", "--init", source)
    code, _, said = train(capsys, *new)
    assert code == 0 and "begins from" in said, "there is nothing to go on with yet"


@pytest.mark.parametrize(
    "words, hint",
    [
        (("--init", "nowhere"), "does not exist"),
        (("--init", "{w}", "--weights", "imagenet"), "leave one of them out"),
        (("--init", "{w}", "--init-sha256", "12ab"), "not 12ab"),
        (("--init", "{w}", "--backbone", "resnet34"), "--backbone tiny"),
        (("--init", "{w}", "--method", "atts"), "no such method"),
    ],
)
def test_what_cannot_be_begun(capsys, tmp_path, data, source, words, hint):
    words = [word.replace("{w}", str(source)) for word in words]
    code, _, said = train(capsys, "--data", data, "--out", tmp_path / "run", *words)
    assert code == 2 and hint in said and len(said.strip().splitlines()[-1]) < 400
    assert not (tmp_path / "run/metrics.json").exists()


def test_published_files_are_to_be_converted_first(capsys, tmp_path, data):
    torch.save({"state_dict": {"bbox_head.atss_cls.weight": torch.ones(1)}}, tmp_path / "p.pth")
    words = ("--data", data, "--out", tmp_path / "run", "--init", tmp_path / "p.pth")
    code, _, said = train(capsys, *words)
    assert code == 2 and "madet convert" in said


def test_papermill_and_tables_pass_it_on(tmp_path, source, monkeypatch):
    from madet.methods.train import recipe_parameters

    assert recipe_parameters({"init": "x", "init_sha256": "y"}) == {"init": "x", "init_sha256": "y"}
    monkeypatch.chdir(source.parent)
    assert absolute_paths({"init": source.name, "lr": "1"}) == {"init": str(source), "lr": "1"}
    assert absolute_paths({"data": "embedded"}) == {"data": "embedded"}
    parsed = parse_run({"init": str(source), "scale": "bench", "data": "x"}, tmp_path / "new")
    assert replace(parsed.recipe, init="").init_sha256 == file_digest(source)
    assert "init_sha256" not in parsed.given


@pytest.mark.long
def test_two_processes_begin_alike(tmp_path, data, source):
    words = ["train", "--scale", "bench", "--data", data, "--init", source, "--seed", "1", *FEW]
    one = [sys.executable, "-m", "madet", *words, "--out", tmp_path / "one"]
    launcher = "-m torch.distributed.run --nproc-per-node 2 --master-port 29533 -m madet".split()
    two = [sys.executable, *launcher, *words, "--out", tmp_path / "two"]
    for command in (one, two):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stderr.count("begins from") == 1
    first = [
        json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[0])["loss"]
        for name in ("one", "two")
    ]
    assert first[0] == pytest.approx(first[1], rel=1e-5)
