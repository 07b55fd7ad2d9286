// Package providertest is the one conformance suite of the secrets managers.
// An adapter's test implements [Manager], at the wire or with a real server
// behind it, and calls [Run]. What a manager cannot do it declares in Lacks,
// with the reason; what it does not declare must work.
package providertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"credentialbroker/internal/outbound"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

// A Case is one thing that a manager can do to its callers.
type Case string

// The cases that a Manager makes happen in its Fault method.
const (
	Absent       Case = "absent"        // no such secret: NotFound
	AbsentMount  Case = "absent mount"  // no such engine, vault or project: NotFound or Denied
	Denied       Case = "denied"        // policy: Denied
	Throttled    Case = "throttled"     // Throttled
	Disabled     Case = "disabled"      // Disabled
	SoftDeleted  Case = "soft-deleted"  // Deleted
	Destroyed    Case = "destroyed"     // current version irrecoverably gone: Deleted or NotFound
	Expired      Case = "expired"       // Expired
	NotYetValid  Case = "not yet valid" // NotYetValid
	ServerError  Case = "server error"  // 5xx, sealed: Unavailable
	Down         Case = "down"          // nothing listens: Unavailable
	Hangs        Case = "hangs"         // accepts and never answers: Unavailable when ctx ends
	Garbage      Case = "garbage"       // an answer that is not the manager's: Malformed or Unavailable
	LoginExpired Case = "login expired" // the manager ends the broker's session: the next Fetch works, by a new login
	LoginRefused Case = "login refused" // the manager takes no login of ours: LoginFailed

	// Abilities, declared in Lacks where they do not apply.
	CAFile     Case = "ca_file"      // Options.Outbound.CAFile replaces the system's authorities
	Proxy      Case = "proxy"        // Options.Outbound.Proxy is used
	CheapCheck Case = "cheap check"  // an unchanged read reads no value
	Binary     Case = "binary"       // payloads that are not UTF-8
	Payload64K Case = "64 KiB"       // payloads of 64 KiB
	NotJSON    Case = "not JSON"     // payloads that are no JSON object
	Pinned     Case = "pinned"       // Ref.Version names an older version
	Put        Case = "put"          // the provider is a Writer
	PutRace    Case = "put conflict" // Put with a stale expect is a Conflict
	Empty      Case = "empty object" // a secret without fields
	BigNumbers Case = "big numbers"  // JSON numbers beyond 2^53 keep their digits
)

var wantKind = map[Case][]providers.Kind{
	Absent: {providers.NotFound}, AbsentMount: {providers.NotFound, providers.Denied},
	Denied: {providers.Denied}, Throttled: {providers.Throttled}, Disabled: {providers.Disabled},
	SoftDeleted: {providers.Deleted}, Destroyed: {providers.Deleted, providers.NotFound},
	Expired: {providers.Expired}, NotYetValid: {providers.NotYetValid},
	ServerError: {providers.Unavailable}, Down: {providers.Unavailable}, Hangs: {providers.Unavailable},
	Garbage: {providers.Malformed, providers.Unavailable}, LoginRefused: {providers.LoginFailed},
}

// faults in the order in which they run.
var faults = []Case{Absent, AbsentMount, Denied, Throttled, Disabled, SoftDeleted, Destroyed, Expired, NotYetValid,
	ServerError, Down, Hangs, Garbage, LoginRefused}

// A Manager is one secrets manager under test, made anew for each case.
type Manager interface {
	// Open opens the provider on the manager.
	Open(t *testing.T, o Options) providers.Provider
	// Ref names a secret.
	Ref(name string) providers.Ref
	// Set stores payload as the new current version of a secret, as an
	// administrator would, not through the provider.
	Set(t *testing.T, name string, payload []byte)
	// Fault brings the named secret, or the manager as a whole, into a state.
	Fault(t *testing.T, c Case, name string)
	// Calls counts, at the manager, the calls that read a value and those
	// that only ask for a version, since the Manager was made. Logins count
	// as neither.
	Calls() Calls
	// CA is the PEM file of the authority that signed the manager's
	// certificate, and Addr its host:port; empty where Lacks says CAFile and Proxy.
	CA() string
	Addr() string
}

