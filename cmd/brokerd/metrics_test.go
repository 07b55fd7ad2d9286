package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"credentialbroker/api/client"
	"credentialbroker/configs"
	"credentialbroker/internal/broker"
	"credentialbroker/rotation"
)

// TestMetricsElsewhere: the daemon that ships gives its metrics on loopback, to
// whoever asks by that address, and in a file that node_exporter can read, with
// nothing in it that node_exporter has itself. A reload moves both.
func TestMetricsElsewhere(t *testing.T) {
	s := newSite(t)
	first, second := freeAddr(t), freeAddr(t)
	s.write("broker.yaml", s.config()+fmt.Sprintf("metrics: { listen: '%s', textfile: %s }\n", first, s.path("broker.prom")))
	s.start()
	if code, _ := s.do("broker.sock", "GET", "/v1/clients/vdab/token", ""); code != 200 {
		t.Fatalf("token: %d", code)
	}
	var text string
	s.until("metrics are served", func() bool { var code int; code, text = scrape(first, "GET", "/metrics", ""); return code == 200 })
	for _, want := range []string{`credential_broker_client_ready{client="vdab"} 1`, "credential_broker_build_info{", "credential_broker_connections ", "go_goroutines ", "process_open_fds "} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing:\n%s", want, text)
		}
	}
	for _, c := range []struct {
		method, path, host string
		want               int
	}{
		{"GET", "/", "", 404}, {"GET", "/debug/pprof/", "", 404}, {"GET", "/v1/status", "", 404}, {"POST", "/metrics", "", 405},
		{"GET", "/metrics", "evil.example:9110", 421}, {"GET", "/metrics", "192.0.2.1", 421}, {"GET", "/metrics", "localhost:9110", 200}, {"GET", "/metrics", "[::1]:9110", 200},
	} {
		if code, body := scrape(first, c.method, c.path, c.host); code != c.want {
			t.Errorf("%+v: %d %s", c, code, body)
		}
	}

	file, err := os.ReadFile(s.path("broker.prom"))
	if err != nil || !strings.Contains(string(file), `credential_broker_client_ready{client="vdab"}`) {
		t.Errorf("textfile: %v\n%s", err, file)
	}
	if regexp.MustCompile(`(?m)^(go|process|promhttp)_`).Match(file) {
		t.Error("the textfile holds what node_exporter has itself")
	}
	if info, err := os.Stat(s.path("broker.prom")); err != nil || info.Mode() != 0o644 {
		t.Errorf("textfile: %v, %v", info.Mode(), err)
	}

	s.write("broker.yaml", s.config()+fmt.Sprintf("metrics: { listen: '%s' }\n", second))
	if code, body := s.do("admin.sock", "POST", "/v1/reload", ""); code != 200 {
		t.Fatalf("reload: %d %s", code, body)
	}
	s.until("metrics have moved", func() bool { code, _ := scrape(second, "GET", "/metrics", ""); return code == 200 })
	if code, _ := scrape(first, "GET", "/metrics", ""); code != 0 {
		t.Errorf("metrics are still where they were: %d", code)
	}
	s.until("the textfile is gone", func() bool { _, err := os.Stat(s.path("broker.prom")); return os.IsNotExist(err) })
	s.stop(syscall.SIGTERM)
	if left, _ := filepath.Glob(s.path("broker.prom*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// until waits for a background task of the daemon, which looks every 15 s.
func (s *site) until(what string, done func() bool) {
	s.t.Helper()
	for end := time.Now().Add(40 * time.Second); !done(); <-time.After(50 * time.Millisecond) {
		if time.Now().After(end) {
			s.t.Fatalf("not so: %s\n%s", what, s.stderr)
		}
	}
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// scrape gives 0 if nothing listens.
func scrape(addr, method, path, host string) (int, string) {
	r, err := http.NewRequest(method, "http://"+addr+path, nil)
	if err != nil {
		return 0, err.Error()
	}
	r.Host = host
	hc := http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := hc.Do(r)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b)
}

func testExporter(t *testing.T) (*exporter, *output) {
	g, out := prometheus.NewRegistry(), &output{}
	g.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "x", Help: "x"}, func() float64 { return 1 }))
	e := &exporter{log: slog.New(slog.NewTextHandler(out, nil)), own: g, all: g, said: map[string]string{}}
	t.Cleanup(e.close)
	return e, out
}

