package oidc

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"credentialbroker/internal/secret"
)

// A site is a RoundTripper that answers by URL and remembers what was asked.
// What it has no page for is a 404 page; an empty reply is none.
type site struct {
	pages map[string]func(asked) reply
	date  time.Duration // its clock, ahead of ours

	mu   sync.Mutex
	seen []asked
}

// asked is one request.
type asked struct {
	at, ctype, auth string
	form            url.Values // of a form, or of a JSON object of strings
	raw             string
	cert            *tls.Certificate
}

func (s *site) RoundTrip(r *http.Request) (*http.Response, error) { return s.answer(r, nil) }

// WithCertificate is what makes a transport present one.
func (s *site) WithCertificate(c tls.Certificate) http.RoundTripper {
	return roundTrip(func(r *http.Request) (*http.Response, error) { return s.answer(r, &c) })
}

func (s *site) answer(r *http.Request, cert *tls.Certificate) (*http.Response, error) {
	q := asked{at: r.URL.String(), ctype: r.Header.Get("Content-Type"), auth: strings.Clone(r.Header.Get("Authorization")), cert: cert, form: url.Values{}}
	if r.Body == nil {
		r.Body = http.NoBody
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	q.raw = string(b)
	if q.ctype == "application/json" {
		var m map[string]string
		if err := json.Unmarshal(b, &m); err != nil {
			return nil, err
		}
		for k, v := range m {
			q.form.Set(k, v)
		}
	} else if q.form, err = url.ParseQuery(q.raw); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, q)
	rep := reply{status: 404, ctype: "text/html", body: "<html>" + marker}
	if page := s.pages[q.at]; page != nil {
		rep = page(q)
	}
	if rep.status == 0 {
		return nil, errors.New("cut")
	}
	h := map[string]string{"Date": time.Now().Add(s.date).UTC().Format(http.TimeFormat)}
	for k, v := range rep.header {
		h[k] = v
	}
	rep.header = h
	r.Body = http.NoBody
	return rep.RoundTrip(r)
}

// count says how often at was asked.
func (s *site) count(at string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range s.seen {
		if q.at == at {
			n++
		}
	}
	return n
}

func (s *site) last() asked {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[len(s.seen)-1]
}

func page(status int, body string) func(asked) reply {
	return func(asked) reply { return reply{status: status, body: body} }
}

// pair is a client's private key and certificate, in PEM.
var pair = sync.OnceValue(func() (p struct{ key, cert, thumbprint string }) {
	k := keysOnce().ec
	p.key = pemKey(k)
	t := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "client"}, NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<35, 0)}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &k.PublicKey, k)
	if err != nil {
		panic(err)
	}
	p.cert = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	sum := sha256.Sum256(der)
	p.thumbprint = base64.RawURLEncoding.EncodeToString(sum[:])
	return p
})

func pemKey(k *ecdsa.PrivateKey) string {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		panic(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// everything is a bundle for every method and grant.
func everything() Material {
	m := material()
	m["client_secret"] = secret.FromString(clientSecret + "-and-enough-for-HS256") // RFC 7518 §3.2
	m["private_key"] = secret.FromString(pair().key)
	m["certificate"] = secret.FromString(pair().cert)
	m["refresh_token"] = secret.FromString(`r"e\f` + "\u00e9")
	return m
}

// claimsOf reads a JWT that was made here.
func claimsOf(t testing.TB, jwt string) (c map[string]any) {
	t.Helper()
	parts := bytes.Split([]byte(jwt), []byte{'.'})
	if len(parts) != 3 {
		t.Fatalf("%q is no JWT", jwt)
	}
	b, err := base64.RawURLEncoding.DecodeString(string(parts[1]))
	if err != nil || json.Unmarshal(b, &c) != nil {
		t.Fatalf("%q is no payload", parts[1])
	}
	return c
}
