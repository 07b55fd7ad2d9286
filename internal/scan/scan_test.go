package scan

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"credentialbroker/internal/secret"
)

// Values of the shapes that issuers give.
const (
	short  = "k3y!Zq9w"                         // 8
	apiKey = "kCVy8fpVSU50zFzi8TIC"             // 20
	client = "9f8a7b6c5d4e3f2a1b0c9d8e7f6a5b4c" // 32, hex
	odd    = `p"ss\w/rd <&> + ü=%'` + "\twith tabs"
)

func token(seed uint64) string {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 600)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	e := base64.RawURLEncoding.EncodeToString(b)
	return "eyJhbGciOiJSUzI1NiIsInR5cCI6ImF0K2p3dCJ9." + e[:400] + "." + e[400:742]
}

func index(t testing.TB, values ...string) *Index {
	t.Helper()
	x := NewIndex(IndexConfig{})
	for i, v := range values {
		if err := x.Add(Needle{"vdab", "field", fmt.Sprint(i), secret.FromString(v), false}); err != nil {
			t.Fatal(err)
		}
	}
	return x
}

// confirm is what the daemon's route will do; the filter has gone through JSON.
func config(t testing.TB, x *Index, paths ...string) Config {
	t.Helper()
	b, err := json.Marshal(x.Filter())
	if err != nil {
		t.Fatal(err)
	}
	var f Filter
	if err := json.Unmarshal(b, &f); err != nil {
		t.Fatal(err)
	}
	return Config{Filter: f, Paths: paths, Confirm: func(_ context.Context, list []Candidate) (out [][]Match, err error) {
		for _, c := range list {
			text := c.Text
			out = append(out, x.Confirm(c))
			if bytes.Count(text, []byte{0}) != len(text) {
				t.Error("the candidate's text was not wiped")
			}
		}
		return out, nil
	}}
}

func run(t testing.TB, cfg Config) Report {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func write(t testing.TB, dir, name string, data []byte) string {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func noise(n int) []byte {
	r := rand.New(rand.NewPCG(7, 7))
	b := make([]byte, n)
	for i := range b {
		if b[i] = byte(' ' + r.IntN(90)); r.IntN(60) == 0 {
			b[i] = '\n'
		}
	}
	return b
}

func compact(v any) string {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	_ = e.Encode(v)
	return strings.Trim(strings.TrimSpace(b.String()), `"`)
}

// encodings say each form in another way than forms does.
func encodings(v string) map[string][]string {
	html, _ := json.Marshal(v)
	m := map[string][]string{
		Clear:   {v},
		Hex:     {hex.EncodeToString([]byte(v)), strings.ToUpper(hex.EncodeToString([]byte(v)))},
		Percent: {strings.ReplaceAll(url.QueryEscape(v), "+", "%20")},
		FormURL: {url.QueryEscape(v)},
		JSON:    {compact(v), strings.Trim(string(html), `"`), strings.ReplaceAll(compact(v), "/", `\/`)},
	}
	for _, before := range []string{"", "u", "us", "user:", "user"} {
		for _, after := range []string{"", "x", "xy"} {
			whole := []byte(before + v + after)
			m[Base64] = append(m[Base64], base64.StdEncoding.EncodeToString(whole))
			m[Base64URL] = append(m[Base64URL], base64.RawURLEncoding.EncodeToString(whole))
		}
	}
	return m
}

func TestEveryFormIsFoundAtEveryPlace(t *testing.T) {
	for name, v := range map[string]string{
		"short": short, "9": short + "A", "11": "q8/+=h~*_.-", "15": "abcDEF012345678", "16": "q7Gk2Lm9Xp4Rt6Vz", "18": "q7Gk2Lm9Xp4Rt6VzAb", "22": apiKey + "xY",
		"api key": apiKey, "client secret": client, "odd": odd, "token": token(1), "padded": "  " + client + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			x := index(t, v)
			s, err := New(config(t, x))
			if err != nil {
				t.Fatal(err)
			}
			w := s.worker()
			for form, list := range encodings(strings.TrimSpace(v)) {
				for _, e := range list {
					for shift := range 17 {
						text := strings.Repeat("\x01", shift) + e
						m, err := w.look(t.Context(), []byte(text), 0, len(text))
						if err != nil {
							t.Fatal(err)
						}
						if len(m) != 1 {
							t.Fatalf("%s %q at %d: %d matches", form, e, shift, len(m))
						}
						if got := m[0].Form; got != form && e != strings.TrimSpace(v) && len(m) == 1 && !slices.Contains(sameForms(list, v, got), e) {
							t.Errorf("%s %q is said to be %s", form, e, got)
						}
					}
				}
			}
		})
	}
}

