package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"
)

// maxAnswer bounds what is read of one answer that is no stream, in bytes.
const maxAnswer = 8 << 20

// line is HTTP over one Unix socket.
type line struct {
	once   sync.Once
	socket string
	http   http.Client
}

func (l *line) to(socket string) *line {
	l.once.Do(func() {
		l.socket = socket
		l.http.Transport = &http.Transport{
			DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, socket) },
			DisableCompression:  true,
			MaxIdleConnsPerHost: 16,
		}
	})
	return l
}

// dial connects, and waits while the kernel's queue of connections is full: a
// non-blocking connect fails there, where a blocking one would wait.
func dial(ctx context.Context, socket string) (net.Conn, error) {
	var d net.Dialer
	for {
		c, err := d.DialContext(ctx, "unix", socket)
		if !errors.Is(err, syscall.EAGAIN) {
			return c, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// whole makes one request and reads its whole answer, whose owner wipes it if
// it holds a secret. A refusal is a *Problem; then the answer may be there too.
func (l *line) whole(ctx context.Context, method, path string, body []byte) ([]byte, error) {
	resp, err := l.do(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	// Sized at once, so that growing leaves no copies behind.
	out := bytes.NewBuffer(make([]byte, 0, max(512, min(resp.ContentLength, maxAnswer)+bytes.MinRead)))
	if _, err := out.ReadFrom(io.LimitReader(resp.Body, maxAnswer)); err != nil {
		return nil, fmt.Errorf("the broker's answer broke off: %w", err)
	}
	if resp.StatusCode/100 == 2 {
		return out.Bytes(), nil
	}
	return out.Bytes(), refusal(resp, out.Bytes())
}

// stream makes one request whose answer is read line by line by the caller,
// who closes it.
func (l *line) stream(ctx context.Context, method, path string) (io.ReadCloser, error) {
	resp, err := l.do(ctx, method, path, nil)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 == 2 {
		return resp.Body, nil
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	return nil, refusal(resp, b)
}

func (l *line) do(ctx context.Context, method, path string, body []byte) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://broker"+path, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("write the request: %w", err)
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "credential-broker-client")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := l.http.Do(req)
	if err != nil {
		return nil, l.explain(err)
	}
	return resp, nil
}

// explain says what a person can do about a socket that does not answer.
func (l *line) explain(err error) error {
	hint := ""
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		hint = ": is it running? (systemctl status credential-broker; " + Environment + " names another socket)"
	case errors.Is(err, fs.ErrPermission):
		hint = ": the socket or a directory above it is closed to this user"
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "dial" {
		return fmt.Errorf("no broker answers on %s%s: %w", l.socket, hint, op.Err)
	}
	return fmt.Errorf("the broker on %s does not answer: %w", l.socket, err)
}

// refusal is the error document of an answer.
func refusal(resp *http.Response, body []byte) error {
	var p Problem
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if kind != "application/problem+json" || json.Unmarshal(body, &p) != nil || p.Code == "" {
		p = Problem{Code: Internal, Detail: fmt.Sprintf("the broker answered with status %d and no error document", resp.StatusCode)}
	}
	p.Status = resp.StatusCode
	return &p
}
