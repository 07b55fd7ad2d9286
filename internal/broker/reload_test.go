package broker

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/fake"
	"credentialbroker/providers"
)

// The secret's place changes; both places are at version 1.
func TestMovedSecretSameVersion(t *testing.T) {
	inWorld(t, func(w *world) {
		w.mustGet()
		w.issuer.SetSecret(theID, "second-secret", true)
		w.store.Set("elsewhere", map[string]string{"client_id": theID, "client_secret": "second-secret", "api_key": "new-key"})
		cfg := w.config()
		cfg[0].Rotation.Spec = providers.Spec{Ref: providers.Ref{Path: "elsewhere"}}
		if err := w.b.Apply(cfg); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Hour)
		g, err := w.b.APIKey(w.t.Context(), w.caller, "vdab")
		if err != nil {
			t.Fatal(err)
		}
		_ = g.APIKey().Use(func(b []byte) error {
			if string(b) != "new-key" {
				t.Errorf("two hours after the move the key is still %q", b)
			}
			return nil
		})
	})
}

// A reload while a refusal is on its way does not lose it.
func TestReloadLosesRefusal(t *testing.T) {
	inWorld(t, func(w *world) {
		time.Sleep(time.Minute)
		w.issuer.Set(fake.Fault{Kind: fake.InvalidClient, Delay: 5 * time.Second})
		done := make(chan error)
		go func() { _, err := w.get(Request{}); done <- err }()
		time.Sleep(2 * time.Second)
		cfg := w.config()
		cfg[0].Rotation.Poll = time.Minute
		if err := w.b.Apply(cfg); err != nil {
			t.Fatal(err)
		}
		t.Log("first:", <-done)
		n := w.issuer.Stats()
		_, err := w.get(Request{})
		t.Log("second:", err)
		m := w.issuer.Stats()
		t.Logf("before %+v after %+v", n, m)
		if fmt.Sprint(n) != fmt.Sprint(m) {
			t.Error("the refused version was presented again after the reload")
		}
		data, _ := os.ReadFile(filepath.Join(w.dir, "credentials", "vdab.json"))
		t.Log(string(data))
	})
}

// A reload that changes nothing drops no token.
func TestApplyDrops(t *testing.T) {
	dir, caller := t.TempDir(), self(t)
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, dir, caller)
		w.start()
		defer w.stop()
		many := func() []Client {
			var list []Client
			for i := range 200 {
				c := w.config()[0]
				c.Name = fmt.Sprintf("c%04d", i)
				list = append(list, c)
			}
			return list
		}
		if err := w.b.Apply(many()); err != nil {
			t.Fatal(err)
		}
		for i := range 200 {
			if _, err := w.get(Request{Client: fmt.Sprintf("c%04d", i)}); err != nil {
				t.Fatal(err)
			}
		}
		dropped := 0
		for range 10 {
			if err := w.b.Apply(many()); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			for _, cl := range w.b.clients.Load().byName {
				for _, e := range cl.all() {
					if e.held.Load() == nil {
						dropped++
					}
				}
			}
			for i := range 200 {
				_, _ = w.get(Request{Client: fmt.Sprintf("c%04d", i)})
			}
		}
		if dropped > 0 {
			t.Errorf("%d of 2000 valid tokens were dropped by reloads that change nothing", dropped)
		}
	})
}

// Status says of a page what consumers hear of it.
func TestStatusProtocol(t *testing.T) {
	inWorld(t, func(w *world) {
		w.issuer.Set(fake.Fault{Kind: fake.HTML})
		_, err := w.get(Request{})
		wantCode(t, err, client.IssuerProtocolError)
		s := w.b.Status()[0]
		if s.Problem == nil || s.Problem.Code != client.IssuerProtocolError {
			t.Errorf("consumers get issuer_protocol_error, status and readyz say %+v", s.Problem)
		}
	})
}

