//go:build real

package issuers

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"credentialbroker/api/client"
)

// newKey has the broker make a key, as an administrator would.
func (w *world) newKey(t *testing.T, name, kind string, certificate bool) (made client.Key) {
	t.Helper()
	args := []string{"keys", "new", name, "--kind", kind, "--json"}
	if certificate {
		args = append(args, "--certificate")
	}
	var shown client.Key
	out := w.broker(t, args...)
	if err := json.Unmarshal([]byte(out), &made); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f := w.fields(name)
	if block, _ := pem.Decode([]byte(f["private_key"])); block == nil || strings.Contains(out, "PRIVATE") {
		t.Errorf("the private key is not where it belongs")
	} else {
		w.hide(name+"'s private key", string(block.Bytes))
	}
	out = w.broker(t, "keys", "show", name, "--json")
	if err := json.Unmarshal([]byte(out), &shown); err != nil || shown.KeyID != made.KeyID || !bytes.Equal(compact(t, shown.JWK), compact(t, made.JWK)) {
		t.Errorf("keys show prints another key than keys new: %v\n%s", err, out)
	}
	return made
}

func compact(t *testing.T, raw []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := json.Compact(&out, raw); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// accept has a new version tried, which the issuer may have refused before it
// knew the key.
func (w *world) accept(t *testing.T, name string) {
	t.Helper()
	if _, err := w.try("retry", name); err != nil {
		t.Log(err)
	}
	if out, err := w.try("rotate", name); err != nil {
		t.Fatalf("%v\n%s\n%+v", err, out, w.status(t, name))
	}
}

// login has a person log in: browser is given the address that is printed.
func (w *world) login(t *testing.T, name string, paste bool, browser func(url string) (back string)) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	args := []string{"login", name}
	if paste {
		args = append(args, "--paste")
	}
	w.converse(t, w.command(ctx, args...), paste, browser)
}

// converse runs a command that logs in, and is its person.
func (w *world) converse(t *testing.T, cmd *exec.Cmd, paste bool, browser func(url string) (back string)) {
	t.Helper()
	out, err1 := cmd.StdoutPipe()
	in, err2 := cmd.StdinPipe()
	var problem bytes.Buffer
	cmd.Stderr = &problem
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	said := ""
	for lines.Scan() {
		said += lines.Text() + "\n"
		address := strings.TrimSpace(lines.Text())
		if !strings.HasPrefix(address, "https://") {
			continue
		}
		back := browser(address)
		if paste {
			if _, err := io.WriteString(in, back+"\n"); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("broker login: %v\n%s%s%s", err, said, problem.String(), w.daemon.Output())
	}
}

// wantsLogin checks that a client says what to do before anybody has logged in.
func (w *world) wantsLogin(t *testing.T, name string) {
	t.Helper()
	_, err := w.ask.Token(t.Context(), name, client.Options{})
	p, ok := err.(*client.Problem) //nolint:errorlint // Token promises this very type
	if !ok || p.Code != client.LoginRequired || !strings.Contains(p.Detail, "broker login "+name) {
		t.Errorf("before the login: %v", err)
	}
}

// browse is a browser whose person has logged in already. With stop it does
// not reach the redirect's address, which is given then.
func (w *world) browse(t *testing.T, start string, stop bool) (back string) {
	t.Helper()
	browser := &http.Client{Transport: w.transport(), CheckRedirect: func(r *http.Request, _ []*http.Request) error {
		back = r.URL.String()
		w.hide("a code", r.URL.Query().Get("code"))
		if stop {
			return http.ErrUseLastResponse
		}
		return nil
	}}
	resp, err := browser.Get(start)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if !stop && resp.StatusCode != http.StatusOK {
		t.Errorf("the browser shows %s at the end", resp.Status)
	}
	return back
}
