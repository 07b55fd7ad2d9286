package redact

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"strings"
	"syscall"
	"testing"
)

// copying runs a Filter between two pipes.
type copying struct {
	t     *testing.T
	in    *os.File // written to
	out   *os.File // read from
	ended chan struct{}
	err   chan error
}

func start(t *testing.T, patterns ...string) *copying {
	t.Helper()
	f := &Filter{}
	var list [][]byte
	for _, p := range patterns {
		list = append(list, []byte(p))
	}
	if err := f.Set(list); err != nil {
		t.Fatal(err)
	}
	return f.start(t)
}

func (f *Filter) start(t *testing.T) *copying {
	t.Helper()
	src, in, err := os.Pipe()
	out, dst, err2 := os.Pipe()
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	c := &copying{t, in, out, make(chan struct{}), make(chan error, 1)}
	go func() {
		err := f.Copy(dst, src, c.ended)
		_ = src.Close()
		_ = dst.Close()
		c.err <- err
	}()
	t.Cleanup(func() { _ = in.Close(); _ = out.Close() })
	return c
}

func (c *copying) say(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.in, s); err != nil {
		c.t.Fatal(err)
	}
}

// hear waits for so many bytes.
func (c *copying) hear(want string) {
	c.t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c.out, got); err != nil || string(got) != want {
		c.t.Fatalf("%q, %v, want %q", got[:n], err, want)
	}
}

// rest ends the input.
func (c *copying) rest() string {
	c.t.Helper()
	_ = c.in.Close()
	got, err := io.ReadAll(c.out)
	if err := errors.Join(err, <-c.err); err != nil {
		c.t.Fatal(err)
	}
	return string(got)
}

const key = "k3y-0f-thirty-two-bytes-in-total"

var long = "eyJhbGciOiJSUzI1NiJ9." + strings.Repeat("0123456789abcdefghijklmnopqrstuvwxyz", 30)

func TestCopy(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"nothing":        {"", ""},
		"no value":       {"hello\n", "hello\n"},
		"alone":          {key, Mark},
		"inside":         {"a " + key + " b", "a " + Mark + " b"},
		"twice":          {key + "," + key, Mark + "," + Mark},
		"in a row":       {key + key + "\n", Mark + "\n"},
		"both":           {long + " " + key, Mark + " " + Mark},
		"a beginning":    {"k3y-0f", "k3y-0f"},
		"most of one":    {"x " + long[:900], "x " + Mark},
		"interrupted":    {long[:900] + "\n", long[:900] + "\n"},
		"begins anew":    {"k3y-0" + key, "k3y-0" + Mark},
		"with the end":   {"k3y-0f-thirty-two-bytes-in-tota!", "k3y-0f-thirty-two-bytes-in-tota!"},
		"every place":    {strings.Repeat("."+key, 9), strings.Repeat("."+Mark, 9)},
		"the longest":    {"x" + key + "-and-more", "x" + Mark},
		"not the longer": {"x" + key + "-and-less", "x" + Mark + "-and-less"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, chunk := range []int{len(c.in) + 1, 1, 3, 16} {
				s := start(t, key, long, key+"-and-more")
				go func() {
					for in := c.in; in != ""; {
						n := min(chunk, len(in))
						if _, err := io.WriteString(s.in, in[:n]); err != nil {
							return
						}
						in = in[n:]
					}
					_ = s.in.Close()
				}()
				got, err := io.ReadAll(s.out)
				if err := errors.Join(err, <-s.err); err != nil {
					t.Fatal(err)
				}
				if string(got) != c.want && !slow(string(got), c.want) {
					t.Errorf("by %d: %q, want %q", chunk, got, c.want)
				}
			}
		})
	}
}

// slow says whether got is want as a slow writer gets it: the first bytes of a
// value may be shown before the Mark.
func slow(got, want string) bool {
	for _, v := range []string{key, long} {
		for n := firm([]byte(v)) - 1; n > 0; n-- {
			got = strings.ReplaceAll(got, v[:n]+Mark, Mark)
		}
	}
	return got == want
}

