package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"credentialbroker/api/client"
)

// playRotation is "rotates PLAY CODE ARG…": it runs broker, and wants the exit
// code. interrupt: Ctrl-C once the issuer has refused the key. enter: a person
// at a terminal has the issuer learn the key that is printed, and presses
// Enter. What the command prints is in out.
func playRotation(ts *testscript.TestScript, _ bool, args []string) {
	play, code := args[0], args[1]
	cmd := exec.Command(filepath.Join(filepath.SplitList(ts.Getenv("PATH"))[0], "broker"), args[2:]...)
	cmd.Env = []string{"CREDENTIAL_BROKER_SOCKET=" + ts.Getenv("SOCKET")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stdin, theirs := input(ts, play == "enter")
	cmd.Stdin = theirs
	var stdout, said bytes.Buffer
	cmd.Stdout = &stdout
	stderr, err := cmd.StderrPipe()
	ts.Check(err)
	ts.Check(cmd.Start())
	ts.Check(theirs.Close())
	defer time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() }).Stop()
	marker := map[string]string{"interrupt": "asked again at", "enter": "press Enter"}[play]
	for one := make([]byte, 1); !strings.Contains(said.String(), marker); {
		if n, err := stderr.Read(one); err != nil || n == 0 {
			break
		}
		said.Write(one)
	}
	switch play {
	case "interrupt":
		ts.Check(cmd.Process.Signal(syscall.SIGINT))
	case "enter":
		i := ts.Value("issuer").(*issuerOf)
		i.client.Keys = []string{stdout.String()}
		ts.Check(i.Register(i.client))
		_, err = io.WriteString(stdin, "\n")
		ts.Check(err)
	}
	_, _ = io.Copy(&said, stderr)
	err = cmd.Wait()
	var exit *exec.ExitError
	got := 0
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	}
	text := stdout.String() + said.String()
	ts.Check(os.WriteFile(ts.MkAbs("out"), []byte(text), 0o600))
	ts.Logf("%s", text)
	if code != fmt.Sprint(got) {
		ts.Fatalf("exit code %d, want %s", got, code)
	}
}

// scripted answers each request on a socket with the next line.
func scripted(t *testing.T, answers ...string) *client.Admin {
	t.Helper()
	dir, err := os.MkdirTemp("", "rotates-") // short: a socket's path may have 108 bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	left := make(chan string, len(answers))
	for _, a := range answers {
		left <- a
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		select {
		case a := <-left:
			if strings.Contains(a, `"code"`) {
				w.Header().Set("Content-Type", "application/problem+json")
				w.WriteHeader(http.StatusConflict)
			}
			_, _ = io.WriteString(w, a)
		default:
			t.Error("asked once too often")
		}
	})}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
		if len(left) > 0 {
			t.Errorf("%d answers are left", len(left))
		}
	})
	return &client.Admin{Socket: l.Addr().String()}
}

func TestKeyRotationEnds(t *testing.T) {
	const (
		waits  = `{"state":"pending","key":{"client":"acm","version":"3","kid":"new","alg":"ES256","jwk":{"kty":"EC"}},"old":"old","reason":"waits"}`
		taken  = `{"state":"rotated","key":{"client":"acm","version":"4","kid":"new","alg":"ES256","jwk":{"kty":"EC"}},"old":"old","reason":"it serves"}`
		over   = `{"state":"rotated","key":{"client":"acm","version":"4","kid":"new","alg":"ES256","jwk":{"kty":"EC"}},"reason":"no rotation is under way"}`
		others = `{"state":"rotated","key":{"client":"acm","version":"5","kid":"third","alg":"ES256","jwk":{"kty":"EC"}},"reason":"no rotation is under way"}`
		login  = `{"type":"about:blank","title":"t","status":409,"code":"login_required","detail":"a person has to log in"}`
	)
	for what, x := range map[string]struct {
		answers []string
		resume  bool
		code    int
		said    string
	}{
		"at once":                {[]string{waits, taken}, false, 0, "remove the old key at the issuer: old"},
		"nobody was told":        {[]string{waits, over}, false, 0, "kid new"},
		"resumed":                {[]string{waits, taken}, true, 0, "waits; asked again at"},
		"complete already":       {[]string{over}, true, 0, "no rotation is under way"},
		"given up by another":    {[]string{waits, others}, false, exitData, "third"},
		"replaced while waiting": {[]string{waits, others}, true, exitData, "third"},
		"a person has to act":    {[]string{waits, login}, false, exitNotAllowed, "--resume goes on"},
	} {
		t.Run(what, func(t *testing.T) {
			in, err := os.Open(os.DevNull)
			if err != nil {
				t.Fatal(err)
			}
			defer in.Close()
			var out, talk bytes.Buffer
			r := keyRotation{admin: scripted(t, x.answers...), client: "acm", format: "jwk", resume: x.resume, in: in, out: &out, talk: &talk}
			err = r.run(t.Context())
			code := 0
			if err != nil {
				code = exitCode(err)
				fmt.Fprint(&talk, err)
			}
			if code != x.code || !strings.Contains(talk.String(), x.said) {
				t.Errorf("%d: %s", code, talk.String())
			}
			if (out.Len() > 0) == x.resume {
				t.Errorf("standard output: %q", out.String())
			}
		})
	}
}

func TestKeyRotationPace(t *testing.T) {
	step := &client.RotatedKey{RetryAfter: 1200, Reason: "budget"}
	for _, x := range []struct {
		step  *client.RotatedKey
		err   error
		known bool
		want  time.Duration
	}{
		{step, nil, true, 20 * time.Minute},
		{nil, &client.Problem{Status: 503, RetryAfter: 30, Detail: "the issuer does not answer"}, false, 30 * time.Second},
		{nil, &client.Problem{Status: 502, Detail: "refused"}, true, 0},
		{nil, errors.New("no daemon"), true, time.Minute},
		{nil, errors.New("no daemon"), false, 0},
	} {
		if got, _ := pace(x.step, x.err, x.known); got != x.want {
			t.Errorf("%+v, %v: %s, want %s", x.step, x.err, got, x.want)
		}
	}
}
