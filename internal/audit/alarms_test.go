package audit

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestAlarms finds the alarms of a running log, over the boundaries of files
// and half a line, and nothing else.
func TestAlarms(t *testing.T) {
	dir := logDir(t)
	l, stop := start(t, quiet, Options{Dir: dir}, func(l *Log) { l.limits.segment = 1000 })
	alarm := func(text string) {
		record(t, l, Event{Type: TokenRefused, Detail: map[string]string{AlarmKey: text, "other": "x"}})
	}
	alarm("old")
	a, err := AlarmsAfter(dir, l.Status().Seq)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	var want []string
	expect := func() {
		t.Helper()
		var got []string
		for {
			e, err := a.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil || e.Detail["other"] != "x" {
				t.Fatal(e, err)
			}
			got = append(got, e.Detail[AlarmKey])
		}
		if !slices.Equal(got, want) || a.Seq() != l.Status().Seq {
			t.Errorf("%q, want %q; at %d of %d", got, want, a.Seq(), l.Status().Seq)
		}
		want = nil
	}
	expect()
	for i := range 20 {
		record(t, l, handover())
		if i%3 == 0 {
			want = append(want, string(rune('a'+i)))
			alarm(want[len(want)-1])
		}
	}
	expect()
	// What merely speaks of an alarm is none.
	record(t, l, Event{Type: AdminAct, Code: `"alarm":"x"`, Detail: map[string]string{"text": `{"alarm":"x"}`, "no alarm": "x", AlarmKey: ""}})
	expect()

	if err := stop(); err != nil {
		t.Fatal(err)
	}
	all := entries(t, dir)
	last := all[len(all)-1]
	path, made := filepath.Join(dir, last.File), Event{Type: TokenRefused, Detail: map[string]string{AlarmKey: "made", "other": "x"}}
	wrong := bytes.Replace(forged(Entry{Seq: last.Seq + 1, Event: made}), []byte("made"), []byte("fake"), 1)
	appendFile(t, path, wrong)
	appendFile(t, path, []byte("no entry, \"alarm\":\"x\"\n"))
	line := forged(Entry{Seq: last.Seq + 2, Event: made})
	appendFile(t, path, line[:len(line)/2])
	if e, err := a.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("%+v, %v", e, err)
	}
	appendFile(t, path, line[len(line)/2:])
	if e, err := a.Next(); err != nil || e.Detail[AlarmKey] != "made" || a.Seq() != last.Seq+2 {
		t.Errorf("%+v, %v, %d", e, err, a.Seq())
	}
	if _, err := AlarmsAfter(filepath.Join(dir, "none"), 0); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}
