#!/usr/bin/env bash
# The one-wheel promise: the wheel in dist/, installed into new environments outside the repository, passes the
# CPU tests with torch 2.13.0 (any build) and with torch 2.11.0, whose package is the CUDA 13 build: there
# _C_cuda must load too, with or without a GPU. About 5 GB of downloads, and ten minutes of two cores for each.
# PYTHON_213 and PYTHON_211 name other interpreters. The interpreter of Triton 3.6, which comes with torch 2.11, takes
# arrays of one number for numbers, as numpy did until 2.3.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
wheel=$(ls "$root"/dist/maskfuse-*.whl)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp -r "$root/tests" "$root/examples" "$folder"
cp "$root/pyproject.toml" "$folder"

for version in 2.13.0 2.11.0; do
  variable=PYTHON_${version:0:1}${version:2:2}
  "${!variable:-python3}" -m venv "$folder/$version"
  python="$folder/$version/bin/python"
  "$python" -m pip install -q "torch==$version" "numpy<2.4" pytest pytest-xdist hypothesis safetensors rich scikit-learn matplotlib
  "$python" -m pip install -q --no-deps "$wheel"
  echo "== torch $version"
  (
    cd "$folder"
    "$python" -m maskfuse info
    "$python" -c "
import torch, maskfuse
assert maskfuse.__file__.startswith('$folder'), maskfuse.__file__
cuda = maskfuse.build_info()['cuda']
assert cuda['loaded'] == (torch.version.cuda is not None), cuda
"
    OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive "$python" -m pytest -n "${TEST_JOBS:-2}" tests
  )
done
