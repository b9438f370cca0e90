# A simulated command's process where a command server runs: it hands its streams over, passes signals on, and ends as the command did.
#
# `perl command.pl PYTHON RUN.PY [--container] NAME ARGUMENTS...`, by a launcher (launchers.py), with LAB_COMMANDS set. Perl starts in a
# tenth of the time that Python and the lab's modules take. Everything but the three streams is read from /proc by the server
# (command_server.py); where none answers, the command is started here.
my ($number, $name) = split /:/, $ENV{LAB_COMMANDS}, 2;
# An abstract name (unix(7)) with the mount namespace in it: who sees another tree than the server doesn't reach it.
my $address = pack 'S a*', 1, "\0$name " . readlink '/proc/self/ns/mnt';
my $server;
if (socket($server, 1, 1, 0) and connect($server, $address)) {
    # struct iovec, cmsghdr with SCM_RIGHTS, and msghdr of sendmsg(2), on 64 bits.
    my $byte = 'x';
    my $vector = pack 'P J', $byte, 1;
    my $control = pack 'J l5 x4', 28, 1, 1, 0, 1, 2;
    my $message = pack 'J L x4 P J P J l x4', 0, 0, $vector, 1, $control, length $control, 0;
    if (syscall($number + 0, fileno $server, $message, 0x4000) == 1) {
        my %numbers = (HUP => 1, INT => 2, QUIT => 3, TERM => 15);
        while (my ($signal, $as) = each %numbers) {
            $SIG{$signal} = sub { syswrite $server, chr $as } unless ($SIG{$signal} // '') eq 'IGNORE';
        }
        my $answer;
        1 until defined sysread $server, $answer, 4;
        exit 137 unless length $answer;
        my $status = unpack 'L', $answer;
        exit $status >> 8 unless $status & 127;
        $SIG{$_} = 'DEFAULT' for keys %numbers;
        kill $status & 127, $$;
        exit 128 + ($status & 127);
    }
}
my ($python, @words) = @ARGV;
exec { $python } $python, '-I', '-S', @words;
