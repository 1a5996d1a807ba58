"""The embedded set is the same on every machine and for every later version, in memory and as files."""

import hashlib
import subprocess
import sys

import pytest
import torch

from madet.boxes.errors import BadInput
from madet.boxes.geometry import Rotated, Upright
from madet.data.embedded import COUNTS, LEVELS, embedded, fingerprint, make_scene
from madet.data.make_synthetic import make_synthetic
from madet.data.open_folder import open_data, splits

# SHA-256 of decoded pixels and labels. Changing one means that no earlier result at that level compares:
# say so in CHANGELOG.md.
HASHES = {
    ("easy", "test", 500): "a917439ae6b2b6cb6fa60035fdf0f39617c26ff1fe28438322d22ddaf37c53bc",
    ("standard", "test", 500): "ce5787933b34b390e0afe1f19275492473be307ed78a19003b69772a1b93967e",
    ("hard", "test", 500): "f7e6e412a3f17a506e725858f125d2dc001212d7024a8e985e2f98fcc5225895",
    ("easy", "train", 200): "0ae30e09e81361bbed0946b2ab2853c3840e6a5e8aaaff677301af404177bd41",
    ("standard", "train", 200): "dd104aee367a6c784c53b590a21064ae7537bdc3ffa495b8a9c11a20aa4c1972",
    ("hard", "train", 200): "bfe3693cdcaf4758f873bca05cdd7d4dbab5b199e161917855258bde35ef0e27",
    (
        "standard",
        "unlabelled",
        50,
    ): "e6841ba98401496fff96bc4f788e8cf98124e1ec7ad5b686949fd372e6d525fa",
}


@pytest.mark.parametrize("level, split, count", HASHES)
@pytest.mark.trains
def test_pixels_and_labels_are_those_of_always(level, split, count):
    assert fingerprint(level, split, count=count) == HASHES[level, split, count]


def test_another_process_and_another_order_draw_the_same():
    program = (
        "import hashlib; from madet.data.embedded import make_scene\n"
        "print(hashlib.sha256(b''.join(make_scene(3, i, 'hard').image.tobytes() for i in (9, 2, 5))).hexdigest())"
    )
    theirs = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.strip()
    scenes = {i: make_scene(3, i, "hard").image.tobytes() for i in range(10)}
    assert hashlib.sha256(scenes[9] + scenes[2] + scenes[5]).hexdigest() == theirs


def test_sizes_of_the_parts_and_limits_of_the_levels():
    assert COUNTS["test"] >= 500 and COUNTS["train"] == 1000 and COUNTS["unlabelled"] >= 1000
    for level, (fewest, most, low, high, ratio) in {
        "easy": (1, 4, 14, 60, 2),
        "standard": (2, 10, 8, 80, 4),
        "hard": (6, 16, 5.5, 88, 10),
    }.items():
        data = embedded(level, "test", Rotated())
        assert len(data.classes) >= 5 and len(data) == COUNTS["test"]
        counts = [len(record.objects) for record in data.records]
        sides = torch.cat([record.objects.boxes[:, 2:4] for record in data.records])
        assert fewest <= min(counts) and max(counts) == most
        assert (
            low - 0.05 <= sides[:, 0].min()
            and sides[:, 0].max() <= high
            and (sides[:, 0] / sides[:, 1]).max() <= ratio + 1e-4
        )
        assert any(record.objects.ignore.any() for record in data.records) == (level != "easy")


def test_easy_covers_nothing():
    for index in range(200):
        assert (make_scene(0, index, "easy").in_sight == 100).all()


@pytest.fixture(scope="module", params=list(LEVELS))
def written(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / request.param
    return (
        request.param,
        folder,
        make_synthetic(
            folder, request.param, {"train": 12, "val": 4, "test": 6, "unlabelled": 5}, seed=7
        ),
    )


@pytest.mark.parametrize(
    "labels, geometry, tolerance",
    [
        ("instances", Upright(), 0),
        ("Annotations", Upright(), 0),
        ("labelTxt", Rotated("oc"), 0.02),
        (None, Upright(), 0),
        (None, Rotated("le90"), 0.02),
    ],
)
def test_written_and_read_again(written, labels, geometry, tolerance):
    level, folder, counts = written
    assert splits(folder) == counts
    for split in ("train", "val", "test"):
        read = open_data(folder, split, labels=labels, geometry=geometry)
        drawn = embedded(level, split, geometry, 7, counts[split])
        assert (
            not read.defects and len(read) == len(drawn) and set(read.classes) <= set(drawn.classes)
        )
        places = {record.path.stem: i for i, record in enumerate(read.records)}
        for i, record in enumerate(drawn.records):
            theirs, ours = read.load(places[record.image_id]), drawn.load(i)
            assert torch.equal(theirs.image, ours.image)
            assert [read.classes[k] for k in theirs.objects.labels] == [
                drawn.classes[k] for k in ours.objects.labels
            ]
            assert torch.equal(theirs.objects.ignore, ours.objects.ignore)
            corners = geometry.corners(theirs.objects.boxes), geometry.corners(ours.objects.boxes)
            assert (
                torch.cdist(*corners).amin(2).max() <= tolerance
            )  # a square may come back with its corners in another order


def test_the_pool_has_pictures_and_no_truth(written):
    level, folder, counts = written
    pool = open_data(folder, "unlabelled")
    drawn = embedded(level, "unlabelled", seed=7, count=5)
    assert len(pool) == 5 and not any(
        len(record.objects) for data in (pool, drawn) for record in data.records
    )
    assert all(torch.equal(pool.load(i).image, drawn.load(i).image) for i in range(5))


def test_what_cannot_be_made_is_refused_with_a_sentence(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("keep me")
    for call in (
        lambda: make_synthetic(tmp_path / "full", "easy", 1),
        lambda: make_synthetic(tmp_path / "new", "medium", 1),
        lambda: make_synthetic(tmp_path / "new", "easy", -3),
        lambda: embedded("medium"),
        lambda: embedded("easy", "dev"),
        lambda: make_scene(0, 0, ""),
    ):
        with pytest.raises(BadInput, match="[.]$"):
            call()
    assert (
        not (tmp_path / "new").exists()
        and (tmp_path / "full" / "letter.txt").read_text() == "keep me"
    )
