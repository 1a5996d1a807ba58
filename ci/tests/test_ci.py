"""The gate itself: each check finds what was planted for it, and the scripts count and exit as they say."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import checks
import pytest
import readme
import save
import suite

import papers

ROOT = Path(checks.__file__).resolve().parents[1]


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


TOPS = "__main__ cli commands parsers options".split()
ROOMS = (
    "boxes data data/formats nets losses metrics figures assigners heads detectors training methods tables parity"
).split()


@pytest.fixture
def package(tmp_path):
    """An empty package with every room, in a tree of its own that has the project's import rules."""
    for room in ROOMS:
        write(tmp_path / "madet" / room / "__init__.py", "")
    write(tmp_path / "madet/__init__.py", '__version__ = "0.1.0"\n')
    for top in TOPS:
        write(tmp_path / f"madet/{top}.py", "")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "line",
    [
        "from madet.heads.atss import head",
        "from ..heads.atss import head",
        "from .. import heads",
        "import madet.tables.run",
        "def lazily():\n    from ..methods import train",
        "from madet.__main__ import main",
        "from nbdev.export import nb_export",
        "def f():\n    import fastcore.basics",
    ],
)
def test_an_import_that_goes_up_is_found(package, line):
    write(package / "madet/heads/atss.py", "")
    write(package / "madet/tables/run.py", "")
    write(package / "madet/methods/train.py", "")
    write(package / "madet/assigners/planted.py", line + "\n")
    _, said = checks.floors_hold(package)
    assert any("madet.assigners" in sentence for sentence in said), said


@pytest.mark.parametrize(
    "room, line, holds",
    [
        ("assigners", "from madet.boxes.geometry import Upright", True),
        ("assigners", "from .cost import cost", True),
        ("data", "from madet.nets.tiny import tiny", False),
        ("boxes", "import torch, math", True),
        ("tables", "from ..methods.train import Teacher", True),
        ("tables", "from madet import __version__", True),
        ("tables", "from ..parity import run", False),
        ("metrics", "from madet.figures.draw import page", False),
    ],
)
def test_rule_of_floors(package, room, line, holds):
    for (
        name
    ) in "boxes/geometry assigners/cost nets/tiny methods/train parity/run figures/draw".split():
        write(package / f"madet/{name}.py", "")
    write(package / "madet" / room / "planted.py", line + "\n")
    _, said = checks.floors_hold(package)
    assert (said == []) == holds, said


def test_a_circle_within_a_room_is_found(package):
    write(package / "madet/heads/one.py", "from .other import b\n")
    write(package / "madet/heads/other.py", "def b():\n    from .one import a\n")
    _, said = checks.floors_hold(package)
    assert said


def test_a_new_room_needs_a_floor(package):
    write(package / "madet/utils/__init__.py", "")
    write(package / "madet/utils/misc.py", "")
    _, said = checks.floors_hold(package)
    assert any("utils" in sentence for sentence in said)


def test_the_tree_itself_keeps_the_floors(root):
    counted, said = checks.floors_hold(root)
    assert said == [] and "files" in counted


@pytest.mark.parametrize(
    "check, text, sentence",
    [
        ("density", "x = 1  # " + 120 * "y" + "\n", "columns"),
        ("density", "x = [" + ", ".join("1" * 40) + "]\n", "tokens a line"),
        ("signatures", "def f(a: int):\n    pass\n", "f: return"),
        ("signatures", "class A:\n    def f(self, a) -> int:\n        pass\n", "f: a"),
        ("opening_sentences", "x = 1\n", "no sentence"),
        ("opening_sentences", '"""' + 111 * "y" + '"""\n', "111 characters"),
    ],
)
def test_a_planted_module_is_found(package, check, text, sentence):
    for top in TOPS:
        write(package / f"madet/{top}.py", '"""One sentence."""\n')
    write(package / "setup.py", "")
    assert getattr(checks, check)(package)[1] == []
    write(package / "madet/boxes/planted.py", text)
    said = getattr(checks, check)(package)[1]
    assert any(sentence in one for one in said), said


def shown(source, picture=False):
    output = {"output_type": "display_data", "data": {"image/png": ""}, "metadata": {}}
    return cell("code", source, outputs=[output] * picture)


@pytest.mark.parametrize(
    "cells, sentence",
    [
        (["x = 1\n" * 61], "61 lines"),
        (["x" * 121], "over 120 columns"),
        (["x = 1"] * 7 + ["plot()"], "stands in cell 8"),
    ],
)
def test_a_planted_lesson_is_found(tmp_path, cells, sentence):
    notebook(tmp_path / "nbs/a.ipynb", [shown(one, one == "plot()") for one in cells])
    _, said = checks.lessons(tmp_path)
    assert any(sentence in one for one in said), said


