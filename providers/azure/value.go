package azure

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"

	"credentialbroker/internal/outbound"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

// The SDK would leave a secret behind in strings, which nobody can wipe. So
// the answers that hold one are taken off the wire below it, and the SDK sees
// an empty object in their place.

// answer is the members of a response with a secret in it.
type answer map[string]secret.Secret

func (a answer) wipe() { providers.Bundle{Fields: a}.Wipe() }

// A slot in a call's context is where its answer goes.
type slotKey struct{}

type slot struct {
	answer answer
	err    error
}

// captured makes one call whose answer holds a secret.
func captured(ctx context.Context, f func(context.Context) error) (answer, error) {
	var s slot
	err := f(context.WithValue(ctx, slotKey{}, &s))
	switch {
	case err == nil && s.err == nil && s.answer == nil:
		err = errNotAnAnswer
	case err == nil:
		err = s.err
	}
	if err != nil {
		s.answer.wipe()
		return nil, err
	}
	return s.answer, nil
}

// errNotAnAnswer stands for whatever is no answer of Key Vault.
var errNotAnAnswer = errors.New("not an answer of Key Vault")

// maxAnswer bounds every answer: a secret has at most 25 KB.
const maxAnswer = providers.MaxPayload

// doer is the SDK's way to the vault.
type doer struct {
	client *http.Client
	host   string
}

func httpClient(t *http.Transport) *http.Client {
	return &http.Client{Transport: t, Timeout: outbound.CallTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

// Do implements policy.Transporter.
func (d *doer) Do(r *http.Request) (*http.Response, error) {
	if !d.sameHost(r.URL) { // the next page, by the vault's word, and our token with it
		return nil, errNotAnAnswer
	}
	resp, err := d.client.Do(r) //nolint:gosec // the SDK's requests go where the operator says
	if err != nil {
		return nil, err
	}
	if resp.StatusCode == http.StatusUnauthorized && !usableChallenge(resp.Header.Get("WWW-Authenticate")) {
		_ = resp.Body.Close()
		return nil, errNotAnAnswer
	}
	s, ok := r.Context().Value(slotKey{}).(*slot)
	if !ok || resp.StatusCode != http.StatusOK {
		resp.Body = capped{io.LimitReader(resp.Body, maxAnswer), resp.Body}
		return resp, nil
	}
	s.answer, s.err = take(resp.Body)
	if err := resp.Body.Close(); err != nil && s.err == nil {
		s.err = err
	}
	empty := []byte("{}")
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(empty)), int64(len(empty))
	resp.Header.Del("Content-Length")
	return resp, nil
}

type capped struct {
	io.Reader
	io.Closer
}

// take reads and splits the body of an answer, and leaves no copy of it.
func take(body io.Reader) (answer, error) {
	buf := make([]byte, maxAnswer+1)
	defer clear(buf)
	n, err := io.ReadFull(body, buf)
	switch {
	case err == nil:
		return nil, errNotAnAnswer // too long
	case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		return nil, err
	}
	members, err := providers.Parse(buf[:n])
	if err != nil {
		return nil, errNotAnAnswer
	}
	return members, nil
}

// usableChallenge says whether the SDK (keyvault/internal v1.2.0) can take
// WWW-Authenticate: it panics at an authorization without a tenant.
func usableChallenge(header string) bool {
	if header == "" {
		return false
	}
	for _, part := range strings.Split(strings.ReplaceAll(header, "Bearer ", ""), " ") {
		key, value, _ := strings.Cut(part, "=")
		value = strings.TrimSuffix(strings.ReplaceAll(value, `"`, ""), ",")
		if key == "authorization" && value != "" && strings.Count(value, "/") < 3 {
			return false
		}
	}
	return true
}
