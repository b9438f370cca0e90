#!/usr/bin/env bash
# Tries what NVIDIA's stack is for, and says what came of it; it judges nothing (homelab/nvidia/verification.py does). Installs nothing, and leaves
# nothing behind: an image that it had to fetch goes again.
# Needs: files, progress, proxy, driver, engines/nvidia_smi, handover/rest
#
# Arguments: NVCC (path of the compiler to ask and to use, or nothing), PROGRAM (CUDA source that is compiled and run, or nothing),
# ENGINE (docker, containerd, podman, k3s, or nothing) and IMAGE, in which nvidia-smi is run; CDI (yes: give it the cards by their CDI names),
# UVM (yes: does an ordinary user get the devices?), LIBRARIES (sonames that are loaded, separated by spaces, or nothing), LOADER (the program
# that does), BARE (those of them that are loaded in the container, too), KERNEL_LOG (an extended regular expression: lines of the kernel's log that are passed
# on; empty: it isn't read), TIMEOUT (seconds, for all of it), PROXY (may hold a password).
# Verbs: verify.
# Answer: {"nvidiaSmi","nvcc","program","container","uvm","libraries": each {"status","output"}, or null where it wasn't asked for, "cdi" (a line for each
# specification of NVIDIA's cards that there is: its path, and the driver's versions of its libraries; null where it isn't used), "kernelLog", "loaded",
# "flavour","bootId","update" (how far an update of the driver is, lib/driver/trial.sh; empty: there is none)}. A status is the command's
# own; 124: it wasn't done in time; 127: there is no such program.

# Over pct exec and sudo the path may lack these.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin
FIELDS=index,name,uuid,driver_version,memory.total,pci.bus_id,pci.device_id
CONTAINER=homelab-verification
# A program's compiled code is cached in the user's home; nothing is to stay there.
export CUDA_CACHE_DISABLE=1

verify() {
  local smi nvcc=null program=null container=null uvm=null libraries=null
  take_lock
  need_rest
  DEADLINE=$((SECONDS + TIMEOUT))
  FOLDER=$STATE/verification # not below /tmp or /run, from which nothing can be started in places
  rm -rf "$FOLDER"
  mkdir -p "$FOLDER"
  part "nvidia-smi" ask_driver
  smi=$ANSWER
  [[ -z $NVCC ]] || { part "nvcc" limited "$ROOT$NVCC" --version && nvcc=$ANSWER; }
  [[ -z $PROGRAM ]] || { part "a CUDA program" compile_and_run && program=$ANSWER; }
  [[ $UVM != yes ]] || { part "the devices, for an ordinary user" open_devices && uvm=$ANSWER; }
  [[ -z $LIBRARIES ]] || { part "the driver's libraries" load_libraries && libraries=$ANSWER; }
  [[ -z $ENGINE ]] || { part "a container of $ENGINE" in_container && container=$ANSWER; }
  printf '{"nvidiaSmi":%s,"nvcc":%s,"program":%s,"container":%s,"uvm":%s,"libraries":%s,' "$smi" "$nvcc" "$program" "$container" "$uvm" "$libraries"
  printf '"cdi":%s,' "$([[ $CDI == yes ]] && json_string "$(specifications)" || printf null)"
  find_loaded
  printf '"kernelLog":%s,"loaded":%s,"flavour":%s,"bootId":%s,"update":%s}\n' "$(json_string "$(kernel_log)")" "$(json_string "$LOADED")" \
    "$(json_string "$LOADED_FLAVOUR")" "$(json_string "$(of_file "$ROOT/proc/sys/kernel/random/boot_id")")" "$(json_string "$(update_phase)")"
  rm -rf "$FOLDER"
  finish
}

