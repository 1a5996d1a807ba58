"""A child process for test_resume.py: one small run through the whole of madet.training, with the command
line's exit codes.

python toy_run.py DATA OUT [--resume] [--pause SECONDS] [--limit BYTES] [name=value of the recipe ...]
With method=atss it trains the tiny ATSS instead of the toy; DATA may then be "embedded".
"""

import argparse
import json
import random
import resource
import sys
import time

import numpy as np
import torch
from PIL import Image
from torch import nn

from madet.boxes.errors import BadInput
from madet.detectors.dense import atss_detector
from madet.training.recipe import Recipe, make_recipe, read_options
from madet.training.run import run


class Toy(nn.Module):
    """Says one box and one class for a picture; draws from every random generator, so that a lost state shows."""

    def __init__(self, num_classes, pause=0.0):
        super().__init__()
        self.num_classes = num_classes
        self.pause = pause
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 5, 4),
            nn.GroupNorm(2, 8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, 2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.2),
            nn.Linear(72, 4 + num_classes),
        )

    def forward(self, images, targets=None):
        time.sleep(self.pause)
        pixels = torch.stack(images)
        if targets is None:
            out = self.body(pixels)
            scores, labels = out[:, 4:].softmax(1).max(1)
            return [
                dict(boxes=b[None], scores=s[None], labels=label[None])
                for b, s, label in zip(16 + 10 * out[:, :4], scores, labels)
            ]
        noise = random.random() + np.random.rand() if self.training and self.body[6].p else 0.0
        out = self.body(pixels + 0.1 * noise).float()
        truths, labels = (torch.cat([t[k] for t in targets]) for k in ("boxes", "labels"))
        return {
            "classes": nn.functional.cross_entropy(out[:, 4:], labels),
            "boxes": (16 + 10 * out[:, :4] - truths).abs().mean() / 10,
        }


def write_data(root, splits=(("train", 20), ("val", 5), ("test", 5)), side=32):
    """Pictures of `side` pixels with one bright rectangle of 6 to 15 px each, as COCO; gives the folder."""
    dice = np.random.default_rng(0)
    for split, count in splits:
        (root / split / "images").mkdir(parents=True)
        images, notes = [], []
        for i in range(count):
            x, y, w, h, kind = (
                int(v)
                for v in (*dice.integers(0, 16, 2), *dice.integers(6, 16, 2), dice.integers(0, 2))
            )
            pixels = np.full((side, side, 3), 40, np.uint8)
            pixels[y : y + h, x : x + w] = (220, 60 + 120 * kind, 90)
            Image.fromarray(pixels).save(root / split / "images" / f"{i}.png")
            images.append(dict(id=i, file_name=f"{i}.png", width=side, height=side))
            notes.append(
                dict(
                    id=i, image_id=i, category_id=kind + 1, bbox=[x, y, w, h], area=w * h, iscrowd=0
                )
            )
        kinds = [dict(id=1, name="red"), dict(id=2, name="orange")]
        (root / split / "annotations.json").write_text(
            json.dumps(dict(images=images, annotations=notes, categories=kinds))
        )
    return root


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data")
    parser.add_argument("out")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--calm", action="store_true")
    args, rest = parser.parse_known_args()
    if args.limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (args.limit, args.limit))
    small = dict(
        data=args.data,
        method="toy",
        image_size="32",
        total_batch=4,
        lr_batch=4,
        steps=60,
        warmup=5,
        eval_every=20,
        save_every=10,
        log_every=1,
    )

    def build(recipe, method_options, num_classes):
        if recipe.method == "atss":
            return atss_detector(num_classes, backbone="tiny")
        toy = Toy(num_classes, args.pause)
        if args.calm:
            toy.body[6].p = 0.0
        return toy

    try:
        recipe, method_options = make_recipe("thimble", small | read_options(rest, Recipe))
        run(recipe, method_options, build, args.out, resume=args.resume, device="cpu")
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(stop, file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
