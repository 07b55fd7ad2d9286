package response

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/leak"
	"credentialbroker/providers"
)

// A record that is damaged while its steps are taken is an alarm, and ends
// neither the daemon nor the containment; one that somebody spools while the
// daemon runs is taken in.
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
		if n := d.alarms()["unreported"]; n != 1 {
			t.Errorf("%d alarms", n)
		}
		if n := len(d.relay.taken()); n != 2 {
			t.Errorf("%d mails of what was spooled", n)
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
		synctest.Wait() // Run has read it
		d.r.o.AuditDir = filepath.Join(d.dir, "nowhere")
		i := d.declare(confirmed("quarantine"))
		if o, detail := d.step(i.ID, "revoke_tokens"); o != leak.Pending {
			t.Errorf("revocation %s %s", o, detail)
		}
	})
}

// newVersion stores a secret, and has it looked at.
func (d *desk) newVersion(secret string) {
	d.t.Helper()
	d.secret(secret)
	d.issuer.SetSecret(theID, secret, true)
	if _, err := d.b.Rotate(d.t.Context(), "vdab", broker.Rotation{}); err != nil {
		d.t.Fatal(err)
	}
	d.t.Logf("version %s", d.b.Status()[0].Credential.Version)
}

func (d *desk) releaseRefused(id string, words ...string) {
	d.t.Helper()
	_, err := d.r.Release(d.t.Context(), d.caller, id, client.IncidentRelease{})
	wantCode(d.t, err, client.Quarantined, words...)
}

// Another version is no other secret: with the one that has leaked in it nobody
// is released, and nobody is told that it was replaced; also by another process.
func TestSameSecretAgain(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.mustGet()
		i := d.declare(confirmed("quarantine"))
		d.newVersion(theSecret)
		time.Sleep(5 * time.Minute)
		for range 2 {
			d.releaseRefused(i.ID, "version 2 of vdab has the same client_secret as version 1")
			_, err := d.r.Release(t.Context(), d.caller, i.ID, client.IncidentRelease{NewSecretConfirmed: true})
			wantCode(t, err, client.Quarantined, "the same client_secret")
			_, err = d.r.Close(t.Context(), d.caller, i.ID, client.IncidentClose{OldStillValid: "It is."})
			wantCode(t, err, client.InvalidRequest, "the same client_secret")
			if o, _ := d.step(i.ID, "install_version"); o != "" {
				t.Error("the issuer is told that it was replaced")
			}
			d.stop()
			d.start()
			time.Sleep(5 * time.Minute)
		}
		d.newVersion("second-secret-18b2c")
		time.Sleep(5 * time.Minute)
		if o, v := d.step(i.ID, "install_version"); o != leak.Done || v != "3" {
			t.Errorf("%s %s", o, v)
		}
		if _, err := d.r.Release(t.Context(), d.caller, i.ID, client.IncidentRelease{}); err != nil {
			t.Error(err)
		}
		d.mustGet()
		time.Sleep(time.Minute) // until the outbox has written
		d.nothingSecret(nil)
	})
}

// What the leak is about has to be another: here the API key, of which a new
// client secret says nothing.
func TestAnotherFieldIsNotEnough(t *testing.T) {
	for _, what := range []string{"api_key", "unknown", "host", "manager_login"} {
		inDesk(t, func(d *desk) {
			d.mustGet()
			c := confirmed("quarantine")
			c.What = []string{what}
			i := d.declare(c)
			d.newVersion("second-secret-18b2c")
			time.Sleep(2 * time.Minute)
			d.releaseRefused(i.ID, "the same api_key as version 1")
		})
	}
}

// A secrets manager without history, and a daemon that did not see the old
// version: a person has to say that it was replaced, which is recorded.
func TestConfirmed(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.forgets = true
		d.stop()
		d.start()
		d.mustGet()
		i := d.declare(confirmed("quarantine"))
		d.stop()
		d.secret("second-secret-18b2c")
		d.issuer.SetSecret(theID, "second-secret-18b2c", true)
		d.start()
		if err := d.b.Prove(t.Context(), "vdab"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		if o, _ := d.step(i.ID, "install_version"); o != "" {
			t.Error("the issuer is told that it was replaced")
		}
		d.releaseRefused(i.ID, "cannot be told", "--new-secret-confirmed")
		if _, err := d.r.Release(t.Context(), d.caller, i.ID, client.IncidentRelease{NewSecretConfirmed: true}); err != nil {
			t.Fatal(err)
		}
		d.mustGet()
		if o, _ := d.step(i.ID, "confirm_new"); o != leak.Done {
			t.Error("nobody knows who said so")
		}
		time.Sleep(time.Minute) // the mails of the release
		_, err := d.r.Close(t.Context(), d.caller, i.ID, client.IncidentClose{OldStillValid: "Nobody can ask."})
		if err != nil {
			t.Error(err)
		}
	})
}

