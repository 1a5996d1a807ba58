"""Checkpoints as people have them: wrapped, with anchors of their own, of two stages, with other names, broken."""

import io
import json
import random
import re
import struct
import tarfile
import zipfile
from dataclasses import replace

import pytest
import torch
import torchvision
from test_commands import madet
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from madet.boxes.errors import BadInput
from madet.detectors.checkpoints import open_checkpoint
from madet.detectors.dense import atss_detector, retinanet_detector
from madet.detectors.published_network import like_published
from madet.detectors.rotated import rotated_fcos_detector
from madet.detectors.two_stage import (
    faster_rcnn_detector,
    oriented_rcnn_detector,
    rotated_faster_rcnn_detector,
)
from madet.methods.convert import convert
from madet.methods.init import facts_of
from madet.methods.load import detector_from
from madet.nets.weights import read_weights
from madet.parity.fixtures import open_fixture
from madet.parity.models import inputs_of, recorded_detections
from madet.training.checkpoint import about_weights

PIXELS = dict(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), bgr=False)
PLAIN = dict(style="pytorch", pixels=PIXELS)
WORDS = {"atss": "atss", "retinanet": "retina", "rotated-fcos": "conv"}
LAYERS = {"class_out": "cls", "box_out": "reg", "quality_out": "centerness"}
SECOND = {
    "rpn.conv": "rpn_head.rpn_conv",
    "rpn.class_out": "rpn_head.rpn_cls",
    "rpn.box_out": "rpn_head.rpn_reg",
    "head.layers": "roi_head.bbox_head.shared_fcs",
    "head.class_out": "roi_head.bbox_head.fc_cls",
    "head.box_out": "roi_head.bbox_head.fc_reg",
}


def theirs(model, method):
    """The state dict of a model under the names of MMDetection or MMRotate."""
    found = {}
    for key, tensor in model.state_dict().items():
        for ours, other in SECOND.items() if hasattr(model, "rpn") else ():
            key = key.replace(f"{ours}.", f"{other}.") if key.startswith(ours) else key
        for ours, other in LAYERS.items():
            key = key.replace(f"head.{ours}.", f"bbox_head.{WORDS.get(method)}_{other}.")
        key = re.sub(r"^head\.scales", "bbox_head.scales", key)
        key = re.sub(
            r"^head\.(cla|box)s*_tower\.(\d+)\.([01])\.",
            lambda m: (
                f"bbox_head.{'cls' if m[1] == 'cla' else 'reg'}_convs.{m[2]}."
                f"{('conv', 'gn')[int(m[3])]}."
            ),
            key,
        )
        if key.startswith("neck."):
            before, leaf = key.rsplit(".", 1)
            key = f"{before}.conv.{leaf}"
        found[key] = tensor.clone()
    return found


