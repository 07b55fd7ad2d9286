package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/configs"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/clock"
)

// alarmWorld is an audit log and what a command would have seen of it.
type alarmWorld struct {
	t      *testing.T
	dir    string
	log    *audit.Log
	config atomic.Pointer[configs.Alarm]
	out    output
	counts alarmCounts

	mu   sync.Mutex // the hook may run while time passes elsewhere
	fail int        // runs that fail from now on
	runs []alarmMessage
	at   []time.Time
}

func newAlarmWorld(t *testing.T) *alarmWorld {
	w := &alarmWorld{t: t, dir: t.TempDir()}
	w.config.Store(&configs.Alarm{Command: []string{"/bin/page"}})
	log, err := audit.Open(audit.Config{Anchor: "none"}, audit.Options{Dir: filepath.Join(w.dir, "audit"), Clock: clock.NewBubble()})
	if err != nil {
		t.Fatal(err)
	}
	w.log = log
	w.background(log.Run)
	return w
}

func (w *alarmWorld) background(run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- run(ctx) }()
	stop = func() {
		cancel()
		if err := <-ended; err != nil {
			w.t.Error(err)
		}
		ended <- nil
	}
	w.t.Cleanup(stop)
	return stop
}

// hook is a daemon's, to be run.
func (w *alarmWorld) hook() *alarmHook {
	return &alarmHook{via: "command", log: slog.New(slog.NewTextHandler(&w.out, nil)), dir: filepath.Join(w.dir, "audit"), file: filepath.Join(w.dir, "alarm.json"),
		config: func() configs.Alarm { return *w.config.Load() }, wanted: func(c configs.Alarm) bool { return len(c.Command) > 0 },
		newest: w.log.Status, retries: commandRetries, counts: &w.counts,
		run: func(_ context.Context, _ configs.Alarm, id string, line []byte) error {
			var m alarmMessage
			if err := json.Unmarshal(line, &m); err != nil || line[len(line)-1] != '\n' {
				w.t.Errorf("%q: %v", line, err)
			}
			if id != fmt.Sprintf("alarm_%s_%d", w.log.Status().Log, m.Seq) || strings.ContainsAny(id, ". ") {
				w.t.Errorf("id %q", id)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			w.runs, w.at = append(w.runs, m), append(w.at, time.Now())
			if w.fail > 0 {
				w.fail--
				return errors.New("it ended with exit code 1")
			}
			return nil
		}}
}

func (w *alarmWorld) alarm(client, code, text string) {
	w.t.Helper()
	e := audit.Event{Type: audit.TokenRefused, Client: client, Version: "7", Code: code, Detail: map[string]string{audit.AlarmKey: text, "by": "issuer"}}
	if err := w.log.Record(w.t.Context(), e); err != nil {
		w.t.Fatal(err)
	}
}

// expect takes the runs since the last time, as text and count of repetitions.
func (w *alarmWorld) expect(want ...string) {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	var got []string
	for _, m := range w.runs {
		got = append(got, fmt.Sprintf("%s %d", m.Alarm, m.Repeated))
	}
	if strings.Join(got, ", ") != strings.Join(want, ", ") {
		w.t.Errorf("runs %q, want %q\n%s", got, want, w.out.String())
	}
	w.runs, w.at = nil, nil
}

func (w *alarmWorld) failing(n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail = n
}

func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (w *alarmWorld) counted(ok, failed, givenUp uint64) {
	w.t.Helper()
	if c := &w.counts; c.ok.Load() != ok || c.failed.Load() != failed || c.givenUp.Load() != givenUp {
		w.t.Errorf("ok %d, failed %d, given up %d", c.ok.Load(), c.failed.Load(), c.givenUp.Load())
	}
}

func TestAlarmMessage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAlarmWorld(t)
		w.background(w.hook().Run)
		pass(time.Second)
		w.alarm("vdab", "invalid_client", "refused")
		pass(2 * time.Second)
		if len(w.runs) != 1 {
			t.Fatal(w.runs)
		}
		m := w.runs[0]
		if m.Time.IsZero() || m.Seq != w.log.Status().Seq || !reflect.DeepEqual(m, alarmMessage{Time: m.Time, Seq: m.Seq, Type: "token.refused", Client: "vdab", Version: "7",
			Code: "invalid_client", Alarm: "refused", Host: hostName(), Detail: map[string]string{"by": "issuer"}}) {
			t.Errorf("%+v", m)
		}
	})
}

