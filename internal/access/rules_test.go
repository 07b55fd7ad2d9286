package access

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// people is a machine with a few names.
type people struct{}

func (people) User(name string) (uint32, error) {
	return lookup(name, map[string]uint32{"vacatures": 1001, "batch": 1002, "www-data": 33, "0": 0})
}

func (people) Group(name string) (uint32, error) {
	return lookup(name, map[string]uint32{"vacatures": 2001, "www-data": 33})
}

func lookup(name string, known map[string]uint32) (uint32, error) {
	if id, ok := known[name]; ok {
		return id, nil
	}
	return 0, fmt.Errorf("this machine has no %q", name)
}

const fpm = "php8.2-fpm.service"

// as is a caller in its own group.
func as(uid uint32, unit string, groups ...uint32) *Caller {
	g := append(groups, uid)
	slices.Sort(g)
	return &Caller{PID: 1, UID: uid, GID: uid, Groups: g, Unit: unit, pidfd: -1}
}

func boxed(c *Caller) *Caller { c.Container = true; return c }

func userUnit(c *Caller, unit string) *Caller { c.UserUnit = unit; return c }

func compile(t *testing.T, l Limits, entries ...Entry) Rules {
	t.Helper()
	r, errs := Compile(entries, l, people{})
	for _, err := range errs {
		t.Fatal(err)
	}
	return r
}

func TestDecideIdentity(t *testing.T) {
	tests := []struct {
		name   string
		entry  Entry
		caller *Caller
		want   Reason
	}{
		{"user", Entry{User: "batch"}, as(1002, ""), ""},
		{"user by number", Entry{User: "0"}, as(0, ""), ""},
		{"another user", Entry{User: "batch"}, as(1001, ""), ReasonIdentity},
		{"root is nobody special", Entry{User: "batch"}, as(0, ""), ReasonIdentity},
		{"group", Entry{Group: "vacatures"}, as(33, "", 2001), ""},
		{"group of the process", Entry{Group: "www-data"}, as(33, ""), ""},
		{"not in the group", Entry{Group: "vacatures"}, as(33, "", 2000, 2002), ReasonIdentity},
		{"unit", Entry{Unit: fpm}, as(33, fpm), ""},
		{"unit and user", Entry{Unit: fpm, User: "vacatures"}, as(1001, fpm), ""},
		{"unit without the user", Entry{Unit: fpm, User: "vacatures"}, as(33, fpm), ReasonIdentity},
		{"user without the unit", Entry{Unit: fpm, User: "vacatures"}, as(1001, ""), ReasonIdentity},
		{"another unit", Entry{Unit: fpm}, as(33, "php8.3-fpm.service"), ReasonIdentity},
		{"unit of a user manager", Entry{Unit: fpm}, userUnit(as(33, ""), fpm), ReasonIdentity},
		{"user unit", Entry{UserUnit: fpm, User: "batch"}, userUnit(as(1002, ""), fpm), ""},
		{"user unit in the system", Entry{UserUnit: fpm, User: "batch"}, as(1002, fpm), ReasonIdentity},
		{"user unit of another", Entry{UserUnit: fpm, User: "batch"}, userUnit(as(1001, ""), fpm), ReasonIdentity},
		{"container", Entry{User: "batch"}, boxed(as(1002, "")), ReasonContainer},
		{"container in the unit", Entry{Unit: fpm}, boxed(as(33, fpm)), ReasonContainer},
		{"container allowed", Entry{User: "batch", Container: "allow"}, boxed(as(1002, "")), ""},
		{"allowed, not needed", Entry{User: "batch", Container: "allow"}, as(1002, ""), ""},
		{"another's container", Entry{User: "batch"}, boxed(as(1001, "")), ReasonIdentity},
		{"executable unknown", Entry{User: "batch", Executable: "/proc/self/exe"}, as(1002, ""), ReasonIdentity},
		{"nobody", Entry{User: "batch"}, nil, ReasonIdentity},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := compile(t, Limits{}, test.entry)
			d := r.Decide(test.caller, Want{Surface: Token})
			if d.Reason != test.want || d.Allowed != (test.want == "") {
				t.Fatalf("%+v, want reason %q", d, test.want)
			}
			wantEntry, wantMatched := -1, []int(nil)
			if d.Allowed {
				wantEntry, wantMatched = 0, []int{0}
			}
			if d.Entry != wantEntry || !slices.Equal(d.Matched, wantMatched) {
				t.Errorf("entry %d, matched %v", d.Entry, d.Matched)
			}
			if got := r.Surfaces(test.caller); (len(got) > 0) != d.Allowed {
				t.Errorf("surfaces %v", got)
			}
		})
	}
}

