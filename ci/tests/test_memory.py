"""Two thousand truths must not fill the memory: each assigner in a process of its own, its peak watched."""
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
torch.set_num_threads(1)
from madet.assigners.atss import atss
from madet.assigners.fcos import fcos_rule
from madet.assigners.max_iou import max_iou
from madet.nets.anchors import AnchorGrid, octave_scales
name, crowd = sys.argv[1], int(sys.argv[2])
shapes = [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]
grid = AnchorGrid(scales=octave_scales(), ratios=(.5, 1., 2.)) if name == "max_iou" else AnchorGrid()
priors, generator = grid(shapes), torch.Generator().manual_seed(0)
def scene(n):
    corner = torch.rand(n, 2, generator=generator) * torch.tensor([1200., 700.])
    return torch.cat([corner, corner + torch.rand(n, 2, generator=generator) * 100 + 4], 1)
rule = dict(max_iou=max_iou, atss=atss, fcos_rule=fcos_rule)[name]
rule(priors, scene(2), ignored=scene(2))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = rule(priors, scene(crowd), ignored=scene(crowd))
assert (found >= 0).any() and (found == -2).any()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


@pytest.mark.parametrize("name", ["max_iou", "atss", "fcos_rule"])
def test_two_thousand_truths_take_less_than_a_gigabyte(name):
    """201,600 anchors for max-IoU, 22,400 for the others: pairs alone would be 1.6 GB; and as many ignored regions."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, name, "2000"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1000, f"{name} took {done.stdout} MB more"
