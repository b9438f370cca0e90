# A simulated command's process where a command server runs: it hands its streams over, passes signals on, and ends as the command did.
#
# Done by a launcher (launchers.py), `perl LAUNCHER ARGUMENTS...`, with @own for what it starts: PYTHON -I -S RUN.PY [--container] NAME. Perl
# starts in a tenth of the time that Python and the lab's modules take. Everything but the three streams and a launcher's words is taken from
# /proc by the server (command_server.py); where there is none, the command is started here.
my ($number, $name) = split /:/, $ENV{LAB_COMMANDS} // '0:', 2;
# An abstract name (unix(7)) with the mount namespace in it: who sees another tree than the server doesn't reach it.
my $address = pack 'S a*', 1, "\0$name " . readlink '/proc/self/ns/mnt';
my $server;
if ($name and socket($server, 1, 1, 0) and connect($server, $address)) {
    # struct iovec, cmsghdr with SCM_RIGHTS, and msghdr of sendmsg(2), on 64 bits.
    # What is sent: how many of this process's words come before the command's, and what comes in their place.
    my $said = join "\0", 2, @own[4 .. $#own];
    my $vector = pack 'P J', $said, length $said;
    my $control = pack 'J l5 x4', 28, 1, 1, 0, 1, 2;
    my $message = pack 'J L x4 P J P J l x4', 0, 0, $vector, 1, $control, length $control, 0;
    my $sent = syscall($number + 0, fileno $server, $message, 0x4000);
    my %numbers = (HUP => 1, INT => 2, QUIT => 3, TERM => 15);
    my @passed_on = grep { ($SIG{$_} // '') ne 'IGNORE' } keys %numbers;
    for my $signal (@passed_on) {
        $SIG{$signal} = sub {
            local $SIG{PIPE} = 'IGNORE';  # the command may have ended meanwhile
            syswrite $server, chr $numbers{$signal};
        };
    }
    my $answer;
    1 until defined sysread $server, $answer, 4;
    exit 137 unless length $answer and $sent == length $said;
    my $status = unpack 'L', $answer;
    $SIG{$_} = 'DEFAULT' for @passed_on;
    exit $status >> 8 unless $status & 127;
    kill $status & 127, $$;
    exit 128 + ($status & 127);
}
exec { $own[0] } @own, @ARGV;
