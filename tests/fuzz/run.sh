#!/usr/bin/env bash
#
# Runs the fuzzers: tests/fuzz/run.sh [SECONDS [TARGET...]]
#
#   tests/fuzz/run.sh                            all of them, 60 s each
#   tests/fuzz/run.sh 600 redis_url_fuzz         one, for ten minutes
#   RUNS=20000 SEED=1 tests/fuzz/run.sh 20       at most 20,000 inputs each; as the seed says
#   MINIMISE=1 tests/fuzz/run.sh 60              then adds to the corpus what reaches new code
#
# Builds them with clang (--config=asan). Each starts from its corpus, corpus/TARGET, and leaves it
# alone unless MINIMISE is set. An input that fails is kept and printed, with how to replay it; then
# the exit code is 1.

set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

seconds="${1:-60}"
shift || true
targets=("$@")
if ((${#targets[@]} == 0)); then
  for source in tests/fuzz/*_fuzz.cc; do
    targets+=("$(basename "$source" .cc)")
  done
fi

./bazelw build --jobs=2 --config=asan "${targets[@]/#///tests/fuzz:}" || exit 2
# The folder stays what it is when another configuration is built meanwhile.
bin="$(readlink -f bazel-bin)/tests/fuzz"
found="${TMPDIR:-/tmp}/latchkey-fuzz-$$"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
for target in "${targets[@]}"; do cp "$bin/$target" "$work/"; done

export ASAN_OPTIONS="detect_leaks=1:detect_stack_use_after_return=1:${ASAN_OPTIONS:-}"
export UBSAN_OPTIONS="print_stacktrace=1:${UBSAN_OPTIONS:-}"
failed=()
for target in "${targets[@]}"; do
  corpus="tests/fuzz/corpus/$target"
  mkdir -p "$found" "$work/$target.new"
  if "$work/$target" -max_total_time="$seconds" -runs="${RUNS:--1}" -seed="${SEED:-0}" \
    -timeout=20 -rss_limit_mb=2048 -max_len=4096 -print_final_stats=1 \
    -artifact_prefix="$found/$target-" "$work/$target.new" "$corpus" >"$work/log" 2>&1; then
    executions="$(sed -n 's/^stat::number_of_executed_units: *//p' "$work/log")"
    coverage="$(grep -o 'cov: [0-9]* ft: [0-9]* corp: [0-9]*' "$work/log" | tail -n 1)"
    echo "$target: $executions inputs, no failure ($coverage)"
  else
    failed+=("$target")
    tail -n 60 "$work/log"
    for input in "$found/$target-"*; do
      [[ -e "$input" ]] || continue
      echo
      echo "$target FAILED on $input (base64: $(base64 -w 0 "$input" | cut -c 1-2000))"
      echo "Replay it: ./bazelw run //tests/fuzz:${target}_test -- $input"
      echo "Once it is mended, keep it: cp $input $corpus/NAME_THAT_SAYS_WHAT_IT_IS"
    done
  fi
  if [[ -n "${MINIMISE:-}" ]]; then
    "$work/$target" -merge=1 "$corpus" "$work/$target.new" 2>&1 | tail -n 1
  fi
done
rmdir "$found" 2>/dev/null
if ((${#failed[@]})); then
  echo "FAILED: ${failed[*]}"
  exit 1
fi
