"""papers/NAME/run.ipynb from papers/run.ipynb: `python ci/papers.py [ROOT]` writes them, `drift(root)` says
which differ.

The notebook of a paper is the common one with `paper` set in its cell of parameters and, at its top, the
paper's title and
the section "One run" of its paper.md (expected value, hardware, time, memory, commands) in place of the
cell that shows it.
"""

import copy
import json
import sys
from pathlib import Path

TEMPLATE = "papers/run.ipynb"
SECTION = "\n## One run\n"
DESCRIBE = (
    "describe(paper)"  # the cell that shows the section, which a paper's own notebook has as text
)
DEFAULT = 'paper = "atss"'


def papers(root):
    """Names of the papers: folders with a grid."""
    return sorted(path.parent.name for path in (root / "papers").glob("*/grid.csv"))


def opening(root, name):
    """The first cell of a paper's notebook, from its paper.md."""
    text = (root / "papers" / name / "paper.md").read_text(encoding="utf-8")
    title = text.splitlines()[0].removeprefix("# ").strip()
    section = text.partition(SECTION)[2].partition("\n## ")[0].strip()
    if not section:
        raise ValueError(f"papers/{name}/paper.md: the section 'One run' is missing")
    return (
        f"# One row of the table of {name}\n\n**{title}**\n\n{section}\n\n"
        "Claims, sources and differences stand in `paper.md`, the rows in `grid.csv`. "
        f"Made by `ci/papers.py` from `{TEMPLATE}`; edit that."
    )


def wanted(root, name):
    """The text of papers/NAME/run.ipynb as it should be."""
    notebook = json.loads((root / TEMPLATE).read_text(encoding="utf-8"))
    cells = []
    for cell in copy.deepcopy(notebook["cells"]):
        source = "".join(cell["source"])
        if source == DESCRIBE:
            continue
        if not cells:
            source = opening(root, name)
        if "parameters" in cell["metadata"].get("tags", []):
            if DEFAULT not in source:
                raise ValueError(f"{TEMPLATE}: the cell of parameters lacks {DEFAULT}")
            source = source.replace(DEFAULT, f'paper = "{name}"', 1)
        cells.append(cell | {"source": source.splitlines(keepends=True)})
    return (
        json.dumps(notebook | {"cells": cells}, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    )


def drift(root):
    """A sentence for each paper's notebook that differs from what it should be."""
    for name in papers(root):
        path = root / "papers" / name / "run.ipynb"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if text != wanted(root, name):
            yield f"{path.relative_to(root)} {'differs' if text else 'is missing'}"


def main(root):
    for name in papers(root):
        (root / "papers" / name / "run.ipynb").write_text(wanted(root, name), encoding="utf-8")
        print(f"papers/{name}/run.ipynb")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve())
