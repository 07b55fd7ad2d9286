package response

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/fake"
	"credentialbroker/internal/leak"
	"credentialbroker/providers"
)

// While no daemon runs, one of the two places where a quarantine stands is
// damaged: the other one holds.
func TestDamagedAtRest(t *testing.T) {
	flip := func(b []byte) []byte { b[len(b)/2] ^= 4; return b }
	for name, c := range map[string]struct {
		record  func(b []byte) []byte // nil: the file is removed
		hold    bool                  // the second record is removed
		spooled bool
		served  bool
		alarms  int
	}{
		"a bit":              {record: flip, alarms: 1},
		"another client":     {record: func(b []byte) []byte { return []byte(strings.ReplaceAll(string(b), `"vdab"`, `"vdac"`)) }, alarms: 1},
		"half":               {record: func(b []byte) []byte { return b[:len(b)/2] }, alarms: 1},
		"empty":              {record: func([]byte) []byte { return nil }, alarms: 1},
		"gone":               {alarms: 1},
		"the second":         {record: func(b []byte) []byte { return b }, hold: true},
		"both":               {record: flip, hold: true, served: true, alarms: 1}, // nobody knows whom it was about
		"a bit in the spool": {record: flip, spooled: true, alarms: 1},
	} {
		t.Run(name, func(t *testing.T) {
			inDesk(t, func(d *desk) {
				t := d.t
				file := filepath.Join(d.dir, "incidents", "2000-0001.json")
				if c.spooled {
					d.stop()
					file = filepath.Join(d.dir, "incidents", "spool", "2000-0001.json")
					if s, err := Spool(d.dir, "web1", d.config, d.clock, confirmed("quarantine"), leak.Declarer{}); err != nil || s.Err != nil {
						t.Fatal(err, s.Err)
					}
				} else {
					d.declare(confirmed("quarantine"))
					time.Sleep(time.Minute)
					d.stop()
				}
				b, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.Remove(file); err != nil {
					t.Fatal(err)
				}
				if c.record != nil {
					if err := os.WriteFile(file, c.record(b), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				second := filepath.Join(d.dir, "incidents", "contained", "2000-0001.vdab")
				if _, err := os.Stat(second); err != nil {
					t.Error(err)
				}
				if c.hold {
					if err := os.RemoveAll(filepath.Dir(second)); err != nil {
						t.Fatal(err)
					}
				}
				for range 2 { // and at the start after that
					d.start()
					if _, err := d.get(); (err == nil) != c.served {
						t.Errorf("served: %v", err)
					} else if !c.served {
						wantCode(t, err, client.Quarantined, "2000-0001")
					}
					time.Sleep(time.Minute)
					if _, err := d.get(); (err == nil) != c.served {
						t.Errorf("served a minute later: %v", err)
					}
					d.stop()
				}
				if n := d.alarms()["damaged"]; n != 2*c.alarms {
					t.Errorf("%d alarms in two starts", n)
				}
				if _, err := os.Stat(second); (err == nil) == c.served {
					t.Errorf("the second record: %v", err)
				}
				d.start()
			})
		})
	}
}

// A quarantine that cannot be written down a second time holds by the first, is
// an alarm, and is written down as soon as it can be.
func TestSecondRecordLater(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		dir := filepath.Join(d.dir, "incidents", "contained")
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		i := d.declare(confirmed("quarantine"))
		_, err := d.get()
		wantCode(t, err, client.Quarantined, i.ID)
		time.Sleep(time.Minute)
		if n := d.alarms()["damaged"]; n != 1 {
			t.Errorf("%d alarms", n)
		}
		if err := errors.Join(os.Remove(dir), os.Mkdir(dir, 0o700)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * roundTime)
		if _, err := os.Stat(filepath.Join(dir, i.ID+".vdab")); err != nil {
			t.Error(err)
		}
	})
}

// What is released stays so.
func TestReleasedAtRest(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.mustGet()
		i := d.declare(confirmed("quarantine"))
		d.secret("second-secret-18b2c")
		d.issuer.SetSecret(theID, "second-secret-18b2c", false)
		if _, err := d.b.Rotate(t.Context(), "vdab", broker.Rotation{}); err != nil {
			t.Fatal(err)
		}
		second := filepath.Join(d.dir, "incidents", "contained", i.ID+".vdab")
		stale, err := os.ReadFile(second)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.r.Release(t.Context(), d.caller, i.ID, client.IncidentRelease{}); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(second); err == nil {
			t.Error("the second record says otherwise")
		}
		d.stop()
		// As after a kill between the two.
		if err := os.WriteFile(second, stale, 0o600); err != nil {
			t.Fatal(err)
		}
		d.start()
		d.mustGet()
		if _, err := os.Stat(second); err == nil || d.alarms()["damaged"] != 0 {
			t.Error("the second record counts although the first can be read")
		}
	})
}

