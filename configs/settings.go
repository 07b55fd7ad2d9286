package configs

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/url"
	"reflect"
	"slices"
	"strings"

	"credentialbroker/oidc"
	"credentialbroker/providers"
	"credentialbroker/rotation"
)

// Rules of this file:
//   - package oidc judges the profile; here is what needs the whole client:
//     headers, fields, how a bundle is proved, the refresh token's secret;
//   - a key that the client writes itself and its grant makes no use of is a
//     mistake: whoever wrote it expects something of it. A preset's is none.

// Required lists the fields that every version of the client's bundle must
// have: those of its grant and client authentication, and Requires. Sorted,
// each once.
func (c Client) Required() []string {
	fields := append(c.Profile.Fields(), c.Requires...)
	slices.Sort(fields)
	return slices.Compact(fields)
}

func (k *checker) settings(path string, c *Client) {
	s := &c.Settings
	unreadable := func(f field) bool { return k.bad[join(path, f.name)] }
	if c.Preset != "" && !k.bad[path+".preset"] && !slices.ContainsFunc(k.fieldsOf(reflect.TypeFor[oidc.Profile]()), unreadable) {
		k.ownedOne(path, s.Profile.Validate())
		if !k.bad[path+".grant"] {
			k.idle(path, c)
			k.proved(path, s)
			k.refresh(path, c)
		}
	}
	for i, f := range s.Requires {
		at := fmt.Sprintf("%s.requires[%d]", path, i)
		k.when(!k.re.field.MatchString(f), at, "no field can be called "+quote(f), "a letter, then letters, digits and _", "")
		k.when(f == "refresh_token", at, "the refresh token is no field of the bundle", "", "refresh: names a secret of its own for it")
	}
	k.when(true, path+".secret.fields.refresh_token", "the refresh token is no field of the bundle", "", "refresh: names a secret of its own for it")
	k.headers(path, c)
	if _, written := k.places[path+".probe"]; written && !k.bad[path+".probe"] {
		k.probe(path+".probe.url", s.Probe.URL)
	}
	for i, text := range s.KeyRejected {
		k.when(strings.TrimSpace(text) == "", fmt.Sprintf("%s.key_rejected[%d]", path, i), "the text is empty: every 401 would be the key's fault", "words of the API's answer", "")
	}
	for i, a := range s.LeakContacts {
		k.address(fmt.Sprintf("%s.leak_contacts[%d]", path, i), a)
	}
}

// idle reports the keys that the client writes and its grant does not use.
func (k *checker) idle(path string, c *Client) {
	no := func(key, hint string) {
		k.when(true, join(path, key), fmt.Sprintf("%s is of no use with the grant %s", key, grantOf(c.Profile)), "", cmp.Or(hint, "remove it, or set the grant that is meant"))
	}
	if c.Grant == oidc.AuthorizationCode {
		no("jwt", "")
		return
	}
	no("refresh", "only the grant authorization_code has a refresh token")
	if c.Grant != oidc.SelfSigned && c.Grant != oidc.NoGrant {
		for _, key := range []string{"jwt", "authorization_endpoint", "authorization_params", "redirect_uri"} {
			no(key, "")
		}
		return
	}
	why := "remove it: the client has no tokens"
	used := []string{"grant", "ca_file", "proxy"}
	if c.Grant == oidc.SelfSigned {
		why = "remove it: a self-signed JWT carries none, the API itself knows what the client may do; jwt.scopes is for servers of 2018"
		used = append(used, "jwt")
	}
	for _, f := range k.fieldsOf(reflect.TypeFor[oidc.Profile]()) {
		hint := ""
		switch {
		case slices.Contains(used, f.name):
			continue
		case f.name == "issuer" && c.Grant == oidc.SelfSigned:
			hint = "jwt.issuer is the iss of what the broker signs"
		}
		no(f.name, hint)
	}
	keys := []string{"scope", "scopes", "audience", "audiences", "resource"}
	for i := range c.Allow {
		keys = append(keys, fmt.Sprintf("allow[%d].scopes", i), fmt.Sprintf("allow[%d].audiences", i))
	}
	for _, key := range keys {
		no(key, why)
	}
}

