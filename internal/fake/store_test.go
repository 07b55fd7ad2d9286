package fake

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

var (
	_ providers.Provider = (*Store)(nil)
	_ providers.Writer   = (*Store)(nil)
)

func TestStorePut(t *testing.T) {
	s := NewStore()
	put := func(r providers.Ref, value string, expect providers.Version) (providers.Version, error) {
		return s.Put(t.Context(), r, map[string]secret.Secret{"a": secret.FromString(value)}, expect)
	}
	ref := providers.Ref{Path: "x"}
	if v, err := put(ref, "1", ""); v != "1" || err != nil {
		t.Errorf("new: %q, %v", v, err)
	}
	if v, err := put(ref, "2", "1"); v != "2" || err != nil {
		t.Errorf("next: %q, %v", v, err)
	}
	for _, expect := range []providers.Version{"", "1", "3"} {
		if _, err := put(ref, "3", expect); providers.KindOf(err) != providers.Conflict {
			t.Errorf("expecting %q: %v", expect, err)
		}
	}
	if _, err := put(providers.Ref{Path: "x", Version: "2"}, "3", "2"); providers.KindOf(err) != providers.Conflict {
		t.Errorf("pinned: %v", err)
	}
	if _, err := put(ref, "\xff", "2"); providers.KindOf(err) != providers.Unsupported {
		t.Errorf("binary: %v", err)
	}
	s.SetFault(providers.Denied)
	if _, err := put(ref, "3", "2"); providers.KindOf(err) != providers.Denied {
		t.Errorf("fault: %v", err)
	}
	s.SetFault("")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Put(ctx, ref, nil, "2"); !errors.Is(err, context.Canceled) {
		t.Errorf("ended: %v", err)
	}
	b, err := s.Fetch(t.Context(), ref, "")
	if got, _ := b.Fields["a"].AppendTo(nil); string(got) != "2" || b.Version != "2" || err != nil {
		t.Errorf("%q at %q, %v", got, b.Version, err)
	}
	if got := s.Stats(); got.Puts != 2 || got.Faults != 1 || got.Fetches != 1 {
		t.Errorf("%+v", got)
	}
}

func TestStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := NewStore()
		ref := providers.Ref{Path: "vdab"}
		fetch := func(r providers.Ref, have providers.Version) (string, providers.Version, error) {
			b, err := s.Fetch(t.Context(), r, have)
			if err != nil {
				return "", "", err
			}
			v, err := b.Fields["client_secret"].AppendTo(nil)
			b.Wipe()
			return string(v), b.Version, err
		}
		if _, _, err := fetch(ref, ""); providers.KindOf(err) != providers.NotFound {
			t.Errorf("absent: %v", err)
		}
		v1 := s.Set("vdab", map[string]string{"client_secret": "a"})
		v2 := s.Set("vdab", map[string]string{"client_secret": "b"})
		if got, v, err := fetch(ref, v1); got != "b" || v != v2 || err != nil {
			t.Errorf("%q %q %v", got, v, err)
		}
		if _, _, err := fetch(ref, v2); !errors.Is(err, providers.ErrUnchanged) {
			t.Errorf("unchanged: %v", err)
		}
		if got, _, err := fetch(providers.Ref{Path: "vdab", Version: v1}, ""); got != "a" || err != nil {
			t.Errorf("pinned: %q, %v", got, err)
		}
		for _, v := range []providers.Version{"3", "0", "-1", "x"} {
			if _, _, err := fetch(providers.Ref{Path: "vdab", Version: v}, ""); providers.KindOf(err) != providers.NotFound {
				t.Errorf("version %s: %v", v, err)
			}
		}
		s.SetFault(providers.Throttled)
		if _, _, err := fetch(ref, ""); providers.KindOf(err) != providers.Throttled {
			t.Errorf("fault: %v", err)
		}
		s.SetFault(HangStore)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := s.Fetch(ctx, ref, ""); !errors.Is(err, context.DeadlineExceeded) || providers.KindOf(err) != providers.Unavailable {
			t.Errorf("hang: %v", err)
		}
		s.SetFault("")
		if _, _, err := fetch(ref, ""); err != nil {
			t.Error(err)
		}
		if got, want := s.Stats(), (StoreStats{Fetches: 11, Values: 3, Faults: 2}); got != want {
			t.Errorf("%+v", got)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}
