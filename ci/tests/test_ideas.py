"""Ten ideas are found from the tree: a file named by the idea's word, and one function to point at."""

import ast

import pytest

IDEAS = {
    "ATSS's threshold": ("assigners/atss.py", "adaptive_threshold"),
    "MADet's quality score": ("assigners/madet.py", "discounted_overlap"),
    "the shared deformable offset": ("heads/shared_deform.py", "SharedDeformInteraction"),
    "mutual reweighting of the losses": ("losses/madet.py", "weighted_focal"),
    "exact rotated IoU": ("boxes/rotated_iou.py", "rotated_iou"),
    "angle versions": ("boxes/conventions.py", "convention"),
    "midpoint offset": ("boxes/midpoint.py", "MidpointCoder"),
    "KLD, GWD and KFIoU losses": ("losses/gaussian.py", "kld_loss"),
    "COCO's AP": ("metrics/coco.py", "coco_average_precision"),
    "resuming a run": ("training/resume.py", "resume"),
}


@pytest.mark.parametrize("idea", IDEAS)
def test_an_idea_has_a_file_and_a_function(root, idea):
    file, name = IDEAS[idea]
    tree = ast.parse((root / "madet" / file).read_text(encoding="utf-8"))
    found = {node.name: node for node in tree.body if hasattr(node, "name")}
    assert name in found, f"{idea}: {file} has no {name}"
    assert ast.get_docstring(found[name]), f"{idea}: {name} says nothing about itself"
