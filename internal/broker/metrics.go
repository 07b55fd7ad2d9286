package broker

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"credentialbroker/rotation"
)

type metrics struct {
	handovers  prometheus.Counter
	denials    prometheus.Counter
	rejections *prometheus.CounterVec
	fetches    *prometheus.CounterVec
	duration   prometheus.Histogram
}

func newMetrics() metrics {
	const ns = "credential_broker"
	return metrics{
		handovers:  prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Name: "handovers_total", Help: "Tokens, headers and keys handed over."}),
		denials:    prometheus.NewCounter(prometheus.CounterOpts{Namespace: ns, Name: "denials_total", Help: "Requests that no allow entry permits."}),
		rejections: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Name: "rejections_total", Help: "Consumers' reports that an API refused a token or key."}, []string{"client", "what"}),
		fetches:    prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Name: "fetches_total", Help: "Flights to the issuer, by outcome."}, []string{"client", "result"}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Namespace: ns, Name: "fetch_duration_seconds", Help: "How long a flight to the issuer took.",
			Buckets: []float64{.01, .03, .1, .3, 1, 3, 10, 30}}),
	}
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

// Describe is for prometheus: the Broker is a Collector of its own state.
func (b *Broker) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(b, ch) }

// Collect gives counts, and the state of every client at this moment.
func (b *Broker) Collect(ch chan<- prometheus.Metric) {
	for _, c := range []prometheus.Collector{b.metrics.handovers, b.metrics.denials, b.metrics.rejections, b.metrics.fetches, b.metrics.duration} {
		c.Collect(ch)
	}
	gauge := func(name, help string, value float64, client string) {
		d := prometheus.NewDesc("credential_broker_"+name, help, []string{"client"}, nil)
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, client)
	}
	for _, s := range b.Status() {
		gauge("token_runway_seconds", "For how long tokens in hand will serve.", float64(s.Runway), s.Name)
		gauge("provider_up", "Whether the secrets manager's last answer was good.", boolean(s.Credential.Provider.Err == nil), s.Name)
		gauge("issuer_up", "Whether the issuer's last answer was good.", boolean(s.Credential.Issuer.Err == nil), s.Name)
		gauge("secret_refused", "Whether the issuer has refused the version that serves.", boolean(s.Credential.Dead), s.Name)
		gauge("secret_waiting", "Whether a new version waits to be installed.", boolean(s.Credential.Candidate != ""), s.Name)
		if !s.Credential.Created.IsZero() {
			gauge("secret_age_seconds", "Age of the version that serves, by the secrets manager's word.",
				b.o.Clock.Now().Wall.Sub(s.Credential.Created).Seconds(), s.Name)
		}
	}
}

func boolean(v bool) float64 {
	if v {
		return 1
	}
	return 0
}
