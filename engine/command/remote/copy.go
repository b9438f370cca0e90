package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/pkg/sftp"
	"github.com/pulumi/pulumi-go-provider/infer"
	"github.com/pulumi/pulumi-go-provider/infer/types"
	"github.com/pulumi/pulumi/sdk/v3/go/common/resource"
)

// CopyToRemote is the resource command:remote:CopyToRemote: a file, a text or a folder, put on a host over SFTP.
// Deleting the resource leaves the copy where it is.
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
	a.Describe(c, "A file, a text or a folder, copied to a host.")
}

// Annotate describes the inputs for the schema.
func (c *CopyInputs) Annotate(a infer.Annotator) {
	a.Describe(&c.Connection, "How to reach the host.")
	a.Describe(&c.Triggers, "The resource is replaced when any of these values changes.")
	a.Describe(&c.Source, "A FileAsset, a StringAsset or a FileArchive, copied as it is.")
	a.Describe(&c.RemotePath, "Where it goes. Missing parent folders are made; into an existing folder it is put under "+
		"its own name.")
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
	upload, err := c.plan()
	if err != nil {
		return err
	}
	client, closeClient, err := c.Connection.dial(ctx)
	if err != nil {
		return err
	}
	defer closeClient()
	stop := context.AfterFunc(ctx, closeClient)
	defer stop()
	transfer, err := sftp.NewClient(client)
	if err != nil {
		return fmt.Errorf("the host's SSH server doesn't offer SFTP, which copying needs: %w", err)
	}
	defer transfer.Close()
	if err := upload(transfer, c.RemotePath); err != nil {
		return errors.Join(ctx.Err(), fmt.Errorf("copying to %q: %w", c.RemotePath, err))
	}
	return nil
}

// plan looks at the source before a connection is made.
func (c *CopyInputs) plan() (func(*sftp.Client, string) error, error) {
	asset, archive := c.Source.Asset, c.Source.Archive
	switch {
	case asset != nil && asset.URI == "" && asset.Path != "":
		return func(t *sftp.Client, remote string) error { return copyFile(t, asset.Path, remote) }, nil
	case asset != nil && asset.URI == "":
		text := asset.Text
		return func(t *sftp.Client, remote string) error { return copyText(t, text, remote) }, nil
	case archive != nil && archive.Path != "":
		return planArchive(archive.Path)
	default:
		return nil, errors.New("source: wanted a FileAsset, a StringAsset or a FileArchive, found something else, " +
			"which can't be copied as it is; save it as a file first")
	}
}

func planArchive(source string) (func(*sftp.Client, string) error, error) {
	found, err := os.Stat(source)
	if err != nil {
		return nil, err
	}
	if found.IsDir() {
		return func(t *sftp.Client, remote string) error { return copyFolder(t, source, remote) }, nil
	}
	return func(t *sftp.Client, remote string) error { return copyFile(t, source, remote) }, nil
}

func copyFile(t *sftp.Client, source, remote string) error {
	from, err := os.Open(source)
	if err != nil {
		return err
	}
	defer from.Close()
	destination, err := destinationFor(t, filepath.Base(source), remote)
	if err != nil {
		return err
	}
	return write(t, from, destination)
}

func copyText(t *sftp.Client, text, remote string) error {
	if found, err := t.Stat(remote); err == nil && found.IsDir() {
		return errors.New("wanted a path for the text's file, found an existing folder; add the file's name")
	}
	return write(t, strings.NewReader(text), remote)
}

func copyFolder(t *sftp.Client, source, remote string) error {
	if found, err := t.Stat(remote); err == nil && !found.IsDir() {
		return errors.New("wanted a folder or nothing there, found a file, which a folder can't replace")
	}
	destination, err := destinationFor(t, filepath.Base(source), remote)
	if err != nil {
		return err
	}
	return filepath.WalkDir(source, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		relative, err := filepath.Rel(source, name)
		if err != nil {
			return err
		}
		target := path.Join(destination, filepath.ToSlash(relative))
		if entry.IsDir() {
			return t.MkdirAll(target)
		}
		from, err := os.Open(name)
		if err != nil {
			return err
		}
		defer from.Close()
		return write(t, from, target)
	})
}

// destinationFor is the remote path itself, or the name in it when it is an existing folder.
func destinationFor(t *sftp.Client, name, remote string) (string, error) {
	found, err := t.Stat(remote)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return remote, nil
	case err != nil:
		return "", err
	case found.IsDir():
		return path.Join(remote, name), nil
	default:
		return remote, nil
	}
}

func write(t *sftp.Client, from io.Reader, remote string) error {
	if err := t.MkdirAll(path.Dir(remote)); err != nil {
		return err
	}
	to, err := t.Create(remote)
	if err != nil {
		return err
	}
	_, err = to.ReadFrom(from)
	return errors.Join(err, to.Close())
}
