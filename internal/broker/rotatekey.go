package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/keys"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
	"credentialbroker/providers"
	"credentialbroker/rotation"
)

// Rules of this file:
//   - all that a rotation knows is in the secrets manager, beside the key that it
//     replaces: it goes on from wherever it was interrupted, on any host;
//   - a step writes one version, over the version that it has looked at: if
//     somebody else has stored one meanwhile, nothing is written;
//   - the old key serves until the issuer has given a token for the new one.

const (
	pendingPrivateKey  = rotation.Pending + fieldPrivateKey
	pendingCertificate = rotation.Pending + fieldCertificate
	pendingKeyID       = rotation.Pending + fieldKeyID // always there, so that nobody needs the key to name it

	keyPause = 65 * time.Second // between two questions to the issuer about one key: many keep what is published for a minute
)

// RotateKey takes the rotation of a client's key one step on: it makes a
// pending key, if there is none; or, with Probe, asks the issuer about it, and
// makes it the key if the issuer takes it; or, with Abandon, gives it up. Each
// step may be repeated.
func (b *Broker) RotateKey(ctx context.Context, name string, want client.KeyRotation) (client.RotatedKey, error) {
	cl, err := b.rotatable(name, want)
	if err != nil {
		return client.RotatedKey{}, err
	}
	bundle, err := b.readBundle(ctx, cl)
	if err != nil {
		return client.RotatedKey{}, err
	}
	defer bundle.Wipe()
	if bundle.Fields[fieldPrivateKey].Empty() {
		return client.RotatedKey{}, noKeyYet(name)
	}
	if want.Abandon {
		return b.abandonKey(ctx, cl, bundle)
	}
	now, err := cl.publicKeys(bundle)
	switch {
	case err != nil:
		return client.RotatedKey{}, err
	case !want.Probe:
		return b.pendKey(ctx, cl, bundle, now, want)
	case now.Pending == nil:
		return client.RotatedKey{State: client.KeyRotated, Key: now, Reason: "no rotation is under way: this is the key that " + name + " has"}, nil
	}
	return b.probeKey(ctx, cl, bundle, now)
}

// rotatable finds a client whose key can be replaced here.
func (b *Broker) rotatable(name string, want client.KeyRotation) (*cachedClient, error) {
	refuse := func(format string, args ...any) (*cachedClient, error) {
		return nil, &Error{Code: client.InvalidRequest, Detail: fmt.Sprintf(format, args...)}
	}
	cl := b.clients.Load().byName[name]
	switch {
	case cl == nil:
		return nil, noClient(name)
	case !cl.wants(fieldPrivateKey):
		return nil, noKeys(name)
	case want.Abandon:
		return cl, nil
	case cl.cfg.Issuer.ClientAuth == oidc.TLS && !want.Certificate && !want.Probe:
		return refuse("tls_client_auth needs a certificate of an authority that the issuer trusts: have one made for a new key, and store private_key and certificate together as one new version, " +
			"which is proved before it serves; if the issuer takes a self-signed one, ask for it with --certificate")
	case cl.cred.Status().Pinned != "":
		return refuse("version %s of the secret of %s is pinned, and a new key is another version: broker rotate %[2]s --latest takes the pin away", cl.cred.Status().Pinned, name)
	}
	for _, field := range []string{fieldPrivateKey, fieldCertificate, fieldKeyID} {
		if !inMainSecret(cl.cfg.Rotation.Spec, field) {
			return refuse("%s of %s is in a secret of its own, where a pending key has no place beside it: %s", field, name, keyByHand)
		}
	}
	return cl, nil
}

const keyByHand = "make the new key elsewhere, give the issuer its public half, and store it in the place of the old one; the new version is proved before it serves"

func noKeyYet(name string) error {
	return &Error{Code: client.NotFound, Detail: fmt.Sprintf("the secret of %s has no private_key: broker keys new %s makes one", name, name)}
}

// inMainSecret says whether a field is in the secret that the other fields are
// in, unless they are placed elsewhere.
func inMainSecret(s providers.Spec, field string) bool {
	one := providers.Spec{Ref: s.Ref}
	if f, placed := s.Fields[field]; placed {
		one.Fields = map[string]providers.Field{field: f}
	}
	return s.Path != "" && !one.Gathered()
}

