# Sourced by the scripts beside it: stands in the checkout's root, finds a Python, makes .venv where it is needed.
# PYTHON=/path/to/python3.12 chooses the interpreter for a new .venv.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
cd "$ROOT" || exit 2

version_of() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null </dev/null; }
can_make_venv() { "$1" -c 'import venv, ensurepip' >/dev/null 2>&1 </dev/null; }
tested() { case "$1" in 3.11 | 3.12 | 3.13) true ;; *) false ;; esac; }

# Prints the interpreter to use; a sentence and status 2 where there is none.
choose_python() {
  local name version seen=""
  if [ -n "${PYTHON:-}" ]; then
    version="$(version_of "$PYTHON")"
    if [ -z "$version" ]; then
      echo "PYTHON=$PYTHON does not run. Set it to a Python 3.11, 3.12 or 3.13, or leave it unset." >&2
      return 2
    fi
    case "$version" in
      2.* | 3.[0-9] | 3.10)
        echo "PYTHON=$PYTHON is Python $version, which is too old: madet needs 3.11, 3.12 or 3.13." >&2
        return 2 ;;
    esac
    tested "$version" || echo "Python $version is newer than what madet is tested with (3.11 to 3.13); trying it." >&2
    can_make_venv "$PYTHON" || { echo "$PYTHON lacks the venv module; on Debian or Ubuntu: apt install python3-venv" >&2; return 2; }
    echo "$PYTHON"
    return 0
  fi
  for name in python3.13 python3.12 python3.11 python3 python; do
    version="$(version_of "$name")" || continue
    if ! tested "$version"; then
      seen="$seen $name is $version;"
    elif ! can_make_venv "$name"; then
      seen="$seen $name ($version) lacks the venv module (Debian, Ubuntu: apt install python3-venv);"
    else
      echo "$name"
      return 0
    fi
  done
  echo "madet needs Python 3.11, 3.12 or 3.13 and found none:${seen:- no python3 on the PATH;} install one, or name it: PYTHON=/path/to/python3.12 $0" >&2
  return 2
}

# What every script's children see: this checkout first, one thread each, no windows, nobody's personal start-up files.
common_environment() {
  export PYTHONPATH="$ROOT" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" MPLBACKEND="${MPLBACKEND:-Agg}" PYTHONUNBUFFERED=1
  if [ -z "${MADET_SHARED:-}" ] && [ -d "$ROOT/../shared" ]; then
    MADET_SHARED="$(cd "$ROOT/../shared" && pwd)"
  fi
  export MADET_SHARED="${MADET_SHARED:-}"
}

# Makes .venv or brings it up to date (ci/environment.py says what it does), and puts it on the PATH.
use_venv() {
  local python
  unset PYTHONPATH PYTHONHOME
  if [ -z "${PYTHON:-}" ] && [ -n "$(version_of "$ROOT/.venv/bin/python")" ]; then
    python="$ROOT/.venv/bin/python"
  else
    python="$(choose_python)" || exit $?
  fi
  "$python" "$ROOT/ci/environment.py" "$ROOT" || exit $?
  export VIRTUAL_ENV="$ROOT/.venv" PATH="$ROOT/.venv/bin:$PATH"
  common_environment
}

# The packages of the extra `docs`, installed into the environment on the PATH where they are missing.
need_docs() {
  if ! python -c 'import sphinx, myst_nb, furo, latex2mathml' 2>/dev/null; then
    python -m pip install --quiet --disable-pip-version-check --no-input -e "$ROOT[docs]" || {
      echo "The packages of the extra 'docs' (settings.ini) could not be installed; see pip's lines above." >&2; exit 2; }
  fi
}

# The active environment if madet and nbdev import there (asked from another folder: the checkout itself must not count).
use_active_or_venv() {
  local name
  for name in python python3; do
    if (cd / && "$name" -c 'import sys; assert sys.version_info >= (3, 11); import madet, nbdev') >/dev/null 2>&1 </dev/null; then
      PATH="$("$name" -c 'import os, sys; print(os.path.dirname(sys.executable))'):$PATH"
      export PATH
      common_environment
      return 0
    fi
  done
  use_venv
}
