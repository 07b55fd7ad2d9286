package oidc

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
)

const (
	revoke     = "https://issuer.example/revoke"
	introspect = "https://issuer.example/introspect"
)

func TestRevoke(t *testing.T) {
	token := secret.FromString("t+k=n")
	for _, c := range []struct {
		name string
		r    reply
		want Kind
		says string
	}{
		{"done", reply{status: 200, ctype: "-"}, "", ""},
		{"done, with an object", reply{status: 200, body: "{}"}, "", ""},
		{"done, an empty page", reply{status: 200, ctype: "text/html", body: " \n"}, "", ""},
		{"a page", reply{status: 200, ctype: "text/html", body: "<html>" + marker}, Protocol, "may live on"},
		{"not now", reply{status: 503, header: map[string]string{"Retry-After": "60"}}, Unavailable, ""},
		{"throttled", reply{status: 429}, Throttled, ""},
		{"type", reply{status: 400, body: `{"error":"unsupported_token_type"}`}, Refused, "by themselves"},
		{"client", reply{status: 401, body: `{"error":"invalid_client"}`}, InvalidClient, "client_secret"},
		{"grant", reply{status: 400, body: `{"error":"invalid_grant"}`}, Refused, ""},
		{"absent", reply{status: 404, ctype: "text/html"}, Protocol, "revocation_endpoint"},
		{"redirect", reply{status: 302}, Protocol, "revocation_endpoint"},
	} {
		s := &site{pages: map[string]func(asked) reply{revoke: func(asked) reply { return c.r }}}
		p := Profile{RevocationEndpoint: revoke, Params: map[string]string{"x": "y"}, RequestFormat: formatJSON, ClientAuth: SecretBasic}
		err := open(t, p, s, clock.System{}).Revoke(t.Context(), material(), token, "refresh_token")
		if q := s.last(); q.form.Encode() != (url.Values{"token": {"t+k=n"}, "token_type_hint": {"refresh_token"}}).Encode() || q.auth == "" || q.ctype != "application/x-www-form-urlencoded" || len(s.seen) != 1 {
			t.Errorf("%s: sent %v", c.name, q)
		}
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		if e := wantKind(t, err, c.want); !strings.Contains(e.Error(), c.says) || strings.Contains(e.Error(), marker) || c.name == "not now" && e.RetryAfter != time.Minute {
			t.Errorf("%s: %+v", c.name, *e)
		}
	}
}

func TestRevokeAuthenticates(t *testing.T) {
	for _, c := range []struct {
		p    Profile
		want string
		cert bool
	}{
		{Profile{}, "client_id client_secret token", false},
		{Profile{ClientAuth: PrivateKeyJWT}, "client_assertion client_assertion_type client_id token", false},
		{Profile{ClientAuth: TLS}, "client_id token", true},
		{Profile{CertificateBound: true}, "client_id client_secret token", false}, // it is for tokens alone
		{Profile{Grant: JWTBearer, ClientAuth: NoAuth}, "client_id token", false}, // without the grant's assertion
	} {
		s := &site{pages: map[string]func(asked) reply{revoke: page(200, "")}}
		c.p.RevocationEndpoint = revoke
		if err := open(t, c.p, s, clock.System{}).Revoke(t.Context(), everything(), secret.FromString("tok"), ""); err != nil {
			t.Errorf("%s: %v", c.p.ClientAuth, err)
		}
		if q := s.last(); names(q.form) != c.want || (q.cert != nil) != c.cert {
			t.Errorf("%s: sent %s, certificate %v", c.p.ClientAuth, names(q.form), q.cert != nil)
		}
	}
}

