//go:build tools

// Package tools pins the Pulumi CLI, so that it is built from modules whose checksums are in go.sum. Its module has
// replace directives, with which `go install package@version` refuses to work.
package tools

import _ "github.com/pulumi/pulumi/pkg/v3/cmd/pulumi"
