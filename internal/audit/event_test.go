package audit

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// owasp maps what section 2.6 of the OWASP Secrets Management Cheat Sheet asks
// of an audit log to the events that answer it.
func owasp() map[string][]Type {
	return map[string][]Type{
		"1 who asked for a secret, for which system and role":      {TokenHandover, KeyHandover, AccessDenied},
		"2 whether the request was approved or rejected":           {TokenHandover, KeyHandover, AccessDenied, AccessQuarantined},
		"3 when the secret was used, and by whom or what":          {TokenHandover, TokenRepeats, KeyHandover, TokenMinted, TokenCarried, ProviderRead},
		"4 when the secret expired":                                {TokenExpired, TokenRevoked, LoginRequired, SecretAge},
		"5 whether an expired secret was used again":               {TokenRejected, TokenRefused, SecretFound},
		"6 errors of authentication and authorisation":             {TokenRefused, TokenRejected, ProviderFailed, AccessDenied, FileFailed},
		"7 when the secret was updated, and by whom":               {BundleInstalled, BundleRefused, BundleKept, UnitRestarted},
		"8 administrative actions, and possible acts of operators": {AdminAct, ConfigLoaded, ConfigRefused, ConfigWidened, DaemonStart, DaemonStop, IncidentRecorded, IncidentAlarm},
	}
}

// TestOWASP: every item is answered, and every type answers one or is about
// the log itself or its clock.
func TestOWASP(t *testing.T) {
	types := declaredTypes(t)
	answers := make(map[Type]bool)
	if len(owasp()) != 8 {
		t.Errorf("%d items, not eight", len(owasp()))
	}
	for item, ts := range owasp() {
		if len(ts) == 0 {
			t.Errorf("nothing answers %q", item)
		}
		for _, typ := range ts {
			answers[typ] = true
			if !types[typ] {
				t.Errorf("%q: %s is no type", item, typ)
			}
		}
		t.Logf("%s: %v", item, ts)
	}
	for typ := range types {
		if !answers[typ] && !strings.HasPrefix(string(typ), "audit.") && typ != ClockJumped {
			t.Errorf("%s answers none of the items", typ)
		}
	}
}

// declaredTypes reads the constants from the source: each is documented, and
// none stands there twice.
func declaredTypes(t *testing.T) map[Type]bool {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "event.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	types := make(map[Type]bool)
	ast.Inspect(file, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok || len(v.Values) != 1 {
			return true
		}
		if typ, ok := v.Type.(*ast.Ident); !ok || typ.Name != "Type" {
			return true
		}
		s, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
		if err != nil || types[Type(s)] || v.Comment.Text() == "" {
			t.Errorf("%s: %q twice, or undocumented: %v", v.Names[0], s, err)
		}
		types[Type(s)] = true
		return true
	})
	if len(types) < 20 {
		t.Fatalf("%d types found", len(types))
	}
	return types
}

func TestBounded(t *testing.T) {
	long := strings.Repeat("é", 5000)
	many := make(map[string]string)
	for i := range 50 {
		many["key"+strconv.Itoa(i)] = "v"
	}
	many["a\nb"] = "c\x00d"
	many[strings.Repeat("k", 500)] = long
	e := Event{
		Type: Type(long), Client: "a\nb\x1b[2Jc\xffd\u202ee\u2028f", Version: long, Fingerprint: long, JTI: long, Scope: long, Audience: long, Code: long,
		Caller: &Caller{Unit: long, UserUnit: "x\ry"}, Actor: &Caller{Unit: "\x7f"}, Detail: many,
		Expires: time.Date(99999, 1, 1, 0, 0, 0, 0, time.UTC), First: time.Date(-5, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	b := e.bounded()
	if b.Client != "a\ufffdb\ufffd[2Jc\ufffdd\ufffde\ufffdf" {
		t.Errorf("client %q", b.Client)
	}
	for _, s := range []string{b.Version, b.Fingerprint, b.JTI, b.Code, b.Caller.Unit} {
		if len(s) > maxText || len(s) < maxText-3 || !strings.HasSuffix(s, "é…") {
			t.Errorf("%d bytes: %q", len(s), s)
		}
	}
	for _, s := range []string{b.Scope, b.Audience} {
		if len(s) > maxScope || len(s) < maxScope-3 {
			t.Errorf("%d bytes", len(s))
		}
	}
	if b.Caller.UserUnit != "x\ufffdy" || b.Actor.Unit != "\ufffd" || e.Caller.UserUnit != "x\ry" {
		t.Errorf("callers %+v, %+v; the caller's own %+v", b.Caller, b.Actor, e.Caller)
	}
	if len(b.Detail) != maxDetail || b.Detail["a\ufffdb"] != "c\ufffdd" || len(many) != 52 {
		t.Errorf("%d details: %q", len(b.Detail), b.Detail)
	}
	if b.Expires.Year() != 9999 || !b.First.IsZero() {
		t.Errorf("times %v, %v", b.Expires, b.First)
	}
	plain := Event{Type: TokenHandover, Client: "vdab", Caller: &Caller{Unit: "a.service"}, Detail: map[string]string{"surface": "token"}}
	if n := testing.AllocsPerRun(100, func() { plain = plain.bounded() }); n != 0 {
		t.Errorf("%v allocations for an event that fits", n)
	}
}

// TestLargestEventFits: no event makes a line that readers would not take.
func TestLargestEventFits(t *testing.T) {
	bad := strings.Repeat(`"\`, 5000)
	detail := make(map[string]string)
	for i := range maxDetail {
		detail[strconv.Itoa(i)+bad] = bad
	}
	c := &Caller{Unit: bad, UserUnit: bad}
	dir := logDir(t)
	l, stop := start(t, quiet, Options{Dir: dir}, nil)
	record(t, l, Event{Type: Type(bad), Client: bad, Version: bad, Fingerprint: bad, JTI: bad, Scope: bad, Audience: bad, Code: bad, Caller: c, Actor: c, Detail: detail})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if r := verified(t, dir, nil); r.Entries != 2 {
		t.Errorf("%+v", r)
	}
}

// FuzzText: whatever a caller, a secrets manager or an issuer puts into an
// event becomes one line, valid and bounded.
func FuzzText(f *testing.F) {
	f.Add("vdab", 10)
	f.Add("a\nb\xff\u202e", 256)
	f.Add(strings.Repeat("日", 100), 64)
	f.Fuzz(func(t *testing.T, s string, limit int) {
		limit = 16 + (limit&0x7fff)%1024
		got := text(s, limit)
		if len(got) > limit || !utf8.ValidString(got) || strings.ContainsAny(got, "\n\r\x00\x1b\u2028") {
			t.Errorf("%q: %q", s, got)
		}
		line := forged(Entry{Seq: 1, Event: Event{Type: TokenHandover, Client: s, Detail: map[string]string{"k": s}}.bounded()})
		if bytes.Count(line, []byte("\n")) != 1 {
			t.Errorf("%q breaks the line", s)
		}
		if _, err := parseLine(bytes.TrimSuffix(line, []byte("\n"))); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	})
}
