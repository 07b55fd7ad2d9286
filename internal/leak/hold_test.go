package leak

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Whatever single bit of a record is flipped, and wherever it is cut, it is not
// believed.
func TestDamageIsSeen(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "incidents")
	b := newBook(t, dir, "web1")
	i := declare(t, b)
	whole, err := os.ReadFile(filepath.Join(dir, i.ID+".json"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseIncident(whole, i.ID); err != nil {
		t.Fatal(err)
	}
	for n := range whole {
		for bit := range 8 {
			one := bytes.Clone(whole)
			one[n] ^= 1 << bit
			if _, err := parseIncident(one, i.ID); err == nil {
				t.Fatalf("bit %d of byte %d is flipped, and nobody notices:\n%s", bit, n, one[max(0, n-40):min(n+40, len(one))])
			}
		}
		if _, err := parseIncident(whole[:n], i.ID); err == nil {
			t.Fatalf("cut after %d of %d bytes, and nobody notices", n, len(whole))
		}
	}
	// Records had no checksum once.
	old := bytes.Replace(whole, whole[bytes.LastIndex(whole, []byte(",")):], []byte("\n}\n"), 1)
	if got, err := parseIncident(old, i.ID); err != nil || bytes.Contains(old, []byte("checksum")) {
		t.Error(err)
	} else {
		same(t, got, i)
	}
}

func TestHold(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "incidents")
	b := newBook(t, dir, "web1")
	one, two := declare(t, b), declare(t, b)
	names := func(held []Held) (list []string) {
		for _, h := range held {
			list = append(list, h.Incident+" "+h.Client)
		}
		slices.Sort(list)
		return list
	}
	hold := func(want map[string][]string) []string {
		t.Helper()
		lost, err := b.Hold(want)
		if err != nil {
			t.Fatal(err)
		}
		return names(lost)
	}
	there := func() []string {
		t.Helper()
		held, err := newBook(t, dir, "web1").held()
		if err != nil {
			t.Fatal(err)
		}
		return names(held)
	}
	for _, c := range []struct {
		want        map[string][]string
		lost, there string
	}{
		{map[string][]string{one.ID: {"vdab", "vdab-batch"}, two.ID: nil}, "", "2026-0001 vdab, 2026-0001 vdab-batch"},
		{map[string][]string{one.ID: {"vdab", "vdab-batch"}, two.ID: {"vdab"}}, "", "2026-0001 vdab, 2026-0001 vdab-batch, 2026-0002 vdab"},
		{map[string][]string{two.ID: nil}, "2026-0001 vdab, 2026-0001 vdab-batch", "2026-0001 vdab, 2026-0001 vdab-batch"},
		{map[string][]string{one.ID: {"vdab"}, two.ID: nil}, "", "2026-0001 vdab"},
		{nil, "2026-0001 vdab", "2026-0001 vdab"},
	} {
		if lost := strings.Join(hold(c.want), ", "); lost != c.lost {
			t.Errorf("%v: lost %s, want %s", c.want, lost, c.lost)
		}
		if now := strings.Join(there(), ", "); now != c.there {
			t.Errorf("%v: there is %s, want %s", c.want, now, c.there)
		}
	}
	for _, name := range []string{one.ID + ".json", two.ID + ".json"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if i := declare(t, b); i.ID != "2026-0002" { // the first is still held by that name
		t.Errorf("the next is %s", i.ID)
	}
	if _, err := b.Hold(map[string][]string{one.ID: {"../x"}}); err == nil {
		t.Error("a client's name was taken for a path")
	}
}

// limited runs f in a process of its own, for which full makes every disk full,
// or not: the limit holds for a whole process.
func limited(t *testing.T, f func(full func(yes bool))) {
	t.Helper()
	if os.Getenv("LEAK_TEST") != "limit" {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), "LEAK_TEST=limit")
		if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	signal.Ignore(syscall.SIGXFSZ) // or the limit ends the process
	defer signal.Reset(syscall.SIGXFSZ)
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &was); err != nil {
		t.Fatal(err)
	}
	full := func(yes bool) {
		now := was
		if yes {
			now.Cur = 100
		}
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &now); err != nil {
			t.Fatal(err)
		}
	}
	defer full(false)
	f(full)
}

// With a full disk nothing is said to be recorded, or changed, that is not; and
// nothing is lost of what was there.
func TestBookOnFullDisk(t *testing.T) {
	limited(t, func(full func(bool)) {
		dir := filepath.Join(t.TempDir(), "incidents")
		b := newBook(t, dir, "web1")
		one := declare(t, b)
		full(true)
		for what, try := range map[string]func() (Incident, error){
			"declare": func() (Incident, error) { return b.Declare(declaration(), false) },
			"spool":   func() (Incident, error) { return b.Spool(declaration(), false) },
			"update": func() (Incident, error) {
				return b.Update(one.ID, func(i *Incident) error { i.Queued(); return nil })
			},
		} {
			if _, err := try(); !errors.Is(err, unix.EFBIG) || !strings.Contains(err.Error(), "free some space") {
				t.Errorf("%s: %v", what, err)
			}
		}
		if list, err := b.List(); err != nil || len(list) != 1 || !list[0].Unqueued() {
			t.Errorf("%d incidents, %v", len(list), err)
		}
		full(false)
		b = newBook(t, dir, "web1")
		absorbed, err := b.Absorb()
		if err != nil || len(absorbed) != 0 {
			t.Errorf("%d absorbed, %v", len(absorbed), err)
		}
		two := declare(t, b)
		list, err := b.List()
		if err != nil || len(list) != 2 {
			t.Fatalf("%d incidents, %v", len(list), err)
		}
		same(t, list[0], one)
		same(t, list[1], two)
		for _, d := range []string{dir, filepath.Join(dir, "spool")} {
			if left, err := filepath.Glob(filepath.Join(d, ".*")); err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		}
	})
}

// Numbers and records do not depend on which way the clock goes.
func TestBookClockJump(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "incidents")
	var ids []string
	first := declare(t, newBook(t, dir, "web1"))
	for _, days := range []int{0, -1, 7, -365, 365, 0} {
		b, err := OpenBook(dir, "web1", stopped(at.AddDate(0, 0, days)))
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, declare(t, b).ID)
		if _, err := b.Update(first.ID, func(i *Incident) error { i.Revise(at.AddDate(0, 0, days), "", false); return nil }); err != nil {
			t.Errorf("%d days: %v", days, err)
		}
	}
	want := "2026-0002 2026-0003 2026-0004 2025-0001 2027-0001 2026-0005"
	list, err := newBook(t, dir, "web1").List()
	if got := strings.Join(ids, " "); got != want || err != nil || len(list) != 7 {
		t.Errorf("%s, want %s; %d incidents, %v", got, want, len(list), err)
	}
	for _, i := range list {
		if i.ID == first.ID && (len(i.Revisions) != 7 || fmt.Sprint(i.Revisions[6].At) != fmt.Sprint(at)) {
			t.Errorf("%+v", i.Revisions)
		}
	}
}
