"""Every large backbone carries an ATSS detector through a training step.

The deformable layer goes through a real compiler.
"""

import shutil
from types import SimpleNamespace

import pytest
import torch

from madet.detectors.dense import atss_detector
from madet.methods.load import match_norm
from madet.methods.names import BACKBONES
from madet.nets.deform import DeformConv
from madet.nets.res2net import res2net
from madet.nets.resnet import resnet

LARGE = [
    name for name in BACKBONES if name.startswith(("resnext", "res2net")) or name == "resnet50-dcn"
]


@pytest.mark.parametrize("name", LARGE)
def test_a_step_of_atss(name):
    torch.manual_seed(0)
    model = atss_detector(3, backbone=name, channels=32).train()
    target = dict(boxes=torch.tensor([[8.0, 8, 40, 36]]), labels=torch.tensor([1]))
    losses = model([torch.rand(3, 64, 64)], [target])
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    offsets = [p for key, p in model.named_parameters() if "conv_offset" in key]
    assert bool(offsets) == name.endswith("-dcn") and all(
        p.grad is not None and p.grad.isfinite().all() for p in offsets
    )
    assert all(p.grad is not None for p in model.backbone.parameters())


@pytest.mark.parametrize("name", ["resnet50-dcn", "res2net101"])
def test_trained_batch_norm_finds_its_backbone_again(name):
    make = res2net if name.startswith("res2net") else resnet
    trained = make(name, None, norm="bn_frozen_stats").state_dict()
    model = match_norm(
        SimpleNamespace(backbone=make(name, None)),
        SimpleNamespace(backbone=name),
        {f"backbone.{key}": value for key, value in trained.items()},
    )
    model.backbone.load_state_dict(trained)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_the_compiled_layer_equals_the_plain_one():
    torch.manual_seed(0)
    layer, x = DeformConv(8, 4), torch.randn(1, 8, 5, 6)
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.2)
    answers = []
    for call in layer, torch.compile(layer, fullgraph=True):
        layer.zero_grad()
        out = call(x)
        out.square().sum().backward()
        answers.append([out.detach(), *(p.grad.clone() for p in layer.parameters())])
    for a, b in zip(*answers):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(a.abs().max()))
