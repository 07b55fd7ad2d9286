package broker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
	"credentialbroker/providers"
)

// carry stops the broker and gives what it leaves.
func (w *world) carry() []byte {
	w.t.Helper()
	w.stop()
	data, n, err := w.b.Carry()
	if err != nil || (n == 0) != (data == nil) {
		w.t.Fatalf("%d tokens in %d bytes, %v", n, len(data), err)
	}
	return data
}

// resume starts the next broker with what the one before has left.
func (w *world) resume(data []byte) {
	w.t.Helper()
	w.start()
	if err := w.b.Restore(data); err != nil {
		w.t.Fatal(err)
	}
	if !bytes.Equal(data, make([]byte, len(data))) {
		w.t.Error("the bytes are not wiped")
	}
}

// restored is what became of them, as far as it is decided a little later.
func (w *world) restored() (Restored, bool) {
	ctx, cancel := context.WithTimeout(w.t.Context(), 3*settleAgain)
	defer cancel()
	return w.b.Restored(ctx)
}

func TestRestartCostsNoToken(t *testing.T) {
	inWorld(t, func(w *world) {
		w.with(func(c *Client) {
			c.Allow[0].Scopes = []string{"read", "write"}
		})
		a, err := w.get(Request{Scope: "read"})
		if err != nil {
			w.t.Fatal(err)
		}
		b, err := w.get(Request{Scope: "write"})
		if err != nil {
			w.t.Fatal(err)
		}
		life, reads := time.Duration(a.ExpiresIn())*time.Second, w.store.Stats().Values
		time.Sleep(time.Minute)
		for range 3 { // several restarts
			w.resume(w.carry())
			if r, all := w.restored(); !all || r.Taken != 2 || len(r.Left) != 0 {
				w.t.Fatalf("%+v, all: %v", r, all)
			}
		}
		if n := w.store.Stats().Values - reads; n != 3 {
			w.t.Errorf("the secret was read %d times by 3 processes", n)
		}
		for scope, was := range map[string]*Grant{"read": a, "write": b} {
			g, err := w.get(Request{Scope: scope})
			if err != nil || g.Token.Fingerprint != was.Token.Fingerprint || g.Token.Scope != was.Token.Scope || !g.Token.Access.Equal(was.Token.Access) {
				w.t.Fatalf("another token, %+v: %v", g, err)
			}
			if left := time.Duration(g.ExpiresIn()) * time.Second; left > life-time.Minute {
				w.t.Errorf("it lives for %v more, of %v", left, life)
			}
		}
		if n := w.issuer.Stats().Minted; n != 2 {
			w.t.Errorf("%d tokens fetched, want 2", n)
		}
		w.stop()
		if n := w.events()[audit.TokenCarried]; n != 6 {
			w.t.Errorf("%d of them on record, want 6", n)
		}
		for e, err := range audit.Read(w.dir+"/audit", 0) {
			if err == nil && e.Type == audit.TokenCarried && (e.Fingerprint != a.Token.Fingerprint && e.Fingerprint != b.Token.Fingerprint || e.Version != "1") {
				w.t.Errorf("%+v", e)
			}
		}
		w.start()
	})
}

// A token that was read is renewed ahead of its end, whether the process that
// read it was this one or the one before.
func TestRenewedAfterARestart(t *testing.T) {
	inWorld(t, func(w *world) {
		life := time.Duration(w.mustGet().ExpiresIn()) * time.Second
		w.resume(w.carry())
		time.Sleep(life * 9 / 10)
		if n := w.issuer.Stats().Minted; n != 2 {
			w.t.Errorf("%d tokens fetched, want 2", n)
		}
	})
}

// The first consumer may come before anything is known of the secret: it gets
// the token of before, and no request goes to the issuer.
func TestFirstConsumerTakesOver(t *testing.T) {
	inWorld(t, func(w *world) {
		g := w.mustGet()
		data := w.carry()
		w.edit = func(list []Client) []Client { // the client is one of many, and its turn comes late
			for i := range 1000 {
				other := list[0]
				other.Name = "x" + itoa(i)
				list = append(list, other)
			}
			return list
		}
		w.resume(data)
		for range 5 {
			if w.mustGet().Token.Fingerprint != g.Token.Fingerprint {
				w.t.Error("another token")
			}
		}
		if n := w.issuer.Stats().Minted; n != 1 {
			w.t.Errorf("%d tokens fetched, want 1", n)
		}
	})
}

