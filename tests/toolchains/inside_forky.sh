#!/usr/bin/env bash
#
# The part of bazel7.sh that runs in the root folder with Debian forky.

set -euo pipefail
readonly mirror="$1"
shift
readonly step="${1:-analysis}"
export DEBIAN_FRONTEND=noninteractive HOME=/root LC_ALL=C.UTF-8
cd /src/latchkey

# Where Debian has what Bazel's modules are made of.
readonly rules=/usr/share/bazel/rules tools=/usr/share/bazel/tools
readonly stubs="protobuf@21.7 zlib@1.3.1.bcr.3 apple_support@1.23.1 protobuf@3.19.6 buildozer@7.1.2"
readonly sources=/src/sources registry=/src/registry archives=/src/archives

say() { printf 'bazel7.sh: %s\n' "$*" >&2; }

# newest_source PACKAGE BEGIN: as apt-get names the newest version that begins like this.
newest_source() {
  echo "$1=$(apt-cache showsrc "$1" | sed -n 's/^Version: //p' | grep "^$2" | sort -V | tail -n 1)"
}

install() {
  say "installing what the builds need"
  echo "deb-src $mirror forky main" >/etc/apt/sources.list.d/sources.list
  echo "deb-src $mirror trixie main" >>/etc/apt/sources.list.d/sources.list
  local apt=(apt-get -qq -o Acquire::Check-Valid-Until=false -o APT::Sandbox::User=root -o Acquire::Retries=3)
  "${apt[@]}" update
  "${apt[@]}" install --yes --no-install-recommends \
    bazel-bootstrap bazel-features bazel-platforms bazel-rules-cc bazel-rules-java \
    bazel-rules-license bazel-rules-proto bazel-rules-python bazel-rules-shell bazel-skylib \
    clang cmake dpkg-dev g++ git libabsl-dev libhiredis-dev libssl-dev libtbb-dev libuv1-dev \
    ninja-build openssl pkgconf procps python3 redis-server spin >/dev/null
  mkdir -p "$archives" "$sources"
  (
    cd "$archives"
    local source
    for source in abseil/20240722 googletest/1.16 benchmark/ hiredis/1.2.0; do
      "${apt[@]}" source --download-only --tar-only "$(newest_source "${source%/*}" "${source#*/}")"
    done
  )
  local name
  for name in abseil googletest benchmark; do
    rm -rf "${sources:?}/$name"
    mkdir "$sources/$name"
    tar -xf "$archives/$name"_*.orig.tar.* -C "$sources/$name" --strip-components=1
  done
  # As MODULE.bazel asks for it.
  ln -sf "$archives"/hiredis_1.2.0.orig.tar.gz "$archives/v1.2.0.tar.gz"
  touch /complete
}

# module NAME VERSION FOLDER: one entry of the registry.
module() {
  local entry="$registry/modules/$1/$2"
  mkdir -p "$entry"
  # What the sources call themselves is not always what they are.
  printf 'module(name = "%s", version = "%s")\n' "$1" "$2" >"$entry/MODULE.bazel"
  cat >>"$entry/MODULE.bazel" <<<"${4:-}"
  printf '{"type": "local_path", "path": "%s"}\n' "$3" >"$entry/source.json"
}

write_registry() {
  rm -rf "$registry"
  mkdir -p "$registry"
  echo '{"mirrors": []}' >"$registry/bazel_registry.json"
  local cc='bazel_dep(name = "rules_cc", version = "0.0.17")'
  local skylib='bazel_dep(name = "bazel_skylib", version = "1.7.1")'
  local platforms='bazel_dep(name = "platforms", version = "0.0.10")'
  module abseil-cpp 20240722.0 "$sources/abseil" "$cc
$skylib
$platforms
bazel_dep(name = \"googletest\", version = \"1.16.0.bcr.1\", repo_name = \"com_google_googletest\")"
  module googletest 1.16.0.bcr.1 "$sources/googletest" "$cc
$platforms
bazel_dep(name = \"abseil-cpp\", version = \"20240722.0\")"
  module google_benchmark 1.9.5 "$sources/benchmark" "$cc
$skylib
$platforms"
}

# What Bazel's own modules name and nothing here uses.
write_stubs() {
  mkdir -p "$sources/empty"
  local stub
  for stub in $stubs; do
    module "${stub%@*}" "${stub#*@}" "$sources/empty"
  done
}

# Bazel as Debian has it, with that registry.
readonly overrides=(
  "--registry=file://$registry"
  "--distdir=$archives"
  "--lockfile_mode=off"
  "--symlink_prefix=/"
  "--override_module=platforms=$tools/platforms"
  "--override_module=bazel_skylib=$tools/skylib"
  "--override_module=bazel_features=$tools/features"
  "--override_module=rules_cc=$rules/cc"
  "--override_module=rules_java=$rules/java"
  "--override_module=rules_license=$rules/license"
  "--override_module=rules_proto=$rules/proto"
  "--override_module=rules_python=$rules/python"
  "--override_module=rules_shell=$rules/shell"
)
# What Bazel 8 and 9 demand, as far as 7 can.
readonly preview=(
  --noenable_workspace
  --incompatible_autoload_externally=
  --incompatible_check_visibility_for_toolchains
  --incompatible_config_setting_private_default_visibility
  --incompatible_disable_starlark_host_transitions
  --incompatible_disallow_empty_glob
  --incompatible_disallow_struct_provider_syntax
  --incompatible_no_implicit_file_export
  --incompatible_use_plus_in_repo_names
)
bazel7() {
  bazel --nosystem_rc --nohome_rc --output_user_root=/src/bazel \
    --install_base=/usr/share/bazel --trust_install_base "$@"
}

[[ -e /complete ]] || install
write_registry
write_stubs
case "$step" in
  shell) exec bash ;;
  analysis) bazel7 build --nobuild "${overrides[@]}" "${preview[@]}" //... ;;
  *)
    say "no step is called '$step'; there are: analysis shell"
    exit 2
    ;;
esac
