"""Losses of rotated boxes.

Mmrotate's recorded values and gradients, and finite answers where such losses are known to fail.
"""

import math
from functools import partial

import numpy as np
import pytest
import torch

from madet.boxes.geometry import Rotated
from madet.losses import gaussian
from madet.losses.boxes import iou_loss
from madet.losses.reduce import weighted_sum
from madet.losses.rotated import KINDS, LOSSES, rotated_loss

FAMILY = {
    "gwd": gaussian.gwd_loss,
    "kld": gaussian.kld_loss,
    "jd": gaussian.jd_loss,
    "kld_symmax": gaussian.kld_symmax_loss,
    "kld_symmin": gaussian.kld_symmin_loss,
}
RECORDED = {
    f"{name}_{fun}_tau{tau}": (partial(loss, fun=fun, tau=float(tau)), 2e-5)
    for name, loss in FAMILY.items()
    for fun, tau in (("log1p", 1), ("sqrt", 2), ("none", 0))
}
RECORDED |= {
    "gwd_default": (gaussian.gwd_loss, 1e-5),
    "kld_default": (gaussian.kld_loss, 1e-5),
    "gwd_not_normalized": (partial(gaussian.gwd_loss, tau=1.0, normalize=False), 1e-5),
    "v1_gwd": (gaussian.v1_gwd_loss, 1e-5),
    "v1_kld": (gaussian.v1_kld_loss, 1e-5),
    "v1_bcd": (gaussian.v1_bcd_loss, 3e-4),
}  # the recorded determinants are rounded in float32
RECORDED |= {
    f"riou_{kind}": (partial(iou_loss, geometry=Rotated(), kind=kind), 2e-4)
    for kind in ("linear", "square", "log")
}


def recorded(golden):
    """The arrays of the fixture as tensors."""
    with np.load(golden / "rotated_losses.npz", allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files if name != "meta"}


def same(ours, theirs, tolerance, what):
    """Equal within `tolerance` of the largest entry."""
    worst = (ours - theirs.reshape(ours.shape)).abs().max() / theirs.abs().max()
    assert worst <= tolerance, f"{what}: {worst:.1e} of the scale, {tolerance:.0e} allowed"


@pytest.mark.parametrize("name", RECORDED)
def test_values_and_gradients_are_the_recorded_ones(golden, name):
    """The older forms take weights only for who counts, and sum the values as they are."""
    fixture, (loss, tolerance) = recorded(golden), RECORDED[name]
    weight = fixture["weight"].gt(0).float() if name.startswith("v1") else fixture["weight"]
    pred = fixture["pred"].clone().requires_grad_()
    each = loss(pred, fixture["target"])
    total = weighted_sum(each, weight, 33.0)
    total.backward()
    if name == "riou_log":  # the recorded overlap itself is good to 5e-5, and 1 / IoU enlarges that
        assert ((-each).exp() - (-fixture[f"{name}_none"]).exp()).abs().max() < 5e-5
    else:
        same(each, fixture[f"{name}_none"], tolerance, "values")
    same(total, fixture[name], 1e-5, "sum")
    same(pred.grad, fixture[f"{name}_grad"], tolerance, "gradient")


@pytest.mark.parametrize("fun", ["none", "ln", "exp"])
def test_kfiou_and_both_its_gradients_are_the_recorded_ones(golden, fun):
    fixture = recorded(golden)
    pred, raw = (fixture["pred"].clone().requires_grad_() for _ in range(2))
    each = gaussian.kfiou_loss(pred, fixture["target"], encoded=(raw, fixture["target"]), fun=fun)
    total = weighted_sum(each, fixture["weight"], 33.0)
    total.backward()
    same(each, fixture[f"kfiou_{fun}_none"], 1e-5, "values")
    same(total, fixture[f"kfiou_{fun}"], 1e-5, "sum")
    same(raw.grad, fixture[f"kfiou_{fun}_grad"], 1e-5, "gradient for encoded values")
    same(pred.grad, fixture[f"kfiou_{fun}_grad_decoded"], 2e-5, "gradient for decoded boxes")