// Somebody saw no token, and by the time of the request there is one: it is not
// fetched again.
func TestFlightFindsAToken(t *testing.T) {
	inWorld(t, func(w *world) {
		w.mustGet()
		e := w.b.clients.Load().byName["vdab"].all()[0]
		for i, seen := range []*held{nil, e.held.Load()} {
			f, err := w.b.fly(e, seen, w.clock.Now())
			if err != nil {
				w.t.Fatal(err)
			}
			if <-f.done; f.err != nil {
				w.t.Error(f.err)
			}
			if n := w.issuer.Stats().Minted; n != 1+i {
				w.t.Errorf("%d tokens fetched, want %d", n, 1+i)
			}
		}
	})
}

// What is not the same as before is not used.
func TestNotTakenOver(t *testing.T) {
	for name, c := range map[string]struct {
		between func(w *world)
		alter   func(c *carried)
		why     string
	}{
		"the same":            {why: ""},
		"another client":      {alter: func(c *carried) { c.client = "other" }, why: leftClient},
		"token endpoint":      {alter: func(c *carried) { c.issuer = issuerDigest(&oidc.Profile{TokenEndpoint: "https://other.example"}) }, why: leftClient},
		"no issuer":           {alter: func(c *carried) { c.issuer = "" }, why: leftClient},
		"parameters":          {between: func(w *world) { w.edited(func(c *Client) { c.Issuer.Params = map[string]string{"tenant": "x"} }) }, why: leftClient},
		"grant":               {between: func(w *world) { w.edited(func(c *Client) { c.Issuer.Grant = oidc.ClientCredentials }) }, why: leftClient},
		"client auth":         {between: func(w *world) { w.edited(func(c *Client) { c.Issuer.ClientAuth = oidc.SecretPost }) }, why: leftClient},
		"key alone":           {between: func(w *world) { w.edited(func(c *Client) { c.Issuer = nil }) }, why: leftClient},
		"signed here":         {between: func(w *world) { w.edited(func(c *Client) { c.Issuer = &oidc.Profile{Grant: oidc.SelfSigned} }) }, why: leftClient},
		"new version":         {between: func(w *world) { w.secret(theSecret) }, why: leftVersion},
		"another place":       {between: func(w *world) { w.edited(func(c *Client) { c.Rotation.Spec.Ref.Path = "moved" }) }, why: leftVersion},
		"another manager":     {between: func(w *world) { w.edited(func(c *Client) { c.ProviderName = "other" }) }, why: leftVersion},
		"client id":           {alter: func(c *carried) { c.clientID = "other" }, why: leftVersion},
		"clock back":          {between: func(w *world) { w.skew.Store(int64(-time.Hour)) }, why: leftClock},
		"clock a bit ahead":   {between: func(w *world) { w.skew.Store(int64(Margin + time.Second)) }, why: leftClock},
		"clock within margin": {between: func(w *world) { w.skew.Store(int64(-Margin + time.Second)) }, why: ""},
		"another boot": {alter: func(c *carried) {
			c.token.Sent, c.token.Expires = c.token.Sent.Add(48*time.Hour), c.token.Expires.Add(48*time.Hour)
		}, why: leftClock},
		"ended":                {between: func(*world) { time.Sleep(2 * time.Hour) }, why: leftEnded},
		"its last seconds":     {between: func(*world) { time.Sleep(time.Hour - Margin + time.Second) }, why: leftEnded},
		"lifetimes configured": {between: func(w *world) { w.edited(func(c *Client) { c.Issuer.MaxLifetime = clock.Duration(2 * time.Hour) }) }, why: ""},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.issuer.Set(fake.Fault{Lifetime: time.Hour})
				w.store.Set("moved", map[string]string{"client_id": theID, "client_secret": theSecret, "api_key": theKey})
				g := w.mustGet()
				data := w.carry()
				if c.between != nil {
					c.between(w)
				}
				list, err := decodeCarried(data)
				if err != nil || len(list) != 1 {
					w.t.Fatalf("%v, %v", list, err)
				}
				if c.alter != nil {
					c.alter(&list[0])
				}
				if data, _, err = encodeCarried(list); err != nil {
					w.t.Fatal(err)
				}
				w.resume(data)
				r, all := w.restored()
				want := Restored{Taken: 1}
				if c.why != "" {
					want = Restored{Left: map[string]int{c.why: 1}}
				}
				if !all || r.Taken != want.Taken || !maps.Equal(r.Left, want.Left) {
					w.t.Fatalf("%+v, want %+v", r, want)
				}
				if name == "key alone" || name == "signed here" {
					return
				}
				if same := w.mustGet().Token.Fingerprint == g.Token.Fingerprint; same != (c.why == "") {
					w.t.Errorf("the same token: %v", same)
				}
			})
		})
	}
}

