// Package credential answers systemd, which fetches what LoadCredential= names
// when it starts a unit (systemd.exec(5)), and restarts units before what they
// read ends.
package credential

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"strings"
	"sync"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
)

// Rules of this file:
//   - the socket's peer says which unit and which value; the kernel has to say
//     the same: uid 0, in the cgroup of that unit, in no container;
//   - a unit that starts before there is a value waits for it;
//   - a refusal is longer than systemd takes: then the unit fails to start.
//     A connection that ends without a byte would be an empty credential, and
//     the unit would start with it.

// A Room answers on one socket. Make one with New; Run serves.
type Room struct {
	c    Config
	keep *keeper
	who  func(*net.UnixConn) (*access.Caller, error)

	mu      sync.Mutex
	refused map[string]refusal // by unit and name of the credential, until it is read
}

// A refusal is what a unit was told last, instead of a value.
type refusal struct {
	why  string
	when time.Time
}

// Config is what a Room works with.
type Config struct {
	// Listener is the socket; Run closes it. Nil: units are restarted, and
	// nothing is served.
	Listener net.Listener
	Broker   *broker.Broker
	Audit    *audit.Log
	Clock    clock.Clock
	Log      *slog.Logger
	// State is the file that remembers which unit read what.
	State string
	// Bus is the D-Bus address of the system's manager. Empty: the system bus.
	Bus string
}

const (
	// holdFor is how long systemd waits: less than TimeoutStartSec=, which is
	// 90 s where nobody says otherwise.
	holdFor = 80 * time.Second
	// tooLong is more than systemd reads of a credential, sealed ones included.
	tooLong    = 2 << 20
	sendWithin = 10 * time.Second
	// manyUnits is how many connections are held at once; more wait in the
	// kernel.
	manyUnits = 256
	// manyRefused is how many refusals are remembered, for a day.
	manyRefused = 64
)

// New makes a Room; it starts nothing. It reads which units it has to look
// after.
func New(c Config) *Room {
	r := &Room{c: c, who: access.Identify, refused: map[string]refusal{}}
	r.keep = newKeeper(c)
	return r
}

// Run serves, and keeps the units up to date, until ctx ends; whoever waits
// then is refused.
func (r *Room) Run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { r.keep.run(ctx) })
	if r.c.Listener == nil {
		return nil
	}
	stop := context.AfterFunc(ctx, func() { _ = r.c.Listener.Close() })
	defer stop()
	free := make(chan struct{}, manyUnits)
	for {
		free <- struct{}{}
		conn, err := r.c.Listener.Accept()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			r.c.Log.Error("units cannot fetch credentials: the socket failed", "error", err)
			if !pause(ctx, time.Second) || errors.Is(err, net.ErrClosed) {
				return nil
			}
			<-free
			continue
		}
		all.Go(func() {
			defer func() { <-free }()
			defer conn.Close()
			if u, ok := conn.(*net.UnixConn); ok {
				r.answer(ctx, u)
			}
		})
	}
}

// answer is one connection, from systemd or from somebody else.
func (r *Room) answer(ctx context.Context, conn *net.UnixConn) {
	caller, err := r.who(conn)
	if err != nil {
		if !errors.Is(err, access.ErrExited) {
			r.c.Log.Warn("a credential was refused: its caller cannot be identified", "error", err)
		}
		refuse(conn, "the caller cannot be identified")
		return
	}
	defer caller.Close()
	peer, err := parsePeer(conn.RemoteAddr().String())
	if err == nil || caller.UID != 0 { // whom it is refused anyway, and recorded
		err = r.serve(ctx, conn, caller, peer)
	}
	if err != nil {
		refuse(conn, r.explain(caller, peer, err))
	}
}

