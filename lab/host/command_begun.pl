# What command.pl does once its command runs in a fork of the command server: it passes signals on, and ends as the command does.
sub {
    my ($server) = @_;
    my %numbers = (HUP => 1, INT => 2, QUIT => 3, TERM => 15);
    while (my ($signal, $as) = each %numbers) {
        $SIG{$signal} = sub {
            local $SIG{PIPE} = 'IGNORE';  # the command may have ended meanwhile
            syswrite $server, chr $as;
        } unless ($SIG{$signal} // '') eq 'IGNORE';
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
