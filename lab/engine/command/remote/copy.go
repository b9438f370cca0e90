package remote

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"

	"github.com/pkg/sftp"
	"github.com/pulumi/pulumi-go-provider/infer"
	"github.com/pulumi/pulumi-go-provider/infer/types"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
)

// CopyToRemote is the resource command:remote:CopyToRemote, as far as it is recorded: a file, put on a host over SFTP. Deleting the resource
// leaves the copy where it is.
type CopyToRemote struct{}

// CopyInputs are the inputs of a CopyToRemote.
type CopyInputs struct {
	Connection *Connection          `pulumi:"connection" provider:"secret"`
	Triggers   []any                `pulumi:"triggers,optional" provider:"replaceOnChanges"`
	Source     types.AssetOrArchive `pulumi:"source"`
	RemotePath string               `pulumi:"remotePath"`
}

// CopyOutputs is the state of a CopyToRemote.
type CopyOutputs struct {
	CopyInputs
}

// Annotate describes the resource for the schema.
func (c *CopyToRemote) Annotate(a infer.Annotator) {
	a.Describe(c, "A file, copied to a host.")
}

// Annotate describes the inputs for the schema.
func (c *CopyInputs) Annotate(a infer.Annotator) {
	a.Describe(&c.Connection, "How to reach the host.")
	a.Describe(&c.Triggers, "The resource is replaced when any of these values changes.")
	a.Describe(&c.Source, "A FileAsset, copied as it is.")
	a.Describe(&c.RemotePath, "The file's path there. Missing parent folders are made.")
}

// Create copies.
func (CopyToRemote) Create(
	ctx context.Context, req infer.CreateRequest[CopyInputs],
) (infer.CreateResponse[CopyOutputs], error) {
	if !req.DryRun {
		if err := req.Inputs.copy(ctx); err != nil {
			return infer.CreateResponse[CopyOutputs]{}, err
		}
	}
	id, err := resource.NewUniqueHex("", idDigits, 0) // recorded: without the resource's name
	return infer.CreateResponse[CopyOutputs]{ID: id, Output: CopyOutputs{req.Inputs}}, err
}

// Update copies again.
func (CopyToRemote) Update(
	ctx context.Context, req infer.UpdateRequest[CopyInputs, CopyOutputs],
) (infer.UpdateResponse[CopyOutputs], error) {
	if !req.DryRun {
		if err := req.Inputs.copy(ctx); err != nil {
			return infer.UpdateResponse[CopyOutputs]{}, err
		}
	}
	return infer.UpdateResponse[CopyOutputs]{Output: CopyOutputs{req.Inputs}}, nil
}

func (c *CopyInputs) copy(ctx context.Context) error {
	if c.Source.Asset == nil || c.Source.Asset.Path == "" {
		return errors.New("this stand-in for the plugin of pulumi-command copies a FileAsset, and nothing else")
	}
	client, err := c.Connection.dial(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	transfer, err := sftp.NewClient(client)
	if err != nil {
		return err
	}
	defer transfer.Close()
	from, err := os.Open(c.Source.Asset.Path)
	if err != nil {
		return err
	}
	defer from.Close()
	if err := transfer.MkdirAll(path.Dir(c.RemotePath)); err != nil {
		return fmt.Errorf("failed to create parent directories for %s: %w", c.RemotePath, err)
	}
	to, err := transfer.Create(c.RemotePath)
	if err != nil {
		return fmt.Errorf("failed to create remote file %s: %w", c.RemotePath, err)
	}
	_, err = to.ReadFrom(from)
	return errors.Join(err, to.Close())
}
