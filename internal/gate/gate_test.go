package gate

import (
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
