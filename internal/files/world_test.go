package files

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
	"credentialbroker/oidc"
	"credentialbroker/providers"
	"credentialbroker/rotation"
)

// world is a broker and its files: a real audit log and a real tmpfs, and, at
// the wire, an issuer and a secrets manager that obey the test.
type world struct {
	t      *testing.T
	state  string
	run    string // a directory on a tmpfs
	issuer *fake.Issuer
	store  *fake.Store
	skew   atomic.Int64
	clock  *clock.Bubble
	log    *output
	keep   bool // run is preserved
	stuck  bool // the audit log takes nothing
	lost   bool // the record cannot be read

	audit  *audit.Log
	b      *broker.Broker
	w      *Writer
	list   []Entry
	origin string
	cancel context.CancelFunc
	done   chan struct{}
	reader audit.Caller // of what handed counted last
}

const (
	theID     = "kCVy8fpVSU50zFzi8TIC"
	theSecret = "first-secret-7f3a9"
	theKey    = "api-key-51c07"
)

// tmpfs is a directory on a tmpfs that is the test's own.
func tmpfs(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "broker-files-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func inWorld(t *testing.T, f func(w *world)) {
	t.Helper()
	inWorldAt(t, t.TempDir(), tmpfs(t), f)
}

func inWorldAt(t *testing.T, state, run string, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, state: state, run: run, clock: clock.NewBubble(), store: fake.NewStore(), log: &output{},
			issuer: fake.NewIssuer(fake.Client{ID: theID, Secret: theSecret, APIKey: theKey})}
		w.clock.Skew = func() time.Duration { return time.Duration(w.skew.Load()) }
		w.store.Set("vdab", map[string]string{"client_id": theID, "client_secret": theSecret, "api_key": theKey})
		w.start()
		defer func() { w.stop() }()
		f(w)
	})
}

func (w *world) clients() []broker.Client {
	return []broker.Client{{Name: "vdab", Provider: w.store, ProviderName: "store", Allow: []access.Entry{{User: "0"}},
		Headers: []broker.Header{{Name: "Authorization", Value: "Bearer {access_token}"}, {Name: "X-IBM-Client-Id", Value: "{api_key}"}},
		Issuer:  &oidc.Profile{TokenEndpoint: "https://issuer.example" + fake.TokenPath}, Transport: w.issuer.RoundTripper(),
		Rotation: rotation.Config{Spec: providers.Spec{Ref: providers.Ref{Path: "vdab"}}, Required: []string{"client_id", "client_secret", "api_key"}},
	}}
}

// start starts everything, anew after a stop: what is on disk and tmpfs stays.
func (w *world) start() {
	w.t.Helper()
	if err := os.MkdirAll(filepath.Join(w.state, "credentials"), 0o700); err != nil {
		w.t.Fatal(err)
	}
	var err error
	if w.audit, err = audit.Open(audit.Config{Anchor: "none"}, audit.Options{Dir: filepath.Join(w.state, "audit"), Clock: w.clock}); err != nil {
		w.t.Fatal(err)
	}
	w.b = broker.New(broker.Options{Audit: w.audit, Clock: w.clock, Dir: w.state})
	o := Options{Broker: w.b, Audit: w.audit, Clock: w.clock, Log: slog.New(slog.NewTextHandler(w.log, nil)), Dir: w.state}
	if w.keep {
		o.Preserved = []string{w.run}
	}
	if w.w, err = New(o); (err != nil) != w.lost {
		w.t.Fatal(err)
	}
	if err := w.b.Apply(w.clients()); err != nil {
		w.t.Fatal(err)
	}
	w.w.Apply(w.list)
	ctx, cancel := context.WithCancel(context.Background())
	logCtx, endLog := context.WithCancel(context.Background())
	w.cancel, w.done = cancel, make(chan struct{})
	logged, written, brokered := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(logged)
		if w.stuck {
			<-logCtx.Done()
		}
		_ = w.audit.Run(logCtx)
	}()
	go func() { defer close(written); _ = w.w.Run(ctx) }()
	go func() { defer close(brokered); _ = w.b.Run(ctx) }()
	go func() {
		defer close(w.done)
		<-written
		<-brokered
		endLog()
		<-logged
	}()
	synctest.Wait()
}

// preserve starts it anew, to leave its files when it is stopped.
func (w *world) preserve() {
	w.t.Helper()
	w.stop()
	w.keep = true
	w.start()
}

func (w *world) stop() {
	w.cancel()
	<-w.done
}

// files makes these the configuration; a path is a name in w.run.
func (w *world) files(list ...Config) {
	w.t.Helper()
	w.list = nil
	for _, c := range list {
		c.Path = filepath.Join(w.run, c.Path)
		if err := c.Validate(); err != nil {
			w.t.Fatal(err)
		}
		w.list = append(w.list, Entry{Client: "vdab", Origin: w.origin, Config: c.filled()})
	}
	w.w.Apply(w.list)
	w.pass(0)
}

// pass lets time go by, and everything settle.
func (w *world) pass(d time.Duration) {
	time.Sleep(d + time.Millisecond)
	synctest.Wait()
}

// read is a file's content; empty if it is not there.
func (w *world) read(name string) string {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.run, name))
	if err != nil && !os.IsNotExist(err) {
		w.t.Fatal(err)
	}
	return string(b)
}

// is expects a file to be there or not, and the states.
func (w *world) is(what, name string, there bool, states ...State) {
	w.t.Helper()
	if got := w.read(name); (got != "") != there {
		w.t.Fatalf("%s: %s holds %d bytes", what, name, len(got))
	}
	var got []State
	for _, s := range w.w.Status() {
		got = append(got, s.State)
	}
	if len(got) != len(states) {
		w.t.Fatalf("%s: %v, want %v", what, w.w.Status(), states)
	}
	for i := range got {
		if got[i] != states[i] {
			w.t.Fatalf("%s: %+v, want %v", what, w.w.Status(), states)
		}
	}
}

// names lists what is in w.run.
func (w *world) names() string {
	w.t.Helper()
	var names []string
	list, err := os.ReadDir(w.run)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range list {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

// alarms counts those of the audit log; the world is stopped.
func (w *world) alarms() (n int) {
	w.t.Helper()
	for e, err := range audit.Read(filepath.Join(w.state, "audit"), 0) {
		if err != nil {
			w.t.Fatal(err)
		}
		if e.Type == audit.FileFailed && e.Detail[audit.AlarmKey] != "" {
			n++
		}
	}
	return n
}

// handed counts the first hand-overs of tokens by a file.
func (w *world) handed(name string) (n int) {
	w.t.Helper()
	for e, err := range audit.Read(filepath.Join(w.state, "audit"), 0) {
		if err != nil {
			w.t.Fatal(err)
		}
		if e.Type == audit.TokenHandover && e.Caller.Place == "file "+filepath.Join(w.run, name) {
			w.reader = *e.Caller
			n++
		}
	}
	return n
}

// output is a log that can be read; slog locks it.
type output struct{ strings.Builder }

var _ io.Writer = (*output)(nil)
