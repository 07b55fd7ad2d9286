package api

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/gate"
	"credentialbroker/internal/scan"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
	"credentialbroker/providers"
	"credentialbroker/rotation"
)

const (
	theID     = "kCVy8fpVSU50zFzi8TIC"
	theSecret = "client-secret-7f3a9"
	theKey    = "api-key-51c07"
)

// house is a daemon without its process: real sockets, broker and audit log;
// at the wire, an issuer and a secrets manager that obey the test.
type house struct {
	t        testing.TB
	dir      string
	consumer string // path of the socket
	admin    string
	issuer   *fake.Issuer
	store    *fake.Store
	broker   *broker.Broker
	server   *Server
	used     atomic.Int64 // bodies that held a secret
	log      *lockedBuffer
	http     *http.Client // on the consumer socket
	stop     func() error // ends the server and waits

	mu         sync.Mutex
	roles      Roles
	acts       []string
	fail       error // of the next Act
	want       any   // what the daemon was asked for last
	code       secret.Secret
	caller     *access.Caller           // by whom the daemon was asked, where it is told
	given      secret.Secret            // the very value that code, or the last field, is a copy of
	brought    map[string]secret.Secret // fields of an intake
	candidates []scan.Candidate         // the very ones that were asked about
	told       []map[string]string      // what Act was told besides
	unknown    bool                     // whois finds nothing
	judged     string                   // the token that was judged, and the client that was named
	inner      Administration
}

// lockedBuffer is a log that can be read while it is written.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newHouse builds and starts one; change may alter the configuration first.
func newHouse(t testing.TB, change func(*Server)) *house {
	t.Helper()
	return newFaultyHouse(t, fake.Fault{}, change)
}

