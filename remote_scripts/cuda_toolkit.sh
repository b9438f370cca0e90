#!/usr/bin/env bash
# CUDA's toolkit of one release, without a driver, and the libraries beside it (cuDNN, NCCL).
# Needs: packages
#
# Arguments: PACKAGES (NAME or NAME=PATTERN, separated by spaces), BESIDE (the same, of the libraries), RELEASE (12.8 or 12.8.1), NVCC (path of its compiler), those of packages.sh,
# GENERATION (no part in what happens).
# Changes: the packages; /etc/profile.d/homelab-cuda.sh, so that a login finds nvcc. Packages of another release that this program added go,
# once the wanted one is there. A toolkit that somebody installed without packages is left as it is.
# Undone by `revert`: exactly the packages and files that were added; what others need by now stays, and is said.
# Verbs: apply, revert.
# Answer: {"release","nvcc","packages": added and there,"changed"}; of `revert` {"changed","kept"}.

PROFILE=/etc/profile.d/homelab-cuda.sh
DOING="CUDA toolkit ${RELEASE:-}"

apply() {
  local packages beside release short
  read -ra packages <<<"$PACKAGES"
  read -ra beside <<<"$BESIDE"
  short=$RELEASE
  [[ ! $RELEASE =~ ^[^.]*\.[^.]* ]] || short=${BASH_REMATCH[0]}
  take_lock
  read_installed
  if is_somebodys "$short"; then
    log "note: CUDA $short is there, and not from packages: left as it is"
  else
    without_driver "${packages[@]}"
    install_packages cuda no "${packages[@]}"
    drop_other_releases "${short/./-}"
  fi
  # Also beside a toolkit of somebody's.
  if ((${#beside[@]} > 0)); then
    without_driver "${beside[@]}"
    install_packages cuda no "${beside[@]}"
  fi
  drop_libraries "${beside[@]%%=*}"
  release=$(release_of_nvcc)
  [[ $release == "$short" ]] || die "$NAME: $NVCC of CUDA $short" "${release:-no release: $(nvcc_says)}" \
    "programs are compiled with it" "\`apt-get install --reinstall cuda-nvcc-${short/./-}\` there, then run \`pulumi up\` again"
  # shellcheck disable=SC2016 # for the shell that logs in
  put_file cuda "$PROFILE" 0644 "# Written by homelab, which takes it away again (pulumi destroy)."$'\n'"PATH=${NVCC%/*}"'${PATH:+:$PATH}'
  step_done cuda
  finish
  printf '{"release":"%s","nvcc":%s,"packages":%s,"changed":"%s"}\n' "$release" "$(json_string "$NVCC")" "$(packages_json cuda)" "$CHANGED"
}

revert() {
  take_lock
  ! is_anothers_step cuda || { leave_untouched && return; }
  drop_file cuda "$PROFILE"
  remove_packages cuda
  step_undone cuda
  finish
  printf '{"changed":"%s","kept":%s}\n' "$CHANGED" "$(json_list "${KEPT[@]}")"
}

nvcc_says() { "$ROOT$NVCC" --version 2>&1 </dev/null | tail -n 3 || :; }
release_of_nvcc() { nvcc_says | sed -nE 's/.*release ([0-9]+\.[0-9]+).*/\1/p'; }

# is_somebodys RELEASE - NVIDIA's installer puts a toolkit to the same place as the packages do. Half of a package may be there after a kill.
is_somebodys() {
  local package=cuda-nvcc-${1/./-}
  [[ -x $ROOT$NVCC && -z ${PRESENT[$package]:-} && $(release_of_nvcc) == "$1" ]] || return 1
  # An update (12.8.1) is told by version.json alone.
  [[ $RELEASE == "$1" ]] || grep -qsF "\"$RELEASE\"" "$ROOT${NVCC%/bin/nvcc}/version.json"
}

# without_driver PACKAGE... - dies if apt would install, change or remove anything of a driver or a kernel for these.
without_driver() {
  local package missing=() file=$LOGS/apt against
  for package in "$@"; do is_whole "$package" || missing+=("$package"); done
  ((${#missing[@]} > 0)) || return 0
  repair_packages
  simulated "$file" install --allow-downgrades --no-install-recommends "${missing[@]}" || explain_install "$file" "${missing[*]}"
  against=$(announced "$file" | cut -f 1 | while read -r package; do ! is_of_driver "$package" || printf '%s\n' "$package"; done)
  [[ -z $against ]] || die "$NAME: CUDA's toolkit without a driver (${missing[*]})" "apt would also change: ${against//$'\n'/ }" \
    "the driver is what nvidia.driver says; another one beside it, or in its place, doesn't fit the loaded module" \
    "see \`apt-get -s install ${missing[*]}\`; packages of other repositories may be in the way (\`apt-cache policy ${against%%$'\n'*}\`)"
}

is_of_driver() {
  case $1 in
    libnvidia-container* | nvidia-container*) return 1 ;;
    nvidia-cuda-* | nvidia-nsight* | nvidia-visual-profiler) return 1 ;;
    cuda-drivers* | libcuda1 | libcudadebugger1 | libnvcuvid1 | libnvoptix1) return 0 ;;
    nvidia-* | libnvidia-* | firmware-nvidia-* | xserver-xorg-video-nvidia*) return 0 ;;
    linux-image-* | linux-modules-* | linux-objects-nvidia-* | linux-signatures-nvidia-* | proxmox-kernel-* | pve-kernel-*) return 0 ;;
    *) return 1 ;;
  esac
}

# drop_other_releases 12-8 - packages that this program added for another release.
drop_other_releases() {
  local name others=()
  read_record cuda
  for name in "${!NOW[@]}"; do
    [[ ${NOW[$name]} == - || ${BEFORE[$name]} != - || ! $name =~ -([0-9]+-[0-9]+)(-|$) || ${BASH_REMATCH[1]} == "$1" ]] || others+=("$name")
  done
  ((${#others[@]} == 0)) || repair_packages
  drop_packages cuda "another release" "another release of CUDA is wanted" "${others[@]}"
}

# drop_libraries NAME... - packages of cuDNN and NCCL that we added, but for these and what they need.
drop_libraries() {
  local name wanted=" $* " others=()
  read_installed
  read_record cuda
  for name in "${!NOW[@]}"; do
    [[ ${NOW[$name]} == - || ${BEFORE[$name]} != - || ! $name =~ ^lib(cudnn|nccl) || $wanted == *" $name "* ]] || others+=("$name")
  done
  drop_packages cuda "what is no longer wanted beside CUDA" "the settings leave them out, or want another release of CUDA" "${others[@]}"
}

main() {
  "$1" </dev/null
  exit
}

# Not where this file is sourced; what is read from standard input has no name.
if [[ ${BASH_SOURCE[0]-$0} == "$0" ]]; then
  main "$@"
fi
