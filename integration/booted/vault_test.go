//go:build real

package booted

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"credentialbroker/integration/real"
)

type obj = map[string]any

// vault starts a real one elsewhere, which the machine reaches as
// 127.0.0.1:8200, with the client's secret. It puts the CA's certificate into
// the share, and gives its administrator's calls.
func (w *world) vault(t *testing.T) (must func(method, path string, body obj) obj) {
	t.Helper()
	dir, addr := t.TempDir(), real.FreeAddr(t)
	real.Start(t, addr, exec.Command(real.Path("bin", "vaultcore"), "-listen", addr, "-dir", dir))
	forward(t, w.wire("vault"), addr)
	var made struct {
		Root string `json:"root_token"`
	}
	text, err1 := os.ReadFile(filepath.Join(dir, "vault.json"))
	ca, err2 := os.ReadFile(filepath.Join(dir, "ca.pem"))
	if err := errors.Join(err1, err2, json.Unmarshal(text, &made)); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	admin := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	t.Cleanup(admin.CloseIdleConnections)
	call := func(method, path string, body obj) (obj, error) {
		raw, _ := json.Marshal(body)
		r, err := http.NewRequestWithContext(t.Context(), method, "https://"+addr+"/v1/"+path, bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("X-Vault-Token", made.Root)
		resp, err := admin.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		var answer struct{ Data obj }
		_ = json.NewDecoder(resp.Body).Decode(&answer)
		if resp.StatusCode/100 != 2 {
			return nil, errors.New(resp.Status)
		}
		return answer.Data, nil
	}
	must = func(method, path string, body obj) obj {
		t.Helper()
		data, err := call(method, path, body)
		if err != nil {
			t.Fatal(path, err)
		}
		return data
	}
	must("POST", "sys/mounts/secret", obj{"type": "kv", "options": obj{"version": "2"}})
	w.Until("the new engine takes a secret", 30*time.Second, func() bool {
		_, err := call("POST", "secret/data/vdab/prod", obj{"data": json.RawMessage(bundle)})
		return err == nil
	})
	w.File("vault-ca.pem", string(ca))
	return must
}

// appRole gives the broker a login with a policy. It puts it into the share.
func (w *world) appRole(vault func(method, path string, body obj) obj, policy string) {
	w.T.Helper()
	vault("PUT", "sys/policies/acl/broker", obj{"policy": policy})
	vault("POST", "sys/auth/approle", obj{"type": "approle"})
	vault("POST", "auth/approle/role/broker", obj{"token_policies": "broker", "token_ttl": "10m"})
	role, _ := vault("GET", "auth/approle/role/broker/role-id", nil)["role_id"].(string)
	secret, _ := vault("POST", "auth/approle/role/broker/secret-id", nil)["secret_id"].(string)
	w.File("role-id.txt", role)
	w.File("secret-id.txt", secret)
}
