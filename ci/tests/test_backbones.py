"""Every large or light backbone carries an ATSS detector through a training step.

The deformable layer goes through a real compiler.
"""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from madet.detectors.dense import atss_detector, named_backbone
from madet.methods.load import match_norm, rebuilt
from madet.methods.names import BACKBONES, recipe_of
from madet.nets.deform import DeformConv
from madet.nets.resnet import batch_norms, resnet

CHOSEN = [
    name
    for name in BACKBONES
    if name.startswith(("resnext", "res2net", "efficientnet")) or name == "resnet50-dcn"
]


@pytest.mark.parametrize("name", CHOSEN)
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


def under(prefix, module):
    """A module's tensors under the names that they have inside a detector."""
    return {f"{prefix}{key}": value for key, value in module.state_dict().items()}


@pytest.mark.parametrize("name", ["resnet50-dcn", "res2net101", "efficientnet-lite1"])
def test_trained_batch_norm_finds_its_backbone_again(name):
    trained = named_backbone(name, None, norm="bn_frozen_stats")
    model = SimpleNamespace(backbone=named_backbone(name, None))
    match_norm(model, under("backbone.", trained))
    model.backbone.load_state_dict(trained.state_dict())
    ours, theirs = batch_norms(model.backbone), batch_norms(trained)
    assert [layer.eps for layer in ours] == [layer.eps for layer in theirs] and ours
    assert model.backbone.norm == "bn_frozen_stats"
    assert not any(layer.training for layer in batch_norms(model.backbone.train()))


def test_a_backbone_with_batch_norm_keeps_style_and_maps():
    trained = resnet("resnet50", None, "caffe", norm="bn_frozen_stats", out=(2, 3))
    model = SimpleNamespace(backbone=resnet("resnet50", None, "caffe", out=(2, 3)))
    match_norm(model, under("backbone.", trained))
    model.backbone.load_state_dict(trained.state_dict())
    x = torch.rand(1, 3, 64, 64)
    for ours, theirs in zip(model.backbone.eval()(x), trained.eval()(x)):
        assert torch.equal(ours, theirs)


def foreign():
    """A backbone with BatchNorm that is none of ours, as a method of one's own may bring it."""
    body = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 8, 8), torch.nn.BatchNorm2d(8), torch.nn.ReLU()
    )
    body.forward = lambda x: [body[2](body[1](body[0](x)))]
    body.channels, body.strides = [8], [8]
    return body


def test_a_backbone_that_is_not_ours_stays():
    def build(recipe, options, num_classes):
        return atss_detector(num_classes, foreign(), channels=32)

    method, recipe, options = recipe_of("bench", {"method": "atss", "data": "."})
    method = replace(method, build=build)
    trained = build(recipe, options, 2)
    trained.backbone[1].running_mean.normal_()
    again = rebuilt(method, recipe, options, 2, trained.state_dict())
    assert type(again.backbone) is torch.nn.Sequential
    again.load_state_dict(trained.state_dict())
    assert torch.equal(again.backbone[1].running_mean, trained.backbone[1].running_mean)


@pytest.mark.parametrize("key", ["head.tower.1.running_mean", "neck.1.running_mean"])
def test_batch_norm_elsewhere_is_not_the_backbones(key):
    backbone = resnet("resnet18")
    model = match_norm(SimpleNamespace(backbone=backbone), {key})
    assert model.backbone is backbone and not batch_norms(backbone)


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
