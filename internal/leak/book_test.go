package leak

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"credentialbroker/internal/clock"
)

// A stopped clock.
type stopped time.Time

func (s stopped) Now() clock.Reading {
	return clock.Reading{Boot: time.Hour, Wall: time.Time(s)}
}

func newBook(t *testing.T, dir, host string) *Book {
	t.Helper()
	b, err := OpenBook(dir, host, stopped(at))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func declaration() Incident {
	i := sample()
	i.Format, i.ID, i.Host, i.Revisions, i.DeclaredAt, i.State = 0, "", "", nil, time.Time{}, ""
	return i
}

func declare(t *testing.T, b *Book) Incident {
	t.Helper()
	i, err := b.Declare(declaration(), false)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func same(t *testing.T, got, want Incident) {
	t.Helper()
	a, errA := json.Marshal(got)
	b, errB := json.Marshal(want)
	if string(a) != string(b) || errA != nil || errB != nil {
		t.Errorf("got  %s\nwant %s", a, b)
	}
}

func TestBook(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "incidents")
	b := newBook(t, dir, "Web1")
	one, two := declare(t, b), declare(t, b)
	if one.ID != "2026-0001" || two.ID != "2026-0002" || one.GlobalID() != "2026-0001@web1" || one.State != Open || !one.Unqueued() || !one.DeclaredAt.Equal(at) || len(one.Revisions) != 1 {
		t.Errorf("%+v", one)
	}
	again := newBook(t, dir, "web1")
	got, err := again.Get("2026-0001@web1")
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, one)
	before, err := os.Stat(filepath.Join(dir, "2026-0002.json"))
	if err != nil {
		t.Fatal(err)
	}
	changed, err := again.Update(two.ID, func(i *Incident) error {
		i.Queued()
		i.Actions = append(i.Actions, Action{At: at, What: "rotate\x1b[2J", Outcome: Failed})
		i.Revise(at.Add(time.Minute), "more is known", false)
		return nil
	})
	if err != nil || len(changed.Revisions) != 2 || !changed.Unqueued() || changed.Actions[len(changed.Actions)-1].What != "rotate[2J" {
		t.Errorf("%v: %+v", err, changed)
	}
	if after, err := os.Stat(filepath.Join(dir, "2026-0002.json")); err != nil || os.SameFile(before, after) {
		t.Errorf("written over in place: a crash would tear it: %v", err)
	}
	list, err := b.List()
	if err != nil || len(list) != 2 {
		t.Fatal(err, len(list))
	}
	same(t, list[1], changed)
	for name, change := range map[string]func(*Incident) error{
		"its own error": func(*Incident) error { return errors.New("no") },
		"another id":    func(i *Incident) error { i.ID = "2026-0009"; return nil },
		"a drill":       func(i *Incident) error { i.Drill = true; return nil },
		"no revisions":  func(i *Incident) error { i.Revisions = nil; return nil },
		"half closed":   func(i *Incident) error { i.State = Closed; return nil },
		"nonsense":      func(i *Incident) error { i.Severity = "grave"; return nil },
	} {
		if _, err := b.Update(two.ID, change); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	got, err = b.Get(two.ID)
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, changed)
	for _, id := range []string{"2026-0003", "", "../x", "2026-0001@web2", "2026-00001x"} {
		if _, err := b.Get(id); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %v", id, err)
		}
		if _, err := b.Update(id, func(*Incident) error { return nil }); !errors.Is(err, ErrNotFound) {
			t.Errorf("update %q: %v", id, err)
		}
	}
	for _, path := range []string{dir, filepath.Join(dir, "spool"), filepath.Join(dir, "2026-0001.json")} {
		st, err := os.Stat(path)
		if err != nil || st.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v, %v", path, st.Mode(), err)
		}
	}
}

