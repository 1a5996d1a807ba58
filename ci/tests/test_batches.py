"""Batches: a pure function of seed and step, whoever works for them.

Also workers that die with their parent and not before.
"""

import gc
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from madet.boxes.errors import BadInput
from madet.boxes.geometry import Rotated, Upright
from madet.data import loading
from madet.data.augment import (
    Compose,
    MultiScale,
    Photometric,
    RandomCrop,
    RandomFlip,
    RandomRotate,
    fit,
)
from madet.data.batches import Batches, epoch_table, sequential
from madet.data.sample import Dataset, Objects, Record

SIZES = [(64, 48), (48, 64), (80, 40), (50, 50), (33, 77)]
CHAIN = Compose(
    (
        MultiScale((32, 40, 48), 96),
        RandomFlip(0.7, ("horizontal", "vertical", "diagonal")),
        RandomRotate(0.5, (-30.0, 30.0)),
        RandomCrop(0.6, 1.0, allow_empty=True),
        Photometric(),
    )
)


def build(folder, count=17, geometry=Upright(), objects=3):
    """A data set of small JPEG files with random boxes."""
    random, records = np.random.default_rng(0), []
    for i in range(count):
        width, height = SIZES[i % len(SIZES)]
        path = Path(folder) / f"{i:03}.jpg"
        Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
        corner = random.random((objects, 2)) * [width / 2, height / 2]
        boxes = torch.tensor(
            np.concatenate([corner, corner + 6 + random.random((objects, 2)) * 12], 1),
            dtype=torch.float32,
        )
        ignore = torch.arange(objects) == objects - 1
        outlines = [
            [np.array([[5.0, 5], [20, 6], [12, 25]])],
            None,
            {"size": [height, width], "counts": [10, 30, height * width - 40]},
        ][:objects]
        records.append(
            Record(
                i,
                path,
                width,
                height,
                Objects(geometry.from_upright(boxes), torch.arange(objects), ignore, outlines),
            )
        )
    return Dataset(records, ("a", "b", "c"), geometry, name="noise", split="train")


@pytest.fixture
def noise(tmp_path):
    return build(tmp_path)


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


@pytest.mark.parametrize(
    "geometry", [Upright(), Rotated("le90"), Rotated("oc"), Rotated("le135")], ids=lambda g: g.name
)
def test_workers_change_no_bit(tmp_path, geometry):
    data = build(tmp_path, geometry=geometry)
    runs = [
        list(Batches(data, CHAIN, 4, seed=5, workers=workers, masks=True).stream(0, 8))
        for workers in (0, 1, 2)
    ]
    assert len(runs[0]) == 8
    assert equal(runs[0], runs[1]) and equal(runs[0], runs[2])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 4, 5, 11])
def test_a_stream_from_a_step_is_the_end_of_a_stream_from_the_beginning(noise, start, workers):
    straight = list(Batches(noise, CHAIN, 4).stream(0, 13))
    assert equal(
        straight[start:], list(Batches(noise, CHAIN, 4, workers=workers).stream(start, 13))
    )


@pytest.mark.parametrize("world", [2, 3, 6])
def test_ranks_together_are_one_process(noise, world):
    one = Batches(noise, CHAIN, 6)
    several = [Batches(noise, CHAIN, 6, rank=rank, world=world) for rank in range(world)]
    for step in range(9):
        assert (
            one.at(step)
            == sum((batches.at(step) for batches in several), [])
            == several[0].whole(step)
        )
    whole = list(one.stream(0, 9))
    parts = [list(batches.stream(0, 9)) for batches in several]
    for step, (images, targets) in enumerate(whole):
        assert equal(images, sum((part[step][0] for part in parts), []))
        assert equal(targets, sum((part[step][1] for part in parts), []))


