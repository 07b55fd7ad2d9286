//go:build real

package vault_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"credentialbroker/integration/real"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/outbound"
	"credentialbroker/providers"
	"credentialbroker/providers/providertest"
	"credentialbroker/providers/vault"
)

// core is a Vault of one test, which an administrator has set up for the
// broker: a KV engine at secret/, AppRole, and the least policy.
type core struct {
	addr, ca, root string
	http           *http.Client
	proc           *real.Process
	v1             bool
	roleID         string
	secretID       string
}

const policy = `
path "secret/data/team/*"     { capabilities = ["create", "update", "read"] }
path "secret/metadata/team/*" { capabilities = ["read"] }
`

const policyKV1 = `path "secret/team/*" { capabilities = ["create", "update", "read"] }`

// bare starts a Vault without anything in it.
func bare(t *testing.T) *core {
	t.Helper()
	dir := t.TempDir()
	c := &core{addr: real.FreeAddr(t), ca: filepath.Join(dir, "ca.pem")}
	c.proc = real.Start(t, c.addr, exec.Command(real.Path("bin", "vaultcore"), "-listen", c.addr, "-dir", dir))
	var made struct {
		Root string `json:"root_token"`
	}
	text, err := os.ReadFile(filepath.Join(dir, "vault.json"))
	if err = errors.Join(err, json.Unmarshal(text, &made)); err != nil {
		t.Fatal(err)
	}
	c.root = made.Root
	pem, err := os.ReadFile(c.ca)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	c.http = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	t.Cleanup(c.http.CloseIdleConnections)
	return c
}

func start(t *testing.T, v1 bool) *core {
	t.Helper()
	c := bare(t)
	c.v1 = v1
	version, rules := "2", policy
	if v1 {
		version, rules = "1", policyKV1
	}
	c.must(t, "POST", "sys/mounts/secret", obj{"type": "kv", "options": obj{"version": version}})
	c.must(t, "PUT", "sys/policies/acl/broker", obj{"policy": rules})
	c.must(t, "POST", "sys/auth/approle", obj{"type": "approle"})
	c.must(t, "POST", "auth/approle/role/broker", obj{"token_policies": "broker", "token_ttl": "10m", "token_max_ttl": "30m"})
	c.roleID = str(c.must(t, "GET", "auth/approle/role/broker/role-id", nil), "data", "role_id")
	c.secretID = str(c.must(t, "POST", "auth/approle/role/broker/secret-id", nil), "data", "secret_id")
	return c
}

type obj map[string]any

// must is an administrator's call.
func (c *core) must(t *testing.T, method, path string, body obj) obj {
	t.Helper()
	status, answer := c.call(t, method, path, body, nil)
	if status/100 != 2 {
		t.Fatalf("%s %s: HTTP %d: %v", method, path, status, answer)
	}
	return answer
}

