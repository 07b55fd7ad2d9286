package response

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/leak"
)

// Rules of this file:
//   - what is declared is judged whole before anything happens;
//   - once the record is durable, nothing that follows is undone or given up
//     because whoever declared it has gone away.

const (
	longestText = 2000 // bytes of each text of a declaration
	drift       = 5 * time.Minute
	lookTime    = 2 * time.Second
)

// Declare records a leak or the suspicion of one, contains it, and reports it;
// a dry run answers with what would be done. It returns when the record and the
// containment are durable and the report is queued, or cannot be for now.
func (r *Responder) Declare(ctx context.Context, who *access.Caller, d client.Declaration) (client.Incident, error) {
	c := r.configured()
	i, err := incidentOf(&c, d, r.now())
	if err != nil {
		return client.Incident{}, err
	}
	if !r.o.Broker.Has(d.Client) {
		return client.Incident{}, noClient(d.Client)
	}
	if err := r.harmless(who, d); err != nil {
		return client.Incident{}, err
	}
	// What has not been read yet, harmless could not look for.
	i.DeclaredBy, i.Unchecked = declarer(who, d.As), !d.DryRun
	quick, cancel := context.WithTimeout(ctx, lookTime) // a secrets manager that hangs does not hold the record up
	r.complete(quick, &i)
	cancel()
	if d.Draft != "" {
		old, err := r.get(d.Draft)
		if err == nil {
			err = confirmable(&old, &i)
		}
		if err != nil {
			return client.Incident{}, err
		}
	}
	if d.DryRun {
		return r.preview(&c, i, d)
	}
	i, mine, err := r.record(i, d)
	if err != nil {
		return client.Incident{}, err
	}
	ctx = context.WithoutCancel(ctx)
	// Once this is on the disk, so is every hand-over before the containment,
	// which the report has to know.
	written, cancel := context.WithTimeout(ctx, lookTime)
	_ = r.o.Audit.Record(written, event(&i, "declared", actor(who))) // if it cannot be, the incident goes on all the same
	cancel()
	i = r.pursue(ctx, i.ID, mine)
	return r.view(&i), nil
}

// record makes the incident durable, and contains its clients.
func (r *Responder) record(i leak.Incident, d client.Declaration) (_ leak.Incident, mine bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if d.Draft == "" {
		i, err = r.book.Declare(i, d.NoMail)
	} else {
		r.queue(d.Draft)
		i, err = r.book.Update(d.Draft, func(draft *leak.Incident) error {
			if err := confirmable(draft, &i); err != nil {
				return err
			}
			r.confirm(draft, i, d.NoMail)
			return nil
		})
	}
	if err != nil {
		if _, refused := err.(*broker.Error); !refused { //nolint:errorlint // ours, from the change
			r.o.Log.Log(context.Background(), LevelAlert, "a leak was declared and is not recorded: nobody is told", "client", d.Client, "error", err)
		}
		return i, false, unrecorded(err)
	}
	mine = r.claim(i.ID)
	if err := r.contain(); err != nil {
		r.alarm("", "damaged", "", err.Error())
	}
	return i, mine, nil
}

