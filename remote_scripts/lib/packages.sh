#!/usr/bin/env bash
# Packages and downloads: what a layer adds is recorded, and taken away again.
#
# Arguments: NAME (the system, for messages), SYMPTOMS (known failures, a line each; see `explain`), PROXY (may hold a password), LOCK_SECONDS,
# DOWNLOAD_SECONDS, INSTALL_SECONDS (nvidia.timeouts).
# STATE/packages/<layer>: a line for each package that the layer added, changed or removed: NAME, VERSION NOW, VERSION BEFORE, mark
# before (auto or manual), separated by tabs; `-` for a package that isn't there. It is written before apt is called, so that a run which is
# killed leaves nothing unknown behind, and brought to what really is there at the end of a run.
# Over pct exec and sudo the path may lack these.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin
LOGS=$RUN               # logs of the commands of this run
UPDATE_LOG=$LOGS/update # what apt-get update complained of, where it did
MAY_REMOVE=             # a regular expression: what an installation may remove, besides what this program added
KEPT=()                 # of `remove_packages`: what it left, as others need it
export DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 APT_LISTCHANGES_FRONTEND=none

# -- running and explaining ------------------------------------------------------------------------------------
# masked TEXT - without the proxy's user and password.
masked() {
  local text=$1 user
  if [[ ${PROXY:-} == *@* ]]; then
    user=${PROXY%@*} user=${user#*://}
    text=${text//"$user"/(secret)}
    [[ $user != *:?* ]] || text=${text//"${user#*:}"/(secret)}
  fi
  printf '%s' "$text"
}

# with_proxy COMMAND... - in this program's environment alone, never on a command line.
with_proxy() {
  if [[ -n ${PROXY:-} ]]; then
    http_proxy=$PROXY https_proxy=$PROXY "$@"
  else
    "$@"
  fi
}

# run_streamed SECONDS LOG COMMAND... - each line goes to LOG, and to stderr as it comes. The command writes to the file alone, so that it
# doesn't notice when the client has gone. The lock is taken (take_lock). Status 124: it took longer than SECONDS, and was ended.
run_streamed() {
  local seconds=$1 file=$2 status=0 child reader
  shift 2
  : >"$file"
  # What a script ignores its children ignore, too: `timeout` could end none of them, and maintainers' scripts count on SIGPIPE.
  with_proxy holding_lock "$file" timeout -k 30 "$seconds" env --default-signal=TERM,PIPE "$@" &
  child=$!
  tail -n +1 -s 0.1 -f --pid="$child" "$file" 2>/dev/null | stream &
  reader=$!
  wait "$child" || status=$?
  wait "$reader" || :
  [[ $status != 124 && $status != 137 ]] || printf 'ended after %s s\n' "$seconds" >>"$file"
  return "$status"
}

# stream - the lines of standard input into the log; of those that were written over (dpkg's counting) the last state.
stream() {
  local line
  while IFS= read -r line; do
    line=${line%$'\r'}
    log "$(masked "${line##*$'\r'}")"
  done
}

# recognise LOG - sets SYMPTOM: name, wanted, found, why and next of the first known failure that LOG has; nothing where it has none.
# SYMPTOMS has a line for each: name, Perl's regular expression, where, wanted, why, next, names of those that it hides; tabs between.
recognise() {
  local answer
  SYMPTOM=()
  answer=$(SYMPTOMS=${SYMPTOMS:-} perl -e '
    local $/; my $text = join "", <STDIN>; $text =~ s{^Waiting for cache lock.*\n}{}mg; my (%found, %hidden, @order);
    for (split /\n/, $ENV{SYMPTOMS}) {
      my ($name, $pattern, $where, $wanted, $why, $next, $hides) = split /\t/, $_, -1;
      next unless $text =~ /$pattern/i;
      my ($what, $from, $to) = ($+{what} // "", $-[0], $+[0]);
      my $start = rindex($text, "\n", $from - 1) + 1; $start = 0 if $from == 0;
      my $end = index($text, "\n", $to); $end = length $text if $end < 0;
      my $line = join " ", split " ", substr($text, $start, $end - $start);
      $line = substr($line, 0, 240) . "..." if length $line > 240;
      s/\{what\}/$what/g for $wanted, $why, $next;
      $hidden{$_} = 1 for split / /, $hides;
      push @order, [$name, $wanted, "$where: $line", $why, $next];
    }
    for (@order) { next if $hidden{$_->[0]}; print join "\n", @$_[0 .. 4]; last }' <"$1") || answer=
  [[ -z $answer ]] || mapfile -t SYMPTOM <<<"$answer"
}

# explain LOG WANTED WHY [NEXT] - ends the run with the message of the first known failure that LOG has, else with LOG's last lines.
explain() {
  recognise "$1"
  if ((${#SYMPTOM[@]} > 0)); then
    die "${SYMPTOM[1]}" "$(masked "${SYMPTOM[2]}")$(build_log "$1")" "${SYMPTOM[3]}" "${SYMPTOM[4]}"
  fi
  # shellcheck disable=SC2016 # meant literally
  [[ $(tail -n 1 "$1") != "ended after "* ]] ||
    set -- "${@:1:3}" 'run `pulumi up` again: it goes on from what is there; a slow line or system gets longer with nvidia.timeouts.install'
  die "$2" "$(masked "$(tail -n 8 "$1")")$(build_log "$1")" "$3" "${4:-mend what the lines above say, then run \`pulumi up\` again}"
}

# build_log LOG - the end of the compiler's output, or of the installer's own log, where LOG names that.
build_log() {
  local file
  while IFS= read -r file; do
    [[ -r $ROOT$file ]] || continue
    printf '\n%s ends:\n%s' "$file" "$(tail -n 12 "$ROOT$file")"
    return 0
  done < <(grep -oE '/var/lib/dkms/[^ ]+/make\.log|/var/log/nvidia-installer\.log' "$1" | sort -u)
}

# -- apt -------------------------------------------------------------------------------------------------------
# locked LOG - did a command fail as another one holds apt's or dpkg's lock? That it has waited for one is no failure.
locked() { grep -qE '^(E|Error|dpkg): .*(Could not get lock|Unable to (acquire the dpkg frontend lock|lock directory)|lock was locked by)' "$1"; }

# run_apt LOG COMMAND... - waits for others' locks: apt-get itself for dpkg's, this function for those that it doesn't wait for.
run_apt() {
  local file=$1 until=$((SECONDS + ${LOCK_SECONDS:-600})) status said=''
  shift
  while :; do
    status=0
    run_streamed "${INSTALL_SECONDS:-3600}" "$file" "$@" || status=$?
    [[ $status != 0 ]] && locked "$file" && ((SECONDS < until)) || return "$status"
    [[ -n $said ]] || log "waiting up to ${LOCK_SECONDS:-600} s for: $(grep -m1 -E 'lock' "$file")"
    said=yes
    sleep 1
  done
}

# apt_get LOG ARGUMENT... - apt-get that asks nothing and keeps everybody's configuration.
apt_get() {
  local file=$1
  shift
  run_apt "$file" apt-get -y -q -o "DPkg::Lock::Timeout=${LOCK_SECONDS:-600}" -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 \
    -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold "$@"
}

# apt_update [URL...] - the lists of all repositories; it fails only if one of URL (the beginning of an address) can't be had, or none can:
# somebody's other repository that is out of order, such as pve-enterprise without a subscription, isn't ours to mend.
apt_update() {
  local status=0 url file=$LOGS/apt
  log "fetching the lists of packages"
  apt_get "$file" update -o APT::Update::Error-Mode=any || status=$?
  rm -f "$UPDATE_LOG"
  [[ $status != 0 ]] || return 0
  grep -E '^(E|W|Err|Error|Warning)[: ]|^ ' "$file" >"$UPDATE_LOG" || cp "$file" "$UPDATE_LOG"
  if ((status >= 124)) || locked "$file" || grep -qE 'sources could not be read|No space left' "$file"; then
    explain "$file" "the lists of packages, by apt-get update" "packages are installed from them"
  fi
  for url in "$@"; do
    # The lines that are about this repository, and those that continue them.
    awk -v url="$url" '/^(E|W|Err|Error|Warning)[: ]/ { mine = index($0, url) > 0 } mine && /^(E|W|Err|Error|Warning)[: ]|^[[:space:]]/' "$file" >"$LOGS/mine"
    [[ ! -s $LOGS/mine ]] || explain "$LOGS/mine" "the list of packages of $url" "what is wanted comes from there"
  done
  log "not all lists could be fetched; those that are needed here are there"
}

# package_version NAME - the version of a package that is wholly installed; nothing for any other.
package_version() { dpkg-query -W -f='${db:Status-Status} ${Version}\n' "$1" 2>/dev/null | sed -n 's/^installed //p' || :; }

# read_installed - PRESENT[name] = version of what is there, configured or not; WHOLE[name] = version of what is wholly installed; LEFT[name]:
# removed, with its configuration left.
read_installed() {
  local name version state
  declare -gA PRESENT=() WHOLE=() LEFT=()
  while IFS=$'\t' read -r name state version; do
    case $state in
      installed) WHOLE[$name]=$version PRESENT[$name]=$version ;;
      config-files) LEFT[$name]=yes ;;
      not-installed) ;;
      *) PRESENT[$name]=$version ;;
    esac
  done < <(dpkg-query -W -f='${Package}\t${db:Status-Status}\t${Version}\n')
}

# is_whole NAME[=PATTERN] - after `read_installed`: is it installed, at such a version?
is_whole() {
  local name=${1%%=*} pattern='*'
  [[ $1 != *=* ]] || pattern=${1#*=}
  # shellcheck disable=SC2053 # a pattern, as apt takes it
  [[ -n ${WHOLE[$name]:-} && ${WHOLE[$name]} == $pattern ]]
}

# repair_packages - what an interrupted dpkg has left, before anything is added. What it can't repair the next step may replace.
repair_packages() {
  local file=$LOGS/repair
  [[ -n $(dpkg --audit 2>/dev/null) ]] || return 0
  log "packages are half installed: repairing that first"
  run_apt "$file" dpkg --configure -a --force-confdef --force-confold && return 0
  apt_get "$file" install -f --no-remove || log "that didn't repair all of it"
}

# -- what a layer changed --------------------------------------------------------------------------------------
record_of() { printf '%s/packages/%s' "$STATE" "$1"; }

# read_record LAYER - NOW[name], BEFORE[name], MARK[name].
read_record() {
  local name now before mark
  declare -gA NOW=() BEFORE=() MARK=()
  [[ -f $(record_of "$1") ]] || return 0
  while IFS=$'\t' read -r name now before mark; do
    NOW[$name]=$now BEFORE[$name]=$before MARK[$name]=$mark
  done <"$(record_of "$1")"
}

# write_record LAYER
write_record() {
  local name record
  if ((${#NOW[@]} == 0)); then
    remove_file "/var/lib/homelab/packages/$1"
    return 0
  fi
  need_dir "$STATE/packages"
  record=$(for name in "${!NOW[@]}"; do
    printf '%s\t%s\t%s\t%s\n' "$name" "${NOW[$name]}" "${BEFORE[$name]}" "${MARK[$name]}"
  done | sort) || return 1
  printf '%s\n' "$record" | write_atomically "/var/lib/homelab/packages/$1" 0600
}

# settle_record LAYER - after `read_installed`: the record says what there is; what is as it was before the layer isn't in it.
settle_record() {
  local name
  read_record "$1"
  for name in "${!NOW[@]}"; do
    NOW[$name]=${PRESENT[$name]:--}
    # What is left of one that was removed for another of ours is purged with the rest.
    [[ ${NOW[$name]} != "${BEFORE[$name]}" || -n ${LEFT[$name]:-} ]] || unset "NOW[$name]"
  done
  write_record "$1"
}

# packages_of LAYER - what it added or changed and is there.
packages_of() { [[ ! -f $(record_of "$1") ]] || awk -F'\t' '$2 != "-" { print $1 }' "$(record_of "$1")"; }

# packages_json LAYER - the same as a JSON list.
packages_json() {
  local found=()
  mapfile -t found < <(packages_of "$1")
  json_list "${found[@]}"
}

# is_ours NAME - did some layer of ours add it?
is_ours() { [[ -d $STATE/packages ]] && awk -F'\t' -v name="$1" '$1 == name && $3 == "-" { found = 1 } END { exit !found }' "$STATE/packages"/*; }

# record_change LAYER SIMULATION - adds what `apt-get -s` has announced.
record_change() {
  local name old new manual
  read_record "$1"
  manual=$(apt-mark showmanual)
  while IFS=$'\t' read -r name old new; do
    if [[ -z ${NOW[$name]:-} ]]; then
      BEFORE[$name]=$old MARK[$name]=auto
      [[ $'\n'$manual$'\n' != *$'\n'$name$'\n'* ]] || MARK[$name]=manual
    fi
    NOW[$name]=$new
  done < <(announced "$2")
  write_record "$1"
}

# announced SIMULATION - a line for each package that changes: NAME, VERSION BEFORE, VERSION AFTER.
announced() {
  awk -v OFS='\t' '
    $1 == "Inst" { old = "-"; n = 3; if ($3 ~ /^\[/) { old = substr($3, 2, length($3) - 2); n = 4 } print $2, old, substr($n, 2) }
    ($1 == "Remv" || $1 == "Purg") && !seen[$2]++ { old = $3; gsub(/[][]/, "", old); print $2, old, "-" }' "$1"
}

# simulated LOG ARGUMENT... - what apt-get would do.
simulated() {
  local file=$1
  shift
  apt-get -s -q "$@" >"$file" 2>&1 </dev/null
}

# require_others_kept SIMULATION WHAT - nothing may be removed but what is ours, or fits MAY_REMOVE.
require_others_kept() {
  local name against=()
  while read -r name; do
    [[ -n $MAY_REMOVE && $name =~ $MAY_REMOVE ]] || is_ours "$name" || against+=("$name")
  done < <(awk '$1 == "Remv" || $1 == "Purg" { print $2 }' "$1" | sort -u)
  ((${#against[@]} == 0)) || die "$2" "${against[*]} would be removed for it" "they aren't this program's to remove" \
    "remove what is in the way yourself (\`apt-get remove ${against[*]}\`), then run \`pulumi up\` again"
}

# -- installing and removing -----------------------------------------------------------------------------------
# install_packages LAYER yes|no NAME[=VERSION]... - `yes`: with what they recommend. VERSION may be a pattern. What is there at its version
# stays untouched, and nobody else's packages are removed (see MAY_REMOVE); a version may go down. Sets CHANGED.
install_packages() {
  local layer=$1 recommends=$2 package missing=() options=() file=$LOGS/apt
  shift 2
  read_installed
  for package in "$@"; do is_whole "$package" || missing+=("$package"); done
  if ((${#missing[@]} == 0)); then
    settle_record "$layer"
    return 0
  fi
  repair_packages
  [[ $recommends == yes ]] || options=(--no-install-recommends)
  simulated "$file" install --allow-downgrades "${options[@]}" "${missing[@]}" || explain_install "$file" "${missing[*]}"
  require_others_kept "$file" "to install ${missing[*]}"
  record_change "$layer" "$file"
  CHANGED=yes
  log "installing ${missing[*]}"
  # It fetches gigabytes, too: a slow line mustn't end it while it unpacks.
  if ! INSTALL_SECONDS=$((${DOWNLOAD_SECONDS:-1800} + ${INSTALL_SECONDS:-3600})) \
    apt_get "$file" install --allow-downgrades "${options[@]}" "${missing[@]}"; then
    read_installed
    settle_record "$layer"
    explain_install "$file" "${missing[*]}"
  fi
  read_installed
  settle_record "$layer"
  for package in "${missing[@]}"; do
    is_whole "$package" || die "$package, installed" "apt-get succeeded, and it is ${PRESENT[${package%%=*}]:-not there}" \
      "what follows needs it" "see \`apt-cache policy ${package%%=*}\`, then run \`pulumi up\` again"
  done
}

# explain_install LOG WHAT
explain_install() {
  # What isn't known to apt may only be so as its lists couldn't be fetched.
  recognise "$1"
  if [[ -s $UPDATE_LOG && ${SYMPTOM[0]:-} == package-not-found ]]; then
    explain "$UPDATE_LOG" "the lists of packages, by apt-get update" "$2 is to be installed from them"
  fi
  explain "$1" "to install $2" "what follows needs it"
}

# remove_packages LAYER - purges what the layer added, and brings back what it changed or removed. What others need by now stays: KEPT.
remove_packages() {
  local layer=$1 name gone=() back=() file=$LOGS/apt
  KEPT=()
  read_installed
  settle_record "$layer"
  ((${#NOW[@]} > 0)) || return 0
  repair_packages
  find_versions_to_restore
  if ((${#back[@]} > 0)); then
    # Ours that stand in their way go; nobody else's.
    if simulated "$file" install --allow-downgrades --no-install-recommends "${back[@]}"; then
      require_others_kept "$file" "to bring back ${back[*]}"
      log "bringing back ${back[*]}"
      apt_get "$file" install --allow-downgrades --no-install-recommends "${back[@]}" || explain_install "$file" "${back[*]}"
      mark_as_before "${back[@]%%=*}"
      CHANGED=yes
    else
      log "what was there before can't be brought back: ${back[*]}; $(tail -n 1 "$file")"
      KEPT+=("${back[@]%%=*}")
    fi
    read_installed
  fi
  for name in "${!NOW[@]}"; do
    [[ ${BEFORE[$name]} != - || (-z ${PRESENT[$name]:-} && -z ${LEFT[$name]:-}) ]] || gone+=("$name")
  done
  leave_what_others_need "$file" "${gone[@]}"
  if ((${#GONE[@]} > 0)); then
    log "removing ${GONE[*]}"
    apt_get "$file" purge "${GONE[@]}" || explain "$file" "to remove ${GONE[*]}" "this program installed them"
    CHANGED=yes
  fi
  remove_file "/var/lib/homelab/packages/$layer"
}

# find_versions_to_restore - `back`: NAME=VERSION of what had another version, or was removed, if that version can still be had.
find_versions_to_restore() {
  local name
  for name in "${!NOW[@]}"; do
    [[ ${BEFORE[$name]} != - && ${PRESENT[$name]:-} != "${BEFORE[$name]}" ]] || continue
    if apt-cache madison "$name" | awk -v version="${BEFORE[$name]}" '$3 == version { found = 1 } END { exit !found }'; then
      back+=("$name=${BEFORE[$name]}")
    else
      log "$name was ${BEFORE[$name]} before, which no repository has any more: it stays ${PRESENT[$name]:-away}"
      KEPT+=("$name")
    fi
  done
}

# mark_as_before NAME... - what was installed for others alone is so again.
mark_as_before() {
  local name auto=()
  for name in "$@"; do [[ ${MARK[$name]} != auto ]] || auto+=("$name"); done
  ((${#auto[@]} == 0)) || run_apt "$LOGS/mark" apt-mark auto "${auto[@]}" || log "apt-mark auto ${auto[*]} failed"
}

# leave_what_others_need LOG NAME... - GONE: those that can go without anything else going or coming; the others are in KEPT.
leave_what_others_need() {
  local file=$1 name
  shift
  GONE=("$@")
  while ((${#GONE[@]} > 0)); do
    simulated "$file" purge "${GONE[@]}" || explain "$file" "to remove ${GONE[*]}" "this program installed them"
    only_these "$file" "${GONE[@]}" && return 0
    # Each alone, together with those of ours that need it: that is what apt adds.
    local left=()
    for name in "${GONE[@]}"; do
      if simulated "$file" purge "$name" && only_these "$file" "${GONE[@]}"; then
        left+=("$name")
      else
        KEPT+=("$name")
        log "$name stays: others need it by now"
      fi
    done
    ((${#left[@]} < ${#GONE[@]})) || die "to remove ${GONE[*]}" "apt would change others for that: $(announced "$file" | cut -f 1 | tr '\n' ' ')" \
      "they aren't this program's to change" "see \`apt-get -s purge ${GONE[*]}\`, and remove them by hand"
    GONE=("${left[@]}")
  done
}

# only_these SIMULATION NAME... - does nothing change but the removal of these?
only_these() {
  local file=$1
  shift
  ! announced "$file" | awk -F'\t' -v names=" $* " '$3 != "-" || index(names, " " $1 " ") == 0 { found = 1 } END { exit !found }'
}

# -- steps -----------------------------------------------------------------------------------------------------
# step_done LAYER / step_undone LAYER - that a step was carried out here is known from here: a system that was reinstalled, or went back to
# a snapshot, tells of none.
step_done() { mark "/var/lib/homelab/steps/$1"; }
step_undone() { remove_file "/var/lib/homelab/steps/$1"; }

# -- downloads -------------------------------------------------------------------------------------------------
# download URL FILE - by https alone, redirections too. FILE (without ROOT) is there only when all of it is; a broken transfer goes on where it ended, in the next run, too.
download() {
  local url=$1 file=$2 part=$2.part log_file=$LOGS/download try status=0 until
  need_dir "$ROOT${file%/*}"
  log "downloading $(masked "$url")"
  until=$((SECONDS + ${DOWNLOAD_SECONDS:-1800}))
  for try in 1 2 3 4 5; do
    ((SECONDS < until)) || break
    status=0
    run_streamed "$((until - SECONDS + 5))" "$log_file" curl -fsSL --proto =https --proto-redir =https --connect-timeout 20 --max-time "$((until - SECONDS))" -C - -o "$ROOT$part" "$url" ||
      status=$?
    case $status in
      0)
        in_place "$ROOT$part" "$file"
        return 0
        ;;
      # The server doesn't go on from there: an old part is longer than the file, or the file has changed. From the beginning, then.
      22 | 33 | 36)
        [[ $try == 1 && -e $ROOT$part ]] || break
        rm -f "$ROOT$part"
        ;;
      # Cut off, or no answer: once more.
      7 | 18 | 28 | 35 | 52 | 55 | 56 | 92) sleep "$((try > 1 ? try : 0))" ;;
      *) break ;;
    esac
  done
  explain "$log_file" "$(masked "$url")" "it is to be installed" \
    "see whether that address answers from this system (\`curl -I\`); set nvidia.proxy or nvidia.mirror if it must be another way"
}
