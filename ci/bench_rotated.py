"""The part `rotated` of `ci/bench`: overlaps, suppression, assignment and scores of rotated boxes.

Against torchvision's kernel for overlaps (degrees counter-clockwise; where the installed version has it),
shapely, and, with
`--device cuda`, our own path on the CPU. Aims: overlaps never slower than that kernel; 10,000 boxes
suppressed within 1 s; rotated
ATSS with 50 truths within 30 ms."""

import inspect
import itertools
from functools import partial

import numpy as np
import torch
from bench import Contest

OURS, KERNEL, CLIPPER = "madet", "torchvision's kernel", "shapely"
SUPPRESSED = {10_000: 1000.0}  # ms
ASSIGNED = {50: 30.0}  # ms


def turned(count, room=40.0, seed=0):
    """`count` boxes cxcywhr with sides of 10 to 100 pixels, one for every `room` x `room` pixels."""
    random = torch.Generator().manual_seed(seed)
    draw = lambda n: torch.rand(count, n, generator=random)  # noqa: E731
    return torch.cat([draw(2) * room * count**0.5, 10 ** (1 + draw(2)), (draw(1) - 0.5) * 3.14], 1)


def shaken(boxes, count, seed=1, by=(4.0, 4.0, 4.0, 4.0, 0.1)):
    """`count` copies of some of `boxes`, each a bit off."""
    random = torch.Generator().manual_seed(seed)
    found = boxes[torch.randint(0, len(boxes), (count,), generator=random)] + torch.randn(
        count, 5, generator=random
    ) * torch.tensor(by)
    return torch.cat([found[:, :2], found[:, 2:4].clamp(min=1), found[:, 4:]], 1)


def clips(a, b):
    """shapely's overlap of every pair whose hulls meet, found by its tree."""
    import shapely

    from madet.boxes.geometry import Rotated

    one, two = (shapely.polygons(Rotated().corners(x.double()).numpy()) for x in (a, b))
    areas, tree = (shapely.area(one), shapely.area(two)), shapely.STRtree(two)

    def work():
        i, j = tree.query(one)
        shared = shapely.area(shapely.intersection(one[i], two[j]))
        iou = np.zeros((len(one), len(two)))
        iou[i, j] = shared / (areas[0][i] + areas[1][j] - shared)
        return iou

    return work


def kernel():
    """torchvision's overlap of clockwise radians, or None where it has no rotated format."""
    from torchvision.ops import box_iou

    if "fmt" not in inspect.signature(box_iou).parameters:
        return None
    from madet.boxes.conventions import to_torchvision

    return lambda a, b: box_iou(to_torchvision(a), to_torchvision(b), fmt="cxcywhr")


def sides_of(ours, options, **others):
    """{name: maker}: ours first.

    On CUDA against ourselves on the CPU. `ours(device)` makes the work, others make theirs.
    """
    if options.device == "cuda":
        return {
            f"{OURS} on CUDA": partial(ours, "cuda"),
            f"{OURS} on the CPU": partial(ours, "cpu"),
        }
    return {OURS: partial(ours, "cpu")} | {name: make for name, make in others.items() if make}


def overlap_contests(options, skipped):
    """All pairs of two sets."""
    from madet.boxes.rotated_iou import rotated_iou

    theirs = kernel()
    if theirs is None and options.device == "cpu":
        skipped.append(
            dict(
                part="rotated",
                why="this torchvision has no box_iou of rotated boxes (from 0.27.1), so its kernel was not timed",
            )
        )
    a, b = turned(options.pairs), turned(options.pairs, seed=1)
    priors = priors_of(options).boxes
    truths = truths_of(options, options.rotated_truths[0])
    for words, one, two in (("random boxes", a, b), ("priors and truths", priors, truths)):
        rivals = {
            KERNEL: theirs and (lambda one=one, two=two: partial(theirs, one, two)),
            CLIPPER: partial(clips, one, two),
        }
        ours = lambda device, one=one, two=two: partial(rotated_iou, one.to(device), two.to(device))  # noqa: E731
        facts = {
            "largest difference": gaps(
                rotated_iou(one, two),
                {KERNEL: theirs and theirs(one, two), CLIPPER: torch.from_numpy(clips(one, two)())},
            )
        }
        yield Contest(
            "rotated",
            f"overlap of {len(one):,} x {len(two):,} {words}",
            sides_of(ours, options, **rivals),
            1.0,
            facts=facts,
        )


