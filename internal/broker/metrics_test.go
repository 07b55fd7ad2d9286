package broker

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"credentialbroker/api/client"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/fake"
	"credentialbroker/providers"
	"credentialbroker/rotation"
)

// dated is a manager that says when a version was made.
type dated struct {
	*fake.Store
	at time.Time
}

func (d dated) Fetch(ctx context.Context, ref providers.Ref, have providers.Version) (providers.Bundle, error) {
	b, err := d.Store.Fetch(ctx, ref, have)
	b.Created = d.at
	return b, err
}

// exposed gives what Prometheus reads, but for the counts of time.
func exposed(t testing.TB, c prometheus.Collector) string {
	t.Helper()
	registry := prometheus.NewPedanticRegistry() // which compares with Describe
	registry.MustRegister(c)
	r := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(r, httptest.NewRequest(http.MethodGet, "/", nil))
	if r.Code != 200 {
		t.Fatalf("%d: %s", r.Code, r.Body)
	}
	return r.Body.String()
}

// expose looks for samples; one that begins with ! may not be there, whatever
// its value.
func expose(t testing.TB, w *world, want ...string) {
	t.Helper()
	text := exposed(t, w.b)
	lines := strings.Split(text, "\n")
	for _, sample := range want {
		name, absent := strings.CutPrefix(sample, "!")
		found := slices.ContainsFunc(lines, func(l string) bool {
			l = strings.TrimPrefix(l, "credential_broker_")
			return l == name || absent && strings.HasPrefix(l, name)
		})
		if found == absent {
			t.Errorf("%s is not as it should be:\n%s", sample, text)
			return
		}
	}
}

func TestMetricsTellTheState(t *testing.T) {
	inWorld(t, func(w *world) {
		made := time.Now().Add(-90 * time.Hour).Truncate(time.Second)
		w.with(func(c *Client) { c.Provider, c.Rotation.MaxAge = dated{w.store, made}, 100*time.Hour })
		w.mustGet()
		expose(t, w, `client_ready{client="vdab"} 1`, `tokens{client="vdab"} 1`, `tokens_narrowed{client="vdab"} 0`, `provider_up{client="vdab"} 1`,
			`issuer_up{client="vdab"} 1`, `secret_waiting{client="vdab"} 0`, `secret_refused_versions{client="vdab"} 0`, `secret_age_seconds{client="vdab"} 324000`,
			`secret_max_age_seconds{client="vdab"} 360000`, `api_key_rejected{client="vdab"} 0`, `audit_healthy 1`, `audit_lost_total 0`,
			`!client_problem{`, `!secret_waiting_reason{`, `!issuer_failing_since`, `!provider_failing_since`, `!login_`)
		s := w.b.Status()[0]
		if got := s.Due(); !got.Equal(made.Add(100 * time.Hour)) {
			t.Errorf("due %v", got)
		}

		// A version that the issuer refuses changes nothing but the alarm.
		w.secret("wrong")
		if _, err := w.b.Rotate(w.t.Context(), "vdab", Rotation{}); err != nil {
			t.Fatal(err)
		}
		expose(t, w, `client_ready{client="vdab"} 1`, `secret_waiting{client="vdab"} 1`, `secret_waiting_reason{client="vdab",reason="refused"} 1`,
			`secret_refused_versions{client="vdab"} 1`, `secret_refused{client="vdab"} 0`)

		// Outages, for longer than the token lasts.
		since := w.outage()
		expose(t, w, `client_ready{client="vdab"} 0`, `client_problem{client="vdab",code="issuer_unavailable"} 1`, `tokens{client="vdab"} 0`,
			`token_runway_seconds{client="vdab"} 0`, `issuer_up{client="vdab"} 0`, `provider_up{client="vdab"} 0`)
		s = w.b.Status()[0]
		for _, at := range []time.Time{s.Credential.Issuer.Since, s.Credential.Provider.Since} {
			if at.Before(since) {
				t.Errorf("failing since %v, before %v", at, since)
			}
		}
		expose(t, w, "!issuer_failing_since_timestamp_seconds{client=\"vdab\"} 0")
	})
}

