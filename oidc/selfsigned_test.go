package oidc

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
)

// still is a clock that stands.
type still clock.Reading

func (s still) Now() clock.Reading { return clock.Reading(s) }

func stillAt(wall time.Time) still { return still{Boot: time.Hour, Wall: wall} }

const zgwSecret = "short" // VNG's own tool gives such

func zgwClient(t testing.TB, j JWT, c clock.Clock) *Client {
	t.Helper()
	return open(t, Profile{Grant: SelfSigned, JWT: j}, nil, c)
}

func zgw() Material { return bundle(map[string]string{"client_secret": zgwSecret}) }

// partsOf checks the signature with the standard library, and gives what is signed.
func partsOf(t testing.TB, tok Token, key string) (header, payload string) {
	t.Helper()
	jwt := reveal(t, tok.Access)
	parts := strings.Split(jwt, ".")
	if len(parts) != 3 || parts[2] != macOf(sha256.New, key, jwt) {
		t.Fatalf("%q is not signed with the secret", jwt)
	}
	h, err1 := base64.RawURLEncoding.DecodeString(parts[0])
	p, err2 := base64.RawURLEncoding.DecodeString(parts[1])
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	return string(h), string(p)
}

func TestSign(t *testing.T) {
	now := stillAt(time.Date(2026, 11, 21, 8, 0, 5, 700e6, time.UTC))
	const iat = 1795248000 // 08:00:00
	if iat != time.Date(2026, 11, 21, 8, 0, 0, 0, time.UTC).Unix() {
		t.Fatal("iat")
	}
	const header = `{"typ":"JWT","alg":"HS256"}`
	user := User{ID: "jan", Representation: "Jan de Vries"}
	for _, c := range []struct {
		name            string
		j               JWT
		u               User
		header, payload string // %s: the jti
		lives           time.Duration
	}{
		{"default", JWT{}, User{}, header, `{"iss":"` + clientID + `","iat":1795248000,"client_id":"` + clientID + `","user_id":"","user_representation":""}`, 895 * time.Second},
		{"user", JWT{}, user, header, `{"iss":"` + clientID + `","iat":1795248000,"client_id":"` + clientID + `","user_id":"jan","user_representation":"Jan de Vries"}`, 895 * time.Second},
		{"user by configuration", JWT{UserID: "system", UserRepresentation: "the system"}, User{}, header,
			`{"iss":"` + clientID + `","iat":1795248000,"client_id":"` + clientID + `","user_id":"system","user_representation":"the system"}`, 895 * time.Second},
		{"user over the configuration", JWT{UserID: "system", UserRepresentation: "the system"}, User{ID: "jan"}, header,
			`{"iss":"` + clientID + `","iat":1795248000,"client_id":"` + clientID + `","user_id":"jan","user_representation":"the system"}`, 895 * time.Second},
		{"issuer, times", JWT{Form: "current", Issuer: "other", BackDate: clock.Duration(time.Minute), Lifetime: clock.Duration(time.Hour), Claims: []string{"jti", "exp", "nbf"}}, user, header,
			`{"iss":"other","iat":1795247945,"client_id":"` + clientID + `","user_id":"jan","user_representation":"Jan de Vries","exp":1795251545,"nbf":1795247945,"jti":"%s"}`, 59 * time.Minute},
		{"2018", JWT{Form: "2018", Claims: []string{"exp"}}, User{}, `{"typ":"JWT","alg":"HS256","client_identifier":"` + clientID + `"}`,
			`{"iss":"` + clientID + `","iat":1795248000,"zds":{"scopes":[],"zaaktypes":[]},"exp":1795248900}`, 895 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := zgwClient(t, c.j, now)
			tok, err := client.Sign(zgw(), c.u)
			if err != nil {
				t.Fatal(err)
			}
			header, payload := partsOf(t, tok, zgwSecret)
			if strings.Contains(c.payload, "%s") {
				c.payload = fmt.Sprintf(c.payload, tok.JTI)
				again, err := client.Sign(zgw(), c.u)
				if err != nil || len(tok.JTI) != 36 || again.JTI == tok.JTI {
					t.Errorf("jti %q, then %q, %v", tok.JTI, again.JTI, err)
				}
			} else if tok.JTI != "" {
				t.Errorf("jti %q, which is not written", tok.JTI)
			}
			if header != c.header || payload != c.payload {
				t.Errorf("%s\n%s, want\n%s\n%s", header, payload, c.header, c.payload)
			}
			// exp is a whole second, and never before Expires.
			lives := tok.Expires.Sub(tok.Sent)
			if tok.Sent != now.Now() || lives > c.lives || lives <= c.lives-time.Second || tok.Expires.Wall.Nanosecond() != 0 || tok.Expires.Wall.Sub(tok.Sent.Wall) != lives {
				t.Errorf("lives %s, want %s or a little less", lives, c.lives)
			}
			sum := sha256.Sum256([]byte(reveal(t, tok.Access)))
			if tok.Type != "Bearer" || tok.Scope != "" || tok.Narrowed || tok.Bound != "" || !tok.Refresh.Empty() || tok.Skew != 0 ||
				tok.Fingerprint != base64.RawURLEncoding.EncodeToString(sum[:]) {
				t.Errorf("%+v", tok)
			}
		})
	}
}

