#!/usr/bin/env bash
# A container's configuration (/etc/pve/lxc/ID.conf), and the device nodes of NVIDIA's cards in it. Needs nvidia.sh.
#
# Proxmox VE writes that file anew whenever it changes something: keys sorted, comments made the description, raw lxc.* lines last,
# and below them a section for what waits for the next start ([pve:pending]) and one for each snapshot. So our lines are found by
# content, never by place. What we added is noted before it is added, in /var/lib/homelab/containers/ID:
#   ours      each line of ours: `dev VALUE` (a dev[n] option, whatever its number), or an lxc.* line as it stands
#   wanted    METHOD, MINORS, FUNCTIONS of the last run, by which read_host.sh finds drift
#   revision  how often the configuration was changed by us
#   restart   is there while the running container still has what was before
#   before    the configuration as it was before the change that waits for a restart; `after`: the digest of what it became
#
# Variables of a container: CTID; METHOD (auto | device | mount-entry), MINORS (numbers of /dev/nvidiaN) and FUNCTIONS (addresses of
# the cards' display functions, whose nodes in /dev/dri go along), all separated by spaces.
PVE_LXC=/etc/pve/lxc

record_dir() { printf '/var/lib/homelab/containers/%s' "$CTID"; }

# -- the file ----------------------------------------------------------------------------------------------------------
# read_conf - sets TEXT, DIGEST (as Proxmox VE's), HEAD (lines above the first section), TAIL (the rest), and of what will be in force
# after the next start: DEV (number -> value). LXC_KEY, LXC_VALUE: raw lines by their index in HEAD. LOCKED, TEMPLATE, UNPRIVILEGED.
read_conf() {
  local line index key value section=''
  TEXT=$(cat "$ROOT$PVE_LXC/$CTID.conf" && printf x) || return 1
  TEXT=${TEXT%x}
  DIGEST=$(printf '%s' "$TEXT" | sha1sum)
  DIGEST=${DIGEST%% *}
  declare -ga HEAD=() LXC_KEY=() LXC_VALUE=()
  declare -gA DEV=()
  TAIL='' LOCKED='' TEMPLATE=no UNPRIVILEGED=no
  while IFS= read -r line || [[ -n $line ]]; do
    [[ ! $line =~ ^\[([^]]*)\][[:space:]]*$ ]] || section=${BASH_REMATCH[1]}
    if [[ -n $section ]]; then
      TAIL+=$line$'\n'
      [[ ${section,,} != pve:pending ]] || read_pending "$line"
      continue
    fi
    index=${#HEAD[@]}
    HEAD+=("$line")
    split_line "$line"
    case $KEY in
      dev[0-9]*) DEV[${KEY#dev}]=$VALUE ;;
      lxc.*) LXC_KEY[index]=$KEY LXC_VALUE[index]=$VALUE ;;
      lock) LOCKED=$VALUE ;;
      template) [[ $VALUE != 1 ]] || TEMPLATE=yes ;;
      unprivileged) [[ $VALUE != 1 ]] || UNPRIVILEGED=yes ;;
    esac
  done <<<"${TEXT%$'\n'}"
}

# split_line LINE - sets KEY and VALUE, as PVE::LXC::Config::parse_pct_config takes a line; a raw key may have = for a colon.
split_line() {
  KEY='' VALUE=''
  if [[ $1 =~ ^(lxc\.[a-zA-Z0-9_.-]+)([[:space:]]*[:=])[[:space:]]*(.*)$ ]]; then
    KEY=${BASH_REMATCH[1]} VALUE=${BASH_REMATCH[3]}
  elif [[ $1 =~ ^([a-z][a-z_]*[0-9]*):[[:space:]]*(.*)$ ]]; then
    KEY=${BASH_REMATCH[1]} VALUE=${BASH_REMATCH[2]}
  fi
  VALUE=${VALUE%"${VALUE##*[![:space:]]}"} # a carriage return, too
}

