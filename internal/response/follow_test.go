package response

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/leak"
	"credentialbroker/providers"
)

// A record that cannot be read keeps those that can from nothing.
func TestReleasedBesideADamagedRecord(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		i := d.declare(confirmed("quarantine"))
		if err := os.WriteFile(filepath.Join(d.dir, "incidents", "2000-0002.json"), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		d.secret("second-secret-18b2c")
		d.issuer.SetSecret(theID, "second-secret-18b2c", true)
		if _, err := d.b.Rotate(t.Context(), "vdab", broker.Rotation{}); err != nil {
			t.Fatal(err)
		}
		if _, err := d.r.Release(t.Context(), d.caller, i.ID, client.IncidentRelease{}); err != nil {
			t.Fatal(err)
		}
		d.mustGet()
	})
}

// A client that turns out to have the secret, too, is part of the incident.
func TestExtended(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		i := d.declare(confirmed("quarantine"))
		time.Sleep(2 * time.Minute) // no step is left to be taken
		d.store.Set("copy", map[string]string{"client_id": theID, "client_secret": theSecret, "api_key": theKey})
		list := d.clients()
		one := list[slices.IndexFunc(list, func(c broker.Client) bool { return c.Name == "vdab" })]
		one.Name, one.Rotation.Spec = "copy", providers.Spec{Ref: providers.Ref{Path: "copy"}}
		if err := d.b.Apply(append(list, one)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(3 * roundTime)
		_, err := d.b.Token(t.Context(), d.caller, broker.Request{Client: "copy", Surface: access.Token})
		wantCode(t, err, client.Quarantined, i.ID)
		if record, err := d.r.book.Get(i.ID); err != nil || !slices.Contains(record.Clients, "copy") {
			t.Errorf("%v, %v", record.Clients, err)
		}
	})
}

// That a new version was stored is no news before something has shown that it
// works.
func TestInstalledIsProved(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		i := d.declare(confirmed("keep-serving"))
		time.Sleep(time.Minute)
		d.stop()
		d.secret("second-secret-18b2c")
		d.issuer.SetSecret(theID, "second-secret-18b2c", true)
		d.start()
		time.Sleep(2 * time.Minute)
		if o, detail := d.step(i.ID, "install_version"); o != "" {
			t.Errorf("%s %s before anything has shown that it works", o, detail)
		}
		d.mustGet()
		time.Sleep(2 * time.Minute)
		if o, detail := d.step(i.ID, "install_version"); o != leak.Done || detail != "2" {
			t.Errorf("%s %s", o, detail)
		}
	})
}

// A refused secret is no suspicion while another is on its way, or the client is
// quarantined: somebody knows.
func TestRefusedAndKnown(t *testing.T) {
	for name, known := range map[string]func(d *desk){
		"quarantined": func(d *desk) { d.declare(confirmed("quarantine")) },
		"another is on its way": func(d *desk) {
			d.secret("not-yet-taken-5f1")
			_, _ = d.b.Rotate(d.t.Context(), "vdab", broker.Rotation{})
		},
		"nobody knows": func(*desk) {},
	} {
		t.Run(name, func(t *testing.T) {
			inDesk(t, func(d *desk) {
				d.mustGet()
				time.Sleep(time.Minute)
				d.issuer.SetSecret(theID, "somebody-elses-c11", false)
				dead := func() bool {
					return slices.ContainsFunc(d.b.Status(), func(s broker.ClientStatus) bool { return s.Name == "vdab" && s.Credential.Dead })
				}
				for !dead() {
					time.Sleep(time.Second)
					_, _ = d.get()
				}
				known(d)
				time.Sleep(5 * time.Minute)
				drafts := 0
				list, err := d.r.Incidents(d.t.Context())
				for _, i := range list {
					if i.State == "draft" {
						drafts++
					}
				}
				if want := map[bool]int{true: 1}[name == "nobody knows"]; err != nil || drafts != want {
					d.t.Errorf("%d drafts, %v", drafts, err)
				}
			})
		})
	}
}
