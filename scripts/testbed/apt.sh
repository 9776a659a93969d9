# Packages of Debian's without touching the machine's own; sourced, never run, after lib.sh.
# shellcheck shell=bash

readonly DEBIAN_KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

need_debian_tools() {
  local tool
  for tool in apt-get dpkg-deb; do
    command -v "$tool" >/dev/null ||
      die "'$tool' is missing: the testbed takes QEMU and a kernel from Debian packages; install apt and dpkg (Fedora: 'dnf install apt dpkg', Arch: 'pacman -S apt dpkg') and debian-archive-keyring"
  done
  [[ -r $DEBIAN_KEYRING ]] ||
    die "$DEBIAN_KEYRING is missing: install the package debian-archive-keyring"
}

# Reads Debian's package lists into a folder, as if nothing were installed.
private_lists() {
  local work=$1
  mkdir -p "$work"/{lists,archives}/partial "$work/empty"
  : >"$work/status"
  printf 'deb [signed-by=%s] %s %s main\n' \
    "$DEBIAN_KEYRING" "$FLEXVF_DEBIAN" bookworm \
    "$DEBIAN_KEYRING" "$FLEXVF_DEBIAN" bookworm-backports >"$work/sources.list"
  step "reading Debian's package lists"
  private_apt "$work" update
}

private_apt() {
  local work=$1
  shift
  # The machine's apt.conf stays in force, since it may name the proxy that leads out; its hooks,
  # which belong to the machine's own package state, do not.
  apt-get -qq -y \
    -o Dir::State="$work" -o Dir::State::lists="$work/lists" -o Dir::State::status="$work/status" \
    -o Dir::State::extended_states="$work/extended_states" \
    -o Dir::Cache="$work" -o Dir::Cache::archives="$work/archives" \
    -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= \
    -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts="$work/empty" \
    -o Dir::Etc::preferences=/dev/null -o Dir::Etc::preferencesparts="$work/empty" \
    -o Dir::Log="$work" -o APT::Sandbox::User= -o Debug::NoLocking=1 \
    -o APT::Architecture=amd64 -o APT::Architectures=amd64 \
    -o APT::Update::Post-Invoke-Success::= -o Acquire::Languages=none -o Acquire::Retries=3 \
    "$@" >&2
}
