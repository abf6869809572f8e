#!/usr/bin/env bash
#
# The conformance suite fails over a broken backend, and ends: each fault of broken_backends.cc is
# found, in a bounded number of failures which name outcomes and events, without a crash and without
# a hang. The same backend without a fault passes.

set -uo pipefail

readonly suite="$TEST_SRCDIR/$TEST_WORKSPACE/tests/conformance/broken_backends"
readonly log="$TEST_TMPDIR/log"
# A loop that does not stop makes tens of thousands; a test has some dozens of assertions.
readonly most_failures_of_a_test=40
# Only a hang takes so long.
readonly hang_guard=240
# The failures of what is run here are no failures of this test, so they do not belong in its report.
unset XML_OUTPUT_FILE GTEST_OUTPUT

status=0
complain() {
  echo "FAILED: $*"
  status=1
}

run() {
  timeout "$hang_guard" "$suite" --gtest_filter="*/$1" --gtest_print_time=0 >"$log" 2>&1
}

# The most failures that any one test has.
failures_of_a_test() {
  awk '/^\[ RUN/ {n = 0} /: Failure$/ {if (++n > most) most = n} END {print most + 0}' "$log"
}

# fault, then patterns that its messages match
finds() {
  local fault="$1" code most pattern
  shift
  run "$fault"
  code=$?
  case $code in
    1) ;;
    0) complain "$fault is not found" ;;
    124) complain "$fault: the suite does not end" ;;
    *) complain "$fault: the suite ends with $code: $(tail -n 3 "$log")" ;;
  esac
  most="$(failures_of_a_test)"
  ((most <= most_failures_of_a_test)) || complain "$fault: $most failures of one test"
  for pattern in "$@"; do
    grep -qE "$pattern" "$log" || {
      complain "$fault: no message says '$pattern'; those that are there:"
      grep -A 4 ': Failure$' "$log" | head -n 40
    }
  done
  echo "$fault:$(grep -E '^ *[0-9]+ FAILED TEST' "$log"), at most $most failures in one"
}

run Sound || {
  complain "a backend without a fault is refused"
  grep -A 6 ': Failure$' "$log" | head -n 60
}

finds ObtainIsNoTransaction 'two were inside at once|came after|was answered (NotHeld|Reentered)|no order of these steps'
finds ReleaseIsNoTransaction 'was answered|nobody entered any more|no order of these steps'
finds LosesEvents "waited in vain for YieldRequested to the holder 'holder', which heard nothing" \
  "waited in vain for HoldEnded to the waiter 'waiter', which heard nothing"
finds LosesWakeUps "waited in vain for HoldEnded to the waiter 'waiter', which heard nothing"
finds LosesCompletions "waited in vain for the completion of an Obtain by 'a'" 'a completion never ran'
finds CompletesTwice 'a completion ran more than once'
finds RefusesEverything 'an Obtain by .* failed: UNAVAILABLE: .*out of order'
finds AlwaysDenies 'was answered Denied' 'nobody entered any more'
finds AlwaysReenters 'was answered Reentered'
finds LetsEverybodyIn 'was answered Obtained' 'was answered NotHeld'
finds ReleasesNothing 'was answered Denied' "'thread [0-9]' with priority 0 was answered Reentered"
finds RepeatsTokens 'token [0-9]+ came after [0-9]+'

exit "$status"
