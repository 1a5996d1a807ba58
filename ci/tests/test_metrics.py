"""The published answers of COCO and VOC through `madet eval`, and both evaluation fixtures.

MADET_SHARED says where they lie.
"""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from madet.cli import main
from madet.metrics.coco import KEYS, score_dicts
from madet.parity.scores import INPUTS, eval_coco, eval_voc

SHARED = Path(os.environ.get("MADET_SHARED", Path(__file__).parents[2].parent / "shared"))
COCO = SHARED / "data/oracles/coco_val2014_100"
VOC = SHARED / "data/oracles/voc_pr_example"
shared = pytest.mark.skipif(not COCO.exists(), reason="MADET_SHARED does not lead to data/oracles")


def evaluate(capsys, *words):
    code = main(["eval", *map(str, words), "--json"])
    out = capsys.readouterr().out
    return code, json.loads(out)


def coco_files(kind):
    return (
        "--truth",
        COCO / "instances_val2014_100.json",
        "--results",
        COCO / f"instances_val2014_fake{kind}100_results.json",
    )


@shared
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_coco_answers(capsys, kind):
    code, ours = evaluate(capsys, "--format", "coco", *coco_files(kind), "--iou-type", kind)
    assert code == 0
    for key, value in json.loads((COCO / "expected.json").read_text())[kind].items():
        assert math.isclose(ours[key], value, rel_tol=1e-9), key


@shared
@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_both_programs_agree_to_six_digits(kind):
    pytest.importorskip("faster_coco_eval")
    truth, results = (json.loads(Path(p).read_text()) for p in coco_files(kind)[1::2])
    slow, fast = (score_dicts(truth, results, kind, backend=b) for b in ("pycocotools", "faster"))
    assert [round(slow[k], 6) for k in KEYS] == [round(fast[k], 6) for k in KEYS]
    assert np.allclose(slow["precision"], fast["precision"], atol=1e-6)


@shared
@pytest.mark.parametrize("mode, name", [("area", "AP_every_point"), ("11point", "AP_11_point")])
@pytest.mark.parametrize("iou", ["0.1", "0.3", "0.5", "0.75"])
def test_voc_answers(capsys, mode, name, iou):
    code, ours = evaluate(
        capsys,
        "--format",
        "voc",
        "--truth",
        VOC / "groundtruths",
        "--results",
        VOC / "detections",
        "--iou",
        iou,
        "--ap",
        mode,
    )
    assert code == 0 and math.isclose(
        ours["AP"],
        json.loads((VOC / "expected.json").read_text())[name][iou],
        rel_tol=1e-9,
        abs_tol=1e-10,
    )


@shared
@pytest.mark.parametrize("handler", [eval_voc, eval_coco])
def test_fixtures_hold_and_notice_a_shift(handler):
    with np.load(SHARED / f"golden/{handler.__name__}.npz", allow_pickle=False) as z:
        rows = list(handler(z, json.loads(str(z["meta"]))))
        assert {row[0] for row in rows} == set(z.files) - set(INPUTS)
    for name, expected, computed, tolerance, _ in rows:
        off = np.abs(expected.astype(np.float64) - computed)
        assert expected.shape == computed.shape and off.max() <= tolerance, name
        shifted = expected.astype(np.float64).reshape(-1)
        shifted[-1] += 10 * tolerance or 1
        assert np.abs(shifted - computed.reshape(-1)).max() > tolerance, name


@shared
def test_json_is_one_document_and_says_nothing_else():
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "madet",
            "eval",
            "--format",
            "coco",
            *map(str, coco_files("bbox")),
            "--json",
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0 and json.loads(done.stdout)["images"] == 100 and done.stderr == ""


def test_missing_file_is_one_sentence(capsys):
    assert (
        main(
            [
                "eval",
                "--format",
                "coco",
                "--truth",
                "/nowhere/t.json",
                "--results",
                "/nowhere/r.json",
            ]
        )
        == 2
    )
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "/nowhere/t.json" in err