func TestDecideWant(t *testing.T) {
	entries := []Entry{
		{User: "batch", Scopes: []string{"write", "read"}},
		{User: "batch", Scopes: []string{"admin"}, Audiences: []string{"https://b.example", "https://a.example"}},
		{User: "www-data"},
		{User: "batch", Surfaces: []Surface{APIKey}},
	}
	limits := Limits{Scopes: []string{"read", "write", "admin", "list"}, Audiences: []string{"https://a.example", "https://b.example", "https://c.example"}}
	batch, www := as(1002, ""), as(33, "")
	tests := []struct {
		name   string
		caller *Caller
		want   Want
		d      Decision
	}{
		{"the entry's scopes", batch, Want{Surface: Token}, Decision{Allowed: true, Scope: "read write"}},
		{"one of them", batch, Want{Surface: Token, Scope: "write"}, Decision{Allowed: true, Scope: "write"}},
		{"normalised", batch, Want{Surface: Token, Scope: "write read write"}, Decision{Allowed: true, Scope: "read write"}},
		{"of the next entry", batch, Want{Surface: Headers, Scope: "admin"}, Decision{Allowed: true, Entry: 1, Scope: "admin", Audience: "https://b.example"}},
		{"of no entry together", batch, Want{Surface: Token, Scope: "admin read"}, Decision{Entry: -1, Reason: ReasonScope}},
		{"the client's, not the entry's", batch, Want{Surface: Token, Scope: "list"}, Decision{Entry: -1, Reason: ReasonScope}},
		{"the client's", www, Want{Surface: Token, Scope: "list"}, Decision{Allowed: true, Entry: 2, Scope: "list"}},
		{"the client's default", www, Want{Surface: Token}, Decision{Allowed: true, Entry: 2}},
		{"not the client's", www, Want{Surface: Token, Scope: "root"}, Decision{Entry: -1, Reason: ReasonScope}},
		{"two spaces", www, Want{Surface: Token, Scope: "list  read"}, Decision{Entry: -1, Reason: ReasonScope}},
		{"a space alone", www, Want{Surface: Token, Scope: " "}, Decision{Entry: -1, Reason: ReasonScope}},
		{"case counts", www, Want{Surface: Token, Scope: "Read"}, Decision{Entry: -1, Reason: ReasonScope}},
		{"audience", batch, Want{Surface: Token, Scope: "admin", Audience: "https://a.example"}, Decision{Allowed: true, Entry: 1, Scope: "admin", Audience: "https://a.example"}},
		{"resource", batch, Want{Surface: Token, Scope: "admin", Resource: "https://a.example"}, Decision{Allowed: true, Entry: 1, Scope: "admin"}},
		{"audience of the client", www, Want{Surface: Token, Audience: "https://c.example"}, Decision{Allowed: true, Entry: 2, Audience: "https://c.example"}},
		{"audience outside", www, Want{Surface: Token, Audience: "https://d.example"}, Decision{Entry: -1, Reason: ReasonAudience}},
		{"resource outside", www, Want{Surface: Token, Audience: "https://c.example", Resource: "https://d.example"}, Decision{Entry: -1, Reason: ReasonAudience}},
		{"api key", batch, Want{Surface: APIKey}, Decision{Allowed: true, Entry: 3}},
		{"api key is not for all", www, Want{Surface: APIKey}, Decision{Entry: -1, Reason: ReasonSurface}},
		{"unknown surface", www, Want{Surface: "tokens"}, Decision{Entry: -1, Reason: ReasonSurface}},
		{"no surface", www, Want{}, Decision{Entry: -1, Reason: ReasonSurface}},
	}
	r := compile(t, limits, entries...)
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.d.Matched = []int{0, 1, 3}
			if test.caller == www {
				test.d.Matched = []int{2}
			}
			if got := r.Decide(test.caller, test.want); !reflect.DeepEqual(got, test.d) {
				t.Errorf("got %+v\nwant %+v", got, test.d)
			}
		})
	}
	all := surfaces()
	if got := r.Surfaces(www); slices.Contains(got, APIKey) || !slices.Contains(got, Token) || len(got) != len(all)-2 { // and credential, which is for units alone
		t.Errorf("surfaces %v", got)
	}
	if got := r.Surfaces(batch); !slices.Equal(got, all[:len(all)-1]) {
		t.Errorf("surfaces %v", got)
	}
}

