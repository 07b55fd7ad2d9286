package broker

import (
	"context"
	"crypto/rand"
	"errors"
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

func TestNewKey(t *testing.T) {
	inWorld(t, func(w *world) {
		acm := &fake.ACM{}
		w.with(func(c *Client) {
			c.Rotation.Spec.Path = "acm"
			c.Rotation.Required = []string{"client_id", "private_key"}
			c.Issuer = &oidc.Profile{TokenEndpoint: "https://acm.example/op/v1/token", ClientAuth: oidc.PrivateKeyJWT, Assertion: oidc.Assertion{Audience: "https://acm.example/op"}}
			c.Transport = acm.RoundTripper()
			c.Headers = nil
		})
		_, err := w.b.Key(w.t.Context(), "vdab")
		wantCode(w.t, err, client.NotFound)
		made, err := w.b.NewKey(w.t.Context(), "vdab", client.NewKey{Kind: "p-256", Certificate: true, Subject: "our app"})
		if err != nil {
			w.t.Fatal(err)
		}
		shown, err := w.b.Key(w.t.Context(), "vdab")
		if err != nil || string(shown.JWK) != string(made.JWK) || shown.KeyID != made.KeyID || shown.Algorithm != "ES256" || shown.Certificate != made.Certificate || shown.Version != "1" {
			w.t.Errorf("%+v, %v, want %+v", shown, err, made)
		}
		if strings.Contains(string(made.JWK), `"d"`) || strings.Contains(made.Certificate, "PRIVATE") {
			w.t.Error("the private key is shown")
		}
		if len(made.Missing) != 1 || made.Missing[0] != "client_id" {
			w.t.Errorf("missing: %v", made.Missing)
		}
		_, err = w.b.NewKey(w.t.Context(), "vdab", client.NewKey{})
		wantCode(w.t, err, client.InvalidRequest)
		_, err = w.b.NewKey(w.t.Context(), "nobody", client.NewKey{})
		wantCode(w.t, err, client.NotFound)
		time.Sleep(time.Second) // it has looked again
		_, err = w.get(Request{})
		if e := wantCode(w.t, err, client.ProviderUnavailable); !strings.Contains(e.Detail, "client_id") {
			w.t.Errorf("%q", e.Detail)
		}
		// What stands around a certificate is nobody's business.
		secretText := map[string]secret.Secret{"certificate": secret.FromString("client_secret=oh-no\n" + made.Certificate)}
		if _, err := providers.Store(w.t.Context(), w.store, providers.Spec{Ref: providers.Ref{Path: "acm"}}, secretText, providers.Any); err != nil {
			w.t.Fatal(err)
		}
		if shown, err = w.b.Key(w.t.Context(), "vdab"); err != nil || shown.Certificate != made.Certificate {
			w.t.Errorf("%q, %v", shown.Certificate, err)
		}
		// The issuer has registered the key and given an id: a token.
		if err := acm.Register(fake.Client{ID: theID, Keys: []string{string(made.JWK)}}); err != nil {
			w.t.Fatal(err)
		}
		if _, err := providers.Store(w.t.Context(), w.store, providers.Spec{Ref: providers.Ref{Path: "acm"}}, map[string]secret.Secret{"client_id": secret.FromString(theID)}, providers.Any); err != nil {
			w.t.Fatal(err)
		}
		time.Sleep(6 * time.Minute)
		w.mustGet()
	})
}

// A new key fits what the profile signs with.
func TestNewKeyFits(t *testing.T) {
	inWorld(t, func(w *world) {
		for _, x := range []struct {
			profile oidc.Profile
			kind    string
			alg     string // empty: refused
			cert    bool
		}{
			{oidc.Profile{ClientAuth: oidc.PrivateKeyJWT, Assertion: oidc.Assertion{Algorithm: "ES256"}}, "", "ES256", false},
			{oidc.Profile{ClientAuth: oidc.PrivateKeyJWT, Assertion: oidc.Assertion{Algorithm: "PS256"}}, "rsa-2048", "PS256", false},
			{oidc.Profile{ClientAuth: oidc.PrivateKeyJWT, Assertion: oidc.Assertion{Algorithm: "RS256"}}, "ed25519", "", false},
			{oidc.Profile{ClientAuth: oidc.PrivateKeyJWT, Assertion: oidc.Assertion{KeyID: "certificate"}}, "p-256", "ES256", true},
			{oidc.Profile{ClientAuth: oidc.SelfSignedTLS}, "p-256", "ES256", true},
			{oidc.Profile{ClientAuth: oidc.TLS}, "p-256", "", false},
		} {
			w.with(func(c *Client) {
				c.Rotation.Spec.Path = rand.Text()
				c.Issuer = &x.profile
				c.Issuer.TokenEndpoint = "https://issuer.example/token"
				c.Headers = nil
			})
			k, err := w.b.NewKey(w.t.Context(), "vdab", client.NewKey{Kind: x.kind})
			if x.alg == "" {
				wantCode(w.t, err, client.InvalidRequest)
				continue
			}
			if err != nil || k.Algorithm != x.alg || !strings.Contains(string(k.JWK), `"alg":"`+x.alg+`"`) || (k.Certificate != "") != x.cert {
				w.t.Errorf("%+v: %+v, %v", x.profile, k, err)
			}
		}
	})
}

// A certificate is made around the key that there is; and two who make a key
// at once do not replace each other's.
func TestKeysAreNotReplaced(t *testing.T) {
	inWorld(t, func(w *world) {
		w.with(func(c *Client) {
			c.Rotation.Spec.Path = "acm"
			c.Issuer.ClientAuth = oidc.PrivateKeyJWT
			c.Headers = nil
		})
		type made struct {
			client.Key
			err error
		}
		results := make(chan made)
		for range 4 {
			go func() {
				k, err := w.b.NewKey(w.t.Context(), "vdab", client.NewKey{Kind: "p-256"})
				results <- made{k, err}
			}()
		}
		var first client.Key
		for range 4 {
			if r := <-results; r.err == nil && first.KeyID != "" {
				w.t.Error("two keys were made")
			} else if r.err == nil {
				first = r.Key
			}
		}
		second, err := w.b.NewKey(w.t.Context(), "vdab", client.NewKey{Certificate: true})
		if err != nil || second.KeyID != first.KeyID || second.Certificate == "" {
			w.t.Errorf("%+v, %v, want the key %s and a certificate", second, err, first.KeyID)
		}
		_, err = w.b.NewKey(w.t.Context(), "vdab", client.NewKey{Certificate: true})
		wantCode(w.t, err, client.InvalidRequest)
		// Somebody else's key, stored between our look and our write.
		values := map[string]secret.Secret{"private_key": secret.FromString("theirs")}
		if _, err := providers.Store(w.t.Context(), w.store, providers.Spec{Ref: providers.Ref{Path: "acm"}}, values, providers.Absent); providers.KindOf(err) != providers.Conflict {
			w.t.Error(err)
		}
	})
}

func TestNewKeyIsRefused(t *testing.T) {
	inWorld(t, func(w *world) {
		_, err := w.b.NewKey(w.t.Context(), "vdab", client.NewKey{})
		wantCode(w.t, err, client.NotFound) // it has a secret
		asymmetric := func(c *Client) { c.Issuer.ClientAuth = oidc.PrivateKeyJWT }
		w.with(asymmetric)
		_, err = w.b.NewKey(w.t.Context(), "vdab", client.NewKey{Kind: "rsa-1024"})
		if e := wantCode(w.t, err, client.InvalidRequest); !strings.Contains(e.Detail, "rsa-3072") {
			w.t.Errorf("%q", e.Detail)
		}
		w.with(func(c *Client) { asymmetric(c); c.Provider = struct{ providers.Provider }{w.store} })
		_, err = w.b.NewKey(w.t.Context(), "vdab", client.NewKey{Kind: "p-256"})
		wantCode(w.t, err, client.InvalidRequest)
	})
}

// forbidden is a manager that lets nobody write.
type forbidden struct{ *fake.Store }

func (forbidden) Put(context.Context, providers.Ref, map[string]secret.Secret, providers.Version) (providers.Version, error) {
	return "", &providers.Error{Kind: providers.Denied, Message: "the policy does not allow this"}
}

// A login that may not write is for a person to mend: it is not tried again.
func TestWriterWithoutPermission(t *testing.T) {
	inWorld(t, func(w *world) {
		w.with(func(c *Client) { c.Writer = forbidden{w.store} })
		w.issuer.SetSecret(theID, "second-secret", true)
		_, err := w.b.Intake(w.t.Context(), "vdab", brought(false, "client_secret", "second-secret"))
		if e := wantCode(w.t, err, client.CredentialsRejected); e.RetryAfter != 0 || !strings.Contains(e.Detail, "permission") {
			w.t.Errorf("%+v", e)
		}
		w.with(func(c *Client) { c.Writer = forbidden{w.store}; c.Issuer.ClientAuth = oidc.PrivateKeyJWT })
		_, err = w.b.NewKey(w.t.Context(), "vdab", client.NewKey{Kind: "p-256"})
		wantCode(w.t, err, client.CredentialsRejected)
	})
}

// What cannot be used is said in its own words, and nothing is sent.
func TestUnusableKey(t *testing.T) {
	inWorld(t, func(w *world) {
		acm := &fake.ACM{}
		w.store.Set("acm", map[string]string{"client_id": theID, "private_key": "-----BEGIN GARBAGE-----"})
		w.with(func(c *Client) {
			c.Rotation.Spec.Path = "acm"
			c.Rotation.Required = []string{"client_id", "private_key"}
			c.Issuer = &oidc.Profile{TokenEndpoint: "https://acm.example/op/v1/token", ClientAuth: oidc.PrivateKeyJWT, Assertion: oidc.Assertion{Audience: "https://acm.example/op"}}
			c.Transport = acm.RoundTripper()
			c.Headers = nil
		})
		_, err := w.get(Request{})
		if e := wantCode(w.t, err, client.CredentialsRejected); !strings.Contains(e.Detail, "private_key") || strings.Contains(e.Detail, "scope") {
			w.t.Errorf("%q", e.Detail)
		}
		if r := w.b.Ready(w.caller); r.Ready || r.Clients[0].Code != client.CredentialsRejected {
			w.t.Errorf("%+v", r)
		}
		w.stop()
		defer w.start()
		if n := w.events(); n[audit.TokenRefused] == 0 || acm.Stats().Requests != 0 {
			w.t.Errorf("%v, %d requests", n, acm.Stats().Requests)
		}
	})
}

// A clock that is ten minutes off costs a request, not the client.
func TestWrongClock(t *testing.T) {
	for _, off := range []time.Duration{-10 * time.Minute, 10 * time.Minute} {
		inWorld(t, func(w *world) {
			key, err := keys.Generate("p-256")
			if err != nil {
				w.t.Fatal(err)
			}
			public, err1 := key.Public("")
			private, err2 := key.PEM()
			if err := errors.Join(err1, err2); err != nil {
				w.t.Fatal(err)
			}
			acm := &fake.ACM{}
			if err := acm.Register(fake.Client{ID: theID, Keys: []string{string(public)}}); err != nil {
				w.t.Fatal(err)
			}
			if _, err := w.store.Put(context.Background(), providers.Ref{Path: "acm"}, map[string]secret.Secret{"client_id": secret.FromString(theID), "private_key": private}, ""); err != nil {
				w.t.Fatal(err)
			}
			w.skew.Store(int64(off))
			w.with(func(c *Client) {
				c.Rotation.Spec.Path = "acm"
				c.Rotation.Required = []string{"client_id", "private_key"}
				c.Issuer = &oidc.Profile{TokenEndpoint: "https://acm.example/op/v1/token", ClientAuth: oidc.PrivateKeyJWT, Assertion: oidc.Assertion{Audience: "https://acm.example/op"}}
				c.Transport = acm.RoundTripper()
				c.Headers = nil
			})
			if _, err = w.get(Request{}); err != nil {
				if e := wantCode(w.t, err, client.IssuerUnavailable); !strings.Contains(e.Detail, "clock") {
					w.t.Errorf("%q", e.Detail)
				}
				time.Sleep(3 * time.Second)
			}
			w.mustGet()
			if n := acm.Stats().Requests; n > 2 {
				w.t.Errorf("%s: %d requests", off, n)
			}
		})
	}
}

// What names a client's key in a report is its kid, as the issuer knows it; the
// key stays.
func TestCredentialsNameTheKey(t *testing.T) {
	inWorld(t, func(w *world) {
		key, err := keys.Generate("p-256")
		if err != nil {
			w.t.Fatal(err)
		}
		private, err := key.PEM()
		if err != nil {
			w.t.Fatal(err)
		}
		fields := map[string]secret.Secret{"client_id": secret.FromString(theID), "private_key": private}
		if _, err := w.store.Put(context.Background(), providers.Ref{Path: "acm"}, fields, ""); err != nil {
			w.t.Fatal(err)
		}
		if id := w.b.Credentials(w.t.Context(), "vdab").KeyID; id != "" {
			w.t.Errorf("a client with a secret has a key %q", id)
		}
		w.with(func(c *Client) {
			c.Rotation.Spec.Path = "acm"
			c.Rotation.Required = []string{"client_id", "private_key"}
			c.Issuer = &oidc.Profile{TokenEndpoint: "https://acm.example/op/v1/token", ClientAuth: oidc.PrivateKeyJWT, Assertion: oidc.Assertion{Audience: "https://acm.example/op"}}
			c.Transport = (&fake.ACM{}).RoundTripper()
			c.Headers = nil
		})
		if got := w.b.Credentials(w.t.Context(), "vdab"); got.KeyID != key.KeyID() || got.ClientID != theID {
			w.t.Errorf("%+v, want the key %s", got, key.KeyID())
		}
		if ids := w.b.ClientIDs(); ids["vdab"] != theID {
			w.t.Errorf("%v", ids)
		}
	})
}