def lively(model):
    """The model with outputs that find something."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "_out" in name:
                p.add_(torch.randn_like(p) * 0.02)
            if name.endswith("class_out.bias") and not hasattr(model, "rpn"):
                p.fill_(-2.0)
    return model.eval()


def dense(method, build=(), **options):
    make = dict(atss=atss_detector, retinanet=retinanet_detector)[method]
    torch.manual_seed(0)
    model = make(3, "resnet18", channels=32, depth=1, **options)
    return lively(like_published(model, PLAIN | dict(build), {}, "resnet18"))


def saved(file, state, config=None, **meta):
    meta |= {} if config is None else {"config": config}
    torch.save({"meta": meta, "state_dict": state}, file)
    return file


def same(model, file):
    """Whether the detector of a file finds exactly what `model` finds, and something."""
    again, _, _ = detector_from(file)
    image = torch.rand(3, 128, 160, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        a, b = model([image])[0], again([image])[0]
    assert len(a["boxes"]) > 5
    return len(a["boxes"]) == len(b["boxes"]) and all(torch.equal(a[key], b[key]) for key in a)


def octave(base, count):
    return [base * 2 ** (k / count) for k in range(count)]


THIRD = dict(ratios=[0.5, 1.0, 2.0], center_offset=0.0)
ONE = dict(ratios=[1.0], center_offset=0.0)
C2 = dict(pyramid=dict(out=[2, 3, 4, 5], levels=5, relu=None), extra="on_output")
ANCHORS = {
    "base 8": ("retinanet", "octave_base_scale=8, scales_per_octave=3", {}, octave(8.0, 3), THIRD),
    "base 2": ("retinanet", "octave_base_scale=2, scales_per_octave=3", {}, octave(2.0, 3), THIRD),
    "scales": ("atss", "scales=[5], ratios=[1.0]", {}, [5.0], ONE),
    "nine of base 4": (
        "atss",
        "octave_base_scale=4, scales_per_octave=3, ratios=[0.5, 1.0, 2.0]",
        {},
        octave(4.0, 3),
        THIRD,
    ),
    "strides 4 to 64": (
        "atss",
        "octave_base_scale=8, scales_per_octave=1, ratios=[1.0], strides=[4, 8, 16, 32, 64]",
        C2,
        [8.0],
        ONE,
    ),
    "five a place": ("atss", "octave_base_scale=6, scales_per_octave=5", {}, octave(6.0, 5), ONE),
}


@pytest.mark.parametrize("case", ANCHORS)
def test_anchors_are_those_of_the_configuration(tmp_path, case):
    method, text, build, scales, rest = ANCHORS[case]
    places = len(scales) * len(rest["ratios"])
    form = dict(build) | dict(anchors=dict(scales=scales, **rest))
    model = dense(method, form, anchors_per_location=places)
    config = f"model = dict(bbox_head=dict(anchor_generator=dict(type='AnchorGenerator', {text})))"
    file = saved(tmp_path / "epoch_12.pth", theirs(model, method), config)
    convert(file, tmp_path / "w.safetensors", "a,b,c")
    again, _, classes = detector_from(tmp_path / "w.safetensors")
    stride = again.head.grid.strides[0]
    assert classes == ("a", "b", "c") and stride == (4 if build else 8)
    cell = again.head.grid.level(stride, 1, 1)
    widths, heights = (cell[:, 2:] - cell[:, :2]).unbind(1)
    by_hand = [(stride * s) ** 2 for _ in rest["ratios"] for s in scales]
    assert torch.allclose(widths * heights, torch.tensor(by_hand), rtol=1e-4)
    assert same(model, tmp_path / "w.safetensors")


def test_a_configuration_may_be_written_in_any_way(tmp_path):
    """Source with names, cut off, a dictionary, JSON, a printed dictionary: one detector; and none of it is run."""
    form = dict(anchors=dict(scales=[2.0], **ONE), coder=dict(means=[0.0] * 4, stds=[1.0] * 4))
    model = dense("atss", form)
    head = dict(
        type="ATSSHead",
        anchor_generator=dict(octave_base_scale=2, scales_per_octave=1, ratios=[1.0]),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_stds=[1.0, 1.0, 1.0, 1.0]),
    )
    values = {"model": {"backbone": {"style": "caffe"}, "bbox_head": head}}
    source = (
        "base = 1\nimport os\nos.mkdir('{place}')\n"
        "model = dict(backbone=dict(style='caffe'), bbox_head=dict(type='ATSSHead',"
        "anchor_generator=dict(octave_base_scale=2 * base, scales_per_octave=1, ratios=[1.0]),"
        "bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_stds=[1.0, 1.0, 1.0, 1.0])))"
    ).replace("{place}", str(tmp_path / "ran"))
    cut = source.rstrip(")") + ","
    written = (source, cut, values, json.dumps(values), f"Config (path: x.py): {values}")
    for number, config in enumerate(written):
        file = saved(tmp_path / f"{number}.pth", theirs(model, "atss"), config)
        out = tmp_path / f"{number}.safetensors"
        convert(file, out)
        published = about_weights(out)["published"]
        assert published["anchors"]["scales"] == [2.0] and published["coder"]["stds"] == [1.0] * 4
        assert published["style"] == "caffe", config
    assert not (tmp_path / "ran").exists()


BAD = {
    "strides": ("strides=[4, 8, 16, 32, 64]", "strides 4, 8, 16, 32, 64"),
    "count": ("octave_base_scale=4, scales_per_octave=3", "describes 3"),
    "computed": ("octave_base_scale=len('ab')", "no numbers above 0"),
    "kind": ("type='SSDAnchorGenerator'", "SSDAnchorGenerator"),
    "centers": ("centers=[[0, 0]]", "centers"),
}


@pytest.mark.parametrize("case", BAD)
def test_anchors_that_cannot_be_had_are_refused(capsys, tmp_path, case):
    text, hint = BAD[case]
    config = f"bbox_head=dict(anchor_generator=dict({text}))"
    file = saved(tmp_path / "a.pth", theirs(dense("atss"), "atss"), config)
    code, _, said = madet(capsys, "convert", file, "--out", tmp_path / "w.safetensors")
    assert code == 2 and hint in said and "a.pth" in said and not list(tmp_path.glob("*.safet*"))


def test_without_a_configuration_options_are_asked_for(capsys, tmp_path):
    """Three anchors a place: of which sizes? And options that do not fit the outputs."""
    form = dict(anchors=dict(scales=[6.0], **THIRD))
    model = dense("retinanet", form, anchors_per_location=3)
    file, out = saved(tmp_path / "a.pth", theirs(model, "retinanet")), tmp_path / "w.safetensors"
    words = ("convert", file, "--out", out)
    code, _, said = madet(capsys, *words)
    assert code == 2 and "--anchor-sizes" in said and "3 anchors" in said
    code, _, said = madet(capsys, *words, "--anchor-sizes", "48,64", "--aspect-ratios", "0.5,1,2")
    assert code == 2 and "outputs have 3" in said
    code, _, said = madet(capsys, *words, "--anchor-sizes", "x")
    assert code == 2 and "--anchor-sizes is 'x'" in said and not out.exists()
    code, _, said = madet(capsys, *words, "--anchor-sizes", "48", "--aspect-ratios", "0.5,1,2")
    assert code == 0 and same(model, out), said


def test_other_contradictions_are_refused(capsys, tmp_path):
    state = theirs(dense("atss"), "atss")
    for text, hint in {
        "bbox_head=dict(num_classes=2)": "softmax",
        "bbox_head=dict(num_classes=80)": "not the configuration of these weights",
        "bbox_head=dict(bbox_coder=dict(type='TBLRBBoxCoder'))": "TBLRBBoxCoder",
        "backbone=dict(strides=(1, 1, 2, 2))": "strides",
        "backbone=dict(dilations=(1, 1, 1, 2))": "dilations",
    }.items():
        file = saved(tmp_path / "a.pth", state, text)
        code, _, said = madet(capsys, "convert", file, "--out", tmp_path / "w.safetensors")
        assert code == 2 and hint in said and len(said.strip().splitlines()) == 1, said


def under(frame):
    return lambda state: {frame + key: tensor for key, tensor in state.items()}


WRAPPED = {
    "model.": under("model."),
    "module.": under("module."),
    "detector.": under("detector."),
    "compiled": under("_orig_mod."),
    "nested": under("module.model._orig_mod.detector."),
    "teacher": lambda s: under("teacher.")(s) | {f"student.{k}": v + 1 for k, v in s.items()},
    "ema alone": under("ema."),
    "ema model": lambda s: (
        under("ema_model.module.")(s) | {"ema_model.n_averaged": torch.tensor(7)}
    ),
    "model and ema": lambda s: under("model.")(s) | {f"ema.{k}": v + 1 for k, v in s.items()},
    "beside a copy": lambda s: s | {f"ema.{k}": v + 1 for k, v in s.items()},
    "lightning": lambda s: {"state_dict": under("model.")(s), "epoch": 3, "callbacks": {}},
    "criterion": lambda s: under("model.")(s) | {"criterion.weight": torch.ones(3)},
    "nested keys": lambda s: {"model": {"state_dict": {"module": s}}},
    "ema_state_dict": lambda s: {"ema_state_dict": under("module.")(s)},
    "both": lambda s: {"state_dict": s, "ema_state_dict": {k: v + 1 for k, v in s.items()}},
    "model_ema": lambda s: {"model_ema": {"n_averaged": torch.tensor(1), **under("module.")(s)}},
}


@pytest.mark.parametrize("case", WRAPPED)
def test_wrappers_and_frames_come_off(tmp_path, case):
    state = torchvision.models.resnet18().state_dict()
    state = {f"backbone.{k}": v for k, v in state.items() if not k.startswith("fc.")}
    file = tmp_path / "a.pth"
    torch.save(WRAPPED[case](state), file)
    told = convert(file, tmp_path / "w.safetensors")
    assert sorted(told["used"]) == sorted(state) and told["backbone"] == "resnet18"
    assert all(torch.equal(read_weights(file)[k], v) for k, v in state.items())
    said = [one for one in told["said"] if one.startswith("the weights were taken from")]
    assert said or case in ("module.",), "which one was taken is said"
    expected = {"teacher": "not student.*", "model and ema": "not ema.*", "both": "ema_state_dict"}
    assert expected.get(case, "") in " ".join(said)
    if case == "criterion":
        assert {"key": "criterion.weight", "why": "outside of model."} in told["ignored"]


def test_what_lies_beside_is_called_what_it_is(tmp_path):
    state = torchvision.models.resnet18().state_dict()
    state = {f"backbone.{k}": v for k, v in state.items() if not k.startswith("fc.")}
    torch.save({"model": state, "ema": dict(state), "epoch": {"n": 3}}, tmp_path / "a.pth")
    told = convert(tmp_path / "a.pth", tmp_path / "w.safetensors")
    why = {one["key"]: one["why"] for one in told["ignored"]}
    assert why["(ema)"].startswith("other weights") and why["(epoch)"] == "no weights"


@pytest.mark.filterwarnings("ignore")
def test_a_program_is_no_state_dict(tmp_path):
    torch.jit.script(torch.nn.Conv2d(3, 3, 1)).save(str(tmp_path / "a.pt"))
    with pytest.raises(BadInput, match="TorchScript program; save the state dict"):
        convert(tmp_path / "a.pt", tmp_path / "w.safetensors")


def test_names_that_do_not_fit_are_refused(capsys, tmp_path):
    state, out = theirs(dense("atss"), "atss"), tmp_path / "w.safetensors"
    (tmp_path / "two.txt").write_text("cup\nspoon\n")
    good = saved(tmp_path / "good.pth", state)
    stale = saved(tmp_path / "stale.pth", state, CLASSES=("cup", "spoon"))
    modern = saved(tmp_path / "modern.pth", state, dataset_meta={"classes": ("a", "b", "c", "d")})
    twice = saved(tmp_path / "twice.pth", state, CLASSES=("cup", "spoon", "cup"))
    for file, words, hint in (
        (good, ("--classes", tmp_path / "two.txt"), "has 2 names, but"),
        (good, ("--classes", "cup,spoon"), "has 2 names, but"),
        (good, ("--classes", "cup,spoon,cup"), "cup twice"),
        (good, ("--classes", "nowhere.txt"), "nowhere.txt does not exist"),
        (stale, (), "names 2 classes beside its weights, but has outputs for 3"),
        (modern, (), "names 4 classes"),
        (twice, (), "cup twice"),
    ):
        code, _, said = madet(capsys, "convert", file, "--out", out, *words)
        assert code == 2 and hint in said and "Error" not in said and not out.exists(), said
    told = convert(stale, out, "cup, spoon, plate")
    assert told["classes"] == ["cup", "spoon", "plate"]


def torchvisions(sizes, ratios, num_classes=3):
    """torchvision's RetinaNet with anchors of one's own, and a background as its first class."""
    extra = LastLevelP6P7(256, 256)
    torch.manual_seed(0)
    body = resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, returned_layers=[2, 3, 4], extra_blocks=extra
    )
    anchors = AnchorGenerator(sizes, (ratios,) * len(sizes))
    limits = dict(min_size=96, max_size=96, score_thresh=0.05, detections_per_img=100)
    model = RetinaNet(body, num_classes, anchor_generator=anchors, **limits)
    for name, value in model.state_dict().items():
        if "cls_logits" in name:
            value.normal_(-2 if name.endswith("bias") else 0, 0.03)
        if "bbox_reg" in name:
            value.normal_(0, 0.01)
    return model.eval()


@pytest.mark.parametrize(
    "sizes, ratios, words",
    [
        (
            ((16,), (32,), (64,), (128,), (256,)),
            (0.5, 1.0, 2.0),
            ("--anchor-sizes", "16/32/64/128/256"),
        ),
        (
            tuple((s, 1.5 * s) for s in (16, 32, 64, 128, 256)),
            (1.0,),
            ("--anchor-sizes", "16,24", "--aspect-ratios", "1"),
        ),
        (
            tuple((s, s + 4, s + 8) for s in (16, 32, 64, 128, 256)),
            (1.0, 0.5, 2.0),
            (
                "--anchor-sizes",
                str(tuple((s, s + 4, s + 8) for s in (16, 32, 64, 128, 256))),
                "--aspect-ratios",
                "1,0.5,2",
            ),
        ),
    ],
)
def test_torchvisions_anchors_are_asked_for(capsys, tmp_path, sizes, ratios, words):
    model = torchvisions(sizes, ratios)
    file, out = tmp_path / "mine.pth", tmp_path / "w.safetensors"
    torch.save(model.state_dict(), file)
    start = ("convert", file, "--out", out, "--json", "--classes", "__background__,cup,spoon")
    code, printed, said = madet(capsys, *start)
    if len(sizes[0]) * len(ratios) == 9:
        assert code == 0 and "usual ones of 32 to 512" in " ".join(json.loads(printed)["said"])
    else:
        assert code == 2 and "--anchor-sizes" in said and "state dict" in said
        code, _, said = madet(capsys, *start, "--anchor-sizes", "16,17,18,19/2/2/2/2")
        assert code == 2 and not out.exists()
    code, printed, said = madet(capsys, *start, *words)
    assert code == 0 and json.loads(printed)["classes"] == ["cup", "spoon"], said
    ours, _, _ = detector_from(out)
    image = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = model([image])[0], ours([image])[0]
    seen = a["labels"] > 0  # ours knows no background
    ours_too = {k: v for k, v in b.items()}
    assert seen.sum() > 5
    for box, score, label in zip(a["boxes"][seen][:5], a["scores"][seen], a["labels"][seen]):
        apart = (ours_too["boxes"] - box).abs().amax(1)
        near = apart.argmin()
        assert apart[near] < 0.05 and abs(ours_too["scores"][near] - score) < 1e-3
        assert ours_too["labels"][near] == label - 1


def test_names_of_torchvision_may_begin_with_the_background(tmp_path):
    sizes = tuple(
        (s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in (32, 64, 128, 256, 512)
    )
    torch.save(torchvisions(sizes, (0.5, 1.0, 2.0)).state_dict(), tmp_path / "a.pth")
    with pytest.raises(BadInput, match="__background__"):
        convert(tmp_path / "a.pth", tmp_path / "w.safetensors", "cup,spoon")


def test_rotated_fcos_puts_angle_and_distances_together(capsys, tmp_path):
    torch.manual_seed(0)
    form = PLAIN | dict(fcos=dict(strides=True, by_boxes=True, nms=0.1), extra="on_output")
    model = rotated_fcos_detector(3, "resnet18", channels=32, depth=1)
    model = lively(like_published(model, form, {}, "resnet18"))
    with torch.no_grad():
        model.head.box_out.bias[:4].fill_(1.0)
        model.head.scales[0].scale.fill_(1.5)
    state = theirs(model, "rotated-fcos")
    for leaf in ("weight", "bias"):
        rows = state[f"bbox_head.conv_reg.{leaf}"]
        state[f"bbox_head.conv_reg.{leaf}"] = rows[:4]
        state[f"bbox_head.conv_angle.{leaf}"] = rows[4:] / 2
    state["bbox_head.scale_angle.scale"] = torch.tensor(2.0)
    file, out = saved(tmp_path / "rotated_fcos_le90.pth", state), tmp_path / "w.safetensors"
    code, printed, said = madet(capsys, "convert", file, "--out", out, "--json")
    told = json.loads(printed)
    assert code == 0 and sorted(told["used"]) == sorted(state), said
    assert told["method"] == "rotated-fcos" and detector_from(out)[0].boxes.version == "le90"
    assert same(model, out)
    short = {key: t for key, t in state.items() if key != "bbox_head.conv_angle.bias"}
    code, _, said = madet(capsys, "convert", saved(file, short), "--out", out)
    assert code == 2 and "conv_angle.bias" in said


TWO = {
    "faster-rcnn": (faster_rcnn_detector, ""),
    "rotated-faster-rcnn": (rotated_faster_rcnn_detector, "norm_factor=2, edge_swap=True"),
    "oriented-rcnn": (
        oriented_rcnn_detector,
        "norm_factor=None, edge_swap=True, proj_xy=True",
    ),
}


@pytest.mark.parametrize("method", TWO)
def test_detectors_of_two_stages(capsys, tmp_path, method):
    make, coder = TWO[method]
    torch.manual_seed(0)
    model = make(3, "resnet18", channels=16, width=32)
    model.head.finest = 56.0  # of the usual width; narrow pyramids of ours have 16
    if coder:
        unit = 2.0 if "=2" in coder else None
        project = "proj_xy" in coder
        model.head.coder = replace(model.head.coder, angle_unit=unit, project=project)
    model = lively(like_published(model, PLAIN | dict(extra="max_pool"), {}, "resnet18"))
    text = (
        "angle_version='le90'\nmodel=dict(neck=dict(num_outs=5), rpn_head=dict(),"
        f" roi_head=dict(bbox_head=dict(num_classes=3, bbox_coder=dict({coder}))))"
    )
    state = theirs(model, method)
    file, out = saved(tmp_path / "epoch_12.pth", state, text), tmp_path / "w.safetensors"
    code, printed, said = madet(capsys, "convert", file, "--out", out, "--json")
    assert code == 0, said
    told = json.loads(printed)
    assert told["method"] == method and sorted(told["used"]) == sorted(state)
    again, _, _ = detector_from(out)
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        pixels, sizes, _ = model.pixels.batch([image])
        found = []
        for one in (model, again):
            features = one.features(pixels)
            rois = one.proposed(one.rpn(features), sizes)[0][:20]
            found.append(one.head.candidates(features, [rois], sizes)[0])
    assert len(found[0]["boxes"]) > 0
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    if method != "faster-rcnn":
        bare = saved(tmp_path / "x_le90.pth", state)
        code, _, said = madet(capsys, "convert", bare, "--out", tmp_path / "b.safetensors")
        assert code == 2 and "norm_factor" in said


@pytest.mark.long
def test_faster_rcnn_finds_what_mmdetection_found(tmp_path, golden):
    from test_convert import published

    z = open_fixture(golden / "model_faster_rcnn_r50_caffe.npz")
    file = tmp_path / "faster_rcnn_r50_caffe_fpn_1x_coco.pth"
    torch.save(
        {"meta": {"cfg": {"model": z.meta["model_config"]}}, "state_dict": published(z.meta)}, file
    )
    told = convert(file, tmp_path / "w.safetensors")
    assert told["method"] == "faster-rcnn" and told["published"]["style"] == "caffe"
    model, _, classes = detector_from(tmp_path / "w.safetensors")
    pixels, sizes, _, _ = inputs_of(z, z.meta)
    with torch.no_grad():
        features = model.features(pixels)
        rois = model.proposed(model.rpn(features), sizes)
        candidates = model.head.candidates(features, rois, sizes)
        kept = model.head.detect(features, rois, sizes)
    assert len(classes) == 80
    for index, (before, after) in enumerate(zip(candidates, kept)):
        for check in recorded_detections(z, index, before, after, torch.ones(4), ""):
            assert check.ok, f"{check.name}: {check.error}"


def legacy_tar(dice):
    """A file of torch's first format: a tar archive with a pickle inside."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = dice.randbytes(dice.randint(0, 60))
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return held.getvalue()


