package configs

import (
	"errors"
	"fmt"
	"maps"
	"net/mail"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"credentialbroker/internal/access"
	"credentialbroker/internal/gate"
	"credentialbroker/internal/outbound"
	"credentialbroker/providers"
)

// Rules of this file:
//   - what a section means is checked by the package that owns it; here are
//     the references between sections and what no other package sees;
//   - a section that was not decoded whole is not checked: its mistakes are
//     reported already.

// A checker reports at paths.
type checker struct {
	*report
	c *Config
	// whole: every file could be decoded; else a missing name may be in one
	// that could not.
	whole bool
	ports map[netip.AddrPort]string // on loopback: whose they are
}

func (c *Config) validate(r *report, whole bool) {
	k := &checker{r, c, whole, map[netip.AddrPort]string{}}
	for _, name := range slices.Sorted(maps.Keys(c.Providers)) {
		p := c.Providers[name]
		p.at = k.kept("providers." + name)
		c.Providers[name] = p
		k.provider(name, p)
	}
	for _, name := range slices.Sorted(maps.Keys(c.Clients)) {
		client := c.Clients[name]
		k.client(name, &client)
		c.Clients[name] = client
	}
	k.refreshSecrets()
	k.filePaths()
	k.routes()
	k.owned("audit", c.Audit.Validate())
	if c.Leak != nil {
		k.when(c.LeakByHand != "", "leak_by_hand", "there is a section leak, too", "one of the two", "")
		k.leak(c.Leak)
	}
	for path, list := range map[string][]string{"admin.observe": c.Admin.Observe, "admin.operate": c.Admin.Operate, "admin.incident": c.Admin.Incident} {
		for i, group := range list {
			k.when(strings.TrimSpace(group) == "", fmt.Sprintf("%s[%d]", path, i), "the group has no name", "a group of this machine, by name or number", "")
		}
	}
	for path, file := range map[string]string{"state": c.State, "sockets.consumer": c.Sockets.Consumer, "sockets.admin": c.Sockets.Admin} {
		k.when(file != "" && !filepath.IsAbs(file), path, path+" is not an absolute path", "a path that begins with /", "")
	}
	k.when(len(c.Sockets.Consumer) > 107, "sockets.consumer", "the path is too long for a socket", "at most 107 bytes", "")
	k.when(len(c.Sockets.Admin) > 107, "sockets.admin", "the path is too long for a socket", "at most 107 bytes", "")
	k.metrics(c.Metrics)
	k.alarm(c.Alarm)
	k.brownOut(c.BrownOut)
}

func (k *checker) alarm(a Alarm) {
	_, command := k.places["alarm.command"]
	_, webhook := k.places["alarm.webhook"]
	k.when(!command && !webhook, "alarm", "alarm tells nobody", "command, webhook or both", "as in command: [/usr/local/bin/page]")
	k.when(len(a.Command) == 0, "alarm.command", "the command is empty", "the absolute path of a program, and its arguments", "as in command: [/usr/local/bin/page]")
	k.when(len(a.Command) > 0 && !filepath.IsAbs(a.Command[0]), "alarm.command[0]", "the command is not an absolute path", "a path that begins with /", "")
	for i, arg := range a.Command {
		k.when(strings.ContainsRune(arg, 0), fmt.Sprintf("alarm.command[%d]", i), "no argument can hold a NUL", "", "")
	}
	const longest = 10 * time.Minute
	k.when(a.Timeout < 0 || a.Timeout.D() > longest, "alarm.timeout", "the command cannot have "+a.Timeout.String(), "at most 10m", "")
	if w := a.Webhook; w != nil {
		k.request("alarm.webhook.url", w.URL, "webhook", "the alarms", "the signature shows who sends it")
		k.secret("alarm.webhook.secret", w.Secret)
		k.proxy("alarm.webhook.proxy", w.Config)
		k.when(w.Timeout < 0 || w.Timeout.D() > outbound.CallTimeout, "alarm.webhook.timeout", "the webhook cannot have "+w.Timeout.String(), "at most 30s", "")
	}
}

