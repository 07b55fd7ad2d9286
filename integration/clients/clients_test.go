//go:build real

package clients

import (
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/integration/real"
	"credentialbroker/internal/fake"
)

// language is one client of clients/ with its driver, which is told SECONDS
// ACTION CLIENT [URL].
type language struct {
	name     string
	server   string   // what runs it, for the table
	driver   []string // command
	env      []string
	adapters []string // actions that call an API
	lint     [][]string
	prepare  func(t *testing.T, l *language)
}

func source(elem ...string) string { return filepath.Join(append([]string{real.Root()}, elem...)...) }

func languages() []*language {
	python := real.Path("clients-python", "venv", "bin", "python")
	return []*language{
		{name: "python", server: "Python 3, requests 2.34.2, httpx 0.28.1", driver: []string{python, source("integration", "clients", "driver.py")},
			env: []string{"PYTHONPATH=" + source("clients"), "PYTHONDONTWRITEBYTECODE=1"}, adapters: []string{"requests", "httpx", "httpx-asyncio"},
			lint: [][]string{{real.Path("clients-python", "venv", "bin", "ruff"), "check", "--no-cache", "--line-length", "130", "--target-version", "py39", source("clients", "credential_broker.py"), source("integration", "clients", "driver.py")}}},
		{name: "shell", server: "dash, curl, shellcheck", driver: []string{"dash", source("integration", "clients", "driver.sh")}, adapters: []string{"curl"},
			lint: [][]string{{"shellcheck", source("clients", "credential-broker.sh")}, {"bash", "--posix", "-n", source("clients", "credential-broker.sh")}}},
		{name: "node", server: "Node 18 or newer, axios 1.21.1", driver: []string{"node", source("integration", "clients", "driver.mjs")}, adapters: []string{"fetch", "axios"},
			env:  []string{"MODULES=" + real.Path("clients-node", "node_modules", "any.js")},
			lint: [][]string{{"node", "--check", source("clients", "credential-broker.mjs")}}},
		{name: "php", server: "PHP, curl, Guzzle (Debian)", driver: []string{"php", source("integration", "clients", "driver.php")}, adapters: []string{"guzzle"},
			lint: [][]string{{"php", "-l", source("clients", "CredentialBroker.php")}}},
		{name: "java", server: "Java 17, java.net.http", driver: []string{"java", "-XX:TieredStopAtLevel=1"}, adapters: []string{"httpclient"}, prepare: compile},
	}
}

// compile makes the Java client and its driver ready to run.
func compile(t *testing.T, l *language) {
	dir := t.TempDir()
	real.Must(t, exec.Command("javac", "--release", "17", "-Xlint:all", "-Werror", "-d", dir, source("clients", "CredentialBroker.java"), source("integration", "clients", "Driver.java")))
	l.driver = append(l.driver, "-cp", dir, "Driver")
}

func (l *language) run(t *testing.T, socket string, args ...string) said {
	t.Helper()
	return l.within(t, "10", socket, args...)
}

// within gives the driver's client a timeout in seconds.
func (l *language) within(t *testing.T, seconds, socket string, args ...string) said {
	t.Helper()
	return run(t, socket, append(append(append([]string{}, l.driver...), seconds), args...), l.env...)
}

const posted = `{"functie":"bakker"}`