def odd_zip(dice, good):
    """A zip archive with members left out, renamed, doubled or filled with something else."""
    held = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(good)) as old, zipfile.ZipFile(held, "w") as new:
        for name in old.namelist():
            content, turn = old.read(name), dice.random()
            if turn < 0.2:
                continue
            if turn < 0.4:
                content = dice.randbytes(dice.randint(0, 50))
            elif turn < 0.5:
                content = content[: dice.randint(0, len(content))]
            new.writestr(dice.choice([name, name, name, name + "x", "../" + name]), content)
    return held.getvalue()


def safetensors_head(dice):
    """The head of a safetensors file: a length and JSON that promises more than there is, or nonsense."""
    promised = dice.choice([[0, 8], [0, 10**12], [8, 0], [-1, 4], "x", None])
    shape = dice.choice([[2], [10**9, 10**9], [-1], "a", None, []])
    kind = dice.choice(["F32", "BF16", "XX", 7])
    header = {"a": {"dtype": kind, "shape": shape, "data_offsets": promised}}
    text = json.dumps(dice.choice([header, [1], {"a": 1}, {"__metadata__": 3}, header])).encode()
    length = dice.choice([len(text), 0, 2**63, len(text) + 3, 10**6])
    return struct.pack("<Q", length) + text + dice.randbytes(8)


