#!/usr/bin/perl -w
# Stands for lxc-attach where a folder of this machine stands for a container: `--clear-env -n ID [--keep-var NAME]... -- PROGRAM...`.
#
# As the real one it gives the program nothing of its own environment but what it is to keep, looks it up in the container's PATH, waits for it, and
# leaves it running where it is killed; a signal n is the status 128 + n. STAND_IN_SHELL is what the container has as /bin/sh, STAND_IN_PATH where
# its programs are, and HOMELAB_ROOT is a simulated container's own.
use strict;

my ($clear, $name, $id, @command) = @ARGV;
die "lxc-attach: @ARGV\n" if "$clear $name" ne '--clear-env -n' or $id !~ /^\d+$/;
my %host = %ENV;
my @kept = ('HOMELAB_ROOT');
while ((my $word = shift @command) ne '--') {
    die "lxc-attach: $word\n" if $word ne '--keep-var';
    push @kept, shift @command;
}
splice @command, 0, 1, split ' ', $host{STAND_IN_SHELL} if $host{STAND_IN_SHELL} and $command[0] eq '/bin/sh';
my $child = fork;
if (!$child) {
    setpgrp;
    %ENV = (PATH => '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', container => 'lxc');
    defined $host{$_} and $ENV{$_} = $host{$_} for @kept;
    $ENV{PATH} = "$host{STAND_IN_PATH}:$ENV{PATH}" if $host{STAND_IN_PATH};
    $^W = 0; # of what can't be started, the line below tells
    exec {$command[0]} @command or print STDERR "lxc-attach: $id: $! - Failed to exec \"$command[0]\"\n";
    exit 127;
}
waitpid $child, 0;
exit($? & 127 ? 128 + ($? & 127) : $? >> 8);