// metrics go to this machine alone: what is to leave it, something made for
// that sends on.
func (k *checker) metrics(m Metrics) {
	at, err := netip.ParseAddrPort(m.Listen)
	k.when(m.Listen != "" && (err != nil || at.Port() == 0), "metrics.listen", quote(m.Listen)+" is no address with a port", "numbers, as in 127.0.0.1:9110", "")
	k.when(err == nil && !at.Addr().IsLoopback(), "metrics.listen", at.Addr().String()+" is not an address of this machine alone", "127.0.0.1 or [::1]",
		"to read metrics from another machine, use textfile: with a node_exporter, or a proxy that authenticates")
	k.when(m.TextFile != "" && !filepath.IsAbs(m.TextFile), "metrics.textfile", "metrics.textfile is not an absolute path", "a path that begins with /", "")
	k.when(filepath.IsAbs(m.TextFile) && filepath.Ext(m.TextFile) != ".prom", "metrics.textfile", "node_exporter reads files that end in .prom", "", "as in /var/lib/node_exporter/textfile/credential_broker.prom")
}

// when reports what is wrong with the value at path. A key that is not written
// has no wrong value: that it is missing is said elsewhere.
func (k *checker) when(wrong bool, path, message, expected, hint string) {
	if at, written := k.places[path]; wrong && written && !k.bad[path] && !k.judged[path] {
		k.problem(at, path, message, expected, hint)
	}
}

// always reports at path, or at the nearest place above it that is written.
func (k *checker) always(path, message, expected, hint string) {
	if !k.bad[path] {
		k.problem(k.nearest(path), path, message, expected, hint)
	}
}

func (k *checker) nearest(path string) place {
	for p := path; p != ""; p = p[:max(0, strings.LastIndexAny(p, ".["))] {
		if at, ok := k.places[p]; ok {
			return at
		}
	}
	return k.places[""]
}

// owned reports what the owner of a section says of it, unless the section
// could not be read. Each of its errors may begin with the keys, joined by
// dots, that it is about.
func (k *checker) owned(path string, err error) {
	if !k.bad[path] {
		k.ownedOne(path, err)
	}
}

func (k *checker) ownedOne(path string, err error) {
	var joined interface{ Unwrap() []error }
	switch {
	case err == nil:
		return
	case errors.As(err, &joined):
		for _, e := range joined.Unwrap() {
			k.ownedOne(path, e)
		}
		return
	}
	text := strings.TrimPrefix(err.Error(), lastKey(path)+": ")
	at, rest := path, text
	for {
		m := k.re.leadingKey.FindStringSubmatchIndex(rest)
		if m == nil {
			break
		}
		deeper := join(at, rest[m[2]:m[3]])
		if _, written := k.places[deeper]; !written {
			break
		}
		at, rest = deeper, rest[m[1]:]
	}
	if k.judged[at] {
		return
	}
	between, hint := ": ", ""
	if k.re.leadingKey.MatchString(text) {
		between = "."
		if at == path && strings.HasPrefix(path, "clients.") && !strings.Contains(text, ": missing") {
			hint = "the client does not set this key: its preset does"
		}
	}
	k.problem(k.nearest(at), at, path+between+text, "", hint)
}

// kept is a place for later, which does not keep the file's text in memory.
func (k *checker) kept(path string) place {
	at := k.places[path]
	if at.file != nil {
		at.file = &source{name: at.file.name}
	}
	return at
}

// IsName says whether s can be the name of a client or a provider.
func IsName(s string) bool {
	const first = "abcdefghijklmnopqrstuvwxyz0123456789"
	return len(s) >= 1 && len(s) <= 63 && strings.Trim(s, first+"-_") == "" && strings.Contains(first, s[:1])
}

func (k *checker) name(path, name string) {
	k.when(!IsName(name), path, fmt.Sprintf("%s is no name here", quote(name)), "up to 63 of a-z 0-9 - _, the first one a letter or digit", "")
}

func (k *checker) provider(name string, p Provider) {
	path := join("providers", name)
	k.name(path, name)
	kinds, set := p.sections()
	switch {
	case k.bad[path] && len(kinds) != 1:
	case len(kinds) == 0:
		k.always(path, subject(path)+" names no secrets manager", "one of the keys vault, aws, azure, gcp, file, systemd or exec", "")
	case len(kinds) > 1:
		k.always(path, subject(path)+" names "+list(kinds, "and"), "one secrets manager", "make each a provider with a name of its own")
	default:
		k.owned(join(path, kinds[0]), set[0].Validate())
		k.write(path+".write", name, p)
	}
}

