package redact

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"slices"
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
		"interrupted":    {long[:900] + "\n", Mark + "\n"},
		"a piece":        {"<" + long[500:516] + ">", "<" + Mark + ">"},
		"too short":      {"<" + long[500:515] + ">", "<" + long[500:515] + ">"},
		"in lines":       {long[:76] + "\n" + long[76:152] + "\r\n" + long[152:160] + "\n", Mark + "\n"},
		"early in lines": {"x" + key[:5] + "\n" + key[5:] + "\n", "x" + Mark + "\n"},
		"late in lines":  {"x" + key[:29] + "\n" + key[29:] + "\n", "x" + Mark + "\n"},
		"overlapping":    {"x" + key + "++++|", "x" + Mark + "|"},
		"other lines":    {long[:76] + "\n" + long[76:79] + "\n", Mark + "\n" + long[76:79] + "\n"},
		"begins anew":    {"k3y-0" + key, "k3y-0" + Mark},
		"with the end":   {"k3y-0f-thirty-two-bytes-in-tota!", Mark + "!"},
		"every place":    {strings.Repeat("."+key, 9), strings.Repeat("."+Mark, 9)},
		"the longest":    {"x" + key + "-and-more", "x" + Mark},
		"not the longer": {"x" + key + "-and-less", "x" + Mark + "less"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, chunk := range []int{len(c.in) + 1, 1, 3, 16} {
				s := start(t, key, long, key+"-and-more", key[20:]+"++++++++")
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
				if string(got) != c.want && !slow(string(got), c.want) && (chunk > len(c.in) || !strings.HasSuffix(name, "in lines") || shows(got, key, long)) {
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
		for n := firmAt - 1; n > 0; n-- {
			got = strings.ReplaceAll(got, v[:n]+Mark, Mark)
		}
	}
	return got == want
}

// shows says whether b has 16 bytes of a value, or all of one.
func shows(b []byte, values ...string) bool { return slices.Contains(covered(b, values), true) }

// covered are the bytes that are to be masked, found the slow way.
func covered(b []byte, values []string) []bool {
	list := make([]bool, len(b))
	for _, v := range values {
		n := min(firmAt, len(v))
		for o := range len(v) - n + 1 {
			for at := 0; ; at++ {
				i := bytes.Index(b[at:], []byte(v[o:o+n]))
				if i < 0 {
					break
				}
				at += i
				for j := range n {
					list[at+j] = true
				}
			}
		}
	}
	return list
}

// A random stream in random pieces, against the slow way.
func TestCopyRandom(t *testing.T) {
	r := rand.New(rand.NewPCG(6, 1)) // #nosec G404 -- a test's data
	for range 60 {
		values := []string{key + "-and-more", key, long[:150], "8bytes!!", "!!9 bytes"}[:1+r.IntN(5)]
		var in []byte
		for range 200 {
			v := values[r.IntN(len(values))]
			from := r.IntN(len(v))
			switch r.IntN(5) {
			case 0:
				in = append(in, v...)
			case 1:
				in = append(in, v[:from]...)
			case 2:
				in = append(in, v[from:from+r.IntN(len(v)-from)]...)
			default:
				in = append(in, make([]byte, r.IntN(40))...)
			}
			if r.IntN(3) > 0 {
				in = append(in, '|')
			}
		}
		var want []byte
		hidden := covered(in, values)
		for i, c := range in {
			switch {
			case !hidden[i]:
				want = append(want, c)
			case i == 0 || !hidden[i-1]:
				want = append(want, Mark...)
			}
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
			from, err := s.pass(f.table.Load(), held, len(rest) == 0)
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
// it is masked all the same; so is the rest of a piece that is long enough.
func TestHold(t *testing.T) {
	c := start(t, key, long)
	c.say("password: k3y")
	c.hear("password: k3y")
	c.say(key[3:] + " e")
	c.hear(Mark + " e")
	c.say("nd\n")
	c.hear("nd\n")
	c.say("(" + long[:600])
	c.hear("(" + Mark)
	c.say(long[600:] + ")")
	c.hear(")")
	c.say(key[:24] + "\r\n" + key[24:27])
	c.hear(Mark + "\r\n" + key[24:27])
	c.say(key[27:] + ".")
	c.hear(Mark + ".")
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
	c.hear("last words: " + Mark)
	close(c.ended)
	got, err := io.ReadAll(c.out)
	if err := errors.Join(err, <-c.err); err != nil || string(got) != "" {
		t.Errorf("%q, %v", got, err)
	}
}

// Somebody else goes on writing: what is in the pipe after a while is the last.
func TestEndedTalking(t *testing.T) {
	src, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	defer in.Close()
	ended := make(chan struct{})
	e := ending{ended: ended}
	if e.is(src, 0, true) {
		t.Error("it ends before the command does")
	}
	close(ended)
	if e.is(src, 3, false); e.is(src, 3, false) || !e.is(src, 0, true) {
		t.Error("it ends before a second without anything, or not then")
	}
	if _, err := in.WriteString("ten bytes…"[:10]); err != nil {
		t.Fatal(err)
	}
	e.since = e.since.Add(-lastWords)
	if e.is(src, 3, false) || len(e.room(make([]byte, 99))) != 10 || e.is(src, 4, false) || !e.is(src, 6, false) {
		t.Errorf("%d bytes are left", e.left)
	}
	if _, err := src.Read(make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	if !e.is(src, 3, false) {
		t.Error("it waits for more")
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
		if _, err := s.pass(f.table.Load(), text, true); err != nil {
			b.Fatal(err)
		}
	}
}
