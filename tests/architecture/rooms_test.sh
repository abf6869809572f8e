#!/usr/bin/env bash
#
# No room includes what ARCHITECTURE.md does not let it. Reads every source file, so it runs each time,
# and outside the sandbox.

set -euo pipefail

exec "$(dirname "$(readlink -f "$1")")/tests/architecture/rooms.py"
