package audit

import (
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// fakeJournal is a socket like journald's.
func fakeJournal(t *testing.T) (string, *net.UnixConn) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "socket")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return path, c
}

// exported is how journalctl -o json shows a message of the native protocol
// (systemd.journal-fields(7)).
func exported(t *testing.T, datagram []byte, at time.Time) string {
	t.Helper()
	fields := map[string]any{"__REALTIME_TIMESTAMP": strconv.FormatInt(at.UnixMicro(), 10), "_UID": "991", "_BLOB": []int{1, 2}}
	for line := range strings.Lines(string(datagram)) {
		k, v, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if !ok || !strings.HasSuffix(line, "\n") {
			t.Fatalf("field %q", line)
		}
		fields[k] = v
	}
	b, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestJournal: what goes to journald comes back as anchors that fit.
func TestJournal(t *testing.T) {
	socket, c := fakeJournal(t)
	dir := logDir(t)
	l, stop := start(t, Config{Anchor: "journald"}, Options{Dir: dir, Anchor: journal(socket).send}, nil)
	record(t, l, Event{Type: TokenHandover})
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC().Truncate(time.Microsecond)
	var export strings.Builder
	export.WriteString(`{"MESSAGE":"something else","MESSAGE_ID":"00000000000000000000000000000000"}` + "\n\n" + `{"MESSAGE":null,"BROKER_AUDIT_SEQ":["1","2"]}` + "\n" +
		`{"MESSAGE_ID":"1","BROKER_AUDIT_SEQ":"1","BROKER_AUDIT_HASH":"` + strings.Repeat("a", 64) + `"}` + "\n" +
		`{"MESSAGE_ID":"` + AnchorMessageID + `","BROKER_AUDIT_SEQ":"1","BROKER_AUDIT_HASH":"short"}` + "\n")
	for range 2 { // at the start and at the end
		b := make([]byte, 4096)
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"MESSAGE_ID=" + AnchorMessageID + "\n", "PRIORITY=6\n", "SYSLOG_IDENTIFIER=brokerd\n", "BROKER_AUDIT_SEQ=", "BROKER_AUDIT_HASH=", "MESSAGE=audit log "} {
			if !strings.Contains(string(b[:n]), want) {
				t.Errorf("%q is missing in\n%s", want, b[:n])
			}
		}
		export.WriteString(exported(t, b[:n], now) + "\n")
	}
	anchors, err := ParseAnchors(strings.NewReader(export.String()))
	if err != nil || len(anchors) != 2 || !anchors[1].Time.Equal(now) {
		t.Fatalf("%+v, %v", anchors, err)
	}
	if r := verified(t, dir, anchors); r.Anchors != 2 || r.Covered != r.Last {
		t.Errorf("%+v", r)
	}
}

// TestHangingJournal: a journal that takes nothing stops no hand-over, and
// holds up the end no longer than its time allows.
func TestHangingJournal(t *testing.T) {
	socket, _ := fakeJournal(t)
	fill(t, socket)
	l, stop := start(t, Config{}, Options{Dir: logDir(t), Anchor: journal(socket).send}, func(l *Log) { l.limits.entries, l.limits.send = 1, 200*time.Millisecond })
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for range 20 { // each with an anchor: 4 s if they waited for it
		if err := l.Record(ctx, Event{Type: TokenHandover}); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(ofType(entries(t, l.disk.dir), LogAnchor)); n < 20 {
		t.Errorf("%d anchors", n)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if s := l.Status(); s.AnchorSeq != 0 || !strings.Contains(s.AnchorError, "the journal takes nothing") {
		t.Errorf("%+v", s)
	}
}

// fill writes to a datagram socket that nobody reads until it takes no more.
func fill(t *testing.T, socket string) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	for err == nil {
		err = unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrUnix{Name: socket})
	}
	if err != unix.EAGAIN {
		t.Fatal(err)
	}
}

func TestWhereAnchorsGo(t *testing.T) {
	socket, _ := fakeJournal(t)
	nowhere := filepath.Join(t.TempDir(), "none")
	for _, c := range []struct{ anchor, socket, want string }{
		{"", socket, "journald"},
		{"", nowhere, "none: this machine has no journal"},
		{"journald", nowhere, "journald"},
		{"none", socket, "none"},
	} {
		f, got := Config{Anchor: c.anchor}.anchors(c.socket)
		if got != c.want || (f != nil) != (c.want == "journald") {
			t.Errorf("%q: %q", c.anchor, got)
		}
		if c.socket == nowhere && f != nil {
			if err := f(t.Context(), Anchor{}); err == nil || !strings.Contains(err.Error(), "out of reach") {
				t.Errorf("got %v", err)
			}
		}
	}
}

func TestParseAnchorsRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"Nov 21 host brokerd[1]: audit log": "line 1 of the journal's export is no JSON",
		strings.Repeat("x", 2<<20):          "more than 1 MiB",
	} {
		if _, err := ParseAnchors(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v", err)
		}
	}
}

func FuzzParseAnchors(f *testing.F) {
	f.Add(`{"MESSAGE_ID":"` + AnchorMessageID + `","BROKER_AUDIT_SEQ":"7","BROKER_AUDIT_HASH":"` + strings.Repeat("a", 64) + `","__REALTIME_TIMESTAMP":"1"}`)
	f.Add(`{"MESSAGE_ID":["a"]}`)
	f.Fuzz(func(t *testing.T, s string) {
		anchors, _ := ParseAnchors(strings.NewReader(s))
		for _, a := range anchors {
			if a.Seq == 0 || len(a.Hash) != hashLen || len(a.Log) > maxText {
				t.Errorf("%+v", a)
			}
		}
	})
}

// The page for operators names the fields that are sent.
func TestJournalFieldsAreDocumented(t *testing.T) {
	page, err := os.ReadFile("../../docs/monitoring.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, field := range []string{AnchorMessageID, fieldLog, fieldSeq, fieldHash} {
		if !strings.Contains(string(page), "`"+field+"`") {
			t.Errorf("docs/monitoring.md does not name %s", field)
		}
	}
}
