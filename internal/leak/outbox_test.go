package leak

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/mail"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"credentialbroker/internal/clock"
	"credentialbroker/internal/outbound"
	"credentialbroker/internal/secret"
)

// A world is an outbox inside a bubble, with relays that are servers.
type world struct {
	t       *testing.T
	dir     string
	clock   *clock.Bubble
	skew    atomic.Int64 // of the wall clock
	relays  []Relay
	servers map[string]*server
	o       *Outbox
	at      func(step string) // called at each step of the outbox
	stop    func()
}

func newWorld(t *testing.T, servers ...*server) *world {
	w := &world{t: t, dir: filepath.Join(t.TempDir(), "outbox"), clock: clock.NewBubble(), servers: map[string]*server{}}
	w.clock.Skew = func() time.Duration { return time.Duration(w.skew.Load()) }
	for n, s := range servers {
		host := fmt.Sprintf("relay%d.example", n)
		r := Relay{Host: host, TLS: s.tls, Login: s.auth != ""}
		r.CAFile, s.cert = certificates(t, host)
		w.relays = append(w.relays, r)
		w.servers[host] = s
	}
	w.start()
	return w
}

func (w *world) start() {
	w.t.Helper()
	o, err := OpenOutbox(w.dir, "web1", w.relays, w.clock)
	if err != nil {
		w.t.Fatal(err)
	}
	o.dial = pipes(w.servers)
	o.store.at = func(step string) {
		if w.at != nil {
			w.at(step)
		}
	}
	w.o = o
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- o.Run(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Error(err)
		}
		for _, s := range w.servers {
			s.sessions.Wait()
		}
	})
	w.t.Cleanup(w.stop)
}

func (w *world) restart() {
	w.stop()
	w.start()
}

// after lets time pass.
func (w *world) after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (w *world) enqueue(n int) []Message {
	w.t.Helper()
	i := sample()
	i.Issuer.Contacts, i.CopyTo = nil, nil
	for k := range n {
		i.CopyTo = append(i.CopyTo, fmt.Sprintf("person%d@corp.example", k))
	}
	messages, err := Compose(i, sender(), []Language{Dutch, English})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.o.Enqueue(messages); err != nil {
		w.t.Fatal(err)
	}
	return messages
}

func (w *world) only() Delivery {
	w.t.Helper()
	list := w.o.Deliveries("")
	if len(list) != 1 {
		w.t.Fatalf("%d deliveries", len(list))
	}
	return list[0]
}

func TestDelivers(t *testing.T) {
	for _, c := range []*server{
		{tls: "starttls"}, {tls: "implicit"}, {tls: "none"},
		{tls: "starttls", auth: "PLAIN", password: "päss w"}, {tls: "implicit", auth: "LOGIN", password: "p"}, {tls: "starttls", auth: "CRAM-MD5 LOGIN PLAIN", password: "p"},
	} {
		t.Run(c.tls+" "+c.auth, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &server{tls: c.tls, auth: c.auth, password: c.password}
				w := newWorld(t, s)
				if c.auth != "" {
					if err := w.o.SetLogin(0, "user", secret.FromString(c.password)); err != nil {
						t.Fatal(err)
					}
				}
				messages := w.enqueue(2)
				w.after(time.Second)
				if err := w.o.Enqueue(messages); err != nil {
					t.Fatal(err)
				}
				w.restart()
				w.after(24 * time.Hour)
				if len(s.mails) != 2 || s.clear != (c.tls == "none") {
					t.Fatalf("%d mails; in the clear: %t; %+v", len(s.mails), s.clear, w.o.Deliveries(""))
				}
				for n, m := range s.mails {
					k := slices.IndexFunc(messages, func(m Message) bool { return m.Recipient == s.to[n] })
					if k < 0 || !bytes.Equal(m, messages[k].Data) {
						t.Errorf("the mail to %s is not what was queued", s.to[n])
					}
				}
				for _, d := range w.o.Deliveries("2026-0007") {
					if d.State != Sent || d.Attempts != 1 || d.SentAt.IsZero() || !d.NextAttempt.IsZero() || d.Last[0].Result != Accepted || d.Last[0].Code != 0 {
						t.Errorf("%+v", d)
					}
				}
				if late := w.o.Undelivered(0); len(late) != 0 {
					t.Errorf("undelivered: %v", late)
				}
			})
		})
	}
}