def test_every_recorded_loss_is_compared(golden):
    names = {name.removesuffix("_grad") for name in recorded(golden) if name.endswith("_grad")}
    assert names == set(RECORDED) | {f"kfiou_{fun}" for fun in ("none", "ln", "exp")}


def test_the_worked_pair_of_the_specification():
    """Values computed in double precision by another program."""
    p = torch.tensor([[10.0, 10, 8, 4, 0.2]]).double()
    t = torch.tensor([[11.0, 9, 10, 3, 0.5]]).double()
    expected = {
        1 - rotated_loss("iou")(p, t): 0.380815,
        gaussian.gwd_loss(p, t, "none", normalize=False) ** 2: 4.298546,
        gaussian.gwd_loss(p, t, "none"): 0.372471,
        gaussian.gwd_loss(p, t): 0.316613,
        gaussian.gwd_loss(p, t, tau=1.0): 0.240475,
        gaussian.kld_loss(p, t, "none", 0.0, sqrt=False): 0.506060,
        rotated_loss("kld")(p, t): 0.290527,
        gaussian.kld_loss(p, t): 0.349509,
        gaussian.kfiou(p, t): 0.300892,
        gaussian.kfiou(p, p): 1 / 3,
        gaussian.v1_kld_loss(p, t): 0.482163,
        1 / (1 - gaussian.v1_kld_loss(p, t)) - 1: math.log1p(1.537326),
    }
    for ours, value in expected.items():
        assert abs(ours.item() - value) < 2e-6, (ours.item(), value)
    assert (
        gaussian.kld_loss(p, p, "none", 0.0, sqrt=False).item() == 0
        and gaussian.gwd_loss(p, p).item() < 1e-4
    )


def nasty(count, seed):
    """Pairs `[count, 5]`: random ones, and each way in which losses on rotated boxes are known to break, in
    equal shares.
    """
    dice = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.rand(*shape, generator=dice)

    part = count // 12 + 1
    boxes = torch.cat(
        [draw(part, 2) * 1000, 2 + 200 * draw(part, 2) ** 2, draw(part, 1) * 7 - 3.5], -1
    )

    def like(columns, values):
        other = boxes.clone()
        other[:, columns] = values
        return other

    along = boxes[:, 2:3] * torch.stack([boxes[:, 4].cos(), boxes[:, 4].sin()], -1)
    sliver = like([2, 3], torch.stack([(length := 10 + 500 * draw(part)), length / 500], -1))
    tiny = like([2, 3], 10 ** (-6 * draw(part, 2)))
    huge = like([2, 3], 10 ** (2 + 5 * draw(part, 2)))
    pairs = [
        (boxes, boxes.clone()),  # identical
        (boxes, like([2, 3], boxes[:, 2:4] * (0.01 + draw(part, 2)))),  # nested
        (boxes, like([0, 1], boxes[:, :2] + along)),  # touching
        (
            boxes,
            torch.cat([boxes[:, [0, 1, 3, 2]], boxes[:, 4:] + math.pi / 2], -1),
        ),  # sides swapped
        (boxes + 1e-4 * draw(part, 5), boxes),  # hardly different
        (sliver, torch.where(draw(part, 1) < 0.5, sliver.roll(1, 0), like([2, 3], sliver[:, 2:4]))),
        (tiny, torch.where(draw(part, 1) < 0.5, tiny, boxes)),
        (boxes, tiny.roll(1, 0)),
        (like([0, 1], (draw(part, 2) - 0.5) * 2e5), boxes),  # far
        (huge, torch.where(draw(part, 1) < 0.5, huge.roll(1, 0), boxes)),
        (boxes.round(), boxes.roll(1, 0).round()),  # on the grid of pixels
        (like([2, 3], draw(part, 2) * 4 - 2), boxes),
    ]  # sides that are none
    first, second = (torch.cat(column)[:count] for column in zip(*pairs))
    return first, second