// The example of VNG's guide of 2018, up to its signature, whose secret nobody
// published.
func TestSignAsIn2018(t *testing.T) {
	const guide = "eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiIsImNsaWVudF9pZGVudGlmaWVyIjoiam9lcmktUnVBSmlVcjRzVVFwIn0." +
		"eyJpc3MiOiJtaWpuLWNvbnN1bWVyLVJ1QUppVXI0c1VRcCIsImlhdCI6MTU0MzIzNjU5NSwiemRzIjp7InNjb3BlcyI6WyJ6ZHMuc2NvcGVzLnN0YXR1c3Nlbi50b2V2b2VnZW4iLC" +
		"J6ZHMuc2NvcGVzLnpha2VuLmFhbm1ha2VuIiwiemRzLnNjb3Blcy56YWtlbi5sZXplbiJdLCJ6YWFrdHlwZXMiOlsiaHR0cHM6Ly9yZWYudHN0LnZuZy5jbG91ZC96dGMvYXBpL3YxL2" +
		"NhdGFsb2d1c3Nlbi9mN2FmZDE1Ni1jOGY1LTQ2NjYtYjhiNS0yOGE0YTliNWRmYzcvemFha3R5cGVuLzAxMTlkZDRlLTdiZTktNDc3ZS1iY2NmLTc1MDIzYjE0NTNjMSJdfX0"
	client := zgwClient(t, JWT{Form: "2018", Issuer: "mijn-consumer-RuAJiUr4sUQp",
		Scopes:    []string{"zds.scopes.statussen.toevoegen", "zds.scopes.zaken.aanmaken", "zds.scopes.zaken.lezen"},
		Zaaktypes: []string{"https://ref.tst.vng.cloud/ztc/api/v1/catalogussen/f7afd156-c8f5-4666-b8b5-28a4a9b5dfc7/zaaktypen/0119dd4e-7be9-477e-bccf-75023b1453c1"},
	}, stillAt(time.Unix(1543236600, 0)))
	m := bundle(map[string]string{"client_id": "joeri-RuAJiUr4sUQp", "client_secret": "unknown"})
	tok, err := client.Sign(m, User{})
	if err != nil {
		t.Fatal(err)
	}
	if got := reveal(t, tok.Access); !strings.HasPrefix(got, guide+".") {
		t.Errorf("%s, want %s", got, guide)
	}
}

func TestSignSecrets(t *testing.T) {
	for _, key := range []string{"x", zgwSecret, strings.Repeat("k", 64), strings.Repeat("k", 65), clientSecret, "\x00\xff\n"} {
		tok, err := zgwClient(t, JWT{}, clock.System{}).Sign(bundle(map[string]string{"client_secret": key}), User{})
		if err != nil {
			t.Fatal(err)
		}
		partsOf(t, tok, key)
	}
}

