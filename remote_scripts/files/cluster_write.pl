# Writes a file of /etc/pve under a lock of the whole cluster, if nobody has changed it since it was read: storage.cfg
# under the one that Proxmox VE's own writers of it take.
#
# Arguments: its path; the SHA-256 of what was read, of nothing where it wasn't there; the new text, empty: it goes.
# A lock whose holder was killed stays for two minutes. So SIGTERM, SIGHUP and SIGINT die inside, which frees it.
# Neither call of these dies: it returns undef and sets $@.
use strict;
use warnings;
use Digest::SHA qw(sha256_hex);
use PVE::Cluster;
use PVE::Tools;

my ($file, $read, $new) = @ARGV;
$SIG{$_} = sub { die "ended by SIG$_[0]\n" } for qw(TERM HUP INT);
my $write = sub {
    my $text = -e $file ? PVE::Tools::file_get_contents($file) : "";
    die "another node has changed $file meanwhile\n" if sha256_hex($text) ne $read;
    if ($new ne "") {
        PVE::Tools::file_set_contents($file, $new, 0640);
    } else {
        unlink($file) or die "$file: $!\n";
    }
    return 1;
};
my $done = $file =~ m!/(storage\.cfg)$!
    ? PVE::Cluster::cfs_lock_file($1, 10, $write)
    : PVE::Cluster::cfs_lock_domain("homelab", 10, $write);
$done or die $@;