read_pending() { # LINE
  local key
  split_line "$1"
  case $KEY in
    dev[0-9]*) DEV[${KEY#dev}]=$VALUE ;;
    delete)
      for key in ${VALUE//[,;]/ }; do
        key=${key#!} # to be detached at once, Proxmox VE notes so
        [[ $key != dev[0-9]* ]] || unset "DEV[${key#dev}]"
      done
      ;;
  esac
}

# -- devices -----------------------------------------------------------------------------------------------------------
# find_devices - sets DEVICES: what the container is to have, those that it can't do without first; NEEDED: how many these are.
find_devices() {
  local minor function kind link path
  declare -ga DEVICES=()
  NEEDED=0
  [[ -n $MINORS ]] || return 0
  for minor in $MINORS; do
    DEVICES+=("/dev/nvidia$minor")
  done
  DEVICES+=(/dev/nvidiactl /dev/nvidia-uvm)
  NEEDED=${#DEVICES[@]}
  for path in "$ROOT"/dev/nvidia-uvm-tools "$ROOT"/dev/nvidia-modeset "$ROOT"/dev/nvidia-caps/nvidia-cap*; do
    [[ ! -e $path ]] || DEVICES+=("${path#"$ROOT"}")
  done
  for function in $FUNCTIONS; do
    for kind in card render; do
      link=$ROOT/dev/dri/by-path/pci-$function-$kind
      [[ ! -e $link ]] || DEVICES+=("/dev/dri/$(basename "$(readlink "$link")")")
    done
  done
}

# look_up - sets MAJOR, MINOR (decimal) and MODE of each of DEVICES, by path; MISSING: those needed ones that aren't there.
look_up() {
  local path number=0 major minor mode
  declare -gA MAJOR=() MINOR=() MODE=()
  declare -ga MISSING=()
  for path in "${DEVICES[@]}"; do
    number=$((number + 1))
    if [[ ! -e $ROOT$path ]]; then
      ((number > NEEDED)) || MISSING+=("$path")
      continue
    fi
    read -r major minor mode < <(stat -c '%t %T %a' "$ROOT$path")
    MAJOR[$path]=$((16#$major)) MINOR[$path]=$((16#$minor)) MODE[$path]=$mode
  done
}

need_devices() {
  local next="run /usr/local/sbin/homelab-nvidia-nodes on the host, then \`pulumi up --refresh\`" found
  ((${#MISSING[@]} > 0)) || return 0
  found="not on the host: ${MISSING[*]}"
  nvidia_trouble
  [[ -n $FOUND ]] || nvidia_uvm_trouble
  if [[ -n $FOUND ]]; then
    found+="; $FOUND" next=$NEXT
  elif ! missing_nvidia_nodes | grep -qxF -e "${MISSING[0]}"; then
    found+="; the driver's cards are: $(nvidia_nodes | sed -nE 's#^(/dev/nvidia[0-9]+) .*#\1#p' | tr '\n' ' ')"
    next="see \`nvidia-smi -L\`; correct gpuAssignment, or run \`pulumi up --refresh\` if the numbers have changed"
  else
    found+=": the driver serves them, and nothing has made the nodes yet"
  fi
  die "container $CTID given ${DEVICES[*]:0:NEEDED}" "$found" "without them nothing in it can use a card; its configuration is unchanged" "$next"
}

# -- who provides what ---------------------------------------------------------------------------------------------------
option() { # VALUE NAME - of a property string
  local part
  for part in ${1//,/ }; do
    [[ $part != "$2"=* ]] || printf '%s' "${part#*=}"
  done
}
# find_dev_path VALUE - sets DEV_PATH, of a dev[n] option's value.
find_dev_path() {
  DEV_PATH=${1%%,*}
  [[ $DEV_PATH != *=* ]] || DEV_PATH=$(option "$1" path)
}

# same_dev VALUE VALUE - the order of properties doesn't count.
same_dev() {
  [[ $1 != "$2" ]] || return 0
  [[ $1 == *"${2%%,*}"* ]] && [[ $(normal_dev "$1") == "$(normal_dev "$2")" ]]
}
normal_dev() {
  local value=${1#path=}
  value=${value//,path=/,}
  tr ',' '\n' <<<"$value" | sort | tr '\n' ','
}

# allows VALUE MAJOR MINOR - does this rule of the control group let a character device be read and written?
allows() {
  local kind numbers access major minor
  read -r kind numbers access <<<"$1"
  [[ $kind != a || -n ${numbers:-} ]] || return 0 # `a` alone is everything
  [[ $kind == a || $kind == c ]] || return 1
  access=${access:-rwm} # as lxc takes it
  [[ $access == *r* && $access == *w* ]] || return 1
  major=${numbers%%:*} minor=${numbers#*:}
  [[ $major == '*' || $major == "$2" ]] && [[ $minor == '*' || $minor == "$3" ]]
}

# binds VALUE PATH - does this lxc.mount.entry bring PATH to its place, by itself or with a folder?
binds() {
  local source target options
  read -r source target _ options _ <<<"$1"
  [[ ,${options:-}, == *,bind,* || ,${options:-}, == *,rbind,* ]] || return 1
  source=${source%/} target=${target%/}
  [[ $source == "/$target" ]] && [[ $2 == "$source" || ($2 == "$source"/* && ,$options, == *,create=dir,*) ]]
}

# find_ours - sets OUR_DEV (numbers) and OUR_LXC (indexes in HEAD): what is there of the lines that we added; OURS: all that we noted.
find_ours() {
  local file line index
  declare -ga OURS=()
  declare -gA OUR_DEV=() OUR_LXC=()
  file=$ROOT$(record_dir)/ours
  [[ -r $file ]] || return 0
  mapfile -t OURS <"$file"
  for line in "${OURS[@]}"; do
    if [[ $line == 'dev '* ]]; then
      for index in "${!DEV[@]}"; do
        [[ -z ${OUR_DEV[$index]:-} ]] && same_dev "${DEV[$index]}" "${line#dev }" && OUR_DEV[$index]=$line && break
      done
    else
      split_line "$line"
      # The last one: a line that somebody had before stands above ours.
      for ((index = ${#HEAD[@]} - 1; index >= 0; index--)); do
        [[ -z ${OUR_LXC[$index]:-} && ${LXC_KEY[index]:-} == "$KEY" && ${LXC_VALUE[index]} == "$VALUE" ]] && OUR_LXC[$index]=$line && break
      done
    fi
  done
  return 0
}

# find_provider PATH - sets PROVIDER to how others give the container PATH: `dev VALUE`, `mount`, or nothing; RULE: is it allowed?
find_provider() {
  local index kind numbers rules=()
  PROVIDER='' RULE=no
  for index in "${!DEV[@]}"; do
    find_dev_path "${DEV[$index]}"
    if [[ -z ${OUR_DEV[$index]:-} && $DEV_PATH == "$1" ]]; then
      PROVIDER="dev ${DEV[$index]}" RULE=yes
      return 0
    fi
  done
  for index in "${!LXC_KEY[@]}"; do
    [[ -z ${OUR_LXC[$index]:-} ]] || continue
    case ${LXC_KEY[index]} in
      lxc.mount.entry) ! binds "${LXC_VALUE[index]}" "$1" || PROVIDER=mount ;;
      lxc.cgroup2.devices.allow | lxc.cgroup2.devices.deny)
        # In their order: one for everything takes the place of all before it, another one of the same devices.
        read -r kind numbers _ <<<"${LXC_VALUE[index]}"
        if [[ $kind == a ]]; then rules=(); else without_rule "$kind $numbers"; fi
        [[ ${LXC_KEY[index]} == *.deny ]] || ! allows "${LXC_VALUE[index]}" "${MAJOR[$1]}" "${MINOR[$1]}" || rules+=("$kind $numbers")
        ;;
    esac
  done
  ((${#rules[@]} == 0)) || RULE=yes
}

# dev_trouble - sets FOUND and NEXT: why this host's containers can't be given dev[n] options. FOUND is empty where they can. They are there
# from pve-container 5.0.7 on (its debian/changelog), which is Proxmox VE 8.1; an older one passes over such lines without a word, so that
# one whose version isn't known counts as older.
dev_trouble() {
  local version
  FOUND='' NEXT=''
  version=$(dpkg-query -W -f '${Version}' pve-container 2>/dev/null) || version=''
  [[ $version != [0-9]* || $(printf '5.0.7\n%s\n' "$version" | sort -V | head -n 1) != 5.0.7 ]] || return 0
  FOUND="pve-container ${version:-of no known version}; dev[n] options are there from 5.0.7 on"
  NEXT="upgrade Proxmox VE, or set method: mount-entry (or none: what the host can is chosen)"
}

# without_rule DEVICES - takes it out of `rules`.
without_rule() {
  local rule kept=()
  for rule in "${rules[@]}"; do
    [[ $rule == "$1" ]] || kept+=("$rule")
  done
  rules=("${kept[@]}")
}

# choose_method - sets HOW: device or mount-entry.
choose_method() {
  HOW=$METHOD
  [[ $HOW == auto || $HOW == device ]] || return 0
  dev_trouble
  if [[ -z $FOUND ]]; then
    HOW=device
  elif [[ $METHOD == auto ]]; then
    HOW=mount-entry
  else
    die "container $CTID given devices as dev[n] options (method: device)" "$FOUND" "its configuration is unchanged" "$NEXT"
  fi
}

# plan - from what read_conf, find_devices, look_up and choose_method have set: WANT (lines of ours that are to be there), PROVIDED
# (PATH -> how it gets in), and the way there: ADD_DEV and ADD_LXC (values and lines), DROP_DEV (numbers), DROP_LXC (indexes in HEAD).
plan() {
  local path mode line index rules=() complete
  declare -ga WANT=() ADD_DEV=() ADD_LXC=()
  declare -gA PROVIDED=() DROP_DEV=() DROP_LXC=()
  declare -A open=()
  find_ours
  complete=yes
  for path in "${DEVICES[@]:0:NEEDED}"; do
    find_provider "$path"
    [[ -n $PROVIDER ]] || complete=no
  done
  for path in "${DEVICES[@]}"; do
    [[ -n ${MAJOR[$path]:-} ]] || continue
    find_provider "$path"
    # Somebody has given it what it needs: that is left as it is, and nothing that goes along is added.
    [[ $complete == no || -n $PROVIDER ]] || continue
    mode=${MODE[$path]}
    [[ $path == /dev/nvidia-caps/* ]] || mode=666
    if [[ -n $PROVIDER && $RULE == yes ]]; then
      PROVIDED[$path]=$PROVIDER
      continue
    elif [[ -z $PROVIDER && $HOW == device ]]; then
      PROVIDED[$path]="dev $path,mode=0$mode"
      WANT+=("${PROVIDED[$path]}")
      continue
    fi
    PROVIDED[$path]=mount
    [[ $RULE == yes ]] || rules+=("lxc.cgroup2.devices.allow: c ${MAJOR[$path]}:${MINOR[$path]} rwm")
    [[ -n $PROVIDER ]] || WANT+=("lxc.mount.entry: $path ${path#/} none bind,optional,create=file")
  done
  WANT=("${rules[@]}" "${WANT[@]}")
  for line in "${WANT[@]}"; do open[$line]=yes; done
  for index in "${!OUR_DEV[@]}"; do
    if [[ -n ${open[${OUR_DEV[$index]}]:-} ]]; then unset "open[${OUR_DEV[$index]}]"; else DROP_DEV[$index]=yes; fi
  done
  for index in "${!OUR_LXC[@]}"; do
    if [[ -n ${open[${OUR_LXC[$index]}]:-} ]]; then unset "open[${OUR_LXC[$index]}]"; else DROP_LXC[$index]=yes; fi
  done
  for line in "${WANT[@]}"; do
    [[ -n ${open[$line]:-} ]] || continue
    unset "open[$line]"
    if [[ $line == 'dev '* ]]; then ADD_DEV+=("${line#dev }"); else ADD_LXC+=("$line"); fi
  done
}

changes_something() { ((${#ADD_DEV[@]} + ${#ADD_LXC[@]} + ${#DROP_DEV[@]} + ${#DROP_LXC[@]} > 0)); }

# container_drift - a sentence for each difference between what was set up and what there is.
container_drift() {
  local line index path
  if [[ ! -e $ROOT$PVE_LXC/$CTID.conf ]]; then
    printf 'container %s is gone\n' "$CTID"
    return 0
  fi
  read_conf
  find_devices
  look_up
  for path in "${MISSING[@]}"; do printf '%s is not on the host\n' "$path"; done
  ((${#MISSING[@]} == 0)) || return 0
  choose_method
  plan
  for line in "${ADD_DEV[@]}"; do printf 'dev[n]: %s is not there\n' "$line"; done
  for line in "${ADD_LXC[@]}"; do printf '%s is not there\n' "$line"; done
  for index in "${!DROP_DEV[@]}"; do printf 'dev%s: %s is of no use any more\n' "$index" "${DEV[$index]}"; done
  for index in "${!DROP_LXC[@]}"; do printf '%s is of no use any more\n' "${HEAD[index]}"; done
  [[ ! -e $ROOT$(record_dir)/restart ]] || printf 'container %s still has to be restarted\n' "$CTID"
}

# -- changes -------------------------------------------------------------------------------------------------------------
is_up() {
  local text status=0
  text=$(within "$ASK_SECONDS" pct status "$CTID" 2>/dev/null) || status=$?
  ((status != 124 && status != 137)) || die "whether container $CTID runs" "pct status $CTID has not answered within $ASK_SECONDS s" \
    "a container that hangs is neither on nor off" "see \`pct status $CTID\` and \`ps\` on the host; then run \`pulumi up\` again"
  [[ $text == 'status: running' ]]
}

need_container() {
  local others elsewhere
  [[ ! -e $ROOT/etc/pve/qemu-server/$CTID.conf ]] || die "container $CTID" "$CTID is a virtual machine" \
    "cards are shared with containers; a VM gets one whole" "correct ctid; a VM is described under homelab:vms"
  [[ -e $ROOT$PVE_LXC/$CTID.conf ]] && return 0
  elsewhere=$(find "$ROOT/etc/pve/nodes" -mindepth 3 -maxdepth 3 -name "$CTID.conf" -printf '%P\n' 2>/dev/null | head -n 1)
  [[ -z $elsewhere ]] || die "container $CTID" "it is on the node ${elsewhere%%/*}, not on this one" \
    "a card is in one machine: a guest can have it only on the node that the card is in" \
    "migrate it to this node (on ${elsewhere%%/*}, while it is off: \`pct migrate $CTID $(hostname)\`), or describe ${elsewhere%%/*} as a host of its own"
  others=$(find "$ROOT$PVE_LXC/" -name '[1-9]*.conf' -printf '%f\n' 2>/dev/null | sed 's/\.conf$//' | sort -n | tr '\n' ' ')
  die "container $CTID" "no such container on this host; there are: ${others:-none}" "nothing can be given to it" \
    "correct ctid, or describe the container under \`create\`"
}

need_changeable() {
  [[ -z $LOCKED ]] || die "container $CTID free to be changed" "it is locked: $LOCKED" \
    "something else works on it now (a backup, a snapshot, a migration); its configuration is unchanged" \
    "wait until that is done; a lock that was left behind: \`pct unlock $CTID\`; then run \`pulumi up\` again"
  [[ $TEMPLATE == no ]] || die "container $CTID" "it is a template, which never runs" "its configuration is unchanged" "name a container"
}

# note NAME - standard input becomes that part of the record.
note() {
  need_dir "$ROOT$(record_dir)"
  write_atomically "$(record_dir)/$1" 0600
}
noted() { [[ ! -r $ROOT$(record_dir)/$1 ]] || cat "$ROOT$(record_dir)/$1"; }

# wait_for_guests - until those that start with the host have been started: one that starts while its configuration is written would
# run with what was before, and nobody would know.
wait_for_guests() {
  local waited=0
  while [[ $(within "$ASK_SECONDS" systemctl is-active pve-guests.service 2>/dev/null) == activating ]] && ((waited < 300)); do
    ((waited > 0)) || log "waiting for the guests that start with the host"
    sleep 1
    waited=$((waited + 1))
  done
}

# set_up - brings the configuration to what METHOD, MINORS and FUNCTIONS say. It is written whole, under the digest of what was read:
# whatever somebody else has written meanwhile is read anew. Sets CHANGED.
set_up() {
  local tries=0 most
  OUTPUT=''
  need_container
  wait_for_guests
  find_devices
  look_up
  need_devices
  choose_method
  while read_conf && need_changeable && plan && changes_something; do
    tries=$((tries + 1)) most=5
    # Each try has waited ten seconds for the lock: for a minute at least.
    [[ $OUTPUT != *"got timeout"* && $OUTPUT != *"held by another process"* ]] || most=7
    ((tries <= most)) || [[ $CHANGED == yes ]] || forget_change
    ((tries <= most)) || die "the configuration of container $CTID changed" \
      "${OUTPUT:-somebody else changed it five times meanwhile}" "nothing of somebody else's may be lost" \
      "see who changes it, then run \`pulumi up\` again"
    note_change
    OUTPUT=''
    if write_devs && write_lines; then
      CHANGED=yes # and once more round: what was written is read
    else
      need_quorum
      log "the configuration of container $CTID was changed by somebody else, or is being changed: reading it again"
    fi
  done
  keep_record
  if [[ -e $ROOT$(record_dir)/restart ]]; then
    printf '%s\n' "$DIGEST" | note after
  else
    in_force # it is off: its next start takes what is there
  fi
}

keep_record() {
  printf '%s\n' "${WANT[@]}" | sed '/^$/d' | note ours
  printf '%s\n%s\n%s\n' "$METHOD" "$MINORS" "$FUNCTIONS" | note wanted
}

# note_change - before anything is written: all that may be ours afterwards, whatever happens in between.
note_change() {
  local revision
  [[ -e $ROOT$(record_dir)/before ]] || {
    printf '%s' "$TEXT" | note before
    printf '%s\n' "${OURS[@]}" | sed '/^$/d' | note ours_before
    noted wanted | note wanted_before
  }
  printf '%s\n' "${OURS[@]}" "${WANT[@]}" | sed '/^$/d' | sort -u | note ours
  revision=$(noted revision)
  printf '%s\n' "$((${revision:-0} + 1))" | note revision
  ! is_up || : | note restart
}

# write_devs - dev[n] options through pct, which alone may: it checks them, and gives them to a running container if it can.
write_devs() {
  local value number=0 arguments=() gone=''
  for number in "${!DROP_DEV[@]}"; do
    gone+=${gone:+,}dev$number
    log "dev$number goes: ${DEV[$number]}"
  done
  [[ -z $gone ]] || arguments=(--delete "$gone")
  number=0
  for value in "${ADD_DEV[@]}"; do
    # A number that is to go is free only once it has gone.
    while [[ -n ${DEV[$number]:-} ]] || grep -qE "^dev$number:" <<<"$TEXT"; do number=$((number + 1)); done
    arguments+=("--dev$number" "$value")
    log "dev$number: $value"
    number=$((number + 1))
  done
  ((${#arguments[@]} > 0)) || return 0
  if run_logged pct set "$CTID" --digest "$DIGEST" "${arguments[@]}"; then
    ((${#ADD_LXC[@]} + ${#DROP_LXC[@]} == 0)) || { read_conf && plan; } # pct has written the file anew
    return 0
  fi
  # Changed meanwhile, or somebody has the file's lock: that passes. Anything else stays.
  [[ $OUTPUT == *"detected modified configuration"* || $OUTPUT == *"got timeout"* ]] && return 1
  need_quorum
  forget_change
  die "container $CTID given its devices: pct set ${arguments[*]}" "$OUTPUT" "its configuration is unchanged" \
    "mend what pct says, then run \`pulumi up\` again"
}

# forget_change - nothing was written: the record is what it was.
forget_change() {
  local dir
  dir=$ROOT$(record_dir)
  [[ ! -e $dir/ours_before ]] || mv -fT "$dir/ours_before" "$dir/ours"
  [[ ! -e $dir/wanted_before ]] || mv -fT "$dir/wanted_before" "$dir/wanted"
  [[ -s $dir/ours ]] || rm -f "$dir/ours"
  [[ -s $dir/wanted ]] || rm -f "$dir/wanted"
  rm -f "$dir/before" "$dir/restart" "$dir/after"
  [[ -e $dir/wanted ]] || rm -rf "$dir"
}

# write_lines - raw lines, by the file: no API takes them. Under the lock of Proxmox VE's own writers, and the digest.
write_lines() {
  local index text='' status=0 lock lines=()
  ((${#ADD_LXC[@]} + ${#DROP_LXC[@]} > 0)) || return 0
  for index in "${!HEAD[@]}"; do
    [[ -n ${DROP_LXC[$index]:-} ]] || lines+=("${HEAD[index]}")
  done
  insert_lines
  mkdir -p "$ROOT/run/lock/lxc"
  exec {lock}>>"$ROOT/run/lock/lxc/pve-config-$CTID.lock"
  if ! flock -w "${CONF_LOCK_TIMEOUT:-10}" "$lock"; then
    OUTPUT="/run/lock/lxc/pve-config-$CTID.lock is held by another process"
    status=1
  elif [[ $(sha1sum <"$ROOT$PVE_LXC/$CTID.conf") != "$DIGEST "* ]]; then
    status=1
  else
    replace_conf < <(printf '%s' "$text") || status=1
  fi
  exec {lock}>&-
  return "$status"
}

# insert_lines - sets `text`: `lines` with ADD_LXC after the last one that isn't empty, where Proxmox VE has raw lines, and TAIL.
insert_lines() {
  local last=$((${#lines[@]} - 1)) index
  while ((last >= 0)) && [[ -z ${lines[last]//[[:space:]]/} ]]; do last=$((last - 1)); done
  for ((index = 0; index < ${#lines[@]}; index++)); do
    text+=${lines[index]}$'\n'
    ((index != last)) || text+=$(printf '%s\n' "${ADD_LXC[@]}" | sed '/^$/d' && printf x)
    text=${text%x}
  done
  ((last >= 0)) || text+=$(printf '%s\n' "${ADD_LXC[@]}")$'\n'
  text+=$TAIL
  for index in "${ADD_LXC[@]}"; do log "$index"; done
}

# replace_conf - standard input becomes the configuration. The name is one that Proxmox VE's own writers use; its file system
# refuses chmod and chown, and gives every file the rights that a configuration has. Where it can't be written, OUTPUT says why.
replace_conf() {
  local temporary=$ROOT$PVE_LXC/$CTID.conf.tmp.$$
  rm -f "$ROOT$PVE_LXC/$CTID.conf.tmp."* # of a run that was killed: the lock is ours
  OUTPUT=$({ (umask 027 && cat >"$temporary") && in_place "$temporary" "$PVE_LXC/$CTID.conf"; } 2>&1) && return 0
  rm -f "$temporary"
  return 1
}

# need_quorum - where OUTPUT says that /etc/pve can only be read: nobody has changed anything, and trying again is of no use.
need_quorum() {
  local missing said=${OUTPUT##*$'\n'}
  [[ $OUTPUT == *"no quorum"* || $OUTPUT == *".conf.tmp."*"Permission denied"* || $OUTPUT == *".conf.tmp."*"Read-only file system"* ]] || return 0
  [[ $CHANGED == yes ]] || forget_change
  missing=$(grep -oE '"[^"]+": *\{[^{}]*"online": *0[^{}]*\}' "$ROOT/etc/pve/.members" 2>/dev/null | cut -d'"' -f2 | tr '\n' ' ')
  [[ -z $missing ]] || missing="; these nodes of the cluster don't answer: $missing"
  die "the configuration of container $CTID written" "$said: no quorum$missing" \
    "without a quorum /etc/pve can only be read: nothing can be changed or started; the container runs on as it was" \
    "see \`pvecm status\`; bring the missing nodes back, or wait until they are, then run \`pulumi up\` again"
}

# take_out - our lines go, and nothing else. Sets CHANGED.
take_out() {
  METHOD=mount-entry MINORS='' FUNCTIONS=''
  set_up
  rm -f "$ROOT$(record_dir)"/{ours,wanted,revision}
}

# in_force - the running container, or the one that is off, has what its configuration says.
in_force() { rm -f "$ROOT$(record_dir)"/{restart,before,after,ours_before,wanted_before}; }

# -- power ---------------------------------------------------------------------------------------------------------------
# shut_down - within TIMEOUT seconds, then OTHERWISE (fail | stop). Returns 1 if it still runs.
shut_down() {
  log "shutting container $CTID down"
  RUN_SECONDS=$((TIMEOUT + 120)) run_logged pct shutdown "$CTID" --timeout "$TIMEOUT" || : # what counts is whether it is off
  is_up || return 0
  [[ $OTHERWISE == stop ]] || return 1
  log "it didn't within $TIMEOUT s: stopping it"
  run_logged pct stop "$CTID" || :
  ! is_up
}

start_up() {
  log "starting container $CTID"
  run_logged pct start "$CTID" && return 0
  die "container $CTID started" "$OUTPUT" "it is off now" "see \`pct start $CTID --debug\`, mend it, then run \`pulumi up\` again"
}

# put_back - the container won't go off, so that it runs on as it was: its configuration says what it runs with, too.
put_back() {
  local before lock status=0
  before=$(noted before && printf x)
  before=${before%x}
  [[ -n $before && -e $ROOT$(record_dir)/after && $(sha1sum <"$ROOT$PVE_LXC/$CTID.conf") == "$(noted after) "* ]] || return 1
  exec {lock}>>"$ROOT/run/lock/lxc/pve-config-$CTID.lock"
  flock -w "${CONF_LOCK_TIMEOUT:-10}" "$lock" && replace_conf < <(printf '%s' "$before") || status=1
  exec {lock}>&-
  # Where it couldn't be put back, what was noted stays: the next run brings the container to what is written.
  ((status != 0)) || forget_change
  return "$status"
}
