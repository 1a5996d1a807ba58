"""Everything that trains, detects or scores, on a second device.

Nothing may mix devices, and numbers agree with the CPU's. The device is the pretended one
(ci/pretend_device.py) unless MADET_TEST_DEVICE names a real one, as ci/gpu does:
`MADET_TEST_DEVICE=cuda python -m pytest ci/tests/test_pretended_device.py`. What is built later
joins by itself (methods, assigners) or fails `test_no_loss_is_forgotten` or
`test_no_metric_is_forgotten` until it has a row here.
"""

import copy
import importlib
import inspect
import os
import pickle
import pkgutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from pretend_device import MixedDevices, PretendedTensor, held_by, pretended_device

import madet.assigners
import madet.losses
import madet.metrics
from madet.assigners.max_iou import PriorPredictions
from madet.boxes.geometry import Rotated, Upright
from madet.boxes.priors import Priors
from madet.data.embedded import embedded
from madet.detectors.dense import named_backbone
from madet.heads.detect import PostprocessConfig
from madet.losses import boxes as box_losses
from madet.losses import focal, gaussian, reduce, rotated
from madet.losses import madet as madet_loss
from madet.methods.load import geometry_of
from madet.methods.names import METHODS, SMALL_BACKBONES, recipe_of
from madet.metrics import coco, dota, errors, slices, voc
from madet.nets import deform
from madet.nets.resnet import batch_norms
from madet.nets.weights import read_weights
from madet.parity.run import results_on
from madet.training import run as run_module
from madet.training.loop import supervised_step

NAMED = os.environ.get("MADET_TEST_DEVICE", "")
ON_CUDA = NAMED.startswith("cuda")
CLASSES = 3
# largest difference from the CPU in units of the largest number of an array; on CUDA in float32 without TF32
LOSS_TOLERANCE = 1e-4 if ON_CUDA else 1e-5
GRADIENT_TOLERANCE = 5e-3 if ON_CUDA else 1e-4
SCORE_TOLERANCE = 1e-3 if ON_CUDA else 1e-4
WEIGHT_TOLERANCE = 5e-2 if ON_CUDA else 2e-3
only_pretended = pytest.mark.skipif(bool(NAMED), reason="about the pretended device itself")