def test_seeds_and_epochs_differ(noise):
    batches, other = Batches(noise, CHAIN, 4, seed=0), Batches(noise, CHAIN, 4, seed=1)
    steps = batches.steps_per_epoch
    orders = {
        tuple(sum((b.at(epoch * steps + i) for i in range(steps)), []))
        for b in (batches, other)
        for epoch in range(3)
    }
    assert len(orders) == 6
    for order in orders:
        counts = Counter(order)
        assert (
            set(counts) == set(range(17)) and max(counts.values()) <= 2 and len(order) == steps * 4
        )
    assert batches.epoch(steps - 1) == 0 and batches.epoch(steps) == 1


def test_groups_meet_only_in_the_remainder(noise):
    batches = Batches(noise, None, 4)
    tall = [record.width < record.height for record in noise.records]
    for epoch in range(5):
        rows = [
            batches.at(epoch * batches.steps_per_epoch + i) for i in range(batches.steps_per_epoch)
        ]
        assert not any(len({tall[i] for i in row}) > 1 for row in rows[:-2])
    assert not Batches(noise, None, 4, group_by_aspect=False).tall.any()


def test_a_subset_stays_a_subset_and_looks_the_same(noise):
    chosen = [11, 2, 8]
    few = Batches(noise, CHAIN, 1, indices=chosen)
    assert sorted(few.at(i)[0] for i in range(3)) == sorted(chosen)
    all_views = {
        t["image_id"]: (image, t)
        for images, targets in Batches(noise, CHAIN, 1).stream(0, 17)
        for image, t in zip(images, targets)
    }
    for images, targets in few.stream(0, 3):
        assert equal((images[0], targets[0]), all_views[targets[0]["image_id"]])


def test_batch_larger_than_the_data_is_said_and_served(noise):
    batches = Batches(noise, CHAIN, 40, indices=[3, 4, 5])
    assert "3 images" in batches.said[0] and "40" in batches.said[0]
    images, targets = next(batches.stream())
    assert len(images) == 40 and set(Counter(t["image_id"] for t in targets).values()) == {13, 14}
    assert len({float(image.double().sum()) for image in images}) > 20  # each repeat is drawn anew


def test_what_cannot_be_is_refused_in_a_sentence(noise):
    empty = Dataset([], (), Upright(), name="void", split="val")
    for make in (
        lambda: Batches(empty, None, 4),
        lambda: sequential(empty, None, 4),
        lambda: Batches(noise, None, 4, indices=[]),
    ):
        with pytest.raises(BadInput, match=r"holds no image .*\.$"):
            make()
    for size, world, rank in ((5, 2, 0), (0, 1, 0), (4, 2, 2)):
        with pytest.raises(BadInput, match="total_batch"):
            Batches(noise, None, size, world=world, rank=rank)


def test_images_and_batches_without_objects(tmp_path):
    data = build(tmp_path, objects=0)
    for workers in (0, 1):
        for images, targets in Batches(data, CHAIN, 4, workers=workers, masks=True).stream(0, 3):
            assert all(
                t["boxes"].shape == (0, 4)
                and t["labels"].dtype == torch.int64
                and t["ignore"].dtype == torch.bool
                for t in targets
            )
            assert all(
                t["masks"].shape == (0, *image.shape[-2:]) for image, t in zip(images, targets)
            )


def test_targets_are_what_the_interface_says(noise):
    for images, targets in Batches(noise, CHAIN, 4, masks=True).stream(0, 10):
        for image, target in zip(images, targets):
            assert (
                image.dtype == torch.float32
                and image.shape[0] == 3
                and 0 <= image.min()
                and image.max() <= 1
            )
            assert target["boxes"].dtype == target["matrix"].dtype == torch.float32 and target[
                "matrix"
            ].shape == (3, 3)
            assert target["masks"].shape == (len(target["boxes"]), *image.shape[-2:])
            record = noise.records[target["image_id"]]
            assert target["size"] == (record.height, record.width)
            assert (
                (target["boxes"] >= 0).all()
                and (target["boxes"][:, 2::2] <= image.shape[2]).all()
                and (target["boxes"][:, 3::2] <= image.shape[1]).all()
            )


