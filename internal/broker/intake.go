package broker

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"

	"credentialbroker/api/client"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/rotation"
)

// Rules of this file:
//   - nothing is stored before it is proved, or an administrator has said that
//     it may be stored unproved; what the issuer has refused is stored never;
//   - what is proved is the version as it will be: the given fields beside those
//     that are there. If another version is there meanwhile, nothing is written.

// An Intake is what an administrator brings of an issuer's mail.
type Intake struct {
	Fields map[string]secret.Secret // by name; the caller wipes them
	Accept bool                     // store them even unproved
}

// Brought says whether a field is one that an issuer sends. Keys are made here:
// nobody brings them.
func Brought(field string) bool {
	return slices.Contains([]string{"client_id", "client_secret", "api_key"}, field)
}

// Intake proves new values of a client's secret, and stores them if there are
// write credentials for its secrets manager. Kind of the answer is left to the
// caller.
func (b *Broker) Intake(ctx context.Context, name string, in Intake) (client.Intake, error) {
	defer b.SecretUsed()
	cl := b.clients.Load().byName[name]
	if cl == nil {
		return client.Intake{}, noClient(name)
	}
	if other := b.hasID(cl, in.Fields["client_id"]); other != "" {
		return client.Intake{}, &Error{Code: client.InvalidRequest, Detail: "this is the client_id of the client " + other +
			": a wrong secret would count against it; name that client, or see that the file is the right one"}
	}
	have, err := b.readFrom(ctx, cl, cl.writer())
	if err != nil {
		return client.Intake{}, err
	}
	defer have.Wipe()
	out := client.Intake{Client: name, Provider: cl.cfg.ProviderName, Secret: placesOf(cl.cfg.Rotation.Spec), Replaces: string(have.Version)}
	merged := maps.Clone(have.Fields)
	if merged == nil {
		merged = map[string]secret.Secret{}
	}
	for _, field := range slices.Sorted(maps.Keys(in.Fields)) {
		if !have.Fields[field].Equal(in.Fields[field]) {
			out.Changed = append(out.Changed, field)
		}
		merged[field] = in.Fields[field]
	}
	for _, field := range cl.cfg.Rotation.Required {
		if merged[field].Empty() {
			out.Missing = append(out.Missing, field)
		}
	}
	if len(out.Changed) == 0 {
		out.Version = out.Replaces
		return out, nil
	}
	var how rotation.Prove
	out.Unproved = cl.unproved(out.Changed, len(out.Missing) == 0)
	replaces := slices.ContainsFunc(out.Unproved, func(field string) bool { return !have.Fields[field].Empty() })
	if len(out.Unproved) < len(out.Changed) || !replaces { // else what works would go for what nothing has shown to work
		how, err = cl.cred.Try(ctx, "intake", merged)
	}
	if out.Unprovable, err = mayStore(how, err, in.Accept); err != nil {
		return client.Intake{}, err
	}
	out.Proved = string(how)
	if cl.cfg.Writer == nil {
		return out, nil
	}
	return out, b.storeIntake(ctx, cl, in.Fields, &out)
}

// hasID names another client of the same issuer that has a client_id, which
// this one has not; empty: none has.
func (b *Broker) hasID(cl *cachedClient, id secret.Secret) string {
	live := cl.cred.Current()
	if id.Empty() || cl.issuer == nil || live != nil && live.Fields["client_id"].Equal(id) {
		return ""
	}
	all := b.clients.Load()
	for _, name := range all.names {
		other := all.byName[name]
		if other == cl || other.issuer == nil || issuerName(other.cfg.Issuer) != issuerName(cl.cfg.Issuer) {
			continue
		}
		if live := other.cred.Current(); live != nil && live.Fields["client_id"].Equal(id) {
			return name
		}
	}
	return ""
}

// unproved are those of the changed fields that a proof does not make use of:
// a token endpoint sees no API key.
func (c *cachedClient) unproved(changed []string, complete bool) (list []string) {
	if c.cfg.Probe != nil && complete {
		return nil
	}
	for _, field := range changed {
		if c.issuer == nil || !slices.Contains(c.cfg.Issuer.Fields(), field) {
			list = append(list, field)
		}
	}
	return list
}

// mayStore judges the outcome of a trial.
func mayStore(how rotation.Prove, err error, accept bool) (unprovable bool, _ error) {
	const byHand = "; --accept stores it all the same, on your word"
	var e *rotation.Error
	switch {
	case err == nil && how != "":
		return false, nil
	case err == nil && accept:
		return true, nil
	case err == nil:
		return true, &Error{Code: client.CredentialsRejected, Detail: "nothing can prove these credentials, and nothing was stored: compare them with what the issuer sent" + byHand}
	case !errors.As(err, &e):
		return false, explain(err)
	case e.Kind == rotation.StateUnwritable || e.Kind == rotation.Rejected && e.RetryAfter == 0: // judged
	case accept:
		return e.Kind == rotation.LoginRequired || e.Kind == rotation.RequestRefused, nil
	}
	told := explain(err)
	var out *Error
	if !errors.As(told, &out) {
		return false, told
	}
	switch e.Kind {
	case rotation.Rejected, rotation.StateUnwritable:
		out.Detail += "; nothing was stored"
	case rotation.LoginRequired: // the login comes after the credentials
		out.Detail = "these credentials are proved when a person logs in with them (broker login " + e.Client + "), and nothing was stored" + byHand
	case rotation.RequestRefused, rotation.Protocol, rotation.NoBundle, rotation.Unavailable:
		out.Detail = "not proved, and nothing was stored: " + out.Detail + byHand
	}
	return false, out
}

// storeIntake writes what was proved, and has it taken at once.
func (b *Broker) storeIntake(ctx context.Context, cl *cachedClient, values map[string]secret.Secret, out *client.Intake) error {
	version, err := b.write(ctx, cl, values, providers.Version(out.Replaces), "intake.stored", map[string]string{"proved": out.Proved, "fields": strings.Join(out.Changed, " ")})
	if err != nil {
		return err
	}
	out.Stored, out.Version = true, string(version)
	// What does not succeed now is tried again by itself: the version is there.
	_, _ = b.Rotate(ctx, cl.cfg.Name, Rotation{Accept: out.Unprovable})
	return nil
}

// writer is the secrets manager with the login that may write, if there is one.
func (c *cachedClient) writer() providers.Provider {
	if c.cfg.Writer != nil {
		return c.cfg.Writer
	}
	return c.cfg.Provider
}

// placesOf names the secrets of a client.
func placesOf(s providers.Spec) string {
	var names []string
	for _, r := range s.Refs() {
		names = append(names, r.String())
	}
	return strings.Join(names, " + ")
}
