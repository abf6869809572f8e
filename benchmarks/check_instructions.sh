#!/usr/bin/env bash
#
# Guards the hot paths against getting slower, on any machine, however busy: counts the instructions
# of one acquire and release under callgrind and compares them with instructions_baseline.txt.
#
#   benchmarks/check_instructions.sh            fails if a workload takes over 2 % more than noted
#   benchmarks/check_instructions.sh --update   notes the present counts as the new baseline
#
# Instructions are not time: a locked instruction counts as one and costs twenty. So a change to a
# hot path is also measured with acquire_benchmark. Counts depend on the compiler and the C library;
# the baseline was made with those of Debian 12 (g++ 12.2, glibc 2.36) on x86-64. Installs valgrind if
# that is missing.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly baseline=benchmarks/instructions_baseline.txt
readonly workloads="floor uncontended owner lease observer run async preempt hand_over"
readonly tolerance=2 # Percent.

command -v valgrind >/dev/null || ./bazelw --install measure >&2
./bazelw build --config=opt //benchmarks:hot_path >&2
readonly binary="$(./bazelw info --config=opt bazel-bin 2>/dev/null)/benchmarks/hot_path"

instructions() {
  valgrind --tool=callgrind --callgrind-out-file=/dev/null "$binary" "$1" "$2" 2>&1 |
    awk '/Collected/ {print $4}'
}

# The difference between two lengths leaves out what a run costs before it is warm.
per_pair() {
  local few many
  few="$(instructions "$1" 2000)"
  many="$(instructions "$1" 12000)"
  echo $(((many - few) / 10000))
}

status=0
new=""
printf '%-14s %10s %10s\n' workload baseline now
for workload in $workloads; do
  now="$(per_pair "$workload")"
  before="$(awk -v name="$workload" '$1 == name {print $2}' "$baseline" 2>/dev/null || true)"
  new+="$workload $now"$'\n'
  verdict=""
  if [[ -n "$before" ]] && ((now * 100 > before * (100 + tolerance))); then
    verdict="  over by more than $tolerance %"
    status=1
  fi
  printf '%-14s %10s %10s%s\n' "$workload" "${before:--}" "$now" "$verdict"
done
if [[ "${1:-}" == --update ]]; then
  printf '%s' "$new" >"$baseline"
  echo "noted in $baseline"
  exit 0
fi
exit "$status"
