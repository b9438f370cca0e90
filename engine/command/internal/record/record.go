// Package record owns what becomes of a command's output: kept for the resource's stdout and stderr, kept in order of
// arrival for error messages, and sent line by line to the engine's log while the command runs.
package record

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"sync"
)

// Recorder collects the output of one command. Its writers may be used from several goroutines.
type Recorder struct {
	mu     sync.Mutex
	both   bytes.Buffer
	stdout stream
	stderr stream
}

type stream struct {
	recorder *Recorder
	kept     bytes.Buffer
	line     bytes.Buffer
	log      func(string)
}

// New makes a Recorder that hands every complete line to the given functions. nil: that stream isn't logged.
func New(logStdout, logStderr func(string)) *Recorder {
	r := &Recorder{}
	r.stdout = stream{recorder: r, log: logStdout}
	r.stderr = stream{recorder: r, log: logStderr}
	return r
}

// Stdout is where the command's standard output goes.
func (r *Recorder) Stdout() io.Writer { return &r.stdout }

// Stderr is where the command's standard error goes.
func (r *Recorder) Stderr() io.Writer { return &r.stderr }

// Result ends the recording: an unfinished last line is logged, and both outputs are returned without their last
// newline.
func (r *Recorder) Result() (stdout, stderr string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.stdout.finish(), r.stderr.finish()
}

// Fail wraps the error of a command with the command and all that it had said, in the order in which it arrived.
// What was given on standard input isn't part of it.
func (r *Recorder) Fail(err error, command string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return fmt.Errorf("%w: running %q:\n%s", err, command, r.both.String())
}

// Write implements io.Writer.
func (s *stream) Write(data []byte) (int, error) {
	s.recorder.mu.Lock()
	defer s.recorder.mu.Unlock()
	s.kept.Write(data)
	s.recorder.both.Write(data)
	if s.log == nil {
		return len(data), nil
	}
	rest := data
	for {
		end := bytes.IndexByte(rest, '\n')
		if end < 0 {
			s.line.Write(rest)
			return len(data), nil
		}
		s.line.Write(rest[:end])
		s.log(s.line.String())
		s.line.Reset()
		rest = rest[end+1:]
	}
}

func (s *stream) finish() string {
	if s.log != nil && s.line.Len() > 0 {
		s.log(s.line.String())
		s.line.Reset()
	}
	return strings.TrimSuffix(s.kept.String(), "\n")
}
