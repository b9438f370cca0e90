// Package output keeps what a command says, and shows it to the engine while the command runs, as the published plugin does.
package output

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"

	p "github.com/pulumi/pulumi-go-provider"
	"github.com/pulumi/pulumi-go-provider/infer"
)

// Values lists what the input "logging" takes, for the schema. Each package of resources has its own type of it, as the schema has.
func Values[T ~string]() []infer.EnumValue[T] {
	return []infer.EnumValue[T]{
		{Name: "stdout", Value: "stdout", Description: "Log stdout, not stderr."},
		{Name: "stderr", Value: "stderr", Description: "Log stderr, not stdout."},
		{Name: "stdoutAndStderr", Value: "stdoutAndStderr", Description: "Log both."},
		{Name: "none", Value: "none", Description: "Log nothing."},
	}
}

// Output is what one command says.
type Output struct {
	Stdout, Stderr io.Writer

	mu               sync.Mutex
	out, errors, all bytes.Buffer
	log              *io.PipeWriter
	shown            chan struct{}
}

// New makes an Output whose lines are status lines of the resource: the engine shows the last one, while the resource is at work, and none at
// the end. Both streams go through one pipe, so that a line without an end is joined with what comes next. A line of 64 KiB is more than the
// scanner takes: nobody reads on then, and the command waits for ever. All of that is so in the published plugin (util.LogOutput).
func New[T ~string](ctx context.Context, logging *T) *Output {
	o := &Output{shown: make(chan struct{})}
	var lines *io.PipeReader
	lines, o.log = io.Pipe()
	go func() {
		defer close(o.shown)
		for scanner := bufio.NewScanner(lines); scanner.Scan(); {
			p.GetLogger(ctx).InfoStatus(scanner.Text())
		}
	}()
	mode := "stdoutAndStderr"
	if logging != nil {
		mode = string(*logging)
	}
	o.Stdout = o.writer(&o.out, strings.HasPrefix(mode, "stdout"))
	o.Stderr = o.writer(&o.errors, strings.HasSuffix(strings.ToLower(mode), "stderr"))
	return o
}

type writer func([]byte) (int, error)

func (w writer) Write(data []byte) (int, error) { return w(data) }

func (o *Output) writer(kept *bytes.Buffer, logged bool) io.Writer {
	return writer(func(data []byte) (int, error) {
		o.mu.Lock()
		kept.Write(data)
		o.all.Write(data)
		o.mu.Unlock()
		if logged {
			return o.log.Write(data)
		}
		return len(data), nil
	})
}

// End returns both outputs without their last newline, or the command's error with the command and all that it said.
func (o *Output) End(err error, command string) (stdout, stderr string, _ error) {
	o.log.Close()
	<-o.shown
	if err != nil {
		return "", "", fmt.Errorf("%w: running %q:\n%s", err, command, o.all.String())
	}
	return strings.TrimSuffix(o.out.String(), "\n"), strings.TrimSuffix(o.errors.String(), "\n"), nil
}
