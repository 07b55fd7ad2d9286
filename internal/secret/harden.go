package secret

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Harden makes the process unreadable for others of its own user and keeps it
// from writing a core: PR_SET_DUMPABLE 0 (which also gives /proc/PID to root)
// and RLIMIT_CORE 0. Call it first thing in a process that holds secrets.
func Harden() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make the process non-dumpable: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core files: %w", err)
	}
	return nil
}
