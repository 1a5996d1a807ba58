"""Broken input of many kinds, drawn from a seed: anything but a result or a `BadInput` is a fault.

    python ci/fuzz.py                        # 2,000 cases of each kind
    python ci/fuzz.py data --cases 50000     # label folders only
    python ci/fuzz.py weights --only 1234    # one case again, with its traceback

Sound files are made once, then a copy of them is damaged and read. The kinds: `data` (label folders of every format
that is written), `weights` (weights files and checkpoints), `results` (what `madet eval` reads), `recipes` (options,
params.json, grid.csv). A case is its kind and its number; a number means the same damage on every machine.
"""

import argparse
import contextlib
import csv
import io
import json
import os
import pickle
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from madet.boxes.errors import BadInput
from madet.boxes.geometry import Rotated, Upright
from madet.data.export import FORMATS, export_folder
from madet.data.open_folder import OpenedFolder
from madet.data.sample import Dataset, Objects, Record
from madet.methods.convert import convert
from madet.methods.load import detector_from
from madet.methods.names import find_method, options_classes
from madet.methods.score_files import score_coco_files, score_dota_files, score_voc_files
from madet.methods.train import parse_run
from madet.tables.grid import read_grid
from madet.training.recipe import Recipe

SLOW = 20.0  # seconds after which a case counts as hanging

# ---------------------------------------------------------------- damage

VALUES = [
    *(
        "",
        "nan",
        "inf",
        "-inf",
        "-1",
        "0",
        "1",
        "0.5",
        "1e308",
        "1e400",
        "-1e-400",
        "9" * 400,
        "9" * 5000,
    ),
    *(
        "null",
        "true",
        "[]",
        "{}",
        '"x"',
        "0x10",
        "1_000",
        "½",
        "٣",
        "1,5",
        "1e",
        "--",
        "\x00",
        "\ufeff",
    ),
    *(
        "car/truck",
        "..",
        "a b",
        "é",
        "e\u0301",
        "<x/>",
        "&amp;",
        "%20",
        "'",
        '"',
        "\\",
        "\n",
        "\r",
        "\t",
        "#",
        ":",
    ),
]
NODES = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        1.5,
        1e308,
        float("nan"),
        float("inf"),
        10**30,
        "",
        "x",
        "1",
        "nan",
    ),
    *(
        [],
        {},
        [[]],
        [None],
        {"a": 1},
        [1, 2, 3],
        [1, 2, 3, 4],
        [1, 2, 3, 4, 5],
        "../../x",
        "\x00",
        "a" * 5000,
    ),
]
NUMBER = re.compile(rb"-?\d+\.?\d*")


def damaged_bytes(data, rng):
    """The bytes of a file after one of a dozen accidents."""
    if not data:
        return bytes(rng.randrange(256) for _ in range(rng.randrange(40)))
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    some = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 12)))
    word = rng.choice(VALUES).encode()
    kind = rng.randrange(12)
    if kind == 0:
        return data[:a]
    if kind == 1:
        return data[:a] + data[b:]
    if kind == 2:
        return data[:b] + data[a:]
    if kind == 3:
        return data[:a] + some + data[a + len(some) :]
    if kind == 4:
        return data[:a] + word + data[a:]
    if kind == 5:
        return b""
    if kind == 6:
        return data.decode("latin-1").encode("utf-16")
    if kind == 7:
        lines = data.split(b"\n")
        rng.shuffle(lines)
        return b"\n".join(lines)
    if kind == 8:
        return some * 10
    numbers = list(NUMBER.finditer(data))
    if not numbers:
        return data[:a] + word + data[b:]
    found = rng.choice(numbers)
    return data[: found.start()] + word + data[found.end() :]


def damaged_tree(value, rng):
    """A JSON value with one of its nodes replaced, deleted, doubled or renamed."""
    places = []

    def walk(holder):
        keys = holder.keys() if isinstance(holder, dict) else range(len(holder))
        for key in keys:
            places.append((holder, key))
            if isinstance(holder[key], (dict, list)):
                walk(holder[key])

    if not isinstance(value, (dict, list)):
        return rng.choice(NODES)
    walk(value)
    if not places or rng.random() < 0.02:
        return rng.choice(NODES)
    holder, key = rng.choice(places)
    kind = rng.randrange(5)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.append(holder[key])
    elif kind == 2 and isinstance(holder, dict):
        holder[rng.choice(VALUES)] = holder.pop(key)
    elif kind == 3 and isinstance(holder[key], (int, float)):
        holder[key] = str(holder[key])
    else:
        holder[key] = rng.choice(NODES)
    return value


