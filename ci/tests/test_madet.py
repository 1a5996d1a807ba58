"""MADet by command and by hand: odd data, wrong words, a run that is stopped, two processes, a compiler."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
from test_commands import madet, voc

from madet.assigners.madet import madet as madet_rule
from madet.assigners.max_iou import PriorPredictions
from madet.detectors.dense import backbone_with_fpn
from madet.detectors.madet import madet_detector as constructor
from madet.heads.madet import MAHead

SMALL = (
    "--scale bench --backbone tiny --image-size 64 --total-batch 2 --log-every 1 "
    "--fpn-channels 16 --head-convs 1 --warmup 2"
).split()
MADET = ["--method", "madet", *SMALL]


def losses(run):
    return [
        line["loss"]
        for line in map(json.loads, (run / "log.jsonl").read_text().splitlines())
        if "loss" in line
    ]


def scores(run):
    return json.loads((run / "metrics.json").read_text())["test"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return voc(tmp_path_factory.mktemp("voc"), dict(train=4, val=1, test=2))


def rewritten(folder, change):
    """The annotations of the training pictures, each through `change`."""
    for path in (folder / "Annotations").glob("train_*.xml"):
        path.write_text(change(path.read_text()))
    return folder


# ------------------------------------------------------------------------------------------------ odd data, by command


def test_maps_below_three_cells(capsys, pictures, tmp_path):
    """32 px: the last maps have two cells and one, and are padded to three; trained, scored and drawn."""
    words = [word if word != "64" else "32" for word in MADET]
    code, _, said = madet(
        capsys, "train", "--data", pictures, "--out", tmp_path / "run", "--steps", "2", *words
    )
    assert code == 0 and len(losses(tmp_path / "run")) == 2, said
    picture = next((pictures / "JPEGImages").glob("*.jpg"))
    assert madet(capsys, "predict", tmp_path / "run", picture, "--out", tmp_path / "drawn")[0] == 0


def test_answers_of_small_maps_and_their_anchors_agree():
    body, neck = backbone_with_fpn("tiny", channels=16)
    model = constructor(2, "tiny", channels=16)
    with torch.no_grad():
        answers = model.head(model.features(torch.rand(1, 3, 32, 32)))
    assert answers[0].shapes[-2:] == [(3, 3), (3, 3)] and all(
        len(model.head.priors(answers)) == a.logits.shape[1] == a.quality.shape[1] for a in answers
    )
    with torch.no_grad():
        plain = constructor(2, "tiny", channels=16, interaction=None)
        assert plain.head(plain.features(torch.rand(1, 3, 32, 32)))[0].shapes[-1] == (1, 1), (
            "only the deformable convolution needs the padding"
        )


@pytest.mark.parametrize(
    "name, change",
    [
        (
            "no object",
            lambda text: (
                text.split("<object>")[0] + "</annotation>" if "train_0" not in text else text
            ),
        ),
        (
            "larger than the picture",
            lambda text: (
                text.replace("<xmin>10<", "<xmin>1<")
                .replace("<ymin>8<", "<ymin>1<")
                .replace("<xmax>40<", "<xmax>90<")
                .replace("<ymax>36<", "<ymax>80<")
            ),
        ),
        (
            "no width",
            lambda text: text.replace("<xmax>40<", "<xmax>10<") if "train_1" in text else text,
        ),
    ],
)
def test_odd_objects(capsys, tmp_path, name, change):
    folder = rewritten(voc(tmp_path / "voc", dict(train=4, val=1, test=1)), change)
    code, _, said = madet(
        capsys,
        "train",
        "--data",
        folder,
        "--out",
        tmp_path / "run",
        "--steps",
        "4",
        *MADET,
        "--total-batch",
        "1",
    )
    assert (
        code == 0
        and len(losses(tmp_path / "run")) == 4
        and scores(tmp_path / "run")["AP"] is not None
    ), said


def test_one_class(capsys, tmp_path):
    folder = voc(tmp_path / "voc", dict(train=4, val=1, test=1), classes=("cup",))
    code, _, said = madet(
        capsys, "train", "--data", folder, "--out", tmp_path / "run", "--steps", "2", *MADET
    )
    assert code == 0 and set(scores(tmp_path / "run")["per_class"]) == {"cup"}, said


def test_an_object_larger_than_the_image_has_positives_and_gradients():
    torch.manual_seed(0)
    model = constructor(3, "tiny", channels=16, anchor_size=4.0)
    images = [torch.rand(3, 64, 64)]
    truths = [dict(boxes=torch.tensor([[-200.0, -150.0, 260.0, 300.0]]), labels=torch.tensor([2]))]
    found = model(images, truths)
    sum(found.values()).backward()
    answers = model.head(model.features(torch.rand(1, 3, 64, 64)))
    assert model.head.targets(answers, [(64, 64)], truths)[1].positives.sum() > 0
    assert all(value.isfinite() for value in found.values()) and found["loss_bbox"] > 0
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


# ------------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(
    "option, value",
    [
        ("branches", "nonsense"),
        ("interaction", "nonsense"),
        ("box-weights", "nonsense"),
        ("quality", "nonsense"),
        ("topk", "0"),
        ("anchor-size", "-1"),
    ],
)
def test_a_wrong_word_is_a_sentence(capsys, pictures, tmp_path, option, value):
    code, _, said = madet(
        capsys,
        "train",
        "--data",
        pictures,
        "--out",
        tmp_path / "run",
        *MADET,
        f"--{option}={value}",
    )
    assert (
        code == 2
        and f"--{option}" in said
        and len(said.strip().splitlines()) == 1
        and not (tmp_path / "run/last.pt").exists()
    ), said


def test_a_piece_of_another_method_is_refused(capsys, pictures, tmp_path):
    code, _, said = madet(
        capsys,
        "train",
        "--data",
        pictures,
        "--out",
        tmp_path / "run",
        *SMALL,
        "--method",
        "atss",
        "--branches",
        "both",
    )
    assert code == 2 and "branches" in said


@pytest.mark.parametrize("method", ["retinanet", "fcos", "atss"])
@pytest.mark.parametrize(
    "words",
    [["--reweighted"], ["--interaction", "shared"], ["--assigner", "mutual"]],
    ids=lambda words: words[0],
)
def test_each_piece_in_each_dense_method(capsys, pictures, tmp_path, method, words):
    code, _, said = madet(
        capsys,
        "train",
        "--data",
        pictures,
        "--out",
        tmp_path / "run",
        *SMALL,
        "--method",
        method,
        "--steps",
        "2",
        *words,
    )
    assert code == 0 and len(losses(tmp_path / "run")) == 2, said
    assert madet(capsys, "test", tmp_path / "run", "--data", pictures)[0] == 0, (
        "and is built again from its own recipe"
    )


# ------------------------------------------------------------------------------------------------ stopped and resumed


@pytest.mark.trains
def test_a_stopped_run_ends_as_one_that_was_not(capsys, pictures, tmp_path, monkeypatch):
    words = ["train", "--data", pictures, *MADET, "--steps", "6", "--save-every", "100"]
    assert madet(capsys, *words, "--out", tmp_path / "straight")[0] == 0
    whole, calls = MAHead.losses, []

    def stopping(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(MAHead, "losses", stopping)
        assert madet(capsys, *words, "--out", tmp_path / "stopped")[0] == 130
    assert (
        not (tmp_path / "stopped/metrics.json").exists() and len(losses(tmp_path / "stopped")) == 3
    )
    assert madet(capsys, *words, "--out", tmp_path / "stopped", "--resume")[0] == 0
    a, b = (
        torch.load(tmp_path / name / "last.pt", weights_only=True)
        for name in ("straight", "stopped")
    )
    assert (
        all(torch.equal(a["model"][key], b["model"][key]) for key in a["model"])
        and a["step"] == b["step"] == 6
    )
    assert losses(tmp_path / "straight") == losses(tmp_path / "stopped") and scores(
        tmp_path / "straight"
    ) == scores(tmp_path / "stopped")


# ------------------------------------------------------------------------------------------------ two processes

TWO = """
import copy
import torch
import madet.heads.madet as part
from madet.data.embedded import embedded
from madet.detectors.madet import madet_detector
from madet.training.distributed import processes, rank, wrap_ddp
torch.set_num_threads(1); torch.manual_seed(0)
samples = [embedded("easy", "train").load(i) for i in range(4)]
images = [s.image.float() / 255 for s in samples]
truths = [dict(boxes=s.objects.boxes, labels=s.objects.labels) for s in samples]
model = madet_detector(5, "tiny", channels=32, anchor_size=4.)
halves = [slice(0, 1), slice(1, 4)]                    # unlike numbers of objects
gradient = lambda net: torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
with processes("cpu") as device:
    net = wrap_ddp(copy.deepcopy(model), device)        # kept: its hooks exchange the gradients
    losses = net(images[halves[rank()]], truths[halves[rank()]])
    sum(losses.values()).backward()
    two = gradient(net)
    me = rank()

