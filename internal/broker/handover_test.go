package broker

import (
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/fake"
)

// TestMain makes the test's program a consumer that connects and then waits.
func TestMain(m *testing.M) {
	if path := os.Getenv("BROKER_TEST_CONNECT"); path != "" {
		if _, err := net.Dial("unix", path); err != nil {
			os.Exit(1)
		}
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// another is a process of its own that has connected; end makes it exit.
func another(t *testing.T) (c *access.Caller, end func()) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "BROKER_TEST_CONNECT="+l.Addr().String())
	in, err := cmd.StdinPipe()
	if err = errors.Join(err, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if c, err = access.Identify(conn); err != nil {
		t.Fatal(err)
	}
	return c, func() { _ = in.Close(); _ = cmd.Wait() }
}

// Promise 6: once the connector has exited, its connection gets nothing more,
// whoever holds it then.
func TestExitedCallerGetsNothing(t *testing.T) {
	dir, caller := t.TempDir(), self(t)
	other, end := another(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, dir, caller)
		w.start()
		defer w.stop()
		request := Request{Client: "vdab", Surface: access.Token}
		if _, err := w.b.Token(w.t.Context(), other, request); err != nil {
			t.Fatal(err)
		}
		end()
		_, err := w.b.Token(w.t.Context(), other, request)
		wantCode(t, err, client.NotAllowed)
		w.mustGet() // others are not concerned
	})
}

// The ways in that share a surface are told apart, in the first record of each
// and in its repeats.
func TestRecordedWays(t *testing.T) {
	inWorld(t, func(w *world) {
		for range 2 {
			for _, via := range []string{"", "oauth2"} {
				if _, err := w.b.Token(w.t.Context(), w.caller, Request{Client: "vdab", Surface: access.Token, Via: via}); err != nil {
					w.t.Fatal(err)
				}
			}
		}
		w.stop()
		seen := map[string]int{}
		for e, err := range audit.Read(filepath.Join(w.dir, "audit"), 0) {
			if err != nil {
				w.t.Fatal(err)
			}
			if e.Type == audit.TokenHandover || e.Type == audit.TokenRepeats {
				seen[string(e.Type)+" "+e.Code+" "+e.Detail["via"]]++
			}
		}
		if !maps.Equal(seen, map[string]int{"token.handover token ": 1, "token.handover token oauth2": 1, "token.repeats token ": 1, "token.repeats token oauth2": 1}) {
			w.t.Errorf("%v", seen)
		}
		w.start()
	})
}

// Promise 10: a hand-over that cannot be recorded does not happen; those to
// whom it was recorded go on, and it mends itself.
func TestNoRecordNoHandOver(t *testing.T) {
	dir, caller := t.TempDir(), self(t)
	other, end := another(t)
	defer end()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, dir, caller)
		w.start()
		defer w.stop()
		w.mustGet()
		log := filepath.Join(dir, "audit")
		if err := errors.Join(os.RemoveAll(log), os.WriteFile(log, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		request := Request{Client: "vdab", Surface: access.Token}
		for range 3 {
			_, err := w.b.Token(w.t.Context(), other, request)
			wantCode(t, err, client.AuditUnavailable)
		}
		w.mustGet()
		if err := errors.Join(os.Remove(log), os.Mkdir(log, 0o700)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if _, err := w.b.Token(w.t.Context(), other, request); err != nil {
			t.Fatal(err)
		}
		if n := w.events()[audit.TokenHandover]; n != 1 { // the one before went with the directory
			t.Errorf("%d hand-overs on record, want 1", n)
		}
	})
}

// A refresh that fails is tried again by its backoff, not by every read.
func TestReadsDoNotDriveRetries(t *testing.T) {
	inWorld(t, func(w *world) {
		w.mustGet()
		w.issuer.Set(fake.Fault{Kind: fake.Unavailable})
		time.Sleep(800 * time.Second)
		before := testutil.ToFloat64(w.b.metrics.fetches.WithLabelValues("vdab", "unavailable"))
		for range 1000 {
			w.mustGet()
			time.Sleep(30 * time.Millisecond)
		}
		if n := testutil.ToFloat64(w.b.metrics.fetches.WithLabelValues("vdab", "unavailable")) - before; n > 5 {
			t.Errorf("%v flights in 30 s of reading, want what the backoff allows", n)
		}
	})
}