// write checks the provider whose login may write.
func (k *checker) write(path, name string, p Provider) {
	w, there := k.c.Providers[p.Write]
	switch {
	case p.Write == "" || k.bad["providers."+p.Write]:
	case p.Write == name:
		k.always(path, "the provider "+quote(name)+" names itself: a login that may write is one of its own", "", "make it a provider with a name of its own, or remove write")
	case !there:
		k.reference(path, p.Write)
	case p.readOnly():
		k.always(path, "a secrets manager of the kind "+p.Kind()+" can only be read", "", "remove write")
	case w.Kind() != p.Kind():
		k.always(path, fmt.Sprintf("the provider %s is of the kind %s", quote(p.Write), w.Kind()), "one of the kind "+p.Kind(), "both are logins to the same secrets manager")
	case w.Write != "":
		k.always(path, fmt.Sprintf("the provider %s names another one to write with", quote(p.Write)), "", "name the one that writes: "+w.Write)
	case !k.bad["providers."+name]:
		k.sameManager(name, p, w)
	}
}

func (k *checker) client(name string, c *Client) {
	path := join("clients", name)
	c.at = k.kept(path)
	k.name(path, name)
	k.secret(join(path, "secret"), c.Secret)
	k.when(strings.TrimSpace(c.Owner.Contact) == "", path+".owner.contact", "the owner's contact is empty", "", "an address that outlives a person: team@example.org")
	k.when(strings.TrimSpace(c.Owner.Purpose) == "", path+".owner.purpose", "the purpose is empty", "", "one line: what stops when this client stops?")
	if len(c.Allow) == 0 && len(c.Files) == 0 && !k.bad[path+".files"] {
		k.always(path+".allow", "nobody may use the client "+quote(name)+": it has no allow entry and no files", "at least one entry", "as in allow: [{ unit: NAME.service, user: NAME }]")
	}
	_, errs := access.Compile(c.Allow, access.Limits{Scopes: c.Scopes, Audiences: c.Audiences}, nil)
	for _, err := range errs {
		k.entry(path, err)
	}
	for i := range c.Allow {
		c.entries = append(c.entries, k.kept(fmt.Sprintf("%s.allow[%d]", path, i)))
	}
	for i, f := range c.Files {
		at := fmt.Sprintf("%s.files[%d]", path, i)
		c.written = append(c.written, k.kept(at))
		k.file(path, at, f, c)
	}
	k.settings(path, c)
	k.port(path+".loopback", "the client "+quote(name), c.Loopback)
	if at := path + ".leak.automatic"; c.Leak.Automatic != "" && k.whole && !k.bad[path+".preset"] && !k.bad[path+".leak_contacts"] {
		k.when(k.c.Leak == nil, at, "nothing can be sent: there is no section leak", "", "add leak: with organisation, on_call and smtp, or remove automatic")
		k.when(k.c.Leak != nil && len(c.LeakContacts) == 0, at, "there is nobody to send it to: the client has no leak_contacts", "", "set leak_contacts, or remove automatic")
	}
}

// port checks a port on loopback: each belongs to one client, or one route.
func (k *checker) port(path, whose string, p *gate.Port) {
	if p == nil || k.bad[path] {
		return
	}
	at, err := gate.LoopbackAddress(p.Address)
	k.when(err != nil, path+".address", fmt.Sprint(err), "", "")
	k.when(!p.InsecureLoopback, path, "a port is weaker than the socket: every program of a user is that user there, and whoever has the port before the broker passes for it",
		"insecure_loopback: true", "docs/applications.md says more; programs that can use the socket should")
	if err != nil {
		return
	}
	k.when(k.ports[at] != "", path+".address", at.String()+" is the address of "+k.ports[at]+" already", "", "each client and each route has a port of its own")
	k.ports[at] = whose
	listen, _ := netip.ParseAddrPort(k.c.Metrics.Listen)
	k.when(listen == at, path+".address", at.String()+" is metrics.listen already", "", "choose another port")
}

func (k *checker) entry(path string, err error) {
	at, message := path+".allow", err.Error()
	var e *access.EntryError
	if errors.As(err, &e) {
		at = fmt.Sprintf("%s[%d]", at, e.Entry)
		message = fmt.Sprintf("allow entry %d: %v", e.Entry+1, e.Err)
		if e.Key != "" {
			at += "." + e.Key
			message = fmt.Sprintf("allow entry %d: %s: %v", e.Entry+1, e.Key, e.Err)
		}
	}
	k.always(at, message, "", "")
}

