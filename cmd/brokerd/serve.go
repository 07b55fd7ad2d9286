package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"credentialbroker/api"
	"credentialbroker/configs"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/credential"
	"credentialbroker/internal/files"
	"credentialbroker/internal/gate"
	"credentialbroker/internal/platform"
	"credentialbroker/internal/proxy"
	"credentialbroker/internal/response"
	"credentialbroker/internal/secret"
)

func serveCommand() *cobra.Command {
	var p paths
	c := &cobra.Command{Use: "serve", Short: "Run the daemon", Args: noArgs,
		Long: "Run the daemon until SIGTERM or SIGINT. SIGHUP reads the configuration anew. Under systemd\n" +
			"it takes over the sockets of the socket units, reports readiness and answers the watchdog.",
		Example: "  broker serve\n  broker serve --config ./broker.yaml --socket ./broker.sock --state ./state",
		RunE: func(cmd *cobra.Command, _ []string) error {
			return serve(cmd.Context(), p, cmd.ErrOrStderr())
		}}
	c.Flags().StringVar(&p.config, "config", defaultConfig(), "configuration file; clients.d is looked for beside it")
	c.Flags().StringVar(&p.consumer, "socket", "", "consumer socket")
	c.Flags().StringVar(&p.admin, "admin-socket", "", "administrators' socket (default: admin.sock beside the consumer socket)")
	c.Flags().StringVar(&p.state, "state", "", "directory of the audit log and other state")
	return c
}

// server is the running daemon. A reload replaces what current guards.
type server struct {
	paths   paths
	log     *slog.Logger
	audit   *audit.Log
	broker  *broker.Broker
	files   *files.Writer
	api     *api.Server
	proxy   *proxy.Server
	started time.Time
	clock   clock.Clock
	alarms  struct{ command, webhook alarmCounts }
	webhook webhook
	ports   *loopbacks

	host     platform.Host
	platform []platform.Feature // as it was at the start
	response *response.Responder
	relogin  chan struct{} // the relays' logins and the webhook's key are to be read again
	units    *credential.Room
	stored   []*os.File // that the daemon before this one left with the service manager

	mu      sync.Mutex // one reload at a time
	current *opened
}

func serve(ctx context.Context, p paths, out io.Writer) error {
	s, consumer, admin, err := prepare(p, out)
	if err != nil {
		return err
	}
	return s.run(ctx, consumer, admin)
}

// prepare does everything that can fail before the daemon is of use to
// anybody. It connects to nothing: whatever is down may come later.
func prepare(p paths, out io.Writer) (s *server, consumer, admin net.Listener, err error) {
	c, err := load(p.config)
	if err != nil {
		return nil, nil, nil, err
	}
	if err := p.fill(c); err != nil {
		return nil, nil, nil, err
	}
	s = &server{paths: p, log: logger(out), clock: clock.System{}, started: time.Now(), relogin: make(chan struct{}, 1)}
	s.ports = newLoopbacks(s.log)
	if err := makeState(p.state); err != nil {
		return nil, nil, nil, err
	}
	s.audit, err = audit.Open(c.Audit, audit.Options{Dir: filepath.Join(p.state, "audit"), Clock: s.clock})
	if err != nil {
		return nil, nil, nil, err
	}
	s.broker = broker.New(broker.Options{Audit: s.audit, ServeUnrecorded: c.Audit.OnFailure == "serve", Clock: s.clock, Dir: p.state})
	s.openFiles()
	inherited, stored, err := gate.Inherited(socketModes(c), storedName)
	if err != nil {
		return nil, nil, nil, err
	}
	s.stored = stored
	if inherited["broker"] == nil { // the routes' directory is made in it
		if err := gate.MakeDir(filepath.Dir(p.consumer)); err != nil {
			return nil, nil, nil, err
		}
	}
	s.proxy = proxy.New(proxy.Options{Broker: s.broker, Log: s.log, Limits: limits(c), Dir: filepath.Join(filepath.Dir(p.consumer), "proxy"), Inherited: inherited})
	if err := s.install(c); err != nil {
		return nil, nil, nil, err
	}
	consumer, admin, err = s.listen(inherited)
	return s, consumer, admin, err
}

