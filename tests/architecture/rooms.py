#!/usr/bin/env python3
"""Checks every include between two rooms against the table of rooms in ARCHITECTURE.md.

    tests/architecture/rooms.py          fails if a room includes what the table does not let it
    tests/architecture/rooms.py --list   also lists which room includes what of which

A row of the table names a room, the folder of that name and those below it that are no rooms of
their own, in its first column, and in its last one the rooms that it may include ("nothing",
"everything").
"""

import collections
import pathlib
import re
import subprocess
import sys

ROW = re.compile(r"^\| (`.*) \| ([^|]*) \|$", re.MULTILINE)
INCLUDE = re.compile(r'^#include "latchkey/([^"]+)"', re.MULTILINE)
NAME = re.compile(r"`([^`]+)`")


def rooms_of(page):
    """{room: the rooms that it may include}, None for all."""
    rooms = {}
    for first, last in ROW.findall(page):
        for room in NAME.findall(first.split(" | ")[0]):
            if last == "everything":
                rooms[room] = None
            elif last == "nothing":
                rooms[room] = set()
            else:
                rooms[room] = set(NAME.findall(last))
    return rooms


def room_of(path, rooms):
    """The room that a file is in: the longest folder that is one."""
    fitting = [room for room in rooms if path.startswith(room + "/")]
    return max(fitting, key=len, default=None)


def main():
    root = pathlib.Path(__file__).resolve().parent.parent.parent
    rooms = rooms_of((root / "ARCHITECTURE.md").read_text(encoding="utf-8"))
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.h", "*.cc"],
        cwd=root,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    seen = collections.Counter()
    wrong = []
    for name in filter(None, names.split("\0")):
        path = root / name
        if not path.exists():
            continue
        room = room_of(name, rooms)
        if room is None:
            wrong.append(f"{name} is in no room of ARCHITECTURE.md")
            continue
        for included in INCLUDE.findall(path.read_text(encoding="utf-8")):
            other = room_of(included, rooms)
            if other == room:
                continue
            seen[room, other] += 1
            if other is None or (rooms[room] is not None and other not in rooms[room]):
                wrong.append(f"{name} includes {included}: {room} may not include {other}")
    for room, allowed in rooms.items():
        for other in sorted((allowed or set()) - set(rooms)):
            wrong.append(f"ARCHITECTURE.md lets {room} include {other}, which is no room")
    if "--list" in sys.argv[1:]:
        for (room, other), count in sorted(seen.items()):
            print(f"{room} -> {other}: {count}")
    for line in wrong:
        print(line)
    print(f"{len(rooms)} rooms, {sum(seen.values())} includes between them, {len(wrong)} wrong")
    return 1 if wrong or not seen else 0


if __name__ == "__main__":
    sys.exit(main())