def alone(norms):
    "Mean of both halves' losses, computed one after the other with these normalisers, and all that were asked for."
    asked = []
    model.zero_grad()
    for number, half in enumerate(halves):
        mine = iter(norms[number])
        def given(value):
            asked.append(value.detach()); return next(mine, value.detach())
        part.mean_over_ranks = given
        (sum(model(images[half], truths[half]).values()) / 2).backward()
    return gradient(model), asked

if me == 0:
    by_own, asked = alone([[], []])
    means = [(asked[0] + asked[2]) / 2, (asked[1] + asked[3]) / 2]      # positives, overlaps
    one, _ = alone([means, means])
    print(((two - one).norm() / one.norm()).item(), ((two - by_own).norm() / one.norm()).item())
"""


@pytest.mark.trains
def test_two_processes_compute_the_mean_of_both_halves():
    """phi looks at the images of one process; positives and overlaps are averaged over processes before they divide."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    common = os.environ | dict(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2", OMP_NUM_THREADS="1"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TWO],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=common | dict(RANK=str(r), LOCAL_RANK=str(r)),
        )
        for r in range(2)
    ]
    said = [child.communicate(timeout=300) for child in both]
    assert [child.returncode for child in both] == [0, 0], said
    same, other = map(float, said[0][0].split())
    assert same < 1e-5 < 1e-2 < other, (same, other)


