package oidc

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-jose/go-jose/v4"

	"credentialbroker/internal/clock"
)

func TestKeysAreFetchedSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		k := keysOnce()
		kid, key, published, down := "r", k.rsa, listed(), false
		s := &server{
			token: func() string { return signJWT(t, jose.RS256, key, kid, claimsNow(nil)) },
			jwks: func() reply {
				if down {
					return reply{status: 503}
				}
				return reply{status: 200, body: jwks(t, published...)}
			},
		}
		c := open(t, checked(Profile{}), s, clock.NewBubble())
		round := func(what string, want Kind, asked int) {
			t.Helper()
			if _, err := c.Mint(t.Context(), material(), Request{}); KindOf(err) != want {
				t.Errorf("%s: %v, want %q", what, err, want)
			}
			if s.asked != asked {
				t.Errorf("%s: keys were asked for %d times, want %d", what, s.asked, asked)
			}
		}
		if s.asked != 0 {
			t.Error("Open fetched")
		}
		round("first", "", 1)
		round("second", "", 1)
		time.Sleep(59 * time.Minute)
		round("within the hour", "", 1)
		time.Sleep(time.Minute)
		round("after an hour", "", 2)

		kid, key = "new", k.other
		round("new key within the minute, not published", Protocol, 2)
		time.Sleep(time.Minute)
		round("new key, not published", Protocol, 3)
		for range 10 {
			round("again and again", Protocol, 3)
		}
		published = append(published, jwk(&k.other.PublicKey, "new", "RS256"))
		time.Sleep(time.Minute)
		round("published", "", 4)

		down = true
		time.Sleep(25 * time.Hour)
		round("keys are out of reach: the old ones serve", "", 5)
		round("no more than once a minute", "", 5)
		time.Sleep(time.Minute)
		down = false
		round("back", "", 6)
	})
}

func TestNoKeysNoMint(t *testing.T) {
	for _, c := range []struct {
		name string
		r    reply
		want Kind
	}{
		{"down", reply{status: 503, header: map[string]string{"Retry-After": "60"}}, Unavailable},
		{"throttled", reply{status: 429, header: map[string]string{"Retry-After": "60"}}, Unavailable},
		{"page", reply{status: 200, ctype: "text/html", body: "<html>" + marker}, Protocol},
		{"absent", reply{status: 404, body: marker}, Protocol},
		{"redirect", reply{status: 302, header: map[string]string{"Location": "https://x"}}, Protocol},
		{"empty set", reply{status: 200, body: `{"keys":[]}`}, Protocol},
		{"other JSON", reply{status: 200, body: `[]`}, Protocol},
		{"only unusable", reply{status: 200, body: jwks(t, listed()[1], jwk([]byte("symmetric symmetric symmetric 32"), "h", "HS256"))}, Protocol},
		{"private", reply{status: 200, body: jwks(t, jwk(keysOnce().rsa, "r", ""))}, Protocol},
		{"for encryption", reply{status: 200, body: jwks(t, jose.JSONWebKey{Key: &keysOnce().rsa.PublicKey, KeyID: "r", Use: "enc"})}, Protocol},
		{"oversized", reply{status: 200, body: jwks(t, listed()...) + strings.Repeat(" ", maxDocument)}, Protocol},
	} {
		s := &server{token: func() string { return "x" }, jwks: func() reply { return c.r }}
		_, err := mint(t, checked(Profile{}), s, Request{})
		e := wantKind(t, err, c.want)
		if s.minted != 0 {
			t.Errorf("%s: the secret was shown for a token that nobody can check", c.name)
		}
		if strings.Contains(e.Error(), marker) || !strings.Contains(e.Error(), "keys.example") || c.want == Unavailable && e.RetryAfter != time.Minute {
			t.Errorf("%s: %+v", c.name, *e)
		}
	}
}

func TestUnknownKeysDoNotSpoilTheOthers(t *testing.T) {
	body := strings.Replace(jwks(t, listed()...), `{"keys":[`, `{"keys":[{"kty":"LMS","kid":"r"},7,null,{"kty":"oct","k":"c2VjcmV0","kid":"r"},{},`, 1)
	s := &server{token: func() string { return signJWT(t, jose.RS256, keysOnce().rsa, "r", claimsNow(nil)) }, jwks: func() reply { return reply{status: 200, body: body} }}
	if _, err := mint(t, checked(Profile{}), s, Request{}); err != nil {
		t.Error(err)
	}
	many := make([]jose.JSONWebKey, 100)
	for i := range many {
		many[i] = jwk(keysOnce().ed.Public(), fmt.Sprint(i), "")
	}
	if n := len(parseJWKS([]byte(jwks(t, many...)))); n != maxKeys {
		t.Errorf("%d keys are kept, want %d", n, maxKeys)
	}
}

func TestKeysAreFetchedOnceForMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{token: func() string { return signJWT(t, jose.RS256, keysOnce().rsa, "r", claimsNow(nil)) }, jwks: func() reply { return reply{status: 200, body: jwks(t, listed()...)} }}
		slow := roundTrip(func(r *http.Request) (*http.Response, error) {
			time.Sleep(time.Second)
			return s.RoundTrip(r)
		})
		c := open(t, checked(Profile{}), slow, clock.NewBubble())
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if _, err := c.Mint(t.Context(), material(), Request{}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if s.asked != 1 {
			t.Errorf("keys were asked for %d times", s.asked)
		}
	})
}

// A hanging jwks_uri must neither eat the mint's time nor hold up others.
func TestHangingKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := false
		s := &server{token: func() string { return signJWT(t, jose.RS256, keysOnce().rsa, "r", claimsNow(nil)) }, jwks: func() reply { return reply{status: 200, body: jwks(t, listed()...)} }}
		rt := roundTrip(func(r *http.Request) (*http.Response, error) {
			if hang && r.Method == http.MethodGet {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return s.RoundTrip(r)
		})
		c := open(t, checked(Profile{}), rt, clock.NewBubble())
		if _, err := c.Mint(t.Context(), material(), Request{}); err != nil {
			t.Fatal(err)
		}
		hang = true
		time.Sleep(2 * time.Hour)
		start := time.Now()
		if _, err := c.Mint(t.Context(), material(), Request{}); err != nil || time.Since(start) != cacheTimeout {
			t.Errorf("%v after %v", err, time.Since(start))
		}
		fresh := open(t, checked(Profile{}), rt, clock.NewBubble())
		var wg sync.WaitGroup
		for _, patience := range []time.Duration{8 * time.Second, 3 * time.Second, time.Second} { // the first one fetches
			wg.Go(func() {
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				start := time.Now()
				_, err := fresh.Mint(ctx, material(), Request{})
				if KindOf(err) != Unavailable || time.Since(start) != patience {
					t.Errorf("%v after %v, want %v", err, time.Since(start), patience)
				}
			})
			synctest.Wait()
		}
		wg.Wait()
	})
}
