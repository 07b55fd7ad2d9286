package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// sample is one measurement of one server.
type sample struct {
	rate     float64 // requests/s
	p50, p99 time.Duration
	requests int           // the warm-up's too
	cpu      time.Duration // for all of these
}

// columns are the medians of server i, and its ratios to the references. The
// processor's time is summed over the rounds: its ticks are coarse.
func columns(series [][]sample, i int, servers []*server) []string {
	mine := series[i]
	var requests int
	var used time.Duration
	for _, s := range mine {
		requests += s.requests
		used += s.cpu
	}
	return []string{
		fmt.Sprintf("%.0f", median(collect(mine, func(s sample) float64 { return s.rate }))),
		micros(median(collect(mine, func(s sample) time.Duration { return s.p50 }))),
		micros(median(collect(mine, func(s sample) time.Duration { return s.p99 }))),
		fmt.Sprintf("%.1f", float64(used.Microseconds())/float64(max(requests, 1))),
		ratio(series, i, servers, "net/http"),
		ratio(series, i, servers, "nginx"),
	}
}

// ratio is the median of the rounds' ratios of requests per second.
func ratio(series [][]sample, i int, servers []*server, reference string) string {
	for j, s := range servers {
		if s.name != reference {
			continue
		}
		var list []float64
		for k := range min(len(series[i]), len(series[j])) {
			list = append(list, series[i][k].rate/series[j][k].rate)
		}
		return fmt.Sprintf("%.2f", median(list))
	}
	return "-"
}

func micros(d time.Duration) string { return fmt.Sprintf("%.0f", float64(d.Nanoseconds())/1000) }

func collect[T any](list []sample, f func(sample) T) (out []T) {
	for _, s := range list {
		out = append(out, f(s))
	}
	return out
}

// median of an even number is the lower of the two in the middle.
func median[T cmp.Ordered](list []T) T {
	var zero T
	if len(list) == 0 {
		return zero
	}
	list = slices.Clone(list)
	slices.Sort(list)
	return list[(len(list)-1)/2]
}

// table prints rows as they come, so its columns are as wide as their titles.
type table struct {
	out    io.Writer
	widths []int
	lines  []string
}

func newTable(out io.Writer, titles ...string) *table {
	t := &table{out: out}
	for _, title := range titles {
		t.widths = append(t.widths, max(utf8.RuneCountInString(title), 8))
	}
	t.row(titles...)
	return t
}

func (t *table) row(cells ...string) {
	var line strings.Builder
	for i, c := range cells {
		fmt.Fprintf(&line, "%-*s  ", t.widths[i], c)
	}
	t.lines = append(t.lines, strings.TrimRight(line.String(), " "))
}

// flush prints the rows since the last flush.
func (t *table) flush() {
	for _, l := range t.lines {
		fmt.Fprintln(t.out, l)
	}
	t.lines = nil
}
