#!/usr/bin/env bash
# Make or refresh the virtual environment .venv of this working copy; a second call with nothing to do returns at once.
#
#   tools/setup_env.sh [run|test]
#
#   run   all that classification and the export to ONNX need; mmcv without its compiled operators, unless a built wheel
#         is at hand (default)
#   test  also the tests' requirements, mmdet, and mmcv's compiled operators: built once, then reused from the wheel folder
#
# A torch that is already in .venv is kept. Read from the environment:
#   PYTHON          interpreter to make .venv with; else the first of python3, python3.12, ... that is 3.10 to 3.12
#   MMQUANT_WHEELS  folder for built operator wheels; else ${XDG_CACHE_HOME:-$HOME/.cache}/mmquant/wheels
#   MAX_JOBS        compiler processes; else one a core
# pip's own settings (PIP_INDEX_URL, PIP_FIND_LINKS, ...) choose where packages, and which build of torch, come from.
set -Eeuo pipefail

mode=${1:-run}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
python=$venv/bin/python
wheels=${MMQUANT_WHEELS:-${XDG_CACHE_HOME:-$HOME/.cache}/mmquant/wheels}
export PIP_DISABLE_PIP_VERSION_CHECK=1

trap 'echo "[setup] stopped at line $LINENO of tools/setup_env.sh" >&2' ERR

