"""The guides do what they say: *adding a method* is carried out, step by step, on a copy of the checkout."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = "nbs/guides/01_adding_a_method.ipynb"


def cells(path):
    return [
        (cell["cell_type"], "".join(cell["source"]))
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
    ]


def cell_with(path, beginning):
    """The one code cell that begins so."""
    found = [
        source for kind, source in cells(path) if kind == "code" and source.startswith(beginning)
    ]
    assert len(found) == 1, f"{path.name}: {len(found)} cells begin with {beginning!r}"
    return found[0]


def write_notebook(path, parts):
    made = [
        {"cell_type": kind, "id": f"cell{number}", "metadata": {}, "source": source}
        | ({"outputs": [], "execution_count": None} if kind == "code" else {})
        for number, (kind, source) in enumerate(parts)
    ]
    path.write_text(json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}))


def test_there_are_five_guides_and_each_is_read_from_the_start(root):
    guides = sorted((root / "nbs/guides").glob("*.ipynb"))
    assert len(guides) >= 5
    for path in guides:
        kind, source = cells(path)[0]
        title, _, sentence = source.split("\n", 2)
        assert kind == "markdown" and title.startswith("# ") and sentence.startswith("> "), (
            path.name
        )


def test_commands_in_the_guides_exist(root):
    """Every `madet ...` line shown as text has a command and options that the program knows."""
    import re

    from madet.boxes.errors import BadInput
    from madet.cli import parse

    seen = 0
    for path in sorted((root / "nbs/guides").glob("*.ipynb")):
        for kind, source in cells(path):
            for line in (
                re.findall(r"^ {4,}(?:torchrun [^m]*-m )?madet (.+?)(?: {2,}#.*)?$", source, re.M)
                if kind == "markdown"
                else []
            ):
                try:
                    parse(line.replace("'", "").split())
                except BadInput as error:
                    pytest.fail(f"{path.name}: madet {line}: {error}")
                seen += 1
    assert seen >= 12


@pytest.mark.long
def test_adding_a_method_as_the_guide_says(root, tmp_path):
    import checks

    tree, guide = tmp_path / "tree", root / GUIDE
    checks.copy_of(root, tree)
    env = dict(
        os.environ,
        PYTHONPATH=str(tree),
        OMP_NUM_THREADS="1",
        IPYTHONDIR=str(tmp_path),
        XDG_CONFIG_HOME=str(tmp_path),
        JUPYTER_CONFIG_DIR=str(tmp_path),
    )

    def run(*words):
        done = subprocess.run(
            list(map(str, words)),
            cwd=tree,
            env=env,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=900,
        )
        assert done.returncode == 0, (done.stderr or done.stdout)[-3000:]
        return done.stdout

    # 1: the rule's own notebook
    write_notebook(
        tree / "nbs/assigners/10_best_few.ipynb",
        [
            (
                "raw",
                "---\ntitle: The best few\ndescription: ATSS's candidates, the best eight of them\n---",
            ),
            ("code", "#| default_exp assigners.best_few"),
            (
                "code",
                "#| export\nimport torch\n\nfrom madet.assigners.atss import atss_candidates\nfrom "
                "madet.assigners.max_iou import BACKGROUND, IGNORED, inside_ignored\n"
                "from madet.boxes.geometry import Upright",
            ),
            ("code", "#| export\n" + cell_with(guide, "@torch.no_grad()\ndef best_few")),
        ],
    )

    # 2: the method: one file, with its imports inside the function, and one line in the table
    head, rest = cell_with(guide, "def build_best_few(").split("\n    return ", 1)
    inside = (
        "\n    from madet.assigners.best_few import best_few"
        "\n    from madet.detectors.dense import atss_detector"
        "\n\n    return "
    )
    entry = 'METHODS = (Method("best-few", DenseOptions, build_best_few, DEFAULTS),)'
    write_notebook(
        tree / "nbs/methods/06_best_few.ipynb",
        [
            ("markdown", "# The best few by name\n\n> The method best-few."),
            ("code", "#| default_exp methods.best_few"),
            (
                "code",
                "#| export\nfrom functools import partial\n\n"
                "from madet.methods.dense import DEFAULTS, DenseOptions\n"
                "from madet.methods.method import Method",
            ),
            ("code", f"#| export\n{head}{inside}{rest}\n\n\n{entry}"),
        ],
    )
    names = tree / "nbs/methods/00_names.ipynb"
    text = names.read_text()
    for before, after in (
        ("madet.methods import dense,", "madet.methods import best_few, dense,"),
        (
            "    torchvision.METHODS,\\n",
            '    torchvision.METHODS,\\n",\n    "    best_few.METHODS,\\n',
        ),
    ):
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    names.write_text(text)

    # 3: the row
    with open(tree / "papers/atss/grid.csv", newline="") as file:
        columns = next(csv.reader(file))
    with open(tree / "papers/atss/grid.csv", "a", newline="") as file:
        csv.DictWriter(file, columns, restval="").writerow(
            {
                "row": "best-few",
                "method": "best-few",
                "title": "The best eight",
                "scales": "thimble",
                "claims": ">atss",
            }
        )

    # 4: the table
    run(Path(sys.executable).parent / "nbdev-export")
    _, said = checks.floors_hold(tree)
    assert not said
    small = tmp_path / "shapes"
    run(
        sys.executable,
        "-m",
        "madet",
        "data",
        "make",
        "--level",
        "easy",
        "--count",
        "12",
        "--out",
        small,
    )
    table = [
        sys.executable,
        "-m",
        "madet",
        "table",
        "atss",
        "--only",
        "best-few",
        "--only",
        "atss",
        "--seeds",
        "2",
        "--steps",
        "3",
        "--data",
        small,
        "--labels",
        "coco",
        "--out",
        tmp_path / "runs",
        "--json",
    ]
    planned = json.loads(run(*table, "--dry-run"))
    assert sorted((run["row"], run["seed"]) for run in planned["runs"]) == [
        ("atss", 1),
        ("atss", 2),
        ("best-few", 1),
        ("best-few", 2),
    ]
    made = json.loads(run(*table))
    rows = {row["row"]: row for row in made["rows"]}
    assert (
        rows["best-few"]["status"] == rows["atss"]["status"] == "done"
        and rows["best-few"]["seeds"] == 2
    )
    assert [claim["seeds"] for claim in made["claims"] if claim["row"] == "best-few"] == [2]
    losses = [
        json.loads(path.read_text().splitlines()[-1])["loss"]
        for path in sorted((tmp_path / "runs").rglob("*s1-*/log.jsonl"))
    ]
    assert len(losses) == 2 and losses[0] != losses[1], "the rule is really another one"
