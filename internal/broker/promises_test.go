package broker

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/fake"
	"credentialbroker/providers"
)

// Promise 1: at most one token request in flight, however many ask.
func TestOneFetch(t *testing.T) {
	inWorld(t, func(w *world) {
		w.issuer.Set(fake.Fault{Kind: fake.Slow, Delay: 3 * time.Second})
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				if _, err := w.get(Request{}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if s := w.issuer.Stats(); s.Requests != 1 {
			t.Errorf("%d requests for 64 consumers, want 1", s.Requests)
		}
	})
}

// Promise 1, the steady state: one fetch a lifetime.
func TestOneFetchPerLifetime(t *testing.T) {
	inWorld(t, func(w *world) {
		const day = 24 * time.Hour
		for start := time.Now(); time.Since(start) < day; time.Sleep(20 * time.Second) {
			w.mustGet()
		}
		// Renewal comes at 75 to 85 % of 900 s.
		if n := w.issuer.Stats().Minted; n < 112 || n > 129 {
			t.Errorf("%d tokens in a day, want 113 to 128", n)
		}
	})
}

// Promise 2: nobody waits for a refresh while a valid token exists.
func TestNobodyWaits(t *testing.T) {
	inWorld(t, func(w *world) {
		w.mustGet()
		w.issuer.Set(fake.Fault{Kind: fake.Slow, Delay: 15 * time.Second})
		for start := time.Now(); time.Since(start) < 3*time.Hour; time.Sleep(time.Second) {
			before := time.Now()
			w.mustGet()
			if d := time.Since(before); d != 0 {
				t.Fatalf("waited %v after %v", d, before.Sub(start))
			}
		}
	})
}

// Promise 2: an idle token is let go of; one that is kept warm is not.
func TestRenewedOnlyWhenRead(t *testing.T) {
	inWorld(t, func(w *world) {
		w.mustGet()
		time.Sleep(10 * time.Hour)
		if n := w.issuer.Stats().Minted; n > 3 {
			t.Errorf("%d tokens fetched for nobody", n)
		}
		c := w.config()
		c[0].KeepWarm = true
		if err := w.b.Apply(c); err != nil {
			t.Fatal(err)
		}
		before := w.issuer.Stats().Minted
		time.Sleep(10 * time.Hour)
		if n := w.issuer.Stats().Minted - before; n < 45 {
			t.Errorf("%d tokens in ten hours of keep_warm", n)
		}
	})
}

// Promise 3: served until the end less the margin, counted from the sending.
func TestNeverExpired(t *testing.T) {
	inWorld(t, func(w *world) {
		w.issuer.Set(fake.Fault{Kind: fake.Slow, Delay: 8 * time.Second})
		sent := time.Now()
		g := w.mustGet()
		if got := g.ExpiresIn(); got != 892 {
			t.Errorf("expires_in %d eight seconds after sending, want 892", got)
		}
		w.issuer.Set(fake.Fault{Kind: fake.Unavailable})
		for time.Since(sent) < 889*time.Second {
			g := w.mustGet()
			if left := 900*time.Second - time.Since(sent); g.ExpiresIn() > int64(left/time.Second) {
				t.Fatalf("expires_in %d with %v left", g.ExpiresIn(), left)
			}
			time.Sleep(time.Second)
		}
		time.Sleep(2 * time.Second)
		_, err := w.get(Request{})
		wantCode(t, err, client.IssuerUnavailable)
	})
}

// Promise 3: a jump of the wall clock refreshes at once; one beyond the
// token's end makes it unusable, since the machine may have slept.
func TestClockJump(t *testing.T) {
	for _, jump := range []time.Duration{-time.Hour, 30 * time.Second, time.Hour} {
		t.Run(jump.String(), func(t *testing.T) {
			inWorld(t, func(w *world) {
				first := w.mustGet()
				time.Sleep(time.Minute)
				w.skew.Store(int64(jump))
				time.Sleep(6 * time.Second) // the clock is looked at every five
				synctest.Wait()
				second := w.mustGet()
				if n := w.issuer.Stats().Minted; n != 2 || second.Token.Fingerprint == first.Token.Fingerprint {
					t.Errorf("%d tokens after a jump of %v, want 2", n, jump)
				}
				time.Sleep(time.Minute)
				w.mustGet()
				if n := w.issuer.Stats().Minted; n != 2 {
					t.Errorf("%d tokens, want no further one", n)
				}
			})
		})
	}
	inWorld(t, func(w *world) {
		w.mustGet()
		w.issuer.Set(fake.Fault{Kind: fake.Unavailable})
		w.skew.Store(int64(time.Hour))
		_, err := w.get(Request{})
		wantCode(t, err, client.IssuerUnavailable)
	})
}

// Promise 4: the issuer is down, then back; nobody restarts anything.
func TestIssuerOutage(t *testing.T) {
	for _, kind := range []fake.FaultKind{fake.Unavailable, fake.Maintenance, fake.Hang, fake.Reset, fake.HTML, fake.Empty, fake.Forbidden, fake.Throttled} {
		t.Run(string(kind), func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.mustGet()
				w.issuer.Set(fake.Fault{Kind: kind})
				time.Sleep(885 * time.Second)
				w.mustGet()
				time.Sleep(time.Minute)
				_, _ = w.get(Request{}) // the attempt itself
				before := time.Now()
				_, err := w.get(Request{})
				if err == nil {
					t.Fatal("a token from nowhere")
				}
				if d := time.Since(before); d != 0 {
					t.Errorf("the 503 took %v", d)
				}
				if p := Problem(err); p.Status != 503 && p.Status != 502 || p.RetryAfter == 0 {
					t.Errorf("%+v", p)
				}
				w.issuer.Set(fake.Fault{})
				time.Sleep(70 * time.Second)
				before = time.Now()
				w.mustGet()
				if d := time.Since(before); d != 0 {
					t.Errorf("recovery was left to the consumer, who waited %v", d)
				}
			})
		})
	}
}

