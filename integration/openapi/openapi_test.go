//go:build real

// Package openapi_test holds the running daemon against its own OpenAPI
// document, with requests that schemathesis makes up.
package openapi_test

import (
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"credentialbroker/integration/real"
)

// bridge lets a client that knows TCP alone reach a Unix socket. The broker
// sees this process as the caller.
func bridge(t *testing.T, socket string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			down, err := l.Accept()
			if err != nil {
				return
			}
			go pipe(down, socket)
		}
	}()
	return "http://" + l.Addr().String()
}

func pipe(down net.Conn, socket string) {
	defer down.Close()
	up, err := net.Dial("unix", socket)
	if err != nil {
		return
	}
	defer up.Close()
	go func() {
		_, _ = io.Copy(up, down)
		_ = up.(*net.UnixConn).CloseWrite()
	}()
	_, _ = io.Copy(down, up)
}

// demo runs a broker with an issuer, and gives the admin socket.
func demo(t *testing.T) (consumer, admin string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "broker-openapi-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	consumer = filepath.Join(dir, "broker.sock")
	cmd := exec.Command(filepath.Join(real.Root(), "dist", "broker"), "demo", "--socket", consumer)
	cmd.Env = append(os.Environ(), "XDG_RUNTIME_DIR="+dir)
	real.StartUnix(t, consumer, cmd)
	return consumer, filepath.Join(dir, "admin.sock")
}

// stateful are requests that may be refused, though the document's schema fits
// them, for what is stored or configured: a client that has no key, an
// incident that is not there.
func stateful() []string {
	return []string{"/v1/clients/{client}/drill", "/v1/clients/{client}/intake", "/v1/clients/{client}/keys/rotate", "/v1/incidents",
		"/v1/incidents/{incident}/close", "/v1/incidents/{incident}/evidence", "/v1/scan/confirm"}
}

func TestSockets(t *testing.T) {
	consumer, admin := demo(t)
	var without, with []string
	for _, p := range stateful() {
		without, with = append(without, "--exclude-path", p), append(with, "--include-path", p)
	}
	for _, c := range []struct {
		name, socket string
		args         []string
	}{
		{"consumer socket", consumer, []string{"--include-tag", "consumer", "--exclude-path", "/v1/audit/follow", "--exclude-path", "/v1/clients/{client}/events",
			"--exclude-path", "/oauth2/token"}},
		// RFC 6749 wants 400 for a scope that is well formed and too much.
		{"token endpoint", consumer, []string{"--include-path", "/oauth2/token", "--exclude-checks", "positive_data_acceptance"}},
		{"admin socket", admin, append(without, "--include-tag", "admin", "--exclude-path", "/v1/audit/follow")},
		{"admin socket, by what is stored", admin, append(with, "--exclude-checks", "positive_data_acceptance")},
	} {
		t.Run(c.name, func(t *testing.T) {
			real.Row(t, "openapi", "schemathesis 4.32.5", c.name)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			args := append([]string{"run", filepath.Join(real.Root(), "api", "openapi.yaml"),
				"--url", bridge(t, c.socket), "--max-examples", "40", "--checks", "all",
				"--phases", "examples,coverage,fuzzing", "--generation-deterministic", "--no-color", "--request-timeout", "60"}, c.args...)
			cmd := exec.CommandContext(ctx, real.Path("schemathesis", "venv", "bin", "st"), args...)
			cmd.Dir = t.TempDir()
			out, err := cmd.CombinedOutput()
			text := string(out)
			if i := strings.LastIndex(text, "SUMMARY"); i > 0 {
				t.Log(text[i:])
			}
			if err != nil {
				t.Errorf("%v\n%s", err, text)
			}
		})
	}
}
