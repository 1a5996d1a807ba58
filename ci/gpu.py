"""What `ci/gpu` does on a machine with one GPU: parts in order, each with a time limit, 8 minutes in all.

Every part is a child process that is stopped when its time is over. After each part the answer is
written to one JSON file, and a part that passed is not run again while the commit, the device and
the options stay the same (`--fresh` runs all). The page nbs/guides/05_speed.ipynb shows the file.
Without a GPU nothing of this is possible: then the dry parts run, which show that every command
exists and that the device tests pass on the pretended device, and the exit code is 0.
"""

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "ci")]

from suite import Children, golden_folder  # noqa: E402

SECONDS = 480  # for everything
DEVICE_TESTS = "ci/tests/test_pretended_device.py"
COMPILE_TOLERANCE = 2e-3  # of the largest number: the compiler orders sums anew
WARM_STEPS, TIMED_STEPS = 5, 20


@dataclass(frozen=True)
class Settings:
    """Where and how much."""

    device: str = "cuda"
    quick: bool = False  # a reduced form of each part, which shows on a CPU that it works


@dataclass(frozen=True)
class Ended:
    """How a child process ended."""

    code: int | None  # None: stopped because its time was over
    printed: str  # standard output
    complaints: str  # the end of standard error
    seconds: float


@dataclass(frozen=True)
class Part:
    """One part: what it is, how long it may take, the command, and what its end means."""

    name: str
    title: str
    seconds: int
    command: Callable[[Settings, Path], list]
    read: Callable[[Ended, Path], dict]


def python(*words) -> list[str]:
    """A command for this interpreter."""
    return [sys.executable, *map(str, words)]


