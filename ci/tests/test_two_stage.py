"""Two-stage detectors: RoIAlign against an independent oracle, samples, memory, and devices."""

import json
import math
import os
import signal

import pytest
import torch
from test_commands import madet, voc
from torch.nn import functional as F

from madet.boxes.geometry import Rotated, Upright
from madet.boxes.midpoint import MidpointCoder
from madet.data.embedded import embedded
from madet.detectors.two_stage import faster_rcnn_detector
from madet.heads.roi import RoIHead
from madet.heads.rpn import sample_balanced
from madet.nets import roi_align as module
from madet.nets.roi_align import pyramid_roi_align, rotated_roi_align

LE90 = Rotated("le90")
WAYS = [{}, dict(boxes=LE90), dict(boxes=LE90, proposals="oriented")]


def boxes_inside(count, size, seed):
    "Turned boxes whose corners stay inside a map of `size` cells at scale 1: image 0, cx, cy, w, h, angle."
    generator = torch.Generator().manual_seed(seed)

    def draw():
        return torch.rand(count, 1, generator=generator, dtype=torch.float64)

    return torch.cat(
        [
            torch.zeros(count, 1),
            size * (0.4 + 0.2 * draw()),
            size * (0.4 + 0.2 * draw()),
            1 + draw() * size * 0.4,
            1 + draw() * size * 0.4,
            (draw() - 0.5) * 8,
        ],
        1,
    )


def by_grid_sample(x, roi, size, ratio):
    "One turned box by PyTorch's own sampler: a fine raster, then the mean of each bin."
    _, cx, cy, width, height, angle = roi.tolist()

    def steps(n, length):
        return ((torch.arange(n, dtype=torch.float64) + 0.5) / n - 0.5) * length

    v, u = torch.meshgrid(
        steps(size[0] * ratio, height), steps(size[1] * ratio, width), indexing="ij"
    )
    px = cx + u * math.cos(angle) - v * math.sin(angle)
    py = cy + u * math.sin(angle) + v * math.cos(angle)
    grid = torch.stack([2 * px / x.shape[3] - 1, 2 * py / x.shape[2] - 1], -1)[None]
    return F.avg_pool2d(F.grid_sample(x, grid, align_corners=False, padding_mode="border"), ratio)[
        0
    ]


@pytest.mark.parametrize("ratio", [1, 2, 5])
def test_rotated_roi_align_is_what_grid_sample_reads(ratio):
    x = torch.randn(1, 3, 40, 40, dtype=torch.float64)
    rois = boxes_inside(60, 40, ratio)
    ours = rotated_roi_align(x, rois, (3, 5), 1.0, ratio)
    theirs = torch.stack([by_grid_sample(x, roi, (3, 5), ratio) for roi in rois])
    assert (ours - theirs).abs().max() < 1e-10


@pytest.mark.parametrize("ratio", [0, 2])
def test_turning_map_and_boxes_together_changes_nothing(ratio):
    """The map turned a quarter clockwise, boxes with it: bins see the same cells."""
    x = torch.randn(1, 2, 32, 32, dtype=torch.float64)
    rois = boxes_inside(50, 32, 7)
    moved = rois.clone()
    moved[:, 1], moved[:, 2], moved[:, 5] = 32 - rois[:, 2], rois[:, 1], rois[:, 5] + math.pi / 2
    assert torch.allclose(
        rotated_roi_align(x, rois, 4, 1.0, ratio),
        rotated_roi_align(x.rot90(-1, (2, 3)), moved, 4, 1.0, ratio),
    )


@pytest.mark.trains
def test_pieces_give_the_same_numbers_and_gradients(monkeypatch):
    x = torch.randn(2, 3, 20, 24, dtype=torch.float64, requires_grad=True)
    rois = torch.cat(
        [
            torch.randint(0, 2, (40, 1)),
            torch.rand(40, 2) * 24,
            torch.rand(40, 2) * 30,
            torch.randn(40, 1),
        ],
        1,
    ).double()
    answers = []
    for piece in (2**18, 500, 1):
        monkeypatch.setattr(module, "PIECE", piece)
        out = rotated_roi_align(x, rois, (4, 3), 1.0, 0)
        answers.append(
            (
                out,
                torch.autograd.grad(
                    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum(), x
                )[0],
            )
        )
    assert all(
        torch.allclose(a, b, atol=1e-12) for other in answers[1:] for a, b in zip(answers[0], other)
    )


