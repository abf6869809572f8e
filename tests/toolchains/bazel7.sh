#!/usr/bin/env bash
#
# Checks with Bazel 7, in a Debian of its own, that MODULE.bazel resolves and that all targets analyse,
# also under what Bazel 8 demands:
#
#   tests/toolchains/bazel7.sh         the check, two minutes after the first run
#   tests/toolchains/bazel7.sh shell   a shell in there, at the checkout
#
# The first run makes a root folder with Debian forky (${XDG_CACHE_HOME:-~/.cache}/latchkey/forky), which
# later runs use again, and in it a registry for Bazel over the sources that Debian has, so that nothing
# but Debian's packages is fetched. The checkout is mounted there. Needs Debian and root.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
readonly checkout="$PWD"
readonly root="${XDG_CACHE_HOME:-$HOME/.cache}/latchkey/forky"

((EUID == 0)) || exec sudo -- "$0" "$@"

say() { printf 'bazel7.sh: %s\n' "$*" >&2; }

mirror="$(apt-get indextargets --format '$(ORIGIN)|$(COMPONENT)|$(REPO_URI)' |
  sed -n 's/^Debian|main|//p' | head -n 1)"

if [[ ! -e "$root/complete" ]]; then
  say "making $root"
  command -v debootstrap >/dev/null || apt-get install --yes --no-install-recommends debootstrap >&2
  [[ -e /usr/share/debootstrap/scripts/forky ]] || ln -s sid /usr/share/debootstrap/scripts/forky
  [[ -e "$root/usr/bin/apt-get" ]] || debootstrap --variant=minbase forky "$root" "$mirror" >&2
fi
# How this machine reaches the packages goes for the root, too.
apt-config dump | grep -E '^Acquire::(https?|ftp|Retries)' >"$root/etc/apt/apt.conf.d/10as-outside" || true
cp /etc/resolv.conf "$root/etc/resolv.conf"
mkdir -p "$root/src/latchkey"

# In a namespace of its own, so that what is mounted goes with it.
exec unshare --mount --pid --fork bash -euo pipefail -c '
  root="$1" checkout="$2" mirror="$3"
  shift 3
  mount -t proc proc "$root/proc"
  mount --rbind /dev "$root/dev"
  mount --bind "$checkout" "$root/src/latchkey"
  exec chroot "$root" /src/latchkey/tests/toolchains/inside_forky.sh "$mirror" "$@"
' bash "$root" "$checkout" "$mirror" "$@"
