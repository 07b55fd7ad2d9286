package response

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/keys"
	"credentialbroker/internal/leak"
)

// A confirmed leak, from its declaration to its end.
func TestIncident(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		g := d.mustGet()
		if _, err := d.b.WatchPlace(broker.Place{Client: "vdab", Surface: access.Files, Name: "file /run/x/token"}).Next(t.Context()); err != nil {
			t.Fatal(err)
		}
		i := d.declare(confirmed("quarantine"))
		if i.ID != "2000-0001" || i.State != "open" || !slices.Equal(i.Quarantined, []string{"vdab"}) || !strings.Contains(strings.Join(i.ByHand, "\n"), "VDAB must issue a new secret; quarantine stops the API until then.") {
			t.Errorf("%+v", i)
		}
		_, err := d.get()
		wantCode(t, err, client.Quarantined, "2000-0001")
		if o, detail := d.step(i.ID, "revoke_tokens"); o != leak.Done || detail != "1/1" {
			t.Errorf("tokens: %s %s", o, detail)
		}
		record, err := d.r.book.Get(i.ID)
		if err != nil || record.Exposure.Count != 1 || record.Exposure.Tokens[0].Fingerprint != g.Token.Fingerprint || len(record.Holders) != 2 || record.Holders[1].Unit != "file /run/x/token" || record.ClientID != theID || record.Versions["vdab"] == "" {
			t.Errorf("%+v, %v", record, err)
		}
		time.Sleep(time.Second)
		mails := d.relay.taken()
		if len(mails) != 2 || !strings.Contains(mails[0]+mails[1], "To: <ict_iam@issuer.example>") || !strings.Contains(mails[0]+mails[1], "To: <security@corp.example>") {
			t.Fatalf("%d mails", len(mails))
		}

		_, err = d.r.Release(t.Context(), d.caller, i.ID, client.IncidentRelease{})
		wantCode(t, err, client.Quarantined, "which has leaked")
		_, err = d.r.Close(t.Context(), d.caller, i.ID, client.IncidentClose{})
		wantCode(t, err, client.InvalidRequest, "which has leaked")
		d.secret("second-secret-18b2c")
		d.issuer.SetSecret(theID, "second-secret-18b2c", true)
		if _, err := d.b.Rotate(t.Context(), "vdab", broker.Rotation{}); err != nil {
			t.Fatal(err)
		}
		if _, err = d.r.Release(t.Context(), d.caller, i.ID, client.IncidentRelease{}); err != nil {
			t.Fatal(err)
		}
		d.mustGet()
		_, err = d.r.Close(t.Context(), d.caller, i.ID, client.IncidentClose{})
		if err == nil || !strings.Contains(err.Error(), "not delivered") && !strings.Contains(err.Error(), "still takes version") {
			t.Fatalf("%v", err)
		}
		time.Sleep(time.Minute)
		_, err = d.r.Close(t.Context(), d.caller, i.ID, client.IncidentClose{})
		wantCode(t, err, client.InvalidRequest, "the issuer still takes version")
		d.issuer.SetSecret(theID, "second-secret-18b2c", false)
		i, err = d.r.Close(t.Context(), d.caller, i.ID, client.IncidentClose{})
		if err != nil || i.State != "closed" {
			t.Fatalf("%+v, %v", i, err)
		}
		time.Sleep(time.Second)
		if n := len(d.relay.taken()); n != 6 {
			t.Errorf("%d mails, want first, follow-up and last for two", n)
		}
		d.mustGet()
		d.nothingSecret(g)
	})
}

// What the daemon was killed in is taken up again: the quarantine from before
// the first hand-over, the steps, the mail; and nothing twice.
func TestResume(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.mustGet()
		d.stop()
		// As after a kill right behind the record.
		c := confirmed("quarantine")
		record, err := incidentOf(&d.config, c, d.r.now())
		if err != nil {
			t.Fatal(err)
		}
		if record, err = d.r.book.Declare(record, false); err != nil {
			t.Fatal(err)
		}
		d.start()
		_, err = d.get()
		wantCode(t, err, client.Quarantined)
		time.Sleep(10 * time.Second)
		if n := len(d.relay.taken()); n != 2 {
			t.Errorf("%d mails", n)
		}
		// The token of before is known by its fingerprint alone.
		if o, _ := d.step(record.ID, "revoke_tokens"); o != leak.NotPossible {
			t.Errorf("revocation %s", o)
		}
		d.stop()
		d.start()
		time.Sleep(10 * time.Minute)
		if n := len(d.relay.taken()); n != 2 {
			t.Errorf("%d mails after another start", n)
		}
		_, err = d.get()
		wantCode(t, err, client.Quarantined)
	})
}

// A declaration of a time without a daemon.
func TestSpooled(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.mustGet()
		d.stop()
		c := confirmed("quarantine")
		c.Happened = "-----BEGIN PRIVATE KEY-----"
		if _, err := Spool(d.dir, "web1", d.config, d.clock, c, leak.Declarer{}); err == nil {
			t.Error("a private key was recorded")
		}
		c.Happened = "The secret " + theSecret + " stood in a repository."
		c.Where, c.FoundBy = "at "+theSecret, "who has "+theSecret
		s, err := Spool(d.dir, "web1", d.config, d.clock, c, leak.Declarer{Claimed: "An " + theSecret})
		if err != nil || s.Err != nil || s.Look() != nil || len(s.Incident.Mails) != 2 || s.Incident.ID != "2000-0001" {
			t.Fatalf("%+v, %v", s, err)
		}
		d.start()
		_, err = d.get()
		wantCode(t, err, client.Quarantined, "2000-0001")
		time.Sleep(10 * time.Second)
		mails := d.relay.taken()
		if len(mails) != 2 || strings.Contains(mails[0]+mails[1], theSecret) {
			t.Errorf("%d mails, or one holds the secret", len(mails))
		}
		d.nothingSecret(nil)
		if i, err := d.r.book.Get("2000-0001"); err != nil || !strings.HasPrefix(i.Happened, "[removed") || i.Where != i.Happened || i.FoundBy != i.Happened || i.DeclaredBy.Claimed != i.Happened {
			t.Errorf("%+v, %v", i, err)
		}
		if left, err := filepath.Glob(filepath.Join(d.dir, "incidents", "spool", "*")); err != nil || len(left) != 0 {
			t.Errorf("left in the spool: %v, %v", left, err)
		}

		d.stop()
		if err := os.RemoveAll(filepath.Join(d.dir, "incidents")); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d.dir, "incidents"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err = Spool(d.dir, "web1", d.config, d.clock, confirmed("quarantine"), leak.Declarer{}); err != nil || s.Err == nil || s.Look() != nil || len(s.Incident.Mails) != 2 {
			t.Errorf("%+v, %v", s, err)
		}
		_ = os.Remove(filepath.Join(d.dir, "incidents"))
		d.start()
	})
}