# ------------------------------------------------------------------------------------------------ the rule alone


def test_the_rule_looks_at_the_right_class_and_keeps_no_graph():
    from madet.nets.anchors import AnchorGrid

    torch.manual_seed(0)
    priors = AnchorGrid()([(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)])
    truth = torch.tensor([[21.0, 17.0, 84.0, 92.0]])
    logits = torch.randn(len(priors), 3, requires_grad=True)
    found = madet_rule(priors, truth, predictions=PriorPredictions(logits, torch.tensor([1])))
    assert not found.requires_grad
    order = [1, 0, 2]
    swapped = PriorPredictions(logits[:, order], torch.tensor([0]))
    assert torch.equal(found, madet_rule(priors, truth, predictions=swapped))
    no_opinion = PriorPredictions(torch.zeros(len(priors), 3), torch.tensor([1]))
    flat = madet_rule(priors, truth, predictions=no_opinion)
    assert (flat >= 0).any() and not torch.equal(flat, found)


# ------------------------------------------------------------------------------------------------ a compiler


class Network(torch.nn.Module):
    """Trunk, pyramid and the head's answers as one list of tensors."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels):
        return [
            part
            for answer in self.model.head(self.model.features(pixels))
            for part in (answer.logits, answer.raw, answer.quality)
        ]


@pytest.mark.long
def test_the_network_can_be_compiled():
    """In one graph, with the plain network's numbers.

    Offsets are drawn, or the deformable convolution would be a plain one.
    """
    torch.manual_seed(0)
    network = Network(constructor(5, "tiny", channels=32, anchor_size=4.0))
    with torch.no_grad():
        for name, p in network.named_parameters():
            if "conv_offset" in name:
                p.add_(torch.randn_like(p) * 0.05)
    pixels = torch.randn(2, 3, 96, 96)
    found = [network(pixels), torch.compile(network, fullgraph=True)(pixels)]
    weights = [p for p in network.parameters() if p.requires_grad]
    slopes = [
        torch.autograd.grad(sum((part**2).mean() for part in parts), weights) for parts in found
    ]
    for plain, compiled in (found, slopes):
        assert all(
            (a - b).abs().max() <= 1e-4 * a.abs().max() + 1e-7 for a, b in zip(plain, compiled)
        )
