#!/bin/sh
# Installs from this bundle, and from nothing else: no index is asked, and every file is checked first.
#
#   ./install.sh server [FOLDER]      default: /opt/wattledger          all of it: server, worker, dashboard, commands
#   ./install.sh agent [FOLDER]       default: /opt/wattledger-agent    what a GPU node needs
#   PYTHON=python3.12 ./install.sh ...  the Python that the bundle's name says, where python3 is another one
#
# An upgrade is the same words: what is there is replaced in its place; docs/upgrading.md says in which order. Starts and stops nothing.
set -eu
umask 022
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}

usage() { sed -n 's/^#   //p' "$0" >&2; exit 2; }
case "${1:-}" in
  server) folder=${2:-/opt/wattledger} ;;
  agent) folder=${2:-/opt/wattledger-agent} ;;
  *) usage ;;
esac

(cd "$here" && sha256sum --check --quiet --strict SHA256SUMS) || { echo "install.sh: files of this bundle are damaged or missing; copy it again" >&2; exit 1; }
listed=$(wc -l <"$here/SHA256SUMS")
there=$(find "$here" -type f ! -path "$here/SHA256SUMS" | wc -l)
[ "$listed" -eq "$there" ] || { echo "install.sh: the bundle lists $listed files, and there are $there; unpack it into an empty folder" >&2; exit 1; }

[ -x "$folder/bin/python" ] || "$python" -m venv "$folder"
install="$folder/bin/python -m pip --disable-pip-version-check --quiet --isolated install --no-index --find-links $here/wheels"
if [ "$1" = server ]; then
  # shellcheck disable=SC2086 # words, on purpose
  $install --upgrade --constraint "$here/constraints.txt" "$here"/wheels/wattledger-*.whl
  "$folder/bin/wattledger" --version
else
  # shellcheck disable=SC2086
  $install --upgrade --constraint "$here/constraints.txt" --requirement "$here/deploy/agent/requirements.txt"
  # shellcheck disable=SC2086
  $install --upgrade --no-deps "$here"/wheels/wattledger-*.whl
  "$folder/bin/wattledger-agent" --help >/dev/null
fi
echo "installed in $folder"
