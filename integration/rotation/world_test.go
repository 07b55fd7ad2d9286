//go:build real

package rotation

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/integration/real"
	"credentialbroker/internal/fake"
)

// lifetime of the tokens. With the broker's margin of 10 s the last 5 s at
// least are for outages: a renewal is due after 75 to 85 s and the token
// serves until 90.
const lifetime = 100 * time.Second

// A party is a client of the broker, with an issuer of its own.
type party struct {
	name   string
	issuer *fake.Issuer
	api    string
	fields map[string]string // of the version that works
	scopes []string          // what consumers ask for, one after another
}

// A world is a daemon between a secrets manager, two issuers and consumers.
type world struct {
	t       *testing.T
	dir     string
	manager *manager
	daemon  *real.Process
	admin   *client.Admin
	http    *http.Client
	start   time.Time

	managing sync.Mutex // a fault of the manager, or a write by its owner
	reads    atomic.Int64
	calls    atomic.Int64 // of the API, with what was read

	mu       sync.Mutex
	timeline strings.Builder
	failed   map[string]int // reads, by what was wrong
}

func pemOf(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func dist(name string) string { return filepath.Join(real.Root(), "dist", name) }

// note keeps what happened when, for whoever has to find out why a read failed.
func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	fmt.Fprintf(&w.timeline, "%s %s\n", time.Now().UTC().Format("15:04:05.000"), fmt.Sprintf(format, args...))
}

func newWorld(t *testing.T, m *manager, secrets string) (w *world, rotating, steady *party) {
	t.Helper()
	dir, err := os.MkdirTemp("", "rotation-") // short: a socket's path has 108 bytes at most
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	w = &world{t: t, dir: dir, manager: m, start: time.Now(), failed: map[string]int{}}
	cert, ca, err := fake.TLS()
	if err = errors.Join(err, os.WriteFile(w.path("ca.pem"), ca, 0o600)); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}, MaxIdleConnsPerHost: 64}
	t.Cleanup(transport.CloseIdleConnections)
	w.http = &http.Client{Transport: transport, Timeout: 30 * time.Second}
	var yaml strings.Builder
	fmt.Fprintf(&yaml, "providers:\n  manager:\n    %s\nclients:\n", m.provider)
	party := func(name, settings string, scopes ...string) *party {
		p := &party{name: name, scopes: scopes, fields: map[string]string{"client_id": name + "-id", "client_secret": name + "-secret-0", "api_key": name + "-key"}}
		p.issuer = fake.NewIssuer(fake.Client{ID: p.fields["client_id"], Secret: p.fields["client_secret"], APIKey: p.fields["api_key"]})
		p.issuer.Set(fake.Fault{Lifetime: lifetime})
		mux := http.NewServeMux()
		mux.Handle("/", p.issuer)
		mux.Handle(fake.APIPath, p.issuer.Gateway())
		s := httptest.NewUnstartedServer(mux)
		s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
		s.StartTLS()
		t.Cleanup(s.Close)
		p.api = s.URL + fake.APIPath
		fmt.Fprintf(&yaml, "  %s:\n    preset: vdab-test\n    token_endpoint: %s\n    ca_file: %s\n    secret: { provider: manager, %s }\n    %s\n"+
			"    owner: { contact: team@corp.example, purpose: rotation }\n    rotation: { poll: 1s }\n    allow: [{ user: %q }]\n",
			name, s.URL+fake.TokenPath, w.path("ca.pem"), place(m, name), settings, fmt.Sprint(os.Getuid()))
		w.put(p, p.fields)
		return p
	}
	settings, scopes := "secrets: "+secrets, []string{""}
	if secrets == "two" {
		// A second token, of another scope, is minted with each version behind the
		// first. With one secret at a time it could meet a secret that is dead.
		settings, scopes = settings+"\n    scopes: [read]", append(scopes, "read")
	}
	rotating, steady = party("rotating", settings, scopes...), party("steady", "secrets: two", "")
	yaml.WriteString("limits: { requests_per_second: 1000000 }\naudit: { anchor: none }\n")
	w.serve(yaml.String())
	return w, rotating, steady
}

func place(m *manager, name string) string {
	if strings.HasPrefix(m.provider, "vault") {
		return "mount: secret, path: " + name
	}
	return "path: " + name
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) serve(yaml string) {
	w.t.Helper()
	if err := os.WriteFile(w.path("broker.yaml"), []byte(yaml), 0o600); err != nil {
		w.t.Fatal(err)
	}
	cmd := exec.Command(dist("broker"), "serve", "--config", w.path("broker.yaml"), "--state", w.path("state"), "--socket", w.path("broker.sock"))
	cmd.Env = append(os.Environ(), "PATH="+filepath.Join(real.Root(), "dist")+":"+os.Getenv("PATH"), "HOME="+w.dir)
	w.daemon = real.StartUnix(w.t, w.path("broker.sock"), cmd)
	w.admin = &client.Admin{Socket: w.path("admin.sock")}
	w.until("the admin socket", func() bool { _, err := w.admin.Status(w.t.Context()); return err == nil })
}

// until waits for something that has to come, however the machine is loaded.
func (w *world) until(what string, done func() bool) {
	w.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			w.report()
			w.t.Fatalf("not in time: %s", what)
		}
	}
}

