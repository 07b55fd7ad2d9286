package credential

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/godbus/dbus/v5"

	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
	"credentialbroker/oidc"
	"credentialbroker/providers"
	"credentialbroker/rotation"
)

// world is a daemon that serves units alone: a real broker and audit log; at
// the wire, an issuer, a secrets manager and systemd that obey the test.
type world struct {
	t      *testing.T
	dir    string
	issuer *fake.Issuer
	store  *fake.Store
	clock  *clock.Bubble
	caller func() *access.Caller

	log    *audit.Log
	broker *broker.Broker
	room   *Room
	stop   func()

	mu       sync.Mutex
	units    map[string]*service
	asked    func()        // before the state of a unit is told, after it was looked at; nil: nothing
	refusal  string        // D-Bus error of TryRestartUnit; empty: none
	restarts []string      // units, in order
	said     lockedBuilder // the journal
}

// service is a unit of the world's systemd.
type service struct {
	credentials []string
	state       string
	broken      bool // it does not start again
	starts      int
	has         map[string]string
}

type lockedBuilder struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuilder) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuilder) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

const (
	theID     = "kCVy8fpVSU50zFzi8TIC"
	theSecret = "first-secret-7f3a9"
	theKey    = "api-key-51c07"
)

// connected gives two callers that are this process, on real sockets, which do
// not work inside of a bubble.
func connected(t *testing.T) func() *access.Caller {
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
	conn, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = mine.Close(); _ = conn.Close() })
	var who access.Identifier
	return func() *access.Caller {
		c, err := who.Identify(conn)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
}

func inWorld(t *testing.T, f func(w *world)) {
	t.Helper()
	dir, caller := t.TempDir(), connected(t)
	if err := os.Mkdir(filepath.Join(dir, "credentials"), 0o700); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, dir: dir, caller: caller, clock: clock.NewBubble(), store: fake.NewStore(), units: map[string]*service{},
			issuer: fake.NewIssuer(fake.Client{ID: theID, Secret: theSecret, APIKey: theKey})}
		w.key(theKey)
		w.start()
		defer func() { w.stop() }()
		f(w)
	})
}

// key stores a new version of the secret, with that API key.
func (w *world) key(key string) {
	w.store.Set("vdab", map[string]string{"client_id": theID, "client_secret": theSecret, "api_key": key})
}

func entries() []access.Entry {
	credential := []access.Surface{access.Credential}
	return []access.Entry{
		{Unit: "once.service", Surfaces: credential},
		{Unit: "web.service", Surfaces: credential, Restart: true},
		{Unit: "key.service", Surfaces: []access.Surface{access.Credential, access.APIKey}, Restart: true},
		{Unit: "user.service", User: "0"},
		{User: "0"},
	}
}

