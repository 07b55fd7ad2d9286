package api

import (
	"context"
	"net/http"
	"strconv"
	"strings"
	"time"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
)

// maxLast bounds how many entries a tail begins with.
const maxLast = 10000

// unreadable stands in a stream for a line that is no entry any more.
type unreadable struct {
	Problem string `json:"problem"`
}

// auditTail answers with the last entries.
func (s *Server) auditTail(w http.ResponseWriter, r *http.Request, _ *access.Caller, _ string) error {
	return s.tail(w, r, false)
}

// auditFollow goes on with each new one.
func (s *Server) auditFollow(w http.ResponseWriter, r *http.Request, _ *access.Caller, _ string) error {
	return s.tail(w, r, true)
}

func (s *Server) tail(w http.ResponseWriter, r *http.Request, follow bool) error {
	last := 10
	err := parse(r.URL.RawQuery, "last", func(name, value string) (bool, error) {
		var err error
		if last, err = strconv.Atoi(value); err != nil || last < 0 || last > maxLast {
			err = invalid("last is a number of entries, up to 10000")
		}
		return name == "last", err
	})
	if err != nil {
		return err
	}
	ctx, end := s.untilStop(r.Context())
	defer end()
	out := s.stream(w)
	if out.flush() != nil { // the answer begins now, also if no entry comes for a while
		return nil
	}
	for e, err := range audit.Tail(ctx, s.cfg.Administration.AuditDir, last, follow) {
		var v any = e
		if err != nil {
			v = unreadable{err.Error()}
		}
		if out.line(v) != nil {
			return nil // whoever asked has gone
		}
	}
	return nil
}

func (s *Server) auditDenied(w http.ResponseWriter, r *http.Request, _ *access.Caller, _ string) error {
	var since time.Time
	err := parse(r.URL.RawQuery, "since", func(name, value string) (ok bool, err error) {
		since, err = moment(name, value)
		return name == "since", err
	})
	if err != nil {
		return err
	}
	defer s.alone()()
	denials, err := audit.Denied(s.cfg.Administration.AuditDir, since)
	if err != nil {
		return s.unreadableLog(err)
	}
	for i := range denials {
		// "reason:surface" is how some events say both.
		if d := &denials[i]; d.Surface == "" {
			d.Code, d.Surface, _ = strings.Cut(d.Code, ":")
		}
	}
	return s.sendJSON(w, http.StatusOK, map[string]any{"denials": denials})
}

func (s *Server) auditVerify(w http.ResponseWriter, r *http.Request, _ *access.Caller, _ string) error {
	if err := noQuery(r); err != nil {
		return err
	}
	defer s.alone()()
	report, err := audit.Verify(s.cfg.Administration.AuditDir, nil)
	if err != nil {
		return s.unreadableLog(err)
	}
	return s.sendJSON(w, http.StatusOK, report)
}

func (s *Server) auditExport(w http.ResponseWriter, r *http.Request, _ *access.Caller, _ string) error {
	var from, to time.Time
	format := "json"
	err := parse(r.URL.RawQuery, "from, to, format", func(name, value string) (ok bool, err error) {
		switch name {
		case "from":
			from, err = moment(name, value)
		case "to":
			to, err = moment(name, value)
		case "format":
			if format = value; format != "json" && format != "csv" {
				err = invalid("format is json or csv")
			}
		default:
			return false, nil
		}
		return true, err
	})
	if err != nil {
		return err
	}
	defer s.alone()()
	w.Header()["Content-Type"] = s.fixed.stream
	if format == "csv" {
		w.Header()["Content-Type"] = s.fixed.csv
	}
	out := patient{w, http.NewResponseController(w), s.times.line}
	if err := audit.Export(out, s.cfg.Administration.AuditDir, from, to, format); err != nil {
		// The status has been sent: an answer that breaks off is the one sign left.
		s.log.Warn("an export of the audit log broke off", "error", err)
		panic(http.ErrAbortHandler)
	}
	return nil
}

// alone lets one reader of the whole log work at a time: each costs a core.
func (s *Server) alone() (unlock func()) {
	s.reading.Lock()
	return s.reading.Unlock
}

func (s *Server) unreadableLog(err error) error {
	s.log.Error("the audit log cannot be read", "error", err)
	return &broker.Error{Code: client.AuditUnavailable, RetryAfter: 30 * time.Second, Err: err,
		Detail: "the audit log cannot be read; the daemon's journal says why"}
}

// moment reads a point in time: RFC 3339, or a duration back from now.
func moment(name, value string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339Nano, value); err == nil {
		return t, nil
	}
	if d, err := clock.ParseDuration(value); err == nil {
		return time.Now().Add(-d.D()), nil
	}
	return time.Time{}, invalid(name + " is a time such as 2026-11-21T09:00:00Z, or a duration back from now such as 24h")
}

// patient gives each write its own time.
type patient struct {
	http.ResponseWriter
	control *http.ResponseController
	each    time.Duration
}

func (p patient) Write(b []byte) (int, error) {
	_ = p.control.SetWriteDeadline(time.Now().Add(p.each))
	return p.ResponseWriter.Write(b)
}

// untilStop is a context for streams, which end when the server goes down.
func (s *Server) untilStop(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.stopping, cancel)
	return ctx, func() { stop(); cancel() }
}
