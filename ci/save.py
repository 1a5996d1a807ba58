"""Runs notebooks and stores their outputs small: `python ci/save.py NOTEBOOK ...`; with `--slim` nothing runs,
stored pictures shrink.

Pictures are stored at one pixel a pixel (nbdev's shell would double them), and as JPEG where that is less
than half of a PNG above
30 kB, which is so for photographs; line drawings stay PNG, with a palette of 128 colours.
"""

import base64
import io
import json
import sys
from pathlib import Path

LARGE = 30_000  # bytes of PNG below which nothing is gained
COLORS = 128
WIDEST = 900  # pixels


def smaller(png, halve):
    """(mime, bytes) of a picture given as PNG bytes; `halve` where it was stored at double size."""
    from PIL import Image

    image = Image.open(io.BytesIO(png))
    if halve:
        image = image.convert("RGBA").resize((image.width // 2, image.height // 2), Image.LANCZOS)
        out = io.BytesIO()
        image.save(out, "PNG", optimize=True)
        png = out.getvalue()
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image.convert("RGBA"), mask=image.convert("RGBA").getchannel("A"))
    photo, drawing = io.BytesIO(), io.BytesIO()
    flat.save(photo, "JPEG", quality=72, optimize=True)
    if len(png) >= LARGE and len(photo.getvalue()) < len(png) / 2:
        return "image/jpeg", photo.getvalue()
    flat.quantize(COLORS, dither=Image.Dither.NONE).save(drawing, "PNG", optimize=True)
    return "image/png", min(png, drawing.getvalue(), key=len)


def slim(path, halve=False):
    """Shrinks the stored pictures of a notebook; the bytes it saved. `halve`: also those wider than WIDEST by two."""
    path = Path(path)
    notebook = json.loads(path.read_text(encoding="utf-8"))
    saved = 0
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" not in data:
                continue
            if "image/jpeg" in data:  # a PIL image shows itself as both
                saved += len(data.pop("image/png"))
                continue
            old = base64.b64decode("".join(data["image/png"]))
            mime, new = smaller(old, halve and int.from_bytes(old[16:20], "big") > WIDEST)
            if len(new) < len(old):
                del data["image/png"]
                data[mime] = base64.b64encode(new).decode()
                saved += len(old) - len(new)
    if saved:
        path.write_text(
            json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n",
            encoding="utf-8",
        )
    return saved


def run(path):
    """Runs a notebook as nbdev-test does and stores its outputs; True where it passed."""
    from execnb.shell import CaptureShell
    from nbdev.test import nbdev_test

    make = CaptureShell.__init__
    CaptureShell.__init__ = lambda self, path=None, mpl_format="png", **options: make(
        self, path, mpl_format, **options
    )
    try:
        nbdev_test(str(path), save=True)
    except SystemExit as end:
        return not end.code
    finally:
        CaptureShell.__init__ = make
    return True


if __name__ == "__main__":
    only_slim = "--slim" in sys.argv
    passed = True
    for name in (word for word in sys.argv[1:] if word != "--slim"):
        good = only_slim or run(name)
        if good:
            slim(name, halve=only_slim)
        passed = passed and good
    sys.exit(not passed)