// A declaration that was spooled although a daemon runs: that takes it within
// a round, and a file that is being written is left alone.
func TestSpooledBesideADaemon(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.mustGet()
		time.Sleep(time.Minute)
		half := filepath.Join(d.dir, "incidents", "spool", ".new-1")
		if err := os.WriteFile(half, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		if err := os.Chtimes(half, now, now); err != nil {
			t.Fatal(err)
		}
		s, err := Spool(d.dir, "web1", d.config, d.clock, confirmed("quarantine"), leak.Declarer{})
		if err != nil || s.Err != nil {
			t.Fatalf("%+v, %v", s, err)
		}
		time.Sleep(2 * roundTime)
		_, err = d.get()
		wantCode(t, err, client.Quarantined, s.Incident.ID)
		time.Sleep(time.Second)
		if n := len(d.relay.taken()); n != 2 {
			t.Errorf("%d mails", n)
		}
		if _, err := os.Stat(half); err != nil {
			t.Errorf("a file that was being written: %v", err)
		}
		if err := os.Chtimes(half, now, now.Add(-2*time.Hour)); err != nil {
			t.Fatal(err)
		}
		d.stop()
		d.start()
		if _, err := os.Stat(half); err == nil {
			t.Error("what a crash has left is kept")
		}
	})
}

// A reload that gives the client another name lets nobody go, not for a moment;
// and the client is as leaked as it was.
func TestRenamed(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.mustGet()
		i := d.declare(confirmed("quarantine"))
		rename := func() {
			list := d.clients()
			list[slices.IndexFunc(list, func(c broker.Client) bool { return c.Name == "vdab" })].Name = "other-name"
			if err := d.b.Apply(list); err != nil {
				t.Fatal(err)
			}
		}
		get := func() error {
			_, err := d.b.Token(t.Context(), d.caller, broker.Request{Client: "other-name", Surface: access.Token})
			return err
		}
		rename()
		wantCode(t, get(), client.Quarantined, i.ID)
		d.config.Clients["other-name"] = d.config.Clients["vdab"]
		delete(d.config.Clients, "vdab")
		if err := d.r.SetConfig(d.config); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * roundTime)
		record, err := d.r.book.Get(i.ID)
		if err != nil || !slices.Contains(record.Clients, "other-name") || record.Versions["other-name"] == "" || record.Versions["other-name"] != record.Versions["vdab"] {
			t.Errorf("%+v, %v", record, err)
		}
		_, err = d.r.Release(t.Context(), d.caller, i.ID, client.IncidentRelease{})
		wantCode(t, err, client.Quarantined, "other-name still has version")
		d.stop()
		d.start()
		rename()
		wantCode(t, get(), client.Quarantined, i.ID)
		d.secret("second-secret-18b2c")
		d.issuer.SetSecret(theID, "second-secret-18b2c", false)
		if _, err := d.b.Rotate(t.Context(), "other-name", broker.Rotation{}); err != nil {
			t.Fatal(err)
		}
		if _, err = d.r.Release(t.Context(), d.caller, i.ID, client.IncidentRelease{}); err != nil {
			t.Fatal(err)
		}
		if err := get(); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		if _, err = d.r.Close(t.Context(), d.caller, i.ID, client.IncidentClose{}); err != nil {
			t.Error(err)
		}
	})
}

// Tokens that are issued while the incident is open are in the next report, and
// in the evidence; those of the new secret are not.
func TestTokensSince(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.mustGet()
		i := d.declare(confirmed("keep-serving"))
		told := func() int {
			t.Helper()
			record, err := d.r.book.Get(i.ID)
			if err != nil {
				t.Fatal(err)
			}
			return record.Exposure.Count
		}
		more := func() {
			time.Sleep(time.Hour)
			d.mustGet()
			time.Sleep(2 * time.Second) // for the log
		}
		more()
		if n := told(); n != 1 {
			t.Errorf("%d tokens", n)
		}
		evidence, err := d.r.Evidence(t.Context(), i.ID)
		exported := told()
		if err != nil || exported < 2 || !strings.Contains(string(evidence), fmt.Sprintf(`"count": %d`, exported)) {
			t.Errorf("%d tokens, %v", exported, err)
		}
		more()
		d.secret("second-secret-18b2c")
		d.issuer.SetSecret(theID, "second-secret-18b2c", false)
		if _, err := d.b.Rotate(t.Context(), "vdab", broker.Rotation{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		before := told()
		if before <= exported {
			t.Errorf("%d tokens in the report that a new version is installed, had %d", before, exported)
		}
		more()
		if _, err := d.r.Close(t.Context(), d.caller, i.ID, client.IncidentClose{}); err != nil {
			t.Fatal(err)
		}
		if n := told(); n != before {
			t.Errorf("%d tokens at the end, had %d", n, before)
		}

		d.r.tracing <- struct{}{}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, ok := d.r.trace(short, &leak.Incident{Clients: []string{"vdab"}}); ok {
			t.Error("two read the log at once")
		}
		<-d.r.tracing
	})
}

// Whoever asks sees each mail as it was sent, the issuer's and the copy apart;
// where none could be, as it would be.
func TestMailsShown(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		look := func(id, state string) {
			t.Helper()
			i, err := d.r.Incident(t.Context(), id)
			if err != nil || len(i.Mails) != 2 {
				t.Fatalf("%+v, %v", i, err)
			}
			issuer, own := i.Mails[0], i.Mails[1]
			if issuer.State != state || issuer.Subject == "" || !strings.Contains(issuer.Text, "public repository") || strings.Contains(issuer.Text, "uid") {
				t.Errorf("the issuer's: %+v", issuer)
			}
			if own.State != state || own.Subject == "" || !strings.Contains(own.Text, "uid") {
				t.Errorf("our own: %+v", own)
			}
		}
		i := d.declare(confirmed("keep-serving"))
		time.Sleep(time.Second)
		look(i.ID, "sent")
		d.config.Sender.Name = "Somebody else" // is in the next one
		d.stop()
		d.start()
		look(i.ID, "sent")
		if i, err := d.r.Incident(t.Context(), i.ID); err != nil || strings.Contains(i.Mails[0].Text, "Somebody else") {
			t.Errorf("a mail is not shown as it was sent: %v", err)
		}
		d.stop()
		d.config.Relays = nil
		if err := os.RemoveAll(filepath.Join(d.dir, "outbox")); err != nil {
			t.Fatal(err)
		}
		d.start()
		look(d.declare(confirmed("keep-serving")).ID, "")
		if list, err := d.r.Incidents(t.Context()); err != nil || len(list) != 2 || len(list[0].Mails) != 0 {
			t.Errorf("%+v, %v", list, err)
		}
	})
}

