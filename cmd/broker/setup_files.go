package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"credentialbroker/internal/durable"
)

// Rules of this file:
//   - broker.yaml keeps every line that is not the provider's own;
//   - nothing is put in place before all of it is made and checked, and what
//     was is put back if something fails on the way.

const (
	configFile = "/etc/credential-broker/broker.yaml"
	clientsDir = "/etc/credential-broker/clients.d/"
	dropInDir  = "/etc/systemd/system/credential-broker.service.d/"
)

// A setupFile is a file as it is to be.
type setupFile struct {
	Path  string `json:"path"`
	State string `json:"state"`          // created, changed, unchanged
	Text  string `json:"text,omitempty"` // with --dry-run; sealed files: none

	data   []byte
	mode   fs.FileMode
	owner  *syscall.Stat_t // who has it; nil: it is not there
	before []byte          // nil: there is none
	own    bool            // it has nothing but what setup writes: a difference is somebody's change
}

// login says whether the file is read when the daemon starts, and only then.
func (f *setupFile) login() bool { return filepath.Ext(f.Path) != ".yaml" }

// at is where a file of the system is: below --root.
func (in *setupRun) at(name string) string { return filepath.Join(in.root, name) }

// file plans a file, and finds out what is there.
func (in *setupRun) file(name string, data []byte, mode fs.FileMode, own bool) (*setupFile, error) {
	f := &setupFile{Path: name, State: "created", data: data, mode: mode, own: own}
	info, err := os.Lstat(in.at(name))
	var before []byte
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is a link, or no file: setup would put a file in its place; write it where it leads, or make it a file", name)
	} else if err == nil {
		f.owner, _ = info.Sys().(*syscall.Stat_t)
		if !own {
			f.mode = info.Mode().Perm()
		}
		before, err = os.ReadFile(in.at(name))
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, failure{exitNotAllowed, fmt.Errorf("%w; nothing was written", err)}
	case bytes.Equal(before, data):
		f.State, f.before = "unchanged", before
	default:
		f.State, f.before = "changed", before
	}
	return f, nil
}

// plan makes all files. What somebody has changed is refused without --replace.
func (in *setupRun) plan(ctx context.Context, list []*credential) ([]*setupFile, error) {
	var files []*setupFile
	var dropIn strings.Builder
	fmt.Fprintf(&dropIn, "# The login at the secrets manager %s, sealed for this machine by broker setup.\n[Service]\n", in.get("provider"))
	for _, c := range list {
		fmt.Fprintf(&dropIn, "LoadCredentialEncrypted=%s:%s\n", c.unit, sealedFile(c.unit))
		data, err := in.seal(ctx, c)
		if err != nil {
			return nil, err
		}
		_, err = os.Lstat(in.at(sealedFile(c.unit)))
		if data == nil && (!in.dryRun || !errors.Is(err, fs.ErrNotExist)) {
			files = append(files, &setupFile{Path: sealedFile(c.unit), State: "unchanged"})
			continue
		}
		f, err := in.file(sealedFile(c.unit), data, 0o600, true)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	if len(list) > 0 {
		name := in.get("provider")
		if in.manager.name == "systemd" { // each client has a credential of its own
			name += "-" + in.get("path")
		}
		f, err := in.file(dropInDir+"setup-"+name+".conf", []byte(dropIn.String()), 0o644, true)
		if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	before, err := os.ReadFile(in.at(configFile))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, failure{exitNotAllowed, fmt.Errorf("%w; nothing was written", err)}
	}
	text, err := in.editConfig(string(before))
	if err != nil {
		return nil, err
	}
	config, err1 := in.file(configFile, []byte(text), 0o644, false)
	client, err2 := in.file(clientsDir+in.get("client")+".yaml", []byte(in.clientText()), 0o644, true)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	files = append(files, config, client)
	for _, f := range files {
		if f.own && f.State == "changed" && !in.replace {
			return nil, failure{exitData, fmt.Errorf("%s is there with something else in it: look at it, then say --replace, or choose another name. Nothing was written", f.Path)}
		}
	}
	return files, nil
}

// check has the whole configuration checked as it would be.
func (in *setupRun) check(ctx context.Context, files []*setupFile) error {
	dir, err := os.MkdirTemp("", "broker-setup-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	args := []string{"check", "--config", in.at(configFile)}
	for i, f := range files {
		if filepath.Ext(f.Path) != ".yaml" {
			continue
		}
		name := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(name, f.data, 0o600); err != nil {
			return err
		}
		args = append(args, "--replace", in.at(f.Path)+"="+name)
	}
	program, err := findDaemon()
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, args...)
	var problem bytes.Buffer
	cmd.Stderr = &problem
	out, err := cmd.Output()
	var exit *exec.ExitError
	switch {
	case ctx.Err() != nil:
		return interrupted()
	case errors.As(err, &exit):
		return failure{exit.ExitCode(), fmt.Errorf("the configuration would be wrong, and nothing was written:\n%s", strings.TrimSpace(problem.String()))}
	case err != nil:
		return err
	}
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "warning: ") {
			fmt.Fprint(in.say, line)
		}
	}
	return nil
}