// Refusals of combinations beyond the limit are not forgotten.
func TestCombinationsBudget(t *testing.T) {
	inWorld(t, func(w *world) {
		cfg := w.config()
		var scopes []string
		for i := range 20 {
			scopes = append(scopes, fmt.Sprintf("s%d", i))
		}
		cfg[0].Limits.Scopes = scopes
		cfg[0].Allow[0].Scopes = scopes
		asked := 0
		cfg[0].Transport = roundTrip(func(r *http.Request) (*http.Response, error) {
			asked++
			return &http.Response{StatusCode: http.StatusBadRequest, Header: http.Header{"Content-Type": {"application/json"}}, Request: r,
				Body: io.NopCloser(strings.NewReader(`{"error":"invalid_scope"}`))}, nil
		})
		cfg[0].Rotation.Poll = time.Hour // a new credential with that transport
		if err := w.b.Apply(cfg); err != nil {
			t.Fatal(err)
		}
		n := 0
		for round := range 5 {
			for _, s := range scopes {
				before := asked
				_, err := w.get(Request{Scope: s})
				if round == 0 && s == "s0" {
					t.Log(err)
				}
				if before != asked {
					n++
				}
			}
		}
		t.Logf("%d requests at the issuer for 100 asks, %+v", n, w.issuer.Stats())
	})
}

// An attempt in which the daemon is stopped counts after the restart.
func TestStopForgetsIntent(t *testing.T) {
	inWorld(t, func(w *world) {
		w.issuer.Set(fake.Fault{Kind: fake.Hang})
		for range 6 {
			go func() { _, _ = w.get(Request{}) }()
			time.Sleep(2 * time.Second)
			w.restart()
		}
		data, _ := os.ReadFile(filepath.Join(w.dir, "credentials", "vdab.json"))
		t.Log(string(data))
		t.Logf("%+v", w.issuer.Stats())
	})
}

// Repeats are on record even if the key is replaced before the minute is over.
func TestKeyCounts(t *testing.T) {
	inWorld(t, func(w *world) {
		w.mustGet()
		time.Sleep(61 * time.Second)
		for range 10 {
			if _, err := w.b.APIKey(w.t.Context(), w.caller, "vdab"); err != nil {
				t.Fatal(err)
			}
		}
		w.secret(theSecret)
		if _, err := w.b.Rotate(w.t.Context(), "vdab", Rotation{}); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			if _, err := w.b.APIKey(w.t.Context(), w.caller, "vdab"); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(3 * time.Minute)
		w.stop()
		var n int64
		for e, err := range audit.Read(filepath.Join(w.dir, "audit"), 0) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Type == audit.KeyHandover {
				n += max(1, e.Count)
			}
		}
		if n != 15 {
			t.Errorf("15 hand-overs of the key, %d on record", n)
		}
		w.start()
	})
}

// Accept does not install what the issuer has refused.
func TestAcceptRefused(t *testing.T) {
	inWorld(t, func(w *world) {
		w.mustGet()
		w.secret("wrong")
		_, _ = w.b.Rotate(w.t.Context(), "vdab", Rotation{})
		st, err := w.b.Rotate(w.t.Context(), "vdab", Rotation{Accept: true})
		t.Logf("%+v %v", st, err)
		time.Sleep(16 * time.Minute)
		_, err = w.get(Request{})
		t.Log(err)
	})
}

var _ = access.Token

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// V1 at the old place was refused; the operator points to another place, whose version is 1 too.
func TestRefusalFollowsTheNumber(t *testing.T) {
	inWorld(t, func(w *world) {
		w.issuer.SetSecret(theID, "good", false)
		_, err := w.get(Request{})
		t.Log("wrong secret:", err)
		w.store.Set("elsewhere", map[string]string{"client_id": theID, "client_secret": "good", "api_key": theKey})
		cfg := w.config()
		cfg[0].Rotation.Spec = providers.Spec{Ref: providers.Ref{Path: "elsewhere"}}
		// another issuer too, so that nothing is adopted
		p := *cfg[0].Issuer
		p.DefaultLifetime = 60e9
		cfg[0].Issuer = &p
		if err := w.b.Apply(cfg); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour + time.Minute)
		if _, err = w.get(Request{}); err != nil {
			t.Error("after the move to a good secret, for good:", err)
		}
	})
}

// Another proxy to the same issuer costs no token, in an outage either.
func TestProxyChangeDropsTokens(t *testing.T) {
	inWorld(t, func(w *world) {
		w.mustGet()
		w.issuer.Set(fake.Fault{Kind: fake.Unavailable})
		cfg := w.config()
		p := *cfg[0].Issuer
		p.Proxy = "http://proxy.example:3128"
		cfg[0].Issuer = &p
		if err := w.b.Apply(cfg); err != nil {
			t.Fatal(err)
		}
		if _, err := w.get(Request{}); err != nil {
			t.Error("a valid token of the same endpoint is gone:", err)
		}
	})
}
