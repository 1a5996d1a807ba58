"""The documentation site, built once: titles, links, pictures, names, formulas, search, and no other server
asked for anything.

Skipped where the extra `docs` is not installed: `ci/docs` installs it."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import pytest

for package in ("sphinx", "myst_nb", "furo", "latex2mathml"):
    pytest.importorskip(package, reason="the extra docs is not installed: ci/docs does it")
pytestmark = pytest.mark.long


class Page(HTMLParser):
    """What a page links to, shows, and calls its places."""

    def __init__(self, text):
        super().__init__()
        self.links = []
        self.assets = []
        self.ids = set()
        self.tags = Counter()
        self.alts = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags[tag] += 1
        self.ids.add(found.get("id"))
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if (
            tag in ("img", "script")
            and "src" in found
            or tag == "link"
            and found.get("rel") in ("stylesheet", "preload", "icon")
        ):
            self.assets.append(found.get("src") or found.get("href"))
        if tag == "img":
            self.alts.append(found.get("alt", ""))


@pytest.fixture(scope="module")
def built(root, tmp_path_factory):
    """(folder of the site, {page: Page}), from a copy of the tree, so that nothing is left in it."""
    import checks

    tree = tmp_path_factory.mktemp("docs") / "tree"
    checks.copy_of(root, tree)
    before = {path.relative_to(tree) for path in tree.rglob("*")}
    done = subprocess.run(
        [sys.executable, tree / "ci/docs.py", tree, tree / "_docs"],
        cwd=tree,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.strip().endswith("; 0 warnings")
    left = {path.relative_to(tree).parts[0] for path in tree.rglob("*")} - {
        path.parts[0] for path in before
    }
    assert left <= {"_docs", "_proc"}, f"left behind: {left}"
    site = tree / "_docs"
    yield (
        site,
        {
            path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8"))
            for path in site.rglob("*.html")
        },
    )
    shutil.rmtree(tree)


def titles(root):
    """{page: title} as the notebooks say."""
    import docs

    for path in sorted((root / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" not in path.parts:
            first = "".join(json.loads(path.read_text())["cells"][0]["source"])
            said = re.search(r"^# (.+?)[ \t]*$", first, re.M)
            if said:
                yield (
                    docs.plain(path.relative_to(root / "nbs").as_posix()).replace(
                        ".ipynb", ".html"
                    ),
                    said[1].strip("\"'").replace("''", "'"),
                )


def test_every_notebook_is_a_page_with_its_title(root, built):
    import html

    site, pages = built
    wanted = dict(titles(root))
    assert len(wanted) > 70
    for page, title in wanted.items():
        text = (site / page).read_text(encoding="utf-8")
        heading = re.sub(r"<a .*?</a>|<[^>]+>", "", re.search(r"<h1>(.*?)</h1>", text, re.S)[1])

        def bare(words):
            return re.sub(r"[`’'*]", "", html.unescape(words))

        assert bare(heading) == bare(title), page


def test_links_lead_somewhere(built):
    site, pages = built
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link.startswith("search.html"):
                continue
            there = (site / name).parent / unquote(parts.path) if parts.path else site / name
            assert there.resolve().is_file(), f"{name}: {link}"
            other = pages.get(there.resolve().relative_to(site.resolve()).as_posix())
            if other and parts.fragment:
                assert unquote(parts.fragment) in other.ids, f"{name}: {link}"


def test_pictures_are_there_and_everything_comes_from_the_site_itself(built):
    site, pages = built
    for name, page in pages.items():
        for asset in page.assets:
            parts = urlsplit(asset)
            assert not parts.netloc and parts.scheme in ("", "data"), (
                f"{name} asks another server: {asset}"
            )
            assert parts.scheme or ((site / name).parent / unquote(parts.path)).is_file(), (
                f"{name}: {asset}"
            )
        assert all(alt and not alt.endswith((".png", ".jpeg", ".jpg")) for alt in page.alts), (
            f"{name}: a picture without description: {page.alts}"
        )
    assert pages["index.html"].tags["img"] >= 1 and pages["assigners/atss.html"].tags["img"] >= 1
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//", path.read_text(encoding="utf-8")), path


def test_names_are_documented_with_anchors(built):
    site, pages = built
    atss = pages["assigners/atss.html"]
    assert {"atss", "madet.assigners.atss.atss", "madet.assigners.atss.atss_candidates"} <= atss.ids
    text = (site / "assigners/atss.html").read_text(encoding="utf-8")
    assert "algorithm 1" in text and '<details class="source"' in text
    recipe = (site / "training/recipe.html").read_text(encoding="utf-8")
    assert "images a step, over all processes" in recipe, (
        "comments beside the fields become a table"
    )
    assert any(
        "assigners/atss.html#madet.assigners.atss.atss" in link
        for link in pages["names.html"].links
    )


def test_tables_and_formulas(built):
    site, pages = built
    assert (
        pages["papers/atss.html"].tags["table"] >= 2
        and pages["project/papers/atss/grid.csv.html"].tags["table"] == 1
    )
    assert "not run" in (site / "index.html").read_text() or pages["index.html"].tags["table"] >= 1
    assert (
        pages["losses/focal.html"].tags["math"] >= 1
        and pages["training/schedules.html"].tags["math"] >= 1
    )
    assert not re.search(
        r"mathjax", "".join(asset for page in pages.values() for asset in page.assets), re.I
    )


def test_the_search_index_knows_titles_and_names(built):
    site, _ = built
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(text[text.index("(") + 1 : text.rindex(")")])
    assert "assigners/atss" in index["docnames"]
    place = index["docnames"].index("assigners/atss")
    for word in ("candid", "deviat", "anchor"):  # stems, in titles or in the text
        found = [index[kind].get(word, []) for kind in ("terms", "titleterms")]
        assert place in [
            number for some in found for number in (some if isinstance(some, list) else [some])
        ], word
    assert any(
        entry[-1] == "adaptive_threshold"
        for prefix, entries in index["objects"].items()
        if prefix == "madet.assigners.atss"
        for entry in entries
    )


def test_a_browser_finds_a_page(built, tmp_path):
    """Search really runs: headless Chromium asks the page as served, and reads the answer."""
    browser = (
        shutil.which("chromium")
        or shutil.which("chromium-browser")
        or shutil.which("google-chrome")
    )
    if not browser:
        pytest.skip("no Chromium")
    site, _ = built
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        page = f"http://127.0.0.1:{server.server_port}/search.html?q=adaptive+threshold"
        done = subprocess.run(
            [
                browser,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                f"--user-data-dir={tmp_path}",
                "--virtual-time-budget=8000",
                "--dump-dom",
                page,
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        server.shutdown()
        server.server_close()
    assert "assigners/atss.html" in done.stdout
