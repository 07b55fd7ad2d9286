package main

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// result is what a load generator prints, as JSON.
type result struct {
	Requests int           // all that were answered
	Measured int           // those after the warm-up
	Time     time.Duration // from the end of the warm-up to the end
	P50, P99 time.Duration // of the measured ones
}

// load asks for path on a Unix socket, as many at a time as there are
// consumers, until d has passed. A tenth of d more goes before, unmeasured. It
// is one thread around epoll, so that it takes as little as can be of the
// machine that it shares with the server. An answer other than a whole 200 is
// an error.
func load(socket, path string, consumers int, keep bool, d time.Duration) (result, error) {
	g := &generator{
		addr: &unix.SockaddrUnix{Name: socket}, keep: keep,
		request: []byte("GET " + path + " HTTP/1.1\r\nHost: localhost\r\n\r\n"),
	}
	var err error
	if g.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return result{}, err
	}
	defer unix.Close(g.epoll)
	g.measureFrom = time.Now().Add(d / 10)
	g.until = g.measureFrom.Add(d)
	for i := range consumers {
		g.consumers = append(g.consumers, &consumer{fd: -1, buf: make([]byte, 64<<10)})
		if err := g.ask(int32(i)); err != nil {
			return result{}, err
		}
	}
	defer func() {
		for _, c := range g.consumers {
			_ = unix.Close(c.fd)
		}
	}()
	return g.run()
}

type generator struct {
	addr               *unix.SockaddrUnix
	request            []byte
	keep               bool
	epoll              int
	consumers          []*consumer
	measureFrom, until time.Time
	requests           int
	took               []time.Duration
}

type consumer struct {
	fd    int // -1: not connected
	since time.Time
	buf   []byte
	have  int // bytes of the answer in buf
	whole int // its length, once known
}

func (g *generator) run() (result, error) {
	events := make([]unix.EpollEvent, len(g.consumers))
	for {
		n, err := unix.EpollWait(g.epoll, events, 10_000)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return result{}, err
		case n == 0:
			return result{}, errors.New("no answer in 10 s")
		}
		for _, e := range events[:n] {
			done, err := g.read(g.consumers[e.Fd])
			if err == nil && done {
				if now := time.Now(); now.After(g.until) {
					return g.result(now), nil
				}
				err = g.ask(e.Fd)
			}
			if err != nil {
				return result{}, err
			}
		}
	}
}

func (g *generator) result(now time.Time) result {
	slices.Sort(g.took)
	return result{
		Requests: g.requests, Measured: len(g.took), Time: now.Sub(g.measureFrom),
		P50: percentile(g.took, 50), P99: percentile(g.took, 99),
	}
}

// percentile takes a sorted list.
func percentile(sorted []time.Duration, p int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)*p/100, len(sorted)-1)]
}

// ask sends the next request of consumer i. The time of connecting counts.
func (g *generator) ask(i int32) error {
	c := g.consumers[i]
	c.since, c.have, c.whole = time.Now(), 0, 0
	if c.fd < 0 {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		c.fd = fd
		if err := unix.Connect(fd, g.addr); err != nil {
			return fmt.Errorf("connect: %w", err)
		}
		// The token of an event is the consumer, whatever its descriptor.
		if err := unix.EpollCtl(g.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: i}); err != nil {
			return err
		}
	}
	if n, err := unix.Write(c.fd, g.request); err != nil || n != len(g.request) {
		return fmt.Errorf("send: %d bytes, %w", n, err)
	}
	return nil
}

// read takes what has come, and says whether the answer is whole.
func (g *generator) read(c *consumer) (bool, error) {
	n, err := unix.Read(c.fd, c.buf[c.have:])
	if err != nil || n == 0 {
		return false, fmt.Errorf("the server ends the connection after %q: %w", c.buf[:min(c.have, 200)], err)
	}
	c.have += n
	if c.whole == 0 {
		if c.whole, err = answerLength(c.buf[:c.have]); err != nil {
			return false, err
		}
	}
	if c.whole == 0 || c.have < c.whole {
		return false, nil
	}
	if c.have > c.whole {
		return false, errors.New("more came than the answer")
	}
	g.requests++
	if c.since.After(g.measureFrom) {
		g.took = append(g.took, time.Since(c.since))
	}
	if !g.keep {
		_ = unix.Close(c.fd)
		c.fd = -1
	}
	return true, nil
}

// answerLength is the length of a whole answer that begins so, or 0 if more
// has to come to know it.
func answerLength(b []byte) (int, error) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	if end < 0 {
		return 0, nil
	}
	head := bytes.Split(b[:end], []byte("\r\n"))
	if !bytes.HasPrefix(head[0], []byte("HTTP/1.1 200 ")) {
		return 0, fmt.Errorf("the server answers %q", head[0])
	}
	for _, h := range head[1:] {
		name, value, _ := bytes.Cut(h, []byte(":"))
		if bytes.EqualFold(name, []byte("Content-Length")) {
			n, err := strconv.Atoi(string(bytes.TrimSpace(value)))
			if err != nil || n < 0 {
				return 0, fmt.Errorf("Content-Length %q", value)
			}
			return end + 4 + n, nil
		}
	}
	return 0, errors.New("the answer has no Content-Length")
}