// Options are what Open is to use.
type Options struct {
	// Outbound is to be used as it is, unless it is zero: then whatever
	// reaches the manager (its CA, say).
	Outbound *outbound.Config
}

// Calls counts what reached the manager.
type Calls struct{ Values, Checks int }

// Lacks says which cases cannot occur with a manager, each with the reason.
type Lacks map[Case]string

// Canary is in every payload of the suite; no error may show it.
const Canary = "canary-7f3a9"

// Run runs the suite. newManager makes a fresh manager; it may skip nothing.
func Run(t *testing.T, newManager func(t *testing.T) Manager, lacks Lacks) {
	s := suite{newManager, lacks}
	for _, c := range faults {
		s.ability(t, c, func(t *testing.T) { s.fault(t, c) })
	}
	t.Run("first read, unchanged, new version", s.firstRead)
	t.Run("fields never mixed", s.neverMixed)
	t.Run("renamed and gathered fields", s.gathered)
	t.Run("missing field", s.missingField)
	t.Run("malformed JSON", s.malformedJSON)
	s.ability(t, Empty, s.emptyObject)
	s.ability(t, BigNumbers, s.bigNumbers)
	t.Run("odd values", s.oddValues)
	t.Run("cancelled context", s.cancelled)
	t.Run("fault passes", s.recovers)
	t.Run("closed twice", s.closedTwice)
	s.ability(t, LoginExpired, s.loginExpired)
	s.ability(t, CheapCheck, s.cheapCheck)
	s.ability(t, Binary, func(t *testing.T) { s.whole(t, []byte("\xff\xfe\x00\x01"+Canary+"\x80")) })
	s.ability(t, NotJSON, func(t *testing.T) { s.whole(t, []byte(Canary)) })
	s.ability(t, Payload64K, s.payload64K)
	s.ability(t, Pinned, s.pinned)
	s.ability(t, Put, s.put)
	s.ability(t, PutRace, s.putRace)
	s.ability(t, CAFile, s.caFile)
	s.ability(t, Proxy, s.proxy)
	for c := range lacks {
		if lacks[c] == "" {
			t.Errorf("no reason is given why %q is lacking", c)
		}
	}
}

type suite struct {
	newManager func(t *testing.T) Manager
	lacks      Lacks
}

// ability runs f unless the case is declared as lacking.
func (s suite) ability(t *testing.T, c Case, f func(t *testing.T)) {
	t.Helper()
	t.Run(string(c), func(t *testing.T) {
		if why, ok := s.lacks[c]; ok {
			t.Logf("does not apply: %s", why)
			return
		}
		f(t)
		if t.Skipped() {
			t.Errorf("%q is declared and was skipped", c)
		}
	})
}

func payload(n int) []byte {
	return fmt.Appendf(nil, `{"client_id":"id-%d","client_secret":"%s-%d","api_key":"key-%d"}`, n, Canary, n, n)
}

// opened makes a manager that holds version 1 of a secret.
func (s suite) opened(t *testing.T) (Manager, providers.Provider, providers.Ref) {
	t.Helper()
	m := s.newManager(t)
	m.Set(t, "app", payload(1))
	p := m.Open(t, Options{})
	t.Cleanup(func() { _ = p.Close() })
	return m, p, m.Ref("app")
}

func ctx(t *testing.T) context.Context {
	c, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return c
}

func mustFetch(t *testing.T, p providers.Provider, ref providers.Ref, have providers.Version) providers.Bundle {
	t.Helper()
	b, err := p.Fetch(ctx(t), ref, have)
	if err != nil {
		t.Fatalf("Fetch(%v, %q): %v", ref, have, err)
	}
	return b
}

