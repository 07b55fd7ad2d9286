package broker

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"credentialbroker/api/client"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/keys"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
	"credentialbroker/providers"
)

const (
	fieldPrivateKey  = "private_key"
	fieldCertificate = "certificate"
	fieldKeyID       = "key_id"

	writeTimeout = time.Minute // of a write that nobody waits for any more

	certificateLife = 2 * 365 * 24 * time.Hour // nobody checks a self-signed one's end but the portal that it is uploaded to
)

// Key gives the public half of the client's private_key, as it is in the
// secrets manager now.
func (b *Broker) Key(ctx context.Context, name string) (client.Key, error) {
	cl := b.clients.Load().byName[name]
	if cl == nil {
		return client.Key{}, noClient(name)
	}
	if !cl.wants(fieldPrivateKey) {
		return client.Key{}, noKeys(name)
	}
	bundle, err := b.readBundle(ctx, cl)
	if err != nil {
		return client.Key{}, err
	}
	defer bundle.Wipe()
	if bundle.Fields[fieldPrivateKey].Empty() {
		return client.Key{}, noKeyYet(name)
	}
	return cl.publicKeys(bundle)
}

// NewKey makes a key pair, or a certificate around the key that there is. The
// private key goes into the secrets manager, and nowhere else. A key that is
// there stays.
func (b *Broker) NewKey(ctx context.Context, name string, want client.NewKey) (client.Key, error) {
	cl := b.clients.Load().byName[name]
	switch {
	case cl == nil:
		return client.Key{}, noClient(name)
	case !cl.wants(fieldPrivateKey):
		return client.Key{}, noKeys(name)
	case cl.cfg.Issuer.ClientAuth == oidc.TLS && !want.Certificate:
		return client.Key{}, &Error{Code: client.InvalidRequest, Detail: "tls_client_auth needs a certificate of an authority that the issuer trusts: have one made, and store private_key and certificate together; " +
			"if the issuer takes a self-signed one, ask for it with --certificate"}
	}
	bundle, err := b.readBundle(ctx, cl)
	if err != nil {
		return client.Key{}, err
	}
	defer bundle.Wipe()
	want.Certificate = want.Certificate || cl.wants(fieldCertificate)
	values, err := b.generate(cl, want, bundle)
	if err != nil {
		return client.Key{}, err
	}
	defer wipeFields(values)
	b.uses.Add(1)
	version, err := providers.Store(ctx, cl.writer(), cl.cfg.Rotation.Spec, values, providers.Absent)
	b.uses.Add(1)
	if err != nil {
		return client.Key{}, unwritten(err)
	}
	cl.cred.Wake()
	fields := maps.Clone(bundle.Fields)
	if fields == nil {
		fields = map[string]secret.Secret{}
	}
	maps.Copy(fields, values)
	return cl.publicKey(providers.Bundle{Version: version, Fields: fields})
}

// write stores values over the version that was seen, with the login that may,
// and records it as act. Who asked for it may have left: what the manager has
// taken is recorded all the same.
func (b *Broker) write(ctx context.Context, cl *cachedClient, values map[string]secret.Secret, over providers.Version, act string, detail map[string]string) (providers.Version, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	b.uses.Add(1)
	version, err := providers.Replace(ctx, cl.writer(), cl.cfg.Rotation.Spec, values, over)
	b.uses.Add(1)
	if err != nil {
		return "", unwritten(err)
	}
	detail["replaces"] = string(over)
	b.o.Audit.Note(audit.Event{Type: audit.AdminAct, Code: act, Client: cl.cfg.Name, Version: string(version), Detail: detail})
	cl.cred.Wake()
	return version, nil
}

// unwritten maps what a secrets manager says to a write.
func unwritten(err error) *Error {
	out := &Error{Code: client.ProviderUnavailable, RetryAfter: time.Minute, Err: err, Detail: "the secrets manager did not take it: " + err.Error()}
	switch providers.KindOf(err) {
	case providers.Conflict:
		out.RetryAfter = time.Second
	case providers.Denied, providers.LoginFailed:
		out.Code, out.RetryAfter = client.CredentialsRejected, 0
		out.Detail += "; the login that writes needs the permission (write: names one; docs/providers.md)"
	case providers.Unsupported, providers.Malformed:
		out.Code, out.RetryAfter = client.InvalidRequest, 0
	case providers.NotFound, providers.Throttled, providers.Unavailable, providers.Disabled, providers.Deleted, providers.Expired, providers.NotYetValid:
	}
	return out
}

func noKeys(name string) error {
	return &Error{Code: client.NotFound, Detail: name + " does not authenticate with a key of its own: its client_auth, or its grant, is another"}
}

// generate makes the fields that are to be stored.
func (b *Broker) generate(cl *cachedClient, want client.NewKey, have providers.Bundle) (map[string]secret.Secret, error) {
	values := map[string]secret.Secret{}
	key, err := cl.keyOf(have)
	if errors.Is(err, errNoKey) {
		if key, err = keys.Generate(cmp.Or(want.Kind, cl.kind())); err == nil {
			if err = key.Use(cl.signs()); err != nil {
				err = fmt.Errorf("assertion.algorithm of the client: %w: choose another --kind", err)
			}
		}
		if err == nil {
			values[fieldPrivateKey], err = key.PEM()
		}
	} else if err == nil && (!want.Certificate || !have.Fields[fieldCertificate].Empty()) {
		err = fmt.Errorf("%s has a private_key already, which the issuer may know: broker keys show %[1]s prints its public half; broker keys rotate %[1]s replaces it", cl.cfg.Name)
	}
	if err == nil && want.Certificate {
		now := b.o.Clock.Now().Wall
		var certificate []byte
		if certificate, err = key.Certificate(cmp.Or(want.Subject, cl.cfg.Name), now.Add(-time.Hour), now.Add(certificateLife)); err == nil {
			values[fieldCertificate] = secret.New(certificate)
		}
	}
	if err != nil {
		wipeFields(values)
		return nil, &Error{Code: client.InvalidRequest, Detail: err.Error()}
	}
	return values, nil
}