// The mail that is sent, and each that follows, is in the language that was
// asked for and shown.
func TestLanguage(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		for n, language := range []string{"en", "nl"} {
			c := confirmed("keep-serving")
			c.Language, c.DryRun = language, true
			shown := d.declare(c)
			c.DryRun = false
			i := d.declare(c)
			time.Sleep(25 * time.Hour)
			got, err := d.r.Incident(t.Context(), i.ID)
			if err != nil || len(got.Mails) != 4 {
				t.Fatalf("%+v, %v", got, err)
			}
			first := []string{"SECURITY NOTICE", "BEVEILIGINGSMELDING"}[n]
			for _, m := range append(shown.Mails, got.Mails...) {
				if !strings.HasPrefix(m.Text, first) {
					t.Errorf("%s: revision %d begins with %.40q", language, m.Revision, m.Text)
				}
			}
		}
		c := confirmed("keep-serving")
		c.Language = "en"
		d.stop()
		s, err := Spool(d.dir, "web1", d.config, d.clock, c, leak.Declarer{})
		if err != nil || s.Look() != nil || !strings.HasPrefix(s.Incident.Mails[0].Text, "SECURITY NOTICE") {
			t.Errorf("%+v, %v", s, err)
		}
		d.start()
	})
}

// A change while the first report waits for its steps overtakes nothing: each
// revision is mailed to each recipient.
func TestEachRevision(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.mustGet()
		d.down.hang.Store(true)
		declared := make(chan struct{})
		go func() {
			d.declare(confirmed("quarantine"))
			close(declared)
		}()
		time.Sleep(5 * time.Second)
		revise := func(i *leak.Incident) error { d.r.revise(i, "More is known."); return nil }
		if _, _, err := d.r.change("2000-0001", revise); err != nil {
			t.Error(err)
		}
		<-declared
		d.down.hang.Store(false)
		time.Sleep(time.Minute)
		got := map[string]int{}
		for _, m := range d.r.deliveries("2000-0001") {
			got[fmt.Sprint(m.Revision, m.State)]++
		}
		if got["1sent"] != 2 || got["2sent"] != 2 {
			t.Errorf("%v", got)
		}
	})
}

// What could not be mailed while there was no relay is news in the first mail
// that can.
func TestOvertaken(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.stop()
		relays := d.config.Relays
		d.config.Relays = nil
		d.start()
		i := d.declare(confirmed("keep-serving"))
		time.Sleep(25 * time.Hour) // there is an update, too
		d.config.Relays = relays
		if err := d.r.SetConfig(d.config); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		mails := d.relay.taken()
		if len(mails) != 2 || strings.Contains(mails[0]+mails[1], "In-Reply-To") || strings.Contains(mails[0]+mails[1], "aanvulling") {
			t.Fatalf("%d mails, or one follows what nobody had", len(mails))
		}
		next, mine, err := d.r.change(i.ID, func(i *leak.Incident) error {
			i.Actions = append(i.Actions, leak.Action{At: d.r.now(), What: "rotate", Outcome: leak.Done})
			d.r.revise(i, "")
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		d.r.pursue(t.Context(), next.ID, mine)
		time.Sleep(time.Minute)
		if mails = d.relay.taken(); len(mails) != 4 || !strings.Contains(mails[3], "In-Reply-To: <2000-0001.2.") {
			t.Errorf("%d mails, or the next one is in no thread", len(mails))
		}
	})
}

// An address that is wrong holds an incident open until the configuration is put
// right: then the right one is told, and the wrong one counts no more.
func TestReaddressed(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.relay.mu.Lock()
		d.relay.refuse = "ict_iam@"
		d.relay.mu.Unlock()
		i := d.declare(confirmed("keep-serving"))
		time.Sleep(time.Minute)
		end := client.IncidentClose{OldStillValid: "It ends on Monday."}
		d.secret("second-secret-18b2c")
		d.issuer.SetSecret(theID, "second-secret-18b2c", true)
		if _, err := d.b.Rotate(t.Context(), "vdab", broker.Rotation{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		_, err := d.r.Close(t.Context(), d.caller, i.ID, end)
		wantCode(t, err, client.InvalidRequest, "not delivered to ict_iam@issuer.example")
		if open, _, mails := d.r.Summaries(); open[0].Undelivered == 0 || mails["late"] == 0 {
			t.Errorf("%+v %v", open, mails)
		}
		one := d.config.Clients["vdab"]
		one.Issuer.Contacts = []string{"iam@issuer.example"}
		d.config.Clients = map[string]Client{"vdab": one}
		if err := d.r.SetConfig(d.config); err != nil {
			t.Fatal(err)
		}
		_, err = d.r.Close(t.Context(), d.caller, i.ID, end)
		wantCode(t, err, client.InvalidRequest, "not delivered to iam@issuer.example")
		told := func() bool {
			return strings.Contains(strings.Join(d.relay.taken(), ""), "To: <iam@issuer.example>")
		}
		time.Sleep(time.Minute)
		if !told() {
			t.Error("the right address is not told")
		}
		if open, _, mails := d.r.Summaries(); open[0].Undelivered != 0 || mails["late"] != 0 {
			t.Errorf("%+v %v", open, mails)
		}
		record, err := d.r.book.Get(i.ID)
		if err != nil || !slices.Equal(record.Issuer.Contacts, one.Issuer.Contacts) {
			t.Errorf("%+v, %v", record.Issuer, err)
		}
		alarms, mails := d.alarms()["undelivered"], len(d.relay.taken())
		time.Sleep(5 * time.Hour)
		if n := d.alarms()["undelivered"]; n != alarms || len(d.relay.taken()) != mails {
			t.Errorf("%d alarms, had %d; %d mails, had %d", n, alarms, len(d.relay.taken()), mails)
		}
		if _, err = d.r.Close(t.Context(), d.caller, i.ID, end); err != nil {
			t.Error(err)
		}
	})
}

// What each policy does is the same whatever has leaked.
func TestSteps(t *testing.T) {
	for _, c := range []struct {
		policy leak.Policy
		want   string
	}{
		{leak.KeepServing, "trace_tokens"},
		{leak.Quarantine, "quarantine revoke_tokens trace_tokens"},
		{leak.Rotate, "revoke_tokens rotate trace_tokens"},
	} {
		for _, what := range []leak.Credential{leak.Token, leak.ClientSecret, leak.APIKey, leak.PrivateKey, leak.ManagerLogin, leak.Host, leak.Unknown} {
			for _, severity := range []leak.Severity{leak.Suspected, leak.Confirmed} {
				var got []string
				for _, a := range steps(&leak.Incident{Policy: c.policy, What: []leak.Credential{what}, Severity: severity}, time.Now()) {
					got = append(got, a.What)
				}
				want := c.want
				if what == leak.Token {
					want = strings.Replace(want, " rotate", "", 1)
				}
				if strings.Join(got, " ") != want {
					t.Errorf("%s, %s %s: %v, want %s", c.policy, severity, what, got, want)
				}
			}
		}
	}
}