// unlessOwn gives a hint for what the client itself does not write.
func (k *checker) unlessOwn(path, hint string) string {
	if _, own := k.places[path]; own {
		return ""
	}
	return hint
}

// grantOf is the grant, by name.
func grantOf(p oidc.Profile) oidc.Grant {
	if p.Grant == "" {
		return oidc.ClientCredentials
	}
	return p.Grant
}

// proved checks that the grant can prove a bundle so, and fills in how it does
// when nobody says.
func (k *checker) proved(path string, s *Settings) {
	by := map[oidc.Grant]string{oidc.ClientCredentials: "mint", oidc.JWTBearer: "mint", oidc.AuthorizationCode: "refresh"}[grantOf(s.Profile)]
	switch s.Prove {
	case "":
		s.Prove = cmp.Or(by, "probe")
	case "mint", "refresh":
		if s.Prove != by {
			k.always(path+".prove", fmt.Sprintf("prove cannot be %s: the grant %s has no such request", s.Prove, grantOf(s.Profile)),
				list(strings.Fields(by+" probe none"), "or"), k.unlessOwn(path+".prove", "the client does not set this key: its preset does"))
		}
	}
}

func (k *checker) probe(path, text string) {
	k.request(path, text, "probe", "the client's headers", "the request has the client's headers")
}

// request checks the URL of a request of ours: https, or http on loopback, and
// no credential in it. what names it, shows is what the network would see of
// it, instead what the request has in place of a credential.
func (k *checker) request(path, text, what, shows, instead string) {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Hostname() == "" || u.Scheme != "https" && u.Scheme != "http":
		k.when(true, path, "this is no URL", "https://host/path", "")
		return
	case u.Scheme == "http":
		ip := net.ParseIP(u.Hostname())
		k.when(u.Hostname() != "localhost" && (ip == nil || !ip.IsLoopback()), path, "http shows "+shows+" to the network", "https", "")
	}
	k.when(u.User != nil, path, "the URL of the "+what+" holds a user or password", "a URL without", instead)
	k.when(u.Fragment != "", path, "a #fragment is not sent", "a URL without", "")
	for name := range u.Query() {
		k.when(k.re.secretKey.MatchString(name), path, "a credential must not be in a URL: remove "+quote(name), "", instead)
	}
}

// refresh checks where the refresh token is kept.
func (k *checker) refresh(path string, c *Client) {
	path += ".refresh"
	r := c.Refresh
	switch {
	case c.Grant != oidc.AuthorizationCode || k.bad[path]:
		return
	case r == nil:
		k.always(path, `the grant authorization_code needs the key "refresh": where the refresh token is kept`, "",
			"as in refresh: { provider: NAME, path: PATH }: a secret of its own, which the broker writes")
		return
	}
	k.reference(path+".provider", r.Provider)
	k.when(k.c.Providers[r.Provider].readOnly(), path+".provider", fmt.Sprintf("the provider %s can only read, and the broker has to write the refresh token", quote(r.Provider)),
		"a provider of another kind: vault, aws, azure, gcp or file", "")
	k.when(r.Path == "", path, "the secret of the refresh token has no path", "", "as in refresh: { provider: NAME, path: PATH }")
	if r.Path != "" {
		k.named(path, r.Provider, r.Ref)
	}
	k.when(r.Version != "", path+".version", "the refresh token cannot be kept at one version: the broker writes new ones", "", "remove version")
	k.when(strings.ContainsFunc(r.Owner, func(c rune) bool { return c <= ' ' || c > '~' }) || len(r.Owner) > 255, path+".owner", quote(r.Owner)+" is no name of a host", "the name of this host", "")
	k.when(c.Hosts > 1, strings.TrimSuffix(path, ".refresh")+".hosts", "one host owns a refresh token: others would end it by using it", "1", "let the others have clients, and logins, of their own")
}

// readOnly says whether secrets of p cannot be written by the broker.
func (p Provider) readOnly() bool { return p.Systemd != nil || p.Exec != nil }