@pytest.fixture
def device():
    """The second device: pretended, or what MADET_TEST_DEVICE names (in float32 without TF32)."""
    if not NAMED:
        with pretended_device() as pretended:
            yield pretended
        return
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    yield torch.device(NAMED)
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def moved(value, device):
    """Tensors in nested dicts, lists and tuples on a device, with the gradient they ask for."""
    if isinstance(value, torch.Tensor):
        return value.detach().to(device).requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return {key: moved(one, device) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(moved(one, device) for one in value)
    return value


def assert_near(ours, reference, tolerance, name=""):
    """Equal shapes, and differences within `tolerance` of the largest number."""
    ours, reference = ours.detach().cpu().double(), reference.detach().cpu().double()
    assert ours.shape == reference.shape, name
    size = max(float(reference.abs().max()), 1e-6) if reference.numel() else 1.0
    apart = float((ours - reference).abs().max()) if reference.numel() else 0.0
    assert apart <= tolerance * size, (
        f"{name}: differs by {apart:.2e}, the largest number is {size:.2e}, tolerance {tolerance:.0e}"
    )


def leaves(value):
    """Tensors in nested dicts, lists and tuples, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return (
        [leaf for one in value for leaf in leaves(one)] if isinstance(value, (list, tuple)) else []
    )


def compare_with_cpu(function, given, device, tolerance=LOSS_TOLERANCE):
    """`function(*given)` and its gradients on the device and on the CPU."""
    answers = []
    for where in (device, torch.device("cpu")):
        here = moved(given, where)
        out = function(*here)
        outs = leaves(out)
        assert outs and all(one.device.type == where.type for one in outs)
        total = sum(one.double().square().sum() for one in outs if one.requires_grad)
        if isinstance(total, torch.Tensor):
            total.backward()
        answers.append(
            outs + [one.grad for one in leaves(here) if one.requires_grad and one.grad is not None]
        )
    assert len(answers[0]) == len(answers[1])
    for number, (ours, reference) in enumerate(zip(*answers)):
        assert_near(ours, reference, tolerance, f"answer {number}")


# the pretended device itself

MIXING = {
    "adding": lambda here, there: here + there,
    "adding in place": lambda here, there: there.add_(here),
    "writing to the CPU": lambda here, there: here.add_(there),
    "a product": lambda here, there: here @ there.T,
    "joining": lambda here, there: torch.cat([here, there]),
    "stacking numbers": lambda here, there: torch.stack([here.sum(), there.sum()]),
    "choosing": lambda here, there: torch.where(here > 0, there, there),
    "a number there beside a CPU tensor": lambda here, there: here * there.sum(),
    "indices there for a CPU tensor": lambda here, there: here[there[0].long() * 0],
    "gathering": lambda here, there: there.gather(0, here.long() * 0),
    "writing CPU values by index": lambda here, there: there.index_put_(
        (torch.tensor([0, 1]),), here[:2]
    ),
    "a layer on the CPU": lambda here, there: torch.nn.Linear(3, 2)(there),
    "a generator": lambda here, there: torch.rand(
        3, generator=torch.Generator(), device=there.device
    ),
    "a generator in place": lambda here, there: there.normal_(generator=torch.Generator()),
    "nms": lambda here, there: torch.ops.torchvision.nms(torch.rand(2, 4), there[0, :2], 0.5),
}
FINE = {
    "a CPU number": lambda here, there: there * torch.tensor(2.0),
    "CPU indices": lambda here, there: (
        there[torch.tensor([0, 1])] + there[[1, 0]] + there[:, [0, 1, 2]][:2]
    ),
    "a CPU mask": lambda here, there: there[torch.tensor([True, False, True, False])],
    "a Python number by index": lambda here, there: there.clone().index_put_(
        (torch.tensor([0]),), torch.tensor(3.0)
    ),
    "assigning a number": lambda here, there: there.clone().__setitem__((slice(None), 0), 5.0),
    "copying": lambda here, there: torch.empty_like(there).copy_(here),
    "coming home": lambda here, there: there.cpu() + here,
    "a new tensor": lambda here, there: (
        there
        + torch.arange(3, device=there.device)
        + there.new_tensor([1.0, 2, 3])
        + torch.tensor([1], device=there.device)
    ),
    "python numbers": lambda here, there: (
        there.tolist(),
        there.sum().item(),
        bool(there.sum() > 100),
        f"{there.sum():.1f}",
        repr(there),
    ),
}


@only_pretended
@pytest.mark.parametrize("name", MIXING)
def test_mixing_raises(device, name):
    here, there = torch.rand(4, 3), torch.rand(4, 3).to(device)
    with pytest.raises((MixedDevices, RuntimeError), match="device"):
        MIXING[name](here, there)


@only_pretended
@pytest.mark.parametrize("name", FINE)
def test_what_cuda_allows_is_allowed(device, name):
    here = torch.rand(4, 3)
    FINE[name](here, here.to(device))


@only_pretended
def test_tensors_there_say_so(device):
    there = torch.rand(2, 3).to(device)
    assert there.device == device and not there.is_cpu and isinstance(there, PretendedTensor)
    for made in (
        there + 1,
        there[0],
        there.new_zeros(2),
        torch.zeros(2, device=device),
        torch.tensor([1], device=device),
        torch.as_tensor(3.0, device=device),
    ):
        assert made.device == device
    assert torch.tensor([1]).device.type == there.cpu().device.type == "cpu"
    for convert in (lambda: there.numpy(), lambda: __import__("numpy").asarray(there)):
        with pytest.raises(TypeError, match="cpu"):
            convert()
    back = pickle.loads(pickle.dumps(there))
    assert torch.equal(back, held_by(there))


@only_pretended
def test_a_tensor_that_slipped_by_is_refused(device):
    slipped = torch._C._VariableFunctions.tensor(
        [1, 2], device=device
    )  # torch.tensor itself, behind its replacement
    with pytest.raises(NotImplementedError, match="without numbers"):
        slipped + 1


@only_pretended
def test_views_and_steps_share_memory(device):
    there = torch.zeros(3, 4).to(device)
    there[1:, :2] = 1
    for row in there:
        row += 1
    there.T[0].mul_(10)
    expected = torch.zeros(3, 4)
    expected[1:, :2] = 1
    expected += 1
    expected[:, 0] *= 10
    assert torch.equal(there.cpu(), expected)


@only_pretended
@pytest.mark.parametrize(
    "make", [torch.optim.SGD, torch.optim.AdamW], ids=lambda kind: kind.__name__
)
def test_a_network_learns_there_as_on_the_cpu(device, make):
    ends = []
    for where in ("cpu", device):
        torch.manual_seed(0)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3),
            torch.nn.BatchNorm2d(4),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(36, 2),
        ).to(where)
        optimizer, x = make(net.parameters(), lr=0.1), torch.rand(5, 3, 5, 5)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast(torch.device(where).type, torch.bfloat16, enabled=False):
                net(x.to(where)).square().mean().backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
        ends.append([value.cpu().float() for value in net.state_dict().values()])
    for ours, reference in zip(*ends):
        assert_near(ours, reference, 1e-5)


@only_pretended
def test_autocast_lowers_products_there(device):
    layer, x = torch.nn.Linear(3, 2).to(device), torch.rand(4, 3).to(device)
    with torch.autocast(device.type, torch.bfloat16):
        out = layer(x)
    assert out.dtype == torch.bfloat16 and layer(x).dtype == torch.float32
    out.float().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


# methods


def scene(geometry):
    """Two images, the second without objects, and their targets."""
    generator = torch.Generator().manual_seed(1)
    images = [
        torch.rand(3, 64, 64, generator=generator),
        torch.rand(3, 64, 48, generator=generator),
    ]
    boxes = torch.tensor([[8.0, 8, 40, 36], [20, 10, 60, 50], [30, 30, 60, 62]])
    turned = geometry.from_upright(boxes)
    if geometry.dim == 5:
        turned = geometry.normalize(turned + torch.tensor([0.0, 0, 0, 0, 0.4]))
    full = dict(
        boxes=turned,
        labels=torch.tensor([1, 2, 0]),
        ignore=torch.tensor([False, False, True]),
        image_id="first",
    )
    empty = dict(
        boxes=turned[:0],
        labels=torch.zeros(0, dtype=torch.int64),
        ignore=torch.zeros(0, dtype=torch.bool),
        image_id="second",
    )
    return images, [full, empty]


def talkative(model):
    """The detector with a threshold so low that an untrained one finds something, and few candidates."""
    for part in model.modules():
        if isinstance(getattr(part, "postprocess", None), PostprocessConfig):
            part.postprocess = replace(part.postprocess, score_threshold=1e-4, nms_pre=30)
        if hasattr(part, "score_thresh"):
            part.score_thresh = 1e-4
            part.topk_candidates = 30
    return model


def build(name, device):
    """An untrained detector of the smallest scale, the same on every device, and its kind of box."""
    method, recipe, own = recipe_of("thimble", {"method": name})
    torch.manual_seed(0)
    return talkative(method.build(recipe, own, CLASSES)).to(device), geometry_of(own)


def step_and_detect(name, device, precision="fp32"):
    """Losses, gradients and detections of a method on a device, all on the CPU."""
    model, geometry = build(name, device)
    images, targets = scene(geometry)
    images, targets = [image.to(device) for image in images], moved(targets, device)
    torch.manual_seed(0)
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16"):
        losses = model.train()(images, targets)
    assert all(value.device.type == torch.device(device).type for value in losses.values())
    sum(losses.values()).backward()
    gradients = {
        key: value.grad.cpu() for key, value in model.named_parameters() if value.grad is not None
    }
    with torch.no_grad():
        found = model.eval()(images)
    assert all(
        value.device.type == torch.device(device).type for one in found for value in one.values()
    )
    return (
        {key: value.detach().cpu() for key, value in losses.items()},
        gradients,
        [{key: value.cpu() for key, value in one.items()} for one in found],
    )


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_and_detects(device, name):
    ours, gradients, found = step_and_detect(name, device)
    losses, expected, known = step_and_detect(name, "cpu")
    assert ours.keys() == losses.keys() and gradients.keys() == expected.keys()
    for key in losses:
        assert_near(ours[key], losses[key], LOSS_TOLERANCE, key)
    largest = max(float(value.abs().max()) for value in expected.values())
    for key in expected:
        apart = float((gradients[key] - expected[key]).abs().max())
        assert apart <= GRADIENT_TOLERANCE * largest, (
            f"gradient of {key} differs by {apart:.1e}, the largest is {largest:.1e}"
        )
    assert sum(len(one["scores"]) for one in found) > 0
    for one, other in zip(found, known):
        few = min(10, len(other["scores"]))
        assert_near(one["scores"][:few], other["scores"][:few], SCORE_TOLERANCE, "scores")


QUICK_BF16 = (
    "atss",
    "madet",
    "faster-rcnn",
)  # the others only on a real device, and under ci/test-long


@pytest.mark.parametrize(
    "name",
    [
        name if name in QUICK_BF16 or NAMED else pytest.param(name, marks=pytest.mark.long)
        for name in METHODS
    ],
)
def test_a_method_in_bf16_stays_finite_and_near(device, name):
    low, gradients, _ = step_and_detect(name, device, "bf16")
    exact, _, _ = step_and_detect(name, device)
    assert all(bool(value.isfinite().all()) for value in [*low.values(), *gradients.values()])
    assert all(value.dtype == torch.float32 for value in low.values())
    total, reference = float(sum(low.values())), float(sum(exact.values()))
    assert abs(total - reference) < 0.05 * reference, f"bf16 {total:.4f}, fp32 {reference:.4f}"


# backbones: methods above have the tiny one; each other that is light enough joins by itself


@pytest.mark.parametrize("norm", ["gn", "bn_frozen_stats"])
@pytest.mark.parametrize("name", [name for name in SMALL_BACKBONES if name != "tiny"])
def test_a_backbone_there_is_the_backbone_here(device, name, norm):
    torch.manual_seed(0)
    net = named_backbone(name, None, norm=norm, out=(2, 3, 4, 5))
    for layer in batch_norms(net):
        layer.running_var.uniform_(0.5, 2)
    pixels = torch.rand(1, 3, 64, 45, generator=torch.Generator().manual_seed(7))
    names, values = zip(*net.named_parameters())

    def call(x, *values):
        there = copy.deepcopy(net).to(x.device)
        return torch.func.functional_call(there, dict(zip(names, values)), (x,))

    compare_with_cpu(call, (pixels, *values), device, GRADIENT_TOLERANCE)


# losses


def pairs(dim, count=7):
    """Predicted (with gradient) and wanted boxes `[count, dim]`, of all relations: equal, near, touching, far."""
    generator = torch.Generator().manual_seed(2)
    center = 20 + 30 * torch.rand(count, 2, generator=generator)
    sides = 5 + 20 * torch.rand(count, 2, generator=generator)
    wanted = torch.cat([center, sides, 0.5 * torch.rand(count, 1, generator=generator)], 1)
    predicted = wanted + torch.randn(count, 5, generator=generator) * torch.tensor(
        [2.0, 2, 1, 1, 0.1]
    )
    predicted[0] = wanted[0] + 0.01
    predicted[1, :2] += 80
    both = [predicted, wanted]
    if dim == 4:
        both = [
            torch.cat([box[:, :2] - box[:, 2:4] / 2, box[:, :2] + box[:, 2:4] / 2], 1)
            for box in both
        ]
    return both[0].requires_grad_(), both[1]


def encoded_loss(name):
    """A rotated loss, with encoded boxes where it needs them."""
    loss = rotated.rotated_loss(name)
    if not rotated.needs_encoded(name):
        return loss
    return lambda pred, target: loss(pred, target, encoded=(pred / 10, target / 10))


LOGITS = torch.randn(7, CLASSES, generator=torch.Generator().manual_seed(3)).requires_grad_()
LABELS = torch.tensor([0, 2, -1, 1, CLASSES, 0, 1])
QUALITY = torch.rand(7, generator=torch.Generator().manual_seed(4))
SOFT = torch.rand(7, CLASSES, generator=torch.Generator().manual_seed(5)) * (LOGITS.detach() > 0)
UPRIGHT = (
    "iou_loss",
    "giou_loss",
    "diou_loss",
    "ciou_loss",
    "eiou_loss",
    "bounded_iou_loss",
    "l1_loss",
    "smooth_l1_loss",
)
LOSSES = {name: (getattr(box_losses, name), pairs(4)) for name in UPRIGHT}
LOSSES |= {
    f"rotated {name}": (encoded_loss(name), pairs(5)) for name in [*rotated.KINDS, *rotated.LOSSES]
}
LOSSES |= {
    "sigmoid_focal": (focal.sigmoid_focal, (LOGITS, LABELS)),
    "sigmoid_focal of shares": (focal.sigmoid_focal, (LOGITS, (SOFT > 0).float())),
    "quality_focal": (focal.quality_focal, (LOGITS, LABELS, QUALITY)),
    "varifocal": (focal.varifocal, (LOGITS, SOFT)),
    "cross_entropy": (focal.cross_entropy, (LOGITS, LABELS.clamp(0, CLASSES - 1))),
    "binary_cross_entropy": (focal.binary_cross_entropy, (LOGITS, SOFT)),
    "distribution_focal": (focal.distribution_focal, (LOGITS, QUALITY)),
    "weighted_focal": (
        madet_loss.weighted_focal,
        (LOGITS, LABELS, QUALITY.clone().requires_grad_()),
    ),
    "quality_transform": (madet_loss.quality_transform, (QUALITY.clone().requires_grad_(),)),
    "ratio_weights": (
        madet_loss.ratio_weights,
        (torch.stack([QUALITY, QUALITY.flip(0)]).requires_grad_(),),
    ),
    "weighted_sum": (reduce.weighted_sum, (LOGITS, QUALITY, QUALITY.sum())),
    "mean_over_ranks": (reduce.mean_over_ranks, (QUALITY.sum(),)),
    "kfiou": (gaussian.kfiou, pairs(5)),
    "gaussians": (gaussian.gaussians, pairs(5)[:1]),
}
THROUGH_NAMES = {
    getattr(loss, "func", loss).__name__ for loss, _ in rotated.LOSSES.values()
}  # tried as "rotated ..."
NO_LOSSES = {"at_least_float32", "overlap_loss", "rotated_loss", "default_weight", "needs_encoded"}


def public_functions(package):
    """{name: function} of all public functions that the modules of a package define."""
    found = {}
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        module = importlib.import_module(info.name)
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value) and value.__module__ == module.__name__:
                found[name] = value
    return found


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_there_is_the_loss_here(device, name):
    function, given = LOSSES[name]
    compare_with_cpu(function, given, device)


@pytest.mark.parametrize(
    "name", [name for name in LOSSES if name in UPRIGHT or name.startswith("rotated")]
)
def test_a_box_loss_of_nothing(device, name):
    function, given = LOSSES[name]
    compare_with_cpu(
        function, [box[:0].detach().requires_grad_(box.requires_grad) for box in given], device
    )


def test_no_loss_is_forgotten():
    missing = (
        public_functions(madet.losses).keys()
        - {name.split()[0] for name in LOSSES}
        - THROUGH_NAMES
        - NO_LOSSES
    )
    assert not missing, (
        f"give {', '.join(sorted(missing))} a row in LOSSES, so that it is tried on a second device"
    )


# assigners


def priors_of(geometry):
    """Square anchors on two levels."""
    boxes, sizes = [], []
    for stride, side in ((8, 8), (16, 4)):
        at = (torch.arange(side) + 0.5) * stride
        center = torch.stack(torch.meshgrid(at, at, indexing="xy"), -1).reshape(-1, 2)
        boxes.append(torch.cat([center - 2 * stride, center + 2 * stride], 1))
        sizes.append(len(center))
    return Priors(geometry.from_upright(torch.cat(boxes)), tuple(sizes), (8, 16))


def is_assigner(function) -> bool:
    """Does it match priors with truths?"""
    return {"priors", "truths", "geometry", "ignored"} <= inspect.signature(
        function
    ).parameters.keys()


ASSIGNERS = {
    name: function
    for name, function in public_functions(madet.assigners).items()
    if is_assigner(function) and name != "ask"
}


@pytest.mark.parametrize("truths", ["some", "none"])
@pytest.mark.parametrize(
    "geometry", [Upright(), Rotated("le90")], ids=lambda geometry: geometry.name
)
@pytest.mark.parametrize("name", ASSIGNERS)
def test_an_assigner_there_matches_as_here(device, name, geometry, truths):
    assign = ASSIGNERS[name]
    answers = []
    generator = torch.Generator().manual_seed(6)
    priors = priors_of(geometry)
    boxes = geometry.from_upright(torch.tensor([[6.0, 6, 35, 30], [30, 12, 50, 60]]))
    boxes = boxes[: 2 if truths == "some" else 0]
    ignored = geometry.from_upright(torch.tensor([[40.0, 40, 64, 64]]))
    logits = torch.randn(len(priors), CLASSES, generator=generator)
    labels = torch.tensor([2, 0])[: len(boxes)]
    for where in (device, torch.device("cpu")):
        wraps = "assign" in inspect.signature(assign).parameters
        rule = partial(assign, ASSIGNERS["atss"]) if wraps else assign
        matched = rule(
            priors.to(priors.boxes.to(where)),
            boxes.to(where),
            geometry,
            ignored=ignored.to(where),
            predictions=PriorPredictions(logits.to(where), labels.to(where)),
        )
        assert matched.device.type == where.type
        answers.append(matched.cpu())
    assert torch.equal(*answers) and ((answers[0] >= 0).any() or truths == "none")


# geometry and layers

GEOMETRY = {
    "iou": lambda g, a, b: g.iou(a, b),
    "iof": lambda g, a, b: g.iof(a, b),
    "paired": lambda g, a, b: g.iou_paired(a, b),
    "areas": lambda g, a, b: g.areas(a),
    "valid": lambda g, a, b: g.valid(a),
    "distances": lambda g, a, b: g.side_distances(g.parts(a)[0], b),
    "hard nms": lambda g, a, b: g.nms(a, a[:, 0] / 100, 0.3),
    "nms by class": lambda g, a, b: g.nms(a, a[:, 0] / 100, 0.3, (a[:, 1] > 30).long()),
    "soft nms": lambda g, a, b: g.nms(a, a[:, 0] / 100, 0.3, (a[:, 1] > 30).long(), "linear"),
    "softer nms": lambda g, a, b: g.nms(a, a[:, 0] / 100, 0.3, (a[:, 1] > 30).long(), "gaussian"),
    "clipping": lambda g, a, b: g.clip(a, (50, 40)),
    "turning": lambda g, a, b: g.warp(a, a.new_tensor([[0.8, -0.6, 3], [0.6, 0.8, 1], [0, 0, 1]])),
    "shearing": lambda g, a, b: g.warp(a, a.new_tensor([[1, 0.4, 3], [0, 0.8, 1], [0, 0, 1]])),
    "hulls": lambda g, a, b: g.enclosing_upright(a),
    "corners and back": lambda g, a, b: g.enclosing_upright(g.from_quads(g.corners(a))),
    "from hulls": lambda g, a, b: g.from_upright(a[:, :4]),
}


@pytest.mark.parametrize(
    "geometry",
    [Upright(), Rotated("le90"), Rotated("oc"), Rotated("le135")],
    ids=lambda geometry: geometry.name,
)
@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry_there_is_geometry_here(device, name, geometry):
    a, b = (box.detach() for box in pairs(geometry.dim, 40))
    compare_with_cpu(lambda a, b: GEOMETRY[name](geometry, a, b), (a, b), device)


@pytest.mark.parametrize("way", ["_kernel", "_gathered"])
def test_deformable_convolution_by_either_way(device, way, monkeypatch):
    if way == "_kernel" and device.type not in deform._KERNEL_ON | {"cpu"}:
        pytest.skip(f"this torchvision has no kernel for {device.type}")
    torch.manual_seed(0)
    layer, x = deform.DeformConv(8, 6, deform_groups=2), torch.randn(2, 8, 6, 7)
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.2)
    names, values = zip(*layer.named_parameters())
    monkeypatch.setattr(deform, "_way", lambda device: getattr(deform, way))

    def call(x, *values):
        return torch.func.functional_call(layer, dict(zip(names, values)), (x,))

    compare_with_cpu(call, (x.requires_grad_(), *values), device, 1e-3 if ON_CUDA else 1e-5)


def test_who_convolves_where():
    assert deform._way(torch.device("cpu")) is deform._gathered
    assert (
        deform._way(torch.device("meta")) is deform._kernel
    )  # torchvision registers shapes for it
    assert (
        deform._way(torch.device("hpu")) is deform._gathered
    )  # a device of which torchvision knows nothing


# metrics


def scored(geometry):
    """Truths and results of two images as the scorers take them."""
    predicted, wanted = (box.detach() for box in pairs(geometry.dim, 8))
    labels = torch.arange(8) % CLASSES
    truths = [
        dict(
            image_id=i,
            width=100,
            height=100,
            boxes=wanted[4 * i : 4 * i + 4],
            labels=labels[4 * i : 4 * i + 4],
            ignore=torch.tensor([False, False, True, False]),
        )
        for i in (0, 1)
    ]
    results = [
        dict(
            image_id=i,
            boxes=predicted[4 * i : 4 * i + 4],
            labels=labels[4 * i : 4 * i + 4],
            scores=torch.linspace(0.9, 0.2, 4),
        )
        for i in (0, 1)
    ]
    return truths, results


def kinds_of_mistakes(truths, results, classes):
    """Numbers of right detections and mistakes by class."""
    return errors.count_kinds(errors.classify_all_errors(truths, results, Upright()), classes)


SCORES = {
    "coco_score": (coco.coco_score, Upright()),
    "voc_score": (voc.voc_score, Upright()),
    "dota_score": (dota.dota_score, Rotated("le90")),
    "dota_score upright": (dota.dota_score, Upright()),
    "slice_scores": (slices.slice_scores, Upright()),
    "slice_scores rotated": (
        partial(slices.slice_scores, geometry=Rotated("le90")),
        Rotated("le90"),
    ),
    "sort_all": (kinds_of_mistakes, Upright()),
}


def plain_numbers(score):
    """Of a score the numbers, texts and dicts of them."""
    if isinstance(score, dict):
        return {
            key: plain_numbers(value)
            for key, value in score.items()
            if isinstance(value, (dict, int, float, str, type(None)))
        }
    return score


@pytest.mark.parametrize("name", SCORES)
def test_a_metric_of_tensors_there(device, name):
    score, geometry = SCORES[name]
    truths, results = scored(geometry)
    assert repr(
        plain_numbers(score(moved(truths, device), moved(results, device), ("a", "b", "c")))
    ) == repr(plain_numbers(score(truths, results, ("a", "b", "c"))))


def test_no_metric_is_forgotten():
    names = {
        name
        for name, function in public_functions(madet.metrics).items()
        if {"truths", "results", "classes"} <= inspect.signature(function).parameters.keys()
        and name.endswith(("score", "scores"))
    }
    assert names <= {name.split()[0] for name in SCORES}, (
        "give it a row in SCORES, so that it is tried on a second device"
    )


# the recorded numbers of the original code

QUICK_CASES = ("anchors", "centerness", "coder_delta_xywh", "deform_conv", "nms", "rotated_nms")
FIXTURES = sorted(path.stem for path in (Path(__file__).parents[1] / "golden").glob("*.npz"))


@pytest.mark.parametrize(
    "case",
    [
        case if case in QUICK_CASES else pytest.param(case, marks=pytest.mark.long)
        for case in FIXTURES
    ],
)
def test_recorded_numbers_hold_there(device, root, case):
    for result in results_on(str(device), root / "ci/golden", [case]):
        assert result.ok, result.trouble or [check.name for check in result.checks if not check.ok]


# the loop

OPTIONS = {
    "plain": dict(method="atss"),
    "every trick": dict(
        method="fcos", ema=0.9, accumulate=2, clip_norm=1.0, optimizer="sgd", lr=0.001, flips="all"
    ),
    "bf16": dict(method="madet", precision="bf16"),
    "rotated": dict(method="rotated-atss", turns="-30..30"),
    "two stages": dict(method="faster-rcnn"),
}


def train_briefly(out, device, steps, resume=False, step_fn=supervised_step, **options):
    """A run of the real loop on a few drawn scenes, with evaluation and checkpoints; the weights that it keeps."""
    small = dict(
        data="embedded",
        level="easy",
        image_size="64",
        total_batch=2,
        lr_batch=2,
        warmup=1,
        log_every=1,
        workers=0,
        save_every=2,
        eval_every=2,
    )
    method, recipe, own = recipe_of("thimble", small | dict(steps=steps) | options)
    metrics = run_module.run(
        recipe,
        own,
        method.build,
        out,
        resume=resume,
        device=str(device),
        geometry=geometry_of(own),
        step_fn=step_fn,
    )
    assert metrics["steps"] == steps and "AP" in metrics["test"]
    return read_weights(out / "best.safetensors")


def assert_weights_near(ours, reference):
    """The same tensors, up to a share of the largest weight.

    Not of each tensor's own: Adam makes a whole step of the sign of the smallest gradient.
    """
    assert ours.keys() == reference.keys()
    largest = max(float(value.float().abs().max()) for value in reference.values())
    for key, value in reference.items():
        apart = float((ours[key].float() - value.float()).abs().max())
        assert apart <= WEIGHT_TOLERANCE * largest, (
            f"{key} differs by {apart:.1e} after training, the largest weight is {largest:.1e}"
        )


@pytest.fixture
def few_scenes(monkeypatch):
    """The embedded set with two scenes a split."""
    monkeypatch.setattr(run_module, "embedded", partial(embedded, count=2))


@pytest.mark.parametrize("name", OPTIONS)
def test_the_loop_trains_there_as_here(device, few_scenes, tmp_path, name):
    ours = train_briefly(tmp_path / "there", device, 3, **OPTIONS[name])
    if name == "bf16":
        assert all(bool(value.isfinite().all()) for value in ours.values())
        return
    reference = train_briefly(tmp_path / "here", "cpu", 3, **OPTIONS[name])
    assert_weights_near(ours, reference)


def test_a_run_goes_on_there(device, few_scenes, tmp_path):
    straight = train_briefly(tmp_path / "straight", device, 4)

    def stopping(state, batch):
        if state.step == 3:  # one step after the checkpoint
            raise KeyboardInterrupt
        return supervised_step(state, batch)

    with pytest.raises(KeyboardInterrupt):
        train_briefly(tmp_path / "halted", device, 4, step_fn=stopping)
    resumed = train_briefly(tmp_path / "halted", device, 4, resume=True)
    assert_weights_near(resumed, straight)
