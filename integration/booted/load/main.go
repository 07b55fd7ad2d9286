//go:build real

// Load asks for a client's token with several consumers, over and over, each time
// on a connection of its own, until SIGTERM. It keeps a count in a file.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"
)

// Count is what the consumers saw.
type Count struct {
	Answered int    // tokens
	Cut      int    // connections that were made, and broken before the answer
	Failed   int    // everything else: nobody listens, no token
	First    string // the first that was cut or failed
	Longest  int    // milliseconds until an answer

	mu sync.Mutex
}

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: load CLIENT COUNT-FILE")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	c := &Count{}
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			for ctx.Err() == nil {
				start := time.Now()
				c.add(start, ask(os.Args[1]))
				time.Sleep(5 * time.Millisecond) // the machine has other work
			}
		})
	}
	for ctx.Err() == nil {
		c.save(os.Args[2])
		time.Sleep(50 * time.Millisecond)
	}
	all.Wait()
	c.save(os.Args[2])
}

// errCut is a connection that was broken.
var errCut = errors.New("cut")

func ask(client string) error {
	conn, err := net.Dial("unix", "/run/credential-broker/broker.sock")
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := fmt.Fprintf(conn, "GET /v1/clients/%s/token HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", client); err != nil {
		return cut(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return cut(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return cut(err)
	}
	var token struct {
		Token string `json:"access_token"`
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, body)
	}
	if err := json.Unmarshal(body, &token); err != nil || token.Token == "" {
		return fmt.Errorf("no token: %w", err)
	}
	return nil
}

// cut tells a broken connection from one that nobody answers.
func cut(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w: %w", errCut, err)
}

func (c *Count) add(start time.Time, err error) {
	took := int(time.Since(start).Milliseconds())
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case err == nil:
		c.Answered++
		c.Longest = max(c.Longest, took)
		return
	case errors.Is(err, errCut):
		c.Cut++
	default:
		c.Failed++
	}
	if c.First == "" {
		c.First = err.Error()
	}
}

// save replaces the file whole.
func (c *Count) save(file string) {
	c.mu.Lock()
	text, _ := json.Marshal(c)
	c.mu.Unlock()
	if err := errors.Join(os.WriteFile(file+".new", text, 0o644), os.Rename(file+".new", file)); err != nil {
		log.Fatal(err)
	}
}