func TestDeclarationThatSaysTooLittle(t *testing.T) {
	b := newBook(t, filepath.Join(t.TempDir(), "incidents"), "web1")
	for want, change := range map[string]func(*Incident){
		"severity":      func(i *Incident) { i.Severity = "" },
		"names no":      func(i *Incident) { i.Clients = nil },
		"write unknown": func(i *Incident) { i.What = nil },
		"what leaked":   func(i *Incident) { i.What = []Credential{"everything"} },
		"personal_data": func(i *Incident) { i.PersonalData = "" },
		"policy":        func(i *Incident) { i.Policy = "" },
		"rotation":      func(i *Incident) { i.Issuer.Rotation = "" },
		"mail address":  func(i *Incident) { i.CopyTo = []string{"Jan <a@b.example>"} },
		"another host":  func(i *Incident) { i.Joins = "2026-0001" },
		"ends before":   func(i *Incident) { i.Window.To = i.Window.From.Add(-time.Hour) },
	} {
		i := declaration()
		change(&i)
		if _, err := b.Declare(i, false); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
	}
	if list, err := b.List(); len(list) != 0 || err != nil {
		t.Errorf("recorded: %v, %v", list, err)
	}
	if i := declare(t, b); i.ID != "2026-0001" {
		t.Errorf("a refused declaration took a number: %s", i.ID)
	}
}

