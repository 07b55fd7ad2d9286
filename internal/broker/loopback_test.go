package broker

import (
	"testing"

	"credentialbroker/internal/access"
)

// A caller over loopback is one recipient a user, apart from processes.
func TestRecipientOverLoopback(t *testing.T) {
	const place = "loopback 127.0.0.1:8085"
	one := taker{caller: &access.Caller{UID: 33, Place: place, LoginUID: 1}}
	if got := one.recipient(access.Token); got != (recipient{uid: 33, place: place, surface: access.Token}) {
		t.Errorf("%+v", got)
	}
	if got := one.audited(); got.Place != place || got.UID != 33 || got.PID != 0 {
		t.Errorf("%+v", got)
	}
}
