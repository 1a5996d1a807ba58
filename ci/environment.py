"""Makes the checkout's .venv, or leaves it alone where it still matches. Runs on a bare Python 3.11 or newer.

`.venv/madet-stamp` holds what the environment was made from: the requirement files' hash, the Python version and the
folder. Other requirements are installed into it; another Python or another folder makes it anew.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REQUIREMENTS = "settings.ini", "pyproject.toml", "setup.py"
NEEDED_GB = 7
PAIR = "import torch, torchvision; torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)"


def say(text):
    print(text, file=sys.stderr, flush=True)


def give_up(text):
    say(text)
    sys.exit(2)


def wanted(root, version):
    digest = hashlib.sha256(
        b"".join((root / name).read_bytes() for name in REQUIREMENTS)
    ).hexdigest()
    return {"requirements": digest, "python": version, "folder": str(root)}


def version_of(python):
    """Major and minor version of an interpreter; None where it does not run."""
    try:
        return subprocess.run(
            [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
            text=True,
            capture_output=True,
            check=True,
            stdin=subprocess.DEVNULL,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def read_stamp(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def runs(python, code):
    return subprocess.run(
        [python, "-c", code], cwd="/", capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def install(python, root, log):
    """Runs pip with its chatter in a log; a line now and then says that it is still at work."""
    command = [
        python,
        "-m",
        "pip",
        "install",
        "--disable-pip-version-check",
        "--no-input",
        "--progress-bar",
        "off",
        "-e",
        f"{root}[dev]",
    ]
    start, told = time.monotonic(), 0
    with open(log, "w") as out:
        child = subprocess.Popen(
            command, cwd=root, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        try:
            while child.poll() is None:
                time.sleep(0.2)
                if time.monotonic() - start >= told + 20:
                    told += 20
                    say(f"  still installing, {told} s")
        except BaseException:
            child.kill()
            child.wait()
            raise
    if child.returncode:
        errors = [
            line
            for line in log.read_text(errors="replace").splitlines()
            if "WARNING: Location" not in line
        ]
        say("\n".join(["", *errors[-15:], ""]))
        give_up(
            f"Installing failed; all of pip's output is in {log}. If the network or a proxy is the "
            "cause, set PIP_INDEX_URL "
            "or PIP_PROXY; then run the same command again, it goes on from here."
        )
    return time.monotonic() - start


def prepare(root):
    venv, stamp = root / ".venv", root / ".venv/madet-stamp"
    python, old = venv / "bin/python", read_stamp(root / ".venv/madet-stamp")
    own, there = ".".join(map(str, sys.version_info[:2])), version_of(python)
    goal = wanted(root, own if os.environ.get("PYTHON") or there is None else there)
    if there and old == goal:
        return
    reason = None
    if not there:
        reason = "it does not run" if venv.exists() else None
    elif goal["python"] != there:
        reason = f"it has Python {there} and PYTHON asks for {own}"
    elif old.get("folder", str(root)) != str(root):
        reason = f"it was made for {old['folder']}"
    free = shutil.disk_usage(root).free / 1e9
    if not there or reason:
        if free < NEEDED_GB:
            give_up(
                f"An environment takes about 6 GB and {root} has {free:.1f} GB free: make room, then run this again."
            )
        if reason:
            say(f"Making .venv anew: {reason}.")
        say(
            f"Setting up .venv with Python {own}: about 6 GB on disk (PyTorch and its libraries are "
            "most of it) and 1 to 3 minutes "
            "with a fast network.\nIt happens once."
        )
        made = subprocess.run(
            [getattr(sys, "_base_executable", sys.executable), "-m", "venv", "--clear", venv],
            capture_output=True,
            text=True,
        )
        if made.returncode:
            give_up(
                made.stdout
                + made.stderr
                + "Making .venv failed; on Debian or Ubuntu `apt install python3-venv` may be missing."
            )
    else:
        say(
            "Bringing .venv up to date: the requirements have changed (seconds, unless PyTorch is among them)."
            if old
            else "Finishing .venv, which is not known to be complete (up to 3 minutes and 6 GB if PyTorch "
            "is still missing)."
        )
    stamp.unlink(missing_ok=True)
    seconds = install(python, root, venv / "install.log")
    pair = runs(python, PAIR)
    if pair.returncode:
        last = (pair.stderr.strip().splitlines() or ["(no message)"])[-1]
        give_up(
            f"torch and torchvision do not fit together ({last}). They must come from one index; "
            "remove .venv, set PIP_INDEX_URL "
            "to that index (or unset PIP_FIND_LINKS and PIP_EXTRA_INDEX_URL), and run this again."
        )
    found = runs(python, "import madet; print(madet.__file__)")
    if found.returncode or Path(found.stdout.strip()).parent.parent != root:
        give_up(
            f"madet was installed but does not import from {root}: "
            f"{found.stderr.strip() or found.stdout.strip()}\nRemove .venv and run this again."
        )
    stamp.write_text(json.dumps(wanted(root, version_of(python)), indent=1) + "\n")
    say(f".venv is ready ({seconds:.0f} s).")


def main():
    root = Path(sys.argv[1]).resolve()
    name = hashlib.sha256(str(root).encode()).hexdigest()[:12]
    with open(Path(tempfile.gettempdir()) / f"madet-venv-{name}.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("Another script is setting up .venv; waiting for it.")
            fcntl.flock(lock, fcntl.LOCK_EX)
        prepare(root)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        say("Interrupted. Run the same command again: it goes on where this one stopped.")
        sys.exit(130)
