// Package local serves the resource of pulumi-command that runs commands on this machine.
package local

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"

	"github.com/pulumi/pulumi-go-provider/infer"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"

	"homelab.local/engine/command/internal/record"
)

// idDigits is how many hexadecimal digits follow the resource's name in its id.
const idDigits = 8

// Logging is the value of the input "logging".
type Logging string

// Values lists what the input takes, for the schema.
func (Logging) Values() []infer.EnumValue[Logging] {
	return []infer.EnumValue[Logging]{
		{Name: record.LogStdout, Value: record.LogStdout, Description: "Log stdout, not stderr."},
		{Name: record.LogStderr, Value: record.LogStderr, Description: "Log stderr, not stdout."},
		{Name: record.LogStdoutAndStderr, Value: record.LogStdoutAndStderr, Description: "Log both."},
		{Name: record.LogNone, Value: record.LogNone, Description: "Log nothing."},
	}
}

// Command is the resource command:local:Command: commands that run on this machine when the resource is created,
// updated and deleted.
type Command struct{}

// CommandInputs are the inputs of a Command.
type CommandInputs struct {
	Triggers               []any             `pulumi:"triggers,optional" provider:"replaceOnChanges"`
	Create                 *string           `pulumi:"create,optional"`
	Update                 *string           `pulumi:"update,optional"`
	Delete                 *string           `pulumi:"delete,optional"`
	Environment            map[string]string `pulumi:"environment,optional"`
	Dir                    *string           `pulumi:"dir,optional"`
	Interpreter            []string          `pulumi:"interpreter,optional"`
	Stdin                  *string           `pulumi:"stdin,optional"`
	Logging                *Logging          `pulumi:"logging,optional"`
	AssetPaths             []string          `pulumi:"assetPaths,optional"`
	ArchivePaths           []string          `pulumi:"archivePaths,optional"`
	AddPreviousOutputInEnv *bool             `pulumi:"addPreviousOutputInEnv,optional"`
}

// CommandOutputs is the state of a Command.
type CommandOutputs struct {
	CommandInputs
	Stdout  string                     `pulumi:"stdout"`
	Stderr  string                     `pulumi:"stderr"`
	Assets  map[string]*resource.Asset `pulumi:"assets,optional"`
	Archive *resource.Archive          `pulumi:"archive,optional"`
}

// Annotate describes the resource for the schema.
func (c *Command) Annotate(a infer.Annotator) {
	a.Describe(c, "Commands that run on this machine.")
}

// Annotate describes the inputs for the schema.
func (c *CommandInputs) Annotate(a infer.Annotator) {
	a.Describe(&c.Triggers, "The resource is replaced when any of these values changes.")
	a.Describe(&c.Create, "Runs when the resource is created; also on update when there is no `update`.")
	a.Describe(&c.Update, "Runs when an input of the resource has changed.")
	a.Describe(&c.Delete, "Runs when the resource is deleted.")
	a.Describe(&c.Environment, "Environment variables, added to the engine's.")
	a.Describe(&c.Dir, "The folder in which commands run. Default: the program's.")
	a.Describe(&c.Interpreter, "The program and its arguments that get the command as their last argument. "+
		"Default: /bin/sh -c, on Windows cmd /C.")
	a.Describe(&c.Stdin, "Given to each command as its standard input.")
	a.Describe(&c.Logging, "Which output is logged while a command runs. Default: both.")
	a.Describe(&c.AssetPaths, "Patterns of files to return as assets once the command has run.")
	a.Describe(&c.ArchivePaths, "Patterns of files to return as one archive once the command has run.")
	a.Describe(&c.AddPreviousOutputInEnv, "Whether the previous command's output is in the next one's environment, "+
		"as PULUMI_COMMAND_STDOUT and PULUMI_COMMAND_STDERR. Default: true.")
}