func (c *core) call(t *testing.T, method, path string, body obj, header map[string]string) (int, obj) {
	t.Helper()
	var raw []byte
	if body != nil {
		raw, _ = json.Marshal(body)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, "https://"+c.addr+"/v1/"+path, bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-Vault-Token", c.root)
	for k, v := range header {
		r.Header.Set(k, v)
	}
	resp, err := c.http.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer obj
	_ = json.Unmarshal(text, &answer)
	return resp.StatusCode, answer
}

// str digs a string out of an answer.
func str(o obj, keys ...string) string {
	var v any = map[string]any(o)
	for _, k := range keys {
		m, _ := v.(map[string]any)
		v = m[k]
	}
	s, _ := v.(string)
	return s
}

// eventually asks until done, as a new engine of version 2 needs a moment.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for !done() {
		select {
		case <-ctx.Done():
			t.Fatalf("not in time: %s", what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func file(t *testing.T, content string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func (c *core) config(auth vault.Auth) vault.Config {
	conf := vault.Config{Address: "https://" + c.addr, Auth: auth, Config: outbound.Config{CAFile: c.ca}}
	if c.v1 {
		conf.KV = 1
	}
	return conf
}

func (c *core) approle(t *testing.T) vault.Auth {
	return vault.Auth{AppRole: &vault.AppRole{RoleIDFile: file(t, c.roleID), SecretIDFile: file(t, c.secretID)}}
}

func open(t *testing.T, conf vault.Config, clk clock.Clock) providers.Provider {
	t.Helper()
	p, err := vault.Open(conf, clk)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// What follows makes a providertest.Manager of it.

func (c *core) Open(t *testing.T, o providertest.Options) providers.Provider {
	conf := c.config(c.approle(t))
	if o.Outbound != nil {
		conf.Config = *o.Outbound
	}
	return open(t, conf, clock.System{})
}

func (c *core) Ref(name string) providers.Ref {
	return providers.Ref{Mount: "secret", Path: "team/" + name}
}

func (c *core) Set(t *testing.T, name string, payload []byte) {
	t.Helper()
	path, body := "secret/data/team/"+name, obj{"data": json.RawMessage(payload)}
	if c.v1 {
		path, body = "secret/team/"+name, obj{}
		d := json.NewDecoder(bytes.NewReader(payload))
		d.UseNumber()
		if err := d.Decode(&body); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "set "+name, func() bool {
		status, _ := c.call(t, "POST", path, body, nil)
		return status/100 == 2
	})
}

func (c *core) Fault(t *testing.T, f providertest.Case, name string) {
	t.Helper()
	data, pid := "secret/data/team/"+name, c.proc.Cmd.Process.Pid
	if c.v1 {
		data = "secret/team/" + name
	}
	switch f {
	case providertest.Absent:
		if c.v1 {
			c.must(t, "DELETE", data, nil)
			return
		}
		c.must(t, "DELETE", "secret/metadata/team/"+name, nil)
	case providertest.AbsentMount:
		c.must(t, "DELETE", "sys/mounts/secret", nil)
	case providertest.Denied:
		c.must(t, "PUT", "sys/policies/acl/broker", obj{"policy": policy + policyKV1 + "\npath \"" + data + "\" { capabilities = [\"deny\"] }"})
	case providertest.Throttled:
		c.must(t, "POST", "sys/quotas/rate-limit/all", obj{"path": "secret/", "rate": 1, "interval": "1h"})
		eventually(t, "quota", func() bool { status, _ := c.call(t, "GET", data, nil, nil); return status == 429 })
	case providertest.SoftDeleted:
		c.must(t, "DELETE", data, nil)
	case providertest.Destroyed:
		c.must(t, "PUT", "secret/destroy/team/"+name, obj{"versions": []int{1}})
	case providertest.ServerError:
		c.must(t, "PUT", "sys/seal", nil)
	case providertest.Down:
		_ = syscall.Kill(pid, syscall.SIGKILL)
		eventually(t, "end of the process", func() bool { _, err := tls.Dial("tcp", c.addr, nil); return errors.Is(err, syscall.ECONNREFUSED) })
	case providertest.Hangs:
		_ = syscall.Kill(pid, syscall.SIGSTOP)
		// Its threads stop one after the other, and one may still answer.
		if err := unix.Waitid(unix.P_PID, pid, nil, unix.WSTOPPED, nil); err != nil {
			t.Fatal(err)
		}
	case providertest.LoginExpired:
		c.must(t, "PUT", "sys/leases/revoke-prefix/auth/approle/login", nil)
	case providertest.LoginRefused:
		c.must(t, "DELETE", "auth/approle/role/broker", nil)
		c.must(t, "PUT", "sys/leases/revoke-prefix/auth/approle/login", nil)
	default:
		t.Fatalf("no fault %q here", f)
	}
}

func (c *core) Calls() providertest.Calls {
	resp, err := c.http.Get("https://" + c.addr + "/calls")
	if err != nil {
		panic(err)
	}
	defer resp.Body.Close()
	var n struct{ Values, Checks int }
	if err := json.NewDecoder(resp.Body).Decode(&n); err != nil {
		panic(err)
	}
	return providertest.Calls{Values: n.Values, Checks: n.Checks}
}

func (c *core) CA() string   { return c.ca }
func (c *core) Addr() string { return c.addr }

// shifted is the kernel's clock and some more, for the provider alone: Vault
// keeps its own time.
type shifted struct {
	mu sync.Mutex
	by time.Duration
}

func (s *shifted) Now() clock.Reading {
	s.mu.Lock()
	defer s.mu.Unlock()
	return clock.System{}.Now().Add(s.by)
}

func (s *shifted) pass(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.by += d
}