# specifications - of two files that name the same card engines take the one in /run, which the toolkit's own service makes.
specifications() {
  local path
  for path in "$ROOT"/run/cdi/*.{yaml,json} "$ROOT"/etc/cdi/*.{yaml,json}; do
    ! grep -qs 'nvidia\.com/gpu' "$path" ||
      printf '%s %s\n' "${path#"$ROOT"}" "$(grep -oE '\.so\.[0-9]{3}(\.[0-9]+)+' "$path" | cut -c 5- | sort -u | paste -s -d ' ')"
  done
}

# part WHAT COMMAND... - sets ANSWER. A program that hangs in the driver can't be ended by any signal: it isn't waited for, then.
part() {
  local what=$1 status TEXT answered
  shift
  LEFT=$((DEADLINE > SECONDS ? DEADLINE - SECONDS : 1))
  exec {answered}< <(
    status=0
    "$@" >"$FOLDER/output" 2>&1 </dev/null || status=$?
    printf '%s\n' "$status"
  )
  told_from_now
  await_line "$answered" $((LEFT + 5)) tell_now_and_then "$what" || HEARD=124
  status=$HEARD
  exec {answered}<&-
  [[ $status != 137 ]] || status=124
  TEXT=$(tail -n 60 "$FOLDER/output") || :
  TEXT=${TEXT//$'\r'/$'\n'}
  cut_end "$TEXT"
  masked "$TEXT"
  log "$what: $([[ $status == 0 ]] && printf 'works' || printf 'status %s' "$status")"
  ANSWER="{\"status\":$status,\"output\":$(json_string "$TEXT")}"
}

# limited COMMAND... - within what is left of the time. What these scripts ignore, their children would, too.
limited() { timeout -k 2 "$LEFT" env --default-signal=TERM,HUP,PIPE "$@" {LOCK}>&-; }

# -- the driver ------------------------------------------------------------------------------------------------
# compute_cap is known to nvidia-smi of branch 510 and later.
ask_driver() {
  local status=0
  limited nvidia-smi "--query-gpu=$FIELDS,compute_cap" --format=csv || status=$?
  [[ $status == 0 ]] || ! grep -q '"compute_cap" is not a valid field' "$FOLDER/output" || {
    : >"$FOLDER/output"
    status=0
    limited nvidia-smi "--query-gpu=$FIELDS" --format=csv || status=$?
  }
  cp "$FOLDER/output" "$FOLDER/cards"
  return "$status"
}

# kernel_log - what the kernel has said that fits KERNEL_LOG; the end of much.
kernel_log() { [[ -z $KERNEL_LOG ]] || kernel_says | grep -iE "$KERNEL_LOG" | tail -n 1000 || :; }

# -- CUDA ------------------------------------------------------------------------------------------------------
compile_and_run() {
  local code=() capability
  printf '%s\n' "$PROGRAM" >"$FOLDER/program.cu"
  # Code for these very cards: what nvcc builds by default may be for others, and needs a driver that translates it.
  while read -r capability; do
    code+=("-gencode=arch=compute_${capability/./},code=sm_${capability/./}")
  done < <(sed -nE 's/^[0-9]+, .*, ([0-9]+\.[0-9]+)$/\1/p' "$FOLDER/cards" | sort -u)
  # It asks the host's compiler for much room; in a container of some, /tmp is small.
  TMPDIR=$FOLDER limited "$ROOT$NVCC" "${code[@]}" -o "$FOLDER/program" "$FOLDER/program.cu" || return
  limited "$FOLDER/program"
}

# -- an ordinary user ------------------------------------------------------------------------------------------
# Opened for reading and writing, as the driver's libraries do. dd opens, and makes nothing where there is nothing.
open_devices() {
  local path said status=0
  # Nothing loads nvidia-uvm before the first CUDA program; for an ordinary user nvidia-modprobe does it, which is setuid root.
  [[ -e $ROOT/dev/nvidia-uvm ]] || limited nvidia-modprobe -u -c 0 >/dev/null 2>&1 || :
  for path in "$ROOT/dev/nvidiactl" "$ROOT/dev/nvidia-uvm" "$ROOT"/dev/nvidia[0-9]*; do
    [[ $path != *'*' ]] || path=$ROOT/dev/nvidia0
    if said=$(limited setpriv --reuid 65534 --regid 65534 --clear-groups dd if="$path" of="$path" count=0 conv=notrunc status=none 2>&1); then
      said=opened
    else
      status=1 said=${said##*: }
    fi
    printf '%s: %s\n' "${path#"$ROOT"}" "${said:-no answer}"
  done
  return "$status"
}

# -- libraries ------------------------------------------------------------------------------------------------
# Perl is everywhere, but can't call what it has loaded.
# shellcheck disable=SC2016 # Perl's own variables
LOAD='require DynaLoader; for (@ARGV) { my $said = DynaLoader::dl_load_file($_) ? "loaded" : DynaLoader::dl_error(); $said =~ s/^\Q$_\E: //; $said =~ s/( at -e line|\0).*//s; print "$_: $said\n" }'

load_libraries() {
  local names status=0
  read -ra names <<<"$LIBRARIES"
  printf '%s\n' "$LOADER" >"$FOLDER/load_libraries.py"
  limited python3 -I -S -B "$FOLDER/load_libraries.py" "${names[@]}" || status=$?
  # No Python (127), or one without ctypes.
  if [[ $status == 127 || $status == 3 ]]; then
    : >"$FOLDER/output"
    status=0
    limited perl -e "$LOAD" "${names[@]}" || status=$?
  fi
  cp "$FOLDER/output" "$FOLDER/libraries"
  return "$status"
}

# found_libraries - those of BARE that load here: what the system hasn't, no container of it has.
found_libraries() {
  local name
  for name in $BARE; do
    ! grep -qsE "^${name//./\\.}: loaded" "$FOLDER/libraries" || printf '%s\n' "$name"
  done
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
