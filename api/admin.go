package api

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/scan"
	"credentialbroker/internal/secret"
)

// Administration is the daemon behind the admin socket. Every field is needed.
type Administration struct {
	// Roles are asked for at each request: a reload may change them.
	Roles func() Roles
	// Act records an act before it is done; its error is the answer instead.
	Act func(ctx context.Context, c *access.Caller, act, client string, detail map[string]string) error
	// Denied is told of each request that a missing role refused.
	Denied func(c *access.Caller, act, client string)

	Status func() client.Status
	// Reload takes the configuration anew, whole or not at all. Its error is
	// for the person who asked: it may have many lines, and holds no secret.
	Reload func(context.Context, *access.Caller) ([]client.Change, error)
	// Live looks at everything that the daemon depends on, until ctx ends.
	Live   func(context.Context) iter.Seq[client.Finding]
	Retry  func(ctx context.Context, client string) (client.Outcome, error)
	Rotate func(ctx context.Context, client string, r client.Rotation) (client.Outcome, error)

	// Key gives the public half of the client's key; NewKey makes one, which
	// goes straight into the secrets manager.
	Key    func(ctx context.Context, client string) (client.Key, error)
	NewKey func(ctx context.Context, client string, k client.NewKey) (client.Key, error)
	// Intake proves, and where the daemon may, stores what an issuer has sent.
	Intake func(ctx context.Context, client string, in broker.Intake) (client.Intake, error)
	// RotateKey takes the rotation of the client's key one step on.
	RotateKey func(ctx context.Context, client string, r client.KeyRotation) (client.RotatedKey, error)
	// Used notes that a body held a secret: its memory is to be cleaned.
	Used func()
	// Login begins a person's login; FinishLogin takes what it brought back.
	Login       func(ctx context.Context, client string, l client.LoginStart) (client.Login, error)
	FinishLogin func(ctx context.Context, client string, code broker.LoginCode) (client.Outcome, error)
	// Revoke takes the client's tokens back at the issuer.
	Revoke func(ctx context.Context, client string, r client.Revocation) (client.Outcome, error)

	// Declare records an incident, or in a dry run only says what it would do.
	// The texts in a declaration are personal data, and nobody checked them for
	// secrets yet.
	Declare func(context.Context, *access.Caller, client.Declaration) (client.Incident, error)
	// Incidents are without texts; Incident is whole. An incident is named by
	// this host's ID or the global one, as 2026-0007 and 2026-0007@web1.
	Incidents func(context.Context) ([]client.Incident, error)
	Incident  func(ctx context.Context, id string) (client.Incident, error)
	Release   func(ctx context.Context, c *access.Caller, id string, how client.IncidentRelease) (client.Incident, error)
	Close     func(ctx context.Context, c *access.Caller, id string, how client.IncidentClose) (client.Incident, error)
	Drill     func(ctx context.Context, c *access.Caller, client string) (client.Incident, error)
	// Evidence is what this host knows of an incident; AddEvidence takes what
	// another one does: a JSON object that nobody looked at yet.
	Evidence    func(ctx context.Context, id string) (json.RawMessage, error)
	AddEvidence func(ctx context.Context, c *access.Caller, id string, evidence json.RawMessage) (client.Incident, error)
	// Whois follows the token of a fingerprint through the audit log.
	Whois func(ctx context.Context, fingerprint string) (client.Whois, error)
	// Judge says what a token shows that the log does not know; name is the
	// client whose issuer may be asked about it, or empty.
	Judge func(ctx context.Context, token secret.Secret, fingerprint, name string) (client.Whois, error)
	// Scan gives the filter for a scan; ConfirmFind says what stands in its
	// candidates, which it wipes.
	Scan        func() (scan.Filter, []broker.Unscannable)
	ConfirmFind func(c *access.Caller, list []scan.Candidate) [][]scan.Match

	Metrics  http.Handler // in Prometheus's text format
	AuditDir string       // of the log that the audit requests read
}

// A Role is what an administrator may do.
type Role string

// The roles. Each of the others includes Observe.
const (
	Observe  Role = "observe"  // status, metrics, audit, public keys, the list of incidents, whois
	Operate  Role = "operate"  // rotate, retry, reload, check, keys, intake, login, revoke, scan
	Incident Role = "incident" // declare and contain; what an incident's record holds
)

// Roles say which groups have a role. Root and the daemon's own user have all.
type Roles map[Role][]Group

// A Group is a group of the system.
type Group struct {
	Name string
	GID  uint32
}

// everything says whether c has all roles, whatever the groups.
func everything(c *access.Caller) bool {
	return !c.Container && (c.UID == 0 || int(c.UID) == os.Geteuid()) // a container's root is another host's
}

// has says whether c has the role.
func (r Roles) has(c *access.Caller, role Role) bool {
	if c.Container {
		return false
	}
	if everything(c) {
		return true
	}
	in := func(role Role) bool {
		return slices.ContainsFunc(r[role], func(g Group) bool { return slices.Contains(c.Groups, g.GID) })
	}
	return in(role) || role == Observe && (in(Operate) || in(Incident))
}

