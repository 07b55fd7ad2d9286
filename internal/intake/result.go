package intake

import (
	"cmp"
	"fmt"

	"credentialbroker/internal/secret"
)

// maxLoose bounds the values without a label that a person is asked about.
const maxLoose = 10

// result weighs what was found, once everything was read: a label may mean
// what the others say.
func (in *reader) result() (Found, error) {
	if in.full {
		return Found{}, &Error{TooLarge, fmt.Sprintf("more than %d values have the label of a credential", maxFinds), "paste those of one client"}
	}
	f := Found{Fields: map[string]secret.Secret{}, Places: map[string]string{}}
	for _, field := range []string{ClientID, ClientSecret, APIKey} {
		if err := in.settle(&f, field); err != nil {
			f.Wipe()
			return Found{}, err
		}
	}
	if err := in.loose(&f); err != nil {
		f.Wipe()
		return Found{}, err
	}
	f.Notes, f.Left = in.notes, in.left
	for _, d := range f.Doubts {
		if len(d.Candidates) > 0 {
			return f, nil
		}
	}
	switch {
	case len(f.Fields) > 0:
		return f, nil
	case in.refused != nil:
		return Found{}, in.refused
	case len(f.Doubts) > 0:
		return Found{}, &Error{NotUnderstood, "labels stand there, but no value that could be a credential", "open the file; if you see the values, paste them as “client id: …”"}
	}
	return Found{}, &Error{NotUnderstood, "nothing in it looks like a client id, client secret or API key", "open the file; if you see the values, paste them as “client id: …”"}
}

// settle decides on one field: sure, doubtful, or not there.
func (in *reader) settle(f *Found, field string) error {
	finds := in.worthwhile(field)
	var certain []find
	for _, x := range finds {
		if x.why == "" && !contains(certain, x.values[0]) {
			certain = append(certain, x)
		}
	}
	doubt := Doubt{Field: field}
	for _, x := range finds {
		// A second reading of what is certain elsewhere settles itself.
		if x.why == "" || !knows(x, certain) {
			if err := doubt.add(x); err != nil {
				return err
			}
			if doubt.Why == "" {
				doubt.Why = x.why
			}
		}
	}
	if len(doubt.Candidates) == 1 && len(certain) == 1 {
		f.Fields[field], f.Places[field] = doubt.Candidates[0].Value, doubt.Candidates[0].Place
		return nil
	}
	if len(certain) > 0 {
		doubt.Why = "several different values have such a label"
	}
	if len(finds) == 0 {
		for _, l := range in.bare {
			if l.field == field {
				doubt.Why = fmt.Sprintf("the label “%s” stands without a value (%s)", l.text, l.place)
			}
		}
		if doubt.Why == "" {
			return nil
		}
	}
	f.Doubts = append(f.Doubts, doubt)
	return nil
}

// worthwhile gives the finds of a field that count: the clearest labels, and
// no old ones beside new ones. It notes what it leaves out.
func (in *reader) worthwhile(field string) []find {
	var good, rest []find
	for _, x := range in.finds {
		if x.label.field != field {
			continue
		}
		switch {
		case x.label.strength == weak:
			x.why = cmp.Or(x.why, fmt.Sprintf("its label “%s” may mean something else", x.label.text))
		case x.label.strength == bare && in.ambiguous():
			x.why = cmp.Or(x.why, fmt.Sprintf("its label “%s” may be that of an API key's secret", x.label.text))
		}
		if x.label.old {
			x.why = cmp.Or(x.why, "its label says that it is an old one")
		}
		if x.label.strength == weak || x.label.old {
			rest = append(rest, x)
		} else {
			good = append(good, x)
		}
	}
	if len(good) == 0 {
		return rest
	}
	for _, x := range rest {
		in.leave("The value after “%s” (%s) was left out: others have a clearer label.", x.label.text, x.label.place)
	}
	return good
}

// ambiguous says whether "secret" alone may belong to an API key: one is
// there, or no client id is.
func (in *reader) ambiguous() bool {
	id := false
	for _, x := range in.finds {
		if x.label.field == APIKey {
			return true
		}
		id = id || x.label.field == ClientID
	}
	for _, l := range in.bare {
		if l.field == APIKey || l.field == apiSecret {
			return true
		}
	}
	return !id
}

// loose asks about the values without a label, if something is missing.
func (in *reader) loose(f *Found) error {
	_, id := f.Fields[ClientID]
	_, pass := f.Fields[ClientSecret]
	if id && pass {
		return nil
	}
	all := Doubt{Why: "no label says what this is"}
	for _, x := range in.finds {
		if x.label.field == "" && len(all.Candidates) < maxLoose && !f.has(x.values[0]) {
			if err := all.add(x); err != nil {
				return err
			}
		}
	}
	if len(all.Candidates) == 0 {
		return nil
	}
	waiting := false
	for i, d := range f.Doubts { // a label without a value: it is one of these
		if len(d.Candidates) == 0 {
			f.Doubts[i].Candidates = all.Candidates
			waiting = true
		}
	}
	if !waiting {
		f.Doubts = append(f.Doubts, all)
	}
	return nil
}

// has says whether v is among what was found.
func (f *Found) has(v secret.Secret) bool {
	for _, have := range f.Fields {
		if have.Equal(v) {
			return true
		}
	}
	for _, d := range f.Doubts {
		for _, c := range d.Candidates {
			if c.Value.Equal(v) {
				return true
			}
		}
	}
	return false
}

// add adds copies of the readings of x that are not there yet.
func (d *Doubt) add(x find) error {
next:
	for _, v := range x.values {
		for _, have := range d.Candidates {
			if have.Value.Equal(v) {
				continue next
			}
		}
		own, err := v.Clone()
		if err != nil {
			return err
		}
		d.Candidates = append(d.Candidates, Candidate{own, x.label.text, x.label.place})
	}
	return nil
}

func contains(finds []find, v secret.Secret) bool {
	for _, x := range finds {
		if x.values[0].Equal(v) {
			return true
		}
	}
	return false
}

func knows(x find, certain []find) bool {
	for _, v := range x.values {
		if contains(certain, v) {
			return true
		}
	}
	return false
}
