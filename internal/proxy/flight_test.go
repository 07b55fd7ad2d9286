package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
)

// soon fails the test unless something happens, long before a route's time.
func soon(t *testing.T, what string, happens <-chan struct{}) {
	t.Helper()
	select {
	case <-happens:
	case <-time.After(20 * time.Second):
		t.Fatal("not yet: " + what)
	}
}

// Who loses the client loses what is in progress at once, and the API with it.
func TestCutOff(t *testing.T) {
	me := strconv.Itoa(os.Getuid())
	for name, speaks := range protocols {
		for _, c := range []struct {
			name   string
			change func(w *world) error
			code   client.Code
		}{
			{"quarantine", func(w *world) error { w.broker.Contain(map[string]string{"vdab": "INC-1"}); return nil }, client.Quarantined},
			{"entry", func(w *world) error {
				return w.broker.Apply([]broker.Client{w.client(w.store, access.Entry{User: me, Surfaces: []access.Surface{access.Token}})})
			}, client.NotAllowed},
			{"client", func(w *world) error { return w.broker.Apply(nil) }, client.NotAllowed},
		} {
			began, ended := make(chan struct{}, 1), make(chan struct{}, 1)
			w := newWorld(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer func() { ended <- struct{}{} }()
				_ = http.NewResponseController(w).EnableFullDuplex()
				if r.URL.Path != "/base/wait" {
					fmt.Fprintln(w, "first")
					_ = http.NewResponseController(w).Flush()
				}
				began <- struct{}{}
				for r.URL.Path == "/base/flood" && r.Context().Err() == nil {
					_, _ = w.Write(make([]byte, 64<<10))
				}
				_, _ = io.Copy(io.Discard, r.Body)
				<-r.Context().Done()
			}), nil, speaks...)
			for _, head := range []string{"GET /wait", "GET /stream", "GET /flood", "POST /wait", "POST /stream"} {
				conn, err := net.Dial("unix", w.socket)
				if err != nil {
					t.Fatal(err)
				}
				rest := "\r\n"
				if strings.HasPrefix(head, "POST") {
					rest = "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n" // and no more
				}
				if _, err := io.WriteString(conn, head+" HTTP/1.1\r\nHost: x\r\n"+rest); err != nil {
					t.Fatal(err)
				}
				soon(t, head+" at an API of "+name, began)
				heard := bufio.NewReader(conn)
				var resp *http.Response
				if !strings.HasSuffix(head, "wait") {
					if resp, err = http.ReadResponse(heard, nil); err != nil {
						t.Fatal(err)
					}
				}
				if err := c.change(w); err != nil {
					t.Fatal(err)
				}
				soon(t, c.name+": the end of "+head+" at an API of "+name, ended)
				until := time.Now().Add(20 * time.Second)
				for len(w.proxy.flight.list()) > 0 { // though the caller takes nothing
					if time.Now().After(until) {
						t.Fatalf("%s, %s, %s: it is still in progress", name, c.name, head)
					}
					runtime.Gosched()
				}
				_ = conn.SetReadDeadline(until)
				if resp != nil {
					if answer, err := io.ReadAll(resp.Body); err == nil {
						t.Errorf("%s, %s, %s: %q passes for the whole", name, c.name, head, answer)
					}
				} else if resp, err = http.ReadResponse(heard, nil); err != nil {
					t.Fatalf("%s, %s, %s: %v", name, c.name, head, err)
				} else {
					answer, _ := io.ReadAll(resp.Body)
					wantRefused(t, resp, string(answer), c.code)
				}
				_ = conn.Close()
				w.broker.Contain(nil)
				if err := w.broker.Apply([]broker.Client{w.client(w.store, access.Entry{User: me})}); err != nil {
					t.Fatal(err)
				}
			}
			if s := w.proxy.Status(); s[0].Failed != 0 {
				t.Errorf("%s, %s: %+v", name, c.name, s[0])
			}
		}
	}
}

// What concerns others, or changes nothing, ends no call; a route that leads
// elsewhere ends it soon.
func TestChangesInFlight(t *testing.T) {
	lines, ended := make(chan string), make(chan struct{}, 2)
	w := newDrainingWorld(t, short, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil {
			select {
			case line := <-lines:
				fmt.Fprintln(w, line)
				_ = http.NewResponseController(w).Flush()
			case <-r.Context().Done():
			}
		}
		ended <- struct{}{}
	}), nil)
	call := func() *bufio.Reader {
		var resp *http.Response
		got := make(chan error)
		go func() {
			req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://localhost/vacatures/1", nil)
			if err == nil {
				resp, err = w.http.Do(req)
			}
			got <- err
		}()
		lines <- "first"
		if err := <-got; err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = resp.Body.Close() })
		return bufio.NewReader(resp.Body)
	}
	body := call()
	w.broker.Contain(map[string]string{"other": "INC-1"})
	if err := w.broker.Apply([]broker.Client{w.client(w.store, access.Entry{User: strconv.Itoa(os.Getuid())})}); err != nil {
		t.Fatal(err)
	}
	narrow := w.config()
	narrow.Paths = []string{"/vacatures"}
	w.route(narrow)
	for _, want := range []string{"first\n", "second\n"} {
		if want == "second\n" {
			<-time.After(2 * short)
			lines <- "second"
		}
		if line, err := body.ReadString('\n'); line != want || err != nil {
			t.Fatalf("%q, %v", line, err)
		}
	}
	narrower := narrow
	narrower.Paths = []string{"/vacatures/2"}
	w.route(narrower)
	soon(t, "the end of what is outside of paths", ended)
	if rest, err := io.ReadAll(body); err == nil {
		t.Errorf("%q passes for the whole", rest)
	}

	w.route(narrow)
	body = call()
	moved := narrow
	moved.Upstream += "/moved"
	w.route(moved)
	soon(t, "the end of what goes elsewhere", ended)
	if rest, err := io.ReadAll(body); err == nil {
		t.Errorf("%q passes for the whole", rest)
	}
}
