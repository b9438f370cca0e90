#!/usr/bin/env bash
# The lines of a container's configuration that are passed on to be judged: devices, their rules, what is needed beside them, AppArmor's profile, its disks, and the
# network cards by which it is known. No others: they may hold passwords (lxc.environment, mount options).
#
# Gives: device_lines FILE.

# device_lines FILE - Proxmox VE takes it line by line, whatever bytes are in others: so does `-a`, without which one zero byte hides all of them. Status 1: it
# can't be read.
device_lines() {
  local status=0
  grep -aE -e '^(dev[0-9]+|lxc\.cgroup2?\.devices\.(allow|deny)|lxc\.idmap|lxc\.apparmor\.profile|hostname|net[0-9]+|rootfs|mp[0-9]+|unprivileged|lock|template|features|ostype|delete)[[:space:]]*[:=]' \
    -e '^lxc\.mount\.entry[[:space:]]*[:=][[:space:]]*/dev(/|[[:space:]])' -e '^\[' "$1" || status=$?
  # 1: no such line.
  ((status <= 1))
}
