package oidc

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/outbound"
	"credentialbroker/internal/secret"
)

const (
	clientID     = "kCVy8fpVSU50zFzi8TIC"
	clientSecret = "s3cr3t+/:%é &=" // every character that an encoding could trip over
	endpoint     = "https://issuer.example/isam/sps/oauth/oauth20/token"
	authorize    = "https://issuer.example/authorize"
)

// roundTrip is an http.RoundTripper.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func material() Material {
	return Material{"client_id": secret.FromString(clientID), "client_secret": secret.FromString(clientSecret), "api_key": secret.FromString("api-key")}
}

func open(t testing.TB, p Profile, rt http.RoundTripper, c clock.Clock) *Client {
	t.Helper()
	if p.TokenEndpoint == "" {
		p.TokenEndpoint = endpoint
	}
	if p.Grant == AuthorizationCode && p.AuthorizationEndpoint == "" {
		p.AuthorizationEndpoint = authorize
	}
	client, err := Open(p, rt, c)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// reply is a canned answer.
type reply struct {
	status int
	ctype  string // "": application/json, "-": none
	header map[string]string
	body   string
}

func (r reply) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		if _, err := io.Copy(io.Discard, req.Body); err != nil {
			return nil, err
		}
	}
	h := http.Header{}
	switch r.ctype {
	case "":
		h.Set("Content-Type", "application/json;charset=UTF-8")
	case "-":
	default:
		h.Set("Content-Type", r.ctype)
	}
	for k, v := range r.header {
		h.Set(k, v)
	}
	return &http.Response{StatusCode: r.status, Header: h, Body: io.NopCloser(strings.NewReader(r.body)), ContentLength: -1, Request: req}, nil
}

func mint(t testing.TB, p Profile, rt http.RoundTripper, r Request) (Token, error) {
	t.Helper()
	return open(t, p, rt, clock.System{}).Mint(t.Context(), material(), r)
}

func reveal(t testing.TB, s secret.Secret) string {
	t.Helper()
	b, err := s.AppendTo(nil)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func wantKind(t testing.TB, err error, want Kind) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) || e.Kind != want || KindOf(err) != want {
		t.Fatalf("err = %v (%q), want %q", err, KindOf(err), want)
	}
	if e.Message == "" {
		t.Error("the error says nothing")
	}
	return e
}

func TestMintAtISAM(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := fake.NewIssuer(fake.Client{ID: clientID, Secret: clientSecret})
		c := clock.NewBubble()
		client := open(t, Profile{Issuer: fake.IssuerName, JWKSURI: "https://issuer.example" + fake.JWKSPath}, issuer.RoundTripper(), c)
		issuer.Set(fake.Fault{Kind: fake.Slow, Delay: 3 * time.Second})
		before := c.Now()
		tok, err := client.Mint(t.Context(), material(), Request{})
		if err != nil {
			t.Fatal(err)
		}
		access := reveal(t, tok.Access)
		sum := sha256.Sum256([]byte(access))
		if tok.Type != "Bearer" || tok.Scope != "" || tok.Narrowed || tok.Skew != 0 || tok.Fingerprint != base64.RawURLEncoding.EncodeToString(sum[:]) || len(tok.JTI) != 36 {
			t.Errorf("token = %+v", tok)
		}
		if tok.Sent != before || tok.Expires != before.Add(900*time.Second) {
			t.Errorf("sent %v, expires %v: the life must count from the sending, %v", tok.Sent, tok.Expires, before)
		}
		if len(access) < 1100 || len(access) > 1300 {
			t.Errorf("the token has %d bytes, the original 1198", len(access))
		}
		// The cookies of the first answer would spoil the second request.
		if _, err := client.Mint(t.Context(), material(), Request{}); err != nil {
			t.Errorf("second request: %v", err)
		}
	})
}

