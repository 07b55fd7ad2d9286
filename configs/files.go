package configs

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"credentialbroker/internal/access"
	"credentialbroker/internal/files"
	"credentialbroker/oidc"
)

// file checks one file of a client; path is the client's.
func (k *checker) file(path, at string, f files.Config, c *Client) {
	k.owned(at, f.Validate())
	if k.bad[path+".preset"] {
		return
	}
	token := f.Content == files.Token || f.Content == ""
	k.whenAt(token && c.Grant == oidc.NoGrant, at, "content", "the client has no token", "headers or api-key", "")
	k.when(c.Grant == oidc.NoGrant || c.Grant == oidc.SelfSigned, at+".scope", "scope is of no use with the grant "+string(c.Grant), "", "remove it")
	k.when(c.Grant == oidc.NoGrant || c.Grant == oidc.SelfSigned, at+".audience", "audience is of no use with the grant "+string(c.Grant), "", "remove it")
	k.whenAt(f.Content == files.APIKey && !slices.Contains(c.Required(), "api_key"), at, "content", "the client has no API key that every version of its secret has", "",
		"as in requires: [api_key]")
	k.when(len(c.Scopes) > 0 && !subset(strings.Fields(f.Scope), c.Scopes), at+".scope", quote(f.Scope)+" is more than the client's scopes", list(c.Scopes, "or"), "")
	k.when(f.Audience != c.Audience && !slices.Contains(c.Audiences, f.Audience), at+".audience", quote(f.Audience)+" is none of the client's audiences", list(c.Audiences, "or"), "")
	if f.Content == files.Headers && f.Format == files.Dotenv {
		names := map[string]string{}
		for _, h := range slices.Sorted(maps.Keys(c.Headers)) {
			v := files.Variable(h)
			k.when(names[v] != "" && c.Headers[h] != "", at+".format", fmt.Sprintf("the headers %s and %s would both be %s", names[v], h, v), "text or json", "")
			if c.Headers[h] != "" {
				names[v] = h
			}
		}
	}
}

// whenAt is when, for a key that may be missing.
func (k *checker) whenAt(wrong bool, at, key, message, expected, hint string) {
	if wrong {
		k.always(join(at, key), message, expected, hint)
	}
}

// filePaths checks that every file has a path of its own, and none stands in
// the place of a directory or a socket.
func (k *checker) filePaths() {
	used := map[string]string{} // by path: whose
	sockets := map[string]bool{}
	for _, s := range []string{k.c.Sockets.Consumer, k.c.Sockets.Admin} {
		if s != "" {
			sockets[s] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(k.c.Clients)) {
		for i, f := range k.c.Clients[name].Files {
			at := fmt.Sprintf("clients.%s.files[%d].path", name, i)
			k.when(sockets[f.Path], at, "this is the path of a socket", "", "take another one")
			k.when(used[f.Path] != "", at, "the client "+quote(used[f.Path])+" has a file with this path", "", "each file needs a path of its own")
			used[f.Path] = name
		}
	}
	for _, name := range slices.Sorted(maps.Keys(k.c.Clients)) {
		for i, f := range k.c.Clients[name].Files {
			for dir := filepath.Dir(f.Path); len(dir) > 1; dir = filepath.Dir(dir) {
				k.when(used[dir] != "", fmt.Sprintf("clients.%s.files[%d].path", name, i), dir+" cannot be a directory: the client "+quote(used[dir])+" has a file there", "", "take another path")
			}
		}
	}
}

// file warns of names that this machine does not know.
func (w *warner) file(at place, name string, f files.Config, names access.Names) {
	about := fmt.Sprintf("the client %s: the file %s: ", quote(name), f.Path)
	if f.Owner != "" {
		if _, err := names.User(f.Owner); err != nil {
			w.warn(at, about+"owner: "+err.Error(), "")
		}
	}
	if f.Group != "" {
		if _, err := names.Group(f.Group); err != nil {
			w.warn(at, about+"group: "+err.Error(), "")
		}
	}
}

// files lists what changes. Whoever can read a new or changed file may have
// what they could not have before.
func (d *differ) files(path string, old, now []files.Config) {
	before, after := byPath(old), byPath(now)
	for _, f := range now {
		was, there := before[f.Path]
		life := was
		life.MinTTL = f.MinTTL
		switch {
		case !there:
			d.add(path, true, "%s added", f)
		case was == f:
		case life == f:
			d.add(path, false, "%s: min_ttl %s -> %s", f.Path, was.MinTTL, f.MinTTL)
		default:
			d.add(path, true, "%s -> %s", was, f)
		}
	}
	for _, f := range old {
		if _, there := after[f.Path]; !there {
			d.add(path, false, "%s removed", f.Path)
		}
	}
}

func byPath(list []files.Config) map[string]files.Config {
	m := map[string]files.Config{}
	for _, f := range list {
		m[f.Path] = f
	}
	return m
}

// Origin changes with where the client's tokens come from: what is in a file
// of before is then another's.
func (c Client) Origin() string { return c.TokenEndpoint + " " + secretText(c.Secret) }
