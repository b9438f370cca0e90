#!/usr/bin/env bash
# An engine's configuration without what nvidia-ctk puts in; JSON by Perl's means.
# Needs: common
#
# Gives: without_ours PATH; json_edit canonical FILE | without FILE KEPT. Takes kept_file of engines.sh.

# without_ours PATH - its text without what nvidia-ctk puts in.
without_ours() {
  local kept
  kept=$ROOT$(kept_file "$1")
  case $1 in
    */daemon.json) json_edit without "$ROOT$1" "$kept" ;;
    */99-nvidia.toml) [[ ! -e $kept ]] || cat "$kept" ;;
    # Somebody's own, which imports a folder: without our file in it, that means nothing.
    *) cat "$ROOT$1" ;;
  esac
}

# json_edit canonical FILE | without FILE KEPT - JSON by Perl's own means: perl-base is everywhere, jq and Python aren't. `without` takes out
# the keys that nvidia-ctk adds to docker's configuration, or gives them the value that they had in KEPT.
json_edit() {
  # shellcheck disable=SC2016 # Perl's variables
  perl -e '
    use strict; my ($verb, $file, $kept) = @ARGV; my $text;
    sub wrong { die "$file: not JSON at " . (substr($text, pos($text) // 0, 20) || "its end") . "\n" }
    sub value {
      if ($text =~ /\G\s*\{/gc) {
        my @pairs;
        until ($text =~ /\G\s*\}/gc) {
          $text =~ /\G\s*("(?:[^"\\]|\\.)*")\s*:/gcs or wrong(); my $key = $1; push @pairs, [$key, value()];
          $text =~ /\G\s*,/gc or $text =~ /\G\s*(?=\})/gc or wrong();
        }
        return { pairs => \@pairs };
      }
      if ($text =~ /\G\s*\[/gc) {
        my @items;
        until ($text =~ /\G\s*\]/gc) { push @items, value(); $text =~ /\G\s*,/gc or $text =~ /\G\s*(?=\])/gc or wrong(); }
        return \@items;
      }
      $text =~ /\G\s*("(?:[^"\\]|\\.)*"|[-+.\w]+)/gcs or wrong();
      return $1;
    }
    sub load {
      open my $in, "<", $_[0] or return { pairs => [] };
      local $/; $text = <$in>; $text = "" unless defined $text; pos($text) = 0;
      return { pairs => [] } if $text !~ /\S/;
      return value();
    }
    sub shown {
      my ($v, $in, $sorted) = @_; my $more = "$in    ";
      if (ref $v eq "HASH") {
        my @pairs = @{ $v->{pairs} }; @pairs = sort { $a->[0] cmp $b->[0] } @pairs if $sorted;
        return @pairs ? "{\n" . join(",\n", map { "$more$_->[0]: " . shown($_->[1], $more, $sorted) } @pairs) . "\n$in}" : "{}";
      }
      return ref $v ? (@$v ? "[\n" . join(",\n", map { $more . shown($_, $more, $sorted) } @$v) . "\n$in]" : "[]") : $v;
    }
    sub at { my ($v, $key) = @_; return undef unless ref $v eq "HASH"; my ($pair) = grep { $_->[0] eq $key } @{ $v->{pairs} }; $pair }
    my $now = load($file);
    if ($verb eq "without") {
      my $old = load($kept);
      for (["\"runtimes\"", "\"nvidia\""], ["\"features\"", "\"cdi\""]) {
        my ($outer, $key) = @$_; my $pair = at($now, $outer) or next;
        my $was = at($old, $outer); my $before = $was && at($was->[1], $key);
        my $list = $pair->[1]{pairs} or next;
        @$list = map { $_->[0] ne $key ? $_ : $before ? [$key, $before->[1]] : () } @$list;
        @{ $now->{pairs} } = grep { $_ != $pair } @{ $now->{pairs} } if !@$list && !$was;
      }
      my $default = at($now, "\"default-runtime\""); my $runtimes = at($now, "\"runtimes\"");
      my $left = $runtimes && at($runtimes->[1], "\"nvidia\"");
      @{ $now->{pairs} } = grep { $_ != $default } @{ $now->{pairs} } if $default && $default->[1] eq "\"nvidia\"" && !$left;
    }
    print shown($now, "", $verb eq "canonical"), "\n";' "$@"
}
