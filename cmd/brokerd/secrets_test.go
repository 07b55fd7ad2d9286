package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"credentialbroker/internal/fake"
)

// forms are the ways in which a secret may hide in a text.
func forms(s string) map[string][]byte {
	m := map[string][]byte{"in clear": []byte(s), "URL-encoded": []byte(url.QueryEscape(s)), "path-encoded": []byte(url.PathEscape(s))}
	if j, err := json.Marshal(s); err == nil {
		m["as JSON"] = j[1 : len(j)-1]
	}
	for shift := range 3 { // the three alignments within a longer text
		padded := append(make([]byte, shift), s...)
		std := base64.RawStdEncoding.EncodeToString(padded[:len(padded)/3*3])
		m[fmt.Sprint("base64+", shift)] = []byte(std[(shift*8+5)/6+1:])
		m[fmt.Sprint("base64url+", shift)] = []byte(base64.RawURLEncoding.EncodeToString(padded[:len(padded)/3*3])[(shift*8+5)/6+1:])
	}
	seen := map[string]bool{}
	for name, pattern := range m { // most values look the same in several forms
		if len(pattern) < 8 || seen[string(pattern)] {
			delete(m, name)
		}
		seen[string(pattern)] = true
	}
	return m
}

// drive uses every path of the daemon, the failing ones too, and gives every
// token that it saw. With misuse, consumers also send secrets where they do
// not belong.
func (s *site) drive(misuse bool) (tokens []string) {
	s.t.Helper()
	get := func(want int, path string) string {
		s.t.Helper()
		code, body := s.do("broker.sock", "GET", path, "")
		if code != want {
			s.t.Errorf("GET %s: %d %s, want %d", path, code, body, want)
		}
		return body
	}
	take := func() {
		s.t.Helper()
		var t struct {
			AccessToken string `json:"access_token"`
		}
		body := get(200, "/v1/clients/vdab/token")
		if err := json.Unmarshal([]byte(body), &t); err != nil || t.AccessToken == "" {
			s.t.Fatalf("no token in %q", body)
		}
		tokens = append(tokens, t.AccessToken)
	}
	take()
	get(200, "/v1/clients/vdab/headers")
	get(200, "/v1/clients/vdab/api-key")
	get(200, "/v1/whoami")
	get(200, "/healthz")
	get(403, "/v1/clients/closed/token")
	s.do("broker.sock", "POST", "/v1/clients/vdab/reject", `{"access_token":"`+tokens[0]+`","status":401}`)
	if misuse {
		get(403, "/v1/clients/"+tokens[0][:60]+"/token") // somebody pastes a token where the name belongs
		get(403, "/v1/clients/vdab/token?scope="+url.QueryEscape(s.client.APIKey))
		get(400, "/v1/clients/vdab/token?client_secret="+url.QueryEscape(s.client.Secret))
		for _, body := range []string{
			`{"access_token":"` + tokens[0] + `","status":401,"more_information":"Invalid client id or secret. ` + s.client.Secret + `"}`,
			`{"access_token":"` + tokens[0] + `","status":401,"nonsense":"` + s.client.Secret + `"}`,
			`{"access_token":"` + tokens[0],
		} {
			s.do("broker.sock", "POST", "/v1/clients/vdab/reject", body)
		}
	}
	// An issuer that repeats what it was sent, in every way of failing.
	for _, kind := range []fake.FaultKind{fake.HTML, fake.Empty, fake.Forbidden, fake.Maintenance, fake.Reset, fake.BadToken, fake.Redirect, fake.InvalidClient} {
		s.issuer.Set(fake.Fault{Kind: kind})
		s.do("admin.sock", "POST", "/v1/clients/vdab/retry", "{}")
		s.do("broker.sock", "GET", "/v1/clients/vdab/token?min_ttl=2h", "")
	}
	s.issuer.Set(fake.Fault{})
	s.do("admin.sock", "POST", "/v1/clients/vdab/retry", "{}")
	take()
	// A damaged store, a missing field, a configuration with a secret in it.
	good, err := os.ReadFile(s.path("secrets", "vdab.age"))
	if err != nil {
		s.t.Fatal(err)
	}
	s.write("secrets/vdab.age", string(good[:len(good)-5]))
	s.do("admin.sock", "POST", "/v1/clients/vdab/rotate", "{}")
	s.write("secrets/vdab.age", string(good))
	s.do("admin.sock", "POST", "/v1/clients/vdab/rotate", "{}")
	if misuse {
		s.write("broker.yaml", s.config()+"client_secret: "+strconv.Quote(s.client.Secret)+"\n")
		if code, body := s.do("admin.sock", "POST", "/v1/reload", "{}"); code == 200 {
			s.t.Errorf("a configuration with a secret was taken: %s", body)
		}
	}
	s.write("broker.yaml", s.config())
	s.do("admin.sock", "POST", "/v1/reload", "{}")
	for _, path := range []string{"/v1/status", "/metrics", "/v1/audit", "/v1/audit/denied"} {
		if code, body := s.do("admin.sock", "GET", path, ""); code != 200 {
			s.t.Errorf("GET %s: %d %s", path, code, body)
		} else {
			s.search(path, []byte(body), tokens)
		}
	}
	_, findings := s.do("admin.sock", "POST", "/v1/check", "{}")
	s.search("check --live", []byte(findings), tokens)
	return tokens
}