def broken_files(dice, good, legacy):
    """Endless broken files: (ending, bytes)."""
    heads = [
        b"\x80\x02",
        b"\x80\x04\x95",
        b"PK\x03\x04",
        good[:64],
        legacy[:64],
        b"",
        b"{",
        b"\x1f\x8b",
    ]
    codes = b"(.0124BCFGIJKLMNPQRSTUVXabcdefghijlopqrstu}]\x85\x86\x87\x89\x8a\x8b\x8c\x8d\x8e\x93\x94\x95"
    while True:
        yield ".pth", good[: dice.randrange(len(good))]
        yield ".pth", legacy[: dice.randrange(len(legacy))]
        whole = bytearray(dice.choice([good, legacy]))
        for _ in range(dice.randint(1, 30)):
            whole[dice.randrange(len(whole))] = dice.randrange(256)
        yield ".pth", bytes(whole)
        yield ".pt", dice.choice(heads) + dice.randbytes(dice.randint(0, 200))
        program = bytes(dice.choice(codes) for _ in range(dice.randint(1, 40)))
        yield ".pth", b"\x80\x02" + program + dice.choice([b".", b""])
        yield ".pth", odd_zip(dice, good)
        yield ".pth", legacy_tar(dice)
        yield ".safetensors", safetensors_head(dice)
        yield ".bin", dice.randbytes(dice.randint(0, 64))


