"""`ci/bench train --profile`, `ci/bench madet --profile`: where a training step of ATSS or MADet goes, by
place in the code and kind of work.

Backward work is counted where its forward work stands (torch.profiler links both by sequence number). The
profiler's clock
goes on while a neighbour has the processor, so run it on a quiet machine; on CUDA it is the time of kernels.
"""

import re
import sys
import time
from collections import Counter
from contextlib import ExitStack
from functools import wraps
from unittest import mock

import bench_parts
import torch
from torch.autograd.profiler import record_function
from torch.profiler import ProfilerActivity, profile

MARK = "madet: "
KINDS = (
    ("convolution", r"conv|mkldnn"),
    ("norm", r"norm"),
    ("optimizer", r"_fused_|sgd"),
    (
        "elementwise, pooling, copies",
        r"relu|threshold|mul|add|div|copy|cat|where|fill|zero|sigmoid|exp|log|sub|clamp|neg|max|min"
        r"|upsample|clone|accumulate",
    ),
)
TENTH = 0.1


def kind_of(name):
    """What an operator does, by its name."""
    return next((kind for kind, pattern in KINDS if re.search(pattern, name, re.I)), "other")


def marked(place, function):
    """The function, with everything it does recorded under `place`."""

    @wraps(function)
    def inside(*args, **options):
        with record_function(MARK + place):
            return function(*args, **options)

    return inside


def mark(stack, model):
    """Give names to the places of an ATSS or MADet detector until the stack closes."""
    head = model.head
    parts, around = sys.modules[type(head).__module__], getattr(head, "interaction", None)
    places = [("backbone", model.backbone), ("neck", model.neck), ("head: towers", head)] + [
        ("head: deformable", around)
    ] * (around is not None)
    for place, module in places:
        stack.enter_context(mock.patch.object(module, "forward", marked(place, module.forward)))
    for name, place in (("level_losses", "losses: rest"), ("assign", "losses: assignment")):
        stack.enter_context(mock.patch.object(head, name, marked(place, getattr(head, name))))
    for name, place in (
        ("targets_of", "losses: targets"),
        ("sigmoid_focal", "losses: focal"),
        ("weighted_focal", "losses: focal"),
    ):
        if hasattr(parts, name):
            stack.enter_context(mock.patch.object(parts, name, marked(place, getattr(parts, name))))
    stack.enter_context(
        mock.patch.object(
            type(model.head), "priors", marked("losses: anchors", type(model.head).priors)
        )
    )
    stack.enter_context(
        mock.patch.object(
            model.pixels.__class__, "batch", marked("pixels", model.pixels.__class__.batch)
        )
    )


def place_of(event):
    """The innermost named place around an event, or None."""
    while event is not None:
        if event.name.startswith(MARK):
            return event.name.removeprefix(MARK)
        event = event.cpu_parent
    return None


def nodes_of(event):
    """The autograd nodes an event runs under, the innermost first: a backward of our own may run one inside."""
    found = []
    while event is not None:
        if event.name.startswith("autograd::engine::evaluate_function"):
            found.append(event)
        event = event.cpu_parent
    return found


def shares(events, cuda=False):
    """Counter of microseconds by (place, kind)."""
    home, spent = {}, Counter()
    for event in events:
        place = place_of(event)
        if place and event.sequence_nr >= 0:
            home[event.sequence_nr] = place
    for event in events:
        own = event.self_device_time_total if cuda else event.self_cpu_time_total
        if own <= 0 or event.name.startswith("ProfilerStep"):
            continue
        nodes, place = nodes_of(event), place_of(event)
        if place is None:
            rest = (
                "backward: rest"
                if nodes
                else "optimizer"
                if kind_of(event.name) == "optimizer"
                else "step: rest"
            )
            place = next(
                (home[node.sequence_nr] for node in nodes if node.sequence_nr in home), rest
            )
        spent[
            place, "Python and waiting" if event.name.startswith(MARK) else kind_of(event.name)
        ] += own
    return spent