// edited changes the configuration of the next start.
func (w *world) edited(f func(*Client)) {
	w.edit = func(list []Client) []Client { f(&list[0]); return list }
}

// What must not serve is not left behind.
func TestNotLeft(t *testing.T) {
	for name, do := range map[string]func(w *world, g *Grant){
		"nothing there":        func(w *world, _ *Grant) { w.restart() },
		"ended":                func(*world, *Grant) { time.Sleep(24 * time.Hour) },
		"quarantined":          func(w *world, _ *Grant) { w.b.Contain(map[string]string{"vdab": "INC-1"}) },
		"quarantined by place": func(w *world, _ *Grant) { w.b.Contain(map[string]string{"store secret/vdab": "INC-1"}) },
		"revoked": func(w *world, _ *Grant) {
			_, _ = w.b.Revoke(w.t.Context(), "vdab", false)
		},
		"rejected": func(w *world, g *Grant) {
			if r, err := w.reject(g); err != nil || r.Replaced {
				w.t.Errorf("%+v, %v", r, err)
			}
		},
		"rejected during a renewal": func(w *world, g *Grant) {
			w.issuer.Set(fake.Fault{Kind: fake.Slow, Delay: time.Hour})
			e := w.b.clients.Load().byName["vdab"].all()[0]
			e.read.Store(int64(w.b.o.Clock.Now().Boot)) // read, so that it is renewed
			for end := time.Now().Add(14 * time.Minute); time.Now().Before(end); time.Sleep(time.Second) {
				e.mu.Lock()
				flying := e.flight != nil
				e.mu.Unlock()
				if flying {
					e.rejected(w.b.o.Clock.Now(), g.Token.Fingerprint)
					return
				}
			}
			w.t.Error("no renewal")
		},
		"of an older version": func(w *world, _ *Grant) {
			cl := w.b.clients.Load().byName["vdab"]
			next := *cl.cred.Current()
			e := cl.all()[0]
			e.held.Store(newHeld(e, e.held.Load().token, &next))
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				if name == "quarantined by place" {
					if at := w.b.At(SecretPlace("store", providers.Ref{Path: "vdab"})); !slices.Contains(at, "vdab") {
						w.t.Fatal(at)
					}
				}
				do(w, w.mustGet())
				if data := w.carry(); data != nil {
					w.t.Error("something is left")
				}
				w.start()
			})
		})
	}
}

// Tokens that the broker signs itself are not worth it, and would outlive a
// changed configuration.
func TestOwnTokensAreNotLeft(t *testing.T) {
	inWorld(t, func(w *world) {
		w.with(func(c *Client) {
			c.Issuer = &oidc.Profile{Grant: oidc.SelfSigned, JWT: oidc.JWT{Claims: []string{"exp"}}}
			c.Rotation.Required = []string{"client_id", "client_secret"}
		})
		w.mustGet()
		if data := w.carry(); data != nil {
			w.t.Error("a self-signed token is left")
		}
		w.start()
	})
}

// While the secrets manager is down, nothing is known of the version, and
// nothing is served; once it answers, the token serves if it is the same.
func TestRestartWithoutTheManager(t *testing.T) {
	inWorld(t, func(w *world) {
		g := w.mustGet()
		data := w.carry()
		w.store.SetFault(providers.Unavailable)
		w.resume(data)
		_, err := w.get(Request{})
		wantCode(w.t, err, client.ProviderUnavailable)
		if r, all := w.restored(); all || r.Taken != 0 {
			w.t.Errorf("%+v", r)
		}
		_ = g.Token.Access.Use(func(token []byte) error {
			if !w.b.Holds(slices.Concat([]byte("It was "), token)) {
				w.t.Error("a token that waits is not known")
			}
			return nil
		})
		w.wantFinds(reveal(g.Token.Access), "vdab access_token live")
		w.resume(w.carry()) // what waits, waits on
		w.store.SetFault("")
		time.Sleep(2 * time.Minute)
		if w.mustGet().Token.Fingerprint != g.Token.Fingerprint || w.issuer.Stats().Minted != 1 {
			w.t.Errorf("another token; %d fetched", w.issuer.Stats().Minted)
		}
	})
}

