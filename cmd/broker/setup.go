package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"credentialbroker/api/client"
	"credentialbroker/internal/policy"
	"credentialbroker/internal/secret"
)

// Setup takes a host from the installed package to the first token. Its rules
// (this file, setup_form.go, setup_seal.go, setup_files.go):
//   - the same answers a second time change nothing;
//   - nothing that somebody else has written is replaced unasked;
//   - a person sees what will be written before it is.

func setupCommand(s *sockets) *cobra.Command {
	in := setupRun{sockets: s, stdin: os.Stdin, text: map[string]*string{}}
	c := &cobra.Command{Use: "setup", Short: "Set this host up: the secrets manager, a client, the first token", Args: noArgs,
		Long: "Set this host up for a client: asks for the secrets manager and the client, prints the least policy that the\n" +
			"manager has to have for it, seals the daemon's own login for its unit (systemd-creds), writes broker.yaml and\n" +
			"clients.d, starts the daemon, and tries everything from inside of it. At the end stands the request with which\n" +
			"an application gets its first token.\n\n" +
			"Every question has a flag; without a terminal nothing is asked. The same answers a second time change nothing.\n" +
			"broker.yaml keeps all other lines; the whole configuration is checked before anything is put in place. What\n" +
			"somebody has changed is replaced only with --replace.\n\n" +
			"Secrets are asked for without echo, or come from --credential NAME=FILE: FILE - is standard input (one line\n" +
			"each, if there are several), /dev/fd/3 a file descriptor. By login: approle has role-id and secret-id, cert\n" +
			"certificate and key, token token; static access-key-id and secret-access-key; client-certificate certificate;\n" +
			"client-secret client-secret; service-account key; identity identity; systemd bundle, the client's own fields.",
		Example: "  broker setup\n" +
			"  broker setup --dry-run --manager vault --address https://vault.corp.example:8200 \\\n" +
			"    --client vdab --preset vdab-test --path vdab/test --contact it@corp.example --purpose vacancies --allow user=batch\n" +
			"  vault write -f -field=secret_id auth/approle/role/credential-broker/secret-id | broker setup --yes --json \\\n" +
			"    --manager vault --address https://vault.corp.example:8200 --credential role-id=role-id.txt --credential secret-id=- \\\n" +
			"    --client vdab --preset vdab-test --path vdab/test --contact it@corp.example --purpose vacancies --allow unit=php8.2-fpm.service,user=web\n" +
			"  age-keygen -o identity.txt; age-keygen -y identity.txt >/etc/credential-broker/recipients.txt\n" +
			"  install -d /etc/credential-broker/secrets; broker setup --yes --manager file --credential identity=identity.txt \\\n" +
			"    --set-manager recipients_file=/etc/credential-broker/recipients.txt --client vdab --preset vdab-test --path vdab \\\n" +
			"    --contact it@corp.example --purpose vacancies --allow user=batch",
		RunE: func(cmd *cobra.Command, _ []string) error {
			in.out, in.say = cmd.OutOrStdout(), cmd.OutOrStdout()
			if in.asJSON {
				in.say = cmd.ErrOrStderr()
			}
			done, err := in.run(cmd.Context())
			if !in.asJSON {
				return err
			}
			if done != nil {
				if err != nil {
					done.Error = problemOf(err)
				}
				return errors.Join(printJSON(in.out, done), err)
			}
			return errors.Join(printJSON(in.out, problemOf(err)), quiet(exitCode(err)))
		}}
	in.flags(c)
	return c
}

