"""ci/bench on the smallest sizes.

It runs, its JSON holds what readers look for, ratios are what they say. No time is asserted.
"""

import io
import json
import math
from contextlib import redirect_stderr, redirect_stdout

import bench
import bench_parts
import bench_profile
import pytest
import torch


def answer_of(*words):
    """Exit code and JSON of a call."""
    out, heard = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(heard):
        code = bench.main([*words, "--json"])
    return code, json.loads(out.getvalue()), heard.getvalue()


def test_the_answer_has_its_keys(tmp_path):
    code, answer, heard = answer_of(
        "assign", "train", "infer", "--tiny", "--out", str(tmp_path / "deep/bench.json")
    )
    assert code == 0 and answer == json.loads((tmp_path / "deep/bench.json").read_text())
    assert {"torch", "torchvision"} <= answer["environment"]["versions"].keys() and answer[
        "environment"
    ]["threads"] == 1
    assert {row["part"] for row in answer["rows"]} == {"assign", "train", "infer"} and not answer[
        "skipped"
    ]
    for row in answer["rows"]:
        timed = [side for side in row["sides"].values() if "ms" in side]
        assert all(
            0 < side["ms_min"] <= side["ms"] and side["cpu_ms"] >= 0 and side["rounds"] >= 1
            for side in timed
        )
        assert len(row["ratios"]) == max(len(timed) - 1, 0) and all(
            r["ratio"] > 0 for r in row["ratios"]
        )
        assert row["work"] in heard


def test_sides_train_the_same_backbone_and_pass_as_many_candidates():
    options = bench.replace(bench.Options(), **bench.TINY)
    for part, fact in (("train", "trained_backbone_tensors"), ("infer", "candidates")):
        contest = next(bench_parts.contests(part, options, []))
        assert len({make().facts[fact] for make in contest.sides.values()}) == 1


def test_the_backbone_of_the_published_comparison_has_equal_frozen_layers():
    trained = set()
    for make in bench_parts.detectors(
        bench.replace(bench.Options(), backbone="resnet18", classes=3)
    ).values():
        body = bench_parts.body_of(make())
        trained.add(tuple(name for name, p in body.named_parameters() if p.requires_grad))
    assert len(trained) == 1 and not any(
        name.startswith(("conv1", "layer1")) or "bn" in name for name in trained.pop()
    )


def test_madet_against_atss():
    code, answer, heard = answer_of("madet", "--tiny")
    step, where, picture = answer["rows"]
    assert (
        code == 0
        and [list(row["sides"]) for row in (step, picture)]
        == [["madet's MADet", "madet's ATSS"]] * 2
    )
    assert [row["ratios"][0]["aim"] for row in (step, picture)] == [1.6, 1.6] and len(
        {side["candidates"] for side in picture["sides"].values()}
    ) == 1
    shares = {name: float(said.split("%")[0]) for name, said in where["facts"].items()}
    assert abs(sum(shares.values()) - 100) < 0.5 and all(
        shares[name] > 0
        for name in (
            "trunk and pyramid",
            "towers and outputs",
            "deformable part",
            "assignment",
            "losses and targets",
        )
    )
    assert "where such a step goes" in heard and "aim 5%" in where["facts"]["assignment"]


def test_rotated_boxes_against_a_clipper():
    code, answer, heard = answer_of("rotated", "--tiny")
    assert (
        code == 0
        and len(answer["rows"]) == 9
        and all(next(iter(row["sides"])) == "madet" for row in answer["rows"])
    )
    table, priors = answer["rows"][:2]
    assert "shapely" in table["sides"] and all(
        float(said.split(" to ")[0]) < 1e-5
        for row in (table, priors)
        for said in row["facts"]["largest difference"].split(", ")
    )
    assert (
        all(int(row["facts"]["kept"]) > 0 for row in answer["rows"] if "suppression" in row["work"])
        and "AP of 2 tiles" in heard
    )


def test_an_aim_in_milliseconds_is_judged():
    options = bench.replace(bench.Options(), **bench.TINY)
    for aim, met in ((1e-9, False), (1e9, True)):
        row = bench.run_contest(
            bench.Contest(
                "assign", "nothing", {"madet": lambda: lambda: sum(range(20_000))}, ms_aim=aim
            ),
            options,
            0,
        )
        assert row["ms_met"] is met and ("met" if met else "MISSED") in bench.table(row)


