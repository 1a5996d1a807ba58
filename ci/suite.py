"""The tests behind `ci/test` and `ci/test-long`: notebooks, ci/tests, parity. `python ci/suite.py ROOT
[--long] [STAGE|PATH ...]`

Stages: notebooks, tests, parity, and with --long settings; a path of a notebook or of a test file runs only that.
Ends with `N passed, N failed`, the sum over notebooks, tests and parity cases; what could not run here (no
shared folder, no GPU) is named and not counted.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from functools import partial
from pathlib import Path

WORDS = ("notebooks", "tests", "parity", "settings")
NOTEBOOK_SECONDS, LONG_NOTEBOOK_SECONDS, SETTING_NOTEBOOK_SECONDS = (
    180,
    2400,
    300,
)  # killed after that
SLOW_SECONDS = 30  # a notebook's share; slower ones are named
TESTS_SECONDS = 1500
LONG_TESTS_SECONDS = 4 * 3600
PARITY_SECONDS = 300
PARITY = (
    "anchors assign_atss assign_maxiou coder_delta_xywh loss_boxes loss_classes centerness nms model_atss_r50 "
    "model_retinanet_r50 eval_voc eval_coco deform_conv official_madet_*"
).split()

# How one machine differs from the next: instruction set and threads change the order of sums, and where training ends.
# A thread that waits sleeps: spinning ones are many times slower where other programs run.
NARROW = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
ONE = {"OMP_NUM_THREADS": "1"}
TWO = {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
SETTINGS = {
    "best instruction set, one thread": ONE,
    "best instruction set, two threads": TWO,
    "AVX2, one thread": NARROW | ONE,
    "AVX2, two threads": NARROW | TWO,
    "no vector instructions, one thread": {"ATEN_CPU_CAPABILITY": "default"} | ONE,
}
NETWORKS = (
    "model_atss_r50 model_retinanet_r50 model_faster_rcnn* model_rotated_* official_madet_*".split()
)  # of the cases


def say(text=""):
    print(text, flush=True)


class Children:
    """Child processes, each its own group, so that nothing of theirs outlives this process."""

    def __init__(self):
        self.running = set()

    def run(self, command, seconds, output=None, errors=subprocess.STDOUT, **options):
        """Return code (None: stopped for taking too long) and, where `output` is PIPE, what was printed."""
        child = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            stdout=output,
            stderr=errors if output else None,
            **options,
        )
        self.running.add(child)
        try:
            printed, _ = child.communicate(timeout=seconds)
            return child.returncode, printed or ""
        except subprocess.TimeoutExpired:
            self.kill(child)
            return None, child.communicate()[0] or ""
        except BaseException:
            self.kill(child)
            raise
        finally:
            self.running.discard(child)

    def lines(self, command, **options):
        """The lines that a command prints, as they come; what it says on standard error is shown."""
        child = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
        self.running.add(child)
        try:
            yield from child.stdout
            child.wait()
        except BaseException:
            child.terminate()  # it ends its own children, which are process groups of their own
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                self.kill(child)
            raise
        finally:
            self.running.discard(child)

    def kill(self, child):
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass

    def kill_all(self):
        for child in list(self.running):
            self.kill(child)


def root_of_scripts():
    return Path(__file__).resolve().parent


def tool(name):
    return Path(sys.executable).parent / name


def find_notebooks(root):
    """The library's notebooks, without hidden ones and those beside a file named .notest."""
    found = sorted((root / "nbs").rglob("*.ipynb"))
    return [
        path
        for path in found
        if not any(part[0] in "._" for part in path.relative_to(root).parts)
        and not (path.parent / ".notest").exists()
    ]


def flagged(path, flag):
    """Does any code cell carry the directive?"""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return any(
        re.search(rf"^#\| *{flag}\b", "".join(cell["source"]), re.M)
        for cell in cells
        if cell["cell_type"] == "code"
    )


