#!/usr/bin/env bash
#
# Every public header of core is among the arguments.

set -euo pipefail

missing=0
for header in core/*.h core/policy/*.h; do
  if [[ " $* " != *" latchkey/$header "* ]]; then
    echo "tests/headers/BUILD.bazel does not compile $header"
    missing=1
  fi
done
exit "$missing"
