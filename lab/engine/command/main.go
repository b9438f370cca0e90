// Command pulumi-resource-command is an offline stand-in for the resource plugin of pulumi-command 1.2.1.
//
// It serves command:remote:Command, command:remote:CopyToRemote and command:local:Command to the Pulumi engine, for
// machines that can't download the real plugin. Property names, defaults and descriptions follow the published schema
// (as found in the Python SDK pulumi_command 1.2.1); responses, diffs and error texts are held to exchanges recorded
// from the real plugin by tests/engine/test_recorded_exchanges.py. What they don't show, it does as the real plugin's
// source does; each test of tests/engine/test_command_plugin.py is true for both. Not served, and refused: what the
// program doesn't use and no recording has (a proxy, a copied text or folder, a local command's files).
package main

import (
	"context"
	"fmt"
	"os"

	p "github.com/pulumi/pulumi-go-provider"
	"github.com/pulumi/pulumi-go-provider/infer"

	"homelab.local/engine/command/local"
	"homelab.local/engine/command/remote"
)

const (
	pluginName = "command"
	// pluginVersion is what GetPluginInfo answers. The engine looks plugins up by the version that the SDK asks for.
	pluginVersion = "1.2.1"
)

func provider() p.Provider {
	return infer.Provider(infer.Options{
		Resources: []infer.InferredResource{
			infer.Resource(remote.Command{}),
			infer.Resource(remote.CopyToRemote{}),
			infer.Resource(local.Command{}),
		},
	})
}

func main() {
	if err := p.RunProvider(context.Background(), pluginName, pluginVersion, provider()); err != nil {
		fmt.Fprintf(os.Stderr, "pulumi-resource-command: the plugin stopped: %v\n", err)
		os.Exit(1)
	}
}
