package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"credentialbroker/api"
	"credentialbroker/api/client"
	"credentialbroker/configs"
	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/proxy"
	"credentialbroker/internal/response"
	"credentialbroker/internal/secret"
	"credentialbroker/oidc"
	"credentialbroker/providers"
	"credentialbroker/rotation"
)

// administration is the daemon as the admin socket sees it.
func (s *server) administration(metrics prometheus.Gatherer) api.Administration {
	return api.Administration{
		Roles: s.roles, Act: s.act, Denied: s.broker.DeniedRole, Status: s.status, Reload: s.reload, Live: s.live,
		Retry: s.retry, Rotate: s.rotate, Key: s.broker.Key, NewKey: s.broker.NewKey, Intake: s.intake, Used: s.broker.SecretUsed, RotateKey: s.rotateKey,
		Login: func(ctx context.Context, name string, l client.LoginStart) (client.Login, error) {
			return s.broker.StartLogin(ctx, name, l.RedirectURI)
		},
		FinishLogin: s.broker.FinishLogin,
		Revoke: func(ctx context.Context, name string, r client.Revocation) (client.Outcome, error) {
			return s.broker.Revoke(ctx, name, r.Login)
		},
		Declare: s.response.Declare, Incidents: s.response.Incidents, Incident: s.response.Incident, Release: s.response.Release,
		Close: s.response.Close, Drill: s.response.Drill, Evidence: s.response.Evidence, AddEvidence: s.response.AddEvidence,
		Whois: s.whois, Judge: s.response.Judge,
		Scan: s.broker.Scan, ConfirmFind: s.broker.ConfirmFind,
		Metrics:  promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}),
		AuditDir: filepath.Join(s.paths.state, "audit"),
	}
}

func (s *server) roles() api.Roles {
	s.mu.Lock()
	admin := s.current.config.Admin
	s.mu.Unlock()
	names := access.SystemNames()
	roles := api.Roles{}
	for role, groups := range map[api.Role][]string{api.Observe: admin.Observe, api.Operate: admin.Operate, api.Incident: admin.Incident} {
		for _, g := range groups {
			if gid, err := names.Group(g); err == nil { // broker check warns of the others
				roles[role] = append(roles[role], api.Group{Name: g, GID: gid})
			}
		}
	}
	return roles
}

func (s *server) act(ctx context.Context, c *access.Caller, act, client string, detail map[string]string) error {
	err := s.audit.Record(ctx, audit.Event{Type: audit.AdminAct, Code: act, Client: client, Detail: detail, Actor: actor(c)})
	if err != nil && act == "leak.declare" {
		s.log.Log(ctx, response.LevelAlert, "a leak was declared and is not recorded: nobody is told", "client", client, "error", err)
	}
	return err
}

func actor(c *access.Caller) *audit.Caller {
	if c == nil {
		return nil
	}
	return &audit.Caller{PID: c.PID, Start: c.Start, UID: c.UID, GID: c.GID, Unit: c.Unit, UserUnit: c.UserUnit,
		LoginUID: c.LoginUID, Container: c.Container, Place: c.Place}
}

// install makes c the configuration, as a whole or not at all.
func (s *server) install(c *configs.Config) error {
	next, err := open(c, s.current, s.clock)
	if err != nil {
		return err
	}
	clients, err := next.clients()
	var answers *response.Prepared
	if err == nil {
		answers, err = s.respond(next)
	}
	var routes *proxy.Change
	if err == nil {
		routes, err = s.proxy.Prepare(next.routes())
	}
	if err == nil {
		if err = s.broker.Apply(clients); err != nil {
			routes.Discard()
		}
	}
	if err != nil {
		next.close(s.current)
		return err
	}
	routes.Commit()
	answers.Commit()
	if s.current != nil {
		s.current.close(next)
	}
	s.current = next
	s.files.Apply(fileEntries(c))
	select {
	case s.relogin <- struct{}{}:
	default:
	}
	s.copies(c)
	return nil
}

