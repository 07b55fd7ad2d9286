package audit

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"credentialbroker/internal/clock"
)

// A batch is what one write takes to the disk.
type batch struct {
	events []pending
	done   chan struct{} // closed when err says how it went
	err    error
}

type pending struct {
	event Event
	at    clock.Reading
	waits bool // a Record, not a Note
}

func newBatch() *batch { return &batch{done: make(chan struct{})} }

// A gap is what could not be written since the last write that worked.
type gap struct {
	records, notes int64
	first, last    time.Time
}

func (g *gap) add(p pending) {
	if p.waits {
		g.records++
	} else {
		g.notes++
	}
	if g.first.IsZero() {
		g.first = p.at.Wall
	}
	g.last = p.at.Wall
}

// add puts e into the next batch. Time and order are decided here.
func (l *Log) add(e Event, waits bool) (*batch, error) {
	e = e.bounded()
	l.mu.Lock()
	defer l.mu.Unlock()
	p := pending{e, l.clock.Now(), waits}
	if l.ended {
		l.status.Lost++
		return nil, errEnded
	}
	// Notes may fill half of the queue: a flood of them stops no hand-over.
	if n := len(l.next.events); n >= l.limits.queue || !waits && n >= l.limits.queue/2 {
		l.status.Lost++
		l.gap.add(p)
		return nil, errFull
	}
	l.next.events = append(l.next.events, p)
	if waits {
		poke(l.wake)
	} else {
		poke(l.noted)
	}
	return l.next, nil
}

func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run writes what Record and Note hand in, sends the anchors and deletes what
// is older than the retention, until ctx ends; then it writes what is left and
// releases the lock on the directory. It returns an error only if that last
// write failed. It is called once.
func (l *Log) Run(ctx context.Context) error {
	defer l.disk.close()
	defer close(l.done)
	anchors, sent := make(chan Anchor, 1), make(chan struct{})
	go func() {
		defer close(sent)
		for a := range anchors {
			l.send(context.WithoutCancel(ctx), a)
		}
	}()
	defer func() { close(anchors); <-sent }()

	err := l.commit(true, anchors)
	l.expire(anchors)
	flush, every, daily := time.NewTimer(l.limits.flush), time.NewTicker(l.limits.every), time.NewTicker(24*time.Hour)
	defer flush.Stop()
	defer every.Stop()
	defer daily.Stop()
	waiting := err != nil // flush is running
	for {
		select {
		case <-l.wake:
			err = l.commit(false, anchors)
		case <-l.noted:
			if !waiting {
				flush.Reset(l.limits.flush)
				waiting = true
			}
		case <-flush.C:
			waiting = false
			err = l.commit(false, anchors)
		case <-every.C:
			if l.owesAnchor() {
				err = l.commit(true, anchors)
			}
		case <-daily.C:
			l.expire(anchors)
		case <-ctx.Done():
			l.mu.Lock()
			l.ended = true
			l.mu.Unlock()
			return l.commit(true, anchors)
		}
		if err != nil && !waiting {
			flush.Reset(l.limits.flush) // recovery needs no new event
			waiting = true
		}
	}
}

// commit writes the next batch; with anchor, an anchor after it.
func (l *Log) commit(anchor bool, anchors chan Anchor) error {
	l.mu.Lock()
	b, g := l.next, l.gap
	l.next, l.gap = newBatch(), gap{}
	last := l.err
	l.mu.Unlock()
	anchor = anchor && l.anchor != nil
	if len(b.events) == 0 && g == (gap{}) && !anchor && last == nil && !l.disk.hasNews() {
		close(b.done)
		return nil
	}
	a, err := l.write(b.events, g, last, anchor)
	if err != nil {
		err = explain(err)
	}
	l.settle(b, g, err)
	if err == nil && a.Seq != 0 {
		// The newest anchor is worth more than one that still waits.
		select {
		case <-anchors:
		default:
		}
		anchors <- a
	}
	return err
}