def run_notebooks(root, paths, children, flags="", seconds=NOTEBOOK_SECONDS, workers=2, setting=()):
    """Each in a fork of ci/notebooks.py, `workers` at a time, with `setting`'s variables.

    Shows what a failing one printed.
    """
    tally, times = Counter(), {}
    with tempfile.TemporaryDirectory(prefix="madet-test-") as home:
        env = dict(os.environ, IPYTHONDIR=home, XDG_CONFIG_HOME=home, TMPDIR=home)
        env.setdefault("OMP_NUM_THREADS", "1")
        env.update(setting)
        command = [sys.executable, root_of_scripts() / "notebooks.py", "--workers", workers]
        command += ["--seconds", seconds, "--flags", flags, *paths]
        for line in children.lines(command, cwd=root, env=env):
            result = json.loads(line)
            name = Path(result["path"]).relative_to(root)
            code, took = result["code"], result["seconds"]
            times[name] = took
            tally["passed" if code == 0 else "failed"] += 1
            state = "ok    " if code == 0 else "FAILED"
            slow = f"   more than {SLOW_SECONDS} s" if took > SLOW_SECONDS else ""
            say(f"{state} {took:6.1f} s  {name}{slow}")
            if code is None:
                say(f"       stopped after {seconds} s")
            if code != 0:
                last = result["printed"].strip().splitlines()[-60:]
                say("\n".join("       " + line for line in last))
    for path in paths:
        if path.relative_to(root) not in times:
            say(
                f"FAILED           {path.relative_to(root)}: the process that runs notebooks ended before it"
            )
            tally["failed"] += 1
    if times:
        slowest = sorted(times.items(), key=lambda pair: -pair[1])[:3]
        named = ", ".join(f"{name.stem} {took:.0f} s" for name, took in slowest)
        say(
            f"{len(times)} notebooks, {sum(times.values()):.0f} s of their time, the slowest: {named}"
        )
    return tally


def run_tests(
    root, children, paths=(), marks="not long", seconds=TESTS_SECONDS, setting=(), workers=2
):
    """pytest on ci/tests; counts come from its JUnit report."""
    with tempfile.TemporaryDirectory(prefix="madet-test-") as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            *(paths or ["ci/tests"]),
            "-q",
            "-m",
            marks,
            "--durations=5",
            "--durations-min=2",
            "-p",
            "no:cacheprovider",
            *(("-n", str(workers), "--dist", "loadfile") if workers > 1 else ()),
            f"--junitxml={report}",
            f"--basetemp={folder}/tmp",
        ]
        code, _ = children.run(command, seconds, cwd=root, env=os.environ | dict(setting))
        if code is None:
            say(f"FAILED pytest was stopped after {seconds} s")
        if code == 5:  # nothing collected
            return Counter()
        try:
            suites = list(ElementTree.parse(report).getroot().iter("testsuite"))
        except (OSError, ElementTree.ParseError):
            return Counter(failed=1)
    total, bad, skipped = (
        sum(int(suite.get(key, 0)) for suite in suites for key in keys)
        for keys in (["tests"], ["failures", "errors"], ["skipped"])
    )
    return Counter(passed=total - bad - skipped, failed=max(bad, int(code != 0)), skipped=skipped)


def golden_folder(root):
    """Fixtures beside the tests or in the shared folder; None where there are none."""
    shared = os.environ.get("MADET_SHARED")
    places = [root / "ci/golden"] + ([Path(shared) / "golden"] if shared else [])
    return next((place for place in places if any(place.glob("*.npz"))), None)


