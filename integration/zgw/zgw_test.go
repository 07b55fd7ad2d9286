//go:build real

// Package zgw has the JWTs that the broker signs for VNG's ZGW APIs checked by
// the code that checks them at the municipalities, and compared with what its
// clients make.
package zgw

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"testing"
	"time"

	"credentialbroker/integration/real"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
)

const (
	area = "issuer zgw"
	id   = "zaak-app"
	key  = `zgw "s\e/c+r%e&t é, 32 bytes or more`
)

// site runs the field's code, and gives its address.
func site(t *testing.T) string {
	t.Helper()
	addr := real.FreeAddr(t)
	cmd := exec.Command(real.Path("zgw", "venv", "bin", "python"), "-W", "ignore", "server.py", addr)
	cmd.Env = append(os.Environ(), "ZGW_OLD="+real.Path("zgw", "2018"))
	clients, err := json.Marshal(map[string]string{id: key})
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdin = bytes.NewReader(clients)
	real.Start(t, addr, cmd)
	return "http://" + addr
}

// answer is one of the three requests'; which members it has depends.
type answer struct {
	Code           string
	Token          string
	Header, Claims map[string]any

	ClientID string `json:"client_id"`
	UserID   string `json:"user_id"`
	User     string `json:"user_representation"`
}

func call(t *testing.T, method, url, token string, body map[string]any) (status int, a answer) {
	t.Helper()
	raw, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	r, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &a); err != nil {
		t.Fatalf("%s %s: %s", url, resp.Status, text)
	}
	return resp.StatusCode, a
}

func pyjwt(t *testing.T, site, token, secret string) answer {
	t.Helper()
	_, a := call(t, http.MethodPost, site+"/pyjwt", "", map[string]any{"token": token, "secret": secret})
	return a
}

