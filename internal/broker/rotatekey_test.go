package broker

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/keys"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
	"credentialbroker/providers"
)

// keyWorld is a world whose client signs with a key that its issuer knows.
type keyWorld struct {
	*world
	acm *fake.ACM
	old client.Key
}

func magda() providers.Spec { return providers.Spec{Ref: providers.Ref{Path: "magda"}} }

// inKeyWorld lets edit change the client further; nil: it does not.
func inKeyWorld(t *testing.T, edit func(*Client), f func(w *keyWorld)) {
	t.Helper()
	inWorld(t, func(inner *world) {
		w := &keyWorld{world: inner, acm: &fake.ACM{Lifetime: 10 * time.Minute}}
		w.store.Set("magda", map[string]string{"client_id": theID})
		w.with(func(c *Client) {
			c.Rotation.Spec = magda()
			c.Rotation.Required = []string{"client_id", "private_key"}
			c.Issuer = &oidc.Profile{TokenEndpoint: "https://acm.example/op/v1/token", ClientAuth: oidc.PrivateKeyJWT, Assertion: oidc.Assertion{Audience: "https://acm.example/op"}}
			c.Transport, c.Headers = w.acm.RoundTripper(), nil
			if edit != nil {
				edit(c)
			}
		})
		time.Sleep(time.Second) // it has seen that there is no key yet
		var err error
		if w.old, err = w.b.NewKey(t.Context(), "vdab", client.NewKey{Kind: "p-256"}); err != nil {
			t.Fatal(err)
		}
		w.knows(w.old)
		time.Sleep(time.Second)
		w.mustGet()
		f(w)
	})
}

