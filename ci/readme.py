"""README.md from nbs/index.ipynb: `python ci/readme.py [ROOT]` writes it; `wanted(root)` says what it should be.

Our own small bridge, so that no site generator is needed. The front matter becomes title and first
sentence, markdown stays
with its links made relative to the root, code stays unless its cell says `#| hide` or `#| echo: false`, and
outputs follow:
Markdown as itself, pictures as files in nbs/images, text in a fence. A picture's alt text comes from `#| fig-alt: ...`.
"""

import base64
import json
import posixpath
import re
import sys
from pathlib import Path

NOTEBOOK = "nbs/index.ipynb"
PICTURES = "nbs/images"
MADE = f"<!-- made by ci/readme from {NOTEBOOK}; edit that -->"
LINK = re.compile(r"(\]\(|\b(?:src|href)=\")([^)\s\"]+)")
DIRECTIVE = re.compile(r"^#\|[ \t]*(.*?)[ \t]*$", re.M)
OUTWARD = re.compile(r"[a-z][a-z0-9+.-]*:|#|/", re.I)
FENCE = re.compile(r"(^```.*?^```[ \t]*$)", re.M | re.S)


def text_of(value):
    return value if isinstance(value, str) else "".join(value)


def from_root(link):
    """A link as written in nbs/, as seen from the root."""
    if OUTWARD.match(link):
        return link
    path, mark, anchor = link.partition("#")
    return posixpath.normpath(posixpath.join("nbs", path)) + mark + anchor


def relink(markdown):
    parts = FENCE.split(markdown)  # odd ones are code and stay
    return "".join(
        part if i % 2 else LINK.sub(lambda m: m[1] + from_root(m[2]), part)
        for i, part in enumerate(parts)
    )


def front_matter(source):
    """Title and description of a raw first cell."""
    found = dict(re.findall(r"^(\w+):[ \t]*(.+?)[ \t]*$", source, re.M))
    return {key: value.strip("\"'") for key, value in found.items()}


def outputs_of(cell, alt, pictures):
    """A code cell's outputs as Markdown pieces; its pictures go into `pictures` (path: bytes)."""
    for number, output in enumerate(cell.get("outputs", [])):
        data = output.get("data", {})
        kind = next((kind for kind in ("image/png", "image/jpeg") if kind in data), None)
        if kind:
            path = f"{PICTURES}/index_{cell['id']}{f'_{number}' if number else ''}.{kind[6:].replace('jpeg', 'jpg')}"
            pictures[path] = base64.b64decode(text_of(data[kind]))
            yield f"![{alt}]({path})"
        elif "text/markdown" in data:
            yield relink(text_of(data["text/markdown"]).strip())
        elif "text/plain" in data or "text" in output:
            yield (
                "```text\n" + text_of(data.get("text/plain", output.get("text"))).rstrip() + "\n```"
            )


def convert(notebook):
    """The README's text and its pictures (path: bytes)."""
    pieces, pictures = [MADE], {}
    for cell in notebook["cells"]:
        source = text_of(cell["source"]).strip()
        if cell["cell_type"] == "raw":
            head = front_matter(source)
            pieces += [
                f"# {head.get('title', 'madet')}",
                *([head["description"].rstrip(".") + "."] if "description" in head else []),
            ]
        elif cell["cell_type"] == "markdown":
            pieces.append(relink(source))
        else:
            said = DIRECTIVE.findall(source)
            if "hide" in said:
                continue
            code = DIRECTIVE.sub("", source).strip()
            if code and not any(re.fullmatch(r"echo:\s*false", word) for word in said):
                pieces.append(f"```python\n{code}\n```")
            alt = next(
                (
                    word.split(":", 1)[1].strip().strip("\"'")
                    for word in said
                    if word.startswith("fig-alt:")
                ),
                "",
            )
            pieces += outputs_of(cell, alt, pictures)
    return "\n\n".join(piece for piece in pieces if piece) + "\n", pictures


def wanted(root):
    """What the README and its pictures should be: {path from the root: bytes}."""
    text, pictures = convert(json.loads((Path(root) / NOTEBOOK).read_text(encoding="utf-8")))
    return {"README.md": text.encode(), **pictures}


def stray(root, files):
    """Pictures of an earlier README that nothing shows any more."""
    return sorted(
        path
        for path in (Path(root) / PICTURES).glob("index_*")
        if f"{PICTURES}/{path.name}" not in files
    )


def drift(root):
    """Sentences about what differs from what is wanted."""
    files = wanted(root)
    for name, content in files.items():
        path = Path(root) / name
        if not path.exists() or path.read_bytes() != content:
            yield (
                f"{name} is {'missing' if not path.exists() else 'not what'} "
                f"{'' if not path.exists() else NOTEBOOK + ' gives'}"
            ).rstrip()
    yield from (f"{path.relative_to(root)} is shown by nothing" for path in stray(root, files))


def write(root):
    files = wanted(root)
    for path in stray(root, files):
        path.unlink()
    for name, content in files.items():
        (Path(root) / name).parent.mkdir(parents=True, exist_ok=True)
        (Path(root) / name).write_bytes(content)
    return files


if __name__ == "__main__":
    for name in write(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent):
        print(name)
