package PVE::Tools;

# Files, as Proxmox VE's module reads and writes them.
use strict;
use warnings;

sub file_get_contents {
    my ($file) = @_;
    open my $in, "<", $file or die "can't open '$file' - $!\n";
    local $/;
    return <$in> // "";
}

sub file_set_contents {
    my ($file, $text, $mode) = @_;
    my $new = "$file.tmp.$$";
    open my $out, ">", $new or die "unable to open file '$new' - $!\n";
    chmod $mode, $new;
    print $out $text or die "unable to write '$new' - $!\n";
    close $out or die "closing file '$new' failed - $!\n";
    # For a moment there is none, as on pmxcfs.
    select undef, undef, undef, 0.0003 if unlink $file;
    rename $new, $file or die "close (rename) atomic file '$file' failed: $!\n";
}

1;
