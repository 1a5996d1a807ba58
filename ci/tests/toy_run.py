"""A child process for test_resume.py: one small run through the whole of madet.training, with the command
line's exit codes.

python toy_run.py DATA OUT [--resume] [--pause SECONDS] [--limit BYTES] [name=value of the recipe ...]
With method=atss it trains the tiny ATSS instead of the toy; DATA may then be "embedded".
"""

import argparse
import random
import resource
import sys
import time

import numpy as np
import torch
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