// In a brown-out the sealed copy decides, as it does of a new token.
func TestRestartInABrownOut(t *testing.T) {
	inWorld(t, func(w *world) {
		copies := fake.NewStore()
		w.with(func(c *Client) { c.Keeper, c.Rotation.KeepFor = copies, 10*time.Minute })
		g := w.mustGet()
		synctest.Wait()
		data := w.carry()
		again := slices.Clone(data)
		w.store.SetFault(providers.Unavailable)
		w.resume(data)
		if w.mustGet().Token.Fingerprint != g.Token.Fingerprint || w.b.Ready(w.caller).Clients[0].DegradedUntil.IsZero() {
			r, _ := w.restored()
			w.t.Errorf("another token, or no brown-out: %+v, %+v", r, w.b.Ready(w.caller).Clients[0])
		}
		w.stop()
		time.Sleep(11 * time.Minute) // the copy is too old
		w.resume(again)
		_, err := w.get(Request{})
		wantCode(w.t, err, client.ProviderUnavailable)
		if r, all := w.restored(); all || r.Taken != 0 {
			w.t.Errorf("%+v", r)
		}
	})
}

// A token that still waits is under the same rules as one that serves.
func TestWhileItWaits(t *testing.T) {
	inWorld(t, func(w *world) {
		o, edit := anOAuth2(w.t)
		w.with(edit)
		api := fake.Local(o.API(""))
		waiting := func() *Grant {
			w.t.Helper()
			g := w.mustGet()
			data := w.carry()
			w.store.SetFault(providers.Unavailable)
			w.resume(data)
			return g
		}
		left := func(why string) {
			w.t.Helper()
			w.store.SetFault("")
			time.Sleep(2 * time.Minute)
			if r, all := w.restored(); !all || r.Taken != 0 || r.Left[why] != 1 {
				w.t.Errorf("%+v, want %s", r, why)
			}
		}
		// It is rejected.
		g := waiting()
		if r, err := w.reject(g); err != nil || r.Replaced {
			w.t.Errorf("%+v, %v", r, err)
		}
		left(leftRejected)
		if next := w.mustGet(); next.Token.Fingerprint == g.Token.Fingerprint {
			w.t.Error("a rejected token serves")
		}
		// Its client is contained, and it is revoked.
		g = waiting()
		w.b.Contain(map[string]string{"vdab": "INC-1"})
		w.store.SetFault("")
		time.Sleep(2 * time.Minute)
		_, err := w.get(Request{})
		wantCode(w.t, err, client.Quarantined)
		if r, all := w.restored(); all || r.Taken != 0 {
			w.t.Errorf("%+v", r)
		}
		if status := call(w.t, api, "https://api.example/", g); status != http.StatusOK {
			w.t.Error(status)
		}
		if gone := w.b.Withdraw(w.t.Context(), "vdab"); gone.Revoked != 1 || gone.Kept != 0 {
			w.t.Errorf("%+v", gone)
		}
		if status := call(w.t, api, "https://api.example/", g); status == http.StatusOK {
			w.t.Error("the API takes the revoked token")
		}
		w.b.Contain(nil)
		left(leftRevoked)
		if next := w.mustGet(); next.Token.Fingerprint == g.Token.Fingerprint {
			w.t.Error("a revoked token serves")
		}
	})
}

// The issuer has refused the version since it minted the token.
func TestRefusedVersionIsNotTakenOver(t *testing.T) {
	inWorld(t, func(w *world) {
		w.with(func(c *Client) { c.Allow[0].Scopes = []string{"read", "write"} })
		if _, err := w.get(Request{Scope: "read"}); err != nil {
			w.t.Fatal(err)
		}
		w.issuer.SetSecret(theID, "another", false)
		_, err := w.get(Request{Scope: "write"})
		wantCode(w.t, err, client.CredentialsRejected)
		w.resume(w.carry())
		if r, all := w.restored(); !all || r.Left[leftVersion] != 1 {
			w.t.Errorf("%+v", r)
		}
	})
}

