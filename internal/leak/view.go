package leak

import (
	"embed"
	"fmt"
	"strconv"
	"strings"
	"text/template"
	"time"
	_ "time/tzdata" // Belgian time on hosts that have no time zones
	"unicode/utf8"
)

//go:embed nl.txt en.txt
var texts embed.FS

// A view is what a template sees: an incident's newest revision, for one
// recipient's role, in one language.
type view struct {
	I    *Incident
	lang Language

	ID, Host, Issuer, Org, OrgFull, OnCall, ReplyTo string
	Caller, Call                                    string // who declared it, with a number; whom to call: that one or the duty
	Kind, Why                                       string // first, follow-up or final; what is new
	N                                               int
	Drill, Draft, Copy                              bool
	Asks, StillServing, TokenOnly, SelfService      bool
	Replaced                                        bool // a new version serves
	AllHosts                                        bool // there are no other hosts
	Traced, ByHand                                  bool
	ClientID                                        string
	LogBegins                                       time.Time
	MustIssue, Waits, Others, Expired               bool
	What, Revoke, Personal, Hosts, Serving          string
	Tokens, Listed, Unlisted                        int
	LastExpiry                                      time.Time
	Actions, New                                    []Action

	// Of copies alone.
	Clients, Declarer, ToIssuer, ToCopy, Clocks string
	Holders                                     []string
	MoreHolders                                 int
	MoreActions                                 int
}

// unbroken is a space at which no line is broken: in a telephone number or a
// date. A plain one is sent.
const unbroken = "\u00a0"

const mostShown = 40 // holders, steps and hosts in the text

func newView(r *Report, i *Incident, lang Language, byHand bool) view {
	v := view{I: i, lang: lang, ID: i.ID, Host: i.Host, Issuer: i.Issuer.Name, Org: r.Organisation.Name, OrgFull: r.Organisation.Name,
		OnCall: r.Contact.Name + ", " + strings.ReplaceAll(r.Contact.Phone, " ", unbroken), ReplyTo: r.Contact.ReplyTo,
		Kind: r.Kind, Why: r.Why, N: r.Revision, Drill: i.Drill, Draft: i.State == Draft, Copy: r.Own != nil,
		Asks: len(r.Requests) > 0, StillServing: !r.Quarantined, SelfService: i.Issuer.Rotation == "self-service",
		Others: len(r.Hosts) > 1, Hosts: names(r.Hosts, lang), AllHosts: r.AllHosts, Serving: names(r.Serving, lang), Personal: lang.word("personal_" + string(i.PersonalData)),
		Tokens: r.Tokens.Count, Listed: len(r.Tokens.Tokens), Unlisted: r.Tokens.Count - len(r.Tokens.Tokens),
		LastExpiry: r.Tokens.LastExpiry, Expired: !r.Tokens.LastExpiry.After(r.ReportedAt), Actions: r.Actions, New: r.New,
		Traced: r.Traced, ByHand: byHand, LogBegins: r.Tokens.LogBegins, ClientID: r.ClientID}
	v.MoreActions = r.More + max(0, len(v.Actions)-mostShown)
	v.Actions, v.New = v.Actions[max(0, len(v.Actions)-mostShown):], v.New[max(0, len(v.New)-mostShown):]
	if unnumbered(i.ID) {
		v.ID = lang.word("unnumbered")
	}
	switch {
	case v.ClientID != "":
	case byHand:
		v.ClientID = lang.word("fill_in")
	default:
		v.ClientID = lang.word("not_known")
	}
	v.Call = v.OnCall
	if v.Caller = r.Contact.DeclaredBy; v.Caller != "" {
		v.Call = v.Caller + ", " + lang.word("or") + " " + v.OnCall
	}
	if kbo := r.Organisation.KBO; kbo != "" {
		v.OrgFull += ", " + lang.word("kbo") + " " + kbo
	}
	var leaked []string
	for _, w := range i.What {
		leaked = append(leaked, lang.word(string(w)))
	}
	v.What, v.Revoke = strings.Join(leaked, ", "), lang.revoke(i, r.Replaced)
	v.TokenOnly = len(i.What) == 1 && i.What[0] == Token
	v.Replaced = r.Replaced
	v.MustIssue = !v.SelfService && !v.TokenOnly && !v.Replaced && i.State != Closed
	v.Waits = v.MustIssue && v.AllHosts && v.Serving == ""
	if r.Own != nil {
		v.own(r.Own)
	}
	return v
}

