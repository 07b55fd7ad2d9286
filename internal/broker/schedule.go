package broker

import (
	"container/heap"
	"sync"
	"time"

	"credentialbroker/internal/audit"
	"credentialbroker/internal/clock"
	"credentialbroker/internal/scan"
)

// schedule is when which entry is looked at next. Being early costs nothing:
// tend decides anew.
type schedule struct {
	mu   sync.Mutex
	heap entryHeap
	wake chan struct{}
}

const longestSleep = time.Hour

// at schedules e for when, unless it is due earlier.
func (s *schedule) at(e *entry, when clock.Reading) {
	s.mu.Lock()
	switch {
	case e.index < 0:
		e.due = when
		heap.Push(&s.heap, e)
	case when.Boot < e.due.Boot:
		e.due = when
		heap.Fix(&s.heap, e.index)
	default:
		s.mu.Unlock()
		return
	}
	first := e.index == 0
	s.mu.Unlock()
	if first {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// wait is how long to sleep.
func (s *schedule) wait(now clock.Reading) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.heap) == 0 {
		return longestSleep
	}
	return min(max(0, s.heap[0].due.Sub(now)), longestSleep)
}

// due takes out what is to be looked at now.
func (s *schedule) due(now clock.Reading) (list []*entry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.heap) > 0 && s.heap[0].due.Sub(now) <= 0 {
		list = append(list, heap.Pop(&s.heap).(*entry))
	}
	return list
}

type entryHeap []*entry

func (h entryHeap) Len() int           { return len(h) }
func (h entryHeap) Less(i, j int) bool { return h[i].due.Boot < h[j].due.Boot }
func (h entryHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i]; h[i].index, h[j].index = i, j }

// Push is for container/heap.
func (h *entryHeap) Push(x any) {
	e := x.(*entry)
	e.index = len(*h)
	*h = append(*h, e)
}

// Pop is for container/heap.
func (h *entryHeap) Pop() any {
	n := len(*h) - 1
	e := (*h)[n]
	(*h)[n], *h, e.index = nil, (*h)[:n], -1
	return e
}

// tend does what is due for an entry: renew its token, or let go of it, and
// schedule the next look.
func (b *Broker) tend(e *entry) {
	cl := e.state.client.Load()
	if now := b.clients.Load().byName[cl.cfg.Name]; now == nil || now.state != e.state || !e.known() {
		b.drop(e) // the client is gone, or its issuer is another, or the combination was forgotten
		return
	}
	b.settle(e)
	if e.carried.Load() != nil {
		b.sched.at(e, b.o.Clock.Now().Add(settleAgain))
		return
	}
	if b.incident(cl.cfg.Name) != "" {
		return // Contain schedules it again
	}
	now, h := b.o.Clock.Now(), e.held.Load()
	if !e.active(now, h, cl.cfg.KeepWarm && e.want == cl.cfg.Default) {

		if h != nil && h.end.Until(now) <= 0 {
			b.drop(e)
		} else if h != nil {
			b.sched.at(e, h.end.Add(shortestRenew))
		}
		return
	}
	if h != nil && h.end.Until(now) > 0 && !h.stale(now, cl.cred.Current()) {
		b.sched.at(e, latest(h.renew, now.Add(shortestRenew)))
		return
	}
	if b.adopt(e, h, now) != nil { // which schedules the next look
		return
	}
	if wait := time.Duration(e.notBefore.Load()) - now.Boot; wait > 0 {
		b.sched.at(e, now.Add(wait))
		return
	}
	if _, err := b.fly(e, h, now); err != nil {
		b.sched.at(e, now.Add(retryIdle))
	}
}

// known says whether the entry still has its place.
func (e *entry) known() bool {
	m := e.state.entries.Load()
	return m != nil && (*m)[e.want] == e
}

// active says whether somebody is likely to want the token again.
func (e *entry) active(now clock.Reading, h *held, warm bool) bool {
	if warm {
		return true
	}
	life := idleLifetime
	if h != nil {
		life = h.life
	}
	read := time.Duration(e.read.Load())
	return read > 0 && now.Boot-read <= life
}

func (b *Broker) drop(e *entry) {
	b.forget(e, leftClient)
	b.retireToken(e.held.Swap(nil))
}

// retiree is what serves no more. A token's end is an event of its own.
type retiree struct {
	*holding
	token *held // nil: a key
}

// retireToken remembers a token that serves no more until its counts are
// written.
func (b *Broker) retireToken(h *held) {
	if h != nil {
		b.retireLater(retiree{&h.holding, h})
	}
}

func (b *Broker) retireLater(r retiree) {
	b.retired.Lock()
	b.retired.list = append(b.retired.list, r)
	b.retired.Unlock()
}

// Flush writes the counts of repeated hand-overs. Run does it every minute;
// whoever serves requests longer than Run calls it once more.
func (b *Broker) Flush() {
	now := b.o.Clock.Now()
	for _, cl := range b.clients.Load().byName {
		for _, e := range cl.all() {
			if h := e.held.Load(); h != nil {
				h.flush(b.o.Audit)
			}
		}
		cl.state.mu.Lock()
		kept := []*keyHeld{cl.state.key, cl.state.jwt}
		cl.state.mu.Unlock()
		for _, k := range kept {
			if k != nil {
				k.flush(b.o.Audit)
			}
		}
	}
	b.retired.Lock()
	list := b.retired.list
	b.retired.list = nil
	b.retired.Unlock()
	var tokens []scan.Needle
	for _, r := range list {
		r.flush(b.o.Audit)
		if r.token == nil {
			continue
		}
		tokens = append(tokens, r.token.needle())
		e := r.event
		e.Type, e.Count = audit.TokenExpired, r.total()
		if r.token.end.Until(now) > 0 {
			e.Code = "replaced"
		}
		b.o.Audit.Note(e)
	}
	b.remember(tokens)
	b.denials.flush(b.o.Audit)
}
