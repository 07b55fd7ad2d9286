package files

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"credentialbroker/api/client"
	"credentialbroker/internal/access"
	"credentialbroker/internal/audit"
	"credentialbroker/internal/broker"
	"credentialbroker/internal/clock"
)

const (
	// look is how often a file's life is held against the clock, which timers
	// do not follow while the machine sleeps, and a quarantine is looked for.
	look = 5 * time.Second
	// grace is how long a file of before stays after a reload or restart has
	// changed its entry: long enough to be replaced instead of removed.
	grace = 5 * time.Second
	// shortPause is the pause after a token that lives too short for min_ttl, and
	// shortStay how long one at least has to stay in place: else each file would
	// be a token request every few seconds.
	shortPause = 15 * time.Minute
	shortStay  = time.Minute

	slowRecord = time.Second // until the rest is looked at, and the record waited for anew

	firstRetry = time.Second // after a write that failed, doubling
	longRetry  = 30 * time.Second
)

// follow keeps one file.
type follow struct {
	Entry
	w      *Writer
	who    who
	whoErr error
	cancel context.CancelFunc
	done   chan struct{}

	// The goroutine's own, and the Writer's when it has ended.
	in       *placed       // what is in place; nil: nothing
	adopted  bool          // it is of an earlier run, or of another entry
	goes     clock.Reading // when a file of another entry goes at last; zero: it is of this one
	doomed   string        // why it is to be removed, which has failed; empty: it is not
	next     *broker.Grant // to be written; nil: nothing
	retry    clock.Reading // not before
	patience time.Duration
	anew     bool           // what the broker has is to be given once more
	trouble  string         // that was told
	others   sync.WaitGroup // what asks and records

	mu     sync.Mutex
	status Status
}

type answer struct {
	grant *broker.Grant
	err   error
}

// begin starts to follow an entry, with what is in place of before. old is
// what followed it; nil: nothing did.
func (w *Writer) begin(ctx context.Context, e Entry, old *follow, names access.Names) *follow {
	f := &follow{Entry: e, w: w, done: make(chan struct{}), status: Status{Client: e.Client, Path: e.Path, State: Waiting}}
	if old != nil {
		f.trouble = old.trouble
	}
	f.who, f.whoErr = e.who(names)
	now := w.o.Clock.Now()
	if was, ok := w.record.get(e.Path); ok { // what has ended, tend removes
		f.in, f.adopted = &was, true
		if was.Spec != e.spec() {
			f.goes = now.Add(grace)
		}
		f.set(Kept, "it is from before the daemon or its configuration was read anew")
	} else if err := w.clear(e.Path, f.who); err != nil {
		f.set(Waiting, err.Error())
	}
	ctx, f.cancel = context.WithCancel(ctx)
	go f.run(ctx)
	return f
}

func (f *follow) run(ctx context.Context) {
	defer close(f.done)
	answers := make(chan answer)
	defer f.others.Wait()
	ask := func() context.CancelFunc {
		ctx, cancel := context.WithCancel(ctx)
		f.others.Go(func() { f.ask(ctx, answers) })
		return cancel
	}
	stop := ask()
	defer func() { stop() }()
	for {
		timer := time.NewTimer(f.tend(ctx))
		if f.anew {
			f.anew = false
			stop()
			stop = ask()
		}
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case a := <-answers:
			f.take(a)
		case <-timer.C:
		}
		timer.Stop()
	}
}

// ask gives what the broker gives, one after the other.
func (f *follow) ask(ctx context.Context, answers chan<- answer) {
	watch := f.w.o.Broker.WatchPlace(f.place())
	for f.whoErr == nil {
		g, err := watch.Offer(ctx)
		if ctx.Err() != nil {
			return
		}
		select {
		case answers <- answer{g, err}:
		case <-ctx.Done():
			return
		}
		if err == nil && f.short(g) > 0 {
			select {
			case <-time.After(shortPause):
			case <-ctx.Done():
				return
			}
		}
	}
	<-ctx.Done()
}

func (f *follow) place() broker.Place {
	return broker.Place{Client: f.Client, Surface: access.Files, Scope: f.Scope, Audience: f.Audience,
		MinTTL: f.MinTTL.D(), Key: f.Content == APIKey, Name: "file " + f.Path}
}

