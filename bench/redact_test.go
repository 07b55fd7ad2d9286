package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"credentialbroker/internal/redact"
	"credentialbroker/internal/scan"
)

// TestRedactSpeed prints how fast output is masked on its way from one pipe to
// another, beside cat in the same place, with two tokens of 1200 bytes and a
// key of 32. It asserts that nothing gets through, never a time.
//
//	REDACT_BENCH_MIB=2048 go test -count=1 -v -run TestRedactSpeed ./bench
func TestRedactSpeed(t *testing.T) {
	mib := 16 // to see that nothing gets through: no measurement
	if v := os.Getenv("REDACT_BENCH_MIB"); v != "" {
		var err error
		if mib, err = strconv.Atoi(v); err != nil || mib < 1 {
			t.Fatalf("REDACT_BENCH_MIB is %q: it is a number of MiB", v)
		}
	}
	values := brokerValues(1, 32)[1:4] // the key and two tokens
	var patterns [][]byte
	for _, v := range values {
		for _, f := range scan.Forms([]byte(v)) {
			patterns = append(patterns, f.Text)
		}
	}
	line := []byte("2026-11-21T10:00:00Z INFO request served path=/vdab/vacatures status=200 bytes=18211 duration=12ms\n")
	block := bytes.Repeat(line, 1<<20/len(line))
	block = append(block, values[0]+"\n"+values[1]+"\n"...)

	cat := func(dst, src *os.File) error {
		cmd := exec.Command("cat")
		cmd.Stdin, cmd.Stdout = src, dst
		return cmd.Run()
	}
	mask := func(dst, src *os.File) error {
		f := &redact.Filter{}
		if err := f.Set(patterns); err != nil {
			return err
		}
		return f.Copy(dst, src, nil)
	}
	theirs, through := carry(t, block, mib, values[0], cat)
	if through != mib {
		t.Errorf("cat lets %d of %d through", through, mib)
	}
	ours, through := carry(t, block, mib, values[0], mask)
	if through != 0 {
		t.Errorf("%d of %d values are not masked", through, mib)
	}
	speed := func(d time.Duration) float64 { return float64(mib*len(block)) / 1e6 / d.Seconds() }
	t.Logf("%d MiB, %d patterns: masked %.0f MB/s, cat %.0f MB/s", mib, len(patterns), speed(ours), speed(theirs))
}

// carry sends the block so often through two pipes, and counts the value at the
// other end.
func carry(t *testing.T, block []byte, times int, value string, through func(dst, src *os.File) error) (time.Duration, int) {
	t.Helper()
	src, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, dst, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	start := time.Now()
	go func() {
		defer in.Close()
		for range times {
			if _, err := in.Write(block); err != nil {
				return
			}
		}
	}()
	done := make(chan error, 1)
	go func() {
		defer dst.Close()
		defer src.Close()
		done <- through(dst, src)
	}()
	found, kept, buf := 0, 0, make([]byte, 1<<20)
	for {
		n, err := out.Read(buf[kept:])
		found += bytes.Count(buf[:kept+n], []byte(value))
		kept = copy(buf, buf[max(0, kept+n-len(value)+1):kept+n])
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	return time.Since(start), found
}
