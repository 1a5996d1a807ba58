"""The documentation site: `python ci/docs.py ROOT [OUT]` (ci/docs) makes pages of the notebooks in _proc/site
and the site in OUT.

nbdev's processors decide what of a notebook is shown: hidden and exported cells go, documented names come.
This bridge hands the
rest to Sphinx (myst-nb, furo). Nothing is run: signatures, docstrings and comments are read from the source
of madet/, outputs are
those stored in the notebooks. The site asks no other server for anything; formulas are MathML.
"""

import ast
import csv
import json
import posixpath
import re
import shutil
import sys
from collections import defaultdict
from itertools import groupby
from pathlib import Path

import api

FOLDERS = {  # in the order of the navigation; below the guides and papers, the floors of pyproject.toml
    "guides": ("Guides", "One task each, from your own images to a method of your own."),
    "papers": ("Papers", "A page a paper: what it claims, what we measured, what that decides."),
    "boxes": ("Boxes", "Upright and rotated geometry: formats, IoU, NMS, coders."),
    "data": ("Data", "Samples, augmentation, batches, and the set that is drawn by code."),
    "data/formats": ("Formats", "Readers: COCO, VOC, DOTA, roLabelImg, HRSC2016, DIOR-R."),
    "nets": ("Networks", "Backbones, pyramids, anchors, deformable convolution, RoIAlign."),
    "losses": ("Losses", "Focal losses, box losses upright and rotated, MADet's losses."),
    "metrics": ("Metrics", "COCO, VOC and DOTA scores, and kinds of errors."),
    "figures": ("Figures", "Every drawing and table."),
    "assigners": ("Assigners", "Which priors are positive (label assignment)."),
    "heads": ("Heads", "Predictions at each location, training targets, losses, detections."),
    "detectors": (
        "Detectors",
        "Backbone, pyramid and head put together, one constructor a method.",
    ),
    "training": ("Training", "Recipe, loop, checkpoints, run folder."),
    "semi": ("Semi-supervised", "Teachers and students."),
    "methods": (
        "Methods",
        "The table of methods: options, builders, loading, scoring, prediction.",
    ),
    "tables": ("Tables", "Papers' results tables: grid, jobs, cost, results, verdicts."),
    "parity": ("Parity", "Comparison with the original code, a page per family of fixtures."),
}
PROJECT = ("CONTRIBUTING.md", "CHANGELOG.md", "data/*.md", "papers/*/paper.md", "papers/*/*.csv")
LINK = re.compile(r"(\]\()([^)\s]+)(?=\))")
FENCE = re.compile(r"(^(?:```|~~~).*?^(?:```|~~~)[ \t]*$)", re.M | re.S)
OUTWARD = re.compile(r"[a-z][a-z0-9+.-]*:|#|/|<", re.I)
DIRECTIVE = re.compile(r"^#\|[ \t]*(.*?)[ \t]*(?:\n|\Z)", re.M)


def plain(name):
    """A notebook's path without the numbers of files: boxes/00_upright.ipynb -> boxes/upright.ipynb."""
    return posixpath.join(
        posixpath.dirname(name), re.sub(r"^\d+[a-z0-9]*_", "", posixpath.basename(name))
    )


def site_map(root):
    """{path from the root: path in the site's source} of everything that becomes a page."""
    books = [
        p
        for ending in ("ipynb", "md")
        for p in (root / "nbs").rglob(f"*.{ending}")
        if not any(part[0] in "._" for part in p.relative_to(root).parts)
    ]
    pages = {
        f"nbs/{name}": plain(name)
        for name in sorted(p.relative_to(root / "nbs").as_posix() for p in books)
    }
    for pattern in PROJECT:
        for path in sorted(root.glob(pattern)):
            name = path.relative_to(root).as_posix()
            pages[name] = f"project/{name}" + (".md" if name.endswith(".csv") else "")
    return pages | {"README.md": pages["nbs/index.ipynb"]}


