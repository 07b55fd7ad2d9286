package audit

import (
	"bufio"
	"cmp"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Denial is one distinct refusal: who wanted what. A process that tries a
// thousand times is one Denial.
type Denial struct {
	Client  string    `json:"client"`
	Surface string    `json:"surface,omitempty"` // Detail["surface"] of the events
	Scope   string    `json:"scope,omitempty"`
	Code    string    `json:"code,omitempty"` // why
	Caller  Caller    `json:"caller"`         // pid and start are those of the newest
	First   time.Time `json:"first"`
	Last    time.Time `json:"last"`
	Count   int64     `json:"count"`
}

const maxDenials = 10000

// Denied groups the denials since a time by what was asked for, why it was
// refused, and who asked: user, group, unit, login and container, not the
// process. The newest comes first. Beyond 10,000 the rest is one Denial with
// code "more". Lines that cannot be read are passed over: Verify finds them.
func Denied(dir string, since time.Time) ([]Denial, error) {
	type key struct {
		client, surface, scope, code string
		caller                       Caller
	}
	groups := make(map[key]*Denial)
	for e, err := range Read(dir, 0) {
		if fatal(err) {
			return nil, err
		}
		if err != nil || e.Type != AccessDenied || e.Time.Before(since) {
			continue
		}
		k := key{client: e.Client, surface: e.Detail["surface"], scope: e.Scope, code: e.Code}
		var who Caller
		if e.Caller != nil {
			who = *e.Caller
		}
		k.caller = who
		k.caller.PID, k.caller.Start = 0, 0
		if groups[k] == nil && len(groups) >= maxDenials {
			k, who = key{code: "more"}, Caller{}
		}
		d := groups[k]
		first := cmp.Or(e.First, e.Time)
		if d == nil {
			d = &Denial{Client: k.client, Surface: k.surface, Scope: k.scope, Code: k.code, First: first}
			groups[k] = d
		}
		if first.Before(d.First) {
			d.First = first
		}
		d.Caller, d.Last = who, cmp.Or(e.Last, e.Time)
		d.Count += max(e.Count, 1)
	}
	denials := make([]Denial, 0, len(groups))
	for _, d := range groups {
		denials = append(denials, *d)
	}
	slices.SortFunc(denials, func(a, b Denial) int {
		return cmp.Or(b.Last.Compare(a.Last), strings.Compare(a.Client, b.Client), cmp.Compare(a.Caller.UID, b.Caller.UID))
	})
	return denials, nil
}

// Export writes the entries from one time to another (zero: without a bound;
// to is not included): as "json", the lines as they stand in the log, so that
// their hashes can be checked; as "csv", a table for people, in which no cell
// is a formula. Lines that cannot be read are left out, and the error says how
// many there are.
func Export(w io.Writer, dir string, from, to time.Time, format string) error {
	out := bufio.NewWriterSize(w, 64<<10)
	var write func(Entry, []byte) error
	switch format {
	case "json":
		write = func(_ Entry, raw []byte) error {
			_, err := out.Write(raw)
			return cmp.Or(err, out.WriteByte('\n'))
		}
	case "csv":
		table := csv.NewWriter(out)
		line := func(cells []string) error {
			err := table.Write(cells)
			table.Flush()
			return cmp.Or(err, table.Error())
		}
		if err := line(columns()); err != nil {
			return err
		}
		write = func(e Entry, _ []byte) error { return line(row(e)) }
	default:
		return fmt.Errorf("audit export: %q is no format: json or csv", format)
	}
	c, err := seek(dir, 0)
	if err != nil {
		return err
	}
	defer c.close()
	bad := 0
	for {
		e, err := c.next()
		switch {
		case errors.Is(err, io.EOF):
			if bad > 0 {
				err = fmt.Errorf("%d lines of the audit log cannot be read or were changed, and were left out: run broker audit verify", bad)
			} else {
				err = nil
			}
			return cmp.Or(out.Flush(), err)
		case fatal(err):
			return cmp.Or(err, out.Flush())
		case err != nil:
			bad++
		case e.Time.Before(from) || !to.IsZero() && !e.Time.Before(to):
		default:
			if err := write(e, c.raw); err != nil {
				return err
			}
		}
	}
}

func columns() []string {
	return []string{"seq", "time", "type", "client", "version", "fingerprint", "jti", "scope", "audience", "expires",
		"pid", "uid", "gid", "unit", "user_unit", "loginuid", "container",
		"actor_pid", "actor_uid", "actor_loginuid", "count", "first", "last", "code", "detail", "hash"}
}

func row(e Entry) []string {
	cells := []string{strconv.FormatUint(e.Seq, 10), when(e.Time), string(e.Type), e.Client, e.Version, e.Fingerprint, e.JTI, e.Scope, e.Audience, when(e.Expires)}
	if c := e.Caller; c != nil {
		cells = append(cells, id(c.PID), id(c.UID), id(c.GID), c.Unit, c.UserUnit, id(c.LoginUID), strconv.FormatBool(c.Container))
	} else {
		cells = append(cells, make([]string, 7)...)
	}
	if a := e.Actor; a != nil {
		cells = append(cells, id(a.PID), id(a.UID), id(a.LoginUID))
	} else {
		cells = append(cells, make([]string, 3)...)
	}
	detail := ""
	if len(e.Detail) > 0 {
		b, _ := json.Marshal(e.Detail) // a map of strings has no error
		detail = string(b)
	}
	cells = append(cells, strconv.FormatInt(max(e.Count, 1), 10), when(e.First), when(e.Last), e.Code, detail, e.Hash)
	for i, c := range cells {
		// A spreadsheet takes these for the beginning of a formula.
		if c != "" && strings.ContainsRune("=+-@\t\r", rune(c[0])) {
			cells[i] = "'" + c
		}
	}
	return cells
}

func id[N int32 | uint32](n N) string { return strconv.FormatInt(int64(n), 10) }

func when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Format(time.RFC3339Nano)
}
