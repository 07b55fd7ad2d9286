package main

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/configs"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/secret"
)

const theWebhookKey = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// received checks a request as the specification has it, with nothing of the
// product, and gives its id and body.
func received(r *http.Request) (id, body string, err error) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return "", "", err
	}
	key, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(theWebhookKey, "whsec_"))
	if err != nil {
		return "", "", err
	}
	id, at := r.Header.Get("webhook-id"), r.Header.Get("webhook-timestamp")
	seconds, err := strconv.ParseInt(at, 10, 64)
	if err != nil || time.Since(time.Unix(seconds, 0)).Abs() > 5*time.Minute {
		return "", "", fmt.Errorf("timestamp %q", at)
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s.%s.%s", id, at, b)
	version, signature, _ := strings.Cut(r.Header.Get("webhook-signature"), ",")
	sent, err := base64.StdEncoding.DecodeString(signature)
	if version != "v1" || err != nil || !hmac.Equal(sent, mac.Sum(nil)) {
		return "", "", fmt.Errorf("signature %q", r.Header.Get("webhook-signature"))
	}
	if r.Method != http.MethodPost || r.Header.Get("Content-Type") != "application/json" || id == "" {
		return "", "", fmt.Errorf("%s %v", r.Method, r.Header)
	}
	return id, string(b), nil
}

// A receiver takes alarms over TLS, or answers what the test wants.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	status int    // zero: 204
	first  func() // is called with the first alarm, before its answer
	ids    []string
	bodies []string
	wrong  []error
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{}
	r.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		id, body, err := received(req)
		r.mu.Lock()
		defer r.mu.Unlock()
		if err != nil || req.URL.RequestURI() != "/alarm?to=1" {
			r.wrong = append(r.wrong, fmt.Errorf("%s: %w", req.URL, err))
		}
		r.ids, r.bodies = append(r.ids, id), append(r.bodies, body)
		if r.first != nil {
			r.first()
			r.first = nil
		}
		if r.status == 0 {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		w.Header().Set("Retry-After", "300")
		w.Header().Set("Location", "/elsewhere")
		w.WriteHeader(r.status)
		_, _ = io.WriteString(w, "canary")
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) answer(status int) {
	r.mu.Lock()
	r.status = status
	r.mu.Unlock()
}

// got takes the ids and bodies since the last time.
func (r *receiver) got(t *testing.T) (ids, bodies []string) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, err := range r.wrong {
		t.Error(err)
	}
	ids, bodies = r.ids, r.bodies
	r.ids, r.bodies, r.wrong = nil, nil, nil
	return ids, bodies
}

// trust writes the receiver's certificate.
func (r *receiver) trust(t *testing.T, file string) string {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestWebhookPost: what is sent, and what is said of each answer: never its
// own words.
func TestWebhookPost(t *testing.T) {
	r := newReceiver(t)
	of := configs.Secret{Provider: "corp"}
	a := configs.Alarm{Webhook: &configs.Webhook{URL: r.URL + "/alarm?to=1", Secret: of}}
	w := &webhook{of: of}
	post := func() error { return w.post(t.Context(), a, "alarm_x_7", []byte("{\"a\":1}\n")) }
	if err := post(); !errors.Is(err, errNoKey) {
		t.Errorf("without a key: %v", err)
	}
	var err error
	if w.key, err = webhookKey(secret.FromString(theWebhookKey + "\n")); err != nil {
		t.Fatal(err)
	}
	if err := post(); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("a certificate that nobody vouches for: %v", err)
	}
	a.Webhook.CAFile = r.trust(t, filepath.Join(shortDir(t), "ca.pem"))
	if err := post(); err != nil {
		t.Error(err)
	}
	if ids, bodies := r.got(t); fmt.Sprint(ids, bodies) != `[alarm_x_7] [{"a":1}]` {
		t.Error(ids, bodies)
	}
	a.Webhook.Secret.Path = "other"
	if err := post(); !errors.Is(err, errNoKey) {
		t.Errorf("with the key of another secret: %v", err)
	}
	a.Webhook.Secret = of
	for status, c := range map[int]struct {
		forGood bool
		want    string
	}{
		200: {}, 201: {}, 400: {true, "400 Bad Request"}, 401: {false, "the same key"}, 404: {false, "check alarm.webhook.url"}, 410: {true, "takes no alarms any more"},
		422: {true, "422"}, 429: {false, "429"}, 503: {false, "503"}, 302: {false, "redirects are not followed"},
	} {
		r.answer(status)
		err := post()
		var refused *refusedError
		if c.want == "" && err == nil {
			continue
		}
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "canary") || refused.forGood() != c.forGood ||
			refused.pause(time.Second) != 5*time.Minute || refused.pause(time.Hour) != time.Hour {
			t.Errorf("%d: %v, %+v", status, err, refused)
		}
	}
	if ids, _ := r.got(t); len(ids) != 10 {
		t.Errorf("%d requests: a redirect was followed", len(ids))
	}
	r.Close()
	var refused *refusedError
	if err := post(); err == nil || errors.As(err, &refused) {
		t.Errorf("nobody there: %v", err)
	}
	if refused.forGood() || refused.pause(time.Second) != time.Second {
		t.Error("nobody there is an answer")
	}
	s := &server{current: &opened{config: &configs.Config{}}}
	s.webhook.key = w.key
	if err := s.readLogins(t.Context()); err != nil || !s.webhook.key.Empty() || w.key.Use(func([]byte) error { return nil }) == nil {
		t.Errorf("the key of a webhook that is gone is kept: %v", err)
	}
}

