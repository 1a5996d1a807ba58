"""What `ci/bench` compares, part by part. A part yields contests; their sides are made only where they run."""

import copy
import itertools
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from bench import Contest, by_turns


def wanted(options):
    """Pairs of place and class that pass the score threshold in infer, for every detector."""
    return 100 if options.backbone == "tiny" else 1000


def shared_data(name):
    """A folder of real images, or None."""
    here = (
        Path(os.environ.get("MADET_SHARED") or Path(__file__).resolve().parents[2] / "shared")
        / "data"
        / name
    )
    return here if here.is_dir() else None


def unable(part, options):
    """Why a part cannot run here; None if it can."""
    if (
        options.device == "cuda"
        and part in ("train", "infer", "madet", "rotated")
        and not torch.cuda.is_available()
    ):
        return "there is no CUDA device that torch can use on this machine"
    return None


def contests(part, options, skipped):
    """The contests of a part; what has to be left out is added to `skipped`."""
    from bench_rotated import rotated

    return {
        "rotated": rotated,
        "assign": assign,
        "import": imports,
        "train": train,
        "infer": infer,
        "deform": deform,
        "madet": madet,
        "data": data,
        "score": score,
    }[part](options, skipped)


def boxes_inside(count, height, width, seed=0):
    """`count` boxes xyxy float32 inside a picture: sides from a fiftieth to two thirds of it, evenly on a log scale."""
    random = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height], dtype=torch.float32)
    sides = size * (1 / 50) * (50 * 2 / 3) ** torch.rand(count, 2, generator=random)
    corner = torch.rand(count, 2, generator=random) * (size - sides)
    return torch.cat([corner, corner + sides], 1)


# ---------------------------------------------------------------- assign


