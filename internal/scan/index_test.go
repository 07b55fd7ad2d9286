package scan

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"credentialbroker/internal/secret"
)

func TestRetired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tok := token(5)
		x := NewIndex(IndexConfig{Keep: time.Hour})
		add := func(version, v string) {
			t.Helper()
			if err := x.Add(Needle{"vdab", "access_token", version, secret.FromString(v), false}); err != nil {
				t.Fatal(err)
			}
		}
		found := func(v string) (list []string) {
			t.Helper()
			s, err := New(config(t, x))
			if err != nil {
				t.Fatal(err)
			}
			m, err := s.worker().look(t.Context(), []byte("xyz"+v), 0, 3+len(v))
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range m {
				list = append(list, fmt.Sprint(m.Version, m.Form, m.Retired))
			}
			return list
		}
		want := func(v string, list ...string) {
			t.Helper()
			if got := found(v); !slices.Equal(got, list) {
				t.Errorf("found %v, want %v", got, list)
			}
		}
		add("1", tok)
		add("2", client)
		x.Retire("vdab", "access_token", "1")
		x.Retire("vdab", "access_token", "none")
		want(tok, "1cleartrue")
		want(hex.EncodeToString([]byte(tok)), "1hextrue")
		want(client, "2clearfalse")
		time.Sleep(59 * time.Minute)
		want(tok, "1cleartrue")
		add("1", tok) // live again
		want(tok, "1clearfalse")
		time.Sleep(time.Hour)
		want(tok, "1clearfalse")
		x.Retire("vdab", "access_token", "1")
		x.Retire("vdab", "access_token", "1") // again: its time does not begin anew
		if live, retired := x.Len(); live != 1 || retired != 1 {
			t.Error(live, retired)
		}
		time.Sleep(time.Hour)
		want(tok)
		if live, retired := x.Len(); live != 1 || retired != 0 || len(x.values) != 1 {
			t.Error(live, retired)
		}
		x.Retire("vdab", "access_token", "2")
		time.Sleep(time.Hour)
		if _, retired := x.Len(); retired != 0 || len(x.windows) != 0 || len(x.retired[0]) != 0 {
			t.Errorf("%d values, %d windows are left", retired, len(x.windows))
		}
	})
}

func TestRetiredAreBounded(t *testing.T) {
	x := NewIndex(IndexConfig{MaxRetired: 3})
	for i := range 10 {
		v := fmt.Sprint(i)
		if err := x.Add(Needle{"c", "f", v, secret.FromString(token(uint64(i))), false}); err != nil {
			t.Fatal(err)
		}
		x.Retire("c", "f", v)
	}
	if live, retired := x.Len(); live != 0 || retired != 3 || x.values[id{"c", "f", "9"}] == nil || x.values[id{"c", "f", "6"}] != nil {
		t.Error(live, retired)
	}
}

// Tokens come by the thousand: they do not push secrets out, and go sooner.
func TestBriefOnesGoSooner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := NewIndex(IndexConfig{Keep: time.Hour, MaxRetired: 1, KeepBrief: time.Minute, MaxBrief: 3})
		for i := range 6 {
			n := Needle{"c", "f", fmt.Sprint(i), secret.FromString(token(uint64(i))), i > 0}
			if err := x.Add(n); err != nil {
				t.Fatal(err)
			}
			x.Retire("c", "f", n.Version)
		}
		if _, retired := x.Len(); retired != 4 || x.values[id{"c", "f", "2"}] != nil {
			t.Errorf("%d are left", retired)
		}
		time.Sleep(time.Minute)
		if _, retired := x.Len(); retired != 1 || x.values[id{"c", "f", "0"}] == nil {
			t.Errorf("%d are left after their time", retired)
		}
	})
}

func TestOneValueOfTwoClients(t *testing.T) {
	x := NewIndex(IndexConfig{})
	for _, c := range []string{"b", "a"} {
		if err := x.Add(Needle{c, "f", "1", secret.FromString(client), false}); err != nil {
			t.Fatal(err)
		}
	}
	r := run(t, config(t, x, write(t, t.TempDir(), "f", []byte(client+client))))
	var got []string
	for _, f := range r.Findings {
		got = append(got, fmt.Sprint(f.Client, f.Offset))
	}
	if !slices.Equal(got, []string{"a0", "b0", "a32", "b32"}) {
		t.Error(got)
	}
}

func TestValuesThatCannotBeLookedFor(t *testing.T) {
	x := NewIndex(IndexConfig{})
	wiped := secret.FromString(client)
	wiped.Wipe()
	for name, c := range map[string]struct {
		value secret.Secret
		want  error
	}{
		"7":     {secret.FromString("  sev7n-x \n"), ErrLength},
		"empty": {secret.Secret{}, ErrLength},
		"long":  {secret.FromString(strings.Repeat("x", maxValue+1)), ErrLength},
		"wiped": {wiped, secret.ErrWiped},
	} {
		err := x.Add(Needle{"vdab", "client_secret", "3", c.value, false})
		if !errors.Is(err, c.want) || strings.Contains(fmt.Sprint(err), "sev7n") {
			t.Errorf("%s: %v", name, err)
		}
		if errors.Is(err, ErrLength) && !strings.Contains(err.Error(), "client_secret of client vdab, version 3") {
			t.Error(err)
		}
	}
	if live, _ := x.Len(); live != 0 {
		t.Error(live)
	}
	if err := x.Add(Needle{"c", "f", "1", secret.FromString(strings.Repeat("\x01", maxValue)), false}); err != nil {
		t.Error(err)
	}
	f := x.Filter()
	if err := f.check(); err != nil {
		t.Error(err)
	}
}

