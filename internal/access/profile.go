package access

import (
	"bytes"
	"errors"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// profile is what only /proc knows of a process.
type profile struct {
	cgroup
	pid      int32
	start    uint64
	exe      Executable
	place    string // its cgroup file
	loginUID uint32
	read     time.Time
}

const (
	fresh       = time.Second // how long a profile is used again
	maxProfiles = 4096        // then all are forgotten
)

// profile returns what is remembered of the process behind pidfd, whose number
// is key, or reads it.
// The caller has to look afterwards whether the process still runs.
func (i *Identifier) profile(pid int32, pidfd int, key uint64) (profile, error) {
	if key != 0 {
		i.mu.Lock()
		p, ok := i.seen[key]
		i.mu.Unlock()
		if ok && p.pid == pid && time.Since(p.read) < fresh && p.stands() {
			return p, nil
		}
	}
	p, err := look(pid, pidfd)
	// A process that went meanwhile may have left its number to the next.
	if err != nil || key == 0 || !running(pidfd) {
		return p, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.seen == nil || len(i.seen) >= maxProfiles {
		i.seen = map[uint64]profile{}
	}
	i.seen[key] = p
	return p, nil
}

// stands says whether the process still runs the same program at the same
// place: neither an exec nor a move to another unit takes what was read before
// along. A process that went stands nowhere.
func (p *profile) stands() bool {
	var st unix.Stat_t
	proc := "/proc/" + strconv.Itoa(int(p.pid)) + "/"
	exe := Executable{}
	if unix.Stat(proc+"exe", &st) == nil {
		exe = Executable{Dev: st.Dev, Ino: st.Ino}
	}
	var buf [4096]byte
	text, err := procDir(unix.AT_FDCWD).read(proc+"cgroup", buf[:])
	return err == nil && exe == p.exe && string(text) == p.place
}

// unique is a number that no other process gets until the next boot. Kernels
// before 6.9 have none: 0.
func unique(pidfd int) uint64 {
	var st unix.Stat_t
	var fs unix.Statfs_t
	if unix.Fstat(pidfd, &st) != nil || unix.Fstatfs(pidfd, &fs) != nil || fs.Type != unix.PID_FS_MAGIC {
		return 0
	}
	return st.Ino
}

// look reads everything.
func look(pid int32, pidfd int) (profile, error) {
	p := profile{pid: pid, read: time.Now(), loginUID: nobody, cgroup: cgroup{manager: nobody}}
	dir, start, err := openProc(pid)
	if err != nil {
		return p, err
	}
	defer dir.close()
	p.start = start
	var buf [4096]byte
	if text, err := dir.read("cgroup", buf[:]); err == nil {
		p.place = string(text)
		p.cgroup = parseCgroup(p.place)
	}
	info, err := procDir(unix.AT_FDCWD).read("/proc/self/fdinfo/"+strconv.Itoa(pidfd), buf[:])
	if err != nil {
		return p, err
	}
	// One number a pid namespace, from ours down to the process's own.
	p.container = p.container || len(bytes.Fields(line(info, "NSpid:"))) > 1
	if text, err := dir.read("uid_map", buf[:]); !errors.Is(err, unix.ENOENT) {
		p.container = p.container || err != nil || renumbers(text)
	}
	if text, err := dir.read("loginuid", buf[:]); err == nil {
		if n, err := strconv.ParseUint(string(bytes.TrimSpace(text)), 10, 32); err == nil {
			p.loginUID = uint32(n)
		}
	}
	p.exe = dir.exe()
	return p, nil
}

// renumbers says whether a /proc/PID/uid_map gives a user another number than
// we see. A namespace that only drops users (PrivateUsers=, a browser's
// sandbox) does not: in it, uid 33 is uid 33.
func renumbers(uidMap []byte) bool {
	lines := 0
	for l := range bytes.Lines(uidMap) {
		f := bytes.Fields(l)
		if len(f) != 3 || !bytes.Equal(f[0], f[1]) {
			return !oursToo(uidMap)
		}
		lines++
	}
	return lines == 0 // not set yet
}

// oursToo: where we live in such a namespace ourselves, our own looks so.
func oursToo(uidMap []byte) bool {
	own, err := procDir(unix.AT_FDCWD).read("/proc/self/uid_map", make([]byte, 4096))
	return err == nil && bytes.Equal(own, uidMap)
}

// line is what follows key on the first line that begins with it.
func line(text []byte, key string) []byte {
	for l := range bytes.Lines(text) {
		if rest, ok := bytes.CutPrefix(l, []byte(key)); ok {
			return bytes.TrimSpace(rest)
		}
	}
	return nil
}
