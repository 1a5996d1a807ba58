"""Marks and places that the tests share. Tests marked `long` run only under ci/test-long or with `-m long`."""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported anywhere
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "ci")]  # this checkout's madet, and the scripts' own modules

MARKS = {
    "long": "takes minutes, a browser, a scheduler or several processes: ci/test-long",
    "trains": "hangs on a training, the order of sums or threads: ci/test-long runs it in five settings",
    "gpu": "needs a CUDA device; skipped where there is none",
}


def pytest_configure(config):
    for name, meaning in MARKS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def pytest_collection_modifyitems(config, items):
    named = any("::" in word for word in config.args)
    for item in items:
        if "long" in item.keywords and not config.option.markexpr and not named:
            item.add_marker(pytest.mark.skip(reason="long: ci/test-long, or pytest -m long"))
        if "gpu" in item.keywords:
            import torch

            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def _shared():
    named = os.environ.get("MADET_SHARED")
    places = [Path(named)] if named else [ROOT.parent / "shared"]
    return next((place for place in places if place.is_dir()), None)


@pytest.fixture(scope="session")
def root():
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared():
    """The folder of real data and fixtures, $MADET_SHARED or ../shared; skips where there is none."""
    found = _shared()
    if found is None:
        pytest.skip("no shared folder: set MADET_SHARED")
    return found


@pytest.fixture(scope="session")
def golden(shared):
    """The folder of parity fixtures."""
    if not any((shared / "golden").glob("*.npz")):
        pytest.skip(f"no fixtures in {shared}/golden")
    return shared / "golden"


@pytest.fixture(scope="session")
def real(shared):
    """A function from the name of a real data set to its folder; skips where it is absent."""

    def folder(name):
        if not (shared / "data" / name).is_dir():
            pytest.skip(f"no {name} in {shared}/data")
        return shared / "data" / name

    return folder


@pytest.fixture(autouse=True)
def one_thread():
    """Two single-threaded jobs on two cores run at full speed, two with default threads many times slower.

    $OMP_NUM_THREADS asks for more."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    yield
