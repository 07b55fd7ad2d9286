package vault

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"time"

	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

// maxFile is the longest credential file that is read, in bytes.
const maxFile = 64 << 10

// unwrapped is a secret-id that came wrapped, and the file it came from.
type unwrapped struct {
	id    secret.Secret
	stamp string
}

// logIn gets a token by the configured method. The caller has the turn.
func (p *provider) logIn(ctx context.Context, stamp string) (*session, error) {
	if p.conf.Auth.TokenFile != "" {
		return p.readToken(ctx, stamp)
	}
	fields, err := p.credentials(ctx)
	defer providers.Bundle{Fields: fields}.Wipe()
	if err != nil {
		return nil, err
	}
	body, err := providers.Encode(fields)
	defer clear(body)
	if err != nil {
		return nil, fail(providers.LoginFailed, "a file of auth holds no text", "")
	}
	from := p.clk.Now()
	a, err := p.call(ctx, secret.Secret{}, "auth/"+p.conf.Auth.mount()+"/login", nil, body)
	defer clear(a.body)
	if err != nil {
		return nil, err
	}
	if !a.ok() {
		return nil, p.refusedLogin(a)
	}
	got, err := parseLogin(a.body)
	defer clear(got.token)
	if err != nil {
		return nil, err
	}
	if len(got.token) == 0 {
		return nil, fail(providers.LoginFailed, "the login gave no token", "a role that asks for a second factor is nothing for a daemon")
	}
	s := session{own: got.kind != "batch", renewable: got.renewable, full: got.ttl, token: secret.New(got.token)}
	return s.lasting(from, got.ttl), nil
}

// readToken takes the token of the token file, and asks Vault how long it
// lives. A token that may not ask is used until Vault refuses it.
func (p *provider) readToken(ctx context.Context, stamp string) (*session, error) {
	token, err := credential("token_file", p.conf.Auth.TokenFile)
	if err != nil {
		return nil, err
	}
	from := p.clk.Now()
	a, err := p.call(ctx, token, "auth/token/lookup-self", nil, nil)
	defer clear(a.body)
	if err != nil {
		return nil, err
	}
	s := session{token: token, stamp: stamp}
	if a.status == http.StatusForbidden && !a.foreign {
		return s.lasting(from, 0), nil
	}
	if !a.ok() {
		return nil, refusal(a)
	}
	var got struct {
		Data struct {
			TTL       int64 `json:"ttl"`
			Renewable bool  `json:"renewable"`
		}
	}
	if err := decode(a.body, &got); err != nil {
		return nil, err
	}
	s.renewable, s.full = got.Data.Renewable, seconds(got.Data.TTL)
	return s.lasting(from, s.full), nil
}

// credentials reads what the login sends. The caller wipes it.
func (p *provider) credentials(ctx context.Context) (map[string]secret.Secret, error) {
	auth, fields := p.conf.Auth, map[string]secret.Secret{}
	signed := func(key string, j *JWT) (err error) {
		if j.Role != "" {
			fields["role"] = secret.FromString(j.Role)
		}
		fields["jwt"], err = credential("auth."+key+".token_file", auth.files()[0])
		return err
	}
	var err error
	switch {
	case auth.AppRole != nil:
		if fields["role_id"], err = credential("auth.approle.role_id_file", auth.AppRole.RoleIDFile); err != nil {
			return nil, err
		}
		switch {
		case auth.AppRole.Wrapped:
			fields["secret_id"], err = p.unwrap(ctx)
		case auth.AppRole.SecretIDFile != "":
			fields["secret_id"], err = credential("auth.approle.secret_id_file", auth.AppRole.SecretIDFile)
		}
	case auth.Kubernetes != nil:
		err = signed("kubernetes", auth.Kubernetes)
	case auth.JWT != nil:
		err = signed("jwt", auth.JWT)
	case auth.Cert != nil:
		if auth.Cert.Role != "" {
			fields["name"] = secret.FromString(auth.Cert.Role)
		}
		err = p.loadCert(auth.Cert)
	}
	return fields, err
}

// loadCert reads the certificate that all connections show from now on: Vault
// renews a token only for the certificate that got it.
func (p *provider) loadCert(c *Cert) error {
	pair, err := c.read()
	if err == nil {
		p.cert.Store(pair)
	}
	return err
}

func (c *Cert) read() (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(c.CertFile, c.KeyFile)
	var open *fs.PathError
	switch {
	case errors.As(err, &open):
		return nil, unreadable("auth.cert", open.Path, err)
	case err != nil:
		return nil, fail(providers.LoginFailed, "auth.cert: cert_file and key_file are no pair of PEM files", "")
	}
	return &pair, nil
}

// credential reads a file that holds one value; space around it is dropped.
func credential(key, file string) (secret.Secret, error) {
	f, err := os.Open(file)
	if err != nil {
		return secret.Secret{}, unreadable(key, file, err)
	}
	defer f.Close()
	buf := make([]byte, maxFile+1)
	defer clear(buf)
	n := 0
	for err == nil && n < len(buf) {
		var m int
		m, err = f.Read(buf[n:])
		n += m
	}
	value := bytes.TrimSpace(buf[:n])
	if len(value) == 0 || n > maxFile || bytes.ContainsFunc(value, notPrintable) {
		return secret.Secret{}, fail(providers.LoginFailed, fmt.Sprintf("%s: %s does not hold one value on one line", key, file), "")
	}
	return secret.New(bytes.Clone(value)), nil
}

