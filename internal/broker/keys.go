package broker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/keys"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
	"credentialbroker/providers"
)

const (
	fieldPrivateKey  = "private_key"
	fieldCertificate = "certificate"
	fieldKeyID       = "key_id"

	certificateLife = 2 * 365 * 24 * time.Hour // nobody checks a self-signed one's end but the portal that it is uploaded to
)

// Key gives the public half of the client's private_key, as it is in the
// secrets manager now.
func (b *Broker) Key(ctx context.Context, name string) (client.Key, error) {
	cl := b.clients.Load().byName[name]
	if cl == nil {
		return client.Key{}, noClient(name)
	}
	bundle, err := b.readBundle(ctx, cl)
	if err != nil {
		return client.Key{}, err
	}
	defer bundle.Wipe()
	if bundle.Fields[fieldPrivateKey].Empty() {
		return client.Key{}, &Error{Code: client.NotFound, Detail: fmt.Sprintf("the secret of %s has no private_key: broker keys new %s makes one", name, name)}
	}
	return cl.publicKey(bundle)
}

// NewKey makes a key pair. The private key goes into the secrets manager, and
// nowhere else.
func (b *Broker) NewKey(ctx context.Context, name string, want client.NewKey) (client.Key, error) {
	cl := b.clients.Load().byName[name]
	if cl == nil {
		return client.Key{}, noClient(name)
	}
	if !cl.wants(fieldPrivateKey) {
		return client.Key{}, &Error{Code: client.NotFound, Detail: name + " does not authenticate with a key: set client_auth: private_key_jwt first, and run broker reload"}
	}
	bundle, err := b.readBundle(ctx, cl)
	if err != nil {
		return client.Key{}, err
	}
	exists := !bundle.Fields[fieldPrivateKey].Empty()
	bundle.Wipe()
	if exists {
		return client.Key{}, &Error{Code: client.InvalidRequest, Detail: fmt.Sprintf(
			"%s has a private_key already, which the issuer may know: broker keys show %s prints its public half; to begin anew, remove the field in the secrets manager first", name, name)}
	}
	values, err := b.generate(name, want)
	if err != nil {
		return client.Key{}, err
	}
	defer wipeFields(values)
	b.uses.Add(1)
	version, err := providers.Store(ctx, cl.cfg.Provider, cl.cfg.Rotation.Spec, values)
	b.uses.Add(1)
	if err != nil {
		return client.Key{}, &Error{Code: client.ProviderUnavailable, RetryAfter: time.Minute, Err: err,
			Detail: "the secrets manager does not take the new key: " + err.Error()}
	}
	cl.cred.Wake()
	return cl.publicKey(providers.Bundle{Version: version, Fields: values})
}

// wants says whether the client's way of authentication needs a field.
func (c *cachedClient) wants(field string) bool {
	return c.cfg.Issuer != nil && slices.Contains(c.cfg.Issuer.Fields(), field)
}

// generate makes the fields that hold a new key.
func (b *Broker) generate(name string, want client.NewKey) (map[string]secret.Secret, error) {
	key, err := keys.Generate(want.Kind)
	if err != nil {
		return nil, &Error{Code: client.InvalidRequest, Detail: err.Error()}
	}
	private, err := key.PEM()
	if err != nil {
		return nil, err
	}
	values := map[string]secret.Secret{fieldPrivateKey: private}
	if want.Certificate {
		if want.Subject != "" {
			name = want.Subject
		}
		now := b.o.Clock.Now().Wall
		certificate, err := key.Certificate(name, now.Add(-time.Hour), now.Add(certificateLife))
		if err != nil {
			wipeFields(values)
			return nil, &Error{Code: client.InvalidRequest, Detail: err.Error()}
		}
		values[fieldCertificate] = secret.New(certificate)
	}
	return values, nil
}

// readBundle reads what there is, complete or not; nothing is no error.
func (b *Broker) readBundle(ctx context.Context, cl *cachedClient) (providers.Bundle, error) {
	b.uses.Add(1)
	bundle, err := providers.Load(ctx, cl.cfg.Provider, cl.cfg.Rotation.Spec, "")
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
	key, err := keys.Parse(bundle.Fields[fieldPrivateKey])
	if err != nil {
		return bad(fieldPrivateKey, err)
	}
	out := client.Key{Client: c.cfg.Name, Version: string(bundle.Version), KeyID: key.KeyID(), Algorithm: key.Algorithm()}
	if id := plain(bundle.Fields[fieldKeyID]); id != "" {
		out.KeyID = id
	}
	if pem := bundle.Fields[fieldCertificate]; !pem.Empty() {
		certificate, err := keys.CertificateOf(pem)
		if err != nil {
			return bad(fieldCertificate, err)
		}
		out.Certificate = plain(pem)
		if c.cfg.Issuer != nil && c.cfg.Issuer.Assertion.KeyID == "certificate" {
			out.KeyID, _ = keys.Thumbprints(certificate)
		}
	}
	out.JWK, err = key.Public(out.KeyID)
	return out, err
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
func (b *Broker) introspected(ctx context.Context, cl *cachedClient, h *held) (in oidc.Introspection, known bool, err error) {
	in, err = cl.issuer.Introspect(ctx, oidc.Material(h.live.Fields), h.token.Access)
	var e *oidc.Error
	if errors.As(err, &e) && e.Kind == oidc.Refused && e.Status == 0 {
		return in, false, nil
	}
	return in, true, err
}