def run_parity(root, children, only=PARITY, seconds=PARITY_SECONDS, setting=()):
    """`madet parity` on the fixtures, which prints a line a case on standard error; one count per case."""
    folder = golden_folder(root)
    if folder is None:
        say("not run: no fixtures in ci/golden or $MADET_SHARED/golden")
        return Counter(skipped=1)
    code, printed = children.run(
        [sys.executable, "-m", "madet", "parity", "--help"], 60, subprocess.PIPE, cwd=root
    )
    if code != 0:
        say("not run: this checkout has no `madet parity`")
        return Counter(skipped=1)
    command = [sys.executable, "-m", "madet", "parity", folder, "--only", *only, "--json"]
    code, text = children.run(
        command, seconds, subprocess.PIPE, None, cwd=root, env=os.environ | dict(setting)
    )
    try:
        cases = json.loads(text)["cases"]
    except (ValueError, KeyError, TypeError):
        say(f"FAILED `madet parity` ended with {code} and no JSON: {text[-300:]}")
        return Counter(failed=1)
    good = sum(bool(case["ok"]) for case in cases)
    return Counter(passed=good, failed=max(len(cases) - good, int(code != 0)))


def run_in_setting(root, children, setting):
    """What hangs on the order of sums, with these variables: marked notebooks and tests, parity of networks."""
    marked = [path for path in find_notebooks(root) if flagged(path, "trains")]
    workers = 2 if setting["OMP_NUM_THREADS"] == "1" else 1
    tally = run_notebooks(
        root, marked, children, seconds=SETTING_NOTEBOOK_SECONDS, workers=workers, setting=setting
    )
    tally += run_tests(
        root, children, marks="trains and not long", setting=setting, workers=workers
    )
    return tally + run_parity(root, children, NETWORKS, setting=setting)


def stages(root, arguments, children):
    """Pairs of a headline and a function that runs it."""
    books = [Path(path).resolve() for path in arguments.what if path.endswith(".ipynb")]
    tests = [path for path in arguments.what if ".py" in path]
    words = [word for word in arguments.what if word in WORDS]
    everything = not arguments.what
    if arguments.long:
        slow = books or [path for path in find_notebooks(root) if flagged(path, "slow")]
        if books or slow and (everything or "notebooks" in words):
            yield (
                "notebooks with their slow cells",
                lambda: run_notebooks(root, slow, children, "slow", LONG_NOTEBOOK_SECONDS, 1),
            )
        if tests or everything or "tests" in words:
            yield (
                "long tests",
                lambda: run_tests(root, children, tests, "long", LONG_TESTS_SECONDS, workers=1),
            )
        for name, setting in SETTINGS.items() if everything or "settings" in words else ():
            yield f"what trains: {name}", partial(run_in_setting, root, children, setting)
        return
    if tests or everything or "tests" in words:
        yield "tests (ci/tests)", lambda: run_tests(root, children, tests)
    if books or everything or "notebooks" in words:
        yield "notebooks", lambda: run_notebooks(root, books or find_notebooks(root), children)
    if everything or "parity" in words:
        yield "parity", lambda: run_parity(root, children)


def main():
    parser = argparse.ArgumentParser(
        prog="ci/test", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument(
        "what",
        nargs="*",
        help="stages (settings: with --long), or paths of notebooks and test files",
    )
    parser.add_argument("--long", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    root = arguments.root.resolve()
    children = Children()
    total = Counter()
    unknown = [
        word
        for word in arguments.what
        if word not in WORDS and not (word.endswith(".ipynb") or ".py" in word)
    ]
    if unknown:
        parser.error(
            f"{unknown[0]} is neither a stage (notebooks, tests, parity) nor a notebook nor a test file"
        )
    if "settings" in arguments.what and not arguments.long:
        parser.error("settings is a stage of ci/test-long")
    start = time.monotonic()
    for headline, stage in stages(root, arguments, children):
        begun = time.monotonic()
        say(f"--- {headline}")
        tally = stage()
        say(
            f"    {tally['passed']} passed, {tally['failed']} failed, {tally['skipped']} not run, "
            f"{time.monotonic() - begun:.0f} s\n"
        )
        total += tally
    say(
        f"{time.monotonic() - start:.0f} s in all"
        + (f"; not run here: {total['skipped']}" if total["skipped"] else "")
    )
    say(f"{total['passed']} passed, {total['failed']} failed")
    return int(bool(total["failed"] or not total["passed"]))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # also where it is inherited as ignored
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
