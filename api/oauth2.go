package api

import (
	"bytes"
	"encoding/json"
	"mime"
	"net/http"
	"net/url"
	"strconv"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
)

// Rules of this file, which follows RFC 6749 so that OAuth libraries need no
// change:
//   - who asks is still the process that opened the connection; client_id says
//     only which client's token it wants, and there is no client secret. One
//     that looks real is refused unread, since somebody has put it in the wrong
//     place;
//   - errors are those of RFC 6749 §5.2, here alone. server_error and
//     temporarily_unavailable (§4.1.2.1) stand for what that section has no
//     word for.

const (
	oauthPath = "/oauth2/token"
	formType  = "application/x-www-form-urlencoded"
)

// oauthError is an error document of RFC 6749 §5.2.
type oauthError struct {
	Error       string `json:"error"`
	Description string `json:"error_description"`
}

// refusal is an error that is told in the words of RFC 6749.
type refusal struct {
	status int
	code   string
	detail string
}

func (r *refusal) Error() string { return r.code + ": " + r.detail }

func badForm(detail string) *refusal {
	return &refusal{http.StatusBadRequest, "invalid_request", detail}
}

// oauthToken is the token endpoint: the grant client_credentials (RFC 6749
// §4.4), with resource of RFC 8707.
func (s *Server) oauthToken(w http.ResponseWriter, r *http.Request, c *access.Caller, _ string) error {
	if r.URL.RawQuery != "" {
		return badForm("the parameters belong into the body (RFC 6749 §3.2), not the query")
	}
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || kind != formType {
		return badForm("send the parameters as " + formType)
	}
	body, err := s.readAny(w, r, maxBody)
	if err != nil {
		return badForm(broker.Problem(err).Detail)
	}
	defer clear(body)
	form, refused := parseForm(body)
	if refused == nil {
		refused = form.authenticated(r)
	}
	if refused == nil {
		refused = form.check()
	}
	if refused != nil {
		return refused
	}
	g, err := s.cfg.Broker.Token(r.Context(), c, broker.Request{Client: form["client_id"], Surface: access.Token, Via: "oauth2",
		Scope: form["scope"], Audience: form["audience"], Resource: form["resource"]})
	if err != nil {
		return err
	}
	w.Header()["Pragma"] = []string{"no-cache"} // RFC 6749 §5.1
	return s.sendWiped(w, s.fixed.json, func(b *wiped) error { return b.token(g) })
}

// form holds the parameters that count. The secret among them is one of three
// words that are none.
type form map[string]string

// parseForm reads the parameters that this endpoint knows; others are ignored,
// and none may come twice (RFC 6749 §3.2). A secret that looks like one is not
// looked at further.
func parseForm(body []byte) (form, *refusal) {
	f := form{}
	for pair := range bytes.SplitSeq(body, []byte("&")) {
		rawName, rawValue, _ := bytes.Cut(pair, []byte("="))
		name, err := url.QueryUnescape(string(rawName))
		if err != nil {
			return nil, badForm("the body is not percent-encoded as it should be")
		}
		switch name {
		case "client_secret", "client_assertion":
			if !noSecret(string(rawValue[:min(len(rawValue), len("unused"))]), len(rawValue)) {
				return nil, secretRefused()
			}
		case "grant_type", "client_id", "scope", "audience", "resource":
		default:
			continue
		}
		if _, twice := f[name]; twice {
			return nil, badForm("the parameter " + name + " is given twice")
		}
		value, err := url.QueryUnescape(string(rawValue))
		if err != nil || printable(name, value) != nil {
			return nil, badForm("the parameter " + name + " is too long, or not printable ASCII")
		}
		f[name] = value
	}
	return f, nil
}

// noSecret says whether a client secret of n bytes, of which start are the
// first, is one of the words that stand for none.
func noSecret(start string, n int) bool {
	return n <= len(start) && (start == "" || start == "-" || start == "unused")
}

func secretRefused() *refusal {
	return &refusal{http.StatusUnauthorized, "invalid_client", "the broker takes no client secret and did not read this one: leave it empty, or set it to unused. " +
		"If it is a real one, it has no place in this application; treat it as you treat any secret in the wrong place"}
}

