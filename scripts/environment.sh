# Sourced by the scripts beside it: goes to the project's root, makes .venv and installs requirements.lock into it.
# Nothing is done when the lock is the one that was installed last. bash 3.2 (macOS) is enough.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "$*" >&2
  exit 1
}

install() {
  "$@" >.venv/install.log 2>&1 || fail "cannot install packages: is there a network, and a package index? The tool's \
own words are in .venv/install.log"
}

make_environment() {
  local python="${PYTHON:-python3}" wanted
  wanted=$(cksum <requirements.lock)
  if [ "$wanted" = "$(cat .venv/installed-lock 2>/dev/null)" ]; then return; fi
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
    fail "Python 3.11 or newer is needed: install it, or name it: PYTHON=python3.12 $0"
  "$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "Python's venv module is missing: install it (Debian, Ubuntu: apt install python3-venv)"
  if [ ! -x .venv/bin/pip ]; then
    echo "making .venv …"
    "$python" -m venv .venv
  fi
  echo "installing $(grep -c '^[a-z0-9]' requirements.lock) packages (700 MB: half a minute to some minutes) …"
  # uv first, the locked one: it installs the rest in seconds where pip takes a minute
  awk '/^uv==/ { found = 1 } found { print } found && !/\\$/ { exit }' requirements.lock >.venv/uv.lock
  install .venv/bin/pip install --disable-pip-version-check --no-deps --require-hashes -r .venv/uv.lock
  install env VIRTUAL_ENV="$PWD/.venv" .venv/bin/uv pip install --no-deps --require-hashes -r requirements.lock
  echo "$wanted" >.venv/installed-lock
}

make_environment
export PATH="$PWD/.venv/bin:$PATH"
# Images of Python's set it; each process would then compile anew what it imports: half a second of CPU for a consumer
unset PYTHONDONTWRITEBYTECODE
