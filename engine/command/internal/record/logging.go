package record

import (
	"context"
	"sort"

	p "github.com/pulumi/pulumi-go-provider"
)

// The values of the input "logging". Not given means StdoutAndStderr.
const (
	LogStdout          = "stdout"
	LogStderr          = "stderr"
	LogStdoutAndStderr = "stdoutAndStderr"
	LogNone            = "none"
)

// ForEngine makes a Recorder that streams to the engine's log what mode asks for.
func ForEngine(ctx context.Context, mode string) *Recorder {
	log := p.GetLogger(ctx).Info
	switch mode {
	case LogNone:
		return New(nil, nil)
	case LogStdout:
		return New(log, nil)
	case LogStderr:
		return New(nil, log)
	default:
		return New(log, log)
	}
}

// Previous is what the last create or update of a resource had said.
type Previous struct{ Stdout, Stderr string }

// Variables are the environment variables that hand it to the next command. What was empty isn't set.
func (previous Previous) Variables() map[string]string {
	variables := map[string]string{}
	if previous.Stdout != "" {
		variables["PULUMI_COMMAND_STDOUT"] = previous.Stdout
	}
	if previous.Stderr != "" {
		variables["PULUMI_COMMAND_STDERR"] = previous.Stderr
	}
	return variables
}

// Names returns the variables' names in a fixed order, so that a failure is always about the same one.
func Names(variables map[string]string) []string {
	names := make([]string, 0, len(variables))
	for name := range variables {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}