func TestClients(t *testing.T) {
	var names []string
	for _, l := range languages() {
		names = append(names, l.name, "cold-"+l.name)
		for _, a := range l.adapters {
			names = append(names, l.name+"-"+a)
		}
	}
	w := newWorld(t, names...)
	w.quarantine(t, "leaked")
	api := w.serveAPI(t)
	for _, name := range names { // so that they are a minute old when they are refused
		if strings.HasPrefix(name, "cold-") {
			continue
		}
		if _, err := w.ask.Token(t.Context(), name, client.Options{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, l := range languages() {
		t.Run(l.name, func(t *testing.T) {
			real.Row(t, "clients", l.server, "token, headers, reject and repeat once, Retry-After, refusals as errors, bad answers")
			for _, command := range l.lint {
				real.Must(t, exec.Command(command[0], command[1:]...))
			}
			if l.prepare != nil {
				l.prepare(t, l)
			}
			t.Run("values", func(t *testing.T) { w.values(t, l) })
			t.Run("refusals", func(t *testing.T) { w.refusals(t, l) })
			t.Run("adapters", func(t *testing.T) { w.adapters(t, l, api) })
			t.Run("wait", func(t *testing.T) { w.waits(t, l) })
			t.Run("bad answers", func(t *testing.T) { badAnswers(t, l) })
			t.Run("example", func(t *testing.T) { w.example(t, l, api) })
			t.Run("stale", func(t *testing.T) { w.staleTokens(t, l, api) })
		})
	}
}

// values: what the broker gives arrives.
func (w *world) values(t *testing.T, l *language) {
	want, err := w.ask.Token(t.Context(), l.name, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if s := l.run(t, w.path("broker.sock"), "token", l.name); s.Token != want.AccessToken {
		t.Errorf("token: %+v", s)
	}
	s := l.run(t, w.path("broker.sock"), "headers", l.name)
	if !maps.Equal(s.Headers, map[string]string{"Authorization": "Bearer " + want.AccessToken, "X-IBM-Client-Id": "key-one"}) {
		t.Errorf("headers: %+v", s)
	}
}

// refusals: error documents become errors that a program can tell apart, and
// that say what to do; the API is not called.
func (w *world) refusals(t *testing.T, l *language) {
	s := l.run(t, w.path("broker.sock"), "headers", "leaked")
	if s.Code != "quarantined" || s.Detail == "" {
		t.Errorf("quarantined: %+v", s)
	}
	s = l.run(t, w.path("broker.sock"), "token", "no body/../?#")
	if s.Code != "invalid_request" && s.Code != "not_found" {
		t.Errorf("a name that is none: %+v", s)
	}
	before := len(w.api.seen(fake.APIPath + "never"))
	for _, a := range l.adapters {
		s := l.run(t, w.path("broker.sock"), a, "nobody", "http://127.0.0.1:1"+fake.APIPath+"never")
		if s.Code != "not_allowed" || !strings.Contains(s.Detail, "you are seen as: ") || !strings.Contains(s.Detail, "; you may use: cold-java, cold-node, ") {
			t.Errorf("%s: not allowed: %+v", a, s)
		}
	}
	if len(w.api.seen(fake.APIPath+"never")) != before {
		t.Error("the API was called bare")
	}
}

// adapters: a call, a key that is refused, and a token that is young.
func (w *world) adapters(t *testing.T, l *language, api string) {
	for _, a := range l.adapters {
		name := l.name + "-" + a
		call := func(below string) (said, []string) {
			path := fake.APIPath + below + name
			return l.run(t, w.path("broker.sock"), a, name, api+path), w.api.seen(path)
		}
		if s, calls := call(""); s.Status != 200 || !strings.Contains(s.Body, "resultaten") || len(calls) != 1 || !strings.HasSuffix(calls[0], "key-one "+posted) {
			t.Errorf("%s: %+v %q", a, s, calls)
		}
		if s, calls := call("key/"); s.Code != "api_key_rejected" || len(calls) != 1 {
			t.Errorf("%s: a refused key: %+v after %d calls", a, s, len(calls))
		}
		if s, calls := call("away/"); len(calls) != 1 || s.Code != "" {
			t.Errorf("%s: a redirect: %+v after %d calls", a, s, len(calls))
		}
	}
	for _, call := range w.api.seen("/elsewhere") {
		if strings.Contains(call, "key-one") || strings.Contains(call, "Bearer") {
			t.Errorf("another host got %.60q", call)
		}
	}
}

// staleTokens: the API refuses a token that the broker still has for good. It
// is replaced, and the call repeated, once and whole; and when the API refuses
// the next one too, its answer is the application's.
func (w *world) staleTokens(t *testing.T, l *language, api string) {
	for _, a := range l.adapters {
		name := l.name + "-" + a
		w.aged(t, name)
		path := fake.APIPath + "stale/" + name
		s, minted := l.run(t, w.path("broker.sock"), a, name, api+path), w.issuer.Stats().Minted
		calls := w.api.seen(path)
		if s.Status != 200 || len(calls) != 2 || calls[0] == calls[1] || !strings.HasSuffix(calls[0], posted) || !strings.HasSuffix(calls[1], posted) {
			t.Errorf("%s: %+v after %d calls", a, s, len(calls))
		}
		path += "-young" // the token that replaced it is refused, too
		s = l.run(t, w.path("broker.sock"), a, name, api+path)
		if calls := w.api.seen(path); s.Status != 401 || !strings.Contains(s.Body, "moreInformation") || len(calls) != 1 {
			t.Errorf("%s: a young token: %+v after %d calls", a, s, len(calls))
		}
		if n := w.issuer.Stats().Minted; n != minted {
			t.Errorf("%s: %d tokens were fetched for a young one", a, n-minted)
		}
	}
}

// waits: a broker without a token says how long to wait, and is obeyed.
func (w *world) waits(t *testing.T, l *language) {
	w.issuer.Set(fake.Fault{Kind: fake.Unavailable, Times: 1})
	defer w.issuer.Set(fake.Fault{})
	if s := l.run(t, w.path("broker.sock"), "token", "cold-"+l.name); s.Token == "" {
		t.Errorf("an issuer that was away: %+v", s)
	}
	var mu sync.Mutex
	var asked []time.Time
	after := "1"
	socket := standIn(t, func(rw http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if asked = append(asked, time.Now()); len(asked) == 2 {
			rw.Header().Set("Content-Type", "application/json")
			_, _ = rw.Write([]byte(`{"access_token":"t","token_type":"Bearer","expires_in":60,"expires_at":"2026-01-01T00:00:00Z","scope":"","client":"vdab","fingerprint":"f"}`))
			return
		}
		rw.Header().Set("Content-Type", "application/problem+json")
		rw.Header().Set("Retry-After", after)
		rw.WriteHeader(http.StatusServiceUnavailable)
		_, _ = rw.Write([]byte(`{"type":"about:blank","title":"t","status":503,"code":"issuer_unavailable","detail":"wait","retry_after":` + after + `}`))
	})
	s := l.run(t, socket, "token", "vdab")
	mu.Lock()
	if s.Token != "t" || len(asked) != 2 || asked[1].Sub(asked[0]) < time.Second {
		t.Errorf("%+v, asked at %v", s, asked)
	}
	after = "3600" // more than anybody waits
	mu.Unlock()
	s = l.run(t, socket, "token", "vdab")
	mu.Lock()
	defer mu.Unlock()
	if s.Code != "issuer_unavailable" || s.RetryAfter != 3600 || s.Detail != "wait" || len(asked) != 3 {
		t.Errorf("%+v, asked at %v", s, asked)
	}
}

// badAnswers: what is no answer of a broker is an error, in time, and never a
// value.
func badAnswers(t *testing.T, l *language) {
	want := func(what, socket, seconds string) {
		t.Helper()
		for _, action := range []string{"token", "headers"} {
			if s := l.within(t, seconds, socket, action, "vdab"); s.Code != "unreachable" || s.Token != "" || s.Headers != nil || s.Detail == "" {
				t.Errorf("%s: %s: %+v", what, action, s)
			}
		}
	}
	answer := func(status int, kind, body string) string {
		return standIn(t, func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Content-Type", kind)
			rw.WriteHeader(status)
			_, _ = rw.Write([]byte(body))
		})
	}
	want("no socket", filepath.Join(t.TempDir(), "none"), "10")
	want("a page", answer(200, "text/html", "<html>X: y</html>"), "10")
	want("a page with 503", answer(503, "text/html", "<html>X: y</html>"), "10")
	want("an empty answer", answer(200, "application/json", ""), "10")
	want("an array", answer(200, "application/json", "[]"), "10")
	want("half an answer", standIn(t, func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Length", "1000")
		_, _ = rw.Write([]byte(`{"access_token":"half`))
		panic(http.ErrAbortHandler)
	}), "10")
	end := make(chan struct{})
	silent := standIn(t, func(_ http.ResponseWriter, _ *http.Request) { <-end })
	t.Cleanup(func() { close(end) }) // before the server is closed, which waits
	want("silence", silent, "1")
}

// example runs the example at the top of the client's file.
func (w *world) example(t *testing.T, l *language, api string) {
	path := fake.APIPath + "example/" + l.name
	example := map[string]struct{ file, before, after string }{
		"python": {"credential_broker.py", "url = '" + api + path + "'\n", "\nassert answer.status_code == 200, answer.text"},
		"shell":  {"credential-broker.sh", "cd " + source("clients") + "\nurl=" + api + path + "\n", ""},
		"php": {"CredentialBroker.php", "require '" + source("clients", "CredentialBroker.php") + "';\nrequire 'GuzzleHttp/autoload.php';\n$url = '" + api + path + "';\n",
			"\n$answer->getStatusCode() === 200 || exit(1);"},
		"java": {"CredentialBroker.java", "import java.net.*; import java.net.http.*; import java.time.*;\nclass Example { public static void main(String[] a) throws Exception { String url = \"" + api + path + "\";\n",
			"\nif (answer.statusCode() != 200) throw new Exception(answer.body()); } }"},
		"node": {"credential-broker.mjs", "const url = '" + api + path + "';\n", "\nif (answer.status !== 200) throw new Error(await answer.text());"},
	}[l.name]
	text, err := os.ReadFile(source("clients", example.file))
	if err != nil {
		t.Fatal(err)
	}
	program := example.before + strings.ReplaceAll(exampleIn(string(text)), "vdab", l.name) + example.after
	var command []string
	switch l.name {
	case "python":
		command = []string{l.driver[0], "-c", program}
	case "shell":
		command = []string{"dash", "-c", program}
	case "php":
		command = []string{"php", "-r", program}
	case "java": // "java -cp" with a source file compiles it
		main := filepath.Join(t.TempDir(), "Example.java")
		if err := os.WriteFile(main, []byte(program), 0o600); err != nil {
			t.Fatal(err)
		}
		command = []string{"java", "-cp", l.driver[3], main}
	case "node":
		command = []string{"node", "--input-type=module", "-e", strings.ReplaceAll(program, `"./credential`, `"`+source("clients")+`/credential`)}
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(append(os.Environ(), "CREDENTIAL_BROKER_SOCKET="+w.path("broker.sock")), l.env...)
	real.Must(t, cmd)
	if len(w.api.seen(path)) != 1 {
		t.Errorf("the example did not call the API:\n%s", program)
	}
}

// exampleIn is the first indented block of the text at the top of a file.
func exampleIn(text string) string {
	var out []string
	for line := range strings.Lines(text) {
		bare := strings.TrimPrefix(strings.TrimPrefix(line, "#"), " *")
		rest, in := strings.CutPrefix(strings.TrimPrefix(bare, " "), "   ")
		switch {
		case in:
			out = append(out, strings.TrimPrefix(rest, " "))
		case strings.TrimSpace(bare) == "" && len(out) > 0:
			out = append(out, "\n")
		case len(out) > 0:
			return strings.TrimSpace(strings.Join(out, ""))
		}
	}
	return ""
}
