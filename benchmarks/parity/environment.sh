#!/bin/sh
# Install the peer, sae-bench 0.6.0, in an environment of its own: environment.sh FOLDER (outside this repository).
set -e
folder=${1:?give a folder for the environment, outside the repository}
python3 -m venv "$folder"
pip="$folder/bin/pip --disable-pip-version-check"
# torch first, and no other afterwards: the constraint keeps what sae-bench pulls in from fetching one.
echo "torch==2.13.0" > "$folder/constraints.txt"
$pip install -q torch==2.13.0
$pip install -q -c "$folder/constraints.txt" sae-bench==0.6.0 loguru
# torchvision is built against another torch, and transformers fails on importing it; nothing here needs it.
$pip uninstall -q -y torchvision
$pip list --format freeze | grep -E "^(torch|sae-bench|sae-lens|transformer-lens|transformers|scikit-learn|numpy)=="