// write puts the files in place, or leaves everything as it was.
func (in *setupRun) write(files []*setupFile) error {
	for i, f := range files {
		if f.State == "unchanged" {
			continue
		}
		mode := fs.FileMode(0o755)
		if f.mode == 0o600 {
			mode = 0o700
		}
		err := os.MkdirAll(filepath.Dir(in.at(f.Path)), mode)
		if err == nil {
			err = in.put(f, f.data)
		}
		if err == nil {
			continue
		}
		for _, done := range files[:i] {
			var undo error
			switch done.State {
			case "created":
				undo = durable.Remove(in.at(done.Path))
			case "changed":
				undo = in.put(done, done.before)
			}
			if undo != nil {
				return failure{exitUnavailable, fmt.Errorf("%s could not be written (%w), and %s could not be put back as it was: %w", f.Path, err, done.Path, undo)}
			}
		}
		return failure{exitUnavailable, fmt.Errorf("%s could not be written: %w; everything is as it was", f.Path, err)}
	}
	return nil
}

// put writes a file, which stays whose it was.
func (in *setupRun) put(f *setupFile, data []byte) error {
	if err := durable.ReplaceMode(in.at(f.Path), data, f.mode); err != nil {
		return err
	}
	if f.owner == nil {
		return nil
	}
	return os.Lchown(in.at(f.Path), int(f.owner.Uid), int(f.owner.Gid))
}

// editConfig puts the provider into broker.yaml, whose other lines stay.
func (in *setupRun) editConfig(before string) (string, error) {
	text := before
	if strings.TrimSpace(text) == "" {
		text = "# Configuration of the credential broker: credential-broker.yaml(5). When it is\n# changed, run broker check, then systemctl reload credential-broker.\n"
	}
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if why := in.get("leak-by-hand"); why != "" && !in.reported() {
		lines = append(lines, "", "leak_by_hand: "+scalar(why))
	}
	head := slices.IndexFunc(lines, func(l string) bool { return regexp.MustCompile(`^["']?providers["']?\s*:`).MatchString(l) })
	if head < 0 {
		return strings.Join(append(append(lines, "", "providers:"), in.providerLines(2)...), "\n") + "\n", nil
	}
	rest, _, _ := strings.Cut(strings.TrimSpace(lines[head][strings.Index(lines[head], ":")+1:]), "#")
	switch strings.TrimSpace(rest) {
	case "":
	case "{}":
		lines[head] = "providers:"
	default:
		return "", failure{exitData, fmt.Errorf("%s has its providers on one line: put each on lines of its own first, as in\nproviders:\n  NAME:\nNothing was written", configFile)}
	}
	first, last, indent := block(lines, head, in.get("provider"))
	own := in.providerLines(indent)
	switch {
	case first < 0:
		lines = slices.Insert(lines, head+1, own...)
	case slices.Equal(lines[first:last], own) && (in.get("leak-by-hand") == "" || in.reported()):
		return before, nil
	case slices.Equal(lines[first:last], own):
	case !in.replace:
		return "", failure{exitData, fmt.Errorf("%s has a provider %s already, with other settings: look at it, then say --replace, or name yours with --provider. Nothing was written", configFile, in.get("provider"))}
	default:
		lines = slices.Replace(lines, first, last, own...)
	}
	return strings.Join(lines, "\n") + "\n", nil
}

// block finds the lines of a key below the line head, without the empty lines
// and comments behind it, and how deep the keys there are. first -1: it is not
// there.
func block(lines []string, head int, key string) (first, last, indent int) {
	first, indent = -1, 2
	measured := false
	for i := head + 1; i < len(lines); i++ {
		text := strings.TrimLeft(lines[i], " ")
		depth := len(lines[i]) - len(text)
		if text == "" || text[0] == '#' {
			continue
		}
		if depth == 0 {
			break
		}
		if !measured {
			indent, measured = depth, true
		}
		switch {
		case depth > indent && first >= 0:
			last = i + 1
		case depth == indent && first >= 0:
			return first, last, indent
		case depth == indent && regexp.MustCompile(`^["']?`+regexp.QuoteMeta(key)+`["']?\s*:`).MatchString(text):
			first, last = i, i+1
		}
	}
	return first, last, indent
}

