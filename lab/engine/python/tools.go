//go:build tools

// Package tools pins the Pulumi CLI's language host for Python. It needs older pulumi modules than the CLI, hence a
// module of its own.
package tools

import _ "github.com/pulumi/pulumi/sdk/python/cmd/pulumi-language-python/v3"
