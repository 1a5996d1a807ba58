"""Rotated checkpoints: what MMRotate recorded is found again.

0.3's layout gives what plain convolutions and the written-out decoding give.
"""

import json
import math

import pytest
import torch
import torchvision
from test_convert import madet, published
from torch.nn import functional as F

from madet.methods.load import detector_from
from madet.parity.fixtures import open_fixture
from madet.parity.models import inputs_of, places, recorded_detections

RATIOS = (1.0, 0.5, 2.0)
CONFIG_1X = """model = dict(
    bbox_head=dict(
        anchor_generator=dict(angle_version='{v}', octave_base_scale=4, ratios={ratios}, scales_per_octave={scales},
            type='FakeRotatedAnchorGenerator'),
        bbox_coder=dict(angle_version='{v}', edge_swap={edge_swap}, norm_factor={norm}, proj_xy=True,
            target_means=(0.0, 0.0, 0.0, 0.0, 0.0),
            target_stds=(1.0, 1.0, 1.0, 1.0, 1.0)),
        loss_bbox=dict(loss_weight=2.0, mode='linear', type='{loss}'), type='{head}'),
    data_preprocessor=dict(bgr_to_rgb=True, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    neck=dict(add_extra_convs='on_input'))"""


@pytest.mark.long
@pytest.mark.parametrize(
    "name", ["rotated_atss_r50_le90", "rotated_atss_r50_oc", "rotated_retinanet_r50_le135"]
)
def test_what_mmrotate_1x_recorded_is_found_again(capsys, tmp_path, name, shared):
    z = open_fixture(shared / "golden" / f"model_{name}.npz")
    head = z.meta["model_config"]["bbox_head"]
    code, anchors = head["bbox_coder"], head["anchor_generator"]
    config = CONFIG_1X.format(
        v=code["angle_version"],
        ratios=anchors["ratios"],
        scales=anchors["scales_per_octave"],
        edge_swap=code["edge_swap"],
        norm=code["norm_factor"],
        loss=head["loss_bbox"]["type"],
        head=head["type"],
    )
    file, out = tmp_path / "epoch_12.pth", tmp_path / "w.safetensors"
    torch.save(
        {
            "meta": {"cfg": config, "mmengine_version": "0.10.7"},
            "state_dict": published(z.meta),
            "message_hub": {},
        },
        file,
    )
    exit_code, printed, _ = madet(capsys, "convert", file, "--out", out, "--json")
    told = json.loads(printed)
    assert (
        exit_code == 0
        and sorted(told["used"]) == sorted(dict(z.meta["state_dict"]))
        and told["missing"] == []
    )
    assert told["classes"][0] == "plane" and len(told["classes"]) == 15
    model, recipe, _ = detector_from(out)
    assert (
        recipe.method == name.rsplit("_", 2)[0].replace("_", "-")
        and model.boxes.version == code["angle_version"]
    )
    pixels, sizes, pad_sizes, _ = inputs_of(z, z.meta)
    with torch.no_grad():
        predictions = model.head(model.features(pixels))
        candidates = model.head.candidates(predictions, sizes)
        kept = model.forward_batch(pixels, sizes, pad_sizes)
    for index in range(len(sizes)):
        for check in recorded_detections(
            z, index, candidates[index], kept[index], torch.ones(4), ""
        ):
            assert check.ok, f"{check.name}: {check.error}"


def layout(anchors, classes=15, width=32, depth=2):
    """MMRotate 0.3's state dict of a small detector, drawn.

    A ResNet-18, P6 from C5, towers without norm, retina_cls and retina_reg.
    """
    torch.manual_seed(0)
    state = {
        f"backbone.{key}": tensor
        for key, tensor in torchvision.models.resnet18(weights=None).state_dict().items()
        if not key.startswith("fc.")
    }
    shapes = {
        f"neck.lateral_convs.{i}.conv": (width, c, 1) for i, c in enumerate((128, 256, 512))
    } | {f"neck.fpn_convs.{i}.conv": (width, 512 if i == 3 else width, 3) for i in range(5)}
    shapes |= {
        f"bbox_head.{tower}_convs.{i}.conv": (width, width, 3)
        for tower in ("cls", "reg")
        for i in range(depth)
    }
    shapes |= {
        "bbox_head.retina_cls": (anchors * classes, width, 3),
        "bbox_head.retina_reg": (anchors * 5, width, 3),
    }
    for name, (rows, columns, side) in shapes.items():
        state |= {
            f"{name}.weight": torch.randn(rows, columns, side, side) / (columns * side**2) ** 0.5,
            f"{name}.bias": torch.randn(rows) * 0.02,
        }
    state["bbox_head.retina_reg.weight"] *= 0.1
    return state


