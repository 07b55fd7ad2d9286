package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"sync"
	"time"

	"credentialbroker/configs"
	"credentialbroker/internal/secret"
	"credentialbroker/providers"
)

// Rules of this file: the message is Standard Webhooks 1.0.0; a refusal is
// given by its status alone, since the answer's words are the receiver's.

// A webhook posts alarms, each signed. It keeps its key: when that is needed,
// the secrets manager may be what is down.
type webhook struct {
	mu  sync.Mutex
	key secret.Secret
	of  configs.Secret // whose key it is
}

// errNoKey is for an alarm that cannot be signed yet.
var errNoKey = errors.New("the key of the webhook has not been read yet; this is tried again")

// A refusedError is an answer other than 2xx.
type refusedError struct {
	status int
	after  time.Duration // which the webhook asks for; zero: it does not
}

// Error says what to do about it.
func (r *refusedError) Error() string {
	hint := map[int]string{
		http.StatusUnauthorized: ": do both sides have the same key?", http.StatusForbidden: ": do both sides have the same key?",
		http.StatusNotFound: ": check alarm.webhook.url", http.StatusGone: ": it takes no alarms any more: change or remove alarm.webhook",
	}[r.status]
	if r.status >= 300 && r.status < 400 {
		hint = ": redirects are not followed: write the address that it sends to"
	}
	return fmt.Sprintf("the webhook answers %d %s%s", r.status, http.StatusText(r.status), hint)
}

// forGood says whether the webhook will not take this alarm whenever it comes.
// Other refusals end when somebody mends the key, the address or the receiver.
func (r *refusedError) forGood() bool {
	return r != nil && slices.Contains([]int{http.StatusBadRequest, http.StatusGone, http.StatusRequestEntityTooLarge,
		http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity}, r.status)
}

// pause is ours, or the webhook's if that is longer.
func (r *refusedError) pause(ours time.Duration) time.Duration {
	if r == nil {
		return ours
	}
	return max(ours, min(r.after, longestPause))
}

// post sends an alarm once. id is the same whenever the alarm is sent.
func (w *webhook) post(ctx context.Context, a configs.Alarm, id string, line []byte) error {
	c, now := a.Webhook, strconv.FormatInt(time.Now().Unix(), 10)
	body := bytes.TrimSuffix(line, []byte("\n"))
	signature, err := w.sign(c.Secret, slices.Concat([]byte(id+"."+now+"."), body))
	if err != nil {
		return err
	}
	exchange, err := c.Exchange()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(c.Timeout.D(), alarmTimeout))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.URL, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header = http.Header{"Content-Type": {"application/json"}, "Webhook-Id": {id}, "Webhook-Timestamp": {now}, "Webhook-Signature": {signature}}
	resp, err := exchange.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("the webhook does not answer: %w", err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode/100 == 2 {
		return nil
	}
	seconds, _ := strconv.ParseUint(resp.Header.Get("Retry-After"), 10, 16)
	return &refusedError{resp.StatusCode, time.Duration(seconds) * time.Second} // #nosec G115 -- 16 bits
}

// sign makes the signature of version 1 with the key that of names.
func (w *webhook) sign(of configs.Secret, message []byte) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.key.Empty() || !reflect.DeepEqual(w.of, of) {
		return "", errNoKey
	}
	mac, err := w.key.HMAC(sha256.New(), message)
	return "v1," + base64.StdEncoding.EncodeToString(mac), err
}

// read reads the key anew. What cannot be read stays what it was.
func (w *webhook) read(ctx context.Context, p providers.Provider, of configs.Secret) error {
	ctx, cancel := context.WithTimeout(ctx, loginRetry)
	defer cancel()
	b, err := providers.Load(ctx, p, of.Spec, "")
	if err != nil {
		return err
	}
	defer b.Wipe()
	key, err := webhookKey(b.Fields["key"])
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.key.Wipe()
	w.key, w.of = key, of
	return nil
}

// forget is for a configuration without a webhook.
func (w *webhook) forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.key.Wipe()
	w.key = secret.Secret{}
}

// webhookKey decodes a key as Standard Webhooks writes it.
func webhookKey(text secret.Secret) (key secret.Secret, err error) {
	const least, most = 24, 64 // bytes
	wrong := errors.New("its secret needs the field key: whsec_ and the base64 of 24 to 64 random bytes, the same as the receiver has")
	err = text.Use(func(b []byte) error {
		b, prefixed := bytes.CutPrefix(bytes.TrimSpace(b), []byte("whsec_"))
		raw := make([]byte, base64.StdEncoding.DecodedLen(len(b)))
		n, err := base64.StdEncoding.Decode(raw, b)
		if err != nil || !prefixed || n < least || n > most {
			clear(raw)
			return wrong
		}
		key = secret.New(raw[:n])
		return nil
	})
	return key, err
}
