package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"credentialbroker/api/client"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/providers/file"
)

func demoCommand() *cobra.Command {
	var d demo
	faults := []string{"401", "503", "slow", "html"}
	c := &cobra.Command{Use: "demo", Short: "Run a whole broker with an issuer to play with", Args: noArgs,
		Long: "Run a whole broker: an issuer that behaves as VDAB's does, with TLS, on loopback; an age-encrypted\n" +
			"store with made-up credentials; and the daemon on a socket of your own. It hands out one token,\n" +
			"says how, and runs until Ctrl-C: a stand-in for laptops and continuous integration.",
		Example: "  broker demo\n  broker demo --once\n  broker demo --socket ./demo/broker.sock --fault 503",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if d.fault != "" && !slices.Contains(faults, d.fault) {
				return usageError{fmt.Errorf("--fault %s is unknown: one of %s", d.fault, strings.Join(faults, ", "))}
			}
			d.out = cmd.OutOrStdout()
			return d.run(cmd.Context())
		}}
	c.Flags().BoolVar(&d.once, "once", false, "do one round and exit")
	c.Flags().StringVar(&d.socket, "socket", "", "consumer socket (default: in a directory of its own)")
	c.Flags().StringVar(&d.fault, "fault", "", "what is wrong with the issuer: "+strings.Join(faults, ", "))
	return c
}

type demo struct {
	once          bool
	socket, fault string
	out           io.Writer

	dir      string
	issuer   *fake.Issuer
	base     string // URL of issuer and API
	caFile   string
	identity string
	client   fake.Client
}

