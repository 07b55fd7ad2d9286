package response

import (
	"context"
	"fmt"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/secret"
)

// Rules of this file: a suspicion that is wrong is work for people in the
// night, so one is raised only where nothing is left to doubt; else it is said
// what is.

const (
	strayDrift = 5 * time.Minute     // that clocks differ by
	strayAge   = 30 * 24 * time.Hour // after its end a token says little of today
	signDrift  = 12 * time.Minute    // that the iat of a self-signed JWT is back-dated by at most, and some
)

// Judge says what a token shows that the audit log does not know: if it was
// certainly issued to one of the clients, and certainly not here, somebody else
// has the client's credentials, and there is a draft of an incident about it.
// name is a client whose issuer may be asked about the token; empty: none. An
// error of code NotFound says why it cannot be told.
func (r *Responder) Judge(ctx context.Context, token secret.Secret, fingerprint, name string) (client.Whois, error) {
	stray, err := r.o.Broker.Vouch(ctx, token, name)
	if err != nil {
		return client.Whois{}, err
	}
	now := r.o.Clock.Now().Wall
	why, err := r.doubt(&stray, fingerprint, now)
	if err != nil {
		return client.Whois{}, &broker.Error{Code: client.AuditUnavailable, RetryAfter: 30 * time.Second, Err: err,
			Detail: "the audit log cannot be read; the daemon's journal says why"}
	}
	names := fmt.Sprintf("this token names client %s, and %s", stray.Client, stray.Says)
	if why != "" {
		return client.Whois{}, &broker.Error{Code: client.NotFound, Detail: names + "; whether this host issued it cannot be told: " + why}
	}
	out := client.Whois{Client: stray.Client, Fingerprint: fingerprint, JTI: stray.JTI, Scope: stray.Scope, Issued: stray.Issued, Expires: stray.Expires,
		Valid: now.Before(stray.Expires), Foreign: true}
	mark := "fingerprint " + fingerprint
	if stray.JTI != "" {
		mark = "jti " + stray.JTI + ", " + mark
	}
	out.Incident = r.Suspect(stray.Client, causeForeign, fmt.Sprintf("A token was found that names this client, and %s; this host, which alone uses the client, never issued it (%s, issued %s). Somebody else may have the client's secret.",
		stray.Says, mark, stray.Issued.UTC().Format(time.RFC3339)))
	out.Reason = names + ", and this host never issued it"
	if out.Incident == "" {
		out.Reason += "; there was an alarm about such a token within the hour, or the suspicion cannot be recorded: broker leak list"
	}
	return out, nil
}

// doubt says why the token may have been issued here, or that this would say
// nothing; empty: there is no doubt.
func (r *Responder) doubt(stray *broker.Stray, fingerprint string, now time.Time) (why string, err error) {
	ended := stray.Expires
	if stray.Local && ended.IsZero() {
		ended = stray.Issued.Add(time.Hour) // the longest that servers take it for
	}
	from, to := stray.Issued.Add(-strayDrift), stray.Issued.Add(strayDrift)
	if stray.Local { // by a clock like ours; and counts are written a while later
		from, to = stray.Issued.Add(-time.Minute), stray.Issued.Add(signDrift)
	}
	switch {
	case stray.Hosts > 1:
		return fmt.Sprintf("%d hosts use the client (hosts): ask broker whois on the others, too", stray.Hosts), nil
	case stray.Issued.IsZero():
		return "nothing says when it was issued", nil
	case from.After(now):
		return "it claims to be issued in the future", nil
	case !ended.IsZero() && now.Sub(ended) > strayAge:
		return "it expired more than 30 days ago", nil
	case stray.Local && to.After(now):
		return "it is too new: ask again at " + to.UTC().Format(time.RFC3339), nil
	}
	if _, found, err := audit.TraceToken(r.o.AuditDir, fingerprint); found || err != nil {
		return "the audit log knows it since a moment ago: ask again", err
	}
	return audit.Uncertain(r.o.AuditDir, stray.Client, from, to)
}
