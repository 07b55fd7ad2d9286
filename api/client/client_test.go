package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// serve answers on a socket of its own, as the broker's own server would not.
func serve(t *testing.T, h http.HandlerFunc) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() { _ = srv.Close(); <-done })
	return socket
}

func TestDefaultSockets(t *testing.T) {
	t.Setenv(Environment, "/x/y.sock")
	if got := DefaultSocket(); got != "/x/y.sock" {
		t.Error(got)
	}
	if got := DefaultAdminSocket(); got != "/x/admin.sock" {
		t.Error(got)
	}
	t.Setenv(Environment, "")
	t.Setenv("XDG_RUNTIME_DIR", "")
	if got := DefaultSocket(); got != "/run/credential-broker/broker.sock" {
		t.Error(got)
	}
	if got := DefaultAdminSocket(); got != "/run/credential-broker/admin.sock" {
		t.Error(got)
	}
}

func TestRequests(t *testing.T) {
	var seen string
	socket := serve(t, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		seen = r.Method + " " + r.URL.String() + " " + string(body)
		_, _ = io.WriteString(w, `{"replaced":true}`)
	})
	c := Client{Socket: socket}
	a := Admin{Socket: socket}
	ctx := t.Context()
	for want, do := range map[string]func() error{
		"GET /v1/clients/vdab/token ": func() error { _, err := c.Token(ctx, "vdab", Options{}); return err },
		"GET /v1/clients/a%2F..%2Fb/token?audience=x&min_ttl=2s&resource=https%3A%2F%2Fr&scope=read+write ": func() error {
			_, err := c.Token(ctx, "a/../b", Options{Scope: "read write", Audience: "x", Resource: "https://r", MinTTL: 1100 * time.Millisecond})
			return err
		},
		`POST /v1/clients/vdab/reject {"fingerprint":"f","status":401}`: func() error {
			r, err := c.Reject(ctx, "vdab", Rejection{Fingerprint: "f", Status: 401})
			if err == nil && !r.Replaced {
				err = errors.New("not replaced")
			}
			return err
		},
		`POST /v1/clients/vdab/rotate {"accept":true}`: func() error { _, err := a.Rotate(ctx, "vdab", Rotation{Accept: true}); return err },
		`POST /v1/clients/zgw/jwt {"user_id":"jdoe"}`:  func() error { _, err := c.JWT(ctx, "zgw", User{UserID: "jdoe"}); return err },
		"GET /v1/clients/acm/keys ":                    func() error { _, err := a.Key(ctx, "acm"); return err },
		`POST /v1/clients/acm/keys {"kind":"p-256","certificate":true}`: func() error {
			_, err := a.NewKey(ctx, "acm", NewKey{Kind: "p-256", Certificate: true})
			return err
		},
		`POST /v1/clients/vdab/intake {"fields":{"api_key":"a\"b\\c\u000a\u001fé","client_id":"i"},"accept":true}`: func() error {
			_, err := a.Intake(ctx, "vdab", map[string][]byte{"client_id": []byte("i"), "api_key": []byte("a\"b\\c\n\x1fé")}, true)
			return err
		},
		`POST /v1/clients/mkp/login {}`: func() error { _, err := a.StartLogin(ctx, "mkp", LoginStart{}); return err },
		`POST /v1/clients/mkp/login/finish {"state":"s","code":"c"}`: func() error {
			_, err := a.FinishLogin(ctx, "mkp", LoginFinish{State: "s", Code: "c"})
			return err
		},
		`POST /v1/clients/mkp/revoke {"login":true}`: func() error { _, err := a.Revoke(ctx, "mkp", Revocation{Login: true}); return err },
		`POST /v1/incidents {"client":"vdab","severity":"suspected","what":["token"],"happened":"h","dry_run":true}`: func() error {
			_, err := a.Declare(ctx, Declaration{Client: "vdab", Severity: "suspected", What: []string{"token"}, Happened: "h", DryRun: true})
			return err
		},
		"GET /v1/incidents ":                      func() error { _, err := a.Incidents(ctx); return err },
		"GET /v1/incidents/2026-0007@web1 ":       func() error { _, err := a.Incident(ctx, "2026-0007@web1"); return err },
		"GET /v1/incidents/a%2Fb ":                func() error { _, err := a.Incident(ctx, "a/b"); return err },
		"POST /v1/incidents/2026-0007/release {}": func() error { _, err := a.Release(ctx, "2026-0007", IncidentRelease{}); return err },
		`POST /v1/incidents/2026-0007/close {"old_still_valid":"x"}`: func() error {
			_, err := a.Close(ctx, "2026-0007", IncidentClose{OldStillValid: "x"})
			return err
		},
		"POST /v1/clients/vdab/drill ": func() error { _, err := a.Drill(ctx, "vdab"); return err },
		"GET /v1/incidents/2026-0007/evidence ": func() error {
			e, err := a.Evidence(ctx, "2026-0007")
			if err == nil && string(e) != `{"replaced":true}` {
				err = errors.New(string(e))
			}
			return err
		},
		`POST /v1/incidents/2026-0007/evidence {"x":1}`: func() error { _, err := a.AddEvidence(ctx, "2026-0007", []byte(`{"x":1}`)); return err },
		`POST /v1/whois {"fingerprint":"f"}`:            func() error { _, err := a.Whois(ctx, "f"); return err },
		"POST /v1/reload ":                              func() error { _, err := a.Reload(ctx); return err },
		"GET /v1/audit/denied?since=2026-11-21T09%3A00%3A00Z ": func() error {
			_, err := a.Denied(ctx, time.Date(2026, 11, 21, 10, 0, 0, 0, time.FixedZone("", 3600)))
			return err
		},
		"GET /v1/audit/export?format=csv ": func() error { return a.Export(ctx, io.Discard, time.Time{}, time.Time{}, "csv") },
	} {
		if err := do(); err != nil || seen != want {
			t.Errorf("%q, %v, want %q", seen, err, want)
		}
	}
}