@pytest.mark.parametrize("cases", [2000, pytest.param(100_000, marks=pytest.mark.long)])
def test_broken_files_end_in_a_sentence(tmp_path, cases):
    """Whatever the bytes: tensors or one sentence that names the file, and no name of an exception."""
    dice = random.Random(12)
    state = {
        "state_dict": {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(1)},
        "meta": {},
    }
    whole = []
    for zipped in (True, False):
        torch.save(state, tmp_path / "good.pth", _use_new_zipfile_serialization=zipped)
        whole.append((tmp_path / "good.pth").read_bytes())
    ended = 0
    for number, (ending, content) in enumerate(broken_files(dice, *whole)):
        if number == cases:
            break
        file = tmp_path / f"odd{ending}"
        file.write_bytes(content)
        for read in (open_checkpoint, read_weights, facts_of):
            try:
                read(file)
            except BadInput as error:
                ended += 1
                assert "odd." in str(error) and "\n" not in str(error), error
                assert not re.search(r"\b\w+(Error|Exception)\b", str(error)), error
    assert ended > cases


def odd_tensor(dice, tensor):
    """A tensor of another kind in the place of a good one."""
    return dice.choice(
        [
            torch.tensor(1.0),
            torch.zeros(3),
            torch.zeros(0, 4, 3, 3),
            tensor[None],
            tensor.to(torch.complex64),
            tensor.bool(),
            tensor.to_sparse(),
            tensor * float("nan"),
            torch.zeros(7, 5),
            tensor.half(),
            torch.empty(tensor.shape, device="meta"),
        ]
    )


