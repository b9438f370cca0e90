//go:build !unix

package local

import (
	"os/exec"
	"time"
)

// drainTime is how long a cancelled command's pipes are read on when a process that it started holds them open.
const drainTime = 5 * time.Second

// inOwnGroup: without process groups only the interpreter itself is ended when the engine cancels.
func inOwnGroup(process *exec.Cmd) {
	process.WaitDelay = drainTime
}
