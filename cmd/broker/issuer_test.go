package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/providers/file"
)

// standIn is the issuer, or the API, of a script.
type standIn interface {
	http.Handler
	Register(fake.Client) error
	Set(fake.Fault)
}

type issuerOf struct {
	standIn
	client fake.Client
	web    *http.Client // that trusts it
}

// startIssuer is "issuer KIND [FAULT]": it runs an issuer on loopback, registers
// a client there, and makes an age-encrypted store with the client's bundle as
// KIND. It sets $ISSUER, $CA, $STORE, $IDENTITY. Again, it sets the fault.
func startIssuer(ts *testscript.TestScript, _ bool, args []string) {
	i := ts.Value("issuer").(*issuerOf)
	if i.standIn != nil {
		i.Set(fake.Fault{Kind: fake.FaultKind(args[1])})
		return
	}
	if args[0] == "intake" {
		startMailing(ts, i)
		return
	}
	i.client = fake.Client{ID: rand.Text(), Secret: rand.Text() + rand.Text(), RedirectURIs: []string{"http://127.0.0.1/callback"}, Scopes: []string{"read"}}
	fields := map[string]secret.Secret{"client_id": secret.FromString(i.client.ID), "client_secret": secret.FromString(i.client.Secret)}
	switch args[0] {
	case "mkp":
		i.standIn = &fake.MijnKlantportaal{}
	case "zgw":
		i.standIn = &fake.ZGW{}
	case "acm":
		i.standIn = &fake.ACM{}
		i.client.Auth, i.client.Secret = "private_key_jwt", ""
		delete(fields, "client_secret")
	}
	ts.Check(i.Register(i.client))
	serveTLS(ts, i)
	makeStore(ts, args[0], fields)
}

func serveTLS(ts *testscript.TestScript, i *issuerOf) {
	cert, ca, err := fake.TLS()
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs("ca.pem"), ca, 0o600))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	srv := &http.Server{Handler: i, TLSConfig: &tls.Config{Certificates: []tls.Certificate{cert}}}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.ServeTLS(l, "", "") }()
	ts.Defer(func() { _ = srv.Close(); <-done })
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	i.web = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: pool}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	ts.Setenv("ISSUER", "https://"+l.Addr().String())
	ts.Setenv("CA", ts.MkAbs("ca.pem"))
}

func makeStore(ts *testscript.TestScript, path string, fields map[string]secret.Secret) {
	dir, name := ts.MkAbs("secrets"), ts.MkAbs("identity")
	identity, err := file.Create(dir)
	ts.Check(err)
	ts.Check(identity.Use(func(b []byte) error { return os.WriteFile(name, b, 0o600) }))
	p, err := file.Open(file.Config{Path: dir, IdentityFile: name, InsecureIdentity: true}, clock.System{})
	ts.Check(err)
	defer p.Close()
	_, err = p.(providers.Writer).Put(context.Background(), providers.Ref{Path: path}, fields, "")
	ts.Check(err)
	ts.Setenv("STORE", dir)
	ts.Setenv("IDENTITY", name)
}

// startServe is "serve FILE": the daemon with that configuration, in which the
// script's variables are filled in.
func startServe(ts *testscript.TestScript, _ bool, args []string) {
	config := ts.MkAbs("filled.yaml")
	ts.Check(os.WriteFile(config, []byte(os.Expand(ts.ReadFile(args[0]), ts.Getenv)), 0o600))
	startDaemon(ts, []string{"serve", "--config", config, "--state", ts.MkAbs("state")}, func() bool { return true })
}

// registerKey is "register FILE": the issuer learns the client's public key.
func registerKey(ts *testscript.TestScript, _ bool, args []string) {
	i := ts.Value("issuer").(*issuerOf)
	i.client.Keys = []string{ts.ReadFile(args[0])}
	ts.Check(i.Register(i.client))
}

// callAPI is "call PATH": it calls the API with the header lines of the last
// command's standard output.
func callAPI(ts *testscript.TestScript, neg bool, args []string) {
	req, err := http.NewRequest(http.MethodGet, ts.Getenv("ISSUER")+args[0], nil)
	ts.Check(err)
	for line := range strings.Lines(ts.ReadFile("stdout")) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok { // a token alone
			name, value = "Authorization", "Bearer "+name
		}
		req.Header.Set(name, value)
	}
	resp, err := ts.Value("issuer").(*issuerOf).web.Do(req)
	ts.Check(err)
	defer resp.Body.Close()
	if (resp.StatusCode == http.StatusOK) == neg {
		ts.Fatalf("the API answers %s", resp.Status)
	}
	if z, ok := ts.Value("issuer").(*issuerOf).standIn.(*fake.ZGW); ok && !neg {
		id, representation := z.User()
		ts.Check(os.WriteFile(ts.MkAbs("user"), []byte(id+"\n"+representation+"\n"), 0o600))
	}
}