// TestAlarmIsTriedAgain, ever more slowly, and given up in the end; the next
// waits for its turn, and is not lost.
func TestAlarmIsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAlarmWorld(t)
		w.background(w.hook().Run)
		pass(time.Second)
		w.failing(2)
		w.alarm("a", "", "a")
		w.alarm("b", "", "b")
		pass(time.Minute)
		w.expect("a 0", "a 0", "a 0", "b 0")
		w.counted(2, 2, 0)

		w.failing(6)
		w.alarm("c", "", "c")
		w.alarm("d", "", "d")
		pass(3 * time.Minute)
		var pauses []string
		for i := range 5 {
			pauses = append(pauses, w.at[i+1].Sub(w.at[i]).String())
		}
		if got := strings.Join(pauses, " "); got != "1s 3s 9s 27s 1m0s" {
			t.Errorf("pauses %s", got)
		}
		w.expect("c 0", "c 0", "c 0", "c 0", "c 0", "c 0", "d 0")
		w.counted(3, 7, 1)
		if n := strings.Count(w.out.String(), "given up"); n != 1 {
			t.Errorf("it is said %d times that it was given up", n)
		}
		// Nobody knows of it: the next says so.
		pass(alarmQuiet)
		w.alarm("c", "", "c")
		pass(2 * time.Second)
		w.expect("c 1")
	})
}

// TestAlarmStorm: the same is run once in ten minutes, whatever restarts.
func TestAlarmStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAlarmWorld(t)
		stop := w.background(w.hook().Run)
		pass(time.Second)
		for i := range 100 {
			w.alarm("a", "x", fmt.Sprint("a", i))
			pass(2 * time.Second)
		}
		w.alarm("a", "y", "other code")
		w.alarm("b", "x", "other client")
		pass(2 * time.Second)
		w.expect("a0 0", "other code 0", "other client 0")
		stop()
		stop = w.background(w.hook().Run)
		w.alarm("a", "x", "a100")
		pass(5 * time.Minute)
		w.expect()
		pass(2 * time.Minute)
		w.expect("a100 99")
		w.alarm("a", "x", "a101")
		pass(alarmQuiet)
		w.expect("a101 0")
		pass(alarmQuiet)
		w.alarm("a", "x", "a102")
		pass(2 * time.Second)
		w.expect("a102 0")
		stop()

		h := w.hook()
		for i := range 2 * keptAlarms {
			h.recent(audit.Entry{Time: time.Now(), Event: audit.Event{Type: "x", Code: fmt.Sprint(i)}}).Time = time.Now()
		}
		if n := len(h.place.Recent); n != keptAlarms {
			t.Errorf("%d kinds of alarms are kept", n)
		}
		h.recent(audit.Entry{Time: time.Now().Add(alarmQuiet)})
		if n := len(h.place.Recent); n != 1 {
			t.Errorf("%d kinds of alarms are kept for ever", n)
		}
	})
}

// TestAlarmPassedOver: the newest of those that were passed over is run when
// the quiet time has ended, once, whatever happens meanwhile.
func TestAlarmPassedOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAlarmWorld(t)
		stop := w.background(w.hook().Run)
		pass(time.Second)
		w.alarm("a", "x", "first")
		pass(time.Minute)
		w.expect("first 0")
		w.alarm("a", "x", "second")
		w.alarm("a", "x", "third")
		event := audit.Event{Type: audit.TokenRefused, Client: "a", Version: "8", Code: "x", Detail: map[string]string{audit.AlarmKey: "other version"}}
		if err := w.log.Record(t.Context(), event); err != nil {
			t.Fatal(err)
		}
		pass(2 * time.Second)
		w.expect("other version 0")
		stop()
		before := w.place() // as a crash would leave it: nothing of what follows

		// It is down when the time ends, and there is more by then.
		w.alarm("a", "x", "fourth")
		pass(alarmQuiet)
		stop = w.background(w.hook().Run)
		pass(time.Second)
		w.expect("fourth 2")
		pass(alarmQuiet)
		w.expect()
		stop()

		// After a crash it is told once more, not twice.
		b, err := json.Marshal(before)
		if err == nil {
			err = os.WriteFile(filepath.Join(w.dir, "alarm.json"), b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		stop = w.background(w.hook().Run)
		pass(alarmQuiet)
		w.expect("fourth 2")

		// What was given up is not tried for ever.
		w.alarm("b", "x", "one")
		pass(time.Minute)
		w.expect("one 0")
		w.alarm("b", "x", "two")
		w.failing(commandRetries + 1)
		pass(2 * alarmQuiet)
		w.expect("two 0", "two 0", "two 0", "two 0", "two 0", "two 0")
		pass(2 * alarmQuiet)
		w.expect()
		w.alarm("b", "x", "three")
		pass(2 * time.Second)
		w.expect("three 1")
		stop()

		// An alarm that the log has lost is no trouble.
		h := w.hook()
		h.place = alarmPlace{Format: alarmFormat, Log: w.log.Status().Log, Seq: w.log.Status().Seq,
			Recent: []recentAlarm{{Type: "x", Repeated: 1, Newest: w.log.Status().Seq}}}
		w.note()
		h.place.Recent[0].Newest = w.log.Status().Seq // no alarm
		if err := h.save(); err != nil {
			t.Fatal(err)
		}
		stop = w.background(h.Run)
		pass(time.Second)
		stop()
		if p := w.place(); w.out.String() != "" && strings.Contains(w.out.String(), "cannot be followed") || p.Recent[0].Newest != 0 {
			t.Errorf("%+v\n%s", p, w.out.String())
		}
		w.expect()
	})
}

