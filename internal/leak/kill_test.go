package leak

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"credentialbroker/internal/clock"
)

// life is a daemon's: it takes in what was spooled, declares what was not
// declared yet, reports it, and ends when everything is sent. At the step of
// that number it kills itself.
func life(t *testing.T, state string, port uint16, kill int) {
	n := 0
	step := func(name string) {
		fmt.Println("stage " + name)
		if n++; n == kill {
			fmt.Println("killed " + name)
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
	fail := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	b, err := OpenBook(filepath.Join(state, "incidents"), "web1", clock.System{})
	fail(err)
	b.store.at, b.spool.at, b.hold.at = step, step, step
	o, err := OpenOutbox(filepath.Join(state, "outbox"), "web1", []Relay{{Host: "127.0.0.1", Port: port, TLS: "none"}}, clock.System{})
	fail(err)
	fail(o.Damaged())
	o.store.at = step
	if list, err := b.List(); err == nil && len(list) == 0 {
		i, err := b.Spool(declaration(), false)
		fail(err)
		fmt.Println("recorded " + i.ID)
	}
	_, err = b.Absorb()
	fail(err)
	list, err := b.List()
	fail(err)
	held := map[string][]string{}
	for _, i := range list {
		held[i.ID] = i.Clients
	}
	lost, err := b.Hold(held)
	fail(err)
	there, err := b.held()
	fail(err)
	if len(lost) != 0 || len(there) != 2 {
		t.Errorf("lost %v, held %v", lost, there)
	}
	for _, i := range list {
		if !i.Unqueued() {
			continue
		}
		i.Issuer.Contacts = nil // one message, so that its copies can be counted
		messages, err := Compose(i, sender(), []Language{Dutch, English})
		fail(err)
		fail(o.Enqueue(messages))
		_, err = b.Update(i.ID, func(i *Incident) error { i.Queued(); return nil })
		fail(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan error)
	go func() { done <- o.Run(ctx) }()
	for range 2000 {
		sent := 0
		for _, d := range o.Deliveries("") {
			if d.State == Sent {
				sent++
			}
		}
		if sent == 1 {
			cancel()
			fail(<-done)
			fmt.Println("done")
			return
		}
		<-time.After(5 * time.Millisecond)
	}
	t.Errorf("not delivered: %+v", o.Deliveries(""))
}

// A daemon is killed at every step between two of which something becomes
// durable, or the relay hears something; and by the relay, in the middle of
// each stage. The next one delivers what was recorded.
func TestKilledAnywhere(t *testing.T) {
	if state, ok := strings.CutPrefix(os.Getenv("LEAK_TEST"), "life "); ok {
		port, _ := strconv.ParseUint(os.Getenv("LEAK_PORT"), 10, 16)
		kill, _ := strconv.Atoi(os.Getenv("LEAK_KILL"))
		life(t, state, uint16(port), kill)
		return
	}
	seen := map[string]int{}
	for n := 1; ; n++ {
		name := killedOnce(t, n, "")
		if name == "" {
			if n < 20 {
				t.Errorf("only %d steps", n)
			}
			break
		}
		seen[name]++
	}
	for _, stage := range []string{"greeting", "ehlo", "mail", "rcpt", "data", "body"} {
		if killedOnce(t, 0, stage) != stage {
			t.Errorf("it was not killed at %s", stage)
		}
		seen[stage]++
	}
	for _, name := range []string{"before write", "before rename", "before sync", "after sync", "before absorb", "before hold", "after hold", "in body", "accepted"} {
		if seen[name] == 0 {
			t.Errorf("it was never killed at %q: %v", name, seen)
		}
	}
}

// killedOnce runs a daemon that is killed at a step, or by the relay at a
// stage, and then one that is not. It returns where the first was killed.
func killedOnce(t *testing.T, kill int, stage string) (where string) {
	t.Helper()
	state := t.TempDir()
	child, victim := make(chan int, 1), make(chan string, 1)
	s := &server{tls: "none"}
	s.at = func(at string) {
		if at != stage {
			return
		}
		select {
		case pid := <-child:
			victim <- at
			_ = syscall.Kill(pid, syscall.SIGKILL)
		default: // the second life
		}
	}
	port := s.listen(t)
	run := func(kill int, first bool) string {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledAnywhere$")
		cmd.Env = append(os.Environ(), "LEAK_TEST=life "+state, fmt.Sprintf("LEAK_PORT=%d", port), fmt.Sprintf("LEAK_KILL=%d", kill))
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if first {
			child <- cmd.Process.Pid
		}
		_ = cmd.Wait() // it may have been killed: the output says the rest
		return out.String()
	}
	first := run(kill, true)
	select {
	case where = <-victim:
	case <-child:
		if _, after, ok := strings.Cut(first, "killed "); ok {
			where, _, _ = strings.Cut(after, "\n")
		}
	}
	second := run(0, false)
	if !strings.Contains(second, "done") {
		t.Errorf("killed at %d %s: the next daemon did not deliver:\n%s\n%s", kill, where, first, second)
	}
	if strings.Contains(first, "recorded") && strings.Contains(second, "recorded") {
		t.Errorf("killed at %d %s: what was recorded was lost", kill, where)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := map[string]bool{}
	for _, m := range s.mails {
		ids[parse(t, m).header.Get("Message-ID")] = true
	}
	if len(ids) != 1 || len(s.mails) == 0 {
		t.Errorf("killed at %d %s: %d mails, %d Message-IDs", kill, where, len(s.mails), len(ids))
	}
	// A second copy comes of the gap between the relay's answer and the note of
	// it, and of nothing else.
	gap := where == "accepted" || where == "body" || strings.Contains(first, "stage accepted") && (where == "before write" || where == "before rename")
	if len(s.mails) > 2 || len(s.mails) == 2 && !gap {
		t.Errorf("killed at %d %s: %d copies", kill, where, len(s.mails))
	}
	return where
}