def pyramid(options, **grid):
    """Anchors of the padded picture on strides 8 to 128."""
    from madet.nets.anchors import AnchorGrid

    height, width = (-(-side // 32) * 32 for side in options.picture)
    grid = AnchorGrid(**grid)
    return grid([(-(-height // s), -(-width // s)) for s in grid.strides])


def atss_sides(options, count):
    """ATSS, and the plain way to its first step alone, as rows of anchors or of truths."""
    from madet.assigners.atss import atss

    priors, truths = pyramid(options), boxes_inside(count, *options.picture)
    centers, targets = ((b[:, :2] + b[:, 2:]) / 2 for b in (priors.boxes, truths))
    k = min(9, len(priors))
    return priors, {
        "madet's whole ATSS": lambda: partial(atss, priors, truths),
        "cdist [A, G] + topk(9)": lambda: (
            lambda: torch.cdist(centers, targets).topk(k, dim=0, largest=False)
        ),
        "cdist [G, A] + topk(9)": lambda: (
            lambda: torch.cdist(targets, centers).topk(k, dim=1, largest=False)
        ),
    }


def max_iou_sides(options, count):
    """Max-IoU with RetinaNet's numbers, here and in torchvision."""
    from torchvision.models.detection._utils import Matcher
    from torchvision.ops import box_iou

    from madet.assigners.max_iou import max_iou
    from madet.nets.anchors import octave_scales

    priors = pyramid(options, scales=octave_scales(), ratios=(0.5, 1.0, 2.0))
    truths = boxes_inside(count, *options.picture)
    matcher = Matcher(0.5, 0.4, allow_low_quality_matches=True)
    return priors, {
        "madet's max-IoU": lambda: partial(max_iou, priors, truths),
        "torchvision's box_iou + Matcher": lambda: lambda: matcher(box_iou(truths, priors.boxes)),
    }


def assign(options, skipped):
    """Assignment on the pyramid of an 800x1333 picture; memory at the largest count, and where truths are very many."""
    size, aims = "x".join(map(str, options.picture)), {50: 0.75, 500: 0.6}
    for count in options.truths:
        priors, sides = atss_sides(options, count)
        yield Contest(
            "assign",
            f"ATSS, {size}, {len(priors):,} anchors, {count} truths",
            sides,
            aims.get(count),
            memory=count == max(options.truths),
        )
    for count in options.truths:
        priors, sides = max_iou_sides(options, count)
        yield Contest(
            "assign",
            f"max-IoU, {size}, {len(priors):,} anchors, {count} truths",
            sides,
            memory=count == max(options.truths),
        )
    for name, make in ("ATSS", atss_sides), ("max-IoU", max_iou_sides):
        priors, sides = make(options, options.many)
        ours = dict(itertools.islice(sides.items(), 1))
        yield Contest(
            "assign",
            f"{name}, {size}, {len(priors):,} anchors, {options.many:,} truths, memory",
            ours,
            timed=False,
            memory_aim=1000.0,
        )


# ---------------------------------------------------------------- import


def imports(options, skipped):
    """A fresh interpreter each time, start included."""

    def start(text):
        return lambda: partial(
            subprocess.run, [sys.executable, "-c", text], check=True, stdin=subprocess.DEVNULL
        )

    for name in ("madet", "madet.detectors.dense"):
        yield Contest(
            "import",
            f"import {name}",
            {
                name: start(f"import {name}"),
                "torch and torchvision": start("import torch, torchvision"),
            },
            aim=1.3,
            memory=False,
        )


# ---------------------------------------------------------------- train, infer


def detectors(options):
    """{name: maker} of ATSS and of torchvision's two on one and the same backbone.

    Backbone: a ResNet with frozen BatchNorm, its stem and first stage frozen too, as published detectors
    train it (torchvision:
    trainable_layers=3); pyramids and heads are each method's own and train."""
    from madet.detectors.dense import atss_detector
    from madet.detectors.torchvision import tv_fcos, tv_retinanet

    builds = {
        "madet's ATSS": atss_detector,
        "torchvision's RetinaNet": tv_retinanet,
        "torchvision's FCOS": tv_fcos,
    }
    return {name: partial(made, build, options) for name, build in builds.items()}


def made(build, options):
    """A detector on the backbone of the options, drawn from one seed."""
    from madet.nets.resnet import resnet

    torch.manual_seed(0)
    body = (
        "tiny"
        if options.backbone == "tiny"
        else resnet(options.backbone, norm="frozen", frozen_stages=1)
    )
    model = build(options.classes, backbone=body)
    return model.to(
        options.device,
        memory_format=torch.channels_last if options.channels_last else torch.preserve_format,
    )


def body_of(model):
    """The backbone of either kind of detector."""
    return model.backbone if hasattr(model, "backbone") else model.model.backbone.body


def pictures(count, height, width, device):
    """Noise in 0..1, the same for everybody."""
    random = torch.Generator().manual_seed(1)
    return [torch.rand(3, height, width, generator=random).to(device) for _ in range(count)]


def training_work(make, options, images, bf16=False):
    """A step with SGD at learning rate zero: all of its work, and every repeat starts from the same weights."""
    model = make().train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9, weight_decay=1e-4, fused=True)
    height, width = images[0].shape[-2:]
    targets = []
    for number in range(len(images)):
        labels = torch.arange(10, device=options.device) % options.classes
        targets.append(
            dict(boxes=boxes_inside(10, height, width, number).to(options.device), labels=labels)
        )

    def work():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(options.device, torch.bfloat16, enabled=bf16):
            losses = model(images, targets)
        sum(losses.values()).backward()
        optimizer.step()

    body = [name for name, p in body_of(model).named_parameters() if p.requires_grad]
    work.facts = dict(
        trained_backbone_tensors=len(body), trained_parameters=sum(p.numel() for p in trained)
    )
    work.model = model
    return work


def matrix_rate(device, dtype):
    """TFLOP/s of a large matrix product, the best of several; on the CPU also of a large 3x3 convolution,
    whose library is another.

    The CPU's is counted in processor time of each thread, as are the shares of it: a neighbour stretches the clock."""
    n = 8192 if device == "cuda" else 1536
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    works = [(lambda: a @ b, 2 * n**3)]
    if device == "cpu":
        maps, kernel = (
            torch.randn(s).contiguous(memory_format=torch.channels_last)
            for s in ((1, 256, 80, 80), (256, 256, 3, 3))
        )
        works += [
            (
                lambda: torch.nn.functional.conv2d(maps, kernel, padding=1),
                2 * 80 * 80 * 256 * 256 * 9,
            )
        ]
    with torch.inference_mode():
        times = [
            (sample, done)
            for work, done in works
            for sample in by_turns(dict(work=work), 0, 6, wait=wait)["work"]
        ]
    return (
        max(
            done / (wall if device == "cuda" else cpu / torch.get_num_threads())
            for (wall, cpu), done in times
        )
        / 1e12
    )


def kinds(options):
    """(words, bf16, matrix rate) to run; on CUDA products and convolutions in float32 may both use TF32."""
    if options.device == "cpu":
        return [("fp32", False, matrix_rate("cpu", torch.float32))]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return [
        (words, bf16, matrix_rate("cuda", dtype))
        for words, bf16, dtype in (
            ("fp32, TF32 allowed", False, torch.float32),
            ("bf16", True, torch.bfloat16),
        )
    ]


def said_of(rate, options):
    frozen = (
        "nothing frozen"
        if options.backbone == "tiny"
        else "equal backbones: frozen BatchNorm, stem and layer1 frozen"
    )
    return {
        "matrix rate": f"{rate:.3g} TFLOP/s",
        "layers": f"{frozen}; {'channels_last' if options.channels_last else 'contiguous'}",
    }


def train(options, skipped):
    """A training step; on CUDA also at full picture size, where the device has something to do."""
    sizes = [(options.batch, options.side, options.side)]
    if options.device == "cuda":
        sizes += [(16, 800, 1344)] if options.backbone != "tiny" else []
    for words, bf16, rate in kinds(options):
        for count, height, width in sizes:
            images = pictures(count, height, width, options.device)
            sides = {
                name: partial(training_work, make, options, images, bf16)
                for name, make in detectors(options).items()
            }
            yield Contest(
                "train",
                f"a step of {count} images {height}x{width}, {options.backbone}, {options.device} {words}",
                sides,
                1.0,
                count,
                rate=rate,
                facts=said_of(rate, options),
            )


def raw_scores(model, image):
    """Class logits `[A, C]`, quality logits `[A, 1]` or None where only class scores pass the threshold, the
    threshold, its power, and the layer of the logits.

    The power is .5 where the threshold holds for the root of the product of both."""
    if hasattr(model, "backbone"):
        pixels, _, _ = model.pixels.batch([image])
        found = model.head(model.features(pixels))
        if isinstance(found, list):  # MADet: two branches, and the product decides
            return (
                torch.cat([f.logits[0] for f in found]),
                torch.cat([f.quality[0] for f in found])[:, None],
                model.head.postprocess.score_threshold,
                1.0,
                model.head.class_out,
            )
        return (
            found.logits[0],
            None,
            model.head.postprocess.score_threshold,
            1.0,
            model.head.class_out,
        )
    from madet.detectors.detector import IMAGENET

    pixels, _, _ = IMAGENET.batch([image])
    found = model.model.head(list(model.model.backbone(pixels).values()))
    quality = found["bbox_ctrness"][0] if "bbox_ctrness" in found else None
    return (
        found["cls_logits"][0],
        quality,
        model.model.score_thresh,
        0.5,
        model.model.head.classification_head.cls_logits,
    )


@torch.no_grad()
def equal_passing(model, image, count):
    """Shift the class bias until `count` pairs of place and class pass the detector's own score threshold.

    Gives their number.
    """
    logits, quality, threshold, power, layer = raw_scores(model, image)

    def passing(shift):
        score = (logits + shift).sigmoid()
        score = score if quality is None else (score * quality.sigmoid()) ** power
        return int((score > threshold).sum())

    low, high = -30.0, 30.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if passing(middle) < count else (low, middle)
    layer.bias += high
    return passing(high)


def inference_work(make, options, image, bf16=False):
    """Detections of one picture; as many candidates for every detector."""
    model = make().eval()
    passed = equal_passing(model, image, wanted(options))

    @torch.inference_mode()
    def work():
        with torch.autocast(options.device, torch.bfloat16, enabled=bf16):
            return model([image])

    work.facts = dict(candidates=passed, detections=len(work()[0]["boxes"]))
    return work


def infer(options, skipped):
    """Detection of one picture."""
    image = pictures(1, *options.picture, options.device)[0]
    for words, bf16, rate in kinds(options):
        sides = {
            name: partial(inference_work, make, options, image, bf16)
            for name, make in detectors(options).items()
        }
        yield Contest(
            "infer",
            f"1 image {'x'.join(map(str, options.picture))}, {options.backbone}, {options.device} {words}",
            sides,
            1.0,
            1,
            rate=rate,
            facts=said_of(rate, options)
            | {
                "scores": f"class bias set so that {wanted(options):,} pairs of place and class pass the threshold"
            },
        )


# ---------------------------------------------------------------- deform


def deformable_work(call, channels, height, width, seed=0):
    """A modulated 3x3 deformable convolution, forward and backward, with offsets of about two cells."""
    random = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=random)  # noqa: E731
    x = draw(1, channels, height, width)
    offset = 2 * draw(1, 18, height, width)
    weight = draw(channels, channels, 3, 3) / 48
    mask = torch.rand(1, 9, height, width, generator=random)
    into = draw(1, channels, height, width)
    tensors = [t.requires_grad_() for t in (x, offset, weight, mask)]
    return lambda: torch.autograd.grad(call(*tensors), tensors, into)


def deform(options, skipped):
    """MADet's convolution at the size of one picture's stride 16, against torchvision's kernel for the CPU."""
    from torchvision.ops import deform_conv2d

    from madet.nets.deform import deform_conv

    calls = {
        "madet's gather": deform_conv,
        "torchvision's kernel": lambda x, offset, weight, mask: deform_conv2d(
            x, offset, weight, padding=1, mask=mask
        ),
    }
    channels, (height, width) = options.channels, options.map
    ours, theirs = (deformable_work(call, channels, height, width)() for call in calls.values())
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs))
    yield Contest(
        "deform",
        f"{channels} channels on {height}x{width}, forward and backward, {options.threads} thread(s)",
        {
            name: partial(deformable_work, call, channels, height, width)
            for name, call in calls.items()
        },
        0.2,
        facts={"largest difference of a gradient, relative": f"{error:.0e}"},
    )


# ---------------------------------------------------------------- madet


def twins(options):
    """{name: maker} of MADet and of ATSS on one and the same backbone, frozen as in `detectors`."""
    from madet.detectors.dense import atss_detector
    from madet.detectors.madet import madet_detector as constructor

    return {
        "madet's MADet": partial(made, constructor, options),
        "madet's ATSS": partial(made, atss_detector, options),
    }


def madet(options, skipped):
    """A training step, detection of one picture, and where MADet's step goes.

    At most 1.6 times ATSS's time, 2 in bf16.
    """
    import bench_profile

    sizes = [(options.batch, options.side, options.side)] + [(16, 800, 1344)] * (
        options.device == "cuda" and options.backbone != "tiny"
    )
    picture = pictures(1, *options.picture, options.device)[0]
    makers = twins(options)
    for words, bf16, rate in kinds(options):
        where, aim = f"{options.backbone}, {options.device} {words}", 2.0 if bf16 else 1.6
        for count, height, width in sizes:
            images = pictures(count, height, width, options.device)
            sides = {
                name: partial(training_work, make, options, images, bf16)
                for name, make in makers.items()
            }
            yield Contest(
                "madet",
                f"a step of {count} images {height}x{width}, {where}",
                sides,
                aim,
                count,
                facts=said_of(rate, options),
            )
            ours = dict(itertools.islice(sides.items(), 1))
            yield Contest(
                "madet",
                f"where such a step goes, {where}",
                ours,
                timed=False,
                memory=False,
                facts=bench_profile.parts_of_step(next(iter(ours.values()))(), options),
            )
        sides = {
            name: partial(inference_work, make, options, picture, bf16)
            for name, make in makers.items()
        }
        yield Contest(
            "madet",
            f"1 image {'x'.join(map(str, options.picture))}, {where}",
            sides,
            aim,
            1,
            facts=said_of(rate, options),
        )


# ---------------------------------------------------------------- data


def drain(stream):
    for _ in stream:
        pass


def pipeline(dataset, image_size, count):
    """The training batches of the loop: read, resize, mirror half of them, float."""
    from madet.data.augment import Compose, RandomFlip
    from madet.data.batches import Batches
    from madet.training.evaluate import resizing

    return Batches(dataset, Compose((resizing(image_size), RandomFlip())), 4, workers=0), math.ceil(
        count / 4
    )


def torchvision_pipeline(dataset, indices, side):
    """The same images with torchvision's own reader and transforms."""
    from torchvision import tv_tensors
    from torchvision.io import decode_image
    from torchvision.transforms import v2

    move = v2.Compose(
        [
            v2.Resize(None, max_size=side),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )

    def work():
        for index in indices:
            record = dataset.records[index]
            image = tv_tensors.Image(decode_image(str(record.path), mode="RGB"))
            move(
                image,
                tv_tensors.BoundingBoxes(
                    record.objects.boxes, format="XYXY", canvas_size=image.shape[-2:]
                ),
            )

    return work


def data(options, skipped):
    """Images a second of one core."""
    from madet.data.embedded import embedded

    count, seeds = options.pictures, itertools.count(100)

    def drawing():
        def work():
            batches, steps = pipeline(embedded(seed=next(seeds), count=count), "96", count)
            drain(batches.stream(0, steps))

        return work

    def again():
        batches, steps = pipeline(embedded(count=count), "96", count)
        return lambda: drain(batches.stream(0, steps))

    for words, make in (("drawn before", again), ("drawn now", drawing)):
        yield Contest(
            "data",
            f"{count} images of the embedded set at 96 px, {words}, one core",
            {"madet's batches": make},
            images=math.ceil(count / 4) * 4,
        )
    folder = shared_data("bccd")
    if folder is None:
        skipped.append(
            dict(part="data", why="no bccd in $MADET_SHARED/data, so real images were not timed")
        )
        return
    from madet.data.open_folder import open_data

    dataset = open_data(folder, "train")

    def ours():
        batches, steps = pipeline(dataset, "320", count)
        return lambda: drain(batches.stream(0, steps))

    def theirs():
        batches, steps = pipeline(dataset, "320", count)
        return torchvision_pipeline(
            dataset, [index for step in range(steps) for index in batches.whole(step)], 320
        )

    yield Contest(
        "data",
        f"{count} images of BCCD at 320 px, one core",
        {"madet's batches": ours, "torchvision's decode and v2 transforms": theirs},
        images=math.ceil(count / 4) * 4,
    )


# ---------------------------------------------------------------- score


def scene(images, seed=0):
    """A COCO truth of 7.2 objects an image and 100 detections an image, a few of them right; 80 classes."""
    random = torch.Generator().manual_seed(seed)
    counts = torch.poisson(torch.full((images,), 7.2), generator=random).int().tolist()
    truth = dict(
        images=[dict(id=i, width=640, height=480) for i in range(images)],
        annotations=[],
        categories=[dict(id=c, name=f"class {c}") for c in range(1, 81)],
    )
    results = []
    for image, count in enumerate(counts):
        boxes = boxes_inside(count, 480, 640, 2 * image)
        labels = torch.randint(1, 81, (count,), generator=random)
        shaken = boxes + torch.randn(count, 4, generator=random) * 4
        others = boxes_inside(100 - count, 480, 640, 2 * image + 1)
        found = torch.cat([shaken, others]).clamp(min=0)
        found[:, 2:] = torch.maximum(found[:, 2:], found[:, :2] + 1)
        names = torch.cat([labels, torch.randint(1, 81, (100 - count,), generator=random)])
        scores = torch.rand(100, generator=random).double()
        for (where, what), to in (
            ((boxes, labels), truth["annotations"]),
            ((found, names), results),
        ):
            for box, label in zip(
                torch.cat([where[:, :2], where[:, 2:] - where[:, :2]], 1).tolist(), what.tolist()
            ):
                to.append(dict(image_id=image, category_id=label, bbox=box))
        for one, s in zip(results[-100:], scores.tolist()):
            one["score"] = s
    for number, one in enumerate(truth["annotations"], 1):
        one |= dict(id=number, iscrowd=0, area=one["bbox"][2] * one["bbox"][3])
    return truth, results


def reference(truth, results):
    """pycocotools by itself, results loaded as its users do."""
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.copy(truth)
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes([dict(one) for one in results]), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats


def score(options, skipped):
    """COCO's twelve numbers of 100 detections an image."""
    import importlib.util

    from madet.metrics.coco import KEYS, score_dicts

    truth, results = scene(options.scored)
    sides = {}
    if importlib.util.find_spec("faster_coco_eval"):
        sides["madet with faster-coco-eval"] = lambda: partial(
            score_dicts, truth, results, backend="faster"
        )
    else:
        skipped.append(
            dict(part="score", why="faster-coco-eval is not installed (pip install 'madet[fast]')")
        )
    sides["madet with pycocotools"] = lambda: partial(
        score_dicts, truth, results, backend="pycocotools"
    )
    sides["pycocotools alone"] = lambda: partial(reference, truth, results)
    facts = {}
    if options.scored <= 500:
        theirs = dict(zip(KEYS, reference(truth, results).tolist()))
        ours = next(iter(sides.values()))()()
        gap = max(abs((-1 if ours[key] is None else ours[key]) - theirs[key]) for key in KEYS)
        facts = {
            "largest difference of the twelve numbers from pycocotools": f"{gap:.1e}",
            "AP": f"{ours['AP']:.3f}",
        }
    yield Contest(
        "score",
        f"{options.scored:,} images, {len(truth['annotations']):,} objects, {len(results):,} detections",
        sides,
        once=True,
        warm=False,
        facts=facts,
    )
