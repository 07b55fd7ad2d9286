package main

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/leak"
)

// liveSocket looks at a socket as a consumer finds it.
func (s *server) liveSocket(path, who string) client.Finding {
	f := client.Finding{Check: "socket", Target: path, Level: client.Error}
	info, err := os.Stat(path)
	switch {
	case err != nil:
		f.Detail = err.Error()
	case info.Mode().Type() != fs.ModeSocket:
		f.Detail = "this is no socket"
	case info.Mode().Perm() != 0o666:
		f.Level, f.Detail = client.Warning, fmt.Sprintf("mode %o instead of 666: some consumers cannot connect", info.Mode().Perm())
	default:
		f.Level, f.Detail = client.OK, "anyone may connect; "+who
	}
	return f
}

const relayTimeout = 15 * time.Second

// liveRelays goes as far as each mail relay lets it without sending a mail. It
// shows no password.
func (s *server) liveRelays(ctx context.Context) (list []client.Finding) {
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	for _, a := range s.response.CheckRelays(ctx) {
		f := client.Finding{Check: "mail", Target: a.Relay, Level: client.OK, Detail: "greets, with what is configured of TLS and login"}
		if a.Result != leak.Accepted {
			f.Level, f.Detail = client.Error, "a report of a leak would not leave this way: "+a.String()
		}
		list = append(list, f)
	}
	return list
}

// liveSignature says whether reports leave signed.
func (s *server) liveSignature() client.Finding {
	if !s.response.Signs() {
		return client.Finding{Check: "mail", Target: "signature", Level: client.Error, Detail: "a report of a leak would leave unsigned: the private key of leak.sign could not be read, or is not the certificate's; the log says why"}
	}
	return client.Finding{Check: "mail", Target: "signature", Level: client.OK, Detail: "the private key is at hand, and is the certificate's"}
}

// liveDrill says when the last drill was.
func (s *server) liveDrill(every time.Duration) client.Finding {
	f := client.Finding{Check: "drill", Target: "leak", Level: client.OK}
	last := s.response.LastDrill()
	switch age := s.clock.Now().Wall.Sub(last); {
	case last.IsZero():
		f.Level, f.Detail = client.Warning, "no drill has ended well yet: run broker leak drill CLIENT"
	case age > every:
		f.Level, f.Detail = client.Warning, fmt.Sprintf("the last drill was on %s, longer ago than %s: run broker leak drill CLIENT", last.Format(time.DateOnly), clock.Duration(every))
	default:
		f.Detail = "the last drill was on " + last.Format(time.DateOnly)
	}
	return f
}
