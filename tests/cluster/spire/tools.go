//go:build tools

// Package tools names the programs that are built from this module, so that go.sum pins what they are made of.
package tools

import (
	_ "github.com/spiffe/spire/cmd/spire-server"
	_ "github.com/spiffe/spire/cmd/spire-agent"
)
