package response

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/leak"
	"credentialbroker/oidc"
	"credentialbroker/providers"
	"credentialbroker/rotation"
)

// A relay takes every mail. It runs outside of the bubble, where sockets work.
type relay struct {
	port uint16

	mu     sync.Mutex
	mails  []string
	broken bool
	refuse string // what no mail is taken for
}

func newRelay(t *testing.T) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	r := &relay{port: uint16(l.Addr().(*net.TCPAddr).Port)}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go r.serve(conn)
		}
	}()
	return r
}

func (r *relay) serve(conn net.Conn) {
	defer conn.Close()
	r.mu.Lock()
	broken, refuse := r.broken, r.refuse
	r.mu.Unlock()
	say := func(s string) { _, _ = conn.Write([]byte(s + "\r\n")) }
	if broken {
		say("421 4.3.2 not now")
		return
	}
	say("220 relay.example")
	in := bufio.NewReader(conn)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		switch word := strings.ToUpper(strings.TrimSpace(line)); {
		case strings.HasPrefix(word, "QUIT"):
			say("221 bye")
			return
		case refuse != "" && strings.HasPrefix(word, "RCPT") && strings.Contains(line, refuse):
			say("550 5.1.1 nobody here has that address")
		case word == "DATA":
			say("354 go on")
			var mail strings.Builder
			for line := ""; line != ".\r\n"; {
				if line, err = in.ReadString('\n'); err != nil {
					return
				}
				mail.WriteString(line)
			}
			r.mu.Lock()
			r.mails = append(r.mails, mail.String())
			r.mu.Unlock()
			say("250 taken")
		default:
			say("250 relay.example")
		}
	}
}

func (r *relay) taken() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string{}, r.mails...)
}

func (r *relay) breakDown(b bool) {
	r.mu.Lock()
	r.broken = b
	r.mu.Unlock()
}

// A desk is a daemon but for its sockets: a real log, broker and outbox; at the
// wire an issuer, a secrets manager and a mail relay that obey the test.
type desk struct {
	t      *testing.T
	dir    string
	caller *access.Caller
	issuer *fake.OAuth2
	down   *gate
	store  *fake.Store
	// forgets: the secrets manager has the newest version alone.
	forgets bool
	relay   *relay
	clock   *clock.Bubble
	skew    atomic.Int64 // of the wall clock
	config  Config
	hosts   int // of the client; 0: 1

	log    *audit.Log
	b      *broker.Broker
	r      *Responder
	cancel context.CancelFunc
	done   chan struct{}
	said   said
}

// said is the daemon's log.
type said struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

// alerts counts the lines that nobody may miss.
func (s *said) alerts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return strings.Count(s.b.String(), "level=ERROR+4 ")
}

const (
	theID     = "kCVy8fpVSU50zFzi8TIC"
	theSecret = "first-secret-7f3a9"
	theKey    = "api-key-51c07"

	theSigningSecret = "a-signing-secret-90b1e"
)

// inDesk runs f in a bubble of fake time.
func inDesk(t *testing.T, f func(d *desk)) {
	t.Helper()
	dir, caller, rel := t.TempDir(), self(t), newRelay(t)
	synctest.Test(t, func(t *testing.T) {
		d := &desk{t: t, dir: dir, caller: caller, relay: rel, clock: clock.NewBubble(), store: fake.NewStore()}
		d.clock.Skew = func() time.Duration { return time.Duration(d.skew.Load()) }
		d.issuer = &fake.OAuth2{}
		if err := d.issuer.Register(fake.Client{ID: theID, Secret: theSecret}); err != nil {
			t.Fatal(err)
		}
		d.down = &gate{rt: d.issuer.RoundTripper()}
		d.secret(theSecret)
		d.store.Set("zgw", map[string]string{"client_id": "signer", "client_secret": theSigningSecret})
		d.config = testConfig(rel.port)
		d.start()
		defer func() { d.stop() }()
		f(d)
	})
}

