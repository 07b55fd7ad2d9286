package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// allocations prints how often the Go servers allocate for one request.
func (b *bench) allocations(servers []*server) error {
	t := newTable(b.out, "connections", "server", "allocations/request")
	for _, keep := range []bool{true, false} {
		for _, s := range servers {
			if s.metrics == "" {
				continue
			}
			// Asking allocates too: how much, the first two answers tell.
			first, err1 := mallocs(b.ctx, s)
			before, err2 := mallocs(b.ctx, s)
			r, err3 := b.load(s, 1, keep, b.time)
			after, err4 := mallocs(b.ctx, s)
			if err := errors.Join(err1, err2, err3, err4); err != nil {
				return fmt.Errorf("allocations of %s: %w", s.name, err)
			}
			per := (after - before - (before - first)) / float64(r.Requests)
			t.row(map[bool]string{true: "kept alive", false: "one a request"}[keep], s.name, fmt.Sprintf("%.1f", per))
		}
	}
	t.flush()
	fmt.Fprintln(b.out)
	return nil
}

func mallocs(ctx context.Context, s *server) (float64, error) {
	body, err := fetch(ctx, s.admin, s.metrics)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(body)) {
		if value, ok := strings.CutPrefix(line, mallocsMetric+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, errors.New("no " + mallocsMetric)
}

// commands prints what one token costs a shell script: a process each.
func (b *bench) commands(d *server) error {
	programs := []struct {
		name string
		args []string
		took []time.Duration
		cpu  []time.Duration
	}{
		{name: "broker token", args: []string{filepath.Join(b.dist, "broker"), "token", "vdab"}},
		{name: "curl", args: []string{"curl", "-sSf", "--unix-socket", d.socket, "http://localhost" + d.path}},
	}
	for range b.runs {
		for i := range programs {
			p := &programs[i]
			cmd := b.command(p.args[0], p.args[1:]...)
			cmd.Env = append(os.Environ(), "CREDENTIAL_BROKER_SOCKET="+d.socket)
			start := time.Now()
			out, err := cmd.CombinedOutput()
			if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				return fmt.Errorf("%s: %w: %s", p.name, err, bytes.TrimSpace(out[:min(len(out), 300)]))
			}
			p.took = append(p.took, time.Since(start))
			p.cpu = append(p.cpu, cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
		}
	}
	t := newTable(b.out, "one token, as a process", "p50 ms", "p99 ms", "CPU ms")
	for _, p := range programs {
		if len(p.took) == 0 {
			t.row(p.name, "NOT MEASURED: it is not here")
			continue
		}
		slices.Sort(p.took)
		t.row(p.name, millis(percentile(p.took, 50)), millis(percentile(p.took, 99)), millis(median(p.cpu)))
	}
	t.flush()
	fmt.Fprintln(b.out)
	return nil
}

func millis(d time.Duration) string { return fmt.Sprintf("%.1f", d.Seconds()*1000) }

// settle is how long after the last fetch memory is looked at: the daemon
// gives back what it used for secrets within a minute.
const settle = 35 * time.Second

// memory prints the daemon's size with clients and with idle connections.
func (b *bench) memory() error {
	b.descriptors()
	t := newTable(b.out, "server", "clients, each with a token", "idle connections", "RSS MiB", "PSS MiB", "all served after s")
	for _, n := range b.clients {
		start := time.Now()
		d, err := b.startBroker("clients"+strconv.Itoa(n), n)
		if err != nil {
			return err
		}
		if err := b.touch(d, n); err != nil {
			return err
		}
		took := time.Since(start)
		if err := b.sleep(settle); err != nil {
			return err
		}
		if err := b.size(t, d, strconv.Itoa(n), "0", fmt.Sprintf("%.1f", took.Seconds())); err != nil {
			return err
		}
		if n == b.clients[0] {
			if err := b.idling(t, d, strconv.Itoa(n)); err != nil {
				return err
			}
		}
		b.end(d.cmd)
	}
	plain, err := b.startPlain("idle.sock", 1)
	if err != nil {
		return err
	}
	return errors.Join(b.size(t, plain, "-", "0", "-"), b.idling(t, plain, "-"))
}

// descriptors lets the processes started from now on hold the idle
// connections; each takes one, as they are of one process. Where that is
// forbidden, there are fewer connections.
func (b *bench) descriptors() {
	const others = 1000
	var now syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &now) != nil {
		return
	}
	want := uint64(b.idle + others)
	more := syscall.Rlimit{Cur: max(now.Cur, want), Max: max(now.Max, want)}
	if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &more) == nil {
		return
	}
	b.idle = min(b.idle, max(int(now.Max)-others, 1))
	fmt.Fprintf(b.out, "ONLY %d idle connections: the limit of descriptors is %d (ulimit -Hn)\n", b.idle, now.Max)
}

