"""Two thousand truths must not fill the memory: each assigner in a process of its own, its peak watched."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
torch.set_num_threads(1)
from madet.assigners.atss import atss
from madet.assigners.fcos import fcos
from madet.assigners.max_iou import PriorPredictions, max_iou
from madet.assigners.madet import madet
from madet.nets.anchors import AnchorGrid, octave_scales
name, crowd = sys.argv[1], int(sys.argv[2])
shapes = [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]
grid = AnchorGrid(scales=octave_scales(), ratios=(.5, 1., 2.)) if name == "max_iou" else AnchorGrid()
priors, generator = grid(shapes), torch.Generator().manual_seed(0)
def scene(n):
    corner = torch.rand(n, 2, generator=generator) * torch.tensor([1200., 700.])
    return torch.cat([corner, corner + torch.rand(n, 2, generator=generator) * 100 + 4], 1)
logits = torch.randn(len(priors), 80, generator=generator, requires_grad=True)
def with_predictions(priors, truths, ignored):
    predictions = PriorPredictions(logits, torch.arange(len(truths)) % 80)
    return madet(priors, truths, predictions=predictions, ignored=ignored)
rule = dict(max_iou=max_iou, atss=atss, fcos=fcos, madet=with_predictions)[name]
rule(priors, scene(2), ignored=scene(2))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = rule(priors, scene(crowd), ignored=scene(crowd))
assert (found >= 0).any() and (found == -2).any()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def grown(name, crowd):
    """MB by which the process grew."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name, str(crowd)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.parametrize("name", ["max_iou", "atss", "fcos", "madet"])
def test_two_thousand_truths_take_less_than_a_gigabyte(name):
    """201,600 anchors for max-IoU, 22,400 for the others: pairs alone would be 1.6 GB; and as many ignored regions."""
    assert grown(name, 2000) < 1000


def test_asking_the_classes_costs_no_table_of_pairs():
    """500 truths of 80 classes.

    Losses of all 22,500 candidates for all classes would be 7 MB a number kept, of all pairs 3.6 GB.
    """
    assert grown("madet", 500) < 400