// reload reads the configuration anew. Who asked is nil for a signal.
func (s *server) reload(ctx context.Context, who *access.Caller) ([]client.Change, error) {
	notify(daemon.SdNotifyReloading)
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { notify(daemon.SdNotifyReady, s.summary(len(s.current.config.Clients))) }()
	c, err := load(s.paths.config)
	old := s.current.config
	if err == nil {
		err = s.install(c)
	}
	if err != nil {
		s.audit.Note(audit.Event{Type: audit.ConfigRefused, Actor: actor(who), Detail: map[string]string{"error": firstLine(err)}})
		return nil, fmt.Errorf("%w\nthe old configuration stays", err)
	}
	s.ports.apply(ctx, c)
	var changes []client.Change
	wider := 0
	for _, d := range c.Diff(old) {
		changes = append(changes, client.Change{What: d.Text, Wider: d.Wider})
		if d.Wider {
			wider++
			s.audit.Note(audit.Event{Type: audit.ConfigWidened, Actor: actor(who), Detail: map[string]string{"change": d.Text}})
		}
	}
	s.audit.Note(audit.Event{Type: audit.ConfigLoaded, Actor: actor(who),
		Detail: map[string]string{"changes": fmt.Sprint(len(changes)), "wider": fmt.Sprint(wider)}})
	changes = append(changes, copiesLeft(old, c)...)
	if !reflect.DeepEqual(old.Audit, c.Audit) || old.Sockets != c.Sockets || old.State != c.State || old.Limits != c.Limits {
		changes = append(changes, client.Change{What: "audit, limits, sockets and state are taken at the next start of the daemon: run systemctl restart credential-broker"})
	}
	return changes, nil
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// live gives the findings of check --live.
func (s *server) live(ctx context.Context) iter.Seq[client.Finding] {
	return func(yield func(client.Finding) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		more := true
		say := func(f client.Finding) {
			if more && !yield(f) {
				more = false
				cancel()
			}
		}
		for _, f := range s.liveHost(ctx) {
			say(f)
		}
		if more {
			s.broker.Live(ctx, say)
		}
	}
}

func (s *server) retry(_ context.Context, name string) (client.Outcome, error) {
	if err := s.broker.Retry(name); err != nil {
		return client.Outcome{}, err
	}
	return client.Outcome{Reason: "refusals are forgotten: the secret is tried once more with the next request"}, nil
}

func (s *server) rotate(ctx context.Context, name string, r client.Rotation) (client.Outcome, error) {
	s.noteStored(name, r)
	st, err := s.broker.Rotate(ctx, name, broker.Rotation{Accept: r.Accept, Version: providers.Version(r.Version), Latest: r.Latest})
	if err != nil {
		return client.Outcome{}, err
	}
	o := client.Outcome{Version: string(st.Version), Reason: "this is the secrets manager's current version"}
	switch {
	case st.Pinned != "":
		o.Reason = "it is pinned: newer versions are not looked at until broker rotate --latest " + name
	case slices.Contains(st.Refused, st.Candidate):
		return client.Outcome{}, &broker.Error{Code: client.CredentialsRejected, Detail: fmt.Sprintf(
			"version %s serves on; version %s is not installed: %s", st.Version, st.Candidate, st.Waiting)}
	case st.Candidate != "":
		o.Reason = fmt.Sprintf("version %s waits: %s", st.Candidate, st.Waiting)
	case st.Dead:
		return client.Outcome{}, &broker.Error{Code: client.CredentialsRejected, Detail: fmt.Sprintf(
			"version %s is the secrets manager's current one, and the issuer has refused it: %s", st.Version, st.Remedy)}
	case !st.Works:
		o.Reason += "; it has not been used at the issuer yet"
	}
	return o, nil
}

// noteStored records what an administrator has stored with a login of their
// own, beside what the daemon stores itself: the act says who it was.
func (s *server) noteStored(name string, r client.Rotation) {
	s.mu.Lock()
	_, known := s.current.config.Clients[name]
	s.mu.Unlock()
	if known && r.Stored != "" {
		s.audit.Note(audit.Event{Type: audit.AdminAct, Code: "intake.stored", Client: name, Version: r.Stored,
			Detail: map[string]string{"by": "operator", "fields": strings.Join(r.Fields, " ")}})
	}
}

func (s *server) intake(ctx context.Context, name string, in broker.Intake) (client.Intake, error) {
	out, err := s.broker.Intake(ctx, name, in)
	s.mu.Lock()
	defer s.mu.Unlock()
	out.Kind = s.current.config.Providers[out.Provider].Kind()
	return out, err
}

// whois follows a token through the audit log; fingerprint is its own, or that
// of its jti.
func (s *server) whois(_ context.Context, fingerprint string) (client.Whois, error) {
	t, found, err := audit.TraceToken(filepath.Join(s.paths.state, "audit"), fingerprint)
	switch {
	case err != nil:
		return client.Whois{}, &broker.Error{Code: client.AuditUnavailable, RetryAfter: 30 * time.Second, Err: err,
			Detail: "the audit log cannot be read; the daemon's journal says why"}
	case !found:
		return client.Whois{}, &broker.Error{Code: client.NotFound,
			Detail: "this host's audit log does not know that token: another host or program got it, or it is older than the log"}
	}
	fingerprint = cmp.Or(t.Fingerprint, fingerprint)
	out := client.Whois{Client: t.Client, Version: t.Version, Fingerprint: fingerprint, JTI: t.JTI, Scope: t.Scope,
		Issued: t.Issued, Expires: t.Expires, Revoked: t.Revoked, Valid: t.Revoked.IsZero() && s.clock.Now().Wall.Before(t.Expires)}
	for _, c := range s.broker.Status() {
		out.Current = out.Current || slices.ContainsFunc(c.Tokens, func(one broker.TokenStatus) bool { return one.Fingerprint == fingerprint })
	}
	for _, h := range t.Holders {
		out.Holders = append(out.Holders, client.Holder{PID: h.PID, UID: h.UID, GID: h.GID, Unit: cmp.Or(h.Unit, h.UserUnit), Place: h.Place,
			Surface: h.Surface, First: h.First, Last: h.Last, Count: h.Count})
	}
	return out, nil
}

func (s *server) status() client.Status {
	s.mu.Lock()
	config := s.current.config
	s.mu.Unlock()
	a := s.audit.Status()
	out := client.Status{Version: version, Started: s.started.UTC(), Uptime: int64(time.Since(s.started) / time.Second), SecretMemory: map[string]int{},
		Audit: client.AuditStatus{Healthy: s.audit.Healthy() == nil, Error: a.Error, Seq: a.Seq, Lost: a.Lost, Anchors: a.Anchors, AnchorError: a.AnchorError},
		// Lists are never null on the wire.
		Clients: []client.StatusClient{}, Providers: []client.ProviderStatus{}, Warnings: []client.Finding{}}
	if s.api != nil {
		out.Sockets = s.api.Traffic()
	}
	out.Platform = platformStatus(s.platform)
	for kind, n := range secret.Protected() {
		out.SecretMemory[string(kind)] = n
	}
	managers := map[string]*client.ProviderStatus{}
	for _, c := range s.broker.Status() {
		cfg := config.Clients[c.Name]
		out.Clients = append(out.Clients, s.clientStatus(c, cfg))
		for _, err := range c.EntryProblems {
			out.Warnings = append(out.Warnings, client.Finding{Check: "allow", Target: c.Name, Level: client.Warning, Detail: err.Error()})
		}
		m := managers[c.ProviderName]
		if m == nil {
			m = &client.ProviderStatus{Provider: c.ProviderName, Kind: config.Providers[c.ProviderName].Kind(), State: state(c.Credential.Provider.Err, c.Credential.Checked)}
			managers[c.ProviderName] = m
		}
		if t := c.Credential.Provider; t.Err != nil {
			m.State, m.Error, m.Since, m.Next = "failing", string(providers.KindOf(t.Err)), t.Since, t.Next
		}
	}
	for _, r := range s.proxy.Status() {
		out.Routes = append(out.Routes, client.RouteStatus{Client: r.Client, Route: r.Name, Socket: r.Socket, Upstream: r.Upstream,
			Requests: r.Requests, Failed: r.Failed, Error: r.Error, ErrorAt: r.ErrorAt})
	}
	open, _, _ := s.response.Summaries()
	for _, i := range open {
		out.Incidents = append(out.Incidents, client.IncidentLine{ID: i.ID, State: i.State, Client: i.Client, Undelivered: i.Undelivered, Since: i.Since})
	}
	s.fileStatus(out.Clients)
	for _, m := range managers {
		out.Providers = append(out.Providers, *m)
	}
	out.Warnings = append(out.Warnings, slices.DeleteFunc(s.ports.findings(), func(f client.Finding) bool { return f.Level == client.OK })...)
	for _, w := range config.Warnings(access.SystemNames()) {
		out.Warnings = append(out.Warnings, client.Finding{Check: "configuration", Target: place(w), Level: client.Warning, Detail: w.Message})
	}
	if s.units != nil {
		out.Warnings = append(out.Warnings, s.units.Findings()...)
	}
	return out
}

func place(p configs.Problem) string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

func state(err error, good time.Time) string {
	switch {
	case err != nil:
		return "failing"
	case good.IsZero():
		return "unknown"
	}
	return "ok"
}

func (s *server) clientStatus(c broker.ClientStatus, cfg configs.Client) client.StatusClient {
	k := c.Credential
	out := client.StatusClient{Client: c.Name, Owner: c.Owner.Contact, Purpose: c.Owner.Purpose, Preset: cfg.Preset, Ready: c.Problem == nil, Runway: c.Runway,
		Provider: c.ProviderName, Version: string(k.Version), Installed: k.Installed, Pinned: string(k.Pinned), Candidate: string(k.Candidate), Waiting: k.Waiting, PendingKey: c.PendingKey, MaxAge: int64(c.MaxAge / time.Second),
		Issuer: client.IssuerStatus{State: "unknown"}, Source: client.SourceStatus{State: state(k.Provider.Err, k.Checked)}, Tokens: []client.TokenStatus{}}
	if c.Problem != nil {
		out.Code, out.Reason = c.Problem.Code, c.Problem.Detail
	}
	switch {
	case k.Works:
		out.Proved, out.Issuer.State = "mint", "ok"
	case !k.Probed.IsZero():
		out.Proved = "probe"
	}
	if l := k.Login; l != nil {
		out.Login = &client.LoginStatus{State: "ok", Reason: l.Reason, Generation: l.Generation}
		switch {
		case l.Required:
			out.Login.State = "required"
		case l.Pending:
			out.Login.State = "pending"
		}
	}
	for _, v := range k.Refused {
		out.Refused = append(out.Refused, string(v))
	}
	if !k.Created.IsZero() {
		out.Age = int64(s.clock.Now().Wall.Sub(k.Created) / time.Second)
	}
	if t := k.Provider; t.Err != nil {
		out.Source.Error, out.Source.Reason = string(providers.KindOf(t.Err)), t.Err.Error()
		out.Source.Since, out.Source.Next = t.Since, t.Next
	}
	if t := k.Issuer; t.Err != nil {
		out.Issuer = client.IssuerStatus{State: "failing", Code: client.IssuerUnavailable, Since: t.Since, Next: t.Next}
		var e *rotation.Error
		if errors.As(t.Err, &e) && e.Kind == rotation.Protocol {
			out.Issuer.Code = client.IssuerProtocolError
		}
	}
	if !k.Degraded.IsZero() {
		out.DegradedUntil, out.DegradedReason = k.Degraded, "the secrets manager does not answer: what it had at "+k.Confirmed.UTC().Format(time.RFC3339)+" serves, sealed on this host"
		if k.Withheld != nil {
			out.DegradedReason = k.Withheld.Detail
		}
	}
	if out.Kept = k.Kept; k.KeepErr != nil {
		out.KeepError = k.KeepErr.Error()
	}
	out.Due, out.Steps = replacement(c, cfg, s.clock.Now().Wall)
	out.APIKey = keyStatus(c)
	for _, t := range c.Tokens {
		out.Tokens = append(out.Tokens, client.TokenStatus{Scope: t.Scope, Granted: t.Granted, Narrowed: t.Narrowed, Bound: t.Bound,
			Audience: t.Audience + t.Resource, Fingerprint: t.Fingerprint,
			Expires: t.Expires, Reads: t.Handovers})
	}
	return out
}

// keyStatus says what is known of the API key, by the newest word.
func keyStatus(c broker.ClientStatus) string {
	k := c.Credential
	switch {
	case c.KeyComplaints > 0 && c.KeyLast.After(k.Probed):
		return fmt.Sprintf("rejected by %d callers, last at %s", c.KeyComplaints, c.KeyLast.UTC().Format(time.RFC3339))
	case !c.HasKey:
		return ""
	case !k.Probed.IsZero():
		return "probed OK at " + k.Probed.UTC().Format(time.RFC3339)
	case oidc.KindOf(k.ProbeErr) == oidc.InvalidClient:
		return "rejected by the probe: " + k.ProbeErr.Error()
	}
	return "unproved"
}

// liveHost looks at the sockets, the machine and the mail relay.
func (s *server) liveHost(ctx context.Context) []client.Finding {
	s.mu.Lock()
	leak := s.current.config.Leak
	s.mu.Unlock()
	list := []client.Finding{s.liveSocket(s.paths.consumer, "the allow entries decide"), s.liveSocket(s.paths.admin, "the roles decide")}
	if err := s.audit.Healthy(); err != nil {
		list = append(list, client.Finding{Check: "audit", Target: "log", Level: client.Error, Detail: err.Error()})
	} else {
		list = append(list, client.Finding{Check: "audit", Target: "log", Level: client.OK, Detail: "the log is written; anchors: " + s.audit.Status().Anchors})
	}
	list = append(list, livePlatform(s.host)...)
	list = append(list, s.liveSELinux()...)
	list = append(list, s.ports.findings()...)
	if leak != nil {
		list = append(list, s.liveRelays(ctx)...)
		if leak.Sign != nil {
			list = append(list, s.liveSignature())
		}
		if leak.DrillEvery > 0 {
			list = append(list, s.liveDrill(leak.DrillEvery.D()))
		}
	}
	return list
}