def gaps(ours, others):
    return ", ".join(
        f"{(ours - other).abs().max():.0e} to {name}"
        for name, other in others.items()
        if other is not None
    )


def gradient_contest(options):
    """Paired overlap, forward and backward; shapely gives values only."""
    from madet.boxes.geometry import Rotated
    from madet.boxes.rotated_iou import rotated_iou_paired

    a = turned(options.paired)
    b = a + torch.randn(len(a), 5, generator=torch.Generator().manual_seed(2)) * torch.tensor(
        [4, 4, 2, 2, 0.1]
    )

    def ours(device):
        one, two = a.to(device, copy=True).requires_grad_(), b.to(device)
        return lambda: torch.autograd.grad(rotated_iou_paired(one, two).sum(), one)

    def clipper():
        import shapely

        one, two = (shapely.polygons(Rotated().corners(x.double()).numpy()) for x in (a, b))
        return lambda: shapely.area(shapely.intersection(one, two))

    return Contest(
        "rotated",
        f"{len(a):,} pairs that overlap, value and gradient",
        sides_of(ours, options, **{f"{CLIPPER}, areas without gradient": clipper}),
        1.0,
    )


def suppression_contests(options):
    """Greedy at 0.1; the compiled kernel for upright boxes on their hulls shows what the turn costs, the
    plain loop what a kernel for overlaps alone gives.
    """
    from torchvision.ops import nms

    from madet.boxes.geometry import Rotated
    from madet.boxes.nms import hard_nms
    from madet.boxes.rotated_nms import rotated_nms

    theirs = kernel()
    for count in options.suppressed:
        for words, boxes in (
            ("spread", turned(count)),
            ("crowded", shaken(turned(100, 100.0), count)),
        ):
            scores = torch.rand(count, generator=torch.Generator().manual_seed(3))

            def ours(device, boxes=boxes, scores=scores):
                return partial(rotated_nms, boxes.to(device), scores.to(device), 0.1)  # noqa: E731

            rivals = {
                "torchvision's nms of the upright hulls": lambda boxes=boxes, scores=scores: (
                    partial(nms, Rotated().enclosing_upright(boxes), scores, 0.1)
                )
            }
            if theirs and count <= 2000:
                rivals[f"plain loop over {KERNEL}"] = lambda boxes=boxes, scores=scores: partial(
                    hard_nms, boxes, scores, 0.1, theirs
                )
            yield Contest(
                "rotated",
                f"suppression of {count:,} {words} boxes",
                sides_of(ours, options, **rivals),
                ms_aim=SUPPRESSED.get(count),
                facts=dict(kept=len(rotated_nms(boxes, scores, 0.1))),
            )


