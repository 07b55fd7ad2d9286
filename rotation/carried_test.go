package rotation

import (
	"testing"
	"time"

	"credentialbroker/internal/fake"
)

// What Same says, in the order in which it can be told.
func TestSame(t *testing.T) {
	filled(t, Config{}, func(s *shelf) {
		want := func(what, origin string, same, told bool) {
			t.Helper()
			if live, knows := s.c.Same(origin); (live != nil) != same || knows != told {
				t.Errorf("%s: %v, told: %v", what, live != nil, knows)
			}
		}
		origin := string(s.c.id("1"))
		want("nothing was read", origin, false, false)
		s.wantServed()
		want("the sealed copy serves", origin, true, true)
		want("another version", string(s.c.id("2")), false, true)
		want("another place", "00000000:1", false, true)
		time.Sleep(24 * time.Hour)
		want("the copy is too old", origin, false, false)
		s.store.SetFault("")
		_ = s.c.Check(s.t.Context())
		want("the manager is back", origin, true, true)

		ended := *s.c.Current()
		ended.Expires = s.clock.Now().Wall
		serves := s.c.current.Swap(&ended)
		want("the manager said that it ends now", origin, false, true)
		s.c.current.Store(serves)

		s.issuer.Set(fake.Fault{Kind: fake.InvalidClient})
		if _, err := s.mint(); err == nil {
			t.Error("it is not refused")
		}
		want("the issuer has refused it", origin, false, true)
	})
}