func TestSignRefuses(t *testing.T) {
	canary := "canary-Jansen"
	for _, c := range []struct {
		name string
		j    JWT
		m    Material
		u    User
		want string
	}{
		{"no secret", JWT{}, bundle(nil), User{}, "client_secret"},
		{"no id", JWT{}, Material{"client_secret": secret.FromString(zgwSecret)}, User{}, "client_id: it is empty"},
		{"long id", JWT{}, zgw(), User{ID: canary + strings.Repeat("x", 243)}, "user_id: it is longer than 255 bytes"},
		{"long name", JWT{}, zgw(), User{Representation: canary + strings.Repeat("é", 122)}, "user_representation: it is longer than 255 bytes"},
		{"line break", JWT{}, zgw(), User{ID: canary + "\n"}, "user_id: it holds a control character"},
		{"C1 control", JWT{}, zgw(), User{Representation: canary + "\u0085"}, "user_representation: it holds a control character"},
		{"not UTF-8", JWT{}, zgw(), User{ID: canary + "\xc3"}, "user_id: it is not UTF-8"},
		{"a user in 2018", JWT{Form: "2018"}, zgw(), User{Representation: canary}, "user_representation has no place in it"},
	} {
		_, err := zgwClient(t, c.j, clock.System{}).Sign(c.m, c.u)
		e := wantKind(t, err, Refused)
		if !strings.Contains(e.Error(), c.want) || strings.Contains(fmt.Sprintf("%v %+v", e, *e), "canary") {
			t.Errorf("%s: %v, want %q", c.name, e, c.want)
		}
	}
	m := zgw()
	m["client_secret"].Wipe()
	_, err := zgwClient(t, JWT{}, clock.System{}).Sign(m, User{})
	wantKind(t, err, Unavailable)
	if _, err := zgwClient(t, JWT{}, clock.System{}).Sign(zgw(), User{ID: strings.Repeat("x", 255), Representation: strings.Repeat("é", 127)}); err != nil {
		t.Errorf("255 bytes: %v", err)
	}
}

// Whatever a user is called, the JWT says so, or there is none.
func FuzzSign(f *testing.F) {
	f.Add("jan", "Jan de Vries")
	f.Add(`","client_id":"admin`, "</script>\u2028\\")
	f.Add("\xff", "\n")
	f.Add("😀", strings.Repeat("é", 128))
	client := zgwClient(f, JWT{}, clock.System{})
	f.Fuzz(func(t *testing.T, id, name string) {
		tok, err := client.Sign(zgw(), User{ID: id, Representation: name})
		fits := func(s string) bool {
			return len(s) <= 255 && utf8.ValidString(s) && strings.IndexFunc(s, unicode.IsControl) < 0
		}
		if ok := fits(id) && fits(name); ok != (err == nil) {
			t.Fatalf("%q, %q: %v", id, name, err)
		}
		if err != nil {
			return
		}
		_, payload := partsOf(t, tok, zgwSecret)
		var got map[string]any
		if err := json.Unmarshal([]byte(payload), &got); err != nil {
			t.Fatal(err)
		}
		if len(got) != 5 || got["client_id"] != clientID || got["user_id"] != id || got["user_representation"] != name {
			t.Errorf("%q, %q: %s", id, name, payload)
		}
	})
}

func TestValidateJWT(t *testing.T) {
	d := func(back, lifetime time.Duration) JWT {
		return JWT{BackDate: clock.Duration(back), Lifetime: clock.Duration(lifetime)}
	}
	for _, c := range []struct {
		j    JWT
		want string
	}{
		{JWT{}, ""},
		{JWT{Form: "current", Claims: []string{"exp", "nbf", "jti"}, UserID: "system", Issuer: "x"}, ""},
		{JWT{Form: "2018", Scopes: []string{"a"}, Zaaktypes: []string{"b"}}, ""},
		{JWT{Form: "2019"}, `jwt.form: "2019" is not known`},
		{d(0, time.Hour), ""},
		{d(0, time.Hour+1), "jwt.lifetime: "},
		{d(0, 35*time.Second), ""},
		{d(0, 34*time.Second), "jwt.lifetime: "},
		{d(10*time.Minute, 10*time.Minute+30*time.Second), ""},
		{d(10*time.Minute, 10*time.Minute), "jwt.lifetime: "},
		{d(10*time.Minute+1, 0), "jwt.back_date: "},
		{d(-time.Second, 0), "jwt.back_date: "},
		{d(0, -time.Second), "jwt.lifetime: "},
		{JWT{Claims: []string{"sub"}}, `jwt.claims: "sub" is not one of exp, nbf and jti`},
		{JWT{Claims: []string{"exp", "exp"}}, `jwt.claims: "exp" stands there twice`},
		{JWT{UserID: strings.Repeat("x", 256)}, "jwt.user_id: "},
		{JWT{UserRepresentation: "a\nb"}, "jwt.user_representation: "},
		{JWT{Issuer: "\xff"}, "jwt.issuer: "},
		{JWT{Form: "2018", UserID: "x"}, "jwt.user_id: "},
		{JWT{Scopes: []string{"a"}}, "jwt.scopes: "},
		{JWT{Form: "current", Zaaktypes: []string{"a"}}, "jwt.scopes: "},
	} {
		wantProblem(t, Profile{JWT: c.j}.validateJWT(), c.want)
	}
}
