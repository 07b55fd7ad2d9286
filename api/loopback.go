package api

import (
	"context"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"credentialbroker/internal/gate"
)

// Rules of this file:
//   - anybody on this machine can connect to a port, and so can a page in a
//     browser and whatever fetches addresses for others. They all are the user
//     that runs them, so what shows one of them is refused;
//   - a name that an attacker's name server lets point to us (DNS rebinding)
//     shows in Host, which has to be ours;
//   - nothing here says that another origin may read an answer.

// loopbackConnections is how many a loopback listener has at most: it is for
// the applications of one client.
const loopbackConnections = 512

// ServeLoopback serves consumers on l until ctx ends, as Run does on the
// socket. Its caps are its own.
func (s *Server) ServeLoopback(ctx context.Context, l *gate.Loopback) error {
	limits := s.cfg.Limits
	if limits.Connections <= 0 || limits.Connections > loopbackConnections {
		limits.Connections = loopbackConnections
	}
	port := ""
	if at, ok := l.Addr().(*net.TCPAddr); ok {
		port = strconv.Itoa(at.Port)
	}
	stopping := func() {} // streams of events end with the server, else after Drain
	return gate.Serve(ctx, stopping, gate.Server{Listener: l, Pool: gate.New(limits, s.log), Handler: s.onLoopback(port), Times: s.times.Times})
}

func (s *Server) onLoopback(port string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header()["X-Content-Type-Options"] = []string{"nosniff"}
		err := local(r, port)
		if err == nil {
			s.consumer(w, r)
			return
		}
		defer s.recovered(r)
		if c := s.enter(w, r); s.admitted(w, r, c) {
			w.Header().Set("Connection", "close")
			s.refuse(w, r, err)
		}
	})
}

// local refuses what does not come from a program of this machine that means
// this port. Browsers of before 2020 send no Sec-Fetch-*: a Referer or a Cookie
// shows them, and what they fetch for a page without either, the page cannot
// read.
func local(r *http.Request, port string) error {
	if !slices.Contains([]string{"127.0.0.1:" + port, "localhost:" + port, "[::1]:" + port}, r.Host) {
		return invalid("the header Host is not this address, 127.0.0.1:" + port + " or localhost:" + port + ": ask the broker by its address, without a proxy")
	}
	if !strings.HasPrefix(r.RequestURI, "/") {
		return invalid("the request is one for a proxy: name a path alone, and switch the proxy off for 127.0.0.1")
	}
	for name := range r.Header {
		if fromElsewhere(name) {
			return invalid("the header " + name + " shows a browser or a proxy: ask the broker directly")
		}
	}
	return nil
}

// fromElsewhere says whether programs that ask for themselves do not send this.
func fromElsewhere(header string) bool {
	switch header {
	case "Origin", "Referer", "Cookie", "Upgrade-Insecure-Requests", // browsers
		"Via", "Forwarded", "X-Real-Ip", "X-Client-Ip", "Client-Ip", "True-Client-Ip", "Proxy-Connection", "Proxy-Authorization", "Max-Forwards": // proxies
		return true
	}
	for _, prefix := range []string{"Sec-Fetch-", "Sec-Ch-", "Access-Control-", "X-Forwarded"} {
		if strings.HasPrefix(header, prefix) {
			return true
		}
	}
	return false
}
