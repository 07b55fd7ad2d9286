package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"credentialbroker/api/client"
)

// withLoopback is the configuration with a port for vdab; empty: none.
func (s *site) withLoopback(addr string) {
	s.t.Helper()
	text := s.config()
	if addr != "" {
		text = strings.Replace(text, "    ca_file:", fmt.Sprintf("    loopback: { address: '%s', insecure_loopback: true }\n    ca_file:", addr), 1)
	}
	s.write("broker.yaml", text)
}

// warnings are those of broker status about the check.
func (s *site) warnings(check string) (list []string) {
	s.t.Helper()
	_, body := s.do("admin.sock", "GET", "/v1/status", "")
	var st client.Status
	if err := json.Unmarshal([]byte(body), &st); err != nil {
		s.t.Fatal(err)
	}
	for _, w := range st.Warnings {
		if w.Check == check {
			list = append(list, w.Target+": "+w.Detail)
		}
	}
	return list
}

func (s *site) reload() string {
	s.t.Helper()
	code, body := s.do("admin.sock", "POST", "/v1/reload", "")
	if code != 200 {
		s.t.Fatalf("reload: %d %s", code, body)
	}
	return body
}

// over asks for the token of vdab, and gives no status where nobody answers.
func over(addr string) int {
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := hc.Get("http://" + addr + "/v1/clients/vdab/token")
	if err != nil {
		return 0
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

// followPage runs the commands of the page on applications that are about the
// port.
func (s *site) followPage(addr string) {
	s.t.Helper()
	page, err := os.ReadFile("../../docs/applications.md")
	if err != nil {
		s.t.Fatal(err)
	}
	_, block, _ := strings.Cut(string(page), "```console port\n")
	block, _, _ = strings.Cut(block, "```")
	n := 0
	for line := range strings.Lines(block) {
		out, err := exec.Command("sh", "-c", strings.ReplaceAll(line, "127.0.0.1:8085", addr)).CombinedOutput()
		if n++; err != nil || !strings.Contains(string(out), `"token_type":"Bearer"`) {
			s.t.Errorf("%s%v: %s", line, err, out)
		}
	}
	if n != 2 {
		s.t.Errorf("%d commands", n)
	}
}

// A port serves when the daemon is ready, and when a reload has answered; it
// moves and goes with the configuration, and stays where nothing changes.
func TestLoopback(t *testing.T) {
	s := newSite(t)
	first, second := freeAddr(t), freeAddr(t)
	s.withLoopback(first)
	s.start()
	if code := over(first); code != 200 {
		t.Fatalf("%d\n%s", code, s.stderr)
	}
	if list := s.warnings("configuration"); !slices.ContainsFunc(list, func(w string) bool { return strings.Contains(w, "weaker than the socket") }) {
		t.Errorf("%q", list)
	}
	s.followPage(first)
	kept, err := net.Dial("tcp", first)
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	s.reload()
	if _, err := fmt.Fprintf(kept, "GET /healthz HTTP/1.1\r\nHost: %s\r\n\r\n", first); err != nil {
		t.Fatal(err)
	}
	if n, err := kept.Read(make([]byte, 64)); n == 0 {
		t.Errorf("a reload that changed nothing ended a connection: %v", err)
	}

	s.withLoopback(second)
	s.reload()
	if a, b := over(first), over(second); a != 0 || b != 200 {
		t.Errorf("moved: %d, %d", a, b)
	}
	s.withLoopback("")
	s.reload()
	if code := over(second); code != 0 {
		t.Errorf("removed: %d", code)
	}
	s.withLoopback(first)
	if body := s.reload(); !strings.Contains(body, `loopback: added (wider)`) {
		t.Errorf("%s", body)
	}
	if code := over(first); code != 200 {
		t.Errorf("added again: %d", code)
	}
	s.stop(syscall.SIGTERM)
	if code := over(first); code != 0 {
		t.Errorf("after the end: %d", code)
	}
	if said := s.stderr.String(); strings.Count(said, "serving on loopback") != 3 {
		t.Errorf("it should begin three times:\n%s", said)
	}
}

// Who has the port is named, keeps nobody else from being served, and is
// followed by the daemon.
func TestTakenLoopback(t *testing.T) {
	s := newSite(t)
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	addr := other.Addr().String()
	s.withLoopback(addr)
	s.start()
	if code, body := s.do("broker.sock", "GET", "/v1/clients/vdab/token", ""); code != 200 {
		t.Errorf("%d %s", code, body)
	}
	list := s.warnings("loopback")
	if len(list) != 1 || !strings.Contains(list[0], "vdab: not served on "+addr) || !strings.Contains(list[0], "is taken by user ") {
		t.Errorf("%q", list)
	}
	_ = other.Close()
	s.until("the port is served", func() bool { return over(addr) == 200 })
	if list := s.warnings("loopback"); list != nil {
		t.Errorf("%q", list)
	}
	s.stop(syscall.SIGTERM)
	if said := s.stderr.String(); strings.Count(said, "not served on loopback") != 1 {
		t.Errorf("%s", said)
	}
}

// A port of a route is as one of a client: it serves, moves, goes, and keeps
// nobody else from being served if it cannot be had.
func TestRouteOnLoopback(t *testing.T) {
	s := newSite(t)
	with := func(port string) {
		route := fmt.Sprintf("    reverse_proxy: [{ name: api, upstream: '%s', ca_file: %s%s }]\n    ca_file:", s.srv.URL, s.path("ca.pem"), port)
		s.write("broker.yaml", strings.NewReplacer("headers, api-key]", "headers, api-key, proxy]").Replace(strings.Replace(s.config(), "    ca_file:", route, 1)))
	}
	port := func(addr string) string {
		return fmt.Sprintf(", loopback: { address: '%s', insecure_loopback: true }", addr)
	}
	call := func(addr, path string) (int, string) {
		hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := hc.Get("http://" + addr + path)
		if err != nil {
			return 0, ""
		}
		_ = resp.Body.Close()
		return resp.StatusCode, resp.Header.Get("Credential-Broker-Error")
	}
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	taken, free := other.Addr().String(), freeAddr(t)
	with(port(taken))
	s.start()
	if code, body := s.do("broker.sock", "GET", "/v1/clients/vdab/token", ""); code != 200 {
		t.Errorf("%d %s", code, body)
	}
	if list := s.warnings("loopback"); len(list) != 1 || !strings.Contains(list[0], "vdab, route api: not served on "+taken) {
		t.Errorf("%q", list)
	}
	with(port(free))
	s.reload()
	// The site's issuer stands for the API: it knows no such path, and says so.
	if code, own := call(free, "/v1/clients/vdab/token"); code != 404 || own != "" {
		t.Errorf("%d %s\n%s", code, own, s.stderr)
	}
	if code, own := call(free, "/a/../b"); code != 400 || own != "invalid_request" {
		t.Errorf("%d %s", code, own)
	}
	if os.Getuid() == 0 {
		curl := exec.Command("curl", "-sS", "--noproxy", "*", "-D", "-", "http://"+free+"/")
		curl.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 4711, Gid: 4711}}
		out, err := curl.CombinedOutput()
		if err != nil || !strings.HasPrefix(string(out), "HTTP/1.1 403 ") || !strings.Contains(string(out), "Credential-Broker-Error: not_allowed") || !strings.Contains(string(out), "uid 4711, over loopback") {
			t.Errorf("curl of another user: %v\n%s", err, out)
		}
	}
	if list := s.warnings("configuration"); !slices.ContainsFunc(list, func(w string) bool { return strings.Contains(w, `route "api" of the client "vdab" is served on `+free) }) {
		t.Errorf("%q", list)
	}
	with("")
	s.reload()
	if code, _ := call(free, "/"); code != 0 {
		t.Errorf("removed: %d", code)
	}
	with(port(free))
	if body := s.reload(); !strings.Contains(body, "reverse_proxy api: ") || !strings.Contains(body, "(wider)") {
		t.Error(body)
	}
	if code, own := call(free, "/"); code != 404 || own != "" {
		t.Errorf("added again: %d %s", code, own)
	}
	s.stop(syscall.SIGTERM)
}
