package leak

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
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
	i.Stopped(false)
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

// What this version does it takes from another host, too, and says in words.
func TestStepsAreKnown(t *testing.T) {
	text, err := os.ReadFile("leak.go")
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(text), "// What is one of the codes ")
	list, _, ok := strings.Cut(list, "; another")
	documented := strings.Split(strings.NewReplacer("//", "", "\n", "", "\t", "", " ", "").Replace(list), ",")
	if !ok || !slices.Equal(slices.Sorted(slices.Values(documented)), slices.Sorted(slices.Values(steps()))) {
		t.Errorf("documented: %q, taken: %q", documented, steps())
	}
	for _, code := range steps() {
		if Dutch.Word(code) == code {
			t.Errorf("%s has no words", code)
		}
		if err := validActions([]Action{{What: code, Outcome: Done}}); err != nil {
			t.Error(err)
		}
	}
}

// Nothing is said of hosts that nobody knows of.
func TestWhatIsInterrupted(t *testing.T) {
	const nothing, others, use = "you interrupt nothing", "may be in use on other hosts of ours", "is still in use on "
	stop := []Action{{At: at, What: "quarantine", Outcome: Done}}
	for name, c := range map[string]struct {
		stopped  bool
		own      []Action
		hosts    int
		evidence []Action // nil: there is none
		want     string
		waits    bool
	}{
		"one host, as configured":             {true, stop, 1, nil, nothing, true},
		"hosts unknown":                       {true, stop, 0, nil, others, false},
		"one of two":                          {true, stop, 2, nil, others, false},
		"both":                                {true, stop, 2, stop, nothing, true},
		"two of unknown":                      {true, stop, 0, stop, others, false},
		"the other one serves":                {true, stop, 2, []Action{}, use + "web2:", false},
		"this one serves":                     {false, nil, 1, nil, use + "web1:", false},
		"both serve":                          {false, nil, 2, []Action{}, use + "web1, web2:", false},
		"another incident has stopped it":     {true, nil, 1, nil, nothing, true},
		"released, another incident holds it": {true, append(stop, Action{At: at, What: "release", Outcome: Done}), 1, nil, nothing, true},
		"replaced":                            {false, []Action{{At: at, What: "install_version", Outcome: Done}}, 1, nil, nothing, false},
		"replaced, hosts unknown":             {false, []Action{{At: at, What: "install_version", Outcome: Done}}, 0, nil, others, false},
	} {
		i := sample()
		i.Actions, i.KnownHosts = c.own, c.hosts
		if c.evidence != nil {
			i.Others = []Evidence{{Format: format, Incident: i.GlobalID(), Host: "web2", ExportedAt: at, Actions: c.evidence}}
		}
		i.Stopped(c.stopped)
		issuer, _ := composed(t, i)
		for _, text := range []string{nothing, others, use} {
			if strings.Contains(issuer, text) != strings.HasPrefix(c.want, text) || !strings.Contains(issuer, c.want) {
				t.Errorf("%s: want %q:\n%s", name, c.want, issuer)
			}
		}
		if strings.Contains(issuer, "we do not use your API") != c.waits {
			t.Errorf("%s: %s", name, issuer)
		}
		if strings.Contains(issuer, "no other host") != (c.hosts > 0 && len(i.Hosts()) >= c.hosts) {
			t.Errorf("%s: other hosts: %s", name, issuer)
		}
	}
}

// Whom to call is who declared it, too, as given, in both languages; new
// credentials are for the contact of the configuration alone.
func TestWhoDeclaredCanBeCalled(t *testing.T) {
	i := sample()
	i.Stopped(false)
	for claimed, shown := range map[string]bool{"Jan Peeters, +32 470 00 00 00": true, "Jan Peeters": false, "": false} {
		i.DeclaredBy.Claimed = claimed
		messages, err := Compose(i, sender(), []Language{Dutch, English})
		if err != nil {
			t.Fatal(err)
		}
		text, attached := flat(messages[0].Body), string(parse(t, messages[0].Data).report)
		for _, want := range []string{"(Jan Peeters, +32 470 00 00 00, of Wachtdienst, +32 2 000 00 00)", "(Jan Peeters, +32 470 00 00 00, or Wachtdienst, +32 2 000 00 00)",
			"wie dit meldde: Jan Peeters, +32 470 00 00 00 ", "can be called too: Jan Peeters, +32 470 00 00 00 "} {
			if strings.Contains(text, want) != shown {
				t.Errorf("%q: %q:\n%s", claimed, want, text)
			}
		}
		if strings.Contains(attached, `"declared_by": "Jan`) != shown || strings.Contains(text, "Jan") != shown {
			t.Errorf("%q: %s", claimed, attached)
		}
		if !strings.Contains(text, "nobody but our contact, Wachtdienst, +32 2 000 00 00. Never") {
			t.Errorf("credentials go to somebody else:\n%s", text)
		}
	}
}

