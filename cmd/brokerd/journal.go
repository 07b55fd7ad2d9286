package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"

	"credentialbroker/internal/response"
)

// Rules of this file: a line on standard error that begins with <N> gets that
// priority in the journal (sd-daemon(3)); anywhere else the prefix would be
// noise, so it is there for the journal alone, as are lines without a time.

// logger writes for the journal, or for a terminal.
func logger(out io.Writer) *slog.Logger {
	journal := journalled(out)
	o := &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		switch {
		case len(groups) > 0:
		case journal && a.Key == slog.TimeKey:
			return slog.Attr{}
		case a.Key == slog.LevelKey && a.Value.Any() == response.LevelAlert:
			return slog.String(slog.LevelKey, "ALERT")
		}
		return a
	}}
	if !journal {
		return slog.New(slog.NewTextHandler(out, o))
	}
	p := &prefixed{out: out}
	return slog.New(prioritised{slog.NewTextHandler(p, o), p})
}

// journalled says whether out is the stream to the journal that systemd made
// for this process (systemd.exec(5), $JOURNAL_STREAM). The variable alone says
// nothing: children inherit it with other streams.
func journalled(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	if err != nil {
		return false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	return ok && os.Getenv("JOURNAL_STREAM") == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// priority is a level as syslog(3) counts.
func priority(l slog.Level) int {
	switch {
	case l >= response.LevelAlert:
		return 1
	case l >= slog.LevelError:
		return 3
	case l >= slog.LevelWarn:
		return 4
	case l >= slog.LevelInfo:
		return 6
	}
	return 7
}

// prioritised is a handler whose lines begin with their priority.
type prioritised struct {
	slog.Handler
	out *prefixed
}

// Handle implements slog.Handler.
func (h prioritised) Handle(ctx context.Context, r slog.Record) error {
	h.out.mu.Lock()
	defer h.out.mu.Unlock()
	h.out.prefix = fmt.Sprintf("<%d>", priority(r.Level))
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h prioritised) WithAttrs(a []slog.Attr) slog.Handler {
	return prioritised{h.Handler.WithAttrs(a), h.out}
}

// WithGroup implements slog.Handler.
func (h prioritised) WithGroup(name string) slog.Handler {
	return prioritised{h.Handler.WithGroup(name), h.out}
}

// prefixed writes what it is given, a line at a time, after the prefix. Handle
// holds mu meanwhile.
type prefixed struct {
	mu     sync.Mutex
	prefix string
	out    io.Writer
}

// Write implements io.Writer.
func (p *prefixed) Write(line []byte) (int, error) {
	if _, err := p.out.Write(append([]byte(p.prefix), line...)); err != nil {
		return 0, err
	}
	return len(line), nil
}

// failed is why the process ends, for whoever reads out.
func failed(out io.Writer, text string) string {
	if !journalled(out) {
		return text
	}
	prefix := fmt.Sprintf("<%d>", priority(slog.LevelError))
	return prefix + strings.ReplaceAll(text, "\n", "\n"+prefix)
}
