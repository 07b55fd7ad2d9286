package intake

import (
	"archive/zip"
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"credentialbroker/internal/secret"
)

// wantRoundTrip: a value that can be one is taken from JSON exactly.
func wantRoundTrip(t *testing.T, s string) {
	t.Helper()
	b, err := json.Marshal(map[string]any{"client": map[string]string{"id": s}})
	if err != nil {
		t.Fatal(err)
	}
	found, err := readBytes(b)
	for _, r := range s {
		if r <= ' ' || r > '~' {
			return
		}
	}
	if len(s) > maxValue || isPlaceholder([]byte(s)) {
		return
	}
	if got := reveal(found.Fields[ClientID]); got != s {
		t.Errorf("got %q (%v), want %q", got, err, s)
	}
	found.Wipe()
}

// A scanner looks through the writable memory of this process. Its own buffer,
// which would hold what it looks for, is outside of what it reads.
type scanner struct {
	own    []byte
	needle []byte // part of own
}

// newScanner looks for the text whose bytes are the inverse of inverted: so
// the test itself holds no copy.
func newScanner(t *testing.T, inverted []byte) scanner {
	t.Helper()
	own, err := unix.Mmap(-1, 0, 1<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(own) })
	s := scanner{own: own[4096:], needle: own[:len(inverted)]}
	for i, c := range inverted {
		s.needle[i] = ^c
	}
	return s
}

func (s scanner) copies(t *testing.T) int {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	mine := uint64(uintptr(unsafe.Pointer(&s.needle[0])))
	n := 0
	for lines := bufio.NewScanner(bytes.NewReader(maps)); lines.Scan(); {
		var from, to uint64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil || !strings.HasPrefix(mode, "rw") {
			continue
		}
		for at := from; at < to; {
			if at < mine+1<<20 && at+uint64(len(s.own)) > mine { // step over our own pages, which may be joined to others
				if at >= mine {
					at = mine + 1<<20
					continue
				}
			}
			limit := min(uint64(len(s.own)), to-at)
			if at < mine {
				limit = min(limit, mine-at)
			}
			got, err := mem.ReadAt(s.own[:limit], int64(at))
			if err != nil {
				break // secret memory cannot be read
			}
			n += bytes.Count(s.own[:got], s.needle)
			clear(s.own[:got])
			if uint64(got) > uint64(len(s.needle)) && at+uint64(got) < to && at+uint64(got) != mine {
				got -= len(s.needle) // it may lie across two reads
			}
			at += uint64(got)
		}
	}
	return n
}

func inverted(parts ...string) []byte {
	var out []byte
	for _, p := range parts {
		for i := range len(p) {
			out = append(out, ^p[i])
		}
	}
	return out
}