// An issuer that hangs holds the first mail up for ten seconds at most; what
// comes of it is in the next one.
func TestSlowIssuer(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.mustGet()
		d.down.hang.Store(true)
		begin := time.Now()
		early := make(chan error, 1)
		go func() {
			time.Sleep(time.Second)
			_, err := d.get()
			early <- err
		}()
		i := d.declare(confirmed("quarantine"))
		wantCode(t, <-early, client.Quarantined)
		if took := time.Since(begin); took > 11*time.Second {
			t.Errorf("it took %v", took)
		}
		if o, _ := d.step(i.ID, "revoke_tokens"); o != leak.Pending {
			t.Errorf("revocation %s", o)
		}
		time.Sleep(time.Second)
		if n := len(d.relay.taken()); n != 2 {
			t.Fatalf("%d mails", n)
		}
		d.down.hang.Store(false)
		time.Sleep(5 * time.Minute)
		if o, detail := d.step(i.ID, "revoke_tokens"); o != leak.Done || detail != "1/1" {
			t.Errorf("revocation %s %s", o, detail)
		}
		if n := len(d.relay.taken()); n != 4 {
			t.Errorf("%d mails, want a follow-up", n)
		}
	})
}

// A dry run shows everything and does nothing; mistakes are told before
// anything happens.
func TestJudge(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		g := d.mustGet()
		dry := confirmed("quarantine")
		dry.DryRun = true
		i := d.declare(dry)
		if i.ID != "" || len(i.Mails) != 2 || !strings.Contains(i.Mails[0].Text, "VDAB") || !slices.Equal(i.Quarantined, []string{"vdab"}) {
			t.Errorf("%+v", i)
		}
		d.mustGet()
		var token string
		_ = g.Token.Access.Use(func(b []byte) error { token = string(b); return nil })
		for _, c := range []struct {
			change func(*client.Declaration)
			want   string
		}{
			{func(c *client.Declaration) { c.Policy = "" }, "policy: say what"},
			{func(c *client.Declaration) { c.Policy = "stop" }, "policy:"},
			{func(c *client.Declaration) { c.Severity = "sure" }, "severity:"},
			{func(c *client.Declaration) { c.What = nil }, "what:"},
			{func(c *client.Declaration) { c.What = []string{"all"} }, "what:"},
			{func(c *client.Declaration) { c.Happened = "" }, "happened:"},
			{func(c *client.Declaration) { c.Where = strings.Repeat("x", 2001) }, "where: it is longer"},
			{func(c *client.Declaration) { c.From = time.Now().Add(time.Hour) }, "future"},
			{func(c *client.Declaration) { c.From, c.To = time.Now(), time.Now().Add(-time.Hour) }, "before from"},
			{func(c *client.Declaration) { c.Happened = "look: " + theSecret }, "happened: it holds a secret"},
			{func(c *client.Declaration) { c.As = fmt.Sprintf("%x", theSecret) }, "as: it holds a secret"},
			{func(c *client.Declaration) { c.FoundBy = fmt.Sprintf("%x", token) }, "found_by: it holds a secret"},
			{func(c *client.Declaration) { c.Where = "-----BEGIN RSA PRIVATE KEY-----\nMIIE" }, "where: it holds what looks like a private key"},
			{func(c *client.Declaration) { c.FoundBy = "AGE-SECRET-KEY-1QQQQ" }, "found_by: it holds what looks like a private key"},
			{func(c *client.Declaration) { c.Happened = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl" }, "happened: it holds what looks like a private key or a token"},
			{func(c *client.Declaration) { c.Language = "fr" }, "language:"},
			{func(c *client.Declaration) { c.Draft = "2000-0009" }, "no such incident"},
		} {
			one := confirmed("quarantine")
			c.change(&one)
			if _, err := d.r.Declare(t.Context(), d.caller, one); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		}
		unknown := confirmed("quarantine")
		unknown.Client = "other"
		_, err := d.r.Declare(t.Context(), d.caller, unknown)
		wantCode(t, err, client.NotFound)
		if list, err := d.r.Incidents(t.Context()); err != nil || len(list) != 0 {
			t.Errorf("%+v, %v", list, err)
		}
		d.mustGet()
	})
}

// A suspicion keeps serving unless it is said otherwise; a report that no relay
// takes is an alarm once, and goes out when one does.
func TestUndelivered(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.relay.breakDown(true)
		c := confirmed("")
		c.Severity = "suspected"
		i := d.declare(c)
		if i.Policy != "keep-serving" || i.Quarantined != nil {
			t.Errorf("%+v", i)
		}
		d.mustGet()
		time.Sleep(9 * time.Minute)
		if n := d.alarms()["undelivered"]; n != 0 || d.said.alerts() != 0 {
			t.Errorf("%d alarms, %d alerts too early", n, d.said.alerts())
		}
		time.Sleep(3 * time.Minute)
		if n := d.alarms()["undelivered"]; n != 1 || d.said.alerts() != 1 || !strings.Contains(d.said.b.String(), "client=vdab why=\"no mail relay takes the report to ict_iam@issuer.example, security@corp.example: 127.0.0.1:") {
			t.Errorf("%d alarms, want one, with every recipient\n%s", n, d.said.b.String())
		}
		if open, _, mails := d.r.Summaries(); len(open) != 1 || open[0].Undelivered != 2 || mails["queued"] != 2 {
			t.Errorf("%+v %v", open, mails)
		}
		_, err := d.r.Close(t.Context(), d.caller, i.ID, client.IncidentClose{OldStillValid: "It was a false alarm."})
		wantCode(t, err, client.InvalidRequest, "not delivered to ict_iam@issuer.example, security@corp.example", "--told-by-hand")
		shown, err := d.r.Incident(t.Context(), i.ID)
		if m := shown.Mails[0]; err != nil || m.Attempts < 2 || !m.NextAttempt.After(d.r.now()) || len(m.Why) != 1 || !strings.Contains(m.Why[0], "421 4.3.2") {
			t.Errorf("%+v, %v", shown.Mails, err)
		}
		if !strings.Contains(string(shown.Record), fmt.Sprintf(`"attempts":%d`, shown.Mails[0].Attempts)) {
			t.Errorf("stale: %s", shown.Record)
		}
		told := map[string]string{"ict_iam@issuer.example": "An called Jan, 14:05."}
		_, err = d.r.Close(t.Context(), d.caller, i.ID, client.IncidentClose{OldStillValid: "x", ToldByHand: told})
		wantCode(t, err, client.InvalidRequest, "not delivered to security@corp.example:")
		_, err = d.r.Close(t.Context(), d.caller, i.ID, client.IncidentClose{OldStillValid: "x", ToldByHand: map[string]string{"a@b": "It is " + theSecret}})
		wantCode(t, err, client.InvalidRequest, "holds a secret")
		_, err = d.r.Close(t.Context(), d.caller, i.ID, client.IncidentClose{OldStillValid: "x", ToldByHand: map[string]string{"a@b": " "}})
		wantCode(t, err, client.InvalidRequest, "a few words")
		d.relay.breakDown(false)
		time.Sleep(20 * time.Minute)
		if n := len(d.relay.taken()); n != 2 {
			t.Errorf("%d mails", n)
		}
		time.Sleep(24 * time.Hour)
		if n := len(d.relay.taken()); n != 4 {
			t.Errorf("%d mails: the next update was promised", n)
		}
	})
}

