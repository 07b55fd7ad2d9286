package proxy

import (
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Rules of this file: the configuration bounds the series, but for the names
// that an API gives its limits: of these a route keeps the first few.

type metrics struct {
	requests *prometheus.CounterVec
	retries  *prometheus.CounterVec
	duration *prometheus.HistogramVec
	limits   map[string]*prometheus.GaugeVec // by the word in the header's name

	mu    sync.Mutex
	names map[[2]string]map[string]bool // of limits, by client and route
}

func newMetrics() *metrics {
	const ns = "credential_broker"
	route := []string{"client", "route"}
	return &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Name: "proxy_requests_total",
			Help: "Requests to the reverse proxy, by the class of the API's status, or by the broker's own error code; broken: the answer broke off, aborted: the caller did."}, append(route, "code")),
		retries: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: ns, Name: "proxy_retries_total",
			Help: "Requests that were sent again with a new token."}, route),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: ns, Name: "proxy_request_duration_seconds",
			Help: "How long requests to the reverse proxy took, to the end of the answer.", Buckets: []float64{.003, .01, .03, .1, .3, 1, 3, 10, 30}}, route),
		limits: map[string]*prometheus.GaugeVec{
			"Limit": prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: ns, Name: "api_rate_limit",
				Help: "The API's X-RateLimit-Limit, by the name that it gives."}, append(route, "limit")),
			"Remaining": prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: ns, Name: "api_rate_limit_remaining",
				Help: "The API's X-RateLimit-Remaining, by the name of the limit, as the last answer had it."}, append(route, "limit")),
			"Reset": prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: ns, Name: "api_rate_limit_reset_timestamp_seconds",
				Help: "When the limit begins anew by the API's X-RateLimit-Reset, as the last answer had it."}, append(route, "limit")),
		},
		names: map[[2]string]map[string]bool{},
	}
}

func (m *metrics) all() []prometheus.Collector {
	return []prometheus.Collector{m.requests, m.retries, m.duration, m.limits["Limit"], m.limits["Remaining"], m.limits["Reset"]}
}

// Describe implements prometheus.Collector.
func (s *Server) Describe(ch chan<- *prometheus.Desc) {
	for _, c := range s.metrics.all() {
		c.Describe(ch)
	}
}

// Collect implements prometheus.Collector.
func (s *Server) Collect(ch chan<- prometheus.Metric) {
	for _, c := range s.metrics.all() {
		c.Collect(ch)
	}
}

// counts are one route's.
type counts struct {
	metrics  *metrics
	route    [2]string
	requests *prometheus.CounterVec
	duration prometheus.Observer
	retries  prometheus.Counter
}

func (m *metrics) of(r *Route) *counts {
	return &counts{metrics: m, route: [2]string{r.Client, r.Name}, requests: m.requests.MustCurryWith(prometheus.Labels{"client": r.Client, "route": r.Name}),
		duration: m.duration.WithLabelValues(r.Client, r.Name), retries: m.retries.WithLabelValues(r.Client, r.Name)}
}

func (c *counts) done(code string, took time.Duration) {
	c.metrics.mu.Lock()
	if c.metrics.names[c.route] != nil { // else it was configured away meanwhile
		c.requests.WithLabelValues(code).Inc()
	}
	c.metrics.mu.Unlock()
	c.duration.Observe(took.Seconds())
}

// keep forgets the routes that are not among these.
func (m *metrics) keep(routes map[string]*route) {
	m.mu.Lock()
	defer m.mu.Unlock()
	here := map[[2]string]bool{}
	for _, r := range routes {
		here[[2]string{r.Client, r.Name}] = true
	}
	for key := range m.names {
		if here[key] {
			continue
		}
		for _, v := range m.all() {
			v.(interface{ DeletePartialMatch(prometheus.Labels) int }).DeletePartialMatch(prometheus.Labels{"client": key[0], "route": key[1]})
		}
		delete(m.names, key)
	}
	for key := range here {
		if m.names[key] == nil {
			m.names[key] = map[string]bool{}
		}
	}
}

// take reads the API's rate limits from an answer: X-RateLimit-Limit,
// -Remaining and -Reset, RateLimit- with the same (draft-ietf-httpapi-ratelimit-headers-06),
// and those that have the name of the limit behind that, as Kong's
// X-RateLimit-Limit-Minute.
func (m *metrics) take(r *Route, h http.Header) {
	for header, values := range h {
		rest, ok := strings.CutPrefix(strings.TrimPrefix(header, "X-"), "Ratelimit-")
		if !ok {
			continue
		}
		what, name, _ := strings.Cut(rest, "-")
		if name == "" {
			name = "default"
		}
		for _, text := range values {
			m.set(r, what, strings.ToLower(name), text)
		}
	}
}

// set reads one header: a number, or API Connect's form
// "name=default,92;name=burst,10;".
func (m *metrics) set(r *Route, what, of, text string) {
	const (
		most      = 8
		firstDate = 1e9 // what is less is not seconds since 1970, but from now
	)
	gauge := m.limits[what]
	if gauge == nil {
		return
	}
	for part := range strings.SplitSeq(text, ";") {
		name, number := of, strings.TrimSpace(part)
		if named, ok := strings.CutPrefix(number, "name="); ok {
			name, number, _ = strings.Cut(named, ",")
		}
		number, _, _ = strings.Cut(number, ",") // a policy may follow
		n, err := strconv.ParseUint(strings.TrimSpace(number), 10, 53)
		if err != nil || !plainName(name) {
			continue
		}
		if what == "Reset" && n < firstDate {
			n += uint64(time.Now().Unix())
		}
		m.mu.Lock()
		names := m.names[[2]string{r.Client, r.Name}]
		if names != nil && (names[name] || len(names) < most) {
			names[name] = true
			gauge.WithLabelValues(r.Client, r.Name, name).Set(float64(n))
		}
		m.mu.Unlock()
	}
}

func plainName(s string) bool {
	return s != "" && len(s) <= 32 && !strings.ContainsFunc(s, func(c rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.", c)
	})
}
