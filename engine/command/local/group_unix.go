//go:build unix

package local

import (
	"os/exec"
	"syscall"
	"time"
)

// drainTime is how long a cancelled command's pipes are read on when a process that left the group holds them open.
const drainTime = 5 * time.Second

// inOwnGroup makes a cancelled command end with everything it started.
func inOwnGroup(process *exec.Cmd) {
	process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	process.Cancel = func() error { return syscall.Kill(-process.Process.Pid, syscall.SIGKILL) }
	process.WaitDelay = drainTime
}
