"""Published checkpoints.

What the original code found, the converted detector finds; what cannot be converted gets a sentence.
"""

import json
import os
import re
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from test_commands import voc

from madet.cli import main
from madet.methods.load import detector_from
from madet.nets.resnet import resnet
from madet.parity.fixtures import drawn, open_fixture
from madet.parity.models import inputs_of, recorded_detections, tensor
from madet.training.checkpoint import about_weights

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def madet(capsys, *words):
    """Exit code, standard output and standard error of one command, in this process."""
    code = main([str(word) for word in words])
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err + printed.out
    return code, printed.out, printed.err


def published(meta):
    """The state dict that a fixture's weights are drawn for, under the names of MMDetection."""
    return OrderedDict(
        (key, tensor(drawn(key, shape, meta["salt"], meta["rules"])))
        for key, shape in dict(meta["state_dict"]).items()
    )


FIXTURES = dict(
    atss="model_atss_r50", retinanet="model_retinanet_r50", madet="official_madet_detector"
)

# 2.x keeps names and configuration in meta, in torch's older format; 3.x beside a message hub
WRAPPINGS = {
    "atss": (
        lambda state: {
            "meta": {"mmdet_version": "2.8.0", "config": "style='pytorch'"},
            "state_dict": state,
            "optimizer": {"state": {}},
        },
        False,
    ),
    "madet": (
        lambda state: {
            "meta": {
                "mmdet_version": "2.8.0",
                "config": "bbox_head=dict(\n type='MAHead', num_classes=80)",
            },
            "state_dict": state,
            "optimizer": {"state": {}},
        },
        False,
    ),
    "retinanet": (
        lambda state: {
            "meta": {"dataset_meta": {"CLASSES": tuple(f"n{i}" for i in range(80))}},
            "state_dict": state,
            "message_hub": {},
        },
        True,
    ),
}


@pytest.mark.parametrize(
    "name", ["atss", "madet", pytest.param("retinanet", marks=pytest.mark.long)]
)
def test_converted_weights_find_what_the_original_code_found(capsys, tmp_path, name):
    z = open_fixture(GOLDEN / f"{FIXTURES[name]}.npz")
    meta = z.meta
    wrap, zipped = WRAPPINGS[name]
    ending = "" if name == "madet" else "_20200101-01234567"
    file = tmp_path / f"{name}_r50_fpn_1x_coco{ending}.pth"
    out = tmp_path / "w.safetensors"
    torch.save(wrap(published(meta)), file, _use_new_zipfile_serialization=zipped)
    code, printed, _ = madet(capsys, "convert", file, "--out", out, "--json")
    told = json.loads(printed)
    assert (
        code == 0
        and sorted(told["used"]) == sorted(dict(meta["state_dict"]))
        and told["missing"] == []
    )
    assert (
        told["licence"].startswith("Apache-2.0")
        and about_weights(out)["licence"] == told["licence"]
    )
    model, recipe, classes = detector_from(out)
    assert [one["key"] for one in told["ignored"]] == sorted(
        f"({key})" for key in wrap({}) if key != "state_dict"
    )
    assert (recipe.method, recipe.backbone, recipe.image_size, len(classes)) == (
        name,
        "resnet50",
        "1333x800",
        80,
    )
    assert classes[0] == ("n0" if name == "retinanet" else "person")
    pixels, sizes, pad_sizes, _ = inputs_of(z, meta)
    with torch.no_grad():
        predictions = model.head(model.features(pixels))
        candidates = model.head.candidates(predictions, sizes)
        kept = model.forward_batch(pixels, sizes, pad_sizes)
    for index in range(len(sizes)):
        for check in recorded_detections(
            z, index, candidates[index], kept[index], torch.ones(4), ""
        ):
            assert check.ok, f"{check.name}: {check.error}"


def test_converted_weights_work_in_every_command(capsys, tmp_path):
    """predict, test and the trunk of train, with a small RetinaNet under published names."""
    from madet.detectors.dense import retinanet_detector

    model = retinanet_detector(2, resnet("resnet18", norm="bn_frozen_stats"), channels=64, depth=1)
    names = {
        "class_tower.0.0": "cls_convs.0.conv",
        "box_tower.0.0": "reg_convs.0.conv",
        "class_out": "retina_cls",
        "box_out": "retina_reg",
    }
    state = {}
    for key, value in model.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(f"head.{ours}.", f"bbox_head.{theirs}.")
        parts = key.split(".")
        state[".".join([*parts[:-1], "conv", parts[-1]]) if parts[0] == "neck" else key] = value
    torch.save(state, tmp_path / "bare.pth")
    (tmp_path / "names.txt").write_text("cup\nspoon\n")
    out = tmp_path / "w.safetensors"
    code, printed, _ = madet(
        capsys, "convert", tmp_path / "bare.pth", "--out", out, "--classes", tmp_path / "names.txt"
    )
    assert code == 0 and "unknown: ask whoever published it" in printed and "missing 0" in printed
    Image.new("RGB", (64, 48)).save(tmp_path / "p.png")
    code, printed, _ = madet(
        capsys,
        "predict",
        out,
        tmp_path / "p.png",
        "--out",
        tmp_path / "drawn",
        "--image-size",
        "64",
        "--json",
    )
    assert code == 0 and json.loads(printed)["classes"] == ["cup", "spoon"]
    data = voc(tmp_path / "voc", dict(test=2))
    code, printed, _ = madet(capsys, "test", out, "--data", data, "--image-size", "64", "--json")
    assert code == 0 and set(json.loads(printed)["per_class"]) == {"cup", "spoon"}
    assert "starts from" in resnet("resnet18", out).said
    code, _, said = madet(capsys, "convert", out, "--out", tmp_path / "again.safetensors")
    assert code == 2 and "already" in said