func unreadable(key, file string, err error) error {
	why := "cannot be read"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		why = "does not exist"
	case errors.Is(err, fs.ErrPermission):
		why = "may not be read by this user"
	}
	return fail(providers.LoginFailed, key+": "+file+" "+why, "")
}

// unwrap gets the secret-id out of the wrapping token in its file, once for
// each content of the file, and checks first that the token wraps a secret-id
// of this auth method: who intercepted it could have wrapped another thing.
func (p *provider) unwrap(ctx context.Context) (secret.Secret, error) {
	stamp := stampOf([]string{p.conf.Auth.AppRole.SecretIDFile})
	if p.wrapped.stamp == stamp {
		return p.wrapped.id.Clone()
	}
	token, err := credential("auth.approle.secret_id_file", p.conf.Auth.AppRole.SecretIDFile)
	if err != nil {
		return secret.Secret{}, err
	}
	defer token.Wipe()
	lookup, err := providers.Encode(map[string]secret.Secret{"token": token})
	defer clear(lookup)
	if err != nil {
		return secret.Secret{}, err
	}
	var made struct {
		Data struct {
			Path string `json:"creation_path"`
		}
	}
	if err := p.wrapping(ctx, secret.Secret{}, "sys/wrapping/lookup", lookup, &made); err != nil {
		return secret.Secret{}, err
	}
	if !wrapsSecretID(made.Data.Path, p.conf.Auth.mount()) {
		return secret.Secret{}, fail(providers.LoginFailed, "the wrapping token in secret_id_file wraps no secret-id of auth/"+p.conf.Auth.mount(),
			"it may have been exchanged on its way: find out, and revoke the secret-id that was made for this host")
	}
	var got struct {
		Data struct {
			ID json.RawMessage `json:"secret_id"`
		}
	}
	if err := p.wrapping(ctx, token, "sys/wrapping/unwrap", []byte("{}"), &got); err != nil {
		return secret.Secret{}, err
	}
	defer clear(got.Data.ID)
	id := plain(got.Data.ID)
	if len(id) == 0 {
		return secret.Secret{}, malformed()
	}
	p.wrapped.id.Wipe()
	p.wrapped = unwrapped{secret.New(bytes.Clone(id)), stamp}
	return p.wrapped.id.Clone()
}

// wrapping makes one call about a wrapping token.
func (p *provider) wrapping(ctx context.Context, token secret.Secret, path string, body []byte, into any) error {
	a, err := p.call(ctx, token, path, nil, body)
	defer clear(a.body)
	switch {
	case err != nil:
		return err
	case a.ok():
		return decode(a.body, into)
	case !a.foreign && (a.status == http.StatusBadRequest || a.status == http.StatusForbidden || a.status == http.StatusNotFound):
		return fail(providers.LoginFailed, "the wrapping token in secret_id_file was used already, or is too old",
			"put a new one there; if nobody here used it, somebody intercepted it: revoke the secret-id that was made for this host")
	}
	return refusal(a)
}

// wrapsSecretID checks where a wrapping token was made. The path may start
// with a namespace.
func wrapsSecretID(path, mount string) bool {
	_, role, found := strings.Cut("/"+path, "/auth/"+mount+"/role/")
	return found && (strings.HasSuffix(role, "/secret-id") || strings.HasSuffix(role, "/custom-secret-id"))
}

// refusedLogin says why there is no token.
func (p *provider) refusedLogin(a answer) error {
	login := a.status == http.StatusBadRequest || a.status == http.StatusUnauthorized ||
		a.status == http.StatusForbidden || a.status == http.StatusNotFound
	if a.foreign || !login {
		return refusal(a)
	}
	hint := map[string]string{
		"approle":    "is the secret-id expired, used up or destroyed, or the role-id of another role?",
		"kubernetes": "is the service account bound to the role?",
		"jwt":        "is the token expired, or of an issuer or audience that the role does not accept?",
		"cert":       "is the certificate expired, or signed by an authority that the role does not know?",
	}[p.conf.Auth.method()]
	return fail(providers.LoginFailed, fmt.Sprintf("Vault refused the login at auth/%s (HTTP %d)", p.conf.Auth.mount(), a.status), hint)
}

// granted is what a login or a renewal gives. Whoever gets it wipes token.
type granted struct {
	token     []byte
	ttl       time.Duration
	renewable bool
	kind      string // service or batch
}

func parseLogin(body []byte) (granted, error) {
	var got struct {
		Auth *struct {
			Token     json.RawMessage `json:"client_token"`
			TTL       int64           `json:"lease_duration"`
			Renewable bool            `json:"renewable"`
			Kind      string          `json:"token_type"`
		}
	}
	if err := decode(body, &got); err != nil {
		return granted{}, err
	}
	if got.Auth == nil {
		return granted{}, malformed()
	}
	return granted{plain(got.Auth.Token), seconds(got.Auth.TTL), got.Auth.Renewable, cmp.Or(got.Auth.Kind, "service")}, nil
}

// plain takes the quotes off a JSON string that needs no escapes, as tokens
// and ids are; anything else is nothing.
func plain(raw json.RawMessage) []byte {
	if len(raw) < 2 || raw[0] != '"' || bytes.ContainsRune(raw, '\\') || bytes.ContainsFunc(raw, notPrintable) {
		return nil
	}
	return raw[1 : len(raw)-1]
}

// seconds bounds a lease: a year is as good as for ever.
func seconds(n int64) time.Duration {
	const year = 365 * 24 * 3600
	return time.Duration(max(0, min(n, year))) * time.Second
}