// incidentOf judges a declaration, and makes the incident that it is about,
// with the steps that are to be taken. The quarantine is the record itself, and
// so done with it.
func incidentOf(c *Config, d client.Declaration, now time.Time) (leak.Incident, error) {
	one := c.client(d.Client)
	if err := judge(c, d, now); err != nil {
		return leak.Incident{}, err
	}
	i := leak.Incident{Joins: d.Joins, State: leak.Open, Severity: leak.Severity(d.Severity), Happened: d.Happened, Where: d.Where, FoundBy: d.FoundBy,
		Window: leak.Window{From: d.From.UTC(), To: d.To.UTC()}, PersonalData: leak.PersonalData(d.PersonalData), Language: leak.Language(d.Language), Clients: []string{d.Client},
		KnownHosts: one.Hosts, Environment: one.Environment, Issuer: one.Issuer, Organisation: c.Sender.Organisation, CopyTo: c.CopyTo, Policy: leak.Policy(d.Policy),
		NextUpdate: now.Add(firstUpdate)}
	for _, w := range d.What {
		if !slices.Contains(i.What, leak.Credential(w)) {
			i.What = append(i.What, leak.Credential(w))
		}
	}
	if i.PersonalData == "" {
		i.PersonalData = leak.PersonalUnknown
	}
	if i.Policy == "" {
		i.Policy = one.policy(i.Severity)
	}
	if i.Policy == "" {
		return i, &broker.Error{Code: client.InvalidRequest, Detail: fmt.Sprintf(
			"policy: say what is to happen to %s: quarantine, rotate or keep-serving; or set leak: { confirmed: … } for the client", d.Client)}
	}
	if !tokenOnly(&i) {
		c.extend(&i, append(i.Clients, one.Shares...))
	}
	i.Actions = steps(&i, now)
	return i, nil
}

func (c Client) policy(s leak.Severity) leak.Policy {
	switch {
	case s == leak.Confirmed:
		return c.Confirmed
	case c.Suspected == "":
		return leak.KeepServing
	}
	return c.Suspected
}

// steps are those that what has leaked, and the policy, ask for. Tokens are
// revoked whatever it was, for whoever had it could get tokens, unless it is to
// go on as before.
func steps(i *leak.Incident, now time.Time) []leak.Action {
	list := []leak.Action{}
	pending := func(what string) { list = append(list, leak.Action{At: now, What: what, Outcome: leak.Pending}) }
	if i.Policy == leak.Quarantine {
		list = append(list, leak.Action{At: now, What: "quarantine", Outcome: leak.Done})
	}
	if i.Policy != leak.KeepServing {
		pending("revoke_tokens")
	}
	if i.Policy == leak.Rotate && !tokenOnly(i) {
		pending("rotate")
	}
	pending("trace_tokens")
	return list
}

// tokenOnly: what has leaked ends by itself.
func tokenOnly(i *leak.Incident) bool { return len(i.What) == 1 && i.What[0] == leak.Token }

// judge says what is wrong with a declaration.
func judge(c *Config, d client.Declaration, now time.Time) error {
	no := func(format string, args ...any) error {
		return &broker.Error{Code: client.InvalidRequest, Detail: fmt.Sprintf(format, args...)}
	}
	in := func(v string, words ...string) bool { return slices.Contains(words, v) }
	if _, ok := c.Clients[d.Client]; !ok {
		return noClient(d.Client)
	}
	for _, t := range texts(&d) {
		if len(*t.text) > longestText {
			return no("%s: it is longer than %d bytes: tell the rest in an answer to the mail", t.name, longestText)
		}
		if obvious(*t.text) {
			return no("%s: it holds what looks like a private key or a token; nothing was recorded: say in words which one it is", t.name)
		}
	}
	for _, w := range d.What {
		if !in(w, "token", "client_secret", "api_key", "private_key", "manager_login", "host", "unknown") {
			return no("what: %.40q is unknown: write token, client_secret, api_key, private_key, manager_login, host or unknown", w)
		}
	}
	switch {
	case !in(d.Severity, "suspected", "confirmed"):
		return no("severity: write suspected or confirmed")
	case len(d.What) == 0:
		return no("what: say what has leaked; unknown if nobody knows yet")
	case d.Happened == "":
		return no("happened: say in a sentence what happened: the issuer reads it")
	case !in(d.PersonalData, "", "yes", "no", "unknown"):
		return no("personal_data: write yes, no or unknown")
	case !in(d.Policy, "", "keep-serving", "quarantine", "rotate"):
		return no("policy: write keep-serving, quarantine or rotate")
	case !in(d.Language, "", "nl", "en"):
		return no("language: write nl or en")
	case d.From.After(now.Add(drift)) || d.To.After(now.Add(drift)):
		return no("from, to: they are in the future; leave to out if it goes on")
	case !d.From.IsZero() && !d.To.IsZero() && d.To.Before(d.From):
		return no("to: it is before from")
	case d.Draft != "" && d.Joins != "":
		return no("joins: a suspicion that is confirmed is an incident of this host")
	}
	return nil
}

