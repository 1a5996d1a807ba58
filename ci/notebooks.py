"""Runs notebooks, each in a fork of one process that has imported what they all import; used by ci/suite.py.

`python ci/notebooks.py --workers 2 --seconds 180 [--flags slow] NOTEBOOK ...` prints a line of JSON for
each notebook as it ends:
path, code (None: stopped for taking too long), seconds, printed. Imports take four of the five processor
seconds of a short notebook.
"""

import argparse
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

SHARED = (
    "torch torchvision torch.nn.functional matplotlib.pyplot skimage.data numpy PIL.Image pycocotools.cocoeval "
    "safetensors.torch IPython.display IPython.core.completer nbdev.test execnb.shell"
).split()


def preload():
    """Import what most notebooks need; one that is missing is the notebooks' business."""
    for name in SHARED:
        try:
            importlib.import_module(name)
        except ImportError:
            print(f"{name} could not be imported", file=sys.stderr)


def run_one(path, flags, seconds):
    """In the child: run one notebook as nbdev-test does; gives the exit code."""
    from nbdev.test import test_nb

    try:
        good, _ = test_nb(
            path,
            skip_flags="notest gpu slow".split(),
            force_flags=flags.split(),
            basepath=os.environ.get("PYTHONPATH", "."),
            cell_timeout=seconds,
        )
        return 0 if good else 1
    except BaseException:
        traceback.print_exc()
        return 1


def start(path, flags, seconds):
    """Fork a child, a process group of its own, that runs `path` with its printing in a file: (process id, file)."""
    printed = tempfile.NamedTemporaryFile(prefix="madet-notebook-", mode="w+", errors="replace")
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child, printed
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    os.dup2(printed.fileno(), 1)
    os.dup2(printed.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    code = run_one(path, flags, seconds)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def kill(child):
    """End a child and everything it started."""
    try:
        os.killpg(child, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass


class Pool:
    """At most `workers` notebooks at a time."""

    def __init__(self, workers, flags, seconds):
        self.workers = workers
        self.flags = flags
        self.seconds = seconds
        self.running = {}  # process id -> (path, its printing, when it began)

    def run(self, paths):
        """Yields a result for each path in the order in which they end."""
        waiting = list(paths)
        while waiting or self.running:
            while waiting and len(self.running) < self.workers:
                path = waiting.pop(0)
                child, printed = start(path, self.flags, self.seconds)
                self.running[child] = (path, printed, time.monotonic())
            yield from self.ended()
            time.sleep(0.05)

    def ended(self):
        """Results of the children that have ended or were stopped."""
        for child, (path, printed, begun) in list(self.running.items()):
            took = time.monotonic() - begun
            gone, status = os.waitpid(child, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if gone else None
            if not gone and took < self.seconds:
                continue
            kill(child)
            if not gone:
                os.waitpid(child, 0)
            del self.running[child]
            printed.seek(0)
            text = printed.read()
            printed.close()
            yield {"path": str(path), "code": code, "seconds": round(took, 2), "printed": text}

    def stop(self):
        for child in self.running:
            kill(child)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=180)
    parser.add_argument("--flags", default="")
    parser.add_argument("paths", nargs="+", type=Path)
    arguments = parser.parse_args()
    pool = Pool(arguments.workers, arguments.flags, arguments.seconds)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(143))
    preload()
    try:
        for result in pool.run(arguments.paths):
            print(json.dumps(result), flush=True)
    finally:
        pool.stop()


if __name__ == "__main__":
    main()