func (w *world) apply(list []access.Entry) {
	w.t.Helper()
	c := broker.Client{Name: "vdab", Provider: w.store, ProviderName: "store", Allow: list,
		Headers: []broker.Header{{Name: "Authorization", Value: "Bearer {access_token}"}, {Name: "X-IBM-Client-Id", Value: "{api_key}"}},
		Issuer:  &oidc.Profile{TokenEndpoint: "https://issuer.example" + fake.TokenPath}, Transport: w.issuer.RoundTripper(),
		Rotation: rotation.Config{Spec: providers.Spec{Ref: providers.Ref{Path: "vdab"}}, Required: []string{"client_id", "client_secret", "api_key"}}}
	if err := w.broker.Apply([]broker.Client{c}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) start() {
	w.t.Helper()
	var err error
	if w.log, err = audit.Open(audit.Config{Anchor: "none"}, audit.Options{Dir: filepath.Join(w.dir, "audit"), Clock: w.clock}); err != nil {
		w.t.Fatal(err)
	}
	w.broker = broker.New(broker.Options{Audit: w.log, Clock: w.clock, Dir: w.dir})
	w.room = New(Config{Broker: w.broker, Audit: w.log, Clock: w.clock, Log: slog.New(slog.NewTextHandler(&w.said, nil)), State: filepath.Join(w.dir, "units.json")})
	w.room.keep.bus.pipe = w.bus
	ctx, cancel := context.WithCancel(context.Background())
	logCtx, endLog := context.WithCancel(context.Background())
	var all, logging sync.WaitGroup
	logging.Go(func() { _ = w.log.Run(logCtx) })
	all.Go(func() { _ = w.broker.Run(ctx) })
	all.Go(func() { _ = w.room.Run(ctx) })
	w.stop = func() {
		cancel()
		all.Wait()
		endLog()
		logging.Wait()
	}
	synctest.Wait()
	w.apply(entries())
}

// ask is a connection of systemd's for a unit: what it reads to the end.
func (w *world) ask(unit, name string, change func(*access.Caller)) string {
	p, err := parsePeer("@0f/unit/" + unit + "/" + name)
	c := w.caller()
	defer c.Close()
	c.UID, c.GID, c.Groups, c.Unit, c.UserUnit, c.Container = 0, 0, nil, unit, "", false
	if change != nil {
		change(c)
	}
	mine, theirs := net.Pipe()
	defer mine.Close()
	go func() {
		defer theirs.Close()
		if err == nil || c.UID != 0 {
			err = w.room.serve(w.t.Context(), theirs, c, p)
		}
		if err != nil {
			refuse(theirs, w.room.explain(c, p, err))
		}
	}()
	b, _ := io.ReadAll(mine)
	return string(b)
}

// boot starts a unit, as systemd does.
func (w *world) boot(unit string, credentials ...string) *service {
	s := &service{credentials: credentials, has: map[string]string{}}
	w.mu.Lock()
	w.units[unit] = s
	w.mu.Unlock()
	w.begin(unit, s)
	return s
}

func (w *world) begin(unit string, s *service) {
	state, has := "active", map[string]string{}
	for _, name := range s.credentials {
		if has[name] = w.ask(unit, name, nil); len(has[name]) > 1<<20 {
			state = "failed"
			break
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	s.state, s.has = state, has
	s.starts++
}

func (w *world) restarted() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.restarts)
}

func (w *world) holds(s *service, name string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return s.has[name]
}

// alarms are the texts of the alarms about units.
func (w *world) alarms() (list []string) {
	w.t.Helper()
	synctest.Wait()
	for e, err := range audit.Read(filepath.Join(w.dir, "audit"), 0) {
		if err != nil {
			w.t.Fatal(err)
		}
		if e.Type == audit.UnitRestarted && e.Detail[audit.AlarmKey] != "" {
			list = append(list, e.Code+": "+e.Detail[audit.AlarmKey])
		}
	}
	return list
}

// bus is a connection to the system bus, with systemd behind it.
func (w *world) bus() io.ReadWriteCloser {
	mine, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		in := bufio.NewReader(theirs)
		if _, err := in.ReadByte(); err != nil { // the one that carries credentials
			return
		}
		for {
			line, err := in.ReadString('\n')
			switch line = strings.TrimSpace(line); {
			case err != nil:
				return
			case line == "AUTH":
				_, _ = io.WriteString(theirs, "REJECTED EXTERNAL\r\n")
				continue
			case line == "AUTH EXTERNAL":
				_, _ = io.WriteString(theirs, "OK 0123456789abcdef0123456789abcdef\r\n")
				continue
			case line != "BEGIN":
				return
			}
			break
		}
		for {
			m, err := dbus.DecodeMessage(in)
			if err != nil {
				return
			}
			w.reply(theirs, m)
		}
	}()
	return mine
}

func (w *world) reply(out io.Writer, m *dbus.Message) {
	answer := &dbus.Message{Type: dbus.TypeMethodReply, Headers: map[dbus.HeaderField]dbus.Variant{dbus.FieldReplySerial: dbus.MakeVariant(m.Serial())}}
	member, _ := m.Headers[dbus.FieldMember].Value().(string)
	w.mu.Lock()
	switch member {
	case "Hello":
		answer.Body = []any{":1.1"}
	case "LoadUnit":
		answer.Body = []any{dbus.ObjectPath("/unit/" + hexed(m.Body[0].(string)))}
	case "Get":
		path := m.Headers[dbus.FieldPath].Value().(dbus.ObjectPath)
		state := "inactive"
		for name, s := range w.units {
			if "/unit/"+hexed(name) == string(path) {
				state = s.state
			}
		}
		answer.Body = []any{dbus.MakeVariant(state)}
		if w.asked != nil {
			w.asked()
		}
	case "TryRestartUnit":
		unit := m.Body[0].(string)
		s := w.units[unit]
		switch {
		case w.refusal != "":
			answer.Type = dbus.TypeError
			answer.Headers[dbus.FieldErrorName] = dbus.MakeVariant(w.refusal)
			answer.Body = []any{"no"}
		case s.broken:
			s.state = "failed"
			fallthrough
		default:
			w.restarts = append(w.restarts, unit)
			answer.Body = []any{dbus.ObjectPath("/job/1")}
			if !s.broken {
				go w.begin(unit, s)
			}
		}
	}
	w.mu.Unlock()
	if len(answer.Body) > 0 {
		answer.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(answer.Body...))
	}
	var b bytes.Buffer
	if err := answer.EncodeTo(&b, binary.LittleEndian); err != nil {
		w.t.Error(err)
	}
	_, _ = out.Write(b.Bytes())
}

func hexed(s string) string { return fmt.Sprintf("%x", s) }

func (w *world) sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