type namedText struct {
	name string
	text *string
}

func texts(d *client.Declaration) []namedText {
	return []namedText{{"happened", &d.Happened}, {"where", &d.Where}, {"found_by", &d.FoundBy}, {"as", &d.As}}
}

// obvious says whether text holds what nobody needs to know to tell that it is
// secret: a private key (PEM, or that of a file store) or a JWT. While no daemon
// runs, nothing else can be told.
func obvious(text string) bool {
	return regexp.MustCompile(`-----BEGIN [A-Z0-9 ]*PRIVATE KEY|AGE-SECRET-KEY-1|\beyJ[\w-]{10,}\.[\w-]{10,}\.`).MatchString(text)
}

// harmless refuses texts that hold a secret or token: they are mailed. That it
// does is recorded: its answer tells who asks something.
func (r *Responder) harmless(who *access.Caller, d client.Declaration) error {
	for _, t := range texts(&d) {
		if r.holds(*t.text) {
			return r.refuseText(who, d.Client, t.name, t.name+": it holds a secret or token that is in use, or was; nothing was recorded: say in words which one it is")
		}
	}
	return nil
}

func (r *Responder) refuseText(who *access.Caller, name, text, why string) error {
	r.o.Audit.Note(audit.Event{Type: audit.AdminAct, Code: "leak.text_refused", Client: name, Actor: actor(who), Detail: map[string]string{"text": text}})
	return &broker.Error{Code: client.InvalidRequest, Detail: why}
}

// complete fills in what the daemon knows: the clients that share the bundle,
// the version that has leaked and the public identifier. A version that was made
// after the declaration is not what has leaked.
func (r *Responder) complete(ctx context.Context, i *leak.Incident) {
	ctx, cancel := context.WithTimeout(ctx, stepTime)
	defer cancel()
	c := r.configured()
	c.extend(i, r.sharing(i))
	if i.Versions = maps.Clone(i.Versions); i.Versions == nil {
		i.Versions = map[string]string{}
	}
	for n, name := range i.Clients {
		have := r.o.Broker.Credentials(ctx, name)
		later := !i.DeclaredAt.IsZero() && have.Created.After(i.DeclaredAt)
		if i.Versions[name] == "" && i.Renewed[name] == "" && have.Version != "" && !later {
			i.Versions[name] = have.Version
		}
		if n == 0 {
			i.ClientID = cmp.Or(i.ClientID, have.ClientID, r.clientIDs()[name])
			i.KeyID = cmp.Or(i.KeyID, keyID(i, have))
		}
	}
}

// keyID identifies the key that has leaked: by its kid, or, of an API key, which
// has none, by the secrets manager's name of the version.
func keyID(i *leak.Incident, have broker.Credentials) string {
	leaked := func(of ...leak.Credential) bool {
		return slices.ContainsFunc(i.What, func(w leak.Credential) bool { return slices.Contains(of, w) })
	}
	switch {
	case have.Version == "" || have.Version != i.Versions[i.Clients[0]]:
		return ""
	case have.KeyID != "" && leaked(leak.PrivateKey, leak.ManagerLogin, leak.Host, leak.Unknown):
		return have.KeyID
	case leaked(leak.APIKey):
		return "version " + have.Version
	}
	return ""
}

