package main

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"credentialbroker/api/client"
)

// gatherers are the daemon's metrics: its own, which go wherever they are
// wanted, and all, with those of the process. A textfile may hold only the
// former: node_exporter has a process of its own.
func (s *server) gatherers() (own, all prometheus.Gatherer) {
	const ns = "credential_broker"
	registry, process := prometheus.NewRegistry(), prometheus.NewRegistry()
	counter := func(name, help string, f func(client.SocketStatus) uint64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: ns, Name: name, Help: help},
			func() float64 { return float64(f(s.api.Traffic())) })
	}
	registry.MustRegister(s.broker, s.proxy, s.incidentMetrics(), s.fileMetrics(),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: ns, Name: "build_info", Help: "1, with the version of the daemon.",
			ConstLabels: prometheus.Labels{"version": version, "goversion": runtime.Version()}}, func() float64 { return 1 }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: ns, Name: "connections", Help: "Connections on the consumer socket."},
			func() float64 { return float64(s.api.Traffic().Connections) }),
		counter("connections_displaced_total", "Idle connections that were closed to make room.", func(t client.SocketStatus) uint64 { return t.Displaced }),
		counter("connections_unidentified_total", "Connections of callers that the kernel could not name.", func(t client.SocketStatus) uint64 { return t.Unidentified }),
		counter("requests_limited_total", "Requests that were answered with 429.", func(t client.SocketStatus) uint64 { return t.RateLimited }))
	registry.MustRegister(slices.Concat(s.alarms.command.collectors("command"), s.alarms.webhook.collectors("webhook"))...)
	process.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return registry, prometheus.Gatherers{registry, process}
}

const exportEvery = 15 * time.Second

// export gives the metrics to whoever cannot read the administrators' socket,
// as the configuration says now. What cannot be done is tried again: no port
// in use and no full disk keeps the daemon from its work.
func (s *server) export(ctx context.Context, own, all prometheus.Gatherer) error {
	e := exporter{log: s.log, own: own, all: all, said: map[string]string{}}
	defer e.close()
	tick := time.NewTicker(exportEvery)
	defer tick.Stop()
	for {
		s.mu.Lock()
		m := s.current.config.Metrics
		s.mu.Unlock()
		e.say("listen "+m.Listen, e.listen(ctx, m.Listen))
		e.say("textfile "+m.TextFile, e.write(m.TextFile))
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// exporter is what export holds open.
type exporter struct {
	log      *slog.Logger
	own, all prometheus.Gatherer
	said     map[string]string

	addr   string
	server *http.Server
	served chan struct{} // closed when server has ended
	file   string        // that was written
}

// say writes a trouble to the journal, once each.
func (e *exporter) say(what string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != e.said[what] {
		if err != nil {
			e.log.Warn("metrics are not exported; this is tried again", "to", what, "error", err)
		} else {
			e.log.Info("metrics are exported again", "to", what)
		}
	}
	e.said[what] = text
}

func (e *exporter) close() {
	e.stop()
	e.remove()
}

// listen serves on addr, or goes on doing so; empty: nowhere.
func (e *exporter) listen(ctx context.Context, addr string) error {
	if e.server != nil {
		select {
		case <-e.served:
		default:
			if addr == e.addr {
				return nil
			}
		}
	}
	e.stop()
	if addr == "" {
		return nil
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	e.addr, e.server, e.served = addr, metricsServer(e.all), make(chan struct{})
	go func(server *http.Server, served chan struct{}) {
		defer close(served)
		_ = server.Serve(l)
	}(e.server, e.served)
	return nil
}

func (e *exporter) stop() {
	if e.server == nil {
		return
	}
	_ = e.server.Close()
	<-e.served
	e.server = nil
}

// metricsServer answers GET /metrics alone, to whoever is on this machine; a
// browser that a web page has led here by another name is none.
func metricsServer(g prometheus.Gatherer) *http.Server {
	const connections, requests = 16, 4
	metrics := promhttp.HandlerFor(g, promhttp.HandlerOpts{MaxRequestsInFlight: requests, Timeout: 10 * time.Second})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if a, err := netip.ParseAddr(host); host != "localhost" && (err != nil || !a.IsLoopback()) {
			http.Error(w, "ask by the address that the configuration names", http.StatusMisdirectedRequest)
			return
		}
		metrics.ServeHTTP(w, r)
	})
	var open atomic.Int64
	return &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second, WriteTimeout: 20 * time.Second,
		IdleTimeout: time.Minute, MaxHeaderBytes: 8 << 10, ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
		ConnState: func(c net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				if open.Add(1) > connections { // descriptors are for consumers
					_ = c.Close()
				}
			case http.StateClosed, http.StateHijacked:
				open.Add(-1)
			case http.StateActive, http.StateIdle:
			}
		}}
}

// write writes the file whole or not at all; an empty name: none. Another
// file of before goes: its values would be taken for today's.
func (e *exporter) write(file string) error {
	if file != e.file {
		e.remove()
	}
	if file == "" {
		return nil
	}
	err := prometheus.WriteToTextfile(file, e.own)
	var path *fs.PathError
	var link *os.LinkError
	switch {
	case err == nil:
		e.file = file
	case errors.As(err, &path): // it names a file of a moment
		err = path.Err
	case errors.As(err, &link):
		err = link.Err
	}
	return err
}

func (e *exporter) remove() {
	if e.file == "" {
		return
	}
	if err := os.Remove(e.file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		e.log.Warn("metrics of before stay", "file", e.file, "error", err)
	}
	e.file = ""
}