// A report that has not left is seen when its incident is closed, when its
// record cannot be read, and when it could not even be queued.
func TestUndeliveredIsSeen(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		i := d.declare(confirmed("keep-serving"))
		d.secret("second-secret-18b2c")
		d.issuer.SetSecret(theID, "second-secret-18b2c", true)
		if _, err := d.b.Rotate(t.Context(), "vdab", broker.Rotation{}); err != nil {
			t.Fatal(err)
		}
		d.mustGet()
		time.Sleep(time.Minute)
		if open, _, mails := d.r.Summaries(); len(open) != 1 || open[0].Undelivered != 0 || mails["late"] != 0 {
			t.Errorf("%+v %v", open, mails)
		}
		d.relay.breakDown(true)
		if _, err := d.r.Close(t.Context(), d.caller, i.ID, client.IncidentClose{OldStillValid: "VDAB revokes on Monday."}); err != nil {
			t.Fatal(err)
		}
		if open, _, _ := d.r.Summaries(); len(open) != 0 {
			t.Errorf("%+v: its last report had no time yet", open)
		}
		time.Sleep(11 * time.Minute)
		if open, _, mails := d.r.Summaries(); len(open) != 1 || open[0].State != "closed" || open[0].Undelivered != 2 || mails["late"] != 2 {
			t.Errorf("%+v %v", open, mails)
		}
		file := filepath.Join(d.dir, "incidents", i.ID+".json")
		record, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(file, []byte("{"), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		d.r.book.forget()
		time.Sleep(10 * time.Second) // a round
		if open, _, mails := d.r.Summaries(); len(open) != 1 || open[0].ID != i.ID || open[0].State != "damaged" || open[0].Undelivered != 2 || mails["late"] != 2 {
			t.Errorf("%+v %v", open, mails)
		}
		if err := os.WriteFile(file, record, 0o600); err != nil {
			t.Fatal(err)
		}
		d.r.book.forget()
		time.Sleep(10 * time.Second) // a round
		d.relay.breakDown(false)
		time.Sleep(time.Hour)
		if open, _, mails := d.r.Summaries(); len(open) != 0 || mails["late"] != 0 {
			t.Errorf("%+v %v", open, mails)
		}

		// The outbox takes nothing.
		outbox := filepath.Join(d.dir, "outbox")
		if err := os.Rename(outbox, outbox+".away"); err != nil {
			t.Fatal(err)
		}
		d.declare(confirmed("quarantine"))
		time.Sleep(11 * time.Minute)
		if n := d.alarms()["unreported"]; n != 1 {
			t.Errorf("%d alarms", n)
		}
		if open, _, mails := d.r.Summaries(); len(open) != 1 || open[0].Undelivered != 2 || mails["late"] != 2 {
			t.Errorf("%+v %v", open, mails)
		}
		if err := os.Rename(outbox+".away", outbox); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Minute)
		if open, _, mails := d.r.Summaries(); len(open) != 1 || open[0].Undelivered != 0 || mails["late"] != 0 {
			t.Errorf("%+v %v", open, mails)
		}
	})
}

// A leak that is declared and cannot be recorded is one that nobody may miss;
// a declaration that is refused is not.
func TestUnrecordedIsAnAlert(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		c := confirmed("keep-serving")
		c.Draft = d.declare(c).ID // which is no draft
		if _, err := d.r.Declare(t.Context(), d.caller, c); err == nil || d.said.alerts() != 0 {
			t.Errorf("%v, %d alerts", err, d.said.alerts())
		}
		dir := filepath.Join(d.dir, "incidents")
		if err := os.Rename(dir, dir+".away"); err != nil {
			t.Fatal(err)
		}
		if _, err := d.r.Declare(t.Context(), d.caller, confirmed("quarantine")); err == nil || d.said.alerts() != 1 {
			t.Errorf("%v, %d alerts", err, d.said.alerts())
		}
		if err := os.Rename(dir+".away", dir); err != nil {
			t.Fatal(err)
		}
	})
}

// A drill goes the whole way, to the organisation alone, and stops nothing.
func TestDrill(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		i, err := d.r.Drill(t.Context(), d.caller, "vdab")
		if err != nil || !i.Drill || len(i.Quarantined) != 0 {
			t.Fatalf("%+v, %v", i.Done, err)
		}
		d.mustGet()
		time.Sleep(20 * time.Second)
		mails := d.relay.taken()
		if len(mails) != 1 || !strings.Contains(mails[0], "To: <security@corp.example>") || !strings.Contains(mails[0], "DRILL") {
			t.Fatalf("%d mails", len(mails))
		}
		got, err := d.r.Incident(t.Context(), i.ID)
		if err != nil || got.State != "closed" {
			t.Errorf("%+v, %v", got, err)
		}
		for _, what := range []string{"record", "trace_tokens", "deliver"} {
			o, took := d.step(i.ID, what)
			if _, err := time.ParseDuration(took); o != leak.Done || err != nil {
				t.Errorf("%s: %s %q", what, o, took)
			}
		}
		if d.r.LastDrill().IsZero() {
			t.Error("nobody knows of the drill")
		}
	})
}

