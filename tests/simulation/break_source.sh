#!/usr/bin/env bash
#
# Puts a bug into a copy of a source file: break_source.sh SOURCE COPY SED_EXPRESSION...
# Fails unless each expression changes exactly one line, so that a bug does not vanish when the
# source changes.

set -euo pipefail

readonly source="$1" copy="$2"
shift 2
cp "$source" "$copy"
chmod u+w "$copy"
for expression in "$@"; do
  cp "$copy" "$copy.before"
  sed -i -e "$expression" "$copy"
  changed="$(diff "$copy.before" "$copy" | grep -c '^<' || true)"
  rm "$copy.before"
  if [[ "$changed" != 1 ]]; then
    echo "$source: $expression changes $changed lines instead of one" >&2
    exit 1
  fi
done