// Without limits, only what an entry names may be asked for.
func TestDecideWithoutLimits(t *testing.T) {
	r := compile(t, Limits{}, Entry{User: "batch"}, Entry{User: "www-data", Scopes: []string{"read"}})
	if d := r.Decide(as(1002, ""), Want{Surface: Token, Scope: "read"}); d.Reason != ReasonScope {
		t.Errorf("%+v", d)
	}
	if d := r.Decide(as(33, ""), Want{Surface: Token, Scope: "read"}); !d.Allowed {
		t.Errorf("%+v", d)
	}
	if d := r.Decide(as(1002, ""), Want{Surface: Token, Audience: "x"}); d.Reason != ReasonAudience {
		t.Errorf("%+v", d)
	}
	if d := (Rules{}).Decide(as(0, ""), Want{Surface: Token}); d.Allowed || d.Entry != -1 {
		t.Errorf("zero rules: %+v", d)
	}
}

// Matched is shared, so what one decision holds must not change by another.
func TestMatchedStays(t *testing.T) {
	var entries []Entry
	for _, u := range []string{"batch", "batch", "www-data", "batch", "www-data", "batch", "batch"} {
		entries = append(entries, Entry{User: u})
	}
	r := compile(t, Limits{}, entries...)
	matched := func(uid uint32) []int { return r.Decide(as(uid, ""), Want{Surface: Token}).Matched }
	if got := matched(1002); !slices.Equal(got, []int{0, 1, 3, 5, 6}) {
		t.Errorf("matched %v", got)
	}
	if got := matched(33); !slices.Equal(got, []int{2, 4}) {
		t.Errorf("matched %v", got)
	}
	single := compile(t, Limits{}, entries[1:4]...).Decide(as(1002, ""), Want{Surface: Token}).Matched
	if !slices.Equal(single, []int{0, 2}) || !slices.Equal(r.index, []int{0, 1, 2, 3, 4, 5, 6}) {
		t.Errorf("single %v, index %v", single, r.index)
	}
}

// An update replaces the file: the new program matches at once, the old no more.
func TestExecutable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "program")
	inode := func() Executable {
		var st unix.Stat_t
		must(t, unix.Stat(path, &st))
		return Executable{st.Dev, st.Ino}
	}
	must(t, os.WriteFile(path, nil, 0o755))
	r := compile(t, Limits{}, Entry{User: "batch", Executable: path})
	c := as(1002, "")
	c.Exe = inode()
	if !r.Decide(c, Want{Surface: Token}).Allowed {
		t.Error("its own program")
	}
	must(t, os.WriteFile(path+".new", nil, 0o755))
	must(t, os.Rename(path+".new", path))
	if r.Decide(c, Want{Surface: Token}).Allowed {
		t.Error("the program before the update")
	}
	c.Exe = inode()
	if !r.Decide(c, Want{Surface: Token}).Allowed {
		t.Error("the program after the update")
	}
	must(t, os.Remove(path))
	if r.Decide(c, Want{Surface: Token}).Allowed {
		t.Error("a program that is gone")
	}
}