func TestIntrospect(t *testing.T) {
	for _, c := range []struct {
		body string
		want Introspection
		ok   bool
	}{
		{`{"active":true,"scope":"a  b","exp":1700000000,"iat":1600000000,"client_id":"c","token_type":"Bearer","x":[1]}`,
			Introspection{true, "c", "a b", time.Unix(1600000000, 0).UTC(), time.Unix(1700000000, 0).UTC()}, true},
		{`{"active":true,"client_id":7,"iat":-1}`, Introspection{Active: true}, true},
		{`{"active":true}`, Introspection{Active: true}, true},
		{`{"active":true,"exp":"1700000000"}`, Introspection{Active: true, Expires: time.Unix(1700000000, 0).UTC()}, true},
		{`{"active":true,"exp":-1}`, Introspection{Active: true}, true},
		{`{"active":true,"exp":1e300}`, Introspection{Active: true}, true},
		{`{"active":false,"scope":7}`, Introspection{}, true},
		{`{"active":"true"}`, Introspection{}, false},
		{`{"Active":true}`, Introspection{}, false},
		{`{"active":1}`, Introspection{}, false},
		{`{}`, Introspection{}, false},
		{`true`, Introspection{}, false},
		{``, Introspection{}, false},
		{`{"active":true,"scope":["a"]}`, Introspection{}, false},
		{`{"active":true,"scope":"a\nb"}`, Introspection{}, false},
		{`{"active":true,"error":"x"}`, Introspection{}, false},
		{`{"active":true}` + strings.Repeat(" ", maxAnswer), Introspection{}, false},
	} {
		s := &site{pages: map[string]func(asked) reply{introspect: page(200, c.body)}}
		got, err := open(t, Profile{IntrospectionEndpoint: introspect, Params: map[string]string{"x": "y"}, IntrospectionParams: map[string]string{"p": "q"}}, s, clock.System{}).Introspect(t.Context(), material(), secret.FromString("tok"))
		if (err == nil) != c.ok || got != c.want {
			t.Errorf("%.60s: %+v, %v", c.body, got, err)
		}
		if err != nil {
			wantKind(t, err, Protocol)
		}
		if names(s.last().form) != "client_id client_secret p token" {
			t.Errorf("sent %s", names(s.last().form))
		}
	}
	s := &site{pages: map[string]func(asked) reply{introspect: func(asked) reply { return reply{status: 200, ctype: "text/html", body: `{"active":true}`} }}}
	_, err := open(t, Profile{IntrospectionEndpoint: introspect}, s, clock.System{}).Introspect(t.Context(), material(), secret.FromString("tok"))
	wantKind(t, err, Protocol)
}

func TestNoSuchEndpoint(t *testing.T) {
	ask := func(c *Client) (error, error) {
		_, err := c.Introspect(t.Context(), material(), secret.FromString("tok"))
		return c.Revoke(t.Context(), material(), secret.FromString("tok"), ""), err
	}
	s := &site{pages: map[string]func(asked) reply{at8414: page(200, document(map[string]any{"revocation_endpoint": nil, "introspection_endpoint": nil}))}}
	for _, c := range []*Client{
		open(t, Profile{}, s, clock.System{}),
		open(t, Profile{Issuer: op}, s, clock.System{}), // its name alone, beside a token endpoint, is no promise of metadata
		discover(t, Profile{}, s, clock.System{}),
		discover(t, Profile{Grant: SelfSigned}, roundTrip(nil), clock.System{}), // a request would panic
	} {
		r, i := ask(c)
		if e := wantKind(t, r, Refused); !strings.Contains(e.Error(), "revocation_endpoint") {
			t.Error(e)
		}
		if e := wantKind(t, i, Refused); !strings.Contains(e.Error(), "introspection_endpoint") {
			t.Error(e)
		}
	}
	for _, q := range s.seen {
		if q.raw != "" {
			t.Errorf("a secret was shown to %s", q.at)
		}
	}
	s.pages[at8414] = page(200, document(nil))
	s.pages["https://op.example/revoke"] = page(200, "")
	s.pages["https://op.example/introspect"] = page(200, `{"active":true}`)
	for _, c := range []*Client{discover(t, Profile{}, s, clock.System{}), open(t, Profile{Issuer: op, MetadataURI: at8414}, s, clock.System{})} {
		if r, i := ask(c); r != nil || i != nil {
			t.Errorf("%v, %v", r, i)
		}
	}
}
