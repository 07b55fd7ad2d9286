package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"credentialbroker/internal/secret"
)

// What is not known is not told as "not stored".
func TestRunStore(t *testing.T) {
	name := filepath.Join(t.TempDir(), "brokerd")
	must(t, syscall.Mkfifo(name+".fifo", 0o600))
	for _, x := range []struct {
		script  string
		limit   time.Duration
		version string
		code    int
		err     string
	}{
		{script: `read -r body; [ "$body" = '{"a":"b"}' ] && [ "$1" = vdab ] && echo '{"version":"8"}'`, version: "8"},
		{script: `echo "broker: somebody else has stored a version meanwhile" >&2; exit 75`, code: exitTryAgain, err: "proved, and not stored: somebody else"},
		{script: `exit 69`, code: exitUnavailable, err: "it is not known whether it was stored: brokerd has ended with exit status 69: look at the secrets manager"},
		{script: `echo "panic: secret" >&2; exit 2`, code: exitUnavailable, err: "it is not known whether it was stored: brokerd has ended with exit status 2"},
		{script: `kill -9 $$`, code: exitUnavailable, err: "it is not known whether it was stored: brokerd has ended with signal: killed: look"},
		{script: `echo done`, code: exitUnavailable, err: "it is not known whether it was stored: brokerd has named no version"},
		// Its child outlives it, if they are not killed together.
		{script: `(exec 3<"$0.fifo"); exit 0`, limit: 2 * time.Second, code: exitUnavailable, err: "it is not known whether it was stored: brokerd has not ended in 2s"},
		// Ctrl-C on a terminal goes to a process group.
		{script: `read -r _ _ _ _ group _ </proc/$$/stat; [ $group = $$ ] && echo '{"version":"9"}'`, version: "9"},
	} {
		if x.limit == 0 {
			x.limit = time.Minute
		}
		must(t, os.WriteFile(name, []byte("#!/bin/sh\n"+x.script+"\n"), 0o700))
		version, err := runStore(name, []string{"vdab"}, []byte(`{"a":"b"}`), x.limit)
		if version != x.version || (err == nil) != (x.err == "") || err != nil && (exitCode(err) != x.code || !strings.HasPrefix(err.Error(), x.err)) {
			t.Errorf("%s: %q, %v", x.script, version, err)
		}
	}
	if _, err := os.OpenFile(name+".fifo", os.O_WRONLY|syscall.O_NONBLOCK, 0); !errors.Is(err, syscall.ENXIO) {
		t.Errorf("its child lives on: %v", err)
	}
	// An interruption does not end what is being stored.
	must(t, os.WriteFile(name, []byte("#!/bin/sh\nread -r body; echo '{\"version\":\"8\"}'\n"), 0o700))
	t.Setenv("PATH", filepath.Dir(name))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var said bytes.Buffer
	var done intakeResult
	in := intakeRun{client: "vdab", say: &said}
	if err := in.storeOwn(ctx, &done, map[string]secret.Secret{"a": secret.FromString("b")}); err != nil || !done.Stored || done.Version != "8" || !strings.Contains(said.String(), "Interrupted") {
		t.Errorf("%+v, %v: %s", done, err, said.String())
	}
	if _, err := runStore(name+".none", nil, nil, time.Minute); err == nil || !strings.HasPrefix(err.Error(), "proved, and not stored: run") {
		t.Error(err)
	}
}