// Whatever the first relay does, the second gets the mail; alone, the first
// gets it once it behaves.
func TestMisbehavingRelay(t *testing.T) {
	type want struct {
		cause  string
		code   int
		result Result
	}
	for _, stage := range []string{"greeting", "ehlo", "starttls", "handshake", "login", "mail", "rcpt", "data", "body"} {
		for act, w := range map[string]want{
			"hang": {"timeout", 0, Temporary}, "close": {"closed", 0, Temporary}, "slow": {},
			"451 4.7.1 secret words": {"reply", 451, Temporary}, "550 5.1.1 secret words": {"reply", 550, Permanent}, "421 secret words": {"reply", 421, Temporary}, "999 what": {"protocol", 0, Temporary},
			"flood": {"", 0, Temporary},
		} {
			switch {
			case stage == "handshake" && act != "hang" && act != "close":
				continue // there are no replies
			case stage == "handshake" && act == "close":
				w.cause = "tls"
			case stage == "starttls" && act == "close":
				w.cause = "tls"
			case stage == "login" && w.result == Permanent:
				w.cause = "login_refused"
			}
			t.Run(stage+" "+act, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					bad, good := &server{tls: "starttls", auth: "PLAIN", password: "p", script: map[string]string{stage: act}}, &server{tls: "implicit"}
					world := newWorld(t, bad, good)
					if err := world.o.SetLogin(0, "user", secret.FromString("p")); err != nil {
						t.Fatal(err)
					}
					world.enqueue(1)
					world.after(5 * time.Minute)
					d := world.only()
					if act == "slow" {
						if d.State != Sent || len(bad.mails) != 1 || len(good.mails) != 0 {
							t.Errorf("%+v", d)
						}
						return
					}
					if d.State != Sent || len(bad.mails) != 0 || len(good.mails) != 1 || len(d.Last) != 2 || d.Last[1].Relay != "relay1.example:465" {
						t.Fatalf("%d and %d mails: %+v", len(bad.mails), len(good.mails), d)
					}
					first := d.Last[0]
					if first.Code != w.code || first.Result != w.result || w.cause != "" && first.Cause != w.cause {
						t.Errorf("%+v", first)
					}
					if (first.Enhanced != "") != (strings.Contains(act, ".")) {
						t.Errorf("enhanced code %q of %q", first.Enhanced, act)
					}
					if text := fmt.Sprintf("%+v %s", d, first); strings.Contains(text, "secret words") || strings.Contains(text, "hunter2") {
						t.Errorf("the relay's own words: %s", text)
					}
				})
			})
		}
	}
}

// A relay that takes the body and dies before its reply may have the mail: the
// second copy has the same Message-ID.
func TestBodyTakenWithoutReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{tls: "starttls", script: map[string]string{"body": "keep and close"}}
		w := newWorld(t, s)
		messages := w.enqueue(1)
		w.after(5 * time.Second)
		s.set(nil)
		w.after(time.Hour)
		if len(s.mails) != 2 || !bytes.Equal(s.mails[0], s.mails[1]) || parse(t, s.mails[1]).header.Get("Message-ID") != messages[0].ID {
			t.Errorf("%d mails", len(s.mails))
		}
	})
	synctest.Test(t, func(t *testing.T) { // encrypted anew, and the same mail to its reader
		s := &server{tls: "starttls", script: map[string]string{"body": "keep and close"}}
		w := newWorld(t, s)
		_, public := newPGP(t, 0, nil)
		w.o.SetProtection(Protection{Recipients: map[string]*PublicKey{"person0@corp.example": must(t, ReadOpenPGP, public)}})
		messages := w.enqueue(1)
		w.after(5 * time.Second)
		s.set(nil)
		w.after(time.Hour)
		for _, data := range s.mails {
			if m, err := mail.ReadMessage(bytes.NewReader(data)); err != nil || m.Header.Get("Message-ID") != messages[0].ID {
				t.Error(err)
			}
		}
		if len(s.mails) != 2 {
			t.Errorf("%d mails", len(s.mails))
		}
	})
}