func testConfig(port uint16) Config {
	return Config{Sender: leak.Sender{Organisation: leak.Organisation{Name: "Voorbeeld nv", KBO: "0123.456.789"}, Name: "Wachtdienst", Phone: "+32 2 000 00 00",
		From: "broker@corp.example", ReplyTo: "duty@corp.example"}, Relays: []leak.Relay{{Host: "127.0.0.1", Port: port, TLS: "none"}}, CopyTo: []string{"security@corp.example"},
		Clients: map[string]Client{"vdab": {Issuer: leak.Issuer{Name: "VDAB", Contacts: []string{"ict_iam@issuer.example"}, Rotation: "by-request"}, Environment: "production",
			Places: []string{broker.SecretPlace("store", providers.Ref{Path: "vdab"})}}}}
}

// secret stores a new version with that client secret.
func (d *desk) secret(s string) {
	d.store.Set("vdab", map[string]string{"client_id": theID, "client_secret": s, "api_key": theKey})
}

func (d *desk) clients() []broker.Client {
	var store providers.Provider = d.store
	if d.forgets {
		store = forgetful{d.store}
	}
	signer := broker.Client{Name: "zgw", Provider: d.store, ProviderName: "store", Allow: []access.Entry{{User: strconv.Itoa(os.Getuid()), Surfaces: []access.Surface{access.Token, access.JWT}}},
		Issuer:   &oidc.Profile{Grant: oidc.SelfSigned},
		Rotation: rotation.Config{Spec: providers.Spec{Ref: providers.Ref{Path: "zgw"}}, Required: []string{"client_id", "client_secret"}, Prove: rotation.ProveNone}}
	return []broker.Client{signer, {Name: "vdab", Provider: store, ProviderName: "store",
		Allow:  []access.Entry{{User: strconv.Itoa(os.Getuid()), Surfaces: []access.Surface{access.Token, access.Headers}}},
		Issuer: &oidc.Profile{Issuer: "http://127.0.0.1/as", ClientAuth: oidc.SecretBasic}, Transport: d.down,
		Rotation: rotation.Config{Spec: providers.Spec{Ref: providers.Ref{Path: "vdab"}}, Required: []string{"client_id", "client_secret"}, Hosts: d.hosts}}}
}

// start starts the daemon, anew after a stop: what is on the disk stays.
func (d *desk) start() {
	t := d.t
	t.Helper()
	if err := os.MkdirAll(filepath.Join(d.dir, "credentials"), 0o700); err != nil {
		t.Fatal(err)
	}
	var err error
	if d.log, err = audit.Open(audit.Config{Anchor: "none"}, audit.Options{Dir: filepath.Join(d.dir, "audit"), Clock: d.clock}); err != nil {
		t.Fatal(err)
	}
	d.b = broker.New(broker.Options{Audit: d.log, Clock: d.clock, Dir: d.dir})
	if err := d.b.Apply(d.clients()); err != nil {
		t.Fatal(err)
	}
	if d.r, err = New(Options{Dir: d.dir, Host: "web1", Broker: d.b, Audit: d.log, AuditDir: filepath.Join(d.dir, "audit"), Clock: d.clock,
		Log: slog.New(slog.NewTextHandler(&d.said, nil))}, d.config); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	logCtx, endLog := context.WithCancel(context.Background())
	d.cancel, d.done = cancel, make(chan struct{})
	var all, log sync.WaitGroup
	log.Go(func() { _ = d.log.Run(logCtx) })
	d.r.Start()
	all.Go(func() { _ = d.b.Run(ctx) })
	all.Go(func() { _ = d.r.Run(ctx) })
	go func() {
		all.Wait()
		endLog()
		log.Wait()
		close(d.done)
	}()
}

func (d *desk) stop() {
	d.cancel()
	<-d.done
}

// get asks for a token as a consumer does.
func (d *desk) get() (*broker.Grant, error) {
	return d.b.Token(d.t.Context(), d.caller, broker.Request{Client: "vdab", Surface: access.Token})
}

func (d *desk) mustGet() *broker.Grant {
	d.t.Helper()
	g, err := d.get()
	if err != nil {
		d.t.Fatal(err)
	}
	return g
}

