package broker

import (
	"context"
	"errors"
	"fmt"

	"credentialbroker/api/client"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
)

// Rules of this file: a token that somebody found goes to no issuer, unless an
// administrator names the client; and nothing is tried there that may count as
// a failed authentication of a client in doubt.

// A Stray is a token that an issuer gave to one of the clients, wherever that
// was.
type Stray struct {
	oidc.Statement
	Client string // its name here
	Hosts  int    // how many hosts use the client; at least 1
	Local  bool   // signed by a broker itself, with the client's secret
	Says   string // what shows it, for people
}

// Vouch says which client a token was issued to, as shown by the issuer's
// signature, or, where a client is named, by its issuer's introspection. An
// error is an *Error of code NotFound that says why nothing shows it.
func (b *Broker) Vouch(ctx context.Context, token secret.Secret, name string) (Stray, error) {
	set := b.clients.Load()
	if name != "" && set.byName[name] == nil {
		return Stray{}, noClient(name)
	}
	var claimed string
	var jwt bool
	if err := token.Use(func(t []byte) error { claimed, jwt = oidc.Names(t); return nil }); err != nil {
		return Stray{}, err
	}
	why := errors.New("it is no JWT: to ask a client's issuer about it, name the client: broker whois --client NAME")
	if jwt {
		why = errors.New("it names no client of this host")
		for _, n := range set.names {
			cl := set.byName[n]
			switch id := cl.id(); {
			case name != "" && n != name || cl.issuer == nil || claimed == "":
			case id == "":
				why = fmt.Errorf("it names no client of this host whose secret was read, and that of %s was not yet: ask again", n)
			case id == claimed:
				stray, err := b.signedFor(ctx, cl, token)
				if err == nil {
					return stray, nil
				}
				why = err
			}
		}
	}
	if name != "" && (!jwt || oidc.KindOf(why) == oidc.Refused && set.byName[name].issuer != nil && !set.byName[name].issuer.Verifies()) {
		stray, err := b.introspectedFor(ctx, set.byName[name], token)
		if err == nil {
			return stray, nil
		}
		why = err
	}
	var e *Error
	if errors.As(why, &e) {
		return Stray{}, e
	}
	return Stray{}, &Error{Code: client.NotFound, Detail: why.Error()}
}

// id is the client's public identifier; empty: it is not known yet.
func (c *cachedClient) id() (id string) {
	if live := c.cred.Current(); live != nil {
		_ = live.Fields["client_id"].Use(func(b []byte) error { id = string(b); return nil })
	}
	return id
}

func (c *cachedClient) stray(s oidc.Statement, says string) Stray {
	return Stray{Statement: s, Client: c.cfg.Name, Hosts: max(c.cfg.Rotation.Hosts, 1), Local: c.issuer.Local(), Says: says}
}

// signedFor looks at a JWT's signature.
func (b *Broker) signedFor(ctx context.Context, cl *cachedClient, token secret.Secret) (stray Stray, err error) {
	live := cl.cred.Current()
	b.uses.Add(1)
	defer b.uses.Add(1)
	says := "its signature is the issuer's"
	if cl.issuer.Local() {
		says = "it is signed with the client's secret"
	}
	err = token.Use(func(t []byte) error {
		s, err := cl.issuer.Vouch(ctx, oidc.Material(live.Fields), t)
		stray = cl.stray(s, says)
		return err
	})
	return stray, err
}

// introspectedFor asks the client's issuer, as a client that works.
func (b *Broker) introspectedFor(ctx context.Context, cl *cachedClient, token secret.Secret) (Stray, error) {
	refuse := func(format string, args ...any) (Stray, error) {
		return Stray{}, &Error{Code: client.NotFound, Detail: fmt.Sprintf(format, args...)}
	}
	name := cl.cfg.Name
	switch {
	case cl.issuer == nil:
		return refuse("%s has an API key and no tokens", name)
	case cl.issuer.Local():
		return refuse("the tokens of %s are JWTs, which nobody keeps", name)
	case !cl.cred.Status().Works:
		return refuse("whether the secret of %s works is not known now, so that its issuer is not asked", name)
	}
	in, known, err := b.introspected(ctx, cl, token)
	switch {
	case err != nil:
		return refuse("the issuer of %s cannot be asked about it: %s", name, detail(err))
	case !known:
		return refuse("the issuer of %s does not tell about tokens (introspection_endpoint)", name)
	case !in.Active:
		return refuse("the issuer of %s says that it is not active, or not for this client to know", name)
	case in.ClientID == "" || in.ClientID != cl.id():
		return refuse("the issuer says that it is active, and not that it is of %s", name)
	}
	return cl.stray(oidc.Statement{ClientID: in.ClientID, Scope: in.Scope, Issued: in.Issued, Expires: in.Expires}, "its issuer says that it is active"), nil
}
