# Writes storage.cfg under the lock that Proxmox VE's own writers of it take, if nobody has changed it since it was read.
#
# Arguments: its path; the SHA-256 of what was read. Standard input: the new text.
# A lock whose holder was killed stays for two minutes. So SIGTERM, SIGHUP and SIGINT die inside, which frees it.
# cfs_lock_file doesn't die: it returns undef and sets $@.
use strict;
use warnings;
use Digest::SHA qw(sha256_hex);
use PVE::Cluster;
use PVE::Tools;

my ($file, $read) = @ARGV;
my $new = do { local $/; <STDIN> };
$SIG{$_} = sub { die "ended by SIG$_[0]\n" } for qw(TERM HUP INT);
PVE::Cluster::cfs_lock_file("storage.cfg", 10, sub {
    my $text = PVE::Tools::file_get_contents($file);
    die "another one has changed $file meanwhile\n" if sha256_hex($text) ne $read;
    PVE::Tools::file_set_contents($file, $new, 0640);
    return 1;
}) or die $@;
