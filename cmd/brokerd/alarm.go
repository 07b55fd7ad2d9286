package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"credentialbroker/configs"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/durable"
)

// Rules of this file:
//   - the audit log is the queue: what is kept is a place in it, which moves on
//     when an alarm has been dealt with, so that each is at least once;
//   - of many alike some are passed over, and the newest of them is run when the
//     quiet time ends: an alarm that nobody was told of is not forgotten;
//   - one run at a time, in the order of the log;
//   - who is told gets what is in the audit log, and nothing else of the daemon;
//     what it answers is nobody's: it may hold anything.

// An alarmHook tells one of those that the configuration names of each alarm:
// the command, or the webhook. Each has a place of its own: trouble with the one
// neither holds the other up nor tells it anything twice.
type alarmHook struct {
	via     string // command or webhook
	log     *slog.Logger
	dir     string // of the audit log
	file    string // of the place
	config  func() configs.Alarm
	wanted  func(c configs.Alarm) bool // whether there is such a one
	newest  func() audit.Status
	run     func(ctx context.Context, c configs.Alarm, id string, line []byte) error
	retries int // of an alarm, before it is given up
	counts  *alarmCounts

	reader *audit.Alarms // nil: nothing is followed
	place  alarmPlace
	saved  time.Time
	said   string // the trouble that was told last
}

// alarmCounts are runs of the command, or requests to the webhook, by their end.
type alarmCounts struct{ ok, failed, givenUp atomic.Uint64 }

// alarmPlace is the content of alarm.json and alarm-webhook.json: how far the
// alarms of a log have been dealt with.
type alarmPlace struct {
	Format int           `json:"format"`
	Log    string        `json:"log"`
	Seq    uint64        `json:"seq"`
	Recent []recentAlarm `json:"recent,omitempty"`
}

// A recentAlarm was run, and is not again for a while.
type recentAlarm struct {
	Type     audit.Type `json:"type"`
	Client   string     `json:"client,omitempty"`
	Version  string     `json:"version,omitempty"`
	Code     string     `json:"code,omitempty"`
	Time     time.Time  `json:"time"`               // from which it is quiet
	Repeated int        `json:"repeated,omitempty"` // since, without a run
	Newest   uint64     `json:"newest,omitempty"`   // number of the last that was passed over
}

// alarmMessage is what the command reads as one line, and the webhook's body.
type alarmMessage struct {
	Time     time.Time         `json:"time"`
	Seq      uint64            `json:"seq"`
	Type     audit.Type        `json:"type"`
	Client   string            `json:"client"`
	Version  string            `json:"version"`
	Code     string            `json:"code"`
	Alarm    string            `json:"alarm"`
	Host     string            `json:"host"`
	Repeated int               `json:"repeated"`         // like it, without a run, since the last run
	Detail   map[string]string `json:"detail,omitempty"` // what else the entry says
}

const (
	alarmFormat = 1
	alarmPoll   = time.Second
	alarmSave   = time.Minute      // how often a place without alarms is kept
	alarmQuiet  = 10 * time.Minute // for which the same alarm is run once
	keptAlarms  = 1024             // kinds of alarms that are known to repeat

	commandRetries = 5
	webhookRetries = 60               // an hour or more: what is between here and there may be what is down
	longestPause   = 10 * time.Minute // that a webhook may ask for
)

// alarmHooks are the ways in which alarms leave.
func (s *server) alarmHooks() []*alarmHook {
	hook := func(via, file string) *alarmHook {
		return &alarmHook{via: via, log: s.log, dir: filepath.Join(s.paths.state, "audit"), file: filepath.Join(s.paths.state, file), newest: s.audit.Status,
			config: func() configs.Alarm {
				s.mu.Lock()
				defer s.mu.Unlock()
				return s.current.config.Alarm
			}}
	}
	command, webhook := hook("command", "alarm.json"), hook("webhook", "alarm-webhook.json")
	command.wanted, command.run = func(c configs.Alarm) bool { return len(c.Command) > 0 }, runAlarm
	command.retries, command.counts = commandRetries, &s.alarms.command
	webhook.wanted, webhook.run = func(c configs.Alarm) bool { return c.Webhook != nil }, s.webhook.post
	webhook.retries, webhook.counts = webhookRetries, &s.alarms.webhook
	return []*alarmHook{command, webhook}
}