def lean(root):
    return subprocess.run(
        [sys.executable, ROOT / "ci/lean_import.py", root],
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    "name",
    ["nbdev", "fastcore.basics", "IPython.display", "ipywidgets", "papermill", "skimage.data"],
)
def test_the_import_hook_refuses(package, name):
    write(package / "madet/methods/planted.py", f"def fine():\n    import {name}\n")
    assert lean(package).returncode == 0
    write(package / "madet/methods/planted.py", f"import math\nimport {name}\n")
    done = lean(package)
    assert done.returncode == 1
    assert f"madet.methods.planted: madet/methods/planted.py:2: {name.split('.')[0]}" in done.stdout


def test_the_import_hook_names_a_module_that_runs_when_imported(package):
    write(package / "madet/__main__.py", "raise SystemExit(0)\n")
    done = lean(package)
    assert done.returncode == 1 and "__main__" in done.stdout


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The tree's sources, small: what export, clean and the page need."""
    root, to = ROOT, tmp_path_factory.mktemp("tree")
    for name in checks.files_of(root):
        if name.parts[0] in ("madet", "nbs", "papers") or len(name.parts) == 1:
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, to / name)
    return to


@pytest.fixture
def planted(copy):
    """Edits files of the copy for one test, then puts them back."""
    kept = {}

    def edit(name, change):
        path = copy / name
        kept[path] = path.read_bytes() if path.exists() else None
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(change(path.read_text() if path.exists() else ""))
        return path

    yield edit
    for path, content in kept.items():
        path.unlink() if content is None else path.write_bytes(content)


def test_a_hand_edit_of_the_package_is_found(copy, planted):
    planted("madet/boxes/errors.py", lambda text: text + "\n# by hand\n")
    _, said = checks.unchanged(copy)
    assert any("madet/boxes/errors.py differs" in line for line in said)


def test_a_module_without_a_notebook_is_found(copy, planted):
    planted("madet/boxes/orphan.py", lambda text: "x = 1\n")
    _, said = checks.unchanged(copy)
    assert any("madet/boxes/orphan.py comes from no notebook" in line for line in said)


def test_a_notebook_that_was_not_cleaned_is_found(copy, planted):
    def count(text):
        notebook = json.loads(text)
        next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")[
            "execution_count"
        ] = 7
        return json.dumps(notebook)

    name = str(next((copy / "nbs/boxes").glob("*.ipynb")).relative_to(copy))
    planted(name, count)
    _, said = checks.unchanged(copy)
    assert any(name in line for line in said)


def test_checking_leaves_the_tree_alone(copy):
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    checks.unchanged(copy)
    assert before == {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}


def test_a_drifting_readme_is_found(copy, planted):
    readme.write(copy)
    assert list(readme.drift(copy)) == []
    planted("README.md", lambda text: text + "one more line\n")
    assert list(readme.drift(copy)) == ["README.md is not what nbs/index.ipynb gives"]
    planted("nbs/images/index_gone.png", lambda text: "")
    assert "nbs/images/index_gone.png is shown by nothing" in list(readme.drift(copy))


def test_a_table_that_is_out_of_date_is_found(copy, planted):
    if not (copy / "papers/atss").is_dir():
        pytest.skip("no paper yet")
    assert checks.tables_are_fresh(copy)[1] == []
    planted("nbs/index.ipynb", lambda text: text.replace("| --- ", "| :-- ", 1))
    assert "another table now" in checks.tables_are_fresh(copy)[1][0]


def test_a_dead_link_is_found(tmp_path):
    write(
        tmp_path / "README.md",
        "[a](nbs/gone.ipynb#x) [b](#here) [c](https://a.b) [d](README.md)\n```\n[e](nowhere)\n```\n",
    )
    assert checks.links(tmp_path) == ("2 links", ["README.md: nbs/gone.ipynb#x"])


def test_the_demo_names_rows_that_exist(root):
    import csv
    import re

    named = re.findall(r"--only (\S+)", (root / "ci/demo").read_text())
    with open(root / "papers/atss/grid.csv", newline="") as file:
        rows = {row["row"]: row["scales"].split() for row in csv.DictReader(file)}
    assert len(named) == 2 and all("thimble" in rows.get(name, []) for name in named)


def cell(kind, source, **more):
    return {"cell_type": kind, "id": "abc", "metadata": {}, "source": source} | more