// Declared while the secrets manager is down: what had leaked is found out
// later, and until then nothing is taken for new.
func TestVersionNotKnown(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.stop()
		d.store.SetFault(providers.Unavailable)
		d.start()
		i := d.declare(confirmed("quarantine"))
		time.Sleep(2 * time.Minute)
		d.releaseRefused(i.ID, "no version of its secret in use")
		record, err := d.r.get(i.ID)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.r.oldRefused(t.Context(), &record); err == nil {
			t.Error("the issuer refuses what nobody knows")
		}
		d.store.SetFault("")
		time.Sleep(2 * time.Minute)
		if record, err = d.r.get(i.ID); err != nil || record.Versions["vdab"] != "1" || record.ClientID != theID {
			t.Errorf("%+v, %v", record, err)
		}
		d.releaseRefused(i.ID, "still has version 1, which has leaked")
		record.Versions = nil
		if _, err := d.r.renewed(t.Context(), &record, false); err == nil || !strings.Contains(err.Error(), "is not known") {
			t.Errorf("%v", err)
		}
	})
}

// As long as the daemon lives it knows what had leaked, whatever the secrets
// manager does.
func TestKnownInMemory(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.forgets = true
		d.stop()
		d.start()
		d.mustGet()
		i := d.declare(confirmed("quarantine"))
		d.newVersion(theSecret)
		d.releaseRefused(i.ID, "the same client_secret")
		d.newVersion("second-secret-18b2c")
		if _, err := d.r.Release(t.Context(), d.caller, i.ID, client.IncidentRelease{}); err != nil {
			t.Error(err)
		}
	})
}

// Declared while the secrets are not known, the report goes out without what a
// person typed; that follows once it could be checked.
func TestTextWithheld(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.stop()
		c := confirmed("quarantine")
		c.Happened, c.Where = "It held "+theSecret+".", "On the wiki."
		if s, err := Spool(d.dir, "web1", d.config, d.clock, c, leak.Declarer{Claimed: "An"}); err != nil || s.Err != nil {
			t.Fatal(s, err)
		}
		d.store.SetFault(providers.Unavailable)
		d.start()
		time.Sleep(2 * time.Minute)
		mails := strings.Join(d.relay.taken(), "")
		if len(d.relay.taken()) != 2 || strings.Contains(mails, theSecret) || strings.Contains(mails, "wiki") || strings.Count(mails, "vaststaat") < 2 {
			t.Errorf("%d mails: %s", len(d.relay.taken()), mails)
		}
		d.store.SetFault("")
		time.Sleep(2 * time.Minute)
		if len(d.relay.taken()) != 4 {
			t.Fatalf("%d mails", len(d.relay.taken()))
		}
		mails = strings.Join(d.relay.taken()[2:], "")
		if strings.Contains(mails, theSecret) || !strings.Contains(mails, "wiki") || !strings.Contains(mails, "it held a secret") || strings.Contains(mails, "vaststaat") {
			t.Error(mails)
		}
		d.nothingSecret(nil)
	})
}

