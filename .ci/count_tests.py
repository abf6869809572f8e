"""Counts the test cases in Bazel's build event files (--build_event_json_file).

Prints "N passed, M failed", or "…, K skipped" too if there are any. A case that several files tell
of counts once: as failed if it failed in any, else as passed if it passed in any. Exits 1 if there
is no case or any failed. With --show-failures, prints the failed cases and the ends of their logs
instead, and exits 1 only if there is no case.
"""

import argparse
import json
import sys
import urllib.parse
import xml.etree.ElementTree

LOG_LINES_SHOWN = 80


def read_results(path):
    """Yields (label, shard, passed, {output name: path}) of every test run told of in the file."""
    last_attempt = {}
    with open(path, encoding="utf-8") as file:
        for line in file:
            event = json.loads(line)
            if "testResult" not in event.get("id", {}) or "testResult" not in event:
                continue
            identity = event["id"]["testResult"]
            key = (identity["label"], identity.get("shard", 1), identity.get("run", 1))
            last_attempt[key] = event["testResult"]
    for (label, shard, _), result in last_attempt.items():
        outputs = {
            output["name"]: urllib.parse.unquote(urllib.parse.urlparse(output["uri"]).path)
            for output in result.get("testActionOutput", [])
            if "uri" in output
        }
        yield label, shard, result.get("status") == "PASSED", outputs


def read_cases(label, shard, passed, outputs):
    """Yields (name, "passed" | "failed" | "skipped") of every case of one test run."""
    try:
        root = xml.etree.ElementTree.parse(outputs["test.xml"]).getroot()
        cases = list(root.iter("testcase"))
    except (KeyError, OSError, xml.etree.ElementTree.ParseError):
        cases = []
    found_failure = False
    for case in cases:
        if case.get("status") == "notrun":
            continue
        name = f"{label} {case.get('classname', '')}.{case.get('name', '')}"
        if case.find("failure") is not None or case.find("error") is not None:
            found_failure = True
            yield name, "failed"
        elif case.find("skipped") is not None or case.get("result") == "skipped":
            yield name, "skipped"
        else:
            yield name, "passed"
    # It crashed, ran too long, or was stopped by a sanitizer after its last case.
    if not passed and not found_failure:
        yield f"{label} (shard {shard}, outside of any case)", "failed"


def show_failure(label, failed_cases, outputs):
    print(f"FAILED: {label}")
    for name in failed_cases:
        print(f"  {name}")
    try:
        with open(outputs["test.log"], encoding="utf-8", errors="replace") as log:
            lines = log.read().splitlines()
    except (KeyError, OSError):
        return
    print(f"  the last {min(len(lines), LOG_LINES_SHOWN)} of {len(lines)} lines of its log:")
    for line in lines[-LOG_LINES_SHOWN:]:
        print(f"    {line}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--show-failures", action="store_true")
    parser.add_argument("--also-failed", type=int, default=0, help="checks that are no test cases")
    parser.add_argument("files", nargs="+")
    arguments = parser.parse_args()

    worst = {}
    rank = {"skipped": 0, "passed": 1, "failed": 2}
    for path in arguments.files:
        try:
            results = list(read_results(path))
        except OSError:
            continue
        for label, shard, passed, outputs in results:
            cases = list(read_cases(label, shard, passed, outputs))
            for name, outcome in cases:
                if rank[outcome] >= rank.get(worst.get(name, ""), -1):
                    worst[name] = outcome
            failed_cases = [name for name, outcome in cases if outcome == "failed"]
            if arguments.show_failures and failed_cases:
                show_failure(label, failed_cases, outputs)

    outcomes = list(worst.values())
    passed = outcomes.count("passed")
    failed = outcomes.count("failed") + arguments.also_failed
    skipped = outcomes.count("skipped")
    if passed + outcomes.count("failed") == 0:
        print("No test ran.")
        if not arguments.show_failures:
            print(f"{passed} passed, {max(failed, 1)} failed")
        return 1
    summary = f"{passed} passed, {failed} failed"
    if skipped:
        summary += f", {skipped} skipped"
    print(f"Test cases: {summary}" if arguments.show_failures else summary)
    return 1 if failed and not arguments.show_failures else 0


if __name__ == "__main__":
    sys.exit(main())