say() { printf '[setup] %4ds  %s\n' "$SECONDS" "$*"; }
fail() { printf '[setup] error: %s\n' "$*" >&2; exit 1; }
# --no-compile: Python compiles what is imported, when it is imported; most modules never are.
pip_install() { "$python" -m pip install --quiet --quiet --no-compile "$@"; }
pin() { grep -h "^$1==" "$root"/requirements/*.txt; }  # pin NAME -> NAME==VERSION

# The version of an installed distribution; empty if it is not installed.
version_of() {
  "$python" -c 'import sys
from importlib import metadata
try:
    print(metadata.version(sys.argv[1]))
except metadata.PackageNotFoundError:
    pass' "$1"
}

# One line that changes when the requirements, this folder's place or the installed torch and OpenMMLab packages change.
fingerprint() {
  local site=("$venv"/lib/python3*/site-packages)
  {
    echo "$root"
    cat "$root"/requirements/*.txt "$root/setup.py" "$root/tools/setup_env.sh"
    cd "${site[0]}" 2>/dev/null && find . -maxdepth 2 \( -name 'torch*.dist-info' -o -name '*mm*.dist-info' -o -path './mmcv/_ext*' \) | sort
  } | sha256sum
}
up_to_date() { [ "$(cat "$venv/.mmquant-$1" 2>/dev/null)" = "$(fingerprint)" ]; }

make_venv() {
  [ -x "$python" ] && "$python" -c '' 2>/dev/null && return
  local candidate
  for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.10}; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
      say "making .venv with $("$candidate" --version)"
      "$candidate" -m venv "$venv" || fail "'$candidate -m venv' failed; on Debian and Ubuntu install python3-venv"
      return
    fi
  done
  fail "no Python 3.10 to 3.12 among: ${PYTHON:-python3 python3.12 python3.11 python3.10}; name one, e.g. PYTHON=/path/to/python3.11"
}

# torch stays if it is there; torchvision has to belong to it.
install_torch() {
  local torch vision
  torch=$(version_of torch)
  if [ -z "$torch" ]; then
    say "installing torch"
    pip_install "$(pin torch)"
    torch=$(version_of torch)
  fi
  [ -z "$(version_of torchvision)" ] || return 0
  vision=$(pin torchvision)
  if [ "torch==${torch%%+*}" != "$(pin torch)" ]; then
    vision="torchvision==0.$(($(echo "$torch" | cut -d. -f2) + 15)).*"
  fi
  say "installing $vision beside torch $torch"
  pip_install --no-deps "$vision"
}

# The forks bear the import names of the originals: two of them in one environment overwrite each other.
refuse_originals() {
  local name
  for name in mmengine mmcv mmcv-lite mmpretrain mmdet; do
    [ -z "$(version_of "$name")" ] || fail "$name is in .venv, where its onedl- fork is going to be installed; remove the folder .venv and run this again"
  done
}

# The folder of the wheels of mmcv with operators that fit this Python and torch.
wheel_folder() {
  local tag
  tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
  echo "$wheels/$tag-torch$(version_of torch)"
}

# The path of such a wheel; empty if none is built yet.
built_wheel() {
  local pinned candidate
  pinned=$(pin onedl-mmcv)
  for candidate in "$(wheel_folder)/onedl_mmcv-${pinned#*==}"-*.whl; do
    if [ -f "$candidate" ]; then echo "$candidate"; fi
    return
  done
}

install_mmcv() {
  local pinned wheel
  pinned=$(pin onedl-mmcv)
  [ "onedl-mmcv==$(version_of onedl-mmcv)" != "$pinned" ] || return 0
  wheel=$(built_wheel)
  if [ -n "$wheel" ]; then
    say "installing mmcv with operators from $wheel"
    pip_install --no-deps "$wheel"
  else
    # The isolated build sees no torch and leaves the operators out. Its wheel must not get into pip's cache, where a
    # later build with operators would find and reuse it.
    say "installing mmcv without operators"
    pip_install --no-deps --no-cache-dir "$pinned"
  fi
}

install_operators() {
  local folder wheel
  "$python" -c 'import mmcv.ops' 2>/dev/null && return
  folder=$(wheel_folder)
  mkdir -p "$folder"
  exec 9>"$folder/.lock"
  if command -v flock >/dev/null; then flock 9; fi  # someone else may be building the same wheel
  wheel=$(built_wheel)
  if [ -z "$wheel" ]; then
    command -v c++ >/dev/null || fail "mmcv's operators need a C++ compiler; install one (Debian and Ubuntu: g++)"
    say "compiling mmcv's operators; once for this Python and torch, 10 to 20 minutes on two cores"
    build=$(mktemp -d "$folder/build.XXXXXX")
    trap 'rm -rf "$build"' EXIT
    MMCV_WITH_OPS=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} "$python" -m pip wheel --quiet --quiet --no-build-isolation --no-deps \
      --no-cache-dir --wheel-dir "$build" "$(pin onedl-mmcv)" || fail "compiling mmcv's operators failed"
    "$python" -m zipfile --list "$build"/*.whl | grep 'mmcv/_ext' >/dev/null || fail "the built mmcv wheel holds no operators"
    mv "$build"/*.whl "$folder"/
    wheel=$(built_wheel)
  fi
  exec 9>&-
  say "installing mmcv with operators from $wheel"
  pip_install --no-deps --no-index --force-reinstall "$wheel"
  "$python" -c 'import mmcv.ops' || fail "mmcv's operators do not load; delete $wheel and run this again to build them anew"
}

case $mode in run | test) ;; *) fail "mode must be run or test, not '$mode'" ;; esac
cd "$root"
if up_to_date "$mode"; then exit 0; fi

make_venv
refuse_originals
say "installing the packages that mmcv and mmpretrain build on"
lists=(-r requirements/runtime.txt -r requirements/stack.txt -r requirements/optional.txt -r requirements/export.txt)
packages=("$(pin onedl-mmengine)" "$(pin onedl-mmpretrain)")
if [ "$mode" = test ]; then
  lists+=(-r requirements/tests.txt)
  packages+=("$(pin onedl-mmdetection)" "$(pin imaug)")
fi
pip_install "${lists[@]}"
install_torch
say "installing ${packages[*]}"
pip_install --no-deps --no-build-isolation "${packages[@]}"
install_mmcv
if [ "$mode" = test ]; then install_operators; fi
pip_install --no-deps --no-build-isolation --editable .

if [ "$mode" = test ]; then fingerprint >"$venv/.mmquant-test"; fi
fingerprint >"$venv/.mmquant-run"
say "ready: $mode"