// sameForms are encodings that another form shares.
func sameForms(list []string, v, got string) []string {
	var same []string
	for _, e := range encodings(strings.TrimSpace(v))[got] {
		for _, o := range list {
			if e == o || got == Base64 || got == Base64URL {
				same = append(same, o)
			}
		}
	}
	return same
}

const pem = `-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF
qTmiCqirVv9mWG9qfSnFMC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQi
IJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF
-----END PRIVATE KEY-----
`

func TestKeys(t *testing.T) {
	x := index(t, pem)
	lines := strings.Split(pem, "\n")
	for form, text := range map[string]string{
		Clear:   "x\n" + pem,
		JSON:    `{"private_key":` + strings.ReplaceAll(fmt.Sprintf("%q", pem), "\\x", "\\u00") + `}`,
		PEMBody: "key: " + strings.Join(lines[1:4], ""),
		PEMLine: "key: |\r\n    " + strings.Join(lines, "\r\n    "),
		Base64:  base64.StdEncoding.EncodeToString([]byte(pem)),
	} {
		r := run(t, config(t, x, write(t, t.TempDir(), "f", []byte(text))))
		if len(r.Findings) != 1 || r.Findings[0].Form != form {
			t.Errorf("%s: %+v", form, r.Findings)
		}
	}
	// What all keys share is no find.
	other := strings.Join([]string{lines[0], lines[1], lines[3], lines[4]}, "\n")
	if r := run(t, config(t, x, write(t, t.TempDir(), "f", []byte(other)))); r.Found != 0 {
		t.Errorf("%+v", r.Findings)
	}
}

