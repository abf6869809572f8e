# What .ci/run and .ci/nightly share. To be sourced from the top of the checkout.

readonly options=(--jobs=2 --keep_going --curses=no --color=no --show_progress_rate_limit=30)
readonly events="$(mktemp -d)"
trap 'rm -rf "$events"' EXIT

other_failures=()

header() {
  printf '\n=== [%02d:%02d] %s\n' "$((SECONDS / 60))" "$((SECONDS % 60))" "$1"
}

# Runs a command that is not a test; remembers it by the name given if it fails.
check() {
  local name="$1"
  shift
  "$@" && return
  other_failures+=("$name")
  echo "FAILED: $name"
}

# Runs tests and tells which cases failed: run_tests NAME [OPTION...] [TARGET...], all targets if none
# is given. What Bazel reports about each goes to $events/NAME.
run_tests() {
  local name="$1" status=0
  shift
  [[ "$*" == *//* ]] || set -- "$@" //...
  ./bazelw test "${options[@]}" --test_output=summary --build_event_json_file="$events/$name" \
    "$@" || status="$?"
  if ((status != 0 && status != 3)); then # 3: built, but a test failed. The cases tell which.
    other_failures+=("bazel test $* (exit code $status)")
  fi
  python3 .ci/count_tests.py --show-failures "$events/$name" || other_failures+=("$name: no test ran")
}

# Says how it went; the last line counts.
finish() {
  ./bazelw shutdown
  header "Done"
  local failure
  for failure in ${other_failures[@]+"${other_failures[@]}"}; do
    echo "FAILED: $failure"
  done
  python3 .ci/count_tests.py --also-failed="${#other_failures[@]}" "$events"/*
}