// authenticated takes client_id from HTTP Basic, if it is there (RFC 6749
// §2.3.1).
func (f form) authenticated(r *http.Request) *refusal {
	if r.Header.Get("Authorization") == "" {
		return nil
	}
	id, pass, ok := r.BasicAuth()
	if !ok {
		return &refusal{http.StatusUnauthorized, "invalid_client", "the broker knows its callers from the kernel: send client_id in the body, or as the user of HTTP Basic"}
	}
	if !noSecret(pass[:min(len(pass), len("unused"))], len(pass)) {
		return secretRefused()
	}
	name, err := url.QueryUnescape(id)
	if err != nil {
		return badForm("the user of HTTP Basic is not percent-encoded as it should be")
	}
	if other, both := f["client_id"]; both && other != name {
		return badForm("client_id in the body is another than the user of HTTP Basic")
	}
	if printable("client_id", name) == nil {
		f["client_id"] = name
	}
	return nil
}

func (f form) check() *refusal {
	switch grant := f["grant_type"]; {
	case grant == "":
		return badForm("grant_type is missing: it is client_credentials")
	case grant != "client_credentials":
		return &refusal{http.StatusBadRequest, "unsupported_grant_type", "grant_type is client_credentials here: whoever needs another asks the issuer"}
	case f["client_id"] == "":
		return badForm("client_id is missing: it is the name of the client at the broker")
	case !validName(f["client_id"]):
		return &refusal{http.StatusUnauthorized, "invalid_client", nameForm}
	case !validScope(f["scope"]):
		return &refusal{http.StatusBadRequest, "invalid_scope", "scope holds words with one space between (RFC 6749, section 3.3)"}
	}
	return nil
}

// refuseOAuth answers in the words of RFC 6749.
func (s *Server) refuseOAuth(w http.ResponseWriter, r *http.Request, e *refusal, retryAfter int) {
	if retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
	}
	if e.status == http.StatusUnauthorized && r.Header.Get("Authorization") != "" {
		w.Header().Set("WWW-Authenticate", `Basic realm="credential-broker"`) // RFC 6749 §5.2
	}
	w.Header()["Pragma"] = []string{"no-cache"}
	b, err := json.Marshal(oauthError{e.code, describable(e.detail)})
	if err != nil { // it cannot be: strings
		panic(http.ErrAbortHandler)
	}
	send(w, e.status, s.fixed.json, append(b, '\n'))
}

// inOAuth is a product error in the words of RFC 6749.
func inOAuth(p *client.Problem, why access.Reason) *refusal {
	out := &refusal{http.StatusBadRequest, "invalid_request", string(p.Code) + ": " + p.Detail}
	switch p.Code {
	case client.NotAllowed:
		switch why {
		case access.ReasonScope:
			out.code = "invalid_scope"
		case access.ReasonAudience:
			out.code = "invalid_target" // RFC 8707 §2
		case access.ReasonSurface:
			out.code = "unauthorized_client"
		case access.ReasonIdentity, access.ReasonContainer:
			out.status, out.code = http.StatusUnauthorized, "invalid_client"
		default:
			out.status, out.code = http.StatusUnauthorized, "invalid_client"
		}
		out.detail += ". You are seen as " + p.Identity
	case client.Quarantined, client.APIKeyRejected, client.LoginRequired:
		out.code = "unauthorized_client"
	case client.MethodNotAllowed, client.NotFound:
		out.status = p.Status
	case client.RateLimited, client.IssuerUnavailable, client.ProviderUnavailable, client.AuditUnavailable:
		out.status, out.code = p.Status, "temporarily_unavailable"
	case client.CredentialsRejected, client.IssuerProtocolError, client.Internal, client.APIUnavailable, client.APITimeout:
		out.status, out.code = p.Status, "server_error"
	case client.InvalidRequest, client.InvalidConfiguration:
	}
	return out
}

// describable leaves out what an error_description may not hold (RFC 6749
// §5.2).
func describable(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < ' ' || c > '~' || c == '"' || c == '\\' {
			b[i] = '\''
		}
	}
	return string(b)
}