// sharing are the incident's clients and those that share their secrets, the
// declared one first.
func (r *Responder) sharing(i *leak.Incident) []string {
	all := slices.Clone(i.Clients)
	if tokenOnly(i) { // a token is one client's
		return all[:1]
	}
	if installed(i) { // what they share now has not leaked
		return all
	}
	more := r.o.Broker.Sharing(i.Clients[0])
	for _, place := range slices.Sorted(maps.Keys(i.Places)) {
		more = append(more, r.o.Broker.At(place)...)
	}
	for _, name := range more {
		if !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}

// extend makes i one of these clients, and notes where their secrets lie. One
// that has another's place has another's leak.
func (c *Config) extend(i *leak.Incident, clients []string) {
	i.Clients = clients
	if tokenOnly(i) {
		return
	}
	i.Places, i.Versions = maps.Clone(i.Places), maps.Clone(i.Versions)
	for _, name := range clients {
		for _, place := range c.Clients[name].Places {
			switch was, known := i.Places[place]; {
			case i.Places == nil:
				i.Places = map[string]string{place: name}
			case !known:
				i.Places[place] = name
			case i.Versions[name] == "" && i.Renewed[name] == "" && i.Versions[was] != "":
				i.Versions[name] = i.Versions[was]
			}
		}
	}
}

// preview is what would be done, and the mails as they would be.
func (r *Responder) preview(c *Config, i leak.Incident, d client.Declaration) (client.Incident, error) {
	now := r.now()
	i.Format, i.ID, i.Host, i.DeclaredAt, i.KnownAt = 1, fmt.Sprintf("%04d-0000", now.Year()), r.o.Host, now, now
	if d.Draft != "" {
		old, err := r.get(d.Draft)
		if err != nil {
			return client.Incident{}, err
		}
		r.confirm(&old, i, d.NoMail)
		i = old
	}
	ctx, cancel := context.WithTimeout(context.Background(), stepTime)
	defer cancel()
	if t, ok := r.trace(ctx, &i); ok {
		t.into(&i)
		outcome(&i, "trace_tokens", leak.Done, fmt.Sprint(i.Exposure.Count), now)
	}
	if d.Draft == "" {
		i.Revise(now, "", d.NoMail)
	}
	r.mu.Lock()
	i.Stopped(quarantines(&i) || r.stopped(&i))
	r.mu.Unlock()
	order := c.languages(&i)
	unrecorded := undone(i)
	r.mu.Lock()
	unrecorded.Stopped(r.stopped(&i))
	r.mu.Unlock()
	out, plan := r.view(&i), view(c, &unrecorded, nil)
	for _, v := range []*client.Incident{&out, &plan} {
		v.ID, v.Global, v.Record, v.Mails = "", "", nil, nil
	}
	out.Unrecorded = &plan
	err := byPerson(c, unrecorded, order, &plan)
	switch {
	case err != nil:
	case len(c.Relays) == 0:
		err = byPerson(c, i, order, &out)
	default:
		out.Mails, err = c.mails(leak.Compose(i, c.Sender, order))
	}
	if err != nil {
		return out, &broker.Error{Code: client.InvalidRequest, Detail: err.Error()}
	}
	return out, nil
}

func noClient(name string) error {
	return &broker.Error{Code: client.NotFound, Detail: fmt.Sprintf("no client is called %.64q; broker status lists them", name)}
}

// unrecorded is for an incident that could not be made durable: whoever
// declares it has to tell people in another way, at once.
func unrecorded(err error) error {
	if e, ok := err.(*broker.Error); ok { //nolint:errorlint // ours, from the change
		return e
	}
	return &broker.Error{Code: client.AuditUnavailable, RetryAfter: 10 * time.Second, Err: err,
		Detail: "the incident is NOT recorded, and nothing was done: " + err.Error()}
}

func declarer(who *access.Caller, as string) leak.Declarer {
	d := leak.Declarer{LoginUID: 1<<32 - 1, Claimed: as}
	if who != nil {
		d.UID, d.LoginUID, d.PID = who.UID, who.LoginUID, who.PID
	}
	return d
}

func actor(c *access.Caller) *audit.Caller {
	if c == nil {
		return nil
	}
	return &audit.Caller{PID: c.PID, Start: c.Start, UID: c.UID, GID: c.GID, Unit: c.Unit, UserUnit: c.UserUnit, LoginUID: c.LoginUID, Container: c.Container}
}