// Promise 4: the secrets manager is down; what is in memory works.
func TestProviderOutage(t *testing.T) {
	inWorld(t, func(w *world) {
		w.mustGet()
		w.store.SetFault(providers.Unavailable)
		for range 48 {
			time.Sleep(10 * time.Minute)
			w.mustGet()
		}
		w.store.SetFault("")
		w.secret("second-secret")
		w.issuer.SetSecret(theID, "second-secret", true)
		time.Sleep(12 * time.Minute)
		w.mustGet()
		if v := w.b.Status()[0].Credential.Version; v != "2" {
			t.Errorf("version %s serves, want 2", v)
		}
	})
}

// Promise 4: the secrets manager is down from the start, and comes later.
func TestProviderDownAtStart(t *testing.T) {
	inWorld(t, func(w *world) {
		w.stop()
		w.store.SetFault(providers.Unavailable)
		w.start()
		_, err := w.get(Request{})
		wantCode(t, err, client.ProviderUnavailable)
		time.Sleep(time.Hour)
		w.store.SetFault("")
		time.Sleep(90 * time.Second)
		w.mustGet()
	})
}

// Promise 4: one client's hanging issuer slows nobody else.
func TestHangingIssuerHurtsNobodyElse(t *testing.T) {
	inWorld(t, func(w *world) {
		other := fake.NewIssuer(fake.Client{ID: theID, Secret: theSecret})
		other.Set(fake.Fault{Kind: fake.Hang})
		c := w.config()
		c = append(c, w.config()[0])
		c[1].Name, c[1].Transport = "hanging", other.RoundTripper()
		if err := w.b.Apply(c); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() { _, _ = w.get(Request{Client: "hanging"}) })
		}
		synctest.Wait()
		before := time.Now()
		w.mustGet()
		if d := time.Since(before); d != 0 {
			t.Errorf("waited %v behind another client", d)
		}
		wg.Wait()
	})
}

// Promise 5: a refused secret is presented once, not even again after
// restarts, until its version changes.
func TestNoLockOut(t *testing.T) {
	inWorld(t, func(w *world) {
		w.mustGet()
		w.issuer.SetSecret(theID, "second-secret", false)
		time.Sleep(15 * time.Minute)
		for range 5 {
			for start := time.Now(); time.Since(start) < 30*time.Minute; time.Sleep(10 * time.Second) {
				if _, err := w.get(Request{}); err != nil {
					wantCode(t, err, client.CredentialsRejected)
				}
			}
			w.restart()
		}
		if s := w.issuer.Stats(); s.Refused != 1 || s.PerSecret[theSecret] != 1 {
			t.Errorf("the dead secret was presented %d times, want once", s.PerSecret[theSecret])
		}
		w.secret("second-secret")
		time.Sleep(time.Minute)
		w.mustGet()
	})
}

