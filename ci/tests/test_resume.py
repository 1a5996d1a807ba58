"""A run that was killed, interrupted or out of room ends as one that was not.

True processes, true signals, true limits.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_run import write_data

from madet.training.progress import read_log

HERE = Path(__file__).parent
TIMING = {"steps_per_second", "peak_memory_mb", "eta_seconds"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """30 pictures of 32 px with one bright rectangle each, as COCO."""
    return write_data(tmp_path_factory.mktemp("toy"))


def command(data, out, *words):
    return [sys.executable, str(HERE / "toy_run.py"), str(data), str(out), *map(str, words)]


def go(data, out, *words, **more):
    done = subprocess.run(
        command(data, out, *words), capture_output=True, text=True, timeout=200, **more
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def start(data, out, *words, until=0, **more):
    """A run in the background, given back once its log has reached step `until`."""
    child = subprocess.Popen(command(data, out, *words), stderr=subprocess.PIPE, text=True, **more)
    deadline = time.time() + 100
    while time.time() < deadline and child.poll() is None:
        if (steps := [line["step"] for line in read_log(out / "log.jsonl")]) and steps[-1] >= until:
            return child
        time.sleep(0.01)
    raise AssertionError(child.communicate()[1])


@pytest.fixture(scope="module")
def straight(data, tmp_path_factory):
    """The run that nothing happened to; all others have to end like it."""
    out = tmp_path_factory.mktemp("runs") / "straight"
    done = go(data, out, "ema=0.9")
    assert done.returncode == 0, done.stderr
    return out


def assert_same(out, reference):
    a, b = (torch.load(folder / "last.pt", weights_only=True) for folder in (out, reference))
    assert (
        a["step"] == b["step"] == 60 and a["best"] == b["best"] and a["best_step"] == b["best_step"]
    )
    for part in ("model", "optimizer", "extras", "random"):
        flat_a, flat_b = list(leaves(a[part])), list(leaves(b[part]))
        assert len(flat_a) == len(flat_b) and all(same(x, y) for x, y in zip(flat_a, flat_b)), part
    weights = [load_file(folder / "best.safetensors") for folder in (out, reference)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[1])
    logs = [
        [
            {k: v for k, v in line.items() if k not in TIMING}
            for line in read_log(folder / "log.jsonl")
        ]
        for folder in (out, reference)
    ]
    assert logs[0] == logs[1]
    scores = [
        json.loads((folder / "metrics.json").read_text())["test"] for folder in (out, reference)
    ]
    assert scores[0] == scores[1]


def leaves(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def same(a, b):
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("at", [3, 37])  # before the first checkpoint, and between two
@pytest.mark.trains
def test_kill_9_and_resume(data, straight, tmp_path, at):
    child = start(data, tmp_path / "run", "ema=0.9", "--pause", 0.02, until=at)
    child.kill()
    child.communicate()
    before = read_log(tmp_path / "run/log.jsonl")[-1]["step"]
    assert before < 60 and not (tmp_path / "run/metrics.json").exists()
    done = go(data, tmp_path / "run", "ema=0.9", "--resume")
    assert done.returncode == 0, done.stderr
    assert ("resumed at step" in done.stderr) == (at > 10)
    assert_same(tmp_path / "run", straight)


@pytest.mark.long
def test_killed_again_and_again_with_workers(data, straight, tmp_path):
    for at in (12, 25, 41):
        words = ["--resume"] if at > 12 else []
        start(
            data, tmp_path / "run", "ema=0.9", "workers=2", "--pause", 0.02, *words, until=at
        ).kill()
        time.sleep(0.2)
    assert go(data, tmp_path / "run", "ema=0.9", "--resume").returncode == 0
    assert_same(tmp_path / "run", straight)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save_and_leave_with_130(data, straight, tmp_path, number):
    deaf = dict(
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
    )  # as a shell starts what runs in the background
    child = start(data, tmp_path / "run", "ema=0.9", "--pause", 0.05, until=23, **deaf)
    child.send_signal(number)
    words = child.communicate(timeout=30)[1]
    assert (
        child.returncode == 130 and "continue with --resume" in words and "Traceback" not in words
    )
    logged = read_log(tmp_path / "run/log.jsonl")[-1]["step"]
    assert (
        torch.load(tmp_path / "run/last.pt", weights_only=True)["step"] == logged
    )  # not one step lost
    assert go(data, tmp_path / "run", "ema=0.9", "--resume").returncode == 0
    assert_same(tmp_path / "run", straight)


def test_a_full_disk_while_saving(data, straight, tmp_path):
    child = start(data, tmp_path / "run", "ema=0.9", "--pause", 0.02, until=15)
    child.kill()
    child.communicate()
    kept = (tmp_path / "run/last.pt").read_bytes()
    room = (tmp_path / "run/log.jsonl").stat().st_size + 2000
    assert len(kept) > room  # checkpoints do not fit, nor does the whole log
    done = go(data, tmp_path / "run", "ema=0.9", "--resume", "--limit", room)
    assert (
        done.returncode == 2
        and "full" in done.stderr
        and "--resume" in done.stderr
        and "tries again later" in done.stderr
    )
    assert (tmp_path / "run/last.pt").read_bytes() == kept
    assert not list((tmp_path / "run").glob("*half-written"))
    assert go(data, tmp_path / "run", "ema=0.9", "--resume").returncode == 0
    assert_same(tmp_path / "run", straight)


def test_who_may_write(data, straight, tmp_path):
    again = go(data, straight, "ema=0.9")
    assert again.returncode == 2 and "--resume" in again.stderr
    finished = go(data, straight, "ema=0.9", "--resume")
    assert finished.returncode == 0 and "finished already" in finished.stderr
    child = start(data, tmp_path / "run", "save_every=1", "--pause", 1, until=2)
    try:
        second = go(data, tmp_path / "run", "--resume")
        assert second.returncode == 2 and str(child.pid) in second.stderr
    finally:
        child.kill()
        child.communicate()
    refused = go(data, tmp_path / "run", "--resume", "lr=0.5")
    assert refused.returncode == 2 and "lr" in refused.stderr and "0.5" in refused.stderr


@pytest.mark.long
@pytest.mark.trains
def test_workers_do_not_matter(data, straight, tmp_path):
    assert go(data, tmp_path / "run", "ema=0.9", "workers=2").returncode == 0
    assert_same(tmp_path / "run", straight)


def two(data, out, *words):
    """The same run as two processes that know of each other."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    common = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
    }
    return [
        subprocess.Popen(
            command(data, out, *words),
            stderr=subprocess.PIPE,
            text=True,
            env=common | {"RANK": str(r), "LOCAL_RANK": str(r)},
        )
        for r in range(2)
    ]


