package vault

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"credentialbroker/providers"
	"credentialbroker/providers/providertest"
)

const podJWT = "ey." + providertest.Canary + ".jwt"

func TestEveryLoginMethod(t *testing.T) {
	for _, c := range []struct {
		name  string
		auth  func(t *testing.T) Auth
		mount string
		sends map[string]string
		cert  string
	}{
		{"approle", func(t *testing.T) Auth {
			return Auth{AppRole: &AppRole{RoleIDFile: file(t, " role \n"), SecretIDFile: file(t, secretID)}}
		}, "approle", map[string]string{"role_id": "role", "secret_id": secretID}, ""},
		{"approle without secret-id", func(t *testing.T) Auth {
			return Auth{AppRole: &AppRole{RoleIDFile: file(t, "role"), Mount: "/team/roles/"}}
		}, "team/roles", map[string]string{"role_id": "role"}, ""},
		{"kubernetes", func(t *testing.T) Auth {
			return Auth{Kubernetes: &JWT{Role: "broker", TokenFile: file(t, podJWT)}}
		}, "kubernetes", map[string]string{"role": "broker", "jwt": podJWT}, ""},
		{"jwt", func(t *testing.T) Auth {
			return Auth{JWT: &JWT{Role: "broker", TokenFile: file(t, podJWT), Mount: "ci"}}
		}, "ci", map[string]string{"role": "broker", "jwt": podJWT}, ""},
		{"jwt, default role", func(t *testing.T) Auth {
			return Auth{JWT: &JWT{TokenFile: file(t, podJWT)}}
		}, "jwt", map[string]string{"jwt": podJWT}, ""},
		{"cert", func(t *testing.T) Auth {
			cert, key := keyPair(t, "broker.host")
			return Auth{Cert: &Cert{CertFile: cert, KeyFile: key, Role: "hosts"}}
		}, "cert", map[string]string{"name": "hosts"}, "broker.host"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t)
			f.set("app", "{}")
			f.logins = map[string]func(map[string]string, *http.Request) bool{c.mount: func(body map[string]string, r *http.Request) bool {
				shown := ""
				if len(r.TLS.PeerCertificates) > 0 {
					shown = r.TLS.PeerCertificates[0].Subject.CommonName
				}
				same := len(body) == len(c.sends) && shown == c.cert
				for k, v := range c.sends {
					same = same && body[k] == v
				}
				return same
			}}
			conf := f.config(t)
			conf.Auth = c.auth(t)
			mustFetch(t, open(t, conf, f.clk))
			f.want(t, map[string]int{"PUT auth/" + c.mount + "/login": 1})
		})
	}
}

func TestLoginProblems(t *testing.T) {
	cert, _ := keyPair(t, "one")
	_, otherKey := keyPair(t, "two")
	for _, c := range []struct {
		name, says string
		auth       Auth
	}{
		{"no file", "role_id_file: /nowhere/role does not exist", Auth{AppRole: &AppRole{RoleIDFile: "/nowhere/role"}}},
		{"empty file", "does not hold one value", Auth{AppRole: &AppRole{RoleIDFile: file(t, " \n")}}},
		{"two lines", "does not hold one value", Auth{JWT: &JWT{TokenFile: file(t, "a\nb")}}},
		{"too long", "does not hold one value", Auth{JWT: &JWT{TokenFile: file(t, strings.Repeat("a", maxFile+1))}}},
		{"binary", "holds no text", Auth{JWT: &JWT{TokenFile: file(t, "\xff\xfe")}}},
		{"a directory", "does not hold one value", Auth{TokenFile: t.TempDir()}},
		{"no certificate", "/nowhere/cert does not exist", Auth{Cert: &Cert{CertFile: "/nowhere/cert", KeyFile: otherKey}}},
		{"another's key", "no pair of PEM files", Auth{Cert: &Cert{CertFile: cert, KeyFile: otherKey}}},
		{"no such method", "auth/nomad", Auth{JWT: &JWT{TokenFile: file(t, podJWT), Mount: "nomad"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t)
			conf := f.config(t)
			conf.Auth = c.auth
			_, err := open(t, conf, f.clk).Fetch(t.Context(), app, "")
			wantKind(t, err, providers.LoginFailed, c.says)
		})
	}
}

func keyPair(t *testing.T, name string) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	keyFile = filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return providertest.WritePEM(t, der), keyFile
}

// withWrapped is a fake and the configuration of a provider whose secret-id
// comes wrapped.
func withWrapped(t *testing.T) (*fake, Config) {
	f := newFake(t)
	f.set("app", "{}")
	f.wraps["wrap-1"] = wrap{"auth/approle/role/broker/secret-id", secretID}
	c := f.config(t)
	c.Auth.AppRole.Wrapped = true
	c.Auth.AppRole.SecretIDFile = file(t, "wrap-1")
	return f, c
}

