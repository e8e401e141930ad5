#!/usr/bin/env bash
# Set up .venv with the tests' requirements, then check style and run the tests. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
bash tools/setup_env.sh test
.venv/bin/python -m ruff check .
unset PYTHONDONTWRITEBYTECODE # the tests start processes, each of which would compile every module anew
exec .venv/bin/python -m pytest "$@"