func TestTLSIsNotNegotiable(t *testing.T) {
	for name, change := range map[string]func(*world){
		"no_starttls": func(w *world) { w.servers["relay0.example"].tls = "none" },
		"certificate": func(w *world) {
			_, w.servers["relay0.example"].cert = certificates(w.t, "relay0.example") // of another authority
		},
		"certificate ": func(w *world) { // of another host
			w.relays[0].CAFile, w.servers["relay0.example"].cert = certificates(w.t, "other.example")
			if err := w.o.SetRelays(w.relays); err != nil {
				w.t.Fatal(err)
			}
		},
		"configuration": func(w *world) {
			w.relays[0].CAFile = "/nowhere"
			if err := w.o.SetRelays(w.relays); err != nil {
				w.t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &server{tls: "starttls", auth: "PLAIN", password: "p"}
				w := newWorld(t, s)
				change(w)
				if err := w.o.SetLogin(0, "user", secret.FromString("p")); err != nil {
					t.Fatal(err)
				}
				w.enqueue(1)
				w.after(11 * time.Minute)
				d := w.only()
				if d.State != Queued || d.Last[0].Cause != strings.TrimSpace(name) || s.logins != 0 || len(s.mails) != 0 {
					t.Errorf("%d logins, %d mails: %+v", s.logins, len(s.mails), d)
				}
				if late := w.o.Undelivered(10 * time.Minute); len(late) != 1 {
					t.Errorf("nobody would be told: %v", late)
				}
			})
		})
	}
}

func TestBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{tls: "none", script: map[string]string{"rcpt": "450 4.2.0 later"}}
		w := newWorld(t, s)
		w.enqueue(1)
		var times []time.Duration
		start := time.Now()
		for last := 0; time.Since(start) < 3*time.Hour; w.after(time.Second) {
			if n, _, _ := s.counts(); n != last {
				last = n
				times = append(times, time.Since(start))
			}
		}
		for n := 1; n < len(times); n++ {
			want := min(firstWait<<(n-1), longestWait)
			if gap := times[n] - times[n-1]; gap < want*4/5-time.Second || gap > want*6/5+2*time.Second {
				t.Errorf("attempt %d came %s after the one before, want about %s", n+1, gap, want)
			}
		}
		if len(times) < 14 {
			t.Errorf("%d attempts in three hours", len(times))
		}
		d := w.only()
		if d.State != Queued || d.Attempts != len(times) || len(w.o.Undelivered(10*time.Minute)) != 1 || len(w.o.Undelivered(4*time.Hour)) != 0 {
			t.Errorf("%d attempts: %+v", len(times), d)
		}
	})
}

func TestPermanentRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		one, two := &server{tls: "none", script: map[string]string{"rcpt": "550 5.1.1 no such user"}}, &server{tls: "none", script: map[string]string{"mail": "554 5.7.1 no"}}
		w := newWorld(t, one, two)
		w.enqueue(1)
		w.after(time.Second)
		if d := w.only(); d.State != Refused || len(w.o.Undelivered(time.Hour)) != 1 {
			t.Errorf("refused by all: %+v", d)
		}
		w.after(10 * time.Hour)
		if n, _, _ := one.counts(); n < 9 || n > 13 {
			t.Errorf("%d attempts in ten hours, want one an hour", n)
		}
		two.set(map[string]string{"mail": "451 later"}) // one of them may take it yet
		w.after(75 * time.Minute)
		if d := w.only(); d.State != Queued {
			t.Errorf("refused by one: %+v", d)
		}
		two.set(nil)
		w.after(20 * time.Minute)
		if d := w.only(); d.State != Sent || len(two.mails) != 1 {
			t.Errorf("%+v", d)
		}
	})
}

func TestLogin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{tls: "starttls", auth: "PLAIN", password: "right"}
		w := newWorld(t, s)
		w.enqueue(4)
		w.after(20 * time.Minute)
		if n, _, _ := s.counts(); n != 0 || w.o.Deliveries("")[0].Last[0].Cause != "login_missing" {
			t.Errorf("%d connections without a login: %+v", n, w.o.Deliveries("")[0])
		}
		login := func(password string) {
			if err := w.o.SetLogin(0, "user", secret.FromString(password)); err != nil {
				t.Fatal(err)
			}
			w.after(time.Second)
		}
		login("wrong")
		_, before, _ := s.counts()
		login("wrong")
		w.after(30 * time.Minute)
		i := sample()
		i.ID = "2026-0008"
		more, err := Compose(i, sender(), []Language{Dutch})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.o.Enqueue(more); err != nil {
			t.Fatal(err)
		}
		w.after(10 * time.Minute)
		if _, n, _ := s.counts(); n != before || n != 1 {
			t.Errorf("a refused login was tried %d times, then %d: the account would be locked", before, n)
		}
		if c := w.o.Check(t.Context()); len(c) != 1 || c[0].Cause != "login_refused" {
			t.Errorf("check: %v", c)
		}
		login("right")
		if _, _, n := s.counts(); n != 7 {
			t.Errorf("%d mails right after the login was renewed", n)
		}
		if c := w.o.Check(t.Context()); c[0].Result != Accepted || c[0].Code != 0 {
			t.Errorf("check: %v", c)
		}
		if err := w.o.SetLogin(1, "user", secret.FromString("x")); err == nil {
			t.Error("a login for a relay that there is not")
		}
	})
}

