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
