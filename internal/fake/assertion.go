package fake

import (
	"crypto"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

// assertionRules are what a server wants of an assertion beyond RFC 7523 §3.
type assertionRules struct {
	audiences []string // it is for one of these, and for nobody else
	any       bool     // every sound algorithm; else RS256 and ES256
	anyone    bool     // sub need not be the client: it is a grant
	needKid   bool
	guid      bool // jti is one
	fromIssue bool // the ten minutes count from iat, not from now
}

const (
	longestAssertion = 10 * time.Minute
	clockTolerance   = 5 * time.Second
)

// A proof is what an assertion has shown.
type proof struct {
	client          *registered
	method, subject string
}

// assertion checks a JWT that a client has signed, and that it is used once.
func (s *server) assertion(raw string, rules assertionRules) (proof, error) {
	token, err := jwt.ParseSigned(raw, rules.algorithms())
	if err != nil {
		return proof{}, errors.New("is no JWT, or is signed by an algorithm that is not taken")
	}
	header := token.Headers[0]
	symmetric := strings.HasPrefix(header.Algorithm, "HS")
	var claims jwt.Claims
	if err := token.UnsafeClaimsWithoutVerification(&claims); err != nil {
		return proof{}, errors.New("has claims of a wrong type")
	}
	p := proof{s.client(claims.Issuer), privateKeyJWT, claims.Subject}
	if symmetric {
		p.method = secretJWT
	}
	switch c := p.client; {
	case c == nil:
		return proof{}, errors.New("has an iss that is no client")
	case rules.needKid && header.KeyID == "":
		return proof{}, errors.New("has no kid")
	case !c.signed(token, header.KeyID, symmetric):
		return proof{}, errors.New("has a signature or kid of no key of the client")
	}
	if err := rules.claims(claims, time.Now()); err != nil {
		return proof{}, err
	}
	if !s.once(claims.Issuer+" "+claims.ID, claims.Expiry.Time()) {
		return proof{}, errors.New("has been used before")
	}
	return p, nil
}

// signed says whether one of the client's keys verifies the token.
func (c *registered) signed(token *jwt.JSONWebToken, kid string, symmetric bool) bool {
	if symmetric { // the library refuses those that are too short (RFC 7518 §3.2)
		return token.Claims([]byte(c.Secret)) == nil || token.Claims([]byte(c.old)) == nil
	}
	for _, k := range c.keys {
		if (kid == "" || slices.Contains(k.kids, kid)) && token.Claims(k.key) == nil {
			return true
		}
	}
	return false
}

func (rules assertionRules) algorithms() []jose.SignatureAlgorithm {
	if rules.any {
		return []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512, jose.ES256, jose.EdDSA,
			jose.HS256, jose.HS384, jose.HS512}
	}
	return []jose.SignatureAlgorithm{jose.RS256, jose.ES256}
}

func (rules assertionRules) claims(c jwt.Claims, now time.Time) error {
	if c.Expiry == nil || c.IssuedAt == nil || c.ID == "" || c.Subject == "" {
		return errors.New("lacks one of sub, jti, iat and exp")
	}
	exp, iat := c.Expiry.Time(), c.IssuedAt.Time()
	from := now
	if rules.fromIssue {
		from = iat
	}
	switch {
	case c.Subject != c.Issuer && !rules.anyone:
		return errors.New("has a sub that is not the client")
	case len(c.Audience) != 1 || !slices.Contains(rules.audiences, c.Audience[0]):
		return fmt.Errorf("has not the aud %s alone", strings.Join(rules.audiences, " or "))
	case !now.Before(exp):
		return errors.New("has expired")
	case exp.After(from.Add(longestAssertion)):
		return errors.New("lives longer than ten minutes")
	case iat.After(now.Add(clockTolerance)), c.NotBefore != nil && c.NotBefore.Time().After(now.Add(clockTolerance)):
		return errors.New("is of the future")
	case rules.guid && !isGUID(c.ID):
		return errors.New("has a jti that is no GUID")
	}
	return nil
}

// once remembers an assertion until it expires.
func (s *server) once(id string, until time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for id, end := range s.used {
		if now.After(end) {
			delete(s.used, id)
		}
	}
	if s.used == nil {
		s.used = map[string]time.Time{}
	}
	if _, again := s.used[id]; again {
		s.stats.Replayed++
		return false
	}
	s.used[id] = until
	return true
}

func isGUID(s string) bool {
	for i, c := range s {
		if dash := i == 8 || i == 13 || i == 18 || i == 23; dash != (c == '-') || !dash && !strings.ContainsRune("0123456789abcdefABCDEF", c) {
			return false
		}
	}
	return len(s) == 36
}

// A publicKey is registered with the names that a kid may have.
type publicKey struct {
	key  any
	kids []string
	cert *x509.Certificate // nil: it was no certificate
}

// parseKeys reads a JWK, a JWK set, or certificates in PEM.
func parseKeys(text string) ([]publicKey, error) {
	if strings.HasPrefix(strings.TrimSpace(text), "-----BEGIN") {
		return parseCertificates([]byte(text))
	}
	var set struct{ Keys []json.RawMessage }
	if err := json.Unmarshal([]byte(text), &set); err != nil {
		return nil, errors.New("a key is neither JSON nor PEM")
	}
	if set.Keys == nil {
		set.Keys = []json.RawMessage{json.RawMessage(text)}
	}
	var keys []publicKey
	for _, raw := range set.Keys {
		var k jose.JSONWebKey
		if err := k.UnmarshalJSON(raw); err != nil || !k.Valid() {
			return nil, errors.New("a key is no JWK")
		}
		if !k.IsPublic() {
			return nil, errors.New("a key is not public")
		}
		thumb, err := k.Thumbprint(crypto.SHA256)
		if err != nil {
			return nil, err
		}
		p := publicKey{key: k.Key, kids: []string{base64.RawURLEncoding.EncodeToString(thumb)}}
		if k.KeyID != "" {
			p.kids = append(p.kids, k.KeyID)
		}
		if len(k.Certificates) > 0 {
			p.cert = k.Certificates[0]
			p.kids = append(p.kids, x5t(p.cert))
		}
		keys = append(keys, p)
	}
	return keys, nil
}

func parseCertificates(text []byte) ([]publicKey, error) {
	var keys []publicKey
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, errors.New("a key is not public")
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, errors.New("a certificate is none")
		}
		keys = append(keys, publicKey{cert.PublicKey, []string{x5t(cert)}, cert})
	}
	if len(keys) == 0 {
		return nil, errors.New("there is no certificate in the PEM")
	}
	return keys, nil
}

// x5t is a certificate's thumbprint, which RFC 7515 §4.1.7 defines with SHA-1.
func x5t(c *x509.Certificate) string {
	sum := sha1.Sum(c.Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// x5tS256 is the thumbprint in cnf (RFC 8705 §3.1).
func x5tS256(c *x509.Certificate) string {
	sum := sha256.Sum256(c.Raw)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