// limits are those of each socket for consumers.
func limits(c *configs.Config) gate.Limits {
	l := c.Limits
	return gate.Limits{ConnectionsPerUser: l.ConnectionsPerUser, Connections: l.Connections, RequestsPerSecond: l.RequestsPerSecond, Burst: 2 * l.RequestsPerSecond}
}

func load(file string) (*configs.Config, error) {
	return configs.Load(file, configs.Options{Credentials: os.Getenv("CREDENTIALS_DIRECTORY")})
}

// makeState makes the state directory; only the daemon's user may look into it.
func makeState(dir string) error {
	for _, d := range []string{dir, filepath.Join(dir, "credentials")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("make the state directory: %w", err)
		}
	}
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("the state directory %s is open to others (mode %o): run chmod 700 %s", dir, info.Mode().Perm(), dir)
	}
	return nil
}

// socketMode: anyone may connect to either socket; allow entries and roles
// decide by what the kernel says of the caller.
const socketMode = 0o666

// credentialMode: systemd connects as root.
const credentialMode = 0o600

// socketModes are the sockets that systemd may pass on.
func socketModes(c *configs.Config) map[string]os.FileMode {
	modes := map[string]os.FileMode{"broker": socketMode, "admin": socketMode, "credential": credentialMode}
	for _, client := range c.Clients {
		for _, r := range client.ReverseProxy {
			modes[proxy.Inherits(r)] = socketMode
		}
	}
	return modes
}

// listen takes the sockets of systemd, or makes its own.
func (s *server) listen(inherited map[string]net.Listener) (consumer, admin net.Listener, err error) {
	take := func(name string, path *string) (net.Listener, error) {
		if l := inherited[name]; l != nil {
			*path = l.Addr().String()
			return l, nil
		}
		return gate.Listen(*path, socketMode)
	}
	units := inherited["credential"]
	if len(inherited) == 0 { // else its socket unit is not enabled, and nobody asked for one
		if units, err = gate.Listen(filepath.Join(filepath.Dir(s.paths.consumer), "credential.sock"), credentialMode); err != nil {
			return nil, nil, err
		}
	}
	defer func() {
		if err != nil && units != nil {
			_ = units.Close()
		}
	}()
	s.units = credential.New(credential.Config{Listener: units, Broker: s.broker, Audit: s.audit, Clock: s.clock, Log: s.log,
		State: filepath.Join(s.paths.state, "units.json")})
	// The consumers' last: whoever finds it finds the others too.
	if admin, err = take("admin", &s.paths.admin); err != nil {
		return nil, nil, err
	}
	if consumer, err = take("broker", &s.paths.consumer); err != nil {
		_ = admin.Close()
		return nil, nil, err
	}
	return consumer, admin, nil
}