// collectors are the counts as metrics, each there from the start: an increase
// from nothing is none to Prometheus.
func (c *alarmCounts) collectors(via string) (all []prometheus.Collector) {
	for result, n := range map[string]*atomic.Uint64{"ok": &c.ok, "failed": &c.failed, "given_up": &c.givenUp} {
		all = append(all, prometheus.NewCounterFunc(prometheus.CounterOpts{Namespace: "credential_broker", Name: "alarm_runs_total",
			Help:        "Runs of the alarm command, and requests to the alarm webhook: ok, failed (it is tried again), given_up (it is not).",
			ConstLabels: prometheus.Labels{"via": via, "result": result}}, func() float64 { return float64(n.Load()) }))
	}
	return all
}

// Run follows the log until ctx ends. Trouble with the log or the place is
// told, and tried again: it keeps the daemon from nothing.
func (h *alarmHook) Run(ctx context.Context) error {
	tick := time.NewTicker(alarmPoll)
	defer tick.Stop()
	for {
		h.say(h.round(ctx))
		select {
		case <-ctx.Done():
			if h.reader != nil {
				h.say(h.save())
				h.stop()
			}
			return nil
		case <-tick.C:
		}
	}
}

// say tells a trouble once, until the place could be kept again.
func (h *alarmHook) say(err error) {
	if err != nil && err.Error() != h.said {
		h.log.Error("alarms cannot be followed; this is tried again", "via", h.via, "error", err)
		h.said = err.Error()
	}
}

// round deals with the alarms that there are.
func (h *alarmHook) round(ctx context.Context) error {
	for ctx.Err() == nil {
		if !h.wanted(h.config()) {
			// Alarms from now on are nobody's: one of later begins anew.
			h.stop()
			return durable.Remove(h.file)
		}
		if err := h.start(); err != nil {
			return err
		}
		now := time.Now() // what is recorded before is read before
		e, err := h.reader.Next()
		if errors.Is(err, io.EOF) {
			if r := h.overdue(now); r != nil {
				if err := h.catchUp(ctx, r, now); err != nil {
					return err
				}
				continue
			}
			// A damaged line may claim any number.
			seq := min(h.reader.Seq(), h.newest().Seq)
			if seq <= h.place.Seq || time.Since(h.saved) < alarmSave {
				return nil
			}
			h.place.Seq = seq
			return h.save()
		}
		if err != nil {
			h.stop()
			return err
		}
		if err := h.deal(ctx, e); err != nil {
			return err
		}
	}
	return nil
}

// start begins where the last daemon ended, or after the newest entry. A place
// that cannot be kept is no reason to keep still.
func (h *alarmHook) start() error {
	if h.reader != nil {
		return nil
	}
	now := h.newest()
	data, err := os.ReadFile(h.file)
	var p alarmPlace
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case json.Unmarshal(data, &p) != nil || p.Format != alarmFormat:
		h.log.Warn("the place in the audit log cannot be read, or is of another version of the daemon: alarms begin after the newest entry", "file", h.file)
		p = alarmPlace{}
	}
	// Another log, or one that a power failure has shortened, has used none of
	// the numbers after its end.
	if p.Log != now.Log || p.Seq > now.Seq {
		p = alarmPlace{Log: now.Log, Seq: now.Seq}
	}
	p.Format = alarmFormat
	reader, err := audit.AlarmsAfter(h.dir, p.Seq)
	if err != nil {
		return err
	}
	h.place, h.reader = p, reader
	return h.save()
}

func (h *alarmHook) stop() {
	if h.reader != nil {
		h.reader.Close()
		h.reader = nil
	}
}

// save keeps the place. What was passed over since the last time is looked at
// again after a crash, and counted again from the same counts.
func (h *alarmHook) save() error {
	h.saved = time.Now()
	data, err := json.Marshal(h.place)
	if err != nil {
		return err
	}
	err = durable.Replace(h.file, append(data, '\n'))
	var p *fs.PathError
	switch {
	case err == nil:
		h.said = ""
	case errors.As(err, &p): // it names a file of a moment
		err = fmt.Errorf("%s: %w", h.file, p.Err)
	}
	return err
}

// deal tells of e, unless it has told of its like a moment ago, and moves on.
func (h *alarmHook) deal(ctx context.Context, e audit.Entry) error {
	r := h.recent(e)
	if r.quiet(e.Time) {
		r.Repeated++
		r.Newest, h.place.Seq = e.Seq, e.Seq
		return nil
	}
	return h.runFor(ctx, e, r, r.Repeated, e.Time)
}

// catchUp tells of the newest alarm of a kind that was passed over.
func (h *alarmHook) catchUp(ctx context.Context, r *recentAlarm, now time.Time) error {
	reader, err := audit.AlarmsAfter(h.dir, r.Newest-1)
	if err != nil {
		return err
	}
	defer reader.Close()
	switch e, err := reader.Next(); {
	case err == nil && e.Seq == r.Newest:
		return h.runFor(ctx, e, r, r.Repeated-1, now)
	case err != nil && !errors.Is(err, io.EOF):
		return err
	}
	r.Newest = 0 // the log does not have it any more
	return h.save()
}