func (w *world) status(p *party) client.StatusClient {
	s, err := w.admin.Status(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, c := range s.Clients {
		if c.Client == p.name {
			return c
		}
	}
	w.t.Fatalf("no status of %s", p.name)
	return client.StatusClient{}
}

// minted counts the tokens of each version, as the audit log has them.
func (w *world) minted(p *party) map[string]int {
	w.t.Helper()
	count := map[string]int{}
	for raw, err := range w.admin.Tail(w.t.Context(), 10000, false) {
		var e struct{ Type, Client, Version string }
		if err = errors.Join(err, json.Unmarshal(raw, &e)); err != nil {
			w.t.Fatal(err)
		}
		if e.Type == "token.minted" && e.Client == p.name {
			count[e.Version]++
		}
	}
	return count
}

// put stores a version as the secret's owner does, who waits for the end of an
// outage.
func (w *world) put(p *party, fields map[string]string) (version string) {
	w.t.Helper()
	w.managing.Lock()
	defer w.managing.Unlock()
	var err error
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if version, err = w.manager.put(p.name, fields); err == nil {
			return version
		}
	}
	w.t.Fatal(err)
	return ""
}

// consume reads until ctx ends. Every read has to give a token that lives; with
// one in a hundred the API is called.
func (w *world) consume(ctx context.Context, p *party, n int) {
	ask := &client.Client{Socket: w.path("broker.sock")} // a connection of its own
	for i := n; ctx.Err() == nil; i++ {
		o := client.Options{Scope: p.scopes[i%len(p.scopes)]}
		tok, err := ask.Token(ctx, p.name, o)
		if err == nil && (tok.AccessToken == "" || tok.ExpiresIn <= 0) {
			err = fmt.Errorf("a token of %d bytes that lives for %d s", len(tok.AccessToken), tok.ExpiresIn)
		}
		if err == nil && i%100 == 0 {
			err = w.call(ctx, ask, p, o)
		}
		if err != nil && ctx.Err() == nil {
			w.mu.Lock()
			first := w.failed[err.Error()] == 0
			w.failed[err.Error()]++
			w.mu.Unlock()
			if first {
				w.note("READ FAILED %s %q: %v", p.name, o.Scope, err)
			}
		}
		w.reads.Add(1)
	}
}

func (w *world) call(ctx context.Context, ask *client.Client, p *party, o client.Options) error {
	h, err := ask.Headers(ctx, p.name, o)
	if err != nil {
		return err
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, p.api, nil)
	if err != nil {
		return err
	}
	for name, v := range h {
		r.Header.Set(name, v)
	}
	resp, err := w.http.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the API answers %s", resp.Status)
	}
	w.calls.Add(1)
	return nil
}

// pause waits between from and to; false: ctx has ended.
func pause(ctx context.Context, rng *rand.Rand, from, to time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(from + time.Duration(rng.Int64N(int64(to-from)))):
		return true
	}
}

// issuerFaults are what an issuer does wrong, each without judging a secret.
var issuerFaults = []fake.Fault{
	{Kind: fake.Maintenance}, {Kind: fake.HTML}, {Kind: fake.Reset}, {Kind: fake.Unavailable}, {Kind: fake.Empty}, {Kind: fake.Forbidden},
	{Kind: fake.Throttled, RetryAfter: time.Second}, {Delay: 700 * time.Millisecond, Lifetime: lifetime},
}

// troubleIssuer breaks an issuer at random moments. An outage is shorter than
// the time to the broker's second attempt, and the next one comes after that.
func (w *world) troubleIssuer(ctx context.Context, p *party, rng *rand.Rand) {
	for pause(ctx, rng, 2500*time.Millisecond, 4*time.Second) {
		f := issuerFaults[rng.IntN(len(issuerFaults))]
		w.note("%s's issuer: %q delay %v", p.name, f.Kind, f.Delay)
		p.issuer.Set(f)
		pause(ctx, rng, 200*time.Millisecond, 800*time.Millisecond)
		p.issuer.Set(fake.Fault{Lifetime: lifetime})
		w.note("%s's issuer: well", p.name)
	}
}

// troubleManager breaks the secrets manager at random moments.
func (w *world) troubleManager(ctx context.Context, rng *rand.Rand) {
	for pause(ctx, rng, 2*time.Second, 6*time.Second) {
		f := w.manager.faults[rng.IntN(len(w.manager.faults))]
		w.managing.Lock()
		w.note("the manager: %s", f.name)
		err := f.on()
		pause(ctx, rng, 500*time.Millisecond, 1500*time.Millisecond)
		if err = errors.Join(err, f.off()); err != nil {
			w.note("the manager cannot be broken or mended: %v", err)
			w.t.Errorf("%s: %v", f.name, err)
		}
		w.note("the manager: well")
		w.managing.Unlock()
	}
}

// report tells what happened, for whoever has to find out why.
func (w *world) report() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.t.Logf("what happened:\n%s", w.timeline.String())
	for e, err := range w.admin.Tail(context.Background(), 120, false) {
		if err != nil {
			w.t.Logf("audit log: %v", err)
			return
		}
		w.t.Logf("audit: %s", e)
	}
}
