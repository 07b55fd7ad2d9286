package main

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"credentialbroker/api"
	"credentialbroker/api/client"
	"credentialbroker/configs"
	"credentialbroker/internal/access"
	"credentialbroker/internal/gate"
	"credentialbroker/internal/proxy"
)

// Rules of this file:
//   - a listener is opened before the daemon says that it is ready, and within a
//     reload, so that whoever was told can connect;
//   - a port that cannot be had keeps nobody else from being served: it is tried
//     again, and the journal and broker status say who has it.

// loopbacks are the loopback listeners of the configuration, of clients and of
// routes of the reverse proxy. apply opens and
// closes them, Run serves what is open.
type loopbacks struct {
	log  *slog.Logger
	news chan struct{} // something was opened

	mu   sync.Mutex
	diag *access.SockDiag     // nil: none was needed yet
	want map[string]port      // by name, as a person reads it
	open map[string]*loopback // likewise
	fail map[string]string    // likewise
}

// port is what is to be served, and where.
type port struct {
	client  string
	route   string // empty: the client itself
	address string
}

type loopback struct {
	port
	listener *gate.Loopback
	gone     context.CancelFunc // ends its serving; nil: not served yet
}

func newLoopbacks(log *slog.Logger) *loopbacks {
	return &loopbacks{log: log, news: make(chan struct{}, 1), open: map[string]*loopback{}, fail: map[string]string{}}
}

// apply makes what is open what c says.
func (l *loopbacks) apply(ctx context.Context, c *configs.Config) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.want = map[string]port{}
	for name, one := range c.Clients {
		if one.Loopback != nil {
			l.want[name] = port{name, "", one.Loopback.Address}
		}
		for _, r := range one.ReverseProxy {
			if r.Loopback != nil {
				l.want[name+", route "+r.Name] = port{name, r.Name, r.Loopback.Address}
			}
		}
	}
	for name, have := range l.open {
		if l.want[name] != have.port {
			l.close(name, have)
		}
	}
	l.fill(ctx)
}

// fill opens what is missing. l is locked.
func (l *loopbacks) fill(ctx context.Context) {
	for _, name := range slices.Sorted(maps.Keys(l.want)) {
		if l.open[name] == nil {
			err := l.listen(ctx, name)
			l.say(name, err)
		}
	}
	maps.DeleteFunc(l.fail, func(name, _ string) bool { return l.want[name] == port{} })
}

func (l *loopbacks) listen(ctx context.Context, name string) error {
	if l.diag == nil {
		diag, err := access.OpenSockDiag()
		if err != nil {
			return err
		}
		l.diag = diag
	}
	listener, err := gate.ListenLoopback(ctx, l.want[name].address, l.want[name].client, l.diag)
	if err != nil {
		return err
	}
	l.open[name] = &loopback{port: l.want[name], listener: listener}
	select {
	case l.news <- struct{}{}:
	default:
	}
	return nil
}

// say writes a trouble to the journal, once each.
func (l *loopbacks) say(name string, err error) {
	before := l.fail[name]
	switch {
	case err == nil:
		delete(l.fail, name)
		l.log.Info("serving on loopback, which is weaker than the socket", "client", name, "address", l.want[name].address)
	case err.Error() != before:
		l.fail[name] = err.Error()
		l.log.Warn("a client is not served on loopback; this is tried again", "client", name, "address", l.want[name].address, "error", err)
	}
}

func (l *loopbacks) close(name string, one *loopback) {
	_ = one.listener.Close()
	if one.gone != nil {
		one.gone()
	}
	delete(l.open, name)
}

// Run serves until ctx ends.
func (l *loopbacks) Run(ctx context.Context, s *api.Server, p *proxy.Server) error {
	const again = 5 * time.Second
	tick := time.NewTicker(again)
	defer tick.Stop()
	var serving sync.WaitGroup
	for {
		l.mu.Lock()
		for name, one := range l.open {
			if one.gone == nil {
				var own context.Context
				own, one.gone = context.WithCancel(ctx)
				serving.Go(func() { l.serve(own, s, p, name, one) })
			}
		}
		l.mu.Unlock()
		select {
		case <-ctx.Done():
			serving.Wait()
			l.end()
			return nil
		case <-l.news:
		case <-tick.C:
			l.mu.Lock()
			l.fill(ctx)
			l.mu.Unlock()
		}
	}
}

// serve serves one, until it is closed; one that fails is opened anew later.
func (l *loopbacks) serve(ctx context.Context, s *api.Server, p *proxy.Server, name string, one *loopback) {
	var err error
	if one.route == "" {
		err = s.ServeLoopback(ctx, one.listener)
	} else {
		err = p.ServeLoopback(ctx, one.listener, one.route)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[name] == one { // nobody closed it
		l.close(name, one)
		if err != nil {
			l.say(name, err)
		}
	}
}

// end frees what is left, when no connection needs it any more.
func (l *loopbacks) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, one := range l.open {
		l.close(name, one)
	}
	if l.diag != nil {
		_ = l.diag.Close()
	}
}

// findings say of each listener how it does.
func (l *loopbacks) findings() []client.Finding {
	l.mu.Lock()
	defer l.mu.Unlock()
	var list []client.Finding
	for _, name := range slices.Sorted(maps.Keys(l.want)) {
		f := client.Finding{Check: "loopback", Target: name, Level: client.OK, Detail: "served on " + l.want[name].address + ", which is weaker than the socket"}
		if why := l.fail[name]; why != "" {
			f.Level, f.Detail = client.Error, "not served on "+l.want[name].address+": "+why
		}
		list = append(list, f)
	}
	return list
}