func value(t *testing.T, s secret.Secret) string {
	t.Helper()
	b, err := s.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// wantFields compares, and reports without showing more than names.
func wantFields(t *testing.T, b providers.Bundle, want map[string]string) {
	t.Helper()
	for k, v := range want {
		if got := value(t, b.Fields[k]); got != v {
			t.Errorf("field %q has %d bytes %.20q, want %d bytes %.20q", k, len(got), got, len(v), v)
		}
	}
	if len(b.Fields) != len(want) {
		t.Errorf("%d fields, want %d", len(b.Fields), len(want))
	}
}

func fields(n int) map[string]string {
	return map[string]string{"client_id": fmt.Sprintf("id-%d", n),
		"client_secret": fmt.Sprintf("%s-%d", Canary, n), "api_key": fmt.Sprintf("key-%d", n)}
}

// wantError checks the kind, and that the error helps and shows no secret.
func wantError(t *testing.T, err error, kinds ...providers.Kind) {
	t.Helper()
	var e *providers.Error
	if !errors.As(err, &e) {
		t.Fatalf("error is %T (%v), want *providers.Error of kind %v", err, err, kinds)
	}
	found := false
	for _, k := range kinds {
		found = found || e.Kind == k
	}
	if !found {
		t.Errorf("kind %q (%v), want %v", e.Kind, err, kinds)
	}
	if e.Message == "" || strings.Contains(err.Error(), Canary) || strings.ContainsAny(err.Error(), "\n\r") {
		t.Errorf("an unhelpful, many-lined or leaking error: %q", err)
	}
}

func (s suite) fault(t *testing.T, c Case) {
	m, p, ref := s.opened(t)
	b := mustFetch(t, p, ref, "") // logged in, and the manager works
	m.Fault(t, c, "app")
	call, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	got, err := p.Fetch(call, ref, "")
	if err == nil {
		t.Fatalf("Fetch gave version %q", got.Version)
	}
	wantError(t, err, wantKind[c]...)
	if c == Expired || c == Disabled || c == SoftDeleted {
		// What the caller has is no longer good, however unchanged.
		call, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		if _, err := p.Fetch(call, ref, b.Version); errors.Is(err, providers.ErrUnchanged) {
			t.Error("reported as unchanged")
		}
	}
}

func (s suite) firstRead(t *testing.T) {
	m, p, ref := s.opened(t)
	b1 := mustFetch(t, p, ref, "")
	wantFields(t, b1, fields(1))
	if _, err := p.Fetch(ctx(t), ref, b1.Version); !errors.Is(err, providers.ErrUnchanged) {
		t.Errorf("second read: %v, want ErrUnchanged", err)
	}
	m.Set(t, "app", payload(2))
	b2 := mustFetch(t, p, ref, b1.Version)
	wantFields(t, b2, fields(2))
	if b2.Version == b1.Version {
		t.Errorf("both versions are %q", b1.Version)
	}
	wantFields(t, b1, fields(1)) // the old bundle is its holder's
}

// neverMixed writes while it reads: every bundle must be of one version.
func (s suite) neverMixed(t *testing.T) {
	m, p, ref := s.opened(t)
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for n := 2; n < 40; n++ {
			select {
			case <-stop:
				return
			default:
				m.Set(t, "app", payload(n))
			}
		}
	}()
	for range 20 {
		b := mustFetch(t, p, ref, "")
		n := strings.TrimPrefix(value(t, b.Fields["client_id"]), "id-")
		if value(t, b.Fields["client_secret"]) != Canary+"-"+n || value(t, b.Fields["api_key"]) != "key-"+n {
			t.Errorf("mixed fields at version %q", b.Version)
		}
	}
	close(stop)
	<-done
}

