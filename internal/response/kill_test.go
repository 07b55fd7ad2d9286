package response

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
)

// The daemon that is killed is this program, run again.
const asDaemon = "RESPONSE_TEST_DAEMON" // state directory, then the relay's port

func TestMain(m *testing.M) {
	if dir, port, ok := strings.Cut(os.Getenv(asDaemon), " "); ok {
		if err := daemon(dir, port); err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// daemon serves until it is killed; a line on standard input is a declaration,
// or "get", as a consumer asks.
func daemon(dir, port string) error {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return err
	}
	d := &desk{dir: dir, store: fake.NewStore(), issuer: &fake.OAuth2{}}
	if err := d.issuer.Register(fake.Client{ID: theID, Secret: theSecret}); err != nil {
		return err
	}
	d.down = &gate{rt: d.issuer.RoundTripper()}
	d.secret(theSecret)
	d.config = testConfig(uint16(n))
	if err := os.MkdirAll(filepath.Join(dir, "credentials"), 0o700); err != nil {
		return err
	}
	auditDir := filepath.Join(dir, "audit")
	log, err := audit.Open(audit.Config{Anchor: "none"}, audit.Options{Dir: auditDir, Clock: clock.System{}})
	if err != nil {
		return err
	}
	b := broker.New(broker.Options{Audit: log, Clock: clock.System{}, Dir: dir})
	if err := b.Apply(d.clients()); err != nil {
		return err
	}
	r, err := New(Options{Dir: dir, Host: "web1", Broker: b, Audit: log, AuditDir: auditDir, Clock: clock.System{}, Log: slog.New(slog.DiscardHandler)}, d.config)
	if err != nil {
		return err
	}
	go func() { _ = log.Run(context.Background()) }()
	r.Start()
	go func() { _ = b.Run(context.Background()) }()
	go func() { _ = r.Run(context.Background()) }()
	fmt.Println("ready")
	caller, end, err := selfAs()
	if err != nil {
		return err
	}
	defer end()
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		if in.Text() == "get" {
			_, err := b.Token(context.Background(), caller, broker.Request{Client: "vdab", Surface: access.Token})
			fmt.Println("get:", err)
			continue
		}
		i, err := r.Declare(context.Background(), caller, confirmed("quarantine"))
		fmt.Println("declared:", i.ID, err)
	}
	return nil
}

// A process is such a daemon.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	in  *os.File
	out *bufio.Scanner
}

func run(t *testing.T, dir string, port uint16) *process {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d", asDaemon, dir, port))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin, cmd.Stderr = r, os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	p := &process{t, cmd, w, bufio.NewScanner(out)}
	p.expect("ready")
	return p
}

func (p *process) say(line string) {
	if _, err := p.in.WriteString(line + "\n"); err != nil {
		p.t.Fatal(err)
	}
}

func (p *process) expect(words string) {
	p.t.Helper()
	if !p.out.Scan() || !strings.Contains(p.out.Text(), words) {
		p.t.Fatalf("%q, want %q", p.out.Text(), words)
	}
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.in.Close()
	_ = p.cmd.Wait()
}

// Killed at any point of a declaration: if it was recorded, the report arrives
// under one Message-ID a recipient, nothing is handed over from the first
// moment, and the audit log is whole. An answer means that it was recorded.
func TestKilled(t *testing.T) {
	rel := newRelay(t)
	recorded := 0
	for n := range 12 {
		dir := t.TempDir()
		before := len(rel.taken())
		p := run(t, dir, rel.port)
		p.say("get")
		p.expect("get: <nil>")
		p.say("declare")
		answered := n == 11
		if answered {
			p.expect("declared: ")
		} else {
			<-time.After(time.Duration(n) * 1500 * time.Microsecond)
		}
		p.kill()
		files, _ := filepath.Glob(filepath.Join(dir, "incidents", "*.json"))
		there := slices.ContainsFunc(files, func(name string) bool { info, err := os.Stat(name); return err == nil && info.Size() > 0 })
		if answered && !there {
			t.Error("it was answered and not recorded")
		}
		p = run(t, dir, rel.port)
		p.say("get")
		if !there {
			p.expect("get: <nil>")
			p.kill()
			continue
		}
		recorded++
		p.expect("quarantined")
		ids := map[string]int{}
		for end := time.Now().Add(20 * time.Second); len(ids) < 2 && time.Now().Before(end); <-time.After(20 * time.Millisecond) {
			ids = messageIDs(rel.taken()[before:])
		}
		p.say("get")
		p.expect("quarantined")
		p.kill()
		if len(ids) != 2 || slices.Max(slices.Collect(maps.Values(ids))) > 2 {
			t.Errorf("kill %d: mails %v", n, ids)
		}
		result, err := audit.Verify(filepath.Join(dir, "audit"), nil)
		if err != nil || !result.OK() {
			t.Errorf("kill %d: the log: %+v, %v", n, result, err)
		}
		(&desk{t: t, dir: dir, relay: rel}).nothingSecret(nil)
	}
	if recorded < 3 {
		t.Errorf("only %d kills came after the record", recorded)
	}
}

func messageIDs(mails []string) map[string]int {
	ids := map[string]int{}
	for _, m := range mails {
		if id := regexp.MustCompile(`(?im)^Message-ID: (\S+)`).FindStringSubmatch(m); id != nil {
			ids[id[1]]++
		}
	}
	return ids
}