func TestDamagedRecordsHoldNoOtherBack(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "incidents")
	b := newBook(t, dir, "web1")
	for range 6 {
		declare(t, b)
	}
	whole, err := os.ReadFile(filepath.Join(dir, "2026-0001.json"))
	if err != nil {
		t.Fatal(err)
	}
	for id, text := range map[string]string{
		"2026-0001": string(whole[:len(whole)/2]),
		"2026-0002": strings.Replace(string(whole), `"format": 1`, `"format": 9`, 1),
		"2026-0003": string(whole), // another's
		"2026-0004": string(whole) + "{}",
		"2026-0005": strings.Replace(string(whole), `"format": 1`, `"format": 1, "more": 1`, 1),
	} {
		if err := os.WriteFile(filepath.Join(dir, id+".json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	list, err := b.List()
	if err == nil || len(list) != 1 || list[0].ID != "2026-0006" {
		t.Fatalf("%d: %v", len(list), err)
	}
	for n := 1; n <= 5; n++ {
		id := fmt.Sprintf("2026-%04d", n)
		if !strings.Contains(err.Error(), id+".json") {
			t.Errorf("%s is not named in %v", id, err)
		}
		if _, err := b.Update(id, func(*Incident) error { return nil }); err == nil {
			t.Errorf("%s was overwritten", id)
		}
	}
	if i := declare(t, b); i.ID != "2026-0007" {
		t.Errorf("the next is %s", i.ID)
	}
}

func TestBookAtOnce(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "incidents")
	books := []*Book{newBook(t, dir, "web1"), newBook(t, dir, "web1")} // a daemon, and a command that spools
	first := declare(t, books[0])
	var all sync.WaitGroup
	for n := range 10 {
		all.Go(func() {
			declare := books[0].Declare
			if n%2 == 1 {
				declare = books[1].Spool
			}
			if _, err := declare(declaration(), false); err != nil {
				t.Error(err)
			}
		})
		all.Go(func() {
			if _, err := books[0].Update(first.ID, func(i *Incident) error {
				i.Revise(at, fmt.Sprint(n), false)
				return nil
			}); err != nil {
				t.Error(err)
			}
			if _, err := books[0].List(); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if _, err := books[0].Absorb(); err != nil {
		t.Error(err)
	}
	list, err := books[0].List()
	if err != nil || len(list) != 11 || len(list[0].Revisions) != 11 {
		t.Errorf("%d incidents, %d revisions: %v", len(list), len(list[0].Revisions), err)
	}
}

func TestSpool(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "incidents")
	command := newBook(t, dir, "web1")
	spooled, err := command.Spool(declaration(), true)
	if err != nil || spooled.ID != "2026-0001" {
		t.Fatal(spooled.ID, err)
	}
	if list, err := command.List(); err != nil || len(list) != 1 {
		t.Errorf("the spooled one is not shown: %v, %v", list, err)
	}
	daemon := newBook(t, dir, "web1")
	if i := declare(t, daemon); i.ID != "2026-0002" {
		t.Errorf("the number of a spooled one was given again: %s", i.ID)
	}
	if err := os.WriteFile(filepath.Join(dir, "spool", "2026-0009.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	list, err := daemon.Absorb()
	if err == nil || !strings.Contains(err.Error(), "2026-0009") || len(list) != 1 {
		t.Fatalf("%d absorbed, %v", len(list), err)
	}
	same(t, list[0], spooled)
	got, err := daemon.Get("2026-0001")
	if err != nil || got.Unqueued() {
		t.Error(err)
	}
	same(t, got, spooled)
	if list, err = daemon.Absorb(); err == nil || len(list) != 0 {
		t.Errorf("absorbed twice: %v, %v", list, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "spool", "2026-0009.json")); err != nil {
		t.Error("the damaged one is gone")
	}
}

func TestDirectoryOfOthersIsRefused(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "incidents")
	newBook(t, dir, "web1")
	if err := os.Chmod(dir, 0o750); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenBook(dir, "web1", stopped(at)); err == nil || !strings.Contains(err.Error(), "chmod") {
		t.Error(err)
	}
	if _, err := OpenBook(filepath.Join(t.TempDir(), "no", "incidents"), "web1", stopped(at)); err == nil {
		t.Error("a state directory that there is not")
	}
	if _, err := OpenBook(filepath.Join(t.TempDir(), "incidents"), "web 1\n", stopped(at)); err == nil {
		t.Error("a host that is none")
	}
}

func TestEvidence(t *testing.T) {
	here, there := newBook(t, filepath.Join(t.TempDir(), "a"), "web1"), newBook(t, filepath.Join(t.TempDir(), "b"), "web2")
	own := declare(t, here)
	joining := declaration()
	joining.Joins, joining.Holders = own.GlobalID(), []Holder{{UID: 1001, Held: "token", First: at, Last: at}}
	other, err := there.Declare(joining, true)
	if err != nil {
		t.Fatal(err)
	}
	evidence, err := there.Export(other.ID)
	if err != nil {
		t.Fatal(err)
	}
	merged, err := here.Merge(own.ID, evidence)
	if err != nil || !slices.Equal(merged.Hosts(), []string{"web1", "web2"}) || len(merged.Revisions) != 2 || !merged.Unqueued() {
		t.Fatalf("%v: %+v", err, merged)
	}
	again, err := here.Merge(own.ID, evidence)
	if err != nil {
		t.Fatal(err)
	}
	same(t, again, merged)
	if _, err := there.Update(other.ID, func(i *Incident) error { i.Exposure.Add(IssuedToken{JTI: "late"}); return nil }); err != nil {
		t.Fatal(err)
	}
	newer, err := there.Export(other.ID)
	if err != nil {
		t.Fatal(err)
	}
	if merged, err = here.Merge(own.ID, newer); err != nil || len(merged.Others) != 1 || merged.Others[0].Exposure.Count != 4 || len(merged.Revisions) != 3 {
		t.Errorf("%v: %+v", err, merged.Others)
	}
	ofAnother := declare(t, here)
	back, err := here.Export(own.ID)
	if err != nil {
		t.Fatal(err)
	}
	for want, try := range map[string]func() (Incident, error){
		"is for the incident": func() (Incident, error) { return here.Merge(ofAnother.ID, evidence) },
		"has it already":      func() (Incident, error) { return here.Merge(own.ID, back) },
		"longer than":         func() (Incident, error) { return here.Merge(own.ID, make([]byte, mostBytes+1)) },
		"unknown field": func() (Incident, error) {
			return here.Merge(own.ID, []byte(strings.Replace(string(evidence), "{", `{"x":1,`, 1)))
		},
		"same version": func() (Incident, error) {
			return here.Merge(own.ID, []byte(strings.Replace(string(evidence), `"format": 1`, `"format": 2`, 1)))
		},
		"do not fit": func() (Incident, error) {
			return here.Merge(own.ID, []byte(strings.Replace(string(evidence), `"count": 3`, `"count": 1`, 1)))
		},
		`a step "ignore"`: func() (Incident, error) {
			return here.Merge(own.ID, []byte(strings.Replace(string(evidence), `"what": "quarantine"`, `"what": "ignore"`, 1)))
		},
		`"well"`: func() (Incident, error) {
			return here.Merge(own.ID, []byte(strings.Replace(string(evidence), `"outcome": "done"`, `"outcome": "well"`, 1)))
		},
		"no such incident": func() (Incident, error) { return here.Merge("2026-0099", evidence) },
	} {
		if _, err := try(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
	}
}

func FuzzEvidence(f *testing.F) {
	f.Add([]byte(`{"format":1,"incident":"2026-0001@web1","host":"web2","exported_at":"2026-11-21T02:12:00Z","exposure":{"count":1,"tokens":[{"jti":"a","issued":"2026-11-21T02:12:00Z","expires":"2026-11-21T02:12:00Z"}]},"holders":[{"uid":1,"held":"token","first":"2026-11-21T02:12:00Z","last":"2026-11-21T02:12:00Z"}]}`))
	f.Add([]byte(`{"format":1,"incident":"2026-0001@web1","host":"web2","exposure":{"count":-1}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := parseEvidence(data)
		if err != nil {
			return
		}
		i := sample()
		i.Others = []Evidence{e}
		i.Revise(at, "", false)
		harmless(t, i)
	})
}

// harmless composes whatever was read, and looks for what must not come out.
func harmless(t *testing.T, i Incident) {
	messages, err := Compose(i, sender(), []Language{Dutch})
	if err != nil {
		return
	}
	for _, m := range messages {
		p := parse(t, m.Data)
		if len(p.header) > 11 || strings.ContainsFunc(p.text, func(r rune) bool { return r < ' ' && r != '\n' || r == 0x7f }) {
			t.Errorf("%v\n%q", p.header, p.text)
		}
		if err := checkMessage(m); err != nil {
			t.Error(err)
		}
	}
}

func FuzzRecord(f *testing.F) {
	data, err := json.Marshal(stage(Confirmed, "by-request", "final"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		if i, err := parseIncident(data, "2026-0007"); err == nil {
			harmless(t, i)
		}
	})
}

func FuzzAddress(f *testing.F) {
	for _, a := range []string{"a@b.example", "a@b.example\r\nBcc: c@d", `"a b"@c.example`, "<a@b>", "a@[127.0.0.1]", "a@b@c", "jörg@b.example"} {
		f.Add(a)
	}
	f.Fuzz(func(t *testing.T, a string) {
		if validAddress(a) != nil {
			return
		}
		i := sample()
		i.CopyTo, i.Issuer.Contacts = []string{a}, nil
		messages, err := Compose(i, sender(), []Language{Dutch})
		if err != nil {
			t.Fatal(err)
		}
		if p := parse(t, messages[0].Data); len(p.header) != 9 || p.header.Get("To") != "<"+a+">" {
			t.Errorf("%q: %v", a, p.header)
		}
	})
}

func FuzzText(f *testing.F) {
	f.Add("a\r\nb\x00\u202e eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.x", 20)
	f.Fuzz(func(t *testing.T, s string, n int) {
		n = 1 + (n&0xfff)%longText
		got := clean(s, n)
		if len([]rune(got)) > n || strings.ContainsAny(got, "\r\x00\x1b\u202e\u2028") {
			t.Errorf("%q", got)
		}
		if strings.Contains(line(s), "\n") {
			t.Errorf("%q is no line", line(s))
		}
	})
}