// reported says whether broker.yaml says how a leak is reported.
func (in *setupRun) reported() bool {
	text, _ := os.ReadFile(in.at(configFile))
	return regexp.MustCompile(`(?m)^["']?leak(_by_hand)?["']?\s*:`).Match(text)
}

// A pair is a key, with the keys above it, and its value.
type pair struct{ key, value string }

// providerLines are the provider's section.
func (in *setupRun) providerLines(indent int) []string {
	var pairs []pair
	for _, a := range slices.Concat(in.manager.asks, in.login.asks) {
		if text := in.get(a.flag); a.key != "" && text != "" && (a.key != "kv" || text != "2") {
			pairs = append(pairs, pair{a.key, in.scalarOf(a.key, text)})
		}
	}
	for _, s := range in.login.secrets {
		pairs = append(pairs, pair{s.key, "${CREDENTIALS_DIRECTORY}/" + in.get("provider") + "-" + s.name})
	}
	for _, s := range in.managerSet {
		key, value, _ := strings.Cut(s, "=")
		pairs = append(pairs, pair{key, literal(value)})
	}
	if key, value, ok := strings.Cut(in.login.bare, "="); ok && !slices.ContainsFunc(pairs, func(p pair) bool { return strings.HasPrefix(p.key, key+".") }) {
		pairs = append(pairs, pair{key, value})
	}
	pad := strings.Repeat(" ", indent)
	lines := []string{pad + in.get("provider") + ":"}
	if len(pairs) == 0 {
		return append(lines, pad+"  "+in.manager.name+": {}")
	}
	return append(append(lines, pad+"  "+in.manager.name+":"), nested(pairs, indent+4)...)
}

func (in *setupRun) scalarOf(key, text string) string {
	if key == "kv" {
		return literal(text)
	}
	return scalar(text)
}

// nested writes pairs as YAML; those below one key come together.
func nested(pairs []pair, indent int) (lines []string) {
	pad := strings.Repeat(" ", indent)
	done := map[string]bool{}
	for _, p := range pairs {
		key, _, deeper := strings.Cut(p.key, ".")
		if !deeper {
			lines = append(lines, pad+key+": "+p.value)
			continue
		}
		if done[key] {
			continue
		}
		done[key] = true
		var below []pair
		for _, other := range pairs {
			if rest, ok := strings.CutPrefix(other.key, key+"."); ok {
				below = append(below, pair{rest, other.value})
			}
		}
		lines = append(append(lines, pad+key+":"), nested(below, indent+2)...)
	}
	return lines
}

// clientText is the client's file.
func (in *setupRun) clientText() string {
	var b strings.Builder
	secretPlace := "provider: " + in.get("provider")
	if in.manager.name == "vault" {
		secretPlace += ", mount: " + scalar(in.get("mount"))
	}
	fmt.Fprintf(&b, "# Written by broker setup. Who may have its tokens stands under allow.\nclients:\n  %s:\n    preset: %s\n    secret: { %s, path: %s }\n    owner: { contact: %s, purpose: %s }\n",
		in.get("client"), scalar(in.get("preset")), secretPlace, scalar(in.get("path")), scalar(in.get("contact")), scalar(in.get("purpose")))
	for _, s := range in.set {
		key, value, _ := strings.Cut(s, "=")
		fmt.Fprintf(&b, "    %s: %s\n", key, literal(value))
	}
	b.WriteString("    allow:\n")
	for _, a := range in.allow {
		text, _ := entry(a) // valid has looked at it
		fmt.Fprintf(&b, "      - %s\n", text)
	}
	return b.String()
}

// scalar is a text as YAML: as it is where it can be nothing else.
func scalar(s string) string {
	plain := regexp.MustCompile(`^[A-Za-z/][A-Za-z0-9_./:@+-]*$`)
	word := regexp.MustCompile(`(?i)^(true|false|yes|no|on|off|null|y|n)$`)
	if plain.MatchString(s) && !word.MatchString(s) && !strings.HasSuffix(s, ":") {
		return s
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(s) // a text has no error
	return strings.TrimSpace(b.String())
}

// literal is scalar for a value that may also be a number, true or false.
func literal(s string) string {
	if regexp.MustCompile(`^(\d{1,9}|true|false)$`).MatchString(s) {
		return s
	}
	return scalar(s)
}
