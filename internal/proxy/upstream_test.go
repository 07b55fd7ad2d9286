package proxy

import (
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"

	"credentialbroker/api/client"
)

// Over http, whoever has the port before the API gets no connection that
// anything was written to.
func TestForeignUpstream(t *testing.T) {
	asked := make(chan struct{}, 8)
	upstream := liar(t, func(c net.Conn) {
		asked <- struct{}{}
		_, _ = io.WriteString(c, "HTTP/1.1 204 No Content\r\n\r\n")
	})
	w := newWorld(t, http.HandlerFunc(ok), nil)
	cfg := w.config()
	cfg.Upstream = upstream
	for user, want := range map[string]string{
		"4711":             "uid " + strconv.Itoa(os.Getuid()) + " listens on " + strings.TrimPrefix(upstream, "http://") + ", which is not upstream_user (4711): nothing was sent there",
		"no-such-user-x":   "upstream_user: ",
		"4294967295":       "upstream_user: ",
		"no such user:x:0": "upstream_user: ",
	} {
		cfg.UpstreamUser = user
		w.route(cfg)
		resp, body := w.do("GET", "/", "")
		wantRefused(t, resp, body, client.APIUnavailable)
		if s := w.proxy.Status()[0]; !strings.Contains(body, want) || !strings.Contains(s.Error, want) {
			t.Errorf("%s: %s, %+v", user, body, s)
		}
	}
	if len(asked) > 0 {
		t.Error("the headers went out")
	}
	cfg.UpstreamUser = strconv.Itoa(os.Getuid())
	w.route(cfg)
	if resp, body := w.do("GET", "/", ""); resp.StatusCode != http.StatusNoContent {
		t.Errorf("%s: %s", resp.Status, body)
	}
	cfg.Upstream = "http://127.0.0.1:9" // nobody listens
	w.route(cfg)
	resp, body := w.do("GET", "/", "")
	if wantRefused(t, resp, body, client.APIUnavailable); !strings.Contains(body, "refused") {
		t.Error(body)
	}
}