// write takes events to the disk, and gives the anchor if it wrote one.
func (l *Log) write(events []pending, g gap, last error, anchor bool) (Anchor, error) {
	d, now := &l.disk, l.clock.Now()
	if err := d.ready(now, l.limits.segment); err != nil {
		return Anchor{}, err
	}
	if g != (gap{}) {
		if err := d.append(g.event(last, l.cfg.OnFailure), now); err != nil {
			return Anchor{}, err
		}
	}
	for _, p := range events {
		if err := d.append(p.event, p.at); err != nil {
			return Anchor{}, err
		}
	}
	if l.anchor != nil && (anchor || d.end.off == 0 || d.next.anchored >= l.limits.entries) {
		if err := d.append(Event{Type: LogAnchor}, now); err != nil {
			return Anchor{}, err
		}
		anchor = true
	}
	if err := d.flush(); err != nil || !anchor {
		return Anchor{}, err
	}
	return Anchor{Log: d.log, Seq: d.end.seq, Hash: d.end.hash, Time: now.Wall}, nil
}

// settle tells those who wait how the write went. What nobody waits for is
// tried again, as far as there is room; the rest is counted.
func (l *Log) settle(b *batch, g gap, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err, b.err = err, err
	if err == nil {
		s, end := &l.status, l.disk.end
		s.Entries += end.seq - s.Seq
		s.Syncs++
		s.Log, s.Seq, s.Hash = l.disk.log, end.seq, end.hash
		close(b.done)
		return
	}
	var again []pending
	for _, p := range b.events {
		if !p.waits && len(again)+len(l.next.events) < l.limits.queue/2 && !l.ended {
			again = append(again, p)
			continue
		}
		l.status.Lost++
		g.add(p)
	}
	l.next.events = append(again, l.next.events...)
	g.records += l.gap.records
	g.notes += l.gap.notes
	if !l.gap.last.IsZero() {
		g.last = l.gap.last
	}
	l.gap = g
	close(b.done)
}

// event records the gap.
func (g gap) event(cause error, onFailure string) Event {
	if onFailure == "" {
		onFailure = "refuse"
	}
	code := "queue_full"
	if cause != nil {
		code = errnoName(cause)
	}
	return Event{Type: LogLost, Code: code, Count: g.records + g.notes, First: g.first, Last: g.last, Detail: map[string]string{
		"waited_for": strconv.FormatInt(g.records, 10),
		"queued":     strconv.FormatInt(g.notes, 10),
		"on_failure": onFailure,
	}}
}

// owesAnchor says whether entries were written that no anchor covers.
func (l *Log) owesAnchor() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.disk.end.anchored > 0 || l.status.AnchorError != ""
}

// send takes one anchor out of reach. A failure is recorded once, until it
// works again.
func (l *Log) send(ctx context.Context, a Anchor) {
	ctx, cancel := context.WithTimeout(ctx, l.limits.send)
	defer cancel()
	err := l.anchor(ctx, a)
	l.mu.Lock()
	before := l.status.AnchorError
	if err == nil {
		l.status.AnchorSeq, l.status.AnchorTime, l.status.AnchorError = a.Seq, a.Time, ""
	} else {
		l.status.AnchorError = err.Error()
	}
	l.mu.Unlock()
	if err != nil && before == "" {
		l.Note(Event{Type: LogAnchor, Code: "not_sent", Detail: map[string]string{"error": err.Error()}})
	}
}

// expire deletes whole files whose last entry is older than the retention. The
// record of it comes first: a crash in between leaves files that are said to
// be gone, and the next day deletes them.
func (l *Log) expire(anchors chan Anchor) {
	old, err := l.disk.expired(l.clock.Now().Wall.Add(-l.cfg.retention()))
	if err == nil && len(old.files) == 0 {
		return
	}
	if err == nil {
		l.Note(Event{Type: LogExpired, Count: old.count(), First: old.first, Last: old.last, Detail: map[string]string{
			"from": strconv.FormatUint(old.from, 10), "to": strconv.FormatUint(old.to, 10),
			"hash": old.hash, "retention": l.cfg.retention().String(),
		}})
		if l.commit(false, anchors) != nil {
			return // Healthy says so; tomorrow is another day
		}
		err = l.disk.remove(old)
	}
	if err != nil {
		l.Note(Event{Type: LogExpired, Code: errnoName(err), Detail: map[string]string{"error": fmt.Sprint(err)}})
	}
}
