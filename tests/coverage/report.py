"""Prints the coverage that gcov has measured, and compares unreached lines with unreached.md.

report.py [--update] FOLDER UNREACHED_MD

FOLDER holds gcov's notes and counts (*.gcno, *.gcda). What they add up to goes to FOLDER/coverage.json,
from which gcovr makes its reports.

A line is known by its file and its text, so that it may move. Exits 1 if a line is reached by no test
and not explained; one that is explained and reached by now is told, no more (some are reached by
luck of the threads).
"""

import argparse
import collections
import json
import os
import pathlib
import re
import subprocess


def read_explained(path):
    """{(file, text of the line)} of the code blocks under each "## file"."""
    explained = set()
    file = None
    in_code = False
    try:
        lines = open(path, encoding="utf-8").read().splitlines()
    except FileNotFoundError:
        lines = []
    for line in lines:
        if line.startswith("## "):
            file = line[3:].strip().strip("`")
        elif line.startswith("```"):
            in_code = not in_code
        elif in_code:
            explained.add((file, line.strip()))
    return explained


def measure(folder):
    """{file: {line: {"count", "function", "branches": {...}}}}, all objects taken together."""
    files = collections.defaultdict(dict)
    for counts in sorted(pathlib.Path(folder).rglob("*.gcda")):
        output = subprocess.run(
            ["gcov", "--json-format", "--stdout", "--branch-probabilities", str(counts)],
            cwd=folder, check=True, capture_output=True, text=True).stdout
        for document in output.splitlines():
            for file in json.loads(document)["files"]:
                # Headers are seen through the folder of links that include_prefix makes.
                name = re.sub(r".*/_virtual_includes/[^/]+/latchkey/", "", file["file"])
                if not re.match(r"(core|memory_backend)/", name) or not os.path.exists(name):
                    continue
                # The same line may be in several instances of a template, and in several objects.
                copies = collections.Counter()
                for line in file["lines"]:
                    number = line["line_number"]
                    key = (line.get("function_name", ""), copies[number])
                    copies[number] += 1
                    entry = files[name].setdefault(
                        number, {"count": 0, "function": key[0], "branches": {}})
                    entry["count"] += line["count"]
                    for i, branch in enumerate(line["branches"]):
                        # One that is taken only to throw is no decision of ours.
                        if branch["throw"]:
                            continue
                        entry["branches"].setdefault(i, 0)
                        entry["branches"][i] += branch["count"]
    return files


def write_tracefile(files, path):
    """In the form that gcovr reads with --add-tracefile."""
    def lines_of(lines):
        return [{
            "branches": [{"count": c, "fallthrough": False, "throw": False}
                         for c in line["branches"].values()],
            "count": line["count"],
            "gcovr/noncode": False,
            "line_number": number,
        } for number, line in sorted(lines.items())]

    document = {
        "files": [{"file": name, "functions": [], "lines": lines_of(lines)}
                  for name, lines in sorted(files.items())],
        "gcovr/format_version": "0.3",
    }
    with open(path, "w", encoding="utf-8") as out:
        json.dump(document, out)


def is_noise(text):
    """Lines that only close or begin something: what counts is the line beside them."""
    return re.fullmatch(r"[\s(){}\[\];,]*(else)?[\s(){};]*", text) is not None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--update", action="store_true")
    parser.add_argument("folder")
    parser.add_argument("unreached")
    arguments = parser.parse_args()

    files = measure(arguments.folder)
    write_tracefile(files, os.path.join(arguments.folder, "coverage.json"))
    explained = read_explained(arguments.unreached)
    total = collections.Counter()
    missing = collections.OrderedDict()
    told = set()
    print(f"{'file':45} {'lines':>17} {'branches':>17}")
    for name, lines in sorted(files.items()):
        with open(name, encoding="utf-8") as file:
            source = file.read().splitlines()
        count = collections.Counter()
        for number, line in sorted(lines.items()):
            text = source[number - 1].strip() if number <= len(source) else ""
            count["branches"] += len(line["branches"])
            count["branches reached"] += sum(c > 0 for c in line["branches"].values())
            if is_noise(text):
                continue
            count["lines"] += 1
            if line["count"] > 0:
                count["lines reached"] += 1
                continue
            told.add((name, text))
            if (name, text) not in explained:
                missing.setdefault(name, []).append((number, text))
        total += count
        print_line(name, count)
    print_line("all", total)

    for name, text in sorted(explained - told):
        print(f"reached by now, or gone: {name}: {text}")
    if not missing:
        print("every line that no test reaches is explained in unreached.md")
        return 0
    for name, lines in missing.items():
        for number, text in lines:
            print(f"NOT REACHED: {name}:{number}: {text}")
    if arguments.update:
        with open(arguments.unreached, "a", encoding="utf-8") as out:
            for name, lines in missing.items():
                out.write(f"\n## `{name}`\n\nREASON\n\n```cpp\n")
                out.writelines(text + "\n" for _, text in lines)
                out.write("```\n")
    return 1


def print_line(name, count):
    def share(what):
        all_of, reached = count[what], count[f"{what} reached"]
        percent = 100 * reached / all_of if all_of else 100
        return f"{percent:5.1f}% {reached}/{all_of}"

    print(f"{name:45} {share('lines'):>17} {share('branches'):>17}")


if __name__ == "__main__":
    raise SystemExit(main())
