package remote

import (
	"context"
	"fmt"
	"strings"

	p "github.com/pulumi/pulumi-go-provider"
	"github.com/pulumi/pulumi-go-provider/infer"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"golang.org/x/crypto/ssh"

	"homelab.local/engine/command/output"
)

// idDigits is how many hexadecimal digits follow the resource's name in its id.
const idDigits = 8

// envRefused is what the published plugin warns of when sshd doesn't take the previous output's variables.
const envRefused = `Unable to set '%s'. This only works if your SSH server is configured to accept
	these variables via AcceptEnv. Alternatively, if a Bash-like shell runs the command on the remote host, you could
	prefix the command itself with the variables in the form 'VAR=value command'`

// Logging is the value of the input "logging".
type Logging string

// Values lists what the input takes, for the schema.
func (Logging) Values() []infer.EnumValue[Logging] { return output.Values[Logging]() }

// Command is the resource command:remote:Command: commands that run on a host when the resource is created, updated
// and deleted.
type Command struct{}

// CommandInputs are the inputs of a Command.
type CommandInputs struct {
	Connection             *Connection       `pulumi:"connection" provider:"secret"`
	Environment            map[string]string `pulumi:"environment,optional"`
	Triggers               []any             `pulumi:"triggers,optional" provider:"replaceOnChanges"`
	Create                 *string           `pulumi:"create,optional"`
	Update                 *string           `pulumi:"update,optional"`
	Delete                 *string           `pulumi:"delete,optional"`
	Stdin                  *string           `pulumi:"stdin,optional"`
	Logging                *Logging          `pulumi:"logging,optional"`
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
	a.Describe(c, "Commands that run on a host, over SSH.")
}

// Annotate describes the inputs for the schema.
func (c *CommandInputs) Annotate(a infer.Annotator) {
	a.Describe(&c.Connection, "How to reach the host.")
	a.Describe(&c.Environment, "Environment variables; sshd has to accept them (AcceptEnv).")
	a.Describe(&c.Triggers, "The resource is replaced when any of these values changes.")
	a.Describe(&c.Create, "Runs when the resource is created; also on update when there is no `update`.")
	a.Describe(&c.Update, "Runs when an input of the resource has changed.")
	a.Describe(&c.Delete, "Runs when the resource is deleted.")
	a.Describe(&c.Stdin, "Given to each command as its standard input.")
	a.Describe(&c.Logging, "Which output is logged while a command runs. Default: both.")
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
	if !req.DryRun && req.Inputs.Create != nil {
		if err := state.run(ctx, *req.Inputs.Create); err != nil {
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
	if !req.DryRun && command != nil {
		if err := state.run(ctx, *command); err != nil {
			return infer.UpdateResponse[CommandOutputs]{}, err
		}
	}
	return infer.UpdateResponse[CommandOutputs]{Output: state}, nil
}

// Delete runs `delete`; when there is none, no connection is made.
func (Command) Delete(
	ctx context.Context, req infer.DeleteRequest[CommandOutputs],
) (infer.DeleteResponse, error) {
	if req.State.CommandInputs.Delete == nil {
		return infer.DeleteResponse{}, nil
	}
	return infer.DeleteResponse{}, req.State.run(ctx, *req.State.CommandInputs.Delete)
}

// run executes a command in a session of a connection of its own, and puts what it said into the state. As in the published plugin, what runs
// is left alone: neither the engine's Cancel nor the resource's time limit, nor the engine's end, ends it or the connection.
func (c *CommandOutputs) run(ctx context.Context, command string) error {
	client, err := c.Connection.dial(ctx)
	if err != nil {
		return err
	}
	session, err := client.NewSession()
	if err != nil {
		return err
	}
	defer session.Close()
	if err := c.setEnvironment(ctx, session); err != nil {
		return err
	}
	said := output.New(ctx, c.Logging)
	session.Stdout, session.Stderr = said.Stdout, said.Stderr
	if c.Stdin != nil {
		session.Stdin = strings.NewReader(*c.Stdin)
	}
	c.Stdout, c.Stderr, err = said.End(session.Run(command), command)
	return err
}

// setEnvironment sets the variables that were asked for, and the previous output. The first have to be taken by sshd;
// for the second, which nobody may need, a refusal is a warning.
func (c *CommandOutputs) setEnvironment(ctx context.Context, session *ssh.Session) error {
	for name, value := range c.Environment {
		if err := session.Setenv(name, value); err != nil {
			p.GetLogger(ctx).Errorf(envRefused, name)
			return fmt.Errorf("could not set environment variable %q: %w", name, err)
		}
	}
	if !valueOr(c.AddPreviousOutputInEnv, true) {
		return nil
	}
	for name, value := range map[string]string{"PULUMI_COMMAND_STDOUT": c.Stdout, "PULUMI_COMMAND_STDERR": c.Stderr} {
		if value != "" && session.Setenv(name, value) != nil {
			p.GetLogger(ctx).Warningf(envRefused, name)
		}
	}
	return nil
}
