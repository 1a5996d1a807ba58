"""Benchmarks behind `ci/bench`: sides by turns in one run on the same work, medians, ratios, memory peaks.

A ratio is the median over rounds of ours divided by the yardstick's in the same round, so that slow drift
of the machine
cancels; `ratio_cpu` is the same of processor time, which a busy neighbour disturbs less. What is compared:
bench_parts.py.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = "assign", "import", "train", "infer", "deform", "madet", "rotated", "data", "score"


@dataclass(frozen=True)
class Options:
    """Sizes and patience; the defaults are what the aims are about."""

    device: str = "cpu"
    threads: int = 1
    seconds: float = 3.0  # of repeats a side, where calls are short
    rounds: int = 5  # at least
    memory: bool = True  # measure peaks, each side in a process of its own
    channels_last: bool = True  # as the training loop has it, for every side
    picture: tuple = (800, 1333)  # height and width in assign and infer
    truths: tuple = (5, 50, 500)
    many: int = 2000  # truths where only memory is asked for
    side: int = 320  # of training images
    batch: int = 2  # training images
    backbone: str = "resnet50"
    classes: int = 80
    channels: int = 256  # of the deformable convolution
    map: tuple = (50, 84)  # height and width of its map
    pictures: int = 64  # images a round in data
    scored: int = 5000  # images in score
    pairs: int = 1000  # rotated boxes on either side of a table of overlaps
    paired: int = 10_000  # rotated pairs with gradient
    suppressed: tuple = (2000, 10_000, 50_000)
    tile: int = 1024  # side of the picture of rotated assignment
    rotated_truths: tuple = (50, 500)
    tiles: int = 500  # scored by DOTA's rules


QUICK = dict(
    seconds=0.5,
    rounds=3,
    memory=False,
    pictures=32,
    scored=500,
    suppressed=(2000, 10_000),
    tiles=50,
)
TINY = dict(
    seconds=0.0,
    rounds=1,
    memory=False,
    picture=(64, 96),
    truths=(2, 3),
    many=4,
    side=64,
    batch=1,
    backbone="tiny",
    classes=3,
    channels=8,
    map=(5, 6),
    pictures=4,
    scored=6,
    pairs=20,
    paired=30,
    suppressed=(40,),
    tile=128,
    rotated_truths=(2, 3),
    tiles=2,
)


@dataclass
class Contest:
    """One piece of work and who does it; the first side is ours, the others are what it is measured by."""

    part: str
    work: str
    sides: dict  # name: maker() -> work(); made only where it runs
    aim: float | None = None  # the largest ratio wanted
    images: int = 0  # of a call, for images a second
    warm: bool = True  # one call of each side that does not count
    timed: bool = True  # else only memory
    memory: bool = True
    memory_aim: float | None = None  # MB
    ms_aim: float | None = (
        None  # the longest time wanted of our side; of the processor on one CPU thread
    )
    once: bool = False  # long calls: a single round
    rate: float | None = (
        None  # TFLOP/s of a large matrix product of the same kind; then operations are counted
    )
    facts: dict = field(default_factory=dict)


def processor_seconds():
    """Of this process and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def by_turns(works, seconds, rounds, warm=True, wait=lambda: None):
    """{name: [(wall, processor) seconds, ...]}.

    A B C A B C ..., at least `rounds` times and until `seconds` a side are spent.
    """
    if warm:
        for work in works.values():
            work()
    found, begun = {name: [] for name in works}, time.perf_counter()
    while len(next(iter(found.values()))) < rounds or (
        time.perf_counter() - begun < seconds * len(works)
        and len(next(iter(found.values()))) < 1000
    ):
        for name, work in works.items():
            wait()
            wall, cpu = time.perf_counter(), processor_seconds()
            work()
            wait()
            found[name].append((time.perf_counter() - wall, processor_seconds() - cpu))
    return found


def spread(samples, images=0):
    """What a side's samples come to, in milliseconds."""
    wall, cpu = ([1000 * s for s in column] for column in zip(*samples))
    quarters = (
        statistics.quantiles(wall, n=4, method="inclusive") if len(wall) > 1 else [wall[0]] * 3
    )
    said = dict(
        ms=quarters[1],
        ms_min=min(wall),
        ms_quarters=[quarters[0], quarters[2]],
        cpu_ms=statistics.median(cpu),
        rounds=len(wall),
    )
    return said | (dict(images_per_second=1000 * images / quarters[1]) if images else {})


def compare(samples, aim, by_processor):
    """Ratios of the first side to every other.

    On one CPU thread processor time decides whether the aim is met, as a neighbour cannot stretch it.
    """
    ours, *others = samples
    rows = []
    for other in others:
        wall, cpu = (
            statistics.median(a[i] / b[i] for a, b in zip(samples[ours], samples[other]) if b[i])
            if any(b[i] for b in samples[other])
            else None
            for i in (0, 1)
        )
        judged = cpu if by_processor and cpu is not None else wall
        rows.append(
            dict(
                of=ours,
                against=other,
                ratio=wall,
                ratio_cpu=cpu,
                aim=aim,
                met=None if aim is None else judged <= aim,
            )
        )
    return rows


