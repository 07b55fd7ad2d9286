package response

import (
	"fmt"
	"os"
	"time"

	"credentialbroker/internal/leak"
)

// Suspect makes a draft of an incident, which a person has to confirm, and
// tells the organisation's own addresses. cause is a word, detail a sentence
// without secrets. There is one draft for a client and cause until somebody has
// dealt with it, and one alarm an hour.
func (r *Responder) Suspect(name, cause, detail string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now, key := r.o.Clock.Now(), name+" "+cause
	if last, ok := r.suspected[key]; ok && now.Sub(last) < time.Hour {
		return
	}
	if _, ok := r.config.Clients[name]; !ok {
		return
	}
	r.suspected[key] = now
	found := "credential-broker: " + cause
	list, _ := r.book.List()
	for _, i := range list {
		if i.State == leak.Draft && i.Clients[0] == name && i.FoundBy == found {
			r.alarm(name, "draft", i.ID, "the suspicion goes on, and waits for somebody to confirm or close it: "+detail)
			return
		}
	}
	one := r.config.client(name)
	i, err := r.book.Declare(leak.Incident{State: leak.Draft, Severity: leak.Suspected, What: []leak.Credential{leak.Unknown}, Happened: detail, FoundBy: found,
		PersonalData: leak.PersonalUnknown, DeclaredBy: leak.Declarer{UID: uint32(os.Getuid()), LoginUID: 1<<32 - 1, PID: int32(os.Getpid())}, // #nosec G115 -- as the kernel has them
		Clients: append([]string{name}, one.Shares...), Environment: one.Environment, Issuer: one.Issuer, Organisation: r.config.Sender.Organisation, CopyTo: r.config.CopyTo,
		Policy: leak.KeepServing, Actions: []leak.Action{{At: r.now(), What: "trace_tokens", Outcome: leak.Pending}}}, false)
	if err != nil {
		r.alarm(name, "draft", "", fmt.Sprintf("a suspicion could not be recorded (%v): %s", err, detail))
		return
	}
	r.note(&i, "suspected", nil)
	r.alarm(name, "draft", i.ID, "a leak is suspected: broker leak show "+i.ID+": "+detail)
}
