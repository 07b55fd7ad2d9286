package api

import (
	"net/http"
	"strings"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/broker"
)

// A route is one line of a socket's table.
type route struct {
	method string
	path   string // may hold {client} or {incident}, once
	serve  handler

	// dispenses: the broker decides, and looks itself whether the caller is
	// still there, at the last moment. Looking twice would cost a system call.
	dispenses bool

	role Role // admin socket: who may

	place          string   // {client} or {incident}; empty: the path has none
	prefix, suffix string   // of path, around it
	allow          []string // methods of the path, for 405
}

// A handler writes an answer, or returns why there is none.
type handler func(*Server, http.ResponseWriter, *http.Request, *access.Caller, string) error

// What may stand for a name in a path.
const (
	clientPlace   = "{client}"
	incidentPlace = "{incident}"
)

// prepare completes a table.
func prepare(table []route) []route {
	methods := map[string][]string{}
	for _, rt := range table {
		methods[rt.path] = append(methods[rt.path], rt.method)
	}
	for i := range table {
		rt := &table[i]
		for _, place := range []string{clientPlace, incidentPlace} {
			if prefix, suffix, ok := strings.Cut(rt.path, place); ok {
				rt.place, rt.prefix, rt.suffix = place, prefix, suffix
			}
		}
		rt.allow = []string{strings.Join(methods[rt.path], ", ")}
	}
	return table
}

// match finds the route of a request, and the client or incident that its path
// names.
func match(table []route, w http.ResponseWriter, r *http.Request) (*route, string, error) {
	if err := direct(r); err != nil {
		return nil, "", err
	}
	var other *route
	for i := range table {
		rt := &table[i]
		name, ok := rt.match(r.URL.Path)
		switch {
		case !ok:
			continue
		case rt.method != r.Method:
			other = rt
			continue
		case rt.place == clientPlace && !validName(name):
			return nil, "", invalid(nameForm)
		case rt.place == incidentPlace && !validIncident(name):
			return nil, "", invalid("an incident is named as 2026-0007, or with its host as 2026-0007@web1")
		case r.ContentLength != 0 && r.Method != http.MethodPost:
			return nil, "", invalid("a " + r.Method + " request has no body here")
		}
		return rt, name, nil
	}
	if other != nil {
		w.Header()["Allow"] = other.allow
		return nil, "", &broker.Error{Code: client.MethodNotAllowed, Detail: "this path takes " + other.allow[0]}
	}
	return nil, "", &broker.Error{Code: client.NotFound, Detail: "see openapi.yaml for the paths, for example /v1/clients/NAME/token"}
}

func (rt *route) match(path string) (name string, ok bool) {
	if rt.place == "" {
		return "", path == rt.path
	}
	name, ok = strings.CutPrefix(path, rt.prefix)
	if ok {
		name, ok = strings.CutSuffix(name, rt.suffix)
	}
	return name, ok && !strings.Contains(name, "/")
}

const nameForm = "a client's name has 1 to 64 letters, digits, dots, hyphens or underscores, and begins with a letter or digit"

// validName says whether a client could be called so.
func validName(s string) bool {
	if len(s) == 0 || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case i > 0 && (c == '.' || c == '-' || c == '_'):
		default:
			return false
		}
	}
	return true
}

// direct refuses what a browser sends or a proxy passes on: the caller that the
// kernel names would not be the one that asks.
func direct(r *http.Request) error {
	for name := range r.Header {
		if name == "Origin" || name == "X-Forwarded-For" || name == "Forwarded" || strings.HasPrefix(name, "Sec-Fetch-") {
			return invalid("the header " + name + " shows a browser or a proxy: ask the broker directly")
		}
	}
	return nil
}

func invalid(detail string) *broker.Error {
	return &broker.Error{Code: client.InvalidRequest, Detail: detail}
}