// Past many processes a token is recorded by user and unit.
func TestManyRecipients(t *testing.T) {
	inWorld(t, func(w *world) {
		w.mustGet()
		cl := w.b.clients.Load().byName["vdab"]
		h := cl.all()[0].held.Load()
		done := make(chan struct{})
		close(done)
		h.mu.Lock()
		for pid := range int32(manyRecipients) {
			h.m[recipient{pid: -pid - 1}] = &share{recorded: done, written: 0}
		}
		h.mu.Unlock()
		for _, s := range []access.Surface{access.Headers, access.Headers, access.Headers} {
			if _, err := w.get(Request{Surface: s}); err != nil {
				t.Fatal(err)
			}
		}
		h.mu.RLock()
		n := len(h.m)
		h.mu.RUnlock()
		if n != manyRecipients+2 { // the one before, and one for all of the user
			t.Errorf("%d recipients are kept, want %d", n, manyRecipients+2)
		}
	})
}

func TestHeaders(t *testing.T) {
	inWorld(t, func(w *world) {
		g, err := w.get(Request{Surface: access.Headers})
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		if err := g.AppendHeaders(func(name string, value []byte) error { got[name] = string(value); return nil }); err != nil {
			t.Fatal(err)
		}
		token, _ := g.Token.Access.AppendTo(nil)
		if got["Authorization"] != "Bearer "+string(token) || got["X-IBM-Client-Id"] != theKey {
			t.Errorf("%q", got)
		}
		// A key with a line break in it makes no header of its own.
		w.store.Set("vdab", map[string]string{"client_id": theID, "client_secret": theSecret, "api_key": "x\r\nEvil: 1"})
		if _, err := w.b.Rotate(w.t.Context(), "vdab", Rotation{}); err != nil {
			t.Fatal(err)
		}
		if g, err = w.get(Request{Surface: access.Headers}); err != nil {
			t.Fatal(err)
		}
		if err := g.AppendHeaders(func(string, []byte) error { return nil }); err == nil {
			t.Error("a header with a line break")
		}
	})
	for _, bad := range []string{"{", "{}", "a{b", "x{"} {
		if _, err := parseHeader(Header{"X", bad}); err == nil {
			t.Errorf("the template %q is taken", bad)
		}
	}
}

func TestAPIKeyOnly(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.config()
		c[0].Issuer, c[0].Headers = nil, []Header{{"X-IBM-Client-Id", "{api_key}"}}
		c[0].Rotation.AcceptUnproved = true
		if err := w.b.Apply(c); err != nil {
			t.Fatal(err)
		}
		g, err := w.get(Request{Surface: access.Headers})
		if err != nil {
			t.Fatal(err)
		}
		err = g.AppendHeaders(func(name string, value []byte) error {
			if name != "X-IBM-Client-Id" || string(value) != theKey {
				t.Errorf("%s: %s", name, value)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		_, err = w.get(Request{})
		wantCode(t, err, client.InvalidRequest)
		if g, err = w.b.APIKey(w.t.Context(), w.caller, "vdab"); err != nil || g.APIKey().Len() != len(theKey) {
			t.Error(err)
		}
		if n := w.events()[audit.KeyHandover]; n != 2 { // by headers, and alone
			t.Errorf("%d hand-overs of the key on record, want 2", n)
		}
		if n := w.issuer.Stats().Requests; n != 0 {
			t.Errorf("%d requests to an issuer", n)
		}
	})
}

// What whoever waited has given up is no hand-over.
func TestGivenUpIsNotCounted(t *testing.T) {
	inWorld(t, func(w *world) {
		w.mustGet() // on record
		h := w.b.clients.Load().byName["vdab"].all()[0].held.Load()
		before := testutil.ToFloat64(w.b.metrics.handovers)
		ctx, cancel := context.WithCancel(w.t.Context())
		cancel()
		err := w.b.handOver(ctx, taker{caller: w.caller}, access.Token, &h.holding, w.b.o.Clock.Now())
		if n := testutil.ToFloat64(w.b.metrics.handovers); !errors.Is(err, context.Canceled) || n != before {
			w.t.Errorf("%v, %v hand-overs", err, n-before)
		}
	})
}
