#!/usr/bin/env bash
# jetson/prepare.sh: make a Jetson ready for a long stream. Without an option, and with --dry-run, it only shows.
#   --dry-run        show what is, and what --apply would do (the default)
#   --apply          do it; what was before is recorded first
#   --undo           restore what --apply recorded
#   --mode NAME      power mode by its name in /etc/nvpmodel.conf (default: the one that begins with MAXN)
#   --no-clocks      leave the clocks to their governors: cooler, and first tokens vary more
#   --keep-zram      leave compressed swap on
# Done: power mode (nvpmodel), clocks at their highest (jetson_clocks), zram off (it compresses memory that is already
# quantised, and hides a process that outgrows its cap), vm.swappiness 10. All but the power mode end with a reboot.
# MOSAIC_PREPARE_ROOT=DIR reads and writes files below DIR instead of / (for tests).
set -euo pipefail

root=${MOSAIC_PREPARE_ROOT:-}
state=$root/var/lib/mosaic-edge-prepare
wanted_swappiness=10
action=show mode='' clocks=1 zram=1

die() { printf 'prepare.sh: %s\n' "$*" >&2; exit 1; }
usage() { printf 'prepare.sh: %s\n' "$*" >&2; exit 2; }
say() { printf '%s\n' "$*"; }

while [ $# -gt 0 ]; do
  case $1 in
    --dry-run) action=show ;;
    --apply) action=apply ;;
    --undo) action=undo ;;
    --mode) [ $# -gt 1 ] || usage "--mode needs a name"; mode=$2; shift ;;
    --no-clocks) clocks=0 ;;
    --keep-zram) zram=0 ;;
    -h | --help) sed -n '2,11s/^# //p' "$0"; exit 0 ;;
    *) usage "got '$1', expected --dry-run, --apply, --undo, --mode NAME, --no-clocks or --keep-zram" ;;
  esac
  shift
done

have() { command -v "$1" >/dev/null; }
# do_it COMMAND...: run it under --apply and --undo, else show it.
do_it() {
  if [ "$action" = show ]; then
    say "  would run: $*"
  else
    say "  running: $*"
    "$@"
  fi
}
# set_file FILE VALUE: the same for a file below /proc.
set_file() {
  if [ "$action" = show ]; then
    say "  would write: $2 to $1"
  else
    say "  writing: $2 to $1"
    printf '%s\n' "$2" >"$root$1"
  fi
}
field() { awk -v name="$1:" '$1 == name { print int($2 / 1024) }' "$root/proc/meminfo"; } # MiB
zram_devices() { awk '$1 ~ /^\/dev\/zram/ { print $1, $5 }' "$root/proc/swaps"; }
# The line "< POWER_MODEL ID=2 NAME=MAXN_SUPER >" as "2 MAXN_SUPER".
modes() { sed -nE 's/^< *POWER_MODEL +ID=([0-9]+) +NAME=([^ >]+).*/\1 \2/p' "$root/etc/nvpmodel.conf"; }
current_mode() { nvpmodel -q 2>/dev/null | awk '/^[0-9]+$/ { print; exit }'; }

show_checks() {
  local available cached total
  total=$(field MemTotal) available=$(field MemAvailable) cached=$(field Cached)
  say "memory: $available MiB available of $total MiB; $cached MiB of it page cache, which the kernel gives back when asked"
  if [ "$available" -lt $((total / 2)) ]; then
    say "  less than half is available: stop the desktop (systemctl set-default multi-user.target) or lower memory="
  fi
  if [ "$cached" -gt $((total / 3)) ]; then
    say "  CUDA counts page cache as taken: after large copies, sync and write 1 to /proc/sys/vm/drop_caches"
  fi
}

