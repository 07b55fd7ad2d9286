package response

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/leak"
)

// Rules of this file: what the daemon suspects is a draft, which a person has to
// confirm: a false report gets a production client killed. The one exception is
// what a scanner found, where the configuration says so.

const (
	causeScan    = "scan"           // a scanner found a secret where it does not belong
	causeRefused = "invalid_client" // the issuer refuses what had worked and was not replaced
	causeForeign = "foreign_token"  // a token is the client's, and was not issued here
)

// Suspect makes a draft of an incident, which a person has to confirm, and
// tells the organisation's own addresses. cause is a word, detail a sentence
// without secrets. There is one draft for a client and cause until somebody has
// dealt with it, and one alarm an hour. id is the draft's; empty: there is none,
// for it was dealt with within the hour, or cannot be recorded.
func (r *Responder) Suspect(name, cause, detail string) (id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.suspect(detail, r.draft(name, cause, detail))
}

// draft is a suspicion that nobody has confirmed. The caller holds mu.
func (r *Responder) draft(name, cause, detail string) leak.Incident {
	one := r.config.client(name)
	return leak.Incident{State: leak.Draft, Severity: leak.Suspected, What: []leak.Credential{leak.Unknown}, Happened: detail, FoundBy: foundBy(cause),
		PersonalData: leak.PersonalUnknown, Clients: append([]string{name}, one.Shares...), Environment: one.Environment, Issuer: one.Issuer,
		Organisation: r.config.Sender.Organisation, CopyTo: r.config.CopyTo,
		Policy: leak.KeepServing, Actions: []leak.Action{{At: r.now(), What: "trace_tokens", Outcome: leak.Pending}}}
}

func foundBy(cause string) string { return "credential-broker: " + cause }

// found takes what a scan has found for a suspicion, or, where that is
// configured, declares and sends it: of what serves alone, and only if nobody
// knows of a leak of the client yet.
func (r *Responder) found(e *audit.Entry) {
	detail := fmt.Sprintf("A scan of this host's files found the %s of the client where it does not belong (%s, %s). Whoever ran it knows where.",
		strings.ReplaceAll(e.Code, "_", " "), e.Detail["state"], e.Detail["form"])
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.draft(e.Client, causeScan, detail)
	if r.config.Clients[e.Client].Automatic && e.Detail["state"] == "live" && !r.known(e.Client) {
		declared, err := incidentOf(&r.config, client.Declaration{Client: e.Client, Severity: string(leak.Suspected), What: []string{string(kindOf(e.Code))},
			Happened: detail, FoundBy: foundBy(causeScan)}, r.now())
		if err == nil {
			i = declared
		} else {
			r.o.Log.Error("what a scan has found could not be declared: it becomes a draft", "client", e.Client, "error", err)
		}
	}
	r.suspect(detail, i)
}

// known says whether there is an open incident about a client. The caller holds
// mu.
func (r *Responder) known(name string) bool {
	list, err := r.book.List()
	return err != nil || slices.ContainsFunc(list, func(i leak.Incident) bool {
		return i.State == leak.Open && !i.Drill && slices.Contains(i.Clients, name)
	})
}

// kindOf is what leaks with a field.
func kindOf(field string) leak.Credential {
	return cmp.Or(map[string]leak.Credential{"access_token": leak.Token, "refresh_token": leak.Token, "client_secret": leak.ClientSecret,
		"api_key": leak.APIKey, "private_key": leak.PrivateKey}[field], leak.Unknown)
}

// suspect records i, unless it is a draft and there is one of its kind, and
// raises the alarm. The caller holds mu.
func (r *Responder) suspect(detail string, i leak.Incident) (id string) {
	name := i.Clients[0]
	if _, ok := r.config.Clients[name]; !ok {
		return ""
	}
	now, key := r.o.Clock.Now(), name+" "+i.FoundBy+" "+string(i.State)
	last, told := r.suspected[key]
	quiet := told && now.Sub(last) < time.Hour
	list, _ := r.book.List()
	for _, old := range list {
		if i.State != leak.Draft || old.Drill || old.Clients[0] != name || old.FoundBy != i.FoundBy { // a draft does not hold a report up
			continue
		}
		quiet = quiet || now.Wall.Sub(old.DeclaredAt) < time.Hour // a process before this one has told
		if old.State == leak.Closed {
			continue
		}
		if !quiet {
			r.suspected[key] = now
			r.alarm(name, "draft", old.ID, "the suspicion goes on, and waits for somebody: broker leak show "+old.ID+": "+detail)
		}
		return old.ID
	}
	if quiet {
		return ""
	}
	r.suspected[key] = now
	i.DeclaredBy = leak.Declarer{UID: uint32(os.Getuid()), LoginUID: 1<<32 - 1, PID: int32(os.Getpid())} // #nosec G115 -- as the kernel has them
	i, err := r.book.Declare(i, false)
	if err != nil {
		r.alarm(name, "draft", "", fmt.Sprintf("a suspicion could not be recorded (%v): %s", err, detail))
		return ""
	}
	_, _ = r.book.List() // so that the status has it
	if i.State == leak.Draft {
		r.note(&i, "suspected", nil)
		r.alarm(name, "draft", i.ID, "a leak is suspected: broker leak show "+i.ID+": "+detail)
		return i.ID
	}
	r.note(&i, "declared", nil)
	if err := r.contain(); err != nil {
		r.alarm("", "damaged", "", err.Error())
	}
	r.alarm(name, "reported", i.ID, "a suspected leak is being reported to the issuer, as the configuration says (automatic: send): broker leak show "+i.ID+": "+detail)
	return i.ID
}