func (d *demo) run(ctx context.Context) (err error) {
	parent := os.Getenv("XDG_RUNTIME_DIR")                     // not on a disk, where there is one
	if info, e := os.Stat(parent); e != nil || !info.IsDir() { // #nosec G703 -- the user's own directory
		parent = ""
	}
	if d.dir, err = os.MkdirTemp(parent, "credential-broker-demo-"); err != nil {
		return err
	}
	defer os.RemoveAll(d.dir)
	if d.socket == "" {
		d.socket = filepath.Join(d.dir, "broker.sock")
	}
	if d.socket, err = filepath.Abs(d.socket); err != nil {
		return err
	}
	d.client = fake.Client{ID: rand.Text()[:20], Secret: rand.Text(), APIKey: strings.ToLower(rand.Text() + rand.Text()[:6])}
	if err := d.store(ctx); err != nil {
		return fmt.Errorf("make the store: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	g, ctx := errgroup.WithContext(ctx)
	if err := d.serveIssuer(ctx, g); err != nil {
		return fmt.Errorf("start the issuer: %w", err)
	}
	config, err := d.configure()
	if err != nil {
		return err
	}
	s, consumer, admin, err := prepare(paths{config: config, consumer: d.socket, admin: filepath.Join(filepath.Dir(d.socket), "admin.sock"),
		state: filepath.Join(d.dir, "state")}, filtered{d.out})
	if err != nil {
		return err
	}
	g.Go(func() error { return s.run(ctx, consumer, admin) })
	g.Go(func() error {
		err := d.show(ctx)
		if d.once || err != nil {
			cancel()
		}
		return err
	})
	return g.Wait()
}

// filtered keeps the daemon's ordinary lines out of the demonstration.
type filtered struct{ io.Writer }

func (f filtered) Write(b []byte) (int, error) {
	if strings.Contains(string(b), "level=INFO") {
		return len(b), nil
	}
	return f.Writer.Write(b)
}

// store makes the age-encrypted store, as an administrator would.
func (d *demo) store(ctx context.Context) error {
	dir := filepath.Join(d.dir, "secrets")
	identity, err := file.Create(dir)
	if err != nil {
		return err
	}
	d.identity = filepath.Join(d.dir, "identity")
	err = identity.Use(func(b []byte) error { return os.WriteFile(d.identity, b, 0o600) })
	if err != nil {
		return err
	}
	p, err := file.Open(file.Config{Path: dir, IdentityFile: d.identity, InsecureIdentity: true}, clock.System{})
	if err != nil {
		return err
	}
	defer p.Close()
	w, ok := p.(providers.Writer)
	if !ok {
		return errors.New("the store cannot be written")
	}
	_, err = w.Put(ctx, providers.Ref{Path: "vdab"}, map[string]secret.Secret{"client_id": secret.FromString(d.client.ID),
		"client_secret": secret.FromString(d.client.Secret), "api_key": secret.FromString(d.client.APIKey)}, "")
	return err
}

// serveIssuer runs the issuer and the API behind it on one loopback port.
func (d *demo) serveIssuer(ctx context.Context, g *errgroup.Group) error {
	cert, ca, err := fake.TLS()
	if err != nil {
		return err
	}
	d.caFile = filepath.Join(d.dir, "ca.pem")
	if err := os.WriteFile(d.caFile, ca, 0o600); err != nil {
		return err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	d.base = "https://" + l.Addr().String()
	d.issuer = fake.NewIssuer(d.client)
	d.issuer.Set(fake.Fault{Kind: fake.FaultKind(d.fault)})
	mux := http.NewServeMux()
	mux.Handle("/", d.issuer)
	mux.Handle(fake.APIPath, d.issuer.Gateway())
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second,
		TLSConfig: &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{cert}}}
	g.Go(func() error {
		if err := srv.ServeTLS(l, "", ""); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		return srv.Close()
	})
	return nil
}

var demoConfig = template.Must(template.New("").Parse(`providers:
  local:
    file: { path: {{.Dir}}/secrets, identity_file: {{.Identity}}, insecure_identity: true }

clients:
  vdab:
    preset: vdab-test
    token_endpoint: {{.Base}}{{.TokenPath}}
    ca_file: {{.CAFile}}
    secret: { provider: local, path: vdab }
    owner: { contact: you@localhost, purpose: demonstration }
    reverse_proxy:
      - { name: vdab, upstream: "{{.Base}}{{.APIPath}}", ca_file: {{.CAFile}} }
    allow:
      - { user: "{{.UID}}" }

audit: { anchor: none }
`))

func (d *demo) configure() (string, error) {
	name := filepath.Join(d.dir, "broker.yaml")
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	err = demoConfig.Execute(f, map[string]any{"Dir": d.dir, "Identity": d.identity, "Base": d.base, "TokenPath": fake.TokenPath, "APIPath": fake.APIPath,
		"CAFile": d.caFile, "UID": os.Getuid()})
	return name, errors.Join(err, f.Close())
}

// show does what a consumer does, and says how.
func (d *demo) show(ctx context.Context) error {
	say := func(format string, args ...any) { printf(d.out, format+"\n", args...) }
	url := "http://localhost/v1/clients/vdab/"
	say("The broker serves on %s (administrators: admin.sock beside it); its issuer is %s.", d.socket, d.base)
	say("\nThe token, and the headers of a call to the API:\n")
	say("  curl -sSf --unix-socket %s %stoken", d.socket, url)
	say("  curl -sSf --unix-socket %s %sheaders | curl -sSf -H @- --cacert %s %s%s", d.socket, url, d.caFile, d.base, fake.APIPath)
	say("\nCalling them once:\n")
	c := client.Client{Socket: d.socket}
	t, err := c.Token(ctx, "vdab", client.Options{})
	if err != nil {
		if d.once {
			return err
		}
		say("  token    %v", err)
	} else {
		say("  token    %s… (%d characters), %s, expires in %d s", t.AccessToken[:12], len(t.AccessToken), t.TokenType, t.ExpiresIn)
		if err := d.call(ctx, &c, say); err != nil {
			return err
		}
	}
	if !d.once {
		say("\nThe configuration is %s.\nPress Ctrl-C to end.", filepath.Join(d.dir, "broker.yaml"))
	}
	return nil
}

// call uses the headers for a call to the API.
func (d *demo) call(ctx context.Context, c *client.Client, say func(string, ...any)) error {
	headers, err := c.Headers(ctx, "vdab", client.Options{})
	if err != nil {
		return err
	}
	for _, name := range []string{"Authorization", "X-IBM-Client-Id"} {
		say("  headers  %s: %.12s…", name, headers[name])
	}
	ca, err := os.ReadFile(d.caFile)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	hc := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}}
	defer hc.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.base+fake.APIPath, nil)
	if err != nil {
		return err
	}
	for name, value := range headers {
		req.Header.Set(name, value)
	}
	resp, err := hc.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<10))
	if err != nil {
		return err
	}
	say("  the API  %s %s", resp.Status, strings.TrimSpace(string(body)))
	if resp.StatusCode != http.StatusOK {
		return errors.New("the API refused the call")
	}
	return nil
}
