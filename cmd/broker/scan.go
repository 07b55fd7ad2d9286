package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"credentialbroker/api/client"
	"credentialbroker/internal/scan"
)

// scanRun is one run of broker scan.
type scanRun struct {
	admin            *client.Admin
	out, err         io.Writer
	progress         bool
	asJSON, verbose  bool
	git, journal     bool
	findings, worker int
}

func scanCommand(s *sockets) *cobra.Command {
	r := &scanRun{}
	c := &cobra.Command{Use: "scan [PATH…]", Short: "Find the broker's own secrets and tokens in files, git and the journal",
		Long: "Look for the secrets and tokens that the daemon has, or had a short time ago: these and nothing else, in clear, base64,\n" +
			"hex, percent- or JSON-escaped, also inside gzip, tar and zip archives. It says where and which, never the value.\n" +
			"Files are read here, with the rights of whoever calls; the daemon is asked about suspicious places alone, and raises\n" +
			"an alarm for what is found. Needs the role operate.\n\n" +
			"Exit code 65 if something was found; 75 if nothing was, but not everything could be read; 0 if everything was read\n" +
			"and is clean.",
		Example: "  broker scan /var/log /home\n  broker scan --git ~/src\n  broker scan --journal\n  broker scan --json /srv/backup > findings.jsonl",
		RunE: func(cmd *cobra.Command, paths []string) error {
			if len(paths) == 0 && (!r.journal || r.git) {
				return usageError{errors.New("name what to scan, as in broker scan /var/log, or --journal")}
			}
			r.admin, r.out, r.err = s.administration(), cmd.OutOrStdout(), cmd.ErrOrStderr()
			r.progress = isTerminal(os.Stderr)
			return r.run(cmd.Context(), paths)
		}}
	c.Flags().BoolVar(&r.git, "git", false, "read the whole history of the git repositories in and around the paths, too")
	c.Flags().BoolVar(&r.journal, "journal", false, "read the system journal, as far as you may")
	c.Flags().BoolVar(&r.asJSON, "json", false, "print a JSON object for each finding, and a summary at the end")
	c.Flags().BoolVarP(&r.verbose, "verbose", "v", false, "list what could not be read")
	c.Flags().IntVar(&r.findings, "max-findings", 10000, "list so many; the others are counted")
	c.Flags().IntVar(&r.worker, "workers", 0, "files to read at a time (default: one for each processor)")
	return c
}

func (r *scanRun) run(ctx context.Context, paths []string) error {
	if r.findings < 1 || r.worker < 0 {
		return usageError{errors.New("--max-findings and --workers are numbers from 1")}
	}
	begun, err := r.admin.Scan(ctx)
	if err != nil {
		return err
	}
	for _, s := range begun.Skipped {
		fmt.Fprintf(r.err, "broker: %s of client %s is not looked for: %s\n", s.Field, s.Client, s.Reason)
	}
	var filter scan.Filter
	if err := json.Unmarshal(begun.Filter, &filter); err != nil {
		return errors.New("the filter is not one that this version understands: are broker and brokerd of one version?")
	}
	scanner, err := scan.New(scan.Config{Filter: filter, Paths: paths, Git: r.git, Journal: r.journal,
		Confirm: r.confirm, Workers: r.worker, MaxFindings: r.findings})
	if err != nil {
		return err
	}
	stop := r.show(scanner)
	report, err := scanner.Run(ctx)
	stop()
	if printed := r.print(report, err == nil); err == nil {
		err = printed
	}
	switch {
	case err != nil:
		return err
	case report.Found > 0:
		return quiet(exitData)
	case r.git && len(report.Alone) > 0:
		return usageError{fmt.Errorf("no git repository at or below %s: without --git it is read as files", plainText(strings.Join(report.Alone, ", ")))}
	case report.NotRead > 0:
		return quiet(exitTryAgain)
	}
	return nil
}

// confirm asks the daemon, in as many questions as it takes, and waits where it
// says so.
func (r *scanRun) confirm(ctx context.Context, list []scan.Candidate) ([][]scan.Match, error) {
	defer func() {
		for _, c := range list {
			clear(c.Text)
		}
	}()
	out := make([][]scan.Match, 0, len(list))
	for len(list) > len(out) {
		var ask []client.ScanCandidate
		size := 64 // what is around them
		for _, c := range list[len(out):] {
			one := client.ScanCandidate(c)
			if size += client.ScanBodySize(one); len(ask) == client.MaxScanCandidates || len(ask) > 0 && size > client.MaxScanBody {
				break
			}
			ask = append(ask, one)
		}
		answers, err := r.admin.ConfirmScan(ctx, ask)
		var p *client.Problem
		switch {
		case errors.As(err, &p) && p.Code == client.RateLimited:
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-time.After(time.Duration(max(1, p.RetryAfter)) * time.Second):
			}
			continue
		case err != nil:
			return nil, err
		case len(answers) != len(ask):
			return nil, errors.New("the daemon's answer does not fit the question: are broker and brokerd of one version?")
		}
		for _, matches := range answers {
			found := make([]scan.Match, 0, len(matches))
			for _, m := range matches {
				found = append(found, scan.Match(m))
			}
			out = append(out, found)
		}
	}
	return out, nil
}