func TestRequestOnTheWire(t *testing.T) {
	const id, key = "a+b/c:d%e é", "x&y=z ü~"
	m := Material{"client_id": secret.FromString(id), "client_secret": secret.FromString(key)}
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("a%2Bb%2Fc%3Ad%25e+%C3%A9:x%26y%3Dz+%C3%BC~"))
	credentials := "client_id=a%2Bb%2Fc%3Ad%25e+%C3%A9&client_secret=x%26y%3Dz+%C3%BC~"
	for _, c := range []struct {
		name       string
		p          Profile
		r          Request
		body, auth string
	}{
		{"as the seed has it", Profile{}, Request{}, "grant_type=client_credentials&" + credentials, ""},
		{"post by name", Profile{ClientAuth: SecretPost}, Request{}, "grant_type=client_credentials&" + credentials, ""},
		{"basic", Profile{ClientAuth: SecretBasic}, Request{}, "grant_type=client_credentials", basic},
		{"everything", Profile{Params: map[string]string{"z": "1 2", "a": "ö"}},
			Request{Scope: "read write", Audience: "urn:x", Resource: "https://api.example/v1?a=b"},
			"grant_type=client_credentials&scope=read+write&audience=urn%3Ax&resource=https%3A%2F%2Fapi.example%2Fv1%3Fa%3Db&a=%C3%B6&z=1+2&" + credentials, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			calls := 0
			rt := roundTrip(func(r *http.Request) (*http.Response, error) {
				calls++
				b, err := io.ReadAll(r.Body)
				if err != nil {
					t.Error(err)
				}
				if string(b) != c.body || r.ContentLength != int64(len(b)) {
					t.Errorf("body = %s (announced %d)\nwant   %s", b, r.ContentLength, c.body)
				}
				want := http.Header{"Content-Type": {"application/x-www-form-urlencoded"}, "Accept": {"application/json"}, "User-Agent": {"credential-broker"}}
				if c.auth != "" {
					want.Set("Authorization", c.auth)
				}
				if !reflect.DeepEqual(r.Header, want) {
					t.Errorf("header = %v, want %v", r.Header, want)
				}
				if r.Method != http.MethodPost || r.URL.String() != endpoint || r.GetBody != nil {
					t.Errorf("%s %s, replayable: %v", r.Method, r.URL, r.GetBody != nil)
				}
				if v, err := url.ParseQuery(string(b)); err != nil || c.auth == "" && (v.Get("client_id") != id || v.Get("client_secret") != key) {
					t.Errorf("a server reads %v, %v", v, err)
				}
				return reply{status: 503}.RoundTrip(r)
			})
			_, err := open(t, c.p, rt, clock.System{}).Mint(t.Context(), m, c.r)
			wantKind(t, err, Unavailable)
			if calls != 1 {
				t.Errorf("%d requests", calls)
			}
		})
	}
}

func TestRequestIsWipedAfterUse(t *testing.T) {
	for _, auth := range []ClientAuth{SecretPost, SecretBasic, PrivateKeyJWT, SecretJWT} {
		for i, read := range []bool{true, false, true} {
			p := Profile{ClientAuth: auth, RequestFormat: []string{"form", "form", formatJSON}[i]}
			var kept *form
			var header string
			rt := roundTrip(func(r *http.Request) (*http.Response, error) {
				kept, header = r.Body.(*form), r.Header.Get("Authorization")
				if !read {
					return nil, errors.New("cut")
				}
				return reply{status: 200, body: good}.RoundTrip(r)
			})
			if _, err := open(t, p, rt, clock.System{}).Mint(t.Context(), everything(), Request{}); (err == nil) != read {
				t.Fatal(err)
			}
			if n := len(bytes.Trim(kept.all[:cap(kept.all)], "\x00")); n != 0 {
				t.Errorf("%s: %d bytes of the form are left", auth, n)
			}
			if strings.Trim(header, "\x00") != "" && read {
				t.Errorf("%s: the header still reads %q", auth, header)
			}
			if n, err := kept.Read(make([]byte, 10)); n != 0 || !errors.Is(err, net.ErrClosed) { // io.EOF would be the end of a request
				t.Errorf("%s: a late reader got %d bytes, %v", auth, n, err)
			}
		}
	}
}