// pendKey makes the pending key, or finds it.
func (b *Broker) pendKey(ctx context.Context, cl *cachedClient, bundle providers.Bundle, now client.Key, want client.KeyRotation) (client.RotatedKey, error) {
	out := client.RotatedKey{State: client.KeyPending, Old: now.KeyID, Reason: "the key waits for the issuer to know it"}
	var values map[string]secret.Secret
	var err error
	switch {
	case now.Pending == nil:
		values, err = b.nextKey(cl, bundle, want)
		out.RetryAfter = seconds(keyPause) // nobody can have uploaded it yet
	case want.KeyID != "" && want.KeyID != now.Pending.KeyID: // an issuer may name a key when it has it
		values = map[string]secret.Secret{pendingKeyID: secret.FromString(want.KeyID)}
		fallthrough
	default:
		err = cl.contradicts(bundle, now.Pending, want)
	}
	defer wipeFields(values)
	if err != nil {
		return client.RotatedKey{}, err
	}
	if len(values) > 0 {
		version, err := b.storeKey(ctx, cl, values, bundle.Version, "keys.pending")
		if err != nil {
			return client.RotatedKey{}, err
		}
		cl.cred.Wake()
		fields := maps.Clone(bundle.Fields)
		maps.Copy(fields, values)
		if now, err = cl.publicKeys(providers.Bundle{Version: version, Fields: fields}); err != nil {
			return client.RotatedKey{}, err
		}
	}
	out.Key = *now.Pending
	return out, nil
}

// nextKey makes the fields of a pending key: of the kind that the present one
// has, and with a certificate if that has one.
func (b *Broker) nextKey(cl *cachedClient, bundle providers.Bundle, want client.KeyRotation) (map[string]secret.Secret, error) {
	present, err := cl.keyOf(bundle)
	if err != nil {
		return nil, err
	}
	k := want.NewKey
	k.Kind = cmp.Or(k.Kind, present.Kind())
	k.Certificate = k.Certificate || cl.wants(fieldCertificate) || !bundle.Fields[fieldCertificate].Empty()
	made, err := b.generate(cl, k, providers.Bundle{})
	if err != nil {
		return nil, err
	}
	public, err := cl.publicKey(providers.Bundle{Fields: made})
	if err != nil {
		wipeFields(made)
		return nil, err
	}
	values := map[string]secret.Secret{pendingKeyID: secret.FromString(cmp.Or(want.KeyID, public.KeyID))}
	for name, v := range made {
		values[rotation.Pending+name] = v
	}
	return values, nil
}

// contradicts says if the pending key is not what is asked for.
func (c *cachedClient) contradicts(bundle providers.Bundle, pending *client.Key, want client.KeyRotation) error {
	key, err := keys.Parse(bundle.Fields[pendingPrivateKey])
	if err != nil {
		return err
	}
	flag := ""
	switch {
	case want.Kind != "" && want.Kind != key.Kind():
		flag = "--kind " + want.Kind
	case want.Certificate && pending.Certificate == "":
		flag = "--certificate"
	case want.Subject != "":
		if certificate, err := keys.CertificateOf(bundle.Fields[pendingCertificate]); err != nil || certificate.Subject.CommonName != want.Subject {
			flag = "--subject " + want.Subject
		}
	}
	if flag == "" {
		return nil
	}
	return &Error{Code: client.InvalidRequest, Detail: fmt.Sprintf("a key waits already (%s, %s), and %s asks for another: go on without that, or give the key up with broker keys rotate %s --abandon",
		pending.KeyID, key.Kind(), flag, c.cfg.Name)}
}

// abandonKey removes the pending key, be it usable or not.
func (b *Broker) abandonKey(ctx context.Context, cl *cachedClient, bundle providers.Bundle) (client.RotatedKey, error) {
	out := client.RotatedKey{State: client.KeyAbandoned, Reason: "there is no pending key: nothing has changed"}
	values := map[string]secret.Secret{}
	for name := range bundle.Fields {
		if strings.HasPrefix(name, rotation.Pending) {
			values[name] = secret.Secret{}
		}
	}
	if len(values) > 0 {
		version, err := b.storeKey(ctx, cl, values, bundle.Version, "keys.abandoned")
		if err != nil {
			return client.RotatedKey{}, err
		}
		cl.cred.Wake()
		bundle.Version, out.Reason = version, "the pending key is given up: if the issuer has it, remove it there"
	}
	var err error
	out.Key, err = cl.publicKey(bundle)
	return out, err
}