// reference checks that a provider is there.
func (k *checker) reference(path, provider string) {
	if _, ok := k.c.Providers[provider]; !ok && k.whole {
		names := slices.Sorted(maps.Keys(k.c.Providers))
		hint := didYouMean(provider, names)
		if len(names) == 0 {
			hint = "no provider is configured: add one under providers:"
		}
		k.always(path, "there is no provider "+quote(provider), list(names, "or"), hint)
	}
}

func (k *checker) secret(path string, s Secret) {
	if _, written := k.places[path]; !written || k.bad[path] {
		return
	}
	k.reference(path+".provider", s.Provider)
	k.when(len(s.Refs()) == 0, path, "the secret has no path", "", "as in secret: { provider: NAME, path: PATH }")
	for name := range s.Fields {
		k.when(!k.re.field.MatchString(name), path+".fields."+name, "no field can be called "+quote(name), "a letter, then letters, digits and _", "")
	}
	for _, r := range s.Refs() {
		k.named(path, s.Provider, r)
	}
}

// named checks that a secret can be called so in its manager.
func (k *checker) named(path, provider string, r providers.Ref) {
	_, set := k.c.Providers[provider].sections()
	if len(set) != 1 || k.bad[path+".path"] {
		return
	}
	var e *providers.Error
	if names, ok := set[0].(interface{ CheckRef(providers.Ref) error }); ok && errors.As(names.CheckRef(r), &e) {
		k.when(true, path, fmt.Sprintf("%s of the provider %s: %s", quote(r.String()), quote(provider), e.Message), "", e.Hint)
	}
}

func (k *checker) address(path, a string) {
	parsed, err := mail.ParseAddress(a)
	k.when(err != nil || parsed.Address != a, path, quote(a)+" is no mail address", "name@host", "")
}

func (k *checker) leak(l *Leak) {
	if l.Organisation.KBO != "" {
		k.when(!k.re.kbo.MatchString(l.Organisation.KBO), "leak.organisation.kbo", quote(l.Organisation.KBO)+" is no KBO number", "ten digits, as in 0123.456.789", "")
	}
	digits := strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return r
		}
		return -1
	}, l.OnCall.Phone)
	k.when(len(digits) < 6, "leak.on_call.phone", quote(l.OnCall.Phone)+" is no telephone number", "as in +32 2 000 00 00", "")
	k.relay("leak.smtp", l.SMTP.Relay)
	for i, r := range l.Fallback {
		k.relay(fmt.Sprintf("leak.fallback[%d]", i), r)
	}
	k.address("leak.smtp.from", l.SMTP.From)
	if l.SMTP.ReplyTo != "" {
		k.address("leak.smtp.reply_to", l.SMTP.ReplyTo)
	}
	for i, a := range l.CopyTo {
		k.address(fmt.Sprintf("leak.copy_to[%d]", i), a)
	}
	k.protect(l)
	k.when(l.UndeliveredAfter.D() < time.Minute, "leak.undelivered_after", "a relay needs more time than "+l.UndeliveredAfter.String(), "1m or more", "")
	var untold []string
	for _, name := range slices.Sorted(maps.Keys(k.c.Clients)) {
		path := join("clients", name)
		if len(k.c.Clients[name].LeakContacts) == 0 && !k.bad[path+".preset"] && !k.bad[path+".leak_contacts"] {
			untold = append(untold, quote(name))
		}
	}
	if len(l.CopyTo) == 0 && len(untold) > 0 && k.whole {
		k.always("leak.copy_to", "a leak of "+list(untold, "or")+" would be reported to nobody", "",
			"set copy_to: [security@example.org] here, or the client's leak_contacts: [security@issuer.example]")
	}
}

func (k *checker) relay(path string, r Relay) {
	k.when(!k.re.host.MatchString(r.Host), path+".host", quote(r.Host)+" is no name of a host", "a name or address without scheme and port", "")
	if r.Secret != nil {
		k.secret(path+".secret", *r.Secret)
	}
	k.proxy(path+".proxy", r.Config)
	login := r.Relay
	login.Login = r.Secret != nil
	k.when(login.Validate() != nil, path+".tls", "the login would travel in the clear", "starttls or implicit", "or take secret: away")
}

func (k *checker) proxy(path string, c outbound.Config) {
	_, err := c.ProxyURL()
	k.when(err != nil, path, fmt.Sprint(err), "", "")
}