undo() {
  [ -d "$state" ] || die "nothing is recorded in $state: --apply was not run, or was undone"
  local device priority
  if [ -e "$state/mode" ]; then
    say "power mode: back to $(cat "$state/mode")"
    do_it nvpmodel -m "$(cat "$state/mode")"
  fi
  if [ -e "$state/clocks" ]; then
    say "clocks: back to what was"
    do_it jetson_clocks --restore "$state/clocks"
  fi
  if [ -e "$state/zram" ]; then
    say "zram: on again"
    while read -r device priority; do
      # After a reboot it is on already.
      grep -q "^$device " "$root/proc/swaps" || do_it swapon -p "$priority" "$device"
    done <"$state/zram"
  fi
  if [ -e "$state/swappiness" ]; then
    say "swappiness: back to $(cat "$state/swappiness")"
    set_file /proc/sys/vm/swappiness "$(cat "$state/swappiness")"
  fi
  rm -rf "$state"
}

# record NAME VALUE: what was, once; a second --apply must not record what the first one did.
record() {
  [ "$action" = apply ] || return 0
  mkdir -p "$state"
  [ -e "$state/$1" ] || printf '%s\n' "$2" >"$state/$1"
}

prepare() {
  local id='' now device priority swappiness
  # Stored under the mode that was: --undo goes back to the mode first, then to its clocks.
  if [ "$clocks" = 1 ] && have jetson_clocks && [ ! -e "$state/clocks" ]; then
    [ "$action" = show ] || mkdir -p "$state"
    say "clocks as they are"
    do_it jetson_clocks --store "$state/clocks"
  fi
  say "power mode"
  if have nvpmodel && [ -r "$root/etc/nvpmodel.conf" ]; then
    now=$(current_mode)
    if [ -n "$mode" ]; then
      id=$(modes | awk -v name="$mode" '$2 == name { print $1 }')
      [ -n "$id" ] || die "--mode $mode: this board has $(modes | awk '{ printf "%s ", $2 }')"
    else
      read -r id _ < <(modes | awk '$2 ~ /^MAXN/ { print; exit }') || true
    fi
    if [ -z "$id" ]; then
      say "  no mode begins with MAXN: left at $now; --mode takes one of $(modes | awk '{ printf "%s ", $2 }')"
    elif [ "$id" = "$now" ]; then
      say "  already $now ($(modes | awk -v id="$id" '$1 == id { print $2 }'))"
    else
      record mode "$now"
      # A mode that switches cores or GPU units asks for a reboot; without an answer it is refused.
      do_it nvpmodel -m "$id" </dev/null || die "nvpmodel -m $id was refused; if it needs a reboot, run it by hand first"
    fi
  else
    say "  no nvpmodel here: this is not a Jetson, or a container"
  fi
  say "clocks"
  if [ "$clocks" = 0 ]; then
    say "  left to their governors (--no-clocks)"
  elif have jetson_clocks; then
    do_it jetson_clocks
  else
    say "  no jetson_clocks here"
  fi
  say "swap"
  if [ "$zram" = 0 ]; then
    say "  zram left as it is (--keep-zram)"
  elif [ -z "$(zram_devices)" ]; then
    say "  no zram is on"
  else
    record zram "$(zram_devices)"
    while read -r device priority; do
      do_it swapoff "$device"
    done < <(zram_devices)
  fi
  swappiness=$(cat "$root/proc/sys/vm/swappiness")
  if [ "$swappiness" -le "$wanted_swappiness" ]; then
    say "  vm.swappiness is $swappiness already"
  else
    record swappiness "$swappiness"
    set_file /proc/sys/vm/swappiness "$wanted_swappiness"
  fi
}

if [ "$action" != show ] && [ -z "$root" ] && [ "$(id -u)" != 0 ]; then
  die "--$action changes the system: run it with sudo"
fi
[ -r "$root/proc/meminfo" ] || die "no /proc/meminfo: not Linux"
show_checks
if [ "$action" = undo ]; then
  undo
else
  prepare
fi
case $action in
  show) say "nothing was changed; --apply does it, --undo restores it" ;;
  apply) say "done; --undo restores what was" ;;
  undo) say "undone" ;;
esac