// TestWebhookTakesItsTime: a receiver that hangs is left at the timeout.
func TestWebhookTakesItsTime(t *testing.T) {
	release := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	defer srv.Close()
	defer close(release)
	key, err := webhookKey(secret.FromString(theWebhookKey))
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	err = (&webhook{key: key}).post(t.Context(), configs.Alarm{Webhook: &configs.Webhook{URL: srv.URL, Timeout: clock.Duration(50 * time.Millisecond)}}, "x", []byte("{}\n"))
	if !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) > 10*time.Second {
		t.Errorf("%v after %v", err, time.Since(begin))
	}
}

// TestWebhookSignature: as the example of the specification has it.
func TestWebhookSignature(t *testing.T) {
	key, err := webhookKey(secret.FromString("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := (&webhook{key: key}).sign(configs.Secret{}, []byte(`msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{"test": 2432232314}`))
	if err != nil || got != "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=" {
		t.Errorf("%s, %v", got, err)
	}
}

func TestWebhookKey(t *testing.T) {
	b64 := func(n int) string { return base64.StdEncoding.EncodeToString(make([]byte, n)) }
	for text, want := range map[string]int{"whsec_" + b64(24): 24, "whsec_" + b64(64) + "\n": 64, "whsec_" + b64(33): 33,
		"whsec_" + b64(23): 0, "whsec_" + b64(65): 0, b64(32): 0, "whsec_": 0, "": 0, "whsec_" + strings.Repeat("!", 40): 0, "whsec_" + b64(32) + "x": 0} {
		key, err := webhookKey(secret.FromString(text))
		if key.Len() != want || (err == nil) != (want > 0) || err != nil && strings.Contains(err.Error(), "AAAA") {
			t.Errorf("%s: %d bytes, %v", text, key.Len(), err)
		}
	}
}

// TestWebhookIsPatient: it goes on for more than an hour, as the receiver asks
// to; what that will never take is given up at once; without a key it waits.
func TestWebhookIsPatient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAlarmWorld(t)
		h := w.hook()
		h.via, h.retries = "webhook", webhookRetries
		run, answer := h.run, error(nil)
		h.run = func(ctx context.Context, c configs.Alarm, id string, line []byte) error {
			w.mu.Lock()
			err := answer
			w.mu.Unlock()
			if errors.Is(err, errNoKey) {
				return err
			}
			return errors.Join(run(ctx, c, id, line), err)
		}
		set := func(err error) {
			w.mu.Lock()
			answer = err
			w.mu.Unlock()
		}
		w.background(h.Run)
		pass(time.Second)

		set(errNoKey)
		w.alarm("a", "", "a")
		pass(24 * time.Hour)
		w.expect()
		if n := strings.Count(w.out.String(), "an alarm waits"); n != 1 {
			t.Errorf("it is said %d times that it waits", n)
		}
		w.failing(1)
		set(nil)
		pass(5 * time.Second)
		w.expect("a 0", "a 0")
		w.counted(1, 1, 0)

		set(&refusedError{status: 503, after: 5 * time.Minute})
		w.alarm("b", "", "b")
		pass(4 * time.Minute)
		w.expect("b 0")
		pass(time.Hour)
		set(nil)
		pass(5 * time.Minute)
		if n := len(w.runs); n < 12 || n > 14 {
			t.Errorf("%d requests in an hour", n)
		}
		w.runs, w.at = nil, nil
		pass(time.Hour)
		w.expect()

		set(&refusedError{status: 410})
		w.alarm("c", "", "c")
		pass(2 * time.Second)
		w.expect("c 0")
		if w.counts.givenUp.Load() != 1 || !strings.Contains(w.out.String(), "is given up\" via=webhook") {
			t.Errorf("given up %d\n%s", w.counts.givenUp.Load(), w.out.String())
		}
		set(errors.New("connection refused"))
		w.alarm("d", "", "d")
		pass(61 * time.Minute)
		if n := len(w.runs); n != webhookRetries+1 || w.counts.givenUp.Load() != 2 {
			t.Errorf("%d requests, %d given up", n, w.counts.givenUp.Load())
		}
	})
}