// need says in words who has the role.
func (r Roles) need(role Role) string {
	var groups []string
	for _, one := range []Role{role, Operate, Incident} {
		for _, g := range r[one] {
			if (one == role || role == Observe) && !slices.Contains(groups, g.Name) {
				groups = append(groups, g.Name)
			}
		}
	}
	if len(groups) == 0 {
		return "be root: no group has the role " + string(role) + " (admin: in the configuration)"
	}
	return "be root, or in a group with the role " + string(role) + " (" + strings.Join(groups, ", ") + ")"
}

// adminRoutes is the table of the admin socket.
func adminRoutes() []route {
	return []route{
		{method: http.MethodGet, path: "/v1/status", role: Observe, serve: (*Server).status},
		{method: http.MethodPost, path: "/v1/reload", role: Operate, serve: (*Server).reload},
		{method: http.MethodPost, path: "/v1/check", role: Operate, serve: (*Server).check},
		{method: http.MethodPost, path: "/v1/clients/{client}/retry", role: Operate, serve: (*Server).retry},
		{method: http.MethodPost, path: "/v1/clients/{client}/rotate", role: Operate, serve: (*Server).rotate},
		{method: http.MethodGet, path: "/v1/clients/{client}/keys", role: Observe, serve: (*Server).key},
		{method: http.MethodPost, path: "/v1/clients/{client}/keys", role: Operate, serve: (*Server).newKey},
		{method: http.MethodPost, path: "/v1/clients/{client}/intake", role: Operate, serve: (*Server).intake},
		{method: http.MethodPost, path: "/v1/clients/{client}/keys/rotate", role: Operate, serve: (*Server).rotateKey},
		{method: http.MethodPost, path: "/v1/clients/{client}/login", role: Operate, serve: (*Server).login},
		{method: http.MethodPost, path: "/v1/clients/{client}/login/finish", role: Operate, serve: (*Server).finishLogin},
		{method: http.MethodPost, path: "/v1/clients/{client}/revoke", role: Operate, serve: (*Server).revoke},
		{method: http.MethodPost, path: "/v1/clients/{client}/drill", role: Incident, serve: (*Server).drill},
		{method: http.MethodGet, path: "/v1/incidents", role: Observe, serve: (*Server).incidents},
		{method: http.MethodPost, path: "/v1/incidents", role: Incident, serve: (*Server).declare},
		{method: http.MethodGet, path: "/v1/incidents/{incident}", role: Incident, serve: (*Server).incident},
		{method: http.MethodPost, path: "/v1/incidents/{incident}/release", role: Incident, serve: (*Server).release},
		{method: http.MethodPost, path: "/v1/incidents/{incident}/close", role: Incident, serve: (*Server).closeIncident},
		{method: http.MethodGet, path: "/v1/incidents/{incident}/evidence", role: Incident, serve: (*Server).evidence},
		{method: http.MethodPost, path: "/v1/incidents/{incident}/evidence", role: Incident, serve: (*Server).addEvidence},
		{method: http.MethodPost, path: "/v1/whois", role: Observe, serve: (*Server).whois},
		{method: http.MethodGet, path: "/v1/audit", role: Observe, serve: (*Server).auditTail},
		{method: http.MethodGet, path: "/v1/audit/follow", role: Observe, serve: (*Server).auditFollow},
		{method: http.MethodGet, path: "/v1/audit/denied", role: Observe, serve: (*Server).auditDenied},
		{method: http.MethodGet, path: "/v1/audit/verify", role: Observe, serve: (*Server).auditVerify},
		{method: http.MethodGet, path: "/v1/audit/export", role: Observe, serve: (*Server).auditExport},
		{method: http.MethodPost, path: "/v1/scan", role: Operate, serve: (*Server).scan},
		{method: http.MethodPost, path: "/v1/scan/confirm", role: Operate, serve: (*Server).confirmScan},
		{method: http.MethodGet, path: "/metrics", role: Observe, serve: (*Server).metrics},
		{method: http.MethodGet, path: "/healthz", serve: (*Server).alive},
	}
}

func (s *Server) admin(w http.ResponseWriter, r *http.Request) {
	defer s.recovered(r)
	c := s.enter(w, r)
	c.MustLive()
	if !s.admitted(w, r, c) {
		return
	}
	rt, name, err := match(s.routes.admin, w, r)
	if err == nil {
		err = s.administer(w, r, c.Caller(), rt, name)
	}
	if err != nil {
		s.refuse(w, r, err)
	}
}