def by_hand(state, pixels, version, anchors):
    """Boxes [A, 5] and logits [A, C] of one image, from the checkpoint's own names."""

    def conv(name, x, **how):
        return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **how)

    trunk = torchvision.models.resnet18(weights=None).eval()
    trunk.load_state_dict(
        {
            key.removeprefix("backbone."): tensor
            for key, tensor in state.items()
            if key.startswith("backbone.")
        },
        strict=False,
    )
    x, maps = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(pixels)))), []
    for stage in (trunk.layer1, trunk.layer2, trunk.layer3, trunk.layer4):
        maps.append(x := stage(x))
    maps = maps[1:]
    sums = [conv(f"neck.lateral_convs.{i}.conv", m) for i, m in enumerate(maps)]
    for i in (1, 0):
        sums[i] = sums[i] + F.interpolate(sums[i + 1], size=sums[i].shape[-2:])
    levels = [conv(f"neck.fpn_convs.{i}.conv", s, padding=1) for i, s in enumerate(sums)]
    levels.append(conv("neck.fpn_convs.3.conv", maps[-1], stride=2, padding=1))
    levels.append(conv("neck.fpn_convs.4.conv", levels[-1], stride=2, padding=1))
    boxes, logits = [], []
    for level, stride in zip(levels, (8, 16, 32, 64, 128)):
        towers = dict(cls=level, reg=level)
        for tower in towers:
            for i in range(2):
                towers[tower] = conv(
                    f"bbox_head.{tower}_convs.{i}.conv", towers[tower], padding=1
                ).relu()
        cls, reg = (
            conv(f"bbox_head.retina_{tower}", towers[tower], padding=1)[0] for tower in towers
        )
        for row in range(reg.shape[1]):
            for column in range(reg.shape[2]):
                for k in range(anchors):
                    ratio, scale = (
                        (RATIOS[k // 3], 4 * 2 ** (k % 3 / 3)) if anchors == 9 else (1.0, 4.0)
                    )
                    w, h = stride * scale / ratio**0.5, stride * scale * ratio**0.5
                    dx, dy, dw, dh, turn = reg[5 * k : 5 * k + 5, row, column].tolist()
                    x = min(max(column * stride + dx * w, 0), pixels.shape[3] - 1)
                    y = min(max(row * stride + dy * h, 0), pixels.shape[2] - 1)
                    boxes.append(
                        (
                            x,
                            y,
                            w * math.exp(dw),
                            h * math.exp(dh),
                            turn * (math.pi if version == "le135" else 1),
                        )
                    )
                    logits.append(cls[15 * k : 15 * k + 15, row, column])
    return torch.tensor(boxes), torch.stack(logits)


FILES = (
    ("rotated_atss_obb_r18_fpn_1x_dota_le90-e029ca06", 1, "rotated"),
    ("rotated_atss_obb_r18_fpn_1x_dota_le135-eab7bc12", 1, "rotated"),
    ("rotated_atss_hbb_r18_fpn_1x_dota_oc-eaa94033", 1, "horizontal"),
    ("rotated_retinanet_obb_r18_fpn_1x_dota_le135-e4131166", 9, "rotated"),
)


@pytest.mark.parametrize(
    "name, anchors, match", FILES, ids=[file[0].split("-")[0] for file in FILES]
)
def test_the_layout_of_0_3_gives_what_plain_convolutions_give(
    capsys, tmp_path, name, anchors, match
):
    state = layout(anchors)
    file = tmp_path / f"{name}.pth"
    out = tmp_path / "w.safetensors"
    torch.save({"meta": {"mmdet_version": "2.25.0"}, "state_dict": state, "optimizer": {}}, file)
    code, printed, _ = madet(capsys, "convert", file, "--out", out, "--json")
    told = json.loads(printed)
    assert (
        code == 0
        and sorted(told["used"]) == sorted(state)
        and told["missing"] == []
        and [one["key"] for one in told["ignored"]] == ["(meta)", "(optimizer)"]
    )
    assert (
        told["licence"].startswith("Apache-2.0")
        and told["classes"][1] == "baseball-diamond"
        and told["published"]["extra"] == "on_input"
    )
    model, recipe, _ = detector_from(out)
    version = name.split("_")[-1].split("-")[0]
    assert (
        model.boxes.version == version
        and model.head.match_on == match
        and recipe.method == "-".join(name.split("_")[:2])
    )
    pixels = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        theirs, logits = by_hand(state, pixels, version, anchors)
        found = model.head(model.features(pixels))
        ours = model.head.coder.decode(model.head.priors(found).boxes, found.raw[0], (96, 128))
    assert torch.allclose(found.logits[0], logits, atol=1e-4)
    apart = abs(places(ours, theirs.numpy()) - places(theirs, theirs.numpy())).max()
    assert apart < 1e-2, apart


def test_an_unknown_angle_version_is_asked_for(capsys, tmp_path):
    state = layout(1)
    file = tmp_path / "epoch_12.pth"
    out = tmp_path / "w.safetensors"
    torch.save({"state_dict": state}, file)
    code, _, complaint = madet(capsys, "convert", file, "--out", out)
    assert (
        code == 2 and str(file) in complaint and "--angle-version" in complaint and not out.exists()
    )
    code, printed, _ = madet(capsys, "convert", file, "--out", out, "--angle-version", "le90")
    assert (
        code == 0
        and "taken to be rotated atss" in printed
        and detector_from(out)[0].boxes.version == "le90"
    )
    state.pop("bbox_head.retina_reg.bias")
    torch.save({"state_dict": state}, file)
    code, _, complaint = madet(
        capsys, "convert", file, "--out", tmp_path / "x.safetensors", "--angle-version", "le90"
    )
    assert code == 2 and "lacks" in complaint