func (in *setupRun) flags(c *cobra.Command) {
	f := c.Flags()
	for _, x := range [][2]string{
		{"manager", "secrets `manager`: " + strings.Join(managerNames(), ", ")},
		{"provider", "`name` of the secrets manager in broker.yaml (default corp)"},
		{"auth", "the daemon's `login`; vault: approle, cert, token; aws: instance, static, default; azure: managed-identity, client-certificate, client-secret, default; gcp: metadata, service-account, default"},
		{"address", "vault: `URL`"}, {"namespace", "vault: `namespace`"}, {"kv", "vault: `version` of the KV engine, 1 or 2"},
		{"mount", "vault: `mount` of the KV engine (default secret)"}, {"role", "vault: `name` of the AppRole in the policy (default credential-broker)"},
		{"region", "aws: `region`"}, {"account", "aws: `number` of the account in the policy"}, {"vault-url", "azure: `URL` of the vault"},
		{"tenant-id", "azure: `id` of the tenant"}, {"application-id", "azure: client `id` of the application"},
		{"project", "gcp: `id` of the project"}, {"store", "file: `directory` of the encrypted files"},
		{"ca-file", "`file` with the authority of the manager's certificate"}, {"proxy", "`URL` of the proxy to the manager"},
		{"client", "`name` of the client"}, {"preset", "`name` of the issuer's preset"}, {"path", "`name` of the client's secret"},
		{"contact", "`who` answers for the client"}, {"purpose", "`what` the client is for"},
		{"leak-by-hand", "`how` a person reports a leak, while broker.yaml has no section leak"},
		{"root", "write below `directory`, and leave systemd alone"},
	} {
		in.text[x[0]] = f.String(x[0], "", x[1])
	}
	f.StringArrayVar(&in.credential, "credential", nil, "a secret of the login, as in `NAME=FILE` (repeatable)")
	f.StringArrayVar(&in.allow, "allow", nil, "who may have tokens, as in `unit=NAME.service,user=NAME` (repeatable)")
	f.StringArrayVar(&in.set, "set", nil, "another setting of the client, as in `token_endpoint=URL` (repeatable)")
	f.StringArrayVar(&in.managerSet, "set-manager", nil, "another setting of the manager, as in `auth.approle.mount=NAME` (repeatable)")
	f.BoolVar(&in.writes, "write", false, "print the policy for a login that writes too: refresh tokens, new keys, intake")
	f.BoolVar(&in.replace, "replace", false, "replace what is there and differs")
	f.BoolVar(&in.dryRun, "dry-run", false, "show what would be written, and write nothing")
	f.BoolVar(&in.noStart, "no-start", false, "leave the daemon alone: no restart, no check of it")
	f.BoolVar(&in.yes, "yes", false, "go on without asking")
	f.BoolVar(&in.asJSON, "json", false, "print one JSON object; questions go to standard error")
}

type setupRun struct {
	*sockets
	text                                          map[string]*string // by flag
	credential, allow, set, managerSet            []string
	writes, replace, dryRun, noStart, yes, asJSON bool

	root     string
	stdin    *os.File
	out, say io.Writer
	person   *os.File // a terminal; nil: nobody is there
	missing  []string // flags that nobody was there to be asked for
	manager  managerForm
	login    loginForm
}

// setupResult is what --json prints.
type setupResult struct {
	Changed bool             `json:"changed"` // for --dry-run: would be
	DryRun  bool             `json:"dry_run,omitempty"`
	Files   []*setupFile     `json:"files"`
	Policy  policy.Policy    `json:"policy"`
	Live    []client.Finding `json:"live,omitempty"` // what broker check --live found
	Curl    string           `json:"curl"`           // the consumer's first request

	Error *client.Problem `json:"error,omitempty"` // what failed after everything was written
}

func (in *setupRun) run(ctx context.Context) (*setupResult, error) {
	if err := in.start(); err != nil {
		return nil, err
	}
	if err := in.form(ctx); err != nil {
		return nil, err
	}
	done := &setupResult{DryRun: in.dryRun, Curl: in.curl()}
	var err error
	if done.Policy, err = in.policy(); err != nil {
		return nil, usageError{err}
	}
	in.showPolicy(done.Policy)
	list := in.credentials()
	defer func() {
		for _, c := range list {
			c.value.Wipe()
		}
	}()
	if err := in.readCredentials(ctx, list); err != nil {
		return nil, err
	}
	if done.Files, err = in.plan(ctx, list); err != nil {
		return nil, err
	}
	for _, f := range done.Files {
		done.Changed = done.Changed || f.State != "unchanged"
	}
	if err := in.check(ctx, done.Files); err != nil {
		return nil, err
	}
	if err := in.show(ctx, done, list); err != nil || in.dryRun {
		return done, err
	}
	if err := in.write(done.Files); err != nil {
		return nil, err
	}
	return done, in.finish(ctx, done)
}

