package vault

import (
	"testing"
	"time"

	"credentialbroker/providers"
)

// TestLoginEnd: what somebody has to replace is named with its end, and what
// the broker renews by itself is not.
func TestLoginEnd(t *testing.T) {
	end := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	ask := func(t *testing.T, f *fake, c Config) (string, time.Time, error) {
		t.Helper()
		return open(t, c, f.clk).(providers.Perishable).LoginEnd(t.Context())
	}
	t.Run("secret-id", func(t *testing.T) {
		f := newFake(t)
		f.secretIDEnd = end
		if what, at, err := ask(t, f, f.config(t)); what != "the secret-id" || !at.Equal(end) || err != nil {
			t.Error(what, at, err)
		}
		f.secretIDEnd = time.Time{}
		if _, at, err := ask(t, f, f.config(t)); !at.IsZero() || err != nil {
			t.Error(at, err)
		}
		f.denied["auth/approle/role/hosts/secret-id/lookup"] = true
		_, _, err := ask(t, f, f.config(t))
		wantKind(t, err, providers.Denied, "auth/approle/role/hosts/secret-id/lookup")
	})
	t.Run("secret-id is gone", func(t *testing.T) {
		f := newFake(t)
		f.secretIDGone = true
		_, _, err := ask(t, f, f.config(t))
		wantKind(t, err, providers.LoginFailed, "does not have the secret-id any more")
	})
	t.Run("no secret-id", func(t *testing.T) {
		f := newFake(t)
		c := f.config(t)
		c.Auth.AppRole.SecretIDFile = ""
		if _, at, err := ask(t, f, c); !at.IsZero() || err != nil || len(f.calls) > 0 {
			t.Error(at, err, f.calls)
		}
	})
	t.Run("token", func(t *testing.T) {
		f := newFake(t)
		now := f.clk.Now().Wall
		for name, c := range map[string]struct {
			token token
			end   time.Time
		}{
			"dies":             {token{from: now, end: now.Add(time.Hour)}, now.Add(time.Hour)},
			"is not renewed":   {token{from: now, end: now.Add(time.Hour), max: 48 * time.Hour}, now.Add(time.Hour)},
			"is renewed":       {token{from: now, end: now.Add(time.Hour), renewable: true}, time.Time{}},
			"has a longest":    {token{from: now, end: now.Add(time.Hour), renewable: true, max: 48 * time.Hour}, now.Add(48 * time.Hour)},
			"lives for ever":   {token{from: now}, time.Time{}},
			"is not looked at": {token{from: now, noDefault: true}, time.Time{}},
		} {
			f.tokens["t"] = &c.token
			conf := f.config(t)
			conf.Auth = Auth{TokenFile: file(t, "t")}
			what, at, err := ask(t, f, conf)
			if c.token.noDefault {
				wantKind(t, err, providers.Denied, "lookup-self")
			} else if d := at.Sub(c.end); d.Abs() > time.Second || err != nil || what != "the token in auth.token_file" {
				t.Errorf("%s: %s %v, want %v: %v", name, what, at, c.end, err)
			}
		}
	})
	t.Run("certificate", func(t *testing.T) {
		f := newFake(t)
		cert, key := keyPair(t, "broker.host")
		c := f.config(t)
		c.Auth = Auth{Cert: &Cert{CertFile: cert, KeyFile: key}}
		if what, at, err := ask(t, f, c); at.IsZero() || time.Until(at) > 48*time.Hour || err != nil || what != "the certificate in auth.cert.cert_file" || len(f.calls) > 0 {
			t.Error(what, at, err)
		}
	})
}