def lively(model):
    """Stored statistics and class scores that let something be seen."""
    torch.manual_seed(0)
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.8, 1.2)
        if name.endswith("running_mean"):
            value.normal_(0, 0.05)
        if "cls_logits" in name:
            value.normal_(-2 if name.endswith("bias") else 0, 0.03)
        if "bbox_reg" in name:
            value.normal_(0.5 if name.endswith("bias") else 0, 0.01)
    return model.eval()


@pytest.mark.parametrize(
    "name, file",
    [
        ("retinanet_resnet50_fpn", "retinanet_resnet50_fpn_coco-eeacb38b.pth"),
        pytest.param(
            "retinanet_resnet50_fpn_v2",
            "retinanet_resnet50_fpn_v2_coco-5905b1c5.pth",
            marks=pytest.mark.long,
        ),
        pytest.param(
            "fcos_resnet50_fpn", "fcos_resnet50_fpn_coco-99b0c9b7.pth", marks=pytest.mark.long
        ),
    ],
)
def test_torchvisions_detectors(capsys, tmp_path, name, file):
    score = 0.05 if "retina" in name else 0.2
    theirs = lively(
        getattr(torchvision.models.detection, name)(
            weights=None,
            weights_backbone=None,
            num_classes=5,
            min_size=96,
            max_size=96,
            detections_per_img=100,
            score_thresh=score,
        )
    )
    state = theirs.state_dict()
    if (
        name == "retinanet_resnet50_fpn"
    ):  # as published: no counters, an epsilon of 0, the names of 2020
        for module in theirs.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eps = 0.0
        state = {
            key.replace(".0.weight", ".weight").replace(".0.bias", ".bias")
            if "blocks." in key and "extra" not in key
            else key: value
            for key, value in state.items()
            if "num_batches" not in key
        }
        state = {
            f"{key.rsplit('.', 3)[0]}.{2 * int(key.rsplit('.', 3)[1])}.{key.rsplit('.', 1)[1]}"
            if "_head.conv." in key
            else key: value
            for key, value in state.items()
        }
    torch.save(state, tmp_path / file)
    code, printed, _ = madet(
        capsys, "convert", tmp_path / file, "--out", tmp_path / "w.safetensors", "--json"
    )
    told = json.loads(printed)
    assert (
        code == 0
        and told["licence"].startswith("BSD-3-Clause")
        and len(told["used"]) == len(state)
        and told["classes"][0] == "class_0"
    )
    ours, _, _ = detector_from(tmp_path / "w.safetensors")
    assert "starts from" in resnet("resnet50", tmp_path / "w.safetensors").said
    image = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = theirs([image])[0], ours([image])[0]
    assert len(a["boxes"]) == len(b["boxes"]) > 5 and torch.equal(a["labels"], b["labels"])
    assert torch.allclose(a["scores"], b["scores"], atol=1e-4) and torch.allclose(
        a["boxes"], b["boxes"], atol=0.05
    )


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_program_inside_is_not_run(capsys, tmp_path):
    file, sprung = tmp_path / "trap.pth", tmp_path / "sprung"
    torch.save(
        {"state_dict": {"layer1.0.conv1.weight": torch.zeros(1)}, "meta": Trap(sprung)}, file
    )
    code, printed, said = madet(
        capsys, "convert", file, "--out", tmp_path / "w.safetensors", "--json"
    )
    assert (
        code == 2
        and "--trust" in said
        and "mkdir" in said
        and not sprung.exists()
        and "--trust" in json.loads(printed)["error"]
    )
    code, _, said = madet(capsys, "convert", file, "--out", tmp_path / "w.safetensors", "--trust")
    assert code == 2 and sprung.exists(), "trusted, it runs; then the trunk of one block is refused"