// The issuer refuses a secret that had worked and was not replaced: a draft,
// once, for the organisation alone, which a person confirms.
func TestSuspicion(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.mustGet()
		time.Sleep(time.Minute)
		d.issuer.SetSecret(theID, "somebody-elses-c11", false)
		time.Sleep(3 * time.Hour)
		_, _ = d.get()
		time.Sleep(5 * time.Minute)
		list, err := d.r.Incidents(t.Context())
		if err != nil || len(list) != 1 || list[0].State != "draft" {
			t.Fatalf("%+v, %v", list, err)
		}
		if mails := d.relay.taken(); len(mails) != 1 || !strings.Contains(mails[0], "To: <security@corp.example>") {
			t.Errorf("%d mails", len(mails))
		}
		time.Sleep(2 * time.Hour)
		d.r.Suspect("vdab", "invalid_client", "again")
		d.r.Suspect("vdab", "invalid_client", "again")
		if list, _ = d.r.Incidents(t.Context()); len(list) != 1 {
			t.Errorf("%d drafts", len(list))
		}
		time.Sleep(time.Minute)
		if n := d.alarms()["draft"]; n != 2 {
			t.Errorf("%d alarms", n)
		}
		if draft, err := d.r.Incident(t.Context(), list[0].ID); err != nil || draft.ByHand[0] != "If it is a leak, or may be one: broker leak declare --confirm "+list[0].ID+" vdab" {
			t.Errorf("%q, %v", draft.ByHand, err)
		}
		c := confirmed("quarantine")
		c.Draft = list[0].ID
		if i := d.declare(c); i.ID != list[0].ID || i.State != "open" {
			t.Errorf("%+v", i)
		}
		time.Sleep(time.Minute)
		if mails := d.relay.taken(); len(mails) != 3 {
			t.Errorf("%d mails, want those of the confirmed incident too", len(mails))
		}
		d.r.Suspect("vdab", "scan", "A log holds the API key.")
		time.Sleep(time.Minute)
		if list, _ = d.r.Incidents(t.Context()); len(list) != 2 || list[0].State != "draft" {
			t.Fatalf("%+v", list)
		}
		if i, err := d.r.Close(t.Context(), d.caller, list[0].ID, client.IncidentClose{OldStillValid: "The log is a test's."}); err != nil || i.State != "closed" {
			t.Errorf("%+v, %v", i, err)
		}
		time.Sleep(time.Minute)
		if mails := d.relay.taken(); len(mails) != 4 {
			t.Errorf("%d mails: the issuer is not told of a suspicion that came to nothing", len(mails))
		}
	})
}

// A refusal of what works all the same is no suspicion.
func TestRefusalThatEnded(t *testing.T) {
	inDesk(t, func(d *desk) {
		d.mustGet()
		time.Sleep(time.Minute)
		d.log.Note(audit.Event{Type: audit.TokenRefused, Client: "vdab", Version: "1", Code: "invalid_client", Detail: map[string]string{audit.AlarmKey: "refused"}})
		time.Sleep(5 * time.Minute)
		if list, err := d.r.Incidents(t.Context()); err != nil || len(list) != 0 {
			t.Errorf("%+v, %v", list, err)
		}
	})
}

// What a scan finds is a suspicion, too: one, however often it is found.
func TestScanIsASuspicion(t *testing.T) {
	inDesk(t, func(d *desk) {
		for range 3 {
			d.log.Note(audit.Event{Type: audit.SecretFound, Client: "vdab", Version: "1", Code: "client_secret",
				Detail: map[string]string{"form": "base64", "state": "live", audit.AlarmKey: "found"}})
			time.Sleep(time.Minute)
		}
		list, err := d.r.Incidents(d.t.Context())
		if err != nil || len(list) != 1 || list[0].State != "draft" || list[0].Clients[0] != "vdab" {
			d.t.Fatalf("%+v, %v", list, err)
		}
		mails := d.relay.taken()
		if len(mails) != 1 || !strings.Contains(mails[0], "To: <security@corp.example>") {
			d.t.Errorf("%d mails", len(mails))
		}
	})
}

// automatic reports what a scan finds, and nothing else: a suspicion, with the
// policy of one, to the issuer too, once; what is retired, or known, is a draft.
func TestAutomatic(t *testing.T) {
	inDesk(t, func(d *desk) {
		one := d.config.Clients["vdab"]
		one.Automatic, one.Suspected = true, leak.Quarantine
		d.config.Clients["vdab"] = one
		if err := d.r.SetConfig(d.config); err != nil {
			t.Fatal(err)
		}
		found := func(state, field string) {
			d.log.Note(audit.Event{Type: audit.SecretFound, Client: "vdab", Version: "1", Code: field,
				Detail: map[string]string{"form": "base64", "state": state, audit.AlarmKey: "found"}})
			time.Sleep(time.Minute)
		}
		incidents := func() []client.Incident {
			list, err := d.r.Incidents(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			return list
		}
		d.mustGet()
		for _, cause := range []string{causeRefused, causeForeign} {
			d.r.Suspect("vdab", cause, "It is a suspicion.")
		}
		found("retired", "client_secret")
		for _, i := range incidents() {
			if i.State != "draft" {
				t.Errorf("%+v", i)
			}
			if _, err := d.r.Close(t.Context(), d.caller, i.ID, client.IncidentClose{OldStillValid: "A test."}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Hour)
		for _, m := range d.relay.taken() {
			if strings.Contains(m, "issuer.example>") {
				t.Error("the issuer is told of a suspicion that nobody confirmed")
			}
		}
		if _, err := d.get(); err != nil {
			t.Error(err)
		}
		before := len(d.relay.taken())
		d.r.found(&audit.Entry{Event: audit.Event{Type: audit.SecretFound, Client: "vdab", Version: "1", Code: "client_secret", Detail: map[string]string{"form": "base64", "state": "live"}}})
		if _, err := d.get(); err == nil {
			t.Error("it is contained later than recorded")
		}
		time.Sleep(time.Minute)
		list := incidents()
		if len(list) != 4 || list[0].State != "open" || list[0].Severity != "suspected" || list[0].Policy != "quarantine" || !slices.Contains(d.record(list[0].ID).What, "client_secret") {
			t.Fatalf("%+v", list[0])
		}
		_, err := d.get()
		wantCode(t, err, client.Quarantined, list[0].ID)
		if mails := strings.Join(d.relay.taken()[before:], ""); !strings.Contains(mails, "To: <ict_iam@issuer.example>") || !strings.Contains(mails, "To: <security@corp.example>") {
			t.Error("the report is not sent")
		}
		if n := d.alarms()["reported"]; n != 1 {
			t.Errorf("%d alarms", n)
		}
		before = len(d.relay.taken())
		for range 3 {
			time.Sleep(time.Hour)
			found("live", "client_secret")
		}
		if list := incidents(); len(list) != 4 || len(d.relay.taken()) != before {
			t.Errorf("%d incidents, %d mails: one report is enough", len(list), len(d.relay.taken())-before)
		}
		if n := d.alarms()["draft"]; n != 6 {
			t.Errorf("%d alarms, want one an hour while it goes on", n)
		}
	})
}

// A draft does not hold up what is to be sent.
func TestAutomaticBesideDraft(t *testing.T) {
	inDesk(t, func(d *desk) {
		one := d.config.Clients["vdab"]
		one.Automatic = true
		d.config.Clients["vdab"] = one
		if err := d.r.SetConfig(d.config); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // the log is followed by then
		for _, state := range []string{"retired", "live", "live"} {
			d.log.Note(audit.Event{Type: audit.SecretFound, Client: "vdab", Version: "1", Code: "api_key",
				Detail: map[string]string{"form": "clear", "state": state, audit.AlarmKey: "found"}})
			time.Sleep(time.Minute)
		}
		if list, err := d.r.Incidents(t.Context()); err != nil || len(list) != 2 || list[0].State != "open" || list[1].State != "draft" {
			t.Errorf("%+v, %v", list, err)
		}
	})
}

// What a person has declared, a scan does not declare again.
func TestAutomaticIsNotTwice(t *testing.T) {
	inDesk(t, func(d *desk) {
		one := d.config.Clients["vdab"]
		one.Automatic = true
		d.config.Clients["vdab"] = one
		if err := d.r.SetConfig(d.config); err != nil {
			t.Fatal(err)
		}
		d.declare(confirmed("keep-serving"))
		d.log.Note(audit.Event{Type: audit.SecretFound, Client: "vdab", Version: "1", Code: "api_key",
			Detail: map[string]string{"form": "clear", "state": "live", audit.AlarmKey: "found"}})
		time.Sleep(time.Minute)
		if list, err := d.r.Incidents(t.Context()); err != nil || len(list) != 2 || list[0].State != "draft" {
			t.Errorf("%+v, %v", list, err)
		}
	})
}

// Anyone local can knock: an alarm, and never an incident.
func TestDenialIsNoIncident(t *testing.T) {
	inDesk(t, func(d *desk) {
		for range 500 {
			_, err := d.b.Token(t.Context(), d.caller, broker.Request{Client: "vdab", Surface: access.APIKey})
			wantCode(t, err, client.NotAllowed)
			d.b.DeniedRole(d.caller, "POST /v1/incidents", "vdab")
			time.Sleep(time.Second)
		}
		time.Sleep(5 * time.Minute)
		if list, err := d.r.Incidents(t.Context()); err != nil || len(list) != 0 || len(d.relay.taken()) != 0 {
			t.Errorf("%+v, %v, %d mails", list, err, len(d.relay.taken()))
		}
	})
}

// Another host's part of an incident is contained here and mailed from there.
func TestTwoHosts(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		i := d.declare(confirmed("keep-serving"))
		time.Sleep(time.Second)
		part := confirmed("quarantine")
		part.Joins, part.NoMail = "2000-0001@db1", true
		j := d.declare(part)
		time.Sleep(time.Minute)
		if n := len(d.relay.taken()); n != 2 {
			t.Errorf("%d mails", n)
		}
		_, err := d.get()
		wantCode(t, err, client.Quarantined, j.ID)
		evidence, err := d.r.Evidence(t.Context(), j.ID)
		if err != nil {
			t.Fatal(err)
		}
		_, err = d.r.AddEvidence(t.Context(), d.caller, i.ID, evidence)
		wantCode(t, err, client.InvalidRequest, "2000-0001@db1")
		other := []byte(strings.NewReplacer("2000-0001@db1", i.Global, `"web1"`, `"db1"`).Replace(string(evidence)))
		if _, err = d.r.AddEvidence(t.Context(), d.caller, i.ID, other); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		mails := d.relay.taken()
		if len(mails) != 4 || !strings.Contains(mails[3], "web1, db1") {
			t.Errorf("%d mails", len(mails))
		}
	})
}

