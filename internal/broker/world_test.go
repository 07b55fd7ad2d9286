package broker

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
	"credentialbroker/oidc"
	"credentialbroker/providers"
	"credentialbroker/rotation"
)

// world is a whole broker but for its sockets: a real audit log on the disk,
// and, at the wire, an issuer and a secrets manager that obey the test.
type world struct {
	t      testing.TB
	dir    string
	caller *access.Caller
	issuer *fake.Issuer
	store  *fake.Store
	skew   atomic.Int64
	clock  *clock.Bubble

	edit func([]Client) []Client // the configuration; nil: as it is

	log    *audit.Log
	b      *Broker
	cancel context.CancelFunc
	done   chan struct{}
}

const (
	theID     = "kCVy8fpVSU50zFzi8TIC"
	theSecret = "first-secret-7f3a9"
	theKey    = "api-key-51c07"
)

// self is this process as the kernel sees it through a real socket. It is made
// outside of the bubble, where sockets do not work.
func self(t testing.TB) *access.Caller {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	mine, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer mine.Close()
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c, err := access.Identify(conn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// inWorld runs f in a bubble of fake time.
func inWorld(t *testing.T, f func(w *world)) {
	t.Helper()
	dir, caller := t.TempDir(), self(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, dir, caller)
		w.start()
		defer w.stop()
		f(w)
	})
}

func newWorld(t testing.TB, dir string, caller *access.Caller) *world {
	w := &world{t: t, dir: dir, caller: caller, clock: clock.NewBubble(), store: fake.NewStore(),
		issuer: fake.NewIssuer(fake.Client{ID: theID, Secret: theSecret, APIKey: theKey})}
	w.clock.Skew = func() time.Duration { return time.Duration(w.skew.Load()) }
	w.secret(theSecret)
	return w
}

// secret stores a new version with that client secret.
func (w *world) secret(s string) {
	w.store.Set("vdab", map[string]string{"client_id": theID, "client_secret": s, "api_key": theKey})
}

func (w *world) config() []Client {
	entries := []access.Entry{{User: "0", Surfaces: []access.Surface{access.Token, access.Headers, access.APIKey}}}
	if uid := os.Getuid(); uid != 0 {
		entries[0].User = itoa(uid)
	}
	return []Client{{Name: "vdab", Provider: w.store, ProviderName: "store", Allow: entries,
		Headers: []Header{{"Authorization", "Bearer {access_token}"}, {"X-IBM-Client-Id", "{api_key}"}},
		Issuer:  &oidc.Profile{TokenEndpoint: "https://issuer.example" + fake.TokenPath}, Transport: w.issuer.RoundTripper(),
		Limits: access.Limits{Scopes: []string{"read", "write"}}, KeyRejected: []string{"Invalid client id or secret"},
		Rotation: rotation.Config{Spec: providers.Spec{Ref: providers.Ref{Path: "vdab"}}, Required: []string{"client_id", "client_secret", "api_key"}},
	}}
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + itoa(n%10)
}

// start starts the broker, anew after a stop: what is on the disk stays.
func (w *world) start() {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Join(w.dir, "credentials"), 0o700); err != nil {
		w.t.Fatal(err)
	}
	var err error
	if w.log, err = audit.Open(audit.Config{Anchor: "none"}, audit.Options{Dir: filepath.Join(w.dir, "audit"), Clock: w.clock}); err != nil {
		w.t.Fatal(err)
	}
	w.b = New(Options{Audit: w.log, Clock: w.clock, Dir: w.dir})
	ctx, cancel := context.WithCancel(context.Background())
	logCtx, logCancel := context.WithCancel(context.Background())
	w.cancel, w.done = cancel, make(chan struct{})
	logDone := make(chan struct{})
	go func() { defer close(logDone); _ = w.log.Run(logCtx) }()
	go func() {
		defer close(w.done)
		_ = w.b.Run(ctx)
		logCancel()
		<-logDone
	}()
	synctest.Wait()
	clients := w.config()
	if w.edit != nil {
		clients = w.edit(clients)
	}
	if err := w.b.Apply(clients); err != nil {
		w.t.Fatal(err)
	}
}

// with changes the configuration of the one client.
func (w *world) with(f func(*Client)) {
	w.t.Helper()
	w.edit = func(list []Client) []Client { f(&list[0]); return list }
	w.restart()
}

func (w *world) stop() {
	w.cancel()
	<-w.done
}

func (w *world) restart() { w.stop(); w.start() }

// get asks for a token as a consumer does.
func (w *world) get(r Request) (*Grant, error) {
	if r.Client == "" {
		r.Client = "vdab"
	}
	if r.Surface == "" {
		r.Surface = access.Token
	}
	return w.b.Token(w.t.Context(), w.caller, r)
}

func (w *world) mustGet() *Grant {
	w.t.Helper()
	g, err := w.get(Request{})
	if err != nil {
		w.t.Fatal(err)
	}
	return g
}

// wantCode checks an error's code, and that it says what to do.
func wantCode(t testing.TB, err error, code client.Code) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("error %v, want code %s", err, code)
	}
	if e.Detail == "" || code.Status() == 503 && e.RetryAfter <= 0 {
		t.Errorf("an error that does not help: %+v", e)
	}
	return e
}

// alarmsOf counts the alarms of a type.
func (w *world) alarmsOf(t audit.Type) (n int) {
	w.t.Helper()
	for e, err := range audit.Read(filepath.Join(w.dir, "audit"), 0) {
		if err != nil {
			w.t.Fatal(err)
		}
		if e.Type == t && e.Detail[audit.AlarmKey] != "" {
			n++
		}
	}
	return n
}

// events reads the audit log back and counts its types.
func (w *world) events() map[audit.Type]int {
	w.t.Helper()
	n := map[audit.Type]int{}
	for e, err := range audit.Read(filepath.Join(w.dir, "audit"), 0) {
		if err != nil {
			w.t.Fatal(err)
		}
		n[e.Type]++
	}
	return n
}