// show keeps a line of progress on a terminal, until stop is called.
func (r *scanRun) show(s *scan.Scanner) (stop func()) {
	if !r.progress {
		return func() {}
	}
	end := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		begin, tick := time.Now(), time.NewTicker(200*time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-end:
				fmt.Fprint(r.err, "\r\x1b[K")
				return
			case <-tick.C:
				fmt.Fprint(r.err, "\r\x1b[K"+progressLine(s.Progress(), time.Since(begin)))
			}
		}
	})
	return func() { close(end); done.Wait() }
}

func progressLine(p scan.Progress, d time.Duration) string {
	done, total := size(p.Bytes), fmt.Sprintf("of %s", size(p.TotalBytes))
	if !p.Counted {
		total = "so far"
	}
	speed := float64(p.Bytes+p.Inside) / max(d.Seconds(), 0.001)
	line := fmt.Sprintf("%s %s, %s/s, %d files, %d found", done, total, size(int64(speed)), p.Files, p.Found)
	if current := []rune(plainText(p.Current)); len(current) > 0 {
		if n := len(current) - 30; n > 0 {
			current = append([]rune("…"), current[n:]...)
		}
		line += ", " + string(current)
	}
	return line
}

func size(n int64) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}

// scanSummary ends the JSON output.
type scanSummary struct {
	Whole   bool          `json:"whole"` // false: the scan did not come to its end
	Found   int           `json:"found"`
	Files   int           `json:"files"`
	Bytes   int64         `json:"bytes"`
	Inside  int64         `json:"inside"`
	NotRead int           `json:"not_read"`
	Unread  []scan.Unread `json:"unread"`

	Repositories int  `json:"repositories"`
	History      bool `json:"history"` // of these repositories was read
}

// print shows what was found; whole says that the scan came to its end.
func (r *scanRun) print(report scan.Report, whole bool) error {
	if r.asJSON {
		e := json.NewEncoder(r.out)
		e.SetEscapeHTML(false)
		for _, f := range report.Findings {
			if err := e.Encode(f); err != nil {
				return err
			}
		}
		return e.Encode(map[string]scanSummary{"summary": {whole, report.Found, report.Files, report.Bytes, report.Inside, report.NotRead, report.Unread, report.Repositories, r.git}})
	}
	for _, f := range report.Findings {
		if _, err := fmt.Fprintln(r.out, findingLine(f)); err != nil {
			return err
		}
	}
	if more := report.Found - len(report.Findings); more > 0 {
		fmt.Fprintf(r.out, "and %d more: --max-findings lists them\n", more)
	}
	if r.verbose {
		for _, u := range report.Unread {
			fmt.Fprintf(r.err, "not read: %s: %s\n", plainText(join(u.Path, u.Member)), plainText(u.Reason))
		}
	}
	summary := fmt.Sprintf("%d found in %d files, %s, and %s inside archives, git and the journal", report.Found, report.Files, size(report.Bytes), size(report.Inside))
	if !whole {
		summary = "not the whole was scanned: " + summary
	}
	if report.NotRead > 0 {
		summary += fmt.Sprintf("; %d not read, or not wholly", report.NotRead)
		if !r.verbose {
			summary += ": --verbose lists them"
		}
	}
	if n := report.Repositories; n > 0 && !r.git {
		summary += fmt.Sprintf("\n%d git repositories: their history was not read; add --git", n)
	}
	_, err := fmt.Fprintln(r.err, summary)
	return err
}

// findingLine is file:line: what, of whom, in which form.
func findingLine(f scan.Finding) string {
	place := join(f.Path, f.Member)
	if f.Source == scan.SourceGit {
		place = fmt.Sprintf("%s (git %.12s)", place, f.Object)
	}
	if f.Source == scan.SourceJournal {
		place = fmt.Sprintf("journal, unit %s, %s", f.Unit, f.Time.UTC().Format(time.RFC3339))
	}
	switch {
	case f.InName:
		place += ": in its name"
	case f.Line > 0:
		place += fmt.Sprintf(":%d", f.Line)
	}
	version := "version " + f.Version
	if f.Field == "access_token" {
		version = "fingerprint " + f.Version
	}
	if f.Retired {
		version += ", retired"
	}
	return plainText(fmt.Sprintf("%s: client %s: %s (%s), %s", place, f.Client, f.Field, f.Form, version))
}

func join(path, member string) string {
	if member == "" {
		return path
	}
	return path + "!" + member
}

// plainText is s without what could move a cursor: names of files are
// anybody's.
func plainText(s string) string {
	return strings.Map(func(c rune) rune {
		if c != ' ' && !unicode.IsPrint(c) || c == '\u2028' || c == '\u2029' {
			return '\ufffd'
		}
		return c
	}, s)
}
