package access

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Rules of this file:
//   - a TCP connection has no SO_PEERCRED. Both of its ends are sockets of this
//     machine, so the kernel is asked for the other one, by all four numbers of
//     the connection (sock_diag(7)): whose it is, and which;
//   - only a socket that lives, is connected and belongs to somebody counts.
//     What is closed lingers with uid 0 and inode 0, and is not root's;
//   - an answer is about one socket: its cookie is never given out again, so
//     that whoever gets the port next does not inherit.

// SockDiag asks the kernel about the TCP sockets of this network namespace.
// Open one with OpenSockDiag; it is for many goroutines at a time.
type SockDiag struct {
	users userDatabase

	mu  sync.Mutex
	fd  int // -1 once closed
	seq uint32
}

// OpenSockDiag needs AF_NETLINK, and no privilege.
func OpenSockDiag() (*SockDiag, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err == nil {
		// The answer is there when the question was sent; nothing waits for long.
		err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2})
		if err == nil {
			return &SockDiag{fd: fd}, nil
		}
		_ = unix.Close(fd)
	}
	return nil, fmt.Errorf("the kernel cannot be asked who opens a TCP connection (AF_NETLINK: %w): under systemd, install the drop-in loopback.conf", err)
}

// Close frees the socket. From then on nobody is identified, and no Caller that
// came from here is alive.
func (d *SockDiag) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fd < 0 {
		return nil
	}
	fd := d.fd
	d.fd = -1
	return unix.Close(fd)
}

// A Peer is the other end of a TCP connection on this machine.
type Peer struct {
	// UID is who made the socket.
	UID uint32

	inode     uint32
	cookie    [8]byte
	near, far netip.AddrPort // its own address, and ours
	state     uint8
}

// The states of TCP that matter here (include/net/tcp_states.h).
const (
	tcpEstablished = 1
	tcpListen      = 10
)

// Peer is who opened c, by the kernel's word. The error is ErrExited for a
// connection that has ended, or is closing.
func (d *SockDiag) Peer(c *net.TCPConn) (Peer, error) {
	ours, ok1 := address(c.LocalAddr())
	theirs, ok2 := address(c.RemoteAddr())
	if !ok1 || !ok2 || !ours.Addr().IsLoopback() || !theirs.Addr().IsLoopback() {
		return Peer{}, errors.New("the connection comes from another machine")
	}
	p, err := d.find(theirs, ours, [8]byte{})
	switch {
	case errors.Is(err, unix.ENOENT):
		return Peer{}, errors.New("no socket of this machine is the other end of the connection: it was forwarded from another network namespace or machine, or is closed")
	case errors.Is(err, ErrExited):
		return Peer{}, err
	case err != nil:
		return Peer{}, fmt.Errorf("sock_diag: %w", err)
	}
	// Theirs was connected; if ours is too, after that, they are one connection:
	// as long as ours lives, nobody else can connect with the same four numbers.
	if err := established(c); err != nil {
		return Peer{}, err
	}
	return p, nil
}

// Caller makes p the caller of a connection to place. The user's groups come
// from the user database, not from the kernel: for one minute they are not
// asked for again.
func (d *SockDiag) Caller(p Peer, place, client string) *Caller {
	gid, groups := d.users.groups(p.UID)
	return &Caller{UID: p.UID, GID: gid, Groups: groups, LoginUID: nobody, Place: place, Client: client, pidfd: -1, peer: &p, diag: d}
}

// connected says whether the very socket p is still connected.
func (d *SockDiag) connected(p *Peer) bool {
	now, err := d.find(p.near, p.far, p.cookie)
	return err == nil && now == *p
}

// Listener describes who listens on addr, for an error; empty: nobody that the
// kernel knows of. The process is named where it may be seen.
func (d *SockDiag) Listener(addr netip.AddrPort) string {
	p, err := d.Listening(addr)
	if err != nil {
		return ""
	}
	who := "user " + d.users.name(p.UID)
	if pid, program := holderOf(p.inode); pid != 0 {
		who += fmt.Sprintf(", pid %d (%s)", pid, program)
	}
	return who
}

// Knows says whether the kernel tells whose the listener on addr is: if not, it
// would not tell about callers either.
func (d *SockDiag) Knows(addr netip.AddrPort) error {
	p, err := d.Listening(addr)
	if err == nil && p.UID != uint32(os.Geteuid()) {
		err = fmt.Errorf("it says that uid %d does", p.UID)
	}
	if err != nil {
		return fmt.Errorf("the kernel does not say who listens on %s, so it would not say who connects (%w): it needs the modules inet_diag and tcp_diag", addr, err)
	}
	return nil
}

// Listening is the socket that listens on addr; equal ones are the same socket.
func (d *SockDiag) Listening(addr netip.AddrPort) (Peer, error) {
	whoever := netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	if addr.Addr().Is6() {
		whoever = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
	}
	p, err := d.ask(addr, whoever, [8]byte{})
	if err == nil && (p.state != tcpListen || p.near.Port() != addr.Port()) {
		err = unix.ENOENT
	}
	return p, err
}

