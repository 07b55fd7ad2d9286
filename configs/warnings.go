package configs

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path"
	"reflect"
	"slices"
	"strings"
	"time"

	"credentialbroker/internal/access"
	"credentialbroker/internal/gate"
	"credentialbroker/oidc"
	"credentialbroker/providers"
)

// Warnings lists what works and may not be meant: names that this machine does
// not know, entries that more programs match than one would think, identities
// in the clear. names looks users and groups up.
func (c *Config) Warnings(names access.Names) []Problem {
	w := &warner{re: newPatterns()}
	whole := place{file: &source{name: c.file}}
	if len(c.Clients) == 0 {
		w.warn(whole, "no client is configured: nobody gets anything", "add one under clients:, or a file in clients.d")
	}
	if c.Leak == nil && c.LeakByHand == "" && len(c.Clients) > 0 {
		w.warn(whole, "there is no section leak: a leak cannot be reported by mail", "add leak: with organisation, on_call and smtp")
	}
	if len(c.Alarm.Command) > 0 {
		if err := c.Alarm.Runnable(); err != nil {
			w.warn(whole, "the command of alarm cannot be run: "+err.Error(), "")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.Providers)) {
		if f := c.Providers[name].File; f != nil && f.InsecureIdentity {
			w.warn(c.Providers[name].at, fmt.Sprintf("the provider %s has insecure_identity: whoever reads this disk, or a copy of it, reads the secrets", quote(name)),
				"seal the identity with systemd-creds and name it "+credentialsVariable+"/NAME")
		}
	}
	w.relays(whole, c)
	w.writers(c)
	w.brownOut(c)
	w.protection(c, time.Now())
	users := map[string]string{} // of each secret
	for _, name := range slices.Sorted(maps.Keys(c.Clients)) {
		client := c.Clients[name]
		key := secretText(client.Secret)
		if other := users[key]; other != "" {
			w.warn(client.at, fmt.Sprintf("the clients %s and %s have one secret: who may use the one has what the other has, and a leak is a leak of both", quote(other), quote(name)), "")
		}
		users[key] = name
		if c.Leak != nil && client.LeakContacts == nil {
			w.warn(client.at, fmt.Sprintf("the client %s has no leak_contacts: a leak is reported to copy_to, and not to its issuer", quote(name)),
				"as in leak_contacts: [security@issuer.example]; leak_contacts: [] if that is meant")
		}
		w.client(name, client, names)
	}
	return w.found
}

// Unreported is what broker check refuses, and the daemon does not: it goes on
// serving after an update. It names the clients of production whose leak no
// mail would report.
func (c *Config) Unreported() Problems {
	w := &warner{re: newPatterns()}
	for _, name := range slices.Sorted(maps.Keys(c.Clients)) {
		if client := c.Clients[name]; c.Leak == nil && c.LeakByHand == "" && client.Environment == "production" {
			w.warn(client.at, fmt.Sprintf("the client %s is of production, and no mail would report its leak: there is no section leak", quote(name)),
				"as in leak: { organisation: { name: NAME }, on_call: { name: NAME, phone: NUMBER }, smtp: { host: HOST, from: ADDRESS } }; or leak_by_hand: REASON")
		}
	}
	return w.found
}

// relays warns of those that are spoken to without TLS over a network.
func (w *warner) relays(at place, c *Config) {
	if c.Leak == nil {
		return
	}
	for _, r := range c.Leak.Relays() {
		ip, err := netip.ParseAddr(r.Host)
		if r.TLS == "none" && r.Host != "localhost" && (err != nil || !ip.Unmap().IsLoopback()) {
			w.warn(at, fmt.Sprintf("the mail relay %s has tls: none: reports of leaks, and its login, can be read and changed on the way", quote(r.Host)),
				"leave tls out for STARTTLS, or write tls: implicit; without TLS have a relay on this machine")
		}
	}
}