// An index, and what it hands out, holds no piece of a value, live or retired.
func TestIndexHoldsNoValue(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	raw := make([]byte, 30)
	for i := range raw {
		raw[i] = byte(r.Uint32())
	}
	v := base64.RawURLEncoding.EncodeToString(raw)
	x := index(t, v, pem)
	x.Retire("vdab", "field", "0")
	filter, err := json.Marshal(x.Filter())
	if err != nil {
		t.Fatal(err)
	}
	f := x.Filter()
	var all bytes.Buffer
	all.Write(filter)
	for _, c := range f.Classes {
		all.Write(c.Quick)
		all.Write(c.Table)
	}
	dump(reflect.ValueOf(x), &all, map[uintptr]bool{})
	if all.Len() < 5000 || !bytes.Contains(all.Bytes(), []byte("vdab")) {
		t.Fatalf("the dump of %d bytes is no dump", all.Len())
	}
	for _, e := range []string{v, hex.EncodeToString([]byte(v)), base64.StdEncoding.EncodeToString([]byte(v)), pem} {
		for i := range len(e) - 5 {
			if strings.Contains(pem[:30], e[i:i+6]) {
				continue
			}
			if bytes.Contains(all.Bytes(), []byte(e[i:i+6])) {
				t.Fatalf("%q is in the index or in its filter", e[i:i+6])
			}
		}
	}
}

// dump writes all memory that v leads to.
func dump(v reflect.Value, out *bytes.Buffer, seen map[uintptr]bool) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() || v.Kind() == reflect.Pointer && seen[v.Pointer()] {
			return
		}
		if v.Kind() == reflect.Pointer {
			seen[v.Pointer()] = true
		}
		dump(v.Elem(), out, seen)
	case reflect.Struct:
		for i := range v.NumField() {
			dump(v.Field(i), out, seen)
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			dump(it.Key(), out, seen)
			dump(it.Value(), out, seen)
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 { // up to its capacity
			out.Write(unsafe.Slice((*byte)(v.UnsafePointer()), v.Cap()))
			return
		}
		fallthrough
	case reflect.Array:
		for i := range v.Len() {
			dump(v.Index(i), out, seen)
		}
	case reflect.String:
		out.WriteString(v.String())
	case reflect.Uint8, reflect.Uint32, reflect.Uint64:
		for n := v.Uint(); ; n >>= 8 {
			out.WriteByte(byte(n))
			if n < 256 {
				return
			}
		}
	default: // no bytes
	}
}

func TestForms(t *testing.T) {
	for _, f := range forms([]byte(odd)) {
		if len(f.text) == 0 || f.core+f.coreLen > len(f.text) || f.width < minWidth || f.width > f.coreLen {
			t.Errorf("%s: core %d+%d, width %d of %d", f.name, f.core, f.coreLen, f.width, len(f.text))
		}
	}
	// A window depends on 15 bytes of the value at least.
	for _, f := range forms([]byte(client)) {
		if want := map[string]int{Clear: 16, Base64: 20, Base64URL: 20, Hex: 32}[f.name]; f.width != want {
			t.Errorf("%s: width %d", f.name, f.width)
		}
	}
	jwk := `{"d":"` + token(1)[60:100] + `","kty":"RSA","alg":"RS256","use":"sig","key_ops":["sign"]}`
	if at, size, _ := core([]byte(jwk)); size != coreSize || !strings.Contains(token(1), jwk[at:at+size]) {
		t.Errorf("the core is %q", jwk[at:at+size])
	}
	x := NewIndex(IndexConfig{})
	h := x.hasher(16)
	h.strong([]byte(client))
	if h.buf != [maxWidth]byte{} {
		t.Error("the hasher keeps what it hashed")
	}
}

// Two scans see other hashes of the same values.
func TestEachScanHasItsKey(t *testing.T) {
	x := index(t, token(6))
	a, b := x.Filter(), x.Filter()
	for i := range a.Classes {
		if bytes.Equal(a.Classes[i].Table, b.Classes[i].Table) || bytes.Equal(a.Classes[i].Quick, b.Classes[i].Quick) {
			t.Errorf("class %d is the same", i)
		}
		for e := range slices.Chunk(a.Classes[i].Table, a.Classes[i].Entry) {
			if bytes.Contains(b.Classes[i].Table, e) {
				t.Error("both have an entry")
			}
		}
	}
	x.Confirm(Candidate{Text: []byte(client)})
}