// search looks for every secret of the site, in every form.
func (s *site) search(where string, text []byte, tokens []string) {
	s.t.Helper()
	known := map[string]string{"client secret": s.client.Secret, "API key": s.client.APIKey, "provider login": s.identity}
	for i, t := range tokens {
		known[fmt.Sprint("token ", i)] = t
		known[fmt.Sprint("signature of token ", i)] = t[len(t)-60:]
	}
	for name, value := range known {
		for form, pattern := range forms(value) {
			if at := bytes.Index(text, pattern); at >= 0 {
				s.t.Errorf("%s holds the %s %s", where, name, form)
			}
		}
	}
}

// Promise 7: nothing secret in logs, audit, standard error, environment,
// arguments or state, whatever happens.
func TestSecretsStayIn(t *testing.T) {
	s := newSite(t)
	s.start()
	tokens := s.drive(true)
	pid := strconv.Itoa(s.cmd.Process.Pid)
	for _, f := range []string{"environ", "cmdline", "comm"} {
		b, err := os.ReadFile(filepath.Join("/proc", pid, f))
		if err != nil {
			t.Errorf("%v: run as root, or as the daemon's user", err)
		}
		s.search("/proc/PID/"+f, b, tokens)
	}
	s.stop(syscall.SIGTERM)
	s.search("standard error", []byte(s.stderr.String()), tokens)
	files := 0
	err := filepath.WalkDir(s.path("state"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		files++
		s.search(path, b, tokens)
		return err
	})
	if err != nil || files == 0 {
		t.Errorf("%d files of state were searched: %v", files, err)
	}
	// The search itself can fail: it finds what is there.
	probe := &site{t: &testing.T{}, client: s.client, identity: s.identity}
	probe.search("probe", []byte("x"+base64.StdEncoding.EncodeToString([]byte("ab"+s.client.Secret+"c"))), nil)
	if !probe.t.Failed() {
		t.Error("the search does not find a secret in base64")
	}
}

var mapping = regexp.MustCompile(`^([0-9a-f]+)-([0-9a-f]+) (\S+) \S+ \S+ \S+ *(.*)$`)

// Promise 7: no readable copy of a client secret in the process's memory a
// minute after its use. Root reads all of it through /proc/PID/mem.
func TestMemoryAMinuteLater(t *testing.T) {
	if os.Getuid() != 0 {
		t.Log("only root may read the memory of a process that forbids it: nothing was looked at")
		return
	}
	s := newSite(t)
	s.start()
	tokens := s.drive(false)
	<-time.After(time.Minute)
	counts := s.memory(tokens)
	t.Logf("readable copies a minute after use: %v", counts)
	if n := counts["client secret"]; n != 0 {
		t.Errorf("%d readable copies of the client secret, want 0", n)
	}
}

// memory counts copies by what they are, logging the mapping of each.
func (s *site) memory(tokens []string) map[string]int {
	s.t.Helper()
	pid := strconv.Itoa(s.cmd.Process.Pid)
	maps, err := os.ReadFile(filepath.Join("/proc", pid, "maps"))
	if err != nil {
		s.t.Fatal(err)
	}
	mem, err := os.Open(filepath.Join("/proc", pid, "mem"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer mem.Close()
	known := map[string]string{"client secret": s.client.Secret, "API key": s.client.APIKey, "provider login": s.identity, "token": tokens[len(tokens)-1]}
	counts := map[string]int{"client secret": 0, "API key": 0, "provider login": 0, "token": 0}
	read := 0
	for line := range strings.Lines(string(maps)) {
		m := mapping.FindStringSubmatch(strings.TrimSpace(line))
		if m == nil || !strings.HasPrefix(m[3], "r") || strings.HasPrefix(m[4], "[v") {
			continue
		}
		from, _ := strconv.ParseInt(m[1], 16, 64)
		to, _ := strconv.ParseInt(m[2], 16, 64)
		b := make([]byte, to-from)
		n, _ := mem.ReadAt(b, from) // secret memory gives an error
		read += n
		for name, value := range known {
			for form, pattern := range forms(value) {
				if c := bytes.Count(b[:n], pattern); c > 0 {
					counts[name] += c
					s.t.Logf("%s, %s: %d in %s %s %s", name, form, c, m[3], m[1], m[4])
				}
			}
		}
	}
	if read < 1<<20 {
		s.t.Errorf("only %d bytes of memory could be read", read)
	}
	return counts
}
