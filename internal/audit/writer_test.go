package audit

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestSIGKILL kills a daemon in the middle of heavy writing, fifty times over
// one log. Every third time half a line is put at its end, as a power failure
// would leave it. Whatever Record has promised has to be there.
func TestSIGKILL(t *testing.T) {
	const rounds = 50
	dir := logDir(t)
	promised := make(map[string]bool)
	rnd := rand.New(rand.NewPCG(1, 2))
	torn := 0
	for round := range rounds {
		for _, line := range killedWriter(t, dir, round, 1+rnd.IntN(300)) {
			promised[line] = true
		}
		if round%3 == 0 {
			half := forged(Entry{Seq: 1, Event: Event{Type: TokenHandover, Client: "torn"}})
			numbers, err := segments(dir)
			if err != nil {
				t.Fatal(err)
			}
			appendFile(t, filepath.Join(dir, segmentName(numbers[len(numbers)-1])), half[:1+rnd.IntN(len(half)-1)])
			torn++
		}
	}
	// The last daemon's log is opened once more, in good order.
	_, stop := start(t, quiet, Options{Dir: dir}, nil)
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	r := verified(t, dir, nil)
	if r.Torn < torn {
		t.Errorf("%d torn ends are on record, at least %d were made", r.Torn, torn)
	}
	missing := len(promised)
	for _, e := range entries(t, dir) {
		if promised[e.Client+" "+e.JTI] {
			missing--
		}
	}
	if missing != 0 {
		t.Errorf("%d of %d promised entries are missing", missing, len(promised))
	}
	t.Logf("%d kills, %d entries, %d of them promised, %d torn ends on record", rounds, r.Entries, len(promised), r.Torn)
}

// killedWriter runs a writer, kills it after n promises, and gives all of them.
func killedWriter(t *testing.T, dir string, round, n int) []string {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "AUDIT_TEST_CHILD=writer", "AUDIT_TEST_ROUND="+strconv.Itoa(round))
	cmd.Dir = filepath.Dir(dir)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for in := bufio.NewScanner(out); in.Scan(); {
		lines = append(lines, in.Text())
		if len(lines) == n {
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := cmd.Wait(); err == nil || !strings.Contains(err.Error(), "killed") || len(lines) < n {
		t.Fatalf("the writer ended by itself after %d promises: %v\n%s", len(lines), err, stderr.String())
	}
	return lines
}

// writerChild writes until it is killed, and prints what it was promised.
func writerChild() {
	l, err := Open(quiet, Options{Dir: "audit"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	l.limits.segment = 200 << 10 // files are begun in the midst of it
	failed := make(chan error)
	for w := range 16 {
		go func() {
			for i := 0; ; i++ {
				e := Event{Type: TokenHandover, Client: os.Getenv("AUDIT_TEST_ROUND") + "-" + strconv.Itoa(w), JTI: strconv.Itoa(i), Scope: strings.Repeat("s", 500)}
				l.Note(Event{Type: AccessDenied})
				if err := l.Record(context.Background(), e); err != nil {
					failed <- err
				}
				// One write a line: the parent reads whole ones.
				_, _ = os.Stdout.WriteString(e.Client + " " + e.JTI + "\n")
			}
		}()
	}
	go func() { failed <- l.Run(context.Background()) }()
	fmt.Fprintln(os.Stderr, <-failed)
	os.Exit(1)
}
