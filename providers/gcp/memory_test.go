package gcp

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"

	"credentialbroker/internal/clock"
	"credentialbroker/providers"
	"credentialbroker/providers/providertest"
)

// The test binary is also a process that reads a secret, wipes it and waits.
const readerVariable = "BROKER_TEST_READER"

func TestMain(m *testing.M) {
	if conf := os.Getenv(readerVariable); conf != "" {
		if err := readAndWait(conf); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func readAndWait(conf string) error {
	var c Config
	if err := json.Unmarshal([]byte(conf), &c); err != nil {
		return err
	}
	p, err := Open(c, clock.System{})
	if err != nil {
		return err
	}
	var b providers.Bundle
	for range 3 { // new, and twice unchanged
		next, err := p.Fetch(context.Background(), app, b.Version)
		if err == nil {
			b = next
		}
	}
	fmt.Println("read", b.Fields["a"].Len())
	_, _ = io.ReadFull(os.Stdin, make([]byte, 1))
	b.Wipe()
	for range 3 {
		runtime.GC()
	}
	fmt.Println("wiped")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// Reading leaves no readable copy of the value in the process, neither in gRPC's
// buffers nor in a connection's.
func TestNoCopyIsLeft(t *testing.T) {
	for name, padding := range map[string]int{"small": 0, "large": 8000, "over several frames": 60000} {
		t.Run(name, func(t *testing.T) { noCopyIsLeft(t, padding) })
	}
}

func noCopyIsLeft(t *testing.T, padding int) {
	w := wire{newWire(t).Server}
	value := "v-" + rand.Text() + rand.Text()
	w.Server.Set("app", []byte(`{"a":"`+value+strings.Repeat(".", padding)+`"}`))
	conf, err := json.Marshal(w.config(t))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), readerVariable+"="+string(conf))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	expect := func(want string) {
		t.Helper()
		if !lines.Scan() || lines.Text() != want {
			t.Fatalf("the reader says %q, want %q", lines.Text(), want)
		}
	}
	expect(fmt.Sprintf("read %d", len(value)+padding))
	// One is the bundle itself, where the kernel has no memfd_secret.
	if n := copies(t, cmd.Process.Pid, value); n > 1 {
		t.Errorf("%d readable copies while the bundle is held", n)
	}
	if _, err := in.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	expect("wiped")
	if n := copies(t, cmd.Process.Pid, value); n != 0 {
		t.Errorf("%d readable copies are left", n)
	}
	if copies(t, cmd.Process.Pid, providertest.Canary) == 0 {
		t.Error("the search finds nothing, not even a constant of the program")
	}
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// copies counts a text in the memory of another process.
func copies(t *testing.T, pid int, text string) (n int) {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); err != nil || mode[0] != 'r' || to < from {
			continue
		}
		b := make([]byte, to-from)
		got, _ := mem.ReadAt(b, from) // some mappings refuse
		n += bytes.Count(b[:got], []byte(text))
	}
	return n
}
