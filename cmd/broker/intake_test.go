package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"credentialbroker/internal/fake"
	"credentialbroker/internal/secret"
)

// The values of internal/intake/testdata.
const (
	mailedID     = "kMadeUpByATest0000001"
	mailedSecret = "sMadeUpByATest/0000000000+0000000000="
)

// mailing is an issuer that has sent the values of the fixtures.
type mailing struct{ *fake.Issuer }

func (mailing) Register(fake.Client) error { return nil }

func startMailing(ts *testscript.TestScript, i *issuerOf) {
	i.standIn = mailing{fake.NewIssuer(fake.Client{ID: mailedID, Secret: mailedSecret, APIKey: "an-api-key-51c07"})}
	serveTLS(ts, i)
	makeStore(ts, "intake", map[string]secret.Secret{"client_id": secret.FromString(mailedID),
		"client_secret": secret.FromString("the-old-one-7f3a9"), "api_key": secret.FromString("an-api-key-51c07")})
}

// talk is "talk CODE PLAY COMMAND…": it runs a command on a terminal, and plays
// the lines of a file: "< TEXT" waits for that text, "> TEXT" types it, or pastes
// it, where \n is the end of a line and ^D at the end the key. What the terminal
// showed is in the file terminal.
func talk(ts *testscript.TestScript, _ bool, args []string) {
	ours, theirs := input(ts, true)
	cmd := exec.Command(filepath.Join(filepath.SplitList(ts.Getenv("PATH"))[0], args[2]), args[3:]...)
	cmd.Dir = ts.Getenv("WORK")
	cmd.Env = []string{"CREDENTIAL_BROKER_SOCKET=" + ts.Getenv("SOCKET"), "PATH=" + ts.Getenv("PATH"), "HOME=" + ts.Getenv("WORK")}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setsid: true, Setctty: true}
	ts.Check(cmd.Start())
	ts.Check(theirs.Close())
	defer time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() }).Stop()
	shown := &screen{}
	shown.cond.L = &shown.mu
	ended := make(chan struct{})
	go func() { defer close(ended); _, _ = io.Copy(shown, ours); shown.end() }()
	for line := range strings.Lines(ts.ReadFile(args[1])) {
		what, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if what == ">" {
			text = strings.ReplaceAll(text, `\n`, "\n") + "\n"
			_, err := io.WriteString(ours, strings.Replace(text, "^D\n", "\x04", 1))
			ts.Check(err)
		} else if !shown.await(text) {
			ts.Fatalf("it does not say %q:\n%s", text, shown.b.String())
		}
	}
	err := cmd.Wait()
	<-ended
	ts.Check(os.WriteFile(ts.MkAbs("terminal"), shown.b.Bytes(), 0o600))
	ts.Logf("%s", shown.b.String())
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	}
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("exit code %d, want %s", got, args[0])
	}
}

// screen is what a terminal has shown.
type screen struct {
	mu   sync.Mutex
	cond sync.Cond
	b    bytes.Buffer
	seen int
	over bool
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.cond.Broadcast()
	return s.b.Write(b)
}

func (s *screen) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.over = true
	s.cond.Broadcast()
}

// await waits for text behind what was awaited before.
func (s *screen) await(text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if i := bytes.Index(s.b.Bytes()[s.seen:], []byte(text)); i >= 0 {
			s.seen += i + len(text)
			return true
		}
		if s.over {
			return false
		}
		s.cond.Wait()
	}
}

// Only the file that was read is shredded.
func TestShred(t *testing.T) {
	for name, c := range map[string]struct {
		change func(name string) error // after it was read
		want   string
	}{
		"whole": {func(string) error { return nil }, ""},
		"replaced": {func(n string) error {
			return errors.Join(os.Rename(n, n+".old"), os.WriteFile(n, []byte("other"), 0o600))
		}, "another file"},
		"symbolic":  {func(n string) error { return errors.Join(os.Rename(n, n+".old"), os.Symlink(n+".old", n)) }, "symbolic link"},
		"hard link": {func(n string) error { return os.Link(n, n+".old") }, "hard link"},
		"gone":      {os.Remove, "no such file"},
		"pipe":      {func(n string) error { return errors.Join(os.Remove(n), unix.Mkfifo(n, 0o600)) }, "another file"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "mail.txt")
			must(t, os.WriteFile(file, []byte("client secret: "+mailedSecret), 0o600))
			held, err := os.Open(file)
			must(t, err)
			defer held.Close()
			was, err := held.Stat()
			must(t, err, c.change(file))
			err = shred(file, was)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Fatalf("%v, want %q", err, c.want)
			}
			left, _ := io.ReadAll(io.NewSectionReader(held, 0, 1<<10))
			if strings.Contains(string(left), mailedSecret) == (c.want == "") {
				t.Errorf("%d bytes are left of the file that was read", len(left))
			}
			if now, err := held.Stat(); err != nil || c.want == "" && now.Size() != 0 {
				t.Errorf("it still has %d bytes, %v", now.Size(), err)
			}
			if _, err := os.Lstat(file); c.want == "" && err == nil {
				t.Error("it still has its name")
			}
		})
	}
}

func TestOverwrite(t *testing.T) {
	file, before := filepath.Join(t.TempDir(), "mail.txt"), bytes.Repeat([]byte("secret"), 1000)
	must(t, os.WriteFile(file, before, 0o600))
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	must(t, overwrite(f, int64(len(before))))
	after, err := os.ReadFile(file)
	must(t, err)
	if len(after) != len(before) || bytes.Contains(after, []byte("secret")) {
		t.Errorf("%d bytes, of which the old ones are left: %v", len(after), bytes.Contains(after, []byte("secret")))
	}
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// Lines are read one by one: the next may be another password.
func TestReadBytesTakesOneLine(t *testing.T) {
	r, w, err := os.Pipe()
	must(t, err)
	defer r.Close()
	_, err = io.WriteString(w, "one\ntwo\nthree")
	must(t, err, w.Close())
	for _, want := range []string{"one", "two", "three"} {
		if got, err := readBytes(t.Context(), r); err != nil || string(got) != want {
			t.Errorf("%q, %v, want %q", got, err, want)
		}
	}
	if _, err := readBytes(t.Context(), r); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
}

// Every command that the page shows is played by the script.
func TestIntakeDocument(t *testing.T) {
	page, err1 := os.ReadFile("../../docs/intake.md")
	script, err2 := os.ReadFile("testdata/intake.txtar")
	must(t, err1, err2)
	n := 0
	for _, block := range strings.Split(string(page), "```console\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		for line := range strings.Lines(block) {
			n++
			if line = strings.TrimSpace(line); !strings.Contains(string(script), line+"\n") && !strings.Contains(string(script), line+"'\n") {
				t.Errorf("nobody executes %q", line)
			}
		}
	}
	if n == 0 {
		t.Error("the page shows no command")
	}
}
