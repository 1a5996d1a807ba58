"""The paper's recipe on a folder of COCO's layout: what is said before it starts, and that it trains as published.

The published schedule, written out by hand: SGD at 0.01 for 16 images, linear warm-up of 500 iterations
from a thousandth
of it, a tenth after epochs 8 and 11 of 12; COCO's 117,266 images with objects are 7,330 iterations an epoch.
"""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

import madet.tables.cost as estimate
import madet.tables.measure as measure
import madet.tables.run as table_command
import madet.training.run as training_run
from madet.boxes.errors import BadInput
from madet.boxes.geometry import Upright
from madet.cli import main
from madet.data.augment import Resize, crop, warp_objects
from madet.data.embedded import embedded
from madet.data.formats.coco_writer import coco_dict
from madet.data.sample import Record
from madet.methods.names import BACKBONES, METHODS, method_fields, recipe_of
from madet.tables.grid import missing, paper_folder, read_grid
from madet.tables.run import plan
from madet.training.loop import make_plan, train
from madet.training.optim import make_optimizer, set_rate
from madet.training.recipe import scored_sides, train_sides

EPOCH = 7330
# (iteration, learning rate at 16 images a step), from the published schedule
PUBLISHED = [
    (0, 0.00001),
    (250, 0.005005),
    (500, 0.01),
    (8 * EPOCH - 1, 0.01),
    (8 * EPOCH, 0.001),
    (11 * EPOCH - 1, 0.001),
    (11 * EPOCH, 0.0001),
    (12 * EPOCH - 1, 0.0001),
]
SMALL = {
    "weights": "none",
    "backbone": "tiny",
    "image_size": "160x120",
    "fpn_channels": "16",
    "head_convs": "1",
    "total_batch": "2",
    "workers": "0",
    "epochs": "1",
    "log_every": "1",
}


def coco_folder(root, size=(640, 480), **counts):
    """A folder of COCO's layout with `counts` enlarged embedded scenes a part; (width, height) in pixels."""
    (root / "annotations").mkdir(parents=True)
    width, height = size
    for number, (split, count) in enumerate(counts.items()):
        scenes, records = embedded("easy", split), []
        (root / f"{split}2017").mkdir()
        for i in range(count):
            sample = Resize(width, width)(scenes.load(i), None, Upright())
            sample = warp_objects(sample, *crop(sample.image, 0, 0, height, width), Upright())
            path = root / f"{split}2017" / f"{1000 * number + i + 1:012}.jpg"
            Image.fromarray(sample.image.permute(1, 2, 0).numpy()).save(path, quality=90)
            records.append(Record(i + 1, path, width, height, sample.objects))
        text = json.dumps(
            coco_dict(records, scenes.classes, [record.path.name for record in records])
        )
        (root / f"annotations/instances_{split}2017.json").write_text(text)
    return root


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return coco_folder(tmp_path_factory.mktemp("data") / "coco", train=8, val=1)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return coco_folder(tmp_path_factory.mktemp("data") / "small", (160, 120), train=8, val=2)


def job_of(row, options, out):
    """The job that `madet table atss --scale full` makes of a row."""
    jobs, _ = plan(read_grid(paper_folder("atss")), "full", [1], options, out, [row])
    return jobs[0]


def rates(optimizer, factor, iterations):
    """Learning rates that the optimiser of a run gets at these iterations."""
    found = []
    for i in iterations:
        set_rate(optimizer, factor(i))
        found.append({group["lr"] for group in optimizer.param_groups})
    assert all(len(rate) == 1 for rate in found)
    return [rate.pop() for rate in found]


def options_of(params):
    return {name: value for name, value in params.items() if name != "scale"}


# ------------------------------------------------------------------------------------------------ schedule


@pytest.mark.parametrize("row", ["atss", "retinanet-own", "fcos-own", "mmdet-retinanet-r50"])
def test_the_schedule_of_a_row_is_the_published_one(row, tmp_path):
    _, recipe, _ = recipe_of("full", options_of(job_of(row, {"data": "coco"}, tmp_path).params))
    run_plan = make_plan(recipe, EPOCH)
    optimizer = make_optimizer(torch.nn.Linear(2, 2), recipe)
    assert run_plan.steps == 87960 and (
        recipe.total_batch,
        recipe.image_size,
        recipe.optimizer,
        recipe.weight_decay,
    ) == (16, "1333x800", "sgd", 1e-4)
    for (i, wanted), got in zip(
        PUBLISHED, rates(optimizer, run_plan.factor, [i for i, _ in PUBLISHED])
    ):
        assert got == pytest.approx(wanted, rel=1e-12), (row, i)