// Promise 5: bad versions one after the other stay within the hour's budget.
func TestBudgetOfFailures(t *testing.T) {
	inWorld(t, func(w *world) {
		w.mustGet()
		for n := range 40 {
			w.secret(fmt.Sprintf("bad-%d", n))
			time.Sleep(6 * time.Minute)
			w.mustGet() // the good one serves on
		}
		if s := w.issuer.Stats(); s.Refused > 3*5 || s.Refused < 9 {
			t.Errorf("%d failed authentications in four hours, want at most 3 an hour", s.Refused)
		}
		if v := w.b.Status()[0].Credential.Version; v != "1" {
			t.Errorf("version %s serves, want 1", v)
		}
	})
}

// Promise 5: a firewall's page is no word about the secret.
func TestFirewallIsNoRefusal(t *testing.T) {
	inWorld(t, func(w *world) {
		w.issuer.Set(fake.Fault{Kind: fake.Forbidden})
		_, err := w.get(Request{})
		wantCode(t, err, client.IssuerProtocolError)
		time.Sleep(2 * time.Hour)
		if n := len(w.b.Status()[0].Credential.Refused); n != 0 {
			t.Errorf("%d versions refused by a firewall", n)
		}
		w.issuer.Set(fake.Fault{})
		time.Sleep(70 * time.Second)
		w.mustGet()
	})
}

// Promise 5: an administrator may say that the issuer was wrong.
func TestRetry(t *testing.T) {
	inWorld(t, func(w *world) {
		w.issuer.Set(fake.Fault{Kind: fake.InvalidClient})
		_, err := w.get(Request{})
		wantCode(t, err, client.CredentialsRejected)
		w.issuer.Set(fake.Fault{})
		time.Sleep(time.Hour)
		_, err = w.get(Request{})
		wantCode(t, err, client.CredentialsRejected)
		if err := w.b.Retry("vdab"); err != nil {
			t.Fatal(err)
		}
		w.mustGet()
	})
}

