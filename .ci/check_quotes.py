#!/usr/bin/env python3
"""Checks that the code quoted in the documentation is in the file that it claims to come from.

A quote is a fenced block after a line `<!-- quote: PATH -->`. Leading spaces may differ by as much
for all lines, so that a quote need not keep the depth at which it stands.
"""

import pathlib
import re
import subprocess
import sys
import textwrap

QUOTE = re.compile(r"<!-- quote: (\S+) -->\n```\w*\n(.*?)```", re.DOTALL)


def main():
    root = pathlib.Path(__file__).resolve().parent.parent
    names = subprocess.run(
        ["git", "ls-files", "-z", "--", "*.md"], cwd=root, check=True, capture_output=True, text=True
    ).stdout
    quotes = 0
    wrong = 0
    for name in filter(None, names.split("\0")):
        text = (root / name).read_text(encoding="utf-8")
        for match in QUOTE.finditer(text):
            quotes += 1
            source, quoted = match.groups()
            lines = textwrap.dedent(quoted).splitlines()
            path = root / source
            have = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            found = any(
                textwrap.dedent("\n".join(have[i : i + len(lines)])).splitlines() == lines
                for i in range(len(have) - len(lines) + 1)
            )
            if not found:
                wrong += 1
                line = text.count("\n", 0, match.start()) + 1
                print(f"{name}:{line}: this is not in {source} (any more)")
    print(f"{quotes} quotes, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
