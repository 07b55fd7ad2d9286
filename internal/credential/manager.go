package credential

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/godbus/dbus/v5"
)

// A manager is the system's manager over D-Bus (org.freedesktop.systemd1(5)).
// Restarts are rare: each has a connection of its own, so that a restart of
// the bus is nothing to recover from.
type manager struct {
	address string
	pipe    func() io.ReadWriteCloser // a connection, in tests; nil: to address
}

const (
	systemBus   = "unix:path=/run/dbus/system_bus_socket"
	destination = "org.freedesktop.systemd1"
	managerPath = dbus.ObjectPath("/org/freedesktop/systemd1")
	callWithin  = 30 * time.Second
)

// restart restarts a unit that runs; one that does not is not started.
func (m manager) restart(ctx context.Context, unit string) error {
	return m.call(ctx, func(ctx context.Context, c *dbus.Conn) error {
		return c.Object(destination, managerPath).CallWithContext(ctx, destination+".Manager.TryRestartUnit", 0, unit, "replace").Err
	})
}

// state is the unit's ActiveState: active, activating, inactive, failed …
func (m manager) state(ctx context.Context, unit string) (state string, err error) {
	err = m.call(ctx, func(ctx context.Context, c *dbus.Conn) error {
		var path dbus.ObjectPath
		if err := c.Object(destination, managerPath).CallWithContext(ctx, destination+".Manager.LoadUnit", 0, unit).Store(&path); err != nil {
			return err
		}
		return c.Object(destination, path).CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, destination+".Unit", "ActiveState").Store(&state)
	})
	return state, err
}

func (m manager) call(ctx context.Context, do func(context.Context, *dbus.Conn) error) error {
	ctx, cancel := context.WithTimeout(ctx, callWithin)
	defer cancel()
	c, err := m.dial(ctx)
	if err != nil {
		return fmt.Errorf("the system bus cannot be reached: %w", err)
	}
	defer c.Close()
	err = do(ctx, c)
	var e dbus.Error
	if errors.As(err, &e) && (e.Name == "org.freedesktop.DBus.Error.AccessDenied" || e.Name == "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired") {
		return fmt.Errorf("systemd does not let the broker restart it: name the unit in the polkit rule, /usr/share/credential-broker/polkit/50-credential-broker.rules (%s)", e.Name)
	}
	return err
}

func (m manager) dial(ctx context.Context) (c *dbus.Conn, err error) {
	if m.pipe != nil {
		c, err = dbus.NewConn(m.pipe(), dbus.WithContext(ctx))
	} else {
		c, err = dbus.Dial(cmp.Or(m.address, systemBus), dbus.WithContext(ctx))
	}
	if err != nil {
		return nil, err
	}
	if err = c.Auth(nil); err == nil {
		err = c.Hello()
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}
