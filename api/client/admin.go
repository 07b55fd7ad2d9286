package client

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// Admin speaks to the admin socket. What it may do follows from the groups of
// this process. The zero value is ready; its methods may be called from many
// goroutines. A refusal is a *Problem.
type Admin struct {
	// Socket is the admin socket. Empty: DefaultAdminSocket.
	Socket string

	line line
}

// Status is the state of the whole broker (role observe).
func (a *Admin) Status(ctx context.Context) (*Status, error) {
	return get[Status](ctx, a.dial(), "/v1/status")
}

// Metrics are in Prometheus's text format (role observe).
func (a *Admin) Metrics(ctx context.Context) ([]byte, error) {
	return a.dial().whole(ctx, http.MethodGet, "/metrics", nil)
}

// Reload takes the configuration anew, whole or not at all (role operate). A
// configuration with errors is a *Problem with code InvalidConfiguration.
func (a *Admin) Reload(ctx context.Context) ([]Change, error) {
	c, err := send[Changes](ctx, a.dial(), "/v1/reload", nil)
	if err != nil {
		return nil, err
	}
	return c.Changes, nil
}

// Check has the daemon look at everything that it depends on (role operate).
// Findings come as they are made; an error ends them.
func (a *Admin) Check(ctx context.Context) iter.Seq2[Finding, error] {
	return lines[Finding](ctx, a.dial(), http.MethodPost, "/v1/check")
}

// Retry lets a version that the issuer refused be tried once more (role
// operate).
func (a *Admin) Retry(ctx context.Context, name string) (*Outcome, error) {
	return send[Outcome](ctx, a.dial(), clientPath(name, "retry"), nil)
}

// Rotate looks for a new version now (role operate).
func (a *Admin) Rotate(ctx context.Context, name string, r Rotation) (*Outcome, error) {
	return send[Outcome](ctx, a.dial(), clientPath(name, "rotate"), r)
}

// Key gives the public half of the client's key (role observe).
func (a *Admin) Key(ctx context.Context, name string) (*Key, error) {
	return get[Key](ctx, a.dial(), clientPath(name, "keys"))
}

// NewKey makes a key, whose private half goes straight into the secrets manager
// (role operate).
func (a *Admin) NewKey(ctx context.Context, name string, k NewKey) (*Key, error) {
	return send[Key](ctx, a.dial(), clientPath(name, "keys"), k)
}

// Intake has values that an issuer sent proved, and stored where the daemon may
// (role operate). accept stores them even unproved. The values stay the
// caller's to wipe; names of fields are made of a to z and _.
func (a *Admin) Intake(ctx context.Context, name string, fields map[string][]byte, accept bool) (*Intake, error) {
	body := intakeBody(fields, accept)
	defer clear(body)
	b, err := a.dial().whole(ctx, http.MethodPost, clientPath(name, "intake"), body)
	if err != nil {
		return nil, err
	}
	return decode[Intake](b)
}

// RotateKey takes the rotation of the client's key one step on (role operate).
func (a *Admin) RotateKey(ctx context.Context, name string, r KeyRotation) (*RotatedKey, error) {
	return send[RotatedKey](ctx, a.dial(), clientPath(name, "keys/rotate"), r)
}

// StartLogin begins a person's login, in place of one that is under way (role
// operate).
func (a *Admin) StartLogin(ctx context.Context, name string, l LoginStart) (*Login, error) {
	return send[Login](ctx, a.dial(), clientPath(name, "login"), l)
}

// FinishLogin gives the broker what a login brought back (role operate).
func (a *Admin) FinishLogin(ctx context.Context, name string, f LoginFinish) (*Outcome, error) {
	return send[Outcome](ctx, a.dial(), clientPath(name, "login/finish"), f)
}

// Revoke takes the client's tokens back at the issuer (role operate).
func (a *Admin) Revoke(ctx context.Context, name string, r Revocation) (*Outcome, error) {
	return send[Outcome](ctx, a.dial(), clientPath(name, "revoke"), r)
}

// Denied lists the distinct denials since a time (role observe).
func (a *Admin) Denied(ctx context.Context, since time.Time) ([]Denial, error) {
	q := url.Values{}
	if !since.IsZero() {
		q.Set("since", since.UTC().Format(time.RFC3339))
	}
	d, err := get[Denials](ctx, a.dial(), "/v1/audit/denied?"+q.Encode())
	if err != nil {
		return nil, err
	}
	return d.Denials, nil
}

// Verify has the daemon check its audit log (role observe).
func (a *Admin) Verify(ctx context.Context) (*Verdict, error) {
	return get[Verdict](ctx, a.dial(), "/v1/audit/verify")
}

// Tail gives the last entries of the audit log and, if follow is true, each new
// one until ctx ends (role observe). Each is one JSON object.
func (a *Admin) Tail(ctx context.Context, last int, follow bool) iter.Seq2[json.RawMessage, error] {
	path := "/v1/audit?last="
	if follow {
		path = "/v1/audit/follow?last="
	}
	return lines[json.RawMessage](ctx, a.dial(), http.MethodGet, path+strconv.Itoa(last))
}

// Export copies the audit log of a time to w, as "json" (lines) or "csv" (role
// observe). Zero times: from the beginning, to now.
func (a *Admin) Export(ctx context.Context, w io.Writer, from, to time.Time, format string) error {
	q := url.Values{"format": {format}}
	if !from.IsZero() {
		q.Set("from", from.UTC().Format(time.RFC3339Nano))
	}
	if !to.IsZero() {
		q.Set("to", to.UTC().Format(time.RFC3339Nano))
	}
	body, err := a.dial().stream(ctx, http.MethodGet, "/v1/audit/export?"+q.Encode())
	if err != nil {
		return err
	}
	defer body.Close()
	if _, err := io.Copy(w, body); err != nil {
		return fmt.Errorf("copy the audit log: %w", err)
	}
	return nil
}

func (a *Admin) dial() *line {
	if a.Socket == "" {
		return a.line.to(DefaultAdminSocket())
	}
	return a.line.to(a.Socket)
}

// lines reads a stream of JSON lines.
func lines[T any](ctx context.Context, l *line, method, path string) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var none T
		body, err := l.stream(ctx, method, path)
		if err != nil {
			yield(none, err)
			return
		}
		defer body.Close()
		scanner := bufio.NewScanner(body)
		scanner.Buffer(nil, 1<<20)
		for scanner.Scan() {
			var v T
			if err := json.Unmarshal(scanner.Bytes(), &v); err != nil {
				yield(none, errors.New("the broker's answer is not the JSON that was expected: are broker and brokerd of one version?"))
				return
			}
			if !yield(v, nil) {
				return
			}
		}
		if err := scanner.Err(); err != nil && ctx.Err() == nil {
			yield(none, fmt.Errorf("the broker's answer broke off: %w", err))
		}
	}
}