// Runnable says why the command cannot be run, or must not be, since whoever
// can write it acts as the broker.
func (a Alarm) Runnable() error {
	name := a.Command[0]
	info, err := os.Stat(name)
	var foreign *providers.Error
	switch {
	case err != nil:
		return fmt.Errorf("%s: %s", name, reason(err))
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		return fmt.Errorf("%s is no program: write a path to one that has its x bits", name)
	case errors.As(providers.CheckOwner(info), &foreign):
		return fmt.Errorf("%s: %s, and who writes it acts as the broker: %s", name, foreign.Message, foreign.Hint)
	}
	return nil
}

// writers warns of a login that writes and does more than that.
func (w *warner) writers(c *Config) {
	for _, name := range slices.Sorted(maps.Keys(c.Providers)) {
		p := c.Providers[name]
		if p.Write == "" {
			continue
		}
		same := c.Providers[p.Write]
		same.Write, same.at = p.Write, p.at
		if reflect.DeepEqual(p, same) {
			w.warn(p.at, fmt.Sprintf("the providers %s and %s have one login: what reads all the time may write, too", quote(name), quote(p.Write)), "give the one that writes a login of its own")
		}
		for _, client := range slices.Sorted(maps.Keys(c.Clients)) {
			if c.Clients[client].Secret.Provider == p.Write {
				w.warn(c.Clients[client].at, fmt.Sprintf("the client %s is read with the login of %s, which may write", quote(client), quote(p.Write)), "name "+name)
			}
		}
	}
}

type warner struct {
	re    *patterns
	found []Problem
}

func (w *warner) warn(at place, message, hint string) {
	w.found = append(w.found, w.re.problem(at, message, "", hint))
}

func (w *warner) client(name string, c Client, names access.Names) {
	_, errs := access.Compile(c.Allow, access.Limits{Scopes: c.Scopes, Audiences: c.Audiences}, names)
	for _, err := range errs {
		var e *access.EntryError
		if errors.As(err, &e) && errors.Is(err, access.ErrUnresolved) {
			w.warn(c.entry(e.Entry), fmt.Sprintf("the client %s: allow entry %d matches nobody: %s: %v", quote(name), e.Entry+1, e.Key, e.Err), "")
		}
	}
	for i, e := range c.Allow {
		if who := sharers(e); who != "" {
			w.warn(c.entry(i), fmt.Sprintf("the client %s: allow entry %d matches %s", quote(name), i+1, who), "")
		}
		if slices.Contains(e.Surfaces, access.Credential) && !e.Restart && !slices.Contains(e.Surfaces, access.APIKey) && c.Grant != oidc.NoGrant {
			w.warn(c.entry(i), fmt.Sprintf("the client %s: allow entry %d gives %s nothing by credential: a token ends while the unit runs", quote(name), i+1, e.Unit),
				"add restart: true, which has the broker restart the unit for each next token, or the surface api-key; or remove credential")
		}
	}
	for i, f := range c.Files {
		w.file(c.written[i], name, f, names)
	}
	w.port(c.at, "the client "+quote(name), c.Loopback, c.Allow)
	w.routes(name, c)
	if (c.ClientAuth == oidc.SecretBasic || c.ClientAuth == oidc.SecretPost) && w.prefers(c.Preset) == oidc.PrivateKeyJWT {
		w.warn(c.at, fmt.Sprintf("the client %s authenticates with %s, where its preset prefers private_key_jwt: the issuer, and whoever sees the request, learns the secret", quote(name), c.ClientAuth),
			"broker presets show "+c.Preset+" says why; broker keys new "+name+" makes a key")
	}
	if c.Prove == "probe" && c.Probe.URL == "" && c.Rotation.Accept != "unproved" {
		w.warn(c.at, fmt.Sprintf("the client %s: nothing can prove a new version of its secret, so each waits for broker rotate %s --accept", quote(name), name),
			"set probe: { url: URL } to a request of the API that changes nothing")
	}
}