func TestWrappedSecretID(t *testing.T) {
	t.Run("unwrapped once, kept", func(t *testing.T) {
		f, c := withWrapped(t)
		p := open(t, c, f.clk)
		mustFetch(t, p)
		f.change(func() { clear(f.tokens) })
		if err := os.WriteFile(c.Auth.AppRole.RoleIDFile, []byte(roleID+"\n\n"), 0o600); err != nil {
			t.Fatal(err) // another file's change is no new wrapping token
		}
		mustFetch(t, p)
		f.want(t, map[string]int{login: 2, "PUT sys/wrapping/lookup": 1, "PUT sys/wrapping/unwrap": 1})
	})
	t.Run("a new one in the file", func(t *testing.T) {
		f, c := withWrapped(t)
		p := open(t, c, f.clk)
		mustFetch(t, p)
		f.change(func() {
			clear(f.tokens)
			f.wraps["wrap-22"] = wrap{"ns1/auth/approle/role/broker/custom-secret-id", secretID}
		})
		if err := os.WriteFile(c.Auth.AppRole.SecretIDFile, []byte("wrap-22"), 0o600); err != nil {
			t.Fatal(err)
		}
		mustFetch(t, p)
		f.want(t, map[string]int{login: 2, "PUT sys/wrapping/unwrap": 2})
	})
	t.Run("used by somebody else", func(t *testing.T) {
		f, c := withWrapped(t)
		clear(f.wraps)
		p := open(t, c, f.clk)
		for range 3 {
			_, err := p.Fetch(t.Context(), app, "")
			wantKind(t, err, providers.LoginFailed, "intercepted")
		}
		f.want(t, map[string]int{"PUT sys/wrapping/lookup": 1, "PUT sys/wrapping/unwrap": 0, login: 0})
	})
	t.Run("exchanged on its way", func(t *testing.T) {
		for _, path := range []string{"sys/wrapping/wrap", "auth/other/role/broker/secret-id", "auth/approle/role/broker/secret-id/lookup",
			"xauth/approle/role/broker/secret-id", ""} {
			f, c := withWrapped(t)
			f.wraps["wrap-1"] = wrap{path, secretID}
			_, err := open(t, c, f.clk).Fetch(t.Context(), app, "")
			wantKind(t, err, providers.LoginFailed, "exchanged")
			f.want(t, map[string]int{"PUT sys/wrapping/unwrap": 0, login: 0})
		}
	})
	t.Run("Vault down", func(t *testing.T) {
		f, c := withWrapped(t)
		f.fault = providertest.ServerError
		p := open(t, c, f.clk)
		_, err := p.Fetch(t.Context(), app, "")
		wantKind(t, err, providers.Unavailable, "sealed")
		f.change(func() { f.fault = "" })
		mustFetch(t, p)
	})
}

func TestLoginAnswers(t *testing.T) {
	for _, c := range []struct {
		name   string
		status int
		body   string
		kind   providers.Kind
		says   string
	}{
		{"second factor", 200, `{"auth":{"client_token":"","mfa_requirement":{"mfa_request_id":"x"}}}`, providers.LoginFailed, "second factor"},
		{"no auth", 200, `{"data":{}}`, providers.Malformed, ""},
		{"no JSON", 200, "<html>" + providertest.Canary, providers.Malformed, ""},
		{"odd token", 200, `{"auth":{"client_token":"a\nb ` + providertest.Canary + `"}}`, providers.LoginFailed, "no token"},
		{"too long", 200, `{"auth":"` + string(make([]byte, maxBody)), providers.Malformed, "longer than"},
		{"locked out", 403, `{"errors":["permission denied ` + providertest.Canary + `"]}`, providers.LoginFailed, "approle"},
		{"limited", 429, `{"errors":["` + providertest.Canary + `"]}`, providers.Throttled, ""},
		{"out of order", 500, `{"errors":["` + providertest.Canary + `"]}`, providers.Unavailable, "HTTP 500"},
		{"endless error", 500, string(make([]byte, 2*maxBody)), providers.Malformed, "longer than"},
		{"behind", 412, `{"errors":["required index state not present"]}`, providers.Unavailable, ""},
		{"proxy", 403, "<html>" + providertest.Canary, providers.Malformed, "proxy or load balancer"},
		{"teapot", 418, `{"errors":[]}`, providers.Malformed, "HTTP 418"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFake(t)
			conf := f.config(t)
			f.srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				w.WriteHeader(c.status)
				_, _ = w.Write([]byte(c.body))
			})
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, err := open(t, conf, f.clk).Fetch(ctx, app, "")
			wantKind(t, err, c.kind, c.says)
		})
	}
}

// The SDK reads the body of an error without limit; ours is cut off.
func TestEndlessErrorIsCutOff(t *testing.T) {
	f := newFake(t)
	conf := f.config(t)
	sent, ended := 0, make(chan struct{})
	f.srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(ended)
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(http.StatusInternalServerError)
		chunk := make([]byte, 64<<10)
		for sent < 256<<20 {
			n, err := w.Write(chunk)
			if err != nil {
				return
			}
			sent += n
		}
	})
	_, err := open(t, conf, f.clk).Fetch(t.Context(), app, "")
	wantKind(t, err, providers.Malformed, "longer than")
	<-ended
	if sent > 64<<20 { // what the kernel's buffers take is lost anyway
		t.Errorf("%d bytes were taken", sent)
	}
}