def test_readme_bridge():
    png = "iVBORw0KGgo="
    text, pictures = readme.convert(
        {
            "cells": [
                cell("raw", "---\ntitle: name\ndescription: A sentence\n---"),
                cell(
                    "markdown",
                    "[a](boxes/00_upright.ipynb#x) [b](../papers/atss/paper.md) [c](https://a.b/c) "
                    "[d](#here)\n```\n[e](f)\n```",
                ),
                cell("code", "#| hide\n1", outputs=[{"data": {"text/plain": "secret"}}]),
                cell(
                    "code",
                    "#| echo: false\n#| fig-alt: Two boxes\ndraw()",
                    outputs=[{"data": {"image/png": png, "text/plain": "<Figure>"}}],
                ),
                cell("code", "2 + 2", outputs=[{"data": {"text/plain": ["4"]}}]),
                cell(
                    "code",
                    "#| echo: false\ntable()",
                    outputs=[{"data": {"text/markdown": "| a |\n|---|\n| 1 |"}}],
                ),
            ]
        }
    )
    assert text == (
        f"{readme.MADE}\n\n# name\n\nA sentence.\n\n[a](nbs/boxes/00_upright.ipynb#x) [b](papers/atss/paper.md) "
        "[c](https://a.b/c) [d](#here)\n```\n[e](f)\n```\n\n![Two boxes](nbs/images/index_abc.png)\n\n"
        "```python\n2 + 2\n```\n\n```text\n4\n```\n\n| a |\n|---|\n| 1 |\n"
    )
    assert pictures == {"nbs/images/index_abc.png": b"\x89PNG\r\n\x1a\n"}