// probeKey asks the issuer, and makes the pending key the key if it takes it.
func (b *Broker) probeKey(ctx context.Context, cl *cachedClient, bundle providers.Bundle, now client.Key) (client.RotatedKey, error) {
	out := client.RotatedKey{State: client.KeyPending, Key: *now.Pending, Old: now.KeyID}
	values, then, err := cl.promoted(bundle.Fields)
	if err != nil {
		return client.RotatedKey{}, err
	}
	defer values[fieldKeyID].Wipe() // the others are the bundle's
	how, err := cl.cred.Try(ctx, "pending-key."+now.Pending.KeyID, then)
	if waits := notTaken(err); waits != nil {
		out.RetryAfter, out.Reason = seconds(max(waits.RetryAfter, keyPause)), "the issuer does not take the new key yet ("+waits.Code+")"
		if waits.RetryAfter > 0 {
			out.Reason = waits.Detail
		}
		return out, nil
	}
	if err != nil {
		return client.RotatedKey{}, explain(err)
	}
	if how == "" {
		return client.RotatedKey{}, &Error{Code: client.InvalidRequest, Detail: "nothing can show that the issuer takes the new key, because the client cannot be proved (prove): give the pending key up with --abandon; " + keyByHand}
	}
	version, err := b.storeKey(ctx, cl, values, bundle.Version, "keys.rotated")
	if err != nil {
		return client.RotatedKey{}, err
	}
	out.State, out.Reason = client.KeyRotated, "the issuer takes the new key, and it serves"
	if err := cl.cred.CheckNow(ctx); err != nil || cl.cred.Status().Version != version {
		out.Reason = "the issuer takes the new key, and the secrets manager has it; it serves as soon as that can be read"
		cl.cred.Wake()
	}
	for _, e := range cl.all() {
		b.sched.at(e, b.o.Clock.Now())
	}
	if cl.cfg.Rotation.Hosts > 1 {
		out.Reason += "; the other hosts prove and take it by themselves: keep the old one at the issuer until broker status shows version " + string(version) + " on each"
	}
	out.Key, err = cl.publicKey(providers.Bundle{Version: version, Fields: then})
	return out, err
}

// notTaken is the refusal of a key that the issuer does not know yet, or that
// it cannot be asked about so soon; nil: the outcome is another.
func notTaken(err error) *rotation.Error {
	var e *rotation.Error
	if errors.As(err, &e) && e.Kind == rotation.Rejected && e.Code != "" && e.Code != "unusable" {
		return e
	}
	return nil
}

// storeKey writes over a version that was looked at, and records what the
// secrets manager has then.
func (b *Broker) storeKey(ctx context.Context, cl *cachedClient, values map[string]secret.Secret, over providers.Version, act string) (providers.Version, error) {
	version, err := b.write(ctx, cl, values, over, act, map[string]string{})
	var e *Error
	if errors.As(err, &e) && e.Code == client.InvalidRequest {
		e.Detail = "the pending key cannot be stored: " + e.Err.Error() + "; or do it by hand: " + keyByHand
	}
	return version, err
}

// promoted gives what makes the pending key the key, as Replace wants it, and
// the fields as they are then. key_id of them is the caller's to wipe; the
// rest is as fields has it.
func (c *cachedClient) promoted(fields map[string]secret.Secret) (values, then map[string]secret.Secret, err error) {
	values = map[string]secret.Secret{fieldPrivateKey: fields[pendingPrivateKey]}
	if certificate := fields[pendingCertificate]; !certificate.Empty() {
		values[fieldCertificate] = certificate
	}
	own, err := c.publicKey(providers.Bundle{Fields: values})
	if err != nil {
		return nil, nil, &Error{Code: client.CredentialsRejected, Err: err, Detail: fmt.Sprintf("of the pending key, %s: give it up with broker keys rotate %s --abandon", err.Error(), c.cfg.Name)}
	}
	// The issuer's own name is kept; and the old key's does not stay.
	if id := cmp.Or(plain(fields[pendingKeyID]), own.KeyID); id != own.KeyID || !fields[fieldKeyID].Empty() {
		values[fieldKeyID] = secret.FromString(id)
	}
	then = maps.Clone(fields)
	maps.Copy(then, values)
	for name := range fields {
		if strings.HasPrefix(name, rotation.Pending) {
			values[name] = secret.Secret{}
			delete(then, name)
		}
	}
	return values, then, nil
}

// publicKeys is publicKey, with the key that is pending.
func (c *cachedClient) publicKeys(bundle providers.Bundle) (client.Key, error) {
	out, err := c.publicKey(bundle)
	if err != nil || bundle.Fields[pendingPrivateKey].Empty() {
		return out, err
	}
	values, then, err := c.promoted(bundle.Fields)
	if err != nil {
		return client.Key{}, err
	}
	defer values[fieldKeyID].Wipe()
	pending, err := c.publicKey(providers.Bundle{Version: bundle.Version, Fields: then})
	out.Pending = &pending
	return out, err
}

// seconds are whole ones, rounded up.
func seconds(d time.Duration) int64 { return int64((d + time.Second - 1) / time.Second) }
