# A simulated command's process where a command server runs: it hands its streams over, passes signals on, and ends as the command did.
#
# `perl command.pl LAUNCHER ARGUMENTS...`, as the kernel starts a launcher (launchers.py) whose interpreter this is: its lines with `#:` say
# what is started. Or by a launcher that a shell reads: `perl command.pl -- PYTHON RUN.PY [--container] NAME ARGUMENTS...`. Perl starts in
# a tenth of the time that Python and the lab's modules take. Everything but the three streams and a launcher's words is taken from /proc
# by the server (command_server.py); where none answers, the command is started here.
#
# Half of all commands are answered at once. What those don't need is in command_begun.pl: to compile it takes as long as to ask.
my ($first, $python, $program, @own) = (5, @ARGV[1, 2]);
if ($ARGV[0] ne '--') {
    open my $launcher, '<', $ARGV[0] or die "$ARGV[0]: $!\n";
    ($first, $python, $program, @own) = (3, map { /^#:(.*)/ ? $1 : () } <$launcher>);
}
my ($number, $name) = split /:/, $ENV{LAB_COMMANDS} // '0:', 2;
# An abstract name (unix(7)) with the mount namespace in it: who sees another tree than the server doesn't reach it.
my $address = pack 'S a*', 1, "\0$name " . readlink '/proc/self/ns/mnt';
my $server;
if ($name and socket($server, 1, 1, 0) and connect($server, $address)) {
    # struct iovec, cmsghdr with SCM_RIGHTS, and msghdr of sendmsg(2), on 64 bits.
    # What is sent: how many of this process's words come before the command's, and what comes before these.
    my $said = join "\0", $first, @own;
    my $vector = pack 'P J', $said, length $said;
    my $control = pack 'J l5 x4', 28, 1, 1, 0, 1, 2;
    my $message = pack 'J L x4 P J P J l x4', 0, 0, $vector, 1, $control, length $control, 0;
    if (syscall($number + 0, fileno $server, $message, 0x4000) == length $said) {
        my ($answer, $read) = ('', 1);
        1 until defined sysread $server, $answer, 4;
        exit 137 unless length $answer;
        my $status = unpack 'L', $answer;
        (do __FILE__ =~ s/\.pl$/_begun.pl/r)->($server) if $status >> 17;
        # The server did it itself: how long two texts are, for stderr and stdout; these; what this process is to become, if anything.
        $read = sysread($server, $answer, 1 << 16, length $answer) // 1 while $read;
        my ($errors, $output) = unpack 'x4 L2', $answer;
        exit 137 if length $answer < 12 + $errors + $output;
        for ([*STDERR, substr $answer, 12, $errors], [*STDOUT, substr $answer, 12 + $errors, $output]) {
            my ($stream, $text) = @$_;
            while (length $text) {
                my $written = syswrite $stream, $text;
                substr $text, 0, $written, '' if $written;
                next if defined $written or $! == 4;  # EINTR
                exit 141 if $! == 32;  # EPIPE, where SIGPIPE is ignored
                die "write error: $!\n";
            }
        }
        my @become = unpack '(Z*)*', substr $answer, 12 + $errors + $output;
        exec { $become[0] } @become if @become;
        exit $status & 255;
    }
}
exec { $python } $python, '-I', '-S', $program, @own, @ARGV[$first - 2 .. $#ARGV];
