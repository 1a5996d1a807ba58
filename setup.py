"""Package lists come from settings.ini, the identity from pyproject.toml; no value stands in both."""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
ini = ConfigParser(delimiters=["="])
ini.read(HERE / "settings.ini", encoding="utf-8")
settings = ini["DEFAULT"]


def lines(key):
    return [line.strip() for line in settings.get(key, "").splitlines() if line.strip()]


def paper_files():
    """The run notebook, grids and claims of every paper, so that `madet table` works where there is no checkout."""
    papers = HERE / "papers"
    if not papers.exists():
        return
    yield "share/madet/papers", ["papers/run.ipynb"]
    for folder in sorted(path for path in papers.iterdir() if path.is_dir()):
        names = [name for name in ("paper.md", "run.ipynb", "grid.csv") if (folder / name).exists()]
        if names:
            yield (
                f"share/madet/papers/{folder.name}",
                [f"papers/{folder.name}/{name}" for name in names],
            )


REPOSITORY = "https://github.com/madet/madet"
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s]+)\)")


def long_description():
    """README.md with links and pictures that work on a package index page, outside the repository."""

    def absolute(found):
        picture, text, path = found.groups()
        kind = "raw" if picture else "blob"
        return f"{picture}[{text}]({REPOSITORY}/{kind}/main/{path})"

    return LINK.sub(absolute, (HERE / "README.md").read_text(encoding="utf-8"))


def version():
    """The version that the package states."""
    text = (HERE / "madet/__init__.py").read_text()
    return re.search(r'^__version__ = "(.+)"', text, re.M)[1]


setup(
    version=version(),
    long_description=long_description(),
    long_description_content_type="text/markdown",
    keywords=settings["keywords"].split(),
    packages=find_packages(include=["madet", "madet.*"]),
    install_requires=lines("requirements"),
    extras_require={
        name: lines(f"{name}_requirements")
        for name in ("dev", "docs", "fast", "heic", "lite", "tensorboard", "tiff", "ray", "slurm")
    },
    data_files=list(paper_files()),
    entry_points={
        "nbdev": ["madet = madet._modidx:d"],
        "console_scripts": lines("console_scripts"),
    },
)
