#!/usr/bin/env bash
#
# Every code block in the documentation that follows a line `<!-- quote: FILE -->` must be found in
# FILE, line by line; indentation does not count. The quoted files are compiled and run elsewhere.

set -euo pipefail

# The checkout itself, since some quoted files belong to a workspace of their own, which Bazel does
# not see from here.
cd "$(dirname "$(readlink -f "$1")")"

unindented() { sed -E 's/^[[:space:]]+//; s/[[:space:]]+$//'; }

checked=0
failed=0
while IFS= read -r page; do
  quoted="" block="" inside=0
  while IFS= read -r line || [[ -n "$line" ]]; do
    if [[ "$line" =~ ^\<!--\ quote:\ ([^ ]+)\ --\>$ ]]; then
      quoted="${BASH_REMATCH[1]}"
    elif [[ -n "$quoted" && "$inside" == 0 && "$line" == '```'* ]]; then
      inside=1 block=""
    elif [[ "$inside" == 1 && "$line" == '```' ]]; then
      checked=$((checked + 1))
      if [[ "$(unindented <"$quoted")" != *"$(unindented <<<"$block")"* ]]; then
        failed=$((failed + 1))
        printf '%s quotes what is not in %s:\n%s\n' "$page" "$quoted" "$block"
      fi
      quoted="" inside=0
    elif [[ "$inside" == 1 ]]; then
      block+="${block:+$'\n'}$line"
    fi
  done <"$page"
done < <(find README.md docs -name '*.md' | sort)

echo "$checked quotes checked, $failed wrong"
((checked > 0 && failed == 0))