// What the daemon would believe from a scanner.
func TestConfirmIsExact(t *testing.T) {
	x := index(t, client)
	for name, c := range map[string]struct {
		at   int
		text string
		want int
	}{
		"whole":      {0, client, 1},
		"window 5":   {5, client, 1},
		"cut":        {0, client[:31], 0},
		"cut before": {4, client[1:], 0},
		"altered":    {0, client[:31] + "x", 0},
		"off":        {20, client, 0},
		"beyond":     {99, client, 0},
		"at end":     {32, client, 0},
		"negative":   {-1, client, 0},
		"empty":      {0, "", 0},
		"huge":       {0, client + strings.Repeat(" ", 3*maxForm), 0},
	} {
		text := slices.Clip([]byte(c.text))
		if got := x.Confirm(Candidate{At: c.at, Text: text}); len(got) != c.want {
			t.Errorf("%s: %+v", name, got)
		}
		if bytes.ContainsFunc(text, func(r rune) bool { return r != 0 }) {
			t.Errorf("%s: the text is not wiped", name)
		}
	}
}

func TestFilterIsChecked(t *testing.T) {
	for name, spoil := range map[string]func(*Filter){
		"key":    func(f *Filter) { f.Key = nil },
		"hash":   func(f *Filter) { f.Hash = f.Hash[:16] },
		"before": func(f *Filter) { f.Before = -1 },
		"after":  func(f *Filter) { f.After = maxForm + 1 },
		"width":  func(f *Filter) { f.Classes[0].Width = 7 },
		"wide":   func(f *Filter) { f.Classes[0].Width = 33 },
		"stride": func(f *Filter) { f.Classes[0].Stride = 3 },
		"none":   func(f *Filter) { f.Classes[0].Stride = 0 },
		"entry":  func(f *Filter) { f.Classes[0].Entry = 0 },
		"table":  func(f *Filter) { f.Classes[0].Table = append(f.Classes[0].Table, 0) },
		"quick":  func(f *Filter) { f.Classes[0].Quick = f.Classes[0].Quick[8:] },
		"empty":  func(f *Filter) { f.Classes[0].Quick = nil },
	} {
		cfg := config(t, index(t, client))
		spoil(&cfg.Filter)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: passes", name)
		}
	}
	// Nothing to look for is no error.
	if r := run(t, config(t, NewIndex(IndexConfig{}), write(t, t.TempDir(), "f", noise(100)))); r.Files != 1 {
		t.Errorf("%+v", r)
	}
}

func FuzzConfirm(f *testing.F) {
	f.Add(0, []byte(client))
	f.Add(3, []byte("xyz"+apiKey))
	x := index(f, client, apiKey, pem)
	f.Fuzz(func(t *testing.T, at int, text []byte) {
		before := bytes.Clone(text)
		for _, m := range x.Confirm(Candidate{at, text}) {
			if m.Start < 0 || m.End > len(before) || m.Start > at || m.End <= at {
				t.Fatalf("%+v", m)
			}
			if got := before[m.Start:m.End]; m.Form == Clear && m.Version == "0" && string(got) != client {
				t.Fatalf("%q", got)
			}
		}
	})
}

func FuzzForms(f *testing.F) {
	f.Add([]byte(odd))
	f.Add([]byte(pem))
	f.Fuzz(func(t *testing.T, v []byte) {
		if v = bytes.TrimSpace(v); len(v) < minValue || len(v) > 4000 {
			return
		}
		x := index(t, string(v))
		s, err := New(config(t, x))
		if err != nil {
			t.Fatal(err)
		}
		for _, form := range forms(v) {
			m, err := s.worker().look(t.Context(), form.text, 0, len(form.text))
			if err != nil || len(m) == 0 {
				t.Fatalf("%s of %q is not found (%v)", form.name, v, err)
			}
		}
	})
}

// Len is the number of live and of retired values.
func (x *Index) Len() (live, retired int) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.expire()
	for _, v := range x.values {
		if v.retired.IsZero() {
			live++
		} else {
			retired++
		}
	}
	return live, retired
}

// Whole values are found in a text, in any form, live and retired; their parts
// are not.
func TestIndexHolds(t *testing.T) {
	x := NewIndex(IndexConfig{})
	for version, value := range map[string]string{"1": "a-long-secret-of-the-first-version-0123456789", "2": "short-99"} {
		if err := x.Add(Needle{Client: "vdab", Field: "client_secret", Version: version, Value: secret.FromString(value)}); err != nil {
			t.Fatal(err)
		}
	}
	x.Retire("vdab", "client_secret", "1")
	for text, want := range map[string]bool{
		"": false, "short": false, "short-98": false, "short-99": true, "xshort-99x": true, "a-long-secret-of-the-first-version-012345678": false,
		"see a-long-secret-of-the-first-version-0123456789.":                                          true,
		base64.StdEncoding.EncodeToString([]byte("id:a-long-secret-of-the-first-version-0123456789")): true,
		hex.EncodeToString([]byte("a-long-secret-of-the-first-version-0123456789")):                   true,
	} {
		if got := x.Holds([]byte(text)); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}
