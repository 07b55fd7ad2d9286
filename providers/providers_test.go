package providers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"credentialbroker/internal/secret"
)

// bundle makes a bundle of names and values.
func bundle(v Version, namesAndValues ...string) Bundle {
	b := Bundle{Version: v, Fields: map[string]secret.Secret{}}
	for i := 0; i < len(namesAndValues); i += 2 {
		b.Fields[namesAndValues[i]] = secret.FromString(namesAndValues[i+1])
	}
	return b
}

func wantFields(t *testing.T, what string, got map[string]secret.Secret, want map[string]string) {
	t.Helper()
	if len(got) != len(want) {
		t.Errorf("%s: %d fields, want %d", what, len(got), len(want))
	}
	for name, value := range want {
		b, err := got[name].AppendTo(nil)
		if _, there := got[name]; !there || err != nil || string(b) != value {
			t.Errorf("%s: field %q is %q (%v), want %q", what, name, b, err, value)
		}
	}
}

func TestErrorText(t *testing.T) {
	for _, c := range []struct {
		err  Error
		want string
	}{
		{Error{Kind: NotYetValid}, "not yet valid"},
		{Error{Kind: NotFound, Message: "gone", Hint: "make it"}, "gone (make it)"},
		{Error{Provider: "vault", Ref: Ref{Mount: "m", Path: "p", Version: "3"}, Message: "x", Err: errors.New("hidden")}, "vault: m/p@3: x"},
	} {
		if got := c.err.Error(); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
}

func TestKindOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		want Kind
		temp bool
	}{
		{nil, "", false}, {context.Canceled, Unavailable, true}, {&Error{Kind: Denied}, Denied, false},
		{fmt.Errorf("more: %w", &Error{Kind: Throttled}), Throttled, true}, {&Error{Kind: NotYetValid}, NotYetValid, true},
	} {
		if got := KindOf(c.err); got != c.want || got.Temporary() != c.temp {
			t.Errorf("%v is %q (temporary: %v), want %q", c.err, got, got.Temporary(), c.want)
		}
	}
	if cause := errors.New("cause"); !errors.Is(&Error{Err: cause}, cause) {
		t.Error("the cause is not found")
	}
}

func TestCheckValidity(t *testing.T) {
	now := time.Date(2026, 11, 21, 9, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		notBefore, expires time.Time
		want               Kind
	}{
		{time.Time{}, time.Time{}, ""},
		{now, now.Add(1), ""},
		{now.Add(1), time.Time{}, NotYetValid},
		{time.Time{}, now, Expired},
	} {
		if got := KindOf(Bundle{NotBefore: c.notBefore, Expires: c.expires}.CheckValidity(now)); got != c.want {
			t.Errorf("%v to %v: %q, want %q", c.notBefore, c.expires, got, c.want)
		}
	}
}

func TestWipe(t *testing.T) {
	b := bundle("1", "a", "1")
	b.Wipe()
	if err := b.Fields["a"].Use(func([]byte) error { return nil }); !errors.Is(err, secret.ErrWiped) {
		t.Errorf("%v, want ErrWiped", err)
	}
}

type info struct {
	fs.FileInfo
	uid  uint32
	mode fs.FileMode
}

func (i info) Sys() any          { return &syscall.Stat_t{Uid: i.uid} }
func (i info) Mode() fs.FileMode { return i.mode }

func TestCheckOwner(t *testing.T) {
	const us = 1000
	for _, c := range []struct {
		info info
		says string // empty: accepted
	}{
		{info{uid: us, mode: 0o600}, ""}, {info{uid: 0, mode: 0o444}, ""}, {info{uid: us, mode: fs.ModeDir | 0o755}, ""},
		{info{uid: 1001, mode: 0o600}, "belongs to uid 1001"},
		{info{uid: us, mode: 0o620}, "may write"}, {info{uid: us, mode: 0o602}, "may write"},
		{info{uid: us, mode: fs.ModeDir | fs.ModeSticky | 0o777}, "may write"},
	} {
		err := checkOwner(c.info, us)
		if (err == nil) != (c.says == "") || err != nil && (KindOf(err) != Denied || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("uid %d, mode %v: %v, want %q", c.info.uid, c.info.mode, err, c.says)
		}
	}
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if ours, err := os.Stat(file); err != nil || CheckOwner(ours) != nil {
		t.Errorf("our own file: %v, %v", err, CheckOwner(ours))
	}
}