@pytest.mark.parametrize("kind", ["toy", pytest.param("atss", marks=pytest.mark.long)])
@pytest.mark.trains
def test_two_processes_make_the_losses_of_one(data, tmp_path, kind):
    words = ["--calm", "optimizer=sgd", "lr=0.01"]
    if kind == "atss":
        data, words = (
            "embedded",
            words + ["method=atss", "image_size=96", "steps=12", "eval_every=0", "level=hard"],
        )
    ranks = two(data, tmp_path / "two", *words)
    said = [child.communicate(timeout=300)[1] for child in ranks]
    one = go(data, tmp_path / "one", *words)
    assert one.returncode == 0 and [child.returncode for child in ranks] == [0, 0], said
    logs = [
        [line for line in read_log(tmp_path / name / "log.jsonl") if "loss" in line]
        for name in ("one", "two")
    ]
    assert len(logs[0]) == len(logs[1]) >= 12
    for a, b in zip(*logs):
        for name in a.keys() - TIMING - {"grad_norm"}:
            assert abs(a[name] - b[name]) <= 1e-5 * max(1, abs(a[name])), (
                a["step"],
                name,
                a[name],
                b[name],
            )
        assert abs(a["grad_norm"] - b["grad_norm"]) < 1e-3 * a["grad_norm"]
    assert said[1] == ""  # only rank 0 talks
    scores = [
        json.loads((tmp_path / name / "metrics.json").read_text())["test"]["AP"]
        for name in ("one", "two")
    ]
    assert abs(scores[0] - scores[1]) < 1e-4


def test_two_processes_stop_together(data, tmp_path):
    ranks = two(data, tmp_path / "run", "--pause", 0.05)
    deadline = time.time() + 100
    while time.time() < deadline and not (tmp_path / "run/last.pt").exists():
        time.sleep(0.05)
    ranks[1].terminate()  # only one of them is told
    said = [child.communicate(timeout=60)[1] for child in ranks]
    assert [child.returncode for child in ranks] == [130, 130], said
    assert "continue with --resume" in said[0]
