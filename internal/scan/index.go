package scan

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"time"

	"credentialbroker/internal/secret"
)

const (
	minValue = 8            // bytes; a shorter value would be found everywhere
	maxValue = 10 << 10     // bytes
	maxForm  = 6 * maxValue // what the longest escaping makes of it
)

// ErrLength is returned for a value that cannot be looked for.
var ErrLength = errors.New("scan: a value can be looked for if it has 8 to 10240 bytes")

// An Index knows how all secrets and tokens look, without having them: of each
// value it keeps, under random keys of its own, the hashes of some windows of
// every form, and an HMAC of each whole form. That a value is retired changes
// nothing but a mark, and that it is forgotten some time later. All methods may
// be called from many goroutines.
type Index struct {
	cfg     IndexConfig
	hash    []byte // key of the windows' hashes, which scanners get
	confirm []byte // key of the whole forms, which nobody gets

	mu      sync.Mutex
	values  map[id]*value
	windows map[window][]place // the first window of each form
	hashers map[int]*hasher    // by width
	retired [2][]retirement    // of secrets, and of what is brief; oldest first
}

// IndexConfig configures an Index.
type IndexConfig struct {
	Keep       time.Duration // how long a retired value is still looked for. Zero: 90 days
	MaxRetired int           // how many retired values are kept; the oldest go first. Zero: 20000
	KeepBrief  time.Duration // Keep of brief values. Zero: 7 days
	MaxBrief   int           // MaxRetired of brief values. Zero: 5000
}

// A Needle is a value to look for. Version names it among the values of that
// field: the provider's version, or a token's fingerprint.
type Needle struct {
	Client, Field, Version string
	Value                  secret.Secret
	Brief                  bool // one of many that end by themselves, as tokens do: they do not push out the others
}

type id struct{ client, field, version string }

// value is what is known of one value.
type value struct {
	id
	brief   bool
	retired time.Time // zero: live
	forms   []known
}

// retirement is void if the value became live again, or was retired again.
type retirement struct {
	value *value
	at    time.Time
}

// known is what is known of one form.
type known struct {
	name          string
	length        int
	core          int // offset of the first window
	width, stride int
	windows       []window // at core, core+1, …: stride of them
	quick         []uint32
	sum           [sha256.Size]byte // HMAC of the whole
}

// place is a form, and whose.
type place struct {
	value *value
	form  *known
}

// NewIndex makes an empty Index with keys of its own.
func NewIndex(cfg IndexConfig) *Index {
	if cfg.Keep == 0 {
		cfg.Keep = 90 * 24 * time.Hour
	}
	if cfg.MaxRetired == 0 {
		cfg.MaxRetired = 20000
	}
	if cfg.KeepBrief == 0 {
		cfg.KeepBrief = 7 * 24 * time.Hour
	}
	if cfg.MaxBrief == 0 {
		cfg.MaxBrief = 5000
	}
	return &Index{
		cfg: cfg, hash: random(), confirm: random(),
		values: map[id]*value{}, windows: map[window][]place{}, hashers: map[int]*hasher{},
	}
}

func random() []byte {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails
	return b
}

// Add makes a value known, and live again if it was retired. A known version
// is not looked at again. It returns an error that is ErrLength for a value
// that cannot be looked for, and secret.ErrWiped for one that is gone. White
// space around a value does not belong to it.
func (x *Index) Add(n Needle) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.expire()
	key := id{n.Client, n.Field, n.Version}
	if v := x.values[key]; v != nil {
		v.retired = time.Time{}
		return nil
	}
	v := &value{id: key, brief: n.Brief}
	err := n.Value.Use(func(b []byte) error {
		b = bytes.TrimSpace(b)
		if len(b) < minValue || len(b) > maxValue {
			return fmt.Errorf("%w: %s of client %s, version %s, has %d", ErrLength, n.Field, n.Client, n.Version, len(b))
		}
		for _, f := range forms(b) {
			v.forms = append(v.forms, x.learn(f))
			clear(f.text)
		}
		return nil
	})
	if err != nil {
		return err
	}
	x.values[key] = v
	for i := range v.forms {
		f := &v.forms[i]
		x.windows[f.windows[0]] = append(x.windows[f.windows[0]], place{v, f})
	}
	return nil
}

// learn keeps of a form what does not give it away.
func (x *Index) learn(f form) known {
	k := known{name: f.name, length: len(f.text), core: f.core, width: f.width, stride: 1}
	for k.stride < maxStride && k.stride*2 <= f.coreLen-f.width+1 {
		k.stride *= 2
	}
	h := x.hasher(f.width)
	for i := range k.stride {
		w := f.text[f.core+i : f.core+i+f.width]
		k.windows = append(k.windows, h.strong(w))
		k.quick = append(k.quick, h.fast(w))
	}
	k.sum = x.sum(f.text)
	return k
}

func (x *Index) hasher(width int) *hasher {
	if x.hashers[width] == nil {
		x.hashers[width] = newHasher(x.hash, width)
	}
	return x.hashers[width]
}

func (x *Index) sum(b []byte) (sum [sha256.Size]byte) {
	h := hmac.New(sha256.New, x.confirm)
	h.Write(b)
	h.Sum(sum[:0])
	return sum
}

// Retire says that a value is no longer in use. It is still found, marked so,
// until Keep has passed. An unknown one is ignored.
func (x *Index) Retire(client, field, version string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if v := x.values[id{client, field, version}]; v != nil && v.retired.IsZero() {
		v.retired = time.Now()
		x.retired[queue(v)] = append(x.retired[queue(v)], retirement{v, v.retired})
	}
	x.expire()
}

func queue(v *value) int {
	if v.brief {
		return 1
	}
	return 0
}

