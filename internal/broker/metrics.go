package broker

import (
	"errors"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"credentialbroker/oidc"
	"credentialbroker/rotation"
)

// Rules of this file:
//   - a label is a client's name or one of a few words: never a version, a
//     fingerprint or a caller, so that the configuration bounds the series;
//   - what does not apply to a client has no series: no value that would have
//     to be explained.

const namespace = "credential_broker"

type metrics struct {
	handovers  prometheus.Counter
	denials    prometheus.Counter
	rejections *prometheus.CounterVec
	fetches    *prometheus.CounterVec
	duration   prometheus.Histogram

	clients []gauge // of the state of a client
	problem *prometheus.Desc
	waiting *prometheus.Desc

	auditHealthy, auditAnchored, auditLost, auditEntries, sampled *prometheus.Desc
}

// A gauge is one fact of a client's state; value's second result is false
// where it does not apply.
type gauge struct {
	desc  *prometheus.Desc
	value func(s *ClientStatus, now time.Time) (float64, bool)
}

func newMetrics() metrics {
	const ns = namespace
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(ns+"_"+name, help, labels, nil)
	}
	return metrics{
		handovers:  prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Name: "handovers_total", Help: "Tokens, headers and keys handed over."}),
		denials:    prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Name: "denials_total", Help: "Requests that no allow entry permits."}),
		rejections: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Name: "rejections_total", Help: "Consumers' reports that an API refused a token or key."}, []string{"client", "what"}),
		fetches:    prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Name: "fetches_total", Help: "Flights to the issuer, by outcome."}, []string{"client", "result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: ns, Name: "fetch_duration_seconds", Help: "How long a flight to the issuer took.",
			Buckets: []float64{.01, .03, .1, .3, 1, 3, 10, 30}}),

		clients:       gauges(func(name, help string) *prometheus.Desc { return desc(name, help, "client") }),
		problem:       desc("client_problem", "1, with the code of the error that consumers of the client get now; none if it can be served.", "client", "code"),
		waiting:       desc("secret_waiting_reason", "1, with the reason why the new version is not installed: refused, issuer (it cannot be asked), other (status says more).", "client", "reason"),
		auditHealthy:  desc("audit_healthy", "Whether the audit log can be written."),
		auditAnchored: desc("audit_anchored", "Whether the last anchor of the audit log could be set, or none is configured."),
		auditLost:     desc("audit_lost_total", "Events that could not be written to the audit log."),
		auditEntries:  desc("audit_entries_total", "Entries written to the audit log."),
		sampled:       desc("sampled_timestamp_seconds", "When these values were taken: old ones come from a file that nobody writes any more."),
	}
}

func gauges(desc func(name, help string) *prometheus.Desc) []gauge {
	truth := func(name, help string, f func(s *ClientStatus) bool) gauge {
		return gauge{desc(name, help), func(s *ClientStatus, _ time.Time) (float64, bool) { return boolean(f(s)), true }}
	}
	moment := func(name, help string, f func(s *ClientStatus) time.Time) gauge {
		return gauge{desc(name, help), func(s *ClientStatus, _ time.Time) (float64, bool) {
			at := f(s)
			return float64(at.Unix()), !at.IsZero()
		}}
	}
	number := func(name, help string, f func(s *ClientStatus) int) gauge {
		return gauge{desc(name, help), func(s *ClientStatus, _ time.Time) (float64, bool) { return float64(f(s)), true }}
	}
	login := func(name, help string, f func(l *rotation.LoginStatus) bool) gauge {
		return gauge{desc(name, help), func(s *ClientStatus, _ time.Time) (float64, bool) {
			return boolean(s.Credential.Login != nil && f(s.Credential.Login)), s.Credential.Login != nil
		}}
	}
	return []gauge{
		truth("client_ready", "Whether a consumer of the client would be served now.", func(s *ClientStatus) bool { return s.Problem == nil }),
		truth("client_quarantined", "Whether the client is quarantined because of an incident.", func(s *ClientStatus) bool { return s.Quarantined != "" }),
		number("token_runway_seconds", "For how long tokens in hand will serve.", func(s *ClientStatus) int { return int(s.Runway) }),
		number("tokens", "Tokens in hand.", func(s *ClientStatus) int { return len(s.Tokens) }),
		number("tokens_narrowed", "Tokens in hand that have less scope than was asked for.", narrowed),

		truth("client_degraded", "Whether a sealed copy of this host serves in place of a secrets manager that is down.", func(s *ClientStatus) bool { return !s.Credential.Degraded.IsZero() }),
		{desc("client_kept_timestamp_seconds", "The secrets manager's last good answer that the sealed copy has; 0: it could not be written."), func(s *ClientStatus, _ time.Time) (float64, bool) {
			if s.Credential.Kept.IsZero() {
				return 0, s.Credential.KeepErr != nil
			}
			return float64(s.Credential.Kept.Unix()), true
		}},
		{desc("budget_left", "Failed authentications that the budget still allows the version that serves."), func(s *ClientStatus, _ time.Time) (float64, bool) {
			return float64(s.Credential.Left), s.Credential.Version != "" && s.HasIssuer
		}},

		truth("provider_up", "Whether the secrets manager's last answer was good.", func(s *ClientStatus) bool { return s.Credential.Provider.Err == nil }),
		truth("issuer_up", "Whether the issuer's last answer was good.", func(s *ClientStatus) bool { return s.Credential.Issuer.Err == nil }),
		moment("provider_failing_since_timestamp_seconds", "Since when the secrets manager has given no good answer.", func(s *ClientStatus) time.Time { return s.Credential.Provider.Since }),
		moment("issuer_failing_since_timestamp_seconds", "Since when the issuer has given no good answer.", func(s *ClientStatus) time.Time { return s.Credential.Issuer.Since }),

		truth("secret_refused", "Whether the issuer has refused the version that serves.", func(s *ClientStatus) bool { return s.Credential.Dead }),
		number("secret_refused_versions", "Versions that the issuer has refused, which are not tried again.", func(s *ClientStatus) int { return len(s.Credential.Refused) }),
		truth("secret_waiting", "Whether a new version waits to be installed.", func(s *ClientStatus) bool { return s.Credential.Candidate != "" }),
		truth("secret_pinned", "Whether an administrator has pinned a version: newer ones are not looked at.", func(s *ClientStatus) bool { return s.Credential.Pinned != "" }),
		truth("key_pending", "Whether a new key waits for the issuer.", func(s *ClientStatus) bool { return s.PendingKey != "" }),
		moment("secret_installed_timestamp_seconds", "When the version that serves was installed in this process.", func(s *ClientStatus) time.Time { return s.Credential.Installed }),
		{desc("secret_age_seconds", "Age of the version that serves, by the secrets manager's word."), func(s *ClientStatus, now time.Time) (float64, bool) {
			return now.Sub(s.Credential.Created).Seconds(), !s.Credential.Created.IsZero()
		}},
		{desc("secret_max_age_seconds", "How old a version may become (rotation: max_age)."), func(s *ClientStatus, _ time.Time) (float64, bool) {
			return s.MaxAge.Seconds(), s.MaxAge > 0
		}},
		moment("secret_due_timestamp_seconds", "When the version that serves will be too old.", (*ClientStatus).Due),

		login("login_required", "Whether a person has to log in.", func(l *rotation.LoginStatus) bool { return l.Required }),
		login("login_pending", "Whether the newest refresh token is on this host alone.", func(l *rotation.LoginStatus) bool { return l.Pending }),
		{desc("api_key_rejected", "Whether the newest word is that the API refuses the key."), func(s *ClientStatus, _ time.Time) (float64, bool) {
			return boolean(keyRejected(s)), s.HasKey
		}},
	}
}

