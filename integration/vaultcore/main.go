// Command vaultcore runs HashiCorp Vault's own core, storage in memory, for
// the integration suite. It is a module of its own so that the product never
// depends on the server.
//
//	vaultcore -listen 127.0.0.1:8200 -dir DIR
//
// initialises and unseals the core and writes DIR/vault.json (root token,
// unseal key) and DIR/ca.pem before it listens, over TLS. It runs until it is
// killed. GET /calls tells how many reads of data/ and metadata/ paths came in.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	jwtauth "github.com/hashicorp/vault-plugin-auth-jwt"
	kubeauth "github.com/hashicorp/vault-plugin-auth-kubernetes"
	kv "github.com/hashicorp/vault-plugin-secrets-kv"
	"github.com/hashicorp/vault/builtin/credential/approle"
	"github.com/hashicorp/vault/builtin/credential/cert"
	vaulthttp "github.com/hashicorp/vault/http"
	"github.com/hashicorp/vault/internalshared/configutil"
	"github.com/hashicorp/vault/sdk/helper/consts"
	"github.com/hashicorp/vault/sdk/logical"
	"github.com/hashicorp/vault/sdk/physical/inmem"
	"github.com/hashicorp/vault/vault"
)

func main() {
	listen := flag.String("listen", "127.0.0.1:8200", "address to listen on")
	dir := flag.String("dir", ".", "directory for vault.json and ca.pem")
	flag.Parse()
	if err := run(*listen, *dir); err != nil {
		log.Fatal(err)
	}
}

func run(listen, dir string) error {
	core, err := newCore()
	if err != nil {
		return err
	}
	if err := unseal(core, dir); err != nil {
		return err
	}
	certificate, err := newCertificate(filepath.Join(dir, "ca.pem"))
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	api := vaulthttp.Handler.Handler(&vault.HandlerProperties{Core: core, ListenerConfig: &configutil.Listener{Address: listen}})
	srv := &http.Server{Handler: &counter{next: api}, ReadHeaderTimeout: 10 * time.Second}
	return srv.Serve(tls.NewListener(l, &tls.Config{
		MinVersion:   tls.VersionTLS12,
		Certificates: []tls.Certificate{certificate},
		ClientAuth:   tls.RequestClientCert, // the cert method checks it
	}))
}

func newCore() (*vault.Core, error) {
	logger := hclog.New(&hclog.LoggerOptions{Output: os.Stderr, Level: hclog.Warn})
	storage, err := inmem.NewInmem(nil, logger)
	if err != nil {
		return nil, err
	}
	login := map[string]logical.Factory{
		"approle": approle.Factory, "cert": cert.Factory, "jwt": jwtauth.Factory, "kubernetes": kubeauth.Factory,
	}
	return vault.NewCore(&vault.CoreConfig{
		Physical:           storage,
		Logger:             logger,
		DisableMlock:       true,
		LogicalBackends:    map[string]logical.Factory{"kv": kv.Factory},
		CredentialBackends: login,
		BuiltinRegistry:    registry(login),
	})
}

// unseal initialises the core with one key share and opens it.
func unseal(core *vault.Core, dir string) error {
	one := &vault.SealConfig{SecretShares: 1, SecretThreshold: 1}
	res, err := core.Initialize(context.Background(), &vault.InitParams{BarrierConfig: one, RecoveryConfig: one})
	if err != nil {
		return err
	}
	if len(res.SecretShares) != 1 {
		return fmt.Errorf("%d key shares", len(res.SecretShares))
	}
	out, err := json.Marshal(map[string]any{"root_token": res.RootToken, "unseal_key": res.SecretShares[0]})
	if err != nil {
		return err
	}
	open, err := core.Unseal(res.SecretShares[0])
	if err != nil || !open {
		return errors.Join(errors.New("still sealed"), err)
	}
	return os.WriteFile(filepath.Join(dir, "vault.json"), out, 0o600)
}

// newCertificate makes a certificate for 127.0.0.1 that is its own authority.
func newCertificate(file string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "vault.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, os.WriteFile(file, text, 0o600)
}

// counter counts the reads of values and of versions.
type counter struct {
	next           http.Handler
	values, checks atomic.Int64
}

func (c *counter) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/calls":
		_ = json.NewEncoder(w).Encode(map[string]int64{"values": c.values.Load(), "checks": c.checks.Load()})
		return
	case r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/data/"):
		c.values.Add(1)
	case r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/metadata/"):
		c.checks.Add(1)
	}
	c.next.ServeHTTP(w, r)
}

// registry tells the core which plug-ins are compiled in.
type registry map[string]logical.Factory

func (r registry) Contains(name string, kind consts.PluginType) bool {
	_, ok := r.Get(name, kind)
	return ok
}

func (r registry) Get(name string, kind consts.PluginType) (func() (any, error), bool) {
	switch f, ok := r[name]; {
	case ok && kind == consts.PluginTypeCredential:
		return func() (any, error) { return f, nil }, true
	case name == "kv" && kind == consts.PluginTypeSecrets:
		return func() (any, error) { return kv.Factory, nil }, true
	}
	return nil, false
}

func (r registry) Keys(kind consts.PluginType) []string {
	var names []string
	for name := range r {
		if kind == consts.PluginTypeCredential {
			names = append(names, name)
		}
	}
	return names
}

func (r registry) DeprecationStatus(name string, kind consts.PluginType) (consts.DeprecationStatus, bool) {
	return consts.Supported, r.Contains(name, kind)
}

func (registry) IsBuiltinEntPlugin(string, consts.PluginType) bool { return false }