func TestRefusals(t *testing.T) {
	var status int
	var kind, body string
	socket := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", kind)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
	c, a := Client{Socket: socket}, Admin{Socket: socket}
	const document = `{"type":"about:blank","title":"t","status":409,"code":"api_key_rejected","detail":"ask an administrator","retry_after":7}`
	for _, x := range []struct {
		status     int
		kind, body string
		code       Code
		detail     string
	}{
		{409, "application/problem+json", document, APIKeyRejected, "ask an administrator"},
		{409, "application/problem+json; charset=utf-8", document, APIKeyRejected, "ask an administrator"},
		{502, "text/html", "<html>secret-page", Internal, "status 502"},
		{500, "application/problem+json", "{", Internal, "status 500"},
		{503, "application/problem+json", "{}", Internal, "status 503"},
	} {
		status, kind, body = x.status, x.kind, x.body
		_, err := c.Token(t.Context(), "vdab", Options{})
		var p *Problem
		if !errors.As(err, &p) || p.Code != x.code || p.Status != x.status || !strings.Contains(p.Detail, x.detail) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%d %s: %v", x.status, x.kind, err)
		}
		for _, err := range a.Tail(t.Context(), 1, true) {
			if !errors.As(err, &p) || p.Status != x.status {
				t.Errorf("stream: %d %s: %v", x.status, x.kind, err)
			}
		}
	}
	status, kind, body = 200, "application/json", `{"access_token":"leaked-token", nonsense`
	if _, err := c.Token(t.Context(), "vdab", Options{}); err == nil || strings.Contains(err.Error(), "leaked") {
		t.Errorf("%v", err)
	}
	status, body = 403, document
	if _, err := c.Ready(t.Context()); err == nil {
		t.Error("a refusal is taken for readiness")
	}
}

func TestNobodyThere(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	for _, socket := range []string{dead, filepath.Join(dir, "none")} {
		c := Client{Socket: socket}
		_, err := c.Token(t.Context(), "vdab", Options{})
		var p *Problem
		if errors.As(err, &p) || err == nil || !strings.Contains(err.Error(), socket) || !strings.Contains(err.Error(), "systemctl status") {
			t.Errorf("%v", err)
		}
	}
}

// A stream that breaks off is no stream that ended.
func TestBrokenStream(t *testing.T) {
	socket := serve(t, func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "{\"check\":\"a\"}\n")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	a := Admin{Socket: socket}
	var findings, failures int
	for _, err := range a.Check(t.Context()) {
		if err != nil {
			failures++
		} else {
			findings++
		}
	}
	if findings != 1 || failures != 1 {
		t.Errorf("%d findings, %d errors", findings, failures)
	}
	if err := a.Export(t.Context(), io.Discard, time.Time{}, time.Time{}, "json"); err == nil {
		t.Error("half an export is taken for a whole one")
	}
}

// While the kernel's queue of connections is full, a call waits.
func TestFullQueue(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: socket}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	var waiting []net.Conn
	for {
		c, err := net.Dial("unix", socket)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		waiting = append(waiting, c)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	c := Client{Socket: socket}
	if _, err := c.Whoami(ctx); err == nil || ctx.Err() == nil {
		t.Errorf("it did not wait: %v", err)
	}
	done := make(chan error, 1)
	go func() { _, err := c.Whoami(t.Context()); done <- err }()
	for i := 0; ; i++ { // take one after the other, and answer those that ask
		nfd, _, err := unix.Accept(fd)
		if err != nil {
			t.Fatal(err)
		}
		if i < len(waiting) {
			_ = waiting[i].Close()
			_ = unix.Close(nfd)
			continue
		}
		buf := make([]byte, 4096)
		_, _ = unix.Read(nfd, buf)
		_, _ = unix.Write(nfd, []byte("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"caller\":\"\",\"clients\":[]}"))
		_ = unix.Close(nfd)
		break
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestProblemIsAnError(t *testing.T) {
	var err error = &Problem{Code: NotAllowed, Detail: "no"}
	if got := fmt.Sprint(err); got != "not_allowed: no" {
		t.Error(got)
	}
}