// With a login, the access token alone goes on: the refresh token is not used.
func TestLoginOverARestart(t *testing.T) {
	inWorld(t, func(w *world) {
		p := &fake.MijnKlantportaal{}
		if err := p.Register(fake.Client{ID: theID, Secret: theSecret, RedirectURIs: []string{"http://127.0.0.1/callback"}}); err != nil {
			w.t.Fatal(err)
		}
		w.with(portal(p, w.store))
		l, err := w.b.StartLogin(w.t.Context(), "vdab", "http://127.0.0.1:4711/callback")
		if err != nil {
			w.t.Fatal(err)
		}
		code := consent(w.t, p, l.URL).Get("code")
		if _, err := w.b.FinishLogin(w.t.Context(), "vdab", LoginCode{State: l.State, Code: secret.FromString(code)}); err != nil {
			w.t.Fatal(err)
		}
		g := w.mustGet()
		minted := p.Stats().Minted
		data := w.carry()
		list, err := decodeCarried(slices.Clone(data))
		if err != nil || len(list) != 1 || !list[0].token.Refresh.Empty() {
			w.t.Errorf("%d, %v", len(list), err)
		}
		w.resume(data)
		if next := w.mustGet(); next.Token.Fingerprint != g.Token.Fingerprint || p.Stats().Minted != minted {
			w.t.Errorf("another token: %d fetched, before it %d", p.Stats().Minted, minted)
		}
		if call(w.t, p.RoundTripper(), "https://portal.example/api/x", g) != http.StatusOK {
			w.t.Error("the API refuses the token")
		}
	})
}

// A reload to another issuer, before it is decided, takes the token away.
func TestReloadWhileItWaits(t *testing.T) {
	inWorld(t, func(w *world) {
		w.mustGet()
		data := w.carry()
		w.store.SetFault(providers.Unavailable)
		w.resume(data)
		list := w.config()
		list[0].Issuer.Params = map[string]string{"tenant": "x"}
		if err := w.b.Apply(list); err != nil {
			w.t.Fatal(err)
		}
		if r, all := w.restored(); !all || r.Left[leftClient] != 1 {
			w.t.Errorf("%+v", r)
		}
	})
}

func someCarried() []carried {
	at := clock.Reading{Boot: time.Hour, Wall: time.Unix(1_800_000_000, 123).UTC()}
	var list []carried
	for _, token := range []string{"first-token-4f1", strings.Repeat("x", 300)} {
		access := secret.FromString(token)
		list = append(list, carried{client: "vdab", issuer: "digest", origin: "0badcafe:7", clientID: theID, version: "7",
			want: oidc.Request{Scope: "a b", Audience: "c", Resource: "d"}, read: 55 * time.Minute,
			token: oidc.Token{Access: access, Type: "Bearer", Scope: "a", Sent: at, Expires: at.Add(time.Minute), Fingerprint: fingerprint(access),
				JTI: "j", Skew: -time.Second, Narrowed: true, Bound: "thumbprint"}})
	}
	return list
}

func TestCarriedForm(t *testing.T) {
	list := someCarried()
	data, n, err := encodeCarried(list)
	if err != nil || n != 2 || cap(data) != len(data) {
		t.Fatalf("%d, %v, %d of %d bytes: it has grown, and left copies", n, err, len(data), cap(data))
	}
	back, err := decodeCarried(slices.Clone(data))
	if err != nil || len(back) != 2 {
		t.Fatal(back, err)
	}
	for i, c := range back {
		was := list[i]
		if !c.token.Access.Equal(was.token.Access) {
			t.Error("another token")
		}
		c.token.Access, was.token.Access = secret.Secret{}, secret.Secret{}
		if c != was {
			t.Errorf("%+v\nwant %+v", c, was)
		}
	}
	if data, n, err := encodeCarried(nil); data != nil || n != 0 || err != nil {
		t.Error(data, n, err)
	}
	wiped := someCarried()
	wiped[1].token.Access.Wipe()
	if data, _, err := encodeCarried(wiped); err == nil || data != nil {
		t.Error("a wiped token is left as something else")
	}
}

