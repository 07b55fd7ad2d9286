package aws

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"

	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

// The SDK would leave a secret behind in strings, which nobody can wipe. So
// the answers that hold one are taken off the wire below it, and the SDK sees
// an empty object in their place.

// answer is the members of a GetSecretValue response, or of one of the values
// in a BatchGetSecretValue's.
type answer map[string]secret.Secret

// A slot in a call's context is where its answer goes.
type slotKey struct{}

type slot struct {
	answer answer
	many   []answer // of a batch
	err    error
}

func getValue(ctx context.Context, api *secretsmanager.Client, in *secretsmanager.GetSecretValueInput) (answer, error) {
	var s slot
	if _, err := api.GetSecretValue(context.WithValue(ctx, slotKey{}, &s), in); err != nil {
		s.answer.wipe()
		return nil, err
	}
	return s.answer, s.err
}

// doer is the SDK's way to the network.
type doer struct{ client *http.Client }

// Do implements aws.HTTPClient.
func (d doer) Do(r *http.Request) (*http.Response, error) {
	resp, err := d.client.Do(withCaller(r)) //nolint:gosec // the SDK's requests go where the operator says
	if err != nil {
		return nil, err
	}
	s, ok := r.Context().Value(slotKey{}).(*slot)
	switch target := r.Header.Get("X-Amz-Target"); {
	case ok && resp.StatusCode == http.StatusOK && target == "secretsmanager.GetSecretValue":
		s.answer, s.err = take(resp.Body)
	case ok && resp.StatusCode == http.StatusOK && target == "secretsmanager.BatchGetSecretValue":
		s.many, s.err = takeMany(resp.Body, resp.ContentLength)
	default:
		resp.Body = capped{io.LimitReader(resp.Body, maxAnswer), resp.Body}
		return resp, nil
	}
	if err := resp.Body.Close(); err != nil && s.err == nil {
		s.err = err
	}
	empty := []byte("{}")
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(empty)), int64(len(empty))
	resp.Header.Del("Content-Length")
	return resp, nil
}

// maxAnswer bounds every answer: a secret has at most 64 KiB, which JSON may
// write at some greater length, and a description less.
const maxAnswer = providers.MaxPayload

type capped struct {
	io.Reader
	io.Closer
}

// errNotAnAnswer stands for whatever is no answer of Secrets Manager.
var errNotAnAnswer = errors.New("not an answer of Secrets Manager")

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

// takeMany does the same with a batch, of length bytes (-1: unknown). What is
// wrong with one value does not concern the others.
func takeMany(body io.Reader, length int64) ([]answer, error) {
	const most = batchSize * maxAnswer
	if length < 0 || length > most {
		length = most
	}
	buf := make([]byte, length+1)
	defer clear(buf)
	n, err := io.ReadFull(body, buf)
	switch {
	case err == nil:
		return nil, errNotAnAnswer // too long
	case !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF):
		return nil, err
	}
	var out struct{ SecretValues []json.RawMessage }
	err = json.Unmarshal(buf[:n], &out)
	var many []answer
	for _, raw := range out.SecretValues {
		if a, perr := providers.Parse(raw); perr == nil { // which wipes raw
			many = append(many, a)
		}
	}
	if err != nil {
		wipeAll(many)
		return nil, errNotAnAnswer
	}
	return many, nil
}

func (a answer) wipe() { providers.Bundle{Fields: a}.Wipe() }

// text gives a member that is no secret.
func (a answer) text(name string) string {
	b, _ := a[name].AppendTo(nil)
	return string(b)
}

// time gives a member that is seconds since 1970, perhaps with a fraction.
func (a answer) time(name string) time.Time {
	s, err := strconv.ParseFloat(a.text(name), 64)
	if err != nil || s <= 0 || s > 1<<40 {
		return time.Time{}
	}
	return time.UnixMilli(int64(s * 1000)).UTC()
}