func TestMaterialThatCannotBeSent(t *testing.T) {
	sent := 0
	rt := roundTrip(func(r *http.Request) (*http.Response, error) {
		sent++
		return reply{status: 200, body: good}.RoundTrip(r)
	})
	wiped := material()
	wiped["client_secret"].Wipe()
	for _, c := range []struct {
		name string
		m    Material
		want Kind
		says string
	}{
		{"no id", Material{"client_secret": secret.FromString("x")}, Refused, "client_id"},
		{"no secret", Material{"client_id": secret.FromString("x")}, Refused, "client_secret"},
		{"nothing", nil, Refused, "client_id"},
		{"replaced meanwhile", wiped, Unavailable, "replaced"},
	} {
		_, err := open(t, Profile{}, rt, clock.System{}).Mint(t.Context(), c.m, Request{})
		if e := wantKind(t, err, c.want); !strings.Contains(e.Error(), c.says) {
			t.Errorf("%s: %v", c.name, e)
		}
	}
	if sent != 0 {
		t.Errorf("%d requests were sent", sent)
	}
}

func TestEveryFaultOfAnIssuer(t *testing.T) {
	for fault, want := range map[fake.FaultKind]Kind{
		fake.InvalidClient: InvalidClient, fake.Forbidden: Protocol, fake.Unavailable: Unavailable, fake.Maintenance: Unavailable,
		fake.Throttled: Throttled, fake.Slow: "", fake.Hang: Unavailable, fake.Reset: Unavailable, fake.HTML: Protocol, fake.Empty: Protocol,
		fake.CookieOnly: Protocol, fake.Redirect: Protocol, fake.NoExpiry: "", fake.Absurd: "", fake.BadType: Protocol, fake.Huge: Protocol,
		fake.NoType: Protocol, fake.BadToken: Protocol,
	} {
		t.Run(string(fault), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				issuer := fake.NewIssuer(fake.Client{ID: clientID, Secret: clientSecret})
				issuer.Set(fake.Fault{Kind: fault, RetryAfter: 7 * time.Second})
				_, err := open(t, Profile{}, issuer.RoundTripper(), clock.NewBubble()).Mint(t.Context(), material(), Request{})
				if KindOf(err) != want {
					t.Fatalf("err = %v (%q), want %q", err, KindOf(err), want)
				}
				var e *Error
				if errors.As(err, &e) && (want == Throttled || e.Status == 503) && e.RetryAfter != 7*time.Second {
					t.Errorf("Retry-After = %v", e.RetryAfter)
				}
				if n := issuer.Stats().Requests; n != 1 {
					t.Errorf("%d requests", n)
				}
				if err != nil && strings.Contains(fmt.Sprintf("%v %+v %#v", err, err, err), clientSecret) {
					t.Errorf("the secret shows in %#v", err)
				}
			})
		})
	}
}

func TestWrongSecret(t *testing.T) {
	issuer := fake.NewIssuer(fake.Client{ID: clientID, Secret: "another"})
	_, err := mint(t, Profile{}, issuer.RoundTripper(), Request{})
	e := wantKind(t, err, InvalidClient)
	if e.Code != "invalid_client" || e.Status != 400 || strings.Contains(e.Error(), clientID) || strings.Contains(e.Error(), "FBTOAU") {
		t.Errorf("%+v", *e)
	}
}

func TestCallIsBoundedWithoutADeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		issuer := fake.NewIssuer()
		issuer.Set(fake.Fault{Kind: fake.Hang})
		start := time.Now()
		_, err := open(t, Profile{}, issuer.RoundTripper(), clock.NewBubble()).Mint(context.Background(), material(), Request{})
		if e := wantKind(t, err, Unavailable); !errors.Is(e, context.DeadlineExceeded) {
			t.Errorf("cause = %v", e.Err)
		}
		if d := time.Since(start); d != outbound.CallTimeout {
			t.Errorf("gave up after %v", d)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() { time.Sleep(time.Second); cancel() }()
		start = time.Now()
		_, err = open(t, Profile{}, issuer.RoundTripper(), clock.NewBubble()).Mint(ctx, material(), Request{})
		if e := wantKind(t, err, Unavailable); !errors.Is(e, context.Canceled) || time.Since(start) != time.Second {
			t.Errorf("cause = %v after %v", e.Err, time.Since(start))
		}
	})
}

func TestOpenReadsTheCAFile(t *testing.T) {
	p := Profile{TokenEndpoint: endpoint, Config: outbound.Config{CAFile: t.TempDir() + "/absent.pem"}}
	if _, err := Open(p, nil, clock.System{}); err == nil || !strings.Contains(err.Error(), "ca_file") {
		t.Errorf("err = %v", err)
	}
}