// idling measures d with idle connections, and whether it still serves.
func (b *bench) idling(t *table, d *server, clients string) error {
	cmd := b.self("role-idle", d.socket, d.path, strconv.Itoa(b.idle))
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := b.start(cmd); err != nil {
		return err
	}
	out := bufio.NewReader(pipe)
	if line, err := out.ReadString('\n'); err != nil || strings.TrimSpace(line) != "ready" {
		return fmt.Errorf("idle connections: %q, %w", line, err)
	}
	if _, err := fetch(b.ctx, d.socket, d.path); err != nil {
		return fmt.Errorf("with %d idle connections: %w", b.idle, err)
	}
	rss, pss, err := size(d.pid())
	if err != nil {
		return err
	}
	_ = in.Close()
	held, err := out.ReadString('\n')
	if err != nil {
		return err
	}
	t.row(d.name, clients, strings.TrimSpace(held), rss, pss, "-")
	t.flush()
	return cmd.Wait()
}

func (b *bench) size(t *table, d *server, clients, idle, took string) error {
	rss, pss, err := size(d.pid())
	if err != nil {
		return err
	}
	t.row(d.name, clients, idle, rss, pss, took)
	t.flush()
	return nil
}

func (b *bench) sleep(d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-b.ctx.Done():
		return b.ctx.Err()
	}
}

// touch has every client ask once, and waits for those whose token is not
// there yet.
func (b *bench) touch(d *server, clients int) error {
	names := make(chan string)
	errs := make([]error, 8)
	var all sync.WaitGroup
	for i := range errs {
		all.Go(func() {
			for name := range names {
				one := &server{name: "client " + name, socket: d.socket, path: "/v1/clients/" + name + "/token"}
				errs[i] = errors.Join(errs[i], one.ready(b.ctx, 2*time.Minute))
			}
		})
	}
	for i := range clients {
		names <- clientName(i)
	}
	close(names)
	all.Wait()
	return errors.Join(errs...)
}

// cpu is what pid and its children have used so far, in the clock ticks of
// /proc (1/100 s).
func cpu(pid int) (time.Duration, error) {
	total := 0
	for _, p := range append(children(pid), pid) {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(p) + "/stat")
		if err != nil {
			return 0, err
		}
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(f) < 13 {
			return 0, errors.New("/proc/PID/stat has too few fields")
		}
		for _, field := range f[11:13] { // utime, stime
			n, err := strconv.Atoi(field)
			if err != nil {
				return 0, err
			}
			total += n
		}
	}
	return time.Duration(total) * 10 * time.Millisecond, nil
}

func children(pid int) (list []int) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil
	}
	for field := range strings.FieldsSeq(string(text)) {
		if n, err := strconv.Atoi(field); err == nil {
			list = append(list, n)
		}
	}
	return list
}

// size is resident and proportional memory in MiB; the second takes root, as
// the daemon lets nobody else look.
func size(pid int) (rss, pss string, err error) {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return "", "", err
	}
	rss, pss = mebibytes(status, "VmRSS:"), "-"
	if rollup, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/smaps_rollup"); err == nil {
		pss = mebibytes(rollup, "Pss:")
	}
	return rss, pss, nil
}

func mebibytes(text []byte, key string) string {
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) == 3 && f[0] == key {
			if kib, err := strconv.ParseFloat(f[1], 64); err == nil {
				return fmt.Sprintf("%.1f", kib/1024)
			}
		}
	}
	return "-"
}

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "unknown kernel"
	}
	return "Linux " + unix.ByteSliceToString(u.Release[:])
}