@pytest.mark.parametrize("cases", [60, pytest.param(600, marks=pytest.mark.long)])
def test_odd_tensors_and_metadata_end_in_a_sentence(tmp_path, cases):
    """Good names with tensors, configurations and class names that cannot be: converted, or one sentence."""
    dice = random.Random(7)
    states = [theirs(dense("atss"), "atss"), theirs(dense("retinanet"), "retinanet")]
    states.append(theirs(faster_rcnn_detector(3, "resnet18", channels=16, width=32), ""))
    names = [None, 3, [1, 2], ("a",), "abc", {"a": 1}, ("a", "b", "c"), [None]]
    texts = [None, 5, "(", "bbox_head=dict(num_classes='x', anchor_generator=3)", {"model": 1}]
    texts += ["bbox_head=dict(anchor_generator=dict(scales=[], ratios=None, strides=[[1, 2]]))"]
    texts += ["rpn_head=1\nroi_head=dict(bbox_head=[1])\ntest_cfg=dict(rpn=dict(nms_pre='x'))"]
    texts += ["neck=dict(num_outs=99)\nbackbone=dict(strides=3)"]
    ended = 0
    for _ in range(cases):
        state = dict(dice.choice(states))
        heads = [key for key in state if "head" in key or "neck" in key]
        for key in dice.sample(heads if dice.random() < 0.7 else sorted(state), 2):
            state[key] = odd_tensor(dice, state[key])
        content = {"state_dict": state, "meta": {"CLASSES": dice.choice(names)}}
        content["meta"]["config"] = dice.choice(texts)
        file = tmp_path / "odd_oc.pth"
        torch.save(content, file)
        try:
            convert(file, tmp_path / "w.safetensors")
        except BadInput as error:
            ended += 1
            assert "\n" not in str(error) and not re.search(r"\b\w+Error\b", str(error)), error
    assert ended > cases / 2


def test_low_thresholds_have_an_effect(capsys, tmp_path):
    from PIL import Image

    model = dense("atss")
    with torch.no_grad():
        model.head.class_out.bias.fill_(-4.0)
    file = saved(tmp_path / "a.pth", theirs(model, "atss"))
    convert(file, tmp_path / "w.safetensors", "a,b,c")
    Image.new("RGB", (160, 128), (200, 90, 30)).save(tmp_path / "p.png")
    words = ("predict", tmp_path / "w.safetensors", tmp_path / "p.png", "--out", tmp_path / "o")
    words += ("--image-size", "160", "--json", "--threshold")
    counts = {}
    for threshold in ("0.05", "0.001", "0"):
        code, printed, said = madet(capsys, *words, threshold)
        assert code == 0, said
        scores = [one["score"] for one in json.loads(printed)["images"][0]["detections"]]
        assert all(score >= float(threshold) for score in scores)
        counts[threshold] = len(scores)
    assert counts["0.001"] > counts["0.05"], "below the weights' own limit of .05"
    for threshold in ("-0.1", "1.5", "nan", "x"):
        code, _, said = madet(capsys, *words[:-1], f"--threshold={threshold}")
        assert code == 2 and "number from 0 to 1" in said, said