class Site:
    """What all pages know: where pages are, which names are documented where, and which other files they link to."""

    def __init__(self, root, host):
        self.root = root
        self.host = host
        self.pages = site_map(root)
        self.files = set()
        self.about = {}
        self.lost = 0
        self.owners = defaultdict(set)  # name -> modules
        for path in (root / "madet").rglob("*.py"):
            module = ".".join(path.relative_to(root).with_suffix("").parts)
            for name in api.definitions(path):
                self.owners[name].add(module)

    def target(self, link, source):
        """`link` as written in the file `source`, as seen from its page; None where no such thing is in the site."""
        path, mark, anchor = link.partition("#")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        there = self.pages.get(path)
        if there is None and (self.root / path).is_file():
            there = f"project/{path}"
            self.files.add(path)
        elif (
            there is None
            and (self.root / path).is_dir()
            and f"{path.removeprefix('nbs/')}" in FOLDERS
        ):
            there = f"{path.removeprefix('nbs/')}/index.md"
        return (
            there
            and posixpath.relpath(there, posixpath.dirname(self.pages[source]) or ".")
            + mark
            + anchor
        )

    def relink(self, text, source, module=""):
        """Markdown with its links made ours.

        What nbdev linked by name becomes a reference where the name is unambiguous.
        """

        def by_name(hit):
            name = hit[1].removesuffix("()").split("(")[0]
            owners = self.owners.get(name.split(".")[0], set())
            owner = module if module in owners else next(iter(owners)) if len(owners) == 1 else ""
            if owner != module and not re.search(r"[_.A-Z]", name) and not hit[1].endswith(")"):
                owner = ""  # `train` is more often a split than our function
            return f"{{py:obj}}`{hit[1]} <{owner}.{name}>`" if owner else f"`{hit[1]}`"

        def by_path(hit):
            if OUTWARD.match(hit[2]):
                return hit[0]
            there = self.target(hit[2], source)
            if there is None:
                self.lost += 1
                print(f"{source}: {hit[2]} leads nowhere", file=sys.stderr)
            return hit[1] + (there or "#")

        parts = FENCE.split(text)
        named = re.compile(rf"\[`([^`]+)`\]\({re.escape(self.host)}[^)]*\)")
        return "".join(
            part if i % 2 else LINK.sub(by_path, named.sub(by_name, part))
            for i, part in enumerate(parts)
        )


def text_of(value):
    return value if isinstance(value, str) else "".join(value)


def module_of(path):
    """The module that a notebook exports to, or ""."""
    sources = (
        text_of(cell["source"])
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
        if cell["cell_type"] == "code"
    )
    found = next(
        filter(None, (re.match(r"#\| *default_exp +(\S+)", text) for text in sources)), None
    )
    return f"madet.{found[1]}" if found else ""


def shown(path):
    """A notebook as nbdev's site would show it, as a dict; constants that are exported stay visible."""
    from fastcore.nbio import nb2dict, read_nb
    from nbdev.process import NBProcessor
    from nbdev.processors import FilterDefaults, exec_show_docs

    notebook = read_nb(path)
    for cell in notebook.cells:
        if cell.cell_type == "code" and re.match(r"#\| *export\b", cell.source):
            body = ast.parse(cell.source).body
            if not any(
                isinstance(n, (ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom))
                for n in body
            ):
                cell.source = DIRECTIVE.sub("", cell.source, count=1)
    processors = [one for one in FilterDefaults().base_procs() if one is not exec_show_docs]
    NBProcessor(nb=notebook, procs=processors, rm_directives="quarto").process()
    return nb2dict(notebook)


def markdown(text):
    return {"cell_type": "markdown", "metadata": {}, "source": text}


def documented(cell):
    """The name that a cell of nbdev's documents; "" for any other cell."""
    found = (
        re.search(r"^show_doc\((\w+)\)", text_of(cell["source"]), re.M)
        if cell["cell_type"] == "code"
        else None
    )
    return found[1] if found else ""


def in_order(cells, known):
    """The cells, those that document names of one exported cell in the order of the source (nbdev turns it around)."""

    def line(cell):
        return known[name].node.lineno if (name := documented(cell)) in known else 0

    for described, run in groupby(cells, lambda cell: bool(documented(cell))):
        run = list(run)
        yield from sorted(run, key=line) if described else run