// playPerson is "person PLAY CODE COMMAND…": it runs a login, does what a person
// does with the address, and wants the exit code. What the command prints is in
// out, and $LANDED says where the browser was sent.
func playPerson(ts *testscript.TestScript, _ bool, args []string) {
	play, code := args[0], args[1]
	cmd := exec.Command(filepath.Join(filepath.SplitList(ts.Getenv("PATH"))[0], "broker"), args[3:]...)
	cmd.Env = []string{"CREDENTIAL_BROKER_SOCKET=" + ts.Getenv("SOCKET")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, theirs := input(ts, play == "type")
	cmd.Stdin = theirs
	stdout, err := cmd.StdoutPipe()
	ts.Check(err)
	var all, stderr bytes.Buffer
	cmd.Stderr = &stderr
	ts.Check(cmd.Start())
	ts.Check(theirs.Close())
	defer time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() }).Stop()
	lines := bufio.NewReader(io.TeeReader(stdout, &all))
	page := ""
	for page == "" {
		line, err := lines.ReadString('\n')
		if err != nil {
			break
		}
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "https://") {
			page = line
		}
	}
	if page != "" {
		act(ts, cmd, play, page, stdin)
	}
	_, _ = io.Copy(io.Discard, lines)
	if play == "type" {
		shown, _ := io.ReadAll(stdin) // the other end is closed: what there is
		ts.Check(os.WriteFile(ts.MkAbs("terminal"), shown, 0o600))
		if state, err := unix.IoctlGetTermios(int(stdin.Fd()), unix.TCGETS); err != nil || state.Lflag&unix.ECHO == 0 {
			ts.Fatalf("the terminal is left as it was hidden: %v", err)
		}
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	got := 0
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	}
	text := all.String() + stderr.String()
	ts.Check(os.WriteFile(ts.MkAbs("out"), []byte(text), 0o600))
	ts.Logf("%s", text)
	if code != fmt.Sprint(got) {
		ts.Fatalf("exit code %d, want %s", got, code)
	}
}

// input is the two ends of a command's standard input: a pipe, or a terminal
// that would show what is typed.
func input(ts *testscript.TestScript, terminal bool) (ours, theirs *os.File) {
	if !terminal {
		theirs, ours, err := os.Pipe()
		ts.Check(err)
		return ours, theirs
	}
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	ts.Check(err)
	ts.Defer(func() { _ = ours.Close() })
	ts.Check(unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	ts.Check(err)
	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	ts.Check(err)
	return ours, theirs
}

// act does what a person does with the address of the consent page.
func act(ts *testscript.TestScript, cmd *exec.Cmd, play, page string, stdin *os.File) {
	web := ts.Value("issuer").(*issuerOf).web
	if play == "interrupt" {
		ts.Check(cmd.Process.Signal(syscall.SIGINT))
		return
	}
	resp, err := web.Get(page)
	ts.Check(err)
	_ = resp.Body.Close()
	back, err := url.Parse(resp.Header.Get("Location"))
	ts.Check(err)
	ts.Setenv("LANDED", back.Scheme+"://"+back.Host+back.Path)
	ts.Setenv("CODE", back.Query().Get("code"))
	switch play {
	case "browse":
		wrong := *back
		wrong.RawQuery = "code=x&state=other"
		for _, to := range []string{wrong.String(), back.String()} {
			resp, err := web.Get(to)
			ts.Check(err)
			_ = resp.Body.Close()
		}
	case "mixed-up": // RFC 9207: the answer of another issuer
		back.RawQuery += "&iss=https%3A%2F%2Fattacker.example"
		resp, err := web.Get(back.String())
		ts.Check(err)
		_ = resp.Body.Close()
	case "paste", "type":
		_, err = io.WriteString(stdin, back.String()+"\n")
		ts.Check(err)
	case "paste-code":
		_, err = io.WriteString(stdin, back.Query().Get("code")+"\n")
		ts.Check(err)
	case "paste-nothing":
		ts.Check(stdin.Close())
	case "paste-other":
		_, err = io.WriteString(stdin, wrongState(back)+"\n")
		ts.Check(err)
	default:
		ts.Fatalf("no such play: %s", play)
	}
}

func wrongState(u *url.URL) string {
	q := u.Query()
	q.Set("state", "other")
	w := *u
	w.RawQuery = q.Encode()
	return w.String()
}
