# Writes a container's configuration whole, if it still is as it was read; so each other byte of it stays.
#
# Arguments: the container's id; its file; the SHA-1 of what was read; `same`: only where Proxmox VE reads the same from
# both. Standard input: the new text. It is refused for one that is locked, as by a backup.
use strict;
use warnings;
use Digest::SHA qw(sha1_hex);
use JSON::PP;
use PVE::Cluster;
use PVE::Tools;
use PVE::LXC::Config;

my ($id, $file, $read, $same) = @ARGV;
my $new = do { local $/; <STDIN> };

sub meaning {
    my $conf = PVE::LXC::Config::parse_pct_config("/lxc/$id.conf", $_[0]);
    delete $conf->{digest};
    return JSON::PP->new->canonical->encode($conf);
}

PVE::LXC::Config->lock_config($id, sub {
    my $text = PVE::Tools::file_get_contents($file);
    die "another one has changed it meanwhile\n" if sha1_hex($text) ne $read;
    return if $same && meaning($text) ne meaning($new);
    PVE::LXC::Config->check_lock(PVE::LXC::Config::parse_pct_config("/lxc/$id.conf", $text));
    PVE::Tools::file_set_contents($file, $new, 0640);
});