// Create runs `create`.
func (Command) Create(
	ctx context.Context, req infer.CreateRequest[CommandInputs],
) (infer.CreateResponse[CommandOutputs], error) {
	state := CommandOutputs{CommandInputs: req.Inputs}
	id, err := resource.NewUniqueHex(req.Name, idDigits, 0)
	if err != nil {
		return infer.CreateResponse[CommandOutputs]{}, err
	}
	if !req.DryRun {
		if err := state.runAndCollect(ctx, req.Inputs.Create, record.Previous{}); err != nil {
			return infer.CreateResponse[CommandOutputs]{}, err
		}
	}
	return infer.CreateResponse[CommandOutputs]{ID: id, Output: state}, nil
}

// Update runs `update`, or `create` when there is none.
func (Command) Update(
	ctx context.Context, req infer.UpdateRequest[CommandInputs, CommandOutputs],
) (infer.UpdateResponse[CommandOutputs], error) {
	state := CommandOutputs{CommandInputs: req.Inputs, Stdout: req.State.Stdout, Stderr: req.State.Stderr}
	command := req.Inputs.Update
	if command == nil {
		command = req.Inputs.Create
	}
	if !req.DryRun {
		if err := state.runAndCollect(ctx, command, req.State.previous()); err != nil {
			return infer.UpdateResponse[CommandOutputs]{}, err
		}
	}
	return infer.UpdateResponse[CommandOutputs]{Output: state}, nil
}

// Delete runs `delete`.
func (Command) Delete(
	ctx context.Context, req infer.DeleteRequest[CommandOutputs],
) (infer.DeleteResponse, error) {
	if req.State.CommandInputs.Delete == nil {
		return infer.DeleteResponse{}, nil
	}
	return infer.DeleteResponse{}, req.State.run(ctx, *req.State.CommandInputs.Delete, req.State.previous())
}

func (c *CommandOutputs) previous() record.Previous {
	return record.Previous{Stdout: c.Stdout, Stderr: c.Stderr}
}

func (c *CommandOutputs) runAndCollect(ctx context.Context, command *string, previous record.Previous) error {
	if command != nil {
		if err := c.run(ctx, *command, previous); err != nil {
			return err
		}
	}
	return c.collect()
}

func (c *CommandOutputs) run(ctx context.Context, command string, previous record.Previous) error {
	interpreter := c.Interpreter
	if len(interpreter) == 0 {
		interpreter = []string{"/bin/sh", "-c"}
		if runtime.GOOS == "windows" {
			interpreter = []string{"cmd", "/C"}
		}
	}
	arguments := append(append([]string{}, interpreter[1:]...), command)
	process := exec.CommandContext(ctx, interpreter[0], arguments...)
	inOwnGroup(process)
	process.Env = c.environ(previous)
	if c.Dir != nil {
		process.Dir = *c.Dir
	}
	if c.Stdin != nil {
		process.Stdin = strings.NewReader(*c.Stdin)
	}
	output := record.ForEngine(ctx, c.loggingMode())
	process.Stdout, process.Stderr = output.Stdout(), output.Stderr()
	err := process.Run()
	c.Stdout, c.Stderr = output.Result()
	if err != nil {
		return output.Fail(joinCancelled(ctx, err), command)
	}
	return nil
}

// joinCancelled puts the reason before its effect when a command ended because the engine wanted it to.
func joinCancelled(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	return errors.Join(ctx.Err(), err)
}

func (c *CommandOutputs) loggingMode() string {
	if c.Logging == nil {
		return record.LogStdoutAndStderr
	}
	return string(*c.Logging)
}

// environ is the engine's environment, then the previous output, then what was asked for: the last one wins.
func (c *CommandOutputs) environ(previous record.Previous) []string {
	environment := os.Environ()
	if c.AddPreviousOutputInEnv == nil || *c.AddPreviousOutputInEnv {
		environment = appendVariables(environment, previous.Variables())
	}
	return appendVariables(environment, c.Environment)
}

func appendVariables(environment []string, variables map[string]string) []string {
	for _, name := range record.Names(variables) {
		environment = append(environment, name+"="+variables[name])
	}
	return environment
}