// TestNothingStaysInMemory: after the file was read, and what was found wiped,
// no copy of the plain text, the value or the password is left.
func TestNothingStaysInMemory(t *testing.T) {
	line := newScanner(t, inverted("regel 41 ", "is opvulling")) // of long.txt
	for _, name := range []string{"7zip-AES256.zip", "7zip-ZipCrypto.zip", "bsdtar-aes128.zip", "nested.zip"} {
		f, err := readBytes(fixture(t, name), fixturePassword)
		if err != nil {
			t.Fatal(err)
		}
		f.Wipe()
		if n := line.copies(t); n != 0 {
			t.Errorf("%s: %d copies of the text", name, n)
		}
	}
	stored := newScanner(t, inverted(`{"client_`, `id":"kMadeUp`)) // of small.json
	for _, name := range []string{"7zip-AES256-stored.zip", "7zip-ZipCrypto-stored.zip"} {
		f, err := readBytes(fixture(t, name), fixturePassword)
		if err != nil {
			t.Fatal(err)
		}
		f.Wipe()
		if n := stored.copies(t); n != 0 {
			t.Errorf("%s: %d copies of the text", name, n)
		}
	}
	// Values that only this test knows, in each kind of document.
	value := inverted("Vl7", "qZ", "canary", "90Xy")
	needle, lower := newScanner(t, value), newScanner(t, inverted("vl7", "qz", "canary", "90xy"))
	for _, form := range []string{"Client ID: %s\n", "Client ID\n%s\n", "Client ID;x\n%s;y\n", "Client ID: %s.\n", `{"client_id":"%s"}`, "<html><p>Client ID: %s</p>", "%s\n", "Wachtwoord: %s",
		"Client ID: null%s", "(%s)\n", "Api-geheim: %s", "From: x\nclient-id: %s\n"} {
		before, after, _ := strings.Cut(form, "%s")
		doc := make([]byte, 0, 256)
		doc = append(doc, before...)
		for _, c := range value {
			doc = append(doc, ^c)
		}
		doc = append(doc, after...)
		f, _ := Read(bytes.NewReader(doc), int64(len(doc)), nil)
		clear(doc)
		f.Wipe()
		if n := needle.copies(t) + lower.copies(t); n != 0 {
			t.Errorf("%q: %d copies of the value", form, n)
		}
	}
	// A password, refused or accepted.
	for name, tail := range map[string]string{"7zip-AES256.zip": "", "infozip.zip": "é "} {
		b := fixture(t, name)
		_, _ = Read(bytes.NewReader(b), int64(len(b)), func(string, int) (secret.Secret, error) {
			typed := make([]byte, 0, 64)
			for _, c := range value {
				typed = append(typed, ^c)
			}
			return secret.New(append(typed, tail...)), nil
		})
		if n := needle.copies(t); n != 0 {
			t.Errorf("%s: %d copies of the password", name, n)
		}
	}
	accepted := newScanner(t, inverted("geheim", "-2026"))
	for _, name := range []string{"7zip-AES256.zip", "infozip.zip", "nested.zip"} {
		f, err := readBytes(fixture(t, name), fixturePassword)
		if err != nil {
			t.Fatal(err)
		}
		f.Wipe()
		if n := accepted.copies(t); n != 0 {
			t.Errorf("%s: %d copies of the password", name, n)
		}
	}
	// The scanner finds what is there.
	kept := make([]byte, 0, 64)
	for _, c := range value {
		kept = append(kept, ^c)
	}
	if needle.copies(t) == 0 {
		t.Error("the scanner sees nothing")
	}
	clear(kept)
	runtime.KeepAlive(kept)
}

func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// TestMemoryIsBounded: everything that is ever allocated for the largest files,
// not only at once.
func TestMemoryIsBounded(t *testing.T) {
	var many, full bytes.Buffer
	z := zip.NewWriter(&many)
	for i := range 40000 { // a directory of nearly 4 MiB
		if _, err := z.CreateHeader(&zip.FileHeader{Name: fmt.Sprint(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	z = zip.NewWriter(&full)
	line := []byte("Deze regel is opvulling, en geen client id: nvt.\n")
	for i := range maxEntries / 4 {
		w, err := z.Create(fmt.Sprint(i))
		if err != nil {
			t.Fatal(err)
		}
		for n := 0; n+len(line)+16 < maxEntry; n += len(line) + 16 {
			fmt.Fprintf(w, "%016x%s", n*7919*(i+1), line)
		}
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		data  []byte
		want  string
		limit uint64
	}{
		"many":  {many.Bytes(), string(TooLarge), 64 << 20},
		"full":  {full.Bytes(), string(NotUnderstood), 64 << 20},
		"finds": {bytes.Repeat([]byte("id: abc123\n"), maxEntry/11), string(TooLarge), 64 << 20},
		"notes": {bytes.Repeat([]byte("api secret: abc123\n"), maxEntry/19), string(NotUnderstood), 64 << 20},
		"cells": {bytes.Repeat([]byte("id;"), maxEntry/3), string(NotUnderstood), 128 << 20},
		"loose": {bytes.Repeat([]byte("abcdefgh12345678\n"), maxEntry/17), "?: no label says what this is [abcdefgh12345678||line 1]", 64 << 20},
	} {
		var f Found
		var err error
		n := allocated(func() { f, err = readBytes(c.data) })
		if got := show(f, err); len(c.data) > maxArchive || got != c.want || n > c.limit {
			t.Errorf("%s: %d bytes in, %d MiB allocated, got %s (%v)", name, len(c.data), n>>20, got, err)
		}
		t.Logf("%s: %d KiB allocated", name, n>>10)
	}
}
