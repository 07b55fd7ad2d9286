// Package scan finds exactly our own secrets and tokens in files, archives,
// git repositories and the journal.
//
// It has two sides. In the daemon an [Index] knows how all values look, without
// keeping them. A [Scanner], which needs no privilege, gets a [Filter] from it,
// unpacks and reads whatever it is pointed at, and hands the few windows that
// pass the filter back for confirmation. A value is found in each of its forms
// (clear, base64 at any alignment, percent-encoded, hex, JSON-escaped); a
// [Finding] says where and which, never the value or a piece of it.
//
// How a filter works: a form of a value is known by up to sixteen windows at
// consecutive offsets of a short core in it. So a scanner that looks at every
// sixteenth place of a text meets one of them, wherever the form stands.
package scan

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// A Scanner looks through files for what its filter lets pass. Use it once.
type Scanner struct {
	cfg    Config
	sieves []sieve

	found, files, total, bytes, inside, expected atomic.Int64
	counted                                      atomic.Bool
	current                                      atomic.Pointer[string]

	mu     sync.Mutex
	report Report
	memos  map[memoKey][]memo
	misses map[memoKey]int
}

// Config says what to scan.
type Config struct {
	Filter  Filter   // of this scan, from the daemon
	Paths   []string // files and directories. None: no files
	Git     bool     // read the objects of git repositories found there, and of those around the paths, as git does. False: they are files
	Journal bool     // read the systemd journal, as far as this user may

	// Confirm asks the daemon, one list of matches for each candidate, in
	// order. It waits if the daemon wants it to, and may be called from several
	// goroutines. Its error ends the scan. Missing: New refuses.
	Confirm func(ctx context.Context, list []Candidate) ([][]Match, error)

	Workers     int // Zero: one for each processor
	MaxFindings int // of which more are counted, not listed. Zero: 10000
}

// A Finding is a place where a value stands. It holds nothing of the value:
// where a name contains it, the name is masked.
type Finding struct {
	Source string    `json:"source"`           // SourceFile, SourceGit or SourceJournal
	Path   string    `json:"path"`             // the file, or the repository
	Member string    `json:"member,omitempty"` // in an archive; in git, the path in the tree; names are joined with "!"
	Object string    `json:"object,omitempty"` // git's name of the object
	Unit   string    `json:"unit,omitempty"`   // of the journal's entry
	Time   time.Time `json:"time,omitzero"`    // of the journal's entry
	InName bool      `json:"in_name,omitempty"`
	Line   int       `json:"line,omitempty"` // from 1; of the unpacked text. None in names and in the journal
	Offset int64     `json:"offset"`         // bytes from the beginning of the file, member, object or entry

	Client  string `json:"client"`
	Field   string `json:"field"`
	Version string `json:"version"`
	Form    string `json:"form"` // Clear, Base64, …
	Retired bool   `json:"retired"`
}

// Where a Finding was made.
const (
	SourceFile    = "file"
	SourceGit     = "git"
	SourceJournal = "journal"
)

// Unread is something that was not read, or not wholly. What could be read of
// it was scanned.
type Unread struct {
	Path   string `json:"path"`
	Member string `json:"member,omitempty"`
	Reason string `json:"reason"`
}

// maxUnread bounds the list of a report.
const maxUnread = 1000

// Report is the result of a scan.
type Report struct {
	Findings []Finding `json:"findings"`
	Found    int       `json:"found"` // more than Findings if there were too many
	Unread   []Unread  `json:"unread"`
	NotRead  int       `json:"not_read"` // more than Unread if there were too many
	Files    int       `json:"files"`
	Bytes    int64     `json:"bytes"`  // of files
	Inside   int64     `json:"inside"` // of members, git objects and journal entries
	// Repositories of git that were met; with Config.Git, they were read.
	Repositories int `json:"repositories"`
	// Alone are the paths that lie in no git repository and have none below.
	Alone []string `json:"alone,omitempty"`
}

// Progress is how far a scan is.
type Progress struct {
	Files, TotalFiles int64
	Bytes, TotalBytes int64 // of files; the totals grow until Counted
	Counted           bool
	Inside            int64 // bytes of members, git objects and journal entries so far
	Found             int64
	Current           string // the last file, repository or journal that was begun; masked
}

// New makes a Scanner; it starts nothing.
func New(cfg Config) (*Scanner, error) {
	if err := cfg.Filter.check(); err != nil {
		return nil, err
	}
	if cfg.Confirm == nil {
		return nil, errors.New("scan: nothing to confirm with")
	}
	if cfg.Workers <= 0 {
		cfg.Workers = runtime.GOMAXPROCS(0)
	}
	if cfg.MaxFindings <= 0 {
		cfg.MaxFindings = 10000
	}
	s := &Scanner{cfg: cfg, memos: map[memoKey][]memo{}, misses: map[memoKey]int{}, report: Report{Findings: []Finding{}, Unread: []Unread{}}}
	for i := range cfg.Filter.Classes {
		s.sieves = append(s.sieves, newSieve(&cfg.Filter, &cfg.Filter.Classes[i]))
	}
	return s, nil
}