// serve sends what peer asks for, or returns why not.
func (r *Room) serve(ctx context.Context, conn net.Conn, caller *access.Caller, p peer) error {
	if caller.UID != 0 || caller.Unit != p.Unit || caller.Container {
		r.c.Broker.DeniedCredential(caller, p.Client)
		return &broker.Error{Code: client.NotAllowed, Detail: fmt.Sprintf("%s asks for a credential of %s: only the system's manager is answered, when it starts that unit", caller, p.Unit)}
	}
	g, err := r.await(ctx, caller, p.UnitCredential)
	if err != nil {
		return err
	}
	value, err := content(g, p.What)
	defer clear(value)
	switch {
	case err != nil:
		return err
	case len(value) == 0: // systemd would take it
		return &broker.Error{Code: client.InvalidRequest, Detail: "the client has no " + string(p.What) + ": set headers, or ask for something else"}
	}
	_ = conn.SetWriteDeadline(time.Now().Add(sendWithin))
	if _, err := conn.Write(value); err != nil {
		return fmt.Errorf("systemd did not take it: %w", err)
	}
	r.mu.Lock()
	delete(r.refused, p.key())
	r.mu.Unlock()
	r.keep.read(p, g.Sight())
	return nil
}

// await holds systemd until there is a value, as long as waiting may help.
func (r *Room) await(ctx context.Context, caller *access.Caller, u broker.UnitCredential) (*broker.Grant, error) {
	ctx, cancel := context.WithTimeout(ctx, holdFor)
	defer cancel()
	var last error
	for {
		g, err := r.c.Broker.Credential(ctx, caller, u)
		if err == nil {
			return g, nil
		}
		var e *broker.Error
		if errors.As(err, &e) {
			last = err
			if e.Code.Status() < 500 {
				return nil, err
			}
		}
		wait := time.Second
		if e != nil {
			wait = min(max(e.RetryAfter, wait), 5*time.Second)
		}
		if !pause(ctx, wait) || !caller.Alive() {
			if last == nil {
				last = err
			}
			return nil, last
		}
	}
}

// explain writes down why a unit got nothing, and says it in a line.
func (r *Room) explain(c *access.Caller, p peer, err error) string {
	why := err.Error()
	var e *broker.Error
	if errors.As(err, &e) {
		why = string(e.Code) + ": " + e.Detail
	}
	r.c.Log.Warn("a unit got no credential, and does not start", "unit", p.Unit, "credential", p.Name, "caller", c.String(), "reason", why)
	if c.UID == 0 && p.Unit != "" && c.Unit == p.Unit {
		r.mu.Lock()
		r.dropOld()
		if _, known := r.refused[p.key()]; known || len(r.refused) < manyRefused {
			r.refused[p.key()] = refusal{why, time.Now()}
		}
		r.mu.Unlock()
	}
	return why
}

// dropOld forgets the refusals of units that nobody starts any more; the caller
// holds r.mu.
func (r *Room) dropOld() {
	maps.DeleteFunc(r.refused, func(_ string, one refusal) bool { return time.Since(one.when) > day })
}

// Findings lists what is wrong with units, for broker status.
func (r *Room) Findings() []client.Finding {
	list := r.keep.findings()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dropOld()
	for key, one := range r.refused {
		list = append(list, client.Finding{Check: "credential", Target: key, Level: client.Warning, Detail: "systemd was refused when it started the unit: " + one.why})
	}
	return list
}

// refuse makes systemd fail to start the unit.
func refuse(conn net.Conn, why string) {
	_ = conn.SetWriteDeadline(time.Now().Add(sendWithin))
	text := "refused: " + why + "\n"
	const part = 64 << 10
	block := []byte(text + strings.Repeat(" ", part))
	for sent := 0; sent <= tooLong; sent += len(block) {
		if _, err := conn.Write(block); err != nil {
			return // it has had enough
		}
	}
}

// content is what the unit finds in the file.
func content(g *broker.Grant, what access.Surface) (value []byte, err error) {
	take := func(b []byte) error {
		value = append(make([]byte, 0, len(b)), b...)
		return nil
	}
	switch what { //nolint:exhaustive // parsePeer knows no others
	case access.Token:
		err = g.Token.Access.Use(take)
	case access.APIKey:
		err = g.APIKey().Use(take)
	case access.Headers:
		err = g.AppendHeaders(func(name string, v []byte) error {
			old := value
			value = make([]byte, 0, len(old)+len(name)+len(v)+3)
			value = append(append(append(append(append(value, old...), name...), ": "...), v...), '\n')
			clear(old)
			return nil
		})
	}
	return value, err
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
