"""ci/gpu without a GPU: it says so and exits 0, and its parts work on a CPU.

Its JSON is there after each part, and what passed is not run again.
"""

import json
import subprocess
import sys

import gpu
import pytest
from gpu import Ended, Part, Settings


def call(root, *words, seconds=600):
    """ci/gpu.py in a process of its own."""
    return subprocess.run(
        [sys.executable, root / "ci/gpu.py", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=seconds,
        stdin=subprocess.DEVNULL,
    )


def saying(name, text, seconds=30, code=0, pause=0):
    """A part whose child prints a text and ends with a code."""
    program = f"import sys, time; time.sleep({pause}); print({text!r}); sys.exit({code})"
    return Part(
        name,
        f"prints {name}",
        seconds,
        lambda settings, folder: gpu.python("-c", program),
        gpu.last_json,
    )


@pytest.fixture
def clean(monkeypatch):
    """A tree without changes, at a commit that a test can set."""
    commit = ["abc"]
    monkeypatch.setattr(gpu, "commit_of", lambda root: commit[0])
    return commit


def run(parts, path, fresh=False, total=100.0, device="cpu"):
    """The states of the parts after a run, and the file's content."""
    gpu.run_all(parts, Settings(device), path, fresh, total)
    content = json.loads(path.read_text())
    return {name: part["state"] for name, part in content["parts"].items()}, content


def test_all_parts_fit_into_eight_minutes():
    assert sum(part.seconds for part in gpu.PARTS) <= gpu.SECONDS == 8 * 60
    assert len({part.name for part in gpu.PARTS}) == len(gpu.PARTS)


def test_without_a_gpu_the_dry_parts_run_and_the_exit_code_is_0(root, tmp_path):
    done = call(root, "--dry", "--quick", "--out", tmp_path / "gpu.json")
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads((tmp_path / "gpu.json").read_text())
    assert answer["dry"] and answer["device"] is None and answer["pretended"]["state"] == "passed"
    assert [part["state"] for part in answer["parts"].values()] == ["not run"] * len(gpu.PARTS)
    assert all(part["command"] for part in answer["parts"].values())


def test_no_gpu_is_said_and_a_named_one_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(gpu, "dry_run", lambda *given: {"pretended": {"state": "passed"}})
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 0
    assert "no GPU here" in capsys.readouterr().out
    assert gpu.main(["--device", "cuda"]) == 2
    assert "no GPU here" in capsys.readouterr().err


def test_what_passed_is_not_run_again(clean, tmp_path, capsys):
    path = tmp_path / "gpu.json"
    parts = [saying("good", '{"ok": true, "number": 1}'), saying("bad", '{"ok": false}')]
    states, content = run(parts, path)
    assert states == {"good": "passed", "bad": "failed"} and content["parts"]["good"]["number"] == 1
    again = [saying("good", '{"ok": true, "number": 2}'), saying("bad", '{"ok": true}')]
    states, content = run(again, path)
    assert states == {"good": "passed", "bad": "passed"} and content["parts"]["good"]["number"] == 1
    assert "passed before" in capsys.readouterr().out
    assert run(again, path, fresh=True)[1]["parts"]["good"]["number"] == 2
    clean[0] = "def"
    assert run(parts, path)[1]["parts"]["good"]["number"] == 1  # another commit
    assert run(again, path, device="cuda")[1]["parts"]["good"]["number"] == 2  # another device
    clean[0] = "def-dirty"
    run(parts, path)
    assert (
        run(again, path)[1]["parts"]["good"]["number"] == 2
    )  # a changed tree says nothing about itself


def test_a_part_that_takes_too_long_is_stopped_and_the_rest_goes_on(clean, tmp_path):
    parts = [
        saying("long", "{}", seconds=5, pause=60),
        saying("good", '{"ok": true}'),
        saying("crash", '{"ok": true}', code=3),
    ]
    states, content = run(parts, tmp_path / "gpu.json")
    assert states == {"long": "stopped", "good": "passed", "crash": "failed"}
    states, content = run([saying("late", '{"ok": true}')], tmp_path / "other.json", total=3.0)
    assert states == {"late": "not run"} and "call ci/gpu again" in content["parts"]["late"]["why"]


def test_ends_are_read(tmp_path):
    def ended(printed, code=0):
        return Ended(code, printed, "", 1.0)

    for read in (gpu.last_json, gpu.read_parity, gpu.read_bench, gpu.read_tests):
        assert not read(ended("nothing of use"), tmp_path).get("ok")
    case = dict(
        case="nms",
        ok=True,
        worst="keep",
        error=0.0,
        tolerance=0.0,
        trouble="",
        handler=True,
        path="",
        forgotten=[],
        arrays=[],
    )
    assert gpu.read_parity(
        ended(json.dumps({"cases": [case, case | {"handler": False, "case": "other"}]})), tmp_path
    ) == {
        "ok": True,
        "cases": [
            {key: case[key] for key in ("case", "ok", "worst", "error", "tolerance", "trouble")}
        ],
        "without_handler": ["other"],
    }
    assert not gpu.read_parity(ended(json.dumps({"cases": [case | {"ok": False}]})), tmp_path)["ok"]
    (tmp_path / "report.xml").write_text(
        '<testsuites><testsuite tests="3" skipped="1"><testcase name="a"/><testcase name="b"><failure/></testcase>'
        '<testcase name="c"><skipped/></testcase></testsuite></testsuites>'
    )
    assert gpu.read_tests(ended("", 1), tmp_path) == {
        "ok": False,
        "passed": 1,
        "skipped": 1,
        "failed": ["b"],
    }


def test_a_line_says_what_came_out():
    assert gpu.in_a_line({"state": "not run", "why": "no GPU"}) == "not run; no GPU"
    line = gpu.in_a_line(
        {"state": "failed", "seconds": 3.0, "passed": 4, "failed": ["x"], "skipped": 0}
    )
    assert line == "failed; 3 s; 4 tests passed, 1 failed x"


@pytest.mark.long
def test_every_part_works_on_a_cpu(root, tmp_path):
    done = call(root, "--device", "cpu", "--quick", "--out", tmp_path / "gpu.json")
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads((tmp_path / "gpu.json").read_text())
    assert {name: part["state"] for name, part in answer["parts"].items()} == {
        part.name: "passed" for part in gpu.PARTS
    }