// short is the life of a token that is too short for the file; 0: it is not.
func (f *follow) short(g *broker.Grant) time.Duration {
	if g.Token.Fingerprint == "" {
		return 0
	}
	if life := g.Expires.Sub(g.Token.Sent); life < broker.Margin+f.MinTTL.D()+shortStay {
		return life
	}
	return 0
}

// take does what an answer asks for. Without an error it is tend that writes.
func (f *follow) take(a answer) {
	var e *broker.Error
	switch {
	case a.err == nil:
		f.next, f.retry, f.patience = a.grant, clock.Reading{}, 0
		if life := f.short(a.grant); life > 0 {
			f.next = nil
			err := fmt.Errorf("the issuer's tokens live %s, too short for min_ttl %s, which the file is to have at any time: set min_ttl to %s or less",
				life.Round(time.Second), f.MinTTL, max(shortestMinTTL, (life-broker.Margin-shortStay).Truncate(10*time.Second)))
			f.fail(err, "write")
			f.remove(err.Error())
		}
		return
	case errors.As(a.err, &e) && f.adopted && e.Code != client.Quarantined && e.Code != client.NotFound:
		// What is in place is still good.
		if f.in != nil {
			f.still(e.Detail)
			return
		}
	}
	f.next = nil
	reason := a.err.Error()
	if e != nil {
		reason = e.Detail
	}
	f.remove(reason)
}

// tend writes what is to be written, removes what may not stay, and says when
// to look again.
func (f *follow) tend(ctx context.Context) time.Duration {
	now := f.w.o.Clock.Now()
	switch {
	case f.w.o.Broker.Quarantined(f.Client):
		f.next, f.anew = nil, f.anew || f.in != nil || f.next != nil
		f.remove("the client is quarantined: nothing of it is handed over until an administrator releases it")
	case f.doomed != "":
		f.remove(f.doomed)
	case f.whoErr != nil:
		f.fail(f.whoErr, "write")
		f.still(f.whoErr.Error())
	}
	if f.next != nil && f.ends(f.next) && f.next.Expires.Until(now) < f.MinTTL.D() {
		f.next = nil
	}
	if f.next != nil && f.retry.Until(now) <= 0 {
		f.write(ctx, now)
	}
	wait := look
	if f.in != nil && f.doomed == "" && f.lost() {
		f.in, f.anew = nil, true
		f.set(Missing, "somebody has removed it; it is written anew")
	}
	if f.in != nil {
		left := look
		if !f.in.Forever {
			left = f.in.Until.Until(now) - f.MinTTL.D()
		}
		if !f.goes.IsZero() {
			left = min(left, f.goes.Until(now))
		}
		if left <= 0 {
			f.anew = true
			f.remove("it would have held a token with less life than min_ttl, and there is no other")
		}
		wait = min(wait, max(left, 0))
	}
	if f.next != nil {
		wait = min(wait, max(f.retry.Until(now), 0))
	}
	if f.in == nil && f.next == nil {
		wait = look
	}
	return max(wait, time.Millisecond)
}

// still says that what is in place stays while it is good, and why nothing
// newer comes.
func (f *follow) still(reason string) {
	if f.in != nil {
		f.set(Kept, reason)
		return
	}
	f.set(Missing, reason)
}

// lost says whether somebody else has removed the file.
func (f *follow) lost() bool {
	var st unix.Stat_t
	return errors.Is(unix.Lstat(f.Path, &st), unix.ENOENT)
}

func (f *follow) ends(g *broker.Grant) bool { return g.Token.Fingerprint != "" }

// write puts the next grant in place, or tries again later.
func (f *follow) write(ctx context.Context, now clock.Reading) {
	err := f.put(ctx, f.next)
	var e *broker.Error
	switch {
	case errors.Is(err, context.Canceled): // the end of the daemon, or of this entry
		f.next = nil
		return
	case errors.As(err, &e): // in place is what was handed over in good order
		f.retry = now.Add(max(e.RetryAfter, firstRetry))
		f.still(e.Detail)
		return
	case err != nil:
		f.patience = min(max(2*f.patience, firstRetry), longRetry)
		f.retry = now.Add(f.patience)
		f.fail(err, "write")
		f.still(err.Error())
		return
	}
	f.adopted, f.doomed, f.goes = false, "", clock.Reading{}
	f.in = &placed{Spec: f.spec(), Until: f.next.Expires, Forever: !f.ends(f.next)}
	f.next, f.patience = nil, 0
	f.well()
	change := f.w.record.put(f.Path, *f.in)
	f.others.Go(func() { f.note(f.w.record.write(change)) })
	f.set(OK, "")
}