func (s suite) gathered(t *testing.T) {
	m, p, ref := s.opened(t)
	m.Set(t, "app", []byte(`{"clientId":"id-1","client_secret":"`+Canary+`"}`))
	m.Set(t, "other", []byte(`{"key":"key-1"}`))
	spec := providers.Spec{Ref: ref, Fields: map[string]providers.Field{
		"client_id": {Key: "clientId"}, "api_key": {Key: "key", Ref: m.Ref("other")}}}
	b, err := providers.Load(ctx(t), p, spec, "")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"client_id": "id-1", "client_secret": Canary, "api_key": "key-1"}
	wantFields(t, b, want)
	if _, err := providers.Load(ctx(t), p, spec, b.Version); !errors.Is(err, providers.ErrUnchanged) {
		t.Errorf("unchanged tuple: %v", err)
	}
	m.Set(t, "other", []byte(`{"key":"key-2"}`))
	b2, err := providers.Load(ctx(t), p, spec, b.Version)
	if err != nil {
		t.Fatal(err)
	}
	want["api_key"] = "key-2"
	wantFields(t, b2, want)
	if b2.Version == b.Version {
		t.Error("the tuple's version did not change")
	}
}

func (s suite) missingField(t *testing.T) {
	_, p, ref := s.opened(t)
	spec := providers.Spec{Ref: ref, Fields: map[string]providers.Field{"api_key": {Key: "apikey"}}}
	_, err := providers.Load(ctx(t), p, spec, "")
	wantError(t, err, providers.Malformed)
	if !strings.Contains(err.Error(), "api_key, client_id, client_secret") {
		t.Errorf("the error does not say which fields there are: %v", err)
	}
}

func (s suite) malformedJSON(t *testing.T) {
	if why, ok := s.lacks[NotJSON]; ok {
		t.Logf("does not apply: %s", why)
		return
	}
	m, p, ref := s.opened(t)
	m.Set(t, "app", []byte(`{"client_secret":"`+Canary))
	_, err := p.Fetch(ctx(t), ref, "")
	wantError(t, err, providers.Malformed)
}

func (s suite) emptyObject(t *testing.T) {
	m, p, ref := s.opened(t)
	m.Set(t, "app", []byte(`{}`))
	if b := mustFetch(t, p, ref, ""); len(b.Fields) != 0 {
		t.Errorf("%d fields in an empty secret", len(b.Fields))
	}
}

func (s suite) bigNumbers(t *testing.T) {
	m, p, ref := s.opened(t)
	m.Set(t, "app", []byte(`{"big":12345678901234567890}`))
	wantFields(t, mustFetch(t, p, ref, ""), map[string]string{"big": "12345678901234567890"})
}

func (s suite) oddValues(t *testing.T) {
	m, p, ref := s.opened(t)
	m.Set(t, "app", []byte(`{"id":6594,"jwk":{"kty":"RSA"},"text":"+/:%é\"\\\n😀 ","none":null,"empty":""}`))
	b := mustFetch(t, p, ref, "")
	jwk := strings.ReplaceAll(value(t, b.Fields["jwk"]), " ", "")
	if value(t, b.Fields["id"]) != "6594" || jwk != `{"kty":"RSA"}` ||
		value(t, b.Fields["text"]) != "+/:%é\"\\\n😀 " {
		t.Errorf("id %s, jwk %s, text %q", value(t, b.Fields["id"]), jwk, value(t, b.Fields["text"]))
	}
	if _, ok := b.Fields["none"]; ok {
		t.Error("null is a field")
	}
	if v, ok := b.Fields["empty"]; !ok || !v.Empty() {
		t.Error("an empty string is no field, or has bytes")
	}
}

func (s suite) cancelled(t *testing.T) {
	_, p, ref := s.opened(t)
	c, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := p.Fetch(c, ref, "")
	wantError(t, err, providers.Unavailable)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v does not wrap context.Canceled", err)
	}
	mustFetch(t, p, ref, "") // and nothing is broken by it
}

// recovers: an absent secret that appears, and nobody restarts anything.
func (s suite) recovers(t *testing.T) {
	m, p, _ := s.opened(t)
	ref := m.Ref("later")
	if _, err := p.Fetch(ctx(t), ref, ""); err == nil {
		t.Fatal("read a secret that is not there")
	}
	m.Set(t, "later", payload(7))
	wantFields(t, mustFetch(t, p, ref, ""), fields(7))
}

