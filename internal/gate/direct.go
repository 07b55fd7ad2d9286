package gate

import (
	"errors"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
)

// Rules of this file:
//   - anybody on this machine can connect to a port, and so can a page in a
//     browser and whatever fetches addresses for others. They all are the user
//     that runs them, so what shows one of them is refused;
//   - a name that an attacker's name server lets point to us (DNS rebinding)
//     shows in Host, which has to be ours;
//   - nothing here says that another origin may read an answer.

// Direct refuses a request over loopback that does not come from a program of
// this machine that means this port. Browsers of before 2020 send no
// Sec-Fetch-*: a Referer or a Cookie shows them, and what they fetch for a page
// without either, the page cannot read. On a Unix socket it refuses nothing.
func (c *Conn) Direct(r *http.Request) error {
	if _, ok := c.Conn.(*local); !ok {
		return nil
	}
	port := ""
	if at, ok := c.LocalAddr().(*net.TCPAddr); ok {
		port = strconv.Itoa(at.Port)
	}
	if !slices.Contains([]string{"127.0.0.1:" + port, "localhost:" + port, "[::1]:" + port}, r.Host) {
		return errors.New("the header Host is not this address, 127.0.0.1:" + port + " or localhost:" + port + ": ask the broker by its address, without a proxy")
	}
	if !strings.HasPrefix(r.RequestURI, "/") {
		return errors.New("the request is one for a proxy: name a path alone, and switch the proxy off for 127.0.0.1")
	}
	for name := range r.Header {
		if fromElsewhere(name) {
			return errors.New("the header " + name + " shows a browser or a proxy: ask the broker directly")
		}
	}
	return nil
}

// fromElsewhere says whether programs that ask for themselves do not send this.
func fromElsewhere(header string) bool {
	switch header {
	case "Origin", "Referer", "Cookie", "Upgrade-Insecure-Requests", // browsers
		"Via", "Forwarded", "X-Real-Ip", "X-Client-Ip", "Client-Ip", "True-Client-Ip", "X-Cluster-Client-Ip", "X-Envoy-External-Address", "Proxy-Connection", "Proxy-Authorization", "Max-Forwards": // proxies
		return true
	}
	for _, prefix := range []string{"Sec-Fetch-", "Sec-Ch-", "Access-Control-", "X-Forwarded", "X-Original-", "Cf-"} {
		if strings.HasPrefix(header, prefix) {
			return true
		}
	}
	return false
}
