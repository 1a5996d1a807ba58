"""What `ci/check` asks of the tree. `python ci/checks.py ROOT [WORD ...]` runs the checks whose title holds a word.

Each check returns what it counted and a list of sentences, one per thing that is wrong; its cure stands
beside its title.
Nothing in the tree is written: export and clean work on a temporary copy.
"""

import ast
import base64
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import tokenize
from pathlib import Path

import readme

import papers

OUTPUT_LIMIT = 300_000  # bytes of stored output in a notebook
WIDTH_LIMIT = 900  # pixels
LINE_LIMIT = 120  # columns
TOKENS_A_LINE = 10
CELL_LIMIT = 60  # lines
PICTURE_BEFORE = 8  # cells
SENTENCE_LIMIT = 110  # characters
BASELINE = ".basedpyright/baseline.json"
LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
LEFT_OUT = {
    ".git",
    ".venv",
    "runs",
    "build",
    "dist",
    "_docs",
    "_proc",
    "site",
    "__pycache__",
    ".ipynb_checkpoints",
}
CHECKS = []


def check(title, cure):
    def keep(function):
        CHECKS.append((title, cure, function))
        return function

    return keep


def files_of(root):
    """Paths of the tree, relative: what git tracks or would track; without git, everything but the usual left-overs."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0 and (root / ".git").exists():
        names = [Path(name) for name in listed.stdout.split("\0") if name]
    else:
        names = [
            path.relative_to(root)
            for path in root.rglob("*")
            if not LEFT_OUT & set(path.relative_to(root).parts)
        ]
    return sorted(name for name in set(names) if (root / name).is_file())


def copy_of(root, to):
    for name in files_of(root):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, to / name)


def notebooks(root, folder):
    found = sorted((root / folder).rglob("*.ipynb"))
    return [
        path for path in found if not any(part[0] in "._" for part in path.relative_to(root).parts)
    ]


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def differing(before, after, pattern, folder):
    """Paths under `folder` whose bytes differ, with how they do."""
    names = {
        path.relative_to(base)
        for base in (before, after)
        for path in (base / folder).rglob(pattern)
    }
    for name in sorted(names):
        if "__pycache__" in name.parts or ".ipynb_checkpoints" in name.parts:
            continue
        old, new = (base / name if (base / name).exists() else None for base in (before, after))
        if old is None or new is None:
            yield name, "is missing" if old is None else "comes from no notebook"
        elif old.read_bytes() != new.read_bytes():
            yield name, "differs"


@check(
    "export and clean leave the tree unchanged",
    "nbs/ is the source: carry a hand edit of madet/ over to the notebook, then nbdev-export && nbdev-clean",
)
def unchanged(root):
    with tempfile.TemporaryDirectory(prefix="madet-check-") as folder:
        before, after, home = (Path(folder) / name for name in ("before", "after", "home"))
        copy_of(root, before)
        shutil.copytree(before, after)
        for path in (after / "madet").rglob(
            "*.py"
        ):  # or a module whose notebook is gone would stay unseen
            if path != after / "madet/__init__.py":
                path.unlink()
        env = dict(
            os.environ,
            XDG_CONFIG_HOME=str(home),
            IPYTHONDIR=str(home),
            JUPYTER_CONFIG_DIR=str(home),
            PYTHONPATH=str(after),
        )
        said = []
        for tool in ("nbdev-export", "nbdev-clean"):
            made = subprocess.run(
                [Path(sys.executable).parent / tool],
                cwd=after,
                env=env,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
            )
            if made.returncode:
                said.append(f"{tool} failed: {(made.stderr or made.stdout).strip()[-600:]}")
        said += [
            f"{name} {how} (not what nbdev-export makes)"
            for name, how in differing(before, after, "*.py", "madet")
        ]
        said += [
            f"{name} {how} (not what nbdev-clean leaves)"
            for name, how in differing(before, after, "*.ipynb", "nbs")
        ]
        count = len(list((after / "madet").rglob("*.py"))), len(notebooks(after, "nbs"))
    return f"{count[0]} modules, {count[1]} notebooks", said


def tool(root, *command):
    """Exit code and printed lines of a development tool, run in the tree."""
    done = subprocess.run(
        [Path(sys.executable).parent / command[0], *command[1:]],
        cwd=root,
        env=dict(os.environ, PYTHONPATH=str(root), CI="true"),  # CI: the baseline is not written
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    return done.returncode, (done.stdout + done.stderr).strip().splitlines()


@check(
    "imports go to lower floors only, without circles",
    "move the code or the import down; the floors stand under [tool.importlinter] in pyproject.toml",
)
def floors_hold(root):
    code, lines = tool(root, "lint-imports", "--no-cache")
    counted = next((line for line in lines if line.startswith("Analyzed ")), "")
    broken = [line for line in lines if line.startswith("- ") or "No matching" in line]
    missing = [line for line in lines if "missing" in line.lower()]
    said = broken + missing
    return counted.rstrip("."), (said or lines[-12:]) if code else []


@check(
    "ruff finds nothing, and nothing to format",
    "ruff check --fix nbs ci papers && ruff format nbs ci papers, then nbdev-export && nbdev-clean",
)
def linted(root):
    said = []
    for command in (["check", "--output-format", "concise"], ["format", "--check"]):
        code, lines = tool(root, "ruff", *command, "--no-cache", "nbs", "ci", "papers", "setup.py")
        if code:
            said += [line for line in lines if ":" in line and not line.startswith("warning")]
    return "nbs, ci, papers", said


@check(
    "basedpyright finds no type error that is not in its baseline",
    "mend the types; the baseline (.basedpyright/baseline.json) only shrinks: basedpyright writes it where errors went",
)
def typed(root):
    baseline = root / BASELINE
    before = baseline.read_bytes() if baseline.exists() else b""
    code, lines = tool(root, "basedpyright", "--level", "error")
    known = before.count(b'"code"')
    said = [line.strip() for line in lines if " - error: " in line]
    return f"{known} in the baseline", said if code else []


@check(
    "madet imports without nbdev, fastcore, IPython, ipywidgets, papermill and the extras",
    "import such a package inside the one function that needs it",
)
def lean(root):
    done = subprocess.run(
        [sys.executable, root / "ci/lean_import.py", root],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        cwd=root,
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode and len(lines) < 2:
        return "", [(done.stderr or done.stdout).strip()[-600:]]
    return lines[-1] if lines else "", lines[:-1]


@check("README.md is what nbs/index.ipynb gives", "run ci/readme")
def front_page(root):
    files = readme.wanted(root)
    return f"{len(files)} files", list(readme.drift(root))


def markdown_outputs(path):
    """Stored Markdown outputs of a notebook, by cell."""
    return {
        cell["id"]: "".join(output["data"]["text/markdown"])
        for cell in code_cells(load(path))
        for output in cell["outputs"]
        if "text/markdown" in output.get("data", {})
    }


@check("the front page's tables are today's", "run ci/readme")
def tables_are_fresh(root):
    with tempfile.TemporaryDirectory(prefix="madet-check-") as folder:
        copy = Path(folder) / "tree"
        copy_of(root, copy)
        env = dict(os.environ, IPYTHONDIR=folder, XDG_CONFIG_HOME=folder, PYTHONPATH=str(copy))
        stored = markdown_outputs(copy / readme.NOTEBOOK)
        ran = subprocess.run(
            [Path(sys.executable).parent / "nbdev-test", "--save", copy / readme.NOTEBOOK],
            cwd=copy,
            env=env,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=300,
        )
        if ran.returncode:
            return "", [
                f"{readme.NOTEBOOK} does not run: {(ran.stderr or ran.stdout).strip()[-600:]}"
            ]
        fresh = markdown_outputs(copy / readme.NOTEBOOK)
    return f"{len(fresh)} tables", [
        f"{readme.NOTEBOOK}: cell {ident} gives another table now"
        for ident in sorted(fresh.keys() | stored.keys())
        if fresh.get(ident, "").strip() != stored.get(ident, "").strip()
    ]


@check(
    "links in the prose lead somewhere",
    "correct the path; links in nbs/index.ipynb are relative to nbs/",
)
def links(root):
    said, count = [], 0
    for path in sorted([*root.glob("*.md"), *root.glob("data/*.md"), *root.glob("papers/*/*.md")]):
        prose = "".join(
            part
            for i, part in enumerate(readme.FENCE.split(path.read_text(encoding="utf-8")))
            if not i % 2
        )
        for _, link in readme.LINK.findall(prose):
            target = link.partition("#")[0]
            if target and not readme.OUTWARD.match(link):
                count += 1
                if not (path.parent / target).exists():
                    said.append(f"{path.relative_to(root)}: {link}")
    return f"{count} links", said


def picture_width(data):
    """Width in pixels of a base64 PNG; 0 for anything else."""
    head = base64.b64decode("".join(data)[:64])
    return struct.unpack(">I", head[16:20])[0] if head[:4] == b"\x89PNG" else 0


@check(
    f"stored outputs are there, under {OUTPUT_LIMIT // 1000} kB a notebook and {WIDTH_LIMIT} px wide, without errors",
    "ci/nb round NOTEBOOK runs it and stores its outputs, ci/nb slim NOTEBOOK shrinks stored "
    "pictures; fewer figures where that is not enough",
)
def outputs(root):
    said = []
    paths = notebooks(root, "nbs")
    largest = 0
    for path in paths:
        cells, name = code_cells(load(path)), path.relative_to(root)
        stored = [output for cell in cells for output in cell["outputs"]]
        size = sum(len(json.dumps(output, ensure_ascii=False).encode()) for output in stored)
        largest = max(largest, size)
        if cells and not stored:
            said.append(f"{name}: no stored output")
        if size > OUTPUT_LIMIT:
            said.append(f"{name}: {size / 1000:.0f} kB of stored output")
        if any(output["output_type"] == "error" for output in stored):
            said.append(f"{name}: a stored error")
        width = max(
            (picture_width(o.get("data", {}).get("image/png", "")) for o in stored), default=0
        )
        if width > WIDTH_LIMIT:
            said.append(f"{name}: a figure {width} px wide")
    return f"{len(paths)} notebooks, the largest {largest / 1000:.0f} kB", said


def is_import(node):
    return isinstance(node, (ast.Import, ast.ImportFrom))


def is_prose(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


@check(
    "an exported cell holds imports or work, not both",
    "split the cell: the site runs import cells, and only those",
)
def cells_are_pure(root):
    said, count = [], 0
    for path in notebooks(root, "nbs"):
        for cell in code_cells(load(path)):
            source = "".join(cell["source"])
            if not source.lstrip().startswith(("#| export", "#|export")):
                continue
            count += 1
            body = [node for node in ast.parse(source).body if not is_prose(node)]
            if any(map(is_import, body)) and not all(map(is_import, body)):
                said.append(f"{path.relative_to(root)}: cell {cell['id']}")
    return f"{count} exported cells", said


@check(
    "every public function and class has a docstring",
    "one line what; shapes, units, errors and source where there are any",
)
def docstrings(root):
    said, count = [], 0
    for path in sorted((root / "madet").rglob("*.py")):
        if path.name == "_modidx.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(
                node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
            ) and not node.name.startswith("_"):
                count += 1
                if not ast.get_docstring(node):
                    said.append(f"{path.relative_to(root)}:{node.lineno}: {node.name}")
    return f"{count} functions and classes", said


def public_functions(tree):
    """Functions at the top of a module and methods of its public classes whose names have no underscore."""
    for node in tree.body:
        inner = node.body if isinstance(node, ast.ClassDef) and node.name[0] != "_" else [node]
        for one in inner:
            if isinstance(one, ast.FunctionDef) and one.name[0] != "_":
                yield one


def untyped(function):
    """Names of the parameters without a type; `return` where that has none."""
    args = function.args
    named = [*args.posonlyargs, *args.args, *args.kwonlyargs]
    some = [one.arg for one in named if one.annotation is None and one.arg not in ("self", "cls")]
    return some + (["return"] if function.returns is None else [])


def modules(root):
    """(path, text) of every module that stands for a notebook."""
    for path in sorted((root / "madet").rglob("*.py")):
        if path.name not in ("_modidx.py", "__init__.py"):
            yield path, path.read_text(encoding="utf-8")


@check(
    "public functions and methods have types",
    "write the type of every parameter and of what is returned",
)
def signatures(root):
    said, count = [], 0
    for path, text in modules(root):
        for function in public_functions(ast.parse(text)):
            count += 1
            if missing := untyped(function):
                where = f"{path.relative_to(root)}:{function.lineno}: {function.name}"
                said.append(f"{where}: {', '.join(missing)}")
    return f"{count} functions", said


@check(
    f"every module opens with one sentence of at most {SENTENCE_LIMIT} characters",
    "write it as the `> ` line under the title in the notebook's first cell",
)
def opening_sentences(root):
    said = []
    for path, text in modules(root):
        sentence = (ast.get_docstring(ast.parse(text)) or "").partition("\n\nDocs: ")[0]
        if not sentence or sentence.startswith("Docs: "):
            said.append(f"{path.relative_to(root)}: no sentence")
        elif len(sentence) > SENTENCE_LIMIT or "\n" in sentence:
            said.append(f"{path.relative_to(root)}: {len(sentence)} characters: {sentence}")
    return f"{len(list(modules(root)))} modules", said


def code_tokens(text):
    """(tokens without comments and layout, lines that hold one) of a Python source."""
    kept = [
        token
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type not in LAYOUT
    ]
    return len(kept), len({token.start[0] for token in kept})


@check(
    f"code is read, not decoded: at most {TOKENS_A_LINE} tokens a line, no line over {LINE_LIMIT}",
    "name intermediate values, split long sentences into adjacent strings",
)
def density(root):
    tokens = lines = 0
    said = []
    for path, text in modules(root):
        more, held = code_tokens(text)
        tokens += more
        lines += held
        for number, line in enumerate(text.splitlines(), 1):
            if len(line) > LINE_LIMIT and not line.startswith(("# AUTOGENERATED", "# %% ")):
                said.append(f"{path.relative_to(root)}:{number}: {len(line)} columns")
    for path in sorted([*(root / "ci").rglob("*.py"), root / "setup.py"]):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if len(line) > LINE_LIMIT:
                said.append(f"{path.relative_to(root)}:{number}: {len(line)} columns")
    density = tokens / max(lines, 1)
    if density > TOKENS_A_LINE:
        said.append(f"{density:.1f} tokens a line over madet/")
    return f"{density:.1f} tokens a line", said


def first_picture(notebook):
    """The number of the first cell that shows a picture; None where no cell does."""
    for number, cell in enumerate(notebook["cells"], 1):
        kinds = {kind for output in cell.get("outputs", []) for kind in output.get("data", {})}
        if kinds & {"image/png", "image/jpeg", "image/svg+xml"}:
            return number
    return None


@check(
    f"lessons: cells of at most {CELL_LIMIT} lines of {LINE_LIMIT} columns, the first picture among the first"
    f" {PICTURE_BEFORE - 1} cells",
    "split the cell; show the problem first",
)
def lessons(root):
    said = []
    paths = notebooks(root, "nbs")
    for path in paths:
        notebook, name = load(path), path.relative_to(root)
        for cell in code_cells(notebook):
            lines = "".join(cell["source"]).splitlines()
            if len(lines) > CELL_LIMIT:
                said.append(f"{name}: cell {cell['id']} has {len(lines)} lines")
            if any(len(line) > LINE_LIMIT and not line.startswith("#|") for line in lines):
                said.append(f"{name}: cell {cell['id']} has a line over {LINE_LIMIT} columns")
        first = first_picture(notebook)
        if first is not None and first >= PICTURE_BEFORE:
            said.append(f"{name}: the first picture stands in cell {first}")
    return f"{len(paths)} notebooks", said


@check(
    "papers/*.ipynb are templates: a cell tagged parameters, no outputs",
    "clear all outputs; tag the cell of parameters (Jupyter: property inspector) and keep the tag",
)
def templates(root):
    said, paths = [], notebooks(root, "papers")
    paths = [path for path in paths if "runs" not in path.relative_to(root).parts]
    for path in paths:
        cells, name = code_cells(load(path)), path.relative_to(root)
        tagged = sum("parameters" in cell["metadata"].get("tags", []) for cell in cells)
        if tagged != 1:
            said.append(f"{name}: {tagged} cells tagged parameters")
        if any(cell["outputs"] or cell.get("execution_count") for cell in cells):
            said.append(f"{name}: has outputs or execution counts")
    return f"{len(paths)} templates", said


@check(
    "papers/NAME/run.ipynb are what papers/run.ipynb and paper.md give",
    "edit papers/run.ipynb or the section One run of paper.md, then python ci/papers.py",
)
def paper_notebooks(root):
    return f"{len(papers.papers(root))} papers", list(papers.drift(root))


def main(root, words):
    passed = failed = 0
    for title, cure, function in CHECKS:
        if words and not any(word.lower() in title.lower() for word in words):
            continue
        try:
            counted, said = function(root)
        except Exception as error:  # a broken notebook or module: say it as a finding
            counted, said = "", [f"{type(error).__name__}: {error}"]
        passed, failed = passed + (not said), failed + bool(said)
        print(
            f"{'FAILED' if said else 'ok    '} {title}{f' ({counted})' if counted else ''}",
            flush=True,
        )
        for line in said[:40]:
            print(f"       {line}")
        if len(said) > 40:
            print(f"       ... and {len(said) - 40} more")
        if said:
            print(f"       cure: {cure}")
    if not passed + failed:
        print(
            f"No check's title has any of: {' '.join(words)}. Titles:\n"
            + "\n".join(f"  {title}" for title, _, _ in CHECKS),
            file=sys.stderr,
        )
        return 2
    print(f"{passed} passed, {failed} failed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve(), sys.argv[2:]))
