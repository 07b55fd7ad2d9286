package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"credentialbroker/internal/broker"
)

// Rules of this file, which has a planned restart cost no token: the live
// tokens wait for the next daemon with the service manager, as a descriptor of
// anonymous memory (FDSTORE in sd_notify(3)).
//   - They are stored when the daemon has been asked to stop, nothing is handed
//     out or renewed any more, and a service manager is there.
//   - The memory is sealed: nobody can change it, the next daemon included. It
//     is on no disk: the unit's MemorySwapMax= counts for it too.
//   - The next daemon takes it out of the store before it serves, whatever it
//     makes of it.

// storedName is what the descriptor is called in the store.
const storedName = "tokens"

const notifyTimeout = 5 // seconds; the daemon has to end meanwhile

const allSeals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE

// sealed puts data into sealed memory.
func sealed(data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(storedName, unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if errors.Is(err, unix.EINVAL) { // a kernel before 6.3
		fd, err = unix.MemfdCreate(storedName, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("make anonymous memory: %w", err)
	}
	f := os.NewFile(uintptr(fd), storedName) // #nosec G115 -- the kernel's own number
	if _, err = f.Write(data); err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, allSeals)
	}
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("fill anonymous memory: %w", err)
	}
	return f, nil
}

// unsealed reads what sealed made, if it is what the daemon itself has sealed.
// The bytes are the caller's to wipe.
func unsealed(f *os.File) ([]byte, error) {
	seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
	if err != nil || seals&allSeals != allSeals {
		return nil, errors.New("it is no sealed memory")
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil { // #nosec G115 -- a descriptor
		return nil, err
	}
	switch {
	case int(st.Uid) != os.Geteuid():
		return nil, fmt.Errorf("it belongs to uid %d", st.Uid)
	case st.Size <= 0 || st.Size > broker.MaxCarried:
		return nil, fmt.Errorf("it has %d bytes", st.Size)
	}
	data := make([]byte, st.Size)
	if _, err := io.ReadFull(io.NewSectionReader(f, 0, st.Size), data); err != nil {
		clear(data)
		return nil, err
	}
	return data, nil
}

// notifyWith is notify together with a descriptor, which the service manager
// keeps. (A net.UnixConn passes none on when it is a connected datagram socket.)
func notifyWith(f *os.File, state ...string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: notifyTimeout}); err != nil {
		return err
	}
	err = unix.Sendmsg(fd, []byte(strings.Join(state, "\n")), unix.UnixRights(int(f.Fd())), &unix.SockaddrUnix{Name: os.Getenv("NOTIFY_SOCKET")}, 0) // #nosec G115 -- a descriptor
	if err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	return nil
}

// leaveTokens gives the live tokens to the service manager, and what the last
// entry of the log says of that.
func (s *server) leaveTokens() map[string]string {
	n, err := s.storeTokens()
	switch {
	case err != nil:
		s.log.Warn("the live tokens could not be left for the next start, which fetches its own", "error", err)
	case n > 0:
		s.log.Info("live tokens are left with the service manager", "tokens", n)
		return map[string]string{"tokens_left": strconv.Itoa(n)}
	}
	return nil
}

func (s *server) storeTokens() (n int, err error) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return 0, nil
	}
	data, n, err := s.broker.Carry()
	if err != nil || n == 0 {
		return 0, err
	}
	defer clear(data)
	f, err := sealed(data)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return n, notifyWith(f, "FDSTORE=1", "FDNAME="+storedName)
}

// takeTokens gives the broker what the daemon before this one left.
func (s *server) takeTokens(stored []*os.File) {
	if len(stored) == 0 {
		return
	}
	if _, err := daemon.SdNotify(false, "FDSTOREREMOVE=1\nFDNAME="+storedName); err != nil {
		s.log.Warn("the service manager keeps the tokens of before the restart, and has no place for those of the next one", "error", err)
	}
	err := fmt.Errorf("there are %d of them", len(stored))
	if len(stored) == 1 {
		var data []byte
		if data, err = unsealed(stored[0]); err == nil {
			err = s.broker.Restore(data)
		}
	}
	for _, f := range stored {
		_ = f.Close()
	}
	if err != nil {
		s.log.Warn("the tokens of before the restart are not used", "error", err)
	}
}

// tellTaken says what became of the tokens of before the restart.
func (s *server) tellTaken(ctx context.Context) error {
	r, told := s.broker.Restored(ctx)
	if !told || r.Taken == 0 && len(r.Left) == 0 {
		return nil // the daemon stops, or there were none
	}
	args := []any{"tokens", r.Taken}
	for why, n := range r.Left {
		args = append(args, why, n)
	}
	s.log.Info("live tokens taken over from before the restart", args...)
	return nil
}