def status_mb(key):
    """A line of /proc/self/status in MB; None where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(key + ":")), None)


def growth(make):
    """MB by which the resident set rises above its size before two calls; None where the system does not say."""
    work, before = make(), status_mb("VmRSS")
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew
    except OSError:
        return None
    if before is None or status_mb("VmHWM") > before + 50:
        return None
    work()
    work()
    return status_mb("VmHWM") - before


def peak_of(options, part, number, name):
    """The same, in a process of its own: what other sides left lying would hide it."""
    asked = json.dumps([asdict(options), part, number, name])
    done = subprocess.run(
        [sys.executable, __file__, "--peak", asked],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        raise RuntimeError(f"measuring the memory of {name} failed: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def run_contest(contest, options, number):
    """One row of the answer."""
    import torch

    cuda = options.device == "cuda" and contest.part in ("train", "infer", "madet", "rotated")
    wait = torch.cuda.synchronize if cuda else (lambda: None)
    sides, ratios = {name: {} for name in contest.sides}, []
    if contest.timed:
        works = {name: make() for name, make in contest.sides.items()}
        samples = by_turns(
            works,
            0 if contest.once else options.seconds,
            1 if contest.once else options.rounds,
            contest.warm,
            wait,
        )
        sides = {name: spread(found, contest.images) for name, found in samples.items()}
        ratios = compare(samples, contest.aim, options.threads == 1 and not cuda)
        for name, work in works.items():
            if contest.rate:
                busy = sides[name]["ms"] if cuda else sides[name]["cpu_ms"] / options.threads
                sides[name] |= share_of_rate(work, busy, contest.rate)
            if cuda:
                sides[name]["memory_mb"] = cuda_growth(work)
            sides[name] |= getattr(work, "facts", {})
        works.clear()
    if options.memory and contest.memory and not cuda:
        for name in sides:
            sides[name]["memory_mb"] = peak_of(options, contest.part, number, name)
    row = dict(
        part=contest.part, work=contest.work, sides=sides, ratios=ratios, facts=contest.facts
    )
    if contest.ms_aim:
        clock = "cpu_ms" if options.threads == 1 and not cuda else "ms"
        row |= dict(
            ms_aim=contest.ms_aim, ms_met=next(iter(sides.values()))[clock] <= contest.ms_aim
        )
    ours = next(iter(sides.values())).get("memory_mb")
    return row | (
        dict(
            memory_aim_mb=contest.memory_aim,
            memory_met=None if ours is None else ours <= contest.memory_aim,
        )
        if contest.memory_aim
        else {}
    )


def share_of_rate(work, ms, rate):
    """Operations of one call as torch counts them (matrix products and convolutions), and how near they
    come to `rate` TFLOP/s.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        work()
    done = counter.get_total_flops() / 1e12
    return dict(
        tflop=done, tflop_per_second=1000 * done / ms, share_of_matrix_rate=1000 * done / ms / rate
    )