// run serves until ctx ends. The audit log outlives everything that writes to
// it.
func (s *server) run(ctx context.Context, consumer, admin net.Listener) error {
	own, all := s.gatherers()
	clients := len(s.current.config.Clients)
	s.api = api.New(api.Config{Consumer: consumer, Admin: admin, Broker: s.broker, Administration: s.administration(all), Log: s.log,
		Limits: limits(s.current.config)})

	logCtx, endLog := context.WithCancel(context.WithoutCancel(ctx))
	defer endLog()
	logged := make(chan error, 1)
	go func() { logged <- s.audit.Run(logCtx) }()

	// Before anything is handed out, the start is on record, and whoever is
	// quarantined gets nothing.
	if err := s.audit.Record(ctx, s.startEvent()); err != nil {
		s.log.Warn("the audit log cannot be written", "error", err)
	}
	s.platform = s.host.Look()
	tellPlatform(ctx, s.log, s.platform)
	s.response.Start()
	s.takeTokens(s.stored)
	s.ports.apply(ctx, s.current.config)
	asked := ctx // it ends when somebody asks for it, and the group's own after a failure too
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return s.broker.Run(ctx) })
	g.Go(func() error { return s.response.Run(ctx) })
	g.Go(func() error { return s.relayLogins(ctx) })
	g.Go(func() error { return s.api.Run(ctx) })
	g.Go(func() error { return s.files.Run(ctx) })
	g.Go(func() error { return s.units.Run(ctx) })
	g.Go(func() error { return s.ports.Run(ctx, s.api, s.proxy) })
	g.Go(func() error { return s.proxy.Run(ctx) })
	g.Go(func() error { return s.hangups(ctx) })
	g.Go(func() error { return watchdog(ctx, s.paths.consumer) })
	g.Go(func() error { return scrub(ctx, s.broker) })
	g.Go(func() error { return s.tell(ctx) })
	g.Go(func() error { return s.tellTaken(ctx) })
	g.Go(func() error { return s.export(ctx, own, all) })
	for _, h := range s.alarmHooks() {
		g.Go(func() error { return h.Run(ctx) })
	}
	g.Go(func() error {
		<-ctx.Done()
		notify(daemon.SdNotifyStopping)
		return nil
	})
	s.log.Info("serving", "version", version, "socket", s.paths.consumer, "clients", clients)
	notify(daemon.SdNotifyReady, s.summary(clients))
	err := g.Wait()
	s.broker.Flush() // requests may have ended after the broker's own work
	stop := audit.Event{Type: audit.DaemonStop}
	if asked.Err() != nil {
		stop.Detail = s.leaveTokens()
	}
	s.audit.Note(stop)
	endLog()
	err = errors.Join(err, <-logged)
	s.current.close(nil)
	return err
}

func (s *server) summary(clients int) string {
	return fmt.Sprintf("STATUS=Serving %d clients on %s", clients, s.paths.consumer)
}

// tell writes to the journal when a client can no longer be served, or can
// again: once each time, not once a request.
func (s *server) tell(ctx context.Context) error {
	const every = 5 * time.Second
	tick := time.NewTicker(every)
	defer tick.Stop()
	said := map[string]string{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for _, c := range s.broker.Status() {
			now := ""
			if c.Problem != nil {
				now = string(c.Problem.Code)
			}
			key := ""
			if c.KeyComplaints > 0 {
				key = "rejected"
			}
			s.tellCopy(said, c)
			switch {
			case now != "" && said[c.Name] != now:
				s.log.Warn("a client cannot be served", "client", c.Name, "code", now, "reason", c.Problem.Detail)
			case now == "" && said[c.Name] != "":
				s.log.Info("a client can be served again", "client", c.Name)
			}
			if key != said["key of "+c.Name] {
				s.log.Warn("consumers say that the API refused the API key", "client", c.Name)
			}
			said[c.Name], said["key of "+c.Name] = now, key
		}
	}
}

func (s *server) startEvent() audit.Event {
	return audit.Event{Type: audit.DaemonStart, Detail: map[string]string{"version": version, "config": s.paths.config,
		"socket": s.paths.consumer, "clients": fmt.Sprint(len(s.current.config.Clients)), "secret_memory": protection()}}
}

// protection says how secrets are kept, after making one.
func protection() string {
	probe := secret.New([]byte{0})
	defer probe.Wipe()
	var kinds []string
	for kind := range secret.Protected() {
		kinds = append(kinds, string(kind))
	}
	return strings.Join(kinds, " ")
}

// hangups reloads on SIGHUP.
func (s *server) hangups(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hup:
			if changes, err := s.reload(ctx, nil); err != nil {
				s.log.Error("the configuration was not taken: the old one stays", "error", err)
			} else {
				s.log.Info("configuration read anew", "changes", len(changes))
			}
		}
	}
}

// watchdog tells systemd that the daemon still answers on its socket, which a
// daemon that hangs does not.
func watchdog(ctx context.Context, socket string) error {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every == 0 {
		return nil // an unreadable setting is no watchdog
	}
	hc := &http.Client{Timeout: every / 4, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socket)
		}}}
	tick := time.NewTicker(every / 3)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost/healthz", nil)
		if err != nil {
			return err
		}
		if resp, err := hc.Do(req); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK || resp.StatusCode == http.StatusTooManyRequests {
				notify(daemon.SdNotifyWatchdog)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func notify(state ...string) { _, _ = daemon.SdNotify(false, strings.Join(state, "\n")) }