// refreshSecrets checks that every refresh token has a secret of its own: in a
// watched bundle each new token would count as a rotation, and two clients
// would overwrite each other's.
func (k *checker) refreshSecrets() {
	users := map[string]string{} // of each secret
	id := func(provider string, r providers.Ref) string {
		if r.Mount == "" {
			r.Mount = "secret"
		}
		r.Version = ""
		return provider + " " + r.String()
	}
	watched := func(s Secret, who string) {
		for _, r := range s.Refs() {
			users[id(s.Provider, r)] = who
		}
	}
	names := slices.Sorted(maps.Keys(k.c.Clients))
	for _, name := range names {
		watched(k.c.Clients[name].Secret, "the client "+quote(name))
	}
	if k.c.Leak != nil {
		for _, r := range k.c.Leak.Relays() {
			if r.Secret != nil {
				watched(*r.Secret, "a mail relay")
			}
		}
		if s := k.c.Leak.Sign; s != nil {
			watched(s.Secret, "the signature of reports")
		}
	}
	if w := k.c.Alarm.Webhook; w != nil {
		watched(w.Secret, "the webhook of alarm")
	}
	for _, name := range names {
		r := k.c.Clients[name].Refresh
		if r == nil || r.Path == "" {
			continue
		}
		key := id(r.Provider, r.Ref)
		if who := users[key]; who != "" {
			k.when(true, "clients."+name+".refresh", "the refresh token needs a secret of its own: "+who+" uses this one", "", "name another path: it need not exist yet")
		}
		users[key] = "the login of the client " + quote(name)
	}
}

// headers checks the templates, and drops those that the client empties.
func (k *checker) headers(path string, c *Client) {
	kept, names := map[string]string{}, slices.DeleteFunc(c.Required(), hidden)
	if c.Grant != oidc.NoGrant {
		names = append([]string{"access_token"}, names...)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Headers)) {
		if text := c.Headers[name]; text != "" {
			k.header(path+".headers."+name, name, text, names)
			kept[name] = text
		}
	}
	if c.Headers != nil {
		c.Headers = kept
	}
	if c.Grant == oidc.NoGrant && len(kept) == 0 && !k.bad[path+".preset"] {
		k.always(path+".headers", `the client has no headers: with the grant none it has nothing else to give`, "", `as in headers: { X-Api-Key: "{api_key}" }`)
	}
}

// header checks a template: it may hold the token and fields that every
// version of the bundle has, and never what authenticates the client.
func (k *checker) header(path, name, text string, names []string) {
	if k.judged[path] {
		return
	}
	k.when(!k.re.header.MatchString(name), path, quote(name)+" is no name of a header", "letters, digits and - (RFC 9110 §5.1)", "")
	k.when(strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }), path, "the header has characters that no header may have", "printable ASCII", "")
	rest := k.re.placeholder.ReplaceAllStringFunc(text, func(m string) string {
		f := strings.Trim(m, "{}")
		switch {
		case hidden(f):
			k.always(path, fmt.Sprintf("the header %s may not hold %s: no application gets what authenticates the client", name, m), "", "")
		case f == "access_token" && !slices.Contains(names, f):
			k.always(path, fmt.Sprintf("the header %s has {access_token}, and with the grant none there is no token", name), "",
				k.unlessOwn(path, fmt.Sprintf(`the preset sets it: drop it with headers: { %s: "" }`, name)))
		case !slices.Contains(names, f):
			k.always(path, fmt.Sprintf("the header %s has the unknown placeholder %s", name, m), placeholders(names),
				cmp.Or(didYouMean(f, names), "a field has to be listed in requires:"))
		}
		return ""
	})
	k.when(strings.ContainsAny(rest, "{}"), path, "the header has a brace without its partner", "{access_token} or {FIELD}", "")
}

func placeholders(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return "{" + strings.Join(names, "}, {") + "}"
}

// hidden fields authenticate the client, or will.
func hidden(field string) bool {
	field = strings.TrimPrefix(field, rotation.Pending)
	return slices.Contains([]string{"client_secret", "private_key", "refresh_token"}, field)
}