def priors_of(options):
    """ATSS's square priors of a square picture as rotated boxes: 21,824 for 1,024 pixels."""
    from madet.boxes.geometry import Rotated
    from madet.boxes.priors import Priors
    from madet.nets.anchors import AnchorGrid

    grid = AnchorGrid()
    flat = grid([(-(-options.tile // s),) * 2 for s in grid.strides])
    return Priors(Rotated().from_upright(flat.boxes), flat.sizes, flat.strides)


def truths_of(options, count):
    """Rotated objects inside the picture."""
    boxes = turned(count, seed=4)
    return torch.cat(
        [
            torch.rand(count, 2, generator=torch.Generator().manual_seed(5)) * options.tile,
            boxes[:, 2:],
        ],
        1,
    )


def assignment_contests(options):
    """The whole of ATSS, against the table of all overlaps alone, with which programs begin that do not
    look for candidates first.
    """
    from madet.assigners.atss import atss
    from madet.boxes.geometry import Rotated
    from madet.boxes.priors import Priors

    priors, theirs = priors_of(options), kernel()
    for count in options.rotated_truths:
        truths = truths_of(options, count)

        def ours(device, truths=truths):
            moved = Priors(priors.boxes.to(device), priors.sizes, priors.strides)
            return partial(atss, moved, truths.to(device), Rotated())

        rivals = {
            f"table of overlaps by {KERNEL}": theirs
            and (lambda truths=truths: partial(theirs, priors.boxes, truths))
        }
        yield Contest(
            "rotated",
            f"ATSS, {len(priors):,} priors, {count} truths",
            sides_of(ours, options, **rivals),
            ms_aim=ASSIGNED.get(count),
            facts=dict(positives=int((atss(priors, truths, Rotated()) >= 0).sum())),
        )


def tiles_scene(count, seed=0):
    """(truths, results, classes) of `count` tiles.

    30 objects of 15 classes each, 100 detections of which some are right.
    """
    truths = []
    results = []
    classes = [f"class {c}" for c in range(15)]
    for number in range(count):
        random = torch.Generator().manual_seed(1000 * seed + number)
        boxes = turned(30, 180.0, seed=number)
        labels = torch.randint(0, 15, (30,), generator=random)
        which = torch.randint(0, 30, (100,), generator=random)
        found = boxes[which] + torch.randn(100, 5, generator=random) * torch.tensor(
            [4, 4, 3, 3, 0.1]
        )
        found[:, 2:4].clamp_(min=1)
        truths.append(
            dict(
                image_id=number, boxes=boxes, labels=labels.numpy(), ignore=np.arange(30) % 10 == 0
            )
        )
        results.append(
            dict(
                image_id=number,
                boxes=found,
                labels=labels[which].numpy(),
                scores=torch.rand(100, generator=random).numpy(),
            )
        )
    return truths, results, classes


def score_contest(options):
    """DOTA's AP50, AP75 and AP; shapely's side computes the overlaps of one class on one tile and nothing else."""
    from madet.metrics.dota import dota_score

    truths, results, classes = tiles_scene(options.tiles)

    def overlaps():
        pairs = [
            (r["boxes"][r["labels"] == c], t["boxes"][t["labels"] == c])
            for t, r in zip(truths, results)
            for c in range(15)
        ]
        works = [clips(a, b) for a, b in pairs if len(a) and len(b)]
        return lambda: [work() for work in works]

    sides = {
        OURS: lambda: partial(dota_score, truths, results, classes),
        f"{CLIPPER}'s overlaps alone": overlaps,
    }
    return Contest(
        "rotated",
        f"AP of {options.tiles} tiles, {30 * options.tiles:,} objects, {100 * options.tiles:,} detections",
        sides,
        once=True,
        facts=dict(AP50=f"{dota_score(truths, results, classes)['AP50']:.3f}"),
    )


def answers_of_a_beginner(count, seed=0):
    """(boxes, scores, labels) of `count` pictures of 96 pixels: 2,600 answers of five classes, hardly one sure.

    What a rotated detector says at `thimble` after its first minute."""
    found = []
    for number in range(count):
        random = torch.Generator().manual_seed(1000 * seed + number)
        drawn = torch.rand(2600, 6, generator=random)
        centers, sides = 10 + drawn[:, :2] * 76, 12 + drawn[:, 2:4].square() * 40
        boxes = torch.cat([centers, sides, 0.2 * drawn[:, 4:5] - 0.03], 1)
        labels = torch.randint(0, 5, (2600,), generator=random)
        found.append((boxes, 0.05 + 0.02 * drawn[:, 5], labels))
    return found


def thimble_contest(options):
    """What scoring a rotated detector at thimble adds to its network: suppression, AP and AP over slices.

    Five hundred pictures of 96 pixels within 15 s of a processor."""
    from madet.boxes.geometry import Rotated
    from madet.metrics.dota import dota_score
    from madet.metrics.slices import slice_scores

    geometry, classes = Rotated(), [f"class {c}" for c in range(5)]
    answers = answers_of_a_beginner(options.tiles)
    truths = []
    for number, (boxes, _, labels) in enumerate(answers):
        few = dict(boxes=boxes[:6] + 1, labels=labels[:6].numpy(), ignore=np.arange(6) == 5)
        truths.append(dict(few, image_id=number))

    def ours():
        results = []
        for number, (boxes, scores, labels) in enumerate(answers):
            keep, kept = geometry.nms(boxes, scores, 0.5, labels)
            one = dict(image_id=number, boxes=boxes[keep], labels=labels[keep].numpy())
            results.append(one | dict(scores=kept.numpy()))
        dota_score(truths, results, classes)
        slice_scores(truths, results, classes, geometry)

    return Contest(
        "rotated",
        f"scoring {options.tiles} pictures of 96 px, 2,600 answers each",
        {OURS: lambda: ours},
        ms_aim=15_000.0 if options.tiles == 500 else None,
        once=True,
        warm=False,
    )


def rotated(options, skipped):
    """Every contest of the part."""
    last = (
        []
        if options.device == "cuda"
        else [lambda: [score_contest(options), thimble_contest(options)]]
    )
    makers = [
        lambda: overlap_contests(options, skipped),
        lambda: [gradient_contest(options)],
        lambda: suppression_contests(options),
        lambda: assignment_contests(options),
        *last,
    ]
    return itertools.chain.from_iterable(make() for make in makers)
