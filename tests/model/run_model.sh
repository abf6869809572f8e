#!/usr/bin/env bash
#
# Checks one setting of one Promela model with SPIN. Each test in this folder is one call of this script.
#
#   run_model.sh MODEL.pml holds [OPTION...] [-DNAME[=VALUE]...]
#   run_model.sh MODEL.pml finds PROPERTY [OPTION...] [-DNAME[=VALUE]...]
#
# "holds" passes only if SPIN searched the whole state space and found no error. "finds" passes only if SPIN
# found a violation of exactly that PROPERTY: the name of an assertion's flag in the model, or of an LTL formula.
# The shortest counterexample is then printed as a story.
#
#   --claim=NAME      check this LTL formula, under weak fairness
#   --depth=N         depth of the search stack (default 1,000,000 steps)
#   --memory=MB       give up beyond this much memory (default 2000)
#   --depth-first     "finds": do not insist on the shortest counterexample
#
# Needs spin and gcc; both are installed by ./bazelw.

set -euo pipefail

fail() {
  printf 'FAILED: %s\n' "$*" >&2
  exit 1
}

(($# >= 2)) || fail "usage: run_model.sh MODEL.pml holds|finds PROPERTY [options]"
readonly model="$1" expectation="$2"
shift 2
property=""
case "$expectation" in
  holds) ;;
  finds)
    property="${1:?"finds" needs the name of a property}"
    shift
    ;;
  *) fail "expected holds or finds, not '$expectation'" ;;
esac

claim="" depth=1000000 memory=2000 breadth_first=1
defines=()
for argument in "$@"; do
  case "$argument" in
    --claim=*) claim="${argument#*=}" ;;
    --depth=*) depth="${argument#*=}" ;;
    --memory=*) memory="${argument#*=}" ;;
    --depth-first) breadth_first=0 ;;
    -D*) defines+=("$argument") ;;
    *) fail "unknown argument '$argument'" ;;
  esac
done

for tool in spin gcc; do
  command -v "$tool" >/dev/null ||
    fail "'$tool' is not installed. ./bazelw installs it; on Debian: apt-get install $tool"
done

# SPIN writes into the current folder and reads included files from there.
[[ -f "$model" ]] || fail "no such model: $model"
work="$(mktemp -d "${TEST_TMPDIR:-${TMPDIR:-/tmp}}/model.XXXXXX")"
trap 'rm -rf "$work"' EXIT
cp "$(dirname "$model")"/*.pml "$work"
cd "$work"
readonly file="$(basename "$model")"

compile=(-O1 -w "-DMEMLIM=$memory" -DNOREDUCE)
run=("-m$depth" -n -w20)
if [[ -n "$claim" ]]; then
  compile+=(-DNFAIR=4)
  run+=(-a -f -N "$claim")
else
  compile+=(-DSAFETY)
  if [[ "$expectation" == finds ]] && ((breadth_first)); then
    compile+=(-DBFS)
    defines+=(-DSHORTEST)
  fi
fi

spin ${defines[@]+"${defines[@]}"} -a "$file" >spin.out 2>&1 && [[ -f pan.c ]] ||
  fail "spin rejects $file:"$'\n'"$(cat spin.out)"
gcc "${compile[@]}" -o pan pan.c >gcc.out 2>&1 || fail "pan does not compile:"$'\n'"$(cat gcc.out)"
status=0
./pan "${run[@]}" >pan.out 2>&1 || status="$?"

story() {
  spin ${defines[@]+"${defines[@]}"} -t "$file" 2>&1 |
    sed -e 's/^ */  /' -e '/#processes/,$d' -e '/^  ltl /d' -e '/[Nn]ever claim/d' | head -n 150
}
number() { sed -n "s/$1/\\1/p" pan.out | head -n 1; }
readonly states="$(number '^ *\([0-9.e+]*\) states, stored.*')"
readonly seconds="$(number '^pan: elapsed time \([0-9.e+]*\) seconds.*')"
readonly errors="$(number '.*errors: \([0-9]*\).*')"
readonly megabytes="$(number '^ *\([0-9.]*\).*total actual memory usage.*')"
printf '%s %s%s: %s states, %s transitions, depth %s, %s s, %s MB\n' "$file" "$expectation" "${property:+ $property}" \
  "${states:-?}" "$(number '^ *\([0-9.e+]*\) transitions.*')" "$(number '.*depth reached \([0-9]*\).*')" \
  "${seconds:-?}" "${megabytes:-?}"
printf '  setting:%s\n' "${defines[*]+ ${defines[*]}}${claim:+ claim $claim under weak fairness}"

[[ -n "$errors" && -n "$states" ]] || fail "the search ended without a result (exit $status):"$'\n'"$(cat pan.out)"
# Whatever leaves part of the states unvisited.
if grep -E 'max search depth too small|out of memory|reached -DMEMLIM|Search not completed|hash-?compact|bit-?state' \
  pan.out >truncated.out && [[ "$expectation" == holds && "$errors" == 0 ]]; then
  fail "the search is incomplete:"$'\n'"$(cat truncated.out)"
fi

if [[ "$expectation" == holds ]]; then
  if [[ "$errors" != 0 ]]; then
    grep '^pan:1:' pan.out || true
    story
    fail "a counterexample was found"
  fi
  ((status == 0)) || fail "pan exits with $status:"$'\n'"$(cat pan.out)"
  if [[ -n "$claim" ]]; then
    # A search without the claim, or without fairness, proves nothing.
    grep -q "never claim[[:space:]]*+ ($claim)" pan.out || fail "the formula $claim was not checked:"$'\n'"$(cat pan.out)"
    grep -q 'acceptance *cycles[[:space:]]*+ (fairness enabled)' pan.out || fail "fairness was not on:"$'\n'"$(cat pan.out)"
  fi
  exit 0
fi

[[ "$errors" != 0 ]] || fail "the mutant survives: no violation of $property was found"
if [[ -n "$claim" ]]; then
  [[ "$property" == "$claim" ]] || fail "a formula's mutant must expect that formula"
  grep -q '^pan:1: acceptance cycle' pan.out || fail "something else broke: $(grep '^pan:1:' pan.out)"
else
  grep -qE "^pan:1: assertion violated *!\(*$property\)* " pan.out ||
    fail "something else broke: $(grep '^pan:1:' pan.out)"
fi
story
