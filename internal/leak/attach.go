package leak

import (
	"encoding/json"
	"slices"
	"strconv"
)

// mostAttached keeps a message within what a relay, and the outbox, takes.
const mostAttached = 1 << 20 // bytes

// attach is the report's JSON. Where it is too long, r names fewer tokens,
// holders and steps, in all, and says how many there are beside them.
func attach(r *Report) ([]byte, error) {
	for most := mostTokens; ; most /= 2 {
		data, err := json.MarshalIndent(r, "", "  ")
		if err != nil || len(data) <= mostAttached || most == 0 {
			return data, err
		}
		r.cut(most)
	}
}

func (r *Report) cut(most int) {
	r.Tokens.Tokens = r.Tokens.Tokens[:min(most, len(r.Tokens.Tokens))]
	r.More += max(0, len(r.Actions)-most)
	r.Actions = r.Actions[max(0, len(r.Actions)-most):]
	r.New = r.New[max(0, len(r.New)-most):]
	if r.Own == nil {
		return
	}
	tokens, holders, actions := most, most, most
	for n := range r.Own.Evidence {
		e := &r.Own.Evidence[n]
		e.Exposure.Tokens = e.Exposure.Tokens[:min(tokens, len(e.Exposure.Tokens))]
		r.Own.MoreHolders += max(0, len(e.Holders)-holders)
		e.Holders = e.Holders[:min(holders, len(e.Holders))]
		e.Actions = e.Actions[:min(actions, len(e.Actions))]
		tokens, holders, actions = tokens-len(e.Exposure.Tokens), holders-len(e.Holders), actions-len(e.Actions)
	}
}

// elsewhere is how the detail of another host's step is shown: what stood in a
// file is quoted to the organisation, and not shown to an issuer.
func (e *Evidence) elsewhere(detail string, own bool) string {
	if !own || detail == "" {
		return e.Host
	}
	return e.Host + ": " + strconv.Quote(detail)
}

// replaced says whether a new version serves on this host already. What other
// hosts say changes nothing of what is asked of the issuer.
func replaced(i *Incident) bool {
	return i.Closing != nil && i.Closing.NewVersion != "" || done(i.Actions, "install_version")
}

func done(actions []Action, what string) bool {
	return slices.ContainsFunc(actions, func(a Action) bool { return a.What == what && a.Outcome == Done })
}

// quarantined says whether the client was stopped, and not released since.
func quarantined(actions []Action) bool {
	stopped := false
	for _, a := range actions {
		if a.Outcome == Done && (a.What == "quarantine" || a.What == "release") {
			stopped = a.What == "quarantine"
		}
	}
	return stopped
}
