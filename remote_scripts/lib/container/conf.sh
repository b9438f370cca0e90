#!/usr/bin/env bash
# A container's configuration, /etc/pve/lxc/CTID.conf: its lines, and what one gives. shared/container_conf.py reads the same file for
# what is in Python.
# Needs: files, guests
#
# Gives: read_conf -> TEXT, HEAD, TAIL, DEV, LXC_KEY, LXC_VALUE, LOCKED; split_line LINE -> KEY, VALUE;
#   option VALUE NAME; find_dev_path VALUE -> DEV_PATH; split_rule VALUE -> RULE_ABOUT, RULE_ACCESS,
#   allows MAJOR MINOR; binds VALUE PATH; is_under_ha.
PVE_LXC=/etc/pve/lxc

# read_conf - sets TEXT, HEAD (lines above the first section), TAIL (the rest), and of what will be in force
# after the next start: DEV (number -> value). LXC_KEY, LXC_VALUE: raw lines by their index in HEAD. LOCKED.
read_conf() {
  local line index key value section=''
  TEXT=$(cat "$ROOT$PVE_LXC/$CTID.conf" && printf x) || return 1
  TEXT=${TEXT%x}
  declare -ga HEAD=() LXC_KEY=() LXC_VALUE=()
  declare -gA DEV=()
  TAIL='' LOCKED=''
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
    esac
  done <<<"${TEXT%$'\n'}"
}

# split_line LINE - sets KEY and VALUE, as PVE::LXC::Config::parse_pct_config takes a line; a raw key may have = for a colon.
split_line() {
  KEY='' VALUE=''
  if [[ $1 =~ ^(lxc\.[a-z0-9_.-]+)(:|[[:space:]]*=)[[:space:]]*(.*)$ ]]; then
    KEY=${BASH_REMATCH[1]} VALUE=${BASH_REMATCH[3]}
  elif [[ $1 =~ ^([a-z][a-z_]*[0-9]*):[[:space:]]*([^[:space:]].*)$ ]]; then
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

option() { # VALUE NAME - of a property string
  local part
  for part in ${1//,/ }; do
    [[ $part != "$2"=* ]] || printf '%s' "${part#*=}"
  done
}

# find_dev_path VALUE - sets DEV_PATH, of a dev[n] option's value; empty where Proxmox VE refuses it (PVE::LXC::Config, $dev_desc).
find_dev_path() {
  local part key seen=,
  DEV_PATH=''
  for part in ${1//,/ }; do
    [[ $part == *=* ]] || part=path=$part
    key=${part%%=*}
    if [[ $seen == *,"$key",* || ! $part =~ ^(path=/dev/.+|mode=0[0-7]{3}|[ug]id=[0-9]+|deny-write=(1|0|[Oo][Nn]|[Oo][Ff][Ff]|[Yy][Ee][Ss]|[Nn][Oo]|[Tt][Rr][Uu][Ee]|[Ff][Aa][Ll][Ss][Ee]))$ ]]; then
      DEV_PATH=''
      return 0
    fi
    seen+=$key,
    [[ $key != path ]] || DEV_PATH=${part#path=}
  done
}

# split_rule VALUE - sets RULE_ABOUT (kind and numbers, such as `c 195:*`) and RULE_ACCESS, of a rule of the control group. Status 1: lxc
# doesn't take it.
split_rule() {
  RULE_ABOUT='a *:*' RULE_ACCESS=rwm
  [[ $1 != a ]] || return 0
  [[ $1 =~ ^([abc])[[:space:]]([0-9]+|\*):([0-9]+|\*)[[:space:]]([rwm]{1,2}|[rwm]{3}.*)$ ]] || return 1
  local major=${BASH_REMATCH[2]} minor=${BASH_REMATCH[3]}
  [[ $major == '*' ]] || major=$((10#$major))
  [[ $minor == '*' ]] || minor=$((10#$minor))
  RULE_ABOUT="${BASH_REMATCH[1]} $major:$minor" RULE_ACCESS=${BASH_REMATCH[4]:0:3}
}

# allows MAJOR MINOR - does the rule that was split let a character device be read and written?
allows() {
  local numbers=${RULE_ABOUT#* }
  [[ $RULE_ABOUT == [ac]* && $RULE_ACCESS == *r* && $RULE_ACCESS == *w* ]] &&
    [[ ${numbers%:*} == '*' || ${numbers%:*} == "$1" ]] && [[ ${numbers#*:} == '*' || ${numbers#*:} == "$2" ]]
}

# binds VALUE PATH - does this lxc.mount.entry bring PATH to its place, by itself or with a folder?
binds() {
  local source target options
  read -r source target _ options _ <<<"$1"
  [[ ,${options:-}, == *,bind,* || ,${options:-}, == *,rbind,* ]] || return 1
  source=${source%/} target=${target%/}
  [[ $source == "/$target" ]] && [[ $2 == "$source" || ($2 == "$source"/* && ,$options, == *,create=dir,*) ]]
}

# is_under_ha - does the HA manager start and stop it? Not in the state `ignored`, in which Proxmox VE does so itself (PVE::HA::Config::service_is_ha_managed).
# Where the file can't be read, it may.
is_under_ha() {
  local text
  [[ -e $ROOT/etc/pve/ha/resources.cfg ]] || return 1
  text=$(exec_within "$ASK_SECONDS" cat "$ROOT/etc/pve/ha/resources.cfg" 2>/dev/null) || return 0
  # shellcheck disable=SC2016 # for awk
  awk -v id="$CTID" '
    /^[^ \t#]/ { on = ($1 == "ct:" && $2 == id && NF == 2 || $0 ~ ("^ct:" id "[ \t]*$")); if (on) found = 1 }
    on && $1 == "state" && $2 == "ignored" { found = 0 }
    END { exit !found }' <<<"$text"
}
