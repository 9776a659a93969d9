# Shared by the testbed's scripts; sourced, never run.
# shellcheck shell=bash

: "${FLEXVF_CACHE:=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/flexvf}"
: "${FLEXVF_DEBIAN:=http://deb.debian.org/debian}"
export FLEXVF_CACHE FLEXVF_DEBIAN
TESTBED=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
REPO=$(cd "$TESTBED/../.." && pwd)
# The static binaries of this project that run in the guests and in the emulated host.
: "${FLEXVF_BIN:=$REPO/target/x86_64-unknown-linux-gnu/release}"
# Of every guest's kernel. hvc0: the emulated serial port costs a millisecond a character under nested
# emulation.
: "${FLEXVF_GUEST_APPEND:=console=hvc0 8250.nr_uarts=0 quiet panic=-1 mitigations=off tsc=reliable ipv6.disable=1}"
export FLEXVF_BIN FLEXVF_GUEST_APPEND
readonly TESTBED REPO
readonly LIBS=usr/lib/x86_64-linux-gnu

# Progress goes to stderr, since stdout carries results: a folder's name, or the command's output.
step() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { step "error: $*"; exit 2; }

# Runs a program of the sysroot with the sysroot's own loader and libraries, so that the machine's
# distribution and glibc do not matter. Many links in it are absolute: name the file itself.
in_sysroot() {
  local root=$1 program=$2
  shift 2
  "$root/$LIBS/ld-linux-x86-64.so.2" --argv0 "${program##*/}" --library-path "$root/$LIBS" \
    "$root/$program" "$@"
}

# The sysroot's folder, made when it is missing.
sysroot() { "$TESTBED/packages"; }

