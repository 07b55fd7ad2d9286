// Package client holds the wire structs of the broker's sockets and a small Go
// client. It imports the standard library alone.
//
//	api := http.Client{Transport: &client.Transport{Name: "vdab"}, Timeout: 30 * time.Second}
//	answer, err := api.Get(url)
package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// Client asks the broker as a consumer. Ask for each call to the API, and keep
// nothing: the broker keeps tokens fresh, an application cannot. The zero value
// is ready; its methods may be called from many goroutines. A refusal is a
// *Problem.
type Client struct {
	// Socket is the consumer socket. Empty: DefaultSocket.
	Socket string

	line line
}

// Options choose the token. The zero value takes what the allow entry, or else
// the client, has as default.
type Options struct {
	Scope    string // space-separated
	Audience string
	Resource string
	MinTTL   time.Duration // how much life the token must have left; zero: any
	Surface  string        // "exec" for a request on behalf of broker exec; empty: what the path says
}

// Environment is the variable that names another consumer socket.
const Environment = "CREDENTIAL_BROKER_SOCKET"

// DefaultSocket is $CREDENTIAL_BROKER_SOCKET; or broker.sock in
// $XDG_RUNTIME_DIR/credential-broker if a broker was started there by hand; or
// /run/credential-broker/broker.sock.
func DefaultSocket() string {
	if s := os.Getenv(Environment); s != "" {
		return s
	}
	return inRuntimeDir("broker.sock")
}

// DefaultAdminSocket is admin.sock beside DefaultSocket.
func DefaultAdminSocket() string {
	if s := os.Getenv(Environment); s != "" {
		return filepath.Join(filepath.Dir(s), "admin.sock")
	}
	return inRuntimeDir("admin.sock")
}

// inRuntimeDir prefers a broker that the user has started by hand.
func inRuntimeDir(name string) string {
	system := filepath.Join("/run/credential-broker", name)
	dir := os.Getenv("XDG_RUNTIME_DIR")
	if os.Geteuid() == 0 || dir == "" {
		return system
	}
	own := filepath.Join(dir, "credential-broker", name)
	if _, err := os.Stat(own); err == nil { // #nosec G703 -- the user's own directory
		return own
	}
	return system
}

// Token gives a token of the named client.
func (c *Client) Token(ctx context.Context, name string, o Options) (*Token, error) {
	return get[Token](ctx, c.dial(), clientPath(name, "token")+o.query())
}

// Headers gives the headers that a call to the client's API needs.
func (c *Client) Headers(ctx context.Context, name string, o Options) (Headers, error) {
	h, err := get[Headers](ctx, c.dial(), clientPath(name, "headers")+o.query())
	if err != nil {
		return nil, err
	}
	return *h, nil
}

// APIKey gives the client's API key alone.
func (c *Client) APIKey(ctx context.Context, name string) (string, error) {
	b, err := c.dial().whole(ctx, http.MethodGet, clientPath(name, "api-key"), nil)
	return string(b), err
}

// JWT gives a JWT that the broker signs itself, for the user of one call to the
// API: for clients whose issuer is the broker.
func (c *Client) JWT(ctx context.Context, name string, u User) (*Token, error) {
	return send[Token](ctx, c.dial(), clientPath(name, "jwt"), u)
}

// Reject tells the broker that the API refused a token. Ask for a token again
// if it was replaced, and call the API once more, not oftener.
func (c *Client) Reject(ctx context.Context, name string, r Rejection) (*Rejected, error) {
	return send[Rejected](ctx, c.dial(), clientPath(name, "reject"), r)
}

// Whoami says what the broker sees of this process, and what it may have.
func (c *Client) Whoami(ctx context.Context) (*Whoami, error) {
	return get[Whoami](ctx, c.dial(), "/v1/whoami")
}

// Ready says whether this process's clients can be served now.
func (c *Client) Ready(ctx context.Context) (*Readiness, error) {
	b, err := c.dial().whole(ctx, http.MethodGet, "/readyz", nil)
	var p *Problem
	// "No" comes with status 503, and is the same document.
	if err != nil && (!errors.As(err, &p) || p.Status != http.StatusServiceUnavailable) {
		return nil, err
	}
	return decode[Readiness](b)
}

func (c *Client) dial() *line {
	if c.Socket == "" {
		return c.line.to(DefaultSocket())
	}
	return c.line.to(c.Socket)
}

func clientPath(name, what string) string {
	return "/v1/clients/" + url.PathEscape(name) + "/" + what
}

func (o Options) query() string {
	q := url.Values{}
	for name, value := range map[string]string{"scope": o.Scope, "audience": o.Audience, "resource": o.Resource, "surface": o.Surface} {
		if value != "" {
			q.Set(name, value)
		}
	}
	if o.MinTTL > 0 {
		// Whole seconds, rounded up: never less life than was asked for.
		q.Set("min_ttl", strconv.FormatInt(int64((o.MinTTL+time.Second-1)/time.Second), 10)+"s")
	}
	if len(q) == 0 {
		return ""
	}
	return "?" + q.Encode()
}

func get[T any](ctx context.Context, l *line, path string) (*T, error) {
	b, err := l.whole(ctx, http.MethodGet, path, nil)
	if err != nil {
		return nil, err
	}
	return decode[T](b)
}

func send[T any](ctx context.Context, l *line, path string, body any) (*T, error) {
	var in []byte
	if body != nil {
		var err error
		if in, err = json.Marshal(body); err != nil {
			return nil, fmt.Errorf("write the request: %w", err)
		}
		defer clear(in)
	}
	b, err := l.whole(ctx, http.MethodPost, path, in)
	if err != nil {
		return nil, err
	}
	return decode[T](b)
}

// decode reads an answer and wipes it.
func decode[T any](b []byte) (*T, error) {
	defer clear(b)
	v := new(T)
	if err := json.Unmarshal(b, v); err != nil {
		// Not err itself: it may quote the answer.
		return nil, errors.New("the broker's answer is not the JSON that was expected: are broker and brokerd of one version?")
	}
	return v, nil
}