def measured(work, options, steps):
    """Shares of a few steps of a training work, and the seconds of one by the clock."""
    cuda = options.device == "cuda"
    with ExitStack() as stack:
        mark(stack, work.model)
        begun = time.perf_counter()
        with profile(
            activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * cuda
        ) as recorded:
            for _ in range(steps):
                work()
            if cuda:
                torch.cuda.synchronize()
        clock = (time.perf_counter() - begun) / steps
    return shares(recorded.events(), cuda), clock


PARTS = (
    ("trunk and pyramid", r"backbone|neck|pixels"),
    ("towers and outputs", r"head: towers"),
    ("deformable part", r"head: deformable"),
    ("assignment", r"losses: assignment"),
    ("losses and targets", r"losses"),
    ("optimizer and rest", r""),
)
ASSIGNMENT = 0.05  # of a step, at most


def parts_of_step(work, options, steps=3):
    """{part: words with its share} of a training work."""
    work()
    spent, _ = measured(work, options, steps)
    whole, found = sum(spent.values()), Counter({name: 0 for name, _ in PARTS})
    for (place, _), us in spent.items():
        found[next(name for name, pattern in PARTS if re.match(pattern, place))] += us
    said = {name: f"{us / whole:.1%} of a step" for name, us in found.items()}
    said["assignment"] += (
        f", aim {ASSIGNMENT:.0%} {'met' if found['assignment'] <= ASSIGNMENT * whole else 'MISSED'}"
    )
    return said


def run(options, tell, steps=2, part="train"):
    """The profile of the middle of a few steps."""
    from bench import environment, heading

    torch.set_num_threads(options.threads)
    answer = dict(
        bench="madet profile",
        environment=environment(options),
        options=vars(options) | {},
        shares=[],
        over_a_tenth=[],
    )
    tell(heading(answer["environment"], options))
    why = bench_parts.unable(part, options)
    if why:
        tell(f"{part}: skipped, {why}")
        return answer | dict(skipped=[dict(part=part, why=why)])
    make = next(
        iter((bench_parts.twins if part == "madet" else bench_parts.detectors)(options).values())
    )
    work = bench_parts.training_work(
        make,
        options,
        bench_parts.pictures(options.batch, options.side, options.side, options.device),
    )
    work()
    spent, clock = measured(work, options, steps)
    return answer | tell_shares(
        spent, clock, steps, tell, options, "MADet" if part == "madet" else "ATSS"
    )


def tell_shares(spent, clock, steps, tell, options, name="ATSS"):
    """Print shares of the whole and what stands out; the same as data."""
    whole = sum(spent.values())
    rows = [
        dict(place=place, kind=kind, ms=us / 1000 / steps, share=us / whole)
        for (place, kind), us in spent.most_common()
    ]
    tell(
        f"\na training step of {name}, {options.batch} images {options.side}x{options.side}, "
        f"{options.backbone}, {options.device}: "
        f"{whole / 1000 / steps:,.0f} ms in operators, {1000 * clock:,.0f} ms by the clock under the profiler"
    )
    for row in rows:
        if row["share"] >= 0.005:
            tell(f"  {row['share']:6.1%}  {row['ms']:9,.1f} ms  {row['place']}: {row['kind']}")
    groups = Counter()
    for row in rows:
        if row["kind"] != "convolution":
            groups[f"{row['place']} without convolutions"] += row["share"]
            groups[f"{row['kind']}, everywhere"] += row["share"]
    over = [dict(part=name, share=share) for name, share in groups.most_common() if share > TENTH]
    tell(
        "\nNot convolution and over a tenth of a step: "
        + ("; ".join(f"{o['part']} {o['share']:.1%}" for o in over) or "nothing")
        + "."
    )
    return dict(shares=rows, clock_ms=1000 * clock, over_a_tenth=over)
