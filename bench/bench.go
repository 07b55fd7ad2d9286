// Bench prints what the broker costs, beside two references in the same run: a
// bare net/http handler that looks at SO_PEERCRED, and nginx serving a file.
// All three answer with as many bytes on a Unix socket.
//
//	go run ./bench               all of it, some minutes
//	go run ./bench -proxy        the reverse proxy, beside nginx proxy_pass, alone
//	go run ./bench -rounds 1 -time 300ms -clients 1,100 -idle 100
//
// Every server and the load generator are processes of their own. A round
// measures each server once, so that whatever else the machine does meets all
// of them; what is printed is the median of the rounds, and of the rounds'
// ratios. It needs dist/broker and dist/brokerd (make build).
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	// The children end with the thread that started them (Pdeathsig).
	runtime.LockOSThread()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the command line.
type options struct {
	dist      string
	rounds    int
	time      time.Duration // of one measurement
	consumers []int
	clients   []int // configured, for memory
	idle      int   // connections, for memory
	runs      int   // of broker token and curl
	proxy     bool  // the reverse proxy alone
}

// run is the program, or one of its helpers (role.go).
func run(ctx context.Context, args []string, out io.Writer) error {
	if len(args) > 0 {
		if role, ok := roles()[args[0]]; ok {
			return role(ctx, args[1:], out)
		}
	}
	o, err := parse(args)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{options: o, dir: dir, out: out, ctx: ctx}
	defer b.stop()
	return errors.Join(b.all(), ctx.Err())
}

func parse(args []string) (o options, err error) {
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.StringVar(&o.dist, "dist", "dist", "directory of broker and brokerd")
	f.IntVar(&o.rounds, "rounds", 5, "measurements of each server in each setting")
	f.DurationVar(&o.time, "time", time.Second, "length of one measurement")
	f.BoolVar(&o.proxy, "proxy", false, "measure the reverse proxy alone")
	consumers := f.String("consumers", "1,8,64", "how many ask at a time")
	clients := f.String("clients", "1,1000,10000", "how many clients to configure, for memory")
	f.IntVar(&o.idle, "idle", 10000, "idle connections, for memory")
	f.IntVar(&o.runs, "runs", 200, "runs of broker token, and of curl")
	if err = f.Parse(args); err != nil {
		return o, err
	}
	if o.consumers, err = numbers(*consumers); err != nil {
		return o, err
	}
	if o.clients, err = numbers(*clients); err != nil {
		return o, err
	}
	if o.rounds < 1 || o.time <= 0 || o.runs < 1 || o.idle < 1 || f.NArg() > 0 {
		return o, errors.New("nothing to measure: rounds, time, runs and idle must be positive, and nothing else is expected")
	}
	o.dist, err = filepath.Abs(o.dist)
	return o, err
}

func numbers(list string) (out []int, err error) {
	for s := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%q is no list of numbers", list)
		}
		out = append(out, n)
	}
	return out, nil
}

// bench is one run of the program.
type bench struct {
	options
	ctx     context.Context // the run's: everything here is one command
	dir     string
	out     io.Writer
	started []*exec.Cmd
	issuer  string // its token endpoint
	route   string // configuration of vdab's reverse proxy; empty: none
}

// all prints every part.
func (b *bench) all() error {
	fmt.Fprintf(b.out, "%s, %d processors, %s\n", runtime.Version(), runtime.NumCPU(), kernel())
	if b.proxy {
		return b.proxies()
	}
	d, err := b.startBroker("broker", 1)
	if err != nil {
		return err
	}
	size, err := answerSize(d)
	if err != nil {
		return err
	}
	servers, err := b.references(d, size)
	if err != nil {
		return err
	}
	fmt.Fprintf(b.out, "answers of %d bytes; %d rounds of %v; medians\n\n", size, b.rounds, b.time)
	if err := b.throughput(servers); err != nil {
		return err
	}
	if err := b.allocations(servers); err != nil {
		return err
	}
	if err := b.commands(d); err != nil {
		return err
	}
	for _, s := range servers {
		b.end(s.cmd)
	}
	if err := b.proxies(); err != nil {
		return err
	}
	b.route = ""
	return b.memory()
}

// references starts what the broker d is compared with; an nginx that is not
// there is said and left out.
func (b *bench) references(d *server, size int) ([]*server, error) {
	plain, err := b.startPlain("plain.sock", size)
	if err != nil {
		return nil, err
	}
	list := []*server{d, plain}
	path, err := findNginx()
	if err != nil {
		fmt.Fprintf(b.out, "NOT COMPARED with nginx: %v\n", err)
		return list, nil
	}
	n, err := b.startNginx(path, size)
	if err != nil {
		return nil, err
	}
	return append(list, n), nil
}

// throughput measures every setting.
func (b *bench) throughput(servers []*server) error {
	t := newTable(b.out, "consumers", "connections", "server", "requests/s", "p50 µs", "p99 µs", "CPU µs/request", "of net/http", "of nginx")
	for _, keep := range []bool{true, false} {
		for _, n := range b.consumers {
			series := make([][]sample, len(servers))
			for range b.rounds {
				for i, s := range servers {
					m, err := b.measure(s, n, keep, b.time)
					if err != nil {
						return err
					}
					series[i] = append(series[i], m)
				}
			}
			connections := map[bool]string{true: "kept alive", false: "one a request"}[keep]
			for i, s := range servers {
				t.row(append([]string{strconv.Itoa(n), connections, s.name}, columns(series, i, servers)...)...)
			}
			t.flush()
		}
	}
	fmt.Fprintln(b.out)
	return nil
}

// measure puts load on s for d.
func (b *bench) measure(s *server, consumers int, keep bool, d time.Duration) (sample, error) {
	before, err := cpu(s.pid())
	if err != nil {
		return sample{}, err
	}
	r, err := b.load(s, consumers, keep, d)
	if err != nil {
		return sample{}, fmt.Errorf("%s, %d consumers: %w", s.name, consumers, err)
	}
	after, err := cpu(s.pid())
	if err != nil {
		return sample{}, err
	}
	return sample{
		rate: float64(r.Measured) / r.Time.Seconds(), p50: r.P50, p99: r.P99,
		requests: r.Requests, cpu: after - before,
	}, nil
}