// A random stream in random pieces, against bytes.ReplaceAll.
func TestCopyRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 1)) // #nosec G404 -- a test's data
	for range 60 {
		values := []string{key + "-and-more", key, long, long[300:316], "8bytes!!"}[:1+r.IntN(5)] // the longer first, for ReplaceAll
		var in []byte
		for range 200 {
			v := values[r.IntN(len(values))]
			switch r.IntN(4) {
			case 0:
				in = append(in, v...)
			case 1:
				in = append(in, v[:r.IntN(len(v))]...)
			default:
				in = append(in, make([]byte, r.IntN(40))...)
			}
			in = append(in, '|')
		}
		want := in
		for _, v := range values {
			want = bytes.ReplaceAll(want, []byte(v), []byte(Mark))
		}
		f := &Filter{}
		var list [][]byte
		for _, v := range values {
			list = append(list, []byte(v))
		}
		if err := f.Set(list); err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		s, held := stream{dst: &got}, []byte(nil)
		for rest := in; ; {
			n := min(r.IntN(300), len(rest))
			held = append(held, rest[:n]...)
			rest = rest[n:]
			from, err := s.pass(f.table.Load(), held, false, len(rest) == 0)
			if err != nil {
				t.Fatal(err)
			}
			if held = held[from:]; len(rest) == 0 {
				break
			}
		}
		if !bytes.Equal(got.Bytes(), want) {
			t.Fatalf("%d values: %q\nwant %q", len(values), got.Bytes(), want)
		}
	}
}

// What may be the beginning of a value is shown after a moment, and the rest of
// it is masked all the same; what must be one waits.
func TestHold(t *testing.T) {
	c := start(t, key, long)
	c.say("password: k3y")
	c.hear("password: k3y")
	c.say(key[3:] + " e")
	c.hear(Mark + " e")
	c.say("nd\n")
	c.hear("nd\n")
	c.say("(" + long[:600])
	c.hear("(")
	c.say(long[600:] + ")")
	c.hear(Mark + ")")
	c.say(long[:15])
	c.hear(long[:15])
	c.say(long[15:30])
	if got := c.rest(); got != Mark {
		t.Errorf("%q", got)
	}
}

// New values count at once.
func TestSet(t *testing.T) {
	f := &Filter{}
	c := f.start(t)
	c.say(key)
	c.hear(key)
	if err := f.Set([][]byte{[]byte(key)}); err != nil {
		t.Fatal(err)
	}
	c.say(key)
	c.hear(Mark)
	if err := f.Set([][]byte{[]byte("7 bytes")}); err == nil {
		t.Error("too short a value is taken")
	}
	if err := f.Set([][]byte{make([]byte, maxValue+1)}); err == nil {
		t.Error("too long a value is taken")
	}
	c.say(key + ".")
	c.hear("." /* in a row */)
}

// Somebody else keeps the pipe open.
func TestEnded(t *testing.T) {
	c := start(t, key)
	c.say("last words: " + key[:20])
	c.hear("last words: ")
	close(c.ended)
	got, err := io.ReadAll(c.out)
	if err := errors.Join(err, <-c.err); err != nil || string(got) != Mark {
		t.Errorf("%q, %v", got, err)
	}
}

// A reader that has gone ends the copy.
func TestGone(t *testing.T) {
	c := start(t, key)
	_ = c.out.Close()
	c.say("x")
	if err := <-c.err; !errors.Is(err, syscall.EPIPE) {
		t.Error(err)
	}
}

// Two tokens of 1200 bytes and a key of 32, each in 80 encodings, in text that
// has none of them.
func BenchmarkPass(b *testing.B) {
	r := rand.New(rand.NewPCG(6, 2)) // #nosec G404 -- a benchmark's data
	random := func(n int) []byte {
		p := make([]byte, n)
		for i := range p {
			p[i] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[r.IntN(64)]
		}
		return p
	}
	var list [][]byte
	for range 80 {
		list = append(list, random(1200), random(1200), random(32))
	}
	f := &Filter{}
	if err := f.Set(list); err != nil {
		b.Fatal(err)
	}
	text := random(64 << 10)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		s := stream{dst: io.Discard}
		if _, err := s.pass(f.table.Load(), text, false, true); err != nil {
			b.Fatal(err)
		}
	}
}

// A value that may go on as a longer one waits for it.
func TestFindLonger(t *testing.T) {
	longer := []byte(key + "-and-more")
	for _, list := range [][][]byte{{[]byte(key), longer}, {longer, []byte(key)}} {
		table, err := newTable(list)
		if err != nil {
			t.Fatal(err)
		}
		if m := table.find([]byte("x"+key), 0); m != (match{start: 1, end: 33, firm: true}) {
			t.Errorf("%+v", m)
		}
	}
}