def damage_file(path, rng):
    """One accident to one file."""
    data = path.read_bytes()
    kind = rng.randrange(20)
    if path.suffix == ".json" and kind < 13:
        try:
            tree = damaged_tree(json.loads(data), rng)
        except ValueError:
            path.write_bytes(damaged_bytes(data, rng))
        else:
            path.write_text(json.dumps(tree))
    elif kind < 16:
        path.write_bytes(damaged_bytes(data, rng))
    elif kind == 16:
        path.unlink()
    elif kind == 17:
        path.unlink()
        path.mkdir()
    elif kind == 18:
        path.rename(path.with_name(rng.choice(["x", "é", "a b", "train", "0"]) + path.suffix))
    else:
        shutil.copyfile(path, path.with_name(f"copy{rng.randrange(1000)}{path.suffix}"))


def damage_folder(folder, rng):
    """One to three accidents below a folder, most of them to files that are no pictures."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        words = [file for file in files if file.suffix not in (".png", ".bmp")]
        chosen = words if words and rng.random() < 0.85 else files
        if chosen:
            damage_file(rng.choice(chosen), rng)


# ---------------------------------------------------------------- sound files


def sound_set(place, rotated):
    """Four pictures with two objects each, as records."""
    geometry = Rotated() if rotated else Upright()
    records = []
    for i in range(4):
        path = place / f"p{i}.png"
        Image.fromarray(np.full((24, 32, 3), 40 * i, np.uint8)).save(path)
        numbers = [[10.0 + i, 12, 8, 4, 0.3], [20.0, 10 + i, 6, 5, -0.7]]
        upright = [[4.0 + i, 3, 14, 12], [15.0, 5, 29, 20 + i]]
        boxes = torch.tensor(numbers if rotated else upright)
        objects = Objects(
            geometry.normalize(boxes), torch.tensor([0, 1]), torch.tensor([False, i == 2])
        )
        records.append(Record(f"p{i}", path, 32, 24, objects, []))
    return Dataset(records, ("ship", "100000005"), geometry)


def make_data(place):
    """A folder of each format that is written, upright and rotated."""
    folders = []
    for rotated in (False, True):
        source = place / f"source{int(rotated)}"
        source.mkdir()
        whole = sound_set(source, rotated)
        halves = {
            "train": Dataset(whole.records[:3], whole.classes, whole.geometry),
            "test": Dataset(whole.records[3:], whole.classes, whole.geometry),
        }
        for kind in FORMATS:
            out = place / f"{kind}{int(rotated)}"
            with contextlib.suppress(BadInput):  # a format that cannot hold these
                export_folder(out, halves, kind)
                folders.append(out)
    assert len(folders) >= len(FORMATS)
    return folders


def make_weights(place):
    """Small weights files of our own, and a checkpoint of tensors as torch writes it, old and new."""
    from madet.methods.names import recipe_of
    from madet.training.checkpoint import save_weights

    method, recipe, options = recipe_of("thimble", {"method": "atss"})
    model = method.build(recipe, options, 2)
    stored = {"data": "x"} | asdict(recipe) | asdict(options)
    ours = place / "own.safetensors"
    save_weights(ours, model, method="atss", recipe=stored, classes=["a", "b"], scale="thimble")
    small = {f"backbone.layer{i}.weight": torch.ones(2, 2) for i in range(4)}
    torch.save({"state_dict": small, "meta": {"CLASSES": ("a", "b")}}, place / "new.pth")
    torch.save(small, place / "old.pth", _use_new_zipfile_serialization=False)
    (place / "plain.pth").write_bytes(pickle.dumps({"a": [1, 2]}))
    (place / "empty.pth").write_bytes(b"")
    return sorted(path for path in place.iterdir())


def make_results(place):
    """Truth and results as `madet eval` takes them: COCO, VOC and DOTA."""
    coco = place / "coco"
    coco.mkdir()
    images = [{"id": i, "file_name": f"{i}.png", "width": 32, "height": 24} for i in (1, 2)]
    truth = {
        "images": images,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [
            {
                "id": i,
                "image_id": 1 + i % 2,
                "category_id": 1 + i % 2,
                "bbox": [2, 3, 9, 8],
                "area": 72,
                "iscrowd": 0,
            }
            for i in range(1, 4)
        ],
    }
    found = [
        {"image_id": 1 + i % 2, "category_id": 1, "bbox": [2, 3, 9, 8], "score": 0.3 + i / 9}
        for i in range(3)
    ]
    (coco / "truth.json").write_text(json.dumps(truth))
    (coco / "results.json").write_text(json.dumps(found))
    voc, dota = place / "voc", place / "dota"
    for folder in (voc / "truth", voc / "results", dota / "truth", dota / "results"):
        folder.mkdir(parents=True)
    for i in (1, 2):
        (voc / "truth" / f"{i}.txt").write_text("a 2 3 11 11\nb 5 5 9 9\n")
        (voc / "results" / f"{i}.txt").write_text("a 0.7 2 3 11 11\nb 0.2 5 5 9 10\n")
        (dota / "truth" / f"{i}.txt").write_text("2 2 9 2 9 9 2 9 a 0\n3 3 8 3 8 8 3 8 b 1\n")
    for name in "ab":
        (dota / "results" / f"Task1_{name}.txt").write_text(
            "1 0.9 2 2 9 2 9 9 2 9\n2 0.3 2 2 9 2 9 9 2 9\n"
        )
    return [coco, voc, dota]


def make_recipes(place):
    """A run folder's params.json and a grid."""
    (place / "run").mkdir()
    method = find_method("atss")
    stored = asdict(Recipe()) | asdict(method.options_class()) | {"scale": "thimble"}
    (place / "run" / "params.json").write_text(json.dumps(stored))
    shutil.copy(Path(__file__).parents[1] / "papers/atss/grid.csv", place / "grid.csv")
    return [place]