func wantCode(t *testing.T, err error, code client.Code, words ...string) {
	t.Helper()
	var e *broker.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Fatalf("error %v, want code %s", err, code)
	}
	for _, w := range words {
		if !strings.Contains(e.Detail, w) {
			t.Errorf("%q does not say %q", e.Detail, w)
		}
	}
}

func confirmed(policy string) client.Declaration {
	return client.Declaration{Client: "vdab", Severity: "confirmed", What: []string{"client_secret"}, Happened: "It stood in a public repository.", Policy: policy, As: "An, 1234"}
}

func (d *desk) declare(c client.Declaration) client.Incident {
	d.t.Helper()
	i, err := d.r.Declare(d.t.Context(), d.caller, c)
	if err != nil {
		d.t.Fatal(err)
	}
	return i
}

// record is what the book holds of an incident.
func (d *desk) record(id string) leak.Incident {
	d.t.Helper()
	i, err := d.r.book.Get(id)
	if err != nil {
		d.t.Fatal(err)
	}
	return i
}

// step is how a step of the incident stands.
func (d *desk) step(id, what string) (outcome leak.Outcome, detail string) {
	d.t.Helper()
	i, err := d.r.book.Get(id)
	if err != nil {
		d.t.Fatal(err)
	}
	for _, a := range i.Actions {
		if a.What == what {
			outcome, detail = a.Outcome, a.Detail
		}
	}
	return outcome, detail
}

// alarms counts those of the audit log about incidents, by code.
func (d *desk) alarms() map[string]int {
	d.t.Helper()
	n := map[string]int{}
	for e, err := range audit.Read(filepath.Join(d.dir, "audit"), 0) {
		if err != nil {
			d.t.Fatal(err)
		}
		if e.Type == audit.IncidentAlarm {
			n[e.Code]++
		}
	}
	return n
}

// nothingSecret looks for the secrets, and a token, in the whole state.
func (d *desk) nothingSecret(g *broker.Grant) {
	d.t.Helper()
	secrets := []string{theSecret, theKey, "second-secret-18b2c"}
	if g != nil {
		_ = g.Token.Access.Use(func(b []byte) error { secrets = append(secrets, string(b)); return nil })
	}
	texts := strings.Join(d.relay.taken(), "")
	err := filepath.Walk(d.dir, func(name string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			b, _ := os.ReadFile(name)
			texts += string(b)
		}
		return err
	})
	if err != nil {
		d.t.Fatal(err)
	}
	for _, s := range secrets {
		if len(s) > 0 && strings.Contains(texts, s) {
			d.t.Errorf("the state or a mail holds a secret")
		}
	}
}

// self is this process as the kernel sees it through a real socket.
func self(t testing.TB) *access.Caller {
	t.Helper()
	c, end, err := selfAs()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(end)
	return c
}

func selfAs() (c *access.Caller, end func(), err error) {
	dir, err := os.MkdirTemp("", "self-")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(dir)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	mine, err := net.DialUnix("unix", nil, l.Addr().(*net.UnixAddr))
	if err != nil {
		return nil, nil, err
	}
	defer mine.Close()
	conn, err := l.AcceptUnix()
	if err != nil {
		return nil, nil, err
	}
	defer conn.Close()
	c, err = access.Identify(conn)
	return c, func() { _ = c.Close() }, err
}

// forgetful is a secrets manager without history.
type forgetful struct{ *fake.Store }

func (f forgetful) Fetch(ctx context.Context, ref providers.Ref, have providers.Version) (providers.Bundle, error) {
	ref.Version = ""
	return f.Store.Fetch(ctx, ref, have)
}

// gate is a network that can be cut, or hang.
type gate struct {
	rt         http.RoundTripper
	shut, hang atomic.Bool
}

func (g *gate) RoundTrip(r *http.Request) (*http.Response, error) {
	if g.hang.Load() {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	if g.shut.Load() {
		return nil, errors.New("cut")
	}
	return g.rt.RoundTrip(r)
}