# Unpacks modules and what they need from the sysroot into FOLDER/modules/NN-name.ko, numbered in
# the order to load them: an init then needs a loop over insmod, and no xz in emulation.
copy_modules() {
  local root=$1 folder=$2 version name path number=10
  shift 2
  version=$(<"$root/boot/version")
  mkdir -p "$folder/modules"
  for name; do
    for path in $(module_paths "$root/lib/modules/$version" "$name"); do
      name=${path##*/}
      name=${name%.ko.xz}
      [[ -z $(compgen -G "$folder/modules/*-$name.ko") ]] || continue
      in_sysroot "$root" usr/bin/xz -dc "$root/lib/modules/$version/$path" \
        >"$folder/modules/$number-$name.ko"
      number=$((number + 1))
    done
  done
}

# A module's dependencies, deepest first (depmod lists them last), then the module itself.
module_paths() {
  awk -F: -v name="/$2.ko.xz" '
    substr($1, length($1) - length(name) + 1) == name {
      for (i = split($2, needs, " "); i > 0; i--) print needs[i]
      print $1
    }' "$1/modules.dep" | grep . || die "the kernel has no module named '$2'"
}

# The start of an initramfs: an init, busybox and its commands (links made here, not at each boot),
# and modules.
initramfs_folder() {
  local root=$1 folder=$2 init=$3 applet
  shift 3
  mkdir -p "$folder"/{bin,dev,proc,sys,run,tmp}
  install "$root/bin/busybox" "$folder/bin/busybox"
  for applet in $("$root/bin/busybox" --list); do
    [[ $applet == busybox ]] || ln -s busybox "$folder/bin/$applet"
  done
  install "$init" "$folder/init"
  copy_modules "$root" "$folder" "$@"
}

# Packs a folder as an initramfs on stdout, uncompressed: unpacking costs more in emulation than
# reading. Names are sorted so that the same content gives the same bytes.
pack_initramfs() {
  local busybox=$1 folder=$2
  (cd "$folder" && find . -mindepth 1 | LC_ALL=C sort | "$busybox" cpio -o -H newc -R 0:0 2>/dev/null)
}

# Says whether KVM runs a kernel here. A /dev/kvm that creates VMs and cannot run them exists
# (some clouds), so it is tried by booting; the answer is kept until the machine restarts.
kvm_works() {
  local root=$1 answer console
  [[ -w /dev/kvm ]] || return 1
  answer=$FLEXVF_CACHE/kvm-$(<"/proc/sys/kernel/random/boot_id")
  if [[ ! -s $answer ]]; then
    step "trying whether KVM works here"
    # Without an initramfs the kernel gets to its first lines, panics, and QEMU ends.
    console=$(timeout -s KILL 20 "$root/flexvf-bin/qemu-system-x86_64" -accel kvm -cpu host -M q35 \
      -m 256 -nodefaults -display none -no-reboot -serial stdio -kernel "$root/boot/vmlinux" \
      -append 'console=ttyS0 panic=-1' </dev/null 2>&1 || true)
    if [[ $console == *'Linux version'* ]]; then echo yes; else echo no; fi >"$answer"
    step "KVM works here: $(<"$answer")"
  fi
  [[ $(<"$answer") == yes ]]
}

# Waits for a background child: its status is returned. After SECONDS, or when this script is told
# to end, the child is killed; what it started has to die with it (a pid namespace, a QEMU).
supervise() {
  local child=$1 seconds=$2 timer ended status=0
  sleep "$seconds" &
  timer=$!
  # shellcheck disable=SC2064  # the pids of now
  trap "end_both $child $timer; exit 130" INT
  # shellcheck disable=SC2064
  trap "end_both $child $timer; exit 143" TERM HUP
  wait -n -p ended "$child" "$timer" || status=$?
  trap - INT TERM HUP
  end_both "$child" "$timer"
  if [[ $ended == "$timer" ]]; then
    step "error: not done after $seconds s (--timeout)"
    status=124
  fi
  return "$status"
}

end_both() {
  kill -KILL "$@" 2>/dev/null || true
  wait "$@" 2>/dev/null || true
}

number() { [[ $2 =~ ^[0-9]{1,6}$ ]] || die "$1 takes a whole number, not '$2'"; }

# The network that a command finds in either testbed, around an uplink that exists already: see
# 'What a command finds' in scripts/README.md.
make_bridge() {
  local uplink=$1
  ip link set lo up
  # Stray neighbour discovery would spoil packet counts, and snooping would need a querier.
  # An address of its own, or it would take the lowest of its ports', which come and go.
  ip link add br0 address 52:54:00:77:00:03 type bridge stp_state 0 forward_delay 0 mcast_snooping 0
  ip link set "$uplink" up master br0
  ip link set br0 up
}

make_peer() {
  ip -n peer link set lo up
  ip -n peer addr add 10.77.0.1/24 dev peer0
  ip -n peer link set peer0 up
  # The kernel may take a second to notice the carrier, and drops what is sent before.
  local tries
  for ((tries = 0; tries < 50; tries++)); do
    [[ $(ip -n peer link show peer0) != *'state UP'* ]] || return 0
    sleep 0.1
  done
  die "the peer's interface got no carrier"
}

no_ipv6() {
  local file
  for file in /proc/sys/net/ipv6/conf/{all,default}/disable_ipv6; do
    [[ ! -e $file ]] || echo 1 >"$file"
  done
}

# The folder for logs and results, with the guests' image in it while a testbed runs. The image is
# made for each run, since it holds the binaries as they are now.
use_out_folder() {
  if [[ -n $1 ]]; then
    mkdir -p "$1"
    FLEXVF_OUT=$(cd "$1" && pwd)
    OUT_IS_OURS=no
    # Those of an earlier run would be taken for this one's.
    rm -f "$FLEXVF_OUT"/*.log
  else
    FLEXVF_OUT=$(mktemp -d "${TMPDIR:-/tmp}/flexvf-${0##*/}-XXXXXX")
    OUT_IS_OURS=yes
  fi
  FLEXVF_GUEST_INITRD=$FLEXVF_OUT/guest.cpio
  export FLEXVF_OUT FLEXVF_GUEST_INITRD
  trap leave_out_folder EXIT
  "$TESTBED/guest-image" "$FLEXVF_GUEST_INITRD"
}

leave_out_folder() {
  rm -f "$FLEXVF_GUEST_INITRD"
  [[ $OUT_IS_OURS == no ]] || rmdir --ignore-fail-on-non-empty "$FLEXVF_OUT" 2>/dev/null || true
}

# A temporary folder goes when all went well; else its name is told.
release_out_folder() {
  rm -f "$FLEXVF_GUEST_INITRD"
  if [[ $1 -ne 0 && -n $(ls "$FLEXVF_OUT") ]]; then
    step "ended with status $1; logs are in $FLEXVF_OUT"
  elif [[ $OUT_IS_OURS == yes ]]; then
    rm -rf "$FLEXVF_OUT"
  fi
}
