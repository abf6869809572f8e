#!/usr/bin/env bash
# Runs an example against a Redis server of its own, which ends with it.
set -euo pipefail
command -v redis-server >/dev/null || {
  echo "there is no redis-server on PATH. Install it (Debian: redis-server); ./bazelw does." >&2
  exit 1
}
folder="$(mktemp -d)"
: >"$folder/log"
redis-server --port 0 --unixsocket "$folder/socket" --dir "$folder" --save "" >>"$folder/log" 2>&1 &
server="$!"
trap 'kill -9 "$server" 2>/dev/null; wait "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
# It says when it is ready; it ends if it cannot start.
while ! grep -q "eady to accept connections" "$folder/log"; do
  kill -0 "$server" || { cat "$folder/log" >&2; exit 1; }
done
"$1" "unix://$folder/socket"
