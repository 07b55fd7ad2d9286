package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"credentialbroker/internal/scan"
	"credentialbroker/internal/secret"
)

// TestScanSpeed prints how fast the scanner reads logs, beside a search for
// the same values with as many literal patterns in the same run: ripgrep's -F,
// or else grep's. It asserts that both find the same, never a time.
//
//	SCAN_BENCH_MIB=1024 go test -count=1 -v -run TestScanSpeed ./bench
func TestScanSpeed(t *testing.T) {
	reference := referenceSearch(t)
	v := os.Getenv("SCAN_BENCH_MIB")
	if v == "" { // to see that both find the same: no measurement
		compareSearch(t, reference, 1, 32, 2)
		return
	}
	mib, err := strconv.Atoi(v)
	if err != nil || mib < 1 {
		t.Fatalf("SCAN_BENCH_MIB is %q: it is a number of MiB", v)
	}
	t.Logf("%d MiB of logs, %d processors, %s", mib, runtime.NumCPU(), reference[0])
	compareSearch(t, reference, mib, 32, 1, 8)
	compareSearch(t, reference, mib, 20, 8) // a shorter value is looked for at more places
}

// compareSearch prints both for API keys of so many characters, in logs of so
// many files.
func compareSearch(t *testing.T, reference []string, mib, key int, files ...int) {
	t.Helper()
	values := brokerValues(50, key)
	dir := t.TempDir()
	patterns := filepath.Join(dir, "patterns")
	n, name := writePatterns(t, patterns, values), filepath.Base(reference[0])
	// What both need before they read is not what they read with.
	empty := filepath.Join(dir, "empty")
	if err := os.MkdirAll(empty, 0o700); err != nil {
		t.Fatal(err)
	}
	_, theirStart := search(t, reference, patterns, empty)
	_, ourStart := scanLogs(t, values, empty)
	t.Logf("%d values, the shortest of %d bytes; %d literal patterns; nothing to read: scan %v, %.2f CPU s; %s %v, %.2f CPU s", len(values), key, n,
		ourStart.wall.Round(time.Millisecond), ourStart.cpu.Seconds(), name, theirStart.wall.Round(time.Millisecond), theirStart.cpu.Seconds())
	for _, files := range files {
		logs := filepath.Join(dir, "logs")
		planted := writeLogs(t, logs, files, mib, values)
		for _, reading := range []string{"first", "second"} { // the page cache may make them differ
			lines, theirs := search(t, reference, patterns, logs)
			found, ours := scanLogs(t, values, logs)
			if lines != planted || found != planted {
				t.Errorf("%d planted, %d found by %s, %d by the scanner", planted, lines, name, found)
			}
			t.Logf("%d file(s), %s reading: scan %s; %s %s; scan is %.2f times as fast, %.2f by processor time, %.2f by that without the start", files, reading,
				ours.show(mib), name, theirs.show(mib), theirs.wall.Seconds()/ours.wall.Seconds(), theirs.cpu.Seconds()/ours.cpu.Seconds(),
				(theirs.cpu-theirStart.cpu).Seconds()/(ours.cpu-ourStart.cpu).Seconds())
		}
		if err := os.RemoveAll(logs); err != nil {
			t.Fatal(err)
		}
	}
}

// cost is what a run took.
type cost struct{ wall, cpu time.Duration }

func (c cost) show(mib int) string {
	return fmt.Sprintf("%.0f MB/s, %.2f CPU s", float64(mib)*1.048576/c.wall.Seconds(), c.cpu.Seconds())
}

// brokerValues is what a broker with so many clients knows: a secret, an API
// key of key characters, and the live token with three recent ones.
func brokerValues(clients, key int) (list []string) {
	r := rand.New(rand.NewPCG(1, 2))
	random := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	for range clients {
		list = append(list, base64.RawURLEncoding.EncodeToString(random(30)), hex.EncodeToString(random(16))[:key])
		for range 4 {
			list = append(list, "eyJ0eXAiOiJqd3QiLCJhbGciOiJSUzI1NiJ9."+base64.RawURLEncoding.EncodeToString(random(300))+"."+base64.RawURLEncoding.EncodeToString(random(512)))
		}
	}
	return list
}

// writePatterns writes all forms of the values, a line each.
func writePatterns(t *testing.T, path string, values []string) int {
	t.Helper()
	seen := map[string]bool{}
	for _, v := range values {
		seen[v] = true
		seen[hex.EncodeToString([]byte(v))] = true
		seen[strings.ToUpper(hex.EncodeToString([]byte(v)))] = true
		seen[url.QueryEscape(v)] = true
		for before := range 3 {
			whole := append(make([]byte, before), v...)
			for _, e := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
				seen[e.EncodeToString(whole)[(8*before+5)/6:8*len(whole)/6]] = true
			}
		}
	}
	var b bytes.Buffer
	for p := range seen {
		b.WriteString(p + "\n")
	}
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return len(seen)
}