// What was not looked for is not said to be nothing.
func TestNotDetermined(t *testing.T) {
	i := sample()
	i.Exposure, i.Holders, i.ClientID = Exposure{}, nil, ""
	for _, looked := range []bool{true, false} {
		i.Actions = []Action{{At: at, What: "trace_tokens", Outcome: map[bool]Outcome{true: Done, false: Pending}[looked]}}
		issuer, own := composed(t, i)
		if strings.Contains(issuer, "No tokens were issued") != looked || strings.Contains(own, "nobody, as far") != looked ||
			strings.Contains(issuer, "issued on web1 has not been determined yet.") == looked || strings.Contains(own, "on web1: not determined yet") == looked {
			t.Errorf("looked for: %t:\n%s\n%s", looked, issuer, own)
		}
	}
	if issuer, _ := composed(t, i); !strings.Contains(issuer, "Client id not known") {
		t.Errorf("%s", issuer)
	}
	i.Others = []Evidence{{Format: format, Incident: i.GlobalID(), Host: "web2", ExportedAt: at, Exposure: Exposure{Count: 1, LastExpiry: at, Tokens: []IssuedToken{{JTI: "x"}}}}}
	if issuer, _ := composed(t, i); !strings.Contains(issuer, "1 token was issued.") || !strings.Contains(issuer, "issued on web1 has not been determined yet.") {
		t.Errorf("%s", issuer)
	}
}

// What a person sends speaks of no attachment, and says what is missing.
func TestByHand(t *testing.T) {
	i := sample()
	i.ID, i.ClientID = "2026-0000", ""
	messages, err := ComposeByHand(i, sender(), []Language{Dutch, English})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "by-hand", messages[0].Subject+"\n\n"+messages[0].Body)
	for _, m := range messages {
		for _, wrong := range []string{"2026-0000", "bijlage", "attachment", "automati"} {
			if strings.Contains(m.Body+m.Subject, wrong) && !m.Copy {
				t.Errorf("%q in\n%s\n%s", wrong, m.Subject, m.Body)
			}
		}
		if !strings.Contains(m.Body, "FILL IN") || !strings.Contains(m.Body, "IN TE VULLEN") {
			t.Errorf("%s", m.Body)
		}
	}
}

// Hosts at the bounds of a record make a message that the outbox takes, and that
// says what it leaves out.
func TestMessagesAreBounded(t *testing.T) {
	for name, text := range map[string]string{"plain": strings.Repeat("x", lineText), "escaped": strings.Repeat("<", lineText)} { // < is six bytes of JSON
		for _, more := range []int{3, mostItems} {
			if (more > 3) != (name == "plain") {
				continue // one of long lists, one of many hosts
			}
			i := sample()
			i.Issuer.Contacts = i.Issuer.Contacts[:1]
			e := Evidence{Format: format, Incident: i.GlobalID(), ExportedAt: at, Exposure: Exposure{LastExpiry: at}}
			for range mostTokens {
				e.Exposure.Add(IssuedToken{JTI: text, Fingerprint: text, Expires: at})
			}
			for range mostItems {
				e.Holders = append(e.Holders, Holder{Unit: text, Held: text})
				e.Actions = append(e.Actions, Action{At: at, What: "quarantine", Outcome: Done, Detail: text})
			}
			i.Exposure, i.Holders = e.Exposure, e.Holders
			i.Happened, i.Where = strings.Repeat(text, 14)[:longText], text
			for range mostItems - 10 {
				i.Actions = append(i.Actions, Action{At: at, What: "remind", Outcome: Done, Detail: text})
			}
			if more > 3 { // hosts without number have nothing else
				e.Exposure, e.Holders, e.Actions = Exposure{}, nil, nil
			}
			for n := range more {
				e.Host = fmt.Sprintf("%s-%d", strings.Repeat("h", 200), n)
				i.Others = append(i.Others, e)
			}
			i.Revise(at, strings.Repeat(text, 14)[:longText], false)
			messages, err := Compose(i, sender(), []Language{Dutch, English})
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range messages {
				kept, err := json.Marshal(item{Message: m})
				if err != nil || len(kept) > mostBytes-64<<10 {
					t.Errorf("%s, %d hosts, to %s: %d bytes, %v", name, more, m.Recipient, len(kept), err)
				}
				text := flat(m.Body)
				if !strings.Contains(text, "earlier steps: in our record") || m.Copy && !strings.Contains(text, "more: in the record") {
					t.Errorf("%s: what is left out is not said", name)
				}
				if n := strings.Count(text, "reminder: the old"); n > 2*mostShown {
					t.Errorf("%s: %d steps in the text", name, n)
				}
				var r Report
				if err := json.Unmarshal(parse(t, m.Data).report, &r); err != nil || r.Tokens.Count < mostTokens || more == 3 && r.More == 0 {
					t.Errorf("%s: %v, %d tokens, %d more steps", name, err, r.Tokens.Count, r.More)
				}
				if r.Own != nil {
					total := r.Own.MoreHolders
					for _, e := range r.Own.Evidence {
						total += len(e.Holders)
					}
					if want := mostItems * (1 + len(i.Others)); more == 3 && total != want {
						t.Errorf("%s: %d holders, want %d", name, total, want)
					}
				}
			}
		}
	}
}
