package broker

import (
	"strings"
	"sync"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/secret"
)

func (w *world) reject(g *Grant) (Rejected, error) {
	return w.b.Reject(w.t.Context(), w.caller, Rejection{Client: "vdab", Fingerprint: g.Token.Fingerprint, Status: 401})
}

func TestRejectReplacesAnOldToken(t *testing.T) {
	inWorld(t, func(w *world) {
		g := w.mustGet()
		time.Sleep(2 * time.Minute)
		w.issuer.Set(fake.Fault{Kind: fake.Slow, Delay: 5 * time.Second})
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				r, err := w.reject(g)
				if err != nil || !r.Replaced || r.Fingerprint == g.Token.Fingerprint {
					t.Errorf("%+v, %v", r, err)
				}
			})
		}
		time.Sleep(time.Second)
		if now := w.mustGet(); now.Token.Fingerprint != g.Token.Fingerprint {
			t.Error("the old token does not serve the others meanwhile")
		}
		wg.Wait()
		if n := w.issuer.Stats().Minted; n != 2 {
			t.Errorf("%d tokens for 64 complaints, want 2", n)
		}
		if r, err := w.reject(g); err != nil || r.Replaced || r.Reason == "" {
			t.Errorf("a token that is not current: %+v, %v", r, err)
		}
		if n := w.issuer.Stats().Minted; n != 2 {
			t.Errorf("%d tokens, want 2", n)
		}
	})
}

func TestRejectByToken(t *testing.T) {
	inWorld(t, func(w *world) {
		g := w.mustGet()
		time.Sleep(2 * time.Minute)
		token, _ := g.Token.Access.Clone()
		r, err := w.b.Reject(w.t.Context(), w.caller, Rejection{Client: "vdab", AccessToken: token, Status: 401})
		if err != nil || !r.Replaced {
			t.Errorf("%+v, %v", r, err)
		}
		r, err = w.b.Reject(w.t.Context(), w.caller, Rejection{Client: "vdab", AccessToken: secret.FromString("made up"), Status: 401})
		if err != nil || r.Replaced {
			t.Errorf("a made-up token: %+v, %v", r, err)
		}
	})
}

func TestRejectOfTheKeyNeverFetches(t *testing.T) {
	inWorld(t, func(w *world) {
		g := w.mustGet()
		time.Sleep(2 * time.Minute)
		for range 10 {
			_, err := w.b.Reject(w.t.Context(), w.caller, Rejection{Client: "vdab", Fingerprint: g.Token.Fingerprint, Status: 401,
				MoreInformation: "Invalid client id or secret."})
			wantCode(t, err, client.APIKeyRejected)
		}
		if n := w.issuer.Stats().Minted; n != 1 {
			t.Errorf("%d tokens, want 1", n)
		}
		if s := w.b.Status()[0]; s.KeyComplaints != 1 {
			t.Errorf("%d callers complained, want 1", s.KeyComplaints)
		}
		w.mustGet() // one caller's word does not stop the others
		// Nor does it outlive the key.
		w.secret(theSecret)
		if _, err := w.b.Rotate(w.t.Context(), "vdab", Rotation{}); err != nil {
			w.t.Fatal(err)
		}
		if s := w.b.Status()[0]; s.Credential.Version != "2" || s.KeyComplaints != 0 {
			w.t.Errorf("version %s, %d complaints", s.Credential.Version, s.KeyComplaints)
		}
	})
}

