package audit

import (
	"bytes"
	"encoding/csv"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/internal/clock"
)

func TestDenied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := logDir(t)
		l, stop := start(t, quiet, Options{Dir: dir, Clock: clock.NewBubble()}, nil)
		begin := time.Now()
		deny := func(client, scope, surface string, c *Caller, count int64) {
			t.Helper()
			record(t, l, Event{Type: AccessDenied, Client: client, Scope: scope, Code: "not_allowed", Caller: c, Count: count, Detail: map[string]string{"surface": surface}})
			time.Sleep(time.Minute)
		}
		deny("old", "", "token", &Caller{UID: 1}, 0)
		since := time.Now()
		deny("vdab", "", "token", &Caller{PID: 1, Start: 1, UID: 33, Unit: "a.service"}, 0)
		deny("vdab", "", "token", &Caller{PID: 2, Start: 2, UID: 33, Unit: "a.service"}, 7)
		deny("vdab", "", "token", &Caller{PID: 3, UID: 33, Unit: "b.service"}, 0)
		deny("vdab", "admin", "token", &Caller{PID: 4, UID: 33, Unit: "b.service"}, 0)
		deny("vdab", "admin", "api-key", &Caller{PID: 5, UID: 33, Unit: "b.service"}, 0)
		deny("vdab", "", "", nil, 0)
		record(t, l, Event{Type: TokenHandover, Client: "vdab", Caller: &Caller{UID: 33}})
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		got, err := Denied(dir, since)
		if err != nil || len(got) != 6-1 {
			t.Fatalf("%+v, %v", got, err)
		}
		last := got[len(got)-1] // the oldest
		if last.Count != 8 || last.Caller.PID != 2 || last.Caller.Unit != "a.service" || last.Client != "vdab" || last.Surface != "token" ||
			!last.First.Equal(begin.Add(time.Minute)) || !last.Last.Equal(begin.Add(2*time.Minute)) || last.Code != "not_allowed" {
			t.Errorf("%+v", last)
		}
		for i, d := range got[1:] {
			if d.Last.After(got[i].Last) {
				t.Errorf("the newest comes first: %+v", got)
			}
		}
	})
}

func TestManyDenialsAreBounded(t *testing.T) {
	dir := logDir(t)
	var d disk
	for i := range maxDenials + 50 {
		e := Entry{Seq: uint64(i + 1), Time: time.Unix(int64(i), 0), Event: Event{Type: AccessDenied, Client: strconv.Itoa(i)}}
		if _, err := appendLine(&d.buf, &e); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, segmentName(1)), d.buf.Bytes(), 0o600)); err != nil {
		t.Fatal(err)
	}
	got, err := Denied(dir, time.Time{})
	if err != nil || len(got) != maxDenials+1 || got[0].Code != "more" || got[0].Count != 50 {
		t.Errorf("%d denials, first %+v, %v", len(got), got[0], err)
	}
}

func TestExport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := logDir(t)
		l, stop := start(t, quiet, Options{Dir: dir, Clock: clock.NewBubble()}, nil)
		begin := time.Now()
		for i := range 5 {
			record(t, l, Event{Type: TokenHandover, Client: "c" + strconv.Itoa(i), Code: "=HYPERLINK(1)", Scope: "a,\"b",
				Caller: &Caller{PID: 7, UID: 33, GID: 34, Unit: "-evil.service", LoginUID: 4294967295}, Actor: &Caller{PID: 8, UID: 5}, Detail: map[string]string{"k": "v"}})
			time.Sleep(time.Hour)
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		var all, some, table bytes.Buffer
		if err := Export(&all, dir, time.Time{}, time.Time{}, "json"); err != nil {
			t.Fatal(err)
		}
		if raw, _ := os.ReadFile(filepath.Join(dir, segmentName(1))); !bytes.Equal(raw, all.Bytes()) {
			t.Error("not the lines as they stand in the log")
		}
		from, to := begin.Add(time.Hour), begin.Add(3*time.Hour)
		if err := Export(&some, dir, from, to, "json"); err != nil || strings.Count(some.String(), "\n") != 2 || !strings.Contains(some.String(), `"c1"`) || !strings.Contains(some.String(), `"c2"`) {
			t.Errorf("%v\n%s", err, some.String())
		}
		if err := Export(&table, dir, from, to, "csv"); err != nil {
			t.Fatal(err)
		}
		rows, err := csv.NewReader(&table).ReadAll()
		if err != nil || len(rows) != 3 {
			t.Fatalf("%v, %v", rows, err)
		}
		want := map[string]string{"seq": "3", "time": "2000-01-01T01:00:00Z", "type": "token.handover", "client": "c1", "scope": `a,"b`, "pid": "7", "uid": "33", "gid": "34",
			"unit": "'-evil.service", "loginuid": "4294967295", "container": "false", "actor_pid": "8", "actor_uid": "5", "count": "1", "code": "'=HYPERLINK(1)", "detail": `{"k":"v"}`, "expires": ""}
		for i, name := range rows[0] {
			if w, ok := want[name]; ok && rows[1][i] != w {
				t.Errorf("%s: %q, want %q", name, rows[1][i], w)
			}
			delete(want, name)
		}
		if len(want) != 0 || len(rows[1][len(rows[0])-1]) != hashLen {
			t.Errorf("missing: %v", want)
		}
		if err := Export(&all, dir, time.Time{}, time.Time{}, "xml"); err == nil || !strings.Contains(err.Error(), "json or csv") {
			t.Errorf("got %v", err)
		}
		table.Reset()
		if err := Export(&table, dir, to.Add(time.Hour*24), time.Time{}, "csv"); err != nil || strings.Count(table.String(), "\n") != 1 {
			t.Errorf("an empty table has its head: %q, %v", table.String(), err)
		}
		// A damaged line is left out, and the error says so.
		path := filepath.Join(dir, segmentName(1))
		b, _ := os.ReadFile(path)
		if err := os.WriteFile(path, bytes.Replace(b, []byte(`"c1"`), []byte(`"c9"`), 1), 0o600); err != nil {
			t.Fatal(err)
		}
		all.Reset()
		if err := Export(&all, dir, time.Time{}, time.Time{}, "json"); err == nil || !strings.Contains(err.Error(), "1 lines") || strings.Contains(all.String(), `"c9"`) || !strings.Contains(all.String(), `"c4"`) {
			t.Errorf("%v\n%s", err, all.String())
		}
	})
}