def test_the_rows_with_multi_scale_training_have_the_published_recipe(tmp_path):
    _, recipe, _ = recipe_of(
        "full", options_of(job_of("atss-r101-2x", {"data": "coco"}, tmp_path).params)
    )
    assert train_sides(recipe) == [(1333, short) for short in range(640, 801)] and scored_sides(
        recipe
    ) == ([(1333, 800)], False)
    run_plan = make_plan(recipe, EPOCH)
    assert (run_plan.steps, run_plan.factor.marks, recipe.backbone) == (
        175920,
        (117280, 161260),
        "resnet101",
    )
    rows = {row.name: row for row in read_grid(paper_folder("atss"))}
    for name, row in rows.items():  # what keeps a row from running is at most its backbone
        assert "option" not in missing(row, "full", METHODS, BACKBONES, method_fields), name
    many = rows["atss-x101-64-dcn-tta"].options("full")["test_sizes"]
    sizes, mirrored = scored_sides(replace(recipe, test_sizes=many))
    assert mirrored and [short for _, short in sizes] == [
        400,
        500,
        600,
        640,
        700,
        900,
        1000,
        1100,
        1200,
        1300,
        1400,
        1800,
    ]


def train_some(monkeypatch, data, out, steps, batch):
    """The row `atss` on few images with the length of COCO, `steps` of it really taken.

    (metrics, plan and optimiser of the run, log).
    """
    epoch = (
        8 // batch
    )  # steps of an epoch here; epochs and milestones are stretched to COCO's steps
    stretched = {
        "epochs": str(12 * EPOCH / epoch),
        "milestones": f"{8 * EPOCH / epoch},{11 * EPOCH / epoch}",
    }
    params = job_of(
        "atss",
        {
            "data": str(data),
            "weights": "none",
            "total_batch": str(batch),
            "workers": "0",
            "log_every": "1",
            "eval_every": "0",
            **stretched,
        },
        out,
    ).params
    seen = {}

    def some(state, step_fn, batches, folder, whole, *rest, **more):
        first = next(iter(batches.stream(0, 1)))[0]
        seen.update(
            plan=whole,
            optimizer=state.optimizer,
            sizes=[tuple(image.shape[-2:]) for image in first],
        )
        return train(state, step_fn, batches, folder, replace(whole, steps=steps), *rest, **more)

    monkeypatch.setattr(training_run, "train", some)
    method, recipe, method_options = recipe_of("full", options_of(params))
    metrics = training_run.run(
        recipe, method_options, method.build, out / "run", "full", device="cpu"
    )
    lines = [json.loads(line) for line in (out / "run/log.jsonl").read_text().splitlines()]
    return metrics, seen, [line for line in lines if "loss" in line]


def check_training(metrics, seen, log, steps, batch):
    """Losses are finite, images are of the paper's size, and the rates are the published ones, scaled to the batch."""
    assert [line["step"] for line in log] == list(range(1, steps + 1)) and all(
        0 < line["loss"] < 1e3 for line in log
    )
    assert seen["plan"].steps == 12 * EPOCH and set(seen["sizes"]) == {
        (800, 1067)
    }  # 480 x 640 enlarged to 800 on the short side
    share = batch / 16
    for line in log:  # step n is iteration n - 1 of the warm-up: 1e-5 + 9.99e-3 (n - 1) / 500
        assert line["lr"] == pytest.approx(
            share * (0.00001 + 0.00999 * (line["step"] - 1) / 500), rel=1e-9
        )
    for (i, wanted), got in zip(
        PUBLISHED, rates(seen["optimizer"], seen["plan"].factor, [i for i, _ in PUBLISHED])
    ):
        assert got == pytest.approx(share * wanted, rel=1e-9), i
    assert metrics["image_size"] == "1333x800" and 0 <= metrics["test"]["AP"] <= 1


def test_two_steps_of_the_paper_s_recipe(monkeypatch, coco, tmp_path):
    check_training(*train_some(monkeypatch, coco, tmp_path, 2, 1), 2, 1)


@pytest.mark.long
def test_twenty_steps_of_the_paper_s_recipe(monkeypatch, coco, tmp_path):
    check_training(*train_some(monkeypatch, coco, tmp_path, 20, 2), 20, 2)


# ------------------------------------------------------------------------------------------------ before the start


def table(capsys, data, out, *words, **options):
    """Exit code, standard output and standard error of `madet table atss --scale full` on the row atss, small."""
    chosen = SMALL | {name: str(value) for name, value in options.items()}
    said = [
        word
        for name, value in chosen.items()
        if value != "None"
        for word in (f"--{name.replace('_', '-')}", value)
    ]
    code = main(
        [
            "table",
            "atss",
            "--scale",
            "full",
            "--only",
            "atss",
            "--jobs",
            "1",
            "--data",
            str(data),
            "--out",
            str(out),
            *said,
            *words,
        ]
    )
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err + printed.out
    return code, printed.out, printed.err


