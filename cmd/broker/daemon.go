package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
)

const libexec = "/usr/libexec/credential-broker/brokerd"

// forward is a command that brokerd has: flags and help are its own.
func forward(name, short, example string) *cobra.Command {
	return &cobra.Command{Use: name, Short: short, Example: example, DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error { return runDaemon(append([]string{name}, args...)) }}
}

// runDaemon becomes brokerd: beside this program, else where packages put it,
// else on the PATH.
func runDaemon(args []string) error {
	name, err := findDaemon()
	if err != nil {
		return err
	}
	// #nosec G204 -- it is our own other half
	if err := syscall.Exec(name, append([]string{"brokerd"}, args...), os.Environ()); err != nil {
		return fmt.Errorf("run %s: %w", name, err)
	}
	return nil
}

func findDaemon() (string, error) {
	if self, err := os.Executable(); err == nil {
		if name := filepath.Join(filepath.Dir(self), "brokerd"); executable(name) {
			return name, nil
		}
	}
	if executable(libexec) {
		return libexec, nil
	}
	if name, err := exec.LookPath("brokerd"); err == nil {
		return name, nil
	}
	return "", errors.New("brokerd, the daemon, is not installed: it belongs beside broker, or at " + libexec)
}

func executable(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}