// routes warns of those that serve nobody.
func (w *warner) routes(name string, c Client) {
	var can []access.Entry // may use them
	for _, e := range c.Allow {
		if e.Surfaces == nil || slices.Contains(e.Surfaces, access.Proxy) {
			can = append(can, e)
		}
	}
	for _, r := range c.ReverseProxy {
		who := fmt.Sprintf("the route %s of the client %s", quote(r.Name), quote(name))
		if len(can) == 0 {
			w.warn(c.at, who+" serves nobody: no allow entry has the surface proxy", "add proxy to the surfaces of one, or remove the route")
			continue
		}
		w.port(c.at, who, r.Loopback, can)
	}
}

// port warns of a port on loopback, which these entries may use.
func (w *warner) port(at place, who string, p *gate.Port, entries []access.Entry) {
	if p == nil {
		return
	}
	w.warn(at, fmt.Sprintf("%s is served on %s too, which is weaker than the socket: there, an allow entry means every program of the user or group, wherever it runs", who, p.Address),
		"remove loopback: when its last application can use the socket, files or broker exec")
	if !slices.ContainsFunc(entries, func(e access.Entry) bool { return e.Unit == "" && e.UserUnit == "" && e.Executable == "" }) {
		w.warn(at, fmt.Sprintf("%s is served to nobody on %s: no allow entry names user or group alone", who, p.Address),
			"add one without unit, user_unit and executable")
	}
}

// prefers is how clients of a preset authenticate by default.
func (w *warner) prefers(preset string) oidc.ClientAuth {
	p, err := readPreset(newReport(), preset)
	if err != nil {
		return "" // it is known: Load has read it
	}
	return p.settings.ClientAuth
}

// entry is where an allow entry stands.
func (c Client) entry(i int) place {
	if i < len(c.entries) {
		return c.entries[i]
	}
	return c.at
}

// sharers says who matches an entry beyond what its writer may think of; empty:
// nobody.
func sharers(e access.Entry) string {
	unit := strings.TrimSuffix(e.Unit, ".service")
	switch {
	case e.Executable != "" && interpreter(path.Base(e.Executable)):
		return "any script that " + e.Executable + " runs for them"
	case slices.Contains([]string{"apache2", "httpd", "nginx", "lighttpd"}, unit) && (e.User == "" || ofServers(e.User)):
		return "every site of " + e.Unit + ": with mod_php or CGI all of them run in it; sites apart need a user each (php-fpm pools) or a unit each"
	case strings.HasPrefix(unit, "tomcat") || strings.HasPrefix(unit, "jetty") || strings.HasPrefix(unit, "wildfly"):
		return "every application in " + e.Unit
	case e.User != "" && e.Unit != "":
		return ""
	case strings.Contains(unit, "php") && strings.Contains(unit, "fpm"):
		return "every pool of " + e.Unit + "; add user: to name one pool"
	case unit == "cron" || unit == "crond":
		return "every user's cron jobs; add user: to name one user"
	case ofServers(e.User):
		return "everything that runs as " + e.User + ": every mod_php site shares this user"
	case slices.Contains([]string{"nobody", "daemon", "nogroup"}, e.User) || slices.Contains([]string{"nogroup", "nobody"}, e.Group):
		return "every service that runs as nobody in particular"
	case e.Group != "" && e.User == "" && e.Unit == "":
		return "every program of every member of the group " + e.Group
	}
	return ""
}

// ofServers says whether a user is one that web servers run as.
func ofServers(user string) bool {
	return slices.Contains([]string{"www-data", "apache", "nginx", "http", "wwwrun", "httpd"}, user)
}

func interpreter(name string) bool {
	name = strings.TrimRight(name, "0123456789.-")
	return slices.Contains([]string{"sh", "bash", "dash", "zsh", "php", "php-fpm", "python", "perl", "ruby", "node", "nodejs", "java", "env", "curl", "busybox"}, name)
}