func TestMetricsOfCopies(t *testing.T) {
	inWorld(t, func(w *world) {
		w.mustGet()
		expose(t, w, `client_degraded{client="vdab"} 0`, `!client_kept_timestamp_seconds`, `budget_left{client="vdab"} 3`)
		copies := fake.NewStore()
		copies.SetFault(providers.Denied)
		w.with(func(c *Client) { c.Keeper = copies })
		begin := time.Now().Unix()
		w.mustGet()
		synctest.Wait()
		expose(t, w, `client_kept_timestamp_seconds{client="vdab"} 0`)
		copies.SetFault("")
		time.Sleep(time.Minute)
		if err := w.b.Retry("vdab"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		expose(t, w, `!client_kept_timestamp_seconds{client="vdab"} 0`)
		w.store.SetFault(providers.Unavailable)
		w.restart()
		w.mustGet()
		expose(t, w, fmt.Sprintf(`client_kept_timestamp_seconds{client="vdab"} %g`, float64(begin+60)), `client_degraded{client="vdab"} 1`, `client_ready{client="vdab"} 1`, `provider_up{client="vdab"} 0`)
		if r := w.b.Ready(w.caller); !r.Ready || r.Clients[0].DegradedUntil.IsZero() {
			t.Errorf("%+v", r)
		}
		// The end of it: first tokens in hand, then an error that says so.
		w.issuer.Set(fake.Fault{Lifetime: 2 * time.Hour})
		time.Sleep(23 * time.Hour)
		w.mustGet()
		time.Sleep(time.Hour)
		w.mustGet()
		time.Sleep(time.Hour)
		_, err := w.get(Request{})
		wantCode(t, err, client.ProviderUnavailable)
		expose(t, w, `client_ready{client="vdab"} 0`, `client_problem{client="vdab",code="provider_unavailable"} 1`)
		if r := w.b.Ready(w.caller); r.Ready {
			t.Errorf("%+v", r)
		}
		w.store.SetFault("")
		w.issuer.SetSecret(theID, "another", false)
		time.Sleep(2 * time.Minute)
		_, err = w.get(Request{})
		wantCode(t, err, client.CredentialsRejected)
		expose(t, w, `client_degraded{client="vdab"} 0`, `budget_left{client="vdab"} 2`)
	})
}

func TestMetricsOfTheKey(t *testing.T) {
	inWorld(t, func(w *world) {
		w.mustGet()
		if _, err := w.b.Reject(w.t.Context(), w.caller, Rejection{Client: "vdab", Status: 401, MoreInformation: "Invalid client id or secret."}); err == nil {
			t.Error("a refused key was taken for a token's fault")
		}
		expose(t, w, `api_key_rejected{client="vdab"} 1`, `rejections_total{client="vdab",what="api_key"} 1`)
		w.store.Set("vdab", map[string]string{"client_id": theID, "client_secret": theSecret}) // no key any more
		w.with(func(c *Client) { c.Rotation.Required, c.Headers = nil, nil })
		w.mustGet()
		expose(t, w, `client_ready{client="vdab"} 1`, `!api_key_rejected`)
	})
}

// outage ends the token, and the issuer and the secrets manager with it.
func (w *world) outage() (since time.Time) {
	since = time.Now()
	w.issuer.Set(fake.Fault{Kind: fake.Unavailable})
	w.store.SetFault(providers.Unavailable)
	for range 5 {
		time.Sleep(10 * time.Minute)
		_, _ = w.get(Request{})
	}
	time.Sleep(time.Hour)
	_, _ = w.get(Request{})
	return since
}

// TestMetricsHoldNoSecret: labels are names and few words; no value that names
// a version, a token or a caller finds its way out.
func TestMetricsHoldNoSecret(t *testing.T) {
	inWorld(t, func(w *world) {
		g := w.mustGet()
		if _, err := w.b.Reject(w.t.Context(), w.caller, Rejection{Client: "vdab", Fingerprint: g.Token.Fingerprint, Status: 401}); err != nil {
			t.Fatal(err)
		}
		w.secret("wrong")
		_, _ = w.b.Rotate(w.t.Context(), "vdab", Rotation{})
		text := exposed(t, w.b)
		for _, hidden := range []string{theSecret, theKey, theID, g.Token.Fingerprint} {
			if strings.Contains(text, hidden) {
				t.Errorf("metrics hold %s", hidden)
			}
		}
		label := regexp.MustCompile(`[{,]([a-z_]+)="([^"]*)"`)
		seen := 0
		for _, m := range label.FindAllStringSubmatch(text, -1) {
			seen++
			switch m[1] {
			case "client":
				if m[2] != "vdab" {
					t.Errorf("client %q", m[2])
				}
			case "code", "reason", "what", "result", "le":
			default:
				t.Errorf("label %s=%q: the configuration does not bound it", m[1], m[2])
			}
		}
		if seen < 20 {
			t.Errorf("only %d labels:\n%s", seen, text)
		}
	})
}

// TestDue: without a date of the manager nothing is due, rather than now.
func TestDue(t *testing.T) {
	at := clock.System{}.Now().Wall
	for _, c := range []struct {
		maxAge time.Duration
		made   time.Time
		want   time.Time
	}{{time.Hour, at, at.Add(time.Hour)}, {0, at, time.Time{}}, {time.Hour, time.Time{}, time.Time{}}} {
		s := ClientStatus{MaxAge: c.maxAge, Credential: rotation.Status{Created: c.made}}
		if got := s.Due(); !got.Equal(c.want) {
			t.Errorf("%v, %v: due %v, want %v", c.maxAge, c.made, got, c.want)
		}
	}
}
