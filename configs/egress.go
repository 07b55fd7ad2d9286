package configs

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"reflect"
	"slices"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/outbound"
	"credentialbroker/oidc"
	"credentialbroker/providers"
)

// A Destination is a host that the daemon connects to.
type Destination struct {
	Address string   `json:"address"`       // host:port
	Via     string   `json:"via,omitempty"` // the proxy's host:port; empty: direct
	For     []string `json:"for"`           // "client vdab: token endpoint" …
}

// Egress lists every host that the configuration makes the daemon connect to,
// for the firewall request, in order. Its error joins those of managers whose
// hosts are not known; the others are listed all the same.
func (c *Config) Egress(clk clock.Clock) ([]Destination, error) {
	e := &egress{found: map[[2]string]*Destination{}}
	for _, name := range slices.Sorted(maps.Keys(c.Providers)) {
		e.provider(name, c.Providers[name], clk)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Clients)) {
		e.client("client "+name+": ", c.Clients[name].Settings)
		for _, r := range c.Clients[name].ReverseProxy {
			e.url(r.Upstream, r.Proxy, "client "+name+": reverse proxy "+r.Name)
		}
	}
	if l := c.Leak; l != nil {
		for _, r := range l.Relays() {
			e.add(r.Address(), r.Proxy, "leak: mail relay")
		}
	}
	if w := c.Alarm.Webhook; w != nil {
		e.url(w.URL, w.Proxy, "alarm: webhook")
	}
	var all []Destination
	for _, key := range slices.SortedFunc(maps.Keys(e.found), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) }) {
		all = append(all, *e.found[key])
	}
	return all, errors.Join(e.errs...)
}

type egress struct {
	found map[[2]string]*Destination // by address and proxy
	errs  []error
}

func (e *egress) provider(name string, p Provider, clk clock.Clock) {
	open, err := p.Open(clk)
	if err != nil {
		e.errs = append(e.errs, fmt.Errorf("provider %s: %w", name, err))
		return
	}
	defer open.Close()
	_, set := p.sections()
	proxy := ""
	if f := reflect.Indirect(reflect.ValueOf(set[0])).FieldByName("Config"); f.IsValid() {
		if o, ok := f.Interface().(outbound.Config); ok {
			proxy = o.Proxy
		}
	}
	if p, ok := open.(providers.Egress); ok {
		for _, address := range p.Endpoints() {
			e.add(address, proxy, "provider "+name)
		}
	}
}

// client leaves out where a person's browser goes, and what the metadata will
// name: that is not known before they are read.
func (e *egress) client(who string, s Settings) {
	e.url(s.Probe.URL, s.Proxy, who+"probe")
	if s.Grant == oidc.NoGrant || s.Grant == oidc.SelfSigned {
		return
	}
	e.url(s.TokenEndpoint, s.Proxy, who+"token endpoint")
	e.url(s.JWKSURI, s.Proxy, who+"keys")
	e.url(s.IntrospectionEndpoint, s.Proxy, who+"introspection")
	e.url(s.RevocationEndpoint, s.Proxy, who+"revocation")
	metadata := s.MetadataURI
	if metadata == "" && (s.TokenEndpoint == "" || s.Grant == oidc.AuthorizationCode && s.AuthorizationEndpoint == "") {
		metadata = s.Issuer
	}
	e.url(metadata, s.Proxy, who+"metadata, which name the endpoints")
}

func (e *egress) url(text, proxy, why string) {
	if u, err := url.Parse(text); err == nil && u.Host != "" {
		e.add(hostPort(u), proxy, why)
	}
}

func (e *egress) add(address, proxy, why string) {
	key := [2]string{address, ""}
	if u, err := url.Parse(proxy); err == nil && u.Host != "" {
		key[1] = hostPort(u)
	}
	if e.found[key] == nil {
		e.found[key] = &Destination{Address: address, Via: key[1]}
	}
	e.found[key].For = append(e.found[key].For, why)
}

func hostPort(u *url.URL) string {
	port := u.Port()
	switch {
	case port != "":
	case u.Scheme == "http":
		port = "80"
	default:
		port = "443"
	}
	return net.JoinHostPort(u.Hostname(), port)
}
