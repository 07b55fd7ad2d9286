package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"net/http"
	"strings"
	"time"
)

// Transport calls an API with the headers of one client: give it to an
// http.Client. If the API answers 401 it tells the broker, and repeats the call
// once if there is another token; a body without GetBody is not sent twice. If
// the API refused the API key, the error is a *Problem with APIKeyRejected. A
// redirect to another host is followed without the headers. Its methods may be
// called from many goroutines.
type Transport struct {
	// Client asks the broker. Nil: the zero Client.
	Client *Client
	// Name is the client's name at the broker.
	Name string
	// Options choose the token.
	Options Options
	// Base makes the calls. Nil: http.DefaultTransport.
	Base http.RoundTripper
	// Patience is for how long to wait, at each question to the broker, as its
	// Retry-After says. Zero: 10 seconds; negative: not at all.
	Patience time.Duration

	zero Client
}

const (
	maxRefusal = 64 << 10 // bytes of the API's answer that are looked at
	maxMore    = 2000     // characters of moreInformation; the broker takes 2048
)

// RoundTrip does as the documentation of Transport says.
func (t *Transport) RoundTrip(r *http.Request) (*http.Response, error) {
	base := t.Base
	if base == nil {
		base = http.DefaultTransport
	}
	if elsewhere(r) {
		return call(base, r, nil)
	}
	sent, err := t.headers(r.Context())
	if err != nil {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return nil, err
	}
	answer, err := call(base, r, sent)
	once := r.Body != nil && r.Body != http.NoBody && r.GetBody == nil
	if err != nil || answer.StatusCode != http.StatusUnauthorized || once {
		return answer, err
	}
	now, err := t.refused(r.Context(), sent, answer)
	if err == nil && maps.Equal(now, sent) {
		return answer, nil
	}
	_ = answer.Body.Close()
	if err == nil && r.GetBody != nil {
		r = r.Clone(r.Context())
		r.Body, err = r.GetBody()
	}
	if err != nil {
		return nil, err
	}
	return call(base, r, now)
}

// call makes one call. The answer names r, which has no credential.
func call(base http.RoundTripper, r *http.Request, h Headers) (*http.Response, error) {
	out := r.Clone(r.Context())
	for name, value := range h {
		out.Header.Set(name, value)
	}
	answer, err := base.RoundTrip(out)
	if answer != nil {
		answer.Request = r
	}
	return answer, err
}

// elsewhere says whether a redirect has led away from where r began.
func elsewhere(r *http.Request) bool {
	for at := r; at.Response != nil && at.Response.Request != nil; {
		at = at.Response.Request
		if at.URL.Scheme != r.URL.Scheme || at.URL.Host != r.URL.Host {
			return true
		}
	}
	return false
}

// refused tells the broker of the API's 401, and gives the headers that count
// now.
func (t *Transport) refused(ctx context.Context, sent Headers, answer *http.Response) (Headers, error) {
	said, err := io.ReadAll(io.LimitReader(answer.Body, maxRefusal))
	if err != nil {
		return nil, err
	}
	answer.Body = &reread{io.MultiReader(bytes.NewReader(said), answer.Body), answer.Body}
	var more struct {
		Text string `json:"moreInformation"`
	}
	_ = json.Unmarshal(said, &more) // whatever else it is says nothing
	if text := []rune(more.Text); len(text) > maxMore {
		more.Text = string(text[:maxMore])
	}
	rejection := Rejection{Status: answer.StatusCode, MoreInformation: more.Text}
	for name, value := range sent {
		if strings.EqualFold(name, "Authorization") {
			_, rejection.AccessToken, _ = strings.Cut(value, " ")
		}
	}
	err = t.patiently(ctx, func() error { _, err := t.client().Reject(ctx, t.Name, rejection); return err })
	if err != nil {
		return nil, err
	}
	return t.headers(ctx)
}

// reread is a body of which the beginning was read.
type reread struct {
	io.Reader
	io.Closer
}

func (t *Transport) headers(ctx context.Context) (h Headers, err error) {
	err = t.patiently(ctx, func() error { h, err = t.client().Headers(ctx, t.Name, t.Options); return err })
	return h, err
}

func (t *Transport) client() *Client {
	if t.Client == nil {
		return &t.zero
	}
	return t.Client
}

// patiently asks again as Retry-After says.
func (t *Transport) patiently(ctx context.Context, ask func() error) error {
	left := t.Patience
	if left == 0 {
		left = 10 * time.Second
	}
	for {
		err := ask()
		var p *Problem
		if !errors.As(err, &p) || p.Status != http.StatusServiceUnavailable && p.Status != http.StatusTooManyRequests || p.RetryAfter <= 0 {
			return err
		}
		wait := time.Duration(p.RetryAfter) * time.Second
		if left -= wait; left < 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}
