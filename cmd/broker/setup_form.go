package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"credentialbroker/internal/policy"
)

// An ask is one answer that is wanted: the flag that gives it, and the question
// to a person.
type ask struct {
	flag, question string
	key            string             // in the provider's section; empty: it does not stand there
	fallback       string             // what Enter means
	proposed       bool               // and nothing else does: a flag is wanted without a person
	optional       bool               // Enter means nothing
	quiet          bool               // nobody is asked: a flag alone
	check          func(string) error // a person is asked again; nil: any answer will do
}

// A sealedForm is one secret of a login.
type sealedForm struct {
	name, question string
	key            string // in the provider's section: the file that holds it
}

// A loginForm is one way to log in at a secrets manager.
type loginForm struct {
	name, title string
	bare        string // what says so in the provider's section, if nothing else does
	asks        []ask
	secrets     []sealedForm
}

// A managerForm is a kind of secrets manager; its first login is the usual one.
type managerForm struct {
	name, title string
	asks        []ask
	logins      []loginForm
}

func managers() []managerForm {
	ca, proxy := ask{flag: "ca-file", key: "ca_file", quiet: true}, ask{flag: "proxy", key: "proxy", quiet: true}
	entra := func(login string) []ask {
		return []ask{{flag: "tenant-id", question: "Tenant id (Microsoft Entra)", key: "auth." + login + ".tenant_id"},
			{flag: "application-id", question: "Application (client) id", key: "auth." + login + ".client_id"}}
	}
	return []managerForm{
		{"vault", "HashiCorp Vault, OpenBao", []ask{
			{flag: "address", question: "Address, as in https://vault.corp.example:8200", key: "address", check: secureURL},
			{flag: "namespace", question: "Namespace (Enter: none)", key: "namespace", optional: true},
			{flag: "kv", question: "Version of the KV engine", key: "kv", fallback: "2", check: kvVersion},
			{flag: "ca-file", question: "File with the authority of its certificate (Enter: the machine's own)", key: "ca_file", optional: true},
			proxy}, []loginForm{
			{name: "approle", title: "AppRole: role-id and secret-id", secrets: []sealedForm{
				{"role-id", "Role-id", "auth.approle.role_id_file"}, {"secret-id", "Secret-id", "auth.approle.secret_id_file"}}},
			{name: "cert", title: "a TLS client certificate", secrets: []sealedForm{
				{"certificate", "Certificate and its chain, PEM", "auth.cert.cert_file"}, {"key", "Private key, PEM", "auth.cert.key_file"}}},
			{name: "token", title: "a token", secrets: []sealedForm{{"token", "Token", "auth.token_file"}}},
		}},
		{"aws", "AWS Secrets Manager", []ask{{flag: "region", question: "Region, as in eu-west-1", key: "region"}, ca, proxy}, []loginForm{
			{name: "instance", title: "the role of the EC2 instance", bare: "auth.instance=true"},
			{name: "static", title: "a long-lived access key", secrets: []sealedForm{
				{"access-key-id", "Access key id", "auth.static.access_key_id_file"}, {"secret-access-key", "Secret access key", "auth.static.secret_access_key_file"}}},
			{name: "default", title: "what the SDK finds"},
		}},
		{"azure", "Azure Key Vault", []ask{{flag: "vault-url", question: "URL of the vault, as in https://corp.vault.azure.net", key: "vault_url", check: secureURL}, ca, proxy}, []loginForm{
			{name: "managed-identity", title: "the managed identity of the machine", bare: "auth.managed_identity={}"},
			{name: "client-certificate", title: "an application with a certificate", asks: entra("client_certificate"), secrets: []sealedForm{
				{"certificate", "Certificate and private key, PEM", "auth.client_certificate.certificate_file"}}},
			{name: "client-secret", title: "an application with a secret", asks: entra("client_secret"), secrets: []sealedForm{
				{"client-secret", "Client secret", "auth.client_secret.client_secret_file"}}},
			{name: "default", title: "what the SDK finds"},
		}},
		{"gcp", "Google Cloud Secret Manager", []ask{{flag: "project", question: "Project id", key: "project"}, ca, proxy}, []loginForm{
			{name: "metadata", title: "the service account of the machine", bare: "auth.metadata=true"},
			{name: "service-account", title: "a key of a service account", secrets: []sealedForm{{"key", "Key of the service account, JSON", "auth.credentials_file"}}},
			{name: "default", title: "application default credentials"},
		}},
		{"file", "age-encrypted files on this machine", []ask{{flag: "store", question: "Directory", key: "path", fallback: "/etc/credential-broker/secrets"}}, []loginForm{
			{name: "identity", title: "an age identity", secrets: []sealedForm{{"identity", "Identity, as age-keygen makes it", "identity_file"}}},
		}},
		{"systemd", "a sealed credential of the daemon's unit, without any manager", nil, []loginForm{{name: "none", title: "none"}}},
	}
}

func managerNames() (names []string) {
	for _, k := range managers() {
		names = append(names, k.name)
	}
	return names
}

