package main

import (
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/prometheus/client_golang/prometheus"

	"credentialbroker/api/client"
	"credentialbroker/configs"
	"credentialbroker/internal/files"
)

// openFiles makes the writer of files. That the record of an earlier run cannot
// be read keeps the daemon from nothing.
func (s *server) openFiles() {
	var err error
	s.files, err = files.New(files.Options{Broker: s.broker, Audit: s.audit, Clock: s.clock, Log: s.log, Dir: s.paths.state,
		Preserved: filepath.SplitList(os.Getenv("RUNTIME_DIRECTORY"))}) // systemd removes it when the unit stops
	if err != nil {
		s.log.Warn("files of before are written anew as soon as possible", "error", err)
	}
}

// fileEntries are the files of a configuration.
func fileEntries(c *configs.Config) []files.Entry {
	var list []files.Entry
	for _, name := range slices.Sorted(maps.Keys(c.Clients)) {
		one := c.Clients[name]
		for _, f := range one.Files {
			list = append(list, files.Entry{Client: name, Config: f, Origin: one.Origin()})
		}
	}
	return list
}

// fileStatus adds the state of the files to that of their clients.
func (s *server) fileStatus(list []client.StatusClient) {
	if s.files == nil {
		return
	}
	for _, f := range s.files.Status() {
		i := slices.IndexFunc(list, func(c client.StatusClient) bool { return c.Client == f.Client })
		if i >= 0 {
			list[i].Files = append(list[i].Files, client.FileStatus{Path: f.Path, State: string(f.State), Reason: f.Reason, Expires: f.Until.Wall})
		}
	}
}

// fileMetrics counts the files of each client by their state.
type fileMetrics struct {
	s    *server
	desc *prometheus.Desc
}

func (s *server) fileMetrics() *fileMetrics {
	return &fileMetrics{s, prometheus.NewDesc("credential_broker_files",
		"Files of the client: ok, kept (still good, and what replaces it cannot be had or written), waiting, missing.", []string{"client", "state"}, nil)}
}

// Describe implements prometheus.Collector.
func (m *fileMetrics) Describe(ch chan<- *prometheus.Desc) { ch <- m.desc }

// Collect implements prometheus.Collector.
func (m *fileMetrics) Collect(ch chan<- prometheus.Metric) {
	counts := map[string]map[files.State]int{}
	for _, f := range m.s.files.Status() {
		if counts[f.Client] == nil {
			counts[f.Client] = map[files.State]int{}
		}
		counts[f.Client][f.State]++
	}
	for name, by := range counts {
		for _, state := range files.States() {
			ch <- prometheus.MustNewConstMetric(m.desc, prometheus.GaugeValue, float64(by[state]), name, string(state))
		}
	}
}
