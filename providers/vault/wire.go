package vault

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/vault/api"

	"credentialbroker/internal/outbound"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

// maxBody is the longest answer that is read, in bytes: a secret and what
// Vault says around it.
const maxBody = providers.MaxPayload + 64<<10

// newClient makes an SDK client that the environment does not reach.
func newClient(c Config, cert *atomic.Pointer[tls.Certificate]) (*api.Client, error) {
	t, err := c.Transport()
	if err != nil {
		return nil, err
	}
	base := c.Address
	if socket, ok := strings.CutPrefix(c.Address, "unix://"); ok {
		base = "http://localhost"
		t.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: outbound.DialTimeout}).DialContext(ctx, "unix", socket)
		}
	}
	t.TLSClientConfig.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if own := cert.Load(); own != nil {
			return own, nil
		}
		return &tls.Certificate{}, nil
	}
	client, err := api.NewClient(&api.Config{
		Address: base,
		HttpClient: &http.Client{
			Transport:     wire{t},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		CheckRetry:       func(context.Context, *http.Response, error) (bool, error) { return false, nil },
		DisableRedirects: true,
	})
	if err != nil {
		// The SDK reads VAULT_… before anything else, and its error may show
		// what one of them holds.
		return nil, fmt.Errorf("the Vault library does not start with this environment: unset %s", strings.Join(environment(), ", "))
	}
	client.SetToken("")
	client.SetHeaders(http.Header{api.RequestHeaderName: {"true"}})
	if ns := strings.Trim(c.Namespace, "/"); ns != "" {
		client.SetNamespace(ns)
	}
	client.SetWrappingLookupFunc(func(string, string) string { return "" })
	return client, nil
}

// environment names the variables that the SDK may have stumbled over.
func environment() []string {
	var names []string
	for _, kv := range os.Environ() {
		if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "VAULT_") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// An answer is what Vault said, of whatever status.
type answer struct {
	status     int
	body       []byte        // for 2xx and 404; whoever reads it wipes it
	errors     []string      // Vault's words, never shown
	foreign    bool          // an error that Vault has not written
	retryAfter time.Duration // 0: not said
}

func (a answer) ok() bool { return a.status/100 == 2 }

// says looks for a phrase in Vault's errors.
func (a answer) says(phrase string) bool {
	return slices.ContainsFunc(a.errors, func(s string) bool { return strings.Contains(s, phrase) })
}

// call sends one request, a read if body is nil, else a write. An error means
// that there was no answer.
func (p *provider) call(ctx context.Context, token secret.Secret, path string, query url.Values, body []byte) (answer, error) {
	bounded, cancel := context.WithTimeout(ctx, outbound.CallTimeout)
	defer cancel()
	// The SDK keeps the token of a client as a string for good; this one is
	// gone with its request.
	logical := p.client.WithRequestCallbacks(func(r *api.Request) {
		_ = token.Use(func(b []byte) error { r.ClientToken = string(b); return nil })
	}).Logical()
	var resp *api.Response
	var err error
	if body == nil {
		resp, err = logical.ReadRawWithDataWithContext(bounded, path, query)
	} else {
		resp, err = logical.WriteRawWithContext(bounded, path, body)
	}
	var refused *api.ResponseError
	if resp != nil {
		defer resp.Body.Close()
	}
	if err != nil && (resp == nil || !errors.As(err, &refused)) {
		return answer{}, p.unreachable(ctx, err)
	}
	a := answer{status: resp.StatusCode, retryAfter: retryAfter(resp.Header, p.clk.Now().Wall)}
	if refused != nil {
		a.errors, a.foreign = refused.Errors, refused.RawError
	}
	if a.body, err = readAll(resp.Body); err != nil {
		return answer{}, p.unreachable(ctx, err)
	}
	if len(a.body) > maxBody {
		clear(a.body)
		return answer{}, fail(providers.Malformed, fmt.Sprintf("the answer is longer than %d bytes", maxBody), "")
	}
	return a, nil
}

// retryAfter reads the header of that name (RFC 9110 §10.2.3), up to an hour.
func retryAfter(h http.Header, now time.Time) time.Duration {
	var d time.Duration
	v := h.Get("Retry-After")
	if s, err := strconv.ParseUint(v, 10, 16); err == nil {
		d = time.Duration(s) * time.Second
	} else if t, err := http.ParseTime(v); err == nil {
		d = t.Sub(now)
	}
	return max(0, min(d, time.Hour))
}

// readAll reads up to a byte more than maxBody, and leaves no copies behind.
func readAll(r io.Reader) ([]byte, error) {
	buf := make([]byte, 0, 4096)
	r = io.LimitReader(r, maxBody+1)
	for {
		if len(buf) == cap(buf) {
			bigger := make([]byte, len(buf), 4*cap(buf))
			copy(bigger, buf)
			clear(buf)
			buf = bigger
		}
		n, err := r.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		switch {
		case errors.Is(err, io.EOF):
			return buf, nil
		case err != nil:
			clear(buf)
			return nil, err
		}
	}
}

// unreachable says why there was no answer.
func (p *provider) unreachable(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ended(ctx)
	}
	at := strings.Join(p.Endpoints(), "")
	if at == "" {
		at = strings.TrimPrefix(p.conf.Address, "unix://")
	}
	if p.conf.Proxy != "" {
		at += ", through the proxy,"
	}
	var untrusted *tls.CertificateVerificationError
	var other x509.HostnameError
	var dns *net.DNSError
	e := fail(providers.Unavailable, at+" does not answer as Vault does", "")
	switch {
	case errors.As(err, &other):
		e.Message, e.Hint = "the certificate of "+at+" is for another name", "address has to name the host as its certificate does"
	case errors.As(err, &untrusted):
		e.Message, e.Hint = "the certificate of "+at+" is not trusted", "set ca_file to the authority that signed it"
	case errors.As(err, &dns):
		e.Message = "the name of " + at + " cannot be resolved"
	case errors.Is(err, syscall.ECONNREFUSED):
		e.Message = "nothing listens on " + at
	case errors.Is(err, os.ErrNotExist):
		e.Message = "there is no socket " + at
	case errors.Is(err, context.DeadlineExceeded) || os.IsTimeout(err):
		e.Message = at + " does not answer in time"
	}
	e.Err = err
	return e
}