// The clock is set by a day or a week: what is declared is contained and
// arrives, and whoever has to know that it does not is told.
func TestClockJump(t *testing.T) {
	for _, jump := range []time.Duration{-24 * time.Hour, 7 * 24 * time.Hour} {
		for _, restart := range []bool{false, true} {
			t.Run(fmt.Sprint(jump, restart), func(t *testing.T) {
				inDesk(t, func(d *desk) {
					t := d.t
					d.mustGet()
					d.relay.breakDown(true)
					d.declare(confirmed("quarantine"))
					time.Sleep(time.Minute)
					if restart {
						d.stop()
					}
					d.skew.Store(int64(jump))
					if restart {
						d.start()
					}
					_, err := d.get()
					wantCode(t, err, client.Quarantined)
					time.Sleep(12 * time.Minute)
					if n := d.alarms()["undelivered"]; n < 1 { // for all recipients
						t.Errorf("%d alarms", n)
					}
					d.relay.breakDown(false)
					time.Sleep(20 * time.Minute)
					ids := messageIDs(d.relay.taken())
					first := 0
					for id, copies := range ids {
						if strings.HasPrefix(id, "<2000-0001.1.") && copies == 1 {
							first++
						}
					}
					if first != 2 {
						t.Errorf("mails %v", ids)
					}
					late := d.declare(confirmed("quarantine"))
					time.Sleep(time.Minute)
					if o, _ := d.step(late.ID, "trace_tokens"); o != leak.Done {
						t.Errorf("declared after the jump: %s", o)
					}
					if n := len(messageIDs(d.relay.taken())); n < len(ids)+2 {
						t.Errorf("%d mails, then %d", len(ids), n)
					}
				})
			})
		}
	}
}

// While nobody can say whether what was typed is a secret, it is not mailed; the
// rest is, at once.
func TestUnchecked(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.stop()
		c := confirmed("quarantine")
		c.Happened, c.Where = "The secret "+theSecret+" stood in a repository.", "in Ghent"
		if s, err := Spool(d.dir, "web1", d.config, d.clock, c, leak.Declarer{}); err != nil || s.Err != nil || s.Look() != nil || !strings.Contains(s.Incident.Mails[0].Text, "in Ghent") {
			t.Fatalf("%v, %v: %+v", err, s.Err, s.Incident.Mails)
		}
		d.store.SetFault(providers.Unavailable)
		d.start()
		time.Sleep(20 * time.Second)
		c.Where = "in Bruges"
		d.declare(c)
		time.Sleep(time.Minute)
		first := d.relay.taken()
		if all := strings.Join(first, ""); len(first) != 4 || strings.Contains(all, theSecret) || strings.Contains(all, "Ghent") || strings.Contains(all, "Bruges") || !strings.Contains(all, "Follows once") {
			t.Errorf("%d mails:\n%s", len(first), all)
		}
		d.store.SetFault("")
		time.Sleep(5 * time.Minute)
		mails := d.relay.taken()[len(first):]
		if all := strings.Join(mails, ""); len(mails) != 4 || strings.Count(all, "in Ghent") != 4 || strings.Count(all, "in Bruges") != 4 || strings.Contains(all, "Follows once") {
			t.Errorf("%d mails:\n%s", len(mails), all)
		}
		d.nothingSecret(nil)
		time.Sleep(time.Hour)
		if n := len(d.relay.taken()); n != 8 {
			t.Errorf("%d mails", n)
		}
	})
}

// A secrets manager and an issuer that both hang do not add up.
func TestEverythingHangs(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.stop()
		if s, err := Spool(d.dir, "web1", d.config, d.clock, confirmed("rotate"), leak.Declarer{}); err != nil || s.Err != nil {
			t.Fatal(err, s.Err)
		}
		d.store.SetFault(fake.HangStore)
		d.down.hang.Store(true)
		d.start()
		time.Sleep(stepTime + time.Second)
		if n := len(d.relay.taken()); n != 2 {
			t.Errorf("%d mails", n)
		}
		d.store.SetFault("")
		d.down.hang.Store(false)
	})
}
