package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// under starts the daemon as systemd does, with sockets that are there before
// it is: whoever connects meanwhile waits in the kernel. The answer ends it.
func (s *site) under(files []*os.File) (kill func()) {
	s.t.Helper()
	name, err := daemonProgram()
	if err != nil {
		s.t.Fatal(err)
	}
	// LISTEN_PID has to be the daemon's own (sd_listen_fds(3)).
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", name, "serve", "--config", s.path("broker.yaml"), "--state", s.path("state"))
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LISTEN_FDS=2", "LISTEN_FDNAMES=broker:admin"}
	cmd.ExtraFiles = files
	s.stderr = &output{}
	cmd.Stdout, cmd.Stderr = s.stderr, s.stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	return sync.OnceFunc(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
}

// A client is quarantined, and nothing of that is left to do. Consumers ask
// without a pause, from before the daemon listens, over several of its lives:
// none of them ever gets anything.
func TestContainedBeforeTheFirstAnswer(t *testing.T) {
	s := newSite(t)
	s.write("broker.yaml", s.config()+leakYAML)
	if err := os.Mkdir(s.path("state"), 0o700); err != nil {
		t.Fatal(err)
	}
	var files []*os.File
	for _, name := range []string{"broker.sock", "admin.sock"} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.path(name), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if err := os.Chmod(s.path(name), socketMode); err != nil {
			t.Fatal(err)
		}
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	kill := s.under(files) // it can hand out: what follows is not for another reason
	if code, body := s.do("broker.sock", "GET", "/v1/clients/vdab/token", ""); code != http.StatusOK {
		t.Fatalf("%d %s\n%s", code, body, s.stderr)
	}
	kill()
	if code, out := s.spool(`{"client":"vdab","severity":"confirmed","what":["client_secret"],"happened":"It stood in a repository.","policy":"quarantine","no_mail":true}`); code != 0 {
		t.Fatalf("%d %s", code, out)
	}
	a := asking{answers: map[string]int{}}
	ctx, cancel := context.WithCancel(t.Context())
	for _, what := range []string{"token", "headers", "api-key"} {
		a.all.Go(func() { a.ask(ctx, s.path("broker.sock"), "/v1/clients/vdab/"+what) })
	}
	for life := range 6 {
		before := a.count()
		kill = s.under(files)
		a.await(t, before+200)
		if life == 0 {
			<-time.After(time.Second) // the steps of the incident are taken
		}
		kill()
	}
	cancel()
	a.all.Wait()
	for answer, n := range a.answers {
		if !strings.HasPrefix(answer, "409 ") {
			t.Errorf("%d times, of %d: %s", n, a.count(), answer)
		}
	}
}

// An asking is consumers that ask again and again, and what they were told.
type asking struct {
	all     sync.WaitGroup
	mu      sync.Mutex
	answers map[string]int
}

func (a *asking) count() (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, k := range a.answers {
		n += k
	}
	return n
}

// await waits for so many answers.
func (a *asking) await(t *testing.T, n int) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); a.count() < n; <-time.After(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d answers, want %d", a.count(), n)
		}
	}
}

// ask asks until ctx ends. A daemon that is killed gives no answer, which is
// none.
func (a *asking) ask(ctx context.Context, socket, path string) {
	for ctx.Err() == nil {
		if answer := once(ctx, socket, path); answer != "" {
			a.mu.Lock()
			a.answers[answer]++
			a.mu.Unlock()
		}
	}
}

func once(ctx context.Context, socket, path string) string {
	hc := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost"+path, nil)
	if err != nil {
		return err.Error()
	}
	resp, err := hc.Do(req)
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return ""
	}
	if resp.StatusCode == http.StatusConflict && bytes.Contains(body, []byte("quarantined")) {
		body = nil
	}
	return fmt.Sprintf("%d %.60s", resp.StatusCode, body)
}