// Promise 8: a new version is proved before it serves, and brings its token.
func TestMakeBeforeBreak(t *testing.T) {
	inWorld(t, func(w *world) {
		first := w.mustGet()
		w.secret("second-secret")
		time.Sleep(6 * time.Minute)
		if g := w.mustGet(); g.Token.Fingerprint != first.Token.Fingerprint || g.Version != "1" {
			t.Fatal("an unproved version serves")
		}
		w.issuer.SetSecret(theID, "second-secret", true)
		if err := w.b.Retry("vdab"); err != nil { // it was refused before the issuer knew it
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		minted := w.issuer.Stats().Minted
		g := w.mustGet()
		if g.Version != "2" || g.Token.Fingerprint == first.Token.Fingerprint {
			t.Errorf("version %s serves, want 2 with its own token", g.Version)
		}
		if n := w.issuer.Stats().Minted; n != minted {
			t.Errorf("%d tokens for a rotation, want the one that proved it", n-minted+1)
		}
		if w.events()[audit.BundleInstalled] < 2 {
			t.Error("the installation is not on record")
		}
	})
}

// A version without a field that its predecessor had is not taken.
func TestIncompleteVersion(t *testing.T) {
	inWorld(t, func(w *world) {
		w.mustGet()
		w.store.Set("vdab", map[string]string{"client_id": theID, "client_secret": theSecret})
		time.Sleep(20 * time.Minute)
		w.mustGet()
		s := w.b.Status()[0].Credential
		if s.Version != "1" || s.Candidate != "2" || s.Waiting != "it lacks api_key; store a version with all fields" {
			t.Errorf("%+v", s)
		}
		w.secret(theSecret)
		time.Sleep(6 * time.Minute)
		if s := w.b.Status()[0].Credential; s.Version != "3" {
			t.Errorf("version %s serves, want 3", s.Version)
		}
	})
}

// Promise 10: no record, no hand-over.
func TestHandOverIsRecordedFirst(t *testing.T) {
	inWorld(t, func(w *world) {
		for range 5 {
			w.mustGet()
		}
		n := w.events()
		if n[audit.TokenHandover] != 1 {
			t.Errorf("%d hand-overs on record at once, want 1", n[audit.TokenHandover])
		}
		time.Sleep(2 * time.Minute)
		if n := w.events(); n[audit.TokenRepeats] != 1 {
			t.Errorf("%d summaries of repeats, want 1", n[audit.TokenRepeats])
		}
		w.stop()
		report, err := audit.Verify(filepath.Join(w.dir, "audit"), nil)
		if err != nil || len(report.Problems) > 0 {
			t.Errorf("%+v, %v", report, err)
		}
		w.start()
	})
}

func TestDenied(t *testing.T) {
	inWorld(t, func(w *world) {
		_, unknown := w.get(Request{Client: "nobody"})
		e := wantCode(t, unknown, client.NotAllowed)
		c := w.config()
		c[0].Allow = []access.Entry{{User: "54321"}}
		if err := w.b.Apply(c); err != nil {
			t.Fatal(err)
		}
		_, known := w.get(Request{})
		if a, b := wantCode(t, known, client.NotAllowed), e; a.Detail != b.Detail || a.Identity != b.Identity {
			t.Errorf("unknown: %q, not allowed: %q", b.Detail, a.Detail)
		}
		for range 500 {
			_, _ = w.get(Request{})
		}
		time.Sleep(2 * time.Minute)
		if n := w.events()[audit.AccessDenied]; n != 3 { // two first ones, one count
			t.Errorf("%d denials on record for 502 requests, want 3", n)
		}
		if n := w.alarmsOf(audit.AccessDenied); n != 1 {
			t.Errorf("%d alarms, want 1", n)
		}
		time.Sleep(time.Hour)
		for range 500 {
			_, _ = w.get(Request{})
		}
		time.Sleep(2 * time.Minute)
		if n := w.alarmsOf(audit.AccessDenied); n != 2 {
			t.Errorf("%d alarms within two hours, want 2", n)
		}
	})
}

func TestScopes(t *testing.T) {
	inWorld(t, func(w *world) {
		a := w.mustGet()
		b, err := w.get(Request{Scope: "read"})
		if err != nil {
			t.Fatal(err)
		}
		if a.Token.Fingerprint == b.Token.Fingerprint {
			t.Error("one token for two scopes")
		}
		_, err = w.get(Request{Scope: "admin"})
		wantCode(t, err, client.NotAllowed)
	})
}

func TestMinTTL(t *testing.T) {
	inWorld(t, func(w *world) {
		w.mustGet()
		time.Sleep(300 * time.Second)
		g, err := w.get(Request{MinTTL: 600 * time.Second})
		if err != nil || g.ExpiresIn() < 610-10 {
			t.Errorf("%v, %v", g, err)
		}
		if n := w.issuer.Stats().Minted; n != 2 {
			t.Errorf("%d tokens, want 2", n)
		}
		// More than the issuer ever gives: a young token is as good as it gets.
		if _, err = w.get(Request{MinTTL: 2 * time.Hour}); err != nil {
			t.Error(err)
		}
		if n := w.issuer.Stats().Minted; n != 2 {
			t.Errorf("%d tokens, want 2", n)
		}
	})
}

func TestCombinations(t *testing.T) {
	inWorld(t, func(w *world) {
		c := w.config()
		for n := range 40 {
			c[0].Limits.Scopes = append(c[0].Limits.Scopes, fmt.Sprint("s", n))
		}
		if err := w.b.Apply(c); err != nil {
			t.Fatal(err)
		}
		for n := range 40 {
			_, err := w.get(Request{Scope: fmt.Sprint("s", n)})
			if n < Combinations && err != nil || n >= Combinations && err == nil {
				t.Fatalf("combination %d: %v", n, err)
			}
			if err != nil {
				wantCode(t, err, client.InvalidRequest)
			}
		}
		time.Sleep(45 * time.Minute) // they end, and make room
		if _, err := w.get(Request{Scope: "s39"}); err != nil {
			t.Error(err)
		}
	})
}

// A reload keeps tokens of an unchanged issuer, and drops those of another.
func TestApplyKeepsTokens(t *testing.T) {
	inWorld(t, func(w *world) {
		first := w.mustGet()
		c := w.config()
		c[0].Owner.Purpose = "another"
		if err := w.b.Apply(c); err != nil {
			t.Fatal(err)
		}
		if g := w.mustGet(); g.Token.Fingerprint != first.Token.Fingerprint {
			t.Error("a reload lost a token")
		}
		c = w.config()
		c[0].Issuer.TokenEndpoint = "https://other.example" + fake.TokenPath
		if err := w.b.Apply(c); err != nil {
			t.Fatal(err)
		}
		if g := w.mustGet(); g.Token.Fingerprint == first.Token.Fingerprint {
			t.Error("a token of another issuer is served")
		}
		if err := w.b.Apply(nil); err != nil {
			t.Fatal(err)
		}
		_, err := w.get(Request{})
		wantCode(t, err, client.NotAllowed)
	})
}
