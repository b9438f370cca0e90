package JSON::PP;
# `decode_json` for a test's host. Perl takes 20 ms to read the whole of JSON::PP for each answer of the API that a script looks into. It is Perl's own wherever
# a host has a daemon.
use strict;

sub import {
    no strict 'refs';
    *{caller() . '::decode_json'} = \&decode_json;
}

sub decode_json {
    local $_ = shift;
    utf8::decode($_);
    my $found = value();
    /\G\s*\z/gc or die 'malformed JSON';
    return $found;
}

my %marks = (b => "\b", f => "\f", n => "\n", r => "\r", t => "\t");
my %words = (true => 1, false => 0, null => undef);

sub value {
    /\G\s*/gc;
    return [all(']', \&value)] if /\G\[/gc;
    return {all('}', \&entry)} if /\G\{/gc;
    return text($1) if /\G"((?:[^"\\\x00-\x1f]|\\.)*)"/gc;
    return 0 + $1 if /\G(-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][-+]?\d+)?)/gc;
    return $words{$1} if /\G(true|false|null)/gc;
    die 'malformed JSON';
}

sub entry {
    my $key = /\G\s*(?=")/gc ? value() : die 'malformed JSON';
    /\G\s*:/gc or die 'malformed JSON';
    return $key, value();
}

sub all {
    my ($end, $one) = @_;
    my @found;
    return @found if /\G\s*\Q$end/gc;
    do { push @found, $one->() } while /\G\s*,/gc;
    /\G\s*\Q$end/gc or die 'malformed JSON';
    return @found;
}

sub text {
    my $text = shift;
    $text =~ s/\\(?:u([0-9a-fA-F]{4})|(.))/defined $1 ? chr hex $1 : $marks{$2} || $2/ge;
    return $text;
}

1;
