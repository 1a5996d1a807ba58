"""A hundred kills: however a run dies, `--resume` ends it as if nothing had happened, bit for bit.

Two chains of runs side by side (ATSS with averaged weights; RetinaNet with SGD on halved batches). Sessions
of a run are killed by
SIGINT, SIGTERM and SIGKILL in turn, at a moment drawn from a seed: after so many seconds, or so many
milliseconds into the n-th save,
evaluation, wait for images and so on. Every twelfth session is the command line itself, the others are
forked (kill_server.py) with
the phase of the run on view. What happened when is written to build/kills.csv.
"""

import csv
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from kill_server import Place
from test_resume import assert_same

from madet.data.loading import _uninterrupted
from madet.data.make_synthetic import make_synthetic
from madet.training.progress import read_log

ROOT = Path(__file__).resolve().parents[2]
KILLS = 50  # in each chain
SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGKILL
COMMON = (
    "--scale thimble --steps 60 --warmup 5 --save-every 2 --eval-every 6 --log-every 1 --image-size 96 "
    "--fpn-channels 32 --head-convs 1"
).split()
CHAINS = {
    "atss": "--method atss --ema 0.9".split(),
    "retinanet": "--method retinanet --optimizer sgd --lr 0.01 --accumulate 2 --clip-norm 5 --seed 1".split(),
}
# phase: (how often it is aimed at, in which of its occurrences in a session at the latest, seconds from there
# in which the signal falls)
AIMS = {
    "moment": (4, 0, 3.0),
    "starting": (1, 0, 0.2),
    "noting": (1, 2, 0.01),
    "reading": (1, 1, 0.01),
    "loading": (4, 8, 0.01),
    "step": (2, 8, 0.04),
    "saving": (5, 6, 0.02),
    "keeping": (2, 2, 0.01),
    "evaluating": (5, 3, 0.3),
    "scoring": (1, 1, 0.3),
    "drawing": (1, 1, 2.0),
}
UNSEEN = {
    "moment": (2, 0, 9.0),
    "saving": (1, 1, 0.01),
    "scoring": (1, 1, 0.5),
}  # the same for the command line, from what can be seen outside
PATIENCE = 600.0  # seconds for one session, on a busy machine
LATEST = 15.0  # seconds after which the signal falls even if what it is aimed at has not come
ORPHANS = 5.0  # seconds after which nothing may be left of a session that was killed


@dataclass
class Session:
    """One start of a command, and how to look at it from outside."""

    pid: int
    out: Path  # the run folder
    printed: Path  # the file with what it says
    wait: object  # () -> exit code
    place: Place | None = None
    begun: float = field(default_factory=time.monotonic)

    def over(self):
        try:
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            return True

    def half(self):
        return sorted(path.name.split(".")[0] for path in self.out.glob("*.half-written"))

    def phase(self):
        return (
            self.place.read()[0]
            if self.place
            else "saving"
            if self.half()
            else "scoring"
            if "scoring" in self.printed.read_text()
            else "unseen"
        )

    def reached(self, aim, times):
        """Whether the phase `aim` has begun so many times (of a command line: whether it shows)."""
        if not times:
            return True
        return self.place.read()[1][aim] >= times if self.place else self.phase() == aim


