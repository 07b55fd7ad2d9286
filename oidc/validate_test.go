package oidc

import (
	"strings"
	"testing"
	"time"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/outbound"
)

func TestValidate(t *testing.T) {
	const ok = "https://issuer.example/token"
	for _, c := range []struct {
		name string
		p    Profile
		want string // "" means valid; else each word must be in the error
	}{
		{"plain", Profile{TokenEndpoint: ok}, ""},
		{"loopback", Profile{TokenEndpoint: "http://127.0.0.1:8080/token"}, ""},
		{"loopback by name", Profile{TokenEndpoint: "http://localhost/token"}, ""},
		{"query", Profile{TokenEndpoint: ok + "?tenant=a"}, ""},
		{"issuer alone", Profile{TokenEndpoint: ok, Issuer: "https://issuer.example"}, ""},
		{"keys", Profile{TokenEndpoint: ok, Issuer: "x", JWKSURI: ok, Algorithms: []string{"RS256", "EdDSA"}}, ""},
		{"nothing", Profile{}, "token_endpoint missing issuer"},
		{"grant", Profile{TokenEndpoint: ok, Grant: "password"}, "grant password client_credentials self_signed"},
		{"method", Profile{TokenEndpoint: ok, ClientAuth: "client_secret"}, "client_auth client_secret client_secret_basic private_key_jwt"},
		{"formats", Profile{TokenEndpoint: ok, RequestFormat: "xml", TokenType: "mac"}, "request_format xml json token_type mac optional"},
		{"words", Profile{TokenEndpoint: ok, Grant: ClientCredentials, RequestFormat: "form", TokenType: "required"}, ""},
		{"discovery", Profile{Issuer: "https://issuer.example/a"}, ""},
		{"discovery by URL", Profile{Issuer: "urn:x", MetadataURI: ok}, ""},
		{"discovery of nothing", Profile{MetadataURI: ok}, "issuer missing metadata_uri"},
		{"discovery below a name", Profile{Issuer: "urn:x"}, "issuer metadata token_endpoint URL"},
		{"discovery without TLS", Profile{Issuer: "http://issuer.example"}, "issuer https"},
		{"discovery with a query", Profile{Issuer: "https://issuer.example/?a=b"}, "issuer query"},
		{"metadata over http", Profile{TokenEndpoint: ok, Issuer: "x", MetadataURI: "http://issuer.example"}, "metadata_uri https"},
		{"endpoints over http", Profile{TokenEndpoint: ok, AuthorizationEndpoint: "http://a.example", RevocationEndpoint: "http://a.example", IntrospectionEndpoint: "http://a.example"},
			"authorization_endpoint revocation_endpoint introspection_endpoint https"},
		{"self-signed", Profile{Grant: SelfSigned}, ""},
		{"API key alone", Profile{Grant: NoGrant}, ""},
		{"login", Profile{TokenEndpoint: ok, Grant: AuthorizationCode, AuthorizationEndpoint: ok}, ""},
		{"login, discovered", Profile{Issuer: "https://issuer.example", Grant: AuthorizationCode}, ""},
		{"login, half discovered", Profile{TokenEndpoint: ok, Issuer: "https://issuer.example", Grant: AuthorizationCode}, ""},
		{"login nowhere", Profile{TokenEndpoint: ok, Grant: AuthorizationCode}, "authorization_endpoint missing"},
		{"login below a name", Profile{TokenEndpoint: ok, Issuer: "urn:x", Grant: AuthorizationCode}, "issuer authorization_endpoint URL"},
		{"redirects", Profile{TokenEndpoint: ok, Grant: AuthorizationCode, AuthorizationEndpoint: ok, RedirectURI: "http://127.0.0.1:4711/x"}, ""},
		{"redirect of its own scheme", Profile{TokenEndpoint: ok, Grant: AuthorizationCode, AuthorizationEndpoint: ok, RedirectURI: "com.example:/x"}, "redirect_uri loopback"},
		{"redirect over http", Profile{TokenEndpoint: ok, Grant: AuthorizationCode, AuthorizationEndpoint: ok, RedirectURI: "http://app.example/x"}, "redirect_uri https"},
		{"redirect to a fragment", Profile{TokenEndpoint: ok, Grant: AuthorizationCode, AuthorizationEndpoint: ok, RedirectURI: "https://app.example/#x"}, "redirect_uri fragment"},
		{"login's parameters", Profile{TokenEndpoint: ok, AuthorizationParams: map[string]string{"prompt": "login", "audience": "a"}}, ""},
		{"login's own parameter", Profile{TokenEndpoint: ok, AuthorizationParams: map[string]string{"state": "a"}}, "authorization_params state"},
		{"login's challenge", Profile{TokenEndpoint: ok, AuthorizationParams: map[string]string{"code_challenge_method": "plain"}}, "authorization_params code_challenge_method"},
		{"login's redirect", Profile{TokenEndpoint: ok, AuthorizationParams: map[string]string{"redirect_uri": "a"}}, "authorization_params redirect_uri"},
		{"login's scope", Profile{TokenEndpoint: ok, AuthorizationParams: map[string]string{"scope": "a"}}, "authorization_params set scope"},
		{"login's secret", Profile{TokenEndpoint: ok, AuthorizationParams: map[string]string{"client_secret": "hunter2"}}, "authorization_params secrets manager"},
		{"redirect as a parameter", Profile{TokenEndpoint: ok, Params: map[string]string{"redirect_uri": "a"}}, "params redirect_uri"},
		{"certificate", Profile{TokenEndpoint: ok, ClientAuth: TLS}, ""},
		{"certificate without TLS", Profile{TokenEndpoint: "http://127.0.0.1/", ClientAuth: TLS}, "client_auth https"},
		{"binding without TLS", Profile{TokenEndpoint: "http://127.0.0.1/", CertificateBound: true}, "certificate https"},
		{"nobody", Profile{TokenEndpoint: ok, ClientAuth: NoAuth}, "client_auth client_credentials"},
		{"a public client", Profile{TokenEndpoint: ok, ClientAuth: NoAuth, Grant: JWTBearer}, ""},
		{"assertion", Profile{TokenEndpoint: ok, ClientAuth: PrivateKeyJWT, Assertion: Assertion{KeyID: "x"}}, "assertion.key_id x"},
		{"http", Profile{TokenEndpoint: "http://issuer.example/token"}, "token_endpoint http https"},
		{"http to a look-alike", Profile{TokenEndpoint: "http://localhost.example/token"}, "token_endpoint https"},
		{"no host", Profile{TokenEndpoint: "https:///token"}, "token_endpoint URL"},
		{"no URL", Profile{TokenEndpoint: "issuer.example/token"}, "token_endpoint URL"},
		{"ftp", Profile{TokenEndpoint: "ftp://issuer.example"}, "token_endpoint URL"},
		{"garbage", Profile{TokenEndpoint: "https://%zz"}, "token_endpoint URL"},
		{"user", Profile{TokenEndpoint: "https://u:hunter2@issuer.example/"}, "token_endpoint password"},
		{"fragment", Profile{TokenEndpoint: ok + "#x"}, "fragment"},
		{"secret in the query", Profile{TokenEndpoint: ok + "?client_secret=hunter2"}, "client_secret remove"},
		{"keys without issuer", Profile{TokenEndpoint: ok, JWKSURI: ok}, "issuer missing"},
		{"keys over http", Profile{TokenEndpoint: ok, Issuer: "x", JWKSURI: "http://issuer.example/jwks"}, "jwks_uri https"},
		{"credential as a parameter", Profile{TokenEndpoint: ok, Params: map[string]string{"Client_Secret": "hunter2"}}, "params Client_Secret secrets manager"},
		{"grant as a parameter", Profile{TokenEndpoint: ok, Params: map[string]string{"grant_type": "password"}}, "params grant_type"},
		{"scope as a parameter", Profile{TokenEndpoint: ok, Params: map[string]string{"scope": "a"}}, "params set scope"},
		{"nameless parameter", Profile{TokenEndpoint: ok, Params: map[string]string{"": "a"}}, "params"},
		{"none", Profile{TokenEndpoint: ok, Algorithms: []string{"none"}}, "algorithms none RS256"},
		{"HMAC", Profile{TokenEndpoint: ok, Algorithms: []string{"RS256", "HS256"}}, "algorithms HS256"},
		{"lifetimes", Profile{TokenEndpoint: ok, DefaultLifetime: clock.Duration(2 * time.Hour), MaxLifetime: clock.Duration(time.Hour)}, "default_lifetime longer"},
		{"negative", Profile{TokenEndpoint: ok, MaxLifetime: -1}, "max_lifetime negative"},
		{"proxy", Profile{TokenEndpoint: ok, Config: outbound.Config{Proxy: "socks5://u:hunter2@x"}}, "proxy"},
		{"all at once", Profile{ClientAuth: "x", JWKSURI: "x"}, "token_endpoint client_auth jwks_uri issuer"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := c.p.Validate()
			_, openErr := Open(c.p, reply{}, clock.System{})
			if (err == nil) != (c.want == "") || (openErr == nil) != (err == nil) {
				t.Fatalf("Validate: %v; Open: %v", err, openErr)
			}
			for _, w := range strings.Fields(c.want) {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q is missing in %q", w, err)
				}
			}
			if err != nil && strings.Contains(err.Error(), "hunter2") {
				t.Errorf("a secret shows in %q", err)
			}
		})
	}
}
