package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"os"
	"reflect"
	"slices"

	"credentialbroker/configs"
	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/outbound"
	"credentialbroker/internal/proxy"
	"credentialbroker/oidc"
	"credentialbroker/providers"
	"credentialbroker/rotation"
)

// opened is a configuration with its secrets managers.
type opened struct {
	config    *configs.Config
	providers map[string]providers.Provider
}

// open opens the providers of c; those that are configured as in old are taken
// from there.
func open(c *configs.Config, old *opened, clk clock.Clock) (*opened, error) {
	o := &opened{config: c, providers: map[string]providers.Provider{}}
	for _, name := range slices.Sorted(maps.Keys(c.Providers)) {
		if old != nil && reflect.DeepEqual(old.config.Providers[name], c.Providers[name]) {
			o.providers[name] = old.providers[name]
			continue
		}
		p, err := c.Providers[name].Open(clk)
		if err != nil {
			o.close(old)
			return nil, fmt.Errorf("provider %s: %w", name, err)
		}
		o.providers[name] = p
	}
	return o, nil
}

// close closes the providers of o that other does not use.
func (o *opened) close(other *opened) {
	for name, p := range o.providers {
		if other == nil || other.providers[name] != p {
			_ = p.Close()
		}
	}
}

// clients are the configuration as the broker takes it. Clients that reach
// their issuers in the same way share a transport, and the certificate
// authorities that it holds.
func (o *opened) clients() ([]broker.Client, error) {
	var list []broker.Client
	transports := map[outbound.Config]*outbound.Exchange{}
	for _, name := range slices.Sorted(maps.Keys(o.config.Clients)) {
		c := o.config.Clients[name]
		if transports[c.Config] == nil {
			t, err := c.Exchange()
			if err != nil {
				return nil, fmt.Errorf("client %s: %w", name, err)
			}
			transports[c.Config] = t
		}
		b := o.client(name, c, transports[c.Config])
		if c.CAFile != "" {
			pem, err := os.ReadFile(c.CAFile)
			if err != nil {
				return nil, fmt.Errorf("client %s: ca_file: %w", name, err)
			}
			sum := sha256.Sum256(pem)
			b.Trust = hex.EncodeToString(sum[:])
		}
		list = append(list, b)
	}
	return list, nil
}

func (o *opened) client(name string, c configs.Client, transport *outbound.Exchange) broker.Client {
	b := broker.Client{
		Name: name, Provider: o.providers[c.Secret.Provider], ProviderName: c.Secret.Provider,
		Writer: o.providers[o.config.Providers[c.Secret.Provider].Write], // nil: none is named
		Allow:  c.Allow, Limits: access.Limits{Scopes: c.Scopes, Audiences: c.Audiences},
		Default:  oidc.Request{Scope: c.Scope, Audience: c.Audience, Resource: c.Resource},
		KeepWarm: c.KeepWarm, Owner: broker.Owner{Contact: c.Owner.Contact, Purpose: c.Owner.Purpose},
		KeyRejected: c.KeyRejected, Transport: transport, Proxied: len(c.ReverseProxy) > 0,
		Rotation: rotation.Config{Spec: c.Secret.Spec, Required: c.Required(), Hosts: c.Hosts, OneSecret: c.Secrets == "one", Prove: rotation.Prove(c.Prove),
			AcceptUnproved: c.Rotation.Accept == "unproved", MaxAge: c.Rotation.MaxAge.D(), Poll: c.Rotation.Poll.D(), Settle: c.Rotation.Settle.D()},
	}
	for _, h := range slices.Sorted(maps.Keys(c.Headers)) {
		if v := c.Headers[h]; v != "" {
			b.Headers = append(b.Headers, broker.Header{Name: h, Value: v})
		}
	}
	if c.Grant != oidc.NoGrant {
		p := c.Profile
		b.Issuer = &p
	}
	if c.Probe.URL != "" {
		b.Probe = &broker.Probe{Method: cmp.Or(c.Probe.Method, http.MethodGet), URL: c.Probe.URL, Transport: transport}
	}
	if o.config.Copied(c) {
		b.Keeper, _ = o.providers[o.config.BrownOut.Provider].(rotation.Keeper) // the store of kind file is one
		b.Rotation.KeepFor = o.config.BrownOut.MaxAge.D()
	}
	if r := c.Refresh; r != nil {
		b.RefreshProvider = o.providers[r.Provider]
		b.Rotation.Refresh = &rotation.Refresh{Provider: r.Provider, Ref: r.Ref, Owner: cmp.Or(r.Owner, hostName())}
	}
	return b
}

// routes are the reverse proxy's.
func (o *opened) routes() (list []proxy.Route) {
	for _, name := range slices.Sorted(maps.Keys(o.config.Clients)) {
		for _, r := range o.config.Clients[name].ReverseProxy {
			list = append(list, proxy.Route{Client: name, Config: r})
		}
	}
	return list
}

// hostName tells hosts apart that could own a refresh token.
func hostName() string {
	name, err := os.Hostname()
	if err != nil {
		return "this host"
	}
	return name
}
