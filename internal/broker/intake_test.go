package broker

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/rotation"
)

// reader is a secrets manager as a login sees it that cannot write.
type reader struct{ providers.Provider }

func brought(accept bool, pairs ...string) Intake {
	in := Intake{Fields: map[string]secret.Secret{}, Accept: accept}
	for i := 0; i < len(pairs); i += 2 {
		in.Fields[pairs[i]] = secret.FromString(pairs[i+1])
	}
	return in
}

// stored is the newest version, and its client secret.
func (w *world) stored() (providers.Version, string) {
	w.t.Helper()
	b, err := w.store.Fetch(w.t.Context(), providers.Ref{Path: "vdab"}, "")
	if err != nil {
		w.t.Fatal(err)
	}
	return b.Version, plain(b.Fields["client_secret"])
}

// What is proved is stored by the login that may write, and serves at once with
// the token that proved it; without such a login it is proved and no more.
func TestIntake(t *testing.T) {
	inWorld(t, func(w *world) {
		w.with(func(c *Client) { c.Provider = reader{w.store} })
		w.mustGet()
		w.issuer.SetSecret(theID, "second-secret", true)
		got, err := w.b.Intake(w.t.Context(), "vdab", brought(false, "client_secret", "second-secret"))
		if v, _ := w.stored(); err != nil || got.Stored || got.Proved != "mint" || got.Replaces != "1" || got.Version != "" || v != "1" {
			w.t.Errorf("%+v, %v; version %s is stored", got, err, v)
		}
		w.with(func(c *Client) { c.Provider, c.Writer = reader{w.store}, w.store })
		w.mustGet()
		minted := w.issuer.Stats().Minted
		got, err = w.b.Intake(w.t.Context(), "vdab", brought(false, "client_secret", "second-secret", "client_id", theID))
		if err != nil || !got.Stored || got.Version != "2" || !slices.Equal(got.Changed, []string{"client_secret"}) || got.Missing != nil || got.Secret != "vdab" || got.Provider != "store" {
			w.t.Errorf("%+v, %v", got, err)
		}
		if v, s := w.stored(); v != "2" || s != "second-secret" {
			w.t.Errorf("version %s has %s", v, s)
		}
		w.mustGet()
		if n := w.issuer.Stats().Minted - minted; n != 1 || w.b.Status()[0].Credential.Version != "2" {
			w.t.Errorf("%d tokens for one version; version %s serves", n, w.b.Status()[0].Credential.Version)
		}
		got, err = w.b.Intake(w.t.Context(), "vdab", brought(false, "client_secret", "second-secret"))
		if v, _ := w.stored(); err != nil || got.Changed != nil || got.Version != "2" || got.Stored || v != "2" || w.issuer.Stats().Minted != minted+1 {
			w.t.Errorf("the same once more: %+v, %v, version %s", got, err, v)
		}
		_, err = w.b.Intake(w.t.Context(), "nobody", brought(false, "api_key", "k"))
		wantCode(w.t, err, client.NotFound)
		time.Sleep(time.Minute)
		if w.events()[audit.AdminAct] != 1 {
			w.t.Errorf("%v, want one record of what was stored", w.events())
		}
	})
}

