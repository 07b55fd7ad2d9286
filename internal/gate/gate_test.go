package gate

import (
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"
)

// Peers are forgotten, but not before their rates have recovered.
func TestPeersAreForgotten(t *testing.T) {
	p := New(Limits{}, nil)
	p.peers[1], p.peers[2], p.peers[3], p.peers[4] = &peer{}, &peer{}, &peer{conns: map[*Conn]struct{}{{}: {}}}, &peer{}
	p.peers[2].bucket.fullAt.Store(p.now() + int64(time.Hour))
	p.peers[4].scanned.takeMany(p.now(), &Limits{RequestsPerSecond: 33, Burst: 2000}, 64)
	p.prune()
	if len(p.peers) != 3 || p.peers[1] != nil {
		t.Errorf("%v", p.peers)
	}
}

// Beyond a user's cap, while all have a request in progress, a few are told so
// and the others are closed.
func TestSurplus(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const limit = 3
	p := New(Limits{ConnectionsPerUser: limit}, slog.New(slog.DiscardHandler))
	admitted, over := 0, 0
	for range limit + surplus + 5 {
		near, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer near.Close()
		far, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer far.Close()
		if c := p.admit(far); c != nil {
			c.idle.Store(0)
			admitted++
			if c.over {
				over++
			}
		}
	}
	if admitted != limit+surplus || over != surplus {
		t.Errorf("%d connections were let in, %d of them to be told that they are too many", admitted, over)
	}
}

func TestBucket(t *testing.T) {
	l := Limits{RequestsPerSecond: 10, Burst: 5}
	var b bucket
	now := int64(time.Hour)
	for i := range 5 {
		if wait := b.take(now, &l); wait != 0 {
			t.Errorf("request %d waits %v", i, wait)
		}
	}
	if wait := b.take(now, &l); wait != 100*time.Millisecond {
		t.Errorf("the sixth waits %v", wait)
	}
	if wait := b.take(now+int64(100*time.Millisecond), &l); wait != 0 {
		t.Errorf("after the wait: %v", wait)
	}
	if b.full(now+int64(599*time.Millisecond)) || !b.full(now+int64(600*time.Millisecond)) {
		t.Error("full at the wrong time")
	}
}
