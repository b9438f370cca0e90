#!/bin/sh
# Runs inside a container: which of NVIDIA's and the kernel's graphics nodes are there, who may open them, and which
# libraries of NVIDIA's are found. Changes nothing. No nvidia-smi: as root it makes the nodes that it misses.
# Output, a line each:
#   node PATH TYPE-MAJOR TYPE-MINOR MODE UID GID KIND   numbers in hexadecimal, KIND as `stat` has it
#   root PATH RESULT, user PATH RESULT                  ok, or why it can't be opened; user: nobody, in no other group
#   library PATH TARGET                                 what the loader takes, links followed
root=${HOMELAB_ROOT:-}
SHELL_OF_NOBODY=/bin/sh

# Run by each user once, with WHO PATH... as arguments. A shell's redirection would make a file where there is no node; dd opens for
# reading first, which makes nothing. What MIG's capabilities give is taken by reading alone.
OPEN=$(
  cat <<'END'
who=$1
shift
for path; do
  target=$path
  case $path in */nvidia-caps/*) target=/dev/null ;; esac
  if result=$(dd if="$path" of="$target" count=0 conv=notrunc 2>&1); then
    result=ok
  else
    result=$(printf '%s\n' "$result" | tail -n 1)
  fi
  printf '%s %s %s\n' "$who" "${path#"${HOMELAB_ROOT:-}"}" "${result##*: }"
done
END
)

as_nobody() {
  if setpriv --reuid 65534 --regid 65534 --clear-groups true 2>/dev/null; then
    setpriv --reuid 65534 --regid 65534 --clear-groups sh -c "$OPEN" sh user "$@"
  else # BusyBox's setpriv can't
    su nobody -s "$SHELL_OF_NOBODY" -c "$OPEN" sh user "$@"
  fi
}

nodes() { # PATH... - as the shell found them
  found=$(stat -c '%n %t %T %a %u %g %F' "$@" 2>/dev/null)
  set --
  while read -r path rest; do
    case $rest in *"character special file") ;; *) continue ;; esac
    printf 'node %s %s\n' "${path#"$root"}" "$rest"
    set -- "$@" "$path"
  done <<END
$found
END
  [ $# -gt 0 ] || return 0
  sh -c "$OPEN" sh root "$@"
  as_nobody "$@"
}

nodes "$root"/dev/nvidia* "$root"/dev/nvidia-caps/* "$root"/dev/dri/* "$root"/dev/kfd

for path in "$root"/usr/lib/libnvidia-ml.so.1 "$root"/usr/lib64/libnvidia-ml.so.1 "$root"/usr/lib/*/libnvidia-ml.so.1 \
  "$root"/usr/lib/*/nvidia/current/libnvidia-ml.so.1 "$root"/usr/local/lib/libnvidia-ml.so.1 "$root"/usr/lib/libcuda.so.1 \
  "$root"/usr/lib64/libcuda.so.1 "$root"/usr/lib/*/libcuda.so.1 "$root"/usr/lib/*/nvidia/current/libcuda.so.1 \
  "$root"/usr/local/lib/libcuda.so.1; do
  [ -e "$path" ] || continue
  target=$(readlink -f "$path")
  printf 'library %s %s\n' "${path#"$root"}" "${target#"$root"}"
done