func signer(t *testing.T, j oidc.JWT, c clock.Clock) *oidc.Client {
	t.Helper()
	client, err := oidc.Open(oidc.Profile{Grant: oidc.SelfSigned, JWT: j}, nil, c)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func sign(t *testing.T, c *oidc.Client, id, key string, u oidc.User) string {
	t.Helper()
	tok, err := c.Sign(oidc.Material{"client_id": secret.FromString(id), "client_secret": secret.FromString(key)}, u)
	if err != nil {
		t.Fatal(err)
	}
	return text(t, tok.Access)
}

func text(t *testing.T, s secret.Secret) (out string) {
	t.Helper()
	if err := s.Use(func(b []byte) error { out = string(b); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

// off is a clock that is wrong.
type off struct{ by time.Duration }

func (o off) Now() clock.Reading { return clock.System{}.Now().Add(o.by) }

// users are names as people have them, and as they do not.
var users = map[string]oidc.User{
	"nobody":  {},
	"plain":   {ID: "jjansen", Representation: "Jan Jansen"},
	"letters": {ID: "é/+%&=", Representation: `Zoë "O'Brien" \ </script>` + " \u2028 \U0001F600"},
	"long":    {ID: strings.Repeat("i", 255), Representation: strings.Repeat("é", 127)},
}

func TestPyJWT(t *testing.T) {
	real.Row(t, area, "PyJWT 2.15.1", "HS256; iat, exp, nbf verified without leeway; users' names; wrong secret, tampering and clocks refused")
	at := site(t)
	for name, claims := range map[string][]string{"least": nil, "exp": {"exp"}, "all": {"exp", "nbf", "jti"}} {
		c := signer(t, oidc.JWT{Claims: claims}, clock.System{})
		for who, u := range users {
			token := sign(t, c, id, key, u)
			a := pyjwt(t, at, token, key)
			iat, _ := a.Claims["iat"].(float64)
			want := map[string]any{"iss": id, "client_id": id, "user_id": u.ID, "user_representation": u.Representation, "iat": iat}
			for _, extra := range claims {
				want[extra] = a.Claims[extra]
			}
			if a.Code != "" || !reflect.DeepEqual(a.Claims, want) || !reflect.DeepEqual(a.Header, map[string]any{"typ": "JWT", "alg": "HS256"}) {
				t.Errorf("%s, %s: %+v", name, who, a)
			}
			if late := time.Since(time.Unix(int64(iat), 0)); late < 4*time.Second || late > 20*time.Second {
				t.Errorf("%s, %s: iat is %s ago", name, who, late)
			}
			if exp, ok := want["exp"].(float64); ok && exp-iat != 15*60 {
				t.Errorf("%s, %s: exp is %v s after iat", name, who, exp-iat)
			}
		}
	}
	all := oidc.JWT{Claims: []string{"exp", "nbf", "jti"}}
	good := sign(t, signer(t, all, clock.System{}), id, key, users["plain"])
	if a, b := pyjwt(t, at, good, key), pyjwt(t, at, sign(t, signer(t, all, clock.System{}), id, key, users["plain"]), key); a.Claims["jti"] == b.Claims["jti"] {
		t.Error("two JWTs have one jti")
	}
	head, rest, _ := strings.Cut(good, ".")
	payload, _, _ := strings.Cut(rest, ".")
	for what, c := range map[string]struct{ token, secret, code string }{
		"wrong secret":    {good, key + "x", "InvalidSignatureError"},
		"other payload":   {head + "." + payload[:20] + "A" + payload[21:] + good[len(head)+1+len(payload):], key, "InvalidSignatureError"},
		"not back-dated":  {sign(t, signer(t, oidc.JWT{}, off{30 * time.Second}), id, key, users["plain"]), key, "ImmatureSignatureError"},
		"run out":         {sign(t, signer(t, all, off{-16 * time.Minute}), id, key, users["plain"]), key, "ExpiredSignatureError"},
		"a slow clock":    {sign(t, signer(t, all, off{-10 * time.Minute}), id, key, users["plain"]), key, ""},
		"within backdate": {sign(t, signer(t, oidc.JWT{BackDate: clock.Duration(time.Minute)}, off{30 * time.Second}), id, key, users["plain"]), key, ""},
	} {
		if a := pyjwt(t, at, c.token, c.secret); a.Code != c.code {
			t.Errorf("%s: %q, want %q", what, a.Code, c.code)
		}
	}
}

func TestOpenZaak(t *testing.T) {
	real.Row(t, area, "commonground-api-common 2.16.0", "the check that Open Zaak runs takes every JWT, and refuses with the documented codes")
	at := site(t)
	for who, u := range users {
		for _, claims := range [][]string{nil, {"exp"}, {"exp", "nbf", "jti"}} {
			status, a := call(t, http.MethodGet, at+"/zaken/api/v1/zaken", sign(t, signer(t, oidc.JWT{Claims: claims}, clock.System{}), id, key, u), nil)
			if status != http.StatusOK || a.ClientID != id || a.UserID != u.ID || a.User != u.Representation {
				t.Errorf("%s %v: %d %+v", who, claims, status, a)
			}
		}
	}
	now := clock.System{}
	for code, token := range map[string]string{
		"invalid-jwt-signature":     sign(t, signer(t, oidc.JWT{}, now), id, key+"x", oidc.User{}),
		"invalid-client-identifier": sign(t, signer(t, oidc.JWT{}, now), id+"x", key, oidc.User{}),
		"missing-client-identifier": sign(t, signer(t, oidc.JWT{Form: "2018", Scopes: []string{"zds.scopes.zaken.lezen"}}, now), id, key, oidc.User{}),
		"jwt-decode-error":          "a.b.c",
		"jwt-expired":               sign(t, signer(t, oidc.JWT{}, off{-time.Hour}), id, key, oidc.User{}), // an hour after iat
		"not_authenticated":         "",
	} {
		status, a := call(t, http.MethodGet, at+"/zaken/api/v1/zaken", token, nil)
		if status != http.StatusForbidden || a.Code != code {
			t.Errorf("%d %q, want %q", status, a.Code, code)
		}
	}
}

// The field's clients make the same JWT: header and claims, but for the times.
func TestClients(t *testing.T) {
	at := site(t)
	scopes, types := []string{"zds.scopes.zaken.lezen"}, []string{"https://ztc.example/api/v1/zaaktypen/1"}
	u := users["letters"]
	for _, c := range []struct {
		library, server string
		jwt             oidc.JWT
		made            map[string]any
	}{
		{"gemma-zds-client", "gemma-zds-client 2.0.0", oidc.JWT{}, map[string]any{"user_id": u.ID, "user_representation": u.Representation}},
		{"zgw-consumers", "zgw-consumers 1.2.1", oidc.JWT{Claims: []string{"exp"}}, map[string]any{"user_id": u.ID, "user_representation": u.Representation}},
		{"2018", "gemma-zds-client 0.6.2", oidc.JWT{Form: "2018", Scopes: scopes, Zaaktypes: types}, map[string]any{"scopes": scopes, "zaaktypes": types}},
	} {
		t.Run(c.library, func(t *testing.T) {
			real.Row(t, area, c.server, "makes the same JWT, header and claims")
			body := map[string]any{"library": c.library, "client_id": id, "secret": key}
			maps.Copy(body, c.made)
			_, made := call(t, http.MethodPost, at+"/make", "", body)
			theirs := pyjwt(t, at, made.Token, key)
			asked := u
			if c.jwt.Form == "2018" { // it names no user
				asked = oidc.User{}
			}
			ours := pyjwt(t, at, sign(t, signer(t, c.jwt, clock.System{}), id, key, asked), key)
			if theirs.Code != "" || ours.Code != "" {
				t.Fatalf("theirs %q, ours %q", theirs.Code, ours.Code)
			}
			for _, claims := range []map[string]any{ours.Claims, theirs.Claims} {
				for _, at := range []string{"iat", "exp"} { // the same claims, at another time
					if _, ok := claims[at].(float64); ok {
						claims[at] = 0
					}
				}
			}
			if !reflect.DeepEqual(ours.Header, theirs.Header) || !reflect.DeepEqual(ours.Claims, theirs.Claims) {
				t.Errorf("ours %v %v\ntheirs %v %v", ours.Header, ours.Claims, theirs.Header, theirs.Claims)
			}
		})
	}
}
