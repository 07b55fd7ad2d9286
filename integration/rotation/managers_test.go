//go:build real

package rotation

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"credentialbroker/integration/real"
)

// A manager is a secrets manager that can fail.
type manager struct {
	server   string // for the table of what ran
	provider string // YAML
	put      func(path string, fields map[string]string) (version string, err error)
	faults   []fault
}

// A fault is switched on and off.
type fault struct {
	name    string
	on, off func() error
}

// stopped is a process that neither answers nor ends.
func stopped(p *real.Process) fault {
	to := func(s syscall.Signal) func() error {
		return func() error { return syscall.Kill(-p.Cmd.Process.Pid, s) }
	}
	return fault{"stopped", to(syscall.SIGSTOP), to(syscall.SIGCONT)}
}

func startVault(t *testing.T) *manager {
	t.Helper()
	dir, addr := t.TempDir(), real.FreeAddr(t)
	p := real.Start(t, addr, exec.Command(real.Path("bin", "vaultcore"), "-listen", addr, "-dir", dir))
	var made struct {
		Root string `json:"root_token"`
		Key  string `json:"unseal_key"`
	}
	text, err1 := os.ReadFile(filepath.Join(dir, "vault.json"))
	ca, err2 := os.ReadFile(filepath.Join(dir, "ca.pem"))
	token := filepath.Join(dir, "token")
	if err := errors.Join(err1, err2, json.Unmarshal(text, &made), os.WriteFile(token, []byte(made.Root), 0o600)); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	admin := &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	t.Cleanup(admin.CloseIdleConnections)
	call := func(method, path string, body any, answer any) error {
		raw, err := json.Marshal(body)
		if err != nil {
			return err
		}
		r, err := http.NewRequest(method, "https://"+addr+"/v1/"+path, bytes.NewReader(raw))
		if err != nil {
			return err
		}
		r.Header.Set("X-Vault-Token", made.Root)
		resp, err := admin.Do(r)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		out, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode/100 != 2 {
			return fmt.Errorf("%s %s: %s: %s: %w", method, path, resp.Status, out, err)
		}
		if answer == nil {
			return nil
		}
		return json.Unmarshal(out, answer)
	}
	if err := call(http.MethodPost, "sys/mounts/secret", map[string]any{"type": "kv", "options": map[string]string{"version": "2"}}, nil); err != nil {
		t.Fatal(err)
	}
	return &manager{server: "Vault 1.21.4",
		provider: fmt.Sprintf("vault: { address: %q, ca_file: %s, auth: { token_file: %s } }", "https://"+addr, filepath.Join(dir, "ca.pem"), token),
		put: func(path string, fields map[string]string) (string, error) {
			var answer struct{ Data struct{ Version json.Number } }
			err := call(http.MethodPost, "secret/data/"+path, map[string]any{"data": fields}, &answer)
			return answer.Data.Version.String(), err
		},
		faults: []fault{stopped(p), {"sealed",
			func() error { return call(http.MethodPut, "sys/seal", nil, nil) },
			func() error { return call(http.MethodPut, "sys/unseal", map[string]string{"key": made.Key}, nil) },
		}}}
}

// startMoto has moto behind a TLS front, which can fail as proxies do.
func startMoto(t *testing.T) *manager {
	t.Helper()
	dir, addr := t.TempDir(), real.FreeAddr(t)
	host, port, _ := net.SplitHostPort(addr)
	p := real.Start(t, addr, exec.Command(real.Path("moto", "venv", "bin", "python"), real.Path("moto", "venv", "bin", "moto_server"), "-H", host, "-p", port))
	var broken atomic.Int32
	to := &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(&url.URL{Scheme: "http", Host: addr})
		r.Out.Host = r.In.Host // which is signed
	}}
	front := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if status := broken.Load(); status != 0 {
			http.Error(w, "<html>not here</html>", int(status))
			return
		}
		to.ServeHTTP(w, r)
	}))
	t.Cleanup(front.Close)
	ca, id, key := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "id"), filepath.Join(dir, "key")
	err := errors.Join(os.WriteFile(ca, pemOf(front.Certificate().Raw), 0o600), os.WriteFile(id, []byte("AKIAEXAMPLE"), 0o600), os.WriteFile(key, []byte("moto-takes-every-key"), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	admin := secretsmanager.New(secretsmanager.Options{Region: "eu-west-1", BaseEndpoint: awssdk.String("http://" + addr),
		Credentials: credentials.NewStaticCredentialsProvider("AKIAEXAMPLE", "moto-takes-every-key", "")})
	answer := func(name string, status int32) fault {
		set := func(status int32) func() error { return func() error { broken.Store(status); return nil } }
		return fault{name, set(status), set(0)}
	}
	known := map[string]bool{}
	return &manager{server: "moto 5.2.5",
		provider: fmt.Sprintf("aws: { region: eu-west-1, endpoint: %q, ca_file: %s, auth: { static: { access_key_id_file: %s, secret_access_key_file: %s } } }", front.URL, ca, id, key),
		put: func(path string, fields map[string]string) (string, error) {
			text, err := json.Marshal(fields)
			if err != nil {
				return "", err
			}
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			if !known[path] {
				known[path] = true
				made, err := admin.CreateSecret(ctx, &secretsmanager.CreateSecretInput{Name: &path, SecretString: awssdk.String(string(text))})
				if err != nil {
					return "", err
				}
				return *made.VersionId, nil
			}
			made, err := admin.PutSecretValue(ctx, &secretsmanager.PutSecretValueInput{SecretId: &path, SecretString: awssdk.String(string(text))})
			if err != nil {
				return "", err
			}
			return *made.VersionId, nil
		},
		faults: []fault{stopped(p), answer("502", http.StatusBadGateway), answer("garbage", http.StatusOK)},
	}
}
