#!/usr/bin/env bash
# Turns Lua files into a header with one string for each: kFile for file.lua.
set -euo pipefail
echo "// Made from the files in scripts/."
echo "namespace latchkey::redis::text {"
for file in "$@"; do
  name="$(basename "$file" .lua)"
  words=""
  for word in ${name//_/ }; do words+="${word^}"; done
  printf 'inline constexpr char k%s[] = R"lua(' "$words"
  cat "$file"
  printf ')lua";\n'
done
echo "}  // namespace latchkey::redis::text"
