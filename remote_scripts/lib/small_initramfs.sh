#!/usr/bin/env bash
# A small initramfs for a VM that is started with the host's own kernel: a shell, mount, their libraries, and an /init. Sent
# with passthrough_test.sh alone, whose FOLDER, KERNEL and INIT it takes; makes FOLDER/initrd.img.
# Needs: common
#
# Gives: make_small_initramfs.

make_small_initramfs() {
  [[ -r $ROOT$KERNEL ]] || die "the running kernel's image, which the test VM starts" "no $KERNEL" \
    "its package was removed since the host was started" "reboot the host into an installed kernel, then run \`pulumi up\` again"
  mkdir -p "$ROOT$FOLDER"
  chmod 0700 "$ROOT$FOLDER"
  find_programs
  archive | gzip -n -1 >"$ROOT$FOLDER/initrd.img"
}

# find_programs - sets SHELL_FILE and MOUNT_FILE (empty: the shell is a busybox, which is mount too), LIBRARIES.
find_programs() {
  local busybox program found applets=''
  busybox=$(type -P busybox) || busybox=''
  MOUNT_FILE=''
  LIBRARIES=()
  [[ -z $busybox ]] || applets=" $("$busybox" --list | tr '\n' ' ') "
  if [[ $applets == *" mount "* && $applets == *" sh "* ]]; then
    SHELL_FILE=$busybox
  else
    SHELL_FILE=$(type -P sh) || SHELL_FILE=''
    MOUNT_FILE=$(type -P mount) || MOUNT_FILE=''
    [[ -n $SHELL_FILE && -n $MOUNT_FILE ]] || die "busybox, or sh and mount, for the test VM's initramfs" \
      "neither on the PATH" "the VM needs a shell to say what it sees" "apt install busybox"
  fi
  for program in "$SHELL_FILE" ${MOUNT_FILE:+"$MOUNT_FILE"}; do
    found=$(ldd "$program" 2>&1) || found='' # a program without libraries: nothing to add
    [[ $found != *"not found"* ]] || die "every library of $program" "$found" \
      "it would not start in the test VM" "reinstall its package: dpkg -S $program"
    mapfile -t -O "${#LIBRARIES[@]}" LIBRARIES < <(awk '{ for (i = 1; i <= NF; i++) if ($i ~ /^\//) print $i }' <<<"$found")
  done
}

# archive - a cpio archive in the "newc" format (kernel: Documentation/driver-api/early-userspace/buffer-format.rst), written
# here because entries need neither a tree of copies nor root that way. /dev/console is in the kernel's own initramfs.
archive() {
  local library
  declare -A MADE=()
  folders bin proc sys dev
  entry init 100755 "$((${#INIT} + 1))" <<<"$INIT"
  program bin/sh "$SHELL_FILE"
  if [[ -n $MOUNT_FILE ]]; then
    program bin/mount "$MOUNT_FILE"
  else
    entry bin/mount 120777 2 < <(printf sh) # busybox is what it is called
  fi
  for library in "${LIBRARIES[@]}"; do
    [[ -z ${MADE[$library]:-} ]] || continue
    MADE[$library]=yes
    folders "${library%/*}"
    program "${library#/}" "$library"
  done
  entry TRAILER!!! 0 0 </dev/null
}

folders() { # PATH... - each with those above it, once
  local path part whole parts
  for path in "$@"; do
    whole=''
    IFS=/ read -ra parts <<<"${path#/}"
    for part in "${parts[@]}"; do
      whole+=${whole:+/}$part
      [[ -n ${MADE[$whole]:-} ]] || entry "$whole" 40755 0 </dev/null
      MADE[$whole]=yes
    done
  done
}

program() { # NAME FILE
  local size
  size=$(stat -Lc %s "$2")
  entry "$1" 100755 "$size" <"$2"
}

entry() { # NAME MODE SIZE; its content on standard input
  printf '070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\0' 0 "0$2" 0 0 1 0 "$3" 0 0 0 0 "$((${#1} + 1))" 0 "$1"
  pad "$((110 + ${#1} + 1))"
  cat
  pad "$3"
}

pad() { head -c "$((-$1 & 3))" /dev/zero; } # to the next multiple of four
