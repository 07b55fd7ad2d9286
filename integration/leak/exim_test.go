//go:build real

// Package leak sends reports through Debian's Exim and reads them, in the
// Maildir, with Python's email library.
package leak

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"credentialbroker/integration/real"
)

const (
	server   = "Exim (Debian)"
	password = "correct horse battery staple"
)

// An exim is a relay with STARTTLS on one port and TLS at once on another. It
// wants a login, and delivers everything to one Maildir.
type exim struct {
	t                  *testing.T
	dir, caFile        string
	starttls, implicit uint16
}

func port(t *testing.T, addr string) uint16 {
	t.Helper()
	_, p, err := net.SplitHostPort(addr)
	n, err2 := strconv.ParseUint(p, 10, 16)
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	return uint16(n)
}

func startExim(t *testing.T) *exim {
	t.Helper()
	// Exim's own user has to reach it: a test's directory is closed to it.
	dir, err := os.MkdirTemp("", "exim-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	first, second := real.FreeAddr(t), real.FreeAddr(t)
	x := &exim{t: t, dir: dir, caFile: filepath.Join(dir, "cert.pem"), starttls: port(t, first), implicit: port(t, second)}
	x.certificate()
	config := filepath.Join(dir, "exim.conf")
	text := strings.NewReplacer("DIR", dir, "FIRST", fmt.Sprint(x.starttls), "SECOND", fmt.Sprint(x.implicit), "PASSWORD", password).Replace(configuration)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	u, err := user.Lookup("Debian-exim")
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	for _, name := range []string{"spool", "log", "key.pem"} {
		path := filepath.Join(dir, name)
		if name != "key.pem" {
			if err := os.Mkdir(path, 0o750); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chown(path, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(dir, uid, gid); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	real.Start(t, first, exec.CommandContext(t.Context(), "/usr/sbin/exim4", "-C", config, "-bdf"))
	t.Cleanup(func() {
		if t.Failed() {
			for _, name := range []string{"mainlog", "paniclog", "rejectlog"} {
				b, _ := os.ReadFile(filepath.Join(dir, "log", name))
				t.Logf("%s:\n%s", name, b)
			}
		}
	})
	return x
}

// certificate is for 127.0.0.1, and its own authority.
func (x *exim) certificate() {
	x.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		x.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		x.t.Fatal(err)
	}
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		x.t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "EC PRIVATE KEY", Bytes: private}} {
		mode := os.FileMode(0o644)
		if name == "key.pem" {
			mode = 0o600
		}
		if err := os.WriteFile(filepath.Join(x.dir, name), pem.EncodeToMemory(block), mode); err != nil {
			x.t.Fatal(err)
		}
	}
}

const configuration = `
primary_hostname = relay.example
spool_directory = DIR/spool
log_file_path = DIR/log/%slog
pid_file_path = DIR/exim.pid
local_interfaces = <; [127.0.0.1]:FIRST ; [127.0.0.1]:SECOND
tls_on_connect_ports = SECOND
tls_advertise_hosts = *
tls_certificate = DIR/cert.pem
tls_privatekey = DIR/key.pem
auth_advertise_hosts = ${if eq{$tls_in_cipher}{}{}{*}}
acl_smtp_rcpt = rcpt
never_users =
domainlist ours = corp.example : issuer.example

begin acl
rcpt:
  deny message = 5.7.0 TLS first
       !encrypted = *
  deny message = 5.7.1 login first
       !authenticated = *
  deny message = 5.1.1 no such user
       local_parts = nobody
  accept domains = +ours
  deny

begin routers
all:
  driver = accept
  transport = maildir

begin transports
maildir:
  driver = appendfile
  directory = DIR/Maildir
  maildir_format
  user = Debian-exim
  envelope_to_add
  return_path_add

begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_condition = ${if and{{eq{$auth2}{broker}}{eq{$auth3}{PASSWORD}}}}
  server_set_id = $auth2
login:
  driver = plaintext
  public_name = LOGIN
  server_prompts = Username:: : Password::
  server_condition = ${if and{{eq{$auth1}{broker}}{eq{$auth2}{PASSWORD}}}}
  server_set_id = $auth1
`

// A mail is what Python makes of one.
type mail struct {
	To            []string `json:"to"`
	From          []string `json:"from"`
	ReplyTo       []string `json:"reply_to"`
	EnvelopeTo    string   `json:"envelope_to"`
	ReturnPath    string   `json:"return_path"`
	Received      string   `json:"received"`
	Subject       string   `json:"subject"`
	Date          string   `json:"date"`
	MessageID     string   `json:"message_id"`
	InReplyTo     string   `json:"in_reply_to"`
	AutoSubmitted string   `json:"auto_submitted"`
	Charset       string   `json:"charset"`
	Text          string   `json:"text"`
	Attachments   []struct {
		Name string          `json:"name"`
		Type string          `json:"type"`
		JSON json.RawMessage `json:"json"`
	} `json:"attachments"`
	Raw     string   `json:"raw"`
	Defects []string `json:"defects"`
}

// mails waits for that many in the Maildir.
func (x *exim) mails(n int) []mail {
	x.t.Helper()
	for range 200 {
		if files, _ := filepath.Glob(filepath.Join(x.dir, "Maildir", "new", "*")); len(files) >= n {
			break
		}
		<-time.After(50 * time.Millisecond)
	}
	if n == 0 {
		files, _ := filepath.Glob(filepath.Join(x.dir, "Maildir", "new", "*"))
		if len(files) > 0 {
			x.t.Fatalf("%d mails, want none", len(files))
		}
		return nil
	}
	list := x.read()
	if len(list) != n {
		x.t.Fatalf("%d mails, want %d", len(list), n)
	}
	return list
}

// files waits for that many in the Maildir, and gives them as they are.
func (x *exim) files(n int) (list [][]byte) {
	x.t.Helper()
	var names []string
	for range 200 {
		if names, _ = filepath.Glob(filepath.Join(x.dir, "Maildir", "new", "*")); len(names) >= n {
			break
		}
		<-time.After(50 * time.Millisecond)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			x.t.Fatal(err)
		}
		list = append(list, b)
	}
	if len(list) != n {
		x.t.Fatalf("%d mails, want %d", len(list), n)
	}
	return list
}

// read gives what is in the Maildir now.
func (x *exim) read() []mail {
	x.t.Helper()
	return readMaildir(x.t, filepath.Join(x.dir, "Maildir"))
}

func readMaildir(t *testing.T, dir string) (list []mail) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/usr/bin/python3", filepath.Join(real.Root(), "integration", "leak", "read.py"), dir)
	out, err := cmd.Output()
	if err != nil || json.Unmarshal(out, &list) != nil {
		t.Fatalf("read.py: %v\n%s", err, out)
	}
	return list
}