// What the record would leave out between two letters hides no secret, and
// neither does JSON; what was retired lately is one too. Each refusal is on
// record.
func TestHiddenSecrets(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.mustGet()
		d.newVersion("second-secret-18b2c")
		i := d.declare(confirmed("keep-serving"))
		for _, text := range []string{theSecret, "first-\u200bsecret-7f3a9", "second-secret-\u00ad18b2c"} {
			for _, dry := range []bool{false, true} {
				c := confirmed("quarantine")
				c.Where, c.DryRun = text, dry
				_, err := d.r.Declare(t.Context(), d.caller, c)
				wantCode(t, err, client.InvalidRequest, "where: it holds a secret")
			}
			_, err := d.r.Close(t.Context(), d.caller, i.ID, client.IncidentClose{OldStillValid: text})
			wantCode(t, err, client.InvalidRequest, "holds a secret")
			r := leak.Incident{Closing: &leak.Closing{StillValid: text, By: leak.Declarer{Claimed: text}}}
			if d.r.redact(&r); r.Closing.StillValid == text || r.Closing.By.Claimed == text {
				t.Errorf("%q is sent", text)
			}
		}
		e := strings.Replace(string(evidenceOf("db1", i.Global)), `"exposure"`, `"holders": [{"uid": 1, "unit": "second\u002dsecret-18b2c", "held": "x", "first": "2000-01-01T00:00:00Z", "last": "2000-01-01T00:00:00Z"}], "exposure"`, 1)
		_, err := d.r.AddEvidence(t.Context(), d.caller, i.ID, []byte(e))
		wantCode(t, err, client.InvalidRequest, "holds a secret")
		d.stop()
		n := 0
		for e, err := range audit.Read(filepath.Join(d.dir, "audit"), 0) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Type == audit.AdminAct && e.Code == "leak.text_refused" && e.Actor.PID == d.caller.PID {
				n++
			}
		}
		if n != 10 {
			t.Errorf("%d refusals on record", n)
		}
		d.start()
	})
}

// A disk that hangs while an incident is written holds no status up.
func TestStatusWaitsForNoDisk(t *testing.T) {
	inDesk(t, func(d *desk) {
		i := d.declare(confirmed("quarantine"))
		d.r.mu.Lock()
		d.r.book.mu.Lock()
		open, counts, mails := d.r.Summaries()
		d.r.book.mu.Unlock()
		d.r.mu.Unlock()
		if len(open) != 1 || open[0].ID != i.ID || counts["open"] != 1 || mails["queued"]+mails["sent"] != 2 {
			d.t.Errorf("%+v %v %v", open, counts, mails)
		}
	})
}

// A rotation that this host cannot make is no work in progress, and one that
// the secrets manager holds up says so and goes on.
func TestRotateSaysWhy(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.mustGet()
		i := d.declare(confirmed("rotate"))
		if o, who := d.step(i.ID, "rotate"); o != leak.NotPossible || who != "VDAB" {
			t.Errorf("by request: %s %s", o, who)
		}
		one := d.config.Clients["vdab"]
		one.Issuer.Rotation, one.Keys = "self-service", true
		d.config.Clients["vdab"] = one
		if err := d.r.SetConfig(d.config); err != nil {
			t.Fatal(err)
		}
		d.store.SetFault(providers.Unavailable)
		i = d.declare(confirmed("rotate"))
		if o, why := d.step(i.ID, "rotate"); o != leak.Pending || why != "secrets manager" || !strings.Contains(strings.Join(i.ByHand, "\n"), "broker keys rotate vdab") {
			t.Errorf("down: %s %s, %v", o, why, i.ByHand)
		}
		d.store.SetFault(providers.Denied)
		time.Sleep(2 * time.Minute)
		if o, why := d.step(i.ID, "rotate"); o != leak.Failed || why != "secrets manager" {
			t.Errorf("denied: %s %s", o, why)
		}
		d.store.SetFault("")
	})
}

// Who mails nothing does not begin to when evidence comes.
func TestEvidenceMailsNobody(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		c := confirmed("keep-serving")
		c.NoMail = true
		i := d.declare(c)
		if _, err := d.r.AddEvidence(t.Context(), d.caller, i.ID, evidenceOf("db1", i.Global)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Minute)
		if n := len(d.relay.taken()); n != 0 {
			t.Errorf("%d mails", n)
		}
	})
}

// A drill of which the second write fails is told as it is, and is not under
// way for ever.
func TestDrillHalfRecorded(t *testing.T) {
	inDesk(t, func(d *desk) {
		name := filepath.Join(d.dir, "incidents", "2000-0001.json")
		d.r.o.Clock = between{d.clock, func() {
			if b, err := os.ReadFile(name); err == nil && len(b) > 0 {
				_ = os.WriteFile(name, []byte("{"), 0o600)
			}
		}}
		_, err := d.r.Drill(d.t.Context(), d.caller, "vdab")
		wantCode(d.t, err, client.Internal, "drill 2000-0001 is recorded")
		d.r.mu.Lock()
		defer d.r.mu.Unlock()
		if len(d.r.busy) != 0 {
			d.t.Errorf("%v", d.r.busy)
		}
	})
}

// between is a clock that does something whenever somebody looks at it.
type between struct {
	clock.Clock
	f func()
}

func (b between) Now() clock.Reading {
	b.f()
	return b.Clock.Now()
}