// A login that comes while an attempt notes that it is missing is used at once:
// as at a start, when both come together.
func TestLoginInTheMiddle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{tls: "starttls", auth: "PLAIN", password: "right"}
		w := newWorld(t, s)
		writes := 0
		w.at = func(step string) {
			if step != "before write" {
				return
			}
			if writes++; writes == 2 { // the first is of the queueing
				if err := w.o.SetLogin(0, "user", secret.FromString("right")); err != nil {
					t.Error(err)
				}
			}
		}
		w.enqueue(1)
		w.after(time.Second)
		if d := w.only(); d.State != Sent || d.Attempts != 2 || writes != 3 {
			t.Errorf("after %d writes: %+v", writes, d)
		}
	})
}

// What a relay has taken is noted before anything else is said to it.
func TestNotedBeforeQuit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{tls: "none", script: map[string]string{"quit": "hang"}}
		w := newWorld(t, s)
		w.enqueue(1)
		w.after(time.Second)
		other, err := OpenOutbox(w.dir, "web1", w.relays, w.clock)
		if err != nil {
			t.Fatal(err)
		}
		if d := other.Deliveries(""); d[0].State != Sent || !slices.Contains(s.stages, "quit") {
			t.Errorf("%+v, after %v", d, s.stages)
		}
	})
}

// A hanging relay does not keep other messages back.
func TestOneHangingMessageHoldsNoOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{tls: "none", script: map[string]string{"rcpt": "hang"}}
		w := newWorld(t, s)
		w.enqueue(1)
		w.after(time.Second)
		s.set(nil)
		i := sample()
		i.ID = "2026-0008"
		messages, err := Compose(i, sender(), []Language{Dutch})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.o.Enqueue(messages); err != nil {
			t.Fatal(err)
		}
		w.after(time.Second)
		if _, _, n := s.counts(); n != 3 {
			t.Errorf("%d mails beside one that hangs", n)
		}
	})
}

func TestClockJump(t *testing.T) {
	for name, jump := range map[string]time.Duration{"forward": 400 * 24 * time.Hour, "back": -400 * 24 * time.Hour} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprint(name, restart), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					s := &server{tls: "none", script: map[string]string{"greeting": "421 later"}}
					w := newWorld(t, s)
					w.enqueue(1)
					w.after(time.Hour)
					before, _, _ := s.counts()
					w.skew.Store(int64(jump))
					if restart {
						w.restart()
					}
					w.after(time.Hour)
					if after, _, _ := s.counts(); after-before < 3 || after-before > 7 {
						t.Errorf("%d attempts in the hour after the jump, %d in that before", after-before, before)
					}
					if jump > 0 || !restart {
						if late := w.o.Undelivered(10 * time.Minute); len(late) != 1 {
							t.Error("nobody would be told")
						}
					}
					s.set(nil)
					w.after(20 * time.Minute)
					if len(s.mails) != 1 {
						t.Errorf("%d mails", len(s.mails))
					}
				})
			})
		}
	}
}

// A message that was sent, of which the disk could take no note, is not sent
// again; and what cannot be kept is not taken.
func TestDiskFails(t *testing.T) {
	limited(t, func(full func(bool)) {
		synctest.Test(t, func(t *testing.T) { diskFails(t, full) })
	})
}