// find is the connected socket whose own address is near and whose peer is far.
// The kernel falls back to a listener on near, and to what is left of a closed
// connection: neither is one, and the error is ErrExited.
func (d *SockDiag) find(near, far netip.AddrPort, cookie [8]byte) (Peer, error) {
	p, err := d.ask(near, far, cookie)
	if err != nil {
		return Peer{}, err
	}
	if p.state != tcpEstablished || p.inode == 0 || p.near != near || p.far != far {
		return Peer{}, ErrExited
	}
	return p, nil
}

const (
	headerLen  = 16 // struct nlmsghdr
	requestLen = 56 // struct inet_diag_req_v2
	answerLen  = 72 // struct inet_diag_msg
)

// ask sends one question and reads its answer. A zero cookie asks for any
// socket. The error is the kernel's: ENOENT or ESTALE where there is none.
func (d *SockDiag) ask(near, far netip.AddrPort, cookie [8]byte) (Peer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fd < 0 {
		return Peer{}, net.ErrClosed
	}
	d.seq++
	question := diagRequest(d.seq, near, far, cookie)
	if err := unix.Sendto(d.fd, question[:], 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return Peer{}, err
	}
	for {
		var buf [1024]byte
		n, from, err := unix.Recvfrom(d.fd, buf[:], 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return Peer{}, err
		}
		if k, ok := from.(*unix.SockaddrNetlink); !ok || k.Pid != 0 {
			continue // not from the kernel
		}
		p, seq, err := parseDiag(buf[:n])
		if seq != d.seq {
			continue // the late answer to a question that was given up
		}
		return p, err
	}
}

func diagRequest(seq uint32, near, far netip.AddrPort, cookie [8]byte) (b [headerLen + requestLen]byte) {
	native := binary.NativeEndian
	native.PutUint32(b[0:], uint32(len(b)))
	native.PutUint16(b[4:], unix.SOCK_DIAG_BY_FAMILY)
	native.PutUint16(b[6:], unix.NLM_F_REQUEST)
	native.PutUint32(b[8:], seq)
	r := b[headerLen:]
	r[0], r[1] = unix.AF_INET, unix.IPPROTO_TCP
	if near.Addr().Is6() {
		r[0] = unix.AF_INET6
	}
	native.PutUint32(r[4:], ^uint32(0)) // states; a single question ignores them
	binary.BigEndian.PutUint16(r[8:], near.Port())
	binary.BigEndian.PutUint16(r[10:], far.Port())
	copy(r[12:28], near.Addr().AsSlice())
	copy(r[28:44], far.Addr().AsSlice())
	copy(r[48:56], cookie[:])
	if cookie == [8]byte{} {
		native.PutUint64(r[48:], ^uint64(0)) // INET_DIAG_NOCOOKIE, twice
	}
	return b
}

func parseDiag(b []byte) (p Peer, seq uint32, err error) {
	native := binary.NativeEndian
	if len(b) < headerLen {
		return p, 0, unix.EBADMSG
	}
	kind, seq, body := native.Uint16(b[4:]), native.Uint32(b[8:]), b[headerLen:]
	switch {
	case kind == unix.NLMSG_ERROR && len(body) >= 4:
		return p, seq, unix.Errno(-int32(native.Uint32(body)))
	case kind != unix.SOCK_DIAG_BY_FAMILY || len(body) < answerLen:
		return p, seq, unix.EBADMSG
	}
	p.state = body[1]
	addr := func(at int) netip.Addr {
		if body[0] == unix.AF_INET {
			return netip.AddrFrom4([4]byte(body[at : at+4]))
		}
		return netip.AddrFrom16([16]byte(body[at : at+16])).Unmap()
	}
	p.near = netip.AddrPortFrom(addr(8), binary.BigEndian.Uint16(body[4:]))
	p.far = netip.AddrPortFrom(addr(24), binary.BigEndian.Uint16(body[6:]))
	p.cookie = [8]byte(body[44:52])
	p.UID, p.inode = native.Uint32(body[64:]), native.Uint32(body[68:])
	return p, seq, nil
}

// address is a connection's, with IPv4 as IPv4.
func address(a net.Addr) (netip.AddrPort, bool) {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}, false
	}
	at := t.AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), true
}

// established says whether our own end is connected.
func established(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var info *unix.TCPInfo
	var failed error
	err = raw.Control(func(fd uintptr) { info, failed = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err = errors.Join(err, failed); err != nil {
		return fmt.Errorf("TCP_INFO: %w", err)
	}
	if info.State != tcpEstablished {
		return ErrExited
	}
	return nil
}

// holderOf finds the process that holds a socket, as far as /proc shows; pid 0:
// none that we may see.
func holderOf(inode uint32) (pid int, program string) {
	want := "socket:[" + strconv.FormatUint(uint64(inode), 10) + "]"
	files, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil || inode == 0 {
		return 0, ""
	}
	for _, f := range files {
		if target, err := os.Readlink(f); err != nil || target != want {
			continue
		}
		dir := strings.Split(f, "/")[2]
		pid, _ = strconv.Atoi(dir)
		comm, _ := os.ReadFile("/proc/" + dir + "/comm")
		return pid, plainName(strings.TrimSpace(string(comm)))
	}
	return 0, ""
}

// plainName: a program calls itself what it likes.
func plainName(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}