func names(hosts []string, lang Language) string {
	if more := len(hosts) - mostShown; more > 0 {
		return fmt.Sprintf("%s, %s %d", strings.Join(hosts[:mostShown], ", "), lang.word("and_more"), more)
	}
	return strings.Join(hosts, ", ")
}

func (v *view) own(o *Own) {
	v.MoreHolders = o.MoreHolders
	v.Clients = strings.Join(o.Clients, ", ")
	v.ToIssuer, v.ToCopy = strings.Join(v.I.Issuer.Contacts, ", "), strings.Join(v.I.CopyTo, ", ")
	if v.Drill || v.Draft {
		v.ToIssuer = v.lang.word("nobody")
	}
	login := strconv.FormatUint(uint64(o.DeclaredBy.LoginUID), 10)
	if o.DeclaredBy.LoginUID == 1<<32-1 {
		login = "-"
	}
	v.Declarer = fmt.Sprintf("uid %d, login uid %s, pid %d", o.DeclaredBy.UID, login, o.DeclaredBy.PID)
	if c := o.DeclaredBy.Claimed; c != "" {
		v.Declarer += "; " + v.lang.word("claims") + " " + c
	}
	for _, e := range o.Evidence {
		for _, h := range e.Holders {
			if len(v.Holders) == mostShown {
				v.MoreHolders++
				continue
			}
			who := fmt.Sprintf("%s: uid %d", e.Host, h.UID)
			if h.Unit != "" {
				who += ", " + h.Unit
			}
			if h.PID != 0 {
				who += fmt.Sprintf(", pid %d", h.PID)
			}
			v.Holders = append(v.Holders, fmt.Sprintf("%s: %s; %s", who, h.Held, v.lang.when(h.Last)))
		}
	}
	v.Clocks = Clocks(v.I.KnownAt, v.I.PersonalData, v.lang)
}

// text runs a template of the language, and wraps what comes out.
func (l Language) text(name string, data any) (string, error) {
	t, err := template.New(string(l)+".txt").Funcs(template.FuncMap{
		"when": l.when, "word": l.word, "detail": l.Detail, "upper": strings.ToUpper, "quote": quote,
		"row": func(label, value string) string {
			if value == "" {
				value = "-"
			}
			return label + strings.Repeat(" ", max(1, 24-utf8.RuneCountInString(label))) + value
		},
		"from": func(w Window) string { return l.orWord(w.From, "not_known") },
		"to":   func(w Window) string { return l.orWord(w.To, "goes_on") },
	}).ParseFS(texts, string(l)+".txt")
	if err != nil {
		return "", err
	}
	var b strings.Builder
	if name == "" {
		name = string(l) + ".txt"
	}
	if err := t.ExecuteTemplate(&b, name, data); err != nil {
		return "", err
	}
	return wrap(b.String()), nil
}

// quote indents free text, so that it cannot pass for a part of the report.
func quote(s string) string {
	return "  | " + strings.ReplaceAll(s, "\n", "\n  | ") + "\n"
}

// wrap breaks lines at 76 characters, keeps the indentation of a list, and
// leaves at most one empty line between others.
func wrap(s string) string {
	var b strings.Builder
	blank := true
	for l := range strings.Lines(s) {
		l = strings.TrimRight(l, " \n")
		if l == "" {
			if !blank {
				b.WriteByte('\n')
			}
			blank = true
			continue
		}
		blank = false
		indent, width := "", 0
		switch {
		case strings.HasPrefix(l, "  | "):
			indent = "  | "
		case len(l) > 24 && l[22:24] == "  ":
			indent = strings.Repeat(" ", 24) // a row
		case strings.HasPrefix(l, "- "):
			indent = "  "
		case len(l) > 3 && l[0] >= '1' && l[0] <= '9' && l[1:3] == ". ":
			indent = "   "
		}
		lead := l[:len(l)-len(strings.TrimLeft(l, " "))]
		for n, w := range strings.SplitAfter(l[len(lead):], " ") {
			size := utf8.RuneCountInString(w)
			switch {
			case n == 0:
				b.WriteString(lead)
				width = len(lead)
			case width+utf8.RuneCountInString(strings.TrimRight(w, " ")) > 76:
				b.WriteString("\n" + indent)
				width = len(indent)
			}
			b.WriteString(w)
			width += size
		}
		b.WriteByte('\n')
	}
	lines := strings.Split(strings.TrimRight(b.String(), "\n"), "\n")
	for n := range lines {
		lines[n] = strings.TrimRight(lines[n], " ")
	}
	return strings.ReplaceAll(strings.Join(lines, "\n"), unbroken, " ") + "\n"
}