class Starter:
    """Starts sessions in one folder: forked by a server, or as command lines."""

    def __init__(self, folder):
        self.folder = folder
        self.printed = folder / "printed"
        self.temporary = folder / "tmp"
        self.temporary.mkdir(parents=True)
        self.environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.temporary),
            "OMP_NUM_THREADS": "1",
            "MPLBACKEND": "Agg",
        }
        self.server = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("kill_server.py")],
            env=self.environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=1,
        )
        assert self.server.stdout.readline() == "ready\n"

    def answer(self):
        return int(self.server.stdout.readline())

    def fork(self, words, out):
        (self.folder / "phases").unlink(missing_ok=True)
        place = Place(self.folder / "phases")
        self.printed.write_bytes(b"")
        self.server.stdin.write(
            json.dumps([words, str(self.printed), str(self.folder / "phases")]) + "\n"
        )
        return Session(self.answer(), out, self.printed, self.answer, place)

    def command(self, words, out):
        self.printed.write_bytes(b"")
        with open(self.printed, "ab") as file:
            child = subprocess.Popen(
                [sys.executable, "-m", "madet", *words],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        return Session(child.pid, out, self.printed, lambda: child.wait(PATIENCE))

    def close(self):
        self.server.stdin.close()
        self.server.wait(PATIENCE)


def members(session):
    """Living processes of a session, by number."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, own = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue  # it has just gone
        if int(own) == session and state not in "ZX":
            found.append(int(folder.name))
    return found


def strike(session, number, aims, dice):
    """Send the signal at a drawn moment; gives what was seen then, None where the session ended before."""
    aim = dice.choices(list(aims), [often for often, *_ in aims.values()])[0]
    _, latest, span = aims[aim]
    times = dice.randint(1, latest) if latest else 0
    delay = dice.uniform(0, span)
    until = None
    while until is None or time.monotonic() < until:
        if until is None and (
            session.reached(aim, times) or time.monotonic() > session.begun + LATEST
        ):
            until = time.monotonic() + delay
        if session.over():
            return None
        time.sleep(0.0005)
    seen = dict(
        signal=number.name,
        aim=aim,
        phase=session.phase(),
        half_written=" ".join(session.half()),
        seconds=round(time.monotonic() - session.begun, 3),
    )
    try:
        os.kill(session.pid, number)
    except ProcessLookupError:
        return None
    return seen


def check_end(session, code, seen, number):
    """A killed session leaves with the right code, without a traceback, and with what it says it has saved."""
    said, done = session.printed.read_text(), (session.out / "metrics.json").exists()
    if (
        done and seen["phase"] == "leaving" and code in (0, 130, -number)
    ):  # all was written, Python itself is on its way out
        return
    assert "Traceback" not in said, said
    if number == signal.SIGKILL:
        assert code == -9 or code == 0 and done, (code, seen, said)
        return
    early = (
        seen["phase"] in ("starting", "unseen") and code == -signal.SIGTERM
    )  # before madet listens
    assert code == 130 or code == 0 and done and seen["phase"] == "noting" or early, (
        code,
        seen,
        said,
    )
    if "saved at step" in said:
        step = int(said.rpartition("saved at step ")[2].split()[0])
        assert (
            step
            == torch.load(session.out / "last.pt", weights_only=True)["step"]
            == read_log(session.out / "log.jsonl")[-1]["step"]
        )


def sweep(gone, wait=False):
    """Sessions of `gone` ({number: time of death}) of which something is left; too long is an error."""
    while True:
        left = {number: then for number, then in gone.items() if members(number)}
        late = {
            number: members(number)
            for number, then in left.items()
            if time.monotonic() - then > ORPHANS
        }
        assert not any(late.values()), f"processes outlive their parent: {late}"
        if not left or not wait:
            return left
        time.sleep(0.05)


def run_through(session):
    """A session that nobody disturbs."""
    code = session.wait()
    assert code == 0, session.printed.read_text()


def finish(starter, words, out, dice, rows, kills, stop):
    """One run, killed until it ends or enough kills were made; `rows` grows by a row for each kill."""
    gone = {}
    for number in itertools.count():
        if (out / "metrics.json").exists():
            return sweep(gone, wait=True)
        if stop.is_set():
            raise Stopped
        assert number < 60, "this run does not come to an end"
        asked = [
            *words,
            "--out",
            str(out),
            "--workers",
            str(dice.choice((0, 0, 2))),
            *["--resume"] * (number > 0),
        ]
        visible = len(rows) % 12 != 11 or len(rows) >= kills
        session = (starter.fork if visible else starter.command)(asked, out)
        if len(rows) >= kills:
            run_through(session)
            continue
        kill = SIGNALS[len(rows) % len(SIGNALS)]
        seen = strike(session, kill, AIMS if visible else UNSEEN, dice)
        code = session.wait()
        gone = sweep(gone) | {session.pid: time.monotonic()}
        if seen is None:
            assert code == 0, session.printed.read_text()
            continue
        lines = read_log(out / "log.jsonl")
        rows.append(
            dict(
                run=out.name,
                session=number,
                command=not visible,
                workers=asked[asked.index("--workers") + 1],
                **seen,
                code=code,
                step=lines[-1]["step"] if lines else 0,
            )
        )
        check_end(session, code, seen, kill)


class Stopped(Exception):
    """The other chain has failed."""


def chain(name, data, folder, rows, stop):
    """Runs, one after another, until `KILLS` kills are made and the last run has ended.

    Each is compared with one that nothing happened to.
    """
    dice = random.Random(name)
    starter = Starter(folder)
    words = [*COMMON, *CHAINS[name], "--data", str(data)]
    words = ["train", *words]
    try:
        run_through(starter.fork([*words, "--out", str(folder / "straight")], folder / "straight"))
        for number in itertools.count():
            out = folder / f"run{number}"
            finish(starter, words, out, dice, rows, KILLS, stop)
            assert_same(out, folder / "straight")
            assert [line["step"] for line in read_log(out / "log.jsonl") if "loss" in line] == list(
                range(1, 61)
            )
            assert {path.name for path in out.iterdir()} == {
                path.name for path in (folder / "straight").iterdir()
            }
            if len(rows) >= KILLS:
                break
        left = [
            path.name
            for path in starter.temporary.iterdir()
            if not path.name.startswith("torchinductor")
        ]  # that is torch's cache
        assert not left, left
    except BaseException:
        stop.set()
        raise
    finally:
        starter.close()


def test_starting_and_stopping_workers_is_not_cut_in_two():
    """A signal waits for the end of such a block, then does what it always does."""
    order = []
    before = signal.signal(signal.SIGTERM, lambda *_: order.append("handled"))
    try:
        with _uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            order.append("block done")
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert order == ["block done", "handled", "handled"]


@pytest.mark.long
def test_a_hundred_kills(root, tmp_path, capsys):
    make_synthetic(tmp_path / "data", "easy", {"train": 24, "val": 12, "test": 12, "unlabelled": 0})
    rows = {name: [] for name in CHAINS}
    stop = threading.Event()
    begun = time.monotonic()
    try:
        with ThreadPoolExecutor(len(CHAINS)) as pool:
            ends = [
                pool.submit(chain, name, tmp_path / "data", tmp_path / name, rows[name], stop)
                for name in CHAINS
            ]
        for end in sorted(ends, key=lambda end: isinstance(end.exception(), Stopped)):
            end.result()
    finally:
        (root / "build").mkdir(exist_ok=True)
        with open(root / "build/kills.csv", "w", newline="") as file:
            table = csv.DictWriter(
                file,
                "chain run session command workers signal aim phase half_written seconds code step".split(),
            )
            table.writeheader()
            table.writerows(dict(chain=name, **row) for name, some in rows.items() for row in some)
    every = [row for some in rows.values() for row in some]
    seen = Counter(row["phase"] for row in every)
    with capsys.disabled():
        print(
            f"\n{len(every)} kills of "
            f"{sum(len({row['run'] for row in some}) for some in rows.values())} runs in "
            f"{time.monotonic() - begun:.0f} s:",
            ", ".join(f"{phase} {count}" for phase, count in seen.most_common()),
        )
    assert len(every) == KILLS * len(CHAINS) and {row["signal"] for row in every} == {
        number.name for number in SIGNALS
    }
    assert min(seen[phase] for phase in ("saving", "evaluating", "loading", "step")) >= 3 and any(
        row["half_written"] for row in every
    )
