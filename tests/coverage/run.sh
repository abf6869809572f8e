#!/usr/bin/env bash
#
# Line and branch coverage of core and memory_backend, measured by gcov, drawn by gcovr:
#
#   tests/coverage/run.sh            prints both for each file, and every line that no test reaches
#                                    and unreached.md does not explain; then the exit code is 1
#   tests/coverage/run.sh FOLDER     also writes a report in HTML to FOLDER
#   tests/coverage/run.sh --update   writes new lines to unreached.md, for you to give the reasons
#
# Builds the tests with --collect_code_coverage, which leaves the dependencies as they are, and runs
# them itself: `bazel coverage` would download its tools. What a header's templates do in the tests'
# own objects is not counted.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

readonly tests="
  kind(cc_test, //tests/core/... + //tests/memory_backend/... + //tests/seeds/... + //tests/fuzz/...
    + //tests/support:random_steps_test + //tests/support:fault_injecting_protocol_test
    + //tests/support:linearizability_test + //tests/simulation:simulation_test
    + //tests/backends/quorum:quorum_backend_test + //tests/backends/quorum:quorum_conformance_test)"

html=""
update=""
case "${1:-}" in
  --update) update=--update ;;
  "") ;;
  *)
    mkdir -p "$1"
    html="$(cd "$1" && pwd)"
    ;;
esac

./bazelw --install coverage
mapfile -t targets < <(./bazelw query --noshow_progress "$tests" | sort)
readonly options=(--jobs=2 --collect_code_coverage
  "--instrumentation_filter=^//(core|memory_backend)[/:]")
./bazelw build "${options[@]}" "${targets[@]}"
bin="$(readlink -f "$(./bazelw info --noshow_progress "${options[@]}" bazel-bin)")"
objects="${bin%/bazel-out/*}"
readonly bin objects

# The compiler has noted where counts go as /proc/self/cwd/bazel-out/...: these three steps make room
# for the folder of ours.
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
export GCOV_PREFIX="$work" GCOV_PREFIX_STRIP=3
failed=()
for target in "${targets[@]}"; do
  name="${target##*:}"
  package="${target#//}"
  package="${package%:*}"
  arguments=()
  [[ "$package" != tests/fuzz ]] || arguments=("tests/fuzz/corpus/${name%_test}")
  echo "running $target"
  "$bin/$package/$name" "${arguments[@]}" >"$work/log" 2>&1 || {
    failed+=("$target")
    tail -n 20 "$work/log"
  }
done

# gcov wants the notes beside the counts.
(
  cd "$work"
  find bazel-out ! -path '*/bin/core/*' ! -path '*/bin/memory_backend/*' -name '*.gcda' -delete
  find bazel-out -name '*.gcda' | while read -r counts; do
    cp "$objects/${counts%.gcda}.gcno" "${counts%.gcda}.gcno"
  done
)
status=0
python3 tests/coverage/report.py $update "$work" tests/coverage/unreached.md || status=1
if [[ -n "$html" ]]; then
  gcovr --root . --add-tracefile "$work/coverage.json" --html-details "$html/index.html"
fi
for target in ${failed[@]+"${failed[@]}"}; do
  echo "FAILED: $target"
  status=1
done
exit "$status"