// put has the hand-over on record when all is done that can fail, and before
// anybody can read it.
func (f *follow) put(ctx context.Context, g *broker.Grant) error {
	p, err := openPlace(f.Path, true)
	if err != nil {
		return err
	}
	defer p.close()
	if err := f.claim(p); err != nil {
		return err
	}
	var b buffer
	defer b.wipe()
	if err := b.fill(f.Config, g); err != nil {
		return err
	}
	if err := p.prepare(b.b, f.who); err != nil {
		return err
	}
	to := f.place()
	if to.UID, to.GID, err = p.readers(f.mode()); err != nil {
		return err
	}
	if err := f.handOver(ctx, to, g); err != nil {
		return err
	}
	return p.replace(f.mode())
}

// claim has the path on record before there is a file of ours.
func (f *follow) claim(p *place) error {
	if _, known := f.w.record.get(f.Path); known {
		return nil
	}
	if err := p.vacant(); err != nil {
		return err
	}
	err := f.w.record.set(f.Path, placed{Spec: f.spec()})
	if err != nil { // a daemon that is killed would not know its file any more
		_ = f.w.record.drop(f.Path)
		return fmt.Errorf("the record of written files cannot be written: %w", err)
	}
	return nil
}

// handOver waits for the record, but not for long: what is in place may have to
// go meanwhile. The next attempt finds the record that was begun.
func (f *follow) handOver(ctx context.Context, to broker.Place, g *broker.Grant) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // what is given up is not counted
	done := make(chan error, 1)
	f.others.Go(func() { done <- f.w.o.Broker.HandOver(ctx, to, g) })
	timer := time.NewTimer(slowRecord)
	defer timer.Stop()
	select {
	case err := <-done:
		return err
	case <-timer.C:
		return &broker.Error{Code: client.AuditUnavailable, Detail: "the disk of the audit log is slow: what replaces the file waits for its record"}
	case <-ctx.Done():
		return ctx.Err()
	}
}

// remove takes the file away, if there is one; when that fails it is tried
// again.
func (f *follow) remove(reason string) {
	if f.in != nil || f.doomed != "" {
		f.discard(reason)
	}
	if f.in == nil {
		f.set(Missing, reason)
	}
}

func (f *follow) discard(reason string) {
	if err := removeFile(f.Path); err != nil {
		f.doomed = reason
		f.fail(err, "remove")
		f.set(Kept, "it cannot be removed, and has to be because "+reason+": "+err.Error())
		return
	}
	f.in, f.adopted, f.doomed, f.goes = nil, false, "", clock.Reading{}
	f.note(f.w.record.drop(f.Path))
	f.set(Missing, reason)
}

// note tells that the record could not be written: a daemon that is killed
// leaves the file then, until it is started again.
func (f *follow) note(err error) {
	if err != nil {
		f.w.o.Log.Warn("the record of written files cannot be written", "file", f.Path, "error", err)
	}
}

// fail tells of a trouble that a person has to see to, once.
func (f *follow) fail(err error, code string) {
	if text := code + err.Error(); text != f.trouble {
		f.trouble = text
		f.w.o.Log.Error("a file cannot be "+map[string]string{"write": "written", "remove": "removed"}[code]+"; this is tried again", "client", f.Client, "file", f.Path, "error", err)
		f.w.o.Audit.Note(audit.Event{Type: audit.FileFailed, Client: f.Client, Code: code,
			Detail: map[string]string{audit.AlarmKey: "the file " + f.Path + " cannot be " + map[string]string{"write": "written", "remove": "removed"}[code], "error": err.Error()}})
	}
}

func (f *follow) well() {
	if f.trouble != "" {
		f.trouble = ""
		f.w.o.Log.Info("a file is written again", "client", f.Client, "file", f.Path)
	}
}

func (f *follow) set(s State, reason string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.status.State, f.status.Reason, f.status.Until = s, reason, clock.Reading{}
	if f.in != nil {
		f.status.Until = f.in.Until
	}
}

func (f *follow) current() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status
}
