package response

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/leak"
)

// A record that is damaged while its steps are taken is an alarm, and ends
// neither the daemon nor the containment; so is one that somebody spools while
// the daemon runs.
func TestRecordLostOnTheWay(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.mustGet()
		d.down.hang.Store(true)
		go func() {
			time.Sleep(time.Second)
			if err := os.WriteFile(filepath.Join(d.dir, "incidents", "2000-0001.json"), []byte("{"), 0o600); err != nil {
				t.Error(err)
			}
		}()
		if i := d.declare(confirmed("quarantine")); i.ID != "2000-0001" || i.Clients[0] != "vdab" {
			t.Errorf("%+v", i)
		}
		d.down.hang.Store(false)
		_, err := d.get()
		wantCode(t, err, client.Quarantined)
		s, err := Spool(d.dir, "web1", d.config, d.clock, confirmed("quarantine"), leak.Declarer{})
		if err != nil || s.Err != nil || s.Incident.ID != "2000-0002" {
			t.Fatalf("%+v, %v", s, err)
		}
		d.r.book.forget()
		time.Sleep(10 * time.Minute)
		if n := d.alarms()["unreported"]; n != 2 {
			t.Errorf("%d alarms", n)
		}
	})
}

// While the steps of an incident are under way, nobody else takes them: what
// the other one would not find is not impossible.
func TestOnePursuit(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.mustGet()
		d.down.hang.Store(true)
		done := make(chan struct{})
		go func() {
			defer close(done)
			d.declare(confirmed("quarantine"))
		}()
		time.Sleep(3 * time.Second)
		if _, err := d.r.AddEvidence(t.Context(), d.caller, "2000-0001", evidenceOf("db1", "2000-0001@web1")); err != nil {
			t.Fatal(err)
		}
		if o, _ := d.step("2000-0001", "revoke_tokens"); o != leak.Pending {
			t.Errorf("revocation %s", o)
		}
		<-done
		d.down.hang.Store(false)
		time.Sleep(30 * time.Second) // what was added is looked at in the next round
		if o, detail := d.step("2000-0001", "revoke_tokens"); o != leak.Done || detail != "1/1" {
			t.Errorf("revocation %s %s", o, detail)
		}
	})
}

func evidenceOf(host, incident string) []byte {
	return []byte(`{"format": 1, "incident": "` + incident + `", "host": "` + host + `", "exported_at": "2000-01-01T00:00:00Z", "exposure": {"count": 0}}`)
}

// A token that somebody else has revoked between two rounds is revoked.
func TestRevokedByAnother(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.mustGet()
		d.down.hang.Store(true)
		i := d.declare(confirmed("quarantine"))
		if o, _ := d.step(i.ID, "revoke_tokens"); o != leak.Pending {
			t.Errorf("revocation %s", o)
		}
		d.down.hang.Store(false)
		if _, err := d.b.Revoke(t.Context(), "vdab", false); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		if o, _ := d.step(i.ID, "revoke_tokens"); o != leak.Done {
			t.Errorf("revocation %s", o)
		}
	})
}

// As long as the audit log does not say what tokens there were, none is said to
// be revoked.
func TestUntraced(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.mustGet()
		d.stop()
		d.start()
		d.r.o.AuditDir = filepath.Join(d.dir, "nowhere")
		i := d.declare(confirmed("quarantine"))
		if o, detail := d.step(i.ID, "revoke_tokens"); o != leak.Pending {
			t.Errorf("revocation %s %s", o, detail)
		}
	})
}