MAKERS = {
    "data": make_data,
    "weights": make_weights,
    "results": make_results,
    "recipes": make_recipes,
}

# ---------------------------------------------------------------- cases


def read_data(source, place, rng):
    folder = place / "folder"
    shutil.copytree(source, folder)
    damage_folder(folder, rng)
    geometry = rng.choice((None, None, Upright(), Rotated()))
    opened = OpenedFolder(folder, geometry=geometry, strict=rng.random() < 0.5)
    for split in rng.sample((None, "train", "test", "val"), 2):
        with contextlib.suppress(BadInput):
            dataset = opened.dataset(split)
            for index in range(len(dataset.records)):
                dataset.load(index)


def read_a_checkpoint(source, place, rng):
    path = place / source.name
    data = source.read_bytes()
    head = min(len(data), 4000)
    if rng.random() < 0.7:  # where the structure is
        data = damaged_bytes(data[:head], rng) + data[head:]
    else:
        data = damaged_bytes(data, rng)
    path.write_bytes(data)
    if rng.random() < 0.5:
        detector_from(path)
    else:
        convert(path, place / "out.safetensors")


def read_results(source, place, rng):
    folder = place / "folder"
    shutil.copytree(source, folder)
    damage_folder(folder, rng)
    if source.name == "coco":
        score_coco_files(folder / "truth.json", folder / "results.json", "bbox", None, None, False)
    elif source.name == "voc":
        score_voc_files(folder / "truth", folder / "results", None, None, None, None)
    else:
        score_dota_files(folder / "truth", folder / "results", None, None)


def read_a_recipe(source, place, rng):
    if rng.random() < 0.4:
        path = place / "grid.csv"
        path.write_bytes(damaged_bytes((source / "grid.csv").read_bytes(), rng))
        read_grid(path)
        return
    names = [field.name for kind in (Recipe, *options_classes()) for field in fields(kind)]
    flat = {rng.choice(names): rng.choice([*VALUES, *NODES]) for _ in range(rng.randrange(4))}
    shutil.copytree(source / "run", place / "run")
    if rng.random() < 0.6:
        damage_file(place / "run" / "params.json", rng)
    parse_run(flat, place / "run", resume=rng.random() < 0.7)


CASES = {
    "data": read_data,
    "weights": read_a_checkpoint,
    "results": read_results,
    "recipes": read_a_recipe,
}


def run_case(kind, number, sources, place):
    """What went wrong in a case: a traceback, '' if nothing did."""
    rng = random.Random(f"{kind} {number}")
    room = place / "case"
    shutil.rmtree(room, ignore_errors=True)
    room.mkdir()
    begun = time.monotonic()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            CASES[kind](rng.choice(sources), room, rng)
    except BadInput as error:
        if len(str(error).strip()) < 20:
            return f"a sentence that says nothing: {error}"
    except Exception:  # anything at all: that is what is looked for
        return traceback.format_exc()
    took = time.monotonic() - begun
    return f"took {took:.0f} s" if took > SLOW else ""


def fuzz(kind, numbers):
    """{case: what went wrong} of the cases `numbers` of a kind."""
    faults = {}
    csv.field_size_limit(131072)
    with tempfile.TemporaryDirectory(prefix="madet-fuzz-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        place = Path(folder)
        (place / "sound").mkdir()
        sources = MAKERS[kind](place / "sound")
        for number in numbers:
            wrong = run_case(kind, number, sources, place)
            if wrong:
                faults[number] = wrong
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", help=f"of {', '.join(CASES)}; default: all")
    parser.add_argument("--cases", type=int, default=2000, help="cases of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", type=int, help="one case, by its number")
    args = parser.parse_args()
    torch.set_num_threads(1)
    bad = 0
    for kind in args.kinds or CASES:
        numbers = range(args.first, args.first + args.cases) if args.only is None else [args.only]
        begun = time.monotonic()
        faults = fuzz(kind, numbers)
        bad += len(faults)
        print(
            f"{kind}: {len(numbers)} cases, {len(faults)} faults, {time.monotonic() - begun:.0f} s",
            flush=True,
        )
        by_end = {}
        for number, wrong in faults.items():
            by_end.setdefault("\n".join(wrong.strip().splitlines()[-3:]), []).append(number)
        for end, where in sorted(by_end.items(), key=lambda item: -len(item[1]))[:15]:
            print(f"  cases {where[:5]} ({len(where)}):\n{end}")
        if args.only is not None and faults:
            print(faults[args.only])
    return 1 if bad else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