// ended is the error of a caller whose context has ended.
func ended(ctx context.Context) error {
	e := fail(providers.Unavailable, "Vault did not answer in time", "")
	if errors.Is(ctx.Err(), context.Canceled) {
		e.Message = "the call was cancelled"
	}
	e.Err = ctx.Err()
	return e
}

// refusal classifies an answer that is not 2xx.
func refusal(a answer) *providers.Error {
	var e *providers.Error
	switch {
	case a.status == http.StatusTooManyRequests:
		e = fail(providers.Throttled, "Vault limits the rate of calls", "")
	case a.status == http.StatusServiceUnavailable && a.says("sealed"):
		e = fail(providers.Unavailable, "Vault is sealed", "somebody has to unseal it")
	case a.status >= 500 || a.status == http.StatusPreconditionFailed:
		e = fail(providers.Unavailable, fmt.Sprintf("Vault cannot answer now (HTTP %d)", a.status), "")
	case a.status/100 == 3:
		e = fail(providers.Unavailable, "this node sends its callers to another one",
			"address has to name the active node or a load balancer, or the nodes have to forward requests")
	case a.foreign:
		e = fail(providers.Malformed, fmt.Sprintf("the answer (HTTP %d) is not Vault's", a.status),
			"does address name Vault? A proxy or load balancer before it may have answered")
	case a.status == http.StatusForbidden:
		e = fail(providers.Denied, "Vault's policy does not allow it", "")
	case a.status == http.StatusNotFound:
		e = fail(providers.NotFound, "there is no such secret", "")
	default:
		e = fail(providers.Malformed, fmt.Sprintf("Vault does not understand the request (HTTP %d)", a.status), "")
	}
	e.RetryAfter = a.retryAfter
	return e
}

// wire stands between the SDK and the network. It cuts answers off, since the
// SDK reads an error's body without limit, and takes a request's body back
// when its answer is closed, so that the caller can wipe it: net/http may
// otherwise still be reading.
type wire struct{ next http.RoundTripper }

func (w wire) RoundTrip(r *http.Request) (*http.Response, error) {
	sent := &request{body: r.Body}
	if r.Body != nil {
		copied := *r
		copied.Body, copied.GetBody = sent, nil
		r = &copied
	}
	resp, err := w.next.RoundTrip(r)
	if err != nil {
		_ = sent.Close()
		return nil, err
	}
	resp.Body = &response{io.LimitReader(resp.Body, maxBody+1), resp.Body, sent}
	return resp, nil
}

type request struct {
	mu   sync.Mutex
	body io.ReadCloser // nil once closed
}

func (b *request) Read(into []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.body == nil {
		return 0, os.ErrClosed
	}
	return b.body.Read(into)
}

func (b *request) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.body == nil {
		return nil
	}
	err := b.body.Close()
	b.body = nil
	return err
}

type response struct {
	io.Reader
	body io.Closer
	sent io.Closer
}

func (b *response) Close() error { return errors.Join(b.body.Close(), b.sent.Close()) }
