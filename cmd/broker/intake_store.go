package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

// storeTime is for one run of the store command: a few calls to a secrets
// manager, each with a limit of its own.
const storeTime = time.Minute

// storeOwn stores the values with the login of whoever runs this: brokerd, which
// has the SDKs, does it in a process of its own, and gets them through a pipe.
func (in *intakeRun) storeOwn(ctx context.Context, done *intakeResult, fields map[string]secret.Secret) error {
	name, err := findDaemon()
	if err != nil {
		return err
	}
	args := []string{"store", in.client, "--replaces=" + done.Replaces}
	for flag, value := range map[string]string{"--config": in.config, "--token-file": in.tokenFile, "--identity-file": in.identityFile} {
		if value != "" {
			args = append(args, flag+"="+value)
		}
	}
	body, err := providers.Encode(fields)
	if err != nil {
		return err
	}
	defer clear(body)
	told := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(told)
		fmt.Fprintln(in.say, "Interrupted: waiting for what is being stored …")
	})
	version, err := runStore(name, args, body, storeTime)
	if !stop() {
		<-told
	}
	if err != nil {
		return err
	}
	done.Stored, done.StoredBy, done.Version = true, "operator", version
	return nil
}

// runStore gives body to the store command, and the version that it has made.
// An interruption does not reach it: what has begun to store ends, or has limit.
func runStore(name string, args []string, body []byte, limit time.Duration) (version string, _ error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C goes to the terminal's group
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	var out, problem bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(body), &out, &problem
	if err := cmd.Start(); err != nil {
		return "", fmt.Errorf("proved, and not stored: run %s: %w", name, err)
	}
	err := cmd.Wait()
	text := strings.TrimPrefix(strings.TrimSpace(problem.String()), "broker: ")
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return "", unknownStored(fmt.Sprintf("brokerd has not ended in %s, and was killed", limit))
	case errors.As(err, &exit) && text != "" && slices.Contains([]int{exitUsage, exitData, exitUnavailable, exitTryAgain, exitNotAllowed, exitConfig}, exit.ExitCode()):
		return "", failure{exit.ExitCode(), fmt.Errorf("proved, and not stored: %s", text)}
	case exit != nil:
		return "", unknownStored("brokerd has ended with " + exit.Error())
	}
	var stored struct{ Version string }
	if json.Unmarshal(out.Bytes(), &stored) != nil || stored.Version == "" {
		return "", unknownStored("brokerd has named no version")
	}
	return stored.Version, nil
}

// unknownStored is an end between "stored" and "not stored".
func unknownStored(why string) error {
	return fmt.Errorf("it is not known whether it was stored: %s: look at the secrets manager, or run the command again: the same values are not stored twice", why)
}