func (s suite) closedTwice(t *testing.T) {
	_, p, ref := s.opened(t)
	mustFetch(t, p, ref, "")
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

func (s suite) loginExpired(t *testing.T) {
	m, p, ref := s.opened(t)
	mustFetch(t, p, ref, "")
	m.Fault(t, LoginExpired, "app")
	m.Set(t, "app", payload(2))
	wantFields(t, mustFetch(t, p, ref, ""), fields(2))
}

func (s suite) cheapCheck(t *testing.T) {
	m, p, ref := s.opened(t)
	b := mustFetch(t, p, ref, "")
	before := m.Calls()
	const polls = 5
	for range polls {
		if _, err := p.Fetch(ctx(t), ref, b.Version); !errors.Is(err, providers.ErrUnchanged) {
			t.Fatal(err)
		}
	}
	after := m.Calls()
	if after.Values != before.Values || after.Checks-before.Checks != polls {
		t.Errorf("%d unchanged reads: %d values read, %d checks made", polls, after.Values-before.Values, after.Checks-before.Checks)
	}
}

func (s suite) whole(t *testing.T, p []byte) {
	m, prov, ref := s.opened(t)
	m.Set(t, "app", bytes.Clone(p))
	wantFields(t, mustFetch(t, prov, ref, ""), map[string]string{providers.Whole: string(p)})
}

func (s suite) payload64K(t *testing.T) {
	m, p, ref := s.opened(t)
	frame := len(`{"client_secret":""}`)
	big := strings.Repeat("s", 64<<10-frame)
	m.Set(t, "app", []byte(`{"client_secret":"`+big+`"}`))
	wantFields(t, mustFetch(t, p, ref, ""), map[string]string{"client_secret": big})
}

func (s suite) pinned(t *testing.T) {
	m, p, ref := s.opened(t)
	b := mustFetch(t, p, ref, "")
	m.Set(t, "app", payload(2))
	ref.Version = b.Version
	old := mustFetch(t, p, ref, "")
	wantFields(t, old, fields(1))
	if old.Version != b.Version {
		t.Errorf("pinned read has version %q, want %q", old.Version, b.Version)
	}
}

func secrets(m map[string]string) map[string]secret.Secret {
	out := map[string]secret.Secret{}
	for k, v := range m {
		out[k] = secret.FromString(v)
	}
	return out
}

func (s suite) put(t *testing.T) {
	m, p, ref := s.opened(t)
	w, ok := p.(providers.Writer)
	if !ok {
		t.Fatal("not a providers.Writer")
	}
	b := mustFetch(t, p, ref, "")
	v, err := w.Put(ctx(t), ref, secrets(fields(2)), b.Version)
	if err != nil {
		t.Fatal(err)
	}
	got := mustFetch(t, p, ref, b.Version)
	wantFields(t, got, fields(2))
	if got.Version != v {
		t.Errorf("Put says version %q, Fetch %q", v, got.Version)
	}
	v, err = w.Put(ctx(t), m.Ref("fresh"), secrets(fields(3)), "")
	if err != nil {
		t.Fatal(err)
	}
	if got := mustFetch(t, p, m.Ref("fresh"), ""); got.Version != v {
		t.Errorf("Put says version %q, Fetch %q", v, got.Version)
	}
}

func (s suite) putRace(t *testing.T) {
	m, p, ref := s.opened(t)
	w, ok := p.(providers.Writer)
	if !ok {
		t.Fatal("not a providers.Writer")
	}
	b := mustFetch(t, p, ref, "")
	m.Set(t, "app", payload(2))
	_, err := w.Put(ctx(t), ref, secrets(fields(3)), b.Version)
	wantError(t, err, providers.Conflict)
	_, err = w.Put(ctx(t), ref, secrets(fields(3)), "")
	wantError(t, err, providers.Conflict)
	wantFields(t, mustFetch(t, p, ref, ""), fields(2))
}
