//go:build real

package leak

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"credentialbroker/integration/real"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/providers/file"
)

const others = "OpenSSL and GnuPG (Debian)"

// parties are the sender, a recipient with a certificate and one with an
// OpenPGP key, as their own tools make them.
type parties struct {
	t   *testing.T
	dir string
}

func newParties(t *testing.T) *parties {
	t.Helper()
	dir, err := os.MkdirTemp("", "gpg-") // short: the agent's sockets are in it
	if err != nil {
		t.Fatal(err)
	}
	p := &parties{t, dir}
	t.Cleanup(func() {
		_ = exec.Command("gpgconf", "--homedir", dir, "--kill", "all").Run()
		_ = os.RemoveAll(dir)
	})
	const mail = "extendedKeyUsage=emailProtection"
	p.write("own.ext", "keyUsage=digitalSignature\n"+mail+"\nsubjectAltName=email:broker@corp.example\n")
	p.openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=Authority", "-days", "100")
	p.openssl("req", "-newkey", "rsa:3072", "-nodes", "-keyout", "own.key", "-out", "own.csr", "-subj", "/CN=Broker")
	p.openssl("x509", "-req", "-in", "own.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "90", "-extfile", "own.ext", "-out", "own.pem")
	p.openssl("req", "-x509", "-newkey", "rsa:3072", "-nodes", "-keyout", "ict.key", "-out", "ict.pem", "-subj", "/CN=ICT", "-days", "90",
		"-addext", "keyUsage=critical,keyEncipherment", "-addext", mail, "-addext", "subjectAltName=email:ict_iam@issuer.example")
	p.gpg("--passphrase", "", "--quick-generate-key", "Security <security@issuer.example>", "default", "default", "90d")
	p.write("security.asc", p.gpg("--armor", "--export", "security@issuer.example"))
	return p
}

func (p *parties) path(name string) string { return filepath.Join(p.dir, name) }

func (p *parties) read(name string) string {
	p.t.Helper()
	b, err := os.ReadFile(p.path(name))
	if err != nil {
		p.t.Fatal(err)
	}
	return string(b)
}

func (p *parties) write(name, text string) {
	p.t.Helper()
	if err := os.WriteFile(p.path(name), []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func (p *parties) openssl(args ...string) string {
	return p.run(exec.CommandContext(p.t.Context(), "/usr/bin/openssl", args...))
}

func (p *parties) gpg(args ...string) string {
	return p.run(exec.CommandContext(p.t.Context(), "/usr/bin/gpg", append([]string{"--homedir", p.dir, "--batch", "--no-tty", "--pinentry-mode", "loopback"}, args...)...))
}

// run gives what a command prints, without its remarks.
func (p *parties) run(cmd *exec.Cmd) string {
	p.t.Helper()
	var out, errs bytes.Buffer
	cmd.Dir, cmd.Stdout, cmd.Stderr = p.dir, &out, &errs
	if err := cmd.Run(); err != nil {
		p.t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, errs.String())
	}
	return out.String()
}

// configure has the site's reports signed, and encrypted to both.
func (p *parties) configure(s *site) {
	p.t.Helper()
	store, err := file.Open(file.Config{Path: s.path("secrets"), IdentityFile: s.path("identity"), InsecureIdentity: true}, clock.System{})
	if err != nil {
		p.t.Fatal(err)
	}
	defer store.Close()
	if _, err := store.(providers.Writer).Put(p.t.Context(), providers.Ref{Path: "mail-key"}, map[string]secret.Secret{"private_key": secret.FromString(p.read("own.key"))}, ""); err != nil {
		p.t.Fatal(err)
	}
	text, err := os.ReadFile(s.path("broker.yaml"))
	if err != nil {
		p.t.Fatal(err)
	}
	s.write("broker.yaml", strings.Replace(string(text), "  copy_to:", fmt.Sprintf(`  sign: { certificate_file: %[1]s/own.pem, secret: { provider: local, path: mail-key } }
  encrypt:
    ict_iam@issuer.example: { certificate_file: %[1]s/ict.pem }
    security@issuer.example: { openpgp_key_file: %[1]s/security.asc }
  copy_to:`, p.dir), 1))
}

// open takes a mail apart with the recipient's tools, and puts what is inside
// below the header that it came with.
func (p *parties) open(raw []byte) (opened []byte, layers string) {
	p.t.Helper()
	header, _, _ := bytes.Cut(raw, []byte("\n\n"))
	p.write("mail", string(raw))
	switch {
	case bytes.Contains(header, []byte("application/pkcs7-mime")):
		layers = "S/MIME "
		p.openssl("cms", "-decrypt", "-in", "mail", "-recip", "ict.pem", "-inkey", "ict.key", "-out", "mail")
	case bytes.Contains(header, []byte("multipart/encrypted")):
		layers = "PGP "
		p.write("mail", p.gpg("--decrypt", "mail"))
	}
	p.openssl("cms", "-verify", "-in", "mail", "-CAfile", "ca.pem", "-out", "content", "-signer", "signer.pem")
	if p.openssl("x509", "-in", "signer.pem", "-noout", "-fingerprint") != p.openssl("x509", "-in", "own.pem", "-noout", "-fingerprint") {
		p.t.Error("another has signed")
	}
	outer := regexp.MustCompile(`(?mi)^(content-[a-z-]*|mime-version):.*\n([ \t].*\n)*`).ReplaceAllString(string(header)+"\n", "")
	content := strings.ReplaceAll(p.read("content"), "\r\n", "\n")
	return []byte(outer + "MIME-Version: 1.0\n" + content), layers + "signed"
}

func TestSealedReports(t *testing.T) {
	real.Row(t, "leak", others, "brokerd signs every report, and encrypts to a certificate and to an OpenPGP key: openssl cms and gpg open what arrived, Python reads it; the preview names the fingerprints that the tools name")
	s, p := newSite(t), newParties(t)
	p.configure(s)
	kill := s.start()
	if status, body := s.token(); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	plan, _, code := s.broker("leak", "preview", "vdab")
	certificate := strings.TrimSpace(p.openssl("x509", "-in", "ict.pem", "-noout", "-fingerprint", "-sha256"))
	_, certificate, _ = strings.Cut(certificate, "=")
	fingerprint := strings.Join(strings.Fields(regexp.MustCompile(`(?m)^ +([0-9A-F ]+)$`).FindString(p.gpg("--fingerprint", "security@issuer.example"))), " ")
	for _, want := range []string{"ict_iam@issuer.example (signed, encrypted to certificate " + certificate + ")", "\nSubject: [incident]", "security@issuer.example (signed, encrypted to OpenPGP key " + fingerprint + ")",
		"security@corp.example (signed)\n"} {
		if code != 0 || !strings.Contains(plan, want) || fingerprint == "" {
			t.Errorf("exit code %d: %q is not in the preview:\n%s", code, want, plan)
		}
	}
	for n := 0; ; n++ { // the key is read after the start
		out, errs, _ := s.broker("check", "--live")
		if strings.Contains(out, "the private key is at hand, and is the certificate's") {
			break
		}
		if n == 100 {
			t.Fatalf("check --live:\n%s%s", out, errs)
		}
		<-time.After(100 * time.Millisecond)
	}
	if how, recorded := s.declare(); !recorded {
		t.Fatal(how)
	}
	i := s.delivered(s.onlyOne())
	kill()
	for _, m := range i.Mails {
		if !m.Signed || (m.EncryptedTo == "") != (m.To == "security@corp.example") || m.Remarks != nil {
			t.Errorf("%+v", m)
		}
	}
	arrived := s.x.files(3)
	opened, layers := filepath.Join(p.dir, "opened"), map[string]string{}
	if err := os.MkdirAll(filepath.Join(opened, "new"), 0o700); err != nil {
		t.Fatal(err)
	}
	for n, raw := range arrived {
		to := regexp.MustCompile(`(?m)^Envelope-to: (\S+)$`).FindSubmatch(raw)
		if to == nil {
			t.Fatalf("%s", raw)
		}
		content, how := p.open(raw)
		layers[string(to[1])] = how
		if err := os.WriteFile(filepath.Join(opened, "new", fmt.Sprint(n)), content, 0o600); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(how, "S/MIME") || strings.Contains(how, "PGP") {
			for _, word := range []string{"vdab", "canary-id", "It stood in", "Beveiligingsmelding"} {
				if bytes.Contains(raw, []byte(word)) {
					t.Errorf("the mail to %s says %q in the clear", to[1], word)
				}
			}
		}
	}
	if fmt.Sprint(layers) != "map[ict_iam@issuer.example:S/MIME signed security@corp.example:signed security@issuer.example:PGP signed]" {
		t.Errorf("%v", layers)
	}
	for _, m := range readMaildir(t, opened) {
		if len(m.Defects) != 0 || m.AutoSubmitted != "auto-generated" || len(m.Attachments) != 1 || !strings.Contains(string(m.Attachments[0].JSON), i.Global) ||
			!strings.Contains(m.Text, "It stood in a repository.") || !strings.HasPrefix(m.Subject, "[incident "+i.ID+"]") || m.ReplyTo[0] != "broker@corp.example" {
			t.Errorf("%+v", m)
		}
		if bare := m.Subject == "[incident "+i.ID+"]"; bare == (m.To[0] == "security@corp.example") {
			t.Errorf("the subject to %s: %s", m.To, m.Subject)
		}
	}
	values := append([]string{leaked, apiKey, password}, strings.Split(strings.TrimSpace(p.read("own.key")), "\n")[1:20]...)
	found := bytes.Join(arrived, nil)
	for _, dir := range []string{s.path("state"), opened} {
		_ = filepath.Walk(dir, func(name string, info os.FileInfo, err error) error {
			if err == nil && info.Mode().IsRegular() {
				b, _ := os.ReadFile(name)
				found = append(found, b...)
			}
			return nil
		})
	}
	for _, v := range values {
		if bytes.Contains(found, []byte(v)) || strings.Contains(s.log.String(), v) {
			t.Error("a secret stands in the mailbox, the state or the log")
		}
	}
}