def test_only_boxes_are_kept_for_the_way_back():
    """Cells and weights of 400 boxes with 64 points a bin would be 20 MB.

    What the graph keeps beside the map is the boxes.
    """
    x = torch.randn(1, 4, 64, 64, requires_grad=True)
    rois = torch.cat(
        [
            torch.zeros(400, 1),
            torch.rand(400, 2) * 64,
            torch.full((400, 2), 56.0),
            torch.randn(400, 1),
        ],
        1,
    )
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        rotated_roi_align(x, rois, 7, 1.0, 8)
    assert sum(t.numel() * t.element_size() for t in kept) < 2 * x.numel() * 4 + rois.numel() * 16


@pytest.mark.parametrize("geometry", [Upright(), LE90])
def test_levels_without_boxes_and_no_boxes_at_all(geometry):
    maps = [torch.randn(2, 3, 32 // s, 32 // s, requires_grad=True) for s in (1, 2, 4)]
    boxes = geometry.from_upright(torch.tensor([[0.0, 0.0, 9.0, 9.0], [2.0, 3.0, 20.0, 20.0]]))
    for some in (boxes, boxes[:0]):
        out = pyramid_roi_align(
            maps, (4, 8, 16), torch.zeros(len(some), dtype=torch.int64), some, geometry
        )
        assert out.shape == (len(some), 3, 7, 7)
        out.sum().backward()
        assert all(x.grad is not None for x in maps)


def test_a_sample_never_asks_about_ignored_ones():
    for seed in range(50):
        torch.manual_seed(seed)
        matched = torch.randint(-2, 4, (300,))
        yes, no = sample_balanced(matched, 64, 0.25)
        assert (
            (matched[yes] >= 0).all()
            and (matched[no] == -1).all()
            and len(yes) <= 16
            and len(yes) + len(no) <= 64
        )
        assert len(yes.unique()) == len(yes) and len(no.unique()) == len(no)


def test_midpoints_of_a_hull_decode_inside_its_circle():
    """Whatever two offsets a network says, the rectangle shares the hull's centre and its diagonal is at
    most the hull's.
    """
    torch.manual_seed(0)
    hulls = torch.rand(2000, 4) * 50
    hulls[:, 2:] += hulls[:, :2] + 1
    boxes = MidpointCoder().decode(
        hulls, torch.cat([torch.zeros(2000, 4), torch.randn(2000, 2)], 1)
    )
    centers, sizes, _ = Upright().parts(hulls)
    assert (
        torch.allclose(boxes[:, :2], centers, atol=1e-4)
        and (boxes[:, 2:4].norm(dim=1) <= sizes.norm(dim=1) * (1 + 1e-5)).all()
    )


def scenes(geometry, count=2):
    samples = [embedded("easy", "train", geometry).load(i) for i in range(count)]
    return [s.image.float() / 255 for s in samples], [
        dict(boxes=s.objects.boxes, labels=s.objects.labels, ignore=s.objects.ignore)
        for s in samples
    ]


def detector(way, **options):
    torch.manual_seed(0)
    return faster_rcnn_detector(
        5, "tiny", **dict(channels=16, width=32, sampled=16, anchor_size=4.0) | way | options
    )


@pytest.mark.parametrize("way", WAYS)
def test_the_seed_decides_who_is_drawn(way):
    pictures, truths = scenes(way.get("boxes", Upright()))
    runs = []
    for seed in (1, 1, 2):
        model = detector(way)
        torch.manual_seed(seed)
        runs.append({name: value.item() for name, value in model(pictures, truths).items()})
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.trains
def test_losses_of_a_batch_do_not_hang_on_the_order_of_truths(way):
    pictures, truths = scenes(way.get("boxes", Upright()))
    model = detector(way, order=torch.arange, sampled=4000)
    swapped = [{name: value.flip(0) for name, value in t.items()} for t in truths]
    one, other = model(pictures, truths), model(pictures, swapped)
    assert all(torch.isclose(one[name], other[name], rtol=1e-3) for name in one)


@pytest.mark.parametrize("way", WAYS)
def test_weights_come_back_and_answers_with_them(way, tmp_path):
    pictures, _ = scenes(way.get("boxes", Upright()))
    model = detector(way).eval()
    torch.save(model.state_dict(), tmp_path / "w.pt")
    twin = detector(way, order=torch.arange).eval()
    for p in twin.parameters():
        p.data.normal_()
    twin.load_state_dict(torch.load(tmp_path / "w.pt"))
    for one, other in zip(model(pictures), twin(pictures)):
        assert all(torch.equal(one[name], other[name]) for name in one)


def told(run):
    "Losses of every step, and the scores."
    losses = [
        line["loss"]
        for line in map(json.loads, (run / "log.jsonl").read_text().splitlines())
        if "loss" in line
    ]
    return losses, json.loads((run / "metrics.json").read_text())["test"] if (
        run / "metrics.json"
    ).exists() else None


@pytest.mark.parametrize("method", ["faster-rcnn", "oriented-rcnn"])
def test_a_stopped_run_draws_the_same_samples(capsys, tmp_path, monkeypatch, method):
    """Who is sampled is random; stopped after the third of six steps and resumed, the run ends as one that was not."""
    words = [
        "train",
        "--method",
        method,
        "--data",
        voc(tmp_path / "voc", dict(train=4, val=1, test=1)),
        "--scale",
        "bench",
        "--backbone",
        "tiny",
        "--image-size",
        "64",
        "--total-batch",
        "2",
        "--steps",
        "6",
        "--log-every",
        "1",
        "--fpn-channels",
        "16",
        "--fc-width",
        "16",
        "--sampled",
        "8",
        "--warmup",
        "2",
    ]
    assert madet(capsys, *words, "--out", tmp_path / "straight")[0] == 0
    calls, whole = [], RoIHead.losses

    def stopping(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(RoIHead, "losses", stopping)
        assert madet(capsys, *words, "--out", tmp_path / "stopped")[0] == 130
    assert len(told(tmp_path / "stopped")[0]) == 3
    assert madet(capsys, *words, "--out", tmp_path / "stopped", "--resume")[0] == 0
    a, b = (
        torch.load(tmp_path / name / "last.pt", weights_only=True)
        for name in ("straight", "stopped")
    )
    assert all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"]) and told(
        tmp_path / "straight"
    ) == told(tmp_path / "stopped")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_rotated_roi_align_on_a_gpu():
    x = torch.randn(2, 8, 50, 60, requires_grad=True)
    rois = torch.cat(
        [
            torch.randint(0, 2, (300, 1)),
            torch.rand(300, 2) * 500 - 40,
            torch.rand(300, 2) * 200,
            torch.randn(300, 1) * 3,
        ],
        1,
    )
    for ratio in (0, 2):
        answers = []
        for device in ("cpu", "cuda"):
            there = x.detach().to(device).requires_grad_()
            out = rotated_roi_align(there, rois.to(device), 7, 1 / 8, ratio)
            out.square().sum().backward()
            answers.append((out.detach().cpu(), there.grad.cpu()))
        off = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(*answers)]
        print(f"ratio {ratio}: value {off[0]:.1e}, gradient {off[1]:.1e}")
        assert max(off) < 1e-4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("way", WAYS)
def test_a_detector_on_a_gpu_says_what_it_says_on_the_cpu(way):
    pictures, truths = scenes(way.get("boxes", Upright()))
    losses = {}
    for device in ("cpu", "cuda"):
        model = detector(way, order=torch.arange).to(device)
        losses[device] = model(pictures, truths)
        sum(losses[device].values()).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())
        assert all(one["boxes"].device.type == device for one in model.eval()(pictures))
        with torch.autocast(device, dtype=torch.bfloat16):
            assert all(v.isfinite() for v in model.train()(pictures, truths).values())
    print(
        {name: (value.item(), losses["cuda"][name].item()) for name, value in losses["cpu"].items()}
    )
    assert all(
        torch.isclose(value, losses["cuda"][name].cpu(), rtol=2e-2, atol=1e-3)
        for name, value in losses["cpu"].items()
    )