// TestAlarmPlace: where the alarms of a daemon begin.
func TestAlarmPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAlarmWorld(t)
		w.alarm("0", "", "before the first start")
		stop := w.background(w.hook().Run)
		pass(time.Second)
		w.alarm("1", "", "one")
		pass(2 * time.Second)
		stop()
		w.alarm("2", "", "while it was down")
		stop = w.background(w.hook().Run)
		pass(time.Second)
		w.expect("one 0", "while it was down 0")

		// A daemon that ends before the command does runs it again.
		stop()
		h := w.hook()
		h.run = func(ctx context.Context, _ configs.Alarm, _ string, _ []byte) error { <-ctx.Done(); return ctx.Err() }
		stop = w.background(h.Run)
		w.alarm("3", "", "in the middle")
		pass(2 * time.Second)
		stop()
		stop = w.background(w.hook().Run)
		pass(time.Second)
		w.expect("in the middle 0")

		// Without alarms the place moves on too, a minute later at most.
		before := w.place().Seq
		w.note()
		pass(alarmSave + time.Second)
		if now := w.place().Seq; now <= before || now != w.log.Status().Seq {
			t.Errorf("the place stays at %d, was %d", now, before)
		}
		// A line that claims to be far ahead skips nothing.
		segments, _ := filepath.Glob(filepath.Join(w.dir, "audit", "*.jsonl"))
		f, err := os.OpenFile(segments[len(segments)-1], os.O_WRONLY|os.O_APPEND, 0)
		if err == nil {
			_, err = f.WriteString(`{"seq":99999,"alarm":"x"}` + "\n")
			_ = f.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		pass(alarmSave + time.Second)
		w.note()
		pass(alarmSave + time.Second)
		if now := w.place().Seq; now != w.log.Status().Seq {
			t.Errorf("the place is %d of %d", now, w.log.Status().Seq)
		}
		stop()

		for name, text := range map[string]string{"other log": `{"format":1,"log":"other","seq":1}`, "other format": `{"format":2,"log":"%s","seq":1}`,
			"damaged": "{", "after the end": `{"format":1,"log":"%s","seq":99999}`} {
			text = strings.ReplaceAll(text, "%s", w.log.Status().Log)
			if err := os.WriteFile(filepath.Join(w.dir, "alarm.json"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			stop = w.background(w.hook().Run)
			pass(time.Second)
			w.expect()
			w.alarm(name, "", name)
			pass(2 * time.Second)
			w.expect(name + " 0")
			stop()
		}

		// Without a command alarms are nobody's.
		stop = w.background(w.hook().Run)
		command := w.config.Swap(&configs.Alarm{})
		pass(2 * time.Second)
		w.alarm("4", "", "without a command")
		pass(2 * time.Second)
		w.config.Store(command)
		pass(2 * time.Second)
		w.expect()
		w.alarm("5", "", "with one again")
		pass(2 * time.Second)
		w.expect("with one again 0")
		stop()
	})
}

// TestAlarmWithoutPlace: a place that cannot be kept is told once, and keeps
// no alarm back.
func TestAlarmWithoutPlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newAlarmWorld(t)
		h := w.hook()
		h.file = filepath.Join(w.dir, "none", "alarm.json")
		w.background(h.Run)
		pass(time.Second)
		for _, client := range []string{"1", "2", "3"} {
			w.alarm(client, "", client)
		}
		pass(time.Minute)
		w.expect("1 0", "2 0", "3 0")
		if n := strings.Count(w.out.String(), "no such file"); n != 1 {
			t.Errorf("told %d times:\n%s", n, w.out.String())
		}
	})
}

func (w *alarmWorld) note() {
	w.t.Helper()
	if err := w.log.Record(w.t.Context(), audit.Event{Type: audit.TokenHandover}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *alarmWorld) place() (p alarmPlace) {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(w.dir, "alarm.json"))
	if err == nil {
		err = json.Unmarshal(b, &p)
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}