// At the beginning, around every border of a chunk, and at the end of a file.
func TestBordersAndLines(t *testing.T) {
	tok := token(2)
	x := index(t, apiKey, tok)
	for _, v := range []string{apiKey, tok, hex.EncodeToString([]byte(tok))} {
		text := noise(3 * chunk)
		var want []int
		for _, at := range []int{0, chunk - 2*len(v), chunk - 3, chunk + 2*len(v), 2*chunk - len(v)/2, 2*chunk + len(v), len(text) - len(v)} {
			copy(text[at:], v)
			want = append(want, at)
		}
		for _, extra := range []int{0, 5} { // shifts the borders of the buffer
			cfg := config(t, x, write(t, t.TempDir(), "f", text))
			cfg.Filter.Before += extra
			r := run(t, cfg)
			var got []int
			for _, f := range r.Findings {
				got = append(got, int(f.Offset))
				if line := bytes.Count(text[:f.Offset], []byte("\n")) + 1; f.Line != line {
					t.Errorf("line %d, want %d", f.Line, line)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%d bytes: at %v, want %v", len(v), got, want)
			}
		}
	}
}

// Any text before it: the places that are looked at must not drift.
func TestEveryOffsetAcrossChunks(t *testing.T) {
	x := index(t, client)
	s, err := New(config(t, x))
	if err != nil {
		t.Fatal(err)
	}
	w := s.worker()
	text := noise(2*chunk + 4000)
	for shift := range 100 {
		at := chunk - 50 + shift
		saved := bytes.Clone(text[at : at+len(client)])
		copy(text[at:], client)
		before := s.found.Load()
		if err := w.stream(t.Context(), spot{}, bytes.NewReader(text)); err != nil {
			t.Fatal(err)
		}
		if s.found.Load() != before+1 {
			t.Fatalf("not found at %d", at)
		}
		copy(text[at:], saved)
	}
}

func TestNoFalseAlarm(t *testing.T) {
	x := NewIndex(IndexConfig{})
	for i := range 200 {
		if err := x.Add(Needle{"c", "token", fmt.Sprint(i), secret.FromString(token(uint64(i))), false}); err != nil {
			t.Fatal(err)
		}
	}
	cfg := config(t, x)
	asked := 0
	confirm := cfg.Confirm
	cfg.Confirm = func(ctx context.Context, list []Candidate) ([][]Match, error) {
		asked += len(list)
		return confirm(ctx, list)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var seed [32]byte
	random := io.LimitReader(rand.NewChaCha8(seed), 100<<20/lighter)
	if err := s.worker().stream(t.Context(), spot{}, random); err != nil {
		t.Fatal(err)
	}
	// What all these tokens share, one of them cut off, and one altered.
	tok := token(3)
	for _, text := range []string{tok[:100], tok[:len(tok)-1], tok[:60] + "x" + tok[61:], strings.ToUpper(tok)} {
		if err := s.worker().stream(t.Context(), spot{}, strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
	}
	if s.found.Load() != 0 || asked > 10 {
		t.Errorf("%d found, %d asked", s.found.Load(), asked)
	}
}

func TestRepeatsAreAskedOnce(t *testing.T) {
	x := index(t, client, apiKey)
	cfg := config(t, x, write(t, t.TempDir(), "f", []byte(strings.Repeat("Bearer "+client+" and "+apiKey+"\n", 20000))))
	asked := 0
	confirm := cfg.Confirm
	cfg.Confirm = func(ctx context.Context, list []Candidate) ([][]Match, error) {
		asked += len(list)
		return confirm(ctx, list)
	}
	r := run(t, cfg)
	if r.Found != 40000 || len(r.Findings) != 10000 || asked > 4*batch {
		t.Errorf("%d found, %d listed, %d asked", r.Found, len(r.Findings), asked)
	}
	for i, f := range r.Findings {
		if f.Line != i/2+1 {
			t.Fatalf("%d: %+v", i, f)
		}
	}
}

// What resembles a value that was found before is still compared wholly.
func TestRepeatsAreCompared(t *testing.T) {
	tok := token(1)
	r := run(t, config(t, index(t, tok), write(t, t.TempDir(), "f", []byte(strings.Repeat(tok+"\n", 100)+"X"+tok[1:]+"\n"+tok))))
	if r.Found != 101 {
		t.Errorf("%d found", r.Found)
	}
}

// Nothing that a scanner hands out has a piece of a value in it.
func TestNothingShowsTheValue(t *testing.T) {
	tok := token(4)
	dir := t.TempDir()
	write(t, dir, "in "+client+" dir/plain", []byte(tok))
	write(t, dir, "file-"+hex.EncodeToString([]byte(apiKey)), []byte("nothing"))
	write(t, dir, "zip/"+client+".zip", zipOf(t, file{"a/" + client, []byte(apiKey)}, file{"b", []byte("b")})[:200])
	noRead := write(t, dir, "in "+client+" dir/broken.gz", []byte("\x1f\x8b\x08\x00garbage that is none"))
	s, err := New(config(t, index(t, tok, client, apiKey), dir))
	if err != nil {
		t.Fatal(err)
	}
	r, err := s.Run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	cfg := config(t, index(t, tok, client), noRead+"/not there")
	bad, _ := New(cfg)
	_, failed := bad.Run(t.Context())
	if failed == nil {
		t.Fatal("a path that is not there passes")
	}
	b, err := json.Marshal([]any{r, s.Progress(), failed.Error()})
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{tok, client, apiKey} {
		for i := range len(v) - 5 {
			for _, e := range []string{v[i : i+6], hex.EncodeToString([]byte(v[i : i+6]))} {
				if bytes.Contains(b, []byte(e)) {
					t.Fatalf("%s shows in %s", e, b)
				}
			}
		}
	}
	var names []string
	for _, f := range r.Findings {
		if rel, err := filepath.Rel(dir, f.Path); f.InName && err == nil {
			names = append(names, rel)
		}
	}
	slices.Sort(names)
	want := []string{"file-" + mask, "in " + mask + " dir", "zip/" + mask + ".zip"}
	if !slices.Equal(slices.Compact(names), want) {
		t.Errorf("names %q, want %q", names, want)
	}
	if r.NotRead != 2 {
		t.Errorf("%+v", r.Unread)
	}
}

func TestConfirmFails(t *testing.T) {
	cfg := config(t, index(t, client), write(t, t.TempDir(), "f", []byte(client)))
	broken := errors.New("the daemon is gone")
	for name, confirm := range map[string]func(context.Context, []Candidate) ([][]Match, error){
		"error":  func(context.Context, []Candidate) ([][]Match, error) { return nil, broken },
		"short":  func(context.Context, []Candidate) ([][]Match, error) { return nil, nil },
		"beyond": func(context.Context, []Candidate) ([][]Match, error) { return [][]Match{{{Start: 0, End: 99}}}, nil },
		"after":  func(context.Context, []Candidate) ([][]Match, error) { return [][]Match{{{Start: 5, End: 9}}}, nil },
		"before": func(context.Context, []Candidate) ([][]Match, error) { return [][]Match{{{Start: -1, End: 9}}}, nil },
	} {
		cfg.Confirm = confirm
		s, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Run(t.Context()); err == nil || name == "error" && !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
	}
	cfg.Confirm = nil
	if _, err := New(cfg); err == nil {
		t.Error("nothing to confirm with passes")
	}
}

func TestStops(t *testing.T) {
	cfg := config(t, index(t, client), t.TempDir())
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// Memory does not grow with the file.
func TestSparseFile(t *testing.T) {
	dir := t.TempDir()
	p := write(t, dir, "f", nil)
	const size = 2 << 30 / lighter
	f, err := os.OpenFile(p, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(client), size-int64(len(client))); err != nil {
		t.Fatal(err)
	}
	f.Close()
	cfg := config(t, index(t, client), dir)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := run(t, cfg)
	runtime.ReadMemStats(&after)
	if len(r.Findings) != 1 || r.Findings[0].Offset != size-int64(len(client)) || r.Bytes != size {
		t.Errorf("%+v", r)
	}
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 8<<20 {
		t.Errorf("%d MiB were allocated", grown>>20)
	}
}

func TestFiles(t *testing.T) {
	dir, outside := t.TempDir(), t.TempDir()
	write(t, outside, "secret", []byte(client))
	a := write(t, dir, "sub/a", []byte(client))
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"loop": ".", "sub/up": "..", "out": outside, "out-file": filepath.Join(outside, "secret"), "a-link": "sub/a"} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(a, filepath.Join(dir, "hard")); err != nil {
		t.Fatal(err)
	}
	check := func(want int, paths ...string) {
		t.Helper()
		cfg := config(t, index(t, client), paths...)
		s, err := New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		r, err := s.Run(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		p := s.Progress()
		if r.Found != want || r.NotRead != 0 || !p.Counted || p.TotalFiles != p.Files || p.TotalBytes != p.Bytes || int(p.Found) != want {
			t.Errorf("%+v\n%+v", r, p)
		}
	}
	check(1, dir)
	check(1, dir, filepath.Join(dir, "sub"), a, dir)
	check(1, filepath.Join(dir, "out")) // a link that is named is meant
	check(2, dir, outside)
	check(1, a)
	other := t.TempDir()
	check(1, other, write(t, other, "f", []byte(client)))
	check(0, "/proc/self", "/sys/kernel")
}

func TestUnreadableFile(t *testing.T) {
	dir := t.TempDir()
	p := write(t, dir, "f", []byte(client))
	r, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s, err := New(config(t, index(t, client)))
	if err != nil {
		t.Fatal(err)
	}
	// It was there when the directory was read; root may read everything else.
	if err := os.Remove(p); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(write(t, t.TempDir(), "g", []byte(client)), p); err != nil {
		t.Fatal(err)
	}
	if err := s.worker().file(t.Context(), r, "f", "shown"); err != nil {
		t.Fatal(err)
	}
	if u := s.result().Unread; len(u) != 1 || u[0].Path != "shown" || u[0].Reason == "" || s.found.Load() != 0 {
		t.Errorf("%+v", u)
	}
}

// Whoever knows a value can write pieces of it, each of which passes the filter:
// that costs a bounded number of questions, is said, and hides no other value.
func TestPiecesOfAValue(t *testing.T) {
	dir, known := t.TempDir(), token(1)
	x := index(t, client, known)
	form := x.values[id{"vdab", "field", "1"}].forms[0]
	piece := known[form.core : form.core+form.width+form.stride]
	var text bytes.Buffer
	for n := range 3000 {
		fmt.Fprintf(&text, "%d %s\n", n, piece)
	}
	text.WriteString(client + "\n")
	const files = 40
	for n := range files {
		write(t, dir, fmt.Sprintf("d/%d.log", n), text.Bytes())
	}
	write(t, dir, "whole", []byte(known))
	for _, path := range []string{"d/1.log", "d"} {
		cfg := config(t, x, filepath.Join(dir, path))
		if path != "d" {
			cfg.Paths = append(cfg.Paths, filepath.Join(dir, "whole"))
		}
		var asked atomic.Int64
		confirm := cfg.Confirm
		cfg.Confirm = func(ctx context.Context, list []Candidate) ([][]Match, error) {
			asked.Add(int64(len(list)))
			return confirm(ctx, list)
		}
		r := run(t, cfg)
		one, entries := path != "d", int64(2*maxStride) // of the token's windows in clear and JSON
		most, read := entries*(maxMisses+batch), 1
		if !one {
			most, read = entries*(maxAllMisses+batch*int64(runtime.GOMAXPROCS(0))), files
		}
		if n := asked.Load(); n > most {
			t.Errorf("%s: %d questions, want at most %d", path, n, most)
		}
		found := 0
		for _, f := range r.Findings {
			if f.Version == "0" {
				found++
			}
		}
		if found != read || r.NotRead != read || !strings.Contains(r.Unread[0].Reason, "look at it") {
			t.Errorf("%s: %d found, %d not read: %v", path, found, r.NotRead, r.Unread)
		}
		if one && r.Found != read+1 {
			t.Errorf("what is whole elsewhere is hidden: %+v", r.Findings)
		}
	}
}