// TestTwoAreTold apart: one that is down holds the other up in nothing, and is
// told what it has missed, also after a restart.
func TestTwoAreTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAlarmWorld(t)
		down := func() *alarmHook {
			h := w.hook()
			h.via, h.file, h.retries = "webhook", filepath.Join(w.dir, "alarm-webhook.json"), webhookRetries
			h.run = func(context.Context, configs.Alarm, string, []byte) error { return errors.New("connection refused") }
			return h
		}
		stop, stopDown := w.background(w.hook().Run), w.background(down().Run)
		pass(time.Second)
		for _, name := range []string{"a", "b", "c"} {
			w.alarm(name, "", name)
		}
		pass(time.Minute)
		w.expect("a 0", "b 0", "c 0")
		stopDown()
		stop()
		h := w.hook()
		h.via, h.file = "webhook", filepath.Join(w.dir, "alarm-webhook.json")
		stop = w.background(h.Run)
		pass(10 * time.Second)
		stop()
		w.expect("a 0", "b 0", "c 0")
	})
}

// TestWebhookPage does what docs/monitoring.md says of the webhook: the
// configuration is taken, and the command makes a key.
func TestWebhookPage(t *testing.T) {
	_, section, _ := strings.Cut(page(t), "\n## A webhook for each alarm\n")
	section, _, _ = strings.Cut(section, "\n## ")
	block := func(language string) string {
		m := regexp.MustCompile("(?s)```" + language + "\n(.*?)```").FindStringSubmatch(section)
		if m == nil {
			t.Fatalf("no block of %s", language)
		}
		return m[1]
	}
	file := filepath.Join(t.TempDir(), "broker.yaml")
	if err := os.WriteFile(file, []byte("providers: { corp: { systemd: {} } }\n"+block("yaml")), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := configs.Load(file, configs.Options{Credentials: t.TempDir()})
	if err != nil || c.Alarm.Webhook == nil || c.Alarm.Webhook.Secret.Path == "" || c.Alarm.Webhook.Timeout.D() != alarmTimeout {
		t.Errorf("%v, %+v", err, c)
	}
	out, err := exec.Command("/bin/sh", "-c", block("console")).Output()
	if key, wrong := webhookKey(secret.New(out)); err != nil || wrong != nil || key.Len() != 32 {
		t.Errorf("%v, %v, %d bytes", err, wrong, key.Len())
	}
	for status := range 600 {
		if (&refusedError{status: status}).forGood() != strings.Contains(section, fmt.Sprintf("`%d`", status)) {
			t.Errorf("%d is not as it is said", status)
		}
	}
}