// What cannot be proved is not stored, unless an administrator accepts it; what
// was refused never is.
func TestIntakeUnproved(t *testing.T) {
	for name, c := range map[string]struct {
		fault  fake.Fault
		edit   func(*Client)
		fields []string
		code   client.Code // without accept
		never  bool        // not with accept either
		serves providers.Version
	}{
		"refused":         {fields: []string{"client_secret", "wrong"}, code: client.CredentialsRejected, never: true, serves: "1"},
		"the issuer down": {fault: fake.Fault{Kind: fake.Maintenance}, fields: []string{"client_secret", "wrong"}, code: client.IssuerUnavailable, serves: "1"},
		"not provable": {edit: func(c *Client) { c.Rotation.Prove = rotation.ProveNone }, fields: []string{"api_key", "new"},
			code: client.CredentialsRejected, serves: "2"},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.with(func(cl *Client) {
					cl.Writer = w.store
					if c.edit != nil {
						c.edit(cl)
					}
				})
				w.mustGet()
				w.issuer.Set(c.fault)
				_, err := w.b.Intake(w.t.Context(), "vdab", brought(false, c.fields...))
				e := wantCode(w.t, err, c.code)
				if v, _ := w.stored(); v != "1" || !strings.Contains(e.Detail, "nothing was stored") || strings.Contains(e.Detail, "--accept") == c.never {
					w.t.Errorf("version %s; %s", v, e.Detail)
				}
				time.Sleep(2 * time.Minute)
				got, err := w.b.Intake(w.t.Context(), "vdab", brought(true, c.fields...))
				v, _ := w.stored()
				if c.never != (err != nil) || c.never != (v == "1") || got.Proved != "" {
					w.t.Errorf("accepted: %+v, %v; version %s", got, err, v)
				}
				if now := w.b.Status()[0].Credential.Version; now != c.serves {
					w.t.Errorf("version %s serves, want %s", now, c.serves)
				}
			})
		})
	}
}

// The API key may come later; until then the old version serves.
func TestIntakeIncomplete(t *testing.T) {
	inWorld(t, func(w *world) {
		w.with(func(c *Client) { c.Writer, c.Rotation.Spec.Path = w.store, "new" })
		got, err := w.b.Intake(w.t.Context(), "vdab", brought(false, "client_id", theID, "client_secret", theSecret))
		if err != nil || got.Proved != "mint" || got.Version != "1" || got.Replaces != "" || !slices.Equal(got.Missing, []string{"api_key"}) {
			w.t.Errorf("%+v, %v", got, err)
		}
		if v := w.b.Status()[0].Credential.Version; v != "" {
			w.t.Errorf("version %s serves without its API key", v)
		}
		got, err = w.b.Intake(w.t.Context(), "vdab", brought(false, "api_key", theKey))
		if err != nil || got.Version != "2" || got.Missing != nil {
			w.t.Errorf("%+v, %v", got, err)
		}
		w.mustGet()
	})
}

// overtaken is a manager to which somebody writes when it has been read once.
type overtaken struct {
	*fake.Store
	reads *int
}

func (o overtaken) Fetch(ctx context.Context, ref providers.Ref, have providers.Version) (providers.Bundle, error) {
	if *o.reads++; *o.reads == 2 {
		o.Set("vdab", map[string]string{"client_id": "theirs"})
	}
	return o.Store.Fetch(ctx, ref, have)
}

func TestIntakeMeetsAnotherWriter(t *testing.T) {
	inWorld(t, func(w *world) {
		w.with(func(c *Client) { c.Writer = overtaken{w.store, new(int)} })
		w.issuer.SetSecret(theID, "second-secret", true)
		_, err := w.b.Intake(w.t.Context(), "vdab", brought(false, "client_secret", "second-secret"))
		if e := wantCode(w.t, err, client.ProviderUnavailable); !strings.Contains(e.Detail, "meanwhile") {
			w.t.Error(e.Detail)
		}
		if v, s := w.stored(); v != "2" || s != "" {
			w.t.Errorf("version %s was written over", v)
		}
	})
}

// New keys are written with the login that may write.
func TestNewKeyIsWrittenByTheWriter(t *testing.T) {
	inWorld(t, func(w *world) {
		for _, writer := range []providers.Provider{nil, w.store} {
			w.with(func(c *Client) {
				c.Provider, c.Writer = reader{w.store}, writer
				c.Rotation.Spec.Path, c.Issuer.ClientAuth, c.Headers = "acm", "private_key_jwt", nil
			})
			_, err := w.b.NewKey(w.t.Context(), "vdab", client.NewKey{Kind: "p-256"})
			if (err == nil) != (writer != nil) {
				w.t.Errorf("with %v: %v", writer, err)
			}
		}
	})
}