def test_data_and_score_run_and_both_scorers_agree(monkeypatch, tmp_path):
    monkeypatch.setenv("MADET_SHARED", str(tmp_path))
    _, answer, _ = answer_of("data", "score", "--tiny")
    assert [skip["part"] for skip in answer["skipped"]] == ["data"] and "bccd" in answer["skipped"][
        0
    ]["why"]
    assert all(
        side["images_per_second"] > 0
        for row in answer["rows"]
        if row["part"] == "data"
        for side in row["sides"].values()
    )
    facts = answer["rows"][-1]["facts"]
    assert (
        float(facts["largest difference of the twelve numbers from pycocotools"]) < 1e-9
        and 0 < float(facts["AP"]) < 1
    )


def test_a_missing_device_is_a_sentence_not_a_failure():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    code, answer, heard = answer_of(
        "train", "infer", "madet", "rotated", "--tiny", "--device", "cuda"
    )
    assert (
        code == 0
        and answer["rows"] == []
        and len(answer["skipped"]) == 4
        and "no CUDA device" in heard
    )


@pytest.mark.parametrize("part, more", [("train", set()), ("madet", {"head: deformable"})])
def test_the_profile_counts_the_whole_step(part, more):
    code, answer, heard = answer_of(part, "--profile", "--tiny")
    assert code == 0 and "Not convolution and over a tenth of a step" in heard
    assert math.isclose(sum(row["share"] for row in answer["shares"]), 1)
    places = {row["place"] for row in answer["shares"] if row["kind"] == "convolution"}
    assert (
        {"backbone", "neck", "head: towers"} | more <= places
        and {"losses: assignment", "losses: focal"} <= {row["place"] for row in answer["shares"]}
        and all(o["share"] > 0.1 for o in answer["over_a_tenth"])
    )


@pytest.mark.parametrize(
    "name, kind",
    [
        ("aten::mkldnn_convolution", "convolution"),
        ("aten::native_group_norm_backward", "norm"),
        ("aten::threshold_backward", "elementwise, pooling, copies"),
        ("aten::_fused_sgd_", "optimizer"),
        ("aten::topk", "other"),
    ],
)
def test_kinds_of_operators(name, kind):
    assert bench_profile.kind_of(name) == kind


def test_turns_ratios_and_aims():
    calls = []
    works = {name: lambda name=name: calls.append(name) for name in "ab"}
    found = bench.by_turns(works, 0, 3)
    assert "".join(calls) == "abababab" and [len(v) for v in found.values()] == [3, 3]
    (row,) = bench.compare(
        dict(a=[(2.0, 1.0), (9.0, 1.0), (3.0, 1.0)], b=[(4.0, 4.0), (3.0, 4.0), (4.0, 4.0)]),
        0.5,
        True,
    )
    assert row["ratio"] == 0.75 and row["ratio_cpu"] == 0.25 and row["met"]
    assert not bench.compare(dict(a=[(3.0, 1.0)], b=[(4.0, 4.0)]), 0.5, False)[0]["met"]


@pytest.mark.parametrize(
    "words", [["nonsense"], ["train", "--threads", "0"], ["infer", "--profile"]]
)
def test_bad_usage_exits_2(words, capsys):
    with pytest.raises(SystemExit) as left:
        bench.main(words)
    assert left.value.code == 2 and "ci/bench: error:" in capsys.readouterr().err


def test_memory_of_a_side_is_measured_in_a_process_of_its_own():
    def make():
        return lambda: torch.ones(20_000_000).add_(1)  # 80 MB

    grown = bench.growth(make)
    assert grown is None or 70 < grown < 200


def test_boxes_lie_inside():
    boxes = bench_parts.boxes_inside(200, 80, 130)
    assert (
        (boxes[:, :2] >= 0).all()
        and (boxes[:, 2:] <= torch.tensor([130.01, 80.01])).all()
        and (boxes[:, 2:] > boxes[:, :2]).all()
    )
