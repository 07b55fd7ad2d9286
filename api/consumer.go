package api

import (
	"encoding/json"
	"net/http"
	"strings"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
)

// consumerRoutes is the table of the consumer socket, the most frequent first.
func consumerRoutes() []route {
	return []route{
		{method: http.MethodGet, path: "/v1/clients/{client}/token", serve: (*Server).token, dispenses: true},
		{method: http.MethodGet, path: "/v1/clients/{client}/headers", serve: (*Server).headers, dispenses: true},
		{method: http.MethodGet, path: "/v1/clients/{client}/api-key", serve: (*Server).apiKey, dispenses: true},
		{method: http.MethodPost, path: "/v1/clients/{client}/jwt", serve: (*Server).jwt, dispenses: true},
		{method: http.MethodGet, path: "/v1/clients/{client}/events", serve: (*Server).events, dispenses: true},
		{method: http.MethodPost, path: oauthPath, serve: (*Server).oauthToken, dispenses: true},
		{method: http.MethodPost, path: "/v1/clients/{client}/reject", serve: (*Server).reject},
		{method: http.MethodGet, path: "/v1/whoami", serve: (*Server).whoami},
		{method: http.MethodGet, path: "/healthz", serve: (*Server).alive},
		{method: http.MethodGet, path: "/readyz", serve: (*Server).ready},
	}
}

func (s *Server) token(w http.ResponseWriter, r *http.Request, c *access.Caller, name string) error {
	req, err := tokenRequest(r.URL.RawQuery, name, access.Token)
	if err != nil {
		return err
	}
	g, err := s.cfg.Broker.Token(r.Context(), c, req)
	if err != nil {
		return err
	}
	return s.sendWiped(w, s.fixed.json, func(b *wiped) error { return b.token(g) })
}

func (s *Server) headers(w http.ResponseWriter, r *http.Request, c *access.Caller, name string) error {
	req, err := tokenRequest(r.URL.RawQuery, name, access.Headers)
	if err != nil {
		return err
	}
	g, err := s.cfg.Broker.Token(r.Context(), c, req)
	if err != nil {
		return err
	}
	if wantsJSON(r) {
		return s.sendWiped(w, s.fixed.json, func(b *wiped) error { return b.object(g) })
	}
	return s.sendWiped(w, s.fixed.text, func(b *wiped) error { return b.lines(g) })
}

func (s *Server) apiKey(w http.ResponseWriter, r *http.Request, c *access.Caller, name string) error {
	if err := noQuery(r); err != nil {
		return err
	}
	g, err := s.cfg.Broker.APIKey(r.Context(), c, name)
	if err != nil {
		return err
	}
	return s.sendWiped(w, s.fixed.text, func(b *wiped) error { return g.APIKey().Use(b.bytes) })
}

// sendWiped answers with what fill writes, and wipes it.
func (s *Server) sendWiped(w http.ResponseWriter, kind []string, fill func(*wiped) error) error {
	b := s.buffers.get()
	defer s.buffers.put(b)
	if err := fill(b); err != nil {
		return err
	}
	send(w, http.StatusOK, kind, b.b)
	return nil
}

func (s *Server) reject(w http.ResponseWriter, r *http.Request, c *access.Caller, name string) error {
	if err := noQuery(r); err != nil {
		return err
	}
	body, err := s.readBody(w, r)
	if err != nil {
		return err
	}
	rejection, err := parseRejection(body)
	if err != nil {
		return err
	}
	defer rejection.AccessToken.Wipe()
	rejection.Client = name
	done, err := s.cfg.Broker.Reject(r.Context(), c, rejection)
	if err != nil {
		return err
	}
	return s.sendJSON(w, http.StatusOK, client.Rejected{Replaced: done.Replaced, Fingerprint: done.Fingerprint, Reason: done.Reason,
		RetryAfter: seconds(done.RetryAfter)})
}

func (s *Server) whoami(w http.ResponseWriter, r *http.Request, c *access.Caller, _ string) error {
	if err := noQuery(r); err != nil {
		return err
	}
	id := s.cfg.Broker.Whoami(c)
	answer := client.Whoami{Caller: id.Caller, Clients: []client.WhoamiClient{}}
	for _, one := range id.Clients {
		wire := client.WhoamiClient{Client: one.Client, Entries: one.Entries}
		for _, surface := range one.Surfaces {
			wire.Surfaces = append(wire.Surfaces, string(surface))
		}
		answer.Clients = append(answer.Clients, wire)
	}
	return s.sendJSON(w, http.StatusOK, answer)
}

func (s *Server) alive(w http.ResponseWriter, r *http.Request, _ *access.Caller, _ string) error {
	if err := noQuery(r); err != nil {
		return err
	}
	return s.sendJSON(w, http.StatusOK, json.RawMessage(`{"status":"ok"}`))
}

func (s *Server) ready(w http.ResponseWriter, r *http.Request, c *access.Caller, _ string) error {
	if err := noQuery(r); err != nil {
		return err
	}
	is := s.cfg.Broker.Ready(c)
	answer := client.Readiness{Ready: is.Ready, Others: is.Others, Clients: []client.ReadinessClient{}}
	for _, one := range is.Clients {
		answer.Clients = append(answer.Clients, client.ReadinessClient(one))
	}
	status := http.StatusOK
	if !is.Ready {
		status = http.StatusServiceUnavailable
	}
	return s.sendJSON(w, status, answer)
}

// wantsJSON says whether JSON is asked for by name; "*/*" means text, which is
// what curl -H @- reads.
func wantsJSON(r *http.Request) bool {
	for _, accept := range r.Header["Accept"] {
		for one := range strings.SplitSeq(accept, ",") {
			kind, _, _ := strings.Cut(one, ";")
			switch strings.ToLower(strings.TrimSpace(kind)) {
			case "application/json":
				return true
			case "text/plain":
				return false
			}
		}
	}
	return false
}