// start looks who is there, and whether the files may be written.
func (in *setupRun) start() error {
	for flag, text := range map[string]string{"provider": "corp", "role": "credential-broker"} {
		if in.get(flag) == "" {
			*in.text[flag] = text
		}
	}
	if in.root = in.get("root"); in.root != "" {
		root, err := filepath.Abs(in.root)
		if err != nil {
			return err
		}
		in.root = root
	}
	if isTerminal(in.stdin) {
		in.person = in.stdin
	}
	if err := secret.Harden(); err != nil {
		return err
	}
	if in.root == "" && os.Geteuid() != 0 && !in.dryRun {
		return failure{exitNotAllowed, errors.New("setup writes the system's configuration: run it as root, or with --dry-run to see what it would write")}
	}
	return nil
}

// preset gives what is known of an issuer, by key.
func (in *setupRun) preset(ctx context.Context, name string) (map[string]any, error) {
	program, err := findDaemon()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, program, "presets", "show", name, "--json")
	var problem bytes.Buffer
	cmd.Stderr = &problem
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil, failure{exit.ExitCode(), errors.New(strings.TrimPrefix(strings.TrimSpace(problem.String()), "broker: "))}
	}
	var preset struct {
		Values []struct {
			Key   string
			Value any
		}
	}
	if err = errors.Join(err, json.Unmarshal(out, &preset)); err != nil {
		return nil, fmt.Errorf("brokerd presets: %w", err)
	}
	facts := map[string]any{}
	for _, v := range preset.Values {
		facts[v.Key] = v.Value
	}
	return facts, nil
}

func (in *setupRun) policy() (policy.Policy, error) {
	place := policy.Place{Path: in.get("path"), Namespace: in.get("namespace"), Mount: in.get("mount"), Region: in.get("region"), Account: in.get("account"),
		VaultURL: in.get("vault-url"), Project: in.get("project")}
	if in.get("kv") == "1" {
		place.KV = 1
	}
	if in.login.name == "approle" {
		place.Role = in.get("role")
		for _, s := range in.managerSet {
			if mount, ok := strings.CutPrefix(s, "auth.approle.mount="); ok {
				place.Auth = mount
			}
		}
	}
	return policy.For(in.manager.name, place, in.writes)
}

func (in *setupRun) showPolicy(p policy.Policy) {
	if p.Text != "" {
		fmt.Fprintf(in.say, "\nThe least that %s has to allow:\n\n%s", in.manager.title, indentLines(p.Text))
	}
	if p.Install != "" {
		fmt.Fprintf(in.say, "\nSaved as policy.%s, it is put in force with:\n\n%s", p.Language, indentLines(p.Install))
	}
	for _, n := range p.Notes {
		fmt.Fprintf(in.say, "note: %s\n", n)
	}
	fmt.Fprintln(in.say)
}

func indentLines(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n  ") + "\n"
}

// isSealed says whether a file is a sealed secret, of which nothing is shown.
func isSealed(list []*credential, f *setupFile) bool {
	return slices.ContainsFunc(list, func(c *credential) bool { return sealedFile(c.unit) == f.Path })
}

// show says what will be written, and asks once.
func (in *setupRun) show(ctx context.Context, done *setupResult, list []*credential) error {
	for _, f := range done.Files {
		if in.dryRun && isSealed(list, f) {
			continue
		}
		fmt.Fprintf(in.say, "%-9s  %s\n", f.State, f.Path)
		if in.dryRun {
			f.Text = string(f.data)
			fmt.Fprint(in.say, indentLines(f.Text))
		}
	}
	if in.dryRun {
		for _, f := range done.Files {
			if isSealed(list, f) && f.State != "unchanged" {
				fmt.Fprintf(in.say, "to seal    %s\n", f.Path)
			}
		}
		fmt.Fprintln(in.say, "Nothing was written.")
		return nil
	}
	switch {
	case !done.Changed:
		fmt.Fprintln(in.say, "Everything is as it should be: nothing is to be written.")
		return nil
	case in.yes:
		return nil
	case in.person == nil:
		return usageError{errors.New("nobody is there to ask: say --yes; nothing was written")}
	}
	answer, err := in.answer(ctx, ask{question: "Write these? [y/N]", optional: true})
	if err == nil && !yes(answer) {
		err = failure{exitTryAgain, errors.New("nothing was written")}
	}
	return err
}