// administer serves a request of somebody who has the role.
func (s *Server) administer(w http.ResponseWriter, r *http.Request, c *access.Caller, rt *route, name string) error {
	if rt.role == "" || everything(c) {
		return rt.serve(s, w, r, c, name)
	}
	if roles := s.cfg.Administration.Roles(); !roles.has(c, rt.role) {
		if rt.place != clientPlace {
			name = ""
		}
		s.cfg.Administration.Denied(c, rt.method+" "+rt.path, name)
		return &broker.Error{Code: client.NotAllowed, Identity: c.String(), Clients: []string{},
			Detail: "for this you have to " + roles.need(rt.role)}
	}
	return rt.serve(s, w, r, c, name)
}

// act records that c is about to do something. Nothing is done unrecorded.
func (s *Server) act(r *http.Request, c *access.Caller, act, name string, detail map[string]string) error {
	err := s.cfg.Administration.Act(r.Context(), c, act, name, detail)
	var known *broker.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	return &broker.Error{Code: client.AuditUnavailable, RetryAfter: 5 * time.Second, Err: err,
		Detail: "the act cannot be recorded in the audit log, so it is not done; broker status says what is wrong with the log"}
}

func (s *Server) status(w http.ResponseWriter, r *http.Request, _ *access.Caller, _ string) error {
	if err := noQuery(r); err != nil {
		return err
	}
	return s.sendJSON(w, http.StatusOK, s.cfg.Administration.Status())
}

func (s *Server) metrics(w http.ResponseWriter, r *http.Request, _ *access.Caller, _ string) error {
	if err := noQuery(r); err != nil {
		return err
	}
	s.cfg.Administration.Metrics.ServeHTTP(w, r)
	return nil
}

func (s *Server) reload(w http.ResponseWriter, r *http.Request, c *access.Caller, _ string) error {
	if err := empty(r); err != nil {
		return err
	}
	if err := s.act(r, c, "reload", "", nil); err != nil {
		return err
	}
	changes, err := s.cfg.Administration.Reload(r.Context(), c)
	var known *broker.Error
	switch {
	case err != nil && !errors.As(err, &known):
		return &broker.Error{Code: client.InvalidConfiguration, Detail: err.Error()}
	case err != nil:
		return err
	case changes == nil:
		changes = []client.Change{}
	}
	return s.sendJSON(w, http.StatusOK, client.Changes{Changes: changes})
}

func (s *Server) retry(w http.ResponseWriter, r *http.Request, c *access.Caller, name string) error {
	if err := empty(r); err != nil {
		return err
	}
	if err := s.act(r, c, "retry", name, nil); err != nil {
		return err
	}
	done, err := s.cfg.Administration.Retry(r.Context(), name)
	return s.done(w, done, err)
}

func (s *Server) rotate(w http.ResponseWriter, r *http.Request, c *access.Caller, name string) error {
	body, err := s.optionalBody(w, r)
	if err != nil {
		return err
	}
	want, err := parseRotation(body)
	if err != nil {
		return err
	}
	detail := map[string]string{"accept": truth(want.Accept), "latest": truth(want.Latest), "version": want.Version}
	if want.Stored != "" {
		detail["stored"], detail["fields"] = want.Stored, strings.Join(want.Fields, " ")
	}
	if err := s.act(r, c, "rotate", name, detail); err != nil {
		return err
	}
	done, err := s.cfg.Administration.Rotate(r.Context(), name, want)
	return s.done(w, done, err)
}

// done answers with what an act gave, or its error.
func (s *Server) done(w http.ResponseWriter, v any, err error) error {
	if err != nil {
		return err
	}
	return s.sendJSON(w, http.StatusOK, v)
}

func (s *Server) check(w http.ResponseWriter, r *http.Request, c *access.Caller, _ string) error {
	if err := empty(r); err != nil {
		return err
	}
	if err := s.act(r, c, "check", "", nil); err != nil {
		return err
	}
	ctx, end := s.untilStop(r.Context())
	defer end()
	out := s.stream(w)
	for finding := range s.cfg.Administration.Live(ctx) {
		if out.line(finding) != nil {
			return nil // whoever asked has gone
		}
	}
	return nil
}

// empty refuses a query or a body where none belongs.
func empty(r *http.Request) error {
	if r.ContentLength != 0 {
		return invalid("this request has no body")
	}
	return noQuery(r)
}

// stream is an answer of JSON lines, each sent at once. Its status is 200 from
// the first line on: what goes wrong later is told in a line, or ends it.
type stream struct {
	w       http.ResponseWriter
	control *http.ResponseController
	each    time.Duration
}

func (s *Server) stream(w http.ResponseWriter) *stream {
	w.Header()["Content-Type"] = s.fixed.stream
	return &stream{w, http.NewResponseController(w), s.times.line}
}

func (s *stream) line(v any) error {
	// A reader that stops reading does not hold the connection for ever.
	_ = s.control.SetWriteDeadline(time.Now().Add(s.each))
	encoder := json.NewEncoder(s.w)
	encoder.SetEscapeHTML(false) // as in the audit log: its hashes are over these bytes
	if err := encoder.Encode(v); err != nil {
		return err
	}
	return s.control.Flush()
}

func (s *stream) flush() error { return s.control.Flush() }