// TestExporterTriesAgain: a port that is taken and a directory that is missing
// are said once, and are no end.
func TestExporterTriesAgain(t *testing.T) {
	e, out := testExporter(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "later")
	file, addr := filepath.Join(dir, "a.prom"), taken.Addr().String()
	round := func() {
		e.say("listen "+addr, e.listen(t.Context(), addr))
		e.say("textfile "+file, e.write(file))
	}
	for range 3 {
		round()
	}
	if n := strings.Count(out.String(), "level=WARN"); n != 2 || !strings.Contains(out.String(), "no such file") || !strings.Contains(out.String(), "in use") {
		t.Errorf("want two warnings:\n%s", out)
	}
	_ = taken.Close()
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	round()
	if code, _ := scrape(addr, "GET", "/metrics", ""); code != 200 {
		t.Errorf("%d", code)
	}
	if b, err := os.ReadFile(file); err != nil || !strings.Contains(string(b), "x 1") {
		t.Errorf("%v %s", err, b)
	}
	if n := strings.Count(out.String(), "exported again"); n != 2 {
		t.Errorf("%s", out)
	}
	// A server that has ended is started anew.
	_ = e.server.Close()
	<-e.served
	round()
	if code, _ := scrape(addr, "GET", "/metrics", ""); code != 200 {
		t.Errorf("after its end: %d", code)
	}
	e.close()
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Errorf("the file of a daemon that has ended is there: %v", err)
	}
}

// TestExporterIsBounded: whoever opens connections and says nothing takes no
// more than a few descriptors of the daemon's.
func TestExporterIsBounded(t *testing.T) {
	e, _ := testExporter(t)
	addr := freeAddr(t)
	if err := e.listen(t.Context(), addr); err != nil {
		t.Fatal(err)
	}
	var open []net.Conn
	closed := make(chan struct{}, 64)
	for range cap(closed) {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		open = append(open, c)
		go func() { _, _ = bufio.NewReader(c).ReadByte(); closed <- struct{}{} }()
	}
	for range len(open) - 16 {
		select {
		case <-closed:
		case <-time.After(4 * time.Second): // before the header's deadline
			t.Fatal("the server keeps every connection")
		}
	}
	for _, c := range open {
		_ = c.Close()
	}
	code := 0
	for end := time.Now().Add(10 * time.Second); code != 200 && time.Now().Before(end); <-time.After(20 * time.Millisecond) {
		code, _ = scrape(addr, "GET", "/metrics", "")
	}
	if code != 200 {
		t.Error("it does not recover when they are gone")
	}
}

// TestReplacement: steps are for whoever has to act, and for nobody else.
func TestReplacement(t *testing.T) {
	now := time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC)
	const day = 24 * time.Hour
	cfg := configs.Client{}
	cfg.Rotation.Steps = []string{"ask"}
	for _, c := range []struct {
		age, maxAge time.Duration
		dead, steps bool
		due         time.Time
	}{
		{10 * day, 0, false, false, time.Time{}},
		{10 * day, 0, true, true, time.Time{}},
		{79 * day, 100 * day, false, false, now.Add(21 * day)},
		{81 * day, 100 * day, false, true, now.Add(19 * day)},
		{101 * day, 100 * day, false, true, now.Add(-day)},
		{-1, 100 * day, false, false, time.Time{}}, // not known
	} {
		s := broker.ClientStatus{MaxAge: c.maxAge, Credential: rotation.Status{Dead: c.dead}}
		if c.age >= 0 {
			s.Credential.Created = now.Add(-c.age)
		}
		due, steps := replacement(s, cfg, now)
		if !due.Equal(c.due) || slices.Equal(steps, cfg.Rotation.Steps) != c.steps {
			t.Errorf("%+v: due %v, steps %v", c, due, steps)
		}
	}
	if b, err := json.Marshal(client.StatusClient{}); err != nil || strings.Contains(string(b), `"due"`) {
		t.Errorf("%s, %v", b, err)
	}
}