// job is one file, repository or journal.
type job func(ctx context.Context, w *worker) error

// Run scans. What cannot be read is in the report; an error, beside what was
// found so far, means that the scan did not come to its end: ctx is done, a
// path does not exist, or Confirm failed.
func (s *Scanner) Run(ctx context.Context) (Report, error) {
	roots, err := openRoots(s.cfg.Paths)
	if err != nil {
		return s.result(), err
	}
	defer roots.close()
	g, ctx := errgroup.WithContext(ctx)
	jobs := make(chan job, 64)
	g.Go(func() error { return s.count(ctx, roots) })
	g.Go(func() error {
		defer close(jobs)
		return s.find(ctx, roots, jobs)
	})
	for range s.cfg.Workers {
		g.Go(func() error {
			w := s.worker()
			for j := range jobs {
				if err := j(ctx, w); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err = g.Wait()
	return s.result(), err
}

// find makes a job of everything there is.
func (s *Scanner) find(ctx context.Context, roots roots, jobs chan<- job) error {
	send := func(j job) error {
		select {
		case jobs <- j:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	if s.cfg.Journal {
		if err := send(journal); err != nil {
			return err
		}
	}
	names := s.worker()
	err := roots.walk(ctx, visitor{
		unread: func(path, reason string) { s.unread(spot{path: path}, reason) },
		name:   func(path string) (string, error) { return names.name(ctx, spot{source: SourceFile}, path) },
		file: func(r *os.Root, rel, shown string, _ os.FileInfo) error {
			return send(func(ctx context.Context, w *worker) error { return w.file(ctx, r, rel, shown) })
		},
		apart: func(path string) {
			if s.cfg.Git {
				s.unread(spot{path: path}, "the history of this work tree is in a repository elsewhere: scan that, too")
			}
		},
		alone: func(path string) { s.alone(path) },
		git: func(dir, shown string) (taken bool, err error) {
			s.repository()
			if !s.cfg.Git {
				return false, nil
			}
			return true, send(func(ctx context.Context, w *worker) error { return w.git(ctx, dir, shown) })
		},
	})
	names.end(spot{path: "the names of files"})
	return err
}

// count finds out how much there is, for the progress alone.
func (s *Scanner) count(ctx context.Context, roots roots) error {
	err := roots.walk(ctx, visitor{
		unread: func(string, string) {},
		name:   func(path string) (string, error) { return path, nil },
		file: func(_ *os.Root, _, _ string, info os.FileInfo) error {
			s.total.Add(1)
			s.expected.Add(info.Size())
			return nil
		},
		apart: func(string) {},
		alone: func(string) {},
		git:   func(string, string) (bool, error) { return s.cfg.Git, nil },
	})
	s.counted.Store(err == nil)
	return err
}

// Progress may be called at any time, from any goroutine.
func (s *Scanner) Progress() Progress {
	p := Progress{
		Files: s.files.Load(), TotalFiles: s.total.Load(), Bytes: s.bytes.Load(), TotalBytes: s.expected.Load(),
		Counted: s.counted.Load(), Inside: s.inside.Load(), Found: s.found.Load(),
	}
	if c := s.current.Load(); c != nil {
		p.Current = *c
	}
	return p
}

func (s *Scanner) result() Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.report
	r.Found, r.Files, r.Bytes, r.Inside = int(s.found.Load()), int(s.files.Load()), s.bytes.Load(), s.inside.Load()
	return r
}

// unread notes what was not read.
func (s *Scanner) unread(at spot, reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.report.NotRead++
	if len(s.report.Unread) < maxUnread {
		member := at.member
		if at.object != "" {
			member = at.object + ": " + member
		}
		s.report.Unread = append(s.report.Unread, Unread{at.path, member, reason})
	}
}

// repository counts one, and alone notes a path that has none.
func (s *Scanner) repository() {
	s.mu.Lock()
	s.report.Repositories++
	s.mu.Unlock()
}

func (s *Scanner) alone(path string) {
	s.mu.Lock()
	s.report.Alone = append(s.report.Alone, path)
	s.mu.Unlock()
}

// add notes a match at an offset.
func (s *Scanner) add(at spot, m Match, line int, offset int64) {
	s.found.Add(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.report.Findings) >= s.cfg.MaxFindings {
		return
	}
	s.report.Findings = append(s.report.Findings, Finding{
		Source: at.source, Path: at.path, Member: at.member, Object: at.object, Unit: at.unit, Time: at.time, InName: at.inName,
		Line: line, Offset: offset,
		Client: m.Client, Field: m.Field, Version: m.Version, Form: m.Form, Retired: m.Retired,
	})
}

// answer checks what Confirm says.
func (s *Scanner) answer(ctx context.Context, list []Candidate) ([][]Match, error) {
	out, err := s.cfg.Confirm(ctx, list)
	if err != nil {
		return nil, fmt.Errorf("the scan stopped: %w", err)
	}
	if len(out) != len(list) {
		return nil, errors.New("the scan stopped: the daemon's answer does not fit the question")
	}
	return out, nil
}