func (k managerForm) loginNames() (names []string) {
	for _, l := range k.logins {
		names = append(names, l.name)
	}
	return names
}

// clientAsks are about the client itself. What a preset leaves open, and only
// that, is asked by run.
func clientAsks(manager string) []ask {
	list := []ask{
		{flag: "client", question: "Name of the client, by which applications ask", fallback: "vdab", proposed: true},
		{flag: "preset", question: "Issuer (broker presets lists them; oauth2 is for any other)", fallback: "vdab-test", proposed: true},
	}
	if manager == "vault" {
		list = append(list, ask{flag: "mount", question: "Mount of the KV engine", fallback: "secret"})
	}
	return append(list,
		ask{flag: "path", question: "Name (path) of the client's secret there"},
		ask{flag: "contact", question: "Who answers for the client (an address)"},
		ask{flag: "purpose", question: "What it is for"})
}

// form collects the answers: from flags, then from a person. What is missing
// without a person is said all at once.
func (in *setupRun) form(ctx context.Context) error {
	manager, err := in.choose(ctx, "manager", "Secrets manager", managerNames(), func(i int) string { return managers()[i].title })
	if err != nil {
		return err
	}
	in.manager = managers()[slices.Index(managerNames(), manager)]
	for _, a := range in.manager.asks {
		if err := in.ask(ctx, a); err != nil {
			return err
		}
	}
	name, err := in.choose(ctx, "auth", "How the daemon logs in", in.manager.loginNames(), func(i int) string { return in.manager.logins[i].title })
	if err != nil {
		return err
	}
	in.login = in.manager.logins[slices.Index(in.manager.loginNames(), name)]
	for _, a := range slices.Concat(in.login.asks, clientAsks(manager)) {
		switch a.flag {
		case "client":
			a.check = func(text string) error { return nameProblem("client", text) }
		case "preset":
			a.check = func(text string) error { _, err := in.preset(ctx, text); return err }
		case "path":
			a.check = in.pathProblem
		}
		if err := in.ask(ctx, a); err != nil {
			return err
		}
	}
	if err := in.ofPreset(ctx); err != nil {
		return err
	}
	if len(in.allow) == 0 {
		if err := in.askAllow(ctx); err != nil {
			return err
		}
	}
	if len(in.missing) > 0 {
		return usageError{fmt.Errorf("nobody is there to ask: give %s; broker setup --help lists them. Nothing was written", strings.Join(in.missing, ", "))}
	}
	return in.valid()
}

// askAllow asks for entries until there is no other.
func (in *setupRun) askAllow(ctx context.Context) error {
	a := ask{flag: "allow", question: "Who may have its tokens, as in user=batch or unit=php8.2-fpm.service,user=web",
		check: func(text string) error { _, err := entry(text); return err }}
	for {
		text, err := in.answer(ctx, a)
		if err != nil || text == "" {
			return err
		}
		in.allow = append(in.allow, text)
		if in.person == nil {
			return nil
		}
		a.question, a.optional = "Who else (Enter: nobody)", true
	}
}

// ofPreset asks for what the preset leaves open.
func (in *setupRun) ofPreset(ctx context.Context) error {
	if in.get("preset") == "" {
		return nil // it is missing
	}
	facts, err := in.preset(ctx, in.get("preset"))
	if err != nil {
		return err
	}
	open := func(key string) bool {
		return facts[key] == nil && !slices.ContainsFunc(in.set, func(s string) bool { return strings.HasPrefix(s, key+"=") })
	}
	if in.get("preset") == "oauth2" && open("token_endpoint") && open("issuer") {
		url, err := in.answer(ctx, ask{flag: "set token_endpoint", question: "Token endpoint (URL)", check: secureURL})
		if err != nil {
			return err
		}
		if url != "" {
			in.set = append(in.set, "token_endpoint="+url)
		}
	}
	if facts["environment"] == "production" && !in.reported() {
		return in.ask(ctx, ask{flag: "leak-by-hand", question: "A leak of it has to be reported. Until broker.yaml has a section leak, who does it, and how"})
	}
	return nil
}

func (in *setupRun) get(flag string) string { return *in.text[flag] }

// ask sees to it that a flag has a value.
func (in *setupRun) ask(ctx context.Context, a ask) error {
	if in.get(a.flag) != "" || a.quiet {
		return nil
	}
	text, err := in.answer(ctx, a)
	*in.text[a.flag] = text
	return err
}

// answer asks a person once, or again until there is an answer.
func (in *setupRun) answer(ctx context.Context, a ask) (string, error) {
	if in.person == nil {
		if a.fallback == "" && !a.optional || a.proposed {
			in.missing = append(in.missing, "--"+a.flag)
			return "", nil
		}
		return a.fallback, nil
	}
	for {
		fmt.Fprint(in.say, a.question)
		if a.fallback != "" {
			fmt.Fprintf(in.say, " [%s]", a.fallback)
		}
		fmt.Fprint(in.say, ": ")
		line, err := readLine(ctx, in.person)
		if err != nil {
			return "", interrupted()
		}
		if line = strings.TrimSpace(line); line == "" {
			line = a.fallback
		}
		if line == "" && !a.optional {
			continue
		}
		if line != "" && a.check != nil {
			if err := a.check(line); ctx.Err() != nil {
				return "", interrupted()
			} else if err != nil {
				fmt.Fprintf(in.say, "Not taken: %s.\n", explain(err))
				continue
			}
		}
		return line, nil
	}
}