def notebook(path, cells):
    return write(
        path, json.dumps({"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    )


@pytest.mark.parametrize(
    "outputs, words",
    [
        ([], "no stored output"),
        ([{"output_type": "stream", "name": "stdout", "text": "x" * 400_000}], "400 kB"),
        ([{"output_type": "error", "ename": "E", "evalue": "", "traceback": []}], "a stored error"),
        (
            [
                {
                    "output_type": "display_data",
                    "metadata": {},
                    "data": {"image/png": "iVBORw0KGgoAAAANSUhEUgAACAAAAAAK"},
                }
            ],
            "2048 px wide",
        ),
    ],
)
def test_stored_outputs_are_judged(tmp_path, outputs, words):
    notebook(tmp_path / "nbs/boxes/00_planted.ipynb", [cell("code", "1", outputs=outputs)])
    _, said = checks.outputs(tmp_path)
    assert len(said) == 1 and words in said[0]


def png(width, height, noisy):
    import io

    import numpy as np
    from PIL import Image

    pixels = (
        np.random.default_rng(0).integers(0, 255, (height, width, 3))
        if noisy
        else np.zeros((height, width, 3))
    )
    if noisy:  # as a photograph: smooth with some grain
        pixels = pixels // 8 + np.linspace(0, 200, width)[None, :, None].astype(int)
    out = io.BytesIO()
    Image.fromarray(pixels.astype("uint8")).save(out, "PNG")
    return out.getvalue()


def test_stored_pictures_shrink(tmp_path):
    import base64

    photo, drawing = png(1200, 400, True), png(1200, 400, False)
    assert (
        save.smaller(photo, False)[0] == "image/jpeg"
        and len(save.smaller(photo, False)[1]) < len(photo) / 2
    )
    mime, small = save.smaller(drawing, False)
    assert (
        mime == "image/png"
        and len(small) < len(drawing)
        and save.smaller(small, False) == (mime, small)
    )  # a palette, once
    outputs = [
        {
            "output_type": "display_data",
            "metadata": {},
            "data": {"image/png": base64.b64encode(p).decode()},
        }
        for p in (photo, drawing)
    ]
    path = notebook(tmp_path / "nbs/a.ipynb", [cell("code", "1", outputs=outputs)])
    assert save.slim(path, halve=True) > 0
    kept = json.loads(path.read_text())["cells"][0]["outputs"]
    assert checks.picture_width(kept[1]["data"]["image/png"]) == 600
    assert save.slim(path, halve=True) == 0


WHEEL_FILES = """
import sys, setuptools
setuptools.setup = lambda **about: print(
    *(f"{folder}:{name}" for folder, names in about["data_files"] for name in names)
)
sys.argv = ["setup.py"]
exec(compile(open("setup.py").read(), "setup.py", "exec"), {"__file__": "setup.py", "__name__": "x"})
"""


@pytest.mark.parametrize(
    "tags, outputs, good",
    [(["parameters"], [], True), ([], [], False), (["parameters"], [{}], False)],
)
def test_templates_are_judged(tmp_path, tags, outputs, good):
    notebook(
        tmp_path / "papers/atss/run.ipynb",
        [cell("code", "seed = 1", outputs=outputs) | {"metadata": {"tags": tags}}],
    )
    assert (checks.templates(tmp_path)[1] == []) == good


def test_a_papers_notebook_that_differs_is_found_and_made_again(root, tmp_path):
    shutil.copytree(root / "papers", tmp_path / "papers")
    assert checks.paper_notebooks(tmp_path)[1] == []
    made = tmp_path / "papers/madet/run.ipynb"
    before = made.read_text()
    assert 'paper = \\"madet\\"' in before and "describe(paper)" not in before
    made.write_text(before.replace("seed = 0", "seed = 1"))
    (tmp_path / "papers/atss/run.ipynb").unlink()
    said = checks.paper_notebooks(tmp_path)[1]
    assert said == ["papers/atss/run.ipynb is missing", "papers/madet/run.ipynb differs"]
    papers.main(tmp_path)
    assert made.read_text() == before and checks.paper_notebooks(tmp_path)[1] == []
    text = (tmp_path / "papers/atss/paper.md").read_text()
    (tmp_path / "papers/atss/paper.md").write_text(text.replace("## One run", "## Cost"))
    with pytest.raises(ValueError, match="One run"):
        checks.paper_notebooks(tmp_path)


def test_the_wheel_ships_the_run_notebooks(root):
    listed = subprocess.run(
        [sys.executable, "-c", WHEEL_FILES], cwd=root, capture_output=True, text=True
    ).stdout.split()
    assert "share/madet/papers:papers/run.ipynb" in listed
    for name in papers.papers(root):
        for file in ("run.ipynb", "grid.csv", "paper.md"):
            assert f"share/madet/papers/{name}:papers/{name}/{file}" in listed


def test_a_missing_docstring_and_a_mixed_cell_are_found(package):
    write(
        package / "madet/boxes/planted.py",
        'def told():\n    "Says it."\n\ndef silent(): pass\n\ndef _own(): pass\n',
    )
    assert checks.docstrings(package)[1] == ["madet/boxes/planted.py:4: silent"]
    notebook(
        package / "nbs/boxes/00_planted.ipynb",
        [
            cell("code", "#| export\nimport math\nx = math.pi", outputs=[]),
            cell("code", "#| export\n# why\nimport math", outputs=[]),
        ],
    )
    assert len(checks.cells_are_pure(package)[1]) == 1


def test_a_child_that_takes_too_long_dies_with_its_children(tmp_path):
    left = tmp_path / "left"
    code, printed = suite.Children().run(
        ["bash", "-c", f"echo begun; (sleep 3; touch {left}) & wait"], 0.5, subprocess.PIPE
    )
    assert code is None and "begun" in printed
    subprocess.run(["sleep", "3"])
    assert not left.exists()


def test_notebooks_are_counted(tmp_path, root):
    (tmp_path / "pyproject.toml").write_text((root / "pyproject.toml").read_text())
    write(tmp_path / "madet/__init__.py", '__version__ = "0.1.0"\n')
    good, bad, slow = (
        notebook(tmp_path / f"nbs/{name}.ipynb", [cell("code", source, outputs=[])])
        for name, source in (
            ("good", "assert True"),
            ("bad", "assert 1 == 2, 'not so'"),
            ("slow", "import time; time.sleep(60)"),
        )
    )
    children = suite.Children()
    assert suite.run_notebooks(tmp_path, [good, bad], children) == {"passed": 1, "failed": 1}
    assert suite.run_notebooks(tmp_path, [slow], children, seconds=5) == {"failed": 1}


def test_a_setting_reaches_the_notebooks_that_train(tmp_path, root):
    (tmp_path / "pyproject.toml").write_text((root / "pyproject.toml").read_text())
    write(tmp_path / "madet/__init__.py", '__version__ = "0.1.0"\n')
    asks = '#| trains\nimport os\nassert os.environ["OMP_NUM_THREADS"] + os.environ["ONEDNN_MAX_CPU_ISA"] == "2AVX2"'
    marked = notebook(tmp_path / "nbs/marked.ipynb", [cell("code", asks, outputs=[])])
    notebook(tmp_path / "nbs/other.ipynb", [cell("code", "assert True", outputs=[])])
    assert [path for path in suite.find_notebooks(tmp_path) if suite.flagged(path, "trains")] == [
        marked
    ]
    setting = suite.SETTINGS["AVX2, two threads"]
    assert suite.run_notebooks(tmp_path, [marked], suite.Children(), setting=setting) == {
        "passed": 1
    }
    assert suite.run_notebooks(
        tmp_path, [marked], suite.Children(), setting=suite.NARROW | suite.ONE
    ) == {"failed": 1}
    assert len(suite.SETTINGS) == 5


def test_settings_belong_to_the_long_tests(root):
    refused = subprocess.run(
        [sys.executable, root / "ci/suite.py", root, "settings"], capture_output=True, text=True
    )
    assert refused.returncode == 2 and "ci/test-long" in refused.stderr


def fake_python(folder, name, version, venv=True):
    """A stand-in for an interpreter: answers the two questions that the set-up asks."""
    path = write(
        folder / name,
        f'#!/bin/sh\ncase "$2" in *ensurepip*) exit {0 if venv else 1};; *version_info*) echo {version};; esac\n',
    )
    path.chmod(0o755)
    return path


def choose(root, folder, **env):
    for tool in ("bash", "dirname"):
        if not (folder / tool).exists():
            (folder / tool).symlink_to(shutil.which(tool))
    return subprocess.run(
        [folder / "bash", "-c", f'. "{root}/ci/setup.sh"; choose_python'],
        capture_output=True,
        text=True,
        env={"PATH": str(folder)} | env,
    )


def test_the_interpreter_is_chosen_with_a_sentence(tmp_path, root):
    none = choose(root, tmp_path)
    assert none.returncode == 2 and "needs Python 3.11, 3.12 or 3.13" in none.stderr
    fake_python(tmp_path, "python3", "3.9")
    old = choose(root, tmp_path)
    assert old.returncode == 2 and "python3 is 3.9" in old.stderr
    fake_python(tmp_path, "python3.13", "3.13", venv=False)
    fake_python(tmp_path, "python3.12", "3.12")
    assert choose(root, tmp_path).stdout.strip() == "python3.12"
    named = choose(root, tmp_path, PYTHON=str(tmp_path / "python3"))
    assert named.returncode == 2 and "too old" in named.stderr and "3.9" in named.stderr
    assert "does not run" in choose(root, tmp_path, PYTHON="/nowhere/python").stderr


def make_checkout(tmp_path, root, check, test):
    shutil.copytree(root / ".ci", tmp_path / ".ci")
    for name, body in (("check", check), ("test", test)):
        write(tmp_path / "ci" / name, body)
    return subprocess.run(
        ["bash", ".ci/run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=dict(os.environ, CI="true"),
    )


@pytest.mark.parametrize(
    "check, test, last, code",
    [
        ("echo 3 passed, 0 failed", "echo 40 passed, 0 failed", "43 passed, 0 failed", 0),
        ("echo 2 passed, 1 failed; exit 1", "echo 40 passed, 0 failed", "42 passed, 1 failed", 1),
        ("exit 2", "echo 40 passed, 2 failed; exit 1", "40 passed, 3 failed", 1),
        (
            "echo 3 passed, 0 failed",
            "echo 1 passed, 0 failed; echo and then it broke; exit 1",
            "4 passed, 1 failed",
            1,
        ),
    ],
)
def test_run_sums_and_exits(tmp_path, root, check, test, last, code):
    done = make_checkout(tmp_path, root, check, test)
    assert done.stdout.strip().splitlines()[-1] == last and done.returncode == code


def demo(root, out, *options):
    return subprocess.Popen(
        ["bash", "ci/demo", str(out), *options],
        cwd=root,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.long
def test_the_demo_ends_in_a_table_also_after_an_interruption(tmp_path, root):
    import signal
    import time

    first = demo(root, tmp_path, "--steps", "60", "--save-every", "5")
    deadline = time.time() + 300
    while (
        not list(tmp_path.glob("thimble/*/last.pt"))
        and time.time() < deadline
        and first.poll() is None
    ):
        time.sleep(0.5)
    os.killpg(first.pid, signal.SIGINT)
    said, _ = first.communicate(timeout=120)
    assert first.returncode == 130 and "goes on" in said and "Traceback" not in said
    second = demo(root, tmp_path, "--steps", "60", "--save-every", "5")
    said, _ = second.communicate(timeout=600)
    assert second.returncode == 0, said
    assert (
        "to resume" in said
        and "retinanet" in said.lower()
        and ".png" in said
        and "table-thimble.html" in said
    )
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 3


def test_the_readme_of_the_package_has_links_that_work_outside_the_repository(root, tmp_path):
    command = [sys.executable, "setup.py", "--quiet", "egg_info", "--egg-base", tmp_path]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    text = (tmp_path / "madet.egg-info/PKG-INFO").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(links) > 10
    assert all(link.startswith(("https://", "#")) for link in links)
    assert any(link.startswith("https://") and "/raw/main/nbs/images/" in link for link in links)