def test_the_data_set_is_not_changed(noise):
    before = [record.objects.clone() for record in noise.records]
    for _, targets in Batches(noise, CHAIN, 4).stream(0, 10):
        for target in targets:
            target["boxes"].add_(100)
    for _, targets in Batches(noise, None, 4).stream(0, 10):
        for target in targets:
            target["boxes"].add_(100)
    assert all(
        torch.equal(a.boxes, record.objects.boxes) for a, record in zip(before, noise.records)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_random_state_is_left_alone(noise, workers):
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    list(Batches(noise, CHAIN, 4, workers=workers).stream(0, 3))
    list(sequential(noise, fit(40), 4, workers=workers))
    assert torch.equal(state, torch.random.get_rng_state())


# files that break


@pytest.mark.parametrize("workers", [0, 2])
def test_a_truncated_jpeg_is_named(noise, workers):
    path = noise.records[6].path
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(BadInput) as caught:
        list(Batches(noise, CHAIN, 4, workers=workers).stream(0, 5))
    assert (
        str(path) in str(caught.value)
        and "Traceback" not in str(caught.value)
        and "\n" not in str(caught.value)
    )


@pytest.mark.parametrize("damage", ["truncated", "missing", "empty", "text"])
def test_a_broken_file_loses_no_run(noise, damage):
    path = noise.records[6].path
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(
            {
                "truncated": path.read_bytes()[:-300],
                "empty": b"",
                "text": b"<html>not found</html>",
            }[damage]
        )
    runs, told = [], []
    for workers in (0, 1, 2):
        told.append([])
        runs.append(
            list(
                Batches(noise, CHAIN, 4, workers=workers, skip=True, tell=told[-1].append).stream(
                    0, 15
                )
            )
        )
    assert equal(runs[0], runs[1]) and equal(runs[0], runs[2])
    assert all(len(sentences) == 1 and str(path) in sentences[0] for sentences in told)
    plain = Batches(noise, None, 4)
    for step, (_, targets) in enumerate(runs[0]):
        assert [t["image_id"] for t in targets] == [7 if i == 6 else i for i in plain.at(step)]


def test_all_files_broken_is_an_error_and_no_endless_search(noise):
    for record in noise.records:
        record.path.write_bytes(b"")
    for workers in (0, 1):
        with pytest.raises(BadInput, match="none of its 17 images can be read"):
            next(Batches(noise, None, 4, workers=workers, skip=True, tell=lambda _: None).stream())


def test_scoring_leaves_a_broken_file_out_or_refuses(noise):
    noise.records[6].path.write_bytes(b"")
    with pytest.raises(BadInput, match="006.jpg"):
        list(sequential(noise, fit(40), 4))
    told = []
    ids = [
        t["image_id"]
        for _, targets in sequential(noise, fit(40), 4, skip=True, tell=told.append)
        for t in targets
    ]
    assert sorted(ids + [6]) == list(range(17)) and len(told) == 1


# scoring


@pytest.mark.parametrize("world, workers", [(1, 0), (1, 2), (2, 0), (3, 1)])
def test_sequential_gives_every_image_once_in_like_shapes(noise, world, workers):
    ids, mixed = [], 0
    for rank in range(world):
        for images, targets in sequential(
            noise, fit(40), 4, rank=rank, world=world, workers=workers
        ):
            ids += [t["image_id"] for t in targets]
            mixed += len({image.shape for image in images}) - 1
            assert all(max(image.shape) == 40 for image in images)
    assert sorted(ids) == list(range(17)) and mixed <= len(SIZES) - 1


# processes

CHILD = """
import atexit, sys, time, torch
ready = None
atexit.register(lambda: ready and print(time.monotonic() - ready))     # the last to be called at the end
sys.path[:0] = [{root!r}, {tests!r}]
torch.set_num_threads(1)
from test_batches import build
from madet.data.augment import RandomFlip
from madet.data.batches import Batches
stream = Batches(build({folder!r}), RandomFlip(), 4, workers=2).stream()
next(stream)
print("ready", flush=True)
{then}
"""


def start(root, tmp_path, then):
    code = CHILD.format(
        root=str(root), tests=str(root / "ci/tests"), folder=str(tmp_path), then=then
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stdout.readline() == "ready\n", child.stderr.read()
    return child, psutil.Process(child.pid).children(recursive=True)


def gone(processes, seconds):
    return not psutil.wait_procs(processes, timeout=seconds)[1]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_its_parent(root, tmp_path, how):
    child, workers = start(root, tmp_path, "time.sleep(60)")
    assert len(workers) == 2
    child.send_signal(how)
    child.wait(10)
    assert gone(workers, 3)


def test_signals_to_workers_leave_the_parent_time_to_finish(root, tmp_path):
    child, workers = start(
        root,
        tmp_path,
        "for _ in range(200): next(stream); time.sleep(.01)\nprint('finished', flush=True)\n"
        "stream.close()\nprint('closed', flush=True)",
    )
    for worker in workers:
        worker.send_signal(signal.SIGINT)
        worker.send_signal(signal.SIGTERM)
    out, err = child.communicate(timeout=30)
    assert out == "finished\nclosed\n" and child.returncode == 0 and "Traceback" not in err
    assert gone(workers, 1)


def test_workers_end_with_their_stream(noise):
    me = psutil.Process()
    before = {p.pid for p in me.children(recursive=True)}
    stream = Batches(noise, None, 4, workers=2).stream()
    next(stream)
    workers = [p for p in me.children(recursive=True) if p.pid not in before]
    assert len(workers) == 2
    stream.close()
    assert gone(workers, 3)
    with pytest.raises(KeyError):
        for _ in Batches(noise, None, 4, workers=2).stream():
            workers = [p for p in me.children(recursive=True) if p.pid not in before]
            raise KeyError("the training step failed")
    assert gone(workers, 3)


def test_workers_end_when_a_batch_is_refused_though_the_error_is_kept(noise):
    noise.records[0].path.write_bytes(b"")
    me = psutil.Process()
    before = {p.pid for p in me.children(recursive=True)}
    with pytest.raises(BadInput) as kept:
        list(Batches(noise, None, 4, workers=2).stream(0, 5))
    assert kept.value and not [
        p
        for p in me.children(recursive=True)
        if p.pid not in before and p.status() != psutil.STATUS_ZOMBIE
    ]


def test_a_forgotten_stream_costs_the_garbage_collector_no_wait(noise):
    gc.collect()
    loop = [Batches(noise, None, 4, workers=2).stream()]
    loop.append(loop)
    next(loop[0])
    del loop
    begin = time.perf_counter()
    gc.collect()
    assert time.perf_counter() - begin < 4


def test_a_program_that_forgets_its_stream_ends_quietly(root, tmp_path):
    child, workers = start(root, tmp_path, "ready = time.monotonic()")
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0 and err == "" and gone(workers, 1)
    assert float(out) < 4  # torch by itself waits 5 seconds for each worker


@pytest.mark.parametrize("count, size", [(1, 1), (1, 7), (2, 7), (13, 13), (14, 13)])
def test_epoch_tables_at_the_edges(count, size):
    for tall in (np.zeros(count, bool), np.ones(count, bool), np.arange(count) % 2 == 0):
        images, repeats = epoch_table(tall, size, 0, 0)
        assert images.shape == (-(-count // size), size) and sorted(
            images[repeats == 0].tolist()
        ) == list(range(count))
        draws = list(zip(images.ravel().tolist(), repeats.ravel().tolist()))
        assert len(set(draws)) == len(draws)


@pytest.mark.gpu
def test_a_stream_onto_a_gpu_gives_the_same_numbers(noise):
    for workers in (0, 2):
        here = Batches(noise, CHAIN, 4, masks=True).stream(0, 4)
        there = Batches(noise, CHAIN, 4, masks=True, workers=workers).stream(0, 4, device="cuda")
        for a, b in zip(here, there, strict=True):
            images, targets = b
            assert all(image.is_cuda for image in images) and all(
                t["boxes"].is_cuda for t in targets
            )
            back = [
                {
                    key: value.cpu() if isinstance(value, torch.Tensor) else value
                    for key, value in t.items()
                }
                for t in targets
            ]
            assert equal(a, ([image.cpu() for image in images], back))


def test_sizes_known_beforehand_save_looking_at_records(noise):
    class Shy(list):
        sizes = [(record.width, record.height) for record in noise.records]

        def __getitem__(self, which):
            raise AssertionError("a record was made only to learn its size")

    shy = Dataset(Shy(noise.records), noise.classes, noise.geometry)
    batches, plain = Batches(shy, None, 4), Batches(noise, None, 4)
    assert [batches.at(step) for step in range(20)] == [plain.at(step) for step in range(20)]
    assert plain.tall.any() and not plain.tall.all()


LATE = """
import multiprocessing, os, signal, sys, time
from madet.data.loading import _begin_worker

def late(begun):
    begun.set()
    while os.getppid() == multiprocessing.parent_process().pid:
        time.sleep(0.01)
    _begin_worker(0)  # the parent is gone before it is asked who it is
    time.sleep(60)

begun = multiprocessing.Event()
worker = multiprocessing.Process(target=late, args=(begun,))
worker.start()
begun.wait()
print(worker.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


TOLD_TO_LEAVE = """
import multiprocessing, os, signal, time
from madet.data import loading

def busy(begun):
    loading._begin_worker(0)
    signal.signal(signal.SIGTERM, lambda *_: loading._leave_after(0.1))
    begun.set()
    while True:  # as if a picture were so large that SIGTERM has to end it
        time.sleep(0.01)

begun = multiprocessing.Event()
worker = multiprocessing.Process(target=busy, args=(begun,))
worker.start()
begun.wait()
assert os.listdir(os.environ["TMPDIR"]), "the worker has its folder of sockets"
worker.terminate()
worker.join(20)
assert worker.exitcode == 0
"""


@pytest.fixture
def temporary(tmp_path):
    """A temporary folder for child processes, and their environment."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder, os.environ | {"TMPDIR": str(folder)}


def test_a_worker_that_is_told_to_leave_leaves_nothing(temporary):
    folder, environment = temporary
    subprocess.run([sys.executable, "-c", TOLD_TO_LEAVE], check=True, env=environment)
    assert list(folder.iterdir()) == []


def test_a_worker_whose_parent_died_before_it_began_ends(tmp_path, temporary):
    said = tmp_path / "said"
    with open(said, "w") as file:
        parent = subprocess.run([sys.executable, "-c", LATE], stdout=file, env=temporary[1])
    assert parent.returncode == -signal.SIGKILL
    worker = Path(f"/proc/{said.read_text().strip()}")
    end = time.monotonic() + 20
    while worker.exists() and " Z" not in (worker / "stat").read_text():
        assert time.monotonic() < end, "the worker outlives its parent"
        time.sleep(0.1)
    assert list(temporary[0].iterdir()) == [], "nothing is left of its sockets"


def test_a_folder_of_sockets_is_removed_although_a_thread_adds_one(tmp_path, monkeypatch):
    """Another thread may open a socket between the listing and the removal; that is no error and leaves nothing."""
    folder = tmp_path / "pymp-x"
    folder.mkdir()
    remove, calls = shutil.rmtree, []

    def with_a_late_socket(path, ignore_errors=False):
        remove(path, ignore_errors)
        calls.append(path)
        if len(calls) == 1:
            folder.mkdir()
            (folder / "listener").touch()

    monkeypatch.setattr(loading.shutil, "rmtree", with_a_late_socket)
    loading._remove_folder(str(folder))
    assert not folder.exists() and len(calls) > 1
