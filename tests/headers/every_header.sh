#!/usr/bin/env bash
#
# Every public header, which are those that this test has as its data, is among the arguments.

set -euo pipefail

missing=0
found=0
while read -r header; do
  found=$((found + 1))
  if [[ " $* " != *" latchkey/$header "* ]]; then
    echo "tests/headers/BUILD.bazel does not compile $header"
    missing=1
  fi
done < <(find -L . -name '*.h' -printf '%P\n' | sort)
if ((found == 0)); then
  echo "there are no headers among the data"
  missing=1
fi
exit "$missing"
