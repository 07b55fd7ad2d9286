package leak

import (
	"fmt"
	"slices"
	"strings"
)

// Bounds of a record, so that a damaged or hostile one takes no memory.
const (
	format     = 1
	longText   = 4000 // characters
	lineText   = 300
	mostTokens = 500
	mostItems  = 2000    // of any other list
	mostBytes  = 4 << 20 // of a record or evidence
)

// tidy cleans and bounds whatever came from outside.
func (i *Incident) tidy() {
	i.Happened = clean(i.Happened, longText)
	for _, s := range []*string{&i.Where, &i.FoundBy, &i.DeclaredBy.Claimed, &i.ClientID, &i.KeyID, &i.Environment,
		&i.Issuer.Name, &i.Organisation.Name, &i.Organisation.KBO} {
		*s = line(*s)
	}
	if i.Closing != nil {
		i.Closing.StillValid, i.Closing.NewVersion = clean(i.Closing.StillValid, longText), line(i.Closing.NewVersion)
		for to, how := range i.Closing.ToldByHand {
			i.Closing.ToldByHand[to] = clean(how, longText)
		}
	}
	tidyLists(i.Actions, &i.Exposure, &i.Holders)
	for n := range i.Others {
		tidyLists(i.Others[n].Actions, &i.Others[n].Exposure, &i.Others[n].Holders)
	}
}

func tidyLists(actions []Action, e *Exposure, holders *[]Holder) {
	for n := range actions {
		actions[n].What, actions[n].Detail = line(actions[n].What), line(actions[n].Detail)
	}
	if len(e.Tokens) > mostTokens {
		e.Tokens = slices.Clip(e.Tokens[:mostTokens])
	}
	e.Count = max(e.Count, len(e.Tokens))
	for n := range e.Tokens {
		e.Tokens[n].JTI, e.Tokens[n].Fingerprint = line(e.Tokens[n].JTI), line(e.Tokens[n].Fingerprint)
	}
	if len(*holders) > mostItems {
		*holders = slices.Clip((*holders)[:mostItems])
	}
	for n := range *holders {
		(*holders)[n].Unit, (*holders)[n].Held = line((*holders)[n].Unit), line((*holders)[n].Held)
	}
}

// Validate says what is missing or wrong in i, or nil.
func (i *Incident) Validate() error {
	switch {
	case i.Format != format:
		return fmt.Errorf("it has format %d, and this version reads %d: start the version that wrote it", i.Format, format)
	case !validID(i.ID):
		return fmt.Errorf("%q is no incident: write year and number, as 2026-0007", i.ID)
	case i.Joins != "" && !validGlobal(i.Joins):
		return fmt.Errorf("%q is no incident of another host: write it as 2026-0007@web1", i.Joins)
	case !validHost(i.Host):
		return fmt.Errorf("%q is no name of a host", i.Host)
	case !slices.Contains([]State{Draft, Open, Closed}, i.State):
		return fmt.Errorf("state %q is unknown", i.State)
	case i.Severity != Suspected && i.Severity != Confirmed:
		return fmt.Errorf("severity %q is unknown: write suspected or confirmed", i.Severity)
	case len(i.Clients) == 0 || len(i.Clients) > mostItems:
		return fmt.Errorf("it names no client, or more than %d", mostItems)
	case !slices.Contains([]PersonalData{PersonalYes, PersonalNo, PersonalUnknown}, i.PersonalData):
		return fmt.Errorf("personal_data %q is unknown: write yes, no or unknown", i.PersonalData)
	case !slices.Contains([]Policy{KeepServing, Quarantine, Rotate}, i.Policy):
		return fmt.Errorf("policy %q is unknown: write keep-serving, quarantine or rotate", i.Policy)
	case i.Issuer.Rotation != "self-service" && i.Issuer.Rotation != "by-request":
		return fmt.Errorf("the issuer's rotation %q is unknown: write self-service or by-request", i.Issuer.Rotation)
	case !slices.Contains([]Language{"", Dutch, English}, i.Language):
		return fmt.Errorf("language %q is unknown: write nl or en", i.Language)
	case !i.Window.To.IsZero() && i.Window.To.Before(i.Window.From):
		return fmt.Errorf("the window ends before it begins")
	case len(i.Actions) > mostItems || len(i.Others) > mostItems || len(i.Revisions) > mostItems || len(i.Deliveries) > mostItems || len(i.Places) > mostItems:
		return fmt.Errorf("a list in it is longer than %d", mostItems)
	case (i.State == Closed) != (i.Closing != nil):
		return fmt.Errorf("closing stands in closed incidents, and only there")
	}
	return i.validateLists()
}

func (i *Incident) validateLists() error {
	known := []Credential{Token, ClientSecret, APIKey, PrivateKey, ManagerLogin, Host, Unknown}
	if len(i.What) == 0 || len(i.What) > len(known) {
		return fmt.Errorf("what leaked is missing: write unknown if nobody knows")
	}
	for _, w := range i.What {
		if !slices.Contains(known, w) {
			return fmt.Errorf("what leaked: %q is unknown: write token, client_secret, api_key, private_key, manager_login, host or unknown", w)
		}
	}
	for n, r := range i.Revisions {
		if r.N != n+1 {
			return fmt.Errorf("revision %d stands where %d should", r.N, n+1)
		}
	}
	for _, a := range slices.Concat(i.Issuer.Contacts, i.CopyTo) {
		if err := validAddress(a); err != nil {
			return err
		}
	}
	return nil
}

// steps are the codes of actions.
func steps() []string {
	return []string{"quarantine", "end_streams", "remove_files", "stop_children", "revoke_tokens", "trace_tokens", "rotate", "install_version", "release",
		"confirm_new", "remind", "record", "deliver", "merge_evidence"}
}

// validActions takes the steps of another host, of which there are these alone.
func validActions(actions []Action) error {
	for _, a := range actions {
		if !slices.Contains(steps(), a.What) || !slices.Contains([]Outcome{Done, Failed, Pending, NotPossible}, a.Outcome) {
			return fmt.Errorf("it has a step %q, %q, which this version does not know: export it with the same version", line(a.What), line(string(a.Outcome)))
		}
	}
	return nil
}

func validID(id string) bool {
	year, number, ok := strings.Cut(id, "-")
	return ok && len(year) == 4 && len(number) >= 4 && len(number) <= 9 && digits(year) && digits(number)
}

func validGlobal(id string) bool {
	id, host, ok := strings.Cut(id, "@")
	return ok && validID(id) && validHost(host)
}

func validHost(h string) bool {
	return h != "" && len(h) <= 253 && strings.Trim(strings.ToLower(h), "abcdefghijklmnopqrstuvwxyz0123456789.-_") == "" && h[0] != '.' && h[0] != '-'
}

func digits(s string) bool { return strings.Trim(s, "0123456789") == "" }