func diskFails(t *testing.T, full func(bool)) {
	s := &server{tls: "none", script: map[string]string{"greeting": "421 later"}}
	w := newWorld(t, s)
	messages := w.enqueue(1)
	w.after(time.Second)
	full(true)
	i := sample()
	i.ID = "2026-0009"
	more, err := Compose(i, sender(), []Language{Dutch})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.o.Enqueue(more); !errors.Is(err, unix.EFBIG) || !strings.Contains(err.Error(), "free some space") {
		t.Errorf("a full disk: %v", err)
	}
	w.after(time.Minute)
	s.set(nil)
	w.after(time.Hour)
	if d := w.only(); d.State != Sent || len(s.mails) != 1 || d.NextAttempt.IsZero() {
		t.Errorf("%d mails on a full disk: %+v", len(s.mails), d)
	}
	full(false)
	w.after(time.Minute)
	w.restart()
	w.after(time.Hour)
	if d := w.only(); d.State != Sent || len(s.mails) != 1 || d.MessageID != messages[0].ID || !d.NextAttempt.IsZero() {
		t.Errorf("%d mails once there was room: %+v", len(s.mails), d)
	}
	left, err := filepath.Glob(filepath.Join(w.dir, ".*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestDamagedRecordIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{tls: "none", script: map[string]string{"greeting": "421 later"}}
		w := newWorld(t, s)
		messages := w.enqueue(3)
		w.stop()
		for n, damage := range []string{`{"format":1,"delivery":`, `{"format":2,"delivery":{},"message":{}}`} {
			if err := os.WriteFile(filepath.Join(w.dir, fileName(messages[n])), []byte(damage), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		s.set(nil)
		w.start()
		w.after(20 * time.Minute)
		if len(s.mails) != 1 || s.to[0] != messages[2].Recipient {
			t.Errorf("%d mails", len(s.mails))
		}
		for n := range 2 {
			if err := w.o.Damaged(); err == nil || !strings.Contains(err.Error(), fileName(messages[n])) {
				t.Errorf("damage is not told: %v", err)
			}
		}
		// To report again is enough.
		if err := w.o.Enqueue(messages); err != nil {
			t.Fatal(err)
		}
		w.after(time.Second)
		if len(s.mails) != 3 {
			t.Errorf("%d mails", len(s.mails))
		}
	})
}

func TestHostileMessagesAreRefused(t *testing.T) {
	o, err := OpenOutbox(filepath.Join(t.TempDir(), "outbox"), "web1", []Relay{{Host: "localhost"}}, clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	good := Message{Incident: "2026-0007", Revision: 1, Recipient: "a@b.example", From: "c@d.example", ID: "<2026-0007.1.abc@d.example>", Data: []byte("x")}
	for name, change := range map[string]func(*Message){
		"recipient": func(m *Message) { m.Recipient = "a@b.example>\r\nRCPT TO:<c@d.example" },
		"from":      func(m *Message) { m.From = "a@b.example\r\nDATA" },
		"name":      func(m *Message) { m.ID = "<2026-0007.1./../../x@d.example>" },
		"incident":  func(m *Message) { m.Incident = "../x" },
		"revision":  func(m *Message) { m.Revision = 2 },
		"empty":     func(m *Message) { m.Data = nil },
	} {
		m := good
		change(&m)
		if err := o.Enqueue([]Message{m}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	if err := o.Enqueue([]Message{good}); err != nil {
		t.Error(err)
	}
}

func TestRelays(t *testing.T) {
	for _, c := range []struct {
		relay Relay
		addr  string
		err   string
	}{
		{Relay{Host: "a.example"}, "a.example:587", ""},
		{Relay{Host: "a.example", Port: 465}, "a.example:465", ""},
		{Relay{Host: "a.example", TLS: "implicit"}, "a.example:465", ""},
		{Relay{Host: "a.example", Port: 25, TLS: "none"}, "a.example:25", ""},
		{Relay{Host: "::1", TLS: "none", Login: true}, "[::1]:587", ""},
		{Relay{Host: "a.example", TLS: "none", Login: true}, "", "in the clear"},
		{Relay{Host: "a.example", TLS: "ssl"}, "", "write starttls"},
		{Relay{Host: "https://a"}, "", "no name of a host"},
		{Relay{Host: "a.example", Config: outbound.Config{Proxy: "x"}}, "", "proxy"},
	} {
		err := c.relay.Validate()
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%+v: %v", c.relay, err)
			}
			continue
		}
		if err != nil || c.relay.Address() != c.addr {
			t.Errorf("%+v: %s, %v", c.relay, c.relay.Address(), err)
		}
	}
}
