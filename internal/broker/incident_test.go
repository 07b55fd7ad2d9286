package broker

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
	"time"

	"credentialbroker/providers"
)

func TestHolds(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		g := w.mustGet()
		var token string
		_ = g.Token.Access.Use(func(b []byte) error { token = string(b); return nil })
		std, url := base64.StdEncoding, base64.URLEncoding
		for _, c := range []struct {
			name, text string
			want       bool
		}{
			{"nothing", "It stood in a public repository.", false},
			{"the client id, which is public", theID, false},
			{"the secret", "x" + theSecret + "y", true},
			{"the API key", theKey, true},
			{"a token", "Bearer " + token, true},
			{"half a secret", theSecret[:len(theSecret)/2], false},
			{"hexadecimal", hex.EncodeToString([]byte("a" + theSecret)), true},
			{"in capitals", strings.ToUpper(hex.EncodeToString([]byte(theSecret))), true},
			{"base64", std.EncodeToString([]byte(theSecret)), true},
			{"base64, one byte on", std.EncodeToString([]byte("a" + theSecret + "bcd")), true},
			{"base64, two bytes on", url.EncodeToString([]byte("ab" + theSecret)), true},
			{"HTTP Basic", std.EncodeToString([]byte(theID + ":" + theSecret)), true},
			{"another's base64", std.EncodeToString([]byte("another-secret-7f3a8")), false},
		} {
			if got := w.b.Holds([]byte(c.text)); got != c.want {
				t.Errorf("%s: %v", c.name, got)
			}
		}
	})
}

// The issuer is asked once about a version that serves no more; its refusal is
// remembered, counts, and is no alarm.
func TestStillTaken(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		o, edit := anOAuth2(t)
		w.with(edit)
		w.mustGet()
		first := w.b.Credentials(t.Context(), "vdab")
		if first.ClientID != theID || first.Version == "" {
			t.Fatalf("%+v", first)
		}
		if _, err := w.b.StillTaken(t.Context(), "vdab", first.Version); err == nil {
			t.Error("the version that serves was asked about")
		}
		o.SetSecret(theID, "second", true)
		w.secret("second")
		if _, err := w.b.Rotate(t.Context(), "vdab", Rotation{}); err != nil {
			t.Fatal(err)
		}
		if taken, err := w.b.StillTaken(t.Context(), "vdab", first.Version); err != nil || !taken {
			t.Errorf("%v, %v", taken, err)
		}
		o.SetSecret(theID, "second", false)
		left := w.b.Status()[0].Credential.Left
		for range 3 {
			if taken, err := w.b.StillTaken(t.Context(), "vdab", first.Version); err != nil || taken {
				t.Errorf("%v, %v", taken, err)
			}
		}
		if s := w.b.Status()[0].Credential; s.Dead || left-s.Left > 1 || string(s.Version) == first.Version {
			t.Errorf("%+v, %d left before", s, left)
		}
		w.mustGet()
		_, err := w.b.StillTaken(t.Context(), "vdab", "99")
		var e *Error
		if !errors.As(err, &e) && providers.KindOf(err) == "" {
			t.Errorf("a version that is not there: %v", err)
		}
		if err := w.b.Prove(t.Context(), "vdab"); err != nil {
			t.Error(err)
		}
	})
}

// Who comes while tokens are being revoked is told of those, and does not take
// them for gone.
func TestWithdrawTwice(t *testing.T) {
	inWorld(t, func(w *world) {
		t := w.t
		o, edit := anOAuth2(t)
		slow := &gate{rt: o.RoundTripper()}
		w.with(func(c *Client) { edit(c); c.Transport = slow })
		w.mustGet()
		slow.wait = make(chan struct{})
		first := make(chan Withdrawal)
		go func() { first <- w.b.Withdraw(t.Context(), "vdab") }()
		time.Sleep(time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if got := w.b.Withdraw(ctx, "vdab"); got.Revoked != 0 || got.Kept != 1 || !got.Possible || got.Last.IsZero() {
			t.Errorf("%+v", got)
		}
		close(slow.wait)
		if got := <-first; got.Revoked != 1 || got.Kept != 0 {
			t.Errorf("%+v", got)
		}
		if got := w.b.Withdraw(t.Context(), "vdab"); got.Revoked+got.Kept != 0 {
			t.Errorf("%+v", got)
		}
	})
}
