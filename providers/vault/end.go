package vault

import (
	"context"
	"net/http"
	"net/url"
	"time"

	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

// LoginEnd implements providers.Perishable: the end of a client certificate, of
// a token that cannot be renewed beyond it, of a secret-id. The last asks for
// update on auth/MOUNT/role/ROLE/secret-id/lookup.
func (p *provider) LoginEnd(ctx context.Context) (what string, end time.Time, _ error) {
	auth := p.conf.Auth
	switch {
	case auth.Cert != nil:
		pair, err := auth.Cert.read()
		if err != nil {
			return "", time.Time{}, err
		}
		return "the certificate in auth.cert.cert_file", pair.Leaf.NotAfter, nil
	case auth.TokenFile != "":
		me, err := p.lookUpSelf(ctx)
		return "the token in auth.token_file", me.end(), err
	case auth.AppRole != nil && auth.AppRole.SecretIDFile != "" && !auth.AppRole.Wrapped:
		end, err := p.secretIDEnd(ctx)
		return "the secret-id", end, err
	}
	return "", time.Time{}, nil
}

// A self is what Vault says of the token that asks.
type self struct {
	Created   int64  `json:"creation_time"`    // seconds since 1970
	Longest   int64  `json:"explicit_max_ttl"` // seconds; 0: the mount's own, which is not told
	Expires   string `json:"expire_time"`      // empty: never
	Renewable bool   `json:"renewable"`
	Meta      struct {
		Role string `json:"role_name"`
	} `json:"meta"`
}

// end is when no renewal helps any more; zero: no such time is known.
func (s self) end() time.Time {
	if s.Renewable && s.Longest > 0 {
		return time.Unix(s.Created+s.Longest, 0)
	}
	end, err := time.Parse(time.RFC3339Nano, s.Expires)
	if err != nil || s.Renewable {
		return time.Time{}
	}
	return end
}

func (p *provider) lookUpSelf(ctx context.Context) (me self, _ error) {
	var got struct{ Data self }
	err := p.lookUp(ctx, "auth/token/lookup-self", nil, &got)
	return got.Data, err
}

func (p *provider) secretIDEnd(ctx context.Context) (time.Time, error) {
	me, err := p.lookUpSelf(ctx)
	if err != nil {
		return time.Time{}, err
	}
	id, err := credential("auth.approle.secret_id_file", p.conf.Auth.AppRole.SecretIDFile)
	if err != nil {
		return time.Time{}, err
	}
	fields := providers.Bundle{Fields: map[string]secret.Secret{"secret_id": id}}
	defer fields.Wipe()
	body, err := providers.Encode(fields.Fields)
	defer clear(body)
	if err != nil {
		return time.Time{}, malformed()
	}
	var got struct {
		Data *struct {
			Expires time.Time `json:"expiration_time"` // the year 1: never
		}
	}
	if err = p.lookUp(ctx, "auth/"+p.conf.Auth.mount()+"/role/"+url.PathEscape(me.Meta.Role)+"/secret-id/lookup", body, &got); err != nil {
		return time.Time{}, err
	}
	if got.Data == nil { // Vault answers 204 for a secret-id that it does not have
		return time.Time{}, fail(providers.LoginFailed, "Vault does not have the secret-id any more: it is used up, destroyed or of another role, and the next login fails",
			"replace it (broker setup seals the next one)")
	}
	return got.Data.Expires, nil
}

// lookUp makes one call about our own login. An answer without content is none.
// A denial is taken for the policy's: no login is spent to find out more.
func (p *provider) lookUp(ctx context.Context, path string, body []byte, into any) error {
	s, err := p.current(ctx)
	if err != nil {
		return err
	}
	a, err := p.call(ctx, s.token, path, nil, body)
	defer clear(a.body)
	switch {
	case err != nil:
		return err
	case a.status == http.StatusForbidden && !a.foreign:
		return fail(providers.Denied, "the policy allows no look at "+path, "broker setup prints one that does")
	case !a.ok():
		return refusal(a)
	case len(a.body) == 0:
		return nil
	}
	return decode(a.body, into)
}