def page(site, source):
    """The notebook `source` (path from the root) as a page: a notebook of myst-nb's kind."""
    path = site.root / source
    module = module_of(path)
    known = api.definitions(site.root / (module.replace(".", "/") + ".py")) if module else {}
    cells = []
    heading = ""
    deep = False
    for cell in in_order(shown(path)["cells"], known):
        text = text_of(cell["source"])
        if cell["cell_type"] == "raw":
            head = dict(
                re.findall(r"^(\w[\w-]*):[ \t]*(.+?)[ \t]*$", re.sub(r"\n +", " ", text), re.M)
            )
            title, about = (
                head.get(key, "").strip("\"'").replace("''", "'")
                for key in ("title", "description")
            )
            site.about[source] = heading, _ = title or path.stem, about
            made = (
                f"\n```{{py:module}} {module}\n```\n\n{{.made}}\nModule `{module}`, made from `{source}`.\n"
                if module
                else ""
            )
            cells.append(
                markdown(
                    f"# {heading}\n"
                    + (f"\n{{.lead}}\n{about.rstrip('.')}.\n" if about else "")
                    + made
                )
            )
        elif cell["cell_type"] == "markdown":
            if "AUTOGENERATED" not in text:
                for _level, words in re.findall(r"^(##+)[ \t]+(.+?)[ \t]*$", text, re.M):
                    heading, deep = words, True
                cells.append(markdown(site.relink(text, source, module)))
        elif name := documented(cell):
            if name in known:
                cells.append(markdown(api.entry(module, known[name], 3 if deep else 2)))
        else:
            cells.append(
                code(
                    site,
                    cell,
                    DIRECTIVE.findall(text),
                    DIRECTIVE.sub("", text).strip("\n"),
                    heading,
                    source,
                    module,
                )
            )
    for number, cell in enumerate(cells):
        cell["id"] = f"c{number}"
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return {
        "cells": [cell for cell in cells if cell],
        "metadata": kernel,
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def code(site, cell, said, text, heading, source, module):
    """A code cell with its stored outputs; pictures get a description for those who cannot see them."""
    alt = next(
        (word.split(":", 1)[1].strip() for word in said if word.startswith("fig-alt:")),
        f"Figure of the section {heading}".replace("`", ""),
    )
    tags = ["remove-input"] * any(re.fullmatch(r"echo:\s*false", word) for word in said)
    outputs = cell.get("outputs", [])
    for output in outputs:
        data = output.get("data", {})
        if "text/markdown" in data:
            data["text/markdown"] = site.relink(text_of(data["text/markdown"]), source, module)
        data.pop("application/vnd.jupyter.widget-view+json", None)
    return {
        "cell_type": "code",
        "execution_count": None,
        "outputs": outputs,
        "source": text,
        "metadata": {"tags": tags, "mystnb": {"image": {"alt": alt}}},
    }


def table_page(path, name):
    """A CSV file as a page: columns that hold anything, as a table."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = [key for key in (rows[0] if rows else {}) if any(row[key] for row in rows)]

    def clean(text):
        return (text or "").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")

    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)] + [
        "| " + " | ".join(clean(row[key]) for key in columns) + " |" for row in rows
    ]
    return (
        f"# `{name}`\n\nThe file as it stands in the repository, without its empty columns.\n\n"
        + "\n".join(lines if rows else ["No row yet."])
        + "\n"
    )


def folder_page(site, folder, entries):
    """The page of a folder: its sentence, and its pages in the order of their numbers."""
    title, about = FOLDERS.get(folder, (folder.capitalize(), ""))
    lines = []
    for source, target in entries:
        name, what = site.about.get(source, (posixpath.basename(target), ""))
        lines.append(f"* [{name}](/{target})" + (f": {what.rstrip('.')}." if what else ""))
    return f"# {title}\n\n{about}\n\n" + "\n".join(lines) + toctree(target for _, target in entries)


def toctree(targets, caption=""):
    """A hidden list of pages, which makes the navigation."""
    inside = "\n".join("/" + re.sub(r"\.(ipynb|md)$", "", target) for target in targets)
    return (
        "\n\n```{toctree}\n:hidden:\n"
        + f":caption: {caption}\n" * bool(caption)
        + f":maxdepth: 1\n\n{inside}\n```\n"
    )


def home(source):
    """Where a page belongs in the navigation: a folder of nbs/, data/README.md for cards, "." for what stands alone."""
    if source.startswith("data/") and source != "data/README.md":
        return "data/README.md"
    if source.startswith("papers/"):
        return "papers"
    return posixpath.dirname(source.removeprefix("nbs/")) if source.startswith("nbs/") else "."


def names_page(site):
    """Every documented name with its first sentence, folder by folder."""
    out = [
        "# Names\n\nEvery public function and class, by the module that has it. A module's page "
        "is the notebook that it is made from.\n"
    ]
    modules = {
        module: target
        for source, target in site.pages.items()
        if source.endswith(".ipynb") and (module := module_of(site.root / source))
    }
    for folder, (title, _) in FOLDERS.items():
        inside = [module for module in modules if module.startswith(f"madet.{folder}.")]
        out += [f"## {title}\n"] * bool(inside)
        for module in inside:
            known = api.definitions(site.root / (module.replace(".", "/") + ".py"))
            if known:
                out.append(f"### [`{module}`]({modules[module]})\n")
                out += [
                    f"* {{py:obj}}`{name} <{module}.{name}>`: {api.first_line(one.node)}"
                    for name, one in known.items()
                ] + [""]
    return "\n".join(out)


def front_toctrees(site):
    """The lists at the end of the front page."""
    folders = [
        name
        for name in FOLDERS
        if any(home(source) == name for source in site.pages if source != "README.md")
    ]
    alone = [
        target
        for source, target in site.pages.items()
        if source.startswith("nbs/")
        and source.count("/") == 1
        and target not in ("index.ipynb", "main.ipynb")
    ]
    project = [
        target
        for source, target in site.pages.items()
        if target.startswith("project/") and home(source) == "."
    ]
    start, library = (
        ([f"{name}/index" for name in folders if (name in ("guides", "papers")) == first])
        for first in (True, False)
    )
    command = [target for target in site.pages.values() if target == "main.ipynb"]
    return (
        toctree(alone + start, "Start")
        + toctree(library + command, "Library")
        + toctree(["names", *project], "Reference")
    )


def sources(site):
    """{path in the site's source: text or bytes} of all pages."""
    out, folders = {}, defaultdict(list)
    for source, target in site.pages.items():
        path = site.root / source
        if source == "README.md":
            continue
        if source.endswith(".ipynb"):
            made = page(site, source)
            if target == "index.ipynb":
                made["cells"].append(markdown(front_toctrees(site)) | {"id": "navigation"})
            out[target] = json.dumps(made, ensure_ascii=False)
        elif source.endswith(".csv"):
            out[target] = table_page(path, source)
        else:
            text = path.read_text(encoding="utf-8")
            title = re.search(r"^#[ \t]+(.+?)[ \t]*$", text, re.M)
            first = re.search(r"^#[^\n]*\n+([A-Z][^\n]*(?:\n[^\n]+)*)", text, re.M)
            site.about[source] = (
                title[1] if title else path.stem,
                re.split(r"(?<=\.)\s", " ".join(first[1].split()))[0] if first else "",
            )
            out[target] = site.relink(text, source)
        if source.endswith(".csv"):
            site.about[source] = f"`{source}`", "the table as a file"
        folders[home(source)].append((source, target))
    cards = folders.pop("data/README.md", [])
    if cards:
        out[site.pages["data/README.md"]] += toctree(target for _, target in cards)
    out |= {
        f"{folder}/index.md": folder_page(site, folder, entries)
        for folder, entries in folders.items()
        if folder in FOLDERS
    }
    out["names.md"] = names_page(site)
    return out | {f"project/{name}": (site.root / name).read_bytes() for name in site.files}


def write(folder, files):
    """Make `folder` anew with `files`."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())


def mathml(display):
    """A visitor that writes a formula as MathML, which browsers draw without a script."""

    def visit(self, node):
        from docutils.nodes import SkipNode
        from latex2mathml.converter import convert

        made = convert(node.astext(), display=display)
        self.body.append(made if display == "inline" else f'<div class="math">{made}</div>')
        raise SkipNode

    return visit


def setup(app):
    """Sphinx calls this, for this file is one of its extensions."""
    app.add_html_math_renderer("mathml", (mathml("inline"), None), (mathml("block"), None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def configuration(root):
    version = re.search(r'__version__ = "(.+)"', (root / "madet/__init__.py").read_text())[1]
    return dict(
        project="madet",
        copyright="The madet authors, Apache-2.0",
        version=version,
        release=version,
        html_title=f"madet {version}",
        language="en",
        extensions=["myst_nb", "docs"],
        exclude_patterns=["project/**.ipynb"],
        html_theme="furo",
        html_math_renderer="mathml",
        nb_execution_mode="off",
        nb_render_markdown_format="myst",
        nb_ipywidgets_js={},
        nb_merge_streams=True,
        nb_number_source_lines=False,
        myst_enable_extensions=["dollarmath", "colon_fence", "attrs_inline", "attrs_block"],
        myst_heading_anchors=3,
        suppress_warnings=["myst.header"],
        add_module_names=False,
        toc_object_entries=False,
        python_maximum_signature_line_length=96,
        html_copy_source=False,
        html_show_sourcelink=False,
        html_show_sphinx=False,
        html_static_path=[str(root / "ci/site")],
        html_css_files=["site.css"],
    )


def main(root, out):
    from nbdev.config import get_config
    from sphinx.application import Sphinx

    config = get_config(root)
    site = Site(root, f"{config.doc_host}{config.doc_baseurl}".rstrip("/"))
    source = root / "_proc/site"
    write(source, sources(site))
    made = root / "_proc/html"  # not OUT itself: myst-nb leaves a folder beside its output
    app = Sphinx(
        source,
        None,
        made,
        root / "_proc/doctrees",
        "html",
        configuration(root),
        status=None,
        freshenv=True,
    )
    app.build(force_all=True)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(
        made, out, ignore=shutil.ignore_patterns("_sources", ".buildinfo*", ".doctrees")
    )
    print(
        f"{len(site.pages)} pages in {out}; {app._warncount + site.lost} warnings", file=sys.stderr
    )
    return int(bool(app._warncount + site.lost or app.statuscode))


if __name__ == "__main__":
    ROOT = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    sys.exit(main(ROOT, Path(sys.argv[2]).resolve() if len(sys.argv) > 2 else ROOT / "_docs"))