def last_json(ended: Ended, folder: Path) -> dict:
    """What a child printed as the last line of its standard output."""
    try:
        return json.loads(ended.printed.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return {"ok": False}


def inside(name: str) -> Callable[[Settings, Path], list]:
    """The command that runs a function of this file in a child process."""
    return lambda settings, folder: python(
        __file__, "--inside", name, "--device", settings.device, *["--quick"] * settings.quick
    )


# commands


def test_command(settings: Settings, folder: Path) -> list:
    """The device tests but bf16, and what else in ci/tests needs a GPU."""
    chosen = "not bf16"
    if settings.quick:
        chosen = "box_loss_of or adding or (trains_and_detects and fcos and not rotated and not tv)"
    more = (
        ["ci/tests/test_batches.py::test_a_stream_onto_a_gpu_gives_the_same_numbers"]
        if settings.device.startswith("cuda")
        else []
    )
    return pytest_command([DEVICE_TESTS, *more], chosen, folder)


def bf16_command(settings: Settings, folder: Path) -> list:
    """A step of every method under autocast to bf16."""
    return pytest_command(
        [DEVICE_TESTS],
        "in_bf16 and fcos and not rotated and not tv" if settings.quick else "in_bf16",
        folder,
    )


def pytest_command(paths: list, chosen: str, folder: Path) -> list:
    """pytest with a report in `folder`."""
    return python(
        "-m",
        "pytest",
        *paths,
        "-q",
        "-k",
        f"({chosen}) or onto_a_gpu" if len(paths) > 1 else chosen,
        "-p",
        "no:cacheprovider",
        "--tb=short",
        f"--junitxml={folder}/report.xml",
        f"--basetemp={folder}/tmp",
    )


def parity_command(settings: Settings, folder: Path) -> list:
    """`madet parity` on the device; on another than the CPU with the tolerances that its help states."""
    fixtures = golden_folder(ROOT) or ROOT / "ci/golden"
    only = ["--only", "centerness", "nms", "deform_conv"] if settings.quick else []
    return python("-m", "madet", "parity", fixtures, "--device", settings.device, "--json", *only)


def bench_command(settings: Settings, folder: Path) -> list:
    """`ci/bench`: training and inference against torchvision, MADet against ATSS."""
    size = "--tiny" if settings.quick else "--quick"
    return python(
        "ci/bench.py",
        "train",
        "infer",
        *[] if settings.quick else ["madet"],
        size,
        "--device",
        settings.device,
        "--json",
    )


# what their ends mean


def read_tests(ended: Ended, folder: Path) -> dict:
    """Counts and names of failures from pytest's report."""
    try:
        suites = list(ElementTree.parse(folder / "report.xml").getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        return {"ok": False}
    total, skipped = (
        sum(int(suite.get(key, 0)) for suite in suites) for key in ("tests", "skipped")
    )
    failed = [
        case.get("name")
        for suite in suites
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    passed = total - skipped - len(failed)
    return {
        "ok": ended.code == 0 and passed > 0,
        "passed": passed,
        "skipped": skipped,
        "failed": failed,
    }


def read_parity(ended: Ended, folder: Path) -> dict:
    """A line a case: the error that is nearest to its tolerance."""
    try:
        cases = json.loads(ended.printed)["cases"]
    except (ValueError, KeyError, TypeError):
        return {"ok": False}
    kept = [
        {key: case[key] for key in ("case", "ok", "worst", "error", "tolerance", "trouble")}
        for case in cases
        if case["handler"]
    ]
    return {
        "ok": bool(kept) and all(case["ok"] for case in kept),
        "cases": kept,
        "without_handler": [case["case"] for case in cases if not case["handler"]],
    }


def read_bench(ended: Ended, folder: Path) -> dict:
    """The rows of ci/bench as they are; an aim missed is no failure here."""
    try:
        answer = json.loads(ended.printed)
    except ValueError:
        return {"ok": False}
    return {
        "ok": ended.code == 0 and bool(answer["rows"]),
        "rows": answer["rows"],
        "skipped": answer["skipped"],
    }


PARTS = (
    Part("environment", "what is installed here", 20, inside("environment"), last_json),
    Part(
        "tests",
        "losses, assigners, methods, training loop: device against CPU, within the tests' tolerances",
        130,
        test_command,
        read_tests,
    ),
    Part(
        "parity",
        "recorded numbers of the original code, computed on the device",
        60,
        parity_command,
        read_parity,
    ),
    Part(
        "bf16",
        "a step of every method in bf16: finite, total loss within 5 % of fp32",
        40,
        bf16_command,
        read_tests,
    ),
    Part(
        "compile",
        "torch.compile of a deformable layer and of a detector's network, against eager",
        100,
        inside("compile"),
        last_json,
    ),
    Part(
        "bench",
        "training and inference against torchvision on equal work",
        80,
        bench_command,
        read_bench,
    ),
    Part(
        "rows",
        "training steps a second at scale bench: a rate, not a result",
        40,
        inside("rows"),
        last_json,
    ),
)


# parts that run in this file


def environment(settings: Settings) -> dict:
    """Versions and the device."""
    import torch
    import torchvision

    cuda = settings.device.startswith("cuda")
    return {
        "ok": True,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "system": platform.platform(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cuda": torch.version.cuda if cuda else None,
        "memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
        if cuda
        else None,
    }


def apart(ours, reference) -> float:
    """Largest difference of two lists of tensors in units of the largest number of each."""
    worst = 0.0
    for one, other in zip(ours, reference, strict=True):
        size = max(float(other.abs().max()), 1e-12)
        worst = max(worst, float((one.float() - other.float()).abs().max()) / size)
    return worst


def compiled_layer(device) -> float:
    """Error of a compiled deformable layer, gradients included."""
    import torch

    from madet.nets.deform import DeformConv

    torch.manual_seed(0)
    layer, x = DeformConv(16, 16).to(device), torch.randn(2, 16, 12, 14).to(device)
    torch.nn.init.normal_(layer.conv_offset.weight, std=0.2)
    answers = []
    for call in layer, torch.compile(layer):
        layer.zero_grad()
        out = call(x)
        out.square().sum().backward()
        answers.append([out.detach(), *(value.grad.clone() for value in layer.parameters())])
    return apart(answers[1], answers[0])


def compiled_network(device, backbone: str) -> float:
    """Error of a compiled ATSS from pixels to raw predictions."""
    import torch
    from torch.utils._pytree import tree_leaves

    from madet.detectors.dense import atss_detector

    torch.manual_seed(0)
    model = atss_detector(3, backbone=backbone).to(device).eval()

    def network(pixels):
        return model.head(model.features(pixels))

    pixels = torch.randn(1, 3, 64, 96).to(device)
    with torch.no_grad():
        answers = [
            [leaf for leaf in tree_leaves(call(pixels)) if isinstance(leaf, torch.Tensor)]
            for call in (network, torch.compile(network))
        ]
    return apart(answers[1], answers[0])


def compile_part(settings: Settings) -> dict:
    """torch.compile against eager."""
    import torch

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    errors = {"deformable layer, forward and back": compiled_layer(settings.device)}
    if not settings.quick:
        errors["the tiny ATSS, pixels to predictions"] = compiled_network(settings.device, "tiny")
    return {
        "ok": all(error <= COMPILE_TOLERANCE for error in errors.values()),
        "tolerance": COMPILE_TOLERANCE,
        "errors": errors,
    }


def steps_a_second(name: str, settings: Settings, data: str, precision: str) -> dict:
    """The rate of the real training step of a method on real batches, and the memory that it takes."""
    import torch

    from madet.methods.load import geometry_of
    from madet.methods.names import recipe_of
    from madet.training.checkpoint import seed_everything
    from madet.training.loop import make_plan, supervised_step, train_step
    from madet.training.run import open_splits, training_batches
    from madet.training.state import make_state

    warm, timed = (1, 2) if settings.quick else (WARM_STEPS, TIMED_STEPS)
    scale, rest = ("thimble", {}) if settings.quick else ("bench", {"workers": 2})
    method, recipe, own = recipe_of(
        scale, {"method": name, "data": data, "precision": precision, "steps": warm + timed} | rest
    )
    parts = open_splits(recipe, geometry_of(own))
    seed_everything(0)
    device = torch.device(settings.device)
    model = (
        method.build(recipe, own, len(parts["train"].classes))
        .to(device, memory_format=torch.channels_last)
        .train()
    )
    batches = training_batches(recipe, parts["train"], scale)
    state, plan = make_state(model, recipe), make_plan(recipe, batches.steps_per_epoch)
    stream = batches.stream(0, warm + timed, device)
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    for _ in range(warm):
        train_step(state, supervised_step, next(stream), plan)
    wait()
    begun = time.perf_counter()
    for _ in range(timed):
        losses, _ = train_step(state, supervised_step, next(stream), plan)
    wait()
    seconds = time.perf_counter() - begun
    stream.close()
    return {
        "method": name,
        "precision": precision,
        "scale": scale,
        "data": Path(data).name,
        "image_size": recipe.image_size,
        "total_batch": recipe.total_batch,
        "steps_per_second": timed / seconds,
        "images_per_second": timed * recipe.total_batch / seconds,
        "finite": bool(torch.isfinite(losses["loss"])),
        "memory_mb": torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None,
    }


def rows(settings: Settings) -> dict:
    """Rates of training, as many as fit: each row is printed as soon as it is there."""
    import torch

    shared = os.environ.get("MADET_SHARED")
    real = Path(shared) / "data/bccd" if shared else None
    data = str(real) if real and real.is_dir() and not settings.quick else "embedded"
    found = []
    for name in ("fcos",) if settings.quick else ("atss", "madet", "faster-rcnn"):
        for precision in ("fp32", "bf16"):
            if settings.device.startswith("cuda"):
                torch.cuda.reset_peak_memory_stats()
            found.append(steps_a_second(name, settings, data, precision))
            print(
                json.dumps(
                    {
                        "ok": all(row["finite"] for row in found),
                        "rows": found,
                        "note": "rates of a few steps, not results",
                    }
                ),
                flush=True,
            )
    return {
        "ok": all(row["finite"] for row in found),
        "rows": found,
        "note": "rates of a few steps, not results",
    }


INSIDE = {"environment": environment, "compile": compile_part, "rows": rows}


# the run


def run_part(part: Part, settings: Settings, seconds: float, children: Children) -> dict:
    """One part in a child process: `state` is passed, failed, stopped or not run, beside what `part.read` says."""
    if part.command in (test_command, bf16_command) and importlib.util.find_spec("pytest") is None:
        return {"state": "not run", "why": "pytest is not installed here"}
    begun = time.monotonic()
    environ = dict(os.environ, MADET_TEST_DEVICE=settings.device, PYTHONPATH=str(ROOT))
    with (
        tempfile.TemporaryDirectory(prefix="madet-gpu-") as folder,
        open(Path(folder) / "errors", "w+") as errors,
    ):
        command = part.command(settings, Path(folder))
        code, printed = children.run(
            command, seconds, subprocess.PIPE, errors, cwd=ROOT, env=environ
        )
        errors.seek(0)
        ended = Ended(code, printed, errors.read()[-2000:], time.monotonic() - begun)
        said = part.read(ended, Path(folder))
    good = said.pop("ok", False)
    state = "stopped" if code is None else "passed" if good and code == 0 else "failed"
    answer = {
        "state": state,
        "title": part.title,
        "seconds": round(ended.seconds, 1),
        "limit": round(seconds),
        **said,
    }
    return answer | (
        {}
        if state == "passed"
        else {
            "complaints": (ended.printed[-1500:] if part.read is read_tests else "")
            + ended.complaints
        }
    )


def commit_of(root: Path) -> str:
    """The commit, with `-dirty` where files differ from it; the version where there is no git."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    if told.returncode == 0 and told.stdout.strip():
        return told.stdout.strip()
    import madet

    return f"version {madet.__version__}"


def read_earlier(path: Path, about: dict) -> dict:
    """The parts of an earlier answer about the same commit, device and options.

    None else, and none of a tree with changes, whose commit does not say what it holds.
    """
    try:
        earlier = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    same = all(earlier.get(key) == value for key, value in about.items()) and not about[
        "commit"
    ].endswith("-dirty")
    return earlier.get("parts", {}) if same else {}


def write_answer(path: Path, answer: dict) -> None:
    """The answer as JSON, in one go, so that a killed run leaves the earlier one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(answer, indent=1) + "\n")
    os.replace(beside, path)


def run_all(
    chosen: list[Part], settings: Settings, path: Path, fresh: bool, total: float = SECONDS
) -> dict:
    """Every chosen part, the answer written after each."""
    about = {
        "commit": commit_of(ROOT),
        "device": settings.device,
        "quick": settings.quick,
        "dry": False,
    }
    known = {} if fresh else read_earlier(path, about)
    answer = {
        "gpu": "madet",
        **about,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "parts": known,
    }
    deadline, children = time.monotonic() + total, Children()
    for part in chosen:
        if known.get(part.name, {}).get("state") == "passed":
            print(f"{part.name}: passed before, at this commit", flush=True)
            continue
        seconds = min(part.seconds, deadline - time.monotonic())
        if seconds < 5:
            answer["parts"][part.name] = {
                "state": "not run",
                "why": f"the {total:.0f} seconds for all parts were over; call ci/gpu again",
            }
        else:
            print(f"{part.name}: {part.title} (at most {seconds:.0f} s)", flush=True)
            answer["parts"][part.name] = run_part(part, settings, seconds, children)
        write_answer(path, answer)
        print("  " + in_a_line(answer["parts"][part.name]), flush=True)
    return answer


def in_a_line(part: dict) -> str:
    """A part's answer for people."""
    words = [part["state"]]
    if "seconds" in part:
        words.append(f"{part['seconds']:.0f} s")
    if "why" in part:
        words.append(part["why"])
    if "passed" in part:
        words.append(
            f"{part['passed']} tests passed, {len(part['failed'])} failed {', '.join(part['failed'][:5])}".strip()
        )
    if "cases" in part:
        bad = [case["case"] for case in part["cases"] if not case["ok"]]
        words.append(
            f"{len(part['cases']) - len(bad)} cases hold, {len(bad)} fail {', '.join(bad)}".strip()
        )
    words += [f"{name}: error {error:.1e}" for name, error in part.get("errors", {}).items()]
    for row in part.get("rows", []):
        if "images_per_second" in row:
            words.append(
                f"{row['method']} {row['precision']} {row['images_per_second']:.1f} images/s"
            )
    return "; ".join(words)


def dry_run(chosen: list[Part], settings: Settings, path: Path) -> dict:
    """What can be tried without a device.

    Every command is named, those of others are asked for their help, and the device tests run on
    the pretended device.
    """
    children = Children()
    answer = {
        "gpu": "madet",
        "commit": commit_of(ROOT),
        "device": None,
        "quick": settings.quick,
        "dry": True,
        "parts": {},
    }
    for part in chosen:
        command = part.command(settings, Path("FOLDER"))
        shown = " ".join(
            str(word).replace(str(ROOT) + "/", "") for word in ["python", *command[1:]]
        )
        answer["parts"][part.name] = {
            "state": "not run",
            "title": part.title,
            "limit": part.seconds,
            "why": "no GPU",
            "command": shown,
        }
        print(
            f"{part.name}: {part.title}\n  would run at most {part.seconds} s: {shown}", flush=True
        )
    for words in (("-m", "madet", "parity", "--help"), ("ci/bench.py", "--help")):
        code, _ = children.run(python(*words), 60, subprocess.PIPE, cwd=ROOT)
        if code != 0:
            answer["failed"] = f"python {' '.join(words)} ends with {code}"
    if importlib.util.find_spec("pytest") is None:
        answer["pretended"] = {"state": "not run", "why": "pytest is not installed here"}
    else:
        part = Part(
            "pretended", "the device tests on the pretended device", 400, test_command, read_tests
        )
        answer["pretended"] = run_part(part, Settings("", settings.quick), part.seconds, children)
        print(f"{part.title}: {in_a_line(answer['pretended'])}", flush=True)
    write_answer(path, answer)
    return answer


def parse(words: list[str] | None) -> argparse.Namespace:
    """Options from the command line."""
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(
        "ci/gpu", description="Everything that needs a GPU, in at most 8 minutes on one."
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"any of {', '.join(names)}; default: all"
    )
    parser.add_argument(
        "--device",
        default="",
        help="cuda, or cpu to try the parts without a GPU; default: cuda where there is one, else a dry run",
    )
    parser.add_argument("--quick", action="store_true", help="every part in a reduced form")
    parser.add_argument(
        "--fresh", action="store_true", help="run also what passed before at this commit"
    )
    parser.add_argument(
        "--dry",
        action="store_true",
        help="only what works without a device, also where there is one",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the JSON; default ci/gpu.json for a GPU, else runs/gpu-DEVICE.json",
    )
    parser.add_argument("--inside", choices=INSIDE, help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if unknown := [name for name in arguments.parts if name not in names]:
        parser.error(f"there is no part {', '.join(unknown)}; choose of {', '.join(names)}")
    return arguments


def main(words: list[str] | None = None) -> int:
    """Run, write, and give the exit code.

    0 everything passed or there is no GPU, 1 something failed, 2 a device was named that is not there.
    """
    arguments = parse(words)
    if arguments.inside:
        print(json.dumps(INSIDE[arguments.inside](Settings(arguments.device, arguments.quick))))
        return 0
    import torch

    has_cuda = torch.cuda.is_available()
    if arguments.device.startswith("cuda") and not has_cuda:
        print(
            f"--device is {arguments.device!r}, but torch {torch.__version__} finds no GPU here; "
            "leave the option out",
            file=sys.stderr,
        )
        return 2
    chosen = [part for part in PARTS if part.name in arguments.parts or not arguments.parts]
    device = arguments.device or ("cuda" if has_cuda else "")
    if arguments.dry or not device:
        if not has_cuda:
            print(
                f"torch {torch.__version__} finds no GPU here, so nothing of this was measured; "
                "the dry parts follow."
            )
        answer = dry_run(
            chosen, Settings("cuda", arguments.quick), arguments.out or ROOT / "runs/gpu-dry.json"
        )
        return int("failed" in answer or answer["pretended"]["state"] in ("failed", "stopped"))
    path = arguments.out or (
        ROOT / "ci/gpu.json" if device.startswith("cuda") else ROOT / f"runs/gpu-{device}.json"
    )
    answer = run_all(chosen, Settings(device, arguments.quick), path, arguments.fresh)
    print(f"everything is in {path}")
    return int(any(part["state"] != "passed" for part in answer["parts"].values()))


if __name__ == "__main__":
    sys.exit(main())
