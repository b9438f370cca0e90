package PVE::Cluster;

# The one call of Proxmox VE's module that the lab has. LAB_PVE: the folder that is /etc/pve; LAB_QUORATE: 1 where the node has a quorum.
use strict;
use warnings;

# A lock whose holder was killed ends after two minutes, when another one asks for it.
my $lock_seconds = 120;

# Never dies: returns undef and sets $@, and is free of the lock by then. The code has a minute.
sub cfs_lock_file {
    my ($file, $seconds, $code) = @_;
    my $name = "file-" . $file =~ s![./]!_!gr;
    my $lock = "$ENV{LAB_PVE}/priv/lock/$name";
    my ($locked, $result) = (0);
    eval {
        die "no quorum!\n" if !$ENV{LAB_QUORATE};
        mkdir "$ENV{LAB_PVE}/priv/lock";
        for (my $tries = 0; !($locked = mkdir $lock); $tries++) {
            die "got lock request timeout\n" if $tries >= 10 * $seconds;
            my @status = stat $lock;
            rmdir $lock if @status && time - $status[9] > $lock_seconds;
            print STDERR "trying to acquire cfs lock '$name' ...\n" if $tries % 10 == 9;
            select undef, undef, undef, 0.1;
        }
        1;
    } or $@ = "cfs-lock '$name' error: $@";
    if ($locked) {
        local $SIG{ALRM} = sub { die "'$name'-locked command timed out - aborting\n" };
        $@ = "";
        eval { alarm 60; $result = $code->(); alarm 0; };
        my $error = $@;
        rmdir $lock;
        $@ = $error;
    }
    return $@ ? undef : $result;
}

1;