// newFaultyHouse has an issuer with a fault from the start.
func newFaultyHouse(t testing.TB, fault fake.Fault, change func(*Server)) *house {
	t.Helper()
	// Not t.TempDir: other users have to get through.
	dir, err := os.MkdirTemp("", "house")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	h := &house{t: t, dir: dir, store: fake.NewStore(), log: &lockedBuffer{}, brought: map[string]secret.Secret{},
		issuer: fake.NewIssuer(fake.Client{ID: theID, Secret: theSecret, APIKey: theKey})}
	h.issuer.Set(fault)
	h.consumer, h.admin = filepath.Join(h.dir, "broker.sock"), filepath.Join(h.dir, "admin.sock")
	h.store.Set("vdab", map[string]string{"client_id": theID, "client_secret": theSecret, "api_key": theKey})
	for _, sub := range []string{"state", "state/credentials"} {
		if err := os.Mkdir(filepath.Join(h.dir, sub), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	log, err := audit.Open(audit.Config{Anchor: "none"}, audit.Options{Dir: filepath.Join(h.dir, "audit")})
	if err != nil {
		t.Fatal(err)
	}
	h.broker = broker.New(broker.Options{Audit: log, Clock: clock.System{}, Dir: filepath.Join(h.dir, "state")})
	cfg := Config{Broker: h.broker, Log: slog.New(slog.NewTextHandler(h.log, nil)), Administration: h.administration()}
	if cfg.Consumer, err = gate.Listen(h.consumer, 0o666); err != nil {
		t.Fatal(err)
	}
	if cfg.Admin, err = gate.Listen(h.admin, 0o666); err != nil {
		t.Fatal(err)
	}
	h.server = New(cfg)
	if change != nil {
		change(h.server)
	}
	h.http = via(h.consumer)
	if err := h.broker.Apply([]broker.Client{h.client("vdab", me()), h.client("other", access.Entry{User: "54321"})}); err != nil {
		t.Fatal(err)
	}
	h.run(log)
	return h
}

// apply gives vdab another allow entry.
func (h *house) apply(e access.Entry) {
	h.t.Helper()
	if err := h.broker.Apply([]broker.Client{h.client("vdab", e), h.client("other", access.Entry{User: "54321"})}); err != nil {
		h.t.Fatal(err)
	}
}

// me is an entry for whoever runs the test.
func me() access.Entry {
	return access.Entry{User: itoa(os.Getuid()), Surfaces: []access.Surface{access.Token, access.Headers, access.APIKey}}
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + itoa(n%10)
}

func (h *house) client(name string, entry access.Entry) broker.Client {
	return broker.Client{Name: name, Provider: h.store, ProviderName: "store", Allow: []access.Entry{entry},
		Headers: []broker.Header{{Name: "Authorization", Value: "Bearer {access_token}"}, {Name: "X-IBM-Client-Id", Value: "{api_key}"}},
		Issuer:  &oidc.Profile{TokenEndpoint: "https://issuer.example" + fake.TokenPath}, Transport: h.issuer.RoundTripper(),
		KeyRejected: []string{"invalid client id or secret"},
		Limits:      access.Limits{Scopes: []string{"read", "write"}},
		Rotation: rotation.Config{Spec: providers.Spec{Ref: providers.Ref{Path: "vdab"}},
			Required: []string{"client_id", "client_secret", "api_key"}},
	}
}

// administration is the daemon's part, as far as the sockets need one.
func (h *house) administration() Administration {
	return Administration{
		Roles: func() Roles { h.mu.Lock(); defer h.mu.Unlock(); return h.roles },
		Act: func(_ context.Context, _ *access.Caller, act, client string, detail map[string]string) error {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.acts = append(h.acts, strings.TrimSpace(act+" "+client))
			h.told = append(h.told, detail)
			return h.fail
		},
		Denied: func(_ *access.Caller, act, client string) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.want = client
			h.acts = append(h.acts, "denied "+act)
		},
		Status: func() client.Status {
			return client.Status{Version: "test", Clients: []client.StatusClient{{Client: "vdab"}}}
		},
		Reload: func(ctx context.Context, c *access.Caller) ([]client.Change, error) {
			if h.inner.Reload != nil {
				return h.inner.Reload(ctx, c)
			}
			return nil, nil
		},
		Live: func(context.Context) iter.Seq[client.Finding] {
			return func(yield func(client.Finding) bool) {
				_ = yield(client.Finding{Check: "clock", Target: "host", Level: client.OK, Detail: "in step"}) &&
					yield(client.Finding{Check: "provider", Target: "<corp>", Level: client.Warning, Detail: "slow"})
			}
		},
		Retry: func(_ context.Context, name string) (client.Outcome, error) {
			return client.Outcome{Reason: "may be tried again"}, h.broker.Retry(name)
		},
		Rotate: func(ctx context.Context, name string, r client.Rotation) (client.Outcome, error) {
			if h.inner.Rotate != nil {
				return h.inner.Rotate(ctx, name, r)
			}
			st, err := h.broker.Rotate(ctx, name, broker.Rotation{Accept: r.Accept, Version: providers.Version(r.Version), Latest: r.Latest})
			return client.Outcome{Version: string(st.Version), Reason: "looked"}, err
		},
		Key: func(_ context.Context, name string) (client.Key, error) { return h.asked(name, nil) },
		NewKey: func(_ context.Context, name string, k client.NewKey) (client.Key, error) {
			return h.asked(name, k)
		},
		Used: func() { h.used.Add(1) },
		Intake: func(_ context.Context, name string, in broker.Intake) (client.Intake, error) {
			h.mu.Lock()
			for field, v := range in.Fields {
				h.given = v
				own, _ := v.Clone()
				h.brought[field] = own
			}
			h.mu.Unlock()
			_, err := h.asked(name, in.Accept)
			return client.Intake{Client: name, Kind: "vault", Proved: "mint", Changed: []string{"api_key"}}, err
		},
		RotateKey: func(_ context.Context, name string, r client.KeyRotation) (client.RotatedKey, error) {
			k, err := h.asked(name, r)
			return client.RotatedKey{State: client.KeyPending, Key: k, Reason: "waits"}, err
		},
		Login: func(_ context.Context, name string, l client.LoginStart) (client.Login, error) {
			_, err := h.asked(name, l)
			return client.Login{URL: "https://issuer.example/authorize", State: "s", RedirectURI: l.RedirectURI}, err
		},
		FinishLogin: func(_ context.Context, name string, code broker.LoginCode) (client.Outcome, error) {
			h.mu.Lock()
			h.given = code.Code
			h.code, _ = code.Code.Clone()
			h.mu.Unlock()
			code.Code = secret.Secret{}
			_, err := h.asked(name, code)
			return client.Outcome{Reason: "logged in"}, err
		},
		Revoke: func(_ context.Context, name string, r client.Revocation) (client.Outcome, error) {
			_, err := h.asked(name, r)
			return client.Outcome{Reason: "revoked"}, err
		},
		Declare: func(_ context.Context, c *access.Caller, d client.Declaration) (client.Incident, error) {
			return h.incident(c, d.Client, d)
		},
		Incidents: func(context.Context) ([]client.Incident, error) { return nil, nil },
		Incident:  func(_ context.Context, id string) (client.Incident, error) { return h.incident(nil, id, "") },
		Release: func(_ context.Context, c *access.Caller, id string, _ client.IncidentRelease) (client.Incident, error) {
			return h.incident(c, id, "release")
		},
		Close: func(_ context.Context, c *access.Caller, id string, how client.IncidentClose) (client.Incident, error) {
			return h.incident(c, id, how)
		},
		Drill: func(_ context.Context, c *access.Caller, name string) (client.Incident, error) {
			return h.incident(c, name, "drill")
		},
		Evidence: func(_ context.Context, id string) (json.RawMessage, error) {
			_, err := h.incident(nil, id, "evidence")
			return json.RawMessage(`{"format":1}`), err
		},
		AddEvidence: func(_ context.Context, c *access.Caller, id string, e json.RawMessage) (client.Incident, error) {
			return h.incident(c, id, string(e))
		},
		Whois: func(_ context.Context, fingerprint string) (client.Whois, error) {
			h.mu.Lock()
			defer h.mu.Unlock()
			h.want = fingerprint
			if h.unknown {
				return client.Whois{}, &broker.Error{Code: client.NotFound, Detail: "it is not known"}
			}
			return client.Whois{Client: "vdab", Fingerprint: fingerprint}, nil
		},
		Judge: h.judge,
		Scan:  h.broker.Scan,
		ConfirmFind: func(c *access.Caller, list []scan.Candidate) [][]scan.Match {
			h.mu.Lock()
			h.candidates = append(h.candidates, list...)
			h.mu.Unlock()
			return h.broker.ConfirmFind(c, list)
		},
		Metrics:  http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "up 1\n") }),
		AuditDir: filepath.Join(h.dir, "audit"),
	}
}

