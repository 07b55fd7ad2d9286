package broker

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unsafe"

	"credentialbroker/internal/clock"
	"credentialbroker/oidc"
	"credentialbroker/rotation"
)

// prober asks a client's API whether it takes the client's headers.
type prober struct {
	probe       Probe
	headers     []headerTemplate
	keyRejected []string
	clock       clock.Clock
}

const (
	maxProbeAnswer = 16 << 10
	probeSkew      = 3 * time.Second // less than what an iat is back-dated
)

// Probe implements rotation.Prober.
func (p *prober) Probe(ctx context.Context, live *rotation.Live, t *oidc.Token) error {
	u, err := url.Parse(p.probe.URL)
	if err != nil {
		return &oidc.Error{Kind: oidc.Protocol, Message: "probe.url is not a URL"}
	}
	req := (&http.Request{Method: p.probe.Method, URL: u, Host: u.Host, Header: http.Header{}}).WithContext(ctx)
	g := &Grant{headers: p.headers, fields: live.Fields}
	if t != nil {
		g.Token = *t
	}
	var values [][]byte
	defer func() {
		for _, v := range values {
			clear(v)
		}
	}()
	err = g.AppendHeaders(func(name string, value []byte) error {
		v := slices.Clone(value)
		values = append(values, v)
		req.Header[http.CanonicalHeaderKey(name)] = []string{unsafe.String(unsafe.SliceData(v), len(v))} // wiped with v
		return nil
	})
	if err != nil {
		return &oidc.Error{Kind: oidc.Refused, Message: err.Error()}
	}
	req.Header.Set("Accept", "application/json")
	sent := p.clock.Now()
	resp, err := p.probe.Transport.RoundTrip(req)
	if err != nil {
		return &oidc.Error{Kind: oidc.Unavailable, Message: u.Host + ": the API does not answer the probe", Err: err}
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxProbeAnswer))
	if err != nil {
		return &oidc.Error{Kind: oidc.Unavailable, Message: u.Host + ": the API's answer to the probe broke off", Err: err}
	}
	var ahead time.Duration
	if date, err := http.ParseTime(resp.Header.Get("Date")); err == nil {
		ahead = clock.Ahead(date, sent, p.clock.Now())
	}
	return p.judge(resp, body, ahead)
}

// judge says what an answer means. Only an API's own refusal counts: a 401
// that says so in JSON or WWW-Authenticate, or the 403 of a ZGW component.
func (p *prober) judge(resp *http.Response, body []byte, skew time.Duration) error {
	host := resp.Request.URL.Host
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	var doc struct{ MoreInformation, Code string }
	isJSON := (kind == "application/json" || strings.HasSuffix(kind, "+json")) && json.Unmarshal(body, &doc) == nil
	refused := resp.StatusCode == http.StatusUnauthorized && (isJSON || resp.Header.Get("WWW-Authenticate") != "") ||
		resp.StatusCode == http.StatusForbidden && isJSON && zgwRefusal(doc.Code)
	switch {
	case resp.StatusCode/100 == 2:
		return nil
	case refused && skew.Abs() > probeSkew:
		return &oidc.Error{Kind: oidc.Unavailable, Status: resp.StatusCode, Message: fmt.Sprintf(
			"%s: the API refuses the probe, and its clock is %s ahead of ours", host, skew.Round(time.Second)), Hint: "check this machine's time synchronisation"}
	case refused && meansKey(p.keyRejected, doc.MoreInformation):
		return &oidc.Error{Kind: oidc.InvalidClient, Status: resp.StatusCode, Message: fmt.Sprintf("%s: the API refuses the API key (HTTP %d)", host, resp.StatusCode),
			Hint: "check the key, its subscription and the environment"}
	case refused:
		return &oidc.Error{Kind: oidc.InvalidClient, Status: resp.StatusCode, Message: fmt.Sprintf("%s: the API refuses what the probe brought (HTTP %d)", host, resp.StatusCode),
			Hint: "check that the secret is the one that the API knows, in this environment"}
	case resp.StatusCode == http.StatusTooManyRequests:
		return &oidc.Error{Kind: oidc.Throttled, Status: resp.StatusCode, Message: host + ": the API asks to wait (HTTP 429)"}
	case resp.StatusCode >= 500:
		return &oidc.Error{Kind: oidc.Unavailable, Status: resp.StatusCode, Message: fmt.Sprintf("%s: the API cannot answer the probe now (HTTP %d)", host, resp.StatusCode)}
	}
	if resp.StatusCode == http.StatusUnauthorized {
		return &oidc.Error{Kind: oidc.Protocol, Status: resp.StatusCode, Message: host + ": the answer to the probe is a 401 that is neither JSON nor names a scheme in WWW-Authenticate",
			Hint: "a proxy or gateway may have answered in the API's place; if it was the API, the key or token may be wrong"}
	}
	return &oidc.Error{Kind: oidc.Protocol, Status: resp.StatusCode, Message: fmt.Sprintf("%s: the answer to the probe says nothing about the secret (HTTP %d)", host, resp.StatusCode),
		Hint: "choose a probe.url that any client of this API may read"}
}

// zgwRefusal says whether a code of the ZGW components means the JWT, rather
// than what it is allowed to do.
func zgwRefusal(code string) bool {
	switch code {
	case "jwt-decode-error", "missing-client-identifier", "invalid-client-identifier", "invalid-jwt-signature":
		return true
	}
	return false
}

// tried asks the API about what serves now; check --live calls it.
func (b *Broker) tried(ctx context.Context, cl *cachedClient) error {
	live, err := cl.cred.Bundle(ctx)
	if err != nil {
		return err
	}
	if cl.issuer == nil {
		return cl.cred.Probe(ctx, live, nil)
	}
	e, err := cl.entry(cl.cfg.Default, b.o.Clock.Now())
	if err != nil {
		return err
	}
	h, _, err := b.token(ctx, e, 0)
	if err != nil {
		return err
	}
	return cl.cred.Probe(ctx, h.live, &h.token)
}