// An incident that was closed although the old secret works is not forgotten.
func TestStillValid(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		i := d.declare(confirmed("keep-serving"))
		d.secret("second-secret-18b2c")
		d.issuer.SetSecret(theID, "second-secret-18b2c", true)
		if _, err := d.b.Rotate(t.Context(), "vdab", broker.Rotation{}); err != nil {
			t.Fatal(err)
		}
		d.mustGet()
		time.Sleep(time.Minute)
		if o, _ := d.step(i.ID, "install_version"); o != leak.Done {
			t.Errorf("the new version is not noticed: %s", o)
		}
		if _, err := d.r.Close(t.Context(), d.caller, i.ID, client.IncidentClose{OldStillValid: "VDAB revokes on Monday."}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(15 * 24 * time.Hour)
		if n := d.alarms()["old_still_valid"]; n != 2 {
			t.Errorf("%d reminders in 15 days", n)
		}
	})
}

// A record that cannot be read is an alarm, and lets nobody go.
func TestDamaged(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		i := d.declare(confirmed("quarantine"))
		time.Sleep(time.Second) // nobody is writing it
		if err := os.WriteFile(filepath.Join(d.dir, "incidents", i.ID+".json"), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		d.r.book.forget()
		d.r.mu.Lock()
		err := d.r.contain()
		d.r.mu.Unlock()
		if err == nil {
			t.Error("the damage is not noticed")
		}
		_, err = d.get()
		wantCode(t, err, client.Quarantined)
		d.stop()
		d.start()
		time.Sleep(time.Minute)
		if n := d.alarms()["damaged"]; n != 1 {
			t.Errorf("%d alarms", n)
		}
	})
}

// Every act is in the audit log, and that is whole.
func TestRecorded(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.declare(confirmed("quarantine"))
		d.stop()
		n := 0
		for e, err := range audit.Read(filepath.Join(d.dir, "audit"), 0) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Type == audit.IncidentRecorded && e.Code == "declared" && e.Actor.PID == d.caller.PID && e.Detail["incident"] == "2000-0001@web1" {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d entries", n)
		}
		d.start()
	})
}

// An incident can be closed when no relay ever comes back: how the recipients
// were told is in its record.
func TestToldByHand(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.relay.breakDown(true)
		i := d.declare(confirmed("keep-serving"))
		d.secret("second-secret-18b2c")
		d.issuer.SetSecret(theID, "second-secret-18b2c", false)
		if _, err := d.b.Rotate(t.Context(), "vdab", broker.Rotation{}); err != nil {
			t.Fatal(err)
		}
		d.mustGet()
		time.Sleep(20 * time.Minute)
		told := map[string]string{"ict_iam@issuer.example": "An called Jan, 14:05.", "security@corp.example": "An walked there."}
		closed, err := d.r.Close(t.Context(), d.caller, i.ID, client.IncidentClose{ToldByHand: told})
		if err != nil || closed.State != "closed" || d.record(i.ID).Closing.ToldByHand["ict_iam@issuer.example"] != told["ict_iam@issuer.example"] {
			t.Fatalf("%+v, %v", closed, err)
		}
	})
}

