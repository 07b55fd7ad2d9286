package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

func named(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, name) }
}

// A reload adds, changes and removes routes, and what is in flight ends as it
// began.
func TestReload(t *testing.T) {
	wait := make(chan struct{})
	w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintln(w, "one")
		_ = http.NewResponseController(w).Flush()
		if r.URL.Path == "/base/long" {
			<-wait
			fmt.Fprintln(w, "one still")
		}
	}), nil)
	long, err := w.http.Get("http://localhost/long")
	if err != nil {
		t.Fatal(err)
	}
	defer long.Body.Close()

	other := w.startAPI(named("two"))
	one := w.config()
	two := w.config()
	two.Name, two.Socket, two.Upstream = "two", w.dir+"/two.sock", other.URL
	w.route(two) // the first one goes
	if resp, err := via(two.Socket).Get("http://localhost/"); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("the new route: %v", err)
	}
	close(wait)
	if rest, err := io.ReadAll(long.Body); err != nil || string(rest) != "one\none still\n" {
		t.Errorf("in flight: %q, %v", rest, err)
	}
	if _, err := via(w.socket).Get("http://localhost/"); err == nil {
		t.Error("a removed route answers")
	}
	if n := testutil.CollectAndCount(w.proxy.metrics.requests); n != 1 {
		t.Errorf("%d series for one route", n)
	}

	// A reload that changes nothing forgets no figures.
	if w.route(two); w.proxy.Status()[0].Requests != 1 {
		t.Errorf("after a reload: %+v", w.proxy.Status())
	}

	// The same socket, and another API behind it: the connection stays.
	app := via(two.Socket)
	for _, c := range []struct{ name, upstream, want string }{{"two", other.URL, "two"}, {"three", w.startAPI(named("three")).URL, "three"}} {
		next := two
		next.Name, next.Upstream = c.name, c.upstream
		w.route(next)
		resp, err := app.Get("http://localhost/")
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(resp.Body); string(b) != c.want && c.name != "two" {
			t.Errorf("%q, want %q", b, c.want)
		}
		_ = resp.Body.Close()
	}

	// What is not committed changes nothing.
	one.Name = "one"
	discarded, err := w.proxy.Prepare([]Route{{"vdab", one}})
	if err != nil {
		t.Fatal(err)
	}
	discarded.Discard()
	if _, err := os.Lstat(one.Socket); !os.IsNotExist(err) {
		t.Errorf("the socket of a discarded route: %v", err)
	}
	if resp, err := app.Get("http://localhost/"); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("after a change that was discarded: %v", err)
	}
	same := two
	same.Name = "same"
	missing := two
	missing.Socket, missing.CAFile = w.dir+"/m.sock", "/none/ca.pem"
	for want, list := range map[string][]Route{"another route's": {{"vdab", two}, {"vdab", same}}, "ca_file": {{"vdab", one}, {"vdab", missing}}} {
		if _, err := w.proxy.Prepare(list); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	if _, err := os.Lstat(one.Socket); !os.IsNotExist(err) {
		t.Errorf("the socket of a route that could not be prepared: %v", err)
	}
	w.route()
	if _, err := app.Get("http://localhost/"); err == nil {
		t.Error("no route is configured, and one answers")
	}
}

// A route that goes leaves no connection to its API.
func TestReloadCloses(t *testing.T) {
	closed := make(chan struct{}, 1)
	w := newWorld(t, http.HandlerFunc(ok), nil, func(s *httptest.Server) {
		s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
			if state == http.StateClosed {
				closed <- struct{}{}
			}
		}
	})
	for _, next := range [][]Config{{w.config()}, nil} { // exchanged, removed
		w.do("GET", "/", "")
		w.route(next...)
		soon(t, "the end of the old route's connection", closed)
	}
}

// The daemon's end lets what is in flight end.
func TestStop(t *testing.T) {
	wait := make(chan struct{})
	w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "first")
		_ = http.NewResponseController(w).Flush()
		<-wait
		fmt.Fprintln(w, "last")
	}), nil)
	resp, err := w.http.Get("http://localhost/")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body := bufio.NewReader(resp.Body)
	if _, err := body.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	stopped := make(chan error)
	go func() { stopped <- w.stop() }()
	close(wait)
	if rest, err := io.ReadAll(body); err != nil || string(rest) != "last\n" {
		t.Errorf("%q, %v", rest, err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(w.socket); !os.IsNotExist(err) {
		t.Errorf("the socket stays: %v", err)
	}
}
