package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"time"

	"credentialbroker/internal/secret"
)

// Rules of this file:
//   - a secret comes from a prompt without echo, standard input, or a file that
//     a flag names (/dev/fd/3 is one), and leaves through a pipe to
//     systemd-creds alone;
//   - an error never shows what --credential was given: it may be the secret.

const (
	maxLogin = 64 << 10 // bytes of one secret of a login
	sealTime = time.Minute
)

// A credential is one secret of the daemon's own login.
type credential struct {
	form  sealedForm
	unit  string        // its name for the unit, and of its sealed file
	value secret.Secret // empty: what is sealed already stays
}

// credentials are what the login has to be given; their values are not read
// yet.
func (in *setupRun) credentials() (list []*credential) {
	if in.manager.name == "systemd" {
		return []*credential{{form: sealedForm{name: "bundle", question: "The client's fields, as one JSON object"}, unit: in.get("path")}}
	}
	for _, s := range in.login.secrets {
		list = append(list, &credential{form: s, unit: in.get("provider") + "-" + s.name})
	}
	return list
}

// read gets the values, by name: --credential NAME=FILE, or from a person.
func (in *setupRun) readCredentials(ctx context.Context, list []*credential) error {
	from, order, err := in.sources(list)
	if err != nil {
		return err
	}
	lines := 0
	for _, name := range order {
		if from[name] == "-" {
			lines++
		}
	}
	for _, name := range order {
		for _, c := range list {
			if c.form.name != name {
				continue
			}
			if c.value, err = in.readFrom(ctx, c.form, from[name], lines > 1); err != nil {
				return err
			}
		}
	}
	for _, c := range list {
		if _, given := from[c.form.name]; given {
			continue
		}
		if err := in.prompt(ctx, c); err != nil {
			return err
		}
	}
	if len(in.missing) > 0 && !in.dryRun {
		return usageError{fmt.Errorf("nobody is there to ask, and nothing is sealed yet: give %s. Nothing was written", strings.Join(in.missing, ", "))}
	}
	return nil
}

// sources takes --credential apart.
func (in *setupRun) sources(list []*credential) (from map[string]string, order []string, _ error) {
	from = map[string]string{}
	var names []string
	for _, c := range list {
		names = append(names, c.form.name)
	}
	for _, text := range in.credential {
		name, file, ok := strings.Cut(text, "=")
		known := false
		for _, n := range names {
			known = known || n == name
		}
		switch {
		case !ok || file == "":
			return nil, nil, usageError{errors.New("--credential: want NAME=FILE, where - is standard input: secrets do not stand on the command line")}
		case !known && len(names) == 0:
			return nil, nil, usageError{fmt.Errorf("--credential: the login %s has no secret", in.login.name)}
		case !known:
			return nil, nil, usageError{fmt.Errorf("--credential: want NAME=FILE with one of %s as NAME", strings.Join(names, ", "))}
		case from[name] != "":
			return nil, nil, usageError{fmt.Errorf("--credential %s=… is there twice", name)}
		}
		from[name] = file
		order = append(order, name)
	}
	return from, order, nil
}

// readFrom reads a secret: one line of standard input, if that has several.
func (in *setupRun) readFrom(ctx context.Context, form sealedForm, file string, oneLine bool) (secret.Secret, error) {
	f := in.stdin
	if file != "-" {
		opened, err := os.Open(file)
		if err != nil {
			return secret.Secret{}, failure{exitData, fmt.Errorf("the file of --credential %s=… cannot be read: %w; nothing was written", form.name, reasonOf(err))}
		}
		defer opened.Close()
		f = opened
	}
	var text []byte
	var err error
	if file == "-" && oneLine {
		text, err = readBytes(ctx, f)
	} else {
		text, err = readAll(ctx, f, maxLogin)
	}
	switch {
	case ctx.Err() != nil:
		return secret.Secret{}, interrupted()
	case err != nil && !errors.Is(err, io.ErrUnexpectedEOF):
		return secret.Secret{}, failure{exitData, fmt.Errorf("--credential %s=…: %w; nothing was written", form.name, reasonOf(err))}
	}
	defer clear(text)
	trimmed := bytes.TrimRight(text, "\r\n")
	if len(trimmed) == 0 || len(text) == maxLogin {
		return secret.Secret{}, failure{exitData, fmt.Errorf("--credential %s=…: there is nothing in it, or too much; nothing was written", form.name)}
	}
	if problem := form.problem(bytes.TrimSpace(trimmed)); problem != "" {
		return secret.Secret{}, failure{exitData, fmt.Errorf("--credential %s=…: %s; nothing was written", form.name, problem)}
	}
	return secret.New(bytes.Clone(trimmed)), nil
}