def test_what_cannot_be_converted(capsys, tmp_path):
    """A wrong path, nothing inside, half a file, other architectures, a name that says nothing.

    Exit 2 and one sentence each.
    """
    resnext = torchvision.models.resnext50_32x4d().state_dict()
    torch.save(resnext, tmp_path / "resnext.pth")
    whole = (tmp_path / "resnext.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pth").write_text("<html>not found</html>")
    torch.save({"epoch": 3, "meta": {}}, tmp_path / "empty.pth")
    torch.save(
        {
            "state_dict": {
                "roi_head.bbox_head.fc_cls.weight": torch.zeros(81, 4),
                "backbone.conv1.weight": torch.zeros(1),
            }
        },
        tmp_path / "faster.pth",
    )
    torch.save(
        {"state_dict": {"bbox_head.gfl_cls.weight": torch.zeros(80, 4, 3, 3)}}, tmp_path / "gfl.pth"
    )
    for name, hint in dict(
        absent="is not a file",
        half="damaged",
        text="not written by torch",
        empty="holds no tensors",
        resnext="none of resnet18",
        faster="two stages",
        gfl="gfl_cls",
    ).items():
        code, _, said = madet(
            capsys, "convert", tmp_path / f"{name}.pth", "--out", tmp_path / "w.safetensors"
        )
        assert (
            code == 2
            and hint in said
            and f"{name}.pth" in said
            and len(said.strip().splitlines()) == 1
        ), said
    code, _, said = madet(capsys, "convert", tmp_path / "resnext.pth", "--out", tmp_path / "w.pth")
    assert code == 2 and ".safetensors" in said
    assert not list(tmp_path.glob("w.*"))


AUTHORS = {
    "head.class_tower": "bbox_head.cls_convs",
    "head.box_tower": "bbox_head.reg_convs",
    "head.class_out": "bbox_head.class_conv",
    "head.quality_out": "bbox_head.iou_conv",
    "head.box_outs.0": "bbox_head.regress_conv_abased",
    "head.box_outs.1": "bbox_head.regress_conv_afree",
    "head.interaction.convs.0": "bbox_head.dcn.conv",
    "head.interaction.norms.0": "bbox_head.dcn.gn",
    "head.scales": "bbox_head.scales",
}


def of_the_authors(key):
    """The name that MADet's code gives to one of our tensors; offsets of the trunk as very old files have them."""
    for ours, theirs in AUTHORS.items():
        key = key.replace(f"{ours}.", f"{theirs}.")
    key = (
        re.sub(
            r"(_convs\.\d+)\.([01])\.(?=\w+$)",
            lambda hit: f"{hit[1]}.{('conv', 'gn')[int(hit[2])]}.",
            key,
        )
        if key.startswith("bbox_head")
        else key
    )
    return re.sub(
        r"\.conv2\.conv_offset\.",
        ".conv2_offset.",
        re.sub(r"^neck\.(\w+)\.(\d+)\.", r"neck.\1.\2.conv.", key),
    )


@pytest.mark.parametrize(
    "backbone",
    [
        "resnet50-dcn",
        pytest.param("resnext101-32x4d-dcn", marks=pytest.mark.long),
        pytest.param("res2net101-dcn", marks=pytest.mark.long),
    ],
)
def test_madet_with_deformable_stages(capsys, tmp_path, backbone):
    """Keys of a published configuration's trunk, offsets under their old name.

    The same detections, and the trunk's own file for train --weights.
    """
    from madet.detectors.madet import madet_detector as constructor
    from madet.detectors.published_network import like_published

    torch.manual_seed(0)
    build = dict(
        style="pytorch",
        pixels=dict(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375), bgr=False),
    )
    model = like_published(
        constructor(2, backbone, channels=64, depth=1), build, [], backbone
    ).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "conv_offset" in name or "_out" in name:
                p.add_(torch.randn_like(p) * 0.02)
        model.head.class_out.bias.fill_(-2.0)
    torch.save(
        {
            "state_dict": {of_the_authors(key): value for key, value in model.state_dict().items()},
            "meta": {},
            "optimizer": {},
        },
        tmp_path / "epoch_12.pth",
    )
    code, printed, _ = madet(
        capsys, "convert", tmp_path / "epoch_12.pth", "--out", tmp_path / "w.safetensors", "--json"
    )
    told = json.loads(printed)
    assert (
        code == 0
        and told["backbone"] == backbone
        and len(told["used"]) == len(model.state_dict())
        and told["licence"].startswith("unknown")
    )
    assert any("conv2_offset" in key or "convs.0.conv_offset" in key for key in told["used"])
    again, recipe, _ = detector_from(tmp_path / "w.safetensors")
    image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = model([image])[0], again([image])[0]
    assert (
        recipe.backbone == backbone
        and len(a["boxes"]) > 5
        and all(torch.equal(a[key], b[key]) for key in a)
    )
