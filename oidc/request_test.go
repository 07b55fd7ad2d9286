package oidc

import (
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
)

func names(v url.Values) string {
	var out []string
	for k, values := range v {
		for range values {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// One method alone is in each request, as a form and as JSON.
func TestClientAuthentication(t *testing.T) {
	const assertion = "client_assertion client_assertion_type client_id"
	for _, c := range []struct {
		auth  ClientAuth
		bound bool
		names string
		basic bool
		cert  bool
	}{
		{SecretPost, false, "client_id client_secret", false, false},
		{SecretBasic, false, "", true, false},
		{SecretJWT, false, assertion, false, false},
		{PrivateKeyJWT, false, assertion, false, false},
		{TLS, false, "client_id", false, true},
		{SelfSignedTLS, false, "client_id", false, true},
		{SecretPost, true, "client_id client_secret", false, true},
		{SecretBasic, true, "", true, true},
		{PrivateKeyJWT, true, assertion, false, true},
		{NoAuth, false, "client_id", false, false},
	} {
		for _, format := range []string{"", formatJSON} {
			for _, grant := range []Grant{ClientCredentials, AuthorizationCode, JWTBearer} {
				if c.auth == NoAuth && grant == ClientCredentials {
					continue
				}
				t.Run(string(c.auth)+" "+format+" "+string(grant), func(t *testing.T) {
					s := &site{pages: map[string]func(asked) reply{endpoint: page(200, good)}}
					p := Profile{Grant: grant, ClientAuth: c.auth, RequestFormat: format, CertificateBound: c.bound}
					client := open(t, p, s, clock.System{})
					tok, err := client.Mint(t.Context(), everything(), Request{Scope: "a b"})
					if err != nil {
						t.Fatal(err)
					}
					q := s.last()
					want := strings.Fields(c.names + " grant_type scope" + map[Grant]string{AuthorizationCode: " refresh_token", JWTBearer: " assertion"}[grant])
					slices.Sort(want)
					if got := names(q.form); got != strings.Join(want, " ") {
						t.Errorf("sent %s, want %s", got, want)
					}
					if (q.auth != "") != c.basic || (q.cert != nil) != c.cert {
						t.Errorf("header %v, certificate %v", q.auth != "", q.cert != nil)
					}
					if isJSON := q.ctype == "application/json"; isJSON != (format == formatJSON) {
						t.Errorf("sent as %s", q.ctype)
					}
					if got := q.form.Get("refresh_token"); grant == AuthorizationCode && got != `r"e\f`+"\u00e9" {
						t.Errorf("refresh token %q", got)
					}
					if got := q.form.Get("client_secret"); got != "" && got != reveal(t, everything()["client_secret"]) {
						t.Errorf("client_secret %q", got)
					}
					if jwt := q.form.Get("client_assertion"); jwt != "" {
						if cl := claimsOf(t, jwt); cl["iss"] != clientID || cl["sub"] != clientID || q.form.Get("client_assertion_type") != assertionType {
							t.Errorf("claims %v", cl)
						}
					}
					wantBound := ""
					if c.bound {
						wantBound = pair().thumbprint
					}
					if tok.Bound != wantBound {
						t.Errorf("bound to %q, want %q", tok.Bound, wantBound)
					}
				})
			}
		}
	}
}

func TestSecretsThatJSONCannotHold(t *testing.T) {
	s := &site{pages: map[string]func(asked) reply{endpoint: page(200, good)}}
	m := everything()
	m["client_secret"] = secret.FromString("a\xff")
	_, err := open(t, Profile{RequestFormat: formatJSON}, s, clock.System{}).Mint(t.Context(), m, Request{})
	if e := wantKind(t, err, Refused); !strings.Contains(e.Error(), "UTF-8") || len(s.seen) != 0 {
		t.Errorf("%v after %d requests", e, len(s.seen))
	}
	m["client_secret"] = secret.FromString("\x00\x1f\"\\/\u2028\U0001f600\x7f")
	if _, err := open(t, Profile{RequestFormat: formatJSON}, s, clock.System{}).Mint(t.Context(), m, Request{}); err != nil {
		t.Fatal(err)
	}
	if got := s.last().form.Get("client_secret"); got != "\x00\x1f\"\\/\u2028\U0001f600\x7f" {
		t.Errorf("a server reads %q", got)
	}
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	m["client_secret"] = secret.FromString(string(all))
	if _, err := open(t, Profile{}, s, clock.System{}).Mint(t.Context(), m, Request{}); err != nil || s.last().form.Get("client_secret") != string(all) {
		t.Errorf("a form takes any bytes: %v", err)
	}
}

// A buffer that grows would leave a copy of the secret behind.
func TestTheBodyDoesNotGrow(t *testing.T) {
	m := material()
	m["client_id"], m["client_secret"] = secret.FromString(strings.Repeat("\x00", 500)), secret.FromString(strings.Repeat("\x1f", 5000))
	for _, format := range []string{"", formatJSON} {
		c := open(t, Profile{RequestFormat: format}, &site{}, clock.System{})
		q := &request{endpoint: tokenEndpoint}
		q.asks(grantClient)
		q.text("scope", strings.Repeat("\x00", 100))
		f, err := c.encode(m, q, &url.URL{Scheme: "https", Host: "issuer.example"})
		if err != nil || cap(f.all) != q.size() || len(f.all) > q.size() {
			t.Errorf("%q: %d bytes in %d, for which there was room for %d, %v", format, len(f.all), cap(f.all), q.size(), err)
		}
	}
}

func TestAssertionsAreWiped(t *testing.T) {
	c := open(t, Profile{Grant: JWTBearer, ClientAuth: PrivateKeyJWT}, &site{}, clock.System{})
	q := &request{endpoint: tokenEndpoint}
	q.asks(grantJWT)
	if _, err := c.encode(everything(), q, &url.URL{Scheme: "https", Host: "issuer.example"}); err != nil {
		t.Fatal(err)
	}
	made := 0
	for _, p := range q.params {
		if p.made {
			if made++; !errors.Is(p.value.Use(func([]byte) error { return nil }), secret.ErrWiped) {
				t.Errorf("%s is left", p.name)
			}
		}
	}
	if made != 2 {
		t.Errorf("%d assertions", made)
	}
}

func TestCertificateNeedsATransportThatHasOne(t *testing.T) {
	rt := roundTrip(nil) // a request would panic
	_, err := open(t, Profile{ClientAuth: TLS}, rt, clock.System{}).Mint(t.Context(), everything(), Request{})
	wantKind(t, err, Refused)
}

func TestNobodyHasLoggedIn(t *testing.T) {
	s := &site{}
	m := everything()
	delete(m, "refresh_token")
	_, err := open(t, Profile{Grant: AuthorizationCode}, s, clock.System{}).Mint(t.Context(), m, Request{})
	if e := wantKind(t, err, InvalidGrant); !strings.Contains(e.Error(), "broker login") || len(s.seen) != 0 {
		t.Errorf("%v after %d requests", e, len(s.seen))
	}
	_, err = open(t, Profile{Grant: NoGrant}, s, clock.System{}).Mint(t.Context(), m, Request{})
	wantKind(t, err, Refused)
}

// What a refusal says depends on what was refused.
func TestRefusals(t *testing.T) {
	doc := func(code string) string { return `{"error":"` + code + `","error_description":"` + marker + `"}` }
	for _, c := range []struct {
		p      Profile
		status int
		code   string
		want   Kind
		says   string
	}{
		{Profile{}, 400, "invalid_grant", Refused, "preset"},
		{Profile{ClientAuth: SecretJWT}, 401, "invalid_client", InvalidClient, "client_secret"},
		{Profile{ClientAuth: PrivateKeyJWT}, 401, "invalid_client", InvalidClient, "broker keys show CLIENT"},
		{Profile{ClientAuth: PrivateKeyJWT}, 400, "invalid_client", InvalidClient, "the clock"},
		{Profile{ClientAuth: TLS}, 401, "invalid_client", InvalidClient, "certificate"},
		{Profile{ClientAuth: SelfSignedTLS}, 401, "unauthorized_client", InvalidClient, "certificate"},
		{Profile{Grant: AuthorizationCode}, 400, "invalid_grant", InvalidGrant, "broker login"},
		{Profile{Grant: AuthorizationCode}, 401, "invalid_grant", InvalidGrant, "refresh token"},
		{Profile{Grant: AuthorizationCode}, 403, "invalid_grant", Refused, "403"},
		{Profile{Grant: AuthorizationCode}, 401, "invalid_client", InvalidClient, "client_secret"},
		{Profile{Grant: AuthorizationCode, ClientAuth: NoAuth}, 401, "invalid_client", InvalidClient, "public"},
		{Profile{Grant: AuthorizationCode}, 500, "invalid_grant", Unavailable, "500"},
		{Profile{Grant: JWTBearer, ClientAuth: NoAuth}, 400, "invalid_grant", InvalidGrant, "broker keys show CLIENT"},
		{Profile{Grant: JWTBearer}, 400, "invalid_client", InvalidClient, "client_secret"},
		{Profile{Grant: JWTBearer}, 400, "unsupported_grant_type", Refused, "jwt-bearer"},
	} {
		s := &site{pages: map[string]func(asked) reply{endpoint: page(c.status, doc(c.code))}}
		_, err := open(t, c.p, s, clock.System{}).Mint(t.Context(), everything(), Request{})
		if e := wantKind(t, err, c.want); e.Code != c.code || !strings.Contains(e.Error(), c.says) || strings.Contains(e.Error(), marker) {
			t.Errorf("%s %s, %d %s: %q does not say %q", c.p.Grant, c.p.ClientAuth, c.status, c.code, e, c.says)
		}
	}
}

// An issuer that checks assertions by its own clock.
func clocked(ahead time.Duration, code string) *site {
	s := &site{date: ahead}
	s.pages = map[string]func(asked) reply{endpoint: func(q asked) reply {
		now := float64(time.Now().Add(s.date).Unix())
		for _, name := range []string{"client_assertion", "assertion"} {
			jwt := q.form.Get(name)
			if jwt == "" {
				continue
			}
			if payload, ok := jwtPayload([]byte(jwt)); !ok || len(payload) == 0 {
				return reply{status: 400, body: `{"error":"invalid_request"}`}
			} else if n := parseClaims(payload); n.exp <= now || n.iat > now {
				return reply{status: map[string]int{"invalid_client": 401, "invalid_grant": 400}[code], body: `{"error":"` + code + `"}`}
			}
		}
		return reply{status: 200, body: good}
	}}
	return s
}

// A clock that is off costs one request and locks nobody out.
func TestAssertionsFollowTheIssuersClock(t *testing.T) {
	for _, c := range []struct {
		p    Profile
		code string
	}{
		{Profile{ClientAuth: PrivateKeyJWT}, "invalid_client"},
		{Profile{ClientAuth: SecretJWT}, "invalid_client"},
		{Profile{ClientAuth: PrivateKeyJWT}, "invalid_grant"},
		{Profile{Grant: JWTBearer, ClientAuth: NoAuth}, "invalid_grant"},
		{Profile{Grant: JWTBearer}, "invalid_grant"},
	} {
		for _, ahead := range []time.Duration{10 * time.Minute, -10 * time.Minute, maxSkew - time.Second} {
			synctest.Test(t, func(t *testing.T) {
				s := clocked(ahead, c.code)
				client := open(t, c.p, s, clock.NewBubble())
				_, err := client.Mint(t.Context(), everything(), Request{})
				e := wantKind(t, err, Unavailable)
				if e.RetryAfter != time.Second || !strings.Contains(e.Error(), "this machine's clock is") || e.Code != c.code {
					t.Errorf("%+v", *e)
				}
				time.Sleep(time.Second)
				tok, err := client.Mint(t.Context(), everything(), Request{})
				if err != nil || (tok.Skew-ahead).Abs() > time.Second {
					t.Errorf("%s %s, %v ahead: %v, skew %v", c.p.Grant, c.p.ClientAuth, ahead, err, tok.Skew)
				}
				// The clock is corrected: that costs one again.
				s.date = 0
				_, err = client.Mint(t.Context(), everything(), Request{})
				if e := wantKind(t, err, Unavailable); !strings.Contains(e.Error(), "was set meanwhile") {
					t.Error(e)
				}
				if _, err = client.Mint(t.Context(), everything(), Request{}); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Test(t, func(t *testing.T) { // no Date dates an assertion to another day
			s := clocked(26*time.Hour, c.code)
			client := open(t, c.p, s, clock.NewBubble())
			for range 2 {
				if _, err := client.Mint(t.Context(), everything(), Request{}); err == nil || KindOf(err) == Unavailable {
					t.Errorf("%s %s: %v", c.p.Grant, c.p.ClientAuth, err)
				}
			}
		})
		synctest.Test(t, func(t *testing.T) { // a small error is no excuse
			s := clocked(0, c.code)
			s.pages[endpoint] = page(401, `{"error":"`+c.code+`"}`)
			s.date = 29 * time.Second
			_, err := open(t, c.p, s, clock.NewBubble()).Mint(t.Context(), everything(), Request{})
			if KindOf(err) == Unavailable {
				t.Errorf("%s %s: %v", c.p.Grant, c.p.ClientAuth, err)
			}
			// A secret has nothing to do with clocks.
			s.date = time.Hour
			_, err = open(t, Profile{}, s, clock.NewBubble()).Mint(t.Context(), everything(), Request{})
			if KindOf(err) == Unavailable {
				t.Errorf("a secret: %v", err)
			}
		})
	}
}

// The Date of a document says nothing of the token endpoint's clock: it may come
// from a cache, or from another host.
func TestDatesOfDocuments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := clocked(0, "invalid_client")
		s.pages[jwksURI] = func(asked) reply {
			return reply{status: 200, body: jwks(t, listed()...), header: map[string]string{"Date": "Fri, 02 Jan 1998 03:04:05 GMT"}}
		}
		client := open(t, checked(Profile{ClientAuth: PrivateKeyJWT}), s, clock.NewBubble())
		if _, err := client.Mint(t.Context(), everything(), Request{}); err != nil {
			t.Error(err)
		}
		time.Sleep(2 * time.Hour)
		if _, err := client.Mint(t.Context(), everything(), Request{}); err != nil || s.count(jwksURI) != 2 {
			t.Errorf("%v after %d fetches", err, s.count(jwksURI))
		}
	})
}

func TestTokenTypeMayBeOptional(t *testing.T) {
	for body, ok := range map[string]bool{
		`{"access_token":"x"}`:                                         true,
		`{"access_token":"x","token_type":null}`:                       true,
		`{"access_token":"x","token_type":"bearer"}`:                   true,
		`{"access_token":"x","token_type":"mac"}`:                      false,
		`{"access_token":"x","token_type":""}`:                         false,
		`{"access_token":"x","token_type":7}`:                          false,
		`{"access_token":"x","refresh_token":"r","expires_in":"7200"}`: true,
	} {
		tok, err := mint(t, Profile{TokenType: typeOptional}, reply{status: 200, body: body}, Request{})
		if (err == nil) != ok || ok && tok.Type != "Bearer" {
			t.Errorf("%s: %+v, %v", body, tok, err)
		}
		if !tok.Refresh.Empty() {
			t.Error("client_credentials has no refresh token (RFC 6749 §4.4.3)")
		}
	}
}

func TestRefreshToken(t *testing.T) {
	p := Profile{Grant: AuthorizationCode}
	for _, c := range []struct {
		member, want string
		ok           bool
	}{
		{``, "", true}, {`,"refresh_token":null`, "", true}, {`,"refresh_token":""`, "", true},
		{`,"refresh_token":"n\u0065w"`, "new", true},
		{`,"refresh_token":"` + strings.Repeat("r", maxToken) + `"`, strings.Repeat("r", maxToken), true},
		{`,"refresh_token":"` + strings.Repeat("r", maxToken+1) + `"`, "", false},
		{`,"refresh_token":"a\nb"`, "", false}, {`,"refresh_token":["a"]`, "", false}, {`,"refresh_token":7`, "", false},
		// The login goes on even if the rest of the answer is of no use.
		{`,"refresh_token":"new","token_type":"mac"`, "new", false},
		{`,"refresh_token":"new","access_token":""`, "new", false},
		{`,"refresh_token":"new","scope":[]`, "new", false},
		{`,"refresh_token":"new","error":"invalid_grant"`, "", false},
	} {
		s := &site{pages: map[string]func(asked) reply{endpoint: page(200, good[:len(good)-1]+c.member+"}")}}
		tok, err := open(t, p, s, clock.System{}).Mint(t.Context(), everything(), Request{})
		if (err == nil) != c.ok || reveal(t, tok.Refresh) != c.want || !c.ok && !tok.Access.Empty() {
			t.Errorf("%.40s: %q, %v", c.member, reveal(t, tok.Refresh), err)
		}
		if err != nil {
			wantKind(t, err, Protocol)
		}
	}
}

func TestBoundTokens(t *testing.T) {
	mine, other := pair().thumbprint, strings.Repeat("x", 43)
	jwt := func(cnf string) string { return b64(`{"alg":"none"}`) + "." + b64(`{"jti":"j"`+cnf+`}`) + ".s" }
	for _, c := range []struct {
		p           Profile
		token, want string
		says        string // "" means accepted
	}{
		{Profile{}, jwt(``), "", ""},
		{Profile{}, jwt(`,"cnf":{"x5t#S256":"` + other + `"}`), other, ""},
		{Profile{ClientAuth: TLS}, jwt(``), "", ""},
		{Profile{ClientAuth: TLS}, "opaque", "", ""},
		{Profile{ClientAuth: TLS}, jwt(`,"cnf":{"x5t#S256":"` + mine + `"}`), mine, ""},
		{Profile{ClientAuth: SelfSignedTLS}, jwt(`,"cnf":{"x5t#S256":"` + other + `"}`), "", "another certificate"},
		{Profile{ClientAuth: TLS}, jwt(`,"cnf":{"jkt":"` + other + `"}`), "", ""},
		{Profile{ClientAuth: TLS}, jwt(`,"cnf":"` + other + `"`), "", ""},
		{Profile{ClientAuth: TLS}, jwt(`,"cnf":{"x5t#S256":"` + mine + `="}`), "", "another certificate"},
		{Profile{}, jwt(`,"cnf":{"x5t#S256":7}`), "", "another certificate"},
		{Profile{CertificateBound: true}, "opaque", mine, ""},
		{Profile{CertificateBound: true}, jwt(`,"cnf":{"x5t#S256":"` + mine + `"}`), mine, ""},
		{Profile{CertificateBound: true}, jwt(``), "", "not bound"},
		{Profile{CertificateBound: true}, jwt(`,"cnf":{}`), "", "not bound"},
		{Profile{CertificateBound: true, ClientAuth: TLS}, b64(`{"alg":"none"}`) + ".!.s", "", "not bound"},
	} {
		s := &site{pages: map[string]func(asked) reply{endpoint: page(200, strings.Replace(good, `"tok"`, `"`+c.token+`"`, 1))}}
		tok, err := open(t, c.p, s, clock.System{}).Mint(t.Context(), everything(), Request{})
		if c.says == "" && (err != nil || tok.Bound != c.want) {
			t.Errorf("%s %s: bound to %q, %v", c.p.ClientAuth, c.token, tok.Bound, err)
		}
		if c.says != "" {
			if e := wantKind(t, err, Protocol); !strings.Contains(e.Error(), c.says) {
				t.Errorf("%s: %v", c.token, e)
			}
		}
	}
}
