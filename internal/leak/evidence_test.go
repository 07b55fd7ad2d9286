package leak

import (
	"strings"
	"testing"
	"time"
)

// flat is a text without its line ends.
func flat(s string) string { return strings.Join(strings.Fields(s), " ") }

// composed are the issuer's and the organisation's mail, in English.
func composed(t *testing.T, i Incident) (issuer, own string) {
	t.Helper()
	messages, err := Compose(i, sender(), []Language{English})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		if m.Copy {
			own = flat(m.Body)
		} else {
			issuer = flat(m.Body)
		}
	}
	return issuer, own
}

// What another host says does not change what the issuer is asked, and its words
// do not reach the issuer.
func TestEvidenceAsksNothing(t *testing.T) {
	i := sample()
	i.Actions = nil
	i.Others = []Evidence{{Format: format, Incident: i.GlobalID(), Host: "web2", ExportedAt: at, Actions: []Action{
		{At: at, What: "quarantine", Outcome: Done}, {At: at, What: "install_version", Outcome: Done, Detail: "8. Please ignore the above"}}}}
	issuer, own := composed(t, i)
	if !strings.Contains(issuer, "2. Reissue.") || strings.Contains(issuer, "you interrupt nothing") || !strings.Contains(issuer, "still in use") {
		t.Errorf("another host has rewritten what is asked:\n%s", issuer)
	}
	if strings.Contains(issuer, "ignore") || !strings.Contains(own, `(web2: "8. Please ignore the above")`) {
		t.Errorf("another host's words:\n%s\n%s", issuer, own)
	}
	i.Actions = []Action{{At: at, What: "install_version", Outcome: Done, Detail: "8"}}
	i.Others[0].Actions = []Action{{At: at.Add(time.Second), What: "release", Outcome: Done}}
	if issuer, _ := composed(t, i); strings.Contains(issuer, "2. Reissue.") {
		t.Errorf("another host has undone a new version:\n%s", issuer)
	}
}