// A suspicion that a person declared becomes certain: the same incident, whose
// mails follow those of before, and which may be quarantined now.
func TestConfirm(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.mustGet()
		c := confirmed("keep-serving")
		c.Severity = "suspected"
		first := d.declare(c)
		if !slices.Contains(first.ByHand, "When it is certain: broker leak declare --confirm 2000-0001 --confirmed vdab") {
			t.Errorf("%q", first.ByHand)
		}
		time.Sleep(time.Minute)
		version := d.record(first.ID).Versions["vdab"]
		d.secret("second-secret-18b2c")
		d.issuer.SetSecret(theID, "second-secret-18b2c", true)
		if _, err := d.b.Rotate(t.Context(), "vdab", broker.Rotation{}); err != nil {
			t.Fatal(err)
		}
		d.mustGet()
		time.Sleep(time.Minute)
		sent := len(d.relay.taken())

		next := confirmed("quarantine")
		for words, change := range map[string]func(c *client.Declaration){
			"2000-0002":                func(c *client.Declaration) { c.Draft = "2000-0002" },
			"suspicion already":        func(c *client.Declaration) { c.Severity = "suspected" },
			"an incident of this host": func(c *client.Declaration) { c.Joins = "2026-0007@db1" },
		} {
			for _, dry := range []bool{true, false} {
				bad := next
				bad.Draft, bad.DryRun = first.ID, dry
				change(&bad)
				if _, err := d.r.Declare(t.Context(), d.caller, bad); err == nil || !strings.Contains(err.Error(), words) {
					t.Errorf("%s: %v", words, err)
				}
			}
		}
		next.Draft, next.DryRun = first.ID, true
		plan := d.declare(next)
		if len(plan.Mails) != 2 || plan.Mails[0].Revision != len(d.record(first.ID).Revisions)+1 || plan.ID != "" {
			t.Errorf("%+v", plan.Mails)
		}
		next.DryRun = false
		i := d.declare(next)
		if i.ID != first.ID || i.Severity != "confirmed" || len(i.Quarantined) != 1 {
			t.Errorf("%+v", i)
		}
		_, err := d.get()
		wantCode(t, err, client.Quarantined)
		time.Sleep(time.Minute)
		mails := d.relay.taken()[sent:]
		if len(mails) != 2 || !strings.Contains(mails[0], "In-Reply-To: <2000-0001.1.") {
			t.Errorf("%d mails\n%.600s", len(mails), strings.Join(mails, ""))
		}
		record := d.record(first.ID)
		if record.Versions["vdab"] != version || record.KnownAt.After(first.Declared) || record.Exposure.Count == 0 {
			t.Errorf("%+v", record)
		}
		if o, _ := d.step(first.ID, "install_version"); o != leak.Done {
			t.Error("what was done before is lost")
		}
		if err := confirmable(&leak.Incident{State: leak.Draft, Severity: leak.Suspected, Clients: []string{"vdab"}}, &leak.Incident{Clients: []string{"mkp"}}); err == nil {
			t.Error("another client's suspicion was confirmed")
		}
		next.Policy, next.Draft = "keep-serving", first.ID
		_, err = d.r.Declare(t.Context(), d.caller, next)
		wantCode(t, err, client.InvalidRequest, "no suspicion")
		if list, _ := d.r.Incidents(t.Context()); len(list) != 1 {
			t.Errorf("%d incidents", len(list))
		}
	})
}

// A suspicion that stopped its client cannot be confirmed into serving; one
// that was released stops it again.
func TestConfirmQuarantined(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		d.mustGet()
		c := confirmed("quarantine")
		c.Severity = "suspected"
		i := d.declare(c)
		next := confirmed("keep-serving")
		next.Draft = i.ID
		_, err := d.r.Declare(t.Context(), d.caller, next)
		wantCode(t, err, client.InvalidRequest, "broker leak release 2000-0001")
		d.secret("second-secret-18b2c")
		d.issuer.SetSecret(theID, "second-secret-18b2c", true)
		if _, err := d.b.Rotate(t.Context(), "vdab", broker.Rotation{}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if _, err := d.r.Release(t.Context(), d.caller, i.ID, client.IncidentRelease{}); err != nil {
			t.Fatal(err)
		}
		d.mustGet()
		next.Policy = "quarantine"
		d.declare(next)
		_, err = d.get()
		wantCode(t, err, client.Quarantined, i.ID)
	})
}

// What contains an incident on other hosts is one line, which leaves nothing to
// be asked.
func TestElsewhere(t *testing.T) {
	inDesk(t, func(d *desk) {
		c := confirmed("quarantine")
		c.What = []string{"client_secret", "host"}
		c.From, c.To = d.r.now().Add(-time.Hour).In(time.FixedZone("", 3600)), d.r.now()
		want := "broker leak declare --incident 2000-0001@web1 --no-mail --confirmed --what client_secret --what host --policy quarantine" +
			" --from 1999-12-31T23:00:00Z --to 2000-01-01T00:00:00Z --yes vdab"
		if i := d.declare(c); !slices.ContainsFunc(i.ByHand, func(s string) bool { return strings.HasSuffix(s, ": "+want) }) {
			d.t.Errorf("%q", i.ByHand)
		}
	})
}

// What was to be signed and could not be, leaves all the same, and that is
// written down; the preview says how each mail leaves.
func TestSigned(t *testing.T) {
	inDesk(t, func(d *desk) {
		t := d.t
		own, err := keys.Generate("p-256")
		if err != nil {
			t.Fatal(err)
		}
		private, err := own.PEM()
		if err != nil {
			t.Fatal(err)
		}
		text, err := own.Certificate("mail", time.Now(), time.Now().Add(48*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(text)
		template, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		template.ExtKeyUsage = nil // the one of Certificate is for TLS
		der, err := x509.CreateCertificate(rand.Reader, template, template, own.Signer().Public(), own.Signer())
		if err != nil {
			t.Fatal(err)
		}
		if d.config.Protection.Signer, err = leak.ReadSigner(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})); err != nil {
			t.Fatal(err)
		}
		if err := d.r.SetSigningKey(private); err == nil {
			t.Error("a key for no certificate")
		}
		if err := d.r.SetConfig(d.config); err != nil {
			t.Fatal(err)
		}
		c := confirmed("")
		c.Severity, c.DryRun = "suspected", true
		if plan := d.declare(c); len(plan.Mails) != 2 || !plan.Mails[0].Signed || plan.Mails[0].EncryptedTo != "" {
			t.Errorf("%+v", plan.Mails)
		}
		c.DryRun = false
		unsigned := d.declare(c)
		time.Sleep(30 * time.Second)
		if err := d.r.SetSigningKey(private); err != nil || !d.r.Signs() {
			t.Fatal(err)
		}
		signed := d.declare(c)
		time.Sleep(30 * time.Second)
		for id, want := range map[string]bool{unsigned.ID: false, signed.ID: true} {
			i, err := d.r.Incident(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range i.Mails {
				if m.State != "sent" || m.Signed != want || (len(m.Remarks) == 0) != want {
					t.Errorf("%s: %+v", id, m)
				}
			}
		}
		notes := 0
		for e, err := range audit.Read(filepath.Join(d.dir, "audit"), 0) {
			if err != nil {
				t.Fatal(err)
			}
			if e.Code == "unsigned" && strings.HasPrefix(e.Detail["incident"], unsigned.ID) && e.Detail["recipient"] != "" {
				notes++
			}
		}
		if notes != 2 {
			t.Errorf("%d notes, want one a mail", notes)
		}
	})
}