// finish has the daemon take what was written, and tries it.
func (in *setupRun) finish(ctx context.Context, done *setupResult) error {
	err := in.take(ctx, done)
	live := err == nil && !in.noStart && (in.root == "" || in.consumer != "" || in.admin != "")
	bad, empty := 0, false
	if live {
		for f, failed := range in.administration().Check(ctx) {
			if failed != nil {
				err = failed
				break
			}
			done.Live = append(done.Live, f)
			fmt.Fprintf(in.say, "%-8s %-7s %s: %s\n", f.Level, f.Check, f.Target, f.Detail)
			if f.Level == client.Error {
				bad++
				empty = empty || f.Check == "secret" && f.Target == in.get("client")
			}
		}
	}
	if err != nil {
		err = failure{exitCode(err), fmt.Errorf("everything is written, and not tried: %s; when that is mended, run broker check --live", explain(err))}
	}
	if live && err == nil && !slices.ContainsFunc(done.Live, func(f client.Finding) bool { return f.Target == in.get("client") }) {
		err = failure{exitUnavailable, fmt.Errorf("everything is written, and the daemon that answers does not know the client %s: it reads another configuration, or refused this one; see journalctl -u credential-broker", in.get("client"))}
	}
	if bad > 0 {
		err = failure{exitUnavailable, errors.New("everything is written, and not everything works yet: see what is said above; then run broker check --live")}
	}
	if empty {
		how := ""
		if in.manager.name == "file" {
			how = "--identity-file IDENTITY " // the sealed one is the daemon's alone
		}
		fmt.Fprintf(in.say, "\nThe policy has to be in force, and what the issuer sent is stored with: broker intake %sFILE %s\n", how, in.get("client"))
	}
	if !live && err == nil && done.Changed {
		fmt.Fprintln(in.say, "Then: systemctl daemon-reload; systemctl restart credential-broker; broker check --live")
	}
	fmt.Fprintf(in.say, "\nThe first token, as who is allowed:\n\n  %s\n", done.Curl)
	return err
}

// take makes systemd and the daemon take what is written, also by an earlier run
// that did not come so far: a login counts with the next start, a configuration
// with a reload.
func (in *setupRun) take(ctx context.Context, done *setupResult) error {
	if in.noStart || in.root != "" {
		return nil
	}
	if _, err := os.Stat("/run/systemd/system"); err != nil {
		return errors.New("systemd does not run here: start the daemon yourself")
	}
	if _, err := systemctl(ctx, "daemon-reload"); err != nil {
		return err
	}
	how := "reload-or-restart"
	if started, err := started(ctx); err != nil {
		return err
	} else if !started.IsZero() && slices.ContainsFunc(done.Files, func(f *setupFile) bool { return f.login() && changedSince(f.Path, started) }) {
		how = "restart"
	}
	_, err1 := systemctl(ctx, "enable", daemonUnit)
	_, err2 := systemctl(ctx, how, daemonUnit)
	if err2 != nil { // systemctl says no more than that it failed
		why, _ := exec.CommandContext(ctx, "journalctl", "--quiet", "--no-pager", "--output=cat", "--lines=5", "--unit="+daemonUnit).Output()
		err2 = fmt.Errorf("%w\nits journal ends with:\n%s", err2, indentLines(string(why)))
	}
	return errors.Join(err1, err2)
}

const daemonUnit = "credential-broker.service"

func systemctl(ctx context.Context, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput() // #nosec G204 -- constants
	if err != nil {
		return "", fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return strings.TrimSpace(string(out)), nil
}

// started is when the daemon that runs was started; zero: none runs.
func started(ctx context.Context) (time.Time, error) {
	out, err := systemctl(ctx, "show", "--property=ActiveEnterTimestampMonotonic", "--value", daemonUnit)
	if err != nil {
		return time.Time{}, err
	}
	micros, err := strconv.ParseInt(out, 10, 64)
	var now unix.Timespec
	if err = errors.Join(err, unix.ClockGettime(unix.CLOCK_MONOTONIC, &now)); err != nil || micros == 0 {
		return time.Time{}, err
	}
	return time.Now().Add(time.Duration(micros)*time.Microsecond - time.Duration(now.Nano())), nil
}

func changedSince(file string, t time.Time) bool {
	info, err := os.Stat(file)
	return err == nil && info.ModTime().After(t)
}

// curl is the consumer's first request.
func (in *setupRun) curl() string {
	socket := cmp.Or(in.consumer, "/run/credential-broker/broker.sock")
	return fmt.Sprintf("curl -sSf --unix-socket %s http://localhost/v1/clients/%s/token", socket, in.get("client"))
}
