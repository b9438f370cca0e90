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

	"homelab.local/engine/command/output"
)

// idDigits is how many hexadecimal digits follow the resource's name in its id.
const idDigits = 8

// Logging is the value of the input "logging".
type Logging string

// Values lists what the input takes, for the schema.
func (Logging) Values() []infer.EnumValue[Logging] { return output.Values[Logging]() }

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
	Stdout string `pulumi:"stdout"`
	Stderr string `pulumi:"stderr"`
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
	a.Describe(&c.AssetPaths, "Not served.")
	a.Describe(&c.ArchivePaths, "Not served.")
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
		if err := state.run(ctx, req.Inputs.Create); err != nil {
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
		if err := state.run(ctx, command); err != nil {
			return infer.UpdateResponse[CommandOutputs]{}, err
		}
	}
	return infer.UpdateResponse[CommandOutputs]{Output: state}, nil
}

// Delete runs `delete`.
func (Command) Delete(
	ctx context.Context, req infer.DeleteRequest[CommandOutputs],
) (infer.DeleteResponse, error) {
	return infer.DeleteResponse{}, req.State.run(ctx, req.State.CommandInputs.Delete)
}

// run executes a command, if there is one. As in the published plugin, the engine's Cancel ends the interpreter, not what that has started, and
// while anything has the command's output, it counts as running.
func (c *CommandOutputs) run(ctx context.Context, command *string) error {
	if c.AssetPaths != nil || c.ArchivePaths != nil {
		return errors.New("this stand-in for the plugin of pulumi-command doesn't return a command's files")
	}
	if command == nil {
		return nil
	}
	interpreter := c.Interpreter
	if len(interpreter) == 0 {
		interpreter = []string{"/bin/sh", "-c"}
		if runtime.GOOS == "windows" {
			interpreter = []string{"cmd", "/C"}
		}
	}
	process := exec.CommandContext(ctx, interpreter[0], append(interpreter[1:len(interpreter):len(interpreter)], *command)...)
	process.Env = os.Environ()
	for name, value := range c.Environment {
		process.Env = append(process.Env, name+"="+value)
	}
	if c.AddPreviousOutputInEnv == nil || *c.AddPreviousOutputInEnv {
		for name, value := range map[string]string{"PULUMI_COMMAND_STDOUT": c.Stdout, "PULUMI_COMMAND_STDERR": c.Stderr} {
			if value != "" {
				process.Env = append(process.Env, name+"="+value)
			}
		}
	}
	if c.Dir != nil {
		process.Dir = *c.Dir
	}
	if c.Stdin != nil {
		process.Stdin = strings.NewReader(*c.Stdin)
	}
	said := output.New(ctx, c.Logging)
	process.Stdout, process.Stderr = said.Stdout, said.Stderr
	var err error
	c.Stdout, c.Stderr, err = said.End(process.Run(), *command)
	return err
}