// runFor tells of e, the newest of its kind, which is quiet from then on, and
// moves on. When ctx ends first, or who is told is taken out of the
// configuration, it does not.
func (h *alarmHook) runFor(ctx context.Context, e audit.Entry, r *recentAlarm, repeated int, from time.Time) error {
	line, err := message(e, repeated)
	if err != nil {
		return err
	}
	switch done, told := h.tell(ctx, e, line); {
	case !done:
		return nil
	case told:
		r.Repeated = 0
	default:
		r.Repeated = repeated + 1 // nobody knows of it
	}
	r.Time, r.Newest, h.place.Seq = from, 0, max(h.place.Seq, e.Seq)
	return h.save()
}

// quiet says whether an alarm of this kind is passed over at t.
func (r *recentAlarm) quiet(t time.Time) bool {
	since := t.Sub(r.Time)
	return since >= 0 && since < alarmQuiet
}

// overdue is a kind whose quiet time has ended, and whose newest alarm was
// passed over; nil: there is none.
func (h *alarmHook) overdue(now time.Time) *recentAlarm {
	for i := range h.place.Recent {
		if r := &h.place.Recent[i]; r.Newest != 0 && !r.quiet(now) {
			return r
		}
	}
	return nil
}

// recent is what is known of e's like; of those of long ago, all but their
// counts are forgotten.
func (h *alarmHook) recent(e audit.Entry) *recentAlarm {
	list := slices.DeleteFunc(h.place.Recent, func(r recentAlarm) bool { return r.Repeated == 0 && e.Time.Sub(r.Time) >= alarmQuiet })
	same := func(r recentAlarm) bool {
		return r.Type == e.Type && r.Client == e.Client && r.Version == e.Version && r.Code == e.Code
	}
	i := slices.IndexFunc(list, same)
	if i < 0 {
		if len(list) >= keptAlarms {
			told := slices.IndexFunc(list, func(r recentAlarm) bool { return r.Newest == 0 })
			list = slices.Delete(list, max(told, 0), max(told, 0)+1)
		}
		i, list = len(list), append(list, recentAlarm{Type: e.Type, Client: e.Client, Version: e.Version, Code: e.Code})
	}
	h.place.Recent = list
	return &list[i]
}

func message(e audit.Entry, repeated int) ([]byte, error) {
	m := alarmMessage{Time: e.Time, Seq: e.Seq, Type: e.Type, Client: e.Client, Version: e.Version, Code: e.Code,
		Alarm: e.Detail[audit.AlarmKey], Host: hostName(), Repeated: repeated, Detail: e.Detail}
	delete(m.Detail, audit.AlarmKey) // the entry is ours alone
	line, err := json.Marshal(m)
	return append(line, '\n'), err
}

// tell tells of e until that succeeds, or fails for good, or too often. done is
// false when ctx or the configuration has ended it before.
func (h *alarmHook) tell(ctx context.Context, e audit.Entry, line []byte) (done, told bool) {
	id := fmt.Sprintf("alarm_%s_%d", h.place.Log, e.Seq)
	pause, waits := time.Second, false
	for try := 0; ; try++ {
		c := h.config()
		if !h.wanted(c) {
			return false, false
		}
		err := h.run(ctx, c, id, line)
		var refused *refusedError
		errors.As(err, &refused)
		var wait time.Duration
		switch {
		case err == nil:
			h.counts.ok.Add(1)
			return true, true
		case ctx.Err() != nil:
			return false, false
		case errors.Is(err, errNoKey): // nobody was asked: it waits, however long that takes
			if !waits {
				h.log.Warn("an alarm waits", "via", h.via, "seq", e.Seq, "client", e.Client, "type", e.Type, "error", err)
			}
			waits, try, wait = true, try-1, alarmPoll
		case refused.forGood() || try >= h.retries:
			h.counts.givenUp.Add(1)
			h.log.Error("an alarm could not be told, and is given up", "via", h.via, "seq", e.Seq, "client", e.Client, "type", e.Type, "runs", try+1, "error", err)
			return true, false
		default:
			wait = refused.pause(pause)
			h.counts.failed.Add(1)
			h.log.Warn("an alarm could not be told; it is tried again", "via", h.via, "seq", e.Seq, "in", wait, "error", err)
			pause = min(3*pause, time.Minute)
		}
		select {
		case <-ctx.Done():
			return false, false
		case <-time.After(wait):
		}
	}
}
