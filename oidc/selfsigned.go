package oidc

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"slices"
	"time"

	"credentialbroker/internal/secret"
)

const (
	jwtBackDate    = 5 * time.Second
	jwtLifetime    = 15 * time.Minute
	maxJWTBackDate = 10 * time.Minute
	maxJWTLifetime = time.Hour        // Open Zaak's JWT_EXPIRY, from iat
	minJWTUse      = 30 * time.Second // of the lifetime that lies ahead

	form2018 = "2018"
)

// Sign makes a self-signed JWT for one user (VNG's ZGW APIs): nothing is sent.
// Where u is empty the profile's JWT says whom it names. Every error is an
// *Error, and holds nothing of u.
func (c *Client) Sign(m Material, u User) (Token, error) {
	p := c.profile.JWT
	id, err := plain(m, "client_id")
	if err != nil {
		return Token{}, err
	}
	if m["client_secret"].Empty() { // HMAC would take it
		return Token{}, &Error{Kind: Refused, Message: "the client's secret has no client_secret",
			Hint: "add the field in the secrets manager, or map it under fields"}
	}
	if u, err = p.user(u); err != nil {
		return Token{}, err
	}
	now := c.clock.Now()
	back, lifetime := p.times()
	iat := now.Wall.Add(-back).Truncate(time.Second)
	exp := iat.Add(lifetime).Truncate(time.Second)
	t := Token{Type: "Bearer", Sent: now, Expires: now.Add(exp.Sub(now.Wall))}
	if slices.Contains(p.Claims, "jti") {
		t.JTI = newID()
	}
	header, claims := p.write(id, u, iat, exp, t.JTI)
	defer clear(claims)
	// Many servers were given secrets of less than the 256 bits that RFC 7518
	// §3.2 wants for HS256, by VNG's own tool too. They sign all the same: the
	// server decides what it takes.
	access, err := hmacJWS(sha256.New, m["client_secret"], header, claims)
	if err != nil {
		return Token{}, unusable("client_secret", err)
	}
	hash := sha256.Sum256(access)
	t.Fingerprint = base64.RawURLEncoding.EncodeToString(hash[:])
	t.Access = secret.New(access)
	return t, nil
}

// user fills in the configured defaults.
func (p JWT) user(u User) (User, error) {
	for _, f := range []struct {
		name  string
		value *string
		def   string
	}{{"user_id", &u.ID, p.UserID}, {"user_representation", &u.Representation, p.UserRepresentation}} {
		if *f.value != "" && p.Form == form2018 {
			return User{}, &Error{Kind: Refused, Message: "the JWT of 2018 names no user: " + f.name + " has no place in it",
				Hint: "ask without a user, or set jwt.form: current if the server is of today"}
		}
		if *f.value == "" {
			*f.value = f.def
		}
		if err := checkText(*f.value); err != nil {
			return User{}, &Error{Kind: Refused, Message: f.name + ": " + err.Error()}
		}
	}
	return u, nil
}

func (p JWT) times() (back, lifetime time.Duration) {
	return cmp.Or(p.BackDate.D(), jwtBackDate), cmp.Or(p.Lifetime.D(), jwtLifetime)
}

// zds are the claims of 2018.
type zds struct {
	Scopes    []string `json:"scopes"`
	Zaaktypes []string `json:"zaaktypes"`
}

// write makes the two parts that are signed.
func (p JWT) write(id string, u User, iat, exp time.Time, jti string) (header, claims []byte) {
	h := struct {
		Type             string `json:"typ"`
		Algorithm        string `json:"alg"`
		ClientIdentifier string `json:"client_identifier,omitempty"`
	}{Type: "JWT", Algorithm: "HS256"}
	cl := struct {
		Issuer         string  `json:"iss"`
		Issued         int64   `json:"iat"`
		ClientID       string  `json:"client_id,omitempty"`
		UserID         *string `json:"user_id,omitempty"` // there even if it is empty
		Representation *string `json:"user_representation,omitempty"`
		ZDS            *zds    `json:"zds,omitempty"`
		Expires        int64   `json:"exp,omitempty"`
		NotBefore      int64   `json:"nbf,omitempty"`
		ID             string  `json:"jti,omitempty"`
	}{Issuer: cmp.Or(p.Issuer, id), Issued: iat.Unix(), ID: jti}
	if p.Form == form2018 {
		h.ClientIdentifier = id
		cl.ZDS = &zds{append([]string{}, p.Scopes...), append([]string{}, p.Zaaktypes...)} // lists, even if empty
	} else {
		cl.ClientID, cl.UserID, cl.Representation = id, &u.ID, &u.Representation
	}
	if slices.Contains(p.Claims, "exp") {
		cl.Expires = exp.Unix()
	}
	if slices.Contains(p.Claims, "nbf") {
		cl.NotBefore = iat.Unix()
	}
	// Strings cannot fail to be JSON.
	header, _ = json.Marshal(h)
	claims, _ = json.Marshal(cl)
	return header, claims
}

func (p Profile) validateJWT() []error {
	var e problems
	j := p.JWT
	word(&e, "jwt.form", j.Form, "current", form2018)
	back, lifetime := j.times()
	if back < 0 || back > maxJWTBackDate {
		e.bad("jwt.back_date", "%s is not between 0s and %s", j.BackDate, maxJWTBackDate)
	} else if lifetime > maxJWTLifetime || lifetime < back+minJWTUse {
		e.bad("jwt.lifetime", "%s is not between %s, which is %s more than back_date, and %s", lifetime, back+minJWTUse, minJWTUse, maxJWTLifetime)
	}
	for i, name := range j.Claims {
		switch {
		case name != "exp" && name != "nbf" && name != "jti":
			e.bad("jwt.claims", "%q is not one of exp, nbf and jti; the others are always written", name)
		case slices.Contains(j.Claims[:i], name):
			e.bad("jwt.claims", "%q stands there twice", name)
		}
	}
	for _, f := range []struct{ key, value string }{
		{"jwt.issuer", j.Issuer}, {"jwt.user_id", j.UserID}, {"jwt.user_representation", j.UserRepresentation},
	} {
		if err := checkText(f.value); err != nil {
			e.bad(f.key, "%w", err)
		}
	}
	switch {
	case j.Form == form2018 && (j.UserID != "" || j.UserRepresentation != ""):
		e.bad("jwt.user_id", "the JWT of 2018 names no user: leave it out, or set form: current")
	case j.Form != form2018 && len(j.Scopes)+len(j.Zaaktypes) > 0:
		e.bad("jwt.scopes", "only the JWT of 2018 holds scopes and zaaktypes; today the server's own register has them (set form: \"2018\" for an old server)")
	}
	return e
}
