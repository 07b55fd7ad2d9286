package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"

	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

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
	cmd := exec.CommandContext(ctx, name, args...)
	var out, problem bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problem
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run %s: %w", name, err)
	}
	_, _ = io.Copy(stdin, bytes.NewReader(body)) // if it does not read them, it says why
	_ = stdin.Close()
	err = cmd.Wait()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code := exit.ExitCode()
		if code < 0 {
			code = exitUnavailable
		}
		text := strings.TrimPrefix(strings.TrimSpace(problem.String()), "broker: ")
		return failure{code, fmt.Errorf("proved, and not stored: %s", text)}
	}
	var stored struct{ Version string }
	if err == nil {
		err = json.Unmarshal(out.Bytes(), &stored)
	}
	if err != nil {
		return fmt.Errorf("it is not known whether the values are stored: %w: look in the secrets manager", err)
	}
	done.Stored, done.StoredBy, done.Version = true, "operator", stored.Version
	return nil
}
