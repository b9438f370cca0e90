#!/usr/bin/env bash
# Runs inside the new system's folder, as its root, on the machine that builds the image: everything that needs no running kernel.
#
# Arguments: $1: packages, separated by spaces; $2: the public key that may log in as root.
# Changes: the system it runs in. The release's newest kernel is only downloaded, to /var/lib/kernel-update: installing it
#   is a test's business. /out gets what the boot sectors are made of, and the host's public key.
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive LC_ALL=C

echo "grub-pc grub-pc/install_devices_empty boolean true" | debconf-set-selections
# The release's kernel, and the one before it. Where the mirror has one alone, that one and the same for real-time, which sorts after it.
newest=$(apt-cache depends linux-image-amd64 | sed -n 's/^ *Depends: //p' | head -n 1)
previous=$(apt-cache search --names-only '^linux-image-[0-9][0-9.]*[-+][0-9a-z]+-amd64$' | cut -d ' ' -f 1 | sort -V |
  grep -x -B 1 -F "${newest:-none}" | head -n 1 || true)
if [[ -z $previous ]]; then
  echo "wanted: a kernel of this release on the mirror; found: linux-image-amd64 depends on '$newest', which isn't there" >&2
  exit 1
fi
if [[ $previous == "$newest" ]]; then
  newest=${newest%-amd64}-rt-amd64
fi
read -ra packages <<<"$1"
apt-get -qq -y -o Dpkg::Use-Pty=0 --no-install-recommends install "${packages[@]}"

# Proxmox VE's defaults are MODULES=most and zstd's own level: on an emulated processor that takes minutes for each initramfs. The
# card's own drivers are among those loaded from it: the binding has to be there before them.
sed -i -e 's/^MODULES=.*/MODULES=list/' -e 's/^#\? *COMPRESS=.*/COMPRESS=zstd/' -e '/COMPRESSLEVEL=/d' /etc/initramfs-tools/initramfs.conf
echo COMPRESSLEVEL=1 >>/etc/initramfs-tools/initramfs.conf
printf '%s\n' virtio_pci virtio_blk ext4 bochs snd_hda_intel >>/etc/initramfs-tools/modules

apt-get -qq -y -o Dpkg::Use-Pty=0 --no-install-recommends install "$previous"
# A driver for the card, which a test loads. What builds it isn't the host's.
version=${previous#linux-image-}
apt-get -qq -y -o Dpkg::Use-Pty=0 --no-install-recommends install gcc make "linux-headers-$version"
make -s -C "/usr/src/linux-headers-$version" M=/var/lib/driver modules
apt-get -qq -y -o Dpkg::Use-Pty=0 --autoremove purge gcc make "linux-headers-$version"
find /var/lib/driver -type f ! -name nvidia.ko -delete
mkdir -p /var/lib/kernel-update
(cd /var/lib/kernel-update && apt-get -qq -o APT::Sandbox::User=root download "$newest")
apt-get clean

echo pve >/etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 pve\n' >/etc/hosts
printf 'LABEL=root / ext4 defaults,noatime 0 1\n' >/etc/fstab
cat >/etc/systemd/network/wired.network <<'NETWORK'
[Match]
Type=ether

[Network]
DHCP=ipv4
NETWORK
systemctl -q enable systemd-networkd
install -d -m 0700 /root/.ssh
printf '%s\n' "$2" >/root/.ssh/authorized_keys
# Nothing of its own accord: a test's host changes only by what the test does.
systemctl -q mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer e2scrub_reap.service \
  systemd-networkd-wait-online.service systemd-pstore.service lxc.service lxc-net.service lxc-monitord.service
# The serial console is what is seen of a boot that fails.
# A stock host without an IOMMU in use. Debian's kernel has Intel's on by default, other than what Proxmox VE had up to 8.1.
# On an emulated processor, page tables of the kernel's own cost more than all the rest (mitigations=off), and every program is translated
# anew whenever it lies elsewhere in memory: three quarters of the time of what starts many programs (norandmaps). On a machine that is busy, the kernel
# takes its timer for broken (no_timer_check).
sed -i -e 's/^GRUB_TIMEOUT=.*/GRUB_TIMEOUT=0/' -e 's/^GRUB_CMDLINE_LINUX=.*/GRUB_CMDLINE_LINUX="mitigations=off norandmaps no_timer_check console=tty0 console=ttyS0"/' \
  -e 's/^GRUB_CMDLINE_LINUX_DEFAULT=.*/GRUB_CMDLINE_LINUX_DEFAULT="quiet intel_iommu=off"/' /etc/default/grub
printf 'GRUB_DISABLE_OS_PROBER=true\nGRUB_TERMINAL=console\n' >>/etc/default/grub
# The boot loaders, for BIOS and for UEFI. `grub-install` would need the disk; this is what it does.
mkdir -p /boot/grub /out
cp -r /usr/lib/grub/i386-pc /usr/lib/grub/x86_64-efi /boot/grub/
cp /usr/lib/grub/i386-pc/boot.img /out/boot.img
grub-mkimage -O i386-pc -o /out/core.img -p '(hd0,msdos1)/boot/grub' biosdisk part_msdos ext2
grub-mkimage -O x86_64-efi -o /out/grubx64.efi -p '(hd0,msdos1)/boot/grub' part_msdos ext2 fat
cat >/boot/grub/grub.cfg <<CONFIG
linux /boot/vmlinuz-$version root=LABEL=root mitigations=off norandmaps no_timer_check console=ttyS0
initrd /boot/initrd.img-$version
boot
CONFIG
cp /etc/ssh/ssh_host_ed25519_key.pub /out/host_key.pub
rm -f /etc/machine-id /var/lib/dbus/machine-id
: >/etc/machine-id
rm -f /etc/apt/apt.conf.d/99mmdebstrap
