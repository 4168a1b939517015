#!/usr/bin/env bash
# Oddsmith's first minutes on an NVIDIA GPU: one command, one Markdown file, under 12 minutes, no network.
#
#   bash benchmarks/on_gpu/first_minutes.sh                    with the Python of .venv, or python3
#   bash benchmarks/on_gpu/first_minutes.sh --wheels FOLDER    install carried wheels first, without network
#   bash benchmarks/on_gpu/first_minutes.sh --pip              install what is needed from the package index first
#   bash benchmarks/on_gpu/first_minutes.sh --toy --device cpu     the rehearsal
#
# Other arguments: --help. What to carry: benchmarks/README.md. PyTorch with CUDA has to be there.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3 || true)}
[ -n "$python" ] || { echo "no python3 here; set PYTHON" >&2; exit 2; }
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "Oddsmith needs Python 3.11 to 3.13; $python is $("$python" --version 2>&1). Set PYTHON." >&2; exit 2; }

export PYTHONPATH="$PWD/src:$PWD/benchmarks:$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
arguments=()
while [ $# -gt 0 ]; do
  case $1 in
    --pip) "$python" -m pip install --quiet --editable ".[4bit,test]" ;;
    --wheels)
      shift
      site=$(mktemp -d)
      "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "${1:?a folder}"/*.whl
      export PYTHONPATH="$site:$PYTHONPATH" ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
exec "$python" -m on_gpu.first_minutes ${arguments[@]+"${arguments[@]}"}