func TestCompileErrors(t *testing.T) {
	limits := Limits{Scopes: []string{"read"}, Audiences: []string{"a"}}
	tests := []struct {
		entry    Entry
		key, msg string
	}{
		{Entry{}, "", "it names nobody"},
		{Entry{Executable: "/bin/sh"}, "", "it names nobody"},
		{Entry{Container: "allow"}, "", "it names nobody"},
		{Entry{Scopes: []string{"read"}, Surfaces: []Surface{Token}}, "", "it names nobody"},
		{Entry{Unit: fpm, User: "batch", Surfaces: []Surface{Token, Credential}}, "surfaces", "fetched by systemd itself"},
		{Entry{Unit: fpm, Group: "batch", Surfaces: []Surface{Credential}}, "surfaces", "fetched by systemd itself"},
		{Entry{Unit: fpm, Executable: "/bin/sh", Surfaces: []Surface{Credential}}, "surfaces", "fetched by systemd itself"},
		{Entry{User: "batch", Surfaces: []Surface{Credential}}, "surfaces", "fetched by systemd itself"},
		{Entry{User: "batch", Restart: true}, "restart", "only a unit"},
		{Entry{Unit: fpm, User: "batch", Restart: true}, "restart", "only a unit"},
		{Entry{Unit: fpm, Surfaces: []Surface{Token}, Restart: true}, "restart", "only a unit"},
		{Entry{User: "lost"}, "user", `this machine has no "lost"`},
		{Entry{Group: "lost"}, "group", `this machine has no "lost"`},
		{Entry{Unit: "php8.2-fpm"}, "unit", "write the whole name"},
		{Entry{Unit: "system.slice"}, "unit", "no unit that a process can be in"},
		{Entry{Unit: "php@.service"}, "unit", "no unit that a process can be in"},
		{Entry{Unit: "a b.service"}, "unit", "no unit that a process can be in"},
		{Entry{Unit: "user@1000.service"}, "unit", "a user's own manager"},
		{Entry{User: "batch", UserUnit: "feed"}, "user_unit", "write the whole name"},
		{Entry{UserUnit: "feed.service"}, "user_unit", "every user may name a unit so"},
		{Entry{User: "batch", UserUnit: "feed.service", Unit: fpm}, "user_unit", "make two entries"},
		{Entry{User: "batch", Executable: "sh"}, "executable", "no absolute path"},
		{Entry{User: "batch", Executable: "/bin/../sh"}, "executable", "without detours"},
		{Entry{User: "batch", Container: "yes"}, "container", "write allow"},
		{Entry{User: "batch", Scopes: []string{}}, "scopes", "the list is empty"},
		{Entry{User: "batch", Scopes: []string{"read", "admin"}}, "scopes", `"admin" is not among the scopes of the client: read`},
		{Entry{User: "batch", Scopes: []string{"re ad"}}, "scopes", "a character that does not belong"},
		{Entry{User: "batch", Scopes: []string{`re"ad`}}, "scopes", "a character that does not belong"},
		{Entry{User: "batch", Scopes: []string{`re\ad`}}, "scopes", "a character that does not belong"},
		{Entry{User: "batch", Audiences: []string{}}, "audiences", "the list is empty"},
		{Entry{User: "batch", Audiences: []string{"b"}}, "audiences", "is not among the audiences"},
		{Entry{User: "batch", Audiences: []string{""}}, "audiences", "it is empty"},
		{Entry{User: "batch", Surfaces: []Surface{}}, "surfaces", "the list is empty"},
		{Entry{User: "batch", Surfaces: []Surface{"tokens"}}, "surfaces", `"tokens" is not known`},
	}
	for _, test := range tests {
		t.Run(fmt.Sprintf("%+v", test.entry), func(t *testing.T) {
			r, errs := Compile([]Entry{{User: "www-data"}, test.entry, {User: "vacatures"}}, limits, people{})
			if len(errs) == 0 {
				t.Fatal("no error")
			}
			var e *EntryError
			if !errors.As(errs[0], &e) || e.Entry != 1 || e.Key != test.key || !strings.Contains(e.Error(), test.msg) || !strings.HasPrefix(e.Error(), "allow entry 2") {
				t.Errorf("%v", errs[0])
			}
			if got, want := errors.Is(errs[0], ErrUnresolved), strings.Contains(test.msg, "lost"); got != want {
				t.Errorf("ErrUnresolved: %v", got)
			}
			// It matches nobody, whoever comes; the others work.
			for _, c := range []*Caller{as(0, fpm), as(1002, fpm), userUnit(as(1002, ""), "feed.service"), as(nobody, "")} {
				if d := r.Decide(c, Want{Surface: Token}); d.Allowed {
					t.Errorf("%s: %+v", c, d)
				}
			}
			for uid, entry := range map[uint32]int{33: 0, 1001: 2} {
				if d := r.Decide(as(uid, ""), Want{Surface: Token}); d.Entry != entry {
					t.Errorf("uid %d: %+v", uid, d)
				}
			}
		})
	}
}