// Due is when the version that serves will be older than MaxAge; zero if it has
// none, or the secrets manager does not say when it was made.
func (s *ClientStatus) Due() time.Time {
	if s.MaxAge <= 0 || s.Credential.Created.IsZero() {
		return time.Time{}
	}
	return s.Credential.Created.Add(s.MaxAge)
}

func narrowed(s *ClientStatus) (n int) {
	for _, t := range s.Tokens {
		if t.Narrowed {
			n++
		}
	}
	return n
}

// keyRejected goes by the newest word, of consumers or the probe.
func keyRejected(s *ClientStatus) bool {
	k := s.Credential
	if s.KeyComplaints > 0 && s.KeyLast.After(k.Probed) {
		return true
	}
	return k.Probed.IsZero() && oidc.KindOf(k.ProbeErr) == oidc.InvalidClient
}

// waitingReason is one of a few words; Waiting says it to people.
func waitingReason(s *rotation.Status) string {
	switch {
	case slices.Contains(s.Refused, s.Candidate):
		return "refused"
	case s.Issuer.Err != nil:
		return "issuer"
	}
	return "other"
}

// minted counts a flight.
func (m *metrics) minted(name string, took time.Duration, err error) {
	result := "ok"
	var e *rotation.Error
	if errors.As(err, &e) {
		result = string(e.Kind)
	} else if err != nil {
		result = "cancelled"
	}
	m.fetches.WithLabelValues(name, result).Inc()
	m.duration.Observe(took.Seconds())
}

func (m *metrics) counters() []prometheus.Collector {
	return []prometheus.Collector{m.handovers, m.denials, m.rejections, m.fetches, m.duration}
}

// Describe is for prometheus: the Broker is a Collector of its own state. It
// names all that there may be, whatever the clients.
func (b *Broker) Describe(ch chan<- *prometheus.Desc) {
	m := &b.metrics
	for _, c := range m.counters() {
		c.Describe(ch)
	}
	for _, g := range m.clients {
		ch <- g.desc
	}
	for _, d := range []*prometheus.Desc{m.problem, m.waiting, m.auditHealthy, m.auditAnchored, m.auditLost, m.auditEntries, m.sampled} {
		ch <- d
	}
}

// Collect gives counts, and the state of every client at this moment.
func (b *Broker) Collect(ch chan<- prometheus.Metric) {
	m := &b.metrics
	for _, c := range m.counters() {
		c.Collect(ch)
	}
	value := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	now := b.o.Clock.Now().Wall
	for _, s := range b.Status() {
		for _, g := range m.clients {
			if v, applies := g.value(&s, now); applies {
				value(g.desc, v, s.Name)
			}
		}
		if s.Problem != nil {
			value(m.problem, 1, s.Name, string(s.Problem.Code))
		}
		if s.Credential.Candidate != "" {
			value(m.waiting, 1, s.Name, waitingReason(&s.Credential))
		}
	}
	a := b.o.Audit.Status()
	value(m.auditHealthy, boolean(b.o.Audit.Healthy() == nil))
	value(m.auditAnchored, boolean(a.AnchorError == ""))
	ch <- prometheus.MustNewConstMetric(m.auditLost, prometheus.CounterValue, float64(a.Lost))
	ch <- prometheus.MustNewConstMetric(m.auditEntries, prometheus.CounterValue, float64(a.Entries))
	value(m.sampled, float64(now.Unix()))
}

func boolean(v bool) float64 {
	if v {
		return 1
	}
	return 0
}