// choose is ask with a list; the first is the usual one. Without a person a
// login has a default, a secrets manager none.
func (in *setupRun) choose(ctx context.Context, flag, question string, names []string, title func(int) string) (string, error) {
	text := in.get(flag)
	if text == "" && in.person == nil {
		if flag == "manager" {
			return "", usageError{fmt.Errorf("nobody is there to ask: give --manager (%s), and what it needs; broker setup --help lists it. Nothing was written", strings.Join(names, ", "))}
		}
		text = names[0]
	}
	for text == "" && len(names) > 1 {
		fmt.Fprintf(in.say, "%s:\n", question)
		for i, n := range names {
			fmt.Fprintf(in.say, "  %d  %s: %s\n", i+1, n, title(i))
		}
		answer, err := in.answer(ctx, ask{question: "Number", fallback: "1"})
		if err != nil {
			return "", err
		}
		if n, ok := smallNumber(answer); ok && n >= 1 && n <= len(names) {
			text = names[n-1]
		} else if slices.Contains(names, answer) {
			text = answer
		}
	}
	if len(names) == 1 {
		text = names[0]
	}
	*in.text[flag] = text
	if !slices.Contains(names, text) {
		return "", usageError{fmt.Errorf("--%s %s is unknown: one of %s", flag, text, strings.Join(names, ", "))}
	}
	return text, nil
}

func interrupted() error {
	return failure{exitTryAgain, errors.New("interrupted: nothing was written")}
}

// valid refuses names that would be another file, and answers that would be
// more than a value. The configuration's own rules are broker check's.
func (in *setupRun) valid() error {
	for _, flag := range []string{"provider", "client"} {
		if err := nameProblem(flag, in.get(flag)); err != nil {
			return err
		}
	}
	if err := in.pathProblem(in.get("path")); err != nil {
		return err
	}
	for flag, text := range in.text {
		if strings.ContainsFunc(*text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return usageError{fmt.Errorf("--%s holds a control character", flag)}
		}
	}
	for _, s := range in.set {
		key, value, ok := strings.Cut(s, "=")
		if !ok || value == "" || strings.Trim(key, "abcdefghijklmnopqrstuvwxyz_") != "" || strings.ContainsAny(value, "\n\r") {
			return usageError{fmt.Errorf("--set %s is not understood: write token_endpoint=https://login.example/token, for example", s)}
		}
	}
	for _, a := range in.allow {
		if _, err := entry(a); err != nil {
			return err
		}
	}
	return nil
}

// pathProblem refuses what is no name of a secret: Vault's commands and its API
// write the same one with a mount or data/ before it.
func (in *setupRun) pathProblem(path string) error {
	if in.manager.name == "systemd" { // it is a file's name too
		return nameProblem("path", path)
	}
	if in.manager.name == "vault" {
		mount := strings.Trim(in.get("mount"), "/") + "/"
		for _, wrong := range []string{"/", mount + "data/", mount, "data/"} {
			if rest, ok := strings.CutPrefix(path, wrong); ok && (wrong != "data/" || in.get("kv") != "1") {
				return usageError{fmt.Errorf("--path %s: leave %s out, which is not of the secret's name: %s", path, wrong, rest)}
			}
		}
	}
	if _, err := policy.For(in.manager.name, policy.Place{Path: path}, false); err != nil {
		return usageError{fmt.Errorf("--path: %w", err)}
	}
	return nil
}

func nameProblem(flag, text string) error {
	if !plainName(text) {
		return usageError{fmt.Errorf("--%s %q: want letters, digits, - and _", flag, text)}
	}
	return nil
}

// secureURL is asked of a person alone; the configuration's rules know more.
func secureURL(text string) error {
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || u.Scheme != "https" {
		return errors.New("want a URL that begins with https://")
	}
	return nil
}

func kvVersion(text string) error {
	if text != "1" && text != "2" {
		return errors.New("want 1 or 2")
	}
	return nil
}

func plainName(s string) bool {
	return s != "" && len(s) <= 64 && s[0] != '-' && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") == ""
}

// entry is an allow entry as the configuration has it.
func entry(text string) (string, error) {
	var keys []string
	for pair := range strings.SplitSeq(text, ",") {
		key, value, ok := strings.Cut(strings.TrimSpace(pair), "=")
		if !ok || value == "" || !slices.Contains([]string{"user", "group", "unit", "user_unit", "executable"}, key) {
			return "", usageError{fmt.Errorf("--allow %s is not understood: write user=batch, or unit=php8.2-fpm.service,user=web (keys: user, group, unit, user_unit, executable)", text)}
		}
		keys = append(keys, key+": "+scalar(value))
	}
	return "{ " + strings.Join(keys, ", ") + " }", nil
}