// Only a 401 says that a token is bad; and of a client without tokens, that
// its key is.
func TestRejectByStatus(t *testing.T) {
	inWorld(t, func(w *world) {
		g := w.mustGet()
		time.Sleep(2 * time.Minute)
		for _, status := range []int{400, 403, 404, 429, 500, 503} {
			r, err := w.b.Reject(w.t.Context(), w.caller, Rejection{Client: "vdab", Fingerprint: g.Token.Fingerprint, Status: status, MoreInformation: "Rate Limit exceeded"})
			if err != nil || r.Replaced || r.Reason == "" {
				w.t.Errorf("%d: %+v, %v", status, r, err)
			}
		}
		if r, err := w.b.Reject(w.t.Context(), w.caller, Rejection{Client: "vdab", Status: 401}); err != nil || r.Replaced {
			w.t.Errorf("%+v, %v", r, err)
		}
		if n := w.issuer.Stats().Minted; n != 1 {
			w.t.Errorf("%d tokens, want 1", n)
		}
		w.with(func(c *Client) {
			c.Issuer, c.Headers, c.KeyRejected = nil, []Header{{"X-IBM-Client-Id", "{api_key}"}}, nil
			c.Allow[0].Surfaces = []access.Surface{access.APIKey}
		})
		if _, err := w.get(Request{Surface: access.APIKey}); err != nil { // a key that was handed out
			w.t.Fatal(err)
		}
		_, err := w.b.Reject(w.t.Context(), w.caller, Rejection{Client: "vdab", Status: 401})
		wantCode(w.t, err, client.APIKeyRejected)
		if s := w.b.Status()[0]; s.KeyComplaints != 1 {
			w.t.Errorf("%d complaints", s.KeyComplaints)
		}
	})
}

func TestRejectNeedsAccess(t *testing.T) {
	inWorld(t, func(w *world) {
		g := w.mustGet()
		c := w.config()
		c[0].Allow = []access.Entry{{User: "54321"}}
		if err := w.b.Apply(c); err != nil {
			t.Fatal(err)
		}
		_, err := w.reject(g)
		wantCode(t, err, client.NotAllowed)
	})
}

// An API that always answers 401, and 64 consumers that complain for an hour.
func TestRejectStorm(t *testing.T) {
	inWorld(t, func(w *world) {
		var wg sync.WaitGroup
		complaints := 0
		var mu sync.Mutex
		for range 64 {
			wg.Go(func() {
				for start := time.Now(); time.Since(start) < time.Hour; time.Sleep(5 * time.Second) {
					g, err := w.get(Request{})
					if err != nil {
						t.Error(err)
						return
					}
					if _, err := w.reject(g); err != nil {
						t.Error(err)
					}
					mu.Lock()
					complaints++
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		n := w.issuer.Stats().Minted
		t.Logf("%d complaints in an hour led to %d tokens (4 to 5 of them by age)", complaints, n)
		if n > 14 {
			t.Errorf("%d tokens in an hour of complaints, want at most 14", n)
		}
	})
}

// Who complains between another's complaint and its flight joins that.
func TestRejectTwiceBeforeTheFlight(t *testing.T) {
	inWorld(t, func(w *world) {
		g := w.mustGet()
		time.Sleep(2 * time.Minute)
		e := w.b.clients.Load().byName["vdab"].find(g.Token.Fingerprint)
		for range 2 {
			if wait, _, current := e.rejected(w.b.o.Clock.Now(), g.Token.Fingerprint); wait != 0 || !current {
				t.Errorf("it waits for %v", wait)
			}
		}
	})
}

// An API that refuses tokens that are older than a minute, and somebody who
// says so, have the issuer asked a few times an hour.
func TestRejectOfOldTokens(t *testing.T) {
	inWorld(t, func(w *world) {
		w.issuer.Set(fake.Fault{Lifetime: 12 * time.Hour})
		waits := 0
		for start := time.Now(); time.Since(start) < time.Hour; time.Sleep(61 * time.Second) {
			r, err := w.reject(w.mustGet())
			if err != nil {
				t.Fatal(err)
			}
			if !r.Replaced && r.RetryAfter > 0 {
				waits++
				if time.Since(start) > 0 && strings.Contains(r.Reason, "within a minute") {
					t.Error(r.Reason)
				}
			}
		}
		if n := w.issuer.Stats().Minted; n < 10 || n > 16 || waits == 0 {
			t.Errorf("%d tokens in an hour, %d had to wait", n, waits)
		}
		time.Sleep(20 * time.Minute) // of peace
		if r, err := w.reject(w.mustGet()); err != nil || !r.Replaced {
			t.Errorf("%+v, %v", r, err)
		}
		// Another program of the same client, whose logins end our tokens.
		for range 12 {
			time.Sleep(6 * time.Minute)
			if r, err := w.reject(w.mustGet()); err != nil || !r.Replaced {
				t.Errorf("%+v, %v", r, err)
			}
		}
	})
}