// prompt asks a person; Enter keeps what is sealed already.
func (in *setupRun) prompt(ctx context.Context, c *credential) error {
	_, err := os.Stat(in.at(sealedFile(c.unit)))
	there := err == nil
	if in.person == nil || in.dryRun {
		if !there {
			in.missing = append(in.missing, "--credential "+c.form.name+"=FILE")
		}
		return nil
	}
	if strings.Contains(c.form.question, "PEM") || strings.HasSuffix(c.form.question, "JSON") {
		return in.promptFile(ctx, c, there)
	}
	show, err := hide(in.person)
	if err != nil {
		return err
	}
	defer show()
	how, keep := "nothing shows", "Enter"
	if c.form.long() {
		how, keep = "nothing shows; paste it, then Enter and Ctrl-D", "Ctrl-D"
	}
	if there {
		how += "; " + keep + " keeps the sealed one"
	}
	for {
		fmt.Fprintf(in.say, "%s (%s): ", c.form.question, how)
		text, err := in.typed(ctx, c.form)
		if err != nil || c.form.long() && len(text) == 0 && !there {
			return interrupted()
		}
		problem := c.form.problem(text)
		if !c.form.long() && discard(in.person) {
			problem = "it has several lines, and one is wanted"
		}
		switch {
		case len(text) == 0 && problem == "" && there:
			return nil
		case len(text) > 0 && problem == "":
			c.value = secret.New(bytes.Clone(text))
			clear(text)
			return nil
		}
		clear(text)
		if problem != "" {
			fmt.Fprintln(in.say, "Not taken: "+problem+".")
		}
	}
}

// typed is what a person types without echo: one line, or until Ctrl-D.
func (in *setupRun) typed(ctx context.Context, f sealedForm) (text []byte, err error) {
	if f.long() {
		text, err = readAll(ctx, in.person, maxLogin)
	} else if text, err = readBytes(ctx, in.person); errors.Is(err, io.ErrUnexpectedEOF) {
		text, err = nil, errors.New("Ctrl-D")
	}
	return bytes.TrimSpace(text), err
}

// long says whether a secret has several lines that a person can paste.
func (f sealedForm) long() bool { return f.name == "identity" || f.name == "bundle" }

// problem says what is wrong with the look of a secret; nothing, of an empty one.
func (f sealedForm) problem(text []byte) string {
	pem := strings.Contains(f.question, "PEM") || strings.HasSuffix(f.question, "JSON")
	switch {
	case len(text) == 0 || pem:
	case f.name == "identity" && !bytes.HasPrefix(text, []byte("AGE-SECRET-KEY-")) && !bytes.Contains(text, []byte("\nAGE-SECRET-KEY-")):
		return "it is no age identity, which has a line that begins with AGE-SECRET-KEY-"
	case f.name == "bundle" && (text[0] != '{' || !json.Valid(text)):
		return "it is no JSON object, or not a whole one; a terminal takes 4095 characters a line: a longer one has to come from --credential bundle=FILE"
	case !f.long() && bytes.ContainsAny(text, "\r\n"):
		return "it has several lines, and one is wanted"
	}
	return ""
}

// promptFile asks for the name of a file: what it holds has more than one line.
func (in *setupRun) promptFile(ctx context.Context, c *credential, there bool) error {
	name, err := in.answer(ctx, ask{question: c.form.question + ": name of the file that holds it", optional: there})
	if err != nil || name == "" {
		return err
	}
	c.value, err = in.readFrom(ctx, c.form, name, false)
	return err
}

func sealedFile(name string) string { return "/etc/credstore.encrypted/" + name }

// seal gives the sealed file of a credential; nil: what is there stays, since it
// holds the same, or nothing else was given. With --dry-run it is empty.
func (in *setupRun) seal(ctx context.Context, c *credential) ([]byte, error) {
	if c.value.Empty() {
		return nil, nil
	}
	program, err := exec.LookPath("systemd-creds")
	if err != nil {
		return nil, failure{exitUnavailable, errors.New("this host has no systemd-creds (systemd 250 or later, which RHEL 8, Debian 11 and Ubuntu 20.04 have not): " +
			"the login cannot be sealed. Nothing was written. Without it, put the login into a file that the user credential-broker alone may read, and name that file in broker.yaml by hand")}
	}
	if old, err := os.ReadFile(in.at(sealedFile(c.unit))); err == nil {
		text, err := runWith(ctx, program, old, "decrypt", "--name="+c.unit, "-", "-")
		same := err == nil && c.value.Use(func(b []byte) error {
			if !bytes.Equal(b, bytes.TrimRight(text, "\r\n")) {
				return errors.New("another one")
			}
			return nil
		}) == nil
		clear(text)
		if same {
			return nil, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, failure{exitUnavailable, fmt.Errorf("%w; nothing was written", err)}
	}
	if in.dryRun {
		return []byte{}, nil // sealing may make the host's key
	}
	var out []byte
	err = c.value.Use(func(b []byte) (err error) {
		out, err = runWith(ctx, program, b, "encrypt", "--name="+c.unit, "-", "-")
		return err
	})
	if err == nil && len(out) == 0 {
		err = errors.New("it gave nothing")
	}
	if err != nil {
		return nil, failure{exitUnavailable, fmt.Errorf("systemd-creds could not seal %s: %w. Nothing was written", c.form.name, err)}
	}
	return out, nil
}

// runWith gives input to a program, and what it writes.
func runWith(ctx context.Context, program string, input []byte, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, sealTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	var problem bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(input), &problem
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	if err == nil {
		return out, nil
	}
	clear(out)
	if text, _, _ := strings.Cut(strings.TrimSpace(problem.String()), "\n"); text != "" {
		err = fmt.Errorf("%w: %s", err, text)
	}
	return nil, err
}