// asked remembers what the daemon was asked for, of a client that there is.
func (h *house) asked(name string, what any) (client.Key, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.want = what
	if name != "vdab" {
		return client.Key{}, &broker.Error{Code: client.NotFound, Detail: "no such client"}
	}
	return client.Key{Client: name, KeyID: "k", Algorithm: "ES256", JWK: json.RawMessage(`{"kty":"EC"}`)}, nil
}

// incident remembers what the daemon was asked for, of a client or incident
// that there is.
// judge is the daemon's: it keeps what it was asked.
func (h *house) judge(_ context.Context, token secret.Secret, fingerprint, name string) (client.Whois, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	_ = token.Use(func(b []byte) error { h.judged = string(b) + " " + fingerprint + " " + name; return nil })
	h.given = token
	if name == "" {
		return client.Whois{}, &broker.Error{Code: client.NotFound, Detail: "it cannot be told"}
	}
	return client.Whois{Client: name, Fingerprint: fingerprint, Foreign: true, Reason: "it is", Incident: "2026-0008"}, nil
}

func (h *house) incident(c *access.Caller, name string, what any) (client.Incident, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.want, h.caller = what, c
	if name != "vdab" && name != "2026-0007" && name != "2026-0007@web1" {
		return client.Incident{}, &broker.Error{Code: client.NotFound, Detail: "no such incident"}
	}
	return client.Incident{ID: "2026-0007", State: "open"}, nil
}

func (h *house) run(log *audit.Log) {
	ctx, cancel := context.WithCancel(context.Background())
	brokerCtx, stopBroker := context.WithCancel(context.Background())
	logCtx, stopLog := context.WithCancel(context.Background())
	done := make(chan error, 1)
	var wg sync.WaitGroup
	var logging sync.WaitGroup
	wg.Go(func() { _ = h.broker.Run(brokerCtx) })
	logging.Go(func() { _ = log.Run(logCtx) })
	go func() { done <- h.server.Run(ctx) }()
	h.stop = sync.OnceValue(func() error {
		cancel()
		err := <-done
		stopBroker()
		wg.Wait()
		stopLog()
		logging.Wait()
		return err
	})
	h.t.Cleanup(func() {
		if err := h.stop(); err != nil {
			h.t.Errorf("Run: %v", err)
		}
	})
}

// recorded is what Act and Denied were told.
func (h *house) recorded() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]string(nil), h.acts...)
}

func via(socket string) *http.Client {
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableCompression: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return connect(socket) }}}
}

// connect waits while the kernel's queue of connections is full, as a blocking
// connect does.
func connect(socket string) (net.Conn, error) {
	for {
		c, err := net.Dial("unix", socket)
		if !errors.Is(err, unix.EAGAIN) {
			return c, err
		}
		runtime.Gosched()
	}
}

// answer is a response, read whole.
type answer struct {
	status int
	header http.Header
	body   string
}

func ask(t testing.TB, c *http.Client, method, path, body string, header ...string) answer {
	t.Helper()
	req, err := http.NewRequest(method, "http://broker"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Add(header[i], header[i+1])
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, path, err)
	}
	return answer{resp.StatusCode, resp.Header, string(b)}
}

// raw sends bytes on a connection of its own and reads one answer; an error
// means that there was none.
func raw(t testing.TB, socket, request string) (answer, error) {
	t.Helper()
	c, err := connect(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, request); err != nil {
		return answer{}, err
	}
	return readAnswer(c)
}

func readAnswer(c net.Conn) (answer, error) {
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, string(b)}, err
}