// Every error of every entry at once.
// A credential is for entries by unit alone, and what ends for those that say
// restart, in whatever order they stand.
func TestDecideCredential(t *testing.T) {
	r := compile(t, Limits{}, Entry{User: "0"}, Entry{Unit: fpm, User: "0"}, Entry{Unit: fpm, Surfaces: []Surface{Credential}},
		Entry{Unit: fpm, Surfaces: []Surface{Credential, APIKey}}, Entry{Unit: fpm, Restart: true})
	for _, test := range []struct {
		want  Want
		entry int
	}{
		{Want{Surface: Credential}, 2}, {Want{Surface: Credential, Also: APIKey}, 3}, {Want{Surface: Credential, Restart: true}, 4},
	} {
		if d := r.Decide(as(0, fpm), test.want); !d.Allowed || d.Entry != test.entry {
			t.Errorf("%+v: %+v", test.want, d)
		}
		if d := r.Decide(as(0, "x.service"), test.want); d.Allowed || d.Reason != ReasonSurface {
			t.Errorf("%+v of another unit: %+v", test.want, d)
		}
	}
	r = compile(t, Limits{}, Entry{Unit: fpm})
	if d := r.Decide(as(0, fpm), Want{Surface: Credential, Restart: true}); d.Allowed || d.Reason != ReasonRestart {
		t.Errorf("%+v", d)
	}
}

func TestCompileAllErrors(t *testing.T) {
	_, errs := Compile([]Entry{{User: "lost", Group: "lost", Unit: "x", Container: "no"}, {User: "batch"}, {}}, Limits{}, people{})
	if len(errs) != 5 {
		t.Errorf("%d errors: %v", len(errs), errs)
	}
}

func TestCompileForm(t *testing.T) {
	r, errs := Compile([]Entry{{User: "lost"}, {Unit: fpm}}, Limits{}, nil)
	if errs != nil {
		t.Error(errs)
	}
	if d := r.Decide(as(0, ""), Want{Surface: Token}); d.Allowed {
		t.Error("a name that was not looked up is uid 0")
	}
	if d := r.Decide(as(0, fpm), Want{Surface: Token}); !d.Allowed {
		t.Error("a unit needs no look-up")
	}
}

func FuzzDecide(f *testing.F) {
	f.Add("read write", "https://a.example", "")
	f.Fuzz(func(t *testing.T, scope, audience, resource string) {
		allowed := []string{"read", "write"}
		r, errs := Compile([]Entry{{User: "batch", Scopes: allowed, Audiences: []string{"https://a.example"}}}, Limits{}, people{})
		if errs != nil {
			t.Fatal(errs)
		}
		d := r.Decide(as(1002, ""), Want{Surface: Token, Scope: scope, Audience: audience, Resource: resource})
		if !d.Allowed {
			return
		}
		for s := range strings.SplitSeq(d.Scope, " ") {
			if !slices.Contains(allowed, s) {
				t.Fatalf("%q asked, %q allowed", scope, d.Scope)
			}
		}
		if d.Audience != "" && d.Audience != "https://a.example" || resource != "" && resource != "https://a.example" {
			t.Fatalf("audience %q, resource %q", d.Audience, resource)
		}
	})
}

func TestDecideDoesNotAllocate(t *testing.T) {
	r, w := typical(t)
	c := as(33, fpm)
	if n := testing.AllocsPerRun(100, func() { r.Decide(c, w) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func typical(t testing.TB) (Rules, Want) {
	t.Helper()
	r, errs := Compile([]Entry{{Unit: "vacatures.service", User: "vacatures"}, {User: "batch", Scopes: []string{"read"}}, {Unit: fpm, User: "www-data"}, {Group: "www-data"}}, Limits{Scopes: []string{"read"}}, people{})
	if errs != nil {
		t.Fatal(errs)
	}
	return r, Want{Surface: Token, Scope: "read"}
}

func BenchmarkDecide(b *testing.B) {
	r, w := typical(b)
	c := as(33, fpm)
	b.ReportAllocs()
	for b.Loop() {
		if !r.Decide(c, w).Allowed {
			b.Fatal("denied")
		}
	}
}