// expire forgets what has been retired for too long.
func (x *Index) expire() {
	x.retired[0] = x.shorten(x.retired[0], x.cfg.Keep, x.cfg.MaxRetired)
	x.retired[1] = x.shorten(x.retired[1], x.cfg.KeepBrief, x.cfg.MaxBrief)
}

func (x *Index) shorten(list []retirement, keep time.Duration, most int) []retirement {
	for len(list) > 0 {
		r := list[0]
		valid := r.value.retired.Equal(r.at)
		if valid && len(list) <= most && time.Since(r.at) < keep {
			break
		}
		list[0] = retirement{}
		list = list[1:]
		if valid {
			x.forget(r.value)
		}
	}
	return list
}

func (x *Index) forget(v *value) {
	delete(x.values, v.id)
	for i := range v.forms {
		w := v.forms[i].windows[0]
		rest := slices.DeleteFunc(x.windows[w], func(p place) bool { return p.value == v })
		if x.windows[w] = rest; len(rest) == 0 {
			delete(x.windows, w)
		}
	}
}

// Filter makes a filter for one scan, under a key of its own.
func (x *Index) Filter() Filter {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.expire()
	f := Filter{Key: random(), Hash: slices.Clone(x.hash), Classes: []Class{}}
	byWidth := map[int][]*known{}
	for _, v := range x.values {
		for i := range v.forms {
			k := &v.forms[i]
			byWidth[k.width] = append(byWidth[k.width], k)
			f.Before = max(f.Before, k.core+maxStride)
			f.After = max(f.After, k.length-k.core)
		}
	}
	f.Before, f.After = min(f.Before, maxForm), min(f.After, maxForm)
	for width, list := range byWidth {
		f.Classes = append(f.Classes, class(f.Key, width, list))
	}
	slices.SortFunc(f.Classes, func(a, b Class) int { return a.Width - b.Width })
	return f
}

// class puts the windows of one width together. If one form is so short that
// every place has to be looked at, one window of each form is enough.
func class(key []byte, width int, list []*known) Class {
	c := Class{Width: width, Stride: maxStride}
	for _, k := range list {
		c.Stride = min(c.Stride, k.stride)
	}
	n := bits.Len(uint(len(list) * c.Stride))
	c.Entry = min(8, (n+spare+7)/8)
	size := min(quickBits, max(6, n+bits.Len(quickFactor-1)))
	words := make([]uint64, 1<<(size-6))
	v := newView(key, width, c.Entry)
	var entries []uint64
	for _, k := range list {
		for i := range c.Stride {
			b := v.bit(k.quick[i], size)
			words[b>>6] |= 1 << (b & 63)
			entries = append(entries, v.entry(k.windows[i]))
		}
	}
	slices.Sort(entries) // which also hides what belongs together
	for _, e := range slices.Compact(entries) {
		c.Table = append(c.Table, binary.LittleEndian.AppendUint64(nil, e)[:c.Entry]...)
	}
	for _, w := range words {
		c.Quick = binary.LittleEndian.AppendUint64(c.Quick, w)
	}
	return c
}

// A Candidate is a window that passed the filter, with what stands around it.
type Candidate struct {
	At   int    `json:"at"`   // where in Text the window begins
	Text []byte `json:"text"` // at most Filter.Before, the window and Filter.After
}

// A Match is a value that stands, whole, in a candidate's text.
type Match struct {
	Client  string `json:"client"`
	Field   string `json:"field"`
	Version string `json:"version"`
	Form    string `json:"form"`
	Retired bool   `json:"retired"`
	Start   int    `json:"start"` // in the candidate's text
	End     int    `json:"end"`
}

// Confirm says which values stand around the candidate's window: the whole
// form, compared by an HMAC under a key that no scanner has, so that an answer
// tells nothing to who does not have the value already. Of several forms of one
// value the longest counts. Confirm wipes the text. A candidate that no scanner
// would send matches nothing.
func (x *Index) Confirm(c Candidate) []Match {
	defer clear(c.Text)
	if len(c.Text) > 2*maxForm+maxWidth || c.At < 0 || c.At >= len(c.Text) {
		return nil
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.expire()
	best := map[*value]Match{}
	for _, h := range x.hashers {
		for before := range maxStride { // the candidate's window is one of several of its form
			at := c.At - before
			if at < 0 || c.At+h.width > len(c.Text) {
				break
			}
			for _, p := range x.windows[h.strong(c.Text[at:])] {
				if p.form.width == h.width && before < p.form.stride {
					x.compare(c.Text, at-p.form.core, p, best)
				}
			}
		}
	}
	var list []Match
	for _, m := range best {
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b Match) int {
		return slices.Compare([]string{a.Client, a.Field, a.Version}, []string{b.Client, b.Field, b.Version})
	})
	return list
}

// Holds says whether a value that is known, live or retired, stands in text.
func (x *Index) Holds(text []byte) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.expire()
	found := map[*value]Match{}
	for _, h := range x.hashers {
		for at := 0; at+h.width <= len(text); at++ {
			for _, p := range x.windows[h.strong(text[at:])] {
				if p.form.width == h.width {
					x.compare(text, at-p.form.core, p, found)
				}
			}
			if len(found) > 0 {
				return true
			}
		}
	}
	return false
}

// compare says in best if p's form stands at start, unless a longer one does.
func (x *Index) compare(text []byte, start int, p place, best map[*value]Match) {
	end := start + p.form.length
	if start < 0 || end > len(text) || end-start <= best[p.value].End-best[p.value].Start {
		return
	}
	if sum := x.sum(text[start:end]); hmac.Equal(sum[:], p.form.sum[:]) {
		v := p.value
		best[v] = Match{v.client, v.field, v.version, p.form.name, !v.retired.IsZero(), start, end}
	}
}