def look(name, pred, target, bounded):
    """Every value and slope is finite, none below 0, and autocast changes nothing."""
    loss = rotated_loss(name)
    answers = []
    for half in (False, True):
        leaf = pred.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            each = loss(leaf, target, encoded=(leaf / 16, target / 16))
            each.sum().backward()
        assert each.dtype == torch.float32
        for what, values in (("value", each), ("slope", leaf.grad)):
            wrong = ~values.isfinite().reshape(len(pred), -1).all(1)
            assert not wrong.any(), (
                f"{name}: {what} of {pred[wrong][0].tolist()} against {target[wrong][0].tolist()}"
            )
        assert each.min() >= -1e-6 and (not bounded or each.max() <= 1 + 1e-6), name
        answers.append((each.detach(), leaf.grad))
    assert torch.equal(answers[0][0], answers[1][0]) and torch.equal(
        answers[0][1], answers[1][1]
    ), f"{name} under autocast"


NAMES = [*KINDS, *LOSSES]
BOUNDED = {
    "iou",
    "iou_square",
    "kld",
    "jd",
    "kld_symmax",
    "kld_symmin",
    "v1_gwd",
    "v1_kld",
    "v1_bcd",
    "probiou",
}


@pytest.mark.parametrize("name", NAMES)
def test_twenty_thousand_nasty_pairs_are_finite(name):
    look(name, *nasty(20_000, 1), name in BOUNDED)


@pytest.mark.long
def test_a_million_nasty_pairs_are_finite():
    """Ten times a hundred thousand, each with its own seed, for every loss there is a name for."""
    for seed in range(10):
        pred, target = nasty(100_000, 100 + seed)
        for name in NAMES:
            look(name, pred, target, name in BOUNDED)


@pytest.mark.parametrize("name", [*FAMILY, "probiou", "kfiou"])
def test_unbent_distances_are_finite_too(name):
    """`none` leaves the slopes as they are: up to 1e28 for slivers that are far off."""
    pred, target = nasty(20_000, 2)
    leaf = pred.clone().requires_grad_()
    loss = {
        **{n: partial(f, fun="none", tau=0.0) for n, f in FAMILY.items()},
        "probiou": partial(gaussian.probiou_loss, mode="l2"),
        "kfiou": gaussian.kfiou,
    }[name]
    each = loss(leaf, target)
    each.sum().backward()
    assert each.isfinite().all() and leaf.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_slopes_agree_with_finite_differences(name):
    """In double precision, on pairs that overlap in general position."""
    dice = torch.Generator().manual_seed(3)
    target = torch.cat(
        [
            torch.rand(8, 2, generator=dice) * 50,
            10 + 30 * torch.rand(8, 2, generator=dice),
            torch.rand(8, 1, generator=dice) * 3,
        ],
        -1,
    ).double()
    pred = target + torch.randn(8, 5, generator=dice).double() * torch.tensor([2, 2, 3, 3, 0.2])
    assert torch.autograd.gradcheck(
        lambda x: rotated_loss(name)(x, target, encoded=(x / 16, target / 16)),
        pred.requires_grad_(),
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.trains
def test_a_head_learns_its_boxes_by_every_loss(name):
    """The same head, only the loss's name differs.

    Thirty steps on one picture's features bring the boxes nearer to their truths.
    """
    from madet.heads.atss import atss_head

    torch.manual_seed(0)
    head = atss_head(2, 16, boxes=Rotated("le90"), strides=(8, 16), depth=1, box_loss=name)
    features = [torch.randn(1, 16, size, size) for size in (16, 8)]
    truths = [
        dict(
            boxes=torch.tensor([[40.0, 50, 60, 20, 0.5], [90, 80, 30, 50, -0.3]]),
            labels=torch.tensor([0, 1]),
        )
    ]
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)

    def overlap():
        predictions = head(features)
        priors, target = head.targets(predictions, [(128, 128)], truths)
        decoded = head.coder.decode(
            priors.boxes[target.prior], predictions.raw[target.image, target.prior]
        )
        return Rotated().iou_paired(decoded, target.boxes).mean().item()

    before = overlap()
    for _ in range(30):
        losses = head.losses(head(features), [(128, 128)], truths)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert overlap() > before + 0.1, (before, overlap())
