package exec_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
	"credentialbroker/providers/exec"
	"credentialbroker/providers/file"
	"credentialbroker/providers/providertest"
)

// The test binary is also the command: with this variable set it serves the
// store in that directory, through the same code that serves any provider to
// another process. So the suite runs on the file provider twice, once in the
// process and once here, across the wire.
const storeVariable = "BROKER_TEST_STORE"

func TestMain(m *testing.M) {
	if root := os.Getenv(storeVariable); root != "" {
		if err := serve(root); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func serve(root string) error {
	p, err := openStore(root)
	if err != nil {
		return err
	}
	return providers.Serve(context.Background(), &faulty{p, root}, os.Stdin, os.Stdout)
}

func openStore(root string) (providers.Provider, error) {
	return file.Open(file.Config{Path: filepath.Join(root, "store"), IdentityFile: filepath.Join(root, "identity"), InsecureIdentity: true}, clock.System{})
}

// faulty is a manager that does what the file "fault" says.
type faulty struct {
	providers.Provider
	root string
}

func (f *faulty) Fetch(ctx context.Context, ref providers.Ref, have providers.Version) (providers.Bundle, error) {
	text, _ := os.ReadFile(filepath.Join(f.root, "fault"))
	fault := providertest.Case(text)
	kinds := map[providertest.Case]providers.Kind{providertest.Denied: providers.Denied, providertest.Throttled: providers.Throttled,
		providertest.Disabled: providers.Disabled, providertest.SoftDeleted: providers.Deleted, providertest.Destroyed: providers.Deleted,
		providertest.ServerError: providers.Unavailable, providertest.LoginRefused: providers.LoginFailed}
	if kind := kinds[fault]; kind != "" {
		return providers.Bundle{}, &providers.Error{Kind: kind, Message: "the value is " + providertest.Canary, RetryAfter: 1500 * time.Millisecond}
	}
	switch fault {
	case providertest.Hangs:
		select {}
	case providertest.Garbage:
		fmt.Println("<html>" + providertest.Canary)
		os.Exit(0)
	case providertest.Expired, providertest.NotYetValid:
		have = "" // the manager looks at the dates first
	default:
	}
	b, err := f.Provider.Fetch(ctx, ref, have)
	switch fault {
	case providertest.Expired:
		b.Expires = time.Now().Add(-time.Minute)
	case providertest.NotYetValid:
		b.NotBefore = time.Now().Add(time.Minute)
	default:
	}
	kind := "value\n"
	if errors.Is(err, providers.ErrUnchanged) {
		kind = "check\n"
	}
	log, logErr := os.OpenFile(filepath.Join(f.root, "calls"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if logErr == nil {
		_, logErr = log.WriteString(kind)
	}
	return b, errors.Join(err, logErr)
}

// manager is a store, and the command that serves it.
type manager struct {
	root  string
	store providers.Provider
}

func newManager(t *testing.T) providertest.Manager {
	t.Helper()
	m := &manager{root: t.TempDir()}
	id, err := file.Create(filepath.Join(m.root, "store"))
	if err != nil {
		t.Fatal(err)
	}
	err = id.Use(func(b []byte) error { return os.WriteFile(filepath.Join(m.root, "identity"), b, 0o600) })
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, m.command())
	}
	if err == nil {
		m.store, err = openStore(m.root)
	}
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (m *manager) command() string { return filepath.Join(m.root, "command") }

func (m *manager) Open(t *testing.T, _ providertest.Options) providers.Provider {
	return mustOpen(t, exec.Config{Command: []string{m.command()}, Environment: map[string]string{storeVariable: m.root,
		"GORACE": "atexit_sleep_ms=0"}}) // the race detector would sleep a second in each
}

func mustOpen(t *testing.T, c exec.Config) providers.Provider {
	t.Helper()
	p, err := exec.Open(c, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (m *manager) Ref(name string) providers.Ref { return providers.Ref{Path: name} }

func (m *manager) Set(t *testing.T, name string, payload []byte) {
	t.Helper()
	var have providers.Version
	if b, err := m.store.Fetch(t.Context(), m.Ref(name), ""); err == nil {
		have = b.Version
	}
	fields := map[string]secret.Secret{providers.Whole: secret.New(payload)}
	if _, err := m.store.(providers.Writer).Put(t.Context(), m.Ref(name), fields, have); err != nil {
		t.Error(err)
	}
}

func (m *manager) Fault(t *testing.T, c providertest.Case, name string) {
	t.Helper()
	var err error
	switch c {
	case providertest.Absent:
		err = os.Remove(filepath.Join(m.root, "store", name+".age"))
	case providertest.AbsentMount:
		err = os.RemoveAll(filepath.Join(m.root, "store"))
	case providertest.Down:
		err = os.Remove(m.command())
	default:
		err = os.WriteFile(filepath.Join(m.root, "fault"), []byte(c), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (m *manager) Calls() providertest.Calls {
	log, _ := os.ReadFile(filepath.Join(m.root, "calls"))
	return providertest.Calls{Values: strings.Count(string(log), "value"), Checks: strings.Count(string(log), "check")}
}

func (m *manager) CA() string   { return "" }
func (m *manager) Addr() string { return "" }

func TestConformance(t *testing.T) {
	const own = "how the command reaches its manager is its own affair"
	providertest.Run(t, newManager, providertest.Lacks{
		providertest.CAFile: own, providertest.Proxy: own, providertest.LoginExpired: own,
		providertest.Pinned: "the store behind this command keeps one version; that the version is passed on, TestRequest shows",
		providertest.Put:    "a command only reads", providertest.PutRace: "a command only reads",
	})
}

func shell(script string) exec.Config { return exec.Config{Command: []string{"/bin/sh", "-c", script}} }

func TestRequest(t *testing.T) {
	seen := filepath.Join(t.TempDir(), "seen")
	p := mustOpen(t, exec.Config{Command: []string{"/bin/sh", "-c", `cat >"$1"; env >>"$1"; pwd >>"$1"; echo '{"unchanged":true}'`, "sh", seen},
		Environment: map[string]string{"REGION": "eu west"}})
	t.Setenv("BROKER_TEST_OTHER", "must not be inherited")
	_, err := p.Fetch(t.Context(), providers.Ref{Mount: "m", Path: "a'b\nc", Version: "v1"}, "v2")
	if !errors.Is(err, providers.ErrUnchanged) {
		t.Fatal(err)
	}
	b, err := os.ReadFile(seen)
	if err != nil {
		t.Fatal(err)
	}
	request, rest, _ := strings.Cut(string(b), "\n")
	if want := `{"version":1,"operation":"fetch","ref":{"mount":"m","path":"a'b\nc","version":"v1"},"have":"v2"}`; request != want {
		t.Errorf("request %s, want %s", request, want)
	}
	if !strings.Contains(rest, "REGION=eu west\n") || !strings.Contains(rest, "PATH="+os.Getenv("PATH")+"\n") ||
		strings.Contains(rest, "BROKER_TEST_OTHER") || !strings.HasSuffix(rest, "\n/\n") {
		t.Errorf("environment and directory:\n%s", rest)
	}
}

func TestAnswers(t *testing.T) {
	const bundle = `{"version":"1","fields":{"a":"` + providertest.Canary + `"}}`
	for _, c := range []struct {
		name, script string
		kind         providers.Kind // empty: a bundle
		says         string
	}{
		{"bundle", "echo '" + bundle + "'", "", ""},
		{"without reading the request", "exec <&-; echo '" + bundle + "'", "", ""},
		{"complaints beside a bundle", "echo oops >&2; echo '" + bundle + "'", "", ""},
		{"error", `echo '{"error":{"kind":"denied","message":"it is ` + providertest.Canary + `"}}'`, providers.Denied, "reports: denied"},
		{"error and a status", `echo '{"error":{"kind":"not_found"}}'; exit 3`, providers.NotFound, "reports: not found"},
		{"bundle and a status", "echo '" + bundle + "'; exit 3", providers.Unavailable, "status 3"},
		{"unchanged and a status", `echo '{"unchanged":true}'; exit 3`, providers.Unavailable, "status 3"},
		{"text and a status", "echo " + providertest.Canary + "; exit 4", providers.Unavailable, "status 4"},
		{"only a status", "echo " + providertest.Canary + " >&2; exit 5", providers.Unavailable, "status 5; it wrote 13 bytes to standard error"},
		{"killed", "kill -9 $$", providers.Unavailable, "signal"},
		{"nothing", "true", providers.Malformed, "not one valid JSON"},
		{"two answers", "echo '" + bundle + bundle + "'", providers.Malformed, "not one valid JSON"},
		{"unchanged from nothing", `echo '{"unchanged":true}'`, providers.Malformed, "nothing was held"},
		{"too much", "yes " + providertest.Canary, providers.Malformed, "more than 524288 bytes"},
		{"endless complaints", "yes " + providertest.Canary + " >&2", providers.Unavailable, "in time"},
		{"output held open", "sleep 5 & echo '" + bundle + "'", providers.Unavailable, "holds its output"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			conf := shell(c.script)
			conf.Timeout = clock.Duration(3 * time.Second)
			b, err := mustOpen(t, conf).Fetch(t.Context(), providers.Ref{Path: "app"}, "")
			if providers.KindOf(err) != c.kind || err != nil && (!strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), providertest.Canary)) {
				t.Errorf("kind %q, want %q; %v", providers.KindOf(err), c.kind, err)
			}
			if c.kind == "" && (b.Fields["a"].Len() != len(providertest.Canary) || b.Version != "1") {
				t.Errorf("bundle %+v", b)
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	p := mustOpen(t, shell(`echo '{"error":{"kind":"throttled","retry_after_seconds":30}}'`))
	_, err := p.Fetch(t.Context(), providers.Ref{Path: "app"}, "")
	e := (*providers.Error)(nil)
	if !errors.As(err, &e) || e.RetryAfter != 30*time.Second {
		t.Errorf("%v", err)
	}
}

// What the command has started ends with it at the deadline.
func TestDeadlineEndsTheGroup(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "pid")
	conf := shell("sleep 1000 & echo $! >" + pidFile + "; wait")
	conf.Timeout = clock.Duration(300 * time.Millisecond)
	start := time.Now()
	_, err := mustOpen(t, conf).Fetch(t.Context(), providers.Ref{Path: "app"}, "")
	if providers.KindOf(err) != providers.Unavailable || !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 10*time.Second {
		t.Errorf("%v after %v", err, time.Since(start))
	}
	pid, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
	if err == nil && !strings.Contains(string(status), ") Z ") {
		t.Errorf("the command's child lives: %s", status)
	}
}

func TestCommandOthersMayWrite(t *testing.T) {
	name := filepath.Join(t.TempDir(), "command")
	if err := errors.Join(os.WriteFile(name, []byte("#!/bin/sh\n"), 0o755), os.Chmod(name, 0o775)); err != nil {
		t.Fatal(err)
	}
	_, err := mustOpen(t, exec.Config{Command: []string{name}}).Fetch(t.Context(), providers.Ref{Path: "app"}, "")
	if providers.KindOf(err) != providers.Denied || !strings.Contains(err.Error(), name) {
		t.Error(err)
	}
}

func TestExample(t *testing.T) {
	text, err := os.ReadFile("example.sh")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	command := filepath.Join(t.TempDir(), "example.sh")
	set := func(body string) {
		t.Helper()
		tmp := filepath.Join(dir, "new")
		if err := errors.Join(os.WriteFile(tmp, []byte(body), 0o600), os.Rename(tmp, filepath.Join(dir, "app.json"))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(command, text, 0o755); err != nil {
		t.Fatal(err)
	}
	p := mustOpen(t, exec.Config{Command: []string{command}, Environment: map[string]string{"SECRETS_DIR": dir}})
	ref := providers.Ref{Path: "app"}
	if _, err := p.Fetch(t.Context(), ref, ""); providers.KindOf(err) != providers.NotFound {
		t.Errorf("absent: %v", err)
	}
	set(`{"client_id":"one","client_secret":"two"}`)
	b, err := p.Fetch(t.Context(), ref, "")
	if err != nil || !b.Fields["client_secret"].Equal(secret.FromString("two")) || len(b.Fields) != 2 {
		t.Fatalf("%+v, %v", b, err)
	}
	if _, err := p.Fetch(t.Context(), ref, b.Version); !errors.Is(err, providers.ErrUnchanged) {
		t.Errorf("unchanged: %v", err)
	}
	set(`{"client_id":"one","client_secret":"three"}`)
	if b, err := p.Fetch(t.Context(), ref, b.Version); err != nil || !b.Fields["client_secret"].Equal(secret.FromString("three")) {
		t.Errorf("%+v, %v", b, err)
	}
}

func TestValidate(t *testing.T) {
	for _, c := range []struct {
		c    exec.Config
		want string // empty: valid
	}{
		{exec.Config{Command: []string{"/bin/x", "y"}, Timeout: clock.Duration(time.Minute), Environment: map[string]string{"A": ""}}, ""},
		{exec.Config{}, "command: missing"},
		{exec.Config{Command: []string{"x"}}, "command: want"},
		{exec.Config{Command: []string{"/x"}, Timeout: clock.Duration(time.Hour)}, "timeout: want"},
		{exec.Config{Command: []string{"/x"}, Environment: map[string]string{"A=B": ""}}, "environment: want"},
		{exec.Config{Command: []string{"x"}, Timeout: -1}, "command: want the absolute path of a program first\ntimeout: "},
	} {
		_, err := exec.Open(c.c, clock.System{})
		if (err == nil) != (c.want == "") || err != nil && !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.c, err, c.want)
		}
	}
}
