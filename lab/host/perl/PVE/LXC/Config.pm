package PVE::LXC::Config;

# What the lab has of Proxmox VE's module for containers' configurations. LAB_PVE: the folder that is /etc/pve.
use strict;
use warnings;
use Digest::SHA qw(sha1_hex);
use Fcntl qw(:flock);

# Dies where it isn't free; a node waits ten seconds for it.
sub lock_config {
    my ($class, $vmid, $code) = @_;
    my $name = "lock/lxc/pve-config-$vmid.lock";
    mkdir "$ENV{LAB_PVE}/../../run/$_" for ("lock", "lock/lxc");
    open my $lock, ">>", "$ENV{LAB_PVE}/../../run/$name" or die "can't open lock file '/run/$name' - $!\n";
    flock $lock, LOCK_EX | LOCK_NB or die "can't lock file '/run/$name' - got timeout\n";
    return $code->();
}

sub check_lock {
    my ($class, $conf) = @_;
    die "CT is locked ($conf->{lock})\n" if $conf->{lock};
}

# What a line says that can't be read is lost; values aren't looked at.
sub parse_pct_config {
    my ($filename, $text) = @_;
    my $result = { digest => sha1_hex($text), snapshots => {}, pending => {} };
    my ($conf, $about) = ($result, "");
    for my $line (split /\n/, $text) {
        if ($line =~ /^\[(pve:pending|[a-z][a-z0-9_-]+)\]\s*$/i) {
            $conf->{description} = $about if $about;
            $about = "";
            $conf = lc $1 eq "pve:pending" ? ($result->{pending} = {}) : ($result->{snapshots}{$1} = {});
        } elsif ($line =~ /^#(.*)$/) {
            $about .= decoded($1) . "\n";
        } elsif ($line =~ /^(lxc\.[a-z0-9_.-]+)(?::|\s*=)\s*(.*?)\s*$/) {
            push @{ $conf->{lxc} }, [$1, $2];
        } elsif ($line =~ /^description:\s*(.*\S)\s*$/) {
            $about .= decoded($1);
        } elsif ($line =~ /^([a-z][a-z_]*\d*):\s*(.+?)\s*$/) {
            $conf->{$1} = $2;
        }
    }
    $conf->{description} = $about if $about;
    return $result;
}

sub decoded {
    my ($text) = @_;
    $text =~ s/%([0-9A-Fa-f]{2})/chr hex $1/ge;
    return $text;
}

1;
