package proxy

import (
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"unicode"
	"unicode/utf8"

	"credentialbroker/api/client"
	"credentialbroker/internal/broker"
)

// Rules of this file:
//   - a path is taken as it is or refused, and never mended: what servers make
//     of a path that is not clean differs;
//   - it is compared as every server between here and the API may decode it:
//     some do so twice, and what they could then find is refused.

// parseUpstream reads a base URL.
func parseUpstream(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	if err != nil || u.Hostname() == "" || u.Opaque != "" || u.Scheme != "https" && u.Scheme != "http" {
		return nil, errors.New("not a URL such as https://host/base")
	}
	if ip, err := netip.ParseAddr(u.Hostname()); u.Scheme == "http" && (err != nil || !ip.IsLoopback() || ip.Is4In6() || ip.Zone() != "") {
		return nil, errors.New("http would show the token to the network: https, or http on 127.0.0.1 or [::1]")
	}
	if u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" {
		return nil, errors.New("a base URL has no user, query or fragment")
	}
	if p := u.EscapedPath(); p != "" {
		if _, ok := cleanPath(p); !ok {
			return nil, errors.New("its path has an empty, . or .. segment, or an encoded slash")
		}
	}
	return u, nil
}

// cleanPath decodes the path of a request target (RFC 3986 §3.3). It is false
// if some server might take the path for another one.
func cleanPath(escaped string) (path string, ok bool) {
	rest, rooted := strings.CutPrefix(escaped, "/")
	if !rooted {
		return "", false
	}
	segments := strings.Split(rest, "/")
	for i, s := range segments {
		if s == "" && i < len(segments)-1 {
			return "", false // //: some fold it, some do not
		}
		if segments[i], ok = cleanSegment(s); !ok {
			return "", false
		}
	}
	return "/" + strings.Join(segments, "/"), true
}

// cleanSegment decodes a segment. One in which decoding it again would find
// something is refused whole: the rest of it may be what no decoder takes.
func cleanSegment(escaped string) (string, bool) {
	once, err := url.PathUnescape(escaped)
	if err != nil || !plainSegment(once) || encoded(once) {
		return "", false
	}
	return once, true
}

// encoded says whether s has an octet in it that is percent-encoded (RFC 3986
// §2.1), or a character as %u has it (IIS).
func encoded(s string) bool {
	for _, after := range strings.Split(s, "%")[1:] {
		if len(after) >= 1 && after[0]|0x20 == 'u' || len(after) >= 2 && isHex(after[0]) && isHex(after[1]) {
			return true
		}
	}
	return false
}

func isHex(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'f' || 'A' <= c && c <= 'F'
}

// plainSegment says whether s is a name, and no way to another place. What
// follows ; is a parameter for some servers, what follows ? or # the end of the
// path for one that decodes first, and is cut off before they look.
func plainSegment(s string) bool {
	name := s
	if end := strings.IndexAny(s, ";?#"); end >= 0 {
		name = s[:end]
	}
	return strings.TrimSpace(name) != "." && strings.TrimSpace(name) != ".." && (name != "" || s == "") &&
		!strings.ContainsAny(s, `/\`) && utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// within says whether a clean path is below one of the prefixes, of which none
// means all.
func within(prefixes []string, path string) bool {
	for _, p := range prefixes {
		rest, below := strings.CutPrefix(path, p)
		if below && (rest == "" || rest[0] == '/') {
			return true
		}
	}
	return len(prefixes) == 0
}

// target is the URL that a request goes to.
func (rt *route) target(r *http.Request) (*url.URL, error) {
	switch {
	case r.Method == http.MethodConnect, r.Method == http.MethodTrace, r.Method == "TRACK":
		return nil, invalid("the method " + r.Method + " is not passed on: an answer to it could show the token")
	case !strings.HasPrefix(r.RequestURI, "/"):
		return nil, invalid("the request target begins with / here: the route has one API, and the application names no host")
	}
	raw, query, asked := strings.Cut(r.RequestURI, "?")
	path, ok := cleanPath(raw)
	if !ok || strings.Contains(r.RequestURI, "#") {
		return nil, invalid("the path has an empty, . or .. segment, an encoded slash, or something encoded twice: write it as it is meant")
	}
	if !within(rt.prefixes, path) {
		return nil, &broker.Error{Code: client.NotAllowed, Detail: "the route " + rt.Name + " takes " + strings.Join(rt.prefixes, ", ") + " and what is below; an administrator may add to its paths"}
	}
	return &url.URL{Scheme: rt.base.Scheme, Host: rt.base.Host, Path: rt.base.Path + path, RawPath: rt.base.RawPath + raw,
		RawQuery: query, ForceQuery: asked && query == ""}, nil
}

// outside is the answer to a request that target refuses: whoever may not use
// the client learns nothing of its routes.
func (x *call) outside(err error) error {
	var e *broker.Error
	if errors.As(err, &e) && e.Code == client.NotAllowed {
		return x.rt.server.o.Broker.DeniedPath(x.caller, x.rt.Client, e.Detail)
	}
	return err
}

func invalid(detail string) *broker.Error {
	return &broker.Error{Code: client.InvalidRequest, Detail: detail}
}
