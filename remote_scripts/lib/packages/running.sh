#!/usr/bin/env bash
# Long commands: what they say goes to this system's log, and every few seconds a person is told where they are; and what a failed one's
# words mean.
# Needs: files, lock, proxy, progress, packages/installed
#
# Gives: run_streamed SECONDS LOG COMMAND...; recognise LOG -> SYMPTOM; explain LOG WANTED WHY [NEXT].
# Variables: SYMPTOMS (known failures, a line each); DOING (progress.sh).
# Over pct exec and sudo the path may lack these.
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin
LOGS=$RUN # logs of the commands of this run
DOING=${DOING:-packages}

# run_streamed SECONDS LOG COMMAND... - each line goes to LOG, and as it comes to this system's log; to stderr goes where it is. The command
# writes to the file alone, so that it doesn't notice when the client has gone; what it says of its state (apt), to LOG.status, on 9. The lock
# is taken (take_lock). Status 124: it took longer than SECONDS, and was ended.
run_streamed() {
  local TIME file=$2 status=0
  time_for "$1"
  shift 2
  : >"$file"
  : >"$file.status"
  open_step_log "$*"
  with_proxy watched "$file" not_hung_up "$TIME" "$@" 9>>"$file.status" || status=$?
  forget_installed
  [[ $status != 124 && $status != 137 ]] || printf 'ended after %s s\n' "$TIME" >>"$file"
  return "$status"
}

# not_hung_up SECONDS COMMAND... - what a script ignores its children ignore, too: `timeout` could end none of them, and maintainers' scripts count on
# SIGPIPE. That the line is gone stays ignored.
not_hung_up() (
  trap - PIPE TERM
  exec timeout -k 30 "$1" "${AS_BY_DEFAULT[@]/HUP,/}" "${@:2}"
)

# recognise LOG - sets SYMPTOM: name, wanted, found, why and next of the first known failure that LOG has; nothing where it has none.
# SYMPTOMS has a line for each: name, Perl's regular expression, where, wanted, why, next, names of those that it hides; tabs between.
recognise() {
  local answer
  SYMPTOM=()
  answer=$(SYMPTOMS=${SYMPTOMS:-} perl -e '
    local $/; my $text = join "", <STDIN>; $text =~ s{^Waiting for cache lock.*\n}{}mg; my (%found, %hidden, @order);
    for (split /\n/, $ENV{SYMPTOMS}) {
      my ($name, $pattern, $where, $wanted, $why, $next, $hides) = split /\t/, $_, -1;
      next unless $text =~ /$pattern/i;
      my ($what, $from, $to) = ($+{what} // "", $-[0], $+[0]);
      my $start = rindex($text, "\n", $from - 1) + 1; $start = 0 if $from == 0;
      my $end = index($text, "\n", $to); $end = length $text if $end < 0;
      my $line = join " ", split " ", substr($text, $start, $end - $start);
      $line = substr($line, 0, 240) . "..." if length $line > 240;
      s/\{what\}/$what/g for $wanted, $why, $next;
      $hidden{$_} = 1 for split / /, $hides;
      push @order, [$name, $wanted, "$where: $line", $why, $next];
    }
    for (@order) { next if $hidden{$_->[0]}; print join "\n", @$_[0 .. 4]; last }' <"$1") || answer=
  [[ -z $answer ]] || mapfile -t SYMPTOM <<<"$answer"
}

# explain LOG WANTED WHY [NEXT] - ends the run with the message of the first known failure that LOG has, else with LOG's last lines.
explain() {
  recognise "$1"
  if ((${#SYMPTOM[@]} > 0)); then
    die "${SYMPTOM[1]}" "${SYMPTOM[2]}$(build_log "$1")" "${SYMPTOM[3]}" "${SYMPTOM[4]}"
  fi
  # shellcheck disable=SC2016 # meant literally
  [[ $(tail -n 1 "$1") != "ended after "* ]] ||
    set -- "${@:1:3}" 'run `pulumi up` again: it continues from what is there; a slow line or system gets longer with nvidia.timeouts.install'
  die "$2" "$(tail -n 8 "$1")$(build_log "$1")" "$3" \
    "${4:-correct what the lines above say ($STEP_LOG there has all of it), then run \`pulumi up\` again}"
}

# build_log LOG - the end of the compiler's output, or of the installer's own log, where LOG names that.
build_log() {
  local file
  while IFS= read -r file; do
    [[ -r $ROOT$file ]] || continue
    printf '\n%s ends:\n%s' "$file" "$(tail -n 12 "$ROOT$file")"
    return 0
  done < <(grep -oE '/var/lib/dkms/[^ ]+/make\.log|/var/log/nvidia-installer\.log' "$1" | sort -u)
}
