"""Starts `madet` commands for test_kills.py without importing torch each time: a process that has it forks a
child for each.

python kill_server.py; a line of JSON on standard input, [arguments, file for what is printed, file for the
phases], gives two lines on
standard output: the child's number at once, its exit code (negative: the signal that killed it) when it is
gone. The child leads a
session of its own, leaves as any Python does, and writes down what it is doing in the file for the phases.
"""

import gc
import importlib
import json
import mmap
import os
import signal
import struct
import sys

PHASES = (
    "starting",
    "noting",
    "reading",
    "loading",
    "step",
    "saving",
    "keeping",
    "evaluating",
    "scoring",
    "drawing",
    "leaving",
)
EARLY = (
    "matplotlib.pyplot madet.detectors.dense madet.methods.train madet.commands "
    "pycocotools.cocoeval"
).split()
FORMAT = f"{1 + len(PHASES)}I"  # the phase now, then how often each was entered


class Place:
    """What a process is doing, in a file of a few bytes that another process can read at any time.

    Made where it is missing.
    """

    def __init__(self, path):
        if not path.exists():
            path.write_bytes(bytes(struct.calcsize(FORMAT)))
        self.file = open(path, "r+b")
        self.bytes = mmap.mmap(self.file.fileno(), 0)
        self.owner = os.getpid()

    def read(self):
        """(phase, {phase: times entered})"""
        now, *counts = struct.unpack(FORMAT, self.bytes[:])
        return PHASES[now], dict(zip(PHASES, counts))

    def enter(self, phase):
        """Say that `phase` begins; processes that a child forks are silent. Gives the phase before."""
        before, counts = self.read()
        if os.getpid() == self.owner:
            counts[phase] += 1
            self.bytes[:] = struct.pack(FORMAT, PHASES.index(phase), *counts.values())
        return before

    def mark(self, owner, name, phase, unless=None):
        """Let the function `name` of a module or class say when it begins and that it has ended."""
        inner = getattr(owner, name)

        def outer(*args, **options):
            before = self.enter(self.read()[0] if self.read()[0] == unless else phase)
            try:
                return inner(*args, **options)
            finally:
                self.enter(before)

        setattr(owner, name, outer)


def mark_all(place):
    """What stands between the marked functions of `train` is waiting for the next batch."""
    from madet.methods import train as report
    from madet.training import loop, resume, run
    from madet.training import run_folder as folder

    place.mark(folder.RunFolder, "keep", "noting")
    place.mark(folder.RunFolder, "note_environment", "noting")
    place.mark(run, "train", "loading")
    place.mark(run.Scorer, "detect", "scoring", unless="evaluating")
    place.mark(run, "evaluate_found", "scoring", unless="evaluating")
    place.mark(report, "draw", "drawing")
    place.mark(loop, "train_step", "step")
    place.mark(loop, "evaluate_and_keep_best", "evaluating")
    place.mark(resume, "save_checkpoint", "saving")
    place.mark(resume, "save_weights", "keeping")
    place.mark(resume, "load_checkpoint", "reading")


def child(arguments, printed, phases):
    """The life of one command, in a forked process."""
    from pathlib import Path

    from madet.cli import main

    os.setsid()
    with open(printed, "ab", 0) as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)
    place = Place(Path(phases))
    mark_all(place)
    code = main(arguments)
    place.enter("leaving")
    return code


def serve():
    """Fork for each line of standard input.

    Gives the exit code in a child, None in the server at the end of the input.
    """
    for name in EARLY:
        importlib.import_module(name)
    print("ready", flush=True)
    for line in iter(sys.stdin.readline, ""):
        gc.freeze()
        pid = os.fork()
        if not pid:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            return child(*json.loads(line))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # also where it was inherited as ignored
    sys.exit(serve())