// knows makes these the keys that the issuer knows.
func (w *keyWorld) knows(list ...client.Key) {
	w.t.Helper()
	var jwks []string
	for _, k := range list {
		jwks = append(jwks, string(k.JWK))
	}
	if err := w.acm.Register(fake.Client{ID: theID, Keys: jwks}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *keyWorld) rotate(want client.KeyRotation) client.RotatedKey {
	w.t.Helper()
	out, err := w.b.RotateKey(w.t.Context(), "vdab", want)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// fields are the names of what the secret holds, and its version.
func (w *keyWorld) fields() ([]string, providers.Version) {
	w.t.Helper()
	b, err := providers.Load(w.t.Context(), w.store, magda(), "")
	if err != nil {
		w.t.Fatal(err)
	}
	defer b.Wipe()
	return slices.Sorted(maps.Keys(b.Fields)), b.Version
}

func (w *keyWorld) wantFields(version providers.Version, want ...string) {
	w.t.Helper()
	if names, v := w.fields(); !slices.Equal(names, want) || v != version {
		w.t.Errorf("version %s holds %v, want %s with %v", v, names, version, want)
	}
}

func probe() client.KeyRotation { return client.KeyRotation{Probe: true} }

func TestRotateKey(t *testing.T) {
	inKeyWorld(t, nil, func(w *keyWorld) {
		pending := w.rotate(client.KeyRotation{})
		if pending.State != client.KeyPending || pending.Old != w.old.KeyID || pending.Key.KeyID == w.old.KeyID || pending.Key.Algorithm != "ES256" ||
			pending.RetryAfter != 65 || pending.Key.Version != "3" || pending.Key.Certificate != "" || strings.Contains(string(pending.Key.JWK), `"d"`) {
			w.t.Errorf("%+v", pending)
		}
		w.wantFields("3", "client_id", "pending_key_id", "pending_private_key", "private_key")
		again := w.rotate(client.KeyRotation{NewKey: client.NewKey{Kind: "p-256"}})
		if again.RetryAfter != 0 || again.Key.KeyID != pending.Key.KeyID || string(again.Key.JWK) != string(pending.Key.JWK) || again.Key.Version != "3" {
			w.t.Errorf("%+v, want %+v", again, pending)
		}
		time.Sleep(time.Second) // the version with the pending key serves, by the old one
		shown, err := w.b.Key(w.t.Context(), "vdab")
		if err != nil || shown.KeyID != w.old.KeyID || shown.Pending == nil || shown.Pending.KeyID != pending.Key.KeyID {
			w.t.Errorf("%+v, %v", shown, err)
		}
		if s := w.b.Status()[0]; s.PendingKey != pending.Key.KeyID || s.Credential.Version != "3" || s.Credential.Waiting != "" {
			w.t.Errorf("%+v", s)
		}
		refused := w.rotate(probe())
		if refused.State != client.KeyPending || refused.RetryAfter != 65 || !strings.Contains(refused.Reason, "invalid_client") || refused.Key.KeyID != pending.Key.KeyID {
			w.t.Errorf("%+v", refused)
		}
		w.knows(w.old, pending.Key)
		before := w.acm.Stats()
		if early := w.rotate(probe()); early.State != client.KeyPending || early.RetryAfter < 65 || w.acm.Stats().Requests != before.Requests {
			w.t.Errorf("asked twice within a minute: %+v", early)
		}
		time.Sleep(time.Minute)
		done := w.rotate(probe())
		if done.State != client.KeyRotated || done.Old != w.old.KeyID || done.Key.KeyID != pending.Key.KeyID || done.Key.Version != "4" || done.Key.Pending != nil {
			w.t.Errorf("%+v", done)
		}
		w.wantFields("4", "client_id", "private_key")
		if n := w.acm.Stats().Minted - before.Minted; n != 1 {
			w.t.Errorf("%d tokens were minted, want the proof alone", n)
		}
		w.knows(pending.Key) // the old one is removed there
		if g := w.mustGet(); g.Version != "4" {
			w.t.Errorf("version %s serves", g.Version)
		}
		if s := w.b.Status()[0]; s.PendingKey != "" || s.Credential.Version != "4" || s.Credential.Candidate != "" {
			w.t.Errorf("%+v", s)
		}
		time.Sleep(time.Hour)
		w.mustGet()
		// It is complete: to ask again begins nothing.
		if over := w.rotate(probe()); over.State != client.KeyRotated || over.Old != "" || over.Key.KeyID != pending.Key.KeyID {
			w.t.Errorf("%+v", over)
		}
		w.wantFields("4", "client_id", "private_key")
		w.stop()
		defer w.start()
		if n := w.events(); n[audit.TokenRefused] != 1 || n[audit.BundleRefused] != 1 { // of the pending key; without a key
			w.t.Errorf("%v", n)
		}
	})
}

// Killed after every step, and begun again by a new process: the same key goes
// on, and nobody goes without a token.
func TestRotateKeyResumes(t *testing.T) {
	inKeyWorld(t, nil, func(w *keyWorld) {
		first := w.rotate(client.KeyRotation{})
		w.restart()
		w.mustGet()
		if second := w.rotate(client.KeyRotation{}); second.Key.KeyID != first.Key.KeyID {
			w.t.Errorf("%+v, want %s", second, first.Key.KeyID)
		}
		if out := w.rotate(probe()); out.State != client.KeyPending {
			w.t.Errorf("%+v", out)
		}
		w.knows(w.old, first.Key)
		w.restart()
		asked := w.acm.Stats().Refused
		if out := w.rotate(probe()); out.State != client.KeyPending || w.acm.Stats().Refused != asked {
			w.t.Errorf("a restart does away with the minute: %+v", out)
		}
		time.Sleep(time.Minute)
		// The issuer takes it, and the process dies before it is stored.
		w.edit = after(w.edit, func(c *Client) { c.Writer = readOnly{w.store} })
		w.restart()
		// A start that was cut off may have used up the trials of the hour.
		if err := w.b.Retry("vdab"); err != nil {
			w.t.Fatal(err)
		}
		_, err := w.b.RotateKey(w.t.Context(), "vdab", probe())
		wantCode(w.t, err, client.InvalidRequest)
		w.wantFields("3", "client_id", "pending_key_id", "pending_private_key", "private_key")
		w.edit = after(w.edit, func(c *Client) { c.Writer = nil })
		w.restart()
		w.mustGet()
		if out := w.rotate(probe()); out.State != client.KeyRotated || out.Key.KeyID != first.Key.KeyID {
			w.t.Errorf("%+v", out)
		}
		// It is stored, and nobody was told.
		w.restart()
		w.knows(first.Key)
		w.mustGet()
		if out := w.rotate(probe()); out.State != client.KeyRotated || out.Key.KeyID != first.Key.KeyID {
			w.t.Errorf("%+v", out)
		}
	})
}

type readOnly struct{ providers.Provider }

func after(edit func([]Client) []Client, f func(*Client)) func([]Client) []Client {
	return func(list []Client) []Client { list = edit(list); f(&list[0]); return list }
}

// A key that the issuer never takes: two questions an hour at most, and a consumer
// who asks all the time sees nothing of it.
func TestRotateKeyBudget(t *testing.T) {
	inKeyWorld(t, nil, func(w *keyWorld) {
		w.rotate(client.KeyRotation{})
		time.Sleep(time.Minute)
		var refusals []time.Time
		begin := time.Now()
		next := begin
		for time.Since(begin) < 6*time.Hour {
			w.mustGet()
			if !time.Now().Before(next) {
				before := w.acm.Stats().Refused
				out := w.rotate(probe())
				if out.State != client.KeyPending || out.RetryAfter < 65 {
					w.t.Fatalf("%+v", out)
				}
				next = time.Now().Add(time.Duration(out.RetryAfter) * time.Second)
				for range w.acm.Stats().Refused - before {
					refusals = append(refusals, time.Now())
				}
			}
			time.Sleep(20 * time.Second)
		}
		if len(refusals) < 8 || len(refusals) > 12 {
			w.t.Errorf("%d questions in six hours: minutes apart at first, an hour in the end", len(refusals))
		}
		for i, at := range refusals {
			if i > 0 && at.Sub(refusals[i-1]) < time.Minute || i > 1 && at.Sub(refusals[i-2]) < time.Hour {
				w.t.Errorf("too soon: %v", refusals[:i+1])
			}
		}
	})
}

// One host rotates; another one, with a state of its own, sees the pending
// version and the new one, and its consumers nothing.
func TestRotateKeyElsewhere(t *testing.T) {
	caller := self(t)
	dir := t.TempDir()
	inKeyWorld(t, nil, func(w *keyWorld) {
		other := newWorld(w.t, filepath.Join(dir, "other"), caller)
		if err := os.Mkdir(other.dir, 0o700); err != nil {
			w.t.Fatal(err)
		}
		other.store, other.edit = w.store, w.edit
		other.start()
		defer other.stop()
		other.mustGet()
		pending := w.rotate(client.KeyRotation{})
		for range 30 {
			time.Sleep(time.Minute)
			other.mustGet()
			w.mustGet()
		}
		if s := other.b.Status()[0]; s.PendingKey != pending.Key.KeyID || s.Credential.Version != "3" {
			w.t.Errorf("%+v", s)
		}
		w.knows(w.old, pending.Key)
		// The other one may go on with it as well.
		if out, err := other.b.RotateKey(w.t.Context(), "vdab", probe()); err != nil || out.State != client.KeyRotated {
			w.t.Fatalf("%+v, %v", out, err)
		}
		for range 30 {
			time.Sleep(time.Minute)
			other.mustGet()
			w.mustGet()
		}
		w.knows(pending.Key)
		time.Sleep(time.Hour)
		if g := w.mustGet(); g.Version != "4" {
			w.t.Errorf("version %s serves", g.Version)
		}
		other.mustGet()
	})
}

// meddling is a secrets manager in which somebody else writes between a look
// and the write that follows from it.
type meddling struct {
	*fake.Store
	fetches int
	at      int // before this one
	meddle  func()
}

func (m *meddling) Fetch(ctx context.Context, ref providers.Ref, have providers.Version) (providers.Bundle, error) {
	if m.fetches++; m.fetches == m.at {
		m.meddle()
	}
	return m.Store.Fetch(ctx, ref, have)
}

func TestRotateKeyConflict(t *testing.T) {
	inKeyWorld(t, nil, func(w *keyWorld) {
		meddle := func() {
			values := map[string]secret.Secret{"note": secret.FromString("theirs")}
			if _, err := providers.Store(context.Background(), w.store, magda(), values, providers.Any); err != nil {
				w.t.Error(err)
			}
		}
		for _, x := range []struct {
			step client.KeyRotation
			want string
		}{{client.KeyRotation{}, client.KeyPending}, {probe(), client.KeyRotated}, {client.KeyRotation{}, client.KeyPending}, {client.KeyRotation{Abandon: true}, client.KeyAbandoned}} {
			w.edit = after(w.edit, func(c *Client) { c.Writer = &meddling{Store: w.store, at: 1, meddle: meddle} })
			w.restart()
			before, v := w.fields()
			_, err := w.b.RotateKey(w.t.Context(), "vdab", x.step)
			if e := wantCode(w.t, err, client.ProviderUnavailable); providers.KindOf(errors.Unwrap(e)) != providers.Conflict || !strings.Contains(e.Detail, "somebody else") {
				w.t.Errorf("%s: %v", x.want, e)
			}
			if names, now := w.fields(); now == v || slices.Contains(names, "pending_private_key") != slices.Contains(before, "pending_private_key") {
				w.t.Errorf("%s: %v", x.want, names)
			}
			time.Sleep(time.Minute)
			out := w.rotate(x.step)
			if out.State != x.want {
				w.t.Errorf("%+v", out)
			}
			w.knows(w.old, out.Key)
			w.old = out.Key
		}
	})
}

func TestAbandonKey(t *testing.T) {
	inKeyWorld(t, nil, func(w *keyWorld) {
		abandon := client.KeyRotation{Abandon: true}
		if out := w.rotate(abandon); out.State != client.KeyAbandoned || out.Key.KeyID != w.old.KeyID || out.Key.Version != "2" {
			w.t.Errorf("%+v", out)
		}
		first := w.rotate(client.KeyRotation{})
		if out := w.rotate(abandon); out.State != client.KeyAbandoned || out.Key.KeyID != w.old.KeyID || out.Key.Version != "4" || out.Key.Pending != nil {
			w.t.Errorf("%+v", out)
		}
		w.wantFields("4", "client_id", "private_key")
		time.Sleep(time.Hour)
		if g := w.mustGet(); g.Version != "4" {
			w.t.Errorf("version %s serves: a version lacks what was abandoned", g.Version)
		}
		if second := w.rotate(client.KeyRotation{}); second.Key.KeyID == first.Key.KeyID {
			w.t.Error("the abandoned key is back")
		}
		// One that cannot be read is given up in the same way.
		values := map[string]secret.Secret{"pending_private_key": secret.FromString("-----BEGIN GARBAGE-----")}
		if _, err := providers.Store(w.t.Context(), w.store, magda(), values, providers.Any); err != nil {
			w.t.Fatal(err)
		}
		for _, step := range []client.KeyRotation{{}, probe()} {
			_, err := w.b.RotateKey(w.t.Context(), "vdab", step)
			if e := wantCode(w.t, err, client.CredentialsRejected); !strings.Contains(e.Detail, "--abandon") {
				w.t.Errorf("%q", e.Detail)
			}
		}
		if out := w.rotate(abandon); out.State != client.KeyAbandoned {
			w.t.Errorf("%+v", out)
		}
		w.mustGet()
	})
}

// What is asked for, and what was there, decide what the next key is like; and
// nothing of the old one's names stays.
func TestNextKey(t *testing.T) {
	inKeyWorld(t, nil, func(w *keyWorld) {
		put := func(name, value string) {
			w.t.Helper()
			if _, err := providers.Store(w.t.Context(), w.store, magda(), map[string]secret.Secret{name: secret.FromString(value)}, providers.Any); err != nil {
				w.t.Fatal(err)
			}
		}
		put("key_id", "their-key-1")
		named, err := w.b.NewKey(w.t.Context(), "vdab", client.NewKey{Certificate: true})
		if err != nil {
			w.t.Fatal(err)
		}
		w.old = named // by its name at the issuer
		w.knows(w.old)
		next := w.rotate(client.KeyRotation{})
		if next.Old != "their-key-1" || len(next.Key.KeyID) != 43 || next.Key.Certificate == "" {
			w.t.Errorf("%+v", next)
		}
		for flag, want := range map[string]client.KeyRotation{
			"--kind rsa-2048": {NewKey: client.NewKey{Kind: "rsa-2048"}}, "--subject other": {NewKey: client.NewKey{Certificate: true, Subject: "other"}},
		} {
			_, err := w.b.RotateKey(w.t.Context(), "vdab", want)
			if e := wantCode(w.t, err, client.InvalidRequest); !strings.Contains(e.Detail, flag) || !strings.Contains(e.Detail, "--abandon") {
				w.t.Errorf("%q", e.Detail)
			}
		}
		// The issuer has named it.
		made := next.Key.Certificate
		next = w.rotate(client.KeyRotation{NewKey: client.NewKey{Subject: "vdab"}, KeyID: "their-key-2"})
		if next.Key.KeyID != "their-key-2" || !strings.Contains(string(next.Key.JWK), `"kid":"their-key-2"`) || next.Key.Certificate != made {
			w.t.Errorf("%+v", next)
		}
		w.knows(w.old, next.Key)
		done := w.rotate(probe())
		if done.State != client.KeyRotated || done.Key.KeyID != "their-key-2" {
			w.t.Errorf("%+v", done)
		}
		_, v := w.fields()
		w.wantFields(v, "certificate", "client_id", "key_id", "private_key")
		w.knows(next.Key)
		time.Sleep(time.Hour)
		w.mustGet()
		// Once more, and nobody names it: the old name does not stay.
		third := w.rotate(client.KeyRotation{NewKey: client.NewKey{Kind: "rsa-2048", Subject: "x"}})
		w.knows(third.Key, next.Key)
		if done := w.rotate(probe()); done.State != client.KeyRotated || len(done.Key.KeyID) != 43 || done.Old != "their-key-2" || done.Key.Algorithm != "RS256" {
			w.t.Errorf("%+v", done)
		}
		w.knows(third.Key)
		time.Sleep(time.Hour)
		w.mustGet()
		certificate, err := providers.Load(w.t.Context(), w.store, magda(), "")
		if err != nil {
			w.t.Fatal(err)
		}
		if _, err := keys.Pair(certificate.Fields["private_key"], certificate.Fields["certificate"]); err != nil {
			w.t.Error(err)
		}
	})
}

func TestRotateKeyIsRefused(t *testing.T) {
	own := providers.Field{Ref: providers.Ref{Path: "magda-key"}}
	for what, x := range map[string]struct {
		edit func(*Client)
		code client.Code
		text string
	}{
		"nothing to rotate":  {func(c *Client) { c.Rotation.Spec.Path = "empty" }, client.NotFound, "broker keys new"},
		"no key":             {func(c *Client) { c.Issuer.ClientAuth = oidc.SecretBasic }, client.NotFound, "does not authenticate with a key"},
		"an authority's":     {func(c *Client) { c.Issuer.ClientAuth = oidc.TLS }, client.InvalidRequest, "as one new version"},
		"a secret apart":     {func(c *Client) { c.Rotation.Spec.Fields = map[string]providers.Field{"private_key": own} }, client.InvalidRequest, "the new version is proved"},
		"its name apart":     {func(c *Client) { c.Rotation.Spec.Fields = map[string]providers.Field{"key_id": own} }, client.InvalidRequest, "key_id"},
		"read-only":          {func(c *Client) { c.Provider = readOnly{c.Provider} }, client.InvalidRequest, "read-only"},
		"not to be proved":   {func(c *Client) { c.Rotation.Prove = "none"; c.Rotation.AcceptUnproved = true }, client.InvalidRequest, "prove"},
		"an issuer's outage": {nil, client.IssuerUnavailable, ""},
		"a manager's outage": {nil, client.ProviderUnavailable, ""},
		"pinned":             {nil, client.InvalidRequest, "broker rotate vdab --latest"},
	} {
		t.Run(what, func(t *testing.T) {
			inKeyWorld(t, nil, func(w *keyWorld) {
				if x.edit != nil {
					w.edit = after(w.edit, x.edit)
					w.restart()
				}
				step := client.KeyRotation{}
				switch what {
				case "not to be proved":
					w.rotate(step)
					step = probe()
				case "an issuer's outage":
					w.rotate(step)
					step = probe()
					w.acm.Set(fake.Fault{Kind: fake.Maintenance})
				case "a manager's outage":
					w.store.SetFault(providers.Unavailable)
				case "pinned":
					if _, err := w.b.Rotate(w.t.Context(), "vdab", Rotation{Version: "2"}); err != nil {
						w.t.Fatal(err)
					}
				}
				_, err := w.b.RotateKey(w.t.Context(), "vdab", step)
				if e := wantCode(w.t, err, x.code); !strings.Contains(e.Detail, x.text) {
					w.t.Errorf("%q", e.Detail)
				}
			})
		})
	}
	inKeyWorld(t, nil, func(w *keyWorld) {
		_, err := w.b.RotateKey(w.t.Context(), "nobody", client.KeyRotation{})
		wantCode(w.t, err, client.NotFound)
	})
}

// Geosecure knows a key by the certificate around it, which is made with it.
func TestRotateKeyWithCertificate(t *testing.T) {
	inWorld(t, func(inner *world) {
		w := &keyWorld{world: inner}
		geo := &fake.Geosecure{}
		w.store.Set("magda", map[string]string{"client_id": "4711"})
		w.with(func(c *Client) {
			c.Rotation.Spec = magda()
			c.Rotation.Required = []string{"client_id", "private_key", "certificate"}
			c.Issuer = &oidc.Profile{TokenEndpoint: "https://geo.example/authorization/ws/oauth/v2/token", ClientAuth: oidc.PrivateKeyJWT,
				Assertion: oidc.Assertion{Audience: "https://geo.example/authorization/ws/oauth/v2/token", KeyID: "certificate", Algorithm: "RS256"}}
			c.Transport, c.Headers = geo.RoundTripper(), nil
		})
		knows := func(k client.Key) {
			if err := geo.Register(fake.Client{ID: "4711", Keys: []string{k.Certificate}}); err != nil {
				w.t.Fatal(err)
			}
		}
		old, err := w.b.NewKey(w.t.Context(), "vdab", client.NewKey{Kind: "rsa-2048"})
		if err != nil {
			w.t.Fatal(err)
		}
		knows(old)
		time.Sleep(time.Second)
		w.mustGet()
		next := w.rotate(client.KeyRotation{NewKey: client.NewKey{Subject: "addresses"}})
		if next.Key.Certificate == "" || next.Key.Certificate == old.Certificate || next.Key.KeyID == next.Old || len(next.Key.KeyID) != 27 || next.Key.Algorithm != "RS256" {
			w.t.Errorf("%+v", next)
		}
		// Another's certificate cannot be proved, and says what is wrong.
		for _, certificate := range []string{old.Certificate, next.Key.Certificate} {
			values := map[string]secret.Secret{"pending_certificate": secret.FromString(certificate)}
			if _, err := providers.Store(w.t.Context(), w.store, magda(), values, providers.Any); err != nil {
				w.t.Fatal(err)
			}
			if certificate == old.Certificate {
				_, err := w.b.RotateKey(w.t.Context(), "vdab", probe())
				if e := wantCode(w.t, err, client.CredentialsRejected); !strings.Contains(e.Detail, "certificate") {
					w.t.Errorf("%q", e.Detail)
				}
			}
		}
		knows(next.Key)
		time.Sleep(time.Minute)
		// The daemon may have tried a key before the issuer knew it.
		if err := w.b.Retry("vdab"); err != nil {
			w.t.Fatal(err)
		}
		if done := w.rotate(probe()); done.State != client.KeyRotated || done.Key.KeyID != next.Key.KeyID {
			w.t.Errorf("%+v", done)
		}
		_, version := w.fields()
		w.wantFields(version, "certificate", "client_id", "private_key")
		time.Sleep(2 * time.Hour)
		w.mustGet()
	})
}

// Two who begin at once begin one rotation: who comes too late is told so.
func TestRotateKeyTogether(t *testing.T) {
	inKeyWorld(t, nil, func(w *keyWorld) {
		kids := make(chan string)
		for range 4 {
			go func() {
				out, err := w.b.RotateKey(w.t.Context(), "vdab", client.KeyRotation{KeyID: "their-name"})
				if err != nil && providers.KindOf(errors.Unwrap(err)) != providers.Conflict {
					w.t.Error(err)
				}
				kids <- string(out.Key.JWK)
			}()
		}
		made := ""
		for range 4 {
			switch jwk := <-kids; {
			case jwk == "":
			case made == "":
				made = jwk
			case jwk != made:
				w.t.Error("two keys were made")
			}
		}
		w.wantFields("3", "client_id", "pending_key_id", "pending_private_key", "private_key")
		if out := w.rotate(client.KeyRotation{}); string(out.Key.JWK) != made {
			w.t.Errorf("%s, want %s", out.Key.JWK, made)
		}
		// The issuer's name for it becomes the key's.
		w.knows(w.old, w.rotate(client.KeyRotation{}).Key)
		w.rotate(probe())
		w.wantFields("4", "client_id", "key_id", "private_key")
	})
}
