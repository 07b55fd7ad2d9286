package configs

import (
	"fmt"
	"maps"
	"reflect"
	"slices"

	"credentialbroker/internal/proxy"
)

// routes checks the routes of the reverse proxy: every one of them needs a
// name and a socket of its own, whosever it is.
func (k *checker) routes() {
	names, sockets := map[string]string{}, map[string]string{k.c.Sockets.Consumer: "the daemon", k.c.Sockets.Admin: "the daemon"}
	for _, client := range slices.Sorted(maps.Keys(k.c.Clients)) {
		for i, r := range k.c.Clients[client].ReverseProxy {
			at := fmt.Sprintf("clients.%s.reverse_proxy[%d]", client, i)
			k.owned(at, r.Validate())
			k.name(at+".name", r.Name)
			whose := "a route of the client " + quote(client)
			k.when(names[r.Name] != "", at+".name", names[r.Name]+" has this name", "", "take another one")
			names[r.Name] = whose
			k.port(at+".loopback", "the route "+quote(r.Name), r.Loopback)
			if r.Socket != "" {
				k.when(sockets[r.Socket] != "", at+".socket", "this is the socket of "+sockets[r.Socket], "", "take another one")
				sockets[r.Socket] = whose
			}
		}
	}
}

// routes lists what changes. Whoever may use the client can then call what
// they could not call before.
func (d *differ) routes(path string, old, now []proxy.Config) {
	before, after := byName(old), byName(now)
	for _, r := range now {
		was, there := before[r.Name]
		what := path + " " + r.Name
		switch {
		case !there:
			d.add(what, true, "added: %s%s", r.Upstream, below(r))
		case !reflect.DeepEqual(was, r):
			wider := was.Loopback == nil && r.Loopback != nil || was.Upstream != r.Upstream || was.UpstreamUser != r.UpstreamUser || was.CAFile != r.CAFile || was.Proxy != r.Proxy ||
				len(was.Paths) > 0 && (len(r.Paths) == 0 || !subset(r.Paths, was.Paths))
			d.add(what, wider, "%s%s -> %s%s", was.Upstream, below(was), r.Upstream, below(r))
		}
	}
	for _, r := range old {
		if _, there := after[r.Name]; !there {
			d.add(path+" "+r.Name, false, "removed")
		}
	}
}

// below are a route's paths and what else a change of it may be about.
func below(r proxy.Config) (text string) {
	if len(r.Paths) > 0 {
		text += fmt.Sprintf(" %v", r.Paths)
	}
	port := ""
	if r.Loopback != nil {
		port = r.Loopback.Address
	}
	for _, part := range []struct{ key, value string }{{"upstream_user", r.UpstreamUser}, {"socket", r.Socket}, {"loopback", port}, {"ca_file", r.CAFile}, {"proxy", r.Proxy}} {
		if part.value != "" {
			text += " " + part.key + " " + part.value
		}
	}
	if r.Timeout != 0 {
		text += " timeout " + r.Timeout.String()
	}
	return text
}

func byName(list []proxy.Config) map[string]proxy.Config {
	m := map[string]proxy.Config{}
	for _, r := range list {
		m[r.Name] = r
	}
	return m
}