// Damage anywhere, and nothing of it is used.
func TestCarriedDamage(t *testing.T) {
	data, _, err := encodeCarried(someCarried())
	if err != nil {
		t.Fatal(err)
	}
	b := New(Options{Clock: clock.System{}})
	void := func(what string, at int, bad []byte) {
		t.Helper()
		if err := b.Restore(bad); err == nil || strings.Contains(err.Error(), "first-token") {
			t.Fatalf("%s at %d: %v", what, at, err)
		}
		if !bytes.Equal(bad, make([]byte, len(bad))) {
			t.Fatalf("%s at %d: not wiped", what, at)
		}
	}
	for i := range data {
		for _, bit := range []byte{1, 0x80} {
			bad := slices.Clone(data)
			bad[i] ^= bit
			void("a bit", i, bad)
		}
		void("an end", i, slices.Clone(data[:i]))
	}
	void("more", 0, append(slices.Clone(data), 0))
	void("another version", 0, bytes.Replace(data, []byte("tokens 1"), []byte("tokens 2"), 1))
	if r, told := b.Restored(t.Context()); !told || r.Taken != 0 || r.Left != nil {
		t.Error(r, told)
	}
}

// What is whole, and makes no sense, is not used either.
func TestCarriedSense(t *testing.T) {
	for name, change := range map[string]func(c *carried){
		"another token": func(c *carried) { c.token.Fingerprint = "x" },
		"no token":      func(c *carried) { c.token.Access = secret.Secret{}; c.token.Fingerprint = fingerprint(secret.Secret{}) },
		"no life":       func(c *carried) { c.token.Expires = c.token.Sent },
		"a huge token": func(c *carried) {
			c.token.Access = secret.New(bytes.Repeat([]byte("t"), maxCarriedAT+1))
			c.token.Fingerprint = fingerprint(c.token.Access)
		},
	} {
		list := someCarried()
		change(&list[1])
		data, _, err := encodeCarried(list)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := decodeCarried(data); err == nil || back != nil {
			t.Errorf("%s: %v, %v", name, back, err)
		}
	}
}

// More than there is room for is fetched.
func TestCarriedBound(t *testing.T) {
	list := make([]carried, 0, 600)
	token := secret.New(bytes.Repeat([]byte("t"), 16<<10))
	one := someCarried()[0]
	one.token.Access, one.token.Fingerprint = token, fingerprint(token)
	for range cap(list) {
		list = append(list, one)
	}
	data, n, err := encodeCarried(list)
	if err != nil || n == 0 || n == len(list) || len(data) > MaxCarried || len(data) < MaxCarried*9/10 {
		t.Fatal(n, len(data), err)
	}
	if back, err := decodeCarried(data); err != nil || len(back) != n {
		t.Error(len(back), err)
	}
}

// FuzzCarried: whatever it is given, what comes out is a token with its own
// fingerprint, and a life.
func FuzzCarried(f *testing.F) {
	data, _, err := encodeCarried(someCarried())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data, true)
	f.Add(data[carryHead:], false)
	f.Add([]byte(carryFormat), true)
	f.Fuzz(func(t *testing.T, data []byte, whole bool) {
		if !whole { // with a checksum that fits, so that it is not the only guard
			sum := sha256.Sum256(data)
			data = slices.Concat([]byte(carryFormat), sum[:], data)
		}
		list, err := decodeCarried(slices.Clone(data))
		if err != nil && list != nil {
			t.Error("a part, with an error")
		}
		for _, c := range list {
			if c.token.Access.Empty() || fingerprint(c.token.Access) != c.token.Fingerprint || c.token.Expires.Sub(c.token.Sent) <= 0 {
				t.Errorf("%+v", c)
			}
		}
	})
}

// Room for another scope is not made of a token that waits.
func TestWaitingTokenKeepsItsPlace(t *testing.T) {
	m := map[oidc.Request]*entry{{}: {}}
	for e := range maps.Values(m) {
		e.carried.Store(&carried{})
	}
	if makeRoom(m, clock.Reading{}) {
		t.Error("it is gone")
	}
	for e := range maps.Values(m) {
		e.carried.Store(nil)
	}
	if !makeRoom(m, clock.Reading{}) {
		t.Error("nothing waits, and there is no room")
	}
}
