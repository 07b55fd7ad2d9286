//go:build real

package intake

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"credentialbroker/integration/real"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/providers/file"
)

const (
	readPolicy  = `path "secret/data/vdab" { capabilities = ["read"] } path "secret/metadata/vdab" { capabilities = ["read"] }`
	writePolicy = `path "secret/data/vdab" { capabilities = ["create", "read", "update"] }`
)

// vault is one with a reading and a writing policy, and a token of each.
type vault struct {
	addr, ca, root string
	http           *http.Client
	reading        string // files with tokens
	writing        string
}

func newVault(t *testing.T) *vault {
	t.Helper()
	dir := t.TempDir()
	v := &vault{addr: real.FreeAddr(t), ca: filepath.Join(dir, "ca.pem"), reading: filepath.Join(dir, "reading"), writing: filepath.Join(dir, "writing")}
	real.Start(t, v.addr, exec.Command(real.Path("bin", "vaultcore"), "-listen", v.addr, "-dir", dir))
	var made struct {
		Root string `json:"root_token"`
	}
	text, err1 := os.ReadFile(filepath.Join(dir, "vault.json"))
	pem, err2 := os.ReadFile(v.ca)
	if err := errors.Join(err1, err2, json.Unmarshal(text, &made)); err != nil {
		t.Fatal(err)
	}
	v.root = made.Root
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	v.http = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	t.Cleanup(v.http.CloseIdleConnections)
	v.must(t, http.MethodPost, "sys/mounts/secret", map[string]any{"type": "kv", "options": map[string]string{"version": "2"}})
	for name, policy := range map[string]string{v.reading: readPolicy, v.writing: writePolicy} {
		v.must(t, http.MethodPut, "sys/policies/acl/"+filepath.Base(name), map[string]string{"policy": policy})
		answer := v.must(t, http.MethodPost, "auth/token/create", map[string]any{"policies": []string{filepath.Base(name)}, "ttl": "1h"})
		token := answer["auth"].(map[string]any)["client_token"].(string)
		if err := os.WriteFile(name, []byte(token), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for deadline := time.Now().Add(30 * time.Second); ; { // a new engine of version 2 needs a moment
		if _, err := v.call(http.MethodPost, "secret/data/vdab", map[string]any{"data": initial()}); err == nil {
			return v
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func (v *vault) must(t *testing.T, method, path string, body any) map[string]any {
	t.Helper()
	answer, err := v.call(method, path, body)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

func (v *vault) call(method, path string, body any) (map[string]any, error) {
	raw, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	r, err := http.NewRequest(method, "https://"+v.addr+"/v1/"+path, bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	r.Header.Set("X-Vault-Token", v.root)
	resp, err := v.http.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode/100 != 2 {
		return nil, fmt.Errorf("%s %s: %s: %w", method, path, resp.Status, err)
	}
	var answer map[string]any
	if len(out) > 0 {
		err = json.Unmarshal(out, &answer)
	}
	return answer, err
}

func (v *vault) provider(name, token, more string) string {
	return fmt.Sprintf("  %s: { vault: { address: %q, ca_file: %s, auth: { token_file: %s } }%s }\n", name, "https://"+v.addr, v.ca, token, more)
}

func (v *vault) manager(t *testing.T, providers string) *manager {
	return &manager{server: "Vault 1.21.4", providers: providers, place: "mount: secret, path: vdab", env: []string{v.reading},
		home: func(dir string) error {
			token, err := os.ReadFile(v.writing)
			return errors.Join(err, os.WriteFile(filepath.Join(dir, ".vault-token"), token, 0o600))
		},
		newest: func() (string, map[string]string) {
			data := v.must(t, http.MethodGet, "secret/data/vdab", nil)["data"].(map[string]any)
			fields := map[string]string{}
			for name, value := range data["data"].(map[string]any) {
				fields[name], _ = value.(string)
			}
			return fmt.Sprint(data["metadata"].(map[string]any)["version"]), fields
		}}
}

func startVault(t *testing.T) *manager {
	v := newVault(t)
	return v.manager(t, v.provider("corp", v.reading, ""))
}

func startVaultWithWriter(t *testing.T) *manager {
	v := newVault(t)
	return v.manager(t, v.provider("corp", v.reading, ", write: writer")+v.provider("writer", v.writing, ""))
}

// startMoto has the daemon log in by files, and the administrator by a profile.
func startMoto(t *testing.T) *manager {
	t.Helper()
	dir, addr := t.TempDir(), real.FreeAddr(t)
	host, port, _ := net.SplitHostPort(addr)
	real.Start(t, addr, exec.Command(real.Path("moto", "venv", "bin", "python"), real.Path("moto", "venv", "bin", "moto_server"), "-H", host, "-p", port))
	id, key := filepath.Join(dir, "id"), filepath.Join(dir, "key")
	err := errors.Join(os.WriteFile(id, []byte("AKIAEXAMPLE"), 0o600), os.WriteFile(key, []byte("moto-takes-every-key"), 0o600))
	text, err2 := json.Marshal(initial())
	if err = errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	admin := secretsmanager.New(secretsmanager.Options{Region: "eu-west-1", BaseEndpoint: awssdk.String("http://" + addr),
		Credentials: credentials.NewStaticCredentialsProvider("AKIAEXAMPLE", "moto-takes-every-key", "")})
	if _, err := admin.CreateSecret(t.Context(), &secretsmanager.CreateSecretInput{Name: awssdk.String("vdab"), SecretString: awssdk.String(string(text))}); err != nil {
		t.Fatal(err)
	}
	return &manager{server: "moto 5.2.5", place: "path: vdab", env: []string{"AWS_PROFILE=operator", "AWS_EC2_METADATA_DISABLED=true"},
		providers: fmt.Sprintf("  corp: { aws: { region: eu-west-1, endpoint: %q, auth: { static: { access_key_id_file: %s, secret_access_key_file: %s } } } }\n", "http://"+addr, id, key),
		home: func(dir string) error {
			text := "[operator]\naws_access_key_id = AKIAOPERATOR\naws_secret_access_key = moto-takes-this-one-too\n"
			return errors.Join(os.Mkdir(filepath.Join(dir, ".aws"), 0o700), os.WriteFile(filepath.Join(dir, ".aws", "credentials"), []byte(text), 0o600))
		},
		newest: func() (string, map[string]string) {
			got, err := admin.GetSecretValue(context.Background(), &secretsmanager.GetSecretValueInput{SecretId: awssdk.String("vdab"), VersionStage: awssdk.String("AWSCURRENT")})
			fields := map[string]string{}
			if err == nil {
				err = json.Unmarshal([]byte(*got.SecretString), &fields)
			}
			if err != nil {
				t.Fatal(err)
			}
			return *got.VersionId, fields
		}}
}

// startAge has a store whose identity the administrator may read.
func startAge(t *testing.T) *manager {
	t.Helper()
	dir := t.TempDir()
	store, name := filepath.Join(dir, "secrets"), filepath.Join(dir, "identity")
	identity, err := file.Create(store)
	if err == nil {
		err = identity.Use(func(b []byte) error { return os.WriteFile(name, b, 0o600) })
	}
	if err != nil {
		t.Fatal(err)
	}
	p, err := file.Open(file.Config{Path: store, IdentityFile: name, InsecureIdentity: true}, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	fields := map[string]secret.Secret{}
	for field, value := range maps.All(initial()) {
		fields[field] = secret.FromString(value)
	}
	if _, err := p.(providers.Writer).Put(t.Context(), providers.Ref{Path: "vdab"}, fields, ""); err != nil {
		t.Fatal(err)
	}
	return &manager{server: "age store", place: "path: vdab", home: func(string) error { return nil },
		providers: fmt.Sprintf("  corp: { file: { path: %s, identity_file: %s, insecure_identity: true } }\n", store, name),
		newest: func() (string, map[string]string) {
			b, err := p.Fetch(context.Background(), providers.Ref{Path: "vdab"}, "")
			if err != nil {
				t.Fatal(err)
			}
			defer b.Wipe()
			out := map[string]string{}
			for field, v := range b.Fields {
				_ = v.Use(func(text []byte) error { out[field] = string(text); return nil })
			}
			return string(b.Version), out
		}}
}
