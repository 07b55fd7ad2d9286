package main

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"credentialbroker/api/client"
	"credentialbroker/internal/scan"
)

// packFile is "pack ARCHIVE NAME FILE": a zip with that file in it.
func packFile(ts *testscript.TestScript, _ bool, args []string) {
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	w, err := z.Create(args[1])
	ts.Check(err)
	_, err = w.Write([]byte(ts.ReadFile(args[2])))
	ts.Check(err)
	ts.Check(z.Close())
	ts.Check(os.WriteFile(ts.MkAbs(args[0]), b.Bytes(), 0o600))
}

// runShown is "shown PAGE DIR": it runs the commands of a page's console blocks
// in the script's directory, with DIR in place of the host's directories. Each
// has to end with a code that the page explains.
func runShown(ts *testscript.TestScript, _ bool, args []string) {
	ran, inside := 0, false
	for line := range strings.Lines(ts.ReadFile(args[0])) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "```") {
			inside = line == "```console"
			continue
		}
		if !inside {
			continue
		}
		ran++
		err := ts.Exec("sh", "-c", strings.NewReplacer("/var/log", args[1], "/home", args[1], "/srv/app", args[1]).Replace(line))
		var exit *exec.ExitError
		if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != exitData && exit.ExitCode() != exitTryAgain) {
			ts.Fatalf("%s: %v", line, err)
		}
	}
	if ran < 5 {
		ts.Fatalf("%s has %d commands", args[0], ran)
	}
}

func TestProgressLine(t *testing.T) {
	p := scan.Progress{Files: 12, TotalFiles: 40, Bytes: 3 << 20, TotalBytes: 12 << 30, Inside: 1 << 20, Found: 2,
		Current: "/var/log/\x1b[2J" + strings.Repeat("long/", 20) + "end"}
	got := progressLine(p, 2*time.Second)
	if !strings.HasPrefix(got, "3072 KiB so far, 2048 KiB/s, 12 files, 2 found, …") || !strings.HasSuffix(got, "long/end") || len([]rune(got)) > 85 {
		t.Errorf("%q", got)
	}
	p.Counted, p.Current = true, "\x1b[2J"
	if got := progressLine(p, 2*time.Second); got != "3072 KiB of 12 GiB, 2048 KiB/s, 12 files, 2 found, \ufffd[2J" {
		t.Errorf("%q", got)
	}
}

// The progress is one line, which is gone at the end.
func TestProgressIsCleared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := scan.New(scan.Config{Filter: scan.NewIndex(scan.IndexConfig{}).Filter(), Confirm: func(context.Context, []scan.Candidate) ([][]scan.Match, error) { return nil, nil }})
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		r := scanRun{err: &out, progress: true}
		stop := r.show(s)
		time.Sleep(500 * time.Millisecond)
		stop()
		if got := out.String(); strings.Count(got, "0 files, 0 found") != 2 || strings.Contains(got, "\n") || !strings.HasSuffix(got, "\r\x1b[K") {
			t.Errorf("%q", got)
		}
	})
}

// A long list of long candidates is asked about in several questions, each
// within the bounds; the daemon's "later" is obeyed, and the texts are wiped.
func TestQuestionsAreBounded(t *testing.T) {
	var sizes []int
	limited := 1
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body := new(bytes.Buffer)
		_, _ = body.ReadFrom(r.Body)
		n := strings.Count(body.String(), `"at"`)
		if n > client.MaxScanCandidates || body.Len() > client.MaxScanBody {
			t.Errorf("%d candidates, %d bytes", n, body.Len())
		}
		if len(sizes) == 1 && limited > 0 {
			limited--
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(http.StatusTooManyRequests)
			fmt.Fprint(w, `{"code":"rate_limited","status":429,"detail":"later","retry_after":1}`)
			return
		}
		sizes = append(sizes, n)
		fmt.Fprintf(w, `{"matches":[%s[]]}`, strings.Repeat("[],", n-1))
	})}
	dir, err := os.MkdirTemp("", "broker-scan-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	r := scanRun{admin: &client.Admin{Socket: socket}}
	var list []scan.Candidate
	for range 100 {
		list = append(list, scan.Candidate{At: 1, Text: bytes.Repeat([]byte("x"), 4000)})
	}
	out, err := r.confirm(t.Context(), list)
	if err != nil || len(out) != 100 || fmt.Sprint(sizes) != "[48 48 4]" || limited != 0 {
		t.Errorf("%d answers, %v, %v", len(out), sizes, err)
	}
	if len(bytes.Trim(list[99].Text, "\x00")) != 0 {
		t.Error("the texts are not wiped")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.confirm(ctx, list); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
