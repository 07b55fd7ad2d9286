package configs

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"credentialbroker/internal/leak"
)

// mailCertificate is for address, from a while ago until end.
func mailCertificate(t *testing.T, key *rsa.PrivateKey, address string, end time.Time) string {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(end.Unix()), NotBefore: time.Now().AddDate(-1, 0, 0), NotAfter: end, EmailAddresses: []string{address}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func openPGPKey(t *testing.T, address string, lifetime time.Duration) string {
	t.Helper()
	e, err := openpgp.NewEntity("", "", address, &packet.Config{Algorithm: packet.PubKeyAlgoEdDSA, KeyLifetimeSecs: uint32(lifetime / time.Second)}) // #nosec G115 -- of a test
	var b bytes.Buffer
	if err = errors.Join(err, e.Serialize(&b)); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// protected is a configuration with keys in the files own, a and b of dir.
func protected(dir string) string {
	return fmt.Sprintf(`leak:
  organisation: { name: A }
  on_call: { name: B, phone: +32 2 000 00 00 }
  smtp: { host: h, from: broker@corp.example }
  copy_to: [security@corp.example]
  sign: { certificate_file: %[1]s/own, secret: { provider: unit, path: mail-key } }
  encrypt:
    security@corp.example: { openpgp_key_file: %[1]s/a }
    ICT_IAM@vdab.be: { certificate_file: %[1]s/b }
`, dir) + minimal
}

func TestProtection(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	good := map[string]string{"own": mailCertificate(t, key, "broker@corp.example", now.AddDate(1, 0, 0)), "a": openPGPKey(t, "security@corp.example", 0),
		"b": mailCertificate(t, key, "ict_iam@vdab.be", now.AddDate(1, 0, 0))}
	for _, c := range []struct {
		name, file, text string
		want             []string // warnings, or the mistake
		mistake          bool
	}{
		{"nothing to say", "", "", nil, false},
		{"soon", "own", mailCertificate(t, key, "broker@corp.example", now.AddDate(0, 0, 29)), []string{"for broker@corp.example expires on " + now.AddDate(0, 0, 29).UTC().Format(time.DateOnly)}, false},
		{"not so soon", "own", mailCertificate(t, key, "broker@corp.example", now.AddDate(0, 0, 31)), nil, false},
		{"expired", "b", mailCertificate(t, key, "ict_iam@vdab.be", now.AddDate(0, 0, -1)), []string{"has expired on " + now.AddDate(0, 0, -1).UTC().Format(time.DateOnly) + "; reports leave with it all the same"}, false},
		{"a key that ends soon", "a", openPGPKey(t, "security@corp.example", 24*time.Hour), []string{"/a: the OpenPGP key "}, false},
		{"another's", "a", openPGPKey(t, "other@corp.example", 0), []string{"is for other@corp.example, and is used for security@corp.example"}, false},
		{"no certificate", "own", "hello", []string{"broker.yaml:6:11: ", "/own: it is no PEM: a certificate starts with"}, true},
		{"no key", "a", good["b"], []string{"broker.yaml:8:30: ", "/a: it holds no OpenPGP key"}, true},
		{"the wrong kind", "b", good["a"], []string{"broker.yaml:9:24: ", "/b: it is no PEM"}, true},
	} {
		dir := write(t, good)
		if c.file != "" {
			dir = write(t, map[string]string{"own": good["own"], "a": good["a"], "b": good["b"], c.file: c.text})
		}
		cfg, err := load(t, map[string]string{"broker.yaml": protected(dir)})
		if c.mistake {
			if err == nil || slices.ContainsFunc(c.want, func(w string) bool { return !strings.Contains(err.Error(), w) }) {
				t.Errorf("%s: %v, want %q", c.name, err, c.want)
			}
			continue
		}
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		got := cfg.Warnings(someNames{})
		if len(got) != len(c.want) || len(got) == 1 && !strings.Contains(got[0].Error(), c.want[0]) {
			t.Errorf("%s: %v, want %q", c.name, got, c.want)
		}
		p := cfg.Leak.Protection()
		if s, _ := p.For(leak.Message{Recipient: "ict_iam@VDAB.be"}); !s.Signed || s.EncryptedTo != p.Recipients["ict_iam@vdab.be"].String() {
			t.Errorf("%s: %+v", c.name, s)
		}
	}
}

// A key that others may replace is none to trust.
func TestProtectionIsTrusted(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	end := time.Now().AddDate(1, 0, 0)
	dir := write(t, map[string]string{"own": mailCertificate(t, key, "broker@corp.example", end), "a": openPGPKey(t, "security@corp.example", 0), "b": mailCertificate(t, key, "ict_iam@vdab.be", end)})
	old, err := load(t, map[string]string{"broker.yaml": protected(dir)})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "a"), []byte(openPGPKey(t, "security@corp.example", 0)), 0o600); err != nil {
		t.Fatal(err)
	}
	now, err := load(t, map[string]string{"broker.yaml": protected(dir)})
	if err != nil {
		t.Fatal(err)
	}
	if d := now.Diff(old); len(d) != 1 || !strings.HasPrefix(d[0].Text, "leak.encrypt.security@corp.example: OpenPGP key ") {
		t.Errorf("another key: %+v", d)
	}
	stray, err := load(t, map[string]string{"broker.yaml": strings.Replace(protected(dir), "ICT_IAM@vdab.be", "ict-iam@vdab.be", 1)})
	if err != nil {
		t.Fatal(err)
	}
	if w := fmt.Sprint(stray.Warnings(someNames{})); !strings.Contains(w, "leak.encrypt has a key for \"ict-iam@vdab.be\", who gets no report") {
		t.Error(w)
	}
	if err := os.Chmod(filepath.Join(dir, "a"), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := load(t, map[string]string{"broker.yaml": protected(dir)}); err == nil || !strings.Contains(err.Error(), "/a: everybody may write it") {
		t.Error(err)
	}
	elsewhere := strings.Replace(protected(dir), dir+"/a", credentialsVariable+"/a", 1)
	if _, err := Load(filepath.Join(write(t, map[string]string{"broker.yaml": elsewhere}), "broker.yaml"), Options{Offline: true}); err != nil {
		t.Error(err)
	}
}

// What the operators' page shows is taken as it stands.
func TestLeaksPage(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	end := time.Now().AddDate(1, 0, 0)
	dir := write(t, map[string]string{"mail.pem": mailCertificate(t, key, "broker@corp.example", end), "issuer.pem": mailCertificate(t, key, "security@issuer.example", end), "issuer.asc": openPGPKey(t, "ict_iam@issuer.example", 0)})
	page, err := os.ReadFile("../docs/leaks.md")
	if err != nil {
		t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(page), "```yaml\nleak:\n  sign:")
	block, _, ok := strings.Cut("leak:\n  sign:"+block, "```")
	cfg, err := load(t, map[string]string{"broker.yaml": strings.NewReplacer("/etc/credential-broker", dir, "provider: corp", "provider: unit").Replace(block) +
		"  organisation: { name: A }\n  on_call: { name: B, phone: +32 2 000 00 00 }\n  smtp: { host: h, from: broker@corp.example }\n" + minimal})
	if err != nil || !ok {
		t.Fatal(err)
	}
	if p := cfg.Leak.Protection(); p.Signer == nil || len(p.Recipients) != 2 {
		t.Errorf("%+v", p)
	}
}