var errNoKey = errors.New("no private_key")

// keyOf is the key of a bundle.
func (c *cachedClient) keyOf(bundle providers.Bundle) (*keys.Private, error) {
	s := bundle.Fields[fieldPrivateKey]
	if s.Empty() {
		return nil, errNoKey
	}
	key, err := keys.Parse(s)
	if err == nil {
		err = key.Use(c.signs())
	}
	return key, err
}

// signs is the algorithm that the client's key has to sign with; empty: the
// key's own.
func (c *cachedClient) signs() string {
	if c.cfg.Issuer == nil || strings.HasPrefix(c.cfg.Issuer.Assertion.Algorithm, "HS") { // of a shared secret
		return ""
	}
	return c.cfg.Issuer.Assertion.Algorithm
}

// kind is the kind of key to make where none is asked for.
func (c *cachedClient) kind() string {
	switch c.signs() {
	case "ES256":
		return "p-256"
	case "EdDSA":
		return "ed25519"
	}
	return ""
}

// wants says whether the client's way of authentication needs a field.
func (c *cachedClient) wants(field string) bool {
	return c.cfg.Issuer != nil && slices.Contains(c.cfg.Issuer.Fields(), field)
}

// readBundle reads what there is, complete or not; nothing is no error.
func (b *Broker) readBundle(ctx context.Context, cl *cachedClient) (providers.Bundle, error) {
	return b.readFrom(ctx, cl, cl.cfg.Provider)
}

func (b *Broker) readFrom(ctx context.Context, cl *cachedClient, p providers.Provider) (providers.Bundle, error) {
	b.uses.Add(1)
	bundle, err := providers.Load(ctx, p, cl.cfg.Rotation.Spec, "")
	b.uses.Add(1)
	if kind := providers.KindOf(err); kind != "" && kind != providers.NotFound {
		return providers.Bundle{}, &Error{Code: client.ProviderUnavailable, RetryAfter: 30 * time.Second, Err: err,
			Detail: "the secrets manager gave no credentials: " + err.Error()}
	}
	return bundle, nil
}

// publicKey describes the key of a bundle; nothing of it is secret.
func (c *cachedClient) publicKey(bundle providers.Bundle) (client.Key, error) {
	bad := func(field string, err error) (client.Key, error) {
		return client.Key{}, &Error{Code: client.CredentialsRejected, Detail: fmt.Sprintf("%s of %s cannot be used: %v", field, c.cfg.Name, err), Err: err}
	}
	key, err := c.keyOf(bundle)
	if err != nil {
		return bad(fieldPrivateKey, err)
	}
	out := client.Key{Client: c.cfg.Name, Version: string(bundle.Version), KeyID: key.KeyID(), Algorithm: key.Algorithm()}
	if id := plain(bundle.Fields[fieldKeyID]); id != "" {
		if !printable(id) {
			return bad(fieldKeyID, errors.New("a name of a key has at most 255 characters, all of which show"))
		}
		out.KeyID = id
	}
	if stored := bundle.Fields[fieldCertificate]; !stored.Empty() {
		certificate, err := keys.CertificateOf(stored)
		if err != nil {
			return bad(fieldCertificate, err)
		}
		// What is around it may be anything.
		out.Certificate = string(encode(certificate))
		if c.cfg.Issuer != nil && c.cfg.Issuer.Assertion.KeyID == "certificate" {
			out.KeyID, _ = keys.Thumbprints(certificate)
		}
	}
	for _, name := range c.cfg.Rotation.Required {
		if bundle.Fields[name].Empty() {
			out.Missing = append(out.Missing, name)
		}
	}
	out.JWK, err = key.Public(out.KeyID)
	return out, err
}

// printable says whether text of a secrets manager may go to a terminal and into
// records.
func printable(s string) bool {
	return len(s) <= 255 && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

func encode(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// plain is a field that is no secret.
func plain(s secret.Secret) (text string) {
	_ = s.Use(func(b []byte) error { text = string(b); return nil })
	return text
}

func wipeFields(m map[string]secret.Secret) {
	for _, s := range m {
		s.Wipe()
	}
}

// introspected asks the issuer about a token that is in hand; known is false
// if it cannot be asked.
func (b *Broker) introspected(ctx context.Context, cl *cachedClient, token secret.Secret) (in oidc.Introspection, known bool, err error) {
	err = cl.cred.Authenticated(ctx, func(ctx context.Context, m oidc.Material) error {
		var err error
		in, err = cl.issuer.Introspect(ctx, m, token)
		return err
	})
	var e *oidc.Error
	if errors.As(err, &e) && e.Kind == oidc.Refused && e.Status == 0 {
		return in, false, nil
	}
	return in, true, err
}