def test_a_table_at_full_says_what_it_costs_and_changes_nothing(
    capfd, monkeypatch, small, tmp_path
):
    code, out, err = table(capfd, small, tmp_path / "t", seed=3)
    assert code == 0, err
    run = next((tmp_path / "t/full").iterdir())
    kept = json.loads((run / "estimate.json").read_text())
    assert (
        kept["steps"] == 4
        and kept["hours"] > 0
        and kept["memory"] > 1e8
        and kept["last"] > kept["best"] > 1e5
        and kept["params"]["seed"] == 3
    )
    assert (
        out.index("all 1 runs") < out.index("table:")
        and "8 train, 2 val, 2 test images" in err
        and "0 defects" in err
    )
    if not torch.cuda.is_available():
        assert "there is no GPU here" in out
    monkeypatch.setattr(table_command, "look_ahead", lambda *_: ({}, ""))
    assert table(capfd, small, tmp_path / "plain", seed=3)[0] == 0
    plain = next((tmp_path / "plain/full").iterdir())
    assert plain.name == run.name and not (plain / "estimate.json").exists()
    losses = [
        [
            (line["step"], line["loss"])
            for line in map(json.loads, (folder / "log.jsonl").read_text().splitlines())
            if "loss" in line
        ]
        for folder in (run, plain)
    ]
    assert (
        len(losses[0]) == 4 and losses[0] == losses[1]
    )  # as without the measurement, to the last bit


def test_a_dry_run_at_full_estimates_and_leaves_nothing(capfd, small, tmp_path):
    code, out, _ = table(capfd, small, tmp_path / "t", "--dry-run", "--json")
    answer = json.loads(out)
    assert (
        code == 0
        and answer["refused"] == ""
        and answer["estimate"]["total"]["runs"] == 1
        and answer["estimate"]["rows"][0]["steps"] == 4
    )
    assert not (tmp_path / "t").exists()


@pytest.fixture
def at_hand(monkeypatch):
    """Measuring in this process, which has torch already, instead of a child."""
    monkeypatch.setattr(estimate, "ask", lambda rows, scale, *_: measure.measure_rows(rows, scale))


def test_a_full_disk_is_told_before_the_start(capfd, monkeypatch, at_hand, small, tmp_path):
    monkeypatch.setattr(estimate, "room", lambda out: 10**6)
    code, _, err = table(capfd, small, tmp_path / "t")
    assert (
        code == 2
        and "GB of disk" in err.splitlines()[-1]
        and "--out" in err
        and not list((tmp_path / "t").rglob("last.pt"))
    )


def test_weights_that_cannot_be_fetched_get_a_sentence(
    capfd, monkeypatch, at_hand, small, tmp_path
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "empty"))
    monkeypatch.setenv(
        "https_proxy", "http://127.0.0.1:9"
    )  # nobody listens there: as without a network
    code, _, err = table(capfd, small, tmp_path / "t", weights="imagenet", backbone="resnet18")
    assert (
        code == 2
        and "weights none" in err.splitlines()[-1]
        and "download.pytorch.org" in err.splitlines()[-1]
    )


@pytest.mark.parametrize(
    "break_it, word",
    [
        (lambda root: shutil.rmtree(root / "val2017"), "val"),
        (
            lambda root: (root / "annotations/instances_val2017.json").unlink(),
            "no val or test part",
        ),
        (lambda root: (root / "annotations/instances_train2017.json").unlink(), "no train"),
        (lambda root: (root / "train2017/000000000003.jpg").unlink(), "1 of 8 train pictures"),
        (
            lambda root: (root / "annotations/instances_train2017.json").write_text(
                (root / "annotations/instances_train2017.json").read_text()[:-99]
            ),
            "not valid JSON",
        ),
    ],
)
def test_a_broken_part_is_told_before_the_start(small, tmp_path, break_it, word):
    root = shutil.copytree(small, tmp_path / "coco")
    break_it(root)
    with pytest.raises(BadInput) as told:
        measure.open_checked(recipe_of("full", {"method": "atss", "data": str(root)})[1])
    assert word in str(told.value) and "\n" not in str(told.value), told.value


def test_an_annotation_of_no_image_is_counted_and_shown(small, tmp_path):
    root = shutil.copytree(small, tmp_path / "coco")
    path = root / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["image_id"] = 4711
    path.write_text(json.dumps(content))
    _, said = measure.open_checked(recipe_of("full", {"method": "atss", "data": str(root)})[1])
    assert "1 defect:" in said and "image_id 4711 is in no entry of images" in said[-1]


def test_a_folder_that_is_not_there_ends_with_2(capfd, at_hand, tmp_path):
    code, _, err = table(capfd, tmp_path / "nowhere", tmp_path / "t")
    assert code == 2 and "does not exist" in err