// writeLogs writes log lines, into some of which a value is planted in some
// form, and returns in how many.
func writeLogs(t *testing.T, dir string, files, mib int, values []string) (planted int) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(3, 4))
	for i := range files {
		f, err := os.Create(filepath.Join(dir, fmt.Sprintf("app-%d.log", i)))
		if err != nil {
			t.Fatal(err)
		}
		w := bufio.NewWriterSize(f, 1<<20)
		for written, lines := 0, 0; written < mib<<20/files; lines++ {
			line := logLine(r)
			if lines%50000 == 777 {
				planted++
				v := values[planted%len(values)]
				line += " token=" + []string{v, hex.EncodeToString([]byte(v)), base64.StdEncoding.EncodeToString([]byte("id:" + v))}[planted%3]
			}
			n, _ := w.WriteString(line + "\n")
			written += n
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return planted
}

// logLine looks like a web server's log, JSON logs and logs of base64 in turns.
func logLine(r *rand.Rand) string {
	switch r.IntN(4) {
	case 0:
		return fmt.Sprintf(`{"time":"2026-11-21T%02d:%02d:%02d.%06dZ","level":"info","msg":"request done","id":"%016x%016x","status":%d,"path":"/services/openservices/v4/vacatures/%d","ms":%d}`,
			r.IntN(24), r.IntN(60), r.IntN(60), r.IntN(1000000), r.Uint64(), r.Uint64(), 200+r.IntN(300), r.IntN(1e8), r.IntN(900))
	case 1:
		var b [45]byte
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return "2026-11-21 app[" + strconv.Itoa(r.IntN(40000)) + "]: state=" + base64.StdEncoding.EncodeToString(b[:]) + " Authorization: Bearer eyJ0eXAiOiJqd3QiLCJhbGciOiJSUzI1NiJ9.…"
	default:
		return fmt.Sprintf(`10.%d.%d.%d - - [21/Nov/2026:%02d:%02d:%02d +0100] "GET /api/items/%d?page=%d HTTP/1.1" 200 %d "-" "Mozilla/5.0 (X11; Linux x86_64) Gecko/20100101"`,
			r.IntN(256), r.IntN(256), r.IntN(256), r.IntN(24), r.IntN(60), r.IntN(60), r.IntN(1e6), r.IntN(100), r.IntN(90000))
	}
}

// referenceSearch is ripgrep where there is one: installed, or unpacked by make
// bench.
func referenceSearch(t *testing.T) []string {
	t.Helper()
	for _, name := range []string{"../.real/ripgrep/usr/bin/rg", "rg"} {
		if path, err := exec.LookPath(name); err == nil {
			return []string{path, "-F", "-a", "--no-ignore", "--hidden", "--count-matches", "--no-filename", "-f"}
		}
	}
	t.Log("NOT COMPARED WITH RIPGREP: there is no rg here (apt-get install ripgrep); grep -F stands in, which is another program with another speed")
	return []string{"grep", "-F", "-a", "-r", "-c", "-h", "-f"}
}

// search runs the reference; it counts one match a planted line.
func search(t *testing.T, reference []string, patterns, logs string) (lines int, c cost) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), reference[0], append(reference[1:len(reference):len(reference)], patterns, logs)...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	start := time.Now()
	out, err := cmd.Output()
	c.wall = time.Since(start)
	if status := cmd.ProcessState.ExitCode(); err != nil && status != 1 { // 1: nothing found
		t.Fatalf("%s: %v", reference[0], err)
	}
	c.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	for _, f := range strings.Fields(string(out)) {
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatalf("%s printed %q", reference[0], f)
		}
		lines += n
	}
	return lines, c
}

// scanLogs runs the scanner, the making of index and filter included.
func scanLogs(t *testing.T, values []string, logs string) (found int, c cost) {
	t.Helper()
	start, before := time.Now(), used(t)
	x := scan.NewIndex(scan.IndexConfig{})
	for i, v := range values {
		if err := x.Add(scan.Needle{Client: "c", Field: "f", Version: strconv.Itoa(i), Value: secret.FromString(v)}); err != nil {
			t.Fatal(err)
		}
	}
	s, err := scan.New(scan.Config{Filter: x.Filter(), Paths: []string{logs}, Confirm: func(_ context.Context, list []scan.Candidate) (out [][]scan.Match, err error) {
		for _, c := range list {
			out = append(out, x.Confirm(c))
		}
		return out, nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r.Found, cost{time.Since(start), used(t) - before}
}

// used is the processor time of this process.
func used(t *testing.T) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
