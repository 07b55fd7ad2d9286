package fake

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/providers"
)

var _ providers.Provider = (*Store)(nil)

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