def cuda_growth(work):
    """MB that torch holds on the device at the peak of a call beyond what it held before."""
    import torch

    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def processor_name():
    """As the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def environment(options):
    """Where and with what the figures were made."""
    import torch

    versions = {}
    for name in ("torch", "torchvision", "numpy", "pycocotools", "faster-coco-eval", "madet"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            pass
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    cuda = torch.cuda.is_available()
    return dict(
        versions=versions | dict(python=platform.python_version()),
        commit=git.stdout.strip() or None,
        processor=processor_name(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        gpu=torch.cuda.get_device_name() if cuda else None,
        cuda=torch.version.cuda if cuda else None,
        system=platform.platform(),
        load_before=os.getloadavg()[0],
    )


def run(parts, options, quick=False, tell=lambda text: None):
    """The whole answer: environment, rows, and what was skipped and why."""
    import bench_parts
    import torch

    torch.set_num_threads(options.threads)
    answer = dict(
        bench="madet",
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        quick=quick,
        options=asdict(options),
        environment=environment(options),
        rows=[],
        skipped=[],
    )
    tell(heading(answer["environment"], options))
    for part in parts:
        why = bench_parts.unable(part, options)
        if why:
            answer["skipped"].append(dict(part=part, why=why))
            tell(f"\n{part}: skipped, {why}")
            continue
        for number, contest in enumerate(bench_parts.contests(part, options, answer["skipped"])):
            try:
                answer["rows"].append(run_contest(contest, options, number))
            except torch.OutOfMemoryError:
                answer["skipped"].append(
                    dict(part=part, why=f"{contest.work}: the device has too little memory")
                )
                tell(f"\n{part}: {contest.work}: skipped, the device has too little memory")
                torch.cuda.empty_cache()
                continue
            tell(table(answer["rows"][-1]))
    answer["environment"]["load_after"] = os.getloadavg()[0]
    before = answer["environment"]["load_before"]
    if before > 0.5:
        tell(
            f"\nOther work ran on this machine (load {before:.1f} on {os.cpu_count()} cores): believe "
            "ratios of processor time, not times."
        )
    return answer


def heading(env, options):
    """Machine and versions, in two lines."""
    versions = ", ".join(f"{name} {number}" for name, number in env["versions"].items())
    gpu = f", {env['gpu']} with CUDA {env['cuda']}" if env["gpu"] else ""
    return (
        f"{env['processor']}, {env['cores']} cores, {env['threads']} thread(s), "
        f"{env['memory_gb']:g} GiB{gpu}; load {env['load_before']:.1f}\n{versions}; commit "
        f"{env['commit']}"
    )


def table(row):
    """A contest as lines of text."""
    lines, width = [f"\n{row['part']}: {row['work']}"], max(map(len, row["sides"]))
    ratios = {r["against"]: r for r in row["ratios"]}
    for name, side in row["sides"].items():
        line = f"  {name:{width}}"
        if "ms" in side:
            line += f"  {side['ms']:9,.2f} ms  (processor {side['cpu_ms']:9,.2f})"
        if "images_per_second" in side:
            line += f"  {side['images_per_second']:8,.2f} images/s"
        if "share_of_matrix_rate" in side:
            line += f"  {side['share_of_matrix_rate']:4.0%} of the matrix rate"
        if side.get("memory_mb") is not None:
            line += f"  {side['memory_mb']:7,.0f} MB"
        if name in ratios:
            r = ratios[name]
            line += f"  ours / this {r['ratio']:.2f}" + (
                f" (processor {r['ratio_cpu']:.2f})" if r["ratio_cpu"] is not None else ""
            )
            line += (
                "" if r["aim"] is None else f", aim {r['aim']:g} {'met' if r['met'] else 'MISSED'}"
            )
        lines.append(line)
    if row.get("memory_met") is not None:
        lines.append(
            f"  aim: at most {row['memory_aim_mb']:,.0f} MB, {'met' if row['memory_met'] else 'MISSED'}"
        )
    if row.get("ms_aim"):
        lines.append(
            f"  aim: at most {row['ms_aim']:,.0f} ms, {'met' if row['ms_met'] else 'MISSED'}"
        )
    lines += [f"  {key}: {value}" for key, value in row["facts"].items()]
    return "\n".join(lines)


def parse(words):
    """Options from the command line."""
    parser = argparse.ArgumentParser(
        "ci/bench",
        description="How fast, and against what? Sides by turns in one run on the same work.",
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"any of {', '.join(PARTS)}; default: all"
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer repeats, no memory, 500 scored images"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="the smallest sizes: does the script itself run?"
    )
    parser.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="where train, infer, madet and rotated run; the other parts stay on the CPU",
    )
    parser.add_argument("--threads", type=int, default=1, help="of torch; default 1")
    parser.add_argument(
        "--contiguous",
        action="store_true",
        help="train and infer without channels_last, all sides alike",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="with train or madet: which parts of ATSS's or MADet's step are not convolution, and how large",
    )
    parser.add_argument(
        "--json", action="store_true", help="JSON on standard output, the table on standard error"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON there too")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if unknown := [part for part in args.parts if part not in PARTS]:
        parser.error(f"there is no part {', '.join(unknown)}; choose of {', '.join(PARTS)}")
    if args.threads < 1:
        parser.error(f"--threads {args.threads}: give at least 1")
    if args.profile and args.parts not in (["train"], ["madet"]):
        parser.error("--profile goes with the part train or madet alone: ci/bench train --profile")
    return args


def child(asked):
    """`--peak`: the memory of one side, as a number on standard output."""
    fields, part, number, name = json.loads(asked)
    options = Options(**{key: tuple(v) if isinstance(v, list) else v for key, v in fields.items()})
    import bench_parts
    import torch

    torch.set_num_threads(options.threads)
    contest = next(c for i, c in enumerate(bench_parts.contests(part, options, [])) if i == number)
    print(json.dumps(growth(contest.sides[name])))


def main(words=None):
    """Run, print, write; gives the exit code."""
    args = parse(words)
    if args.peak:
        child(args.peak)
        return 0
    sizes = TINY if args.tiny else QUICK if args.quick else {}
    options = replace(
        Options(),
        device=args.device,
        threads=args.threads,
        channels_last=not args.contiguous,
        **sizes,
    )
    tell = lambda text: print(text, file=sys.stderr if args.json else sys.stdout, flush=True)  # noqa: E731
    if args.profile:
        import bench_profile

        answer = bench_profile.run(options, tell, part=args.parts[0])
    else:
        answer = run(args.parts or PARTS, options, args.quick, tell)
    text = json.dumps(answer, indent=1)
    if args.json:
        print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
