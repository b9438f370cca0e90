package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	p "github.com/pulumi/pulumi-go-provider"
	"github.com/pulumi/pulumi-go-provider/infer"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
	"golang.org/x/crypto/ssh"

	"homelab.local/engine/command/internal/record"
)

// idDigits is how many hexadecimal digits follow the resource's name in its id.
const idDigits = 8

// signalPatience is how long telling a command to end may take before the connection is closed anyway.
const signalPatience = time.Second

// envRefused is what the published plugin warns of when sshd doesn't take the previous output's variables.
const envRefused = `Unable to set '%s'. This only works if your SSH server is configured to accept
	these variables via AcceptEnv. Alternatively, if a Bash-like shell runs the command on the remote host, you could
	prefix the command itself with the variables in the form 'VAR=value command'`

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
		if err := state.run(ctx, *req.Inputs.Create, record.Previous{}); err != nil {
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
		if err := state.run(ctx, *command, req.State.previous()); err != nil {
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
	return infer.DeleteResponse{}, req.State.run(ctx, *req.State.CommandInputs.Delete, req.State.previous())
}

func (c *CommandOutputs) previous() record.Previous {
	return record.Previous{Stdout: c.Stdout, Stderr: c.Stderr}
}

// run executes a command in a session of a connection of its own, and puts what it said into the state.
func (c *CommandOutputs) run(ctx context.Context, command string, previous record.Previous) error {
	client, closeClient, err := c.Connection.dial(ctx)
	if err != nil {
		return err
	}
	defer closeClient()
	stop := context.AfterFunc(ctx, closeClient) // until the command runs, closing is all there is to cancel
	session, err := client.NewSession()
	if err != nil {
		return errors.Join(ctx.Err(), err)
	}
	defer session.Close()
	if err := c.setEnvironment(ctx, session, previous); err != nil {
		return errors.Join(ctx.Err(), err)
	}
	if !stop() {
		return ctx.Err()
	}
	output := record.ForEngine(ctx, string(valueOr(c.Logging, record.LogStdoutAndStderr)))
	session.Stdout, session.Stderr = output.Stdout(), output.Stderr()
	if c.Stdin != nil {
		session.Stdin = strings.NewReader(*c.Stdin)
	}
	err = runUntilCancelled(ctx, session, closeClient, command)
	c.Stdout, c.Stderr = output.Result()
	if err != nil {
		return output.Fail(err, command)
	}
	return nil
}

// setEnvironment sets the variables that were asked for, and the previous output. The first have to be taken by sshd;
// for the second, which nobody may need, a refusal is a warning.
func (c *CommandOutputs) setEnvironment(ctx context.Context, session *ssh.Session, previous record.Previous) error {
	if valueOr(c.AddPreviousOutputInEnv, true) {
		variables := previous.Variables()
		for _, name := range record.Names(variables) {
			if session.Setenv(name, variables[name]) != nil {
				p.GetLogger(ctx).Warningf(envRefused, name)
			}
		}
	}
	for _, name := range record.Names(c.Environment) {
		if err := session.Setenv(name, c.Environment[name]); err != nil {
			return fmt.Errorf("could not set environment variable %q: %w", name, err)
		}
	}
	return nil
}

// runUntilCancelled runs the command. When the engine cancels or the resource's time is up, the command is told to
// end and the connection is closed, so that nothing goes on that nobody waits for.
func runUntilCancelled(ctx context.Context, session *ssh.Session, hangUp func(), command string) error {
	stop := context.AfterFunc(ctx, func() {
		// A connection that is stuck would hold the signal up, which must not hold up hanging up.
		defer time.AfterFunc(signalPatience, hangUp).Stop()
		if err := session.Signal(ssh.SIGTERM); err != nil {
			p.GetLogger(ctx).Debugf("the command couldn't be told to end: %v", err)
		}
		hangUp()
	})
	err := session.Start(command)
	if err == nil {
		err = session.Wait()
		if err == io.EOF {
			// The command succeeded without reading all of its standard input, which is its right.
			err = nil
		}
	}
	if !stop() {
		return errors.Join(ctx.Err(), err)
	}
	return err
}
